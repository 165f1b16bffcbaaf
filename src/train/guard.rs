//! Guards against numbers that are not finite: one or two such steps are skipped, the third in a row ends the run.

use std::path::Path;

use serde_json::json;

use crate::error::{Error, Result};
use crate::files;
use crate::text::tokenizer::Tokenizer;

/// Number of bad steps in a row that ends a run.
const LIMIT: usize = 3;

/// Counts consecutive bad steps.
#[derive(Debug, Default)]
pub(super) struct Guard {
    in_a_row: usize,
}

impl Guard {
    /// Count a step. `good` is whether all its numbers are finite; `sequences` are its prompts and completions.
    ///
    /// # Errors
    /// If it is the third bad step in a row. Its sequences are then written to `bad_batch.jsonl`, and no checkpoint is
    /// written: the newest one is from before.
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
            "step {step} is the third in a row with a loss, ratio or gradient that is not finite (NaN or infinite); \
             its sequences are in {}. Start a new run from the newest checkpoint, which is older than this step, if \
             there is one (model.path), with a lower optim.learning_rate",
            path.display()
        )))
    }
}
