//! A reward or an advantage, split into a task part and a length part.

use std::ops::{Add, Mul};

use serde::{Deserialize, Serialize};

/// Two parts that add up to the whole. All operations between rewards and advantages are linear once means and
/// deviations are known, and act on both parts, so that `A = A_task + A_length` holds exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// Correctness, form, and everything else that is not length.
    pub task: f32,
    /// Length: a reward for a short completion, or, if negative, a penalty for a long one.
    pub length: f32,
}

/// One of the two parts of a reward or an advantage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The task part: correctness, format and everything else that is not length.
    #[default]
    Task,
    /// The length part: a reward for short completions or a penalty for long ones.
    Length,
}

impl Part {
    /// Return `value` as this part, with the other part 0.
    pub fn of(self, value: f32) -> Parts {
        match self {
            Self::Task => Parts::task(value),
            Self::Length => Parts::length(value),
        }
    }
}

impl Parts {
    /// Return a value with only a task part.
    pub fn task(task: f32) -> Self {
        Self { task, length: 0.0 }
    }

    /// Return a value with only a length part.
    pub fn length(length: f32) -> Self {
        Self { task: 0.0, length }
    }

    /// Return the sum of both parts.
    pub fn total(self) -> f32 {
        self.task + self.length
    }
}

impl Add for Parts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { task: self.task + other.task, length: self.length + other.length }
    }
}

impl Mul<f32> for Parts {
    type Output = Self;

    fn mul(self, factor: f32) -> Self {
        Self { task: self.task * factor, length: self.length * factor }
    }
}
