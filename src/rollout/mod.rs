//! The rollout phase of a step: from prompts to graded groups of completions.
//!
//! [`Prompts`] are filtered once and drawn by number. A [`Sampler`] completes them. [`Rollouts`] grades the completions,
//! scores them with the rewards of a stage and, if the stage says so, replaces groups whose rewards are all equal.
//! Training, analysis and evaluation get all completions from here.

mod collect;
mod group;
mod prompts;
mod sampler;
pub mod served;
pub mod settings;

pub use collect::{Batch, Follow, Now, Rollouts};
pub use group::{Group, Rollout, assign_advantages};
pub use prompts::{Asked, Prompts, requests};
pub use sampler::{Local, Sampler};
