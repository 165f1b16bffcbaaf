//! Length relative to the shortest and the longest completion of the group.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward};
use crate::error::Result;

/// Kimi k1.5 (arXiv 2501.12599): `λ = 0.5 − (len − min) / (max − min)` over the group; `λ` when right, `min(0, λ)` when
/// wrong, 0 when all lengths are equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KimiLength {
    /// Number of steps of the stage over which the reward grows linearly from 0 to its full value; 0 for the full value
    /// from the start. The paper warms the penalty up but gives no schedule.
    pub warmup_steps: usize,
}

impl Reward for KimiLength {
    fn name(&self) -> &str {
        "kimi_length"
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let lengths = || group.answers.iter().map(|answer| answer.length());
        let (shortest, longest) = (lengths().min().unwrap_or(0), lengths().max().unwrap_or(0));
        let warmth = (group.step as f32 / self.warmup_steps.max(1) as f32).min(1.0);
        let weight = if self.warmup_steps == 0 { 1.0 } else { warmth };
        Ok(group.each_length(|answer, right| {
            if longest == shortest {
                return 0.0;
            }
            let lambda = 0.5 - (answer.length() - shortest) as f32 / (longest - shortest) as f32;
            weight * if right { lambda } else { lambda.min(0.0) }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, problem, scores};
    use super::*;

    /// Lengths 10, 20, 30: λ = 0.5, 0, −0.5; a short wrong answer gets 0, a long one gets λ.
    #[test]
    fn kimi_rewards_short_right_answers_and_punishes_long_wrong_ones() {
        let reward = KimiLength::default();
        let group = [answer(false, 10), answer(true, 20), answer(false, 30)];
        assert_eq!(scores(&reward, &group), [Some(0.0), Some(0.0), Some(-0.5)]);
        assert_eq!(scores(&reward, &[answer(true, 7), answer(true, 7)]), [Some(0.0); 2]);
    }

    #[test]
    fn kimis_penalty_warms_up() {
        let (problem, answers) = (problem(1), [answer(true, 10), answer(true, 30)]);
        let shortest = |step: usize| {
            let group = AnswerGroup { problem: &problem, answers: &answers, limit: 100, step };
            KimiLength { warmup_steps: 10 }.score(&group, &Memory::default()).unwrap()[0].unwrap().length
        };
        assert_eq!([0, 5, 10, 20].map(shortest), [0.0, 0.25, 0.5, 0.5]);
    }
}
