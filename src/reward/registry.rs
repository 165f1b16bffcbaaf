//! The rewards that configurations can name: one line each.

use serde::{Deserialize, Serialize};

use super::Reward;

/// Makes the enum of rewards from a list of their files and types. A type's name in snake case is the `type` of a
/// configuration, and its [`Reward::name`].
macro_rules! rewards {
    ($($(#[doc = $doc:literal])* $file:ident::$reward:ident,)*) => {
        $(pub use super::$file::$reward;)*

        /// A reward with its settings; settings that are left out have their published values.
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
            /// The reward with these settings.
            pub fn reward(&self) -> &dyn Reward {
                match self {
                    $(Self::$reward(reward) => reward,)*
                }
            }
        }
    };
}

rewards! {
    /// 1 for a right and finished answer, else 0.
    accuracy::Accuracy,
    /// 1 for a right answer when the last formula or number counts, finished or not, else 0.
    accuracy::AccuracyLenient,
    /// 1 for the right form, else 0.
    format::Format,
    /// Minus the share of 4-grams of words that occurred before, within (−1, 0].
    repetition::Repetition,
    /// The user's own program (`reward.command`).
    command::Command,
    /// The user's own Rust type.
    custom::Custom,
    /// Right answers, the shorter the better.
    shaped::ShapedAccuracy,
    /// `r^(len / L)` of right answers; wrong ones take no part. The length part of a decomposed reward.
    shaped::Length,
    /// TRL's `get_cosine_scaled_reward`.
    cosine::Cosine,
    /// TRL's `get_soft_overlong_punishment`.
    soft_overlong::SoftOverlong,
    /// DLER.
    stop_properly::StopProperly,
    /// Kimi k1.5.
    kimi_length::KimiLength,
    /// Arora and Zanette.
    arora_zanette::AroraZanette,
    /// GRPO-LEAD.
    grpo_lead::GrpoLead,
    /// L1-Exact.
    l1::L1Exact,
    /// L1-Max.
    l1::L1Max,
    /// ShorterBetter.
    shorter_better::ShorterBetter,
    /// LASER.
    laser::Laser,
    /// LASER-D.
    laser_d::LaserD,
    /// LASER-DE.
    laser_d::LaserDe,
    /// DeepCompress.
    deep_compress::DeepCompress,
    /// PEAR.
    pear::Pear,
    /// ETR.
    etr::Etr,
    /// CEEH's length term.
    ceeh_length::CeehLength,
    /// Short-RL.
    lazy_length::LazyLength,
    /// SmartThinker.
    smart_thinker::SmartThinker,
    /// ACOER.
    acoer::Acoer,
    /// GRPO-λ.
    grpo_lambda::GrpoLambda,
    /// DOT.
    dot::Dot,
}

impl RewardKind {
    /// The name under which the reward is reported.
    pub fn name(&self) -> &str {
        self.reward().name()
    }

    /// As [`Reward::mistakes`].
    pub fn mistakes(&self, max_completion_length: usize) -> Vec<String> {
        self.reward().mistakes(max_completion_length)
    }

    /// As [`Reward::keeps_hardness`].
    pub fn keeps_hardness(&self) -> bool {
        self.reward().keeps_hardness()
    }
}
