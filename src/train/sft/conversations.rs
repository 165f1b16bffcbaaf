//! The training data of fine-tuning: conversations by index, and their tokens.

use rayon::prelude::*;

use super::SftConfig;
use crate::data::problems::TASKS;
use crate::data::shuffle::Shuffle;
use crate::data::{self, Conversation};
use crate::error::{Error, Result};
use crate::noise::Stream;
use crate::tasks::{Generator, Manner, Split, TaskFamily};
use crate::text::chat::Prompt;
use crate::text::tokenizer::Tokenizer;
use crate::train::batch::Sequence;

/// Conversations by index.
#[derive(Debug)]
pub(super) enum Conversations {
    /// Endless conversations of the embedded tasks.
    Tasks(Generator),
    /// The rows of a file that are within the length limit.
    Rows(Vec<Conversation>),
}

impl Conversations {
    /// Open the conversations and measure each row, so that no row can end a run that has begun. Also return the number
    /// of rows that were left out because they are too long.
    ///
    /// # Errors
    /// A malformed file; a row that cannot be rendered; a row that is too long without `data.filter_overlong_prompts`;
    /// no row left.
    pub(super) fn open(config: &SftConfig, tokenizer: &Tokenizer) -> Result<(Self, usize)> {
        let data = &config.data;
        if data.train.as_os_str() == TASKS {
            return Ok((Self::Tasks(data.generator()), 0));
        }
        let (longest, limit) = config.longest()?;
        let mut rows = data::load_conversations(&data.train)?;
        // All results are collected first: the error is that of the first row, in any order of the threads.
        let lengths: Vec<Result<_>> = rows.par_iter().map(|row| length(tokenizer, row, longest)).collect();
        let lengths = lengths.into_iter().collect::<Result<Vec<_>>>()?;
        let overlong = lengths.iter().filter(|(tokens, _)| *tokens > longest).count();
        let first = rows.iter().zip(&lengths).find(|(_, (tokens, _))| *tokens > longest);
        if let Some((row, (tokens, bound))) = first.filter(|_| !data.filter_overlong_prompts) {
            let message = format!(
                "a conversation has {bound}{tokens} tokens, more than {limit} ({overlong} of {} rows are too long); \
                 raise the limit if the model allows, shorten the rows, or set data.filter_overlong_prompts to leave \
                 them out: {:.80}…",
                rows.len(),
                row.prompt.text()
            );
            return Err(Error::file(&row.place, message));
        }
        let mut lengths = lengths.into_iter();
        rows.retain(|_| lengths.next().is_some_and(|(tokens, _)| tokens <= longest));
        if rows.is_empty() {
            let message = format!("all conversations are longer than {limit}: raise it, or shorten the rows");
            return Err(Error::file(&data.train, message));
        }
        Ok((Self::Rows(rows), overlong))
    }

    /// Return the conversation at `index` of a run. Rows are shuffled anew each epoch.
    pub(super) fn get(&self, seed: u64, index: u64, lean: bool) -> Conversation {
        match self {
            Self::Tasks(generator) => {
                let manner = |family: TaskFamily, random: &mut Stream| {
                    if lean { Manner::Lean } else { family.draw_manner(random) }
                };
                let mut messages = generator.row_in(Split::Train, index, manner).messages;
                let completion = messages.pop().map(|message| message.content).unwrap_or_default();
                Conversation { prompt: Prompt::Messages(messages), completion, place: String::new() }
            }
            Self::Rows(rows) => rows[Shuffle::new(seed, rows.len()).row(index)].clone(),
        }
    }
}

/// Return the number of tokens of a row; a lower bound and "at least " if that is already above `longest`.
fn length(tokenizer: &Tokenizer, row: &Conversation, longest: usize) -> Result<(usize, &'static str)> {
    // A huge text is not rendered, which could fail at the limits of the template engine, and not encoded.
    let least = tokenizer.least_tokens(row.prompt.text().len().max(row.completion.len()));
    if least > longest {
        return Ok((least, "at least "));
    }
    encode(tokenizer, row).map(|sequence| (sequence.tokens.len(), "")).map_err(|error| Error::file(&row.place, error))
}

/// Encode a conversation: the rendered prompt, the completion, the end of the turn.
fn encode(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Sequence> {
    let (tokens, prompt) = tokenizer.encode_conversation(&conversation.prompt, &conversation.completion)?;
    Ok(Sequence { tokens, prompt })
}

/// Return the tokens of a conversation, at most `longest`.
///
/// # Errors
/// If it has more. This only occurs for the embedded tasks, since rows of files are measured when they are opened.
pub(super) fn sequence(tokenizer: &Tokenizer, conversation: &Conversation, longest: usize) -> Result<Sequence> {
    let sequence = encode(tokenizer, conversation)?;
    if sequence.tokens.len() > longest {
        return Err(Error::Invalid(format!(
            "a conversation has {} tokens, more than train.max_length = {longest}: raise it: {:.80}…",
            sequence.tokens.len(),
            conversation.prompt.text()
        )));
    }
    Ok(sequence)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A row that was too long once ended a run only when its turn came.
    #[test]
    fn overlong_conversations_are_told_or_left_out_when_the_data_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/base");
        let tokenizer = Tokenizer::load(&folder).unwrap();
        let mut config = SftConfig::default();
        config.data.train = dir.path().join("rows.jsonl");
        let mut open = |answers: &[String], filter: bool| {
            let row = |answer: &String| format!(r#"{{"prompt": "Compute 1+1.", "completion": "{answer}"}}"#);
            let rows: Vec<String> = answers.iter().map(row).collect();
            std::fs::write(&config.data.train, rows.join("\n")).unwrap();
            (config.train.max_length, config.data.filter_overlong_prompts) = (256, filter);
            Conversations::open(&config, &tokenizer)
        };
        let (short, long) = ("2".to_string(), "1+".repeat(300) + "1");
        let answers = [short.clone(), long.clone(), "1+".repeat(1 << 20), short];
        let error = open(&answers, false).unwrap_err().to_string();
        for part in [
            "rows.jsonl:2: a conversation has",
            "train.max_length = 256 (2 of 4 rows are too long)",
            "filter_overlong_prompts",
        ] {
            assert!(error.contains(part), "{error}");
        }
        // Regression: the lower bound of a huge row, which is not encoded, was stated as its length.
        let error = open(&answers[2..], false).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl:1: a conversation has at least "), "{error}");
        let (kept, overlong) = open(&answers, true).unwrap();
        assert!(matches!(kept, Conversations::Rows(rows) if rows.len() == 2) && overlong == 2);
        let error = open(&[long], true).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl: all conversations are longer than train.max_length = 256"), "{error}");
    }

    /// Regression: `sft` trained positions beyond those of the model without a word.
    #[test]
    fn conversations_beyond_the_context_of_the_model_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/base");
        let text = std::fs::read_to_string(base.join("config.json")).unwrap();
        let small = text.replace("\"max_position_embeddings\": 1024", "\"max_position_embeddings\": 128");
        assert_ne!(small, text);
        std::fs::write(dir.path().join("config.json"), small).unwrap();
        let mut config = SftConfig::default();
        config.model.path = dir.path().to_path_buf();
        config.data.train = dir.path().join("rows.jsonl");
        let row = format!(r#"{{"prompt": "Compute 1+1.", "completion": "{}1"}}"#, "1+".repeat(100));
        std::fs::write(&config.data.train, row).unwrap();
        let error = Conversations::open(&config, &Tokenizer::load(&base).unwrap()).err().unwrap().to_string();
        assert!(error.contains("more than max_position_embeddings = 128 of model.path (1 of 1 rows"), "{error}");
    }
}
