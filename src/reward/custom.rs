//! A reward of the user's own Rust type, by its name.

use serde::{Deserialize, Serialize};

use super::{Group, Memory, Parts, Reward};
use crate::error::Result;

/// The [`Reward`] with this name among those that the program gives to the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Custom {
    /// Its [`Reward::name`].
    pub name: String,
}

impl Reward for Custom {
    fn name(&self) -> &str {
        &self.name
    }

    /// # Panics
    /// Always: [`super::Rewards`] has the reward of this name.
    fn score(&self, _group: &Group, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        unreachable!("a custom reward is found by name when a run opens")
    }
}
