//! Logistic function of the length, standardised over the right completions of the group.

use serde::{Deserialize, Serialize};

use super::{Answer, AnswerGroup, Memory, Parts, Reward, found, require};
use crate::error::Result;
use crate::metrics::mean;

/// `1[right] · (1 − alpha · σ(z))` with σ the logistic function and `z = (len − mean) / deviation` over the right
/// completions of the group (Arora and Zanette, arXiv 2502.04463; their code adds 1e-7 to the deviation).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AroraZanette {
    /// Weight of the length term, within [0, 1).
    pub alpha: f32,
}

impl Default for AroraZanette {
    fn default() -> Self {
        Self { alpha: 0.1 }
    }
}

impl Reward for AroraZanette {
    fn name(&self) -> &str {
        "arora_zanette"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        found([require((0.0..1.0).contains(&self.alpha), "alpha", self.alpha, "at least 0 and below 1")])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let right = group.right_lengths();
        let centre = mean(&right);
        // The population deviation (NumPy's default), as in the published code.
        let spread = mean(&right.iter().map(|length| (length - centre).powi(2)).collect::<Vec<_>>()).sqrt();
        let value = |answer: &Answer, right: bool| {
            let z = (answer.length() as f64 - centre) / (spread + 1e-7);
            if right { 1.0 - self.alpha * (1.0 / (1.0 + (-z).exp())) as f32 } else { 0.0 }
        };
        Ok(group.split_by_mean(|answer| answer.correct, value))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, scores};
    use super::*;

    /// Right lengths 10 and 30: z = ∓1 (population deviation 10), σ(−1) = 0.268941, σ(1) = 0.731059.
    #[test]
    fn arora_and_zanette_by_hand() {
        let reward = AroraZanette { alpha: 0.4 };
        let group = [answer(true, 10), answer(true, 30), answer(false, 5)];
        assert_near(&scores(&reward, &group), &[1.0 - 0.4 * 0.268_941, 1.0 - 0.4 * 0.731_059, 0.0]);
        // A single right completion is its own mean: σ(0) = 0.5.
        assert_near(&scores(&reward, &group[1..]), &[0.8, 0.0]);
    }
}
