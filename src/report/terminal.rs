//! A run's curves as text, for a terminal.

use std::path::Path;

use textplots::{Chart, Plot, Shape};

use super::duration;
use super::run::{Metrics, Summary, optional};
use crate::error::{Error, Result};
use crate::files;

/// The curves that are shown where none is named, those of them that the run has.
const USUAL: [&str; 6] =
    ["rewards/accuracy/mean", "completions/mean_length", "entropy", "reward", "conflict/cancellation", "loss"];

/// Columns of a curve and of the figures to its right, and rows of a curve.
const CURVE: usize = 44;
const FIGURES: usize = 10;
const ROWS: usize = 6;

/// What `tempering watch` shows of the run in a folder, and whether the run is over.
#[derive(Debug)]
pub struct Screen {
    /// Lines, without an end at the last.
    pub text: String,
    /// Whether the run has written its summary.
    pub over: bool,
}

/// The curves of `metrics` (the usual ones when empty) of the run in `run`, for a terminal of so many columns.
///
/// # Errors
/// A folder that is no run or has no line yet, a malformed file, a metric that the run does not have.
pub fn screen(run: &Path, metrics: &[String], columns: usize) -> Result<Screen> {
    let path = run.join("metrics.jsonl");
    let Some(all) = optional(Metrics::read(&path))?.filter(|all| !all.0.is_empty()) else {
        if !run.join("run.json").is_file() {
            return Err(Error::file(run, "is no run (it has no run.json)"));
        }
        return Ok(Screen { text: format!("{}: nothing is measured yet", run.display()), over: false });
    };
    // A run that goes on after its end has the summary of that end still.
    let over = optional(files::read_json::<Summary>(&run.join("summary.json")))?
        .filter(|summary| summary.steps == all.0.keys().next_back().copied());
    let names = chosen(&path, &all, metrics)?;
    let curves: Vec<Vec<String>> = names.iter().map(|name| curve(name, &all.points(name))).collect();
    let beside = (columns / (CURVE / 2 + FIGURES + 3)).clamp(1, 3);
    let mut lines = vec![headline(run, &all, over.is_some())];
    lines.extend(standing(&all, over.as_ref()));
    for row in curves.chunks(beside) {
        lines.push(String::new());
        let height = row.iter().map(Vec::len).max().unwrap_or(0);
        let width = CURVE / 2 + FIGURES;
        for at in 0..height {
            let cells = row.iter().map(|curve| format!("{:width$}", curve.get(at).map_or("", String::as_str)));
            lines.push(cells.collect::<Vec<_>>().join("   ").trim_end().to_string());
        }
    }
    Ok(Screen { text: lines.join("\n"), over: over.is_some() })
}

/// The metrics to show.
fn chosen<'a>(path: &Path, all: &Metrics, asked: &'a [String]) -> Result<Vec<&'a str>> {
    if asked.is_empty() {
        return Ok(USUAL.into_iter().filter(|name| !all.points(name).is_empty()).collect());
    }
    for name in asked {
        if all.points(name).is_empty() {
            let numbers = |row: &'_ serde_json::Map<String, serde_json::Value>| {
                row.iter().filter(|(_, value)| value.is_number()).map(|(name, _)| name.clone()).collect::<Vec<_>>()
            };
            let known = all.0.values().flat_map(numbers);
            let near = known.max_by(|a: &String, b: &String| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
            let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            return Err(Error::file(path, format!("has no numbers under --metric {name}{near}")));
        }
    }
    Ok(asked.iter().map(String::as_str).collect())
}

/// `runs/a: step 40 [enhance], 2.3 s a step, 14,000 tokens/s sampled`.
fn headline(run: &Path, all: &Metrics, over: bool) -> String {
    let last = |key: &str| all.points(key).last().map(|point| point.1);
    let step = all.0.keys().next_back().copied().unwrap_or_default();
    let mut parts = vec![format!("{}: step {step}", run.display())];
    if let Some(stage) = all.stages().last() {
        parts[0] += &format!(" [{}]", stage.name);
    }
    parts.extend(last("timing_s/step").map(|seconds| format!("{seconds:.2} s a step")));
    parts.extend(last("perf/sampling_throughput").map(|speed| format!("{speed:.0} tokens/s sampled")));
    let seconds: f64 = all.points("timing_s/step").iter().map(|point| point.1).sum();
    if seconds > 0.0 {
        parts.push(format!("{} in steps", duration(seconds.round())));
    }
    if over {
        parts.push("finished".to_string());
    }
    parts.join(", ")
}

/// What the held-out evaluations say so far.
fn standing(all: &Metrics, over: Option<&Summary>) -> Option<String> {
    let (so_far, step) = all.so_far();
    so_far.base.accuracy?;
    let at = |name: &str, figures: super::run::Evaluation| {
        Some(format!("{name} {:.1}% at {:.1} tokens", 100.0 * figures.accuracy?, figures.mean_length?))
    };
    let last = match over {
        Some(summary) => at("final", summary.last),
        None => at(&format!("after step {}", step.unwrap_or_default()), so_far.last),
    };
    let both: Vec<String> = at("base", so_far.base).into_iter().chain(last).collect();
    Some(format!("held-out: {}", both.join(", ")))
}

/// A number with three digits that count.
fn figure(value: f64) -> String {
    let before = value.abs().max(1e-9).log10().floor() as i32;
    format!("{value:.*}", (2 - before).clamp(0, 6) as usize)
}

/// Name and last value, then the curve with the figures of its axes.
fn curve(name: &str, points: &[(f64, f64)]) -> Vec<String> {
    let last = points.last().map_or(f64::NAN, |point| point.1);
    let title = format!("{name} {}", figure(last));
    let (Some(first), Some(end)) = (points.first(), points.last()) else { return vec![title] };
    if points.len() < 2 {
        return vec![title];
    }
    let values = || points.iter().map(|point| point.1);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let drawn: Vec<(f32, f32)> = points.iter().map(|&(step, value)| (step as f32, value as f32)).collect();
    let lines = Shape::Lines(&drawn);
    let mut chart = Chart::new(CURVE as u32, (4 * ROWS) as u32, first.0 as f32, end.0 as f32);
    let chart = chart.lineplot(&lines);
    chart.axis();
    chart.figures();
    let mut rows: Vec<String> = chart.frame().lines().map(str::to_string).collect();
    // The library's own labels have one decimal, whatever the numbers are.
    for (row, value) in [(0, high), (rows.len().saturating_sub(1), low)] {
        if let Some(row) = rows.get_mut(row) {
            *row += &format!(" {}", figure(value));
        }
    }
    let steps = format!("{}{:>width$}", first.0, end.0, width = CURVE / 2 + 1 - first.0.to_string().len());
    std::iter::once(title).chain(rows).chain([steps]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lines: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
        dir
    }

    #[test]
    fn a_running_run_shows_what_it_has() {
        let line = |step: usize| {
            format!("{{\"step\":{step},\"stage\":\"compress\",\"loss\":{},\"timing_s/step\":2.0}}\n", 1.0 / step as f64)
        };
        let base = "{\"step\":0,\"eval/accuracy\":0.5,\"eval/mean_length\":80.0}\n".to_string();
        let dir = run(&(1..=20).map(line).fold(base, |all, line| all + &line));
        let screen = screen(dir.path(), &[], 80).unwrap();
        assert!(!screen.over && screen.text.contains("step 20 [compress], 2.00 s a step"), "{}", screen.text);
        assert!(screen.text.contains("held-out: base 50.0% at 80.0 tokens"), "{}", screen.text);
        // The highest and the lowest value stand at the curve.
        assert!(
            screen.text.contains("loss 0.0500") && screen.text.contains(" 1.00") && !screen.text.contains("reward")
        );
        assert!(screen.text.lines().all(|line| line.chars().count() <= 200));
    }

    #[test]
    fn a_metric_that_is_not_there_is_named_with_the_nearest() {
        let dir = run("{\"step\":1,\"loss\":0.5}\n");
        let error = screen(dir.path(), &["los".to_string()], 80).unwrap_err().to_string();
        assert!(error.contains("--metric los") && error.contains("did you mean loss?"), "{error}");
        assert!(screen(&dir.path().join("none"), &[], 80).unwrap_err().to_string().contains("is no run"));
        let fresh = run("");
        std::fs::write(fresh.path().join("run.json"), "{}").unwrap();
        assert!(screen(fresh.path(), &[], 80).unwrap().text.contains("nothing is measured yet"));
    }

    /// A run that was extended was said to be over while it went on.
    #[test]
    fn a_run_is_over_with_the_step_of_its_summary() {
        let dir = run("{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.5}\n");
        for (steps, over) in [(2, true), (1, false)] {
            std::fs::write(dir.path().join("summary.json"), format!("{{\"steps\":{steps}}}")).unwrap();
            assert_eq!(screen(dir.path(), &[], 80).unwrap().over, over);
        }
    }
}
