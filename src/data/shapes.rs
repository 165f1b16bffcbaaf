//! From a row to a problem or a conversation. The field names, in any case:
//!
//! | rows of | prompt | answer |
//! |---|---|---|
//! | TRL | `prompt` (text or messages) | `answer`, `solution` or `ground_truth` |
//! | chats | `messages` (a last assistant turn is dropped) | `answer`, … |
//! | verl | `prompt` (messages) | `reward_model.ground_truth` |
//! | GSM8K | `question` | `answer`, after the last `####` |
//! | AIME, AMC23, MATH-500 | `problem` or `question` | `answer` |
//! | MATH, Minerva | `problem` | `solution` with a `\boxed{}` |
//! | OlympiadBench | `question` after any `context` | `final_answer` (a list) |
//! | MMLU, ARC, MedQA | `question` before its `choices` or `options`, lettered | `answer` or `answerKey`: a letter, or a place counted from 0 |
//!
//! Null is as good as no field.

use serde_json::{Map, Value};

use super::{Conversation, Fields, Message, Problem, Prompt};
use crate::verify::gold_answer;

const PROMPTS: [&str; 4] = ["prompt", "messages", "question", "problem"];
const ANSWERS: [&str; 5] = ["answer", "final_answer", "ground_truth", "answerKey", "solution"];

/// What is wrong with a row.
pub(super) type Fault = String;

/// Reads a problem; `source` names rows that do not say where they are from.
pub(super) fn problem(
    mut row: Map<String, Value>,
    fields: &Fields,
    source: &str,
) -> std::result::Result<Problem, Fault> {
    let prompt_field = pick(&row, fields.prompt_field.as_deref(), &PROMPTS, "prompt")?;
    let prompt = match (prompt_of(&row[prompt_field], prompt_field)?, context(&row)) {
        (Prompt::Messages(messages), _) => Prompt::Messages(without_last_assistant(messages, prompt_field)?),
        (Prompt::Text(question), Some(context)) => Prompt::Text(format!("{context}\n{question}")),
        (prompt, _) => prompt,
    };
    let choices = choices(&row);
    let prompt = with_choices(prompt, &choices);
    if prompt.text().trim().is_empty() {
        return Err(format!("{prompt_field} is empty"));
    }

    let verl = row.get("reward_model").and_then(|model| model.get("ground_truth"));
    let verl = verl.filter(|truth| !truth.is_null() && fields.answer_field.is_none());
    let (answer_field, whole) = match verl {
        Some(truth) => ("reward_model", answer_text(truth, "reward_model.ground_truth")?),
        None => {
            let field = pick(&row, fields.answer_field.as_deref(), &ANSWERS, "answer")?;
            let chosen = chosen(&row[field], &choices).map_err(|fault| format!("{field} = {fault}"))?;
            (field, chosen.map_or_else(|| answer_text(&row[field], field), Ok)?)
        }
    };
    let hashed = whole.contains("####");
    let answer = gold_answer(&whole);
    let answer = if hashed { without_separators(&answer) } else { answer.into_owned() };
    let gsm8k = hashed && prompt_field.eq_ignore_ascii_case("question");
    let extracted = answer != whole.trim();

    let (prompt_field, answer_field) = (prompt_field.to_string(), answer_field.to_string());
    row.remove(&prompt_field);
    if !extracted {
        row.remove(&answer_field);
    }
    let data_source = match row.remove("data_source") {
        Some(Value::String(name)) => name,
        Some(Value::Null) | None => if gsm8k { "gsm8k" } else { source }.to_string(),
        Some(other) => return Err(format!("data_source = {}: expected a text", shown(&other))),
    };
    let floor = match row.remove("floor") {
        Some(Value::String(floor)) => Some(floor),
        Some(Value::Null) | None => None,
        Some(other) => return Err(format!("floor = {}: expected a text", shown(&other))),
    };
    // A row with a shortest solution is of the embedded tasks or of their like, whose models know the form of an answer.
    let formula = !answer.trim().is_empty() && !answer.trim().contains('\n') && floor.is_none();
    let prompt = if formula { Prompt::Formula(Box::new(prompt)) } else { prompt };
    let mut problem = Problem::new(prompt, answer);
    (problem.data_source, problem.floor, problem.extra) = (data_source, floor, row);
    Ok(problem)
}

/// Reads a conversation.
pub(super) fn conversation(row: &Map<String, Value>) -> std::result::Result<Conversation, Fault> {
    if let Some(value) = row.get("messages") {
        let mut messages = messages_of(value, "messages")?;
        return match messages.pop() {
            Some(last) if last.role == "assistant" && !messages.is_empty() => {
                Ok(Conversation { prompt: Prompt::Messages(messages), completion: thought(value, last.content) })
            }
            _ => Err("messages: expected a prompt and then an assistant's turn at the end".into()),
        };
    }
    let (Some(prompt), Some(completion)) = (row.get("prompt"), row.get("completion")) else {
        return Err(format!("expected messages, or prompt and completion; the row has {}", names(row)));
    };
    let completion = match completion {
        Value::String(text) => text.clone(),
        list => match messages_of(list, "completion")?.as_slice() {
            [only] if only.role == "assistant" => thought(list, only.content.clone()),
            _ => return Err("completion: expected a text or one assistant's turn".into()),
        },
    };
    Ok(Conversation { prompt: prompt_of(prompt, "prompt")?, completion })
}

/// The words of the last turn of a list of messages, after its thinking where the turn has that in a field of its own.
fn thought(messages: &Value, content: String) -> String {
    let last = messages.as_array().and_then(|list| list.last());
    match last.and_then(|last| last["reasoning_content"].as_str()).map(str::trim) {
        Some(thinking) if !thinking.is_empty() => format!("<think>\n{thinking}\n</think>\n\n{content}"),
        _ => content,
    }
}

/// What an OlympiadBench question refers to.
fn context(row: &Map<String, Value>) -> Option<String> {
    let context = row.get("context").filter(|_| row.contains_key("final_answer"))?.as_str()?;
    (!context.trim().is_empty()).then(|| context.to_string())
}

/// A number as GSM8K writes it, `1,234`, without its commas; those of tuples and lists stay.
fn without_separators(answer: &str) -> String {
    let bytes = answer.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let groups = |at: usize| at > 0 && digit(at - 1) && (at + 1..at + 4).all(digit) && !digit(at + 4);
    let separates = |at: usize| bytes[at] == b',' && groups(at) && !answer.contains(['(', '[', '{']);
    answer.char_indices().filter(|(at, _)| !separates(*at)).map(|(_, c)| c).collect()
}

/// The choices of a question, each a letter and a text; none for a question without them.
fn choices(row: &Map<String, Value>) -> Vec<(String, String)> {
    let named = |name: &str| row.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let texts = |value: &Value| -> Option<Vec<String>> {
        value.as_array()?.iter().map(|text| text.as_str().map(str::to_string)).collect()
    };
    let letters = || ('A'..='Z').map(String::from);
    let found = match named("choices").or_else(|| named("options")) {
        Some(list @ Value::Array(_)) => texts(list).map(|texts| letters().zip(texts).collect()),
        // ARC names them in a list beside that of the texts.
        Some(Value::Object(lists)) if lists.contains_key("label") => {
            let list = |name: &str| lists.get(name).and_then(texts);
            list("label").zip(list("text")).map(|(labels, texts)| labels.into_iter().zip(texts).collect())
        }
        Some(Value::Object(named)) => {
            named.iter().map(|(name, text)| Some((name.clone(), text.as_str()?.to_string()))).collect()
        }
        _ => None,
    };
    found.unwrap_or_default()
}

/// A question with its choices, one on a line, unless it has them already.
fn with_choices(prompt: Prompt, choices: &[(String, String)]) -> Prompt {
    let lines: String = choices.iter().map(|(letter, text)| format!("\n({letter}) {text}")).collect();
    let has = |question: &str| choices.iter().all(|(_, text)| question.contains(text.as_str()));
    match prompt {
        Prompt::Text(question) if !has(&question) => Prompt::Text(question + &lines),
        Prompt::Messages(mut messages) => {
            if let Some(last) = messages.last_mut().filter(|last| !has(&last.content)) {
                last.content += &lines;
            }
            Prompt::Messages(messages)
        }
        prompt => prompt,
    }
}

/// The letter of the choice that a number names by its place, counted from 0; none where the answer is no number.
fn chosen(answer: &Value, choices: &[(String, String)]) -> std::result::Result<Option<String>, Fault> {
    let Some(place) = answer.as_number().filter(|_| !choices.is_empty()) else { return Ok(None) };
    let choice = place.as_u64().and_then(|place| choices.get(place as usize));
    let letter = choice.map(|(letter, _)| letter.clone());
    letter.map(Some).ok_or_else(|| format!("{place}: expected the place of a choice, 0 to {}", choices.len() - 1))
}

/// The field to read: the one asked for, or the first usual one that the row has.
fn pick<'a>(
    row: &'a Map<String, Value>,
    asked: Option<&str>,
    usual: &[&str],
    what: &str,
) -> std::result::Result<&'a str, Fault> {
    let present = |name: &&str| row.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null());
    let found = match asked {
        Some(name) => row.get_key_value(name),
        None => usual.iter().find_map(present),
    };
    found.map(|(key, _)| key.as_str()).ok_or_else(|| {
        let expected = asked.map_or_else(|| usual.join(", "), str::to_string);
        format!("no {what}: expected a field {expected}; the row has {}", names(row))
    })
}

fn names(row: &Map<String, Value>) -> String {
    if row.is_empty() { "no fields".into() } else { row.keys().cloned().collect::<Vec<_>>().join(", ") }
}

fn prompt_of(value: &Value, field: &str) -> std::result::Result<Prompt, Fault> {
    match value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(_) => messages_of(value, field).map(Prompt::Messages),
        other => Err(format!("{field} = {}: expected a text or a list of messages", shown(other))),
    }
}

fn messages_of(value: &Value, field: &str) -> std::result::Result<Vec<Message>, Fault> {
    let list = value.as_array().ok_or_else(|| format!("{field} = {}: expected a list of messages", shown(value)))?;
    list.iter()
        .enumerate()
        .map(|(i, message)| {
            let text = |key: &str| match &message[key] {
                Value::String(text) => Some(text.clone()),
                // Content in parts, as multimodal chats have it; only text is understood.
                Value::Array(parts) if key == "content" => {
                    parts.iter().map(|part| part["text"].as_str()).collect::<Option<String>>()
                }
                _ => None,
            };
            match (text("role"), text("content")) {
                (Some(role), Some(content)) => Ok(Message { role, content }),
                _ => Err(format!(
                    "{field}[{i}] = {}: expected an object with the texts role and content",
                    shown(message)
                )),
            }
        })
        .collect()
}

fn without_last_assistant(mut messages: Vec<Message>, field: &str) -> std::result::Result<Vec<Message>, Fault> {
    while messages.pop_if(|message| message.role == "assistant").is_some() {}
    match messages.last() {
        Some(_) => Ok(messages),
        None => Err(format!("{field}: expected a turn for the model to answer")),
    }
}

fn answer_text(value: &Value, field: &str) -> std::result::Result<String, Fault> {
    match value {
        Value::String(text) => Ok(text.clone()),
        // A whole number that passed through a float column.
        Value::Number(number) => Ok(number.to_string().trim_end_matches(".0").to_string()),
        Value::Array(list) => {
            Ok(list.iter().map(|item| answer_text(item, field)).collect::<std::result::Result<Vec<_>, _>>()?.join(", "))
        }
        other => Err(format!("{field} = {}: expected a text, a number or a list of them", shown(other))),
    }
}

/// A value as messages show it, cut to a readable length.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::mix_text;

    fn object(row: &str) -> Map<String, Value> {
        serde_json::from_str(row).unwrap()
    }

    fn read(row: &str) -> std::result::Result<Problem, Fault> {
        problem(object(row), &Fields::default(), "file")
    }

    #[test]
    fn every_shape_gives_prompt_and_answer() {
        let table = [
            (r#"{"prompt": "q", "answer": "5"}"#, "5"),
            (r#"{"prompt": [{"role": "user", "content": "q"}], "solution": "$5$"}"#, "$5$"),
            (r#"{"prompt": "q", "ground_truth": 5}"#, "5"),
            (
                r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "answer": "5"}"#,
                "5",
            ),
            (
                r#"{"data_source": "s", "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "reward_model": {"style": "rule", "ground_truth": "5"}}"#,
                "5",
            ),
            (r#"{"question": "q", "answer": "1,000+4 = <<1000+4=1004>>\n#### 1,004"}"#, "1004"),
            (r#"{"question": "q", "answer": "so\n#### 1,234,567 dollars"}"#, "1234567 dollars"),
            // All commas went, and the pair was a product.
            (r#"{"question": "q", "answer": "so\n#### (1, 2)"}"#, "(1, 2)"),
            (r#"{"question": "q", "answer": "so\n#### 1, 2"}"#, "1, 2"),
            (r#"{"problem": "q", "answer": 27.0}"#, "27"),
            (r#"{"ID": "2024-I-1", "Problem": "q", "Solution": "s", "Answer": 204}"#, "204"),
            (r#"{"problem": "q", "solution": "so $\\boxed{7}$", "answer": "7", "unique_id": "test/7.json"}"#, "7"),
            (r#"{"problem": "q", "solution": "so \\boxed{\\frac{1}{2}} cm"}"#, r"\frac{1}{2}"),
            (r#"{"question": "q", "context": null, "final_answer": ["$2$"]}"#, "$2$"),
            (r#"{"question": "q", "final_answer": ["1", "2"]}"#, "1, 2"),
            (r#"{"prompt": "q", "answer": 0.5}"#, "0.5"),
            (r#"{"prompt": "q", "answer": -3}"#, "-3"),
            (r#"{"data_source": null, "prompt": "q", "answer": null, "solution": "5"}"#, "5"),
            (r#"{"prompt": "q", "reward_model": {"ground_truth": null}, "answer": "5", "choices": null}"#, "5"),
        ];
        for (row, answer) in table {
            let problem = read(row).unwrap();
            assert_eq!(problem.prompt.text(), "q", "{row}");
            assert_eq!(problem.answer, answer, "{row}");
            // Equal words are the same problem, whatever the row's shape.
            assert_eq!(problem.id, mix_text("q"));
        }
    }

    /// OlympiadBench keeps what a question refers to in a field of its own; without it the question has no answer.
    #[test]
    fn a_context_is_part_of_the_question() {
        let row = r#"{"context": "Let $x=2$.", "question": "What is $x^2$?", "final_answer": ["4"]}"#;
        assert_eq!(read(row).unwrap().prompt.text(), "Let $x=2$.\nWhat is $x^2$?");
    }

    /// Without its choices a question has no answer, and a place is none either.
    #[test]
    fn choices_are_part_of_the_question() {
        let table = [
            (r#"{"question": "q", "choices": ["3", "7"], "answer": 1}"#, "q\n(A) 3\n(B) 7", "B"),
            (r#"{"question": "q", "options": {"A": "x", "B": "y"}, "answer": "A"}"#, "q\n(A) x\n(B) y", "A"),
            (
                r#"{"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}"#,
                "q\n(1) x\n(2) y",
                "2",
            ),
            (r#"{"prompt": "x or y?", "choices": ["x", "y"], "answer": "B"}"#, "x or y?", "B"),
            (
                r#"{"prompt": [{"role": "user", "content": "q"}], "choices": ["x", "y"], "answer": "A"}"#,
                "q\n(A) x\n(B) y",
                "A",
            ),
        ];
        for (row, prompt, answer) in table {
            let problem = read(row).unwrap();
            assert_eq!((problem.prompt.text().as_str(), problem.answer.as_str()), (prompt, answer), "{row}");
        }
        let fault = read(r#"{"question": "q", "choices": ["x", "y"], "answer": 2}"#).unwrap_err();
        assert_eq!(fault, "answer = 2: expected the place of a choice, 0 to 1");
    }

    #[test]
    fn malformed_rows_are_told_by_field_and_value() {
        let table = [
            (
                r#"{"answer": "5"}"#,
                "no prompt: expected a field prompt, messages, question, problem; the row has answer",
            ),
            (
                r#"{"prompt": "q"}"#,
                "no answer: expected a field answer, final_answer, ground_truth, answerKey, solution",
            ),
            (r#"{"prompt": 3, "answer": "5"}"#, "prompt = 3: expected a text or a list of messages"),
            (r#"{"prompt": "q", "answer": true}"#, "answer = true: expected a text, a number"),
            (r#"{"prompt": "q", "reward_model": {"ground_truth": {}}}"#, "reward_model.ground_truth = {}: expected"),
            (r#"{"prompt": " ", "answer": "5"}"#, "prompt is empty"),
            (
                r#"{"prompt": [{"role": "user"}], "answer": "5"}"#,
                r#"prompt[0] = {"role":"user"}: expected an object with the texts role and content"#,
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": "x"}], "answer": "5"}"#,
                "messages: expected a turn for the model to answer",
            ),
            (r#"{"prompt": "q", "answer": "5", "floor": 3}"#, "floor = 3: expected a text"),
            (r#"{"prompt": "q", "answer": "5", "data_source": 3}"#, "data_source = 3: expected a text"),
        ];
        for (row, want) in table {
            let fault = read(row).unwrap_err();
            assert!(fault.contains(want), "{fault}");
        }
        let long = read(&format!(r#"{{"prompt": {{"text": "{}"}}}}"#, "é".repeat(500))).unwrap_err();
        assert!(long.len() < 250, "{long}");
    }

    #[test]
    fn only_rows_with_a_formula_ask_for_its_form() {
        let formula = |row: &str| matches!(read(row).unwrap().prompt, Prompt::Formula(_));
        assert!(formula(r#"{"prompt": "q", "answer": "\\frac12"}"#));
        assert!(formula(r#"{"question": "q", "answer": "so\n#### 5"}"#));
        assert!(!formula(r#"{"prompt": "q", "answer": ""}"#));
        assert!(!formula(r#"{"prompt": "q", "answer": "First,\nthen."}"#));
        // The embedded tasks as a file, whose model knows the form.
        assert!(!formula(r#"{"prompt": "q", "answer": "5", "floor": "2+3=5"}"#));
    }

    #[test]
    fn conversations_end_with_the_assistant() {
        let read = |row: &str| conversation(&object(row));
        let turns =
            read(r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#).unwrap();
        assert_eq!(turns, Conversation { prompt: Prompt::Messages(vec![Message::user("q")]), completion: "a".into() });
        let plain = read(r#"{"prompt": "q", "completion": "a"}"#).unwrap();
        assert_eq!(plain, Conversation { prompt: Prompt::Text("q".into()), completion: "a".into() });
        let lists = read(
            r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
        );
        assert_eq!(lists.unwrap(), turns);
        // Thinking in a field of its own was dropped, and the model learned to answer at once.
        let apart = r#"{"role": "assistant", "reasoning_content": "2+3 = 5", "content": "a"}"#;
        for row in [
            format!(r#"{{"messages": [{{"role": "user", "content": "q"}}, {apart}]}}"#),
            format!(r#"{{"prompt": "q", "completion": [{apart}]}}"#),
        ] {
            assert_eq!(read(&row).unwrap().completion, "<think>\n2+3 = 5\n</think>\n\na");
        }
        assert!(read(r#"{"messages": [{"role": "user", "content": "q"}]}"#).unwrap_err().contains("assistant's turn"));
        assert!(read(r#"{"text": "q"}"#).unwrap_err().contains("the row has text"));
    }
}
