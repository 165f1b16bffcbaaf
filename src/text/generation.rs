//! `generation_config.json`: the sampling settings published with a model.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::json;

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
    /// Other settings of the file that change what is sampled, as `key = value`: they are not supported.
    #[serde(skip)]
    pub unsupported: Vec<String>,
}

/// Settings of transformers that change what is sampled, and the values, beside null, that have no effect.
const OTHERS: [(&str, &str); 20] = [
    ("bad_words_ids", "[]"),
    ("begin_suppress_tokens", "[]"),
    ("diversity_penalty", "0.0"),
    ("encoder_repetition_penalty", "1.0"),
    ("epsilon_cutoff", "0.0"),
    ("eta_cutoff", "0.0"),
    ("forced_bos_token_id", "[]"),
    ("forced_eos_token_id", "[]"),
    ("frequency_penalty", "0.0"),
    ("guidance_scale", "1.0"),
    ("min_length", "0"),
    ("min_new_tokens", "0"),
    ("no_repeat_ngram_size", "0"),
    ("num_beams", "1"),
    ("penalty_alpha", "0.0"),
    ("presence_penalty", "0.0"),
    ("sequence_bias", "{}"),
    ("stop_strings", "[]"),
    ("suppress_tokens", "[]"),
    ("typical_p", "1.0"),
];

impl Recommended {
    /// Parse the file's content; null recommends nothing.
    pub(super) fn read(file: &std::path::Path, config: &Value) -> Result<Self> {
        if config.is_null() {
            return Ok(Self::default());
        }
        let read: Self = json::typed(config).map_err(|reason| Error::file(file, reason))?;
        let off = |value: &Value, off: &str| {
            let text = value.to_string();
            value.is_null() || text == off || value.as_f64().is_some_and(|value| off.parse() == Ok(value))
        };
        let on = OTHERS.iter().filter_map(|(key, without)| {
            let value = config.get(key).filter(|value| !off(value, without))?;
            Some(format!("{key} = {value}"))
        });
        Ok(Self { unsupported: on.collect(), ..read })
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
        assert!(error.starts_with("m/generation_config.json: top_k: "), "{error}");
        let others = serde_json::json!({"num_beams": 1, "typical_p": 1, "bad_words_ids": null, "stop_strings": [],
            "min_new_tokens": 0, "no_repeat_ngram_size": 3, "suppress_tokens": [7], "max_new_tokens": 99});
        let read = Recommended::read(path, &others).unwrap();
        assert_eq!(read.unsupported, ["no_repeat_ngram_size = 3", "suppress_tokens = [7]"]);
    }
}
