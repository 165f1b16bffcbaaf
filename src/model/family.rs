//! What sets the families of models apart: one row of facts each, and what a configuration says beside them.

use serde_json::Value;

use super::ModelConfig;
use super::tensors::Dtype;

/// What products of queries and keys are divided by the root of, where a family has such a key.
const SCALAR: &str = "query_pre_attn_scalar";

/// The facts of a family.
#[derive(Debug, PartialEq)]
pub(super) struct Family {
    /// `model_type` of its `config.json`.
    pub(super) name: &'static str,
    /// Its class in transformers.
    pub(super) class: &'static str,
    /// Width of a head where the file names none; otherwise `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    /// Biases of the projections of attention.
    bias: Bias,
    /// Whether `mlp_bias` counts.
    mlp_bias: bool,
    /// What normalises queries and keys.
    qk_norm: HeadNorm,
    /// Where the norms of a block are.
    norms: Norms,
    /// Whether norms multiply by 1 + weight.
    unit_norms: bool,
    /// The gate's activation.
    pub(super) gate: Gate,
    /// Whether the embedding's rows are multiplied by `√hidden_size`.
    scaled_embedding: bool,
    /// What `query_pre_attn_scalar` is where the file is silent on it, in a family that divides by its root.
    query_scalar: Option<f64>,
    /// Whether the projections of queries, keys and values are one matrix, and those of gate and up another.
    fused: bool,
    /// Whether a part of a head may rotate.
    pub(super) partial: bool,
    /// Whether rotary settings may be those of `longrope`.
    pub(super) long_rope: bool,
    /// Whether published files name code (`auto_map`) in whose place transformers has a class of its own.
    pub(super) had_code: bool,
    /// Base of the rotary frequencies where the file names none; none where it must.
    pub(super) theta: Option<f64>,
    /// The same of layers with a window, in a family whose two kinds of layers have rotary settings of their own.
    pub(super) local_theta: Option<f64>,
    /// Every so many layers one does not rotate, where `no_rope_layers` does not say which; 0 for none.
    pub(super) unrotated: usize,
    /// Whether queries grow with their position, by `llama_4_scaling_beta`.
    scales_by_position: bool,
    /// Whether the embedding, the attention, the sums and the logits have multipliers.
    multipliers: bool,
    /// Which layers attend within a window.
    pub(super) windows: Windows,
    /// Whether queries come with a gate of what attention gives.
    output_gate: bool,
    /// Whether layers may have a recurrence in the place of attention.
    pub(super) delta: bool,
    /// Keys that files leave out, with the values transformers gives them.
    pub(super) defaults: &'static str,
}

/// What normalises queries and keys.
#[derive(Debug, PartialEq, Eq)]
enum HeadNorm {
    None,
    /// Each head by itself.
    Each,
    /// All heads together.
    Whole,
}

/// Where the norms of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norms {
    /// Before attention and before the feed-forward part.
    Before,
    /// After each.
    After,
    /// Before and after each.
    Around,
}

/// The activation of the feed-forward part's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Silu,
    /// The GELU with the hyperbolic tangent.
    Gelu,
}

impl Gate {
    /// Its name in `config.json`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu_pytorch_tanh",
        }
    }
}

/// Which layers attend to the last tokens only, `sliding_window` of them; the number is that where the file is silent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Windows {
    None,
    /// All, where there is a number at all.
    All(Option<u64>),
    /// Where `use_sliding_window` says so: those of `layer_types`, else from `max_window_layers` on or, in a family that has some,
    /// the layers that do not rotate.
    Asked(Option<u64>),
    /// Those of `layer_types`, else all but every so many-th.
    But(u64, Option<u64>),
}

/// Which projections of attention have a bias.
#[derive(Debug, PartialEq, Eq)]
enum Bias {
    None,
    /// Queries, keys and values.
    Inputs,
    /// All four, where `attention_bias` says so.
    Asked,
}

const LLAMA: Family = Family {
    name: "llama",
    class: "LlamaForCausalLM",
    head_dim: None,
    bias: Bias::Asked,
    mlp_bias: true,
    qk_norm: HeadNorm::None,
    norms: Norms::Before,
    unit_norms: false,
    gate: Gate::Silu,
    scaled_embedding: false,
    query_scalar: None,
    fused: false,
    partial: false,
    long_rope: false,
    had_code: false,
    theta: Some(10_000.0),
    local_theta: None,
    unrotated: 0,
    scales_by_position: false,
    multipliers: false,
    windows: Windows::None,
    output_gate: false,
    delta: false,
    defaults: "{}",
};

/// All families. Mistral's window is that of its first version; later ones write null.
pub(super) const FAMILIES: [Family; 12] = [
    Family {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        bias: Bias::Inputs,
        mlp_bias: false,
        windows: Windows::Asked(Some(4096)),
        ..LLAMA
    },
    Family {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        head_dim: Some(128),
        qk_norm: HeadNorm::Each,
        mlp_bias: false,
        windows: Windows::Asked(Some(4096)),
        ..LLAMA
    },
    LLAMA,
    Family {
        name: "mistral",
        class: "MistralForCausalLM",
        bias: Bias::None,
        mlp_bias: false,
        windows: Windows::All(Some(4096)),
        ..LLAMA
    },
    Family {
        name: "ministral3",
        class: "Ministral3ForCausalLM",
        head_dim: Some(128),
        bias: Bias::None,
        mlp_bias: false,
        theta: None,
        scales_by_position: true,
        windows: Windows::All(None),
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        ..LLAMA
    },
    Family {
        name: "smollm3",
        class: "SmolLM3ForCausalLM",
        theta: Some(2e6),
        unrotated: 4,
        windows: Windows::Asked(None),
        defaults: r#"{"tie_word_embeddings": true}"#,
        ..LLAMA
    },
    Family { name: "granite", class: "GraniteForCausalLM", multipliers: true, ..LLAMA },
    Family {
        name: "olmo2",
        class: "Olmo2ForCausalLM",
        mlp_bias: false,
        qk_norm: HeadNorm::Whole,
        norms: Norms::After,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        ..LLAMA
    },
    Family {
        name: "olmo3",
        class: "Olmo3ForCausalLM",
        mlp_bias: false,
        qk_norm: HeadNorm::Whole,
        norms: Norms::After,
        theta: Some(5e5),
        local_theta: Some(5e5),
        windows: Windows::But(4, Some(4096)),
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        ..LLAMA
    },
    Family {
        name: "gemma3_text",
        class: "Gemma3ForCausalLM",
        head_dim: Some(256),
        mlp_bias: false,
        qk_norm: HeadNorm::Each,
        norms: Norms::Around,
        unit_norms: true,
        gate: Gate::Gelu,
        scaled_embedding: true,
        query_scalar: Some(256.0),
        theta: Some(1e6),
        local_theta: Some(1e4),
        windows: Windows::But(6, Some(4096)),
        defaults: r#"{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 131072, "tie_word_embeddings": true}"#,
        ..LLAMA
    },
    Family {
        name: "phi3",
        class: "Phi3ForCausalLM",
        bias: Bias::None,
        mlp_bias: false,
        fused: true,
        partial: true,
        long_rope: true,
        had_code: true,
        windows: Windows::All(None),
        defaults: r#"{"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}"#,
        ..LLAMA
    },
    Family {
        name: "qwen3_5_text",
        class: "Qwen3_5ForCausalLM",
        head_dim: Some(256),
        mlp_bias: false,
        qk_norm: HeadNorm::Each,
        unit_norms: true,
        partial: true,
        output_gate: true,
        delta: true,
        defaults: r#"{"partial_rotary_factor": 0.25}"#,
        ..LLAMA
    },
];

/// Factors of Granite and Gemma; 1 elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Multipliers {
    /// Of the embedding's rows.
    pub(super) embedding: f64,
    /// Of what attention and the feed-forward part add to the stream.
    pub(super) residual: f64,
    /// Of the products of queries and keys, in the place of `1 / √head_dim`.
    pub(super) attention: Option<f64>,
    /// What the logits are divided by.
    pub(super) logits: f64,
}

impl ModelConfig {
    pub(super) fn family(&self) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.name == self.model_type)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        let own = self.family().and_then(|family| family.head_dim);
        self.head_dim.or(own).unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Whether queries, keys and values have a bias, and whether the output projection of attention has one.
    pub(crate) fn attention_biases(&self) -> (bool, bool) {
        let asked = self.attention_bias.unwrap_or(false);
        match self.family().map(|family| &family.bias) {
            Some(Bias::Inputs) => (true, false),
            Some(Bias::Asked) => (asked, asked),
            Some(Bias::None) | None => (false, false),
        }
    }

    /// Whether queries come with a gate of what attention gives.
    pub(crate) fn has_output_gate(&self) -> bool {
        self.family().is_some_and(|family| family.output_gate)
    }

    /// Whether the feed-forward projections have a bias.
    pub(crate) fn has_mlp_bias(&self) -> bool {
        self.mlp_bias.unwrap_or(false) && self.family().is_some_and(|family| family.mlp_bias)
    }

    /// Widths of what the norms of queries and of keys take together; none without such norms.
    pub(crate) fn qk_norm_widths(&self) -> Option<[usize; 2]> {
        let heads = match self.family()?.qk_norm {
            HeadNorm::None => return None,
            HeadNorm::Each => [1, 1],
            HeadNorm::Whole => [self.num_attention_heads, self.num_key_value_heads],
        };
        Some(heads.map(|heads| heads * self.head_dim()))
    }

    /// Where the norms of a block are.
    pub(super) fn norms(&self) -> Norms {
        self.family().map_or(Norms::Before, |family| family.norms)
    }

    /// How many norms as wide as the model a block has.
    pub(crate) fn norms_per_block(&self) -> usize {
        if self.norms() == Norms::Around { 4 } else { 2 }
    }

    /// Whether norms multiply by 1 + weight.
    pub(super) fn has_unit_norms(&self) -> bool {
        self.family().is_some_and(|family| family.unit_norms)
    }

    /// The gate's activation.
    pub(super) fn gate(&self) -> Gate {
        self.family().map_or(Gate::Silu, |family| family.gate)
    }

    /// Whether projections that read the same are one matrix.
    pub(crate) fn is_fused(&self) -> bool {
        self.family().is_some_and(|family| family.fused)
    }

    /// Which of the model's rotary settings a layer has; none where it does not rotate.
    pub(super) fn rope_of(&self, layer: usize) -> Option<usize> {
        let local = self.family().is_some_and(|family| family.local_theta.is_some());
        self.rotates(layer).then(|| usize::from(local && self.slides(layer)))
    }

    /// Whether a layer rotates its queries and keys by their positions.
    pub(super) fn rotates(&self, layer: usize) -> bool {
        let Some(family) = self.family().filter(|family| family.unrotated > 0) else { return true };
        if let Some(layers) = self.rest.get("no_rope_layers").and_then(Value::as_array) {
            return layers.get(layer).is_some_and(|rotates| rotates.as_u64() != Some(0));
        }
        let interval = self.rest.get("no_rope_layer_interval").and_then(Value::as_u64);
        !(layer as u64 + 1).is_multiple_of(interval.unwrap_or(family.unrotated as u64))
    }

    /// Whether queries grow with their position.
    pub(super) fn scales_by_position(&self) -> bool {
        self.family().is_some_and(|family| family.scales_by_position)
    }

    /// The factors of this model.
    pub(super) fn multipliers(&self) -> Multipliers {
        let given = self.family().is_some_and(|family| family.multipliers);
        let number = |key: &str| self.rest.get(key).and_then(Value::as_f64).filter(|_| given);
        let scalar = self.family().and_then(|family| family.query_scalar);
        let scalar = scalar.map(|own| self.rest.get(SCALAR).and_then(Value::as_f64).unwrap_or(own));
        let attention = given.then(|| number("attention_multiplier").unwrap_or(1.0));
        Multipliers {
            embedding: self.embedding_scale().or(number("embedding_multiplier")).unwrap_or(1.0),
            residual: number("residual_multiplier").unwrap_or(1.0),
            attention: attention.or(scalar.map(|scalar| scalar.powf(-0.5))),
            logits: number("logits_scaling").unwrap_or(1.0),
        }
    }

    /// Gemma's `√hidden_size`, rounded to the stored precision as transformers does: 33.94 becomes 34 in bfloat16.
    fn embedding_scale(&self) -> Option<f64> {
        let scale = (self.hidden_size as f64).sqrt();
        let rounded = match self.stored() {
            Some(Dtype::Bf16) => half::bf16::from_f64(scale).to_f64(),
            Some(Dtype::F16) => half::f16::from_f64(scale).to_f64(),
            Some(Dtype::F32) | None => f64::from(scale as f32),
        };
        self.family().filter(|family| family.scaled_embedding).map(|_| rounded)
    }

    /// What is wrong with the keys of a family, one line each.
    pub(super) fn family_mistakes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let given = |key: &str| self.rest.get(key).filter(|value| !value.is_null());
        let positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0 && number.is_finite());
        if self.family().is_some_and(|family| family.multipliers) {
            for key in ["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"] {
                if let Some(value) = given(key).filter(|value| !positive(value)) {
                    problems.push(format!("{key} = {value} must be a positive number"));
                }
            }
        }
        if let Some(value) = given(SCALAR).filter(|value| !positive(value)) {
            problems.push(format!("{SCALAR} = {value} must be a positive number"));
        }
        if self.family().is_some_and(|family| family.unrotated > 0) {
            if let Some(value) = given("no_rope_layers") {
                let marks =
                    value.as_array().filter(|list| list.iter().all(|mark| matches!(mark.as_u64(), Some(0 | 1))));
                if marks.is_none_or(|marks| marks.len() < self.num_hidden_layers) {
                    problems.push(format!("no_rope_layers = {value} must have a 0 or a 1 for each layer"));
                }
            }
            if let Some(value) =
                given("no_rope_layer_interval").filter(|value| value.as_u64().is_none_or(|every| every == 0))
            {
                problems.push(format!("no_rope_layer_interval = {value} must be a positive whole number"));
            }
        }
        problems.extend(self.delta_mistakes());
        problems.extend(self.window_mistakes());
        problems
    }
}
