//! The training data of fine-tuning: conversations by index, and their tokens.

use rayon::prelude::*;

use super::SftConfig;
use crate::data::problems::TASKS;
use crate::data::shuffle::Shuffle;
use crate::data::{self, Conversation};
use crate::error::{Error, Result};
use crate::noise::Stream;
use crate::tasks::{Family, Generator, Manner, Split};
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
        let (data, longest) = (&config.data, config.train.max_length);
        if data.train.as_os_str() == TASKS {
            return Ok((Self::Tasks(data.generator()), 0));
        }
        let mut rows = data::load_conversations(&data.train)?;
        // All results are collected first: the error is that of the first row, in any order of the threads.
        let lengths: Vec<Result<usize>> = rows.par_iter().map(|row| length(tokenizer, row, longest)).collect();
        let lengths = lengths.into_iter().collect::<Result<Vec<usize>>>()?;
        let overlong = lengths.iter().filter(|tokens| **tokens > longest).count();
        let first = rows.iter().zip(&lengths).find(|(_, tokens)| **tokens > longest);
        if let Some((row, tokens)) = first.filter(|_| !data.filter_overlong_prompts) {
            let message = format!(
                "a conversation has {tokens} tokens, more than train.max_length = {longest}, as {overlong} of {} rows have; \
                 raise it, shorten the rows, or set data.filter_overlong_prompts to leave them out: {:.80}…",
                rows.len(),
                row.prompt.text()
            );
            return Err(Error::file(&row.place, message));
        }
        let mut lengths = lengths.into_iter();
        rows.retain(|_| lengths.next().is_some_and(|tokens| tokens <= longest));
        if rows.is_empty() {
            let message = format!("all conversations are longer than train.max_length = {longest}");
            return Err(Error::file(&data.train, message));
        }
        Ok((Self::Rows(rows), overlong))
    }

    /// Return the conversation at `index` of a run. Rows are shuffled anew each epoch.
    pub(super) fn get(&self, seed: u64, index: u64, lean: bool) -> Conversation {
        match self {
            Self::Tasks(generator) => {
                let manner =
                    |family: Family, random: &mut Stream| if lean { Manner::Lean } else { family.draw_manner(random) };
                let mut messages = generator.row_in(Split::Train, index, manner).messages;
                let completion = messages.pop().map(|message| message.content).unwrap_or_default();
                Conversation { prompt: Prompt::Messages(messages), completion, place: String::new() }
            }
            Self::Rows(rows) => rows[Shuffle::new(seed, rows.len()).row(index)].clone(),
        }
    }
}

/// Return the number of tokens of a row; a lower bound if that is already above `longest`.
fn length(tokenizer: &Tokenizer, row: &Conversation, longest: usize) -> Result<usize> {
    // A huge text is not rendered, which could fail at the limits of the template engine, and not encoded.
    let least = tokenizer.least_tokens(row.prompt.text().len().max(row.completion.len()));
    if least > longest {
        return Ok(least);
    }
    encode(tokenizer, row).map(|sequence| sequence.tokens.len()).map_err(|error| Error::file(&row.place, error))
}

/// Encode a conversation: the rendered prompt, the completion, the end of the turn.
fn encode(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Sequence> {
    let mut tokens = tokenizer.encode_prompt(&conversation.prompt)?;
    let prompt = tokens.len();
    tokens.extend(tokenizer.encode_completion(&conversation.completion)?);
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
            "a conversation has {} tokens, more than train.max_length = {longest}; raise it: {:.80}…",
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
            "train.max_length = 256, as 2 of 4 rows have",
            "filter_overlong_prompts",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let (kept, overlong) = open(&answers, true).unwrap();
        assert!(matches!(kept, Conversations::Rows(rows) if rows.len() == 2) && overlong == 2);
        let error = open(&[long], true).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl: all conversations are longer than train.max_length = 256"), "{error}");
    }
}
