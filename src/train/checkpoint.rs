//! Checkpoints: complete Hugging Face directories (PEFT directories if adapters are trained) with the trainer's state
//! beside the weights. They are written atomically.
//!
//! `checkpoint.json` names the run and the step and has a checksum of every other file. So a checkpoint of another run
//! or step is never taken for one of this run, and a byte that has changed on disk is detected before training
//! continues.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::team::Team;
use crate::error::{Error, Result};
use crate::files;
use crate::model::{self, CausalLm, LoraConfig, ModelConfig, Precision, lora};
use crate::ops::to_host_together;
use crate::optim::AdamW;
use crate::text::tokenizer::Tokenizer;

const SEAL: &str = "checkpoint.json";
const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// A model in training, with all that a checkpoint of it needs.
#[derive(Debug, Clone, Copy)]
pub struct TrainedModel<'a> {
    /// The model's configuration.
    pub config: &'a ModelConfig,
    /// The model's weights.
    pub model: &'a CausalLm,
    /// The adapters' settings and the directory of the base model, if only adapters are trained.
    pub adapter: Option<(&'a LoraConfig, &'a Path)>,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The ranks that have the same model, if there are several.
    pub team: Option<&'a Team<'a>>,
}

/// Write a Hugging Face directory: configuration, weights (adapters merged), tokenizer files.
///
/// # Errors
/// If it cannot be written; no incomplete directory is left.
pub fn export(dir: &Path, config: &ModelConfig, model: &CausalLm, tokenizer: &Tokenizer) -> Result<()> {
    files::write_dir(dir, |dir| {
        model::save(dir, config, model)?;
        tokenizer.save_to(dir)?;
        write_generation_config(dir, tokenizer)
    })
}

/// Write a PEFT directory: adapters and tokenizer files.
///
/// # Errors
/// See [`export`].
pub fn export_adapter(
    dir: &Path,
    model: &CausalLm,
    (lora, base): (&LoraConfig, &Path),
    tokenizer: &Tokenizer,
) -> Result<()> {
    files::write_dir(dir, |dir| {
        lora::save(dir, model, lora, base)?;
        tokenizer.save_to(dir)?;
        write_generation_config(dir, tokenizer)
    })
}

/// Write the settings the model was published with, and the ends of a text where they lack these.
fn write_generation_config(dir: &Path, tokenizer: &Tokenizer) -> Result<()> {
    files::write(&dir.join("generation_config.json"), &tokenizer.generation_config()?)
}

/// `checkpoint.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seal {
    /// Identity of the run.
    run: String,
    /// The step after which it was written.
    step: usize,
    /// SHA-256 of every other file of the folder, by name.
    files: BTreeMap<String, String>,
}

impl Seal {
    /// Compute the checksums of the files in a folder.
    fn new(dir: &Path, run: &str, step: usize) -> Result<Self> {
        let sums = files::entries(dir)?.into_iter().map(|(name, path)| Ok((name, files::sha256(&path)?)));
        Ok(Self { run: run.to_string(), step, files: sums.collect::<Result<_>>()? })
    }
}

/// The content of a checkpoint.
#[derive(Debug)]
pub(super) struct Loaded<S> {
    /// The model's configuration.
    pub(super) config: ModelConfig,
    /// The weights.
    pub(super) model: CausalLm,
    /// The optimiser's moments.
    pub(super) optimizer: AdamW,
    /// The rest of the trainer's state.
    pub(super) state: S,
}

/// Write `dir/checkpoint-<step>` for the run with the identity `run`.
///
/// # Errors
/// If it cannot be written, for instance on a full disk, or if a weight is not finite. Older checkpoints stay
/// unchanged.
pub(super) fn save(
    dir: &Path,
    run: &str,
    step: usize,
    trained: TrainedModel,
    optimizer: &AdamW,
    state: &impl Serialize,
) -> Result<PathBuf> {
    let TrainedModel { config, model, adapter, tokenizer, team: _ } = trained;
    let path = dir.join(format!("checkpoint-{step}"));
    if !is_finite(model) {
        return Err(Error::Invalid(format!(
            "weights are not finite (NaN or infinite) after step {step}: no checkpoint and no model is written; lower \
             optim.learning_rate in a new run, or continue from an older checkpoint"
        )));
    }
    files::write_dir(&path, |dir| {
        match adapter {
            Some((lora, base)) => lora::save(dir, model, lora, base)?,
            None => {
                model::save(dir, config, model)?;
                model::save_masters(dir, config, model)?;
            }
        }
        tokenizer.save_to(dir)?;
        write_generation_config(dir, tokenizer)?;
        optimizer.save(&dir.join(OPTIMIZER))?;
        files::write_json(&dir.join(STATE), state)?;
        files::write_json(&dir.join(SEAL), &Seal::new(dir, run, step)?)
    })?;
    Ok(path)
}

/// Whether every trained weight is finite. Frozen weights were checked when they were read.
fn is_finite(model: &CausalLm) -> bool {
    struct Flaws(Vec<Tensor<1>>);
    impl ModuleVisitor for Flaws {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            // One number that is not finite makes the sum of all products with 0 not finite.
            let value = param.base();
            if value.is_require_grad() {
                self.0.push(value.inner().mul_scalar(0.0).sum());
            }
        }
    }
    let mut flaws = Flaws(Vec::new());
    model.visit(&mut flaws);
    to_host_together(flaws.0).iter().all(|sum| sum[0] == 0.0)
}

/// Remove all but the `keep` newest checkpoints of a run; 0 keeps all.
pub(super) fn prune(dir: &Path, run: &str, keep: usize) -> Result<()> {
    let all = list(dir, run)?;
    let spare = if keep == 0 { 0 } else { all.len().saturating_sub(keep) };
    all[..spare].iter().try_for_each(|(_, old)| files::remove_dir(old))
}

/// Remove the checkpoints of a run after `step`. Return their steps.
pub(super) fn remove_after(dir: &Path, run: &str, step: usize) -> Result<Vec<usize>> {
    let mut later = list(dir, run)?;
    later.retain(|(other, _)| *other > step);
    later.iter().try_for_each(|(_, path)| files::remove_dir(path))?;
    Ok(later.into_iter().map(|(step, _)| step).collect())
}

/// Whether a folder has a checkpoint of any run.
pub(super) fn exists(dir: &Path) -> Result<bool> {
    Ok(!numbered(dir)?.is_empty())
}

/// List the folders named `checkpoint-<step>`, oldest first.
fn numbered(dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let step = |name: &str| name.strip_prefix("checkpoint-")?.parse().ok();
    let mut found: Vec<(usize, PathBuf)> =
        files::entries(dir)?.into_iter().filter_map(|(name, path)| Some((step(&name)?, path))).collect();
    found.sort();
    Ok(found)
}

/// List the checkpoints of a run, oldest first. One whose `checkpoint.json` cannot be read counts as the run's.
///
/// # Errors
/// Checkpoints of another run, and one that is named after another step than it was written after.
pub(super) fn list(dir: &Path, run: &str) -> Result<Vec<(usize, PathBuf)>> {
    let all = numbered(dir)?;
    let (mut others, mut renamed) = (Vec::new(), None);
    for (step, path) in &all {
        match files::read_json::<Seal>(&path.join(SEAL)) {
            Ok(seal) if seal.run != run => others.push(path.display().to_string()),
            Ok(seal) if seal.step != *step => renamed = renamed.or(Some((path, seal.step))),
            _ => {}
        }
    }
    if !others.is_empty() {
        let message = format!("has checkpoints of another run; move them away: {}", others.join(", "));
        return Err(Error::file(dir, message));
    }
    let Some((path, step)) = renamed else { return Ok(all) };
    let message = format!(
        "was renamed: according to its {SEAL} it was written after step {step}; rename it to checkpoint-{step}, or \
         move it away"
    );
    Err(Error::file(path, message))
}

/// Compare every file of a checkpoint with its checksum.
///
/// # Errors
/// The first file that is missing or has changed.
fn check(path: &Path) -> Result<()> {
    let seal: Seal = files::read_json(&path.join(SEAL))?;
    for (name, sum) in &seal.files {
        let file = path.join(name);
        if files::sha256(&file)? != *sum {
            return Err(Error::file(
                file,
                "is damaged: its content has changed since it was written (different SHA-256)",
            ));
        }
    }
    Ok(())
}

/// Choose the checkpoint from which a run is resumed: that of step `wanted`, else the newest. `None` if there is none
/// yet.
///
/// # Errors
/// If it is damaged or missing. The message names an intact older checkpoint and how to resume from it.
pub(super) fn choose(dir: &Path, run: &str, wanted: Option<usize>) -> Result<Option<(usize, PathBuf)>> {
    let all = list(dir, run)?;
    let found = match wanted {
        None => all.last(),
        Some(step) => Some(all.iter().find(|(other, _)| *other == step).ok_or_else(|| {
            let steps: Vec<String> = all.iter().map(|(step, _)| step.to_string()).collect();
            Error::file(dir, format!("has no checkpoint-{step}; there are checkpoints of steps {}", steps.join(", ")))
        })?),
    };
    let Some((step, path)) = found else { return Ok(None) };
    let Err(error) = check(path) else { return Ok(Some((*step, path.clone()))) };
    let whole = all.iter().rev().find(|(other, path)| other < step && check(path).is_ok());
    let way_on = match whole {
        Some((older, _)) => format!(
            "checkpoint-{older} is intact: `--resume {} --from-checkpoint {older}` continues from it and removes the \
             later ones",
            dir.display()
        ),
        None => "no older checkpoint is intact: start the run again with --overwrite".to_string(),
    };
    Err(Error::Invalid(format!("{error}\n  {way_on}")))
}

/// Load a checkpoint.
///
/// # Errors
/// If a file is malformed, or the base model of an adapter is missing.
pub(super) fn load<S: DeserializeOwned>(path: &Path, device: &Device, precision: Precision) -> Result<Loaded<S>> {
    let training = device.clone().autodiff();
    let (config, model) = if lora::is_adapter(path) {
        let (config, model, _) = lora::load(path, &training, precision)?;
        (config, model)
    } else {
        let (config, model) = model::load_as(path, &training, precision)?;
        (config, model::load_masters(path, model)?)
    };
    let optimizer = AdamW::load(&path.join(OPTIMIZER), device)?;
    Ok(Loaded { config, model, optimizer, state: files::read_json(&path.join(STATE))? })
}
