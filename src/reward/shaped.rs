//! Rewards that fall exponentially with the length of a completion.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, require};
use crate::error::Result;

/// `1[right] · r^(len / L)` with L the stage's `max_completion_length` (arXiv 2511.14258, compression stage:
/// `e^(−λ len)`, `λ = −ln r / L`). The paper's r is not known; the default is a reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShapedAccuracy {
    /// Reward of a correct answer of length L, within (0, 1].
    pub r: f32,
}

/// `r^(len / L)` of right answers, as length part; wrong answers are not scored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Length {
    /// Reward of a correct answer of length L, within (0, 1].
    pub r: f32,
}

const R: f32 = 0.3;

impl Default for ShapedAccuracy {
    fn default() -> Self {
        Self { r: R }
    }
}

impl Default for Length {
    fn default() -> Self {
        Self { r: R }
    }
}

/// Return `r^(length / limit)`.
fn shaped(r: f32, length: usize, limit: usize) -> f32 {
    r.powf(length as f32 / limit as f32)
}

fn mistakes(r: f32) -> Vec<String> {
    found([require(r > 0.0 && r <= 1.0, "r", r, "above 0 and at most 1")])
}

impl Reward for ShapedAccuracy {
    fn name(&self) -> &str {
        "shaped_accuracy"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        mistakes(self.r)
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.split_by_mean(
            |answer| answer.correct,
            |answer, right| if right { shaped(self.r, answer.length(), group.limit) } else { 0.0 },
        ))
    }
}

impl Reward for Length {
    fn name(&self) -> &str {
        "length"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        mistakes(self.r)
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let right = group.answers.iter().map(|answer| (answer, answer.correct == Some(true)));
        Ok(right.map(|(a, right)| right.then(|| Parts::length(shaped(self.r, a.length(), group.limit)))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, scores};
    use super::*;

    #[test]
    fn shaped_accuracy_is_one_at_length_zero_and_r_at_the_cap() {
        let group = [answer(true, 0), answer(true, 50), answer(true, 100), answer(false, 10)];
        assert_near(&scores(&ShapedAccuracy { r: 0.25 }, &group), &[1.0, 0.5, 0.25, 0.0]);
        assert_eq!(scores(&Length { r: 0.25 }, &group)[3], None);
        assert_eq!(ShapedAccuracy { r: 1.5 }.mistakes(100), ["r = 1.5 must be above 0 and at most 1"]);
    }
}
