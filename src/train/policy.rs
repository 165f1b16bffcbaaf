//! The trained model with its optimiser.

use burn::tensor::Device;

use super::batch::Sequence;
use super::learner::{Learner, Work};
use super::team::{Team, TeamSampler};
use super::update::{self, Lesson};
use crate::error::Result;
use crate::model::{CausalLm, ModelConfig};
use crate::objective::{Correction, Objective, Statistics};
use crate::optim::{AdamW, Gradients, OptimConfig};
use crate::rollout::Local;

/// The trained model with its optimiser.
#[derive(Debug)]
pub(crate) struct Policy<'a> {
    pub(crate) config: ModelConfig,
    /// `None` only within [`Policy::apply`].
    model: Option<CausalLm>,
    pub(crate) optimizer: AdamW,
    /// Whether some updates of a step are applied and others are not: neither the state before the step nor that after
    /// it belongs to the model.
    pub(crate) within_step: bool,
    /// The ranks that have the same model and apply the same updates, if there are several.
    pub(crate) team: Option<&'a Team<'a>>,
}

impl<'a> Policy<'a> {
    pub(crate) fn new(config: ModelConfig, model: CausalLm, optimizer: AdamW) -> Self {
        Self { config, model: Some(model), optimizer, within_step: false, team: None }
    }

    /// Return the policy as one of `team`, whose ranks must have received the model.
    pub(crate) fn on(self, team: Option<&'a Team<'a>>) -> Self {
        Self { team, ..self }
    }

    pub(crate) fn model(&self) -> &CausalLm {
        self.model.as_ref().expect("the model is there between two updates")
    }

    pub(crate) fn device(&self) -> Device {
        self.model().device()
    }

    /// Return the sampler of completions.
    pub(crate) fn sampler(&self) -> TeamSampler<'_> {
        TeamSampler { team: self.team, local: Local { model: self.model(), config: &self.config } }
    }

    /// Return the gradient of a loss over `lessons`, its statistics, and the amount of work.
    ///
    /// # Errors
    /// Those of other ranks.
    pub(crate) fn gradients(
        &self,
        learner: &Learner,
        objective: &Objective,
        correction: &Correction,
        lessons: &mut [Lesson],
    ) -> Result<(Gradients, Statistics, Work)> {
        match self.team {
            Some(team) => team.gradients(learner, (objective, correction), self.model(), lessons),
            None => Ok(update::gradients(learner, objective, correction, self.model(), lessons)),
        }
    }

    /// Return the log-probabilities of the completion tokens of each sequence under the policy or a reference model, in
    /// nats; of fewer sequences after a stop request.
    ///
    /// # Errors
    /// Those of other ranks.
    pub(crate) fn read(
        &self,
        learner: &Learner,
        reference: Option<&CausalLm>,
        sequences: &[Sequence],
    ) -> Result<Vec<Vec<f32>>> {
        let model = reference.unwrap_or(self.model());
        match self.team {
            Some(team) => team.read(learner, (model, reference.is_some()), sequences),
            None => Ok(learner.read(model, sequences).into_iter().map(|scores| scores.log_prob).collect()),
        }
    }

    /// Take one optimiser step in place, with the gradients multiplied by `scale`.
    pub(crate) fn apply(&mut self, optim: &OptimConfig, gradients: Gradients, scale: f64, learning_rate: f64) {
        if let Some(team) = self.team {
            team.apply(scale, learning_rate);
        }
        let model = self.model.take().expect("the model is there between two updates");
        self.model = Some(self.optimizer.step(optim, model, gradients, scale, learning_rate));
    }
}
