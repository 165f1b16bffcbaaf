//! Estimates of the memory and of the operations that training needs, computed from the configuration before anything
//! is allocated.
//!
//! Counts the allocations of a step on the `cpu` device: weights, optimiser state, KV cache, gradients, activations
//! kept for the backward pass, and the chunk of logits in the head. The allocator does not return freed pages, so
//! sampling and training do not share memory.

use std::fmt;

use serde::Serialize;

use crate::model::tensors::Dtype;
use crate::model::{LoraConfig, ModelConfig};
use crate::threads;
use crate::train::learner::ActivationCheckpointing;
use crate::train::{StepSize, Workload};

/// Memory in bytes, by use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Weights, including adapters and a reference model: f32, or bf16 if they are frozen and the checkpoint is bf16.
    pub weights: usize,
    /// One gradient per trained weight; of a small model, two more for each thread.
    pub gradients: usize,
    /// Two moments per trained weight.
    pub optimizer: usize,
    /// Activations that blocks keep for the backward pass, and temporary memory of one block's backward pass.
    pub activations: usize,
    /// A chunk of logits, and the head gradient of a chunk if there are several chunks.
    pub head: usize,
    /// KV cache, and copies of weights made for sampling: converted, or with adapters merged.
    pub cache: usize,
    /// The process itself: code, tokenizer, threads.
    pub program: usize,
}

const F32: usize = 4;
const BF16: usize = 2;

/// Resident memory of a process without a model (24 MiB) and the allocator's overhead (30 MiB), measured over models of
/// 0.1 M to 494 M parameters (LOG.md).
const PROGRAM: usize = 54 << 20;

/// Return name, input width and output width of each matrix of a block.
fn projections(config: &ModelConfig, layer: usize) -> Vec<(&'static str, usize, usize)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = widths(config);
    let queries = if config.has_output_gate() { 2 * q } else { q };
    let mut all = match config.delta().filter(|_| config.is_recurrent(layer)) {
        Some((heads, _)) => {
            let [queries, keys, values] = heads.widths();
            vec![
                ("in_proj_qkv", hidden, queries + keys + values),
                ("in_proj_z", hidden, values),
                ("in_proj_b", hidden, heads.values),
                ("in_proj_a", hidden, heads.values),
                ("out_proj", values, hidden),
            ]
        }
        None if config.is_fused() => vec![("qkv_proj", hidden, q + 2 * kv), ("o_proj", q, hidden)],
        None => {
            vec![("q_proj", hidden, queries), ("k_proj", hidden, kv), ("v_proj", hidden, kv), ("o_proj", q, hidden)]
        }
    };
    let gate: &[_] = if config.is_fused() {
        &[("gate_up_proj", hidden, 2 * inner)]
    } else {
        &[("gate_proj", hidden, inner), ("up_proj", hidden, inner)]
    };
    all.extend(gate);
    all.push(("down_proj", inner, hidden));
    all
}

/// Return the number of weights in the matrices of all blocks.
fn matrices(config: &ModelConfig) -> usize {
    let of = |layer| projections(config, layer).iter().map(|(_, input, output)| input * output).sum::<usize>();
    (0..config.num_hidden_layers).map(of).sum()
}

/// Return the number of weights in the norms, biases and convolutions of a block.
fn vectors(config: &ModelConfig, layer: usize) -> usize {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = widths(config);
    let shared = config.norms_per_block() * hidden + if config.has_mlp_bias() { 2 * inner + hidden } else { 0 };
    if let Some((heads, taps)) = config.delta().filter(|_| config.is_recurrent(layer)) {
        return shared + heads.widths().iter().sum::<usize>() * taps + 2 * heads.values + heads.value_dim;
    }
    let (bias, output_bias) = config.attention_biases();
    let queries = if config.has_output_gate() { 2 * q } else { q };
    let biases = if bias { queries + 2 * kv } else { 0 } + if output_bias { hidden } else { 0 };
    shared + biases + config.qk_norm_widths().map_or(0, |widths| widths.iter().sum())
}

/// Return the total widths of the query heads and of the key heads.
fn widths(config: &ModelConfig) -> (usize, usize) {
    (config.num_attention_heads * config.head_dim(), config.num_key_value_heads * config.head_dim())
}

/// Return the number of weights of a model.
pub fn parameters(config: &ModelConfig) -> usize {
    let tables = if config.tie_word_embeddings { 1 } else { 2 };
    let vectors: usize = (0..config.num_hidden_layers).map(|layer| vectors(config, layer)).sum();
    tables * config.vocab_size * config.hidden_size + matrices(config) + vectors + config.hidden_size
}

/// Return the number of weights of the adapters, and of the matrices that have an adapter.
fn adapters(config: &ModelConfig, lora: &LoraConfig) -> (usize, usize) {
    let adapted = (0..config.num_hidden_layers).flat_map(|layer| adapted(config, layer, lora));
    adapted.fold((0, 0), |(factors, matrices), (input, output)| {
        (factors + lora.r * (input + output), matrices + input * output)
    })
}

/// Return input and output width of each matrix of a block that has an adapter.
fn adapted(config: &ModelConfig, layer: usize, lora: &LoraConfig) -> Vec<(usize, usize)> {
    let targets = lora.meant(config.is_fused());
    let shapes = projections(config, layer).into_iter().filter(|(name, ..)| targets.contains(*name));
    shapes.map(|(_, input, output)| (input, output)).collect()
}

/// Return the number of values per token that a block keeps for the backward pass.
fn kept(config: &ModelConfig, layer: usize, work: &Workload) -> usize {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = widths(config);
    // Gate, up and (except in f32) their product; input, outputs of two norms, first residual; outputs of LoRA A.
    let gated = if work.precision.is_short() { 3 } else { 2 };
    let low = work.lora.as_ref().map_or(0, |lora| lora.r * adapted(config, layer, lora).len());
    let shared = 4 * hidden + gated * inner + low;
    if let Some((heads, _)) = config.delta().filter(|_| config.is_recurrent(layer)) {
        // Input and output of the convolution; queries and keys as read; values, output, its norm, gate, gated output.
        let [queries, keys, values] = heads.widths();
        return shared + 2 * (queries + keys + values) + queries + keys + 5 * values + 4 * heads.values;
    }
    // Queries, keys, values, attention output; with an output gate: queries with gates, gates, gated output.
    let normed = if config.qk_norm_widths().is_some() { q + kv } else { 0 };
    let gate = if config.has_output_gate() { 3 * q } else { 0 };
    shared + 2 * q + 2 * kv + normed + gate
}

/// Estimate the memory of training a model with the given workload.
pub fn memory(config: &ModelConfig, work: &Workload) -> MemoryEstimate {
    let (layers, hidden, inner) = (config.num_hidden_layers, config.hidden_size, config.intermediate_size);
    let (q, _) = widths(config);
    let whole = parameters(config);
    let (factors, adapted) = work.lora.as_ref().map_or((0, 0), |lora| adapters(config, lora));
    let trained = if work.lora.is_some() { factors } else { whole };

    let of_each: Vec<usize> = (0..layers).map(|layer| kept(config, layer, work)).collect();
    let largest = of_each.iter().copied().max().unwrap_or(0);
    // Temporary memory while one block runs backward: gradients of gate, up and their product, and of the heads.
    let mixing = config.delta().map_or(0, |(heads, _)| heads.widths().iter().sum::<usize>()).max(q);
    let passing = 3 * inner + 4 * mixing + 2 * hidden;
    let all = work.learner.activation_checkpointing == ActivationCheckpointing::None;
    let of_blocks = if all { of_each.iter().sum() } else { layers * hidden + largest };

    // A small model computes parts of a micro-batch, each with gradients of its own; as many may wait to be added.
    let (tokens, completion_tokens, parts, gradients) = if whole <= threads::MAX_PARAMETERS {
        let (part, at_once) = work.learner.largest_part(work.longest);
        let parts = at_once.min(work.threads);
        (work.tokens.min(part * parts), work.completion_tokens.min(part * parts), parts, 1 + 2 * parts)
    } else {
        (work.tokens, work.completion_tokens, 1, 1)
    };
    let most = (work.learner.logits / config.vocab_size).max(1);
    let rows = completion_tokens.min(most * parts);
    let head_gradient =
        if completion_tokens > most * parts && work.lora.is_none() { parts * config.vocab_size * hidden } else { 0 };
    // Frozen weights of a bf16 checkpoint stay in bf16. Then no matrix is merged or converted.
    let short = config.stored() == Some(Dtype::Bf16);
    let held = if short { BF16 } else { F32 };
    let (base, reference) = match &work.lora {
        Some(_) => (held * whole, 0),
        None => (F32 * whole, if work.reference { held * whole } else { 0 }),
    };
    let merged = if short { 0 } else { F32 * adapted };
    // The KV cache is bf16 only if sampling has a format of its own.
    let number = if work.sampled_in == work.precision { F32 } else { BF16 };
    let converted = if !work.sampled_in.is_short() || (short && work.lora.is_some()) {
        0
    } else {
        2 * (matrices(config) + config.vocab_size * hidden)
    };
    MemoryEstimate {
        weights: base + F32 * factors + reference,
        gradients: F32 * trained * gradients,
        optimizer: 2 * work.moments.bytes() * trained,
        activations: F32 * tokens * (of_blocks + passing),
        head: F32 * (rows * config.vocab_size + head_gradient + 3 * completion_tokens * hidden),
        cache: work.cache.map_or(0, |cache| cache.bytes(config, number) + merged) + converted,
        program: PROGRAM,
    }
}

/// Return the floating-point operations of passes over a sequence, with `per_weight` operations for each weight and
/// token: 2 forward, 4 backward. The head only runs on rows that predict completion tokens.
pub fn operations(config: &ModelConfig, tokens: usize, completion_tokens: usize, per_weight: usize) -> f64 {
    let tokens = tokens as f64;
    let head = (config.vocab_size * config.hidden_size) as f64;
    let tables = if config.tie_word_embeddings { 1.0 } else { 2.0 };
    let blocks = parameters(config) as f64 - tables * head;
    let width = (config.num_attention_heads * config.head_dim() * config.num_hidden_layers) as f64;
    // Attention: a product for the scores and one for the mixture, each over the causal half of the square.
    per_weight as f64 * (blocks * tokens + head * completion_tokens as f64 + tokens * tokens * width)
}

/// Return the floating-point operations of a step: of sampling, unless servers sample, and of training. Frozen weights
/// have no gradient, and recomputed blocks run forward twice.
pub fn step_operations(config: &ModelConfig, work: &Workload, size: &StepSize) -> f64 {
    let sampling = if work.cache.is_some() { 2 } else { 0 };
    let training = if work.lora.is_some() { 4 } else { 6 };
    let again = if work.learner.activation_checkpointing == ActivationCheckpointing::Block { 2 } else { 0 };
    let per_weight = sampling + size.passes * (training + again);
    size.sequences as f64 * operations(config, size.tokens, size.completion_tokens, per_weight)
}

impl MemoryEstimate {
    /// Return the peak: the sum plus 10% of what each step allocates, for fragmentation (measured: LOG.md).
    pub fn peak(&self) -> usize {
        let passing = self.gradients + self.activations + self.head + self.cache;
        self.program + self.weights + self.optimizer + passing + passing / 10
    }
}

/// Writes a table in GiB, one line per use.
impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("head", self.head),
            ("KV cache", self.cache),
            ("program", self.program),
            ("peak", self.peak()),
        ];
        for (name, bytes) in lines {
            writeln!(f, "{name:<12}{:>9.3} GiB", bytes as f64 / f64::from(1 << 30))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::Precision;
    use crate::model::{CacheShape, CausalLm, names};
    use crate::optim::Moments;
    use crate::train::learner::Learner;

    fn config() -> ModelConfig {
        ModelConfig::qwen2(64, 16, 32, 3, 4, 2)
    }

    /// Return a model with fused projections, and one with recurrent layers.
    fn others() -> [ModelConfig; 2] {
        let of = |name: &str, rest: serde_json::Value| {
            let mut config = ModelConfig { model_type: name.to_string(), head_dim: Some(8), ..config() };
            config.rest.extend(rest.as_object().cloned().unwrap_or_default());
            config
        };
        let sizes = serde_json::json!({"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
            "linear_value_head_dim": 5, "full_attention_interval": 2});
        let biased = ModelConfig { attention_bias: Some(true), ..of("qwen3_5_text", sizes) };
        [of("phi3", serde_json::Value::Null), biased]
    }

    fn work() -> Workload {
        Workload {
            tokens: 100,
            completion_tokens: 80,
            longest: 25,
            threads: 1,
            learner: Learner::default(),
            precision: Precision::F32,
            sampled_in: Precision::F32,
            moments: Moments::F32,
            lora: None,
            cache: None,
            reference: false,
        }
    }

    /// A small model is computed in parts of a micro-batch, as many at a time as there are threads, each with a gradient.
    #[test]
    fn threads_compute_parts_of_small_models() {
        let tokens = 8192;
        let of = |threads, longest| {
            memory(&config(), &Workload { tokens, completion_tokens: tokens, longest, threads, ..work() })
        };
        let [one, four, long] = [of(1, 25), of(4, 25), of(4, 4096)];
        assert_eq!(one.gradients, four.gradients / 3);
        assert_eq!(four.activations, 4 * one.activations);
        // Two sequences of 4,096 tokens make a micro-batch of 8,192.
        assert_eq!((long.activations, 3 * long.gradients), (16 * one.activations, 5 * one.gradients));
    }

    #[test]
    fn parameters_are_those_of_the_model() {
        let mut untied = config();
        untied.tie_word_embeddings = false;
        for config in [config(), untied].into_iter().chain(others()) {
            let model = CausalLm::random(&config, 0, &Device::flex());
            let counted: usize = names(&model).values().map(|shape| shape.iter().product::<usize>()).sum();
            assert_eq!(parameters(&config), counted);
        }
    }

    #[test]
    fn adapters_are_those_of_the_model() {
        let mut lora = LoraConfig { r: 3, ..LoraConfig::default() };
        lora.target_modules.extend(["in_proj_qkv", "in_proj_b", "out_proj"].map(str::to_string));
        for config in [config()].into_iter().chain(others()) {
            let model = lora.attach(CausalLm::random(&config, 0, &Device::flex()), 0);
            let factors = names(&model).into_iter().filter(|(name, _)| name.contains("lora_"));
            let counted: usize = factors.map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert_eq!(adapters(&config, &lora).0, counted, "{}", config.model_type);
        }
    }

    #[test]
    fn operations_are_those_of_the_passes_of_a_step() {
        let cache = Some(CacheShape { prompts: 1, prompt_length: 8, completions: 1, completion_length: 8 });
        let learner = Learner { activation_checkpointing: ActivationCheckpointing::Block, ..Learner::default() };
        let of = |work: &Workload, passes: usize| {
            let size = StepSize { sequences: 3, tokens: 20, completion_tokens: 15, passes };
            step_operations(&config(), work, &size) / (3.0 * operations(&config(), 20, 15, 1))
        };
        assert_eq!(of(&work(), 1), 6.0);
        assert_eq!(of(&Workload { cache, ..work() }, 2), 14.0);
        assert_eq!(of(&Workload { lora: Some(LoraConfig::default()), ..work() }, 1), 4.0);
        assert_eq!(of(&Workload { learner, ..work() }, 1), 8.0);
    }

    #[test]
    fn what_saves_memory_is_seen_to() {
        let base = memory(&config(), &work());
        let learner =
            |activation_checkpointing, logits| Learner { activation_checkpointing, logits, ..Learner::default() };
        let block = Workload { learner: learner(ActivationCheckpointing::Block, 10 * 64), ..work() };
        let block = memory(&config(), &block);
        assert!(block.activations < base.activations);
        // Ten rows of logits and a second head gradient, instead of 80 rows.
        assert_eq!(base.head - block.head, 4 * (80 - 10) * 64 - 4 * 64 * 16);
        let halves = memory(&config(), &Workload { moments: Moments::Bf16, ..work() });
        assert_eq!(2 * halves.optimizer, base.optimizer);
        let lora = memory(&config(), &Workload { lora: Some(LoraConfig { r: 1, ..LoraConfig::default() }), ..work() });
        assert!(lora.gradients + lora.optimizer < base.optimizer / 3, "{lora:?}");
        // Sampling holds a merged copy of every matrix that has an adapter.
        let cache = Some(CacheShape { prompts: 1, prompt_length: 8, completions: 1, completion_length: 8 });
        let lora = memory(&config(), &Workload { lora: Some(LoraConfig::default()), cache, ..work() });
        let full = memory(&config(), &Workload { cache, ..work() });
        assert_eq!(lora.cache - full.cache, 4 * adapters(&config(), &LoraConfig::default()).1);
        // A bf16 checkpoint needs no merged copies, and half the memory for weights.
        let published = ModelConfig { torch_dtype: Some("bfloat16".to_string()), ..config() };
        let short = memory(&published, &Workload { lora: Some(LoraConfig::default()), cache, ..work() });
        assert_eq!((short.cache, short.gradients), (full.cache, lora.gradients));
        assert_eq!(lora.weights - short.weights, 2 * parameters(&config()));
        // Sampling in bf16: a copy of the weights with two bytes each, and half the KV cache.
        let sampled = memory(&config(), &Workload { sampled_in: Precision::Bf16, cache, ..work() });
        let keys = cache.map_or(0, |cache| cache.bytes(&config(), 4));
        assert_eq!(sampled.cache + keys / 2, full.cache + 2 * (super::matrices(&config()) + 64 * 16));
    }
}
