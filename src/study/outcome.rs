//! What is kept of a run of a study: one line of a file.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Planned;
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::mean;
use crate::tasks::reading::{self, Reading};

/// A run that is done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Digest of the run's settings and of what it reads.
    pub key: String,
    /// Name of the run: arm, setting, seed. For the reader of the file.
    pub run: String,
    /// Steps it took.
    pub steps: usize,
    /// Seconds it took.
    pub seconds: f64,
    /// Tokens it sampled to learn from.
    pub sampled_tokens: u64,
    /// Held-out problems of the model at the start, by data source.
    pub base: BTreeMap<String, Source>,
    /// The same problems at the end.
    pub last: BTreeMap<String, Source>,
    /// The way between, in parts of equal budget.
    pub curve: Vec<Moment>,
}

/// Held-out completions of one data source, in the order of the problems.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// `1` for each right one, `0` for each other.
    pub correct: String,
    /// Tokens of each.
    pub lengths: Vec<usize>,
    /// How many of them were cut.
    pub cut: usize,
    /// What can be read in traces of guarded arithmetic and of dead ends.
    #[serde(default)]
    pub reading: Reading,
}

/// The mean of some consecutive steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Tokens sampled at the end of them.
    pub tokens: f64,
    /// Share of right completions.
    pub accuracy: f64,
    /// Tokens of a completion.
    pub length: f64,
    /// Entropy at temperature 1, in nats per token.
    pub entropy: f64,
    /// Standard deviation of advantages in groups whose completions are all right, where there were such.
    pub all_right_std: Option<f64>,
}

/// Moments of a curve at most.
const MOMENTS: usize = 20;

#[derive(Deserialize)]
struct Line {
    data_source: String,
    correct: bool,
    finished: bool,
    length: usize,
    tokens: Vec<String>,
    entropy: Vec<f32>,
}

impl Outcome {
    /// Reads what is to be kept from the folder of a finished run.
    ///
    /// # Errors
    /// Files that are missing or not as a run writes them.
    pub(super) fn read(planned: &Planned, dir: &Path) -> Result<Self> {
        let summary: Value = files::read_json(&dir.join("summary.json"))?;
        let number = |key: &str| summary[key].as_f64().unwrap_or(f64::NAN);
        let steps: Vec<Value> = lines(&dir.join("metrics.jsonl"))?;
        let steps: Vec<Value> = steps.into_iter().filter(|step| step["sampled_tokens"].is_f64()).collect();
        let tokens = steps.last().and_then(|step| step["sampled_tokens"].as_f64()).unwrap_or(0.0);
        Ok(Self {
            key: planned.key.clone(),
            run: planned.config.name.clone(),
            steps: number("steps") as usize,
            seconds: number("seconds"),
            sampled_tokens: tokens as u64,
            base: sources(&dir.join("completions/eval_base.jsonl"))?,
            last: sources(&dir.join("completions/eval_final.jsonl"))?,
            curve: curve(&steps, tokens),
        })
    }
}

fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = files::read_text(path)?;
    text.lines().map(|line| files::parse_json(path, line.as_bytes())).collect()
}

fn sources(path: &Path) -> Result<BTreeMap<String, Source>> {
    let mut sources = BTreeMap::<String, Source>::new();
    for line in lines::<Line>(path)? {
        let source = sources.entry(line.data_source).or_default();
        source.correct.push(if line.correct { '1' } else { '0' });
        source.lengths.push(line.length);
        source.cut += usize::from(!line.finished);
        source.reading.add(&reading::read(&line.tokens, &line.entropy));
    }
    Ok(sources)
}

fn curve(steps: &[Value], total: f64) -> Vec<Moment> {
    let of = |step: &Value| step["sampled_tokens"].as_f64().unwrap_or(0.0);
    let part = |step: &Value| ((of(step) / total * MOMENTS as f64).ceil() as usize).clamp(1, MOMENTS);
    steps
        .chunk_by(|a, b| part(a) == part(b))
        .map(|steps| {
            let values = |key: &str| steps.iter().filter_map(|step| step[key].as_f64()).collect::<Vec<_>>();
            let spread = values("advantage/all_right_std");
            Moment {
                tokens: steps.last().map_or(0.0, of),
                accuracy: mean(&values("rewards/accuracy/mean")),
                length: mean(&values("completions/mean_length")),
                entropy: mean(&values("entropy")),
                all_right_std: (!spread.is_empty()).then(|| mean(&spread)),
            }
        })
        .collect()
}

/// The file of results: a line for each run that is done.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    outcomes: BTreeMap<String, Outcome>,
}

impl Store {
    /// Reads the file, where there is one. A last line that a killed process left unfinished is taken off.
    ///
    /// # Errors
    /// A file that cannot be read, or has another line that is no result.
    pub fn open(path: &Path) -> Result<Self> {
        let mut outcomes = BTreeMap::new();
        if path.exists() {
            let text = files::read_text(path)?;
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            for (number, line) in text[..whole].lines().enumerate() {
                let outcome: Outcome = serde_json::from_str(line)
                    .map_err(|error| Error::file(path, format!("line {}: {error}", number + 1)))?;
                outcomes.insert(outcome.key.clone(), outcome);
            }
            if whole < text.len() {
                files::write(path, &text.as_bytes()[..whole])?;
            }
        }
        Ok(Self { path: path.to_path_buf(), outcomes })
    }

    /// The outcome of a run, once it is done.
    pub fn get(&self, planned: &Planned) -> Option<&Outcome> {
        self.outcomes.get(&planned.key)
    }

    /// How many results the file has.
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// Adds an outcome to the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn add(&mut self, outcome: Outcome) -> Result<()> {
        let line = serde_json::to_string(&outcome).map_err(|error| Error::Invalid(format!("result: {error}")))? + "\n";
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            file.write_all(line.as_bytes())?;
            file.sync_data()
        };
        append().map_err(Error::io(&self.path))?;
        self.outcomes.insert(outcome.key.clone(), outcome);
        Ok(())
    }
}
