//! A reward or an advantage, split into what pays for the task and what pays for length.

use std::ops::{Add, Mul};

use serde::{Deserialize, Serialize};

/// Two parts that add up to the whole. Everything between rewards and advantages is linear once means and deviations are
/// known, and acts on both, so that `A = A_task + A_length` holds exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Parts {
    /// For a right answer, its form, and all else that is not length.
    pub task: f32,
    /// For being short (or, where negative, against being long).
    pub length: f32,
}

/// One of the two parts of a reward or an advantage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// [`Parts::task`].
    #[default]
    Task,
    /// [`Parts::length`].
    Length,
}

impl Part {
    /// `value` as this part, the other one 0.
    pub fn of(self, value: f32) -> Parts {
        match self {
            Self::Task => Parts::task(value),
            Self::Length => Parts::length(value),
        }
    }
}

impl Parts {
    /// All for the task.
    pub fn task(task: f32) -> Self {
        Self { task, length: 0.0 }
    }

    /// All for length.
    pub fn length(length: f32) -> Self {
        Self { task: 0.0, length }
    }

    /// The whole.
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
