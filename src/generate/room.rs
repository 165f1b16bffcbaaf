//! Check that prompt and completion fit the context length of a model.

use crate::error::{Error, Result};

/// Context length of a model, and the maximum completion length.
///
/// A model is not trained on positions beyond `max_position_embeddings`: its output there is useless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room<'a> {
    /// Context length of the model, in tokens (`config.json`).
    pub max_position_embeddings: usize,
    /// Maximum completion length, in tokens.
    pub max_completion_length: usize,
    /// Name of the setting for the completion length, as the user writes it.
    pub setting: &'a str,
}

impl Room<'_> {
    /// Return the maximum completion length after a prompt of `prompt` tokens; 0 if the prompt fills the context.
    pub fn left(&self, prompt: usize) -> usize {
        self.max_position_embeddings.saturating_sub(prompt).min(self.max_completion_length)
    }

    /// Return the maximum prompt length that leaves enough context for the longest completion.
    pub fn longest_prompt(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.max_completion_length)
    }

    /// Check that the longest completion fits after a prompt of `prompt` tokens; the error shows the prompt's `text`.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn check(&self, prompt: usize, text: &str) -> Result<()> {
        let Self { max_position_embeddings: positions, max_completion_length: longest, setting } = *self;
        if self.left(prompt) == longest {
            return Ok(());
        }
        let advice = match positions.saturating_sub(prompt) {
            0 => "the prompt alone fills the context: leave such rows out (max_prompt_length, filter_overlong_prompts)"
                .to_string(),
            left => {
                format!(
                    "set {setting} to {left} at most, or leave such rows out (max_prompt_length, \
                     filter_overlong_prompts)"
                )
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
        assert!(room.check(2000, "q").unwrap_err().to_string().contains("fills the context"));
        assert_eq!([24, 25, 2000].map(|prompt| room.left(prompt)), [1000, 999, 0]);
        // The sum of two lengths must not overflow.
        let endless = Room { max_completion_length: usize::MAX, ..room };
        assert!(endless.check(usize::MAX, "q").is_err());
    }
}
