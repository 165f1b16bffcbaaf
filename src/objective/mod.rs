//! What is learned from a batch of scored completions: advantages, and the loss they enter.
//!
//! An objective is a composition of independent choices; a method of the literature is a set of them in a config file.

pub mod advantage;
pub mod length;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

pub use advantage::{Advantage, advantages};
pub use length::RewardKind;

/// How token losses are weighed against each other (TRL's `loss_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Every token of the step weighs the same (DAPO, arXiv 2503.14476).
    Dapo,
    /// Every completion weighs the same (GRPO, arXiv 2402.03300).
    Grpo,
    /// Every token weighs one over completions times `max_completion_length` (Dr. GRPO, arXiv 2503.20783).
    DrGrpo,
}

impl LossType {
    /// Weight of each token, one list entry per completion; counted once for the whole optimiser step, so that no split
    /// into micro-batches changes the loss.
    pub fn weights(self, lengths: &[usize], max_completion_length: usize) -> Vec<f32> {
        let tokens: usize = lengths.iter().sum();
        let weight = |&length: &usize| match self {
            Self::Dapo => 1.0 / tokens.max(1) as f32,
            Self::Grpo => 1.0 / (lengths.len() * length.max(1)) as f32,
            Self::DrGrpo => 1.0 / (lengths.len() * max_completion_length) as f32,
        };
        lengths.iter().map(weight).collect()
    }
}

/// One token's share in the loss, aligned with a list of log-probabilities.
#[derive(Debug, Clone, Default)]
pub struct TokenTerms {
    /// Log-probability when the token was sampled.
    pub old_log_prob: Vec<f32>,
    /// Advantage of its completion.
    pub advantage: Vec<f32>,
    /// Weight from [`LossType::weights`].
    pub weight: Vec<f32>,
}

/// Clipped surrogate: `−Σ w · min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A)`, with `ρ = exp(log π − log π_old)` (PPO, arXiv
/// 1707.06347; asymmetric bounds from DAPO).
///
/// # Shapes
/// - log_prob: `[tokens]`, as many as `terms` has; the result is a scalar
pub fn clipped_loss(log_prob: Tensor<1>, terms: &TokenTerms, epsilon: f32, epsilon_high: f32) -> Tensor<1> {
    let device = log_prob.device();
    let old = vector(&terms.old_log_prob, &device);
    let advantage = vector(&terms.advantage, &device);
    let ratio = (log_prob - old).exp();
    let clipped = ratio.clone().clamp(1.0 - epsilon, 1.0 + epsilon_high);
    let surrogate = (ratio * advantage.clone()).min_pair(clipped * advantage);
    (surrogate * vector(&terms.weight, &device)).sum().neg()
}

fn vector(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), device)
}

/// Shares of tokens whose ratio is clipped and counts (below `1 − ε` with a negative advantage, above `1 + ε_high` with
/// a positive one), and the largest and mean difference between the two log-probabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RatioStatistics {
    /// Tokens looked at.
    pub tokens: usize,
    /// Tokens clipped from below.
    pub low: usize,
    /// Tokens clipped from above.
    pub high: usize,
    /// Sum of `|log π − log π_old|`.
    pub difference_sum: f64,
    /// Largest `|log π − log π_old|`.
    pub difference_max: f64,
    /// Ratios that are not finite.
    pub non_finite: usize,
}

impl RatioStatistics {
    /// Counts one micro-batch.
    pub fn count(&mut self, log_prob: &[f32], terms: &TokenTerms, epsilon: f32, epsilon_high: f32) {
        for ((&new, &old), &advantage) in log_prob.iter().zip(&terms.old_log_prob).zip(&terms.advantage) {
            let difference = f64::from((new - old).abs());
            let ratio = (new - old).exp();
            self.tokens += 1;
            self.low += usize::from(advantage < 0.0 && ratio < 1.0 - epsilon);
            self.high += usize::from(advantage > 0.0 && ratio > 1.0 + epsilon_high);
            self.non_finite += usize::from(!ratio.is_finite());
            self.difference_sum += difference;
            self.difference_max = self.difference_max.max(difference);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(log_prob: &[f32], terms: &TokenTerms) -> f32 {
        let device = Device::flex();
        clipped_loss(vector(log_prob, &device), terms, 0.2, 0.28).into_scalar::<f32>()
    }

    /// Hand computation: two completions of 3 and 1 tokens, ratios 1.5 (clipped above), 0.5 (kept: A > 0), 1, and 0.5
    /// with a negative advantage (clipped below to 0.8).
    #[test]
    fn clips_and_weighs_as_by_hand() {
        let log_prob = [1.5f32.ln(), 0.5f32.ln(), 0.0, 0.5f32.ln()];
        let terms = |loss_type: LossType| {
            let weights = loss_type.weights(&[3, 1], 8);
            TokenTerms {
                old_log_prob: vec![0.0; 4],
                advantage: vec![1.0, 1.0, 1.0, -2.0],
                weight: vec![weights[0], weights[0], weights[0], weights[1]],
            }
        };
        let (first, second) = (1.28 + 0.5 + 1.0, -2.0 * 0.8);
        let expected = [
            (LossType::Dapo, -(first + second) / 4.0),
            (LossType::Grpo, -(first / 3.0 + second) / 2.0),
            (LossType::DrGrpo, -(first + second) / 16.0),
        ];
        for (loss_type, expected) in expected {
            let got = loss(&log_prob, &terms(loss_type));
            assert!((got - expected).abs() < 1e-6, "{loss_type:?}: {got} against {expected}");
        }
        let mut statistics = RatioStatistics::default();
        statistics.count(&log_prob, &terms(LossType::Dapo), 0.2, 0.28);
        assert_eq!((statistics.tokens, statistics.low, statistics.high), (4, 1, 1));
    }
}
