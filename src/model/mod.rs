//! A Qwen2-style decoder, configured by Hugging Face `config.json`, with weights under Hugging Face names.

mod attention;
mod cache;
mod decoder;
mod params;
mod pretrained;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use cache::{CacheShape, KvCache};
pub use decoder::CausalLm;
pub(crate) use params::Path as ParamPath;
pub use params::{collect, names};
pub use pretrained::{load, save};

use crate::error::{Error, Result};

/// The architecture, with the keys of Hugging Face `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Class names; written as `["Qwen2ForCausalLM"]`.
    #[serde(default = "architectures")]
    pub architectures: Vec<String>,
    /// Family; only `qwen2` is supported.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the SwiGLU block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Activation of the gate; only `silu`.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Longest sequence, in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// Added to the mean square in RMSNorm.
    #[serde(default = "rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Whether the head shares the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Standard deviation of freshly initialised weights.
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
    /// End-of-turn ids: one or a list, as Hugging Face allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<serde_json::Value>,
    /// Padding id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_token_id: Option<u32>,
    /// Stored precision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch_dtype: Option<String>,
    /// Sliding-window attention; refused when in use.
    #[serde(default)]
    pub use_sliding_window: bool,
    /// Rotary scaling; refused when set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<serde_json::Value>,
    /// Rotary settings as newer `transformers` versions nest them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<RopeParameters>,
}

/// `rope_parameters` of newer `config.json` files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RopeParameters {
    /// Base of the rotary frequencies.
    pub rope_theta: Option<f64>,
    /// Scaling type; only `default` is supported.
    pub rope_type: Option<String>,
}

fn architectures() -> Vec<String> {
    vec!["Qwen2ForCausalLM".to_string()]
}
fn silu() -> String {
    "silu".to_string()
}
fn rope_theta() -> f64 {
    10_000.0
}
fn rms_norm_eps() -> f64 {
    1e-6
}
fn initializer_range() -> f64 {
    0.02
}

/// The model without autodiff: for generation, where a recorded graph would never be freed.
pub(crate) fn without_autodiff(model: &CausalLm) -> CausalLm {
    burn::module::Module::valid(model)
}

impl ModelConfig {
    /// A Qwen2 configuration of the given shape with a tied head and the family's other defaults.
    pub fn qwen2(
        vocab: usize,
        hidden: usize,
        intermediate: usize,
        layers: usize,
        heads: usize,
        kv_heads: usize,
    ) -> Self {
        Self {
            architectures: architectures(),
            model_type: "qwen2".to_string(),
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            hidden_act: silu(),
            max_position_embeddings: 1024,
            rope_theta: rope_theta(),
            rms_norm_eps: rms_norm_eps(),
            tie_word_embeddings: true,
            initializer_range: initializer_range(),
            eos_token_id: None,
            pad_token_id: None,
            torch_dtype: Some("float32".to_string()),
            use_sliding_window: false,
            rope_scaling: None,
            rope_parameters: None,
        }
    }

    /// Reads `dir/config.json` and refuses what this decoder does not compute.
    ///
    /// # Errors
    /// A missing or malformed file, or an unsupported setting, with key, value and reason.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let mut config: Self = serde_json::from_str(&text).map_err(|error| Error::file(&path, error))?;
        if let Some(theta) = config.rope_parameters.take_if(|p| p.rope_type.as_deref().is_none_or(|t| t == "default")) {
            config.rope_theta = theta.rope_theta.unwrap_or(config.rope_theta);
        }
        let problems = config.problems();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(Error::Config { origin: path.display().to_string(), problems })
        }
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// What this decoder cannot compute in this configuration; empty when all is well.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut refuse = |bad: bool, problem: String| {
            if bad {
                problems.push(problem);
            }
        };
        let [heads, kv] = [self.num_attention_heads, self.num_key_value_heads];
        refuse(self.model_type != "qwen2", format!("model_type = \"{}\" is not supported (qwen2 is)", self.model_type));
        refuse(self.hidden_act != "silu", format!("hidden_act = \"{}\" is not supported (silu is)", self.hidden_act));
        refuse(self.use_sliding_window, "use_sliding_window = true is not supported".to_string());
        if let Some(scaling) = &self.rope_scaling {
            refuse(true, format!("rope_scaling = {scaling} is not supported"));
        }
        if let Some(parameters) = &self.rope_parameters {
            refuse(true, format!("rope_parameters.rope_type = {:?} is not supported", parameters.rope_type));
        }
        let sizes = [self.vocab_size, self.hidden_size, self.intermediate_size, self.num_hidden_layers, heads, kv];
        refuse(sizes.contains(&0), format!("sizes must be positive, found {sizes:?}"));
        refuse(
            heads > 0 && !self.hidden_size.is_multiple_of(2 * heads),
            format!("hidden_size = {} is not an even multiple of num_attention_heads = {heads}", self.hidden_size),
        );
        refuse(
            kv > 0 && !heads.is_multiple_of(kv),
            format!("num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv}"),
        );
        problems
    }
}
