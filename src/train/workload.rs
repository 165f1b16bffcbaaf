//! What a step of training needs memory for, by which it is estimated.

use super::learner::Learner;
use crate::model::{CacheShape, LoraConfig, Precision};
use crate::optim::Moments;

/// What is trained, and in what portions.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Tokens of one micro-batch.
    pub tokens: usize,
    /// Completion tokens among them.
    pub completion_tokens: usize,
    /// How the micro-batch is computed.
    pub learner: Learner<'static>,
    /// What products are computed in.
    pub precision: Precision,
    /// What they are computed in while sampling.
    pub sampled_in: Precision,
    /// The format of the optimiser's moments.
    pub moments: Moments,
    /// Adapters, when only they are trained.
    pub lora: Option<LoraConfig>,
    /// The cache of sampling; none in fine-tuning.
    pub cache: Option<CacheShape>,
    /// Whether a reference model is held beside the one that is trained.
    pub reference: bool,
}
