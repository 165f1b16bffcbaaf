//! Length compared with a target computed from the group.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, indicator, positive};
use crate::error::Result;
use crate::metrics::mean;

/// `alpha · 1[right] − beta · |len − target|` with the group's target: its shortest right length, or the mean of all
/// lengths if none is right (ShorterBetter, arXiv 2504.21370).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShorterBetter {
    /// Reward of a correct answer.
    pub alpha: f32,
    /// Penalty per token of difference from the target.
    pub beta: f32,
}

impl Default for ShorterBetter {
    fn default() -> Self {
        Self { alpha: 2.0, beta: 1e-3 }
    }
}

impl Reward for ShorterBetter {
    fn name(&self) -> &str {
        "shorter_better"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        found([positive("alpha", self.alpha), positive("beta", self.beta)])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let target = group.right_lengths().into_iter().reduce(f64::min).unwrap_or_else(|| mean(&group.lengths()));
        Ok(group.each(|answer, right| Parts {
            task: self.alpha * indicator(right),
            length: -self.beta * (answer.length() as f64 - target).abs() as f32,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, scores};
    use super::*;

    /// The shortest right completion is the target; a shorter wrong one is penalised for being too short.
    #[test]
    fn shorter_better_by_hand() {
        let reward = ShorterBetter::default();
        let group = [answer(true, 300), answer(true, 500), answer(false, 100)];
        assert_near(&scores(&reward, &group), &[2.0, 1.8, -0.2]);
        let wrong = [answer(false, 100), answer(false, 300)];
        assert_near(&scores(&reward, &wrong), &[-0.1, -0.1]);
    }
}
