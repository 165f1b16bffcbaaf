//! Benchmarks of the generation, loss and optimiser code that `train` uses, with a randomly initialised model.

pub mod growth;
pub mod ops;
#[cfg(feature = "gpu")]
pub mod products;
mod rollout;
pub mod scale;
mod step;

pub use rollout::{RolloutShape, RolloutTimes, RolloutTraffic, rollout};
pub use step::{StepShape, StepTimes, StepTraffic, step};

use crate::model::ModelConfig;

/// Model sizes for benchmarks, from one that fits into a processor cache to the largest that a single GPU can train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Size {
    /// 1.0 M parameters: 128 x 4, vocabulary 98.
    #[cfg_attr(feature = "cli", value(name = "1m"))]
    Million,
    /// 0.13 B parameters: 768 x 12, vocabulary 32,000.
    #[cfg_attr(feature = "cli", value(name = "0.1b"))]
    TenthBillion,
    /// 0.49 B parameters: the shape of Qwen2.5-0.5B.
    #[cfg_attr(feature = "cli", value(name = "0.5b"))]
    HalfBillion,
    /// 1.54 B parameters: the shape of Qwen2.5-1.5B.
    #[cfg_attr(feature = "cli", value(name = "1.5b"))]
    Billions,
}

impl Size {
    /// Return the model configuration for sequences of at most `context` tokens.
    pub fn config(self, context: usize) -> ModelConfig {
        let config = match self {
            Self::Million => ModelConfig::qwen2(98, 128, 512, 4, 4, 2),
            Self::TenthBillion => ModelConfig::qwen2(32_000, 768, 3072, 12, 12, 2),
            Self::HalfBillion => ModelConfig::qwen2(151_936, 896, 4864, 24, 14, 2),
            Self::Billions => ModelConfig::qwen2(151_936, 1536, 8960, 28, 12, 2),
        };
        ModelConfig { max_position_embeddings: context, ..config }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
