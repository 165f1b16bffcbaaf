//! Special tokens and added tokens that other files name and `tokenizer.json` lacks.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::folder::token_name;

/// Keys of special tokens, in the order in which `transformers` adds those without an id.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Keys of further special tokens, of which the first with a value is read.
const FURTHER: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// A token as configuration files describe it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenEntry {
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: Option<bool>,
    special: bool,
}

impl From<TokenEntry> for AddedToken {
    fn from(entry: TokenEntry) -> Self {
        let normalized = entry.normalized.unwrap_or(!entry.special);
        let TokenEntry { content, single_word, lstrip, rstrip, special, .. } = entry;
        Self { content, single_word, lstrip, rstrip, normalized, special }
    }
}

/// The files of a tokenizer that name tokens; null for one that is missing.
pub(super) struct TokenFiles {
    /// `tokenizer_config.json`.
    pub(super) config: Value,
    /// `special_tokens_map.json`.
    pub(super) special: Value,
    /// `added_tokens.json`.
    pub(super) added: Value,
}

impl TokenFiles {
    /// Return the value of `key`, of the file that `transformers` reads first.
    fn value(&self, key: &str) -> &Value {
        let files = if self.has_decoder() { [&self.config, &self.special] } else { [&self.special, &self.config] };
        files.into_iter().map(|file| &file[key]).find(|value| !value.is_null()).unwrap_or(&Value::Null)
    }

    fn has_decoder(&self) -> bool {
        !self.config["added_tokens_decoder"].is_null()
    }

    /// Return the text of a special token such as `eos_token`.
    pub(super) fn name(&self, key: &str) -> Option<String> {
        token_name(self.value(key))
    }

    /// Return the special tokens, named and further ones.
    fn special(&self) -> Result<Vec<AddedToken>, String> {
        let value = |key| if self.has_decoder() { &self.config[key] } else { self.value(key) };
        let list = |key| value(key).as_array().filter(|list| !list.is_empty()).map(|list| (key, list));
        let further = FURTHER.into_iter().find_map(list);
        let further = further.into_iter().flat_map(|(key, list)| list.iter().map(move |value| (key, value)));
        let named = NAMED.map(|key| (key, self.value(key)));
        let mut tokens: Vec<AddedToken> = Vec::new();
        for (key, value) in named.into_iter().chain(further).filter(|(_, value)| !value.is_null()) {
            let entry = match value {
                Value::String(content) => TokenEntry { content: content.clone(), ..TokenEntry::default() },
                _ => TokenEntry::deserialize(value).map_err(|error| format!("{key}: {error}"))?,
            };
            if !entry.content.is_empty() && tokens.iter().all(|token| token.content != entry.content) {
                tokens.push(TokenEntry { special: true, ..entry }.into());
            }
        }
        Ok(tokens)
    }

    /// Return the tokens with ids, by id: `added_tokens_decoder`, or else the content of `added_tokens.json`.
    fn with_ids(&self) -> Result<BTreeMap<u32, AddedToken>, String> {
        let mut entries = BTreeMap::new();
        for (id, value) in self.config["added_tokens_decoder"].as_object().into_iter().flatten() {
            let number = id.parse::<u32>().map_err(|_| format!("{} is not a token id", key(id)))?;
            let entry = TokenEntry::deserialize(value).map_err(|error| format!("{}: {error}", key(id)))?;
            entries.insert(number, entry.into());
        }
        if !self.has_decoder() {
            for (content, id) in self.added.as_object().into_iter().flatten() {
                let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let number = number.ok_or_else(|| format!("added_tokens.json: {content:?} has the id {id}"))?;
                entries.insert(number, TokenEntry { content: content.clone(), ..TokenEntry::default() }.into());
            }
        }
        Ok(entries)
    }

    /// Add the tokens that `tokenizer` lacks or has with other properties, as `transformers` does: those with ids, then
    /// special tokens.
    ///
    /// # Errors
    /// The key and the reason, when an entry is malformed or its token would get another id.
    pub(super) fn complete(&self, tokenizer: &mut Tokenizer) -> Result<(), String> {
        let entries = self.with_ids()?;
        let present = tokenizer.get_added_tokens_decoder();
        let differs = entries.iter().filter(|(id, token)| present.get(*id) != Some(*token));
        let mut tokens: Vec<AddedToken> = differs.map(|(_, token)| token.clone()).collect();
        for token in self.special()? {
            if let Some(entry) = tokens.iter_mut().find(|entry| entry.content == token.content) {
                entry.special = true;
                continue;
            }
            match present.values().find(|known| known.content == token.content) {
                Some(known) if known.special => {}
                Some(known) => tokens.push(AddedToken { special: true, ..known.clone() }),
                None => tokens.push(token),
            }
        }
        tokenizer.add_tokens(tokens).map_err(|error| error.to_string())?;
        for (id, token) in &entries {
            let found = tokenizer.token_to_id(&token.content);
            if found != Some(*id) {
                let found = found.map_or_else(|| "no id".to_string(), |found| format!("the id {found}"));
                return Err(format!(
                    "{} is {:?}, which gets {found} by tokenizer.json and the order of these keys: correct the id, or \
                     add the token to tokenizer.json",
                    key(id),
                    token.content
                ));
            }
        }
        Ok(())
    }
}

fn key(id: &dyn Display) -> String {
    format!("added_tokens_decoder.{id}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use crate::text::folder::{ADDED, SPECIAL, TOKENIZER};
    use crate::text::tokenizer::Tokenizer;
    use crate::text::tokenizer::tests::{folder, load};

    /// Regression: such a token was split into pieces. The ids are those of `transformers` 5.19.0.
    #[test]
    fn tokens_that_only_the_config_has_are_added() {
        let of = |decoder: Value| {
            let config = serde_json::json!({"eos_token": "<|im_end|>", "added_tokens_decoder": decoder});
            folder(&["<|im_end|>", "<x>"], config, Value::Null)
        };
        let tokenizer = load(&of(serde_json::json!({
            "256": {"content": "<|im_end|>", "special": true, "normalized": false},
            "257": {"content": "<x>", "lstrip": true, "normalized": false},
            "259": {"content": "<tool>"},
            "258": {"content": "<|im_start|>", "rstrip": true, "special": true},
        })));
        let ids = tokenizer.encode("<|im_start|> \na<|im_end|>").unwrap();
        assert_eq!(ids, [258, 97, 256]);
        assert_eq!((tokenizer.decode(&ids, true), tokenizer.vocab_size()), ("a".to_string(), 260));
        assert_eq!(tokenizer.encode("a <tool> b").unwrap(), [97, 32, 259, 32, 98]);
        assert_eq!(tokenizer.encode("a <x> b").unwrap(), [97, 257, 32, 98]);
        for (decoder, part) in [
            (
                serde_json::json!({"260": {"content": "<y>"}}),
                "added_tokens_decoder.260 is \"<y>\", which gets the id 258",
            ),
            (
                serde_json::json!({"258": {"content": "<x>"}}),
                "added_tokens_decoder.258 is \"<x>\", which gets the id 257",
            ),
            (serde_json::json!({"a": {"content": "<y>"}}), "added_tokens_decoder.a is not a token id"),
            (serde_json::json!({"258": {"content": 5}}), "added_tokens_decoder.258: invalid type"),
        ] {
            let error = Tokenizer::load(of(decoder).path()).unwrap_err().to_string();
            assert!(error.contains("tokenizer_config.json: ") && error.contains(part), "{error}");
        }
    }

    /// Regression: special tokens that only other files name were split into pieces, and one that `tokenizer.json` does
    /// not mark as special stayed in the text that graders read. The ids are those of `transformers` 5.19.0.
    #[test]
    fn special_tokens_of_other_files_are_read() {
        let config = |more: Value| {
            let mut config = serde_json::json!({"eos_token": "<e>"});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            folder(&["<e>", "<f>"], config, Value::Null)
        };
        let encode = |dir: &tempfile::TempDir, text: &str| load(dir).encode(text).unwrap();
        let further = serde_json::json!(["<a>"]);
        let dir =
            config(serde_json::json!({"pad_token": "[PAD]", "unk_token": "<u>", "additional_special_tokens": further}));
        let ids = encode(&dir, "x<a>[PAD]<u>");
        assert_eq!(ids, [120, 260, 259, 258]);
        assert_eq!((load(&dir).decode(&ids, true), load(&dir).pad_id()), ("x".to_string(), 259));
        let both = serde_json::json!({"extra_special_tokens": further, "additional_special_tokens": ["<b>"]});
        assert_eq!(encode(&config(both), "<a><b>"), [258, 60, 98, 62]);

        // The map is read in the place of a decoder.
        let map = r#"{"eos_token": {"content": "<f>", "lstrip": false}, "additional_special_tokens": ["<a>"]}"#;
        let with_map = |more: Value| {
            let dir = config(more);
            fs::write(dir.path().join(SPECIAL), map).unwrap();
            fs::write(dir.path().join(ADDED), r#"{"<b>": 258}"#).unwrap();
            (load(&dir).turn_end().to_vec(), encode(&dir, "<b><a>"))
        };
        assert_eq!(with_map(serde_json::json!({})), (vec![257], vec![258, 259]));
        let decoder = serde_json::json!({"added_tokens_decoder": {"256": {"content": "<e>", "special": true}}});
        assert_eq!(with_map(decoder), (vec![256], vec![60, 98, 62, 60, 97, 62]));

        let dir = config(serde_json::json!({}));
        let file = dir.path().join(TOKENIZER);
        let unmarked = fs::read_to_string(&file).unwrap().replace("\"special\":true", "\"special\":false");
        fs::write(&file, unmarked).unwrap();
        assert_eq!(load(&dir).decode(&[120, 256, 257], true), "x<f>");

        let error = Tokenizer::load(config(serde_json::json!({"pad_token": 3})).path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json: pad_token: invalid type"), "{error}");
    }
}
