//! Exponential of the length, standardised over the right completions of the group.

use serde::{Deserialize, Serialize};

use super::{Answer, AnswerGroup, Memory, Parts, Reward, finite, found, positive};
use crate::error::Result;
use crate::metrics::{deviation, mean};

/// `e^(−alpha · z)` for a right completion, with z over the right completions of the group (sample deviation, 1 for a
/// single one, plus 1e-6), and `wrong` for a wrong one (GRPO-LEAD, arXiv 2504.09696). Right completions get 1 in groups
/// whose three shortest completions have a mean of at most `min_length` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoLead {
    /// Strength of the dependence on length.
    pub alpha: f32,
    /// Mean length of the three shortest completions of a group, in tokens, up to which correct answers get 1.
    pub min_length: usize,
    /// Reward of an incorrect answer.
    pub wrong: f32,
}

impl Default for GrpoLead {
    fn default() -> Self {
        Self { alpha: 0.05, min_length: 4000, wrong: -1.0 }
    }
}

impl Reward for GrpoLead {
    fn name(&self) -> &str {
        "grpo_lead"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        found([positive("alpha", self.alpha), finite("wrong", self.wrong)])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let mut all: Vec<usize> = group.answers.iter().map(Answer::length).collect();
        all.sort_unstable();
        let short = all.get(..3).is_some_and(|shortest| shortest.iter().sum::<usize>() <= 3 * self.min_length);
        let right = group.right_lengths();
        let (centre, spread) = (mean(&right), if right.len() > 1 { deviation(&right) } else { 1.0 });
        let value = |answer: &Answer, right: bool| match right {
            false => self.wrong,
            true if short => 1.0,
            true => (-f64::from(self.alpha) * (answer.length() as f64 - centre) / (spread + 1e-6)).exp() as f32,
        };
        Ok(group.split_by_mean(|answer| answer.correct, value))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, scores};
    use super::*;

    /// Right lengths 10 and 30: sample deviation 14.142136, z = ∓0.707107, e^(±0.05 · 0.707107).
    #[test]
    fn grpo_lead_by_hand() {
        let reward = |min_length| GrpoLead { min_length, ..GrpoLead::default() };
        let group = [answer(true, 10), answer(true, 30), answer(false, 20)];
        assert_near(&scores(&reward(0), &group), &[1.035_988, 0.965_262, -1.0]);
        // The mean of the three shortest is 20.
        assert_near(&scores(&reward(20), &group), &[1.0, 1.0, -1.0]);
        assert_near(&scores(&reward(19), &group), &[1.035_988, 0.965_262, -1.0]);
    }
}
