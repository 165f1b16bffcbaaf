//! Multiple choice: appends the choices of a row to its question, and finds the letter of the correct one.

use serde_json::{Map, Value};

use super::shapes::{RowFault, is_empty, shown};
use super::{Problem, Prompt};

/// A letter or other label, and the text of the choice.
type Choice = (String, String);

/// Return the choices of a question with this answer; empty for a question without choices.
pub(super) fn choices(row: &Map<String, Value>, answer: &Value) -> std::result::Result<Vec<Choice>, RowFault> {
    let named = |name: &&str| row.iter().find(|(key, value)| key.eq_ignore_ascii_case(name) && !is_empty(value));
    let Some((key, value)) = ["choices", "options", "endings"].iter().find_map(named) else {
        return Ok(columns(row, answer));
    };
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
        format!(
            "{key} = {shown}: expected a list of up to 26 strings or numbers, or an object with one for each letter"
        )
    })
}

/// Return the choices in columns of their own: `option_a`, `opb`, `choice1`, `ending0`, and so on. Columns `A`, `B`, … are
/// choices if the answer is one of these letters.
fn columns(row: &Map<String, Value>, answer: &Value) -> Vec<Choice> {
    const PREFIXES: [&str; 7] = ["option_", "option", "choice_", "choice", "ending", "op", ""];
    let starting_with = |key: &String| {
        let (at, first) = key.char_indices().next_back()?;
        let prefix = &key[..at];
        let labels = match first {
            'A' => 'A'..='Z',
            'a' if at > 0 => 'a'..='z',
            // `op1` and `op2` are rather operands.
            '0' | '1' if at > 2 => first..='9',
            _ => return None,
        };
        PREFIXES.iter().any(|known| known.eq_ignore_ascii_case(prefix)).then_some(())?;
        let choice = |label: char| {
            let value = row.get(&format!("{prefix}{label}")).filter(|value| !is_empty(value))?;
            Some((label.to_ascii_uppercase().to_string(), text(value)?))
        };
        let found: Vec<Choice> = labels.map_while(choice).collect();
        let letter = answer.as_str().unwrap_or_default().trim_matches([' ', '(', ')', '.']);
        (found.len() > 1 && (at > 0 || found.iter().any(|(label, _)| label == letter))).then_some(found)
    };
    row.keys().find_map(starting_with).unwrap_or_default()
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
    let line = |(label, text): &Choice| match has_label(text, label) {
        true => format!("\n{text}"),
        false => format!("\n({label}) {text}"),
    };
    let lines: String = choices.iter().map(line).collect();
    let has = |question: &str| {
        choices.iter().all(|(label, text)| question.contains(text.as_str()) && is_marked(question, label))
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

/// Return whether the text of a choice begins with its label, as in `A) 21` and `(A) 21`.
fn has_label(text: &str, label: &str) -> bool {
    let rest = text.trim_start().trim_start_matches('(').strip_prefix(label);
    rest.is_some_and(|rest| rest.starts_with([')', '.', ':']))
}

/// Return whether the answer of a problem is the letter of a choice that its prompt does not show.
pub(super) fn is_unseen(problem: &Problem) -> bool {
    let answer = problem.answer.replace("\\text", "");
    let letter = answer.trim_matches([' ', '$', '(', ')', '{', '}', '.']);
    matches!(letter.as_bytes(), [b'A'..=b'H']) && !is_marked(&problem.prompt.text(), letter)
}

/// Return whether a question has the label of a choice: `A)`, `A.` or `A:`.
fn is_marked(question: &str, label: &str) -> bool {
    [")", ".", ":"].iter().any(|mark| question.contains(&format!("{label}{mark}")))
}

/// Return the letter of the choice that an answer names by its index (from 0) or its text; MedQA has the letter in
/// `answer_idx` as well. `None` for an answer that is no choice, or is a letter already.
pub(super) fn chosen(
    answer: &Value,
    choices: &[Choice],
    row: &Map<String, Value>,
) -> std::result::Result<Option<String>, RowFault> {
    let is_letter = |text: &str| choices.iter().any(|(letter, _)| letter == text);
    let at = |place: usize| choices.get(place).map(|(letter, _)| letter.clone());
    match answer {
        Value::Number(place) if !choices.is_empty() => {
            let letter = place.as_u64().and_then(|place| at(place as usize));
            letter
                .map(Some)
                .ok_or_else(|| format!("{place}: expected the index of a choice, 0 to {}", choices.len() - 1))
        }
        Value::String(text) if !is_letter(text.trim()) => {
            let named =
                choices.iter().find(|(_, choice)| choice.trim() == text.trim()).map(|(letter, _)| letter.as_str());
            let beside = || row.get("answer_idx").and_then(Value::as_str).filter(|letter| is_letter(letter));
            let letters = || choices.iter().map(|(letter, _)| letter.as_str());
            let other_case = || letters().find(|letter| letter.eq_ignore_ascii_case(text.trim()));
            // The index as a text, unless a choice is a number, too.
            let numeric = choices.iter().any(|(_, choice)| choice.trim().parse::<f64>().is_ok());
            let place = || text.trim().parse().ok().filter(|_| !numeric).and_then(at);
            Ok(named.or_else(beside).or_else(other_case).map(str::to_string).or_else(place))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use crate::data::{DataReport, Fields, Problem, shapes};

    fn read(row: &str) -> Result<Problem, String> {
        shapes::problem(serde_json::from_str(row).unwrap(), &Fields::default(), "file")
    }

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
            // Regression: choices under other names were left out of the prompt.
            (r#"{"question": "q", "A": "x", "B": "y", "C": 3, "answer": "C"}"#, "q\n(A) x\n(B) y\n(C) 3", "C"),
            (r#"{"question": "q", "A": 3, "B": 4, "answer": "5"}"#, "q", "5"),
            (r#"{"question": "q", "op1": 3, "op2": 4, "answer": "5"}"#, "q", "5"),
            (r#"{"question": "q", "a": "x", "b": "y", "answer": "A"}"#, "q", "A"),
            (r#"{"question": "q", "option_a": "x", "option_b": "y", "answer": "y"}"#, "q\n(A) x\n(B) y", "B"),
            (r#"{"question": "q", "option_a": "x", "option_b": "y", "answer": "b"}"#, "q\n(A) x\n(B) y", "B"),
            (r#"{"question": "q", "OptionA": "x", "OptionB": "y", "answer": 1}"#, "q\n(A) x\n(B) y", "B"),
            (r#"{"question": "q", "opa": "x", "opb": "y", "opc": null, "answer": 0}"#, "q\n(A) x\n(B) y", "A"),
            (r#"{"question": "q", "option1": "x", "option2": "y", "answer": "2"}"#, "q\n(1) x\n(2) y", "2"),
            (r#"{"question": "q", "endings": ["x", "y"], "answer": "1"}"#, "q\n(A) x\n(B) y", "B"),
            (r#"{"question": "q", "choices": ["7", "1"], "answer": "1"}"#, "q\n(A) 7\n(B) 1", "B"),
            (r#"{"question": "q", "options": ["A)21", "(B) 4"], "answer": "A"}"#, "q\nA)21\n(B) 4", "A"),
            (r#"{"question": "q", "options": ["A. x", "B. y"], "answer": "B. y"}"#, "q\nA. x\nB. y", "B"),
            (r#"{"question": "q", "options": "", "A": "x", "B": "y", "answer": "B"}"#, "q\n(A) x\n(B) y", "B"),
            (r#"{"prompt": "q A. x B. y", "choices": ["x", "y"], "answer": "y"}"#, "q A. x B. y", "B"),
            (r#"{"prompt": "x or y?", "choices": ["x", "y"], "answer": "B"}"#, "x or y?\n(A) x\n(B) y", "B"),
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
        for (row, want) in [
            (
                r#"{"question": "q", "choices": ["x", "y"], "answer": 2}"#,
                "answer = 2: expected the index of a choice, 0 to 1",
            ),
            (r#"{"question": "q", "choices": "x, y", "answer": "x"}"#, r#"choices = "x, y": expected a list of"#),
            (r#"{"question": "q", "options": [["x"], ["y"]], "answer": 0}"#, "expected a list of up to 26 strings"),
        ] {
            let fault = read(row).unwrap_err();
            assert!(fault.contains(want), "{fault}");
        }
    }

    /// Regression: a run trained without a word on rows whose choices were not found.
    #[test]
    fn letters_of_choices_that_a_prompt_does_not_show_are_counted() {
        let unseen = |row: &str| {
            let report = DataReport::of(&[read(row).unwrap()]);
            assert_eq!(report.is_clean(), report.unseen_choices == 0, "{row}");
            report.unseen_choices
        };
        for row in [
            r#"{"question": "q", "answers": ["x", "y"], "answer": "B"}"#,
            r#"{"question": "q", "answer": "(C)"}"#,
            r#"{"question": "q", "answer": "$\\text{(C)}$"}"#,
        ] {
            assert_eq!(unseen(row), 1, "{row}");
        }
        for row in [
            r#"{"question": "q", "choices": ["x", "y"], "answer": "B"}"#,
            r#"{"question": "q (A) x (B) y", "answer": "B"}"#,
            r#"{"question": "q $\\textbf{(A)}$ x $\\textbf{(B)}$ y", "answer": "\\text{(B)}"}"#,
            r#"{"question": "q", "answer": "m"}"#,
            r#"{"question": "q", "answer": "-C"}"#,
        ] {
            assert_eq!(unseen(row), 0, "{row}");
        }
    }
}
