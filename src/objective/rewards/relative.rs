//! Rewards that compare a completion's length with those of its group.

use serde::{Deserialize, Serialize};

use super::shaped::length_of_each;
use super::{Context, Outcome, positive, right_lengths, split_by_mean};
use crate::metrics::{deviation, mean};
use crate::objective::Parts;

/// Kimi k1.5 (arXiv 2501.12599): `λ = 0.5 − (len − min) / (max − min)` over the group; `λ` when right, `min(0, λ)` when
/// wrong, 0 when all lengths are equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KimiLength {
    /// Steps of the stage over which it grows linearly from nothing to all of it; 0 for all of it at once. The paper warms
    /// the penalty up and gives no schedule.
    pub warmup_steps: usize,
}

impl KimiLength {
    pub(super) fn score(&self, group: &[Outcome], context: &Context) -> Vec<Option<Parts>> {
        let lengths = || group.iter().map(|outcome| outcome.length);
        let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
        let warmth = (context.step as f32 / self.warmup_steps.max(1) as f32).min(1.0);
        let weight = if self.warmup_steps == 0 { 1.0 } else { warmth };
        length_of_each(group, |outcome, right| {
            if longest == shortest {
                return 0.0;
            }
            let lambda = 0.5 - (outcome.length - shortest) as f32 / (longest - shortest) as f32;
            weight * if right { lambda } else { lambda.min(0.0) }
        })
    }
}

/// `1[right] · (1 − alpha · σ(z))` with σ the logistic function and `z = (len − mean) / deviation` over the right
/// completions of the group (Arora and Zanette, arXiv 2502.04463; their code adds 1e-7 to the deviation).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AroraZanette {
    /// How much of the reward is for being short, within [0, 1).
    pub alpha: f32,
}

impl Default for AroraZanette {
    fn default() -> Self {
        Self { alpha: 0.1 }
    }
}

impl AroraZanette {
    pub(super) fn mistake(&self) -> Option<String> {
        let alpha = self.alpha;
        super::require((0.0..1.0).contains(&alpha), "alpha", alpha, "at least 0 and below 1")
    }

    pub(super) fn score(&self, group: &[Outcome]) -> Vec<Option<Parts>> {
        let right = right_lengths(group);
        let centre = mean(&right);
        // The population's deviation: theirs is NumPy's default.
        let spread = mean(&right.iter().map(|length| (length - centre).powi(2)).collect::<Vec<_>>()).sqrt();
        let value = |outcome: &Outcome, right: bool| {
            let z = (outcome.length as f64 - centre) / (spread + 1e-7);
            if right { 1.0 - self.alpha * (1.0 / (1.0 + (-z).exp())) as f32 } else { 0.0 }
        };
        split_by_mean(group, |outcome| outcome.correct, value)
    }
}

/// `e^(−alpha · z)` for a right completion, with z over the right completions of the group (sample deviation, 1 for a
/// single one, plus 1e-6), and `wrong` for a wrong one (GRPO-LEAD, arXiv 2504.09696). Groups whose three shortest
/// completions have a mean of at most `min_length` tokens keep 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoLead {
    /// Strength.
    pub alpha: f32,
    /// Tokens that are short enough.
    pub min_length: usize,
    /// Reward of a wrong completion.
    pub wrong: f32,
}

impl Default for GrpoLead {
    fn default() -> Self {
        Self { alpha: 0.05, min_length: 4000, wrong: -1.0 }
    }
}

impl GrpoLead {
    pub(super) fn mistake(&self) -> Option<String> {
        positive("alpha", self.alpha)
    }

    pub(super) fn score(&self, group: &[Outcome]) -> Vec<Option<Parts>> {
        let mut all: Vec<usize> = group.iter().map(|outcome| outcome.length).collect();
        all.sort_unstable();
        let short = all.get(..3).is_some_and(|shortest| shortest.iter().sum::<usize>() <= 3 * self.min_length);
        let right = right_lengths(group);
        let (centre, spread) = (mean(&right), if right.len() > 1 { deviation(&right) } else { 1.0 });
        let value = |outcome: &Outcome, right: bool| match right {
            false => self.wrong,
            true if short => 1.0,
            true => (-f64::from(self.alpha) * (outcome.length as f64 - centre) / (spread + 1e-6)).exp() as f32,
        };
        split_by_mean(group, |outcome| outcome.correct, value)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::{assert_near, outcome, scores};
    use super::super::{RewardKind, RewardState};
    use super::*;

    /// Lengths 10, 20, 30: λ = 0.5, 0, −0.5; a short wrong answer gets 0, a long one its penalty.
    #[test]
    fn kimi_rewards_short_right_answers_and_punishes_long_wrong_ones() {
        let kind = RewardKind::KimiLength(KimiLength::default());
        let group = [outcome(false, 10), outcome(true, 20), outcome(false, 30)];
        assert_eq!(scores(&kind, &group), [Some(0.0), Some(0.0), Some(-0.5)]);
        assert_eq!(scores(&kind, &[outcome(true, 7), outcome(true, 7)]), [Some(0.0); 2]);
    }

    #[test]
    fn kimis_penalty_warms_up() {
        let state = RewardState::default();
        let group = [outcome(true, 10), outcome(true, 30)];
        let shortest = |step: usize| {
            let context = Context { max_completion_length: 100, step, problem: 1, state: &state, own: &[] };
            KimiLength { warmup_steps: 10 }.score(&group, &context)[0].unwrap().length
        };
        assert_eq!([0, 5, 10, 20].map(shortest), [0.0, 0.25, 0.5, 0.5]);
    }

    /// Right lengths 10 and 30: z = ∓1 (population deviation 10), σ(−1) = 0.268941, σ(1) = 0.731059.
    #[test]
    fn arora_and_zanette_by_hand() {
        let kind = RewardKind::AroraZanette(AroraZanette { alpha: 0.4 });
        let group = [outcome(true, 10), outcome(true, 30), outcome(false, 5)];
        assert_near(&scores(&kind, &group), &[1.0 - 0.4 * 0.268_941, 1.0 - 0.4 * 0.731_059, 0.0]);
        // A single right completion is its own mean: σ(0) = 0.5.
        assert_near(&scores(&kind, &group[1..]), &[0.8, 0.0]);
    }

    /// Right lengths 10 and 30: sample deviation 14.142136, z = ∓0.707107, e^(±0.05 · 0.707107).
    #[test]
    fn grpo_lead_by_hand() {
        let kind = |min_length| RewardKind::GrpoLead(GrpoLead { min_length, ..GrpoLead::default() });
        let group = [outcome(true, 10), outcome(true, 30), outcome(false, 20)];
        assert_near(&scores(&kind(0), &group), &[1.035_988, 0.965_262, -1.0]);
        // The mean of the three shortest is 20.
        assert_near(&scores(&kind(20), &group), &[1.0, 1.0, -1.0]);
        assert_near(&scores(&kind(19), &group), &[1.035_988, 0.965_262, -1.0]);
    }
}
