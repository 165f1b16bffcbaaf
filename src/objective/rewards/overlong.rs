//! Rewards that look at the length limit.

use serde::{Deserialize, Serialize};

use super::shaped::{length_of_each, overrun};
use super::{Context, Outcome, require, split_by_mean};
use crate::objective::Parts;

/// Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13), right or wrong, with L the stage's
/// `max_completion_length` and c the cache: 0 up to `L − c` tokens, then `((L − c) − len) / c`, −1 at L.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftOverlong {
    /// c: tokens before L over which the punishment grows, within 1 and L.
    pub soft_punish_cache: usize,
}

impl SoftOverlong {
    pub(super) fn mistake(&self, max_completion_length: usize) -> Option<String> {
        let c = self.soft_punish_cache;
        let rule = format!("within 1 and max_completion_length = {max_completion_length}");
        require(c > 0 && c <= max_completion_length, "soft_punish_cache", c, &rule)
    }

    pub(super) fn score(&self, group: &[Outcome], context: &Context) -> Vec<Option<Parts>> {
        let c = self.soft_punish_cache;
        let start = context.max_completion_length.saturating_sub(c);
        // 0 − x rather than −x: nothing over is 0, not −0.
        length_of_each(group, |outcome, _| 0.0 - overrun(outcome.length, start, c))
    }
}

/// Correctness, times a factor when the completion did not stop by itself (DLER, arXiv 2510.15110, `stop_properly`): 1 for
/// a right and finished completion, the factor when the answer is stated and right but the limit cut what followed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopProperly {
    /// Factor of cut completions, within [0, 1].
    pub penalty_coef: f32,
}

impl Default for StopProperly {
    fn default() -> Self {
        Self { penalty_coef: 0.1 }
    }
}

impl StopProperly {
    pub(super) fn mistake(&self) -> Option<String> {
        require((0.0..=1.0).contains(&self.penalty_coef), "penalty_coef", self.penalty_coef, "within 0 and 1")
    }

    pub(super) fn score(&self, group: &[Outcome]) -> Vec<Option<Parts>> {
        let value = |outcome: &Outcome, right: bool| match (right, outcome.finished) {
            (false, _) => 0.0,
            (true, true) => 1.0,
            (true, false) => self.penalty_coef,
        };
        split_by_mean(group, |outcome| outcome.correct_cut, value)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::{assert_near, outcome, scores};
    use super::super::{RewardKind, RewardState};
    use super::*;

    /// L = 100 and c = 20: nothing up to 80 tokens, −1/20 for each token more, −1 at 100.
    #[test]
    fn soft_overlong_punishment_is_dapos_formula() {
        let reward = SoftOverlong { soft_punish_cache: 20 };
        let group = [10, 80, 81, 90, 99, 100].map(|length| outcome(length % 2 == 0, length));
        let kind = RewardKind::SoftOverlong(reward);
        assert_eq!(scores(&kind, &group), [0.0, 0.0, -0.05, -0.5, -0.95, -1.0].map(Some));
        let problem = "soft_punish_cache = 20 must be within 1 and max_completion_length = 19";
        assert_eq!(reward.mistake(19).unwrap(), problem);
        assert!(reward.mistake(20).is_none() && SoftOverlong { soft_punish_cache: 0 }.mistake(20).is_some());
    }

    #[test]
    fn a_right_answer_that_does_not_stop_is_worth_a_tenth() {
        let cut = Outcome { correct: Some(false), correct_cut: Some(true), finished: false, ..outcome(true, 100) };
        let group = [outcome(true, 40), cut, outcome(false, 100)];
        assert_near(&scores(&RewardKind::StopProperly(StopProperly::default()), &group), &[1.0, 0.1, 0.0]);
        let state = RewardState::default();
        let context = Context { max_completion_length: 100, step: 0, problem: 1, state: &state, own: &[] };
        let parts = RewardKind::StopProperly(StopProperly::default()).score(&group, &context);
        assert!((parts[0].unwrap().length - 0.45).abs() < 1e-6 && (parts[1].unwrap().length + 0.45).abs() < 1e-6);
    }
}
