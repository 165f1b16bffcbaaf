//! Progress: a bar on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::metrics::Metrics;
use crate::train::Observer;

/// Shows a run on standard error.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    phase: String,
    total: usize,
    started: Instant,
    last_line: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { bar: None, phase: String::new(), total: 0, started: Instant::now(), last_line: None }
    }

    /// `reward 0.42  accuracy 0.78  …` from what the step measured.
    fn figures(metrics: &Metrics) -> String {
        let shown = [
            ("loss", "loss", 3),
            ("reward", "reward", 3),
            ("rewards/accuracy/mean", "accuracy", 3),
            ("completions/mean_length", "length", 1),
            ("entropy", "entropy", 3),
            ("perf/throughput", "tok/s", 0),
        ];
        let stage = metrics.text("stage").map(|stage| format!("[{stage}]"));
        let figure = |(key, label, digits): (&str, &str, usize)| {
            metrics.get(key).map(|value| format!("{label} {value:.digits$}"))
        };
        stage.into_iter().chain(shown.into_iter().filter_map(figure)).collect::<Vec<_>>().join("  ")
    }
}

impl Observer for Progress {
    fn begin(&mut self, phase: &str, total: usize) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        (self.phase, self.total, self.started, self.last_line) = (phase.to_string(), total, Instant::now(), None);
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} eta {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(phase.to_string());
            self.bar = Some(bar);
        }
    }

    fn advance(&mut self, done: usize, metrics: Option<&Metrics>) {
        let figures = metrics.map(Self::figures).unwrap_or_default();
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(figures);
            return;
        }
        // Plain lines: not more than one every two seconds, and the last.
        let due = self.last_line.is_none_or(|last| last.elapsed() > Duration::from_secs(2));
        if due || done == self.total {
            self.last_line = Some(Instant::now());
            let elapsed = self.started.elapsed().as_secs_f64();
            let left = elapsed / done.max(1) as f64 * self.total.saturating_sub(done) as f64;
            say(&format!("{} {done}/{}  {figures}  {elapsed:.0} s, {left:.0} s left", self.phase, self.total));
        }
    }

    fn note(&mut self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }
}

/// A line on standard error. That nobody reads it any more (a closed terminal, a pipe) is no reason to end a run.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
