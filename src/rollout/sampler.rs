//! Where completions come from.

use crate::error::Result;
use crate::generate::{Completion, Request, Sampling, Watch, generate};
use crate::metrics::Metrics;
use crate::model::{CausalLm, ModelConfig};

/// An engine that samples completions. Token ids, log-probabilities and finish reasons cross this seam, never text that
/// would have to be turned into tokens again.
pub trait Sampler {
    /// Samples one completion per request, in the order of the requests.
    ///
    /// `watch` sees `(request, token)` as they come.
    ///
    /// # Errors
    /// Requests that the engine cannot hold, and the failures of an engine that is not part of this process.
    fn sample(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        watch: &mut dyn FnMut(usize, u32) -> Watch,
    ) -> Result<Vec<Completion>>;

    /// Whether it makes use of [`Self::prepare`].
    fn looks_ahead(&self) -> bool {
        false
    }

    /// Announces what will be asked for next. An engine that is not busy with anything else may begin with it, from the
    /// weights it has now.
    fn prepare(&mut self, _requests: &[Request], _sampling: &Sampling) {}

    /// Writes down what the engine has to say of its work since the last time.
    fn describe(&mut self, _metrics: &mut Metrics) {}
}

/// The engine of this process, on the model that is trained.
#[derive(Debug, Clone, Copy)]
pub struct Local<'a> {
    /// Weights.
    pub model: &'a CausalLm,
    /// Shape.
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
