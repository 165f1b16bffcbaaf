//! Curves of a run drawn as text for a terminal.

use std::fs::File;
use std::path::Path;

use textplots::{Chart, Plot, Shape};

use super::duration;
use super::run::{MetricsByStep, RunSummary};
use crate::error::{Error, Result};

/// Metrics shown by default, if the run has them.
const DEFAULT_METRICS: [&str; 6] =
    ["rewards/accuracy/mean", "completions/mean_length", "entropy", "reward", "conflict/cancellation", "loss"];

/// Width of a curve in braille dots (two per column), of the axis figures in columns, and height of a curve in rows.
const CURVE: usize = 44;
const FIGURES: usize = 10;
const ROWS: usize = 6;

/// Output of `tempering watch` for a run.
#[derive(Debug)]
pub struct Screen {
    /// Lines, without a trailing line break.
    pub text: String,
    /// Whether the run is finished (its summary belongs to the last logged step), or not running.
    pub over: bool,
}

/// Return whether no process works on a run: its lock is free. `false` if that is unknown, because there is no lock
/// file or the file system has no locks.
fn is_abandoned(run: &Path) -> bool {
    File::open(run.join("run.lock")).is_ok_and(|file| file.try_lock_shared().is_ok())
}

/// Draw the curves of `metrics` (default ones if empty) of the run directory `run` on `columns` terminal columns.
///
/// # Errors
/// `run` is not a run directory, a file is malformed, or the run does not have one of the `metrics`.
pub fn screen(run: &Path, metrics: &[String], columns: usize) -> Result<Screen> {
    // Before the files are read: a run that ends meanwhile is shown as running, not as one that was left.
    let abandoned = is_abandoned(run);
    let left = abandoned.then_some("not running");
    let Some(all) = MetricsByStep::of_run(run)?.filter(|all| !all.0.is_empty()) else {
        let text: Vec<&str> = ["no metrics yet"].into_iter().chain(left).collect();
        return Ok(Screen { text: format!("{}: {}", run.display(), text.join(", ")), over: abandoned });
    };
    let summary = RunSummary::read(run)?.filter(|summary| summary.is_of(&all));
    let state = if summary.is_some() { Some("finished") } else { left };
    let names = chosen(&run.join("metrics.jsonl"), &all, metrics)?;
    let curves: Vec<Vec<String>> = names.iter().map(|name| curve(name, &all.points(name))).collect();
    let beside = (columns / (CURVE / 2 + FIGURES + 3)).clamp(1, 3);
    let mut lines = vec![headline(run, &all, state)];
    lines.extend(evaluation_line(&all, summary.as_ref()));
    for row in curves.chunks(beside) {
        lines.push(String::new());
        let height = row.iter().map(Vec::len).max().unwrap_or(0);
        let width = CURVE / 2 + FIGURES;
        for at in 0..height {
            let cells = row.iter().map(|curve| format!("{:width$}", curve.get(at).map_or("", String::as_str)));
            lines.push(cells.collect::<Vec<_>>().join("   ").trim_end().to_string());
        }
    }
    Ok(Screen { text: lines.join("\n"), over: state.is_some() })
}

/// Return the metrics to show: `asked`, or the default ones that the run has.
fn chosen<'a>(path: &Path, all: &MetricsByStep, asked: &'a [String]) -> Result<Vec<&'a str>> {
    if asked.is_empty() {
        return Ok(DEFAULT_METRICS.into_iter().filter(|name| !all.points(name).is_empty()).collect());
    }
    for name in asked {
        if all.points(name).is_empty() {
            let numbers = |row: &'_ serde_json::Map<String, serde_json::Value>| {
                row.iter().filter(|(_, value)| value.is_number()).map(|(name, _)| name.clone()).collect::<Vec<_>>()
            };
            let known = all.0.values().flat_map(numbers);
            let near = known.max_by(|a: &String, b: &String| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
            let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            return Err(Error::file(
                path,
                format!("has no metric {name} (--metric); `tempering metrics` lists all{near}"),
            ));
        }
    }
    Ok(asked.iter().map(String::as_str).collect())
}

/// Return the first line: `runs/a: step 40 [enhance], 2.30 s a step, 14000 tokens/s sampled, 1 min 32 s in steps`.
fn headline(run: &Path, all: &MetricsByStep, state: Option<&str>) -> String {
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
    parts.extend(state.map(str::to_string));
    parts.join(", ")
}

/// Return a line with the held-out accuracy and length of the base model and of the latest evaluation.
fn evaluation_line(all: &MetricsByStep, finished: Option<&RunSummary>) -> Option<String> {
    let (so_far, step) = all.so_far();
    so_far.base.accuracy?;
    let at = |name: &str, figures: super::run::EvaluationFigures| {
        Some(format!("{name} {:.1}% at {:.1} tokens", 100.0 * figures.accuracy?, figures.mean_length?))
    };
    let last = match finished {
        Some(summary) => at("final", summary.last),
        None => at(&format!("after step {}", step.unwrap_or_default()), so_far.last),
    };
    let both: Vec<String> = at("base", so_far.base).into_iter().chain(last).collect();
    Some(format!("held-out: {}", both.join(", ")))
}

/// Format a number with three significant digits, small and large ones by a power of ten.
fn figure(value: f64) -> String {
    if value == 0.0 {
        return "0".to_string();
    }
    let before = value.abs().log10().floor();
    if !(-4.0..9.0).contains(&before) {
        return format!("{value:.2e}");
    }
    format!("{value:.*}", (2.0 - before).max(0.0) as usize)
}

/// Return the lines of a curve: name and last value, then the plot with its axis labels.
fn curve(name: &str, points: &[(f64, f64)]) -> Vec<String> {
    let last = points.last().map_or(f64::NAN, |point| point.1);
    let title = format!("{name} {}", figure(last));
    let (Some(first), Some(end)) = (points.first(), points.last()) else { return vec![title] };
    if points.len() < 2 {
        return vec![title];
    }
    let values = || points.iter().map(|point| point.1);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    // Within f32, also for the difference of two values.
    let drawn: Vec<(f32, f32)> =
        points.iter().map(|&(step, value)| (step as f32, value.clamp(-1e37, 1e37) as f32)).collect();
    let lines = Shape::Lines(&drawn);
    let mut chart = Chart::new(CURVE as u32, (4 * ROWS) as u32, first.0 as f32, end.0 as f32);
    let chart = chart.lineplot(&lines);
    chart.axis();
    chart.figures();
    let mut rows: Vec<String> = chart.frame().lines().map(str::to_string).collect();
    // textplots' own labels always have one decimal.
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
        // The largest and the smallest value label the curve.
        assert!(
            screen.text.contains("loss 0.0500") && screen.text.contains(" 1.00") && !screen.text.contains("reward")
        );
        assert!(screen.text.lines().all(|line| line.chars().count() <= 200));
    }

    #[test]
    fn a_metric_that_is_not_there_is_named_with_the_nearest() {
        let dir = run("{\"step\":1,\"loss\":0.5}\n");
        let error = screen(dir.path(), &["los".to_string()], 80).unwrap_err().to_string();
        assert!(error.contains("has no metric los (--metric)") && error.ends_with("did you mean loss?"), "{error}");
        assert!(screen(&dir.path().join("none"), &[], 80).unwrap_err().to_string().contains("is not a run"));
        let fresh = run("");
        std::fs::write(fresh.path().join("run.json"), "{}").unwrap();
        assert!(screen(fresh.path(), &[], 80).unwrap().text.contains("no metrics yet"));
    }

    /// Regression: `watch` redrew a run for ever that no process worked on.
    #[test]
    fn a_run_that_no_process_works_on_is_over() {
        let dir = run("{\"step\":1,\"loss\":0.5}\n");
        let lock = File::create(dir.path().join("run.lock")).unwrap();
        lock.lock().unwrap();
        assert!(!screen(dir.path(), &[], 80).unwrap().over);
        drop(lock);
        let left = screen(dir.path(), &[], 80).unwrap();
        assert!(left.over && left.text.contains("step 1, not running"), "{}", left.text);
    }

    /// Regression: a learning rate of 4e-7 was shown as 0.000000.
    #[test]
    fn figures_have_three_significant_digits() {
        let found = [0.0, 4e-7, -1.5e-6, 1.5e-4, 0.05, 1.0, 123.4, 14000.0, 1.75e308].map(figure);
        let expected = ["0", "4.00e-7", "-1.50e-6", "0.000150", "0.0500", "1.00", "123", "14000", "1.75e308"];
        assert_eq!(found, expected);
        let huge = run("{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":1.75e308}\n");
        assert!(screen(huge.path(), &[], 80).unwrap().text.contains("loss 1.75e308"));
    }

    /// Regression: an extended run was reported as finished while it continued.
    #[test]
    fn a_run_is_over_with_the_step_of_its_summary() {
        let dir = run("{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.5}\n");
        for (steps, over) in [(2, true), (1, false)] {
            std::fs::write(dir.path().join("summary.json"), format!("{{\"steps\":{steps}}}")).unwrap();
            assert_eq!(screen(dir.path(), &[], 80).unwrap().over, over);
        }
    }
}
