//! Progress of a run: permanent lines, and on a terminal a progress bar below them.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::generate::Count;
use crate::metrics::Metrics;
use crate::report::duration;
use crate::train::Observer;

/// Minimum time between two lines, except for the last line of a phase.
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum time without a line while completions are sampled.
const MAX_SILENCE: Duration = Duration::from_secs(10);
/// Share of ended completions below which the time left is not estimated: the first ones to end are the shortest.
const MIN_ENDED_SHARE: f64 = 0.05;

/// Shows the progress of a run on standard error.
pub(super) struct ProgressDisplay {
    bar: Option<ProgressBar>,
    phase: Phase,
    /// The phase that the current one interrupts.
    interrupted: Option<Phase>,
    last_line: Option<Instant>,
}

/// A phase of a run, which processes steps or problems.
struct Phase {
    name: String,
    total: usize,
    done: usize,
    /// Units that were finished before this start.
    first: usize,
    /// Time spent on the phase before an interruption, and the time at which it was continued.
    spent: Duration,
    since: Instant,
    sampling: Option<SamplingProgress>,
}

/// Progress of the completions that are being sampled.
struct SamplingProgress {
    count: Count,
    since: Instant,
}

impl Phase {
    fn new(name: &str, total: usize, now: Instant) -> Self {
        Self { name: name.to_string(), total, done: 0, first: 0, spent: Duration::ZERO, since: now, sampling: None }
    }

    fn elapsed(&self, now: Instant) -> Duration {
        self.spent + now.saturating_duration_since(self.since)
    }

    /// Whether the units are steps, each of which samples completions.
    fn in_steps(&self) -> bool {
        !matches!(self.name.as_str(), "evaluate" | "analyze")
    }

    /// Estimate the seconds left from the speed of this phase so far; `None` before there is an estimate.
    fn left(&self, now: Instant) -> Option<f64> {
        let elapsed = self.elapsed(now).as_secs_f64();
        if let Some(SamplingProgress { count, .. }) = self.sampling.as_ref().filter(|_| !self.in_steps()) {
            let is_known = count.ended > 0 && count.ended as f64 >= MIN_ENDED_SHARE * count.total as f64;
            let mean = count.ended_tokens as f64 / count.ended.max(1) as f64;
            let tokens_left = (mean * count.total as f64 - count.tokens as f64).max(0.0);
            return is_known.then(|| elapsed * tokens_left / count.tokens as f64);
        }
        let done = self.done.saturating_sub(self.first);
        (done > 0).then(|| elapsed / done as f64 * self.total.saturating_sub(self.done) as f64)
    }

    /// Format the progress of sampling: `310 of 512 completions ended, 2140 tok/s`.
    fn sampling(&self, now: Instant) -> Option<String> {
        let SamplingProgress { count, since } = self.sampling.as_ref()?;
        let seconds = now.saturating_duration_since(*since).as_secs_f64().max(1e-3);
        let speed = count.tokens as f64 / seconds;
        Some(format!("{} of {} completions ended, {speed:.0} tok/s", count.ended, count.total))
    }

    /// Format the progress of sampling and the time left.
    fn outlook(&self, now: Instant) -> String {
        let step = |text: String| if self.in_steps() { format!("step {}: {text}", self.done + 1) } else { text };
        let left = self.left(now).map(|seconds| format!("{} left", duration(seconds.round())));
        self.sampling(now).map(step).into_iter().chain(left).collect::<Vec<_>>().join("; ")
    }

    /// Return position and length of the bar.
    fn position(&self) -> (usize, usize) {
        match &self.sampling {
            Some(SamplingProgress { count, .. }) if !self.in_steps() => (count.ended, count.total),
            _ => (self.done, self.total),
        }
    }
}

impl ProgressDisplay {
    pub(super) fn new() -> Self {
        Self { bar: None, phase: Phase::new("", 0, Instant::now()), interrupted: None, last_line: None }
    }

    /// Format the metrics of a step: `reward 0.42  accuracy 0.78  …`.
    fn figures(metrics: &Metrics) -> String {
        let shown = [
            ("loss", "loss", 3),
            ("reward", "reward", 3),
            ("rewards/accuracy/mean", "accuracy", 3),
            ("completions/mean_length", "length", 1),
            ("entropy", "entropy", 3),
        ];
        let stage = metrics.text("stage").map(|stage| format!("[{stage}]"));
        let figure = |(key, label, digits): (&str, &str, usize)| {
            metrics.get(key).map(|value| format!("{label} {value:.digits$}"))
        };
        let speed = || {
            let share = metrics.get("timing_s/gen")? / metrics.get("timing_s/step")?;
            let speed = metrics.get("perf/sampling_throughput")?;
            Some(format!("sampling {speed:.0} tok/s, {:.0}% of the step", 100.0 * share))
        };
        stage.into_iter().chain(shown.into_iter().filter_map(figure)).chain(speed()).collect::<Vec<_>>().join("  ")
    }

    /// Print a line above the bar.
    fn line(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    fn redraw(&self, now: Instant) {
        if let Some(bar) = &self.bar {
            let (position, length) = self.phase.position();
            bar.set_length(length as u64);
            bar.set_position(position as u64);
            bar.set_message(self.phase.outlook(now));
        }
    }
}

impl Observer for ProgressDisplay {
    fn begin(&mut self, phase: &str, total: usize) {
        let now = Instant::now();
        let (bar, interrupted) = (self.bar.take(), self.interrupted.take());
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        // A phase that an evaluation interrupted continues with its own clock.
        let next = match interrupted {
            Some(earlier) if earlier.name == phase && earlier.total == total => Phase { since: now, ..earlier },
            _ => Phase::new(phase, total, now),
        };
        let mut last = std::mem::replace(&mut self.phase, next);
        if last.done < last.total && last.in_steps() && !self.phase.in_steps() {
            (last.spent, last.sampling) = (last.elapsed(now), None);
            self.interrupted = Some(last);
        }
        self.last_line = None;
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            // The bar has a fixed width: on a narrow terminal the message is cut, not the bar.
            let style = ProgressStyle::with_template("{prefix} {bar:20} {pos}/{len}  {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(phase.to_string());
            self.bar = Some(bar);
            self.redraw(now);
        }
    }

    fn resume(&mut self, done: usize) {
        // A phase that continues after an evaluation already counts its steps, whose time is on its clock.
        if self.phase.done == 0 {
            (self.phase.first, self.phase.done) = (done, done);
        }
    }

    fn advance(&mut self, done: usize, metrics: Option<&Metrics>) {
        let now = Instant::now();
        let phase = &mut self.phase;
        phase.done = done;
        if phase.in_steps() {
            phase.sampling = None;
        }
        let due = self.last_line.is_none_or(|last| now.saturating_duration_since(last) > LINE_INTERVAL);
        if due || done == phase.total {
            self.last_line = Some(now);
            let elapsed = duration(phase.elapsed(now).as_secs_f64().round());
            let figures = metrics.map(Self::figures);
            let outlook = Some(phase.outlook(now)).filter(|outlook| !outlook.is_empty() && done < phase.total);
            let parts = [Some(format!("{} {done}/{}", phase.name, phase.total)), figures, Some(elapsed), outlook];
            self.line(&parts.into_iter().flatten().collect::<Vec<_>>().join("  "));
        }
        self.redraw(now);
    }

    fn sampled(&mut self, count: &Count) {
        let now = Instant::now();
        match &mut self.phase.sampling {
            Some(sampling) if sampling.count.tokens < count.tokens => sampling.count = count.clone(),
            sampling => *sampling = Some(SamplingProgress { count: count.clone(), since: now }),
        }
        self.redraw(now);
        let silent = *self.last_line.get_or_insert(now);
        if self.bar.is_none() && now.saturating_duration_since(silent) > MAX_SILENCE {
            self.last_line = Some(now);
            let phase = &self.phase;
            self.line(&format!("{} {}/{}  {}", phase.name, phase.done, phase.total, phase.outlook(now)));
        }
    }

    fn note(&mut self, line: &str) {
        self.line(line);
    }
}

/// Print a line to standard error. Errors are ignored: a closed terminal or pipe must not end a run.
pub(super) fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// With one minute to go, "48 min left" was shown after an evaluation: all the time was divided by the steps since
    /// it.
    #[test]
    fn an_evaluation_between_steps_forgets_none_of_them() {
        let mut progress = ProgressDisplay::new();
        progress.begin("train", 10);
        progress.resume(2);
        progress.advance(5, None);
        progress.begin("evaluate", 100);
        progress.begin("train", 10);
        progress.resume(5);
        assert_eq!((progress.phase.first, progress.phase.done), (2, 5));
    }

    /// An evaluation restarted the clock but not the count: "0 s left" was shown with 5 steps to go.
    #[test]
    fn time_left_is_that_of_the_steps_of_this_start() {
        let start = Instant::now();
        let mut phase = Phase::new("train", 10, start);
        assert_eq!(phase.left(start + SECOND), None);
        (phase.first, phase.done) = (4, 6);
        assert_eq!(phase.left(start + 6 * SECOND), Some(12.0), "two steps took 6 s; four are left");
        // An evaluation of 100 s in between.
        phase.spent = phase.elapsed(start + 6 * SECOND);
        phase.since = start + 106 * SECOND;
        phase.done = 7;
        assert_eq!(phase.left(start + 109 * SECOND), Some(9.0), "three steps took 9 s; three are left");
    }

    /// "4009 s left" was shown a second before the end: all completions were being sampled and few had ended.
    #[test]
    fn time_left_of_sampling_counts_tokens() {
        let start = Instant::now();
        let mut phase = Phase::new("evaluate", 100, start);
        let mut at = |ended, tokens, ended_tokens| {
            let mut count = Count::new(100);
            (count.ended, count.tokens, count.ended_tokens) = (ended, tokens, ended_tokens);
            phase.sampling = Some(SamplingProgress { count, since: start });
            phase.left(start + 4 * SECOND)
        };
        assert_eq!(at(4, 900, 40), None);
        assert_eq!(at(10, 800, 100), Some(1.0), "200 of 1000 tokens are left");
        assert_eq!(at(100, 900, 900), Some(0.0));
    }
}
