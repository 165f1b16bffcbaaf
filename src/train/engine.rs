//! The sampler of a run's completions: the engine of this process, or servers.

use std::path::Path;

use super::checkpoint::{TrainedModel, export, export_adapter};
use super::run::RunSettings;
use super::settings::RlConfig;
use super::team::TeamSampler;
use crate::error::Result;
use crate::hub::{self, ModelFiles};
use crate::model::ModelConfig;
use crate::rollout::served::{Current, Needs, Remote, Served};
use crate::rollout::{Local, Sampler};
use crate::stage::Stage;
use crate::stop::Stop;

/// The engine of this process, or servers.
#[derive(Debug)]
pub(super) enum RolloutEngine {
    Own,
    Served(Box<Served>),
}

impl RolloutEngine {
    /// Open the engine named by the settings. Nothing is written.
    ///
    /// # Errors
    /// See [`Served::open`].
    pub(super) fn open(config: &RlConfig, model: &ModelConfig, stop: Stop, note: &mut dyn FnMut(&str)) -> Result<Self> {
        let Some(served) = config.rollout.served() else { return Ok(Self::Own) };
        let clips = config.stages.iter().flat_map(|stage| stage.sampling.clips());
        let longest = clips.chain([config.eval.max_completion_length]).max().unwrap_or(0);
        let folder = hub::model(&config.model.path, ModelFiles::Settings)?;
        let needs = Needs {
            model: &folder,
            vocab_size: model.vocab_size,
            precision: config.model.dtype,
            longest: config.data.max_prompt_length + longest,
            lora: config.lora.as_ref(),
            trains: true,
            distributions: &config.stages.iter().map(Stage::distribution).collect::<Vec<_>>(),
        };
        Ok(Self::Served(Box::new(Served::open(served, &needs, &config.common().dir(), stop, note)?)))
    }

    /// Return the sampler of the model after `step` steps. Servers receive its weights before the first request.
    pub(super) fn sampler<'a>(
        &'a mut self,
        trained: TrainedModel<'a>,
        (step, tokens_per_pass): (usize, usize),
        stop: Stop<'a>,
    ) -> Box<dyn Sampler + 'a> {
        let TrainedModel { config, model, adapter, tokenizer, team } = trained;
        match self {
            Self::Own => Box::new(TeamSampler { team, local: Local { model, config } }),
            Self::Served(served) => {
                let adapter = adapter.filter(|_| served.takes_adapters());
                let write = move |dir: &Path| match adapter {
                    Some(adapter) => export_adapter(dir, model, adapter, tokenizer),
                    None => export(dir, config, model, tokenizer),
                };
                let current = Current { version: step as u64, model, tokens_per_pass, write: Box::new(write) };
                Box::new(Remote { served, current: Some(current), stop })
            }
        }
    }

    /// Remove from servers the adapters and weights of this run.
    pub(super) fn close(&mut self) {
        if let Self::Served(served) = self {
            served.close();
        }
    }
}
