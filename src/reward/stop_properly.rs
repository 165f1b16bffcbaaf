//! Reward for right answers of completions that end with a stop token.

use serde::{Deserialize, Serialize};

use super::{Answer, AnswerGroup, Memory, Parts, Reward, found, require};
use crate::error::Result;

/// Correctness, times a factor if the completion did not stop by itself (DLER, arXiv 2510.15110, `stop_properly`): 1
/// for a right and finished completion, the factor if the stated answer is right but the limit cut the text after it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopProperly {
    /// Reward of a correct answer of a truncated completion, within [0, 1].
    pub penalty_coef: f32,
}

impl Default for StopProperly {
    fn default() -> Self {
        Self { penalty_coef: 0.1 }
    }
}

impl Reward for StopProperly {
    fn name(&self) -> &str {
        "stop_properly"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        found([require((0.0..=1.0).contains(&self.penalty_coef), "penalty_coef", self.penalty_coef, "between 0 and 1")])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let value = |answer: &Answer, right: bool| match (right, answer.finished) {
            (false, _) => 0.0,
            (true, true) => 1.0,
            (true, false) => self.penalty_coef,
        };
        Ok(group.split_by_mean(|answer| answer.correct_cut, value))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, parts, scores};
    use super::*;

    #[test]
    fn a_right_answer_that_does_not_stop_is_worth_a_tenth() {
        let cut = Answer { correct: Some(false), correct_cut: Some(true), finished: false, ..answer(true, 100) };
        let group = [answer(true, 40), cut, answer(false, 100)];
        let reward = StopProperly::default();
        assert_near(&scores(&reward, &group), &[1.0, 0.1, 0.0]);
        let parts = parts(&reward, &group, &Memory::default());
        assert!((parts[0].unwrap().length - 0.45).abs() < 1e-6 && (parts[1].unwrap().length + 0.45).abs() < 1e-6);
    }
}
