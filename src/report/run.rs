//! Reading the directory of a finished or unfinished run.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files;

/// Contents of `summary.json`, which is written when a run ends.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct RunSummary {
    pub(super) name: Option<String>,
    pub(super) seed: Option<u64>,
    pub(super) model: Option<String>,
    pub(super) device: Option<String>,
    pub(super) steps: Option<u64>,
    pub(super) seconds: Option<f64>,
    pub(super) base: EvaluationFigures,
    #[serde(rename = "final")]
    pub(super) last: EvaluationFigures,
    pub(super) families: BTreeMap<String, FamilyFigures>,
    pub(super) stages: Vec<StageEnd>,
    pub(super) peak_rss_gb: Option<f64>,
    pub(super) note: Option<String>,
}

/// Part of `run.json`. The summary of fine-tuning does not name the last step.
#[derive(Deserialize, Default)]
#[serde(default)]
struct RunJson {
    finished: Option<u64>,
}

impl RunSummary {
    /// Read the summary of the run directory `run`, if there is one.
    pub(super) fn read(run: &Path) -> Result<Option<Self>> {
        let Some(mut summary) = optional(files::read_json::<Self>(&run.join("summary.json")))? else { return Ok(None) };
        if summary.steps.is_none() {
            summary.steps = optional(files::read_json::<RunJson>(&run.join("run.json")))?.and_then(|run| run.finished);
        }
        Ok(Some(summary))
    }

    /// Return whether the summary belongs to the last logged step. An extended run still has that of its earlier end.
    pub(super) fn is_of(&self, metrics: &MetricsByStep) -> bool {
        self.steps == metrics.0.keys().next_back().copied()
    }
}

/// Figures of an evaluation on held-out problems.
#[derive(Deserialize, Default, Clone, Copy)]
#[serde(default)]
pub(super) struct EvaluationFigures {
    pub(super) n: Option<u64>,
    pub(super) accuracy: Option<f64>,
    pub(super) accuracy_lenient: Option<f64>,
    pub(super) mean_length: Option<f64>,
    pub(super) entropy: Option<f64>,
}

/// Figures of a task family. `floor` is the mean length of the shortest reference solutions, in tokens.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct FamilyFigures {
    pub(super) floor: Option<f64>,
    pub(super) base: EvaluationFigures,
    #[serde(rename = "final")]
    pub(super) last: EvaluationFigures,
}

#[derive(Deserialize)]
pub(super) struct StageEnd {
    pub(super) name: String,
    pub(super) exit: Option<String>,
}

/// Contents of `metrics.jsonl` by step. Later lines of a step override earlier ones (resumed runs).
pub(super) struct MetricsByStep(pub(super) BTreeMap<u64, Map<String, Value>>);

#[derive(Deserialize)]
struct MetricsLine {
    step: u64,
    #[serde(flatten)]
    values: Map<String, Value>,
}

/// Consecutive steps `first..=last` of a stage.
#[derive(Debug, PartialEq)]
pub(super) struct StageSpan {
    pub(super) name: String,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl MetricsByStep {
    /// Read the metrics of the run directory `run`; `None` before the first line.
    ///
    /// # Errors
    /// `run` is not a run directory, or a line is malformed.
    pub(super) fn of_run(run: &Path) -> Result<Option<Self>> {
        let found = optional(Self::read(&run.join("metrics.jsonl")))?;
        if found.is_none() && !run.join("run.json").is_file() {
            let why = if run.is_dir() { "it has no run.json" } else { "no such folder" };
            return Err(Error::file(run, format!("is not a run ({why})")));
        }
        Ok(found)
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut steps = BTreeMap::<u64, Map<String, Value>>::new();
        for line in read_lines::<MetricsLine>(path)? {
            steps.entry(line.step).or_default().extend(line.values);
        }
        Ok(Self(steps))
    }

    /// Return `(step, value)` for each step at which `key` has a numeric value.
    pub(super) fn points(&self, key: &str) -> Vec<(f64, f64)> {
        self.0.iter().filter_map(|(&step, row)| Some((step as f64, row.get(key)?.as_f64()?))).collect()
    }

    /// Return the stages in order, from the rows that name a stage.
    pub(super) fn stages(&self) -> Vec<StageSpan> {
        let mut stages = Vec::<StageSpan>::new();
        for (&step, row) in &self.0 {
            let Some(name) = row.get("stage").and_then(Value::as_str) else { continue };
            match stages.last_mut() {
                Some(stage) if stage.name == name => stage.last = step,
                _ => stages.push(StageSpan { name: name.into(), first: step, last: step }),
            }
        }
        stages
    }

    fn evaluation(row: &Map<String, Value>, prefix: &str) -> EvaluationFigures {
        let value = |key: &str| row.get(&format!("{prefix}{key}")).and_then(Value::as_f64);
        EvaluationFigures {
            n: None,
            accuracy: value("accuracy"),
            accuracy_lenient: value("accuracy_lenient"),
            mean_length: value("mean_length"),
            entropy: value("entropy"),
        }
    }

    /// Return a summary of the steps so far, and the step of the latest evaluation after step 0.
    pub(super) fn so_far(&self) -> (RunSummary, Option<u64>) {
        let evaluated = |row: &Map<String, Value>| row.get("eval/accuracy").is_some_and(Value::is_number);
        let base = self.0.get(&0).filter(|row| evaluated(row));
        let last = self.0.iter().rev().find(|(step, row)| **step > 0 && evaluated(row));
        let mut summary = RunSummary::default();
        let mut fill = |row: &Map<String, Value>, pick: fn(&mut FamilyFigures) -> &mut EvaluationFigures| {
            for key in row.keys() {
                let name = key.strip_prefix("eval/families/").and_then(|k| k.strip_suffix("/accuracy"));
                if let Some(name) = name {
                    let family = summary.families.entry(name.into()).or_default();
                    *pick(family) = Self::evaluation(row, &format!("eval/families/{name}/"));
                }
            }
            Self::evaluation(row, "eval/")
        };
        let base = base.map(|row| fill(row, |f| &mut f.base)).unwrap_or_default();
        let latest = last.map(|(_, row)| fill(row, |f| &mut f.last)).unwrap_or_default();
        (summary.base, summary.last) = (base, latest);
        summary.steps = self.0.keys().next_back().copied();
        let seconds = self.points("timing_s/step");
        summary.seconds = (!seconds.is_empty()).then(|| seconds.iter().map(|p| p.1).sum());
        (summary, last.map(|(&step, _)| step))
    }
}

/// Read a file with one JSON value per line. Blank lines are skipped, and so is an incomplete last line, which a
/// killed process leaves. The error names a malformed line.
pub(super) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let bytes = files::read(path)?;
    let text = files::text(path, files::complete_lines(&bytes))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| serde_json::from_str(line).map_err(|e| malformed(path, i + 1, &e))).collect()
}

pub(super) fn malformed(path: &Path, line: usize, error: &serde_json::Error) -> Error {
    let reason = files::json_reason(error);
    let at = format!("{}:{line}", path.display());
    Error::file(at, format!("{reason} (column {}); fix or delete this line", error.column()))
}

/// Turn the error of a missing file into `None`.
pub(super) fn optional<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
