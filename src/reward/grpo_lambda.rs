//! GRPO-λ (arXiv 2505.18086): a length penalty only in groups that are mostly right.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, require};
use crate::error::Result;
use crate::metrics::{deviation, mean};

/// 1 for a right answer and 0 for a wrong one; in a group whose pass rate is at least `min_pass_rate`, `1 − alpha ·
/// sigmoid(z)` for a right one, with z its length standardised over the right ones. The abstract says that the share of
/// right answers in a group decides on the penalty; its form and both numbers are our reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoLambda {
    /// Minimum pass rate of a group for the length penalty to apply, within [0, 1].
    pub min_pass_rate: f32,
    /// Weight of the length penalty, within [0, 1).
    pub alpha: f32,
}

impl Default for GrpoLambda {
    fn default() -> Self {
        Self { min_pass_rate: 0.75, alpha: 0.2 }
    }
}

impl Reward for GrpoLambda {
    fn name(&self) -> &str {
        "grpo_lambda"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let Self { min_pass_rate, alpha } = *self;
        found([
            require((0.0..=1.0).contains(&min_pass_rate), "min_pass_rate", min_pass_rate, "between 0 and 1"),
            require((0.0..1.0).contains(&alpha), "alpha", alpha, "at least 0 and below 1"),
        ])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let right = group.right_lengths();
        let (centre, spread) = (mean(&right), deviation(&right));
        let counts = group.pass_rate() >= f64::from(self.min_pass_rate);
        Ok(group.each(|answer, right| match (right, counts) {
            (true, true) => {
                let z = (answer.length() as f64 - centre) / (spread + 1e-6);
                Parts { task: 1.0, length: -self.alpha / (1.0 + (-z).exp()) as f32 }
            }
            (right, _) => Parts::task(f32::from(u8::from(right))),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, scores};
    use super::*;

    /// Right lengths 10 and 30: z = ∓0.707107, sigmoid 0.330238 and 0.669762.
    #[test]
    fn length_counts_in_groups_that_are_mostly_right() {
        let reward = GrpoLambda { min_pass_rate: 0.6, alpha: 0.5 };
        let mostly = [answer(true, 10), answer(true, 30), answer(false, 10)];
        assert_near(&scores(&reward, &mostly), &[1.0 - 0.165_119, 1.0 - 0.334_881, 0.0]);
        let half = [answer(true, 10), answer(true, 30), answer(false, 10), answer(false, 30)];
        assert_near(&scores(&reward, &half), &[1.0, 1.0, 0.0, 0.0]);
    }
}
