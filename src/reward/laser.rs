//! LASER: a bonus up to a target length.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, finite, found, positive, require};
use crate::error::Result;

/// 1 for a right answer, plus `bonus` if it is at most `target_length` tokens long; `wrong` for a wrong answer (LASER,
/// arXiv 2505.15612).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Laser {
    /// Maximum length that earns the bonus, in tokens.
    pub target_length: usize,
    /// Bonus for a correct answer within the target length.
    #[serde(default = "half")]
    pub bonus: f32,
    /// Reward of an incorrect answer.
    #[serde(default = "minus_half")]
    pub wrong: f32,
}

fn half() -> f32 {
    0.5
}

fn minus_half() -> f32 {
    -0.5
}

impl Reward for Laser {
    fn name(&self) -> &str {
        "laser"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let target = require(self.target_length > 0, "target_length", self.target_length, "positive");
        found([positive("bonus", self.bonus), finite("wrong", self.wrong), target])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.each(|answer, right| Parts {
            task: if right { 1.0 } else { self.wrong },
            length: if right && answer.length() <= self.target_length { self.bonus } else { 0.0 },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, scores};
    use super::*;

    #[test]
    fn laser_pays_a_bonus_up_to_its_target() {
        let reward = Laser { target_length: 50, bonus: 0.5, wrong: -0.5 };
        let group = [answer(true, 50), answer(true, 51), answer(false, 10)];
        assert_near(&scores(&reward, &group), &[1.5, 1.0, -0.5]);
    }
}
