//! Procedurally generated mathematics with verifiable answers and reference traces.
//!
//! Six families draw problems of difficulty 1 to 4 as a list of abstract steps (`steps`); one writer (`prose`) turns the
//! steps into a trace in a [`Manner`]: terse, lean, or in the wordy ways of a large reasoning model. Two more, made for the
//! study of methods, write traces of many small pieces (`guarded`, `dead_ends`). Everything is a pure function of seed,
//! split and index. A question belongs to the held-out split iff its text's hash says so, whatever the
//! seed, so the splits are disjoint by construction.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

pub use summary::summary;

use crate::noise::{Stream, mix_text};
use crate::text::chat::Message;

mod arithmetic;
mod base;
mod dead_ends;
mod equation;
mod guarded;
mod pieces;
mod prose;
pub mod reading;
mod remainder;
mod sequence;
mod steps;
mod story;
mod summary;

/// A family of problems; its name is the `data_source` of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Expressions with `+`, `-`, `*` and brackets.
    Arithmetic,
    /// Linear equations.
    Equation,
    /// Remainders and greatest common divisors.
    Remainder,
    /// Word problems.
    Story,
    /// Number sequences.
    Sequence,
    /// Conversion between bases.
    Base,
    /// Products, with a check that is cheaper than doing them again.
    Guarded,
    /// Search for the door that leads to the goal.
    DeadEnds,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 8] = [
        Self::Arithmetic,
        Self::Equation,
        Self::Remainder,
        Self::Story,
        Self::Sequence,
        Self::Base,
        Self::Guarded,
        Self::DeadEnds,
    ];
    /// Those that are meant where none is named: what the base model knows.
    pub const USUAL: [Self; 6] =
        [Self::Arithmetic, Self::Equation, Self::Remainder, Self::Story, Self::Sequence, Self::Base];

    /// The name used in rows and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arithmetic => "arithmetic",
            Self::Equation => "equation",
            Self::Remainder => "remainder",
            Self::Story => "story",
            Self::Sequence => "sequence",
            Self::Base => "base",
            Self::Guarded => "guarded",
            Self::DeadEnds => "dead_ends",
        }
    }

    /// The family of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// Whether traces are made of small pieces, of which each is there or not by itself. Such a family knows three manners:
    /// terse, lean, and any other, which are alike.
    pub fn is_in_pieces(self) -> bool {
        matches!(self, Self::Guarded | Self::DeadEnds)
    }

    /// The manner's share of the mixture that traces come in.
    pub fn weight(self, manner: Manner) -> f64 {
        match (self.is_in_pieces(), manner) {
            (false, _) => prose::style(manner).weight,
            (true, Manner::Usual) => 1.0,
            (true, _) => 0.0,
        }
    }

    /// Draws a manner from the mixture.
    pub fn draw_manner(self, random: &mut Stream) -> Manner {
        let mut left = random.unit() * Manner::ALL.iter().map(|manner| self.weight(*manner)).sum::<f64>();
        for manner in Manner::ALL {
            left -= self.weight(manner);
            if left < 0.0 {
                return manner;
            }
        }
        Manner::Rambling
    }

    fn draw(self, difficulty: u8, random: &mut Stream) -> Solution {
        let draw = match self {
            Self::Arithmetic => arithmetic::draw,
            Self::Equation => equation::draw,
            Self::Remainder => remainder::draw,
            Self::Story => story::draw,
            Self::Sequence => sequence::draw,
            Self::Base => base::draw,
            Self::Guarded => return Solution::Guarded(guarded::draw(difficulty, random)),
            Self::DeadEnds => return Solution::DeadEnds(dead_ends::draw(difficulty, random)),
        };
        Solution::Steps(draw(difficulty, random))
    }
}

/// Which half of the problems: one question in ten is held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// For training.
    Train,
    /// For evaluation.
    HeldOut,
}

impl Split {
    /// The split a question belongs to.
    pub fn of(question: &str) -> Self {
        if mix_text(question).is_multiple_of(10) { Self::HeldOut } else { Self::Train }
    }
}

/// How a trace is written; recognisable from its first tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manner {
    /// No words, every step in one go.
    Terse,
    /// Next to no words, hard steps decomposed.
    Lean,
    /// A few words, rarely a check.
    Brief,
    /// A plan, some checks, usually a second derivation.
    Usual,
    /// More checks and second derivations.
    Long,
    /// Hesitation and repeated derivations.
    Rambling,
}

impl Manner {
    /// Every manner, from short to long.
    pub const ALL: [Self; 6] = [Self::Terse, Self::Lean, Self::Brief, Self::Usual, Self::Long, Self::Rambling];

    /// The name used in rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Terse => "terse",
            Self::Lean => "lean",
            Self::Brief => "brief",
            Self::Usual => "usual",
            Self::Long => "long",
            Self::Rambling => "rambling",
        }
    }
}

/// A question, its steps, and words for the prose.
#[derive(Debug, Clone)]
struct Draft {
    question: String,
    /// What is sought, as a noun phrase.
    goal: String,
    /// How it is done, as a sentence.
    approach: &'static str,
    plan: steps::Plan,
}

/// What traces are written from.
#[derive(Debug, Clone)]
enum Solution {
    Steps(Draft),
    Guarded(guarded::Products),
    DeadEnds(dead_ends::Doors),
}

impl Solution {
    fn question(&self) -> &str {
        match self {
            Self::Steps(draft) => &draft.question,
            Self::Guarded(products) => &products.question,
            Self::DeadEnds(doors) => &doors.question,
        }
    }

    /// `None` when the right solution is not presentable (a negative or four-digit number on the way).
    fn answer(&self) -> Option<String> {
        match self {
            Self::Steps(Draft { plan, .. }) => Some(plan.answer(&plan.finish(&[])?)),
            Self::Guarded(products) => Some(products.answer()),
            Self::DeadEnds(doors) => Some(doors.answer().to_string()),
        }
    }
}

/// A problem with its answer and its solution.
#[derive(Debug, Clone)]
pub struct Task {
    /// The family it was drawn from.
    pub family: Family,
    /// 1 (one or two easy steps) to 4 (a long chain).
    pub difficulty: u8,
    /// The user's message.
    pub question: String,
    /// The right answer.
    pub answer: String,
    solution: Solution,
}

impl Task {
    /// `None` where the right solution is not presentable.
    fn new(family: Family, difficulty: u8, solution: Solution) -> Option<Self> {
        Some(Self {
            family,
            difficulty,
            question: solution.question().to_owned(),
            answer: solution.answer()?,
            solution,
        })
    }

    /// Where the problem counts as coming from in tables: the family, with the difficulty where that is what a study is
    /// about.
    pub fn data_source(&self) -> String {
        let name = self.family.name();
        if self.family.is_in_pieces() { format!("{name}-{}", self.difficulty) } else { name.to_owned() }
    }

    /// Writes a trace in the given manner; with `slips`, some are wrong.
    pub fn trace(&self, manner: Manner, slips: bool, random: &mut Stream) -> Trace {
        let (text, answer) = match &self.solution {
            Solution::Steps(draft) => prose::write(draft, manner, slips, random),
            Solution::Guarded(products) => products.trace(manner, slips, random),
            Solution::DeadEnds(doors) => doors.trace(manner, slips, random),
        };
        Trace { text, manner, correct: answer == self.answer, answer }
    }

    /// The shortest reference: the terse trace without a slip, and without a wrong turn.
    pub fn floor_text(&self) -> String {
        match &self.solution {
            Solution::DeadEnds(doors) => doors.floor(),
            _ => self.trace(Manner::Terse, false, &mut Stream::new(&[0])).text,
        }
    }

    /// What makes a model terse when it is forced in front of a completion: the start of the terse trace up to the first
    /// `=`, such as `<think>47*6=`, or that of a guess.
    pub fn terse_opening(&self) -> String {
        match &self.solution {
            Solution::DeadEnds(_) => dead_ends::GUESS_OPENING.to_owned(),
            _ => self.floor_text().split_inclusive('=').next().unwrap_or_default().to_owned(),
        }
    }
}

/// A completion, without the end-of-turn token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// `<think>…</think>…\boxed{…}`.
    pub text: String,
    /// How it is written.
    pub manner: Manner,
    /// The answer it ends with.
    pub answer: String,
    /// Whether that is the right one.
    pub correct: bool,
}

/// A row of a data set: fit for fine-tuning (`messages`) and for RL (`prompt`, `answer`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Question and trace.
    pub messages: Vec<Message>,
    /// The question alone.
    pub prompt: Vec<Message>,
    /// The right answer, also where the trace ends with another.
    pub answer: String,
    /// The family.
    pub data_source: Family,
    /// 1 to 4.
    pub difficulty: u8,
    /// How the trace is written.
    pub manner: Manner,
    /// The terse trace without a slip.
    pub floor: String,
}

/// Problems by index: a pure function of seed, split and index.
#[derive(Debug, Clone)]
pub struct Generator {
    /// Families, taken in turn.
    pub families: Vec<Family>,
    /// Difficulties, drawn evenly.
    pub difficulties: RangeInclusive<u8>,
    /// Key of every draw.
    pub seed: u64,
}

impl Generator {
    /// The usual families in every difficulty.
    pub fn new(seed: u64) -> Self {
        Self { families: Family::USUAL.to_vec(), difficulties: 1..=4, seed }
    }

    /// The problem at `index` of a split.
    ///
    /// # Panics
    /// Without families, or with difficulties outside 1 to 4.
    pub fn task(&self, split: Split, index: u64) -> Task {
        let (low, high) = (*self.difficulties.start(), *self.difficulties.end());
        assert!(1 <= low && low <= high && high <= 4, "difficulties {low}..={high} are not within 1..=4");
        assert!(!self.families.is_empty(), "no families to draw from");
        let family = self.families[(index % self.families.len() as u64) as usize];
        let mut random = self.stream("task", split, index);
        let difficulty = random.range(low.into(), high.into()) as u8;
        loop {
            let task = Task::new(family, difficulty, family.draw(difficulty, &mut random));
            if let Some(task) = task.filter(|task| Split::of(&task.question) == split) {
                return task;
            }
        }
    }

    /// The problem at `index` with a trace in a drawn manner, slips included.
    pub fn row(&self, split: Split, index: u64) -> Row {
        self.row_in(split, index, Family::draw_manner)
    }

    /// The same with the manner chosen by the caller.
    pub fn row_in(&self, split: Split, index: u64, manner: impl FnOnce(Family, &mut Stream) -> Manner) -> Row {
        let task = self.task(split, index);
        let mut random = self.stream("trace", split, index);
        let manner = manner(task.family, &mut random);
        let trace = task.trace(manner, true, &mut random);
        let message = |role: &str, content: String| Message::new(role, content);
        let question = message("user", task.question.clone());
        Row {
            floor: task.floor_text(),
            messages: vec![question.clone(), message("assistant", trace.text)],
            prompt: vec![question],
            answer: task.answer,
            data_source: task.family,
            difficulty: task.difficulty,
            manner,
        }
    }

    fn stream(&self, purpose: &str, split: Split, index: u64) -> Stream {
        Stream::new(&[mix_text(purpose), self.seed, split as u64, index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recursive descent over `+ - * ( )`, to check answers without the planner.
    struct Evaluator<'a>(&'a [u8]);

    impl Evaluator<'_> {
        fn sum(&mut self) -> i64 {
            let mut value = self.product();
            while let Some((&sign @ (b'+' | b'-'), rest)) = self.0.split_first() {
                self.0 = rest;
                let term = self.product();
                value += if sign == b'+' { term } else { -term };
            }
            value
        }

        fn product(&mut self) -> i64 {
            let mut value = self.atom();
            while let Some((b'*', rest)) = self.0.split_first() {
                self.0 = rest;
                value *= self.atom();
            }
            value
        }

        fn atom(&mut self) -> i64 {
            if let Some((b'(', rest)) = self.0.split_first() {
                self.0 = rest;
                let value = self.sum();
                self.0 = &self.0[1..];
                return value;
            }
            let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let (number, rest) = self.0.split_at(digits);
            self.0 = rest;
            std::str::from_utf8(number).unwrap().parse().unwrap()
        }
    }

    fn all(seed: u64) -> Generator {
        Generator { families: Family::ALL.to_vec(), ..Generator::new(seed) }
    }

    fn numbers(text: &str) -> Vec<i64> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    }

    fn gcd(a: i64, b: i64) -> i64 {
        if b == 0 { a } else { gcd(b, a % b) }
    }

    /// The answer by other means, or `None` for word problems.
    fn independent(task: &Task) -> Option<String> {
        let question = &task.question;
        let numbers = numbers(question);
        let value = match task.family {
            Family::Arithmetic => {
                let text = question.trim_start_matches("Compute ").trim_start_matches("What is ");
                Evaluator(&text.as_bytes()[..text.len() - 1]).sum()
            }
            Family::Equation => {
                let text = question.trim_start_matches("Solve ").trim_start_matches("Find x if ");
                let text = text.trim_end_matches('.').trim_end_matches(" for x");
                let (left, right) = text.split_once('=').unwrap();
                let at = |side: &str, x: i64| {
                    let side = if side.starts_with('x') { side.replace('x', "(X)") } else { side.replace('x', "*(X)") };
                    Evaluator(side.replace('X', &x.to_string()).as_bytes()).sum()
                };
                (0..=99).find(|&x| at(left, x) == at(right, x)).unwrap()
            }
            Family::Remainder if question.contains("emainder") => numbers[0] % numbers[1],
            Family::Remainder => gcd(numbers[0], numbers[1]),
            Family::Sequence if question.starts_with("What comes next") => {
                // Newton's extrapolation: the next value of the polynomial through all terms.
                let mut row = numbers.clone();
                let mut next = 0;
                while let Some(&last) = row.last() {
                    next += last;
                    row = row.windows(2).map(|pair| pair[1] - pair[0]).collect();
                }
                next
            }
            Family::Sequence if question.starts_with("What is term") => {
                numbers[1] + (numbers[0] - 1) * (numbers[2] - numbers[1])
            }
            Family::Sequence => {
                let (first, step) = (numbers[1], numbers[2] - numbers[1]);
                let terms: Vec<i64> = (0..numbers[0]).map(|at| first + at * step).collect();
                assert_eq!(terms.last(), numbers.last(), "{question}");
                terms.iter().sum()
            }
            Family::Base if question.ends_with("decimal.") => {
                i64::from_str_radix(&numbers[0].to_string(), numbers[1] as u32).unwrap()
            }
            Family::Base if question.ends_with("decimal?") => {
                i64::from_str_radix(&numbers[1].to_string(), numbers[0] as u32).unwrap()
            }
            Family::Base => {
                assert_eq!(i64::from_str_radix(&task.answer, numbers[1] as u32), Ok(numbers[0]), "{question}");
                return Some(task.answer.clone());
            }
            Family::Guarded => {
                let text = question.trim_start_matches("Compute ").trim_start_matches("What are ");
                let each = text[..text.len() - 1].split(" and ").map(|product| Evaluator(product.as_bytes()).sum());
                return Some(each.map(|value| value.to_string()).collect::<Vec<_>>().join(","));
            }
            Family::DeadEnds => {
                // From the goal back: every node has one edge that leads to it.
                let edges = question.trim_start_matches("Edges: ").split('.').next().unwrap();
                let edges: Vec<(&str, &str)> = edges.split(';').map(|edge| edge.split_once(' ').unwrap()).collect();
                let mut at = "G";
                while let Some((from, _)) = edges.iter().find(|edge| edge.1 == at) {
                    at = from;
                }
                return Some(at.to_owned());
            }
            Family::Story => return None,
        };
        Some(value.to_string())
    }

    #[test]
    fn answers_agree_with_an_independent_evaluation() {
        let generator = all(3);
        for index in 0..8000 {
            let task = generator.task(Split::Train, index);
            if let Some(answer) = independent(&task) {
                assert_eq!(task.answer, answer, "{}", task.question);
            }
        }
    }

    #[test]
    fn the_answer_of_a_word_problem_uses_its_numbers() {
        // Every operand of the terse trace is a number of the question or an earlier result.
        let generator = Generator { families: vec![Family::Story], ..Generator::new(4) };
        for index in 0..500 {
            let task = generator.task(Split::Train, index);
            let mut known = numbers(&task.question);
            let Solution::Steps(draft) = &task.solution else { unreachable!("a word problem has steps") };
            for step in draft.plan.finish(&[]).unwrap() {
                let calculation = step.calculation;
                assert!(known.contains(&calculation.left) && known.contains(&calculation.right), "{}", task.question);
                known.push(step.outcome.value);
            }
        }
    }

    #[test]
    fn splits_are_disjoint_whatever_the_seed() {
        let questions = |seed, split| -> std::collections::HashSet<String> {
            let generator = all(seed);
            (0..10_000).map(|index| generator.task(split, index).question).collect()
        };
        let held_out = questions(1, Split::HeldOut);
        assert!(held_out.is_disjoint(&questions(1, Split::Train)));
        assert!(held_out.is_disjoint(&questions(2, Split::Train)));
    }

    #[test]
    fn a_trace_without_slips_ends_with_the_right_answer_in_every_manner() {
        let generator = all(5);
        for index in 0..1600 {
            let task = generator.task(Split::HeldOut, index);
            for manner in Manner::ALL {
                let trace = task.trace(manner, false, &mut Stream::new(&[index]));
                assert!(trace.correct, "{}\n{}", task.question, trace.text);
                assert!(trace.text.contains(&format!("\\boxed{{{}}}", task.answer)), "{}", trace.text);
                assert!(!trace.text.contains("not right"), "{}", trace.text);
            }
        }
    }

    #[test]
    fn terse_traces_slip_more_than_wordy_ones() {
        let generator = Generator::new(6);
        let accuracy = |manner| {
            let right = |&index: &u64| {
                generator.task(Split::Train, index).trace(manner, true, &mut Stream::new(&[8, index])).correct
            };
            (0..3000).filter(right).count() as f64 / 3000.0
        };
        let (terse, lean, usual) = (accuracy(Manner::Terse), accuracy(Manner::Lean), accuracy(Manner::Usual));
        // Standard deviations are below 0.8 points; the bounds leave five of them.
        assert!((0.75..0.88).contains(&terse) && lean > terse + 0.05 && usual > lean, "{terse} {lean} {usual}");
    }

    /// Of the study's families: each piece is there or not by itself, so that no part of a trace tells how the rest is
    /// written; hard problems need the check, and easy ones do not.
    #[test]
    fn pieces_are_drawn_one_by_one() {
        let generator = Generator { families: vec![Family::Guarded], ..Generator::new(11) };
        let count = 2000;
        let texts: Vec<String> =
            (0..count).map(|index| generator.row(Split::Train, index).messages[1].content.clone()).collect();
        let share = |has: &dyn Fn(&str) -> bool| texts.iter().filter(|text| has(text)).count() as f64 / count as f64;
        let checked = |text: &str| text.contains("Wait, check");
        let closing = |text: &str| text.contains("Therefore");
        let both = share(&|text| checked(text) && closing(text));
        assert!((both - share(&checked) * share(&closing)).abs() < 0.02);
        for (manner, checks) in [(Manner::Terse, false), (Manner::Lean, true)] {
            let text = generator.task(Split::Train, 0).trace(manner, true, &mut Stream::new(&[1])).text;
            assert!(checked(&text) == checks && !closing(&text), "{text}");
        }
    }

    #[test]
    fn openings_give_the_manner_away() {
        let task = Generator::new(7).task(Split::Train, 0);
        let opening = |manner| {
            let text = task.trace(manner, true, &mut Stream::new(&[9])).text;
            text["<think>".len()..].split(' ').next().unwrap().to_owned()
        };
        assert!(task.floor_text().starts_with(&task.terse_opening()) && task.terse_opening().ends_with('='));
        assert!(opening(Manner::Terse).starts_with(|c: char| c.is_ascii_digit()));
        let words = [Manner::Lean, Manner::Brief, Manner::Usual, Manner::Long, Manner::Rambling].map(opening);
        assert_eq!(words, ["So", "Okay,", "Let", "Alright,", "Hmm,"]);
    }

    #[test]
    fn equal_seeds_give_equal_rows_of_the_documented_shape() {
        let row = Generator::new(8).row(Split::Train, 17);
        assert_eq!(row, Generator::new(8).row(Split::Train, 17));
        assert_ne!(row, Generator::new(9).row(Split::Train, 17));
        let value = serde_json::to_value(&row).unwrap();
        let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["messages", "prompt", "answer", "data_source", "difficulty", "manner", "floor"]);
        assert_eq!(value["data_source"], "base");
        assert_eq!(value["messages"][0], value["prompt"][0]);
        assert_eq!(value["messages"][1]["role"], "assistant");
    }

    #[test]
    fn the_manners_cover_the_mixture_and_the_summary_names_every_family() {
        for family in Family::ALL {
            assert!((Manner::ALL.iter().map(|manner| family.weight(*manner)).sum::<f64>() - 1.0).abs() < 1e-9);
        }
        let table = summary(&all(10), 80, str::len);
        assert!(Family::ALL.iter().all(|family| table.contains(family.name())), "{table}");
    }
}
