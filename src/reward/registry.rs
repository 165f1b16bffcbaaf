//! The rewards that configurations can name: one line each.

use serde::{Deserialize, Serialize};

use super::Reward;
pub use super::accuracy::{Accuracy, AccuracyLenient};
pub use super::arora_zanette::AroraZanette;
pub use super::ceeh_length::CeehLength;
pub use super::command::Command;
pub use super::cosine::Cosine;
use super::custom::Custom;
pub use super::deep_compress::DeepCompress;
pub use super::etr::Etr;
pub use super::format::Format;
pub use super::grpo_lead::GrpoLead;
pub use super::kimi_length::KimiLength;
pub use super::l1::{L1Exact, L1Max};
pub use super::laser::Laser;
pub use super::laser_d::{LaserD, LaserDe};
pub use super::pear::Pear;
pub use super::repetition::Repetition;
pub use super::shaped::{Length, ShapedAccuracy};
pub use super::shorter_better::ShorterBetter;
pub use super::soft_overlong::SoftOverlong;
pub use super::stop_properly::StopProperly;

/// Makes the enum of rewards from a list of their types. A type's name in snake case is the `type` of a configuration,
/// and its [`Reward::name`].
macro_rules! rewards {
    ($($(#[doc = $doc:literal])* $reward:ident,)*) => {
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
    Accuracy,
    /// 1 for a right answer when any last number counts, finished or not, else 0.
    AccuracyLenient,
    /// 1 for the right form, else 0.
    Format,
    /// Minus the share of 4-grams of words that occurred before, within (−1, 0].
    Repetition,
    /// The user's own program (`reward.command`).
    Command,
    /// The user's own Rust type.
    Custom,
    /// Right answers, the shorter the better.
    ShapedAccuracy,
    /// `r^(len / L)` of right answers; wrong ones take no part. The length part of a decomposed reward.
    Length,
    /// TRL's `get_cosine_scaled_reward`.
    Cosine,
    /// TRL's `get_soft_overlong_punishment`.
    SoftOverlong,
    /// DLER.
    StopProperly,
    /// Kimi k1.5.
    KimiLength,
    /// Arora and Zanette.
    AroraZanette,
    /// GRPO-LEAD.
    GrpoLead,
    /// L1-Exact.
    L1Exact,
    /// L1-Max.
    L1Max,
    /// ShorterBetter.
    ShorterBetter,
    /// LASER.
    Laser,
    /// LASER-D.
    LaserD,
    /// LASER-DE.
    LaserDe,
    /// DeepCompress.
    DeepCompress,
    /// PEAR.
    Pear,
    /// ETR.
    Etr,
    /// CEEH's length term.
    CeehLength,
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
