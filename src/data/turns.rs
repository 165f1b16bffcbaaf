//! Conversion of a row to a conversation, and parsing of messages.

use serde_json::{Map, Value};

use super::shapes::{Fault, is_empty, names, prompt_of, shown, without_images};
use super::{Message, Prompt};

/// Read a conversation: everything before the assistant's last turn, and the text of that turn.
pub(super) fn conversation(row: &Map<String, Value>) -> std::result::Result<(Prompt, String), Fault> {
    without_images(row)?;
    if row.get("reasoning_content").is_some_and(|value| !is_empty(value)) {
        let advice =
            "write it into the assistant's turn, as reasoning_content of the message or in <think> and </think>";
        return Err(format!("reasoning_content: thinking in a column of its own is not read; {advice}"));
    }
    if let Some(value) = row.get("messages").filter(|value| !value.is_null()) {
        let mut messages = messages_of(value, "messages")?;
        return match messages.pop() {
            Some(last) if last.role == "assistant" && !messages.is_empty() => {
                Ok((Prompt::Messages(messages), words(last.content, value, "messages")?))
            }
            _ => Err("messages: expected a prompt and then an assistant's turn at the end".into()),
        };
    }
    let (Some(prompt), Some(completion)) = (row.get("prompt"), row.get("completion")) else {
        return Err(format!("expected messages, or prompt and completion; the row has {}", names(row)));
    };
    if row.get("label") == Some(&Value::Bool(false)) {
        return Err("label = false: an answer that is not to be imitated (as KTO has them); leave such rows out".into());
    }
    let content = match completion {
        Value::String(text) => text.clone(),
        list => match messages_of(list, "completion")?.as_slice() {
            [only] if only.role == "assistant" => only.content.clone(),
            _ => return Err("completion: expected a text or one assistant's turn".into()),
        },
    };
    Ok((prompt_of(prompt, "prompt")?, words(content, completion, "completion")?))
}

/// Return the text of the last turn, after its thinking if that is in a separate field. Chat templates drop the thinking of
/// turns before the user's last one.
fn words(content: String, messages: &Value, field: &str) -> std::result::Result<String, Fault> {
    if content.trim().is_empty() {
        return Err(format!(
            "{field}: the assistant's turn is empty, which would teach to end at once; leave such rows out"
        ));
    }
    let Some((last, earlier)) = messages.as_array().and_then(|list| list.split_last()) else { return Ok(content) };
    let place = |index: usize| format!("{field}[{index}]");
    let asked = earlier.iter().rposition(|turn| turn["role"] == "user").unwrap_or(0);
    for (index, turn) in earlier.iter().enumerate().skip(asked) {
        if let Some((key, _)) = thinking(turn, &place(index))? {
            return Err(format!(
                "{}.{key}: only the thinking of the last turn is read; join the two turns",
                place(index)
            ));
        }
    }
    let Some((key, thinking)) = thinking(last, &place(earlier.len()))? else { return Ok(content) };
    if !content.contains("<think>") && !content.contains("</think>") {
        return Ok(format!("<think>\n{thinking}\n</think>\n\n{content}"));
    }
    if content.contains(&thinking) {
        return Ok(content);
    }
    Err(format!(
        "{}.{key}: the content has other thinking, in <think> and </think>; leave one out",
        place(earlier.len())
    ))
}

/// Return the name and the text of the field with the thinking of a turn; `None` if it has none.
pub(crate) fn thinking(turn: &Value, place: &str) -> std::result::Result<Option<(&'static str, String)>, Fault> {
    let mut found: Option<(&str, String)> = None;
    for key in ["reasoning_content", "reasoning", "thinking"] {
        if is_empty(&turn[key]) {
            continue;
        }
        let text =
            text_of(&turn[key]).ok_or_else(|| format!("{place}.{key} = {}: expected a text", shown(&turn[key])))?;
        match &found {
            Some((other, first)) if first != text.trim() => {
                return Err(format!("{place} has different thinking in {other} and {key}; leave one out"));
            }
            _ => found = Some((key, text.trim().to_string())),
        }
    }
    Ok(found)
}

/// Return a text, or the joined texts of content in parts, as in multimodal chats; `None` for parts that are not text.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(|part| part["text"].as_str()).collect(),
        _ => None,
    }
}

pub(super) fn messages_of(value: &Value, field: &str) -> std::result::Result<Vec<Message>, Fault> {
    let list = value.as_array().ok_or_else(|| format!("{field} = {}: expected a list of messages", shown(value)))?;
    (0..).zip(list).map(|(i, turn): (usize, _)| message(turn, &format!("{field}[{i}]"))).collect()
}

fn message(turn: &Value, field: &str) -> std::result::Result<Message, Fault> {
    if !is_empty(&turn["tool_calls"]) {
        return Err(format!("{field}.tool_calls: calls of tools are not read; leave such rows out"));
    }
    match (turn["role"].as_str(), text_of(&turn["content"])) {
        (Some(role), Some(_)) if usual_role(role) != role => Err(format!(
            "{field}.role = {role:?}: the roles that templates know are system, user and assistant; call it {}",
            usual_role(role)
        )),
        (Some(role), Some(content)) => Ok(Message::new(role, content)),
        _ => Err(format!("{field} = {}: expected an object with the texts role and content", shown(turn))),
    }
}

/// Return the templates' name of a role that other programs name differently.
fn usual_role(role: &str) -> &str {
    match role.to_lowercase().as_str() {
        "human" | "user" => "user",
        "gpt" | "chatgpt" | "bot" | "ai" | "model" | "assistant" => "assistant",
        "system" => "system",
        _ => role,
    }
}

/// Remove the assistant's turns at the end.
pub(super) fn without_last_assistant(
    mut messages: Vec<Message>,
    field: &str,
) -> std::result::Result<Vec<Message>, Fault> {
    while messages.pop_if(|message| message.role == "assistant").is_some() {}
    match messages.last() {
        Some(_) => Ok(messages),
        None => Err(format!("{field}: expected a turn for the model to answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(row: &str) -> std::result::Result<(Prompt, String), Fault> {
        conversation(&serde_json::from_str(row).unwrap())
    }

    #[test]
    fn conversations_end_with_the_assistant() {
        let turns =
            read(r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#).unwrap();
        assert_eq!(turns, (Prompt::Messages(vec![Message::user("q")]), "a".into()));
        let plain = read(r#"{"messages": null, "prompt": "q", "completion": "a", "label": true}"#).unwrap();
        assert_eq!(plain, (Prompt::Text("q".into()), "a".into()));
        let lists = read(
            r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
        );
        assert_eq!(lists.unwrap(), turns);
        // Thinking in a separate field was once dropped, and the model learned to answer at once.
        for key in ["reasoning_content", "reasoning", "thinking"] {
            let apart = format!(r#"{{"role": "assistant", "{key}": "2+3 = 5", "content": "a"}}"#);
            for row in [
                format!(r#"{{"messages": [{{"role": "user", "content": "q"}}, {apart}]}}"#),
                format!(r#"{{"prompt": "q", "completion": [{apart}]}}"#),
            ] {
                assert_eq!(read(&row).unwrap().1, "<think>\n2+3 = 5\n</think>\n\na");
            }
        }
    }

    /// Regression: thinking in parts, beside other thinking or in another turn was dropped without a word.
    #[test]
    fn thinking_in_a_field_of_its_own_is_read_or_refused() {
        let turns = |turns: &str| read(&format!(r#"{{"messages": [{{"role": "user", "content": "q"}}, {turns}]}}"#));
        let last = |fields: &str| turns(&format!(r#"{{"role": "assistant", {fields}}}"#));
        for fields in [
            r#""content": "a", "reasoning_content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "3"}]"#,
            r#""content": "a", "reasoning_content": " 2+3\n", "reasoning": "2+3", "thinking": null"#,
            r#""content": "<think>\n2+3\n</think>\n\na", "reasoning": "2+3", "thinking": false"#,
        ] {
            assert_eq!(last(fields).unwrap().1, "<think>\n2+3\n</think>\n\na", "{fields}");
        }
        let earlier = r#"{"role": "assistant", "content": "b", "reasoning": "4"}, {"role": "user", "content": "r"}"#;
        let end = r#"{"role": "assistant", "content": "a"}"#;
        assert_eq!(turns(&format!("{earlier}, {end}")).unwrap().1, "a");
        for (found, want) in [
            (last(r#""content": "a", "reasoning": [3]"#), "messages[1].reasoning = [3]: expected a text"),
            (last(r#""content": "a", "thinking": true"#), "messages[1].thinking = true: expected a text"),
            (
                last(r#""content": "a", "reasoning": "x", "thinking": "y""#),
                "messages[1] has different thinking in reasoning and thinking; leave one out",
            ),
            (
                last(r#""content": "<think>y</think>a", "reasoning": "x""#),
                "messages[1].reasoning: the content has other thinking",
            ),
            (last(r#""content": "y</think>a", "reasoning": "x""#), "messages[1].reasoning: the content has other"),
            (
                turns(&format!(r#"{{"role": "assistant", "content": "b", "reasoning": "4"}}, {end}"#)),
                "messages[1].reasoning: only the thinking of the last turn is read",
            ),
            (
                read(r#"{"prompt": "q", "completion": "a", "reasoning_content": "x"}"#),
                "reasoning_content: thinking in a column of its own is not read",
            ),
        ] {
            let fault = found.unwrap_err();
            assert!(fault.contains(want), "{fault}");
        }
    }

    #[test]
    fn conversations_that_teach_nothing_are_refused() {
        let last = |turn: &str| format!(r#"{{"messages": [{{"role": "user", "content": "q"}}, {turn}]}}"#);
        let call = r#"{"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f"}}]}"#;
        let table = [
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#.to_string(), "an assistant's turn at the end"),
            (r#"{"text": "q"}"#.to_string(), "the row has text"),
            (last(r#"{"role": "assistant", "content": " "}"#), "messages: the assistant's turn is empty"),
            (
                last(r#"{"role": "assistant", "content": "", "thinking": "t"}"#),
                "messages: the assistant's turn is empty",
            ),
            (r#"{"prompt": "q", "completion": ""}"#.to_string(), "completion: the assistant's turn is empty"),
            (last(call), "messages[1].tool_calls: calls of tools are not read"),
            (
                r#"{"prompt": "q", "completion": "a", "label": false}"#.to_string(),
                "label = false: an answer that is not",
            ),
            (last(r#"{"role": "gpt", "content": "a"}"#), r#"messages[1].role = "gpt": the roles that"#),
            (
                r#"{"messages": [{"role": "human", "content": "q"}]}"#.to_string(),
                r#"messages[0].role = "human": the roles that templates know are system, user and assistant; call it user"#,
            ),
            (r#"{"prompt": "q", "completion": "a", "image": "a.png"}"#.to_string(), "image is not empty"),
        ];
        for (row, want) in table {
            let fault = read(&row).unwrap_err();
            assert!(fault.contains(want), "{fault}");
        }
    }
}
