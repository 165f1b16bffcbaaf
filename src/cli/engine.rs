//! The engine that samples: the loaded model, or servers.

use std::path::Path;

use burn::tensor::Device;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::progress::say;
use crate::config::{self, Settings};
use crate::error::{Error, Result};
use crate::hub::{self, ModelFiles, Name, RepoKind};
use crate::model::{self, CausalLm, ModelConfig, Precision};
use crate::rollout::served::{Current, Needs, Remote, Served};
use crate::rollout::settings::{OwnConfig, RolloutConfig, ServedConfig, ServerKind, Sync};
use crate::rollout::{Local, Sampler};
use crate::stop::Stop;

/// Servers that sample in the place of this process.
#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    /// Sample on servers that serve MODEL: a setting of the section `rollout`, such as engine=vllm or
    /// urls=["http://127.0.0.1:8000"]; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    rollout: Vec<String>,
}

/// The section `rollout` on its own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RolloutSection {
    rollout: RolloutConfig,
}

impl Settings for RolloutSection {
    fn validate(&self) -> Vec<String> {
        self.rollout.mistakes()
    }
}

/// The opened engine of an evaluation or an analysis.
#[derive(Debug)]
pub(super) struct OpenedEngine {
    /// Configuration of the model.
    pub(super) config: ModelConfig,
    model: Option<CausalLm>,
    served: Option<Served>,
    /// The device or the kind of server, which is recorded with the results.
    pub(super) place: String,
    /// Path or Hub name that the servers loaded their model from, which is recorded with the results.
    pub(super) served_model: Option<String>,
}

/// Return a setting that is given and has no effect unless servers get new weights.
fn only_for_training(served: &ServedConfig) -> Option<&'static str> {
    let default = ServedConfig::default();
    let given = [
        ("sync", !matches!(served.sync, Sync::Auto | Sync::None)),
        ("command", served.command != default.command),
        ("sync_dir", served.sync_dir != default.sync_dir),
        ("server_dir", served.server_dir != default.server_dir),
        ("sync_timeout_s", served.sync_timeout_s != default.sync_timeout_s),
        ("max_staleness", served.max_staleness != default.max_staleness),
        ("correction", served.correction != default.correction),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(key, _)| key)
}

impl EngineArgs {
    fn section(&self) -> Result<RolloutSection> {
        let sets: Vec<String> = self.rollout.iter().map(|set| format!("rollout.{set}")).collect();
        config::load(None, &sets)
    }

    /// Refuse `options` that have no effect if servers sample. Each comes with whether it is given.
    pub(super) fn check(&self, options: &[(&str, bool)]) -> Result<()> {
        let idle = options.iter().find(|(_, given)| *given);
        match (self.section()?.rollout.served(), idle) {
            (Some(_), Some((option, _))) => {
                Err(Error::Invalid(format!("{option} has no effect if servers sample (--rollout): remove it")))
            }
            _ => Ok(()),
        }
    }

    /// Open the model in `dir` on `device`, or servers that serve it. `longest` returns the length of the longest prompt and
    /// the longest completion together, in tokens. With `scores`, the model is opened in both cases: it computes the scores
    /// that servers do not return, and the servers' model is compared with it.
    pub(super) fn open(
        &self,
        dir: &Path,
        (device, name): (&Device, &str),
        precision: Precision,
        longest: impl FnOnce() -> Result<usize>,
        scores: bool,
    ) -> Result<OpenedEngine> {
        let section = self.section()?;
        if section.rollout.own().is_some_and(|own| *own != OwnConfig::default()) {
            let message = "--rollout dtype and --rollout correction are for training only; use --dtype for the number \
                format of matrix products";
            return Err(Error::Invalid(message.to_string()));
        }
        let Some((engine, served)) = section.rollout.served() else {
            let (config, model) = model::load_as(dir, device, precision)?;
            return Ok(OpenedEngine {
                config,
                model: Some(model),
                served: None,
                place: name.to_string(),
                served_model: None,
            });
        };
        if let Some(key) = only_for_training(served) {
            let message = "is for training only, which sends new weights to the servers: remove it";
            return Err(Error::Invalid(format!("--rollout {key} {message}")));
        }
        let (config, model) = if scores {
            let (config, model) = model::load_as(dir, device, precision)?;
            (config, Some(model))
        } else {
            (model::config_of(dir)?, None)
        };
        let folder = hub::model(dir, ModelFiles::Settings)?;
        let needs = Needs {
            model: &folder,
            vocab_size: config.vocab_size,
            precision,
            longest: longest()?,
            lora: None,
            trains: false,
            distributions: &[],
        };
        let served = Served::open((engine, served), &needs, Path::new(""), Stop::NEVER, &mut |line| say(line))?;
        let place = match engine {
            ServerKind::Vllm => "vllm",
            ServerKind::Sglang => "sglang",
        };
        let mut sources: Vec<String> = Vec::new();
        for source in served.sources() {
            if !sources.contains(source) {
                sources.push(source.clone());
            }
        }
        for source in sources.iter().filter(|source| model.is_none() && !is_same(dir, &folder, source)) {
            say(format_args!(
                "the servers loaded {source}, which may be another model than {}: the completions are those of {source}",
                dir.display()
            ));
        }
        let served_model = Some(sources.join(", "));
        Ok(OpenedEngine { config, model, served: Some(served), place: place.to_string(), served_model })
    }
}

/// Whether `source`, a path or Hub name that a server reports, is the model `name` in `folder`. A path on another machine is
/// taken for the model only if it is equal to `name`.
fn is_same(name: &Path, folder: &Path, source: &str) -> bool {
    let is_path = || Some(Path::new(source).canonicalize().ok()? == folder.canonicalize().ok()?);
    let is_hub_name = || Some(Name::of(RepoKind::Model, name).ok()??.repository == source);
    Path::new(source) == name || is_path() == Some(true) || is_hub_name() == Some(true)
}

impl OpenedEngine {
    /// Return the sampler and the configuration of its model.
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
