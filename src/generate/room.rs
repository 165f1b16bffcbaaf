//! Whether prompt and completion fit what a model reads.

use crate::error::{Error, Result};

/// The positions of a model, and how many of them a completion may take.
///
/// A position beyond `max_position_embeddings` is one the model was never trained on: it computes, and what it writes
/// there is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room<'a> {
    /// Positions of the model (`config.json`).
    pub max_position_embeddings: usize,
    /// Longest completion, in tokens.
    pub max_completion_length: usize,
    /// The name of the setting for the longest completion, as the user writes it.
    pub setting: &'a str,
}

impl Room<'_> {
    /// Tokens that a completion may have after a prompt of `prompt` tokens; 0 when the prompt fills the model.
    pub fn left(&self, prompt: usize) -> usize {
        self.max_position_embeddings.saturating_sub(prompt).min(self.max_completion_length)
    }

    /// Tokens of the longest prompt after which the longest completion fits.
    pub fn longest_prompt(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.max_completion_length)
    }

    /// Checks that the longest completion fits after a prompt of `prompt` tokens; `text` is of the prompt, for the
    /// message.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(&self, prompt: usize, text: &str) -> Result<()> {
        let Self { max_position_embeddings: positions, max_completion_length: longest, setting } = *self;
        if self.left(prompt) == longest {
            return Ok(());
        }
        let advice = match positions.saturating_sub(prompt) {
            0 => "the prompt alone leaves no room: leave such rows out (max_prompt_length, filter_overlong_prompts)"
                .to_string(),
            left => {
                format!("set it to {left} at most, or leave such rows out (max_prompt_length, filter_overlong_prompts)")
            }
        };
        Err(Error::Invalid(format!(
            "a prompt has {prompt} tokens and {setting} = {longest}: together more than the model's \
             max_position_embeddings = {positions}; {advice}: {text:.80}…"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_and_completion_must_fit_together() {
        let room =
            Room { max_position_embeddings: 1024, max_completion_length: 1000, setting: "eval.max_completion_length" };
        assert!(room.check(24, "q").is_ok());
        let error = room.check(25, "the question").unwrap_err().to_string();
        for part in ["25 tokens", "eval.max_completion_length = 1000", "max_position_embeddings = 1024", "999 at most"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(error.ends_with("the question…"), "{error}");
        assert!(room.check(2000, "q").unwrap_err().to_string().contains("leaves no room"));
        assert_eq!([24, 25, 2000].map(|prompt| room.left(prompt)), [1000, 999, 0]);
        // No sum of two lengths can overflow.
        let endless = Room { max_completion_length: usize::MAX, ..room };
        assert!(endless.check(usize::MAX, "q").is_err());
    }
}
