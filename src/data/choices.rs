//! Multiple choice: appends the choices of a row to its question, and finds the letter of the correct one.

use serde_json::{Map, Value};

use super::Prompt;
use super::shapes::{Fault, is_empty, shown};

/// A letter or other label, and the text of the choice.
type Choice = (String, String);

/// Return the choices of a question; empty for a question without choices.
pub(super) fn choices(row: &Map<String, Value>) -> std::result::Result<Vec<Choice>, Fault> {
    let named = |name: &&str| row.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !is_empty(value));
    let Some((key, value)) = ["choices", "options"].iter().find_map(named) else { return Ok(Vec::new()) };
    let texts = |value: &Value| value.as_array()?.iter().map(text).collect::<Option<Vec<String>>>();
    let letters = || ('A'..='Z').map(String::from);
    let found: Option<Vec<Choice>> = match value {
        Value::Array(list) if list.len() <= letters().count() => {
            texts(value).map(|texts| letters().zip(texts).collect())
        }
        // ARC has a list of labels beside the list of texts.
        Value::Object(lists) if lists.contains_key("label") => {
            let list = |name: &str| lists.get(name).and_then(texts);
            list("label").zip(list("text")).map(|(labels, texts)| labels.into_iter().zip(texts).collect())
        }
        Value::Object(named) => {
            let given = named.iter().filter(|(_, choice)| !choice.is_null());
            given.map(|(name, choice)| Some((name.clone(), text(choice)?))).collect()
        }
        _ => None,
    };
    found.ok_or_else(|| {
        let shown = shown(value);
        format!("{key} = {shown}: expected a list of up to 26 texts or numbers, or an object with one for each letter")
    })
}

fn text(choice: &Value) -> Option<String> {
    match choice {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Return a question with its choices, one per line, unless it contains them with their letters already.
pub(super) fn with_choices(prompt: Prompt, choices: &[Choice]) -> Prompt {
    let lines: String = choices.iter().map(|(letter, text)| format!("\n({letter}) {text}")).collect();
    let has = |question: &str| {
        let marked = |letter: &str| [")", ".", ":"].iter().any(|mark| question.contains(&format!("{letter}{mark}")));
        choices.iter().all(|(letter, text)| question.contains(text.as_str()) && marked(letter))
    };
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

/// Return the letter of the choice that an answer names by its index (from 0) or its text; MedQA has the letter in
/// `answer_idx` as well. `None` for an answer that is no choice, or is a letter already.
pub(super) fn chosen(
    answer: &Value,
    choices: &[Choice],
    row: &Map<String, Value>,
) -> std::result::Result<Option<String>, Fault> {
    let is_letter = |text: &str| choices.iter().any(|(letter, _)| letter == text);
    match answer {
        Value::Number(place) if !choices.is_empty() => {
            let choice = place.as_u64().and_then(|place| choices.get(place as usize));
            let letter = choice.map(|(letter, _)| letter.clone());
            letter
                .map(Some)
                .ok_or_else(|| format!("{place}: expected the place of a choice, 0 to {}", choices.len() - 1))
        }
        Value::String(text) if !is_letter(text.trim()) => {
            let named =
                choices.iter().find(|(_, choice)| choice.trim() == text.trim()).map(|(letter, _)| letter.as_str());
            let beside = || row.get("answer_idx").and_then(Value::as_str).filter(|letter| is_letter(letter));
            Ok(named.or_else(beside).map(str::to_string))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use crate::data::{Fields, shapes};

    /// A question has no answer without its choices, or if its answer is a letter that it does not show.
    #[test]
    fn choices_are_part_of_the_question() {
        let table = [
            (r#"{"question": "q", "choices": ["3", "7"], "answer": 1}"#, "q\n(A) 3\n(B) 7", "B"),
            (r#"{"question": "q", "choices": [3, 7.5], "answer": 1}"#, "q\n(A) 3\n(B) 7.5", "B"),
            (r#"{"question": "1+2?", "choices": [1, 2, 12], "answer": 2}"#, "1+2?\n(A) 1\n(B) 2\n(C) 12", "C"),
            (r#"{"question": "q", "choices": null, "options": {"A": 3, "B": null}, "answer": "A"}"#, "q\n(A) 3", "A"),
            (r#"{"question": "q", "options": {"A": "x", "B": "y"}, "answer": "A"}"#, "q\n(A) x\n(B) y", "A"),
            (r#"{"question": "q", "choices": ["red", "blue"], "answer": "blue "}"#, "q\n(A) red\n(B) blue", "B"),
            (
                r#"{"question": "q", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"}"#,
                "q\n(A) x\n(B) y",
                "B",
            ),
            (
                r#"{"question": "q", "options": {"A": "x", "B": "y"}, "answer": "It is y.", "answer_idx": "B"}"#,
                "q\n(A) x\n(B) y",
                "B",
            ),
            (
                r#"{"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}"#,
                "q\n(1) x\n(2) y",
                "2",
            ),
            (r#"{"prompt": "q A. x B. y", "choices": ["x", "y"], "answer": "y"}"#, "q A. x B. y", "B"),
            (r#"{"prompt": "x or y?", "choices": ["x", "y"], "answer": "B"}"#, "x or y?\n(A) x\n(B) y", "B"),
            (
                r#"{"prompt": [{"role": "user", "content": "q"}], "choices": ["x", "y"], "answer": "A"}"#,
                "q\n(A) x\n(B) y",
                "A",
            ),
        ];
        let read = |row: &str| shapes::problem(serde_json::from_str(row).unwrap(), &Fields::default(), "file");
        for (row, prompt, answer) in table {
            let problem = read(row).unwrap();
            assert_eq!((problem.prompt.text().as_str(), problem.answer.as_str()), (prompt, answer), "{row}");
        }
        for (row, want) in [
            (
                r#"{"question": "q", "choices": ["x", "y"], "answer": 2}"#,
                "answer = 2: expected the place of a choice, 0 to 1",
            ),
            (r#"{"question": "q", "choices": "x, y", "answer": "x"}"#, r#"choices = "x, y": expected a list of"#),
            (r#"{"question": "q", "options": [["x"], ["y"]], "answer": 0}"#, "expected a list of up to 26 texts"),
        ] {
            let fault = read(row).unwrap_err();
            assert!(fault.contains(want), "{fault}");
        }
    }
}
