//! A user-defined reward as a Rust type, found by its name.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward};
use crate::error::Result;

/// The reward with this name among those that the program passes to the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    /// Name of the reward, as returned by [`Reward::name`].
    pub name: String,
}

impl Reward for Custom {
    fn name(&self) -> &str {
        &self.name
    }

    /// # Panics
    /// Always; [`super::Rewards`] scores with the reward of this name.
    fn score(&self, _group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        unreachable!("a custom reward is found by name when a run opens")
    }
}
