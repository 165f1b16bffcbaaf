//! Tokens that `tokenizer_config.json` has and `tokenizer.json` lacks.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

/// An entry of `added_tokens_decoder`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct DecoderEntry {
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: Option<bool>,
    special: bool,
}

/// Add the tokens of `decoder`, an object by token id, that `tokenizer` lacks or has with other properties, as
/// `transformers` does.
///
/// # Errors
/// The key and the reason, when an entry is malformed or its token would get another id.
pub(super) fn complete(tokenizer: &mut Tokenizer, decoder: &Value) -> Result<(), String> {
    let key = |id: &dyn std::fmt::Display| format!("added_tokens_decoder.{id}");
    let mut entries = BTreeMap::new();
    for (id, value) in decoder.as_object().into_iter().flatten() {
        let number = id.parse::<u32>().map_err(|_| format!("{} is not a token id", key(id)))?;
        let entry = DecoderEntry::deserialize(value).map_err(|error| format!("{}: {error}", key(id)))?;
        let normalized = entry.normalized.unwrap_or(!entry.special);
        let DecoderEntry { content, single_word, lstrip, rstrip, special, .. } = entry;
        entries.insert(number, AddedToken { content, single_word, lstrip, rstrip, normalized, special });
    }
    let present = tokenizer.get_added_tokens_decoder();
    let missing = entries.iter().filter(|(id, token)| present.get(*id) != Some(*token)).map(|(_, token)| token.clone());
    tokenizer.add_tokens(missing).map_err(|error| error.to_string())?;
    for (id, token) in &entries {
        let found = tokenizer.token_to_id(&token.content);
        if found != Some(*id) {
            let found = found.map_or_else(|| "no id".to_string(), |found| format!("the id {found}"));
            return Err(format!(
                "{} is {:?}, which gets {found} by tokenizer.json and the order of these keys: correct the id, or add \
                 the token to tokenizer.json",
                key(id),
                token.content
            ));
        }
    }
    Ok(())
}
