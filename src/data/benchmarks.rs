//! Benchmarks by name: their source on the Hub and their number of problems.
//!
//! Names, splits and columns are those that published evaluations read (2026). Tests cannot reach the Hub, so
//! deviations are reported when a benchmark is read.

use std::path::{Path, PathBuf};

use super::Fields;
use crate::error::Result;
use crate::hub::{self, Name, RepoKind};

/// A benchmark with a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Benchmark {
    /// Name of the benchmark.
    pub name: &'static str,
    /// Hub repository, with configuration and split.
    pub source: &'static str,
    /// Column of the question.
    pub question: &'static str,
    /// Column of the answer.
    pub answer: &'static str,
    /// Number of problems.
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

/// All benchmarks.
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

/// Return the names of all benchmarks, for messages.
pub(super) fn names() -> String {
    ALL.map(|benchmark| benchmark.name).join(", ")
}

/// Return the benchmark that `path` names (`math500` or `math500@revision`) and the revision; `None` if there is a file or
/// folder of that name.
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
    if path.exists() {
        if hub::is_first(path) {
            tracing::warn!(
                "{text}: the local file or folder of this name is used; write {name}@main for the benchmark"
            );
        }
        return None;
    }
    Some((found, revision))
}

/// Return whether `path` is the name of a benchmark, even if there is a file of that name.
pub(super) fn is_name(path: &Path) -> bool {
    ALL.iter().any(|benchmark| path == Path::new(benchmark.name))
}

/// Return the benchmark that `path` names; `None` if there is a file or folder of that name.
pub fn of(path: &Path) -> Option<&'static Benchmark> {
    read(path).map(|(benchmark, _)| benchmark)
}

/// Return the Hub data set that `path` names, directly or as a benchmark; `None` for a file.
///
/// # Errors
/// A mistyped path.
pub fn hub_name(path: &Path) -> Result<Option<Name>> {
    let Some((benchmark, revision)) = read(path) else { return Name::of(RepoKind::Data, path) };
    let marked = format!("hf:{}", benchmark.source);
    let name = Name::of(RepoKind::Data, Path::new(&marked))?;
    Ok(name.map(|name| Name { revision: revision.map(str::to_string), ..name }))
}

/// Return `path` as settings store it: the name of a data set or benchmark is pinned to `commit`.
pub fn at(path: &Path, name: &Name, commit: &str) -> PathBuf {
    match of(path) {
        Some(benchmark) => format!("{}@{commit}", benchmark.name).into(),
        None => name.at(commit).into(),
    }
}

/// Return `path`, with the name of a data set or benchmark pinned to its current commit.
///
/// # Errors
/// A mistyped path, and errors of the Hub.
pub fn pinned(path: &Path) -> Result<PathBuf> {
    match hub_name(path)? {
        Some(name) => Ok(at(path, &name, &hub::commit_of(&name)?)),
        None => Ok(path.to_path_buf()),
    }
}

impl Benchmark {
    /// Return the columns to read, unless `fields` names others.
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

    /// Real copies, which are not shipped, have the columns and counts of the table.
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
        // The copy of Minerva has solutions; that of OlympiadBench has one more problem.
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
            // The named columns are those that would be found without names.
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
