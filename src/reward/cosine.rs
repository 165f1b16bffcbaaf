//! Reward that follows a cosine of the length.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::{Answer, AnswerGroup, Memory, Parts, Reward, finite, found, require};
use crate::error::Result;

/// Cosine-scaled reward (arXiv 2502.03373, appendix C; TRL's `get_cosine_scaled_reward`): with `x = len / L`, at most
/// 1, the value goes from that of the shortest to that of the longest completion as `(1 + cos(π x)) / 2` goes from 1 to
/// 0. A long wrong completion is worth more than a short one, to encourage further search.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cosine {
    /// Reward of the shortest incorrect completion.
    pub min_value_wrong: f32,
    /// Reward of the longest incorrect completion.
    pub max_value_wrong: f32,
    /// Reward of the longest correct completion.
    pub min_value_correct: f32,
    /// Reward of the shortest correct completion.
    pub max_value_correct: f32,
}

impl Default for Cosine {
    fn default() -> Self {
        Self { min_value_wrong: -1.0, max_value_wrong: -0.5, min_value_correct: 0.5, max_value_correct: 1.0 }
    }
}

impl Reward for Cosine {
    fn name(&self) -> &str {
        "cosine"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let Self { min_value_wrong, max_value_wrong, min_value_correct, max_value_correct } = *self;
        let rule = format!("at most max_value_correct = {max_value_correct}");
        found([
            finite("min_value_wrong", min_value_wrong),
            finite("max_value_wrong", max_value_wrong),
            finite("max_value_correct", max_value_correct),
            require(min_value_correct <= max_value_correct, "min_value_correct", min_value_correct, &rule),
        ])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let value = |answer: &Answer, right: bool| {
            let progress = (answer.length() as f64 / group.limit as f64).min(1.0);
            let (short, long) = if right {
                (self.max_value_correct, self.min_value_correct)
            } else {
                (self.min_value_wrong, self.max_value_wrong)
            };
            long + 0.5 * (short - long) * (1.0 + (progress * PI).cos()) as f32
        };
        Ok(group.split_by_mean(|answer| answer.correct, value))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, scores};
    use super::*;

    /// TRL's values for `max_len = 100`, from its documentation and by its function: 0.75 and −0.75 halfway.
    #[test]
    fn cosine_is_trls() {
        let group = [answer(true, 50), answer(false, 50), answer(true, 0), answer(false, 100), answer(true, 25)];
        assert_near(&scores(&Cosine::default(), &group), &[0.75, -0.75, 1.0, -0.5, 0.926_776_7]);
    }
}
