//! Metrics: one object per step in `metrics.jsonl`, under TRL's names, and the consumers of these lines.

pub mod follow;
pub mod names;
mod tensorboard;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Named values of one step, in the order they were set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics(Map<String, Value>);

impl Metrics {
    /// Create the metrics of step `step`.
    pub fn of_step(step: usize) -> Self {
        let mut metrics = Self::default();
        metrics.0.insert("step".to_string(), step.into());
        metrics
    }

    /// Set a number; a number that is not finite is written as `null`, which readers show as missing.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number));
    }

    /// Add to a number that starts at 0.
    pub fn add(&mut self, name: &str, value: f64) {
        self.set(name, self.get(name).unwrap_or(0.0) + value);
    }

    /// Set the mean of `values`; do nothing if `values` is empty.
    pub fn set_mean(&mut self, name: &str, values: &[f64]) {
        if !values.is_empty() {
            self.set(name, mean(values));
        }
    }

    /// Set a list of numbers; one that is missing or not finite is written as `null`.
    pub fn set_list(&mut self, name: &str, values: &[Option<f64>]) {
        let number = |value: &Option<f64>| value.map_or(Value::Null, Value::from);
        self.0.insert(name.to_string(), values.iter().map(number).collect());
    }

    /// Set a text.
    pub fn set_text(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_string(), value.into());
    }

    /// Return a number set before.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(Value::as_f64)
    }

    /// Return a list set before.
    pub fn list(&self, name: &str) -> Option<Vec<Option<f64>>> {
        Some(self.0.get(name)?.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// Return a text set before.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    /// Return all values by name.
    pub fn values(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Return the line of `metrics.jsonl`, including the line break.
    fn line(&self) -> String {
        serde_json::to_string(&self.0).expect("an object of numbers, texts and lists is JSON") + "\n"
    }

    /// Add all values of `other`, with `prefix` before their names.
    pub fn extend(&mut self, prefix: &str, other: Metrics) {
        self.0.extend(other.0.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
    }
}

/// Return the mean of `values`; 0 if `values` is empty.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Return the sample standard deviation (divisor n − 1); 0 for fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

/// The file of metrics, one line per step, on disk when `append` returns.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Open the log and keep the lines of steps up to `last_step`; a resumed run writes the later ones again.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds a line that is not a JSON object (a truncated last line is
    /// dropped).
    pub fn open(path: &Path, last_step: Option<usize>) -> Result<Self> {
        let mut kept = String::new();
        let mut newest = None;
        if let (Some(last_step), Ok(file)) = (last_step, File::open(path)) {
            let mut lines = BufReader::new(file).lines().enumerate().peekable();
            while let Some((number, line)) = lines.next() {
                let line = line.map_err(Error::io(path))?;
                let Ok(Value::Object(row)) = serde_json::from_str(&line) else {
                    if lines.peek().is_none() {
                        break;
                    }
                    let message = format!(
                        "line {} is not a JSON object: remove this line, or restore the file from a backup",
                        number + 1
                    );
                    return Err(Error::file(path, message));
                };
                let step = row.get("step").and_then(Value::as_u64);
                // A second line of a step is the final evaluation. A resumed run repeats it, or has kept it in the
                // first line ([`keep_final_evaluation`]).
                if step.is_some_and(|step| step as usize <= last_step) && step != newest {
                    newest = step;
                    kept.push_str(&line);
                    kept.push('\n');
                }
            }
        }
        if let Some(last) = last_step.filter(|&last| newest != Some(last as u64) && last > 0) {
            tracing::warn!(
                "{}: the line of step {last} is missing, perhaps with others: the report will not show these steps; \
                 training continues unchanged",
                path.display()
            );
        }
        crate::files::write(path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Append one line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, metrics: &Metrics) -> Result<()> {
        let append = || {
            (&self.file).write_all(metrics.line().as_bytes())?;
            self.file.sync_data()
        };
        append().map_err(Error::io(&self.path))
    }
}

/// Move the final evaluation of a finished run, the second line of `step`, into the line of the step itself, where a
/// longer run has its evaluation.
///
/// # Errors
/// When the file cannot be read or written.
pub(crate) fn keep_final_evaluation(path: &Path, step: usize) -> Result<()> {
    let text = crate::files::read_text(path)?;
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    let row = |line: &String| serde_json::from_str::<Metrics>(line).ok();
    let is_of_step = |line: &String| row(line).is_some_and(|row| row.get("step") == Some(step as f64));
    let places: Vec<usize> = (0..lines.len()).filter(|&at| is_of_step(&lines[at])).collect();
    let [own, last] = places[..] else { return Ok(()) };
    let (Some(mut merged), Some(evaluation)) = (row(&lines[own]), row(&lines[last])) else { return Ok(()) };
    merged.extend("", evaluation);
    lines[own] = merged.line().trim_end().to_string();
    lines.remove(last);
    crate::files::write(path, (lines.join("\n") + "\n").as_bytes())
}

/// Return the peak resident memory of this process in GB (2^30 bytes); Linux only.
pub fn peak_rss_gb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some((kilobytes / 1024.0 / 1024.0 * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reopening_drops_later_steps_and_a_line_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1,\"a\":1.5}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        let mut log = MetricsLog::open(&path, Some(2)).unwrap();
        log.append(&Metrics::of_step(3)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1,\"a\":1.5}\n{\"step\":2}\n{\"step\":3}\n");
        MetricsLog::open(&path, None).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        // An invalid line before the last is not taken for a truncated one.
        std::fs::write(&path, "{\"step\":1}\nnonsense\n{\"step\":2}\n").unwrap();
        let error = MetricsLog::open(&path, Some(2)).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl") && error.contains("line 2"), "{error}");
    }

    /// Regression: a run that was extended lost the evaluation at its former end.
    #[test]
    fn the_final_evaluation_moves_into_the_line_of_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let (first, merged) = ("{\"step\":3,\"a\":1.5}\n", "{\"step\":4,\"a\":0.1,\"eval/accuracy\":0.5}\n");
        let text = format!("{first}{{\"step\":4,\"a\":0.1}}\n{{\"step\":4,\"eval/accuracy\":0.5}}\n");
        std::fs::write(&path, text).unwrap();
        for step in [3, 4, 4] {
            keep_final_evaluation(&path, step).unwrap();
        }
        MetricsLog::open(&path, Some(4)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{first}{merged}"));
    }

    #[test]
    fn numbers_that_are_not_finite_are_null() {
        let mut metrics = Metrics::of_step(1);
        metrics.set("loss", f64::NAN);
        metrics.set_list("list", &[Some(0.5), None, Some(f64::INFINITY)]);
        assert_eq!(Value::Object(metrics.0).to_string(), r#"{"step":1,"loss":null,"list":[0.5,null,null]}"#);
    }

    #[test]
    fn deviation_has_one_degree_of_freedom_less() {
        assert_eq!(deviation(&[1.0, 3.0]), 2.0f64.sqrt());
        assert_eq!(deviation(&[5.0]), 0.0);
    }
}
