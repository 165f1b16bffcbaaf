//! The rewards a stage can be made of.

use serde::{Deserialize, Serialize};

/// What a reward is told of a completion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Whether the answer is right (strictly read, so finished too); none when the row cannot be scored.
    pub correct: Option<bool>,
    /// Whether it has the form `<think>…</think>` and then a stated answer.
    pub formatted: bool,
    /// Tokens, the stop token included.
    pub length: usize,
}

/// A reward with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RewardKind {
    /// 1 for a right and finished answer, else 0.
    Accuracy,
    /// 1 for the right form, else 0.
    Format,
    /// `1[right] · r^(len / L)` with L the stage's `max_completion_length` (arXiv 2511.14258, compression stage:
    /// `e^(−λ len)`, `λ = −ln r / L`).
    ShapedAccuracy {
        /// Reward of a right answer of length L, within (0, 1].
        r: f32,
    },
    /// `r^(len / L)` of right answers; wrong ones take no part. The length part of a decomposed reward.
    Length {
        /// Value at length L, within (0, 1].
        r: f32,
    },
    /// Kimi k1.5 (arXiv 2501.12599): `λ = 0.5 − (len − min) / (max − min)` over the group; `λ` when right,
    /// `min(0, λ)` when wrong, 0 when all lengths are equal.
    KimiLength,
}

impl RewardKind {
    /// The name under which the reward is reported.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Format => "format",
            Self::ShapedAccuracy { .. } => "shaped_accuracy",
            Self::Length { .. } => "length",
            Self::KimiLength => "kimi_length",
        }
    }

    /// What cannot work; nothing when all is well.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::ShapedAccuracy { r } | Self::Length { r } if !(*r > 0.0 && *r <= 1.0) => {
                Some(format!("r = {r} must be above 0 and at most 1"))
            }
            _ => None,
        }
    }

    /// Rewards of the completions of one problem; `None` cannot be scored.
    pub fn score(&self, group: &[Outcome], max_completion_length: usize) -> Vec<Option<f32>> {
        let shape = |r: f32, length: usize| r.powf(length as f32 / max_completion_length as f32);
        let lengths = || group.iter().map(|outcome| outcome.length);
        let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
        let one = |outcome: &Outcome| {
            let correct = outcome.correct?;
            let indicator = f32::from(u8::from(correct));
            match *self {
                Self::Accuracy => Some(indicator),
                Self::Format => Some(f32::from(u8::from(outcome.formatted))),
                Self::ShapedAccuracy { r } => Some(indicator * shape(r, outcome.length)),
                Self::Length { r } => correct.then(|| shape(r, outcome.length)),
                Self::KimiLength if longest == shortest => Some(0.0),
                Self::KimiLength => {
                    let lambda = 0.5 - (outcome.length - shortest) as f32 / (longest - shortest) as f32;
                    Some(if correct { lambda } else { lambda.min(0.0) })
                }
            }
        };
        group.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(correct: bool, length: usize) -> Outcome {
        Outcome { correct: Some(correct), formatted: true, length }
    }

    #[test]
    fn shaped_accuracy_is_one_at_length_zero_and_r_at_the_cap() {
        let group = [outcome(true, 0), outcome(true, 50), outcome(true, 100), outcome(false, 10)];
        let scores = RewardKind::ShapedAccuracy { r: 0.25 }.score(&group, 100);
        let expected = [1.0, 0.5, 0.25, 0.0];
        assert!(scores.iter().zip(expected).all(|(s, e)| (s.unwrap() - e).abs() < 1e-6), "{scores:?}");
    }

    #[test]
    fn a_shorter_right_answer_is_never_worth_less() {
        for kind in [RewardKind::ShapedAccuracy { r: 0.3 }, RewardKind::Length { r: 0.3 }, RewardKind::KimiLength] {
            let scores = kind.score(&[outcome(true, 20), outcome(true, 60), outcome(false, 90)], 100);
            assert!(scores[0] > scores[1], "{kind:?}: {scores:?}");
        }
    }

    /// Lengths 10, 20, 30: λ = 0.5, 0, −0.5; a short wrong answer gets 0, a long one its penalty.
    #[test]
    fn kimi_rewards_short_right_answers_and_punishes_long_wrong_ones() {
        let group = [outcome(false, 10), outcome(true, 20), outcome(false, 30)];
        assert_eq!(RewardKind::KimiLength.score(&group, 100), [Some(0.0), Some(0.0), Some(-0.5)]);
        assert_eq!(RewardKind::KimiLength.score(&[outcome(true, 7); 2], 100), [Some(0.0); 2]);
    }

    #[test]
    fn rows_without_a_usable_answer_are_not_scored() {
        let unknown = Outcome { correct: None, formatted: true, length: 5 };
        assert_eq!(RewardKind::Accuracy.score(&[unknown], 100), [None]);
        assert_eq!(RewardKind::Length { r: 0.5 }.score(&[outcome(false, 5)], 100), [None]);
    }
}
