//! The model that is trained, with its optimiser.

use burn::tensor::Device;

use crate::model::{CausalLm, ModelConfig};
use crate::optim::{AdamW, Gradients, OptimConfig};
use crate::rollout::Local;

/// A model in training.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) config: ModelConfig,
    /// Missing within [`Policy::apply`] only.
    model: Option<CausalLm>,
    pub(super) optimizer: AdamW,
}

impl Policy {
    pub(super) fn new(config: ModelConfig, model: CausalLm, optimizer: AdamW) -> Self {
        Self { config, model: Some(model), optimizer }
    }

    pub(super) fn model(&self) -> &CausalLm {
        self.model.as_ref().expect("the model is there between two updates")
    }

    pub(super) fn device(&self) -> Device {
        self.model().device()
    }

    /// What completions are sampled from.
    pub(super) fn sampler(&self) -> Local<'_> {
        Local { model: self.model(), config: &self.config }
    }

    /// One optimiser step in place, with gradients times `scale`.
    pub(super) fn apply(&mut self, optim: &OptimConfig, gradients: Gradients, scale: f64, learning_rate: f64) {
        let model = self.model.take().expect("the model is there between two updates");
        self.model = Some(self.optimizer.step(optim, model, gradients, scale, learning_rate));
    }
}
