//! A Hugging Face tokenizer folder: text to token ids and back.
//!
//! A completion is never decoded and encoded again on its way to the loss, because the tokens may then differ from the
//! sampled ones.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use chrono::Local;

use super::added::TokenFiles;
use super::chat::{ChatTemplate, Message, Prompt, SpecialTokens};
use super::folder::{ADDED, CONFIG, GENERATION, SPECIAL, TEMPLATE, TOKENIZER, TokenizerFiles};
use super::generation::{self, Recommended};
use super::prompt::PromptConfig;
use super::turn;
use crate::contain::contained;
use crate::error::{Error, Result};

/// A tokenizer with its chat template, its stop tokens and the settings of `[prompt]`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    tokens: SpecialTokens,
    template: Option<ChatTemplate>,
    prompt: PromptConfig,
    vocab_size: usize,
    /// Bytes of the longest token.
    longest: usize,
    /// Special tokens, which are left out of displayed text.
    hidden: HashSet<u32>,
    eos: Option<u32>,
    stop_ids: Vec<u32>,
    pad_id: u32,
    turn_end: Vec<u32>,
    opening: String,
    /// Text that the chat template writes between a prompt and the assistant's words.
    head: String,
    notes: Vec<String>,
    folder: TokenizerFiles,
}

impl Tokenizer {
    /// Read `tokenizer.json` and, where present, `tokenizer_config.json`, `chat_template.jinja`,
    /// `special_tokens_map.json` and `generation_config.json` from `dir`.
    ///
    /// Files missing in an adapter's directory are read from its base model's. Tokens that only other files name
    /// (`added_tokens_decoder`, `eos_token`, `additional_special_tokens`, …) are added to those of `tokenizer.json`.
    ///
    /// The stop tokens are all ids in `eos_token_id` of `generation_config.json` (of `config.json` if it has none) and
    /// the tokenizer's own `eos_token`.
    ///
    /// # Errors
    /// A file that is missing, malformed, or names an unknown token; a folder without an end-of-text token: no
    /// completion would end.
    pub fn load(dir: &Path) -> Result<Self> {
        let folder = TokenizerFiles::open(dir)?;
        let file = folder.path(TOKENIZER);
        let bytes = folder
            .get(TOKENIZER)
            .ok_or_else(|| Error::file(&file, "no such file: copy it from the model of these weights"))?;
        let read = contained(|| tokenizers::Tokenizer::from_bytes(bytes));
        let read = read.ok_or_else(|| Error::file(&file, "malformed: the tokenizers library cannot read it"))?;
        let mut inner = read.map_err(|e| Error::file(&file, e))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(&file, e))?;
        let named =
            TokenFiles { config: folder.json(CONFIG)?, special: folder.json(SPECIAL)?, added: folder.json(ADDED)? };
        named.complete(&mut inner).map_err(|e| Error::file(folder.path(CONFIG), e))?;
        let vocab = inner.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        let longest = vocab.keys().map(String::len).max().unwrap_or(1).max(1);
        let added = inner.get_added_tokens_decoder();
        let is_hidden =
            |token: &tokenizers::AddedToken| token.special && !turn::MARKS.contains(&token.content.as_str());
        let hidden = added.iter().filter(|(_, token)| is_hidden(token)).map(|(&id, _)| id).collect();

        let token = |key: &str| named.name(key);
        let tokens = SpecialTokens { bos: token("bos_token"), eos: token("eos_token"), pad: token("pad_token") };
        let id = |token: &Option<String>| token.as_deref().and_then(|token| inner.token_to_id(token));
        let (bos, eos, pad) = (id(&tokens.bos), id(&tokens.eos), id(&tokens.pad));
        let stop_ids = stop_ids(&folder, &inner, eos)?;
        let pad = pad.or(folder.ids("pad_token_id")?.first().copied());
        let pad_id = choose_pad(&inner, pad, bos, &stop_ids);

        Self {
            inner,
            tokens,
            template: None,
            prompt: PromptConfig::default(),
            vocab_size,
            longest,
            hidden,
            eos,
            stop_ids,
            pad_id,
            turn_end: Vec::new(),
            opening: String::new(),
            head: String::new(),
            notes: Vec::new(),
            folder,
        }
        .with_prompt(&PromptConfig::default())
    }

    /// Return the tokenizer with other `[prompt]` settings.
    ///
    /// # Errors
    /// Settings that are invalid or would have no effect, all of them listed.
    pub fn with_prompt(mut self, config: &PromptConfig) -> Result<Self> {
        self.notes.clear();
        self.template = None;
        let mut mistakes = config.mistakes();
        match self.folder.template(config.template.as_deref())? {
            Ok((source, file)) => self.template = Some(ChatTemplate::new(&source, &file, self.tokens.clone())?),
            Err(why) if config.template.is_some() => mistakes.push(why),
            Err(why) => self.notes.push(why),
        }
        if self.template.is_some() || config.template.is_none() {
            mistakes.extend(self.unused(config));
        }
        if !mistakes.is_empty() {
            return Err(Error::Config { origin: self.folder.dir.display().to_string(), problems: mistakes });
        }
        self.prompt = config.clone();
        (self.opening, self.head) = (String::new(), String::new());
        let Some(template) = self.template.take() else {
            self.turn_end = vec![self.eos.unwrap_or(self.stop_ids[0])];
            return Ok(self);
        };
        let day = config.day().unwrap_or_else(|| Local::now().date_naive());
        if template.reads_date() {
            self.prompt.date = day.to_string();
        }
        let kwargs = config.chat_template_kwargs.iter();
        let kwargs = kwargs.map(|(key, value)| (key.clone(), minijinja::Value::from(minijinja::value::Serde(value))));
        let template = template.with(kwargs.collect::<BTreeMap<_, _>>(), day);
        let tail = turn::tail(&template);
        let end = match &tail {
            Some(tail) => turn::end(tail, |text| self.encode(text), &self.stop_ids)?,
            None => None,
        };
        self.turn_end = end.unwrap_or_else(|| self.fallback_turn_end(tail.as_deref()));
        self.opening = turn::opening(&template);
        self.head = if self.opening.is_empty() { turn::head(&template) } else { String::new() };
        self.template = Some(template);
        Ok(self)
    }

    /// Return the end of a turn if the chat template, which writes `tail` after the words, has none; add a note.
    fn fallback_turn_end(&mut self, tail: Option<&str>) -> Vec<u32> {
        let end = self.eos.unwrap_or(self.stop_ids[0]);
        let why = match tail {
            Some(tail) => format!("ends an assistant's turn with {tail:?}, which has no stop token"),
            None => "cannot render a question with its answer".to_string(),
        };
        let (dir, token) = (self.folder.dir.display(), self.token_text(end));
        self.notes.push(format!("{dir}: the chat template {why}; turns are ended with {token:?}"));
        vec![end]
    }

    /// Return one message per setting that this tokenizer would not use.
    fn unused(&self, config: &PromptConfig) -> Vec<String> {
        let Some(template) = &self.template else {
            let all = [
                ("system", config.system.is_empty()),
                ("date", config.date.is_empty()),
                ("chat_template_kwargs", config.chat_template_kwargs.is_empty()),
            ];
            let set = all.into_iter().filter(|(_, empty)| !empty);
            return set
                .map(|(key, _)| format!("prompt.{key} is for chat templates, but the tokenizer has none: remove it"))
                .collect();
        };
        let variables = template.variables();
        let unread = config.chat_template_kwargs.keys().filter(|key| !variables.contains(*key));
        let mut lines: Vec<String> = unread
            .map(|key| format!("prompt.chat_template_kwargs.{key} is not used by the chat template: remove it"))
            .collect();
        if !config.date.is_empty() && !template.reads_date() {
            lines.push(format!("prompt.date = {:?} is not used by the chat template: remove it", config.date));
        }
        lines
    }

    /// Return the `[prompt]` settings. The date is the one in the prompts, if the chat template reads one: stored in a
    /// run's settings, it gives the same prompts on a later day.
    pub fn prompt(&self) -> &PromptConfig {
        &self.prompt
    }

    /// Return notes for the user about the tokenizer's files, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Return the ids of `text`. Nothing is added; the text of a special token inside becomes its id.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text, false)?.get_ids().to_vec())
    }

    fn encoding(&self, text: &str, add_special_tokens: bool) -> Result<tokenizers::Encoding> {
        let fault = match contained(|| self.inner.encode_fast(text, add_special_tokens)) {
            Some(Ok(encoding)) => return Ok(encoding),
            Some(Err(error)) => error.to_string(),
            None => "the tokenizers library panics on it".to_string(),
        };
        Err(Error::Invalid(format!("cannot tokenize {:?}: {fault}", text.chars().take(80).collect::<String>())))
    }

    /// Return the ids of `text` after the tokens that the tokenizer adds at the start of every text.
    fn encode_bare(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.encoding(text, true)?;
        let mut ids = encoding.get_ids().to_vec();
        // A prompt is continued: the tokens that the tokenizer adds at the end of a text are removed.
        let added = encoding.get_special_tokens_mask().iter().rev().take_while(|&&added| added == 1).count();
        ids.truncate(ids.len() - added);
        Ok(ids)
    }

    /// Return the text of `ids`. Without special tokens, it still keeps thinking tags, even if the tokenizer marks
    /// them as special: answers are located by them. Ids outside the vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let ids: Vec<u32> = ids.iter().copied().filter(|id| !skip_special || !self.hidden.contains(id)).collect();
        self.inner.decode(&ids, false).unwrap_or_else(|_| {
            // If the decoder fails, the tokens' own texts are joined.
            ids.iter().filter_map(|&id| self.inner.id_to_token(id)).collect()
        })
    }

    /// Return a completion as graders and rewards read it: its text without special tokens, after the thinking tag
    /// that the prompt contains, if any.
    pub fn completion_text(&self, ids: &[u32]) -> String {
        format!("{}{}", self.opening, self.decode(ids, true))
    }

    /// Return whether the prompt opens the thinking, so that a completion begins inside it.
    pub fn opens_thinking(&self) -> bool {
        turn::is_open(&self.opening)
    }

    /// Return the largest id plus one, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Return the minimum number of tokens of a text of this many bytes: if all of them were the longest token.
    pub fn least_tokens(&self, bytes: usize) -> usize {
        bytes / self.longest
    }

    /// Return one token's text for display; part of a character shows as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        self.decode(&[id], false)
    }

    /// Return the id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Return the tokens that end a completion, in the order of the files; never empty.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Return the tokens that end an assistant's turn: those that the chat template writes after its words, up to the
    /// stop token, or else the tokenizer's `eos_token`.
    pub fn turn_end(&self) -> &[u32] {
        &self.turn_end
    }

    /// Return the padding token. If the file's pad token is also a stop token, another special token is used; only if
    /// there is none does [`Tokenizer::pad_is_stop`] return true.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Return whether the pad token is a stop token, for lack of another one.
    pub fn pad_is_stop(&self) -> bool {
        self.stop_ids.contains(&self.pad_id)
    }

    /// Return whether the tokenizer has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// Render a conversation with the chat template, unchanged; `add_generation_prompt` opens the assistant's turn.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let Some(template) = &self.template else {
            let message = format!("the tokenizer has no chat template: add {TEMPLATE} or give the prompt as a string");
            return Err(Error::Invalid(message));
        };
        template.render(messages, add_generation_prompt)
    }

    /// Return the text of a prompt with the `[prompt]` settings, as [`Tokenizer::encode_prompt`] encodes it.
    ///
    /// # Errors
    /// When the template rejects the conversation or leaves out a turn, and when the text of a turn ends turns itself.
    pub fn render_prompt(&self, prompt: &Prompt) -> Result<String> {
        let messages = match (self.prompt.ask(prompt)?, &self.template) {
            (Prompt::Text(text), None) => return Ok(text),
            (asked, _) => asked.to_messages(),
        };
        let text = self.render(&messages, true)?;
        if let Some(stop) = messages.iter().find_map(|message| self.stop_within(&message.content)) {
            return Err(Error::Invalid(format!(
                "the text of a turn contains {stop:?}, which ends a turn: give the prompt as messages or plain text, \
                 without the marks of a chat template, which are added"
            )));
        }
        let left_out = self.template.as_ref().and_then(|template| turn::left_out(template, &messages, &text));
        left_out.map_or(Ok(text), |why| Err(Error::Invalid(why)))
    }

    /// Return the text of a stop token that is part of `text` as the tokenizer reads it.
    fn stop_within(&self, text: &str) -> Option<String> {
        let special = self.stop_ids.iter().filter(|id| self.hidden.contains(*id));
        special.filter_map(|&id| self.inner.id_to_token(id)).find(|stop| text.contains(stop.as_str()))
    }

    /// Return the ids of a prompt, ready for the model to continue; at least one.
    ///
    /// A conversation goes through the chat template. So does a plain string, as a single user turn, if there is a
    /// template: TRL leaves strings bare, and an instruction-tuned model then never ends its turn. Without a template
    /// the string is used as it is, after the tokens that the tokenizer adds at the start of every text; a template
    /// writes these itself.
    ///
    /// # Errors
    /// When the template rejects the conversation, and when the result is empty.
    pub fn encode_prompt(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        self.encode_rendered(prompt, &self.render_prompt(prompt)?)
    }

    /// Return the ids of `text`, which is `prompt` as rendered.
    fn encode_rendered(&self, prompt: &Prompt, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_whole(text)?;
        if ids.is_empty() {
            let what = if self.has_chat_template() { "the chat template renders" } else { "the tokenizer reads" };
            let message = format!("{what} no text for the prompt {:?}", prompt.text());
            return Err(Error::file(&self.folder.dir, message));
        }
        Ok(ids)
    }

    /// Return the ids of a text from its start; a template has written what the tokenizer adds there.
    fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        if self.has_chat_template() { self.encode(text) } else { self.encode_bare(text) }
    }

    /// Return the ids of a prompt, the assistant's words and the end of its turn, and the number of those of the prompt.
    /// If the prompt opens the thinking, the words' own tag is left out.
    ///
    /// The words are encoded as they follow the prompt: many tokenizers put a space before the first word of a text. If
    /// a token would be part of both, they are encoded apart, as a model samples them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_prompt`]; words whose thinking does not match the prompt's, or that end the turn themselves.
    pub fn encode_conversation(&self, prompt: &Prompt, words: &str) -> Result<(Vec<u32>, usize)> {
        let text = self.render_prompt(prompt)?;
        let (mut ids, words) = (self.encode_rendered(prompt, &text)?, self.completion(words)?);
        let length = ids.len();
        let whole = self.encode_whole(&(text + &words))?;
        match whole.strip_prefix(ids.as_slice()) {
            Some(rest) => ids.extend(rest),
            None => ids.extend(self.encode(&words)?),
        }
        ids.extend(&self.turn_end);
        Ok((ids, length))
    }

    /// Return the text of the assistant's words between a prompt and the end of the turn.
    fn completion(&self, words: &str) -> Result<String> {
        let fail = |why| Error::Invalid(format!("{why}: {:?}", words.chars().take(80).collect::<String>()));
        if let Some(stop) = self.stop_within(words) {
            return Err(fail(format!("the completion contains {stop:?}, which ends a turn and is added: remove it")));
        }
        let rest = turn::continuation(&self.opening, words).map_err(fail)?;
        Ok(format!("{}{rest}", turn::head_of(&self.head, rest)))
    }

    /// Return the sampling settings that `generation_config.json` recommends.
    ///
    /// # Errors
    /// When one of them has the wrong type.
    pub fn recommended(&self) -> Result<Recommended> {
        Recommended::read(&self.folder.path(GENERATION), &self.folder.json(GENERATION)?)
    }

    /// Return the content of `generation_config.json` for an export: the file byte for byte if it has the stop and
    /// padding tokens; else these are added and nothing else is changed.
    ///
    /// # Errors
    /// When the file is malformed.
    pub fn generation_config(&self) -> Result<Vec<u8>> {
        let config = self.folder.json(GENERATION)?;
        Ok(generation::completed(self.folder.get(GENERATION), &config, &self.stop_ids, self.pad_id))
    }

    /// Check that every token has a row in the model's embedding. The error names the folder `dir`.
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

    /// Write the files the tokenizer was read from into `dir`, byte for byte.
    pub fn save_to(&self, dir: &Path) -> Result<()> {
        self.folder.save_to(dir)
    }
}

/// Return the tokens that end a completion, in the order in which the files name them.
fn stop_ids(folder: &TokenizerFiles, inner: &tokenizers::Tokenizer, eos: Option<u32>) -> Result<Vec<u32>> {
    let mut stops: Vec<u32> = Vec::new();
    for id in folder.ids("eos_token_id")?.into_iter().chain(eos) {
        if inner.id_to_token(id).is_none() {
            let message = format!("eos_token_id = {id} is not a token of {TOKENIZER}; correct {GENERATION}");
            return Err(Error::file(&folder.dir, message));
        }
        if !stops.contains(&id) {
            stops.push(id);
        }
    }
    if stops.is_empty() {
        let message =
            format!("no end-of-sequence token is defined; set eos_token_id in {GENERATION} or eos_token in {CONFIG}");
        return Err(Error::file(&folder.dir, message));
    }
    Ok(stops)
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
pub(super) mod tests;
