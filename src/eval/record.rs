//! Graded completions, and the files that hold them, one JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::files;
use crate::verify::{Graded, Verdict, grade};

/// A completion as it was sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Id of the problem.
    pub problem: String,
    /// Index of the completion among those of the problem.
    pub sample: usize,
    /// Data source of the problem.
    pub data_source: String,
    /// The question.
    #[serde(default)]
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// Text without special tokens, including any forced start.
    pub completion: String,
    /// Whether the model ended it, rather than the length limit.
    pub finished: bool,
    /// Number of tokens, including the forced start; at least one.
    #[serde(deserialize_with = "length")]
    pub length: usize,
    /// Number of tokens of the shortest sufficient solution, including the end of turn, where known.
    #[serde(default)]
    pub floor: Option<usize>,
    /// Sum over tokens of the entropy at temperature 1, in nats, where known.
    #[serde(default, rename = "entropy", deserialize_with = "sum", skip_serializing)]
    pub entropy_sum: Option<f64>,
}

/// Read a number of tokens within the range of a completion's.
fn length<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<usize, D::Error> {
    let length = u64::deserialize(deserializer)?;
    match u32::try_from(length) {
        Ok(tokens) if tokens > 0 => Ok(tokens as usize),
        _ => Err(D::Error::custom(format!("length = {length} must be from 1 to {}", u32::MAX))),
    }
}

fn sum<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<f64>, D::Error> {
    Vec::<f32>::deserialize(deserializer).map(|entropies| Some(entropy_sum(&entropies)))
}

/// Return the sum of a completion's entropies.
pub(super) fn entropy_sum(entropies: &[f32]) -> f64 {
    entropies.iter().map(|&entropy| f64::from(entropy)).sum()
}

/// A completion with its verdicts.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The completion as it was sampled.
    pub sample: Sample,
    /// Verdicts of both readings.
    pub graded: Graded,
}

impl Record {
    /// Grade a completion.
    pub fn new(sample: Sample) -> Self {
        let graded = grade(&sample.answer, &sample.completion, sample.finished);
        Self { sample, graded }
    }
}

/// A record with its tokens, which only the file holds.
#[derive(Debug, Clone)]
pub struct CompletionLine {
    /// The record.
    pub record: Record,
    /// Text of each token, including special tokens.
    pub tokens: Vec<String>,
    /// Entropy of each token's distribution at temperature 1, in nats, rounded to four decimals.
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

/// Writer that appends to a completions file.
#[derive(Debug)]
pub struct CompletionsWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl CompletionsWriter {
    /// Create a new file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    /// Open a file to append to and keep its first `bytes`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn resume(path: &Path, bytes: u64) -> Result<Self> {
        let open = || {
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            file.set_len(bytes)?;
            Ok(file)
        };
        let file = open().map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    /// Append lines and flush them to the operating system.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn append(&mut self, lines: &[CompletionLine]) -> Result<()> {
        let mut write = || -> std::io::Result<()> {
            for CompletionLine { record: Record { sample, graded }, tokens, entropy } in lines {
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

/// Read a completions file and grade the completions again.
///
/// # Errors
/// When the file cannot be read; the first line that is not a completion.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = files::read_text(path)?;
    let records = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect::<Vec<_>>();
    let parse = |(index, line): (usize, &str)| parse(line).map_err(|fault| at_line(path, index + 1, &fault));
    // Collect results first, so that the error is that of the first line, whatever the order of the threads.
    let records: Vec<Result<Record>> = records.into_par_iter().map(parse).collect();
    let records: Vec<Record> = records.into_iter().collect::<Result<_>>()?;
    if records.is_empty() {
        return Err(Error::file(
            path,
            "the file has no completions: give a completions file of `tempering eval --output`",
        ));
    }
    Ok(records)
}

/// Parse a line and grade its completion.
pub(super) fn parse(line: &str) -> std::result::Result<Record, serde_json::Error> {
    serde_json::from_str(line).map(Record::new)
}

fn at_line(path: &Path, line: usize, fault: &serde_json::Error) -> Error {
    Error::file(
        format!("{}:{line}", path.display()),
        format!("not a graded completion: {fault}; fix this line, or continue the evaluation if it was interrupted"),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Return a finished completion of a problem whose answer is 5.
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
        let line = CompletionLine { record: record.clone(), tokens: vec!["a".into(); 3], entropy };
        CompletionsWriter::create(&path).unwrap().append(&[line.clone(), line]).unwrap();
        assert_eq!(read(&path).unwrap(), [record.clone(), record]);
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
        assert!(error.contains("completions.jsonl:2: not a graded completion: missing field `answer`"), "{error}");
        // Regression: a length of 2^63 emptied the table of limits, and a length of 0 gave an infinite ratio.
        for length in ["0", "9223372036854775808"] {
            let line = line.replace("\"length\": 1", &format!("\"answer\": \"5\", \"length\": {length}"));
            std::fs::write(&path, line).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("length = {length} must be from 1 to 4294967295")), "{error}");
        }
    }
}
