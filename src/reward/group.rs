//! The graded completions of a problem: the input of a reward.

use super::Parts;
use crate::data::Problem;
use crate::generate::Completion;
use crate::metrics::mean;
use crate::text::tokenizer::Tokenizer;
use crate::verify::{Graded, Verdict, grade};

/// A graded completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Text without special tokens, preceded by the thinking mark if the prompt contains it.
    pub text: String,
    /// Token ids, including the stop token.
    pub tokens: Vec<u32>,
    /// Text of each token, with U+FFFD for part of a character. Empty unless a reward of the stage
    /// ([`super::Reward::reads_pieces`]) or its selection of steps reads it.
    pub pieces: Vec<String>,
    /// Entropy of the distribution that each token was drawn from, at the sampling temperature and over the whole
    /// vocabulary, in nats.
    pub entropies: Vec<f32>,
    /// Whether a stop token ended the completion, rather than the length limit.
    pub finished: bool,
    /// Verdicts of the strict and the lenient reading.
    pub verdicts: Graded,
    /// Whether the answer is right in the strict reading (so finished too); `None` if the row has no usable answer.
    pub correct: Option<bool>,
    /// Whether the last formula or number is right (lenient reading); `None` if the row has no usable answer.
    pub correct_lenient: Option<bool>,
    /// Whether the stated answer is right, even if the completion was cut; `None` if the row has no usable answer.
    pub correct_cut: Option<bool>,
}

impl Answer {
    /// Return the length in tokens, including the stop token.
    pub fn length(&self) -> usize {
        self.tokens.len()
    }
}

/// Decode and grade a completion; `with_pieces` tells whether to fill [`Answer::pieces`].
pub fn answer(problem: &Problem, tokenizer: &Tokenizer, completion: &Completion, with_pieces: bool) -> Answer {
    let text = tokenizer.completion_text(&completion.tokens);
    let finished = completion.finished();
    let verdicts = grade(&problem.answer, &text, finished);
    let usable = verdicts.strict != Verdict::UnparseableGold;
    let right = verdicts.strict.is_right();
    let stated = if finished { right } else { grade(&problem.answer, &text, true).strict.is_right() };
    let piece = |&token: &u32| tokenizer.token_text(token);
    Answer {
        tokens: completion.tokens.clone(),
        pieces: if with_pieces { completion.tokens.iter().map(piece).collect() } else { Vec::new() },
        entropies: completion.sampling_entropies.clone(),
        finished,
        correct: usable.then_some(right),
        correct_lenient: usable.then(|| verdicts.lenient.is_right()),
        correct_cut: usable.then_some(stated),
        verdicts,
        text,
    }
}

/// The answers to one problem in one step.
#[derive(Debug, Clone, Copy)]
pub struct AnswerGroup<'a> {
    /// The problem.
    pub problem: &'a Problem,
    /// The answers to the problem.
    pub answers: &'a [Answer],
    /// L: the length limit of completions, in tokens.
    pub limit: usize,
    /// Number of steps of the stage before this one.
    pub step: usize,
}

impl AnswerGroup<'_> {
    /// Return the lengths of all answers, in tokens.
    pub fn lengths(&self) -> Vec<f64> {
        self.answers.iter().map(|answer| answer.length() as f64).collect()
    }

    /// Return the lengths of the right answers, in tokens.
    pub fn right_lengths(&self) -> Vec<f64> {
        let right = self.answers.iter().filter(|answer| answer.correct == Some(true));
        right.map(|answer| answer.length() as f64).collect()
    }

    /// Return the share of right answers among those whose correctness is known.
    pub fn pass_rate(&self) -> f64 {
        let known = self.answers.iter().filter_map(|answer| answer.correct);
        mean(&known.map(|right| f64::from(u8::from(right))).collect::<Vec<_>>())
    }

    /// Return `f(answer, right)` for each answer; `None` if its correctness is not known.
    pub fn each(&self, f: impl Fn(&Answer, bool) -> Parts) -> Vec<Option<Parts>> {
        self.answers.iter().map(|answer| Some(f(answer, answer.correct?))).collect()
    }

    /// Like [`AnswerGroup::each`], with values for the length part.
    pub fn each_length(&self, f: impl Fn(&Answer, bool) -> f32) -> Vec<Option<Parts>> {
        self.each(|answer, right| Parts::length(f(answer, right)))
    }

    /// Split the rewards `value` of answers that `class` calls right or wrong: the mean over the group's answers of
    /// the same class is the task part, the difference from it the length part.
    pub fn split_by_mean(
        &self,
        class: impl Fn(&Answer) -> Option<bool>,
        value: impl Fn(&Answer, bool) -> f32,
    ) -> Vec<Option<Parts>> {
        let of_kind = |right: bool| {
            let kind = self.answers.iter().filter(|answer| class(answer) == Some(right));
            mean(&kind.map(|answer| f64::from(value(answer, right))).collect::<Vec<_>>()) as f32
        };
        let task = [of_kind(false), of_kind(true)];
        let parts = |answer: &Answer| {
            let right = class(answer)?;
            let task = task[usize::from(right)];
            Some(Parts { task, length: value(answer, right) - task })
        };
        self.answers.iter().map(parts).collect()
    }
}
