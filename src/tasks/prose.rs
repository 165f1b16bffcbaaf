//! Writer of reference traces: a planned solution in one of the manners, with slips, checks and second derivations.

use super::steps::{Calculation, CalculationResult, CompletedStep, Op};
use super::{Draft, Manner, Stream};

/// Parameters of a manner; [`style`] has their values.
pub(super) struct Style {
    /// Share of the mixture of traces.
    pub(super) weight: f64,
    /// First words, unique to the manner.
    opening: &'static str,
    /// Number of hesitating sentences before the first step.
    hedges: usize,
    /// Probability that a step is double-checked right after it.
    check: f64,
    /// Probability that a step's result is repeated in words.
    echo: f64,
    /// Approximate number of tokens to fill with further checks: a constant, and a multiple of the terse cost.
    budget: (f64, f64),
}

const NO_WORDS: Style = Style { weight: 0.12, opening: "", hedges: 0, check: 0.0, echo: 0.0, budget: (0.0, 0.0) };

pub(super) const fn style(manner: Manner) -> Style {
    match manner {
        Manner::Terse => NO_WORDS,
        Manner::Lean => Style { weight: 0.10, opening: "So ", ..NO_WORDS },
        Manner::Brief => {
            Style { weight: 0.12, opening: "Okay, I need", hedges: 0, check: 0.15, echo: 0.0, budget: (40.0, 2.2) }
        }
        Manner::Usual => {
            Style { weight: 0.28, opening: "Let me find", hedges: 1, check: 0.35, echo: 0.3, budget: (100.0, 4.4) }
        }
        Manner::Long => Style {
            weight: 0.24,
            opening: "Alright, the question asks for",
            hedges: 2,
            check: 0.5,
            echo: 0.5,
            budget: (128.0, 5.8),
        },
        Manner::Rambling => Style {
            weight: 0.14,
            opening: "Hmm, so I have to find",
            hedges: 3,
            check: 0.6,
            echo: 0.6,
            budget: (160.0, 6.5),
        },
    }
}

/// Probability of a slip: a hard step in one go, a hard step decomposed, an easy step.
const SLIP_ONE_GO: f64 = 0.13;
const SLIP_DECOMPOSED: f64 = 0.05;
const SLIP_EASY: f64 = 0.01;
/// Probability that a check notices a slip.
const NOTICE: f64 = 0.8;
/// Maximum estimated tokens of a filled trace.
const MAX_TOKENS: f64 = 325.0;

const HEDGES: [&str; 6] = [
    "Let me take it step by step.",
    "I should be careful with the numbers here.",
    "This does not look too hard, but it is easy to slip.",
    "I want to write every step down so that nothing gets lost.",
    "Let me read the question again to be sure.",
    "There is no need to rush.",
];
const CONNECTORS: [&str; 4] = ["Then", "Next,", "Now", "After that,"];
const CHECKS: [&str; 3] = ["Let me double-check that:", "Wait, is that right?", "To be sure:"];
const AGREES: [&str; 3] = ["Yes.", "Good, that is right.", "Okay, that fits."];
const AGAIN: [&str; 4] = [
    "Let me go through the whole thing again.",
    "Wait, let me make sure I did not slip anywhere.",
    "Alternatively, I can start over without looking at my steps.",
    "Hmm, one more time, slowly.",
];
const SAME: [&str; 3] = ["That is the same result.", "So it comes out the same.", "It fits again."];
const REMARKS: [&str; 7] = [
    "Everything looks right so far.",
    "So {goal} should be {answer}.",
    "Is {answer} a sensible answer? I think so, the size looks right.",
    "The question asks for {goal}, and I have that now.",
    "I see no mistake in the steps.",
    "I am fairly sure now, but let me not be careless.",
    "Hmm, I think {answer} is right.",
];

/// Estimate the number of tokens: 1 per digit or sign, and 1.4 per word, because a word may be split.
fn cost(text: &str) -> f64 {
    let letters = |c: &char| c.is_alphabetic();
    let signs = text.chars().filter(|c| !letters(c) && *c != ' ').count();
    let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).count();
    signs as f64 + 1.4 * words as f64
}

/// Return the text of the step without a slip, decomposed if the step is hard.
fn careful(calculation: &Calculation) -> String {
    if calculation.is_hard() { calculation.decomposed() } else { calculation.one_go(calculation.exact()) }
}

/// Return the terse text of a list of steps.
pub(super) fn terse(done: &[CompletedStep]) -> String {
    done.iter().map(|step| step.calculation.one_go(step.outcome)).collect::<Vec<_>>().join(";")
}

/// Phrases drawn without repetition, and reshuffled when all are used.
struct Pile {
    phrases: &'static [&'static str],
    left: Vec<&'static str>,
}

impl Pile {
    fn new(phrases: &'static [&'static str]) -> Self {
        Self { phrases, left: Vec::new() }
    }

    fn draw(&mut self, random: &mut Stream) -> &'static str {
        if self.left.is_empty() {
            self.left = self.phrases.to_vec();
            random.shuffle(&mut self.left);
        }
        self.left.pop().unwrap_or_default()
    }
}

struct ProseWriter<'a> {
    draft: &'a Draft,
    manner: Manner,
    style: Style,
    slips: bool,
    random: &'a mut Stream,
    done: Vec<CompletedStep>,
    sentences: Vec<String>,
    checks: Pile,
    agrees: Pile,
    connectors: Pile,
}

pub(super) fn write(draft: &Draft, manner: Manner, slips: bool, random: &mut Stream) -> (String, String) {
    let mut writer = ProseWriter {
        draft,
        manner,
        style: style(manner),
        slips,
        random,
        done: Vec::new(),
        sentences: Vec::new(),
        checks: Pile::new(&CHECKS),
        agrees: Pile::new(&AGREES),
        connectors: Pile::new(&CONNECTORS),
    };
    let wordy = !matches!(manner, Manner::Terse | Manner::Lean);
    if wordy {
        writer.introduce();
    }
    writer.solve(wordy);
    if wordy {
        writer.reconsider();
    }
    let answer = draft.plan.answer(&writer.done);
    let text = if wordy {
        writer.sentences.push(format!("Therefore, the answer is {answer}."));
        format!("<think>{}</think>The answer is \\boxed{{{answer}}}.", writer.sentences.join(" "))
    } else {
        let body = writer.sentences.join(";");
        format!("<think>{}{body}</think>\\boxed{{{answer}}}", writer.style.opening)
    };
    (text, answer)
}

impl ProseWriter<'_> {
    fn say(&mut self, sentence: impl Into<String>) {
        self.sentences.push(sentence.into());
    }

    fn introduce(&mut self) {
        self.say(format!("{} {}.", self.style.opening, self.draft.goal));
        let mut hedges = Pile::new(&HEDGES);
        for at in 0..self.style.hedges {
            let hedge = hedges.draw(self.random);
            self.say(hedge);
            if at == 0 {
                self.say(self.draft.approach);
            }
        }
    }

    fn solve(&mut self, wordy: bool) {
        while let Some((calculation, label)) = self.draft.plan.next(&self.done) {
            let (text, outcome) = self.carry_out(&calculation, label);
            let first = self.done.is_empty();
            self.done.push(CompletedStep { calculation, label, outcome });
            if !wordy {
                self.say(text);
                continue;
            }
            let connector = if first { "First," } else { self.connectors.draw(self.random) };
            self.say(format!("{connector} {label}: {text}."));
            if self.random.chance(self.style.check) {
                let intro = self.checks.draw(self.random);
                let check = self.check(self.done.len() - 1, intro);
                self.say(check);
            }
            if self.random.chance(self.style.echo) {
                let outcome = self.done[self.done.len() - 1].outcome;
                let result = if calculation.op == Op::DivMod { outcome.rest } else { outcome.value };
                self.say(format!("So {label} is {result}."));
            }
        }
    }

    /// Write the step, sometimes with a slip, unless the slip would make the remaining steps impossible.
    fn carry_out(&mut self, calculation: &Calculation, label: &'static str) -> (String, CalculationResult) {
        let exact = calculation.exact();
        let decompose = calculation.is_hard() && self.manner != Manner::Terse;
        let rate = match (calculation.is_hard(), decompose) {
            (true, true) => SLIP_DECOMPOSED,
            (true, false) => SLIP_ONE_GO,
            (false, _) => SLIP_EASY,
        };
        if self.slips && self.random.chance(rate) {
            let (text, outcome) = if decompose {
                calculation.decomposed_slip(self.random)
            } else {
                let outcome = calculation.slip(self.random);
                (calculation.one_go(outcome), outcome)
            };
            let mut done = self.done.clone();
            done.push(CompletedStep { calculation: *calculation, label, outcome });
            if self.draft.plan.finish(&done).is_some() {
                return (text, outcome);
            }
        }
        (if decompose { calculation.decomposed() } else { calculation.one_go(exact) }, exact)
    }

    /// Return a check of a step. A check that notices a slip corrects the step, which must be the last.
    fn check(&mut self, index: usize, intro: &str) -> String {
        let step = &self.done[index];
        let (calculation, outcome) = (step.calculation, step.outcome);
        let exact = calculation.exact();
        let agrees = self.agrees.draw(self.random);
        let reverse = if self.random.chance(0.6) { reversed(&calculation, outcome) } else { None };
        if outcome == exact {
            return format!("{intro} {}. {agrees}", careful(&reverse.unwrap_or(calculation)));
        }
        if index + 1 < self.done.len() || !self.random.chance(NOTICE) {
            return format!("{intro} {}. {agrees}", calculation.one_go(outcome));
        }
        self.done[index].outcome = exact;
        let (right, wrong) = (careful(&calculation), calculation.result(outcome));
        match reverse.filter(|back| back.op != calculation.op && back.exact().value != calculation.left) {
            Some(back) => {
                let (back, left) = (careful(&back), calculation.left);
                format!("{intro} {back}, not {left}. Wait, that is not right: {right}.")
            }
            None => format!("{intro} {right}. Wait, {wrong} was not right."),
        }
    }

    /// Add further checks, second derivations and remarks, until the manner's budget is spent.
    fn reconsider(&mut self) {
        // The right solution always finishes; this was checked when the problem was drawn.
        let floor = self.draft.plan.finish(&[]).map_or(0.0, |done| cost(&terse(&done)));
        let budget = (self.style.budget.0 + self.style.budget.1 * floor).min(MAX_TOKENS);
        let budget = budget * (0.8 + 0.4 * self.random.unit()) - 22.0;
        let mut remarks = Pile::new(&REMARKS);
        let mut again = Pile::new(&AGAIN);
        let mut spent: f64 = self.sentences.iter().map(|sentence| cost(sentence)).sum();
        let mut derivations = 0;
        for turn in 0..12 {
            if spent >= budget {
                break;
            }
            let room = budget - spent;
            let sentence = if turn % 3 == 1 && derivations < AGAIN.len() && room > 2.0 * floor {
                derivations += 1;
                let intro = again.draw(self.random);
                self.derive_again(intro)
            } else if turn % 3 == 2 && room > 25.0 {
                let index = self.random.range(0, self.done.len() as i64 - 1) as usize;
                let intro = format!("Let me check {} again:", self.done[index].label);
                self.check(index, &intro)
            } else if turn < 3 * REMARKS.len() {
                let answer = self.draft.plan.answer(&self.done);
                remarks.draw(self.random).replace("{goal}", &self.draft.goal).replace("{answer}", &answer)
            } else {
                break;
            };
            spent += cost(&sentence);
            self.say(sentence);
        }
    }

    /// Return the whole solution a second time. An overlooked slip is repeated, a noticed one corrected.
    fn derive_again(&mut self, intro: &str) -> String {
        let mut again: Vec<CompletedStep> = Vec::new();
        let mut steps = Vec::new();
        while let Some((calculation, label)) = self.draft.plan.next(&again) {
            let before = self.done.get(again.len()).filter(|step| step.calculation == calculation);
            let outcome = match before.map(|step| step.outcome) {
                Some(outcome) if outcome != calculation.exact() && !self.random.chance(NOTICE) => outcome,
                _ => calculation.exact(),
            };
            let slipped = outcome != calculation.exact();
            steps.push(if slipped { calculation.one_go(outcome) } else { careful(&calculation) });
            again.push(CompletedStep { calculation, label, outcome });
        }
        let (old, new) = (self.draft.plan.answer(&self.done), self.draft.plan.answer(&again));
        self.done = again;
        let steps = steps.join(", ");
        if old == new {
            let same = *self.random.choose(&SAME);
            format!("{intro} {steps}. {same}")
        } else {
            format!("{intro} {steps}. Wait, that is {new}, not {old}, so I made a mistake before.")
        }
    }
}

/// Return the calculation that inverts a step, or does it in another order, if there is one.
fn reversed(calculation: &Calculation, outcome: CalculationResult) -> Option<Calculation> {
    let Calculation { op, left, right, .. } = *calculation;
    let CalculationResult { value, rest } = outcome;
    let new = |op, left, right, addend| Calculation { op, left, right, addend };
    let back = match op {
        Op::Add => new(Op::Sub, value, right, 0),
        Op::Sub => new(Op::Add, value, right, 0),
        Op::Mul => new(Op::Mul, right, left, 0),
        Op::Div => new(Op::Mul, value, right, 0),
        Op::DivMod => new(Op::MulAdd, value, right, rest),
        Op::MulAdd | Op::Mod => return None,
    };
    back.is_valid().then_some(back)
}
