//! The quantities from which memory and operations of a training step are estimated.

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
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// CPU threads, among which the micro-batches of a small model are divided.
    pub threads: usize,
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

/// The sequences of a step, each of its maximum length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSize {
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens of a sequence, with its prompt.
    pub tokens: usize,
    /// Tokens of a sequence that are learned.
    pub completion_tokens: usize,
    /// Number of times that a sequence is learned from.
    pub passes: usize,
}
