//! PEAR (arXiv 2510.08026): entropy of the thinking as a measure of effort.

use serde::{Deserialize, Serialize};

use super::format::formatted;
use super::{AnswerGroup, Memory, Parts, Reward, finite, found, positive, require};
use crate::error::Result;

/// `min(1, base − P)` for a right answer, with `P = max(0, H_think − alpha · H_answer)` of the mean entropies before
/// and after `</think>`; for a wrong one `format` if its form is right, else 0. The formula is taken from notes; the
/// reward of wrong answers is a reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pear {
    /// Weight of the entropy of the answer.
    pub alpha: f32,
    /// Reward of a correct answer without an entropy penalty.
    pub base: f32,
    /// Reward of an incorrect answer in the correct format.
    pub format: f32,
}

impl Default for Pear {
    fn default() -> Self {
        Self { alpha: 1.0, base: 1.0, format: 0.0 }
    }
}

impl Reward for Pear {
    fn name(&self) -> &str {
        "pear"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let alpha = require(self.alpha >= 0.0 && self.alpha.is_finite(), "alpha", self.alpha, "at least 0");
        found([alpha, positive("base", self.base), finite("format", self.format)])
    }

    fn reads_pieces(&self) -> bool {
        true
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.each(|answer, right| {
            if !right {
                return Parts::task(if formatted(answer) { self.format } else { 0.0 });
            }
            let [think, answer] = answer.think_and_answer_entropy();
            let penalty = (think - f64::from(self.alpha) * answer).max(0.0) as f32;
            Parts { task: self.base, length: (self.base - penalty).min(1.0) - self.base }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_near, scores, traced};
    use super::*;

    /// Thinking at 0.5 nats and an answer at 0.2 cost 0.3; an answer less certain than the thinking costs nothing.
    #[test]
    fn pear_by_hand() {
        let reward = Pear { format: 0.1, ..Pear::default() };
        let group = [
            traced(true, &[("a", 0.4), ("b", 0.6), ("</think>", 7.0), ("c", 0.2)]),
            traced(true, &[("a", 0.1), ("</think>", 7.0), ("c", 0.2)]),
            traced(false, &[("a", 0.1), ("</think>", 7.0), ("c", 0.2)]),
        ];
        assert_near(&scores(&reward, &group), &[0.7, 1.0, 0.1]);
    }
}
