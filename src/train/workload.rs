//! The quantities from which the memory of a training step is estimated.

use super::learner::Learner;
use crate::model::{CacheShape, LoraConfig, Precision};
use crate::optim::Moments;

/// The model that is trained and the size of its batches.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Tokens of one micro-batch.
    pub tokens: usize,
    /// Completion tokens of one micro-batch.
    pub completion_tokens: usize,
    /// How a micro-batch is computed.
    pub learner: Learner<'static>,
    /// Number format of matrix products in training.
    pub precision: Precision,
    /// Number format of matrix products while sampling.
    pub sampled_in: Precision,
    /// The format of the optimiser's moments.
    pub moments: Moments,
    /// Adapters, if only they are trained.
    pub lora: Option<LoraConfig>,
    /// Shape of the KV cache while sampling; `None` in fine-tuning.
    pub cache: Option<CacheShape>,
    /// Whether a reference model is kept in memory.
    pub reference: bool,
}
