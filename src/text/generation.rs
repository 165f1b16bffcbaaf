//! `generation_config.json`: the sampling settings published with a model.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

/// Sampling settings recommended by a model's files; `None` if not given.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Recommended {
    /// False for greedy decoding.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Keeps this many most probable tokens.
    pub top_k: Option<usize>,
    /// Keeps the most probable tokens that together reach this probability.
    pub top_p: Option<f32>,
    /// Keeps tokens at least this many times as probable as the most probable one.
    pub min_p: Option<f32>,
    /// Makes tokens that occurred before less likely.
    pub repetition_penalty: Option<f32>,
}

impl Recommended {
    /// Parse the file's content; null recommends nothing.
    pub(super) fn read(file: &std::path::Path, config: &Value) -> Result<Self> {
        if config.is_null() {
            return Ok(Self::default());
        }
        Self::deserialize(config).map_err(|e| Error::file(file, e))
    }
}

/// Return the file for an export: `bytes` unchanged if they have the stop and padding tokens, else with these added
/// and nothing else changed.
pub(super) fn completed(bytes: Option<&[u8]>, config: &Value, stop_ids: &[u32], pad_id: u32) -> Vec<u8> {
    let mut entries = config.as_object().cloned().unwrap_or_default();
    let lacking = |key: &str| config.get(key).is_none_or(Value::is_null);
    let added = [("eos_token_id", Value::from(stop_ids)), ("pad_token_id", Value::from(pad_id))];
    let added: Vec<_> = added.into_iter().filter(|(key, _)| lacking(key)).collect();
    match bytes {
        Some(bytes) if added.is_empty() => bytes.to_vec(),
        _ => {
            entries.extend(added.into_iter().map(|(key, value)| (key.to_string(), value)));
            format!("{:#}\n", Value::Object(entries)).into_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(text: &str) -> String {
        let config = serde_json::from_str(text).unwrap();
        String::from_utf8(completed(Some(text.as_bytes()), &config, &[7, 3], 9)).unwrap()
    }

    #[test]
    fn a_complete_file_stays_as_it_is_and_others_get_what_they_lack() {
        // Unusual spacing and the order of the ids are kept.
        let whole = "{\"temperature\":0.6, \"top_p\": 0.95,\n\"bos_token_id\": 1, \"eos_token_id\": [151645, 151643], \
                     \"pad_token_id\": 151643}";
        assert_eq!(complete(whole), whole);
        let config: Value = serde_json::from_str(&complete(r#"{"top_p": 0.95, "eos_token_id": 5}"#)).unwrap();
        assert_eq!(config, serde_json::json!({"top_p": 0.95, "eos_token_id": 5, "pad_token_id": 9}));
        assert_eq!(config.as_object().unwrap().keys().next().unwrap(), "top_p");
        let config: Value = serde_json::from_slice(&completed(None, &Value::Null, &[7, 3], 9)).unwrap();
        assert_eq!(config, serde_json::json!({"eos_token_id": [7, 3], "pad_token_id": 9}));
    }

    #[test]
    fn recommended_settings_are_read_and_wrong_kinds_named() {
        let path = std::path::Path::new("m/generation_config.json");
        let config = serde_json::json!({"temperature": 0.6, "top_p": 0.95, "do_sample": true, "max_length": 32768});
        let read = Recommended::read(path, &config).unwrap();
        let want =
            Recommended { do_sample: Some(true), temperature: Some(0.6), top_p: Some(0.95), ..Recommended::default() };
        assert_eq!(read, want);
        let error = Recommended::read(path, &serde_json::json!({"top_k": "50"})).unwrap_err().to_string();
        assert!(error.starts_with("m/generation_config.json: "), "{error}");
    }
}
