//! Procedurally generated mathematics with verifiable answers and reference traces.
//!
//! Six families draw problems of difficulty 1 to 4 as a list of abstract steps (`steps`); one writer (`prose`) turns
//! the steps into a trace in a [`Manner`]: terse, lean, or in the wordy style of a large reasoning model. Two more,
//! made for the study of methods, write traces of many small pieces (`guarded`, `dead_ends`). Everything is a pure
//! function of seed, split and index. The hash of a question's text decides its split, whatever the seed, so the splits
//! are disjoint.

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
pub enum TaskFamily {
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
    /// Products with a check that costs less than computing them again.
    Guarded,
    /// Search for the door that leads to the goal.
    DeadEnds,
}

impl TaskFamily {
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
    /// The default families, which the base model knows.
    pub const USUAL: [Self; 6] =
        [Self::Arithmetic, Self::Equation, Self::Remainder, Self::Story, Self::Sequence, Self::Base];

    /// Return the name used in rows and settings.
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

    /// Return the family with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.name() == name)
    }

    /// Whether traces consist of small pieces, each drawn independently. Such a family has three manners: terse, lean,
    /// and all others, which are alike.
    pub fn is_in_pieces(self) -> bool {
        matches!(self, Self::Guarded | Self::DeadEnds)
    }

    /// Return the manner's share of the mixture of traces.
    pub fn weight(self, manner: Manner) -> f64 {
        match (self.is_in_pieces(), manner) {
            (false, _) => prose::style(manner).weight,
            (true, Manner::Usual) => 1.0,
            (true, _) => 0.0,
        }
    }

    /// Draw a manner from the mixture.
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

/// Split of the problems: one question in ten is held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// For training.
    Train,
    /// For evaluation.
    HeldOut,
}

impl Split {
    /// Return the split of a question.
    pub fn of(question: &str) -> Self {
        if mix_text(question).is_multiple_of(10) { Self::HeldOut } else { Self::Train }
    }
}

/// Style of a trace, recognisable from its first tokens.
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

    /// Return the name used in rows.
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

/// A question, its steps, and phrases for the prose.
#[derive(Debug, Clone)]
struct Draft {
    question: String,
    /// The quantity sought, as a noun phrase.
    goal: String,
    /// The method, as a sentence.
    approach: &'static str,
    plan: steps::SolutionPlan,
}

/// Solution from which traces are written.
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

    /// Return the answer; `None` if the solution is not presentable (it has a negative or four-digit result).
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
    /// Family of the problem.
    pub family: TaskFamily,
    /// 1 (one or two easy steps) to 4 (a long chain).
    pub difficulty: u8,
    /// The user's message.
    pub question: String,
    /// The right answer.
    pub answer: String,
    solution: Solution,
}

impl Task {
    /// Create a task; `None` if the right solution is not presentable.
    fn new(family: TaskFamily, difficulty: u8, solution: Solution) -> Option<Self> {
        Some(Self {
            family,
            difficulty,
            question: solution.question().to_owned(),
            answer: solution.answer()?,
            solution,
        })
    }

    /// Return the data source in tables: the family, with the difficulty for the families of the study.
    pub fn data_source(&self) -> String {
        let name = self.family.name();
        if self.family.is_in_pieces() { format!("{name}-{}", self.difficulty) } else { name.to_owned() }
    }

    /// Write a trace in the given manner; with `slips`, some traces are wrong.
    pub fn trace(&self, manner: Manner, slips: bool, random: &mut Stream) -> Trace {
        let (text, answer) = match &self.solution {
            Solution::Steps(draft) => prose::write(draft, manner, slips, random),
            Solution::Guarded(products) => products.trace(manner, slips, random),
            Solution::DeadEnds(doors) => doors.trace(manner, slips, random),
        };
        Trace { text, manner, correct: answer == self.answer, answer }
    }

    /// Return the shortest reference: the terse trace without slips and without wrong turns.
    pub fn floor_text(&self) -> String {
        match &self.solution {
            Solution::DeadEnds(doors) => doors.floor(),
            _ => self.trace(Manner::Terse, false, &mut Stream::new(&[0])).text,
        }
    }

    /// Return the opening that makes a model terse if its completion is forced to begin with it: the terse trace up to
    /// the first `=`, such as `<think>47*6=`, or the start of a guess.
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
    /// Manner of the trace.
    pub manner: Manner,
    /// The answer it ends with.
    pub answer: String,
    /// Whether that answer is right.
    pub correct: bool,
}

/// A row of a data set, for fine-tuning (`messages`) and for RL (`prompt`, `answer`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Question and trace.
    pub messages: Vec<Message>,
    /// The question alone.
    pub prompt: Vec<Message>,
    /// The right answer, even if the trace ends with another.
    pub answer: String,
    /// Family of the problem.
    pub data_source: TaskFamily,
    /// Difficulty, 1 to 4.
    pub difficulty: u8,
    /// Manner of the trace.
    pub manner: Manner,
    /// The shortest reference ([`Task::floor_text`]).
    pub floor: String,
}

/// Generator of problems by index, as a pure function of seed, split and index.
#[derive(Debug, Clone)]
pub struct Generator {
    /// Families, used in turn.
    pub families: Vec<TaskFamily>,
    /// Difficulties, drawn uniformly.
    pub difficulties: RangeInclusive<u8>,
    /// Seed of all draws.
    pub seed: u64,
}

impl Generator {
    /// Create a generator of the usual families in every difficulty.
    pub fn new(seed: u64) -> Self {
        Self { families: TaskFamily::USUAL.to_vec(), difficulties: 1..=4, seed }
    }

    /// Return the problem at `index` of a split.
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

    /// Return the problem at `index` with a trace in a drawn manner, slips included.
    pub fn row(&self, split: Split, index: u64) -> TaskRow {
        self.row_in(split, index, TaskFamily::draw_manner)
    }

    /// Like [`Generator::row`], with the manner chosen by the caller.
    pub fn row_in(&self, split: Split, index: u64, manner: impl FnOnce(TaskFamily, &mut Stream) -> Manner) -> TaskRow {
        let task = self.task(split, index);
        let mut random = self.stream("trace", split, index);
        let manner = manner(task.family, &mut random);
        let trace = task.trace(manner, true, &mut random);
        let message = |role: &str, content: String| Message::new(role, content);
        let question = message("user", task.question.clone());
        TaskRow {
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
mod tests;
