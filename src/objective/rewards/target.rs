//! Rewards that compare a completion's length with a target.

use serde::{Deserialize, Serialize};

use super::{Outcome, each, indicator, positive, require, right_lengths, split_by_mean};
use crate::metrics::mean;
use crate::objective::Parts;

/// `1[right] − alpha · |target − len|`, right or wrong (L1-Exact, arXiv 2503.04697). There each prompt names its own
/// target; a target that is the same for all prompts, and not in them, is a reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L1Exact {
    /// Tokens a completion should have.
    pub target_length: usize,
    /// Price of a token.
    #[serde(default = "published_alpha")]
    pub alpha: f32,
}

fn published_alpha() -> f32 {
    3e-4
}

impl L1Exact {
    pub(super) fn mistake(&self) -> Option<String> {
        positive("alpha", self.alpha).or_else(|| target(self.target_length))
    }

    pub(super) fn score(&self, group: &[Outcome]) -> Vec<Option<Parts>> {
        each(group, |outcome, right| Parts {
            task: indicator(right),
            length: -self.alpha * self.target_length.abs_diff(outcome.length) as f32,
        })
    }
}

/// `1[right] · clip(alpha · (target − len) + delta, 0, 1)` (L1-Max, arXiv 2503.04697), with a target as in [`L1Exact`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L1Max {
    /// Tokens a completion may have.
    pub target_length: usize,
    /// Price of a token.
    #[serde(default = "published_alpha")]
    pub alpha: f32,
    /// Reward of a right completion of just that length.
    #[serde(default = "half")]
    pub delta: f32,
}

fn half() -> f32 {
    0.5
}

impl L1Max {
    pub(super) fn mistake(&self) -> Option<String> {
        let delta = || require((0.0..=1.0).contains(&self.delta), "delta", self.delta, "within 0 and 1");
        positive("alpha", self.alpha).or_else(|| target(self.target_length)).or_else(delta)
    }

    pub(super) fn score(&self, group: &[Outcome]) -> Vec<Option<Parts>> {
        let value = |outcome: &Outcome, right: bool| {
            let spare = self.target_length as f32 - outcome.length as f32;
            if right { (self.alpha * spare + self.delta).clamp(0.0, 1.0) } else { 0.0 }
        };
        split_by_mean(group, |outcome| outcome.correct, value)
    }
}

/// `alpha · 1[right] − beta · |len − target|` with the target that of the group: its shortest right length, or the mean
/// of all lengths where none is right (ShorterBetter, arXiv 2504.21370).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShorterBetter {
    /// Reward of a right answer.
    pub alpha: f32,
    /// Price of a token.
    pub beta: f32,
}

impl Default for ShorterBetter {
    fn default() -> Self {
        Self { alpha: 2.0, beta: 1e-3 }
    }
}

impl ShorterBetter {
    pub(super) fn mistake(&self) -> Option<String> {
        positive("alpha", self.alpha).or_else(|| positive("beta", self.beta))
    }

    pub(super) fn score(&self, group: &[Outcome]) -> Vec<Option<Parts>> {
        let all: Vec<f64> = group.iter().map(|outcome| outcome.length as f64).collect();
        let target = right_lengths(group).into_iter().reduce(f64::min).unwrap_or_else(|| mean(&all));
        each(group, |outcome, right| Parts {
            task: self.alpha * indicator(right),
            length: -self.beta * (outcome.length as f64 - target).abs() as f32,
        })
    }
}

fn target(target_length: usize) -> Option<String> {
    require(target_length > 0, "target_length", target_length, "positive")
}

#[cfg(test)]
mod tests {
    use super::super::RewardKind;
    use super::super::outcome::tests::{assert_near, outcome, scores};
    use super::*;

    #[test]
    fn l1_by_hand() {
        let group = [outcome(true, 40), outcome(true, 60), outcome(false, 50), outcome(true, 400)];
        let exact = RewardKind::L1Exact(L1Exact { target_length: 50, alpha: 0.01 });
        assert_near(&scores(&exact, &group), &[0.9, 0.9, 0.0, -2.5]);
        let max = RewardKind::L1Max(L1Max { target_length: 50, alpha: 0.01, delta: 0.5 });
        assert_near(&scores(&max, &group), &[0.6, 0.4, 0.0, 0.0]);
        assert_eq!(L1Exact { target_length: 0, alpha: 1.0 }.mistake().unwrap(), "target_length = 0 must be positive");
    }

    /// The shortest right completion is the target; a shorter wrong one pays for being too short.
    #[test]
    fn shorter_better_by_hand() {
        let kind = RewardKind::ShorterBetter(ShorterBetter::default());
        let group = [outcome(true, 300), outcome(true, 500), outcome(false, 100)];
        assert_near(&scores(&kind, &group), &[2.0, 1.8, -0.2]);
        let wrong = [outcome(false, 100), outcome(false, 300)];
        assert_near(&scores(&kind, &wrong), &[-0.1, -0.1]);
    }
}
