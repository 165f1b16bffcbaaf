//! A tokenizer folder as Hugging Face publishes it: text to token ids and back.
//!
//! Ids in, ids out: a completion is never decoded and encoded again on its way to the loss, because that may give other
//! tokens than the model wrote.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::lora;
use crate::text::chat::{ChatTemplate, Message, Prompt, SpecialTokens};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const SPECIAL: &str = "special_tokens_map.json";
const GENERATION: &str = "generation_config.json";

/// The files of a tokenizer, copied as they are by [`Tokenizer::save_to`].
const FILES: [&str; 9] = [
    TOKENIZER,
    CONFIG,
    TEMPLATE,
    SPECIAL,
    GENERATION,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// A tokenizer with its chat template and stop tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    template: Option<ChatTemplate>,
    vocab_size: usize,
    stop_ids: Vec<u32>,
    pad_id: u32,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where present, `tokenizer_config.json`, `chat_template.jinja`,
    /// `special_tokens_map.json` and `generation_config.json` from `dir`.
    ///
    /// What the directory of an adapter lacks is read from its base model's.
    ///
    /// The stop tokens are all of `generation_config.json`'s `eos_token_id` (`config.json`'s when it has none) and the
    /// tokenizer's own `eos_token`; a folder that names none of them is an error, since no completion would ever end.
    pub fn load(dir: &Path) -> Result<Self> {
        let base = if lora::is_adapter(dir) { Some(lora::base(dir)?) } else { None };
        let dir = match &base {
            Some(base) if !dir.join(TOKENIZER).is_file() => base,
            _ => dir,
        };
        let mut files = Vec::new();
        for name in FILES {
            if let Some(bytes) = read_optional(&dir.join(name))? {
                files.push((name, bytes));
            }
        }
        let json = |name: &str| match files.iter().find(|(file, _)| *file == name) {
            Some((_, bytes)) => parse(&dir.join(name), bytes),
            None => Ok(Value::Null),
        };
        let file = dir.join(TOKENIZER);
        let Some((_, bytes)) = files.iter().find(|(name, _)| *name == TOKENIZER) else {
            return Err(Error::io(&file)(std::io::ErrorKind::NotFound.into()));
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| Error::file(&file, e))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(&file, e))?;
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);

        let (config, special, generation) = (json(CONFIG)?, json(SPECIAL)?, json(GENERATION)?);
        let model_file = base.as_deref().unwrap_or(dir).join("config.json");
        let model = match read_optional(&model_file)? {
            Some(bytes) => parse(&model_file, &bytes)?,
            None => Value::Null,
        };
        let token = |key: &str| token_name(&config[key]).or_else(|| token_name(&special[key]));
        let tokens = SpecialTokens { bos: token("bos_token"), eos: token("eos_token"), pad: token("pad_token") };

        let read_ids = |key: &str| -> Result<Vec<u32>> {
            let own = ids(&generation[key]).map_err(|value| Error::file(dir.join(GENERATION), not_ids(key, value)))?;
            let models = ids(&model[key]).map_err(|value| Error::file(&model_file, not_ids(key, value)))?;
            Ok(if own.is_empty() { models } else { own })
        };
        let mut stop_ids = read_ids("eos_token_id")?;
        if let Some(&id) = stop_ids.iter().find(|id| inner.id_to_token(**id).is_none()) {
            return Err(Error::file(
                dir,
                format!("eos_token_id {id} is not a token of {TOKENIZER}; mend {GENERATION}"),
            ));
        }
        stop_ids.extend(tokens.eos.as_deref().and_then(|eos| inner.token_to_id(eos)));
        stop_ids.sort_unstable();
        stop_ids.dedup();
        if stop_ids.is_empty() {
            let message = format!("no end of text is named; set eos_token_id in {GENERATION} or eos_token in {CONFIG}");
            return Err(Error::file(dir, message));
        }

        let named = read_ids("pad_token_id")?.first().copied();
        let wanted = tokens.pad.as_deref().and_then(|pad| inner.token_to_id(pad)).or(named);
        let bos = tokens.bos.as_deref().and_then(|bos| inner.token_to_id(bos));
        let pad_id = choose_pad(&inner, wanted, bos, &stop_ids);

        let template = match files.iter().find(|(name, _)| *name == TEMPLATE) {
            Some((_, bytes)) => {
                let file = dir.join(TEMPLATE);
                let source = std::str::from_utf8(bytes).map_err(|e| Error::file(&file, e))?;
                Some(ChatTemplate::new(source, &file, tokens)?)
            }
            None => match template_of(&config["chat_template"]) {
                Some(source) => Some(ChatTemplate::new(source, &dir.join(CONFIG), tokens)?),
                None => None,
            },
        };
        Ok(Self { inner, template, vocab_size, stop_ids, pad_id, files })
    }

    /// The ids of `text`. Nothing is added; the text of a special token inside becomes its id.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        Ok(encoding.map_err(|e| Error::Invalid(format!("cannot tokenize {text:?}: {e}")))?.get_ids().to_vec())
    }

    /// The text of `ids`, with or without special tokens. Ids outside the vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        self.inner.decode(ids, skip_special).unwrap_or_else(|_| {
            // A decoder that cannot join these tokens still leaves their own texts.
            ids.iter().filter_map(|&id| self.inner.id_to_token(id)).collect()
        })
    }

    /// One more than the largest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// One token's text for display; part of a character shows as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        self.decode(&[id], false)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The tokens that end a completion, in ascending order; never empty.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The token that fills a batch. When the file's pad token also ends a text, another special token takes its place;
    /// only a vocabulary without one leaves [`Tokenizer::pad_is_stop`] true.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Whether the pad token is a stop token for want of another.
    pub fn pad_is_stop(&self) -> bool {
        self.stop_ids.contains(&self.pad_id)
    }

    /// Whether the tokenizer came with a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// Renders a conversation with the chat template; `add_generation_prompt` opens the assistant's turn.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let Some(template) = &self.template else {
            let message = format!("the tokenizer has no chat template: add {TEMPLATE} or give the prompt as a string");
            return Err(Error::Invalid(message));
        };
        template.render(messages, add_generation_prompt)
    }

    /// The text the model sees for a prompt, as [`Tokenizer::encode_prompt`] encodes it.
    pub fn render_prompt(&self, prompt: &Prompt) -> Result<String> {
        match prompt {
            Prompt::Text(text) if !self.has_chat_template() => Ok(text.clone()),
            _ => self.render(&prompt.to_messages(), true),
        }
    }

    /// The ids of a prompt, ready for the model to continue.
    ///
    /// A conversation goes through the chat template. So does a plain string, as a single user turn, whenever there is
    /// a template: TRL leaves strings bare, and an instruction-tuned model then runs on without ever ending its turn.
    /// Only a tokenizer without a template gets the string as it is.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.encode(&self.render_prompt(prompt)?)
    }

    /// Checks that every token has a row in the model's embedding. `dir` is the folder to name when one has not.
    pub fn check_vocab(&self, model_vocab: usize, dir: &Path) -> Result<()> {
        if self.vocab_size <= model_vocab {
            return Ok(());
        }
        let message = format!(
            "the tokenizer has ids up to {}, but vocab_size in config.json is {model_vocab}: the tokenizer belongs to \
             another model",
            self.vocab_size - 1
        );
        Err(Error::file(dir, message))
    }

    /// Writes the files the tokenizer was read from into `dir`, byte for byte.
    pub fn save_to(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        for (name, bytes) in &self.files {
            let file = dir.join(name);
            std::fs::write(&file, bytes).map_err(Error::io(&file))?;
        }
        Ok(())
    }
}

fn read_optional(file: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(file)(e)),
    }
}

fn parse(file: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|e| Error::file(file, e))
}

/// A token as configuration files write it: its text, or an object with the text as `content`.
fn token_name(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_string)
}

/// One id, a list of them or none; any other value comes back.
fn ids(value: &Value) -> std::result::Result<Vec<u32>, &Value> {
    let one = |value| Value::as_u64(value).and_then(|id| u32::try_from(id).ok()).ok_or(value);
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list.iter().map(one).collect(),
        value => one(value).map(|id| vec![id]),
    }
}

fn not_ids(key: &str, value: &Value) -> String {
    format!("{key} = {value} is neither a token id nor a list of them")
}

/// A template as `tokenizer_config.json` writes it: one text, or a list of which `default` is meant.
fn template_of(value: &Value) -> Option<&str> {
    match value {
        Value::Array(list) => list.iter().find(|entry| entry["name"] == "default")?["template"].as_str(),
        value => value.as_str(),
    }
}

fn choose_pad(inner: &tokenizers::Tokenizer, wanted: Option<u32>, bos: Option<u32>, stop_ids: &[u32]) -> u32 {
    if let Some(id) = wanted.filter(|id| !stop_ids.contains(id) && inner.id_to_token(*id).is_some()) {
        return id;
    }
    let candidates = inner.get_added_tokens_decoder();
    let rank = |id: u32, token: &tokenizers::AddedToken| {
        (!token.content.to_ascii_lowercase().contains("pad"), Some(id) == bos, id)
    };
    (candidates.iter())
        .filter(|(id, token)| token.special && !stop_ids.contains(id))
        .map(|(&id, token)| rank(id, token))
        .min()
        .map_or(stop_ids[0], |(_, _, id)| id)
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;

    /// The letters GPT-2 writes bytes with.
    fn byte_letters() -> Vec<char> {
        let plain = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
        let mut next = 256;
        let letter = |b: u32| {
            if plain(b) {
                return char::from_u32(b).unwrap();
            }
            next += 1;
            char::from_u32(next - 1).unwrap()
        };
        (0..256).map(letter).collect()
    }

    /// A byte-level tokenizer: ids 0–255 are bytes, then <|im_start|>, <|im_end|>, <|endoftext|>, <|fim_pad|>.
    fn write(dir: &Path) {
        let vocab: serde_json::Map<String, Value> =
            byte_letters().iter().enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
        let added: Vec<Value> = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|fim_pad|>"]
            .iter()
            .enumerate()
            .map(|(i, content)| {
                serde_json::json!({"id": 256 + i, "content": content, "single_word": false, "lstrip": false,
                                   "rstrip": false, "normalized": false, "special": true})
            })
            .collect();
        let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": level, "post_processor": null,
            "decoder": level, "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        fs::write(dir.join(TOKENIZER), tokenizer.to_string()).unwrap();
        let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let config = serde_json::json!({"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"},
                                        "chat_template": template});
        fs::write(dir.join(CONFIG), config.to_string()).unwrap();
        fs::write(dir.join(GENERATION), r#"{"eos_token_id": [257, 258]}"#).unwrap();
    }

    pub(in crate::text) fn sample() -> (tempfile::TempDir, Tokenizer) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        (dir, tokenizer)
    }

    #[test]
    fn text_comes_back_and_special_tokens_are_single_ids() {
        let (_dir, tokenizer) = sample();
        let ids = tokenizer.encode("a<|im_end|>é").unwrap();
        assert_eq!(ids, [97, 257, 0xc3, 0xa9]);
        assert_eq!(tokenizer.decode(&ids, false), "a<|im_end|>é");
        assert_eq!(tokenizer.decode(&ids, true), "aé");
        assert_eq!(tokenizer.vocab_size(), 260);
        assert_eq!(tokenizer.token_id("<|im_start|>"), Some(256));
        assert_eq!(tokenizer.token_text(257), "<|im_end|>");
        // tokenizer.json asks to cut at four tokens; a trainer must see all of them.
        assert_eq!(tokenizer.encode("abcdefgh").unwrap().len(), 8);
    }

    #[test]
    fn every_end_of_text_stops_and_pad_is_none_of_them() {
        let (dir, tokenizer) = sample();
        assert_eq!(tokenizer.stop_ids(), [257, 258]);
        // The file's pad is <|endoftext|>, which stops (trl#3091: the model never learns to stop).
        assert_eq!((tokenizer.pad_id(), tokenizer.pad_is_stop()), (259, false));
        fs::remove_file(dir.path().join(GENERATION)).unwrap();
        fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 258}"#).unwrap();
        assert_eq!(Tokenizer::load(dir.path()).unwrap().stop_ids(), [257, 258]);
        fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 300}"#).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("eos_token_id 300"), "{error}");
        fs::write(dir.path().join("config.json"), r#"{"eos_token_id": [258, "x"]}"#).unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("config.json: eos_token_id = \"x\" is neither"), "{error}");
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        fs::write(dir.path().join(CONFIG), "{}").unwrap();
        let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("set eos_token_id"), "{error}");
    }

    #[test]
    fn a_string_prompt_gets_the_template_too() {
        let (dir, tokenizer) = sample();
        let text = Prompt::Text("hi".into());
        let turns = Prompt::Messages(vec![Message::user("hi")]);
        let want = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(tokenizer.render_prompt(&text).unwrap(), want);
        assert_eq!(tokenizer.encode_prompt(&text).unwrap(), tokenizer.encode_prompt(&turns).unwrap());
        fs::write(dir.path().join(CONFIG), r#"{"eos_token": "<|im_end|>"}"#).unwrap();
        let bare = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(bare.encode_prompt(&text).unwrap(), bare.encode("hi").unwrap());
        assert!(bare.encode_prompt(&turns).unwrap_err().to_string().contains("no chat template"));
    }

    #[test]
    fn chat_template_jinja_wins_over_the_config() {
        let (dir, _) = sample();
        fs::write(dir.path().join(TEMPLATE), "X{{ messages[0].content }}").unwrap();
        assert_eq!(Tokenizer::load(dir.path()).unwrap().render(&[Message::user("y")], false).unwrap(), "Xy");
    }

    #[test]
    fn a_tokenizer_larger_than_the_model_is_refused() {
        let (dir, tokenizer) = sample();
        assert!(tokenizer.check_vocab(260, dir.path()).is_ok());
        let error = tokenizer.check_vocab(259, dir.path()).unwrap_err().to_string();
        assert!(error.contains("259"), "{error}");
    }

    #[test]
    fn saved_files_are_the_same_bytes() {
        let (dir, tokenizer) = sample();
        let copy = tempfile::tempdir().unwrap();
        tokenizer.save_to(&copy.path().join("new")).unwrap();
        for name in [TOKENIZER, CONFIG, GENERATION] {
            assert_eq!(fs::read(dir.path().join(name)).unwrap(), fs::read(copy.path().join("new").join(name)).unwrap());
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = Tokenizer::load(Path::new("no/such/folder")).unwrap_err().to_string();
        assert!(error.starts_with("no/such/folder/tokenizer.json"), "{error}");
    }
}
