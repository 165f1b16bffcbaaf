//! A small byte-level BPE tokenizer, trained on the project's own texts.
//!
//! Every byte is in the vocabulary, so there are no unknown tokens. Each digit and each sign is split off before
//! merging, so a digit is always one token and a merge never crosses a word.

use std::path::Path;

use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::error::{Error, Result};

/// Padding.
pub const PAD: &str = "<|endoftext|>";
/// End of a turn, and of generation.
pub const END: &str = "<|im_end|>";

/// Special tokens; their ids are their positions.
const SPECIAL: [&str; 3] = [PAD, "<|im_start|>", END];
/// Added tokens that decoding keeps.
const ADDED: [&str; 2] = ["<think>", "</think>"];

/// A word with the space before it, the start of a boxed answer, or any single character.
const PATTERN: &str = r" ?\\boxed\{| ?\p{L}+|[\s\S]";

/// The ChatML template.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Train a tokenizer of `vocab_size` tokens (512 suits [`crate::tasks`]) on `texts`.
///
/// # Errors
/// When `vocab_size` cannot hold the bytes and the special tokens, or the texts are too short for that many merges.
pub fn train(texts: impl Iterator<Item = String>, vocab_size: usize) -> Result<Tokenizer> {
    let least = 256 + SPECIAL.len() + ADDED.len();
    if vocab_size < least {
        return Err(Error::Invalid(format!("a byte-level tokenizer needs {least} tokens or more, not {vocab_size}")));
    }
    let invalid = |error: tokenizers::Error| Error::Invalid(format!("training the tokenizer: {error}"));
    let added = SPECIAL.map(|token| AddedToken::from(token, true)).into_iter();
    let added: Vec<AddedToken> =
        added.chain(ADDED.map(|token| AddedToken::from(token, false))).map(|token| token.normalized(false)).collect();
    let split = Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Isolated, false);
    let bytes = ByteLevel::new(false, false, false);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        PreTokenizerWrapper::Split(split.map_err(invalid)?),
        PreTokenizerWrapper::ByteLevel(bytes),
    ])));
    tokenizer.with_decoder(Some(bytes));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .special_tokens(added)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build()
        .into();
    // Merges must not learn the added tokens in pieces.
    let plain = |text: String| SPECIAL.iter().chain(&ADDED).fold(text, |text, token| text.replace(token, "\n"));
    let texts: Vec<String> = texts.map(plain).collect();
    tokenizer.train(&mut trainer, texts.into_iter()).map_err(invalid)?;
    match tokenizer.get_vocab_size(true) {
        size if size == vocab_size => Ok(tokenizer),
        size => Err(Error::Invalid(format!(
            "the training texts give only {size} tokens, fewer than the vocabulary size {vocab_size}: use more traces \
             or a smaller vocabulary"
        ))),
    }
}

/// Write `tokenizer.json` and `tokenizer_config.json` into `dir`, as Hugging Face transformers reads them.
///
/// # Errors
/// When a file cannot be written.
pub fn write(tokenizer: &Tokenizer, dir: &Path) -> Result<()> {
    let path = dir.join("tokenizer.json");
    let text = tokenizer.to_string(true).map_err(|error| Error::file(&path, error))?;
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    // transformers 5 uses Qwen 2's pre-tokenizer for every qwen2 model, whatever `tokenizer_class` says, unless there
    // is an `auto_map`; then it takes the class by name (5.0–5.24, 4.57; with `trust_remote_code` it looks for code).
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "auto_map": { "AutoTokenizer": [null, "PreTrainedTokenizerFast"] },
        "pad_token": PAD,
        "eos_token": END,
        "additional_special_tokens": ["<|im_start|>"],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1024,
    });
    let path = dir.join("tokenizer_config.json");
    std::fs::write(&path, format!("{config:#}\n")).map_err(Error::io(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Tokenizer {
        let texts = ["Let me find the value of 47*6. So it is 282.", "<think>the remainder</think>\\boxed{61}"];
        train(texts.iter().cycle().take(20).map(|text| text.to_string()), 280).unwrap()
    }

    #[test]
    fn any_text_comes_back_as_it_was() {
        let tokenizer = small();
        let mut random = crate::noise::Stream::new(&[5]);
        for _ in 0..300 {
            let last = *random.choose(&[0x7f, 0x2fff, 0x1_ffff]);
            let text: String = (0..40).filter_map(|_| char::from_u32(random.range(0, last) as u32)).collect();
            let ids = tokenizer.encode_fast(text.as_str(), false).unwrap();
            assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), text);
        }
    }

    #[test]
    fn digits_signs_and_added_tokens_stand_alone() {
        let tokenizer = small();
        let text = "<think>So 47*6=282;</think>\\boxed{61}<|im_end|>";
        let encoding = tokenizer.encode(text, false).unwrap();
        let tokens: Vec<&str> = encoding.get_tokens().iter().map(String::as_str).collect();
        let after = ["4", "7", "*", "6", "=", "2", "8", "2", ";", "</think>"];
        assert!(tokens.windows(after.len()).any(|window| window == after), "{tokens:?}");
        assert_eq!(tokens.first(), Some(&"<think>"));
        // Thinking tags survive decoding; special tokens do not.
        let shown = tokenizer.decode(encoding.get_ids(), true).unwrap();
        assert_eq!(shown, text.trim_end_matches("<|im_end|>"));
        assert_eq!(SPECIAL.map(|token| tokenizer.token_to_id(token)), [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn files_read_back_as_the_same_tokenizer() {
        let tokenizer = small();
        let dir = std::env::temp_dir().join(format!("tempering-bpe-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        write(&tokenizer, &dir).unwrap();
        let back = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("tokenizer_config.json")).unwrap()).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let ids = |tokenizer: &Tokenizer| tokenizer.encode("<think>So 47é", false).unwrap().get_ids().to_vec();
        assert_eq!(ids(&back), ids(&tokenizer));
        assert_eq!((&config["eos_token"], &config["pad_token"]), (&json!(END), &json!(PAD)));
    }

    #[test]
    fn sizes_that_cannot_be_reached_are_refused() {
        assert!(train(std::iter::empty(), 100).is_err());
        assert!(train(std::iter::once("one word".to_owned()), 2000).is_err());
    }
}
