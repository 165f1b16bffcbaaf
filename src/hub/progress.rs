//! What is shown while a file is fetched.

/// A file that is being fetched.
pub(super) struct Progress(imp::Line);

impl Progress {
    /// Of `size` bytes, `done` are here.
    pub(super) fn new(what: &str, size: u64, done: u64) -> Self {
        Self(imp::Line::new(what, size, done))
    }

    /// So many are here now.
    pub(super) fn at(&mut self, done: u64) {
        self.0.at(done);
    }
}

/// A line for a person.
pub(super) fn say(line: &str) {
    imp::say(line);
}

#[cfg(feature = "cli")]
mod imp {
    use std::io::{IsTerminal, Write};
    use std::time::{Duration, Instant};

    use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

    /// Smaller files are not worth a line.
    const SMALL: u64 = 4 << 20;
    /// Between two lines where there is no terminal.
    const SILENCE: Duration = Duration::from_secs(30);

    pub(super) struct Line {
        what: String,
        size: u64,
        bar: Option<ProgressBar>,
        last: Instant,
        since: (Instant, u64),
    }

    impl Line {
        pub(super) fn new(what: &str, size: u64, done: u64) -> Self {
            let mut bar = None;
            if std::io::stderr().is_terminal() {
                let line = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
                let style = "{msg} {bar:20} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
                line.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
                line.set_message(what.to_string());
                // Speed is that of this time, not of what an earlier one left.
                line.set_position(done);
                line.reset_eta();
                bar = Some(line);
            } else if size >= SMALL {
                say(&format!("fetching {what}, {}", HumanBytes(size)));
            }
            let now = Instant::now();
            Self { what: what.to_string(), size, bar, last: now, since: (now, done) }
        }

        pub(super) fn at(&mut self, done: u64) {
            if let Some(bar) = &self.bar {
                bar.set_position(done);
            } else if self.last.elapsed() > SILENCE {
                self.last = Instant::now();
                let (start, before) = self.since;
                let speed = done.saturating_sub(before) as f64 / start.elapsed().as_secs_f64();
                let share = 100.0 * done as f64 / self.size as f64;
                say(&format!("{}: {share:.0}%, {}/s", self.what, HumanBytes(speed as u64)));
            }
        }
    }

    impl Drop for Line {
        fn drop(&mut self) {
            if let Some(bar) = self.bar.take() {
                bar.finish_and_clear();
            }
        }
    }

    pub(super) fn say(line: &str) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// A library says nothing on standard error by itself.
#[cfg(not(feature = "cli"))]
mod imp {
    pub(super) struct Line;

    impl Line {
        pub(super) fn new(what: &str, size: u64, _done: u64) -> Self {
            say(&format!("fetching {what}, {size} bytes"));
            Self
        }

        pub(super) fn at(&mut self, _done: u64) {}
    }

    pub(super) fn say(line: &str) {
        tracing::info!("{line}");
    }
}
