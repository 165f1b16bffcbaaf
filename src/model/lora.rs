//! Low-rank adapters (LoRA, arXiv 2106.09685), built with Burn's `apply_lora`, read and written in PEFT's format.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::module::{Lora, LoraAdapter, Module, Param, ParamGroup};
use burn::nn::Linear;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::decoder::Layer;
use super::params::{ADAPTER, WeightFormat, entries, names, replace};
use super::pretrained::{CheckpointWeights, load_full};
use super::{CausalLm, ModelConfig, Precision};
use crate::error::{Error, Result};
use crate::files;
use crate::hub::{ModelFiles, Name, RepoKind};
use crate::model::tensors::{self, Dtype};
use crate::noise::{Stream, mix_text};
use crate::ops;
use crate::text::directory::ADAPTER_CONFIG as CONFIG;
pub use crate::text::directory::{base, base_name, is_adapter};

const WEIGHTS: &str = "adapter_model.safetensors";
/// End of the name of an adapter's first matrix.
const LORA_A: &str = ".lora_A.weight";
const PROJECTIONS: [&str; 14] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "qkv_proj",
    "gate_up_proj",
    "in_proj_qkv",
    "in_proj_z",
    "in_proj_b",
    "in_proj_a",
    "out_proj",
];
/// Number of leading entries of `PROJECTIONS` in a model with separate projections; the default targets.
const SEPARATE: usize = 7;
/// Separate projections, each with the fused projection that contains it (Phi 3).
const FUSED: [(&str, &str); 5] = [
    ("q_proj", "qkv_proj"),
    ("k_proj", "qkv_proj"),
    ("v_proj", "qkv_proj"),
    ("gate_proj", "gate_up_proj"),
    ("up_proj", "gate_up_proj"),
];

/// Adapted projections, rank and scale of the adapters; keys are PEFT's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the adapters.
    pub r: usize,
    /// Scaling parameter: the output of an adapter is multiplied by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Names of the linear layers that get an adapter, or `"all-linear"` for all linear layers of the blocks.
    #[serde(with = "targets")]
    pub target_modules: Vec<String>,
}

/// Value of `target_modules` that selects all linear layers of the blocks, in settings and in PEFT's file.
const ALL_LINEAR: &str = "all-linear";

/// Format of `target_modules` in settings: a list of names, or [`ALL_LINEAR`] as a string.
mod targets {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::ALL_LINEAR;

    pub(super) fn serialize<S: Serializer>(names: &[String], to: S) -> Result<S::Ok, S::Error> {
        if *names == [ALL_LINEAR] { to.serialize_str(ALL_LINEAR) } else { names.serialize(to) }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a list of names, or \"all-linear\"")]
        enum NamesOrWord {
            Word(String),
            List(Vec<String>),
        }
        match NamesOrWord::deserialize(from)? {
            NamesOrWord::Word(word) if word != ALL_LINEAR => {
                Err(D::Error::custom("expected a list of names, or \"all-linear\"; patterns are not supported"))
            }
            NamesOrWord::Word(word) => Ok(vec![word]),
            NamesOrWord::List(names) => Ok(names),
        }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        let target_modules = PROJECTIONS[..SEPARATE].iter().map(ToString::to_string).collect();
        Self { r: 16, lora_alpha: 32.0, target_modules }
    }
}

impl LoraConfig {
    /// Return one message per invalid setting.
    pub fn mistakes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.r == 0 || self.r > 1 << 16 {
            problems.push(format!("lora.r = {} must be positive and at most 65536", self.r));
        }
        if !(self.lora_alpha > 0.0 && self.lora_alpha.is_finite()) {
            problems.push(format!("lora.lora_alpha = {} must be a positive number", self.lora_alpha));
        }
        let choice = format!("choose from {}; or write \"{ALL_LINEAR}\" instead of a list", PROJECTIONS.join(", "));
        if self.target_modules.is_empty() {
            problems.push(format!("lora.target_modules is empty; {choice}"));
        }
        let unknown = self.target_modules.iter().filter(|name| !PROJECTIONS.contains(&name.as_str()));
        for name in unknown.filter(|_| !self.selects_all()) {
            problems.push(format!("lora.target_modules: {name:?} is not supported; {choice}"));
        }
        problems
    }

    /// Check that the model has every target projection.
    ///
    /// # Errors
    /// Names the first missing projection and lists the ones the model has.
    pub(crate) fn fits(&self, model: &CausalLm) -> std::result::Result<(), String> {
        let modules = modules(model);
        let has = |name: &str| modules.iter().any(|module| last(module) == name);
        match self.meant(is_fused(model)).into_iter().find(|name| !has(name)).filter(|_| !self.selects_all()) {
            None => Ok(()),
            Some(missing) => {
                let known: Vec<&str> = PROJECTIONS.into_iter().filter(|name| has(name)).collect();
                Err(format!("lora.target_modules: the model has no {missing:?}; choose from {}", known.join(", ")))
            }
        }
    }

    /// Freeze the model and adds adapters to its target projections. As in PEFT, the adapters initially change
    /// nothing: `lora_B` is zero and `lora_A` is uniform in `±1/√input`, a function of `seed` and the parameter's name.
    pub fn attach(&self, model: CausalLm, seed: u64) -> CausalLm {
        let meant = self.meant(is_fused(&model));
        let chosen = modules(&model).into_iter().filter(|module| meant.contains(last(module))).collect();
        self.attach_to(model, chosen, seed)
    }

    /// Same as [`Self::attach`], for the given modules.
    fn attach_to(&self, model: CausalLm, modules: Vec<String>, seed: u64) -> CausalLm {
        let weights: Vec<String> = modules.into_iter().map(|module| module + ".weight").collect();
        let lora = Lora::new(self.r, self.lora_alpha).set_param_group(ParamGroup::from_paths(weights));
        replace(model.apply_lora(lora), WeightFormat::As(FloatDType::F32), |name, shape| {
            if name.ends_with(".lora_B.weight") {
                // f32, even if the base weights have another format.
                return Some(TensorData::zeros::<f32, _>(shape.to_vec()));
            }
            if !name.ends_with(LORA_A) {
                return None;
            }
            let mut random = Stream::new(&[seed, mix_text(name)]);
            let bound = 1.0 / (shape[1] as f64).sqrt();
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| ((2.0 * random.unit() - 1.0) * bound) as f32).collect();
            Some(TensorData::new(values, shape.to_vec()))
        })
    }

    /// Return whether `target_modules` selects all linear layers of the blocks.
    fn selects_all(&self) -> bool {
        self.target_modules == [ALL_LINEAR]
    }

    /// Return the projections selected by `target_modules` in a model with or without fused projections. A part
    /// selects its fused projection (Phi 3).
    pub(crate) fn meant(&self, fused: bool) -> BTreeSet<String> {
        if self.selects_all() {
            return PROJECTIONS.map(str::to_string).into();
        }
        let whole = |name: &str| FUSED.iter().find(|(part, _)| fused && *part == name).map(|(_, whole)| *whole);
        self.target_modules.iter().map(|name| whole(name).unwrap_or(name).to_string()).collect()
    }
}

/// Return whether a model has fused projections.
fn is_fused(model: &CausalLm) -> bool {
    model.model.layers.first().is_some_and(|layer| layer.mlp.gate_up_proj.is_some())
}

/// Return the paths of the modules of a model that can have an adapter, such as `model.layers.0.self_attn.q_proj`.
fn modules(model: &CausalLm) -> Vec<String> {
    let module = |name: String| name.strip_suffix(".weight").map(str::to_string);
    names(model).into_keys().filter_map(module).filter(|module| PROJECTIONS.contains(&last(module))).collect()
}

/// Return the last component of a module's path.
fn last(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// Return the module of a tensor `lora_A` in a PEFT file.
fn adapted_module(name: &str) -> Option<&str> {
    name.strip_prefix(ADAPTER)?.strip_suffix(LORA_A)
}

/// Return `target_modules` for the adapters of a model: the names of projections or, where an adapter is in some of
/// the layers only, the paths of its modules.
fn targets_of(model: &CausalLm) -> BTreeSet<String> {
    let all = names(model);
    let adapted: BTreeSet<&str> = all.keys().filter_map(|name| adapted_module(name)).collect();
    let modules = modules(model);
    let everywhere = |name: &str| modules.iter().all(|other| last(other) != name || adapted.contains(other.as_str()));
    let target = |module| if everywhere(last(module)) { last(module) } else { module };
    adapted.iter().map(|&module| target(module).to_string()).collect()
}

/// Return whether the model has adapters and its base weights have a 16-bit format.
pub(super) fn has_16_bit_base(model: &CausalLm) -> bool {
    let Some(layer) = model.model.layers.first() else { return false };
    let weight = &layer.mlp.down_proj.weight;
    let adapted = names(model).keys().any(|name| name.starts_with(ADAPTER));
    adapted && weight.base().dtype() != DType::F32
}

/// Return the base model without adapters and without autodiff. It shares the weights' memory.
pub fn detach(model: &CausalLm) -> CausalLm {
    let mut model = model.valid();
    for layer in projections(&mut model) {
        layer.weight = Param::initialized(layer.weight.id, layer.weight.base());
    }
    model
}

/// Return the model with its adapters merged into the base weights, in f32 on every device.
pub(super) fn merge(mut model: CausalLm) -> CausalLm {
    for layer in projections(&mut model) {
        if let Some(LoraAdapter { a, b, scale }) = layer.weight.adapter() {
            let trained = layer.weight.base().device().is_autodiff();
            let [base, a, b] = [layer.weight.base(), a.val(), b.val()].map(|x| if trained { x.inner() } else { x });
            let merged = base.cast(FloatDType::F32) + ops::matmul(a, b).mul_scalar(*scale);
            layer.weight = Param::from_tensor(if trained { Tensor::from_inner(merged) } else { merged });
        }
    }
    model
}

/// Iterates over the projections that can have adapters.
fn projections(model: &mut CausalLm) -> impl Iterator<Item = &mut Linear> {
    model.model.layers.iter_mut().flat_map(|Layer { self_attn, linear_attn, mlp, .. }| {
        let of_attention = self_attn.iter_mut().flat_map(|own| {
            let inputs = [&mut own.q_proj, &mut own.k_proj, &mut own.v_proj, &mut own.qkv_proj];
            inputs.into_iter().flatten().chain([&mut own.o_proj])
        });
        let of_recurrence = linear_attn.iter_mut().flat_map(|own| {
            [&mut own.in_proj_qkv, &mut own.in_proj_z, &mut own.in_proj_b, &mut own.in_proj_a, &mut own.out_proj]
        });
        let of_mlp = [&mut mlp.gate_proj, &mut mlp.up_proj, &mut mlp.gate_up_proj];
        of_attention.chain(of_recurrence).chain(of_mlp.into_iter().flatten()).chain([&mut mlp.down_proj])
    })
}

/// The keys of `adapter_config.json` that are used here.
#[derive(Debug, Deserialize)]
struct AdapterFile {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    target_modules: Value,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// Keys of PEFT that may have any value: they do not change what a trained adapter computes, or they are read here. All
/// other keys, including those of future PEFT versions, must be off.
const ALLOWED_KEYS: [&str; 19] = [
    "base_model_name_or_path",
    "task_type",
    "auto_mapping",
    "revision",
    "inference_mode",
    "peft_version",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "layers_pattern",
    "qalora_group_size",
    "runtime_config",
    "ensure_weight_tying",
    "eva_config",
    "loftq_config",
    INIT,
    RSLORA,
    SELECTIONS[0],
    SELECTIONS[1],
];
/// Keys that restrict `target_modules` to some of the modules.
const SELECTIONS: [&str; 2] = ["layers_to_transform", "exclude_modules"];
const RSLORA: &str = "use_rslora";
const INIT: &str = "init_lora_weights";
/// Values of `init_lora_weights` that leave the base weights unchanged. The others (PiSSA, OLoRA, CorDA, LoftQ,
/// LoRA-GA) train an adapter for a modified base, which differs from the one in the base's directory.
const INITS: [&str; 4] = ["gaussian", "orthogonal", "eva", "mica"];

/// Return whether a setting's value means that it is unused.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none",
        Value::Array(list) => list.is_empty(),
        Value::Object(table) => table.is_empty(),
        _ => false,
    }
}

/// The settings of an adapter's file.
struct Described {
    lora: LoraConfig,
    /// Names of the adapted modules, or ends of their paths; `None` if the file selects them by a pattern.
    listed: Option<Vec<String>>,
    base: PathBuf,
}

fn read(dir: &Path, weights: &CheckpointWeights) -> Result<Described> {
    let path = dir.join(CONFIG);
    let file: AdapterFile = files::read_json(&path)?;
    let mut problems = Vec::new();
    if file.peft_type != "LORA" {
        problems.push(format!("peft_type = \"{}\" is not supported (supported: LORA)", file.peft_type));
    }
    let on = file.rest.iter().filter(|(key, value)| !ALLOWED_KEYS.contains(&key.as_str()) && !is_off(value));
    problems.extend(on.map(|(key, value)| format!("{key} = {value} is not supported")));
    if !problems.is_empty() {
        problems.push(
            "merge the adapter with PEFT (`merge_and_unload()`, then `save_pretrained`) and use the merged model"
                .to_string(),
        );
    }
    let init = file.rest.get(INIT).unwrap_or(&Value::Null);
    if !(matches!(init, Value::Null | Value::Bool(_)) || init.as_str().is_some_and(|init| INITS.contains(&init))) {
        problems.push(format!(
            "{INIT} = {init} changes the base weights; convert the adapter with PEFT (`save_pretrained(…, \
             path_initial_model_for_weight_conversion=…)`) or merge it with PEFT"
        ));
    }
    let restricted = SELECTIONS.iter().any(|key| file.rest.get(*key).is_some_and(|value| !is_off(value)));
    let listed: Option<Vec<String>> = match &file.target_modules {
        // `all-linear` or a regular expression.
        Value::String(_) => None,
        list => serde_json::from_value(list.clone())
            .inspect_err(|_| {
                problems.push(format!("target_modules = {list} must be a list of module names or a pattern"));
            })
            .ok()
            .filter(|_| !restricted),
    };
    // A pattern is not evaluated: the tensors in the file show which modules it selected.
    let in_file =
        |name: &&str| weights.shapes().filter_map(|(tensor, _)| adapted_module(tensor)).any(|m| last(m) == *name);
    let target_modules = match &listed {
        Some(names) => names.iter().map(|name| last(name).to_string()).collect(),
        None => PROJECTIONS.into_iter().filter(in_file).map(str::to_string).collect(),
    };
    // rsLoRA (arXiv 2312.03732) multiplies the product by `lora_alpha / √r`.
    let by_root = file.rest.get(RSLORA).unwrap_or(&Value::Null);
    if !by_root.is_null() && !by_root.is_boolean() {
        problems.push(format!("{RSLORA} = {by_root} must be true or false"));
    }
    let lora_alpha = file.lora_alpha * if by_root.as_bool() == Some(true) { (file.r as f64).sqrt() } else { 1.0 };
    let lora = LoraConfig { r: file.r, lora_alpha, target_modules };
    problems.extend(lora.mistakes());
    if problems.is_empty() {
        Ok(Described { lora, listed, base: base(dir, ModelFiles::Whole)? })
    } else {
        Err(Error::Config { origin: path.display().to_string(), problems })
    }
}

/// Load the base model of the adapter in `dir` and attach the adapter, ready to be trained further or merged.
///
/// # Errors
/// As [`super::load`]; also lists every mismatch between adapter and base.
pub fn load(dir: &Path, device: &Device, precision: Precision) -> Result<(ModelConfig, CausalLm, LoraConfig)> {
    if !dir.join(WEIGHTS).is_file() {
        let message = format!(
            "has no {WEIGHTS}; pickled adapters are not supported, because reading them can run code: save the adapter \
             with PEFT's `save_pretrained(…, safe_serialization=True)`"
        );
        return Err(Error::file(dir, message));
    }
    let weights = CheckpointWeights::single(&dir.join(WEIGHTS))?;
    let Described { lora, listed, base } = read(dir, &weights)?;
    // Check the rank in the file before allocating adapters of this rank.
    let factors = weights.shapes().filter(|(name, _)| name.ends_with(LORA_A));
    let (right, wrong): (Vec<_>, Vec<_>) = factors.partition(|(_, shape)| shape.first() == Some(&lora.r));
    if right.is_empty() || !wrong.is_empty() {
        let describe = |(name, shape)| format!("{name} has shape {shape:?}, but r = {} in {CONFIG}", lora.r);
        let none = format!("has no LoRA matrices with r = {}", lora.r);
        let problems: Vec<String> = wrong.into_iter().map(describe).collect();
        return Err(weights.mismatch(if problems.is_empty() { std::slice::from_ref(&none) } else { &problems }));
    }
    let (config, model) = load_full(&base, device, precision, WeightFormat::below_adapters(precision, device))?;
    let is_adapted = |module: &String| match &listed {
        Some(names) => names.iter().any(|name| module == name || module.ends_with(&format!(".{name}"))),
        None => weights.has(&format!("{ADAPTER}{module}{LORA_A}")),
    };
    let chosen = modules(&model).into_iter().filter(is_adapted).collect();
    let model = lora.attach_to(model, chosen, 0);
    let wanted = names(&model).into_iter().filter(|(name, _)| name.starts_with(ADAPTER)).collect();
    let problems = weights.mismatches(&wanted, |_| false);
    if !problems.is_empty() {
        return Err(weights.mismatch(&problems));
    }
    Ok((config, weights.fill(model, WeightFormat::As(FloatDType::F32))?, lora))
}

/// Write the adapters of `model` into an existing directory. `base` is the directory of the base model or its name on
/// the Hub, which is written with its revision, as in PEFT.
///
/// # Errors
/// When a file cannot be written.
pub fn save(dir: &Path, model: &CausalLm, lora: &LoraConfig, base: &Path) -> Result<()> {
    let (base, revision) = match Name::of(RepoKind::Model, base)? {
        Some(name) => (name.repository.into(), name.revision),
        None => (std::path::absolute(base).map_err(Error::io(base))?, None),
    };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": revision,
        "r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "target_modules": targets_of(model),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    files::write_json(&dir.join(CONFIG), &config)?;
    let mut entries = entries(model);
    entries.retain(|entry| entry.name.starts_with(ADAPTER));
    tensors::write(&dir.join(WEIGHTS), Dtype::F32, &entries)
}
