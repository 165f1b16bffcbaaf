//! Stored results of the runs of a study: one line per run in a JSON Lines file.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Plan, Planned};
use crate::config::COUNTS;
use crate::error::{Error, Result};
use crate::files;
use crate::metrics::mean;
use crate::tasks::reading::{self, TraceCounts};

/// Result of a finished run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunOutcome {
    /// Digest of the run's settings and of the files it reads.
    pub key: String,
    /// Name of the run: arm, setting and seed. Informative only.
    pub run: String,
    /// Number of steps.
    pub steps: usize,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// Tokens sampled for training.
    pub sampled_tokens: u64,
    /// Held-out completions of the base model, by data source.
    pub base: BTreeMap<String, SourceResults>,
    /// Held-out completions of the final model on the same problems, by data source.
    pub last: BTreeMap<String, SourceResults>,
    /// Training curve, in parts of equal token budget.
    pub curve: Vec<CurvePoint>,
}

/// Held-out completions of one data source, in the order of the problems.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceResults {
    /// One character per completion: `1` if it is correct, else `0`.
    pub correct: String,
    /// Length of each completion in tokens.
    pub lengths: Vec<usize>,
    /// Number of truncated completions.
    pub cut: usize,
    /// Figures read from traces of guarded arithmetic and of dead ends.
    #[serde(default)]
    pub reading: TraceCounts,
}

/// Means over consecutive steps of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Tokens sampled up to the last of the steps.
    pub tokens: f64,
    /// Share of correct completions.
    pub accuracy: f64,
    /// Mean completion length in tokens.
    pub length: f64,
    /// Entropy at temperature 1, in nats per token.
    pub entropy: f64,
    /// Standard deviation of advantages in groups whose completions are all correct; `None` without such groups.
    pub all_right_std: Option<f64>,
}

/// Maximum number of moments in a curve.
const MOMENTS: usize = 20;

#[derive(Deserialize)]
struct GradedLine {
    data_source: String,
    correct: bool,
    finished: bool,
    length: usize,
    tokens: Vec<String>,
    entropy: Vec<f32>,
}

impl RunOutcome {
    /// Read the result from the directory of a finished run.
    ///
    /// # Errors
    /// A file is missing or malformed.
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

/// Return the data sources with their numbers of completions.
fn shape(sources: &BTreeMap<String, SourceResults>) -> Vec<(String, usize)> {
    sources.iter().map(|(name, source)| (name.clone(), source.correct.len())).collect()
}

impl RunOutcome {
    /// Return the first contradiction in a result, which a damaged or edited line has.
    fn mistake(&self) -> Option<String> {
        if self.last.is_empty() || shape(&self.base) != shape(&self.last) {
            return Some("base and last do not have the same problems".to_string());
        }
        for (side, sources) in [("base", &self.base), ("last", &self.last)] {
            let mut mistakes = sources.iter().filter_map(|(name, source)| Some((name, source.mistake()?)));
            if let Some((name, mistake)) = mistakes.next() {
                return Some(format!("{side}, {name}: {mistake}"));
            }
        }
        let sampled = self.sampled_tokens;
        let last = self.curve.last().filter(|moment| moment.tokens != sampled as f64)?;
        Some(format!("sampled_tokens is {sampled}, but the curve ends at {}", last.tokens))
    }
}

impl SourceResults {
    fn mistake(&self) -> Option<String> {
        let (correct, count) = (&self.correct, self.lengths.len());
        if correct.len() != count || correct.bytes().any(|bit| !matches!(bit, b'0' | b'1')) {
            return Some(format!("correct must be {count} characters, each 0 or 1: one for each length"));
        }
        if let Some(length) = self.lengths.iter().find(|length| **length > COUNTS) {
            return Some(format!("the length {length} is more than {COUNTS}"));
        }
        let (tokens, reading) = (self.lengths.iter().sum::<usize>(), &self.reading);
        let most = reading.products.max(reading.decisions).max(reading.doors);
        (self.cut > count || reading.checked > reading.products || most > tokens)
            .then(|| "cut or reading has counts above the number of completions or tokens".to_string())
    }
}

fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = files::read_text(path)?;
    text.lines().map(|line| files::parse_json(path, line.as_bytes())).collect()
}

fn sources(path: &Path) -> Result<BTreeMap<String, SourceResults>> {
    let mut sources = BTreeMap::<String, SourceResults>::new();
    for line in lines::<GradedLine>(path)? {
        let source = sources.entry(line.data_source).or_default();
        source.correct.push(if line.correct { '1' } else { '0' });
        source.lengths.push(line.length);
        source.cut += usize::from(!line.finished);
        source.reading.add(&reading::read(&line.tokens, &line.entropy));
    }
    Ok(sources)
}

fn curve(steps: &[Value], total: f64) -> Vec<CurvePoint> {
    let of = |step: &Value| step["sampled_tokens"].as_f64().unwrap_or(0.0);
    let part = |step: &Value| ((of(step) / total * MOMENTS as f64).ceil() as usize).clamp(1, MOMENTS);
    steps
        .chunk_by(|a, b| part(a) == part(b))
        .map(|steps| {
            let values = |key: &str| steps.iter().filter_map(|step| step[key].as_f64()).collect::<Vec<_>>();
            let spread = values("advantage/all_right_std");
            CurvePoint {
                tokens: steps.last().map_or(0.0, of),
                accuracy: mean(&values("rewards/accuracy/mean")),
                length: mean(&values("completions/mean_length")),
                entropy: mean(&values("entropy")),
                all_right_std: (!spread.is_empty()).then(|| mean(&spread)),
            }
        })
        .collect()
}

/// File of results, with one line for each finished run.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    outcomes: BTreeMap<String, RunOutcome>,
}

impl Store {
    /// Read the file if it exists, and check its results. Blank lines and an incomplete last line, left by a killed
    /// process, are skipped. The file may hold results of other studies.
    ///
    /// # Errors
    /// The file cannot be read; a line is malformed, contradicts itself or repeats the key of an earlier one; or two
    /// results of the runs of `plan` are not of the same problems.
    pub fn open(path: &Path, plan: &Plan) -> Result<Self> {
        let planned = plan.keys();
        let (mut outcomes, mut numbers) = (BTreeMap::new(), BTreeMap::new());
        let mut first: Option<(usize, Vec<(String, usize)>)> = None;
        let bytes = if path.exists() { files::read(path)? } else { Vec::new() };
        for (index, line) in files::text(path, files::complete_lines(&bytes))?.lines().enumerate() {
            let number = index + 1;
            let fail = |message: String| Err(Error::file(format!("{}:{number}", path.display()), message));
            if line.trim().is_empty() {
                continue;
            }
            let outcome: RunOutcome = match serde_json::from_str(line) {
                Ok(outcome) => outcome,
                Err(error) => {
                    let reason = files::json_reason(&error);
                    return fail(format!(
                        "not the result of a run: {reason} (column {}); fix or delete this line",
                        error.column()
                    ));
                }
            };
            if let Some(mistake) = outcome.mistake() {
                return fail(format!("the result of {} is damaged: {mistake}; delete this line", outcome.run));
            }
            if let Some(earlier) = numbers.insert(outcome.key.clone(), number) {
                return fail(format!("has the same key as line {earlier}, {}: delete one of the two", outcome.key));
            }
            if planned.contains(&outcome.key) {
                let problems = shape(&outcome.base);
                let (other, expected) = first.get_or_insert_with(|| (number, problems.clone()));
                if *expected != problems {
                    return fail(format!(
                        "the result of {} is for other problems than line {other}: delete one of the two",
                        outcome.run
                    ));
                }
            }
            outcomes.insert(outcome.key.clone(), outcome);
        }
        Ok(Self { path: path.to_path_buf(), outcomes })
    }

    /// Return the outcome of a run if it has finished.
    pub fn get(&self, planned: &Planned) -> Option<&RunOutcome> {
        self.outcomes.get(&planned.key)
    }

    /// Return the number of results.
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Return whether there are no results.
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// Append an outcome to the file. Remove an incomplete last line, and end a complete one that has no line break.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn add(&mut self, outcome: RunOutcome) -> Result<()> {
        let line = serde_json::to_string(&outcome).map_err(|error| Error::Invalid(format!("result: {error}")))? + "\n";
        let append = || {
            let mut file = OpenOptions::new().read(true).create(true).append(true).open(&self.path)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let whole = files::complete_lines(&bytes);
            if whole.len() < bytes.len() {
                file.set_len(whole.len() as u64)?;
            }
            let start = if whole.last().is_some_and(|byte| *byte != b'\n') { "\n" } else { "" };
            file.write_all(format!("{start}{line}").as_bytes())?;
            file.sync_data()
        };
        append().map_err(Error::io(&self.path))?;
        self.outcomes.insert(outcome.key.clone(), outcome);
        Ok(())
    }
}
