//! Numbers that are not finite: a step or two of them are skipped, the third in a row ends the run.

use std::path::Path;

use serde_json::json;

use crate::error::{Error, Result};
use crate::files;
use crate::text::tokenizer::Tokenizer;

/// Bad steps in a row that end a run.
const LIMIT: usize = 3;

/// Counts bad steps.
#[derive(Debug, Default)]
pub(super) struct Guard {
    in_a_row: usize,
}

impl Guard {
    /// Takes note of a step and its `sequences`, each a prompt and a completion.
    ///
    /// # Errors
    /// When it is the third bad one in a row: its sequences are in `bad_batch.jsonl` then, and no checkpoint is written,
    /// so that the newest is from before.
    pub(super) fn check<'a>(
        &mut self,
        good: bool,
        run: &Path,
        step: usize,
        tokenizer: &Tokenizer,
        sequences: impl Iterator<Item = (&'a [u32], &'a [u32])>,
    ) -> Result<()> {
        self.in_a_row = if good { 0 } else { self.in_a_row + 1 };
        if self.in_a_row < LIMIT {
            return Ok(());
        }
        let path = run.join("bad_batch.jsonl");
        let rows = sequences.map(|(prompt, completion)| {
            json!({
                "step": step,
                "prompt": tokenizer.decode(prompt, false),
                "completion": tokenizer.decode(completion, false),
                "prompt_ids": prompt,
                "completion_ids": completion,
            })
        });
        files::write_json_lines(&path, rows)?;
        Err(Error::NotFinite(format!(
            "step {step} is the third in a row with a loss, ratio or gradient that is not finite; its sequences are in {}. \
             The newest checkpoint, if there is one, is from before: start another run from it (model.path) with a lower \
             optim.learning_rate",
            path.display()
        )))
    }
}
