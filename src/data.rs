//! Rows people have: problems with a checkable answer and conversations to imitate, one JSON object per line.
//!
//! | rows of | prompt | answer |
//! |---|---|---|
//! | TRL | `prompt` (text or messages) | `answer`, `solution` or `ground_truth` |
//! | chats | `messages` (a last assistant turn is dropped) | `answer`, … |
//! | verl | `prompt` (messages) | `reward_model.ground_truth` |
//! | GSM8K | `question` | `answer`, after the last `####` |
//! | MATH and the like | `problem` or `question` | `answer`, `final_answer` (a list), or `solution` with a `\boxed{}` |

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::noise::mix_text;
pub use crate::text::chat::{Message, Prompt};
use crate::verify::gold_answer;

/// A question with an answer that a program can check.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// What the model is asked.
    pub prompt: Prompt,
    /// The right answer.
    pub answer: String,
    /// Where the row is from; results are reported by it.
    pub data_source: String,
    /// A hash of the prompt's text, the problem's identity in every random choice.
    pub id: u64,
    /// The text of the shortest sufficient solution, when the row carries one as `floor`.
    pub floor: Option<String>,
    /// The row's other fields, and the whole solution when the answer was taken out of one.
    pub extra: Map<String, Value>,
}

impl Problem {
    /// A problem without a source or other fields.
    pub fn new(prompt: Prompt, answer: impl Into<String>) -> Self {
        let id = mix_text(&prompt.text());
        Self { prompt, answer: answer.into(), data_source: String::new(), id, floor: None, extra: Map::new() }
    }
}

/// Which fields to read when they are not named as usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// The field with the prompt: a text or messages.
    pub prompt_field: Option<String>,
    /// The field with the answer or a solution that states it.
    pub answer_field: Option<String>,
}

const PROMPTS: [&str; 4] = ["prompt", "messages", "question", "problem"];
const ANSWERS: [&str; 4] = ["answer", "final_answer", "ground_truth", "solution"];

/// Reads problems from a JSONL file.
///
/// A malformed line is an error naming it. Empty answers (which no reward can score) and repeated prompts are kept and
/// counted in a warning.
pub fn load_problems(path: &Path, fields: &Fields) -> Result<Vec<Problem>> {
    let source = source_name(path);
    let problems = read_rows(path, |row| problem(row, fields, &source))?;
    let empty = problems.iter().filter(|problem| problem.answer.is_empty()).count();
    if empty > 0 {
        tracing::warn!("{}: {empty} of {} answers are empty and will not be scored", path.display(), problems.len());
    }
    let mut seen = HashSet::new();
    let repeated = problems.iter().filter(|problem| !seen.insert(problem.id)).count();
    if repeated > 0 {
        tracing::warn!("{}: {repeated} of {} prompts occur more than once", path.display(), problems.len());
    }
    Ok(problems)
}

/// A conversation whose last turn is to be imitated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Everything before the last turn.
    pub prompt: Prompt,
    /// The assistant's last turn.
    pub completion: String,
}

/// Reads conversations from a JSONL file: rows with `messages` that end with an assistant's turn, or with `prompt` and
/// `completion` (each a text or messages).
pub fn load_conversations(path: &Path) -> Result<Vec<Conversation>> {
    read_rows(path, |row| conversation(&row))
}

/// What is wrong with a row.
type Fault = String;

fn read_rows<T>(path: &Path, read: impl Fn(Map<String, Value>) -> std::result::Result<T, Fault>) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut rows = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let fail = |message: String| Error::file(format!("{}:{}", path.display(), number + 1), message);
        let row = match serde_json::from_str(line) {
            Ok(Value::Object(row)) => row,
            Ok(other) => return Err(fail(format!("expected one JSON object per line, got {}", kind(&other)))),
            Err(e) => return Err(fail(format!("expected one JSON object per line: {e}"))),
        };
        rows.push(read(row).map_err(fail)?);
    }
    if rows.is_empty() {
        return Err(Error::file(path, "the file has no rows; expected one JSON object per line"));
    }
    Ok(rows)
}

/// The file's name without its ending; its folder's name when the file is only called after its split.
fn source_name(path: &Path) -> String {
    let name = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let stem = name(path.file_stem()).unwrap_or_default();
    match stem.as_str() {
        "train" | "test" | "valid" | "validation" | "dev" => {
            name(path.parent().and_then(Path::file_name)).unwrap_or(stem)
        }
        _ => stem,
    }
}

fn problem(mut row: Map<String, Value>, fields: &Fields, source: &str) -> std::result::Result<Problem, Fault> {
    let prompt_field = pick(&row, fields.prompt_field.as_deref(), &PROMPTS, "prompt")?;
    let prompt = prompt_of(&row[prompt_field], prompt_field)?;
    let prompt = match prompt {
        Prompt::Messages(messages) => Prompt::Messages(without_last_assistant(messages, prompt_field)?),
        text => text,
    };
    if prompt.text().trim().is_empty() {
        return Err(format!("{prompt_field} is empty"));
    }

    let verl =
        row.get("reward_model").and_then(|model| model.get("ground_truth")).filter(|_| fields.answer_field.is_none());
    let (answer_field, whole) = match verl {
        Some(truth) => ("reward_model", answer_text(truth, "reward_model.ground_truth")?),
        None => {
            let field = pick(&row, fields.answer_field.as_deref(), &ANSWERS, "answer")?;
            (field, answer_text(&row[field], field)?)
        }
    };
    let hashed = whole.contains("####");
    let mut answer = gold_answer(&whole).to_string();
    if hashed {
        answer.retain(|c| c != ',');
    }
    let gsm8k = hashed && prompt_field == "question";
    let extracted = answer != whole.trim();

    let (prompt_field, answer_field) = (prompt_field.to_string(), answer_field.to_string());
    row.remove(&prompt_field);
    if !extracted {
        row.remove(&answer_field);
    }
    let data_source = match row.remove("data_source") {
        Some(Value::String(name)) => name,
        Some(other) => return Err(format!("data_source: expected a text, got {}", kind(&other))),
        None if gsm8k => "gsm8k".to_string(),
        None => source.to_string(),
    };
    let floor = match row.remove("floor") {
        Some(Value::String(floor)) => Some(floor),
        Some(Value::Null) | None => None,
        Some(other) => return Err(format!("floor: expected a text, got {}", kind(&other))),
    };
    let mut problem = Problem::new(prompt, answer);
    (problem.data_source, problem.floor, problem.extra) = (data_source, floor, row);
    Ok(problem)
}

fn conversation(row: &Map<String, Value>) -> std::result::Result<Conversation, Fault> {
    if let Some(messages) = row.get("messages") {
        let mut messages = messages_of(messages, "messages")?;
        return match messages.pop() {
            Some(last) if last.role == "assistant" && !messages.is_empty() => {
                Ok(Conversation { prompt: Prompt::Messages(messages), completion: last.content })
            }
            _ => Err("messages: expected a prompt and then an assistant's turn at the end".into()),
        };
    }
    let (Some(prompt), Some(completion)) = (row.get("prompt"), row.get("completion")) else {
        return Err(format!("expected messages, or prompt and completion; the row has {}", names(row)));
    };
    let completion = match prompt_of(completion, "completion")? {
        Prompt::Text(text) => text,
        Prompt::Messages(messages) => match messages.as_slice() {
            [only] if only.role == "assistant" => only.content.clone(),
            _ => return Err("completion: expected a text or one assistant's turn".into()),
        },
    };
    Ok(Conversation { prompt: prompt_of(prompt, "prompt")?, completion })
}

/// The field to read: the one asked for, or the first usual one that the row has.
fn pick<'a>(
    row: &Map<String, Value>,
    asked: Option<&'a str>,
    usual: &[&'a str],
    what: &str,
) -> std::result::Result<&'a str, Fault> {
    let found = match asked {
        Some(name) => Some(name).filter(|name| row.contains_key(*name)),
        None => usual.iter().copied().find(|name| row.get(*name).is_some_and(|value| !value.is_null())),
    };
    found.ok_or_else(|| {
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
        other => Err(format!("{field}: expected a text or a list of messages, got {}", kind(other))),
    }
}

fn messages_of(value: &Value, field: &str) -> std::result::Result<Vec<Message>, Fault> {
    let list = value.as_array().ok_or_else(|| format!("{field}: expected a list of messages, got {}", kind(value)))?;
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
                _ => Err(format!("{field}[{i}]: expected an object with the texts role and content")),
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
        other => Err(format!("{field}: expected a text, a number or a list of them, got {}", kind(other))),
    }
}

fn kind(value: &Value) -> &'static str {
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
    use std::path::PathBuf;

    use super::*;
    use crate::verify::compare;

    fn load(name: &str, text: &str) -> Result<Vec<Problem>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        load_problems(&path, &Fields::default())
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
            (r#"{"problem": "q", "answer": 27.0}"#, "27"),
            (r#"{"problem": "q", "solution": "so \\boxed{\\frac{1}{2}} cm"}"#, r"\frac{1}{2}"),
            (r#"{"question": "q", "final_answer": ["$2$"]}"#, "$2$"),
            (r#"{"question": "q", "final_answer": ["1", "2"]}"#, "1, 2"),
            (r#"{"prompt": "q", "answer": 0.5}"#, "0.5"),
            (r#"{"prompt": "q", "answer": -3}"#, "-3"),
        ];
        for (row, answer) in table {
            let problems = load("rows.jsonl", row).unwrap();
            assert_eq!(problems[0].prompt.text(), "q", "{row}");
            assert_eq!(problems[0].answer, answer, "{row}");
            // Equal words are the same problem, whatever the row's shape.
            assert_eq!(problems[0].id, mix_text("q"));
        }
    }

    #[test]
    fn sources_floors_and_other_fields_are_kept() {
        let row = r#"{"prompt": "q", "answer": "5", "floor": "2+3=5", "level": 2}"#;
        let problem = &load("math.jsonl", row).unwrap()[0];
        assert_eq!((problem.data_source.as_str(), problem.floor.as_deref()), ("math", Some("2+3=5")));
        assert_eq!(Value::Object(problem.extra.clone()), serde_json::json!({"level": 2}));
        let gsm8k = &load("rows.jsonl", r#"{"question": "q", "answer": "so\n#### 5"}"#).unwrap()[0];
        assert_eq!((gsm8k.data_source.as_str(), gsm8k.extra["answer"].as_str()), ("gsm8k", Some("so\n#### 5")));
        assert_eq!(source_name(Path::new("data/gsm8k/train.jsonl")), "gsm8k");
        assert_eq!(source_name(Path::new("train.jsonl")), "train");
    }

    #[test]
    fn malformed_rows_are_named_by_line() {
        let good = r#"{"prompt": "q", "answer": "5"}"#;
        let table = [
            ("[1]", "got a list"),
            ("{", "expected one JSON object per line"),
            (
                r#"{"answer": "5"}"#,
                "no prompt: expected a field prompt, messages, question, problem; the row has answer",
            ),
            (r#"{"prompt": "q"}"#, "no answer"),
            (r#"{"prompt": 3, "answer": "5"}"#, "prompt: expected a text or a list of messages, got a number"),
            (r#"{"prompt": "q", "answer": true}"#, "answer: expected a text, a number"),
            (r#"{"prompt": " ", "answer": "5"}"#, "prompt is empty"),
            (
                r#"{"prompt": [{"role": "user"}], "answer": "5"}"#,
                "prompt[0]: expected an object with the texts role and content",
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": "x"}], "answer": "5"}"#,
                "a turn for the model to answer",
            ),
            (r#"{"prompt": "q", "answer": "5", "floor": 3}"#, "floor: expected a text"),
        ];
        for (row, want) in table {
            let error = load("x.jsonl", &format!("{good}\n\n{row}\n")).unwrap_err().to_string();
            assert!(error.contains("x.jsonl:3: ") && error.contains(want), "{error}");
        }
        assert!(load("x.jsonl", "\n").unwrap_err().to_string().contains("no rows"));
        let missing = load_problems(Path::new("no/rows.jsonl"), &Fields::default()).unwrap_err().to_string();
        assert!(missing.starts_with("no/rows.jsonl: "), "{missing}");
    }

    #[test]
    fn repeated_and_empty_rows_are_kept() {
        let problems = load("x.jsonl", "{\"prompt\": \"q\", \"answer\": \"\"}\n".repeat(2).as_str()).unwrap();
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn named_fields_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, r#"{"prompt": "p", "answer": "1", "task": "t", "gold": "2"}"#).unwrap();
        let fields = Fields { prompt_field: Some("task".into()), answer_field: Some("gold".into()) };
        let problem = &load_problems(&path, &fields).unwrap()[0];
        assert_eq!((problem.prompt.text().as_str(), problem.answer.as_str()), ("t", "2"));
        let fields = Fields { answer_field: Some("nope".into()), ..fields };
        let error = load_problems(&path, &fields).unwrap_err().to_string();
        assert!(error.contains("expected a field nope; the row has prompt, answer, task, gold"), "{error}");
    }

    #[test]
    fn conversations_end_with_the_assistant() {
        let read = |row: &str| {
            let Value::Object(row) = serde_json::from_str(row).unwrap() else { panic!() };
            conversation(&row)
        };
        let turns =
            read(r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#).unwrap();
        assert_eq!(turns, Conversation { prompt: Prompt::Messages(vec![Message::user("q")]), completion: "a".into() });
        let plain = read(r#"{"prompt": "q", "completion": "a"}"#).unwrap();
        assert_eq!(plain, Conversation { prompt: Prompt::Text("q".into()), completion: "a".into() });
        let lists = read(
            r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
        );
        assert_eq!(lists.unwrap(), turns);
        assert!(read(r#"{"messages": [{"role": "user", "content": "q"}]}"#).unwrap_err().contains("assistant's turn"));
        assert!(read(r#"{"text": "q"}"#).unwrap_err().contains("the row has text"));
    }

    /// Counts, and that every right answer equals itself once read, as `#### n`, in a box and in its own row.
    #[test]
    fn published_data_loads() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
        if !root.is_dir() {
            eprintln!("SKIPPED published_data_loads: no folder {}", root.display());
            return;
        }
        let table = [
            ("gsm8k/train.jsonl", "gsm8k", 7473),
            ("gsm8k/test.jsonl", "gsm8k", 1319),
            ("benchmarks/aime24.jsonl", "aime24", 30),
            ("benchmarks/amc23.jsonl", "amc23", 40),
            ("benchmarks/minerva_math.jsonl", "minerva_math", 272),
            ("benchmarks/olympiadbench.jsonl", "olympiadbench", 675),
        ];
        for (file, source, rows) in table {
            let problems = load_problems(&root.join(file), &Fields::default()).unwrap();
            assert_eq!(problems.len(), rows, "{file}");
            for problem in &problems {
                let answer = &problem.answer;
                assert_eq!(problem.data_source, source);
                assert!(!answer.is_empty() && answer.len() < 400, "{file}: {answer:?}");
                let graded = crate::reward::grade(answer, &format!("<think>x</think>\\boxed{{{answer}}}"), true);
                assert!(graded.strict.is_right() && graded.lenient.is_right(), "{file}: {answer:?} {graded:?}");
                if source == "gsm8k" {
                    assert!(
                        answer.parse::<i64>().is_ok() && compare(answer, &format!("{answer}.00")).is_right(),
                        "{answer:?}"
                    );
                    let own = problem.extra["answer"].as_str().unwrap();
                    assert!(crate::reward::grade(own, own, true).strict.is_right(), "{own}");
                }
            }
        }
    }
}
