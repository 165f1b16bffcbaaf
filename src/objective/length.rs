//! The rewards a stage can be made of.

use serde::{Deserialize, Serialize};

/// What a reward is told of a completion.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Whether the answer is right (strictly read, so finished too); none when the row cannot be scored.
    pub correct: Option<bool>,
    /// Whether it is right when any last number counts; none when the row cannot be scored.
    pub correct_lenient: Option<bool>,
    /// Whether it has the form `<think>…</think>` and then a stated answer.
    pub formatted: bool,
    /// Minus the share of repeated 4-grams of words ([`crate::reward::Repetition`]).
    pub repetition: f32,
    /// Tokens, the stop token included.
    pub length: usize,
}

/// A reward with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RewardKind {
    /// 1 for a right and finished answer, else 0.
    Accuracy,
    /// 1 for a right answer when any last number counts, finished or not, else 0.
    AccuracyLenient,
    /// 1 for the right form, else 0.
    Format,
    /// Minus the share of 4-grams of words that occurred before, within (−1, 0].
    Repetition,
    /// The score of the user's own program (`reward.command`).
    Command,
    /// The score of the user's own Rust type ([`crate::train::rl::run_with`]).
    Custom {
        /// The name it reports.
        name: String,
    },
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
    /// Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13), right or wrong, with L the stage's
    /// `max_completion_length` and c the cache: 0 up to `L − c` tokens, then `((L − c) − len) / c`, −1 at L.
    SoftOverlong {
        /// c: tokens before L over which the punishment grows, within 1 and L.
        soft_punish_cache: usize,
    },
}

impl RewardKind {
    /// The name under which the reward is reported.
    pub fn name(&self) -> &str {
        match self {
            Self::Accuracy => "accuracy",
            Self::AccuracyLenient => "accuracy_lenient",
            Self::Format => "format",
            Self::Repetition => "repetition",
            Self::Command => "command",
            Self::Custom { name } => name,
            Self::ShapedAccuracy { .. } => "shaped_accuracy",
            Self::Length { .. } => "length",
            Self::KimiLength => "kimi_length",
            Self::SoftOverlong { .. } => "soft_overlong",
        }
    }

    /// What cannot work in a stage of that length; nothing when all is well.
    pub fn problem(&self, max_completion_length: usize) -> Option<String> {
        match self {
            Self::SoftOverlong { soft_punish_cache: c } if *c == 0 || *c > max_completion_length => Some(format!(
                "soft_punish_cache = {c} must be within 1 and max_completion_length = {max_completion_length}"
            )),
            Self::ShapedAccuracy { r } | Self::Length { r } if !(*r > 0.0 && *r <= 1.0) => {
                Some(format!("r = {r} must be above 0 and at most 1"))
            }
            _ => None,
        }
    }

    /// Rewards of the completions of one problem; `None` cannot be scored. `own` is what the user's reward says of each,
    /// where this is the user's.
    pub fn score(&self, group: &[Outcome], own: &[Option<f32>], max_completion_length: usize) -> Vec<Option<f32>> {
        let shape = |r: f32, length: usize| r.powf(length as f32 / max_completion_length as f32);
        let lengths = || group.iter().map(|outcome| outcome.length);
        let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
        let indicator = |yes: bool| f32::from(u8::from(yes));
        // But for the user's own, a reward leaves out rows that cannot be scored: they should not teach form alone.
        let one = |(outcome, own): (&Outcome, &Option<f32>)| match *self {
            Self::Command | Self::Custom { .. } => *own,
            Self::Accuracy => outcome.correct.map(indicator),
            Self::AccuracyLenient => outcome.correct_lenient.map(indicator),
            Self::Format => outcome.correct.map(|_| indicator(outcome.formatted)),
            Self::Repetition => outcome.correct.map(|_| outcome.repetition),
            Self::ShapedAccuracy { r } => outcome.correct.map(|correct| indicator(correct) * shape(r, outcome.length)),
            Self::Length { r } => outcome.correct?.then(|| shape(r, outcome.length)),
            Self::SoftOverlong { soft_punish_cache: c } => outcome.correct.map(|_| {
                let over = (outcome.length + c).saturating_sub(max_completion_length).min(c);
                if over == 0 { 0.0 } else { -(over as f32) / c as f32 }
            }),
            Self::KimiLength => outcome.correct.map(|correct| {
                if longest == shortest {
                    return 0.0;
                }
                let lambda = 0.5 - (outcome.length - shortest) as f32 / (longest - shortest) as f32;
                if correct { lambda } else { lambda.min(0.0) }
            }),
        };
        group.iter().zip(own).map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(correct: bool, length: usize) -> Outcome {
        Outcome { correct: Some(correct), correct_lenient: Some(true), formatted: true, repetition: -0.5, length }
    }

    /// Rewards of a group where nothing is the user's own, for L = 100.
    fn score(kind: &RewardKind, group: &[Outcome]) -> Vec<Option<f32>> {
        kind.score(group, &vec![None; group.len()], 100)
    }

    /// L = 100 and c = 20: nothing up to 80 tokens, −1/20 for each token more, −1 at 100.
    #[test]
    fn soft_overlong_punishment_is_dapos_formula() {
        let kind = RewardKind::SoftOverlong { soft_punish_cache: 20 };
        let group = [10, 80, 81, 90, 99, 100].map(|length| outcome(length % 2 == 0, length));
        assert_eq!(score(&kind, &group), [0.0, 0.0, -0.05, -0.5, -0.95, -1.0].map(Some));
        assert_eq!(kind.problem(19).unwrap(), "soft_punish_cache = 20 must be within 1 and max_completion_length = 19");
        assert!(kind.problem(20).is_none() && RewardKind::SoftOverlong { soft_punish_cache: 0 }.problem(20).is_some());
    }

    /// A program may judge what has no answer to compare with.
    #[test]
    fn only_a_program_scores_rows_without_an_answer() {
        let known = outcome(false, 5);
        let unknown = Outcome { correct: None, correct_lenient: None, ..known };
        let score = |kind: RewardKind| kind.score(&[known, unknown], &[None, Some(0.25)], 100);
        assert_eq!(score(RewardKind::AccuracyLenient), [Some(1.0), None]);
        assert_eq!(score(RewardKind::Repetition), [Some(-0.5), None]);
        assert_eq!(score(RewardKind::Command), [None, Some(0.25)]);
    }

    #[test]
    fn shaped_accuracy_is_one_at_length_zero_and_r_at_the_cap() {
        let group = [outcome(true, 0), outcome(true, 50), outcome(true, 100), outcome(false, 10)];
        let scores = score(&RewardKind::ShapedAccuracy { r: 0.25 }, &group);
        let expected = [1.0, 0.5, 0.25, 0.0];
        assert!(scores.iter().zip(expected).all(|(s, e)| (s.unwrap() - e).abs() < 1e-6), "{scores:?}");
    }

    #[test]
    fn a_shorter_right_answer_is_never_worth_less() {
        for kind in [RewardKind::ShapedAccuracy { r: 0.3 }, RewardKind::Length { r: 0.3 }, RewardKind::KimiLength] {
            let scores = score(&kind, &[outcome(true, 20), outcome(true, 60), outcome(false, 90)]);
            assert!(scores[0] > scores[1], "{kind:?}: {scores:?}");
        }
    }

    /// Lengths 10, 20, 30: λ = 0.5, 0, −0.5; a short wrong answer gets 0, a long one its penalty.
    #[test]
    fn kimi_rewards_short_right_answers_and_punishes_long_wrong_ones() {
        let group = [outcome(false, 10), outcome(true, 20), outcome(false, 30)];
        assert_eq!(score(&RewardKind::KimiLength, &group), [Some(0.0), Some(0.0), Some(-0.5)]);
        assert_eq!(score(&RewardKind::KimiLength, &[outcome(true, 7); 2]), [Some(0.0); 2]);
    }

    #[test]
    fn rows_without_a_usable_answer_are_not_scored() {
        let unknown = Outcome { correct: None, ..outcome(true, 5) };
        assert_eq!(score(&RewardKind::Accuracy, &[unknown]), [None]);
        assert_eq!(score(&RewardKind::Length { r: 0.5 }, &[outcome(false, 5)]), [None]);
    }
}
