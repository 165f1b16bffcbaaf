//! ETR (arXiv 2604.05355): the decrease of entropy from step to step as a measure of progress.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, positive, require};
use crate::error::Result;

/// `1 + lambda · Σ S_t` for a right answer, −1 for a wrong one: with H_t the mean entropy of step t and
/// `Δ = H_t − H_(t−1)`, `S_t = gamma · S_(t−1) + fall · max(0, −Δ) − rise · max(0, Δ)`; steps are the texts between
/// separators.
///
/// The paper has gamma 0.9 and fall = rise = 1, which gives `S_t = γ S_(t−1) + H_(t−1) − H_t`; its code has gamma 0.99,
/// fall 0.4, rise 0.8 and lambda 0.005. The code's entropies cover only the most probable tokens and are divided by the
/// logarithm of their number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Etr {
    /// Weight of the entropy trend.
    pub lambda: f32,
    /// Decay rate of the trend per thinking step.
    pub gamma: f32,
    /// Reward per nat of entropy decrease.
    pub fall: f32,
    /// Penalty per nat of entropy increase.
    pub rise: f32,
    /// Text that separates thinking steps.
    pub separator: String,
}

impl Default for Etr {
    fn default() -> Self {
        Self { lambda: 0.005, gamma: 0.99, fall: 0.4, rise: 0.8, separator: "\n\n".to_string() }
    }
}

impl Etr {
    fn trend(&self, entropies: &[f64]) -> f64 {
        let (mut trend, mut sum) = (0.0, 0.0);
        for pair in entropies.windows(2) {
            let change = pair[1] - pair[0];
            let reward = if change < 0.0 { f64::from(self.fall) } else { f64::from(self.rise) } * -change;
            trend = f64::from(self.gamma) * trend + reward;
            sum += trend;
        }
        sum
    }
}

impl Reward for Etr {
    fn name(&self) -> &str {
        "etr"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let not_negative = |key: &str, value: f32| require(value >= 0.0 && value.is_finite(), key, value, "at least 0");
        let separator = "separator is empty: give the text that separates steps";
        found([
            self.separator.is_empty().then(|| separator.to_string()),
            positive("lambda", self.lambda),
            require((0.0..=1.0).contains(&self.gamma), "gamma", self.gamma, "between 0 and 1"),
            not_negative("fall", self.fall),
            not_negative("rise", self.rise),
        ])
    }

    fn reads_pieces(&self) -> bool {
        true
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.each(|answer, right| {
            if !right {
                return Parts::task(-1.0);
            }
            let trend = self.trend(&answer.step_entropies(&self.separator));
            Parts { task: 1.0, length: (f64::from(self.lambda) * trend) as f32 }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Answer;
    use super::super::tests::{assert_near, scores, traced};
    use super::*;

    /// Steps of 1, 0.5 and 0.7 nats. Paper: S = 0.5, then 0.9 · 0.5 − 0.2 = 0.25; sum 0.75. Code: S = 0.2, then
    /// 0.99 · 0.2 − 0.8 · 0.2 = 0.038; sum 0.238.
    #[test]
    fn etr_by_hand_in_the_papers_and_the_codes_form() {
        let right = traced(true, &[("a\n\n", 1.0), ("b", 0.4), ("\n\n", 0.6), ("c", 0.7)]);
        let wrong = Answer { correct: Some(false), ..right.clone() };
        let code = Etr { lambda: 1.0, ..Etr::default() };
        let paper = Etr { gamma: 0.9, fall: 1.0, rise: 1.0, ..code.clone() };
        assert_near(&scores(&paper, &[right.clone(), wrong.clone()]), &[1.75, -1.0]);
        assert_near(&scores(&code, &[right, wrong]), &[1.238, -1.0]);
        assert_near(&scores(&Etr::default(), &[traced(true, &[("a", 1.0)])]), &[1.0]);
    }
}
