//! Hugging Face directories: `config.json` and safetensors, whole or in shards, read and written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, FloatDType, TensorData};
use serde::Deserialize;

use super::params::{Held, entries, initialise, names, replace};
use super::{CausalLm, ModelConfig, Precision, lora, wrapped};
use crate::error::{Error, Result};
use crate::files;
use crate::hub::Part;
use crate::model::tensors::{self, Dtype, Entry, TensorFile};
use crate::ops::is_host;
use crate::text::directory::{MODEL_INDEX as INDEX, MODEL_WEIGHTS as WEIGHTS, find};

const MASTERS: &str = "master.safetensors";
/// Weights of more bytes than this are written in shards.
const SHARD_BYTES: usize = 5_000_000_000;

impl CausalLm {
    /// A model with fresh random weights, a function of `config` and `seed` only.
    pub fn random(config: &ModelConfig, seed: u64, device: &Device) -> Self {
        Self::random_as(config, seed, device, Precision::F32)
    }

    /// [`Self::random`], with matrix products in the given precision and matrices held as [`load_as`] does.
    pub fn random_as(config: &ModelConfig, seed: u64, device: &Device, precision: Precision) -> Self {
        initialise(Self::new(config, precision, device), config, Held::on(precision, device), seed)
    }

    /// [`Self::random_as`], with matrices held as those of a checkpoint in bf16 are below adapters.
    pub(crate) fn random_base(config: &ModelConfig, seed: u64, device: &Device, precision: Precision) -> Self {
        let held = Held::As(if is_host(device) { FloatDType::BF16 } else { FloatDType::F32 });
        initialise(Self::new(config, precision, device), config, held, seed)
    }
}

/// Loads the model below adapters, on a device with autodiff, too: its matrices, which are not trained, are held as products
/// read them.
///
/// # Errors
/// As [`load_as`].
pub(crate) fn load_base(dir: &Path, device: &Device, precision: Precision) -> Result<(ModelConfig, CausalLm)> {
    load_full(&find(dir, Part::Whole)?, device, precision, Held::below_adapters(precision, device))
}

/// Loads a model from a Hugging Face directory or, merged into its base, a PEFT adapter's, or by its name on the Hub; in f32.
///
/// # Errors
/// A missing or corrupt file, an unsupported configuration, or tensors that are missing, left over, of another shape or
/// of another type than f32, bf16, f16: all of them listed.
pub fn load(dir: &Path, device: &Device) -> Result<(ModelConfig, CausalLm)> {
    load_as(dir, device, Precision::F32)
}

/// [`load`], with matrix products in the given precision.
///
/// Matrices are held in that precision, on the `cpu` device in bf16 where that loses nothing; on a device with autodiff they
/// are f32 masters, converted for each product. There an adapter stays beside a base in bf16, which would take twice the
/// memory with the adapter merged into it.
///
/// # Errors
/// As [`load`], and a precision that the device does not compute in.
pub fn load_as(dir: &Path, device: &Device, precision: Precision) -> Result<(ModelConfig, CausalLm)> {
    let dir = find(dir, Part::Whole)?;
    if !lora::is_adapter(&dir) {
        return load_full(&dir, device, precision, Held::on(precision, device));
    }
    let (config, model, _) = lora::load(&dir, device, precision)?;
    Ok((config, if device.is_autodiff() { lora::merge(model) } else { model.for_inference() }))
}

/// The configuration of the model in `dir` (or of that name on the Hub), or of the one that the adapter in it belongs to.
///
/// # Errors
/// When it is missing, malformed, or of a kind that is not supported.
pub fn config_of(dir: &Path) -> Result<ModelConfig> {
    let dir = find(dir, Part::Settings)?;
    if lora::is_adapter(&dir) { ModelConfig::load(&lora::base(&dir, Part::Settings)?) } else { ModelConfig::load(&dir) }
}

/// Whether the model in `dir` is a language model inside one that also sees.
///
/// # Errors
/// When its `config.json` cannot be read.
pub(crate) fn is_wrapped(dir: &Path) -> Result<bool> {
    Ok(wrapped::is_wrapper(&files::read_json(&dir.join("config.json"))?))
}

/// A directory with a model of its own.
pub(super) fn load_full(
    dir: &Path,
    device: &Device,
    precision: Precision,
    held: Held,
) -> Result<(ModelConfig, CausalLm)> {
    precision.check(device)?;
    let mut config = ModelConfig::load(dir)?;
    let mut weights = Weights::open(dir)?;
    // What is saved of the language model alone may keep the wrapper's names.
    if is_wrapped(dir)? || weights.are_wrapped() {
        weights.unwrap();
    }
    // A layer has nine tensors at least: more layers than tensors need not even be listed.
    if config.num_hidden_layers > weights.place.len() {
        let (layers, tensors) = (config.num_hidden_layers, weights.place.len());
        return Err(weights.unfit(&[format!("{tensors} tensors cannot be num_hidden_layers = {layers} layers")]));
    }
    // Before the model is made: the scale of Gemma's embedding is rounded to it.
    if let Some(dtype) = weights.dtype() {
        config.set_stored(dtype);
    }
    let model = CausalLm::new(&config, precision, device);
    let wanted = names(&model);
    let mut problems = weights.mismatches(&wanted, |name| {
        // Old Llama files store the rotary frequencies, which follow from the configuration.
        // Layers that predict further tokens (Qwen 3.5, MiMo) are no part of the model.
        name.ends_with(".rotary_emb.inv_freq")
            || name.starts_with("mtp.")
            || name.starts_with("model.mtp_layers.")
            || (config.tie_word_embeddings && name == HEAD)
    });
    if problems.is_empty() && config.tie_word_embeddings && weights.has(HEAD) && !weights.head_is_tied()? {
        problems.push(format!("{HEAD} differs from {EMBEDDING}, but tie_word_embeddings = true"));
    }
    if !problems.is_empty() {
        return Err(weights.unfit(&problems));
    }
    Ok((config, weights.fill(model, held)?))
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// The tensors of a checkpoint: in which of its files each is.
pub(super) struct Weights {
    /// The file to name in messages.
    path: PathBuf,
    files: Vec<TensorFile>,
    place: BTreeMap<String, Place>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Place {
    file: usize,
    /// What it is called there.
    name: String,
}

impl Place {
    fn of(file: usize, name: &str) -> (String, Self) {
        (name.to_string(), Self { file, name: name.to_string() })
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// One safetensors file.
    pub(super) fn single(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let place = file.names().map(|name| Place::of(0, name)).collect();
        Ok(Self { path: path.to_path_buf(), files: vec![file], place })
    }

    /// The weights of a model's directory.
    fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX);
        if dir.join(WEIGHTS).is_file() {
            return Self::single(&dir.join(WEIGHTS));
        }
        if !path.is_file() {
            let message = format!(
                "neither {WEIGHTS} nor {INDEX} is here; other formats are not read (pickled ones run code): save the model \
                 with safetensors"
            );
            return Err(Error::file(dir, message));
        }
        let index: Index = files::read_json(&path)?;
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        if let Some(shard) = shards.iter().find(|shard| Path::new(shard).file_name() != Some(shard.as_ref())) {
            return Err(Error::file(&path, format!("{shard:?} is not a file name; shards lie beside the index")));
        }
        let missing: Vec<&str> =
            shards.iter().filter(|shard| !dir.join(shard).is_file()).map(|shard| shard.as_str()).collect();
        if !missing.is_empty() {
            let message = format!("names shards that are not here: {}; download them", missing.join(", "));
            return Err(Error::file(&path, message));
        }
        let files = shards.iter().map(|shard| TensorFile::open(&dir.join(shard))).collect::<Result<Vec<_>>>()?;
        let mut place = BTreeMap::new();
        let mut problems = Vec::new();
        for (number, (file, shard)) in files.iter().zip(&shards).enumerate() {
            for name in file.names() {
                if index.weight_map.get(name) == Some(shard) {
                    place.extend([Place::of(number, name)]);
                } else {
                    problems.push(format!("{shard} holds {name}, which the index does not place there"));
                }
            }
        }
        let lost = index.weight_map.iter().filter(|(name, _)| !place.contains_key(*name));
        problems.extend(lost.map(|(name, shard)| format!("{name} is not in {shard}")));
        let weights = Self { path, files, place };
        if problems.is_empty() { Ok(weights) } else { Err(weights.unfit(&problems)) }
    }

    /// Names and shapes of all tensors.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.place.iter().filter_map(|(name, place)| Some((name.as_str(), self.info(place)?.0)))
    }

    fn info(&self, Place { file, name }: &Place) -> Option<(&[usize], std::result::Result<Dtype, String>)> {
        self.files[*file].info(name)
    }

    /// Whether they have the names of a wrapper's.
    fn are_wrapped(&self) -> bool {
        self.place.keys().any(|name| name.starts_with("model.language_model."))
    }

    /// Leaves those of the language model inside a wrapper, under its own names.
    fn unwrap(&mut self) {
        let inner = |(name, place): (String, Place)| Some((wrapped::inner_name(&name)?, place));
        self.place = std::mem::take(&mut self.place).into_iter().filter_map(inner).collect();
    }

    fn has(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let Place { file, name } = &self.place[name];
        self.files[*file].read(name)
    }

    /// The values of a tensor.
    ///
    /// # Errors
    /// When one is not finite: a model with one gives the same token for ever, and training with it learns nothing.
    fn read_finite(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.read(name)?;
        match values.iter().filter(|value| !value.is_finite()).count() {
            0 => Ok(values),
            broken => {
                let message =
                    format!("{broken} of the {} numbers of {name} are not finite: the model is broken", values.len());
                Err(Error::file(&self.path, message))
            }
        }
    }

    /// The widest precision among the matrices: vectors of a model in 16 bits may be in f32 (Qwen 3.5).
    fn dtype(&self) -> Option<Dtype> {
        let matrices = self.place.values().filter_map(|place| self.info(place)).filter(|(shape, _)| shape.len() == 2);
        matrices.filter_map(|(_, dtype)| dtype.ok()).max()
    }

    /// Whether a stored head is the embedding, as a tied head must be.
    fn head_is_tied(&self) -> Result<bool> {
        Ok(self.read(HEAD)? == self.read(EMBEDDING)?)
    }

    /// What does not fit, one line each; `spare` says which left-over names do no harm.
    pub(super) fn mismatches(
        &self,
        wanted: &BTreeMap<String, Vec<usize>>,
        spare: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, expected) in wanted {
            let found = self.place.get(name).and_then(|place| self.info(place));
            problems.extend(match found {
                None => Some(format!("missing {name} {expected:?}")),
                Some((shape, _)) if shape != expected => {
                    Some(format!("{name} has shape {shape:?}, expected {expected:?}"))
                }
                Some((_, Err(dtype))) => Some(format!("{name} has type {dtype}, expected F32, BF16 or F16")),
                Some(_) => None,
            });
        }
        let extra = self.place.keys().filter(|name| !wanted.contains_key(*name) && !spare(name));
        problems.extend(extra.map(|name| format!("unexpected {name}")));
        problems
    }

    /// An error that lists what does not fit.
    pub(super) fn unfit(&self, problems: &[String]) -> Error {
        Error::file(&self.path, format!("does not fit the configuration:\n  {}", problems.join("\n  ")))
    }

    /// Gives the model its weights, one tensor at a time; parameters that are not here stay.
    pub(super) fn fill(&self, model: CausalLm, held: Held) -> Result<CausalLm> {
        let mut failure = None;
        let model = replace(model, held, |name, shape| {
            if failure.is_some() || !self.has(name) {
                return None;
            }
            match self.read_finite(name) {
                Ok(values) => Some(TensorData::new(values, shape.to_vec())),
                Err(error) => {
                    failure = Some(error);
                    None
                }
            }
        });
        failure.map_or(Ok(model), Err)
    }
}

/// Writes `config.json` and the weights into an existing directory, adapters merged, in the precision the configuration
/// names; above 5 GB in shards.
///
/// # Errors
/// When a file cannot be written (a full disk, for instance).
///
/// # Panics
/// When the configuration has [mistakes](ModelConfig::mistakes).
pub fn save(dir: &Path, config: &ModelConfig, model: &CausalLm) -> Result<()> {
    save_sharded(dir, config, model, SHARD_BYTES)
}

/// [`save`], with shards of at most `limit` bytes (one larger tensor makes a shard of its own).
///
/// # Errors
/// As [`save`].
///
/// # Panics
/// As [`save`].
pub fn save_sharded(dir: &Path, config: &ModelConfig, model: &CausalLm, limit: usize) -> Result<()> {
    files::write_json(&dir.join("config.json"), config)?;
    let dtype = config.stored().expect("a configuration without problems names a precision");
    let entries = entries(&lora::merge(model.valid()));
    let total: usize = entries.iter().map(|entry| entry.bytes(dtype)).sum();
    if total <= limit {
        return tensors::write(&dir.join(WEIGHTS), dtype, &entries);
    }
    let mut shards: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut held = 0;
    for entry in entries {
        let bytes = entry.bytes(dtype);
        if held > 0 && held + bytes > limit {
            shards.push(Vec::new());
            held = 0;
        }
        held += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push(entry);
        }
    }
    let mut weight_map = BTreeMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        tensors::write(&dir.join(&name), dtype, shard)?;
        weight_map.extend(shard.iter().map(|entry| (entry.name.clone(), name.clone())));
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    files::write_json(&dir.join(INDEX), &index)
}

/// Writes the f32 weights beside those of a checkpoint in half precision, from which training could not go on exactly.
///
/// # Errors
/// When the file cannot be written.
pub fn save_masters(dir: &Path, config: &ModelConfig, model: &CausalLm) -> Result<()> {
    match config.stored() {
        Some(Dtype::F32) | None => Ok(()),
        Some(_) => tensors::write(&dir.join(MASTERS), Dtype::F32, &entries(model)),
    }
}

/// Reads what [`save_masters`] wrote, where it wrote something.
///
/// # Errors
/// A damaged file.
pub fn load_masters(dir: &Path, model: CausalLm) -> Result<CausalLm> {
    let path = dir.join(MASTERS);
    if !path.is_file() {
        return Ok(model);
    }
    let weights = Weights::single(&path)?;
    let problems = weights.mismatches(&names(&model), |_| false);
    if problems.is_empty() { weights.fill(model, Held::As(FloatDType::F32)) } else { Err(weights.unfit(&problems)) }
}
