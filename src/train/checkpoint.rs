//! Checkpoints: complete Hugging Face directories (or PEFT's, when adapters are trained) with the trainer's state beside
//! the weights, whole or absent.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::files;
use crate::model::{self, CausalLm, LoraConfig, ModelConfig, Precision, lora};
use crate::optim::AdamW;
use crate::text::tokenizer::Tokenizer;

const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// A model in training.
#[derive(Debug, Clone, Copy)]
pub struct Trained<'a> {
    /// Its configuration.
    pub config: &'a ModelConfig,
    /// Its weights.
    pub model: &'a CausalLm,
    /// Its adapters' settings and the directory of the model without them, when only adapters are trained.
    pub adapter: Option<(&'a LoraConfig, &'a Path)>,
}

/// Writes a Hugging Face directory: configuration, weights (adapters merged), tokenizer files.
///
/// # Errors
/// When it cannot be written; nothing is left half-written.
pub fn export(dir: &Path, config: &ModelConfig, model: &CausalLm, tokenizer: &Tokenizer) -> Result<()> {
    files::write_dir(dir, |dir| {
        model::save(dir, config, model)?;
        tokenizer.save_to(dir)?;
        write_generation_config(dir, tokenizer)
    })
}

/// Writes a PEFT directory: adapters and tokenizer files.
///
/// # Errors
/// As [`export`].
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

/// Writes the settings the model was published with, and the ends of a text where they lack these.
fn write_generation_config(dir: &Path, tokenizer: &Tokenizer) -> Result<()> {
    files::write(&dir.join("generation_config.json"), &tokenizer.generation_config()?)
}

/// What a checkpoint of step `step` holds beside the model.
#[derive(Debug)]
pub struct Loaded<S> {
    /// Step it was written after.
    pub step: usize,
    /// The model's configuration.
    pub config: ModelConfig,
    /// The weights.
    pub model: CausalLm,
    /// The optimiser's moments.
    pub optimizer: AdamW,
    /// The rest of the trainer's state.
    pub state: S,
}

/// Writes `run/checkpoint-<step>` and removes all but the `keep` newest.
///
/// # Errors
/// When it cannot be written (a full disk, for instance); the older checkpoints stay as they are.
pub fn save(
    run: &Path,
    step: usize,
    trained: Trained,
    tokenizer: &Tokenizer,
    optimizer: &AdamW,
    state: &impl Serialize,
    keep: usize,
) -> Result<PathBuf> {
    let dir = run.join(format!("checkpoint-{step}"));
    files::write_dir(&dir, |dir| {
        match trained.adapter {
            Some((lora, base)) => lora::save(dir, trained.model, lora, base)?,
            None => {
                model::save(dir, trained.config, trained.model)?;
                model::save_masters(dir, trained.config, trained.model)?;
            }
        }
        tokenizer.save_to(dir)?;
        write_generation_config(dir, tokenizer)?;
        optimizer.save(&dir.join(OPTIMIZER))?;
        files::write_json(&dir.join(STATE), state)
    })?;
    let all = list(run)?;
    for (_, old) in &all[..all.len().saturating_sub(keep.max(1))] {
        files::remove_dir(old)?;
    }
    Ok(dir)
}

/// Whole checkpoints of a run, oldest first.
fn list(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(run).map_err(Error::io(run))? {
        let path = entry.map_err(Error::io(run))?.path();
        let step = path.file_name().and_then(|name| name.to_str()?.strip_prefix("checkpoint-")?.parse().ok());
        if let Some(step) = step.filter(|_| path.join(STATE).is_file()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Loads the newest checkpoint of a run; nothing when there is none yet.
///
/// # Errors
/// A missing run directory, a damaged checkpoint, or one of a run with other adapters.
pub fn load_newest<S: DeserializeOwned>(
    run: &Path,
    device: &Device,
    precision: Precision,
    lora: Option<&LoraConfig>,
) -> Result<Option<Loaded<S>>> {
    let Some((step, dir)) = list(run)?.pop() else { return Ok(None) };
    let training = device.clone().autodiff();
    let (config, model) = if lora::is_adapter(&dir) {
        let (config, model, saved) = lora::load(&dir, &training, precision)?;
        if lora != Some(&saved) {
            return Err(Error::file(
                dir,
                "was trained with other [lora] settings; resume with those of config.toml beside it",
            ));
        }
        (config, model)
    } else if lora.is_some() {
        return Err(Error::file(dir, "was trained without [lora]; resume without it"));
    } else {
        let (config, model) = model::load_as(&dir, &training, precision)?;
        (config, model::load_masters(&dir, model)?)
    };
    let optimizer = AdamW::load(&dir.join(OPTIMIZER), device)?;
    Ok(Some(Loaded { step, config, model, optimizer, state: files::read_json(&dir.join(STATE))? }))
}
