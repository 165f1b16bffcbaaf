//! L1: length compared with a target from the settings.

use serde::{Deserialize, Serialize};

use super::{Answer, AnswerGroup, Memory, Parts, Reward, found, indicator, positive, require};
use crate::error::Result;

/// `1[right] − alpha · |target − len|`, right or wrong (L1-Exact, arXiv 2503.04697). In the paper each prompt states
/// its own target; a common target for all prompts, not stated in them, is a reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L1Exact {
    /// Target length, in tokens.
    pub target_length: usize,
    /// Penalty per token of difference from the target.
    #[serde(default = "published_alpha")]
    pub alpha: f32,
}

fn published_alpha() -> f32 {
    3e-4
}

impl Reward for L1Exact {
    fn name(&self) -> &str {
        "l1_exact"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        found([positive("alpha", self.alpha), target(self.target_length)])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.each(|answer, right| Parts {
            task: indicator(right),
            length: -self.alpha * self.target_length.abs_diff(answer.length()) as f32,
        }))
    }
}

/// `1[right] · clip(alpha · (target − len) + delta, 0, 1)` (L1-Max, arXiv 2503.04697), with a target as in [`L1Exact`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L1Max {
    /// Length budget, in tokens.
    pub target_length: usize,
    /// Decrease of the reward per token.
    #[serde(default = "published_alpha")]
    pub alpha: f32,
    /// Reward of a correct answer of exactly the target length.
    #[serde(default = "half")]
    pub delta: f32,
}

fn half() -> f32 {
    0.5
}

impl Reward for L1Max {
    fn name(&self) -> &str {
        "l1_max"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let delta = require((0.0..=1.0).contains(&self.delta), "delta", self.delta, "between 0 and 1");
        found([positive("alpha", self.alpha), target(self.target_length), delta])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let value = |answer: &Answer, right: bool| {
            let spare = self.target_length as f32 - answer.length() as f32;
            if right { (self.alpha * spare + self.delta).clamp(0.0, 1.0) } else { 0.0 }
        };
        Ok(group.split_by_mean(|answer| answer.correct, value))
    }
}

fn target(target_length: usize) -> Option<String> {
    require(target_length > 0, "target_length", target_length, "positive")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, scores};
    use super::*;

    #[test]
    fn l1_by_hand() {
        let group = [answer(true, 40), answer(true, 60), answer(false, 50), answer(true, 400)];
        let exact = L1Exact { target_length: 50, alpha: 0.01 };
        assert_near(&scores(&exact, &group), &[0.9, 0.9, 0.0, -2.5]);
        let max = L1Max { target_length: 50, alpha: 0.01, delta: 0.5 };
        assert_near(&scores(&max, &group), &[0.6, 0.4, 0.0, 0.0]);
        let mistakes = L1Exact { target_length: 0, alpha: f32::NAN }.mistakes(100);
        assert_eq!(mistakes, ["alpha = NaN must be positive", "target_length = 0 must be positive"]);
    }
}
