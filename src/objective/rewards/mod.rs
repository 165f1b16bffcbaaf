//! The rewards a stage can be made of.
//!
//! Each says of every completion of a group what it is worth, in two parts: for the task and for length. A reward that
//! multiplies correctness by a function of length, `c · f`, pays `c` times the mean of f over the right completions of the
//! group for the task and the rest for length; so do rewards that give wrong completions another function of length. What
//! is added to a reward because of length, or of entropy as a measure of effort, is the length part.
//!
//! Where a method is known from its code, the code's formula is taken; "reconstruction" marks what is ours.

mod ceeh;
mod deep_compress;
mod entropy;
mod laser;
mod outcome;
mod overlong;
mod relative;
mod shaped;
mod state;
mod target;

use serde::{Deserialize, Serialize};

pub use ceeh::CeehLength;
pub use deep_compress::DeepCompress;
pub use entropy::{Etr, Pear};
pub use laser::{Laser, LaserD};
pub use outcome::{Outcome, Trace};
pub use overlong::{SoftOverlong, StopProperly};
pub use relative::{AroraZanette, GrpoLead, KimiLength};
pub use shaped::{CosineScaled, ShapedAccuracy};
pub use state::{RewardState, Visit};
pub use target::{L1Exact, L1Max, ShorterBetter};

use super::Parts;

/// A reward with its settings; their defaults are the published values.
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
    /// Right answers, the shorter the better.
    ShapedAccuracy(ShapedAccuracy),
    /// `r^(len / L)` of right answers; wrong ones take no part. The length part of a decomposed reward.
    Length(ShapedAccuracy),
    /// TRL's `get_cosine_scaled_reward`.
    Cosine(CosineScaled),
    /// TRL's `get_soft_overlong_punishment`.
    SoftOverlong(SoftOverlong),
    /// DLER.
    StopProperly(StopProperly),
    /// Kimi k1.5.
    KimiLength(KimiLength),
    /// Arora and Zanette.
    AroraZanette(AroraZanette),
    /// GRPO-LEAD.
    GrpoLead(GrpoLead),
    /// L1-Exact.
    L1Exact(L1Exact),
    /// L1-Max.
    L1Max(L1Max),
    /// ShorterBetter.
    ShorterBetter(ShorterBetter),
    /// LASER.
    Laser(Laser),
    /// LASER-D.
    LaserD(LaserD),
    /// LASER-DE.
    LaserDe(LaserD),
    /// DeepCompress.
    DeepCompress(DeepCompress),
    /// PEAR.
    Pear(Pear),
    /// ETR.
    Etr(Etr),
    /// CEEH's length term.
    CeehLength(CeehLength),
}

/// What a reward is told beside the completions of a group.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// L: the length at which completions are cut.
    pub max_completion_length: usize,
    /// Steps of the stage before this one.
    pub step: usize,
    /// Which problem it is ([`crate::data::Problem::id`]).
    pub problem: u64,
    /// What the steps before have left.
    pub state: &'a RewardState,
    /// What the user's own reward says of each completion, where the reward is the user's.
    pub own: &'a [Option<f32>],
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
            Self::ShapedAccuracy(_) => "shaped_accuracy",
            Self::Length(_) => "length",
            Self::Cosine(_) => "cosine",
            Self::SoftOverlong(_) => "soft_overlong",
            Self::StopProperly(_) => "stop_properly",
            Self::KimiLength(_) => "kimi_length",
            Self::AroraZanette(_) => "arora_zanette",
            Self::GrpoLead(_) => "grpo_lead",
            Self::L1Exact(_) => "l1_exact",
            Self::L1Max(_) => "l1_max",
            Self::ShorterBetter(_) => "shorter_better",
            Self::Laser(_) => "laser",
            Self::LaserD(_) => "laser_d",
            Self::LaserDe(_) => "laser_de",
            Self::DeepCompress(_) => "deep_compress",
            Self::Pear(_) => "pear",
            Self::Etr(_) => "etr",
            Self::CeehLength(_) => "ceeh_length",
        }
    }

    /// What cannot work in a stage of that length; nothing when all is well.
    pub fn mistake(&self, max_completion_length: usize) -> Option<String> {
        match self {
            Self::Accuracy
            | Self::AccuracyLenient
            | Self::Format
            | Self::Repetition
            | Self::Command
            | Self::Custom { .. } => None,
            Self::ShapedAccuracy(reward) | Self::Length(reward) => reward.mistake(),
            Self::Cosine(reward) => reward.mistake(),
            Self::SoftOverlong(reward) => reward.mistake(max_completion_length),
            Self::StopProperly(reward) => reward.mistake(),
            Self::KimiLength(_) => None,
            Self::AroraZanette(reward) => reward.mistake(),
            Self::GrpoLead(reward) => reward.mistake(),
            Self::L1Exact(reward) => reward.mistake(),
            Self::L1Max(reward) => reward.mistake(),
            Self::ShorterBetter(reward) => reward.mistake(),
            Self::Laser(reward) => reward.mistake(),
            Self::LaserD(reward) | Self::LaserDe(reward) => reward.mistake(),
            Self::DeepCompress(reward) => reward.mistake(),
            Self::Pear(reward) => reward.mistake(),
            Self::Etr(reward) => reward.mistake(),
            Self::CeehLength(reward) => reward.mistake(),
        }
    }

    /// Whether it looks at the text and the entropy of each token ([`Outcome::trace`]).
    pub fn reads_trace(&self) -> bool {
        matches!(self, Self::Pear(_) | Self::Etr(_))
    }

    /// Rewards of the completions of one problem; `None` cannot be scored.
    ///
    /// But for the user's own, a reward leaves out completions whose correctness is not known: they should not teach form
    /// or length alone.
    pub fn score(&self, group: &[Outcome], context: &Context) -> Vec<Option<Parts>> {
        let task = |f: &dyn Fn(&Outcome) -> Option<f32>| -> Vec<Option<Parts>> {
            group.iter().map(|outcome| Some(Parts::task(outcome.correct.and(f(outcome))?))).collect()
        };
        match self {
            Self::Command | Self::Custom { .. } => context.own.iter().map(|own| own.map(Parts::task)).collect(),
            Self::Accuracy => task(&|outcome| outcome.correct.map(indicator)),
            Self::AccuracyLenient => task(&|outcome| outcome.correct_lenient.map(indicator)),
            Self::Format => task(&|outcome| Some(indicator(outcome.formatted))),
            Self::Repetition => task(&|outcome| Some(outcome.repetition)),
            Self::ShapedAccuracy(reward) => reward.score(group, context),
            Self::Length(reward) => reward.score_length(group, context),
            Self::Cosine(reward) => reward.score(group, context),
            Self::SoftOverlong(reward) => reward.score(group, context),
            Self::StopProperly(reward) => reward.score(group),
            Self::KimiLength(reward) => reward.score(group, context),
            Self::AroraZanette(reward) => reward.score(group),
            Self::GrpoLead(reward) => reward.score(group),
            Self::L1Exact(reward) => reward.score(group),
            Self::L1Max(reward) => reward.score(group),
            Self::ShorterBetter(reward) => reward.score(group),
            Self::Laser(reward) => reward.score(group),
            Self::LaserD(reward) => reward.score(group, context, false),
            Self::LaserDe(reward) => reward.score(group, context, true),
            Self::DeepCompress(reward) => reward.score(group, context),
            Self::Pear(reward) => reward.score(group),
            Self::Etr(reward) => reward.score(group),
            Self::CeehLength(reward) => reward.score(group, context),
        }
    }
}

fn indicator(yes: bool) -> f32 {
    f32::from(u8::from(yes))
}

/// The rewards that `f` gives completions whose correctness is known.
fn each(group: &[Outcome], f: impl Fn(&Outcome, bool) -> Parts) -> Vec<Option<Parts>> {
    group.iter().map(|outcome| Some(f(outcome, outcome.correct?))).collect()
}

/// The rewards `value` of completions that are right (`class`) or wrong: the mean of their kind in the group is for the
/// task, the rest for length.
fn split_by_mean(
    group: &[Outcome],
    class: impl Fn(&Outcome) -> Option<bool>,
    value: impl Fn(&Outcome, bool) -> f32,
) -> Vec<Option<Parts>> {
    let mean = |right: bool| {
        let values: Vec<f64> = (group.iter())
            .filter(|outcome| class(outcome) == Some(right))
            .map(|outcome| f64::from(value(outcome, right)))
            .collect();
        crate::metrics::mean(&values) as f32
    };
    let task = [mean(false), mean(true)];
    let parts = |outcome: &Outcome| {
        let right = class(outcome)?;
        let task = task[usize::from(right)];
        Some(Parts { task, length: value(outcome, right) - task })
    };
    group.iter().map(parts).collect()
}

/// Lengths of the right completions.
fn right_lengths(group: &[Outcome]) -> Vec<f64> {
    group.iter().filter(|outcome| outcome.correct == Some(true)).map(|outcome| outcome.length as f64).collect()
}

/// Share of right completions among those whose correctness is known.
fn pass_rate(group: &[Outcome]) -> f64 {
    let known: Vec<f64> =
        group.iter().filter_map(|outcome| outcome.correct).map(|right| f64::from(u8::from(right))).collect();
    crate::metrics::mean(&known)
}

/// `key = value` and the rule it breaks, when it does.
fn require(ok: bool, key: &str, value: impl std::fmt::Display, rule: &str) -> Option<String> {
    (!ok).then(|| format!("{key} = {value} must be {rule}"))
}

fn positive(key: &str, value: f32) -> Option<String> {
    require(value > 0.0 && value.is_finite(), key, value, "positive")
}

#[cfg(test)]
mod tests {
    use super::outcome::tests::{outcome, scores};
    use super::*;

    /// A program may judge what has no answer to compare with.
    #[test]
    fn only_a_program_scores_rows_without_an_answer() {
        let known = outcome(false, 5);
        let unknown = Outcome { correct: None, correct_lenient: None, ..known.clone() };
        let group = [known, unknown];
        assert_eq!(scores(&RewardKind::AccuracyLenient, &group), [Some(1.0), None]);
        assert_eq!(scores(&RewardKind::Repetition, &group), [Some(-0.5), None]);
        let state = RewardState::default();
        let own = [None, Some(0.25)];
        let context = Context { max_completion_length: 100, step: 0, problem: 1, state: &state, own: &own };
        assert_eq!(RewardKind::Command.score(&group, &context), [None, Some(Parts::task(0.25))]);
    }

    #[test]
    fn rows_without_a_usable_answer_are_not_scored() {
        let unknown = Outcome { correct: None, ..outcome(true, 5) };
        assert_eq!(scores(&RewardKind::Accuracy, std::slice::from_ref(&unknown)), [None]);
        for kind in every_kind() {
            assert_eq!(scores(&kind, &[outcome(true, 9), unknown.clone()])[1], None, "{kind:?}");
        }
    }

    /// Every reward for the length of right answers, with its published settings, or such as fit lengths near 100.
    fn every_kind() -> Vec<RewardKind> {
        let text = r#"[
            { "type": "shaped_accuracy", "r": 0.3 }, { "type": "length", "r": 0.3 }, { "type": "cosine" },
            { "type": "kimi_length" }, { "type": "arora_zanette" }, { "type": "grpo_lead", "min_length": 0 },
            { "type": "l1_max", "target_length": 50, "alpha": 0.005 }, { "type": "shorter_better" },
            { "type": "laser", "target_length": 40 }, { "type": "deep_compress" },
            { "type": "soft_overlong", "soft_punish_cache": 90 }, { "type": "l1_exact", "target_length": 20 }
        ]"#;
        serde_json::from_str(text).unwrap()
    }

    /// The sign of every length reward: the shorter of two right answers is worth more, and the length part says why.
    #[test]
    fn a_shorter_right_answer_is_worth_more() {
        for kind in every_kind() {
            // DeepCompress rewards brevity where the group is better than usual.
            let state = RewardState { pass_rate: Some(0.5), ..RewardState::default() };
            let context = Context { max_completion_length: 100, step: 0, problem: 1, state: &state, own: &[] };
            let group = [outcome(true, 20), outcome(true, 60), outcome(true, 70), outcome(false, 90)];
            let parts: Vec<Parts> = kind.score(&group, &context).into_iter().map(Option::unwrap_or_default).collect();
            assert!(parts[0].total() > parts[1].total(), "{kind:?}: {parts:?}");
            assert!(parts[0].length > parts[1].length, "{kind:?}: {parts:?}");
            assert!((parts[0].task - parts[1].task).abs() < 1e-7, "{kind:?}: {parts:?}");
        }
    }
}
