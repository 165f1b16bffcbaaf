//! The interface of the engines that sample completions, and the engine of this process.

use crate::error::Result;
use crate::generate::{Completion, Request, Sampling, Watch, generate};
use crate::metrics::Metrics;
use crate::model::{CausalLm, ModelConfig};

/// An engine that samples completions. It returns token ids, log-probabilities and finish reasons, never text, which
/// would have to be tokenized again.
pub trait Sampler {
    /// Sample one completion per request, in the order of the requests. Call `watch` with `(request, token)` for each
    /// token.
    ///
    /// # Errors
    /// When the engine cannot hold the requests, or an engine outside this process fails.
    fn sample(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        watch: &mut dyn FnMut(usize, u32) -> Watch,
    ) -> Result<Vec<Completion>>;

    /// Whether the engine uses [`Self::prepare`].
    fn looks_ahead(&self) -> bool {
        false
    }

    /// Announce the next call of [`Self::sample`]. An idle engine may start to sample from its present weights.
    fn prepare(&mut self, _requests: &[Request], _sampling: &Sampling) {}

    /// Set the engine's metrics since the last call.
    fn describe(&mut self, _metrics: &mut Metrics) {}
}

/// The engine of this process, which samples from the trained model itself.
#[derive(Debug, Clone, Copy)]
pub struct Local<'a> {
    /// The model.
    pub model: &'a CausalLm,
    /// The configuration of the model.
    pub config: &'a ModelConfig,
}

impl Sampler for Local<'_> {
    fn sample(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        watch: &mut dyn FnMut(usize, u32) -> Watch,
    ) -> Result<Vec<Completion>> {
        generate(self.model, self.config, requests, sampling, watch)
    }
}
