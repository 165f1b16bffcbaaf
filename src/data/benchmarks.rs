//! Benchmarks by name: where each comes from on the Hub, and how many problems it has.
//!
//! Names, splits and columns are those that published evaluations read (2026); the Hub cannot be asked from where this is
//! tested, so what differs is said when a benchmark is read.

use std::path::{Path, PathBuf};
use std::sync::Once;

use super::Fields;
use crate::error::Result;
use crate::hub::{self, Kind, Name};

/// A benchmark that has a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Benchmark {
    /// What it is called.
    pub name: &'static str,
    /// Repository of the Hub, with configuration and split.
    pub source: &'static str,
    /// Column of the question.
    pub question: &'static str,
    /// Column of the answer.
    pub answer: &'static str,
    /// Problems.
    pub problems: usize,
    /// Licence of the repository.
    pub licence: &'static str,
}

const fn row(
    name: &'static str,
    source: &'static str,
    (question, answer): (&'static str, &'static str),
    problems: usize,
    licence: &'static str,
) -> Benchmark {
    Benchmark { name, source, question, answer, problems, licence }
}

/// All of them.
pub const ALL: [Benchmark; 7] = [
    row("math500", "HuggingFaceH4/MATH-500:test", ("problem", "answer"), 500, "none declared"),
    row("aime24", "HuggingFaceH4/aime_2024:train", ("problem", "answer"), 30, "none declared"),
    row("aime25", "MathArena/aime_2025:train", ("problem", "answer"), 30, "CC BY-NC-SA 4.0"),
    row("amc23", "math-ai/amc23:test", ("question", "answer"), 40, "none declared"),
    row(
        "olympiadbench",
        "Hothan/OlympiadBench:OE_TO_maths_en_COMP:train",
        ("question", "final_answer"),
        674,
        "Apache 2.0",
    ),
    row("minerva", "math-ai/minervamath:test", ("question", "answer"), 272, "none declared"),
    row("gsm8k", "openai/gsm8k:main:test", ("question", "answer"), 1319, "MIT"),
];

/// Their names, for messages.
pub(super) fn names() -> String {
    ALL.map(|benchmark| benchmark.name).join(", ")
}

/// The benchmark that `path` names, `math500` or `math500@revision`, and the revision; none where there is a file of that name.
fn read(path: &Path) -> Option<(&'static Benchmark, Option<&str>)> {
    let text = path.to_str()?;
    let (name, revision) = match text.split_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (text, None),
    };
    let found = ALL.iter().find(|benchmark| benchmark.name == name)?;
    if !revision.is_none_or(hub::is_revision) {
        return None;
    }
    if path.is_file() {
        static SAID: Once = Once::new();
        SAID.call_once(|| tracing::warn!("{text}: the file of this name is taken, not the benchmark"));
        return None;
    }
    Some((found, revision))
}

/// Whether `path` is the name of a benchmark, be there a file of that name or not.
pub(super) fn is_name(path: &Path) -> bool {
    ALL.iter().any(|benchmark| path == Path::new(benchmark.name))
}

/// The benchmark that `path` names; none where there is a file of that name.
pub fn of(path: &Path) -> Option<&'static Benchmark> {
    read(path).map(|(benchmark, _)| benchmark)
}

/// The data set of the Hub that `path` names, or the benchmark that it names is; none for a file.
///
/// # Errors
/// A path that is mistyped.
pub fn hub_name(path: &Path) -> Result<Option<Name>> {
    let Some((benchmark, revision)) = read(path) else { return Name::of(Kind::Data, path) };
    let marked = format!("hf:{}", benchmark.source);
    let name = Name::of(Kind::Data, Path::new(&marked))?;
    Ok(name.map(|name| Name { revision: revision.map(str::to_string), ..name }))
}

/// `path`, and where it names a data set or a benchmark the name at a commit, as settings keep it.
pub fn at(path: &Path, name: &Name, commit: &str) -> PathBuf {
    match of(path) {
        Some(benchmark) => format!("{}@{commit}", benchmark.name).into(),
        None => name.at(commit).into(),
    }
}

/// `path`, and where it names a data set or a benchmark the name at the commit that it means now.
///
/// # Errors
/// A path that is mistyped, and what the Hub says.
pub fn pinned(path: &Path) -> Result<PathBuf> {
    match hub_name(path)? {
        Some(name) => Ok(at(path, &name, &hub::commit_of(&name)?)),
        None => Ok(path.to_path_buf()),
    }
}

impl Benchmark {
    /// The columns to read, but for those that `fields` name.
    pub(super) fn fields(&self, fields: &Fields) -> Fields {
        let own = |given: &Option<String>, own: &str| given.clone().or_else(|| Some(own.to_string()));
        Fields {
            prompt_field: own(&fields.prompt_field, self.question),
            answer_field: own(&fields.answer_field, self.answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{load_problems, shapes};

    #[test]
    fn a_benchmark_is_a_data_set_of_the_hub_at_a_revision() {
        let name = |text: &str| hub_name(Path::new(text)).unwrap().map(|name| name.to_string());
        assert_eq!(name("gsm8k").as_deref(), Some("openai/gsm8k:main:test"));
        assert_eq!(name("aime24@v1").as_deref(), Some("HuggingFaceH4/aime_2024:train@v1"));
        assert_eq!((name("aime23"), name("./gsm8k"), name("math500@../../x")), (None, None, None));
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let named = hub_name(Path::new("math500")).unwrap().unwrap();
        let kept = at(Path::new("math500"), &named, commit);
        assert_eq!(kept, Path::new(&format!("math500@{commit}")));
        assert_eq!(hub_name(&kept).unwrap().unwrap().commit(), Some(commit));
        for benchmark in ALL {
            assert!(hub_name(Path::new(benchmark.name)).unwrap().is_some(), "{} is a name", benchmark.source);
        }
    }

    /// Real copies, which are not shipped: the columns of the table are there, and the counts are as told.
    #[test]
    fn published_copies_have_the_columns_and_counts_of_the_table() {
        let root = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
        if !root.is_dir() {
            eprintln!(
                "SKIPPED published_copies_have_the_columns_and_counts_of_the_table: no folder {}",
                root.display()
            );
            return;
        }
        // The copy of Minerva has solutions; that of OlympiadBench has one problem more.
        for (name, file, count) in [
            ("math500", "benchmarks/math500.jsonl", 500),
            ("aime24", "benchmarks/aime24.jsonl", 30),
            ("aime25", "benchmarks/aime25.jsonl", 30),
            ("amc23", "benchmarks/amc23.jsonl", 40),
            ("olympiadbench", "benchmarks/olympiadbench.jsonl", 675),
            ("gsm8k", "gsm8k/test.jsonl", 1319),
        ] {
            let benchmark = of(Path::new(name)).unwrap();
            let fields = benchmark.fields(&Fields::default());
            let problems = load_problems(&root.join(file), &fields).unwrap();
            assert_eq!(problems.len(), count, "{file}");
            assert!(benchmark.problems.abs_diff(count) <= 1);
            // The columns that are named are those that would have been found.
            let found = load_problems(&root.join(file), &Fields::default()).unwrap();
            let read = |problems: &[super::super::Problem]| -> Vec<String> {
                problems.iter().map(|problem| problem.answer.clone()).collect()
            };
            assert_eq!(read(&problems), read(&found), "{file}");
        }
        let row = r#"{"question": "q", "answer": "2.5e4"}"#;
        let fields = of(Path::new("minerva")).unwrap().fields(&Fields::default());
        assert_eq!(shapes::problem(serde_json::from_str(row).unwrap(), &fields, "x").unwrap().answer, "2.5e4");
    }
}
