//! Rewards that are a falling function of a completion's own length.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::{Context, Outcome, each, require, split_by_mean};
use crate::objective::Parts;

/// `1[right] · r^(len / L)` with L the stage's `max_completion_length` (arXiv 2511.14258, compression stage:
/// `e^(−λ len)`, `λ = −ln r / L`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapedAccuracy {
    /// Reward of a right answer of length L, within (0, 1].
    pub r: f32,
}

impl ShapedAccuracy {
    pub(super) fn mistake(&self) -> Option<String> {
        require(self.r > 0.0 && self.r <= 1.0, "r", self.r, "above 0 and at most 1")
    }

    fn value(&self, outcome: &Outcome, context: &Context) -> f32 {
        self.r.powf(outcome.length as f32 / context.max_completion_length as f32)
    }

    pub(super) fn score(&self, group: &[Outcome], context: &Context) -> Vec<Option<Parts>> {
        let value = |outcome: &Outcome, right: bool| if right { self.value(outcome, context) } else { 0.0 };
        split_by_mean(group, |outcome| outcome.correct, value)
    }

    /// The factor alone, of right completions.
    pub(super) fn score_length(&self, group: &[Outcome], context: &Context) -> Vec<Option<Parts>> {
        let value = |outcome: &Outcome, right: bool| right.then(|| Parts::length(self.value(outcome, context)));
        group.iter().map(|outcome| value(outcome, outcome.correct?)).collect()
    }
}

/// Cosine-scaled reward (arXiv 2502.03373, appendix C; TRL's `get_cosine_scaled_reward`): with `x = len / L`, at most 1,
/// the value goes from that of the shortest to that of the longest completion as `(1 + cos(π x)) / 2` goes from 1 to 0.
/// A long wrong completion is worth more than a short one, so that a wrong model goes on searching.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CosineScaled {
    /// Shortest wrong completion.
    pub min_value_wrong: f32,
    /// Longest wrong completion.
    pub max_value_wrong: f32,
    /// Longest right completion.
    pub min_value_correct: f32,
    /// Shortest right completion.
    pub max_value_correct: f32,
}

impl Default for CosineScaled {
    fn default() -> Self {
        Self { min_value_wrong: -1.0, max_value_wrong: -0.5, min_value_correct: 0.5, max_value_correct: 1.0 }
    }
}

impl CosineScaled {
    pub(super) fn mistake(&self) -> Option<String> {
        let Self { min_value_correct, max_value_correct, .. } = *self;
        let rule = format!("at most max_value_correct = {max_value_correct}");
        require(min_value_correct <= max_value_correct, "min_value_correct", min_value_correct, &rule)
    }

    pub(super) fn score(&self, group: &[Outcome], context: &Context) -> Vec<Option<Parts>> {
        let value = |outcome: &Outcome, right: bool| {
            let progress = (outcome.length as f64 / context.max_completion_length as f64).min(1.0);
            let (short, long) = if right {
                (self.max_value_correct, self.min_value_correct)
            } else {
                (self.min_value_wrong, self.max_value_wrong)
            };
            long + 0.5 * (short - long) * (1.0 + (progress * PI).cos()) as f32
        };
        split_by_mean(group, |outcome| outcome.correct, value)
    }
}

/// How far a completion goes beyond `start`, as a share of `span`, within 0 and 1.
pub(super) fn overrun(length: usize, start: usize, span: usize) -> f32 {
    length.saturating_sub(start).min(span) as f32 / span as f32
}

/// A reward for length alone, of right and wrong completions.
pub(super) fn length_of_each(group: &[Outcome], f: impl Fn(&Outcome, bool) -> f32) -> Vec<Option<Parts>> {
    each(group, |outcome, right| Parts::length(f(outcome, right)))
}

#[cfg(test)]
mod tests {
    use super::super::RewardKind;
    use super::super::outcome::tests::{assert_near, outcome, scores};
    use super::*;

    #[test]
    fn shaped_accuracy_is_one_at_length_zero_and_r_at_the_cap() {
        let group = [outcome(true, 0), outcome(true, 50), outcome(true, 100), outcome(false, 10)];
        let reward = ShapedAccuracy { r: 0.25 };
        assert_near(&scores(&RewardKind::ShapedAccuracy(reward), &group), &[1.0, 0.5, 0.25, 0.0]);
        assert_eq!(scores(&RewardKind::Length(reward), &group)[3], None);
        assert_eq!(ShapedAccuracy { r: 1.5 }.mistake().unwrap(), "r = 1.5 must be above 0 and at most 1");
    }

    /// TRL's own values for `max_len = 100`, from its documentation and by its function: 0.75 and −0.75 at half-way.
    #[test]
    fn cosine_is_trls() {
        let group = [outcome(true, 50), outcome(false, 50), outcome(true, 0), outcome(false, 100), outcome(true, 25)];
        let scores = scores(&RewardKind::Cosine(CosineScaled::default()), &group);
        assert_near(&scores, &[0.75, -0.75, 1.0, -0.5, 0.926_776_7]);
    }
}
