//! Properties of the supported model families, and the configuration keys that override them.

use serde_json::Value;

use super::ModelConfig;
use super::tensors::Dtype;

/// Key of the number whose square root divides the attention scores, in families that have it.
const SCALAR: &str = "query_pre_attn_scalar";

/// Properties of a model family.
#[derive(Debug, PartialEq)]
pub(super) struct ModelFamily {
    /// `model_type` of its `config.json`.
    pub(super) name: &'static str,
    /// Class name in transformers.
    pub(super) class: &'static str,
    /// Default head width; `None` for `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    /// Biases of the attention projections.
    bias: Bias,
    /// Whether the key `mlp_bias` is used.
    mlp_bias: bool,
    /// Norms of queries and keys.
    qk_norm: HeadNorm,
    /// Positions of the norms in a block.
    norms: Norms,
    /// Whether norms multiply by `1 + weight`.
    unit_norms: bool,
    /// Activation of the feed-forward gate.
    pub(super) gate: Gate,
    /// Whether the embedding rows are multiplied by `√hidden_size`.
    scaled_embedding: bool,
    /// Default of `query_pre_attn_scalar`; `None` in a family without this key.
    query_scalar: Option<f64>,
    /// Whether queries, keys and values are one fused projection, and gate and up another.
    fused: bool,
    /// Whether only a part of each head may rotate.
    pub(super) partial: bool,
    /// Whether rotary settings may be of type `longrope`.
    pub(super) long_rope: bool,
    /// Whether published files name remote code (`auto_map`) for which transformers has a class of its own.
    pub(super) had_code: bool,
    /// Default base of the rotary frequencies; `None` if the file must give it.
    pub(super) theta: Option<f64>,
    /// Default base for layers with a window, in a family with separate rotary settings for the two kinds of layers.
    pub(super) local_theta: Option<f64>,
    /// Interval of layers without rotary positions, unless `no_rope_layers` lists them; 0 for none.
    pub(super) unrotated: usize,
    /// Whether queries are scaled by position, with `llama_4_scaling_beta`.
    scales_by_position: bool,
    /// Whether embedding, attention, residual sums and logits have multipliers.
    multipliers: bool,
    /// Layers with a sliding window.
    pub(super) windows: Windows,
    /// Whether the attention output has a gate, which is projected together with the queries.
    output_gate: bool,
    /// Whether layers may have a recurrence in place of attention.
    pub(super) delta: bool,
    /// Defaults of transformers for keys that files omit, as JSON.
    pub(super) defaults: &'static str,
}

/// Norms of queries and keys.
#[derive(Debug, PartialEq, Eq)]
enum HeadNorm {
    None,
    /// Each head separately.
    Each,
    /// All heads together.
    Whole,
}

/// Positions of the norms in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norms {
    /// Before attention and before the feed-forward network.
    Before,
    /// After each of them.
    After,
    /// Before and after each of them.
    Around,
}

/// Activation of the feed-forward gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Silu,
    /// GELU with the tanh approximation.
    Gelu,
}

impl Gate {
    /// Return the name in `config.json`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::Gelu => "gelu_pytorch_tanh",
        }
    }
}

/// Layers with a sliding window: they attend to the last `sliding_window` tokens only. The `Option` is its default.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Windows {
    None,
    /// All layers, if there is a window size.
    All(Option<u64>),
    /// If `use_sliding_window` is true: the layers marked in `layer_types`, else those from `max_window_layers` on or,
    /// in a family with layers without rotary positions, these layers.
    IfEnabled(Option<u64>),
    /// The layers marked in `layer_types`, else all but every n-th; the first field is n.
    AllBut(u64, Option<u64>),
}

/// Attention projections with a bias.
#[derive(Debug, PartialEq, Eq)]
enum Bias {
    None,
    /// Queries, keys and values.
    Inputs,
    /// All four, if `attention_bias` is true.
    IfEnabled,
}

const LLAMA: ModelFamily = ModelFamily {
    name: "llama",
    class: "LlamaForCausalLM",
    head_dim: None,
    bias: Bias::IfEnabled,
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

/// All families. Mistral's default window is that of its first version; files of later versions write null.
pub(super) const FAMILIES: [ModelFamily; 12] = [
    ModelFamily {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        bias: Bias::Inputs,
        mlp_bias: false,
        windows: Windows::IfEnabled(Some(4096)),
        ..LLAMA
    },
    ModelFamily {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        head_dim: Some(128),
        qk_norm: HeadNorm::Each,
        mlp_bias: false,
        windows: Windows::IfEnabled(Some(4096)),
        ..LLAMA
    },
    LLAMA,
    ModelFamily {
        name: "mistral",
        class: "MistralForCausalLM",
        bias: Bias::None,
        mlp_bias: false,
        windows: Windows::All(Some(4096)),
        ..LLAMA
    },
    ModelFamily {
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
    ModelFamily {
        name: "smollm3",
        class: "SmolLM3ForCausalLM",
        theta: Some(2e6),
        unrotated: 4,
        windows: Windows::IfEnabled(None),
        defaults: r#"{"tie_word_embeddings": true}"#,
        ..LLAMA
    },
    ModelFamily { name: "granite", class: "GraniteForCausalLM", multipliers: true, ..LLAMA },
    ModelFamily {
        name: "olmo2",
        class: "Olmo2ForCausalLM",
        mlp_bias: false,
        qk_norm: HeadNorm::Whole,
        norms: Norms::After,
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        ..LLAMA
    },
    ModelFamily {
        name: "olmo3",
        class: "Olmo3ForCausalLM",
        mlp_bias: false,
        qk_norm: HeadNorm::Whole,
        norms: Norms::After,
        theta: Some(5e5),
        local_theta: Some(5e5),
        windows: Windows::AllBut(4, Some(4096)),
        defaults: r#"{"rms_norm_eps": 1e-5}"#,
        ..LLAMA
    },
    ModelFamily {
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
        windows: Windows::AllBut(6, Some(4096)),
        defaults: r#"{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 131072, "tie_word_embeddings": true}"#,
        ..LLAMA
    },
    ModelFamily {
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
    ModelFamily {
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

/// Constant factors of Granite and Gemma; 1 elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Multipliers {
    /// Factor of the embedding rows.
    pub(super) embedding: f64,
    /// Factor of the outputs of attention and feed-forward network.
    pub(super) residual: f64,
    /// Factor of the attention scores, in place of `1 / √head_dim`.
    pub(super) attention: Option<f64>,
    /// Divisor of the logits.
    pub(super) logits: f64,
}

impl ModelConfig {
    pub(super) fn family(&self) -> Option<&'static ModelFamily> {
        FAMILIES.iter().find(|family| family.name == self.model_type)
    }

    /// Return the width of one head.
    pub fn head_dim(&self) -> usize {
        let own = self.family().and_then(|family| family.head_dim);
        self.head_dim.or(own).unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Return whether queries, keys and values have a bias, and whether the output projection of attention has one.
    pub(crate) fn attention_biases(&self) -> (bool, bool) {
        let asked = self.attention_bias.unwrap_or(false);
        match self.family().map(|family| &family.bias) {
            Some(Bias::Inputs) => (true, false),
            Some(Bias::IfEnabled) => (asked, asked),
            Some(Bias::None) | None => (false, false),
        }
    }

    /// Return whether the attention output has a gate.
    pub(crate) fn has_output_gate(&self) -> bool {
        self.family().is_some_and(|family| family.output_gate)
    }

    /// Return whether the feed-forward projections have a bias.
    pub(crate) fn has_mlp_bias(&self) -> bool {
        self.mlp_bias.unwrap_or(false) && self.family().is_some_and(|family| family.mlp_bias)
    }

    /// Return the widths of the query norm and the key norm; `None` without such norms.
    pub(crate) fn qk_norm_widths(&self) -> Option<[usize; 2]> {
        let heads = match self.family()?.qk_norm {
            HeadNorm::None => return None,
            HeadNorm::Each => [1, 1],
            HeadNorm::Whole => [self.num_attention_heads, self.num_key_value_heads],
        };
        Some(heads.map(|heads| heads * self.head_dim()))
    }

    /// Return the positions of the norms in a block.
    pub(super) fn norms(&self) -> Norms {
        self.family().map_or(Norms::Before, |family| family.norms)
    }

    /// Return the number of norms of width `hidden_size` in a block.
    pub(crate) fn norms_per_block(&self) -> usize {
        if self.norms() == Norms::Around { 4 } else { 2 }
    }

    /// Return whether norms multiply by `1 + weight`.
    pub(super) fn has_unit_norms(&self) -> bool {
        self.family().is_some_and(|family| family.unit_norms)
    }

    /// Return the activation of the feed-forward gate.
    pub(super) fn gate(&self) -> Gate {
        self.family().map_or(Gate::Silu, |family| family.gate)
    }

    /// Return whether projections with the same input are fused.
    pub(crate) fn is_fused(&self) -> bool {
        self.family().is_some_and(|family| family.fused)
    }

    /// Return the index of a layer's rotary settings; `None` without rotary positions.
    pub(super) fn rope_of(&self, layer: usize) -> Option<usize> {
        let local = self.family().is_some_and(|family| family.local_theta.is_some());
        self.rotates(layer).then(|| usize::from(local && self.slides(layer)))
    }

    /// Return whether a layer has rotary positions.
    pub(super) fn rotates(&self, layer: usize) -> bool {
        let Some(family) = self.family().filter(|family| family.unrotated > 0) else { return true };
        if let Some(layers) = self.rest.get("no_rope_layers").and_then(Value::as_array) {
            return layers.get(layer).is_some_and(|rotates| rotates.as_u64() != Some(0));
        }
        let interval = self.rest.get("no_rope_layer_interval").and_then(Value::as_u64);
        !(layer as u64 + 1).is_multiple_of(interval.unwrap_or(family.unrotated as u64))
    }

    /// Return whether queries are scaled by position.
    pub(super) fn scales_by_position(&self) -> bool {
        self.family().is_some_and(|family| family.scales_by_position)
    }

    /// Return the multipliers of this model.
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

    /// Return Gemma's `√hidden_size`, rounded to the stored format as in transformers: 33.94 becomes 34 in bfloat16.
    fn embedding_scale(&self) -> Option<f64> {
        let scale = (self.hidden_size as f64).sqrt();
        let rounded = match self.stored() {
            Some(Dtype::Bf16) => half::bf16::from_f64(scale).to_f64(),
            Some(Dtype::F16) => half::f16::from_f64(scale).to_f64(),
            Some(Dtype::F32) | None => f64::from(scale as f32),
        };
        self.family().filter(|family| family.scaled_embedding).map(|_| rounded)
    }

    /// Return one message per invalid key of the family.
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
                problems.push(format!("no_rope_layer_interval = {value} must be a positive integer"));
            }
        }
        problems.extend(self.delta_mistakes());
        problems.extend(self.window_mistakes());
        problems
    }
}
