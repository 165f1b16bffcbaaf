//! Graded completions and the files they are kept in, one JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::verify::{Graded, Verdict, grade};

/// A completion as it was sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The problem's identity.
    pub problem: String,
    /// Which of the problem's completions this is.
    pub sample: usize,
    /// Where the problem is from.
    pub data_source: String,
    /// The question.
    #[serde(default)]
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// The text, with any forced start, without special tokens.
    pub completion: String,
    /// Whether the model ended it, rather than the length limit.
    pub finished: bool,
    /// Tokens, forced start included.
    pub length: usize,
    /// Tokens of the shortest sufficient solution, end of turn included, where known.
    #[serde(default)]
    pub floor: Option<usize>,
    /// Sum over tokens of the entropy at temperature 1, in nats, where known.
    #[serde(default, rename = "entropy", deserialize_with = "sum", skip_serializing)]
    pub entropy_sum: Option<f64>,
}

fn sum<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<f64>, D::Error> {
    Vec::<f32>::deserialize(deserializer).map(|entropies| Some(entropy_sum(&entropies)))
}

/// Sum of a completion's entropies.
pub(super) fn entropy_sum(entropies: &[f32]) -> f64 {
    entropies.iter().map(|&entropy| f64::from(entropy)).sum()
}

/// A completion with its grades.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// What was sampled.
    pub sample: Sample,
    /// What it is worth.
    pub graded: Graded,
}

impl Record {
    /// Grades a completion.
    pub fn new(sample: Sample) -> Self {
        let graded = grade(&sample.answer, &sample.completion, sample.finished);
        Self { sample, graded }
    }
}

/// A record with its tokens, which only the file keeps.
#[derive(Debug, Clone)]
pub struct Line {
    /// The record.
    pub record: Record,
    /// Text of each token, special tokens too.
    pub tokens: Vec<String>,
    /// Entropy of each token's distribution at temperature 1, in nats, to four places.
    pub entropy: Vec<f32>,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    sample: &'a Sample,
    correct: bool,
    correct_lenient: bool,
    verdict: Verdict,
    verdict_lenient: Verdict,
    extracted: Option<&'a str>,
    tokens: &'a [String],
    entropy: &'a [f32],
}

/// A completions file that grows.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Writer {
    /// Begins a new file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    /// Goes on with a file of which the first `bytes` are to stay.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn go_on(path: &Path, bytes: u64) -> Result<Self> {
        let open = || {
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            file.set_len(bytes)?;
            Ok(file)
        };
        let file = open().map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    /// Adds lines; they are with the operating system when this returns.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn append(&mut self, lines: &[Line]) -> Result<()> {
        let mut write = || -> std::io::Result<()> {
            for Line { record: Record { sample, graded }, tokens, entropy } in lines {
                let written = Written {
                    sample,
                    correct: graded.strict.is_right(),
                    correct_lenient: graded.lenient.is_right(),
                    verdict: graded.strict,
                    verdict_lenient: graded.lenient,
                    extracted: graded.extracted.as_deref(),
                    tokens,
                    entropy,
                };
                serde_json::to_writer(&mut self.file, &written)?;
                self.file.write_all(b"\n")?;
            }
            self.file.flush()
        };
        write().map_err(Error::io(&self.path))
    }
}

/// The completions file that a path stands for: itself, that of an evaluation's folder, or the last one of a run.
pub fn locate(path: &Path) -> Result<PathBuf> {
    let candidates = [path.to_path_buf(), path.join("completions.jsonl"), path.join("completions/eval_final.jsonl")];
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(|| {
        let message = "expected a completions file, a folder that `tempering eval --output` wrote, or a finished run";
        Error::file(path, message)
    })
}

/// Reads a completions file and grades it anew.
///
/// # Errors
/// When the file cannot be read, and the first line that is no completion.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = files::read_text(path)?;
    let records = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect::<Vec<_>>();
    let parse = |(index, line): (usize, &str)| parse(line).map_err(|fault| at_line(path, index + 1, &fault));
    // Results first, so that the error is that of the first line, however the threads run.
    let records: Vec<Result<Record>> = records.into_par_iter().map(parse).collect();
    let records: Vec<Record> = records.into_iter().collect::<Result<_>>()?;
    if records.is_empty() {
        return Err(Error::file(path, "the file has no completions"));
    }
    Ok(records)
}

/// A line as a graded record.
pub(super) fn parse(line: &str) -> std::result::Result<Record, serde_json::Error> {
    serde_json::from_str(line).map(Record::new)
}

fn at_line(path: &Path, line: usize, fault: &serde_json::Error) -> Error {
    Error::file(
        format!("{}:{line}", path.display()),
        format!("no graded completion: {fault}; mend or delete this line"),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A finished completion of a problem whose answer is 5.
    pub(in crate::eval) fn record(source: &str, problem: &str, sample: usize, completion: &str) -> Record {
        Record::new(Sample {
            problem: problem.to_string(),
            sample,
            data_source: source.to_string(),
            prompt: String::new(),
            answer: "5".to_string(),
            completion: completion.to_string(),
            finished: true,
            length: completion.len(),
            floor: None,
            entropy_sum: None,
        })
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("completions.jsonl");
        let mut record = record("s", "7", 1, "It is \\boxed{5}.\n\"é\"");
        record.sample.floor = Some(3);
        let entropy = vec![0.1234, 0.0, 2.5];
        record.sample.entropy_sum = Some(entropy_sum(&entropy));
        let line = Line { record: record.clone(), tokens: vec!["a".into(); 3], entropy };
        Writer::create(&path).unwrap().append(&[line.clone(), line]).unwrap();
        assert_eq!(read(&path).unwrap(), [record.clone(), record]);
        assert_eq!(locate(dir.path()).unwrap(), path);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""correct":true"#) && text.contains(r#""entropy":[0.1234,0.0,2.5]"#), "{text}");
    }

    #[test]
    fn what_is_no_completion_is_named_by_line_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("completions.jsonl");
        let line =
            r#"{"problem": "1", "sample": 0, "data_source": "s", "completion": "5", "finished": true, "length": 1}"#;
        std::fs::write(&path, format!("\n{line}\n")).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("completions.jsonl:2: no graded completion: missing field `answer`"), "{error}");
        let error = locate(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: expected a completions file"), "{error}");
    }
}
