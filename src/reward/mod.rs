//! Rewards: the worth of each completion of a group, in two parts, one for the task and one for length.
//!
//! A reward is a type with [`Reward`]: one of those built in ([`RewardKind`], one file and one line of `registry.rs`
//! each), the user's program ([`command`]), or the user's Rust type. [`Rewards`] holds those of a run.
//!
//! # Task and length
//!
//! A reward that multiplies correctness by a function of length, `c · f`, pays `c` times the mean of f over the right
//! completions of the group for the task, and the rest for length; a reward that gives wrong completions another function
//! of length does so for each kind ([`Group::split_by_mean`]). A term that is added because of length, or of entropy as a
//! measure of effort, is the length part.
//!
//! # Completions without a score
//!
//! A reward that cannot judge a completion says `None`; such completions are left out of the statistics and counted,
//! never scored 0 in silence. But for the user's own, no reward scores a completion whose correctness is not known: it
//! should not teach form or length alone.
//!
//! Where the code of a method is public, the formula is that of the code; "reconstruction" marks choices of this project.

mod accuracy;
mod acoer;
mod arora_zanette;
mod ceeh_length;
pub mod command;
mod cosine;
mod custom;
mod deep_compress;
mod dot;
mod etr;
mod format;
mod group;
mod grpo_lambda;
mod grpo_lead;
mod kimi_length;
mod l1;
mod laser;
mod laser_d;
mod lazy_length;
mod memory;
mod opened;
mod parts;
mod pear;
mod process;
mod registry;
mod repetition;
mod shaped;
mod shorter_better;
mod smart_thinker;
mod soft_overlong;
mod stop_properly;
#[cfg(test)]
pub(crate) mod tests;
mod trace;

use std::fmt::{Debug, Display};

use rayon::prelude::*;

pub use command::RewardCommand;
pub use group::{Answer, Group, answer};
pub use memory::Memory;
pub use opened::Rewards;
pub use parts::{Part, Parts};
pub use process::end_programs;
pub use registry::*;

use crate::error::Result;
use crate::metrics::Metrics;
use crate::stop::Stop;

/// The worth of completions, by comparison with those of the same problem.
pub trait Reward: Send + Sync + Debug {
    /// The name under which the reward is reported: `rewards/{name}/mean`.
    fn name(&self) -> &str;

    /// One entry per answer, in their order; `None` for an answer that cannot be judged.
    ///
    /// Values must be finite: a run ends with an error that names the reward when one is not.
    ///
    /// # Errors
    /// Failures that should end the run.
    fn score(&self, group: &Group, memory: &Memory) -> Result<Vec<Option<Parts>>>;

    /// Scores many groups of a step; by default each on its own, on all cores.
    ///
    /// # Errors
    /// As [`Reward::score`], and [`crate::Error::Stopped`] soon after an early end was asked for.
    fn score_all(&self, groups: &[Group], memory: &Memory, stop: Stop) -> Result<Vec<Vec<Option<Parts>>>> {
        groups.par_iter().map(|group| stop.check().and_then(|()| self.score(group, memory))).collect()
    }

    /// Settings that cannot work with completions of at most `max_completion_length` tokens, one line each.
    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        Vec::new()
    }

    /// Whether [`Answer::pieces`] are read.
    fn reads_pieces(&self) -> bool {
        false
    }

    /// Keeps in memory what later steps need. `groups` are all groups of a step that were graded, those that were
    /// replaced for want of spread included.
    fn remember(&self, _groups: &[Group], _memory: &mut Memory) {}

    /// Whether [`Reward::remember`] keeps the record of pass rates by which [`Memory::is_hard`] decides.
    fn keeps_hardness(&self) -> bool {
        false
    }

    /// Writes figures of the step beside those of all rewards: the memory that the next step goes by, or failures.
    fn describe(&self, _memory: &Memory, _metrics: &mut Metrics) {}
}

fn indicator(yes: bool) -> f32 {
    f32::from(u8::from(yes))
}

/// `key = value` and the rule that it breaks, when it does.
fn require(ok: bool, key: &str, value: impl Display, rule: &str) -> Option<String> {
    (!ok).then(|| format!("{key} = {value} must be {rule}"))
}

fn positive(key: &str, value: f32) -> Option<String> {
    require(value > 0.0 && value.is_finite(), key, value, "positive")
}

fn finite(key: &str, value: f32) -> Option<String> {
    require(value.is_finite(), key, value, "a finite number")
}

/// The mistakes among checks.
fn found<const N: usize>(checks: [Option<String>; N]) -> Vec<String> {
    checks.into_iter().flatten().collect()
}
