//! Hugging Face model directories: reading and writing `config.json` and safetensors, whole or in shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, FloatDType, TensorData};
use serde::Deserialize;

use super::params::{WeightFormat, entries, initialise, names, replace};
use super::{CausalLm, ModelConfig, Precision, lora, wrapped};
use crate::error::{Error, Result};
use crate::files;
use crate::hub::ModelFiles;
use crate::model::tensors::{self, Dtype, TensorEntry, TensorFile};
use crate::ops::is_host;
use crate::text::directory::{MODEL_INDEX as INDEX, MODEL_WEIGHTS as WEIGHTS, find};

const MASTERS: &str = "master.safetensors";
/// Maximum bytes of a weights file; larger models are written in shards.
const SHARD_BYTES: usize = 5_000_000_000;

impl CausalLm {
    /// Create a model with random weights, a function of `config` and `seed` only.
    pub fn random(config: &ModelConfig, seed: u64, device: &Device) -> Self {
        Self::random_as(config, seed, device, Precision::F32)
    }

    /// Same as [`Self::random`], with matrix products in the given precision and matrices stored as in [`load_as`].
    pub fn random_as(config: &ModelConfig, seed: u64, device: &Device, precision: Precision) -> Self {
        initialise(Self::new(config, precision, device), config, WeightFormat::on(precision, device), seed)
    }

    /// Same as [`Self::random_as`], with matrices stored like those of a bf16 checkpoint below adapters.
    pub(crate) fn random_base(config: &ModelConfig, seed: u64, device: &Device, precision: Precision) -> Self {
        let held = WeightFormat::As(if is_host(device) { FloatDType::BF16 } else { FloatDType::F32 });
        initialise(Self::new(config, precision, device), config, held, seed)
    }
}

/// Load the base model for adapters; [`WeightFormat::below_adapters`] is the format of its matrices, which are not trained.
///
/// # Errors
/// As [`load_as`].
pub(crate) fn load_base(dir: &Path, device: &Device, precision: Precision) -> Result<(ModelConfig, CausalLm)> {
    load_full(&find(dir, ModelFiles::Whole)?, device, precision, WeightFormat::below_adapters(precision, device))
}

/// Load a model in f32: a Hugging Face directory, a PEFT adapter (merged into its base), or a name on the Hub.
///
/// # Errors
/// A missing or corrupt file, an unsupported configuration, or tensors that are missing, unexpected, of another shape
/// or of another type than f32, bf16, f16: all of them listed.
pub fn load(dir: &Path, device: &Device) -> Result<(ModelConfig, CausalLm)> {
    load_as(dir, device, Precision::F32)
}

/// Same as [`load`], with matrix products in the given precision.
///
/// Matrices are stored in that precision; for f32 on the `cpu` device in bf16 if that is lossless. On a device with
/// autodiff they are f32 masters, converted for each product. On the `cpu` device without autodiff, an adapter stays
/// separate from a 16-bit base; merging it would double the memory.
///
/// # Errors
/// As [`load`], and a precision that the device does not support.
pub fn load_as(dir: &Path, device: &Device, precision: Precision) -> Result<(ModelConfig, CausalLm)> {
    let dir = find(dir, ModelFiles::Whole)?;
    if !lora::is_adapter(&dir) {
        return load_full(&dir, device, precision, WeightFormat::on(precision, device));
    }
    let (config, model, _) = lora::load(&dir, device, precision)?;
    Ok((config, if device.is_autodiff() { lora::merge(model) } else { model.for_inference() }))
}

/// Return the configuration of the model in `dir` (or of that name on the Hub); for an adapter, that of its base.
///
/// # Errors
/// When it is missing, malformed or unsupported.
pub fn config_of(dir: &Path) -> Result<ModelConfig> {
    let dir = find(dir, ModelFiles::Settings)?;
    if lora::is_adapter(&dir) {
        ModelConfig::load(&lora::base(&dir, ModelFiles::Settings)?)
    } else {
        ModelConfig::load(&dir)
    }
}

/// Return whether the model in `dir` is a language model inside a multimodal wrapper.
///
/// # Errors
/// When its `config.json` cannot be read.
pub(crate) fn is_wrapped(dir: &Path) -> Result<bool> {
    Ok(wrapped::is_wrapper(&files::read_json(&dir.join("config.json"))?))
}

/// Load a model from a directory with full weights.
pub(super) fn load_full(
    dir: &Path,
    device: &Device,
    precision: Precision,
    held: WeightFormat,
) -> Result<(ModelConfig, CausalLm)> {
    precision.check(device)?;
    let mut config = ModelConfig::load(dir)?;
    let mut weights = CheckpointWeights::open(dir)?;
    // A language model saved without its wrapper may keep the wrapper's tensor names.
    if is_wrapped(dir)? || weights.are_wrapped() {
        weights.unwrap();
    }
    // A layer has at least nine tensors: with more layers than tensors, the missing ones need not be listed.
    if config.num_hidden_layers > weights.place.len() {
        let (layers, tensors) = (config.num_hidden_layers, weights.place.len());
        return Err(weights.mismatch(&[format!("{tensors} tensors are too few for num_hidden_layers = {layers}")]));
    }
    // Set before the model is created: the scale of Gemma's embedding is rounded to this format.
    if let Some(dtype) = weights.dtype() {
        config.set_stored(dtype);
    }
    let model = CausalLm::new(&config, precision, device);
    let wanted = names(&model);
    let mut problems = weights.mismatches(&wanted, |name| {
        // Old Llama files store the rotary frequencies, which follow from the configuration. Multi-token prediction
        // layers (Qwen 3.5, MiMo) are not part of the model.
        name.ends_with(".rotary_emb.inv_freq")
            || name.starts_with("mtp.")
            || name.starts_with("model.mtp_layers.")
            || (config.tie_word_embeddings && name == HEAD)
    });
    if problems.is_empty() && config.tie_word_embeddings && weights.has(HEAD) && !weights.head_is_tied()? {
        problems.push(format!("{HEAD} differs from {EMBEDDING}, but tie_word_embeddings = true"));
    }
    if !problems.is_empty() {
        return Err(weights.mismatch(&problems));
    }
    Ok((config, weights.fill(model, held)?))
}

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// The tensors of a checkpoint, and the file that contains each.
pub(super) struct CheckpointWeights {
    /// File named in messages.
    path: PathBuf,
    files: Vec<TensorFile>,
    place: BTreeMap<String, TensorLocation>,
}

/// Location of a tensor.
#[derive(Debug)]
struct TensorLocation {
    file: usize,
    /// Name in the file.
    name: String,
}

impl TensorLocation {
    fn of(file: usize, name: &str) -> (String, Self) {
        (name.to_string(), Self { file, name: name.to_string() })
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl CheckpointWeights {
    /// Open one safetensors file.
    pub(super) fn single(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let place = file.names().map(|name| TensorLocation::of(0, name)).collect();
        Ok(Self { path: path.to_path_buf(), files: vec![file], place })
    }

    /// Open the weights in a model's directory.
    fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX);
        if dir.join(WEIGHTS).is_file() {
            return Self::single(&dir.join(WEIGHTS));
        }
        if !path.is_file() {
            let message = format!(
                "has neither {WEIGHTS} nor {INDEX}; other formats are not supported (reading pickled weights can run \
                 code): save the model with transformers' `save_pretrained(…, safe_serialization=True)`"
            );
            return Err(Error::file(dir, message));
        }
        let index: Index = files::read_json(&path)?;
        let shards: BTreeSet<&String> = index.weight_map.values().collect();
        if let Some(shard) = shards.iter().find(|shard| Path::new(shard).file_name() != Some(shard.as_ref())) {
            return Err(Error::file(
                &path,
                format!("weight_map: {shard:?} is not a file name; shards must be in the same folder as the index"),
            ));
        }
        let missing: Vec<&str> =
            shards.iter().filter(|shard| !dir.join(shard).is_file()).map(|shard| shard.as_str()).collect();
        if !missing.is_empty() {
            let message =
                format!("lists shards that are missing: {}; download them into the same folder", missing.join(", "));
            return Err(Error::file(&path, message));
        }
        let files = shards.iter().map(|shard| TensorFile::open(&dir.join(shard))).collect::<Result<Vec<_>>>()?;
        let mut place = BTreeMap::new();
        let mut problems = Vec::new();
        for (number, (file, shard)) in files.iter().zip(&shards).enumerate() {
            for name in file.names() {
                if index.weight_map.get(name) == Some(shard) {
                    place.extend([TensorLocation::of(number, name)]);
                } else {
                    problems.push(format!("{shard} contains {name}, but the index does not list it there"));
                }
            }
        }
        let lost = index.weight_map.iter().filter(|(name, _)| !place.contains_key(*name));
        problems.extend(lost.map(|(name, shard)| format!("{name} is not in {shard}")));
        let weights = Self { path, files, place };
        if problems.is_empty() { Ok(weights) } else { Err(weights.mismatch(&problems)) }
    }

    /// Iterate over names and shapes of all tensors.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.place.iter().filter_map(|(name, place)| Some((name.as_str(), self.info(place)?.0)))
    }

    fn info(
        &self,
        TensorLocation { file, name }: &TensorLocation,
    ) -> Option<(&[usize], std::result::Result<Dtype, String>)> {
        self.files[*file].info(name)
    }

    /// Return whether the tensors have the names of a wrapper.
    fn are_wrapped(&self) -> bool {
        self.place.keys().any(|name| name.starts_with("model.language_model."))
    }

    /// Keep only the tensors of the language model inside a wrapper, under its own names.
    fn unwrap(&mut self) {
        let inner = |(name, place): (String, TensorLocation)| Some((wrapped::inner_name(&name)?, place));
        self.place = std::mem::take(&mut self.place).into_iter().filter_map(inner).collect();
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let TensorLocation { file, name } = &self.place[name];
        self.files[*file].read(name)
    }

    /// Read the values of a tensor.
    ///
    /// # Errors
    /// When a value is not finite: such a model generates the same token forever and cannot be trained.
    fn read_finite(&self, name: &str) -> Result<Vec<f32>> {
        let values = self.read(name)?;
        match values.iter().filter(|value| !value.is_finite()).count() {
            0 => Ok(values),
            broken => {
                let message = format!(
                    "{broken} of the {} values of {name} are not finite (NaN or infinite): the model is damaged; copy \
                     or download it again",
                    values.len()
                );
                Err(Error::file(&self.path, message))
            }
        }
    }

    /// Return the widest format among the matrices: vectors of a 16-bit model may be in f32 (Qwen 3.5).
    fn dtype(&self) -> Option<Dtype> {
        let matrices = self.place.values().filter_map(|place| self.info(place)).filter(|(shape, _)| shape.len() == 2);
        matrices.filter_map(|(_, dtype)| dtype.ok()).max()
    }

    /// Return whether a stored head equals the embedding, as a tied head must.
    fn head_is_tied(&self) -> Result<bool> {
        Ok(self.read(HEAD)? == self.read(EMBEDDING)?)
    }

    /// Return one message per mismatch; `spare` returns whether an unexpected name is harmless.
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

    /// Return an error that lists mismatches.
    pub(super) fn mismatch(&self, problems: &[String]) -> Error {
        Error::file(&self.path, format!("does not fit the configuration:\n  {}", problems.join("\n  ")))
    }

    /// Load the weights into the model, one tensor at a time; parameters that are not in the file stay.
    pub(super) fn fill(&self, model: CausalLm, held: WeightFormat) -> Result<CausalLm> {
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

/// Write `config.json` and the weights into an existing directory, with adapters merged, in the format the
/// configuration names; in shards above 5 GB.
///
/// # Errors
/// When a file cannot be written (a full disk, for instance).
///
/// # Panics
/// When the configuration has [mistakes](ModelConfig::mistakes).
pub fn save(dir: &Path, config: &ModelConfig, model: &CausalLm) -> Result<()> {
    save_sharded(dir, config, model, SHARD_BYTES)
}

/// Same as [`save`], with shards of at most `limit` bytes (a larger tensor gets a shard of its own).
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
    let mut shards: Vec<Vec<TensorEntry>> = vec![Vec::new()];
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

/// Write the f32 master weights beside a 16-bit checkpoint, from which training could not resume exactly.
///
/// # Errors
/// When the file cannot be written.
pub fn save_masters(dir: &Path, config: &ModelConfig, model: &CausalLm) -> Result<()> {
    match config.stored() {
        Some(Dtype::F32) | None => Ok(()),
        Some(_) => tensors::write(&dir.join(MASTERS), Dtype::F32, &entries(model)),
    }
}

/// Read the weights written by [`save_masters`], if there are any.
///
/// # Errors
/// A damaged file.
pub fn load_masters(dir: &Path, model: CausalLm) -> Result<CausalLm> {
    let path = dir.join(MASTERS);
    if !path.is_file() {
        return Ok(model);
    }
    let weights = CheckpointWeights::single(&path)?;
    let found = weights.mismatches(&names(&model), |_| false);
    if found.is_empty() {
        weights.fill(model, WeightFormat::As(FloatDType::F32))
    } else {
        Err(weights.mismatch(&found))
    }
}
