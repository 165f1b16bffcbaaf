//! Data sets: problems with a checkable answer, and conversations to imitate.
//!
//! Files are `.jsonl` (one object per line), `.json` (the same, or one list) and `.parquet`. The recognised shapes of
//! rows are listed in [`shapes`]; others are mapped with [`Fields`].

pub mod benchmarks;
mod choices;
mod files;
mod parquet;
pub mod problems;
pub mod shapes;
pub mod shuffle;
mod turns;

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::hub::{self, Hub};
use crate::noise::mix_text;
pub use crate::text::chat::{Message, Prompt};
use crate::verify::{Verdict, compare, gold_answer};
#[cfg(feature = "cli")]
pub(crate) use turns::thinking;

/// A question with an answer that a program can check.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Prompt for the model.
    pub prompt: Prompt,
    /// Correct answer.
    pub answer: String,
    /// Source of the row; results are reported by source.
    pub data_source: String,
    /// Hash of the prompt's text: the identity of the problem in every random choice.
    pub id: u64,
    /// Text of the shortest sufficient solution, if the row has one as `floor`.
    pub floor: Option<String>,
    /// Other fields of the row, and the whole solution if the answer was extracted from one.
    pub extra: Map<String, Value>,
    /// File and row, for messages; empty for a problem that is not from a file.
    pub place: String,
}

impl Problem {
    /// Create a problem without a source or other fields.
    pub fn new(prompt: Prompt, answer: impl Into<String>) -> Self {
        let id = mix_text(&prompt.text());
        let (data_source, place) = (String::new(), String::new());
        Self { prompt, answer: answer.into(), data_source, id, floor: None, extra: Map::new(), place }
    }

    /// Return an error about this problem that names its row, or else its source.
    fn fault(&self, message: impl fmt::Display) -> Error {
        match [&self.place, &self.data_source].into_iter().find(|name| !name.is_empty()) {
            Some(name) => Error::file(name, message),
            None => Error::Invalid(message.to_string()),
        }
    }
}

/// Fields to read if they do not have the usual names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    /// Field with the prompt: a text or messages.
    pub prompt_field: Option<String>,
    /// Field with the answer or a solution that states it.
    pub answer_field: Option<String>,
}

/// A conversation whose last turn is to be imitated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// Everything before the last turn.
    pub prompt: Prompt,
    /// The assistant's last turn.
    pub completion: String,
    /// File and row, for messages; empty for a conversation that is not from a file.
    pub place: String,
}

/// Unusual but valid properties of a data set, which its `Display` text lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// Number of problems.
    pub problems: usize,
    /// Problems without an answer, which no reward can score: it is empty, or a placeholder such as `proof`.
    pub empty_answers: usize,
    /// Problems whose answer is a text of several sentences, which only equals the same words.
    #[serde(default)]
    pub prose_answers: usize,
    /// Other problems whose answer cannot be parsed or has no value; it only equals the same characters.
    #[serde(default)]
    pub unreadable_answers: usize,
    /// The first of these, with its row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_unreadable: Option<String>,
    /// Problems whose answer is the letter of a choice that their prompt does not show.
    #[serde(default)]
    pub unseen_choices: usize,
    /// Problems whose prompt occurred before.
    pub duplicates: usize,
    /// Problems left out because their prompt is too long.
    pub overlong: usize,
}

impl DataReport {
    /// Create the report of one data set.
    pub fn of(problems: &[Problem]) -> Self {
        let mut seen = HashSet::new();
        let unreadable: Vec<&Problem> = problems.par_iter().filter(|problem| is_unreadable(&problem.answer)).collect();
        let shown =
            |problem: &&Problem| format!("{}: {}", problem.place, shapes::shown(&problem.answer.as_str().into()));
        Self {
            problems: problems.len(),
            empty_answers: problems.iter().filter(|problem| is_missing(&problem.answer)).count(),
            prose_answers: problems.iter().filter(|problem| is_prose(&problem.answer)).count(),
            unreadable_answers: unreadable.len(),
            first_unreadable: unreadable.first().map(shown),
            unseen_choices: problems.iter().filter(|problem| choices::is_unseen(problem)).count(),
            duplicates: problems.iter().filter(|problem| !seen.insert(problem.id)).count(),
            overlong: 0,
        }
    }

    /// Return whether there is nothing unusual.
    pub fn is_clean(&self) -> bool {
        let answers = self.empty_answers + self.prose_answers + self.unreadable_answers + self.unseen_choices;
        answers + self.duplicates + self.overlong == 0
    }
}

impl fmt::Display for DataReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} problems", self.problems)?;
        let first = self.first_unreadable.as_deref().unwrap_or_default();
        let unreadable = format!(
            "an answer that the verifier cannot parse, so that only an identical string is correct (the first is \
             {first})"
        );
        let odd = [
            (self.empty_answers, "an empty answer or a placeholder such as \"proof\", which cannot be scored"),
            (
                self.prose_answers,
                "an answer of several sentences, so that only the same words are correct (set data.answer_field to a \
                 field with the short answer, or grade with a reward program)",
            ),
            (self.unreadable_answers, &unreadable),
            (
                self.unseen_choices,
                "the letter of a choice as the answer but no choices in the prompt (name the column of the choices \
                 \"choices\" or \"options\")",
            ),
            (self.duplicates, "a repeated prompt"),
        ];
        for (count, what) in odd.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} with {what}")?;
        }
        if self.overlong > 0 {
            write!(f, "; {} more left out because their prompt is too long", self.overlong)?;
        }
        Ok(())
    }
}

/// Return whether a row has no answer: it is empty, or what NuminaMath, pandas and others write in its place.
fn is_missing(answer: &str) -> bool {
    const PLACEHOLDERS: [&str; 6] = ["proof", "notfound", "not found", "n/a", "nan", "null"];
    let answer = answer.trim();
    answer.is_empty() || PLACEHOLDERS.iter().any(|placeholder| answer.eq_ignore_ascii_case(placeholder))
}

/// Return whether an answer is an explanation: several lines or more than 20 words.
fn is_prose(answer: &str) -> bool {
    const WORDS: usize = 20;
    let word = |text: &&str| text.len() > 1 && text.chars().all(|c| c.is_alphabetic() || ".,;:!?'".contains(c));
    answer.trim().contains('\n') || answer.split_whitespace().filter(word).count() > WORDS
}

/// Return whether the verifier cannot compare an answer with anything: beyond its notation, or without a value.
fn is_unreadable(answer: &str) -> bool {
    let answer = answer.trim();
    // Fast path: most answers are numbers, and a file may have a million.
    let is_number = || answer.parse::<f64>().is_ok_and(f64::is_finite);
    let verdict = || compare(&gold_answer(answer), "0");
    !is_missing(answer)
        && !is_number()
        && !is_prose(answer)
        && matches!(verdict(), Verdict::Undecided | Verdict::UnparseableGold)
}

/// Read problems from a file, or from the data set or benchmark of that name on the Hub.
///
/// Empty or unreadable answers and repeated prompts are kept; a warning counts them.
///
/// # Errors
/// A file that is missing, of an unknown kind or corrupt, the first row that is not a problem, by its line, and the
/// errors of [`Hub::data`] for a name.
pub fn load_problems(path: &Path, fields: &Fields) -> Result<Vec<Problem>> {
    let benchmark = benchmarks::of(path);
    let fields = &benchmark.map_or_else(|| fields.clone(), |benchmark| benchmark.fields(fields));
    let (files, source) = located(path)?;
    let mut problems = Vec::new();
    for file in &files {
        let read = |place: &str, row| {
            shapes::problem(row, fields, &source).map(|problem| Problem { place: place.to_string(), ..problem })
        };
        problems.extend(files::rows(file, read)?);
    }
    if let Some(benchmark) = benchmark.filter(|benchmark| benchmark.problems != problems.len()) {
        let (name, known, found) = (benchmark.name, benchmark.problems, problems.len());
        tracing::warn!(
            "{name}: {} has {found} problems, but the published benchmark has {known}: results may not be comparable",
            benchmark.source
        );
    }
    let report = DataReport::of(&problems);
    if !report.is_clean() {
        tracing::warn!("{}: {report}", path.display());
    }
    Ok(problems)
}

/// Read conversations from a file, or from the data set of that name on the Hub: rows with `messages` that end with an
/// assistant's turn, or with `prompt` and `completion` (each a text or messages).
///
/// # Errors
/// As [`load_problems`].
pub fn load_conversations(path: &Path) -> Result<Vec<Conversation>> {
    load_rows(path, |place, row| {
        let (prompt, completion) = turns::conversation(&row)?;
        Ok(Conversation { prompt, completion, place: place.to_string() })
    })
}

/// Read the rows of a file, or of the data set of that name on the Hub, with `read`, which gets the place of each row.
///
/// # Errors
/// As [`load_problems`]; the error of `read` is given the place.
pub(crate) fn load_rows<T>(
    path: &Path,
    mut read: impl FnMut(&str, Map<String, Value>) -> std::result::Result<T, String>,
) -> Result<Vec<T>> {
    let mut rows = Vec::new();
    for file in located(path)?.0 {
        rows.extend(files::rows(&file, &mut read)?);
    }
    Ok(rows)
}

/// Return the files that `path` is or names, and the source of rows that name none.
fn located(path: &Path) -> Result<(Vec<PathBuf>, String)> {
    let benchmark = benchmarks::of(path).map(|benchmark| benchmark.name.to_string());
    match benchmarks::hub_name(path)? {
        Some(name) => {
            let own = name.repository.rsplit('/').next().unwrap_or_default().to_string();
            Ok((Hub::from_env().data(&name)?, benchmark.unwrap_or(own)))
        }
        // [`hub::data`] also reports a file that hides a name.
        None => Ok((hub::data(path)?, source_name(path))),
    }
}

/// Return the file's name without extension; its folder's name if the file is only named after its split.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::grade;

    fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn sources_floors_and_other_fields_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let load = |name, row| load_problems(&write(&dir, name, row), &Fields::default()).unwrap().remove(0);
        let problem = load("math.jsonl", r#"{"prompt": "q", "answer": "5", "floor": "2+3=5", "level": 2}"#);
        assert_eq!((problem.data_source.as_str(), problem.floor.as_deref()), ("math", Some("2+3=5")));
        assert_eq!(Value::Object(problem.extra), serde_json::json!({"level": 2}));
        let gsm8k = load("rows.jsonl", r#"{"question": "q", "answer": "so\n#### 5"}"#);
        assert_eq!((gsm8k.data_source.as_str(), gsm8k.extra["answer"].as_str()), ("gsm8k", Some("so\n#### 5")));
        assert_eq!(source_name(Path::new("data/gsm8k/train.jsonl")), "gsm8k");
        assert_eq!(source_name(Path::new("train.jsonl")), "train");
    }

    #[test]
    fn repeated_and_empty_rows_are_kept_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let prose = r#"{"prompt": "r", "solution": "Twice 2 is 4.\nAdd 1: it is 5."}"#;
        let unreadable = r#"{"prompt": "s", "answer": "\\frac{1}{"}"#;
        let valueless = r#"{"prompt": "t", "answer": "1/0"}"#;
        let plain = [r#"{"prompt": "q", "answer": ""}"#, r#"{"prompt": "q", "answer": "5"}"#];
        let rows = [&plain[..], &[prose, unreadable, valueless]].concat().join("\n");
        let problems = load_problems(&write(&dir, "x.jsonl", &rows), &Fields::default()).unwrap();
        let report = DataReport::of(&problems);
        let place = &problems[3].place;
        assert!(place.ends_with("x.jsonl:4"), "{place}");
        let first = format!(r#"{place}: "\\frac{{1}}{{""#);
        let counted = DataReport { problems: 5, empty_answers: 1, prose_answers: 1, duplicates: 1, ..report.clone() };
        assert_eq!(report, DataReport { unreadable_answers: 2, first_unreadable: Some(first.clone()), ..counted });
        assert_eq!(
            DataReport { overlong: 3, ..report }.to_string(),
            format!(
                "5 problems, 1 with an empty answer or a placeholder such as \"proof\", which cannot be scored, 1 with \
                 an answer of several sentences, so that only the same words are correct (set data.answer_field to a \
                 field with the short answer, or grade with a reward program), 2 with an answer that the verifier \
                 cannot parse, so that only an identical string is correct (the first is {first}), 1 with a repeated \
                 prompt; 3 more left out because their prompt is too long"
            )
        );
    }

    #[test]
    fn placeholders_are_no_answers() {
        for (answer, missing) in [("proof", 1), ("NotFound", 1), (" nan", 1), ("", 1), ("n", 0), ("No", 0), ("0", 0)] {
            let report = DataReport::of(&[Problem::new(Prompt::Text("q".into()), answer)]);
            assert_eq!((report.empty_answers, report.unreadable_answers), (missing, 0), "{answer:?}");
        }
    }

    #[test]
    fn named_fields_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(&dir, "x.jsonl", r#"{"prompt": "p", "answer": "1", "task": "t", "gold": "2"}"#);
        let fields = Fields { prompt_field: Some("task".into()), answer_field: Some("gold".into()) };
        let problem = &load_problems(&path, &fields).unwrap()[0];
        assert_eq!((problem.prompt.text().as_str(), problem.answer.as_str()), ("t", "2"));
        let fields = Fields { answer_field: Some("nope".into()), ..fields };
        let error = load_problems(&path, &fields).unwrap_err().to_string();
        assert!(error.contains("expected a field nope; the row has prompt, answer, task, gold"), "{error}");
    }

    /// Check the counts, and that every answer equals itself when read as `#### n`, in a box and in its own row.
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
            ("benchmarks/aime25.jsonl", "aime25", 30),
            ("benchmarks/amc23.jsonl", "amc23", 40),
            ("benchmarks/math500.jsonl", "math500", 500),
            ("benchmarks/minerva_math.jsonl", "minerva_math", 272),
            ("benchmarks/olympiadbench.jsonl", "olympiadbench", 675),
        ];
        for (file, source, rows) in table {
            let problems = load_problems(&root.join(file), &Fields::default()).unwrap();
            assert_eq!(DataReport::of(&problems), DataReport { problems: rows, ..DataReport::default() }, "{file}");
            for problem in &problems {
                let answer = &problem.answer;
                assert_eq!(problem.data_source, source);
                assert!(answer.len() < 400, "{file}: {answer:?}");
                let graded = grade(answer, &format!("<think>x</think>\\boxed{{{answer}}}"), true);
                assert!(graded.strict.is_right() && graded.lenient.is_right(), "{file}: {answer:?} {graded:?}");
                if source == "gsm8k" {
                    assert!(answer.parse::<i64>().is_ok(), "{answer:?}");
                    let own = problem.extra["answer"].as_str().unwrap();
                    assert!(grade(own, own, true).strict.is_right(), "{own}");
                }
            }
        }
    }
}
