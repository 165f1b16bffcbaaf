//! Conversion of a row to a problem. The field names, in any case:
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
//! | MMLU, ARC, MedQA | `question`, then `choices`, `options` or `endings` | `answer`, `answerKey`: letter, text or index from 0 |
//! | C-Eval, MedMCQA | `question`, then columns `A`, `B`, … or `option_a`, `opb`, `choice1`, … | as above |
//! | SVAMP, ASDiv | `body` and `question` | `answer` |
//! | SQuAD, DROP, RACE, TabMWP | `question` after its `context`, `passage`, `article` or `table` | `answer` |
//!
//! Null counts as absent. The parts before a question are not added to messages; lettered choices are, and a column
//! `system` or `system_prompt` is the system turn. A row with an image or tools is rejected.

use serde_json::{Map, Value};

use super::choices::{choices, chosen, with_choices};
use super::turns::{messages_of, with_system, without_last_assistant, without_tools};
use super::{Fields, Problem, Prompt};
use crate::verify::gold_answer;

const PROMPTS: [&str; 4] = ["prompt", "messages", "question", "problem"];
const ANSWERS: [&str; 5] = ["answer", "final_answer", "ground_truth", "answerKey", "solution"];
/// Fields with the context of a question, in reading order.
const PARTS: [&str; 6] = ["context", "passage", "article", "table_title", "table", "body"];

/// Message about an invalid row.
pub(super) type RowFault = String;

/// Convert a row to a problem; `source` is the data source of rows that do not name theirs.
pub(super) fn problem(
    mut row: Map<String, Value>,
    fields: &Fields,
    source: &str,
) -> std::result::Result<Problem, RowFault> {
    without_images(&row)?;
    without_tools(&row)?;
    let prompt_field = pick(&row, fields.prompt_field.as_deref(), &PROMPTS, "prompt")?;
    let prompt = match prompt_of(&row[prompt_field], prompt_field)? {
        Prompt::Messages(messages) => Prompt::Messages(without_last_assistant(messages, prompt_field)?),
        Prompt::Text(question) if !question.trim().is_empty() => Prompt::Text(with_parts(question, &row, fields)?),
        prompt => prompt,
    };
    if prompt.text().trim().is_empty() {
        return Err(format!("{prompt_field} is empty: remove the row or write a prompt"));
    }

    let verl = row.get("reward_model").and_then(|model| model.get("ground_truth"));
    let verl = verl.filter(|truth| !truth.is_null() && fields.answer_field.is_none());
    let (answer_field, choices, whole) = match verl {
        Some(truth) => ("reward_model", choices(&row, truth)?, answer_text(truth, "reward_model.ground_truth")?),
        None => {
            let field = pick(&row, fields.answer_field.as_deref(), &ANSWERS, "answer")?;
            let choices = choices(&row, &row[field])?;
            let chosen = chosen(&row[field], &choices, &row).map_err(|fault| format!("{field} = {fault}"))?;
            (field, choices, chosen.map_or_else(|| answer_text(&row[field], field), Ok)?)
        }
    };
    let prompt = with_system(with_choices(prompt, &choices), &row)?;
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
        Some(other) => return Err(format!("data_source = {}: expected a string", shown(&other))),
    };
    let floor = match row.remove("floor") {
        Some(Value::String(floor)) => Some(floor),
        Some(Value::Null) | None => None,
        Some(other) => return Err(format!("floor = {}: expected a string", shown(&other))),
    };
    // A row with a `floor` is from the embedded tasks or similar ones, whose models know the form of an answer.
    let formula = !answer.trim().is_empty() && !answer.trim().contains('\n') && floor.is_none();
    let prompt = if formula { Prompt::Formula(Box::new(prompt)) } else { prompt };
    let mut problem = Problem::new(prompt, answer);
    (problem.data_source, problem.floor, problem.extra) = (data_source, floor, row);
    Ok(problem)
}

/// Prepend the context of a question, unless the question contains it already.
fn with_parts(question: String, row: &Map<String, Value>, fields: &Fields) -> std::result::Result<String, RowFault> {
    let mut parts = String::new();
    for name in PARTS {
        let is_part = |key: &str| key.eq_ignore_ascii_case(name) && Some(key) != fields.answer_field.as_deref();
        match row.iter().find(|(key, value)| is_part(key) && !is_empty(value)) {
            Some((_, Value::String(part))) if question.contains(part.trim()) => {}
            // In SVAMP, body and question are one text.
            Some((_, Value::String(part))) if name == "body" => parts += &format!("{} ", part.trim_end()),
            Some((_, Value::String(part))) => parts += &format!("{part}\n"),
            Some((key, other)) => {
                let what = "expected a string, which is put before the question; remove the field if it is not part of \
                    the question";
                return Err(format!("{key} = {}: {what}", shown(other)));
            }
            None => {}
        }
    }
    Ok(parts + &question)
}

/// Reject a row with an image, in a column such as `image`, `image_1`, `decoded_image` or `Picture`.
pub(super) fn without_images(row: &Map<String, Value>) -> std::result::Result<(), RowFault> {
    let words =
        |key: &str| key.to_lowercase().split(|c: char| !c.is_alphabetic()).map(str::to_string).collect::<Vec<_>>();
    let is_image =
        |key: &str| words(key).iter().any(|word| ["image", "images", "img", "picture"].contains(&word.as_str()));
    let is_given = |value: &Value| !is_empty(value) && value.as_f64() != Some(0.0);
    match row.iter().find(|(key, value)| is_given(value) && is_image(key)) {
        Some((key, _)) => Err(format!(
            "{key} is not empty, but only text is supported; remove such rows: jq -c 'select(.{key} | length == 0)'"
        )),
        None => Ok(()),
    }
}

/// Return whether a value is empty, like the fields of absent structures in Parquet.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.iter().all(is_empty),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

/// Remove the commas of a number as GSM8K writes it, `1,234`; those of tuples and lists stay.
fn without_separators(answer: &str) -> String {
    let bytes = answer.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let groups = |at: usize| at > 0 && digit(at - 1) && (at + 1..at + 4).all(digit) && !digit(at + 4);
    let separates = |at: usize| bytes[at] == b',' && groups(at) && !answer.contains(['(', '[', '{']);
    answer.char_indices().filter(|(at, _)| !separates(*at)).map(|(_, c)| c).collect()
}

/// Return the field to read: `asked`, or the first of the `usual` ones that the row has.
fn pick<'a>(
    row: &'a Map<String, Value>,
    asked: Option<&str>,
    usual: &[&str],
    what: &str,
) -> std::result::Result<&'a str, RowFault> {
    // Of two fields that differ in case only, the one that is spelled as usual is meant.
    let present = |name: &&str| {
        let same = row.get_key_value(*name).filter(|(_, value)| !value.is_null());
        same.or_else(|| row.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null()))
    };
    let found = match asked {
        Some(name) => row.get_key_value(name),
        None => usual.iter().find_map(present),
    };
    found.map(|(key, _)| key.as_str()).ok_or_else(|| {
        let expected = asked.map_or_else(|| usual.join(", "), str::to_string);
        let names = names(row);
        format!(
            "no {what}: expected a field {expected}; the row has {names}: name the field to read with the setting \
             data.{what}_field or the option --{what}-field"
        )
    })
}

pub(super) fn names(row: &Map<String, Value>) -> String {
    let name = |(key, value): (&String, &Value)| if value.is_null() { format!("{key} (null)") } else { key.clone() };
    if row.is_empty() { "no fields".into() } else { row.iter().map(name).collect::<Vec<_>>().join(", ") }
}

pub(super) fn prompt_of(value: &Value, field: &str) -> std::result::Result<Prompt, RowFault> {
    match value {
        // Messages written as text.
        Value::String(text)
            if text.trim_start().starts_with("[{") && ["\"role\"", "'role'"].iter().any(|key| text.contains(key)) =>
        {
            let list: Value = serde_json::from_str(text).map_err(|error| {
                format!("{field} = {}: messages as a string must be JSON ({error}); write them as a list", shown(value))
            })?;
            messages_of(&list, field).map(Prompt::Messages)
        }
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(_) => messages_of(value, field).map(Prompt::Messages),
        other => Err(format!("{field} = {}: expected a string or a list of messages", shown(other))),
    }
}

fn answer_text(value: &Value, field: &str) -> std::result::Result<String, RowFault> {
    match value {
        // A list written as text.
        Value::String(text) if text.starts_with('[') => match serde_json::from_str::<Vec<String>>(text) {
            Ok(list) if list.len() > 1 => Err(format!(
                "{field} = {}: a string that holds a list of several answers; write one answer, or a JSON list if all \
                 of them are required",
                shown(value)
            )),
            Ok(mut list) => Ok(list.pop().unwrap_or_default()),
            Err(_) => Ok(text.clone()),
        },
        Value::String(text) => Ok(text.clone()),
        // A whole number from a float column.
        Value::Number(number) => Ok(number.to_string().trim_end_matches(".0").to_string()),
        Value::Array(list) => {
            Ok(list.iter().map(|item| answer_text(item, field)).collect::<std::result::Result<Vec<_>, _>>()?.join(", "))
        }
        other => Err(format!("{field} = {}: expected a string, a number or a list of these", shown(other))),
    }
}

/// Format a value for messages, cut to a readable length.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Return the type of a value, for messages.
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

    fn read(row: &str) -> std::result::Result<Problem, RowFault> {
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
            // Without its comma the pair was a product.
            (r#"{"question": "q", "answer": "so\n#### (1, 2)"}"#, "(1, 2)"),
            (r#"{"question": "q", "answer": "so\n#### 1, 2"}"#, "1, 2"),
            (r#"{"problem": "q", "answer": 27.0}"#, "27"),
            (r#"{"ID": "2024-I-1", "Problem": "q", "Solution": "s", "Answer": 204}"#, "204"),
            (r#"{"problem": "q", "solution": "so $\\boxed{7}$", "answer": "7", "unique_id": "test/7.json"}"#, "7"),
            (r#"{"problem": "q", "solution": "so \\boxed{\\frac{1}{2}} cm"}"#, r"\frac{1}{2}"),
            (r#"{"question": "q", "context": null, "final_answer": ["$2$"]}"#, "$2$"),
            (r#"{"question": "q", "final_answer": ["1", "2"]}"#, "1, 2"),
            (r#"{"prompt": "q", "reward_model": {"ground_truth": "[\"2\"]"}}"#, "2"),
            (r#"{"prompt": "q", "answer": "[2, 3]"}"#, "[2, 3]"),
            (r#"{"prompt": "q", "answer": 0.5}"#, "0.5"),
            (r#"{"prompt": "q", "answer": -3}"#, "-3"),
            (r#"{"data_source": null, "prompt": "q", "answer": null, "solution": "5"}"#, "5"),
            (r#"{"Answer": "6", "Prompt": "r", "prompt": "q", "answer": "5"}"#, "5"),
            (r#"{"prompt": "[{\"role\": \"user\", \"content\": \"q\"}]", "answer": "5", "num_images": 0}"#, "5"),
            (r#"{"prompt": "q", "answer": "5", "tools": [], "system": "", "image_1": {"bytes": null}}"#, "5"),
            (r#"{"prompt": "q", "reward_model": {"ground_truth": null}, "answer": "5", "choices": null}"#, "5"),
        ];
        for (row, answer) in table {
            let problem = read(row).unwrap();
            assert_eq!(problem.prompt.text(), "q", "{row}");
            assert_eq!(problem.answer, answer, "{row}");
            // The same text is the same problem, whatever the row's shape.
            assert_eq!(problem.id, mix_text("q"));
        }
    }

    /// A question has no answer without its context.
    #[test]
    fn what_a_question_refers_to_is_part_of_it() {
        let table = [
            (
                r#"{"context": "Let $x=2$.", "question": "What is $x^2$?", "final_answer": ["4"]}"#,
                "Let $x=2$.\nWhat is $x^2$?",
            ),
            (r#"{"Body": "Ann has 2.", "Question": "How many?", "Answer": "2.0"}"#, "Ann has 2. How many?"),
            (r#"{"passage": "p", "question": "q", "answer": "3"}"#, "p\nq"),
            (r#"{"article": "p", "question": "q", "options": ["x", "y"], "answer": "A"}"#, "p\nq\n(A) x\n(B) y"),
            (r#"{"question": "q", "table_title": "t", "table": "a | 3", "answer": "3"}"#, "t\na | 3\nq"),
            (r#"{"context": "p", "prompt": "As p has it, q", "answer": "3"}"#, "As p has it, q"),
            (r#"{"context": [], "table": null, "images": [{"bytes": null}], "prompt": "q", "answer": "3"}"#, "q"),
            (r#"{"context": "p", "prompt": [{"role": "user", "content": "q"}], "answer": "3"}"#, "q"),
        ];
        for (row, prompt) in table {
            assert_eq!(read(row).unwrap().prompt.text(), prompt, "{row}");
        }
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
            (r#"{"prompt": 3, "answer": "5"}"#, "prompt = 3: expected a string or a list of messages"),
            (r#"{"prompt": "q", "answer": true}"#, "answer = true: expected a string, a number"),
            (r#"{"prompt": "q", "reward_model": {"ground_truth": {}}}"#, "reward_model.ground_truth = {}: expected"),
            (r#"{"prompt": " ", "answer": "5"}"#, "prompt is empty"),
            (
                r#"{"prompt": [{"role": "user"}], "answer": "5"}"#,
                r#"prompt[0] = {"role":"user"}: expected an object with the strings role and content"#,
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": "x"}], "answer": "5"}"#,
                "messages: expected at least one turn before",
            ),
            (r#"{"prompt": "q", "answer": null}"#, "the row has prompt, answer (null): name the field to read"),
            (r#"{"answer": "5"}"#, "with the setting data.prompt_field or the option --prompt-field"),
            (r#"{"prompt": "q"}"#, "data.answer_field or the option --answer-field"),
            (
                r#"{"table": {"a": [3]}, "question": "q", "answer": "3"}"#,
                r#"table = {"a":[3]}: expected a string, which"#,
            ),
            (r#"{"images": ["a.png"], "problem": "q", "answer": "3"}"#, "images is not empty, but only text"),
            (r#"{"decoded_image": {"path": "a.png"}, "problem": "q", "answer": "3"}"#, "decoded_image is not empty"),
            (r#"{"image_2": {"bytes": "x"}, "problem": "q", "answer": "3"}"#, "image_2 is not empty"),
            (r#"{"Picture": "a.png", "Question": "q", "Answer": "3"}"#, "Picture is not empty"),
            (r#"{"prompt": "[{'role': 'user', 'content': 'q'}]", "answer": "3"}"#, "messages as a string must be JSON"),
            (
                r#"{"prompt": "q", "answer": "3", "tools": "[{\"name\": \"f\"}]"}"#,
                "tools: tool calls are not supported",
            ),
            (
                r#"{"prompt": "q", "answer": "[\"2\", \"3\"]"}"#,
                "a string that holds a list of several answers; write one",
            ),
            (r#"{"prompt": "q", "answer": "5", "floor": 3}"#, "floor = 3: expected a string"),
            (r#"{"prompt": "q", "answer": "5", "data_source": 3}"#, "data_source = 3: expected a string"),
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
        // The embedded tasks as a file; their models know the form.
        assert!(!formula(r#"{"prompt": "q", "answer": "5", "floor": "2+3=5"}"#));
    }
}
