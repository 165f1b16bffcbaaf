//! Who samples: the model that is loaded, or servers.

use std::path::Path;

use burn::tensor::Device;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::progress::say;
use crate::config::{self, Settings};
use crate::error::{Error, Result};
use crate::hub::{self, Part};
use crate::model::{self, CausalLm, ModelConfig, Precision};
use crate::rollout::served::{Current, Needs, Remote, Served};
use crate::rollout::settings::{Engine, OwnConfig, RolloutConfig};
use crate::rollout::{Local, Sampler};
use crate::stop::Stop;

/// Servers that sample in the place of this process.
#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// Sample from servers: a setting of the section `rollout`, such as engine=vllm and
    /// urls=["http://127.0.0.1:8000"]; may be repeated. They serve MODEL
    #[arg(long, value_name = "KEY=VALUE")]
    rollout: Vec<String>,
}

/// The section on its own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    rollout: RolloutConfig,
}

impl Settings for Section {
    fn validate(&self) -> Vec<String> {
        self.rollout.mistakes()
    }
}

/// What an evaluation or an analysis samples from.
#[derive(Debug)]
pub(super) struct Opened {
    /// Shape of the model.
    pub(super) config: ModelConfig,
    model: Option<CausalLm>,
    served: Option<Served>,
    /// What a folder of results is marked with: the device, or the engine.
    pub(super) place: String,
}

impl EngineArgs {
    /// Opens the model in `dir` on `device`, or servers that serve it; with `scores` the model, too, where servers sample, to
    /// say what they do not.
    pub(super) fn open(
        &self,
        dir: &Path,
        (device, name): (&Device, &str),
        precision: Precision,
        max_completion_length: usize,
        scores: bool,
    ) -> Result<Opened> {
        let sets: Vec<String> = self.rollout.iter().map(|set| format!("rollout.{set}")).collect();
        let section: Section = config::load(None, &sets)?;
        if section.rollout.own().is_some_and(|own| *own != OwnConfig::default()) {
            let message =
                "--rollout dtype and correction are for training; here --dtype says what products are computed in";
            return Err(Error::Invalid(message.to_string()));
        }
        let Some((engine, served)) = section.rollout.served() else {
            let (config, model) = model::load_as(dir, device, precision)?;
            return Ok(Opened { config, model: Some(model), served: None, place: name.to_string() });
        };
        let (config, model) = if scores {
            let (config, model) = model::load_as(dir, device, precision)?;
            (config, Some(model))
        } else {
            (model::config_of(dir)?, None)
        };
        let folder = hub::model(dir, Part::Settings)?;
        let needs = Needs {
            model: &folder,
            vocab_size: config.vocab_size,
            longest: max_completion_length,
            lora: None,
            trains: false,
            distributions: &[],
        };
        let served = Served::open((engine, served), &needs, Path::new(""), Stop::NEVER, &mut |line| say(line))?;
        let place = match engine {
            Engine::Vllm => "vllm",
            Engine::Sglang => "sglang",
        };
        Ok(Opened { config, model, served: Some(served), place: place.to_string() })
    }
}

impl Opened {
    /// The sampler, and the shape of its model.
    pub(super) fn sampler(&mut self) -> (Box<dyn Sampler + '_>, &ModelConfig) {
        let Self { config, model, served, .. } = self;
        let sampler: Box<dyn Sampler> = match (served, model) {
            (Some(served), model) => {
                let current = model.as_ref().map(|model| Current {
                    version: 0,
                    model,
                    tokens_per_pass: 8192,
                    write: Box::new(|_| unreachable!("an evaluation brings no weights to servers")),
                });
                Box::new(Remote { served, current, stop: Stop::NEVER })
            }
            (None, Some(model)) => Box::new(Local { model, config }),
            (None, None) => unreachable!("one of them is opened"),
        };
        (sampler, config)
    }
}
