//! From prompts to graded groups of completions: the part of a step before anything is learned.
//!
//! [`Prompts`] are opened and filtered once and drawn by number; a [`Sampler`] completes them; [`Rollouts`] grades the
//! completions, scores them by the rewards of a stage and, where the stage says so, replaces groups whose rewards do not
//! differ. Training, analysis and evaluation ask for completions here and nowhere else.

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
