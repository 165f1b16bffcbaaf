//! Rejects unsupported model families, classes and features, by name.

use serde_json::{Value, json};

use super::ModelConfig;
use super::family::FAMILIES;
use super::wrapped::{MIMO, WRAPPERS};

/// Unsupported model types, and the features they would need.
const MISSING: [(&str, &str); 19] = [
    ("deepseek_v2", "mixtures of experts and latent attention"),
    ("deepseek_v3", "mixtures of experts and latent attention"),
    ("falcon_h1", "Mamba layers"),
    ("gemma2", "attention and logit soft-capping (Gemma 3 is supported)"),
    ("gemma3n", "per-layer embeddings and shared keys and values"),
    ("gemma4", "per-layer embeddings and shared keys and values"),
    ("glm4_moe", "mixtures of experts"),
    ("gpt_oss", "mixtures of experts and attention sinks"),
    ("granitemoehybrid", "Mamba layers and mixtures of experts"),
    ("lfm2", "short convolutions"),
    ("llama4", "mixtures of experts and chunked attention"),
    ("mixtral", "mixtures of experts"),
    ("nemotron_h", "Mamba layers and mixtures of experts"),
    ("olmoe", "mixtures of experts"),
    ("qwen3_5_moe", "mixtures of experts"),
    ("qwen3_5_moe_text", "mixtures of experts"),
    ("qwen3_moe", "mixtures of experts"),
    ("qwen3_next", "mixtures of experts"),
    ("qwen3_vl", "a vision encoder that passes on features of several layers"),
];

/// Keys of unsupported features, and the message for each.
const FOREIGN: [(&str, &str); 15] = [
    ("num_experts", "mixtures of experts are not supported"),
    ("num_local_experts", "mixtures of experts are not supported"),
    ("n_routed_experts", "mixtures of experts are not supported"),
    ("vision_config", "vision models are not supported"),
    ("audio_config", "audio models are not supported"),
    ("text_config", "nested configurations are not supported; give the language model's own directory"),
    ("quantization_config", QUANTISED),
    ("compression_config", QUANTISED),
    ("quantization", QUANTISED),
    ("per_layer_config", "settings for single layers are not supported"),
    ("auto_map", "custom model code is not supported"),
    ("pruned_heads", "pruned heads are not supported"),
    ("final_logit_softcapping", "logit soft-capping is not supported"),
    ("attn_logit_softcapping", "attention soft-capping is not supported"),
    ("use_bidirectional_attention", "bidirectional attention is not supported"),
];

const QUANTISED: &str = "quantised weights are not supported; use the original model in f32, bf16 or f16";

/// Return the message for an unsupported family.
fn unknown(model_type: &str) -> String {
    // A wrapper with its language model was unwrapped before.
    if WRAPPERS.iter().any(|(name, _)| *name == model_type) {
        return format!(
            "model_type = \"{model_type}\" needs the key text_config with the configuration of its language model"
        );
    }
    let wrappers = WRAPPERS.map(|(name, _)| name);
    let known = [&FAMILIES.map(|family| family.name)[..], &wrappers, &[MIMO]].concat().join(", ");
    let missing = MISSING.iter().find(|(name, _)| *name == model_type);
    let missing = missing.map_or(String::new(), |(_, what)| format!("; missing: {what}"));
    format!("model_type = \"{model_type}\" is not supported (supported: {known}){missing}")
}

/// Return the message if the family of a configuration is unsupported.
pub(super) fn family_mistake(config: &Value) -> Option<String> {
    let named = config.get("model_type")?.as_str()?;
    FAMILIES.iter().all(|family| family.name != named).then(|| unknown(named))
}

impl ModelConfig {
    /// Return one message per unsupported family, class or feature.
    pub(super) fn foreign(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.family() {
            None => problems.push(unknown(&self.model_type)),
            Some(family) => {
                for other in self.architectures.iter().filter(|name| *name != family.class) {
                    problems
                        .push(format!("architectures = [\"{other}\"] is not supported (supported: {})", family.class));
                }
            }
        }
        for (key, reason) in FOREIGN {
            let value = self.rest.get(key).unwrap_or(&Value::Null);
            let empty = [json!({}), json!([]), json!(0), json!(false), Value::Null].contains(value);
            let ours = key == "auto_map" && self.family().is_some_and(|family| family.had_code);
            if !empty && !ours {
                problems.push(format!("{key} = {}: {reason}", shorten(value)));
            }
        }
        // An encoder for embeddings, made of a language model.
        if self.rest.get("is_causal") == Some(&json!(false)) {
            problems.push("is_causal = false: bidirectional attention is not supported".to_string());
        }
        problems
    }
}

/// Format a value for a message, cut to 60 characters.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 { text.chars().take(60).chain(['…']).collect() } else { text }
}
