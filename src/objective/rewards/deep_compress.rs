//! DeepCompress (arXiv 2510.27419): shorter where the model is better than usual, longer where it is worse.

use serde::{Deserialize, Serialize};

use super::{Context, Outcome, RewardState, Visit, each, pass_rate, positive, require};
use crate::metrics::{deviation, mean};
use crate::objective::Parts;

/// 1 and `alpha / (1 + e^(β z))` for a right answer, −1 for a wrong one: z is the length standardised in the group (all
/// completions, sample deviation), β the group's pass rate less a running mean of the pass rate of steps, as it was before
/// this step. The paper's reward is known to us from notes and its settings from its scripts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeepCompress {
    /// Weight of the length part.
    pub alpha: f32,
    /// How much of the running mean stays with each step, within [0, 1); it begins at 1.
    pub moving_average: f32,
}

impl Default for DeepCompress {
    fn default() -> Self {
        Self { alpha: 0.2, moving_average: 0.99 }
    }
}

impl DeepCompress {
    pub(super) fn mistake(&self) -> Option<String> {
        let kept = self.moving_average;
        positive("alpha", self.alpha)
            .or_else(|| require((0.0..1.0).contains(&kept), "moving_average", kept, "at least 0 and below 1"))
    }

    pub(super) fn score(&self, group: &[Outcome], context: &Context) -> Vec<Option<Parts>> {
        let lengths: Vec<f64> = group.iter().map(|outcome| outcome.length as f64).collect();
        let (centre, spread) = (mean(&lengths), deviation(&lengths));
        let beta = pass_rate(group) - context.state.pass_rate.unwrap_or(1.0);
        each(group, |outcome, right| {
            let z = (outcome.length as f64 - centre) / (spread + 1e-6);
            let length = if right { f64::from(self.alpha) / (1.0 + (beta * z).exp()) } else { 0.0 };
            Parts { task: if right { 1.0 } else { -1.0 }, length: length as f32 }
        })
    }

    pub(super) fn update(&self, state: &mut RewardState, visits: &[Visit]) {
        let all: Vec<f64> = visits.iter().map(|visit| pass_rate(visit.group)).collect();
        let kept = f64::from(self.moving_average);
        state.pass_rate = Some(kept * state.pass_rate.unwrap_or(1.0) + (1.0 - kept) * mean(&all));
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;

    /// Lengths 10 and 30 (z = ∓0.707107), all right (P = 1): against a running mean of 0.5, β = 0.5 and the shorter one
    /// earns 0.2 / (1 + e^(−0.353553)) = 0.117496; against 1, β = 0 and both earn 0.1.
    #[test]
    fn deep_compress_by_hand() {
        let reward = DeepCompress::default();
        let group = [outcome(true, 10), outcome(true, 30)];
        let with = |pass_rate: Option<f64>, group: &[Outcome]| {
            let state = RewardState { pass_rate, ..RewardState::default() };
            let context = Context { max_completion_length: 100, step: 0, problem: 1, state: &state, own: &[] };
            reward.score(group, &context)
        };
        let lengths = |parts: Vec<Option<Parts>>| [parts[0].unwrap().length, parts[1].unwrap().length];
        let [short, long] = lengths(with(Some(0.5), &group));
        assert!((short - 0.117_496).abs() < 1e-5 && (long - 0.082_504).abs() < 1e-5, "{short} {long}");
        assert_eq!(lengths(with(None, &group)), [0.1, 0.1]);
        // Worse than usual: the longer right answer earns more.
        let weak = [outcome(true, 10), outcome(true, 30), outcome(false, 20), outcome(false, 20)];
        let [short, long] = lengths(with(None, &weak));
        assert!(long > short && with(None, &weak)[2] == Some(Parts::task(-1.0)));
    }

    #[test]
    fn the_running_pass_rate_begins_at_one() {
        let mut state = RewardState::default();
        let group = [outcome(true, 10), outcome(false, 30)];
        let visits = [Visit { problem: 1, group: &group }];
        let reward = DeepCompress { moving_average: 0.9, ..DeepCompress::default() };
        reward.update(&mut state, &visits);
        assert!((state.pass_rate.unwrap() - 0.95).abs() < 1e-6);
        reward.update(&mut state, &visits);
        assert!((state.pass_rate.unwrap() - 0.905).abs() < 1e-6);
    }
}
