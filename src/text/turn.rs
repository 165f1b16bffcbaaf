//! What a chat template makes of the turns: the text around an assistant's words, the start of its thinking, and turns
//! that it leaves out.

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
    // The tail is encoded as it follows words: the tokenizer may put a space before a text.
    let (before, whole) = (encode(PLACEHOLDER)?, encode(&format!("{PLACEHOLDER}{tail}"))?);
    let mut tokens = whole.strip_prefix(before.as_slice()).map_or_else(|| encode(tail), |tail| Ok(tail.to_vec()))?;
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

/// Return the text that the template writes between a prompt and the assistant's words, such as the channel of an answer;
/// empty if it cannot be determined.
pub(super) fn head(template: &ChatTemplate) -> String {
    let turns = [Message::user("question"), Message::new("assistant", PLACEHOLDER)];
    let (prompt, text) = (template.render(&turns[..1], true), template.render(&turns, false));
    let (Ok(prompt), Ok(text)) = (prompt, text) else { return String::new() };
    let rest = text.strip_prefix(&prompt).unwrap_or_default();
    rest.find(PLACEHOLDER).map_or_else(String::new, |at| rest[..at].to_string())
}

/// Return the part of `head` before these words: thinking of their own replaces an empty one.
pub(super) fn head_of<'a>(head: &'a str, words: &str) -> &'a str {
    let thinks = MARKS.iter().any(|mark| words.contains(mark));
    &head[..head.find(OPEN).filter(|_| thinks).unwrap_or(head.len())]
}

/// Return a message about the first turn whose words are not in `text`, the prompt that the template makes of `messages`.
pub(super) fn left_out(template: &ChatTemplate, messages: &[Message], text: &str) -> Option<String> {
    let is_left_out = |at: &usize| {
        if text.contains(messages[*at].content.trim()) {
            return false;
        }
        // The template may write the words in another form, or without their thinking.
        let mut turns = messages.to_vec();
        turns[*at].content = PLACEHOLDER.to_string();
        template.render(&turns, true).is_ok_and(|text| !text.contains(PLACEHOLDER))
    };
    let Message { role, content } = &messages[(0..messages.len()).find(is_left_out)?];
    Some(format!(
        "the chat template leaves out a turn of the role {role:?}: put its words into another turn, or use a template \
         that writes it: {content:.80}"
    ))
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
    use std::path::Path;

    use super::*;
    use crate::text::chat::SpecialTokens;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, Path::new("x.jinja"), SpecialTokens::default()).unwrap()
    }

    /// Regression: a system prompt that the template does not write was lost without a word.
    #[test]
    fn turns_that_a_template_leaves_out_are_told() {
        let template = template(
            "{% for m in messages if m.role in ['user', 'assistant'] %}[{{ m.content.split('</think>')[-1] | trim }}]\
             {% endfor %}",
        );
        let left_out = |turns: &[(&str, &str)]| {
            let turns: Vec<Message> = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
            super::left_out(&template, &turns, &template.render(&turns, true).unwrap())
        };
        for role in ["system", "developer", "tool"] {
            let message = left_out(&[(role, "Be brief."), ("user", "q")]).unwrap();
            assert!(message.contains(&format!("a turn of the role {role:?}")) && message.ends_with("Be brief."));
        }
        // Another form is no loss, and nor is earlier thinking.
        let turns = [("user", " q\n"), ("assistant", "<think>a</think>b"), ("user", ""), ("user", "r")];
        assert_eq!(left_out(&turns), None);
    }

    /// Regression: training texts lacked what the template writes before the words (the channel of gpt-oss, the space of
    /// Mistral, the empty thinking of Qwen3).
    #[test]
    fn what_a_template_writes_before_the_words_is_part_of_the_completion() {
        let writes = |head: &str| {
            let turn =
                format!("{{% if m.role == 'assistant' %}}A:{head}{{% else %}}U:{{% endif %}}{{{{ m.content }}}};");
            let open = "{% if add_generation_prompt %}A:{% endif %}";
            super::head(&template(&format!("{{% for m in messages %}}{turn}{{% endfor %}}{open}")))
        };
        let empty = "{% if '</think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}";
        let (channel, thinking) = (writes("<|final|>"), writes(empty));
        assert_eq!((writes("").as_str(), channel.as_str()), ("", "<|final|>"));
        for (head, words, want) in [
            (&channel, "5", "<|final|>"),
            (&channel, "<think>a</think>5", "<|final|>"),
            (&thinking, "5", "<think>\n\n</think>\n\n"),
            (&thinking, "<think>a</think>5", ""),
            (&"\n<think></think>\n".to_string(), "<think>a</think>5", "\n"),
        ] {
            assert_eq!(head_of(head, words), want, "{head:?} {words:?}");
        }
    }

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
