//! Hugging Face directories: `config.json` and `model.safetensors`, read and written.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, TensorData};
use safetensors::tensor::{Dtype, SafeTensors};

use super::params::{collect, initialise, names, replace};
use super::{CausalLm, ModelConfig};
use crate::error::{Error, Result};
use crate::files;

const WEIGHTS: &str = "model.safetensors";

impl CausalLm {
    /// A model with fresh random weights, a function of `config` and `seed` only.
    pub fn random(config: &ModelConfig, seed: u64, device: &Device) -> Self {
        initialise(Self::new(config, device), config.initializer_range, config.num_hidden_layers, seed)
    }
}

/// Loads a model from a Hugging Face directory.
///
/// # Errors
/// A missing or corrupt file, an unsupported configuration, or tensors that are missing, left over, of another shape or
/// of another type than f32, bf16, f16: all of them listed.
pub fn load(dir: &Path, device: &Device) -> Result<(ModelConfig, CausalLm)> {
    let config = ModelConfig::load(dir)?;
    let path = dir.join(WEIGHTS);
    let bytes = files::read(&path)?;
    let tensors = files::parse_tensors(&path, &bytes)?;
    let model = CausalLm::new(&config, device);
    let wanted = names(&model);
    let problems = mismatches(&wanted, &tensors);
    if !problems.is_empty() {
        return Err(Error::file(
            &path,
            format!("does not fit {}/config.json:\n  {}", dir.display(), problems.join("\n  ")),
        ));
    }
    let model = replace(model, |name, shape| {
        // Checked above: every wanted tensor is there, with this shape and a known type.
        let view = tensors.tensor(name).unwrap_or_else(|_| unreachable!("{name} was checked"));
        TensorData::new(files::to_f32(view.dtype(), view.data()), shape.to_vec())
    });
    Ok((config, model))
}

fn mismatches(wanted: &BTreeMap<String, Vec<usize>>, tensors: &SafeTensors) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, shape) in wanted {
        match tensors.tensor(name) {
            Err(_) => problems.push(format!("missing {name} {shape:?}")),
            Ok(view) if view.shape() != shape => {
                problems.push(format!("{name} has shape {:?}, expected {shape:?}", view.shape()));
            }
            Ok(view) if !matches!(view.dtype(), Dtype::F32 | Dtype::BF16 | Dtype::F16) => {
                problems.push(format!("{name} has type {:?}, expected F32, BF16 or F16", view.dtype()));
            }
            Ok(_) => {}
        }
    }
    // A tied head is often stored beside the embedding it equals.
    let extra = tensors.names().into_iter().filter(|name| !wanted.contains_key(*name) && *name != "lm_head.weight");
    problems.extend(extra.map(|name| format!("unexpected {name}")));
    problems
}

/// Writes `config.json` and `model.safetensors` into an existing directory.
///
/// # Errors
/// When a file cannot be written (a full disk, for instance).
pub fn save(dir: &Path, config: &ModelConfig, model: &CausalLm) -> Result<()> {
    files::write_json(&dir.join("config.json"), config)?;
    files::write_tensors(&dir.join(WEIGHTS), &collect(model))
}
