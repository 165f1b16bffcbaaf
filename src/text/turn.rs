//! Text that a chat template writes around an assistant's words: the end of the turn, and the start of its thinking.

use super::chat::{ChatTemplate, Message};
use crate::error::Result;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Thinking tags that graders read.
pub(super) const MARKS: [&str; 2] = [OPEN, CLOSE];

/// Placeholder that no template writes itself or changes.
const PLACEHOLDER: &str = "tempering3f9a";

/// Return the text that the template writes after the assistant's words; `None` if it cannot be determined.
pub(super) fn tail(template: &ChatTemplate) -> Option<String> {
    let turns = [Message::user("question"), Message::new("assistant", PLACEHOLDER)];
    let text = template.render(&turns, false).ok()?;
    Some(text[text.rfind(PLACEHOLDER)? + PLACEHOLDER.len()..].to_string())
}

/// Return the tokens of `tail` up to its first stop token; `None` if it has no stop token.
///
/// The rest (a line break in most templates) is not part of the turn: a model ends with the stop token, and the
/// template writes the rest before the next turn.
pub(super) fn end(tail: &str, encode: impl Fn(&str) -> Result<Vec<u32>>, stops: &[u32]) -> Result<Option<Vec<u32>>> {
    let mut tokens = encode(tail)?;
    let stop = tokens.iter().position(|token| stops.contains(token));
    Ok(stop.map(|stop| {
        tokens.truncate(stop + 1);
        tokens
    }))
}

/// Return the assistant's turn in the prompt from its `<think>` on: `"<think>\n"` for a template that opens the
/// thinking, `"<think>\n\n</think>\n\n"` for one that disables it, `""` for all others.
pub(super) fn opening(template: &ChatTemplate) -> String {
    let user = [Message::user(PLACEHOLDER)];
    let Ok(text) = template.render(&user, true) else { return String::new() };
    // Only the part that opens the turn: other parts may mention the tags.
    let without = template.render(&user, false).unwrap_or_default();
    let prompt = match text.strip_prefix(&without) {
        Some(prompt) => prompt,
        None => text.rfind(PLACEHOLDER).map_or("", |at| &text[at + PLACEHOLDER.len()..]),
    };
    prompt.find(OPEN).map_or_else(String::new, |at| prompt[at..].to_string())
}

/// Return whether thinking is still open at the end of `text`.
pub(super) fn is_open(text: &str) -> bool {
    text.rfind(OPEN) > text.rfind(CLOSE)
}

/// Return the part of an assistant's words that follows a prompt with this `opening`: without the thinking tag that
/// the prompt already contains.
///
/// # Errors
/// The reason why words and prompt do not match.
pub(super) fn continuation<'a>(opening: &str, words: &'a str) -> std::result::Result<&'a str, String> {
    if opening.is_empty() {
        return Ok(words);
    }
    let begun = words.trim_start().strip_prefix(OPEN);
    if is_open(opening) {
        return match begun {
            Some(rest) if opening.ends_with('\n') => Ok(rest.strip_prefix('\n').unwrap_or(rest)),
            Some(rest) => Ok(rest),
            None if words.contains(CLOSE) => Ok(words),
            None => Err(format!(
                "the chat template opens {OPEN} in the prompt, but the completion does not close it: add {CLOSE} where \
                 the thinking ends, or make the template not open it (prompt.chat_template_kwargs)"
            )),
        };
    }
    match words.trim_start().strip_prefix(opening.trim_end()) {
        Some(rest) => Ok(rest.trim_start_matches('\n')),
        None if begun.is_none() && !words.contains(CLOSE) => Ok(words),
        None => Err(format!(
            "the chat template closes the thinking in the prompt, but the completion contains thinking: remove its \
             {OPEN}…{CLOSE}, or change prompt.chat_template_kwargs"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_goes_on_where_its_prompt_ends() {
        let (open, closed) = ("<think>\n", "<think>\n\n</think>\n\n");
        let table = [
            ("", "<think>a</think>5", Some("<think>a</think>5")),
            (open, "<think>\na\n</think>\n5", Some("a\n</think>\n5")),
            (open, "<think>a</think>5", Some("a</think>5")),
            ("<think>", "\n<think>\na</think>5", Some("\na</think>5")),
            (open, "a</think>5", Some("a</think>5")),
            // Unclosed thinking is kept; only the repeated tag is removed.
            (open, "<think>\na", Some("a")),
            (open, "5", None),
            (closed, "5", Some("5")),
            (closed, "<think>\n\n</think>\n\n5", Some("5")),
            (closed, "<think>a</think>5", None),
            (closed, "a</think>5", None),
        ];
        for (opening, words, want) in table {
            assert_eq!(continuation(opening, words).ok(), want, "{opening:?} {words:?}");
        }
    }
}
