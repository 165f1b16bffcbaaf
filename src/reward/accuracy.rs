//! Rewards for correctness.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, indicator};
use crate::error::Result;

/// 1 for a right and finished answer, else 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {}

impl Reward for Accuracy {
    fn name(&self) -> &str {
        "accuracy"
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.each(|_, right| Parts::task(indicator(right))))
    }
}

/// 1 for a right answer when the last formula or number counts, finished or not, else 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccuracyLenient {}

impl Reward for AccuracyLenient {
    fn name(&self) -> &str {
        "accuracy_lenient"
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.answers.iter().map(|answer| Some(Parts::task(indicator(answer.correct_lenient?)))).collect())
    }
}
