//! Preparation of `config.json`: extracts the language model of a multimodal wrapper and adds omitted keys.

use serde_json::{Map, Value};

use super::family::FAMILIES;

/// Multimodal wrappers of which only the language model is read, and its default family.
pub(super) const WRAPPERS: [(&str, &str); 3] =
    [("gemma3", "gemma3_text"), ("mistral3", "mistral"), ("qwen3_5", "qwen3_5_text")];
/// MiMo 7B (arXiv 2505.07608): Qwen 2, and multi-token prediction layers that are ignored; not in transformers.
pub(super) const MIMO: &str = "mimo";
/// Keys that a language model inherits from its wrapper if it does not set them itself.
const INHERITED: [&str; 7] = [
    "dtype",
    "torch_dtype",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "quantization_config",
];
/// Tensor name prefixes of the language model inside a wrapper, and without it.
const NAMES: [(&str, &str); 4] = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
];

/// Return whether a configuration is that of a wrapper.
pub(super) fn is_wrapper(config: &Value) -> bool {
    let named = |(name, _): &(&str, &str)| config.get("model_type").is_some_and(|found| found == name);
    config.get("text_config").is_some_and(Value::is_object) && WRAPPERS.iter().any(named)
}

/// Return the language model's name of a wrapper's tensor; `None` for tensors of the vision part.
pub(super) fn inner_name(name: &str) -> Option<String> {
    let inner = |(outer, inner): &(&str, &str)| name.strip_prefix(outer).map(|rest| format!("{inner}{rest}"));
    NAMES.iter().find_map(inner)
}

/// Return the language model's configuration, with the defaults of transformers for absent keys.
pub(super) fn completed(mut config: Value) -> Value {
    if is_wrapper(&config) {
        config = unwrapped(config);
    }
    let Some(table) = config.as_object_mut() else { return config };
    if table.get("model_type").is_some_and(|name| name == MIMO) {
        table.insert("model_type".to_string(), "qwen2".into());
        table.insert("architectures".to_string(), vec!["Qwen2ForCausalLM"].into());
        for key in ["auto_map", "num_nextn_predict_layers"] {
            table.remove(key);
        }
    }
    let family = FAMILIES.iter().find(|family| table.get("model_type").is_some_and(|name| name == family.name));
    let defaults = family.map_or("{}", |family| family.defaults);
    let defaults: Map<String, Value> =
        serde_json::from_str(defaults).unwrap_or_else(|error| unreachable!("{defaults}: {error}"));
    for (key, value) in defaults {
        table.entry(key).or_insert(value);
    }
    // Gemma's key for `hidden_act`; its files have the usual key only for older readers, or not at all.
    if let Some(activation) = table.get("hidden_activation").filter(|name| !name.is_null()).cloned() {
        table.insert("hidden_act".to_string(), activation);
    }
    config
}

/// Return the language model's part of a wrapper's configuration.
fn unwrapped(mut config: Value) -> Value {
    let mut inner = config["text_config"].take();
    let wrapper = WRAPPERS.iter().find(|(name, _)| config["model_type"] == *name);
    if let (Some(table), Some((_, family))) = (inner.as_object_mut(), wrapper) {
        table.entry("model_type").or_insert_with(|| Value::from(*family));
        for key in INHERITED {
            if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
                let value = value.clone();
                // As in transformers, the wrapper decides whether the head is tied.
                if key == "tie_word_embeddings" {
                    table.insert(key.to_string(), value);
                } else {
                    table.entry(key).or_insert(value);
                }
            }
        }
        let class = FAMILIES.iter().find(|family| table["model_type"] == family.name).map(|family| family.class);
        table.insert("architectures".to_string(), class.into_iter().collect());
    }
    inner
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::ModelConfig;

    fn read(config: Value) -> ModelConfig {
        serde_json::from_value(completed(config)).unwrap()
    }

    /// The published files of Gemma 3 4B omit keys for which transformers has defaults.
    #[test]
    fn keys_that_published_wrappers_leave_out_are_filled_in() {
        let config = read(json!({
            "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106],
            "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152},
            "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        }));
        assert_eq!(config.mistakes(), Vec::<String>::new());
        assert_eq!((config.vocab_size, config.num_attention_heads, config.head_dim()), (262_208, 8, 256));
        assert!(config.tie_word_embeddings && config.eos_token_id == Some(json!([1, 106])));
        let windows: Vec<bool> = (0..7).map(|layer| config.window(layer) == Some(1024)).collect();
        assert_eq!(windows, [true, true, true, true, true, false, true]);
        // √2560 = 50.6 becomes 50.5 in bfloat16; 1/√256 is the usual scale of heads of width 256.
        assert_eq!(config.multipliers().embedding, 50.5);
        let ministral =
            read(json!({"model_type": "mistral3", "text_config": {"model_type": "ministral3", "vocab_size": 8,
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4,
            "max_position_embeddings": 8, "rope_parameters": {"rope_theta": 1e6}},
            "quantization_config": {"quant_method": "fp8"}}));
        assert_eq!(ministral.architectures, ["Ministral3ForCausalLM"]);
        assert!(ministral.mistakes()[0].starts_with("quantization_config"), "{:?}", ministral.mistakes());
    }

    #[test]
    fn tensors_of_a_wrapper_are_the_language_models_or_left() {
        let named = |name: &str| inner_name(name).unwrap_or_default();
        for name in
            ["language_model.model.layers.0.mlp.down_proj.weight", "model.language_model.layers.0.mlp.down_proj.weight"]
        {
            assert_eq!(named(name), "model.layers.0.mlp.down_proj.weight");
        }
        assert_eq!([named("language_model.lm_head.weight"), named("lm_head.weight")], ["lm_head.weight"; 2]);
        for name in [
            "vision_tower.head.probe",
            "model.vision_tower.x",
            "multi_modal_projector.x",
            "model.multi_modal_projector.x",
        ] {
            assert_eq!(named(name), "");
        }
    }

    #[test]
    fn what_is_missing_of_a_model_is_named() {
        let shape = json!({"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 8});
        let mistakes = |edit: Value| {
            let mut all = shape.clone();
            all.as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
            read(all).mistakes()
        };
        for (name, missing) in [("gemma2", "soft-capping"), ("gpt_oss", "mixtures"), ("nemotron_h", "Mamba")] {
            let found = mistakes(json!({"model_type": name}));
            assert!(
                found[0].contains(name) && found[0].contains("; missing: ") && found[0].contains(missing),
                "{found:?}"
            );
        }
        let found = mistakes(json!({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}));
        assert_eq!(found, ["final_logit_softcapping = 30.0: logit soft-capping is not supported"]);
        let found = mistakes(json!({"model_type": "gemma3_text", "use_bidirectional_attention": true}));
        assert_eq!(found, ["use_bidirectional_attention = true: bidirectional attention is not supported"]);
        let found = mistakes(json!({"model_type": "gemma3_text", "hidden_activation": "silu"}));
        assert_eq!(found, ["hidden_act = \"silu\" is not supported (supported: gelu_pytorch_tanh)"]);
        let found = mistakes(json!({"model_type": "gemma3_text", "query_pre_attn_scalar": 0}));
        assert_eq!(found, ["query_pre_attn_scalar = 0 must be a positive number"]);
        // transformers has its own class for Phi 3 and does not run the code its files name.
        let code = json!({"AutoConfig": "configuration.Config"});
        assert_eq!(mistakes(json!({"model_type": "phi3", "auto_map": code})), Vec::<String>::new());
        assert!(mistakes(json!({"model_type": "llama", "auto_map": code}))[0].starts_with("auto_map"));
    }
}
