//! Rewards that take entropy as the measure of effort. Entropies are those of the distribution tokens were drawn from, at
//! the sampling temperature, over all tokens of the vocabulary, in nats.

use serde::{Deserialize, Serialize};

use super::{Outcome, each, positive, require};
use crate::objective::Parts;

/// `min(1, base − P)` for a right answer, with `P = max(0, H_think − alpha · H_answer)` of the mean entropies before and
/// after `</think>` (PEAR, arXiv 2510.08026); for a wrong one `format` when its form is right, else 0. The formula is known
/// to us from notes; what wrong answers get is a reconstruction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pear {
    /// Weight of the answer's entropy.
    pub alpha: f32,
    /// Reward of a right answer whose thinking is no less certain than its answer.
    pub base: f32,
    /// Reward of a wrong answer of the right form.
    pub format: f32,
}

impl Default for Pear {
    fn default() -> Self {
        Self { alpha: 1.0, base: 1.0, format: 0.0 }
    }
}

impl Pear {
    pub(super) fn mistake(&self) -> Option<String> {
        require(self.alpha >= 0.0, "alpha", self.alpha, "at least 0").or_else(|| positive("base", self.base))
    }

    pub(super) fn score(&self, group: &[Outcome]) -> Vec<Option<Parts>> {
        each(group, |outcome, right| {
            if !right {
                return Parts::task(if outcome.formatted { self.format } else { 0.0 });
            }
            let [think, answer] = outcome.trace.think_and_answer();
            let penalty = (think - f64::from(self.alpha) * answer).max(0.0) as f32;
            Parts { task: self.base, length: (self.base - penalty).min(1.0) - self.base }
        })
    }
}

/// `1 + lambda · Σ S_t` for a right answer, −1 for a wrong one (ETR, arXiv 2604.05355): with H_t the mean entropy of step
/// t and `Δ = H_t − H_(t−1)`, `S_t = gamma · S_(t−1) + fall · max(0, −Δ) − rise · max(0, Δ)`; steps are what stands
/// between separators.
///
/// The paper has gamma 0.9 and fall = rise = 1, which gives `S_t = γ S_(t−1) + H_(t−1) − H_t`, its code gamma 0.99, fall
/// 0.4, rise 0.8 and lambda 0.005. The code's entropies are of the most probable tokens only, divided by the logarithm of
/// their number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Etr {
    /// Weight of the trend.
    pub lambda: f32,
    /// How much of the trend so far stays with each step.
    pub gamma: f32,
    /// Reward of a fall of entropy by a nat.
    pub fall: f32,
    /// Price of a rise by a nat.
    pub rise: f32,
    /// Text between steps.
    pub separator: String,
}

impl Default for Etr {
    fn default() -> Self {
        Self { lambda: 0.005, gamma: 0.99, fall: 0.4, rise: 0.8, separator: "\n\n".to_string() }
    }
}

impl Etr {
    pub(super) fn mistake(&self) -> Option<String> {
        if self.separator.is_empty() {
            return Some("separator is empty: name the text that stands between steps".to_string());
        }
        let not_negative = |key: &str, value: f32| require(value >= 0.0 && value.is_finite(), key, value, "at least 0");
        positive("lambda", self.lambda)
            .or_else(|| require((0.0..=1.0).contains(&self.gamma), "gamma", self.gamma, "within 0 and 1"))
            .or_else(|| not_negative("fall", self.fall))
            .or_else(|| not_negative("rise", self.rise))
    }

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

    pub(super) fn score(&self, group: &[Outcome]) -> Vec<Option<Parts>> {
        each(group, |outcome, right| {
            if !right {
                return Parts::task(-1.0);
            }
            let trend = self.trend(&outcome.trace.steps(&self.separator));
            Parts { task: 1.0, length: (f64::from(self.lambda) * trend) as f32 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::{assert_near, outcome, scores};
    use super::super::{RewardKind, Trace};
    use super::*;

    fn traced(correct: bool, pieces: &[(&str, f32)]) -> Outcome {
        let (pieces, entropies) = pieces.iter().map(|(piece, entropy)| (piece.to_string(), *entropy)).unzip();
        Outcome { trace: Trace { pieces, entropies }, ..outcome(correct, 3) }
    }

    /// Thinking at 0.5 nats and an answer at 0.2 cost 0.3; an answer less certain than the thinking costs nothing.
    #[test]
    fn pear_by_hand() {
        let kind = RewardKind::Pear(Pear { format: 0.1, ..Pear::default() });
        let group = [
            traced(true, &[("a", 0.4), ("b", 0.6), ("</think>", 7.0), ("c", 0.2)]),
            traced(true, &[("a", 0.1), ("</think>", 7.0), ("c", 0.2)]),
            traced(false, &[("a", 0.1), ("</think>", 7.0), ("c", 0.2)]),
        ];
        assert_near(&scores(&kind, &group), &[0.7, 1.0, 0.1]);
    }

    /// Steps of 1, 0.5 and 0.7 nats. Paper: S = 0.5, then 0.9 · 0.5 − 0.2 = 0.25; sum 0.75. Code: S = 0.2, then
    /// 0.99 · 0.2 − 0.8 · 0.2 = 0.038; sum 0.238.
    #[test]
    fn etr_by_hand_in_the_papers_and_the_codes_form() {
        let right = traced(true, &[("a\n\n", 1.0), ("b", 0.4), ("\n\n", 0.6), ("c", 0.7)]);
        let wrong = Outcome { correct: Some(false), ..right.clone() };
        let code = Etr { lambda: 1.0, ..Etr::default() };
        let paper = Etr { gamma: 0.9, fall: 1.0, rise: 1.0, ..code.clone() };
        assert_near(&scores(&RewardKind::Etr(paper), &[right.clone(), wrong.clone()]), &[1.75, -1.0]);
        assert_near(&scores(&RewardKind::Etr(code), &[right, wrong]), &[1.238, -1.0]);
        assert_near(&scores(&RewardKind::Etr(Etr::default()), &[traced(true, &[("a", 1.0)])]), &[1.0]);
    }
}
