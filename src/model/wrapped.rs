//! Configurations before they are read: a language model inside a wrapper that also sees, and keys that files leave out.

use serde_json::{Map, Value};

use super::family::FAMILIES;

/// Wrappers whose language model is read without the rest, and the family of those that do not name it.
const WRAPPERS: [(&str, &str); 2] = [("gemma3", "gemma3_text"), ("mistral3", "mistral")];
/// What the language model of a wrapper takes over from it where it does not say so itself.
const INHERITED: [&str; 6] =
    ["dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"];
/// What a wrapper calls the tensors of its language model, and what these are called without it.
const NAMES: [(&str, &str); 4] = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
];

/// Whether a file is one of a wrapper.
pub(super) fn is_wrapper(config: &Value) -> bool {
    let named = |(name, _): &(&str, &str)| config.get("model_type").is_some_and(|found| found == name);
    config.get("text_config").is_some_and(Value::is_object) && WRAPPERS.iter().any(named)
}

/// The language model's name of a wrapper's tensor; none for those of its eyes.
pub(super) fn inner_name(name: &str) -> Option<String> {
    let inner = |(outer, inner): &(&str, &str)| name.strip_prefix(outer).map(|rest| format!("{inner}{rest}"));
    NAMES.iter().find_map(inner)
}

/// What a file says of the language model, with what transformers puts in the place of absent keys.
pub(super) fn completed(mut config: Value) -> Value {
    if is_wrapper(&config) {
        config = unwrapped(config);
    }
    let Some(table) = config.as_object_mut() else { return config };
    let family = FAMILIES.iter().find(|family| table.get("model_type").is_some_and(|name| name == family.name));
    let defaults = family.map_or("{}", |family| family.defaults);
    let defaults: Map<String, Value> =
        serde_json::from_str(defaults).unwrap_or_else(|error| unreachable!("{defaults}: {error}"));
    for (key, value) in defaults {
        table.entry(key).or_insert(value);
    }
    // Gemma's name for it; its files have the other one for older readers or not at all.
    if let Some(activation) = table.get("hidden_activation").filter(|name| !name.is_null()).cloned() {
        table.insert("hidden_act".to_string(), activation);
    }
    config
}

/// The language model's part.
fn unwrapped(mut config: Value) -> Value {
    let mut inner = config["text_config"].take();
    let wrapper = WRAPPERS.iter().find(|(name, _)| config["model_type"] == *name);
    if let (Some(table), Some((_, family))) = (inner.as_object_mut(), wrapper) {
        table.entry("model_type").or_insert_with(|| Value::from(*family));
        for key in INHERITED {
            if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
                table.entry(key).or_insert_with(|| value.clone());
            }
        }
        let class = FAMILIES.iter().find(|family| table["model_type"] == family.name).map(|family| family.class);
        table.insert("architectures".to_string(), class.into_iter().collect());
    }
    inner
}
