//! Reading a run directory, finished or not.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// `summary.json`, written when a run ends.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Summary {
    pub(super) name: Option<String>,
    pub(super) seed: Option<u64>,
    pub(super) model: Option<String>,
    pub(super) device: Option<String>,
    pub(super) steps: Option<u64>,
    pub(super) seconds: Option<f64>,
    pub(super) base: Evaluation,
    #[serde(rename = "final")]
    pub(super) last: Evaluation,
    pub(super) families: BTreeMap<String, Family>,
    pub(super) stages: Vec<StageEnd>,
    pub(super) peak_rss_gb: Option<f64>,
    pub(super) note: Option<String>,
}

/// One evaluation on held-out problems.
#[derive(Deserialize, Default, Clone, Copy)]
#[serde(default)]
pub(super) struct Evaluation {
    pub(super) n: Option<u64>,
    pub(super) accuracy: Option<f64>,
    pub(super) accuracy_lenient: Option<f64>,
    pub(super) mean_length: Option<f64>,
    pub(super) entropy: Option<f64>,
}

/// A kind of problem; `floor` is the mean length of the shortest reference solutions.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Family {
    pub(super) floor: Option<f64>,
    pub(super) base: Evaluation,
    #[serde(rename = "final")]
    pub(super) last: Evaluation,
}

#[derive(Deserialize)]
pub(super) struct StageEnd {
    pub(super) name: String,
    pub(super) exit: Option<String>,
}

/// `metrics.jsonl` by step; a later line for a step overrides an earlier one (a resumed run).
pub(super) struct Metrics(pub(super) BTreeMap<u64, Map<String, Value>>);

#[derive(Deserialize)]
struct MetricsLine {
    step: u64,
    #[serde(flatten)]
    values: Map<String, Value>,
}

/// Steps `first..=last` of one stage.
#[derive(Debug, PartialEq)]
pub(super) struct Stage {
    pub(super) name: String,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Metrics {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut steps = BTreeMap::<u64, Map<String, Value>>::new();
        for line in read_lines::<MetricsLine>(path)? {
            steps.entry(line.step).or_default().extend(line.values);
        }
        Ok(Self(steps))
    }

    /// The steps at which `key` has a value, with the value.
    pub(super) fn points(&self, key: &str) -> Vec<(f64, f64)> {
        self.0.iter().filter_map(|(&step, row)| Some((step as f64, row.get(key)?.as_f64()?))).collect()
    }

    /// The stages in order, from the rows that name one.
    pub(super) fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::<Stage>::new();
        for (&step, row) in &self.0 {
            let Some(name) = row.get("stage").and_then(Value::as_str) else { continue };
            match stages.last_mut() {
                Some(stage) if stage.name == name => stage.last = step,
                _ => stages.push(Stage { name: name.into(), first: step, last: step }),
            }
        }
        stages
    }

    fn evaluation(row: &Map<String, Value>, prefix: &str) -> Evaluation {
        let value = |key: &str| row.get(&format!("{prefix}{key}")).and_then(Value::as_f64);
        Evaluation {
            n: None,
            accuracy: value("accuracy"),
            accuracy_lenient: value("accuracy_lenient"),
            mean_length: value("mean_length"),
            entropy: value("entropy"),
        }
    }

    /// What a summary would say so far, and the step of the latest evaluation.
    pub(super) fn so_far(&self) -> (Summary, Option<u64>) {
        let evaluated = |row: &Map<String, Value>| row.get("eval/accuracy").is_some_and(Value::is_number);
        let base = self.0.get(&0).filter(|row| evaluated(row));
        let last = self.0.iter().rev().find(|(step, row)| **step > 0 && evaluated(row));
        let mut summary = Summary::default();
        let mut fill = |row: &Map<String, Value>, pick: fn(&mut Family) -> &mut Evaluation| {
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

/// One JSON value per line; blank lines are skipped, a malformed one is named.
pub(super) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = crate::files::read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| serde_json::from_str(line).map_err(|e| malformed(path, i + 1, &e))).collect()
}

pub(super) fn malformed(path: &Path, line: usize, error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    let at = format!("{}:{line}", path.display());
    Error::file(at, format!("{reason} (column {}); mend or delete this line", error.column()))
}

/// `None` if the file does not exist.
pub(super) fn optional<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
