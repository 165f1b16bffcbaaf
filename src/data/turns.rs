//! Conversion of a row to a conversation, and parsing of messages.

use serde_json::{Map, Value};

use super::shapes::{RowFault, is_empty, names, prompt_of, shown, without_images};
use super::{Message, Prompt};

/// Fields with the thinking of a turn.
const THINKING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// Read a conversation: everything before the assistant's last turn, and the text of that turn.
pub(super) fn conversation(row: &Map<String, Value>) -> std::result::Result<(Prompt, String), RowFault> {
    without_images(row)?;
    without_tools(row)?;
    let (prompt, completion) = turns(row)?;
    let dropped = |key: &&&str| {
        let thinking = row.get(**key).and_then(Value::as_str).map(str::trim);
        thinking.is_some_and(|thinking| !completion.contains(thinking))
    };
    if let Some(key) = THINKING.iter().find(dropped) {
        let advice =
            "put it into the assistant's turn, as reasoning_content of the message or between <think> and </think>";
        return Err(format!("{key}: thinking in a separate column is not read; {advice}"));
    }
    Ok((with_system(prompt, row)?, completion))
}

/// Refuse a row with settings of the chat template for it alone, or with tools.
pub(super) fn without_tools(row: &Map<String, Value>) -> std::result::Result<(), RowFault> {
    if row.get("tools").is_some_and(|value| !is_empty(value)) {
        return Err("tools: tool calls are not supported; remove such rows, or the column if it has no use".into());
    }
    let kwargs = row.get("chat_template_kwargs").and_then(Value::as_object);
    match kwargs.into_iter().flatten().find(|(_, value)| value.is_boolean() || !is_empty(value)) {
        Some((key, value)) => Err(format!(
            "chat_template_kwargs.{key} = {}: variables of the chat template are the same for all rows; set \
             prompt.chat_template_kwargs, and remove the column",
            shown(value)
        )),
        None => Ok(()),
    }
}

/// Put the text of the column `system` or `system_prompt` before the conversation as its system turn.
pub(super) fn with_system(prompt: Prompt, row: &Map<String, Value>) -> std::result::Result<Prompt, RowFault> {
    let given = |key: &&str| row.get(*key).is_some_and(|value| !is_empty(value));
    let Some(key) = ["system", "system_prompt"].into_iter().find(given) else { return Ok(prompt) };
    let Some(text) = row[key].as_str() else {
        return Err(format!("{key} = {}: expected a string, which is the system turn", shown(&row[key])));
    };
    let mut messages = prompt.to_messages();
    match messages.iter().find(|message| message.role == "system") {
        Some(message) if message.content.trim() != text.trim() => {
            Err(format!("{key}: differs from the system turn of the messages; remove one of the two"))
        }
        Some(_) => Ok(prompt),
        None => {
            messages.insert(0, Message::new("system", text));
            Ok(Prompt::Messages(messages))
        }
    }
}

fn turns(row: &Map<String, Value>) -> std::result::Result<(Prompt, String), RowFault> {
    if let Some(value) = row.get("messages").filter(|value| !value.is_null()) {
        let mut messages = messages_of(value, "messages")?;
        return match messages.pop() {
            Some(last) if last.role == "assistant" && !messages.is_empty() => {
                Ok((Prompt::Messages(messages), words(last.content, value, "messages")?))
            }
            _ => Err("messages: expected a prompt followed by an assistant's turn at the end".into()),
        };
    }
    let (Some(prompt), Some(completion)) = (row.get("prompt"), row.get("completion")) else {
        return Err(format!("expected a field messages, or fields prompt and completion; the row has {}", names(row)));
    };
    if row.get("label") == Some(&Value::Bool(false)) {
        return Err(
            "label = false marks an undesired answer (KTO data), which must not be imitated; remove such rows".into()
        );
    }
    let content = match completion {
        Value::String(text) => text.clone(),
        list => match messages_of(list, "completion")?.as_slice() {
            [only] if only.role == "assistant" => only.content.clone(),
            _ => return Err("completion: expected a string or one assistant's turn".into()),
        },
    };
    Ok((prompt_of(prompt, "prompt")?, words(content, completion, "completion")?))
}

/// Return the text of the last turn, after its thinking if that is in a separate field. Chat templates drop the thinking of
/// turns before the user's last one.
fn words(content: String, messages: &Value, field: &str) -> std::result::Result<String, RowFault> {
    if content.trim().is_empty() {
        return Err(format!(
            "{field}: the assistant's turn is empty, which would teach the model to end immediately; remove such rows"
        ));
    }
    let Some((last, earlier)) = messages.as_array().and_then(|list| list.split_last()) else { return Ok(content) };
    let place = |index: usize| format!("{field}[{index}]");
    if last["weight"].as_f64() == Some(0.0) {
        let place = place(earlier.len());
        return Err(format!("{place}.weight = 0 marks a turn that must not be imitated; remove such rows"));
    }
    let asked = earlier.iter().rposition(|turn| turn["role"] == "user").unwrap_or(0);
    for (index, turn) in earlier.iter().enumerate().skip(asked) {
        if let Some((key, _)) = thinking(turn, &place(index))? {
            return Err(format!(
                "{}.{key}: thinking is read from the last turn only; merge this turn with the last one",
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
        "{}.{key}: differs from the thinking between <think> and </think> in content; remove one of the two",
        place(earlier.len())
    ))
}

/// Return the name and the text of the field with the thinking of a turn; `None` if it has none.
pub(crate) fn thinking(turn: &Value, place: &str) -> std::result::Result<Option<(&'static str, String)>, RowFault> {
    let mut found: Option<(&str, String)> = None;
    for key in THINKING {
        if is_empty(&turn[key]) {
            continue;
        }
        let text =
            text_of(&turn[key]).ok_or_else(|| format!("{place}.{key} = {}: expected a string", shown(&turn[key])))?;
        match &found {
            Some((other, first)) if first != text.trim() => {
                return Err(format!("{place} has different thinking in {other} and {key}; remove one of the two"));
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

pub(super) fn messages_of(value: &Value, field: &str) -> std::result::Result<Vec<Message>, RowFault> {
    let list = value.as_array().ok_or_else(|| format!("{field} = {}: expected a list of messages", shown(value)))?;
    (0..).zip(list).map(|(i, turn): (usize, _)| message(turn, &format!("{field}[{i}]"))).collect()
}

fn message(turn: &Value, field: &str) -> std::result::Result<Message, RowFault> {
    if !is_empty(&turn["tool_calls"]) {
        return Err(format!("{field}.tool_calls: tool calls are not supported; remove such rows"));
    }
    match (turn["role"].as_str(), text_of(&turn["content"])) {
        (Some(role), Some(_)) if usual_role(role) != role => Err(format!(
            "{field}.role = {role:?}: chat templates know the roles system, user and assistant; write {}",
            usual_role(role)
        )),
        (Some(role), Some(content)) => Ok(Message::new(role, content)),
        _ => Err(format!("{field} = {}: expected an object with the strings role and content", shown(turn))),
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
) -> std::result::Result<Vec<Message>, RowFault> {
    while messages.pop_if(|message| message.role == "assistant").is_some() {}
    match messages.last() {
        Some(_) => Ok(messages),
        None => Err(format!("{field}: expected at least one turn before the assistant's")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(row: &str) -> std::result::Result<(Prompt, String), RowFault> {
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
            (last(r#""content": "a", "reasoning": [3]"#), "messages[1].reasoning = [3]: expected a string"),
            (last(r#""content": "a", "thinking": true"#), "messages[1].thinking = true: expected a string"),
            (
                last(r#""content": "a", "reasoning": "x", "thinking": "y""#),
                "messages[1] has different thinking in reasoning and thinking; remove one of the two",
            ),
            (
                last(r#""content": "<think>y</think>a", "reasoning": "x""#),
                "messages[1].reasoning: differs from the thinking between",
            ),
            (last(r#""content": "y</think>a", "reasoning": "x""#), "messages[1].reasoning: differs from"),
            (
                turns(&format!(r#"{{"role": "assistant", "content": "b", "reasoning": "4"}}, {end}"#)),
                "messages[1].reasoning: thinking is read from the last turn only",
            ),
            (
                read(r#"{"prompt": "q", "completion": "a", "reasoning_content": "x"}"#),
                "reasoning_content: thinking in a separate column is not read",
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
            (last(call), "messages[1].tool_calls: tool calls are not supported"),
            (
                r#"{"prompt": "q", "completion": "a", "label": false}"#.to_string(),
                "label = false marks an undesired answer",
            ),
            (last(r#"{"role": "gpt", "content": "a"}"#), r#"messages[1].role = "gpt": chat templates know"#),
            (
                r#"{"messages": [{"role": "human", "content": "q"}]}"#.to_string(),
                r#"messages[0].role = "human": chat templates know the roles system, user and assistant; write user"#,
            ),
            (r#"{"prompt": "q", "completion": "a", "image": "a.png"}"#.to_string(), "image is not empty"),
            (last(r#"{"role": "assistant", "content": "a", "weight": 0}"#), "messages[1].weight = 0 marks a turn"),
        ];
        for (row, want) in table {
            let fault = read(&row).unwrap_err();
            assert!(fault.contains(want), "{fault}");
        }
    }

    /// Regression: columns that are part of the prompt or of the answer were left out of training texts without a word.
    #[test]
    fn columns_beside_the_conversation_are_read_or_refused() {
        let beside = |column: &str| read(&format!(r#"{{"prompt": "q", "completion": "a", {column}}}"#));
        let system = Prompt::Messages(vec![Message::new("system", "Be brief."), Message::user("q")]);
        for column in [r#""system": "Be brief.""#, r#""system_prompt": "Be brief.", "tools": null, "thinking": " a ""#]
        {
            assert_eq!(beside(column).unwrap(), (system.clone(), "a".into()), "{column}");
        }
        let turns = r#"[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"},
                        {"role": "assistant", "content": "a"}]"#;
        let messages = |system: &str| read(&format!(r#"{{"system": "{system}", "messages": {turns}}}"#));
        assert_eq!(messages("Be kind.").unwrap().0.to_messages().len(), 2);
        let unused = r#""chat_template_kwargs": {"custom_instructions": "", "python_tools": []}, "reasoning": true"#;
        assert_eq!(beside(unused).unwrap().0, Prompt::Text("q".into()));
        for (found, want) in [
            (messages("Be brief."), "system: differs from the system turn of the messages"),
            (beside(r#""system": ["x"]"#), r#"system = ["x"]: expected a string"#),
            (beside(r#""tools": [{"name": "f"}]"#), "tools: tool calls are not supported"),
            (
                beside(r#""chat_template_kwargs": {"enable_thinking": false}"#),
                "chat_template_kwargs.enable_thinking = false: variables of the chat template are the same",
            ),
            (beside(r#""reasoning": "2+3""#), "reasoning: thinking in a separate column is not read"),
            (beside(r#""thinking": "2+3""#), "thinking: thinking in a separate column is not read"),
        ] {
            let fault = found.unwrap_err();
            assert!(fault.contains(want), "{fault}");
        }
    }
}
