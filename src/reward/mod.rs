//! Rewards: what a completion is worth, as far as a program can tell.
//!
//! A reward that cannot judge a completion says `None`; such completions are left out of the statistics and counted,
//! never scored 0 in silence.

pub mod command;
pub mod format;
pub mod repetition;

pub use command::{RewardCommand, RewardProgram};
pub use format::Format;
pub use repetition::Repetition;

use crate::data::Problem;
use crate::verify::{Verdict, grade};

/// A completion as rewards see it.
#[derive(Debug, Clone, Copy)]
pub struct Completion<'a> {
    /// The text, without special tokens, after the thinking mark when the prompt has written that.
    pub text: &'a str,
    /// Its length in tokens.
    pub tokens: usize,
    /// Whether it ended with a stop token rather than at the length limit.
    pub finished: bool,
}

/// Something that scores completions.
pub trait Reward: Send + Sync {
    /// The name under which the reward is reported.
    fn name(&self) -> &str;

    /// The score, or `None` when there is no telling.
    fn score(&self, problem: &Problem, completion: &Completion) -> Option<f32>;
}

/// 1 for the right answer in the strict reading, else 0; nothing when the row's own answer is unusable.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accuracy;

impl Reward for Accuracy {
    fn name(&self) -> &str {
        "accuracy"
    }

    fn score(&self, problem: &Problem, completion: &Completion) -> Option<f32> {
        match grade(&problem.answer, completion.text, completion.finished).strict {
            Verdict::Right => Some(1.0),
            Verdict::Wrong | Verdict::NoAnswer | Verdict::UnparseableAnswer | Verdict::Undecided => Some(0.0),
            Verdict::UnparseableGold => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Prompt;

    #[test]
    fn accuracy_is_strict_and_leaves_out_rows_without_an_answer() {
        let mut problem = Problem::new(Prompt::Text("2+3?".into()), "5");
        let score =
            |problem: &Problem, text, finished| Accuracy.score(problem, &Completion { text, tokens: 9, finished });
        assert_eq!(score(&problem, "<think>a</think>\\boxed{5}", true), Some(1.0));
        assert_eq!(score(&problem, "<think>a</think>\\boxed{5}", false), Some(0.0));
        assert_eq!(score(&problem, "It is 5", true), Some(0.0));
        problem.answer.clear();
        assert_eq!(score(&problem, "<think>a</think>\\boxed{5}", true), None);
    }
}
