//! The rewards available in configurations, one line each.

use serde::{Deserialize, Serialize};

use super::Reward;

/// Defines the enum of rewards from a list of their files and types. A type's name in snake case is its `type` in a
/// configuration, and its [`Reward::name`].
macro_rules! rewards {
    ($($(#[doc = $doc:literal])* $file:ident::$reward:ident,)*) => {
        $(pub use super::$file::$reward;)*

        /// A reward with its settings; omitted settings have their published values.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "type", rename_all = "snake_case")]
        pub enum RewardKind {
            $($(#[doc = $doc])* $reward($reward),)*
        }

        $(impl From<$reward> for RewardKind {
            fn from(reward: $reward) -> Self {
                Self::$reward(reward)
            }
        })*

        impl RewardKind {
            /// Return the reward with these settings.
            pub fn reward(&self) -> &dyn Reward {
                match self {
                    $(Self::$reward(reward) => reward,)*
                }
            }
        }
    };
}

rewards! {
    /// 1 for a correct answer of a finished completion, else 0.
    accuracy::Accuracy,
    /// 1 if the answer is correct when the last formula or number counts as the answer, finished or not, else 0.
    accuracy::AccuracyLenient,
    /// 1 for a finished `<think>…</think>` followed by a stated answer, else 0.
    format::Format,
    /// Minus the fraction of 4-grams of words that occurred before, within (−1, 0].
    repetition::Repetition,
    /// User-defined program (`reward.command`).
    command::Command,
    /// User-defined Rust type.
    custom::Custom,
    /// `r^(len / L)` for a correct answer, else 0 (arXiv 2511.14258, compression stage).
    shaped::ShapedAccuracy,
    /// `r^(len / L)` for a correct answer; incorrect answers are not scored. The length part of a decomposed reward.
    shaped::Length,
    /// Cosine of the length, separately for correct and incorrect answers (TRL's `get_cosine_scaled_reward`, arXiv
    /// 2502.03373).
    cosine::Cosine,
    /// Penalty near the length limit L (TRL's `get_soft_overlong_punishment`; DAPO, arXiv 2503.14476).
    soft_overlong::SoftOverlong,
    /// 1 for a correct answer of a finished completion, `penalty_coef` for a correct answer of a truncated one, else 0
    /// (DLER, arXiv 2510.15110).
    stop_properly::StopProperly,
    /// `λ = 0.5 − (len − min) / (max − min)` over the group for a correct answer, `min(0, λ)` for an incorrect one
    /// (Kimi k1.5, arXiv 2501.12599).
    kimi_length::KimiLength,
    /// `1 − alpha · σ(z)` for a correct answer, else 0, with z the length standardised over the correct answers of the
    /// group (Arora and Zanette, arXiv 2502.04463).
    arora_zanette::AroraZanette,
    /// `e^(−alpha · z)` for a correct answer, with z the length standardised over the correct answers of the group
    /// (GRPO-LEAD, arXiv 2504.09696).
    grpo_lead::GrpoLead,
    /// `1[correct] − alpha · |target_length − len|` (L1-Exact, arXiv 2503.04697).
    l1::L1Exact,
    /// `1[correct] · clip(alpha · (target_length − len) + delta, 0, 1)` (L1-Max, arXiv 2503.04697).
    l1::L1Max,
    /// `alpha · 1[correct] − beta · |len − target|`, with the shortest correct length of the group as target, or the
    /// mean length if no answer is correct (ShorterBetter, arXiv 2504.21370).
    shorter_better::ShorterBetter,
    /// 1 for a correct answer, plus `bonus` if it has at most `target_length` tokens (LASER, arXiv 2505.15612).
    laser::Laser,
    /// As laser, with a target length per difficulty that is updated during training (LASER-D, arXiv 2505.15612).
    laser_d::LaserD,
    /// As laser_d, with the bonus also for incorrect answers that are longer than the target and not repetitive
    /// (LASER-DE, arXiv 2505.15612).
    laser_d::LaserDe,
    /// `1 + alpha / (1 + e^(β z))` for a correct answer, −1 for an incorrect one, with z the length standardised over
    /// the group and β the group's pass rate minus its running mean (DeepCompress, arXiv 2510.27419).
    deep_compress::DeepCompress,
    /// `min(1, base − max(0, H_think − alpha · H_answer))` for a correct answer, with H the mean entropies of thinking
    /// and answer (PEAR, arXiv 2510.08026).
    pear::Pear,
    /// `1 + lambda · Σ S_t` for a correct answer, −1 for an incorrect one, with S_t the discounted decrease of entropy
    /// up to thinking step t (ETR, arXiv 2604.05355).
    etr::Etr,
    /// `max(lowest, scale · (L* − len) / L*)` for a correct answer, else 0, with L* the problem's record of its
    /// shortest correct length; 0 if the pass rate is below the problem's record (CEEH, arXiv 2602.22642).
    ceeh_length::CeehLength,
    /// Length penalty that applies only beyond a tolerance in length, and only while accuracy is near its best
    /// (Short-RL, arXiv 2505.12284).
    lazy_length::LazyLength,
    /// `1 − Λ · max(0, len − l*)` for a correct answer, else 0, with the best length l* and the weight Λ computed from
    /// the group (SmartThinker, arXiv 2603.08000).
    smart_thinker::SmartThinker,
    /// `1 + α · ln(1 + 5 (1 − min(len / B, 1))) / ln 6` for a correct answer, else 0, with α and the length budget B
    /// set by a control loop (ACOER, arXiv 2606.22716).
    acoer::Acoer,
    /// 1 for a correct answer, else 0; `1 − alpha · sigmoid(z)` for a correct one in groups with a high pass rate, with
    /// z the length standardised over the correct answers (GRPO-λ, arXiv 2505.18086).
    grpo_lambda::GrpoLambda,
    /// 1 for a correct answer, else 0; if all answers of the group are correct, 0 for those far above the mean length
    /// (DOT, arXiv 2601.03969).
    dot::Dot,
}

impl RewardKind {
    /// Return the name under which the reward is reported.
    pub fn name(&self) -> &str {
        self.reward().name()
    }

    /// See [`Reward::mistakes`].
    pub fn mistakes(&self, max_completion_length: usize) -> Vec<String> {
        self.reward().mistakes(max_completion_length)
    }

    /// See [`Reward::keeps_hardness`].
    pub fn keeps_hardness(&self) -> bool {
        self.reward().keeps_hardness()
    }
}
