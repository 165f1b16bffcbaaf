//! Rewards of the completions of a group. Each has two parts, one for the task and one for length.
//!
//! A reward implements [`Reward`]: a built-in one ([`RewardKind`], one file and one line of `registry.rs` each), the
//! user's program ([`command`]), or the user's Rust type. [`Rewards`] holds those of a run.
//!
//! # Task and length
//!
//! A reward that multiplies correctness by a function of length, `c · f`, assigns `c` times the mean of f over the
//! right completions of the group to the task, and the rest to length. A reward that applies another function of length
//! to wrong completions does so for each class ([`AnswerGroup::split_by_mean`]). A term that is added because of length, or
//! of entropy as a measure of effort, is the length part.
//!
//! # Completions without a score
//!
//! A reward returns `None` for a completion that it cannot judge. Such completions are left out of the statistics and
//! counted; they are never silently scored 0. Only user-defined rewards score completions of unknown correctness: form
//! or length alone should not be trained.
//!
//! If the code of a method is public, the formula is that of the code; "reconstruction" marks choices of this project.

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
pub use group::{Answer, AnswerGroup, answer};
pub use memory::Memory;
pub use opened::Rewards;
pub use parts::{Part, Parts};
pub use process::end_programs;
pub use registry::*;

use crate::error::Result;
use crate::metrics::Metrics;
use crate::stop::Stop;

/// Scores completions by comparison with those of the same problem.
pub trait Reward: Send + Sync + Debug {
    /// Return the name under which the reward is reported: `rewards/{name}/mean`.
    fn name(&self) -> &str;

    /// Return one entry per answer, in order; `None` for an answer that cannot be judged.
    ///
    /// Values must be finite; otherwise the run ends with an error that names the reward.
    ///
    /// # Errors
    /// Failures that should end the run.
    fn score(&self, group: &AnswerGroup, memory: &Memory) -> Result<Vec<Option<Parts>>>;

    /// Score many groups of a step; by default each on its own, in parallel on all cores.
    ///
    /// # Errors
    /// As [`Reward::score`], and [`crate::Error::Stopped`] soon after a stop was requested.
    fn score_all(&self, groups: &[AnswerGroup], memory: &Memory, stop: Stop) -> Result<Vec<Vec<Option<Parts>>>> {
        groups.par_iter().map(|group| stop.check().and_then(|()| self.score(group, memory))).collect()
    }

    /// Return the settings that cannot work with completions of at most `max_completion_length` tokens, one line each.
    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        Vec::new()
    }

    /// Whether the reward reads [`Answer::pieces`].
    fn reads_pieces(&self) -> bool {
        false
    }

    /// Store in memory what later steps need; a reward that is not built in, in its entry of [`Memory::custom`].
    /// `groups` are all graded groups of a step, including those that were replaced for lack of spread.
    fn remember(&self, _groups: &[AnswerGroup], _memory: &mut Memory) {}

    /// Whether [`Reward::remember`] keeps the pass-rate records that [`Memory::is_hard`] uses.
    fn keeps_hardness(&self) -> bool {
        false
    }

    /// Write metrics specific to the reward: the memory that the next step uses, or failures.
    fn describe(&self, _memory: &Memory, _metrics: &mut Metrics) {}
}

fn indicator(yes: bool) -> f32 {
    f32::from(u8::from(yes))
}

/// Return `key = value` and the rule that it breaks, unless `ok`.
fn require(ok: bool, key: &str, value: impl Display, rule: &str) -> Option<String> {
    (!ok).then(|| format!("{key} = {value} must be {rule}"))
}

fn positive(key: &str, value: f32) -> Option<String> {
    require(value > 0.0 && value.is_finite(), key, value, "positive")
}

fn finite(key: &str, value: f32) -> Option<String> {
    require(value.is_finite(), key, value, "a finite number")
}

/// Collect the mistakes among checks.
fn found<const N: usize>(checks: [Option<String>; N]) -> Vec<String> {
    checks.into_iter().flatten().collect()
}
