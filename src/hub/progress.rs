//! Progress display of downloads.

/// Progress of a file download.
pub(super) struct DownloadProgress(imp::ProgressLine);

impl DownloadProgress {
    /// Start the display of a download of `size` bytes, of which `done` are already present.
    pub(super) fn new(what: &str, size: u64, done: u64) -> Self {
        Self(imp::ProgressLine::new(what, size, done))
    }

    /// Update the number of bytes present.
    pub(super) fn at(&mut self, done: u64) {
        self.0.at(done);
    }
}

/// Show a line to the user.
pub(super) fn say(line: &str) {
    imp::say(line);
}

#[cfg(feature = "cli")]
mod imp {
    use std::io::{IsTerminal, Write};
    use std::time::{Duration, Instant};

    use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

    /// Smaller files, in bytes, are downloaded without a message if there is no terminal.
    const SMALL: u64 = 4 << 20;
    /// Interval between two messages if there is no terminal.
    const LOG_INTERVAL: Duration = Duration::from_secs(30);

    pub(super) struct ProgressLine {
        what: String,
        size: u64,
        bar: Option<ProgressBar>,
        last: Instant,
        since: (Instant, u64),
    }

    impl ProgressLine {
        pub(super) fn new(what: &str, size: u64, done: u64) -> Self {
            let mut bar = None;
            if std::io::stderr().is_terminal() {
                let line = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr());
                let style = "{msg} {bar:20} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
                line.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
                line.set_message(what.to_string());
                // The speed excludes bytes of an earlier download.
                line.set_position(done);
                line.reset_eta();
                bar = Some(line);
            } else if size >= SMALL {
                say(&format!("downloading {what}, {}", HumanBytes(size)));
            }
            let now = Instant::now();
            Self { what: what.to_string(), size, bar, last: now, since: (now, done) }
        }

        pub(super) fn at(&mut self, done: u64) {
            if let Some(bar) = &self.bar {
                bar.set_position(done);
            } else if self.last.elapsed() > LOG_INTERVAL {
                self.last = Instant::now();
                let (start, before) = self.since;
                let speed = done.saturating_sub(before) as f64 / start.elapsed().as_secs_f64();
                let share = 100.0 * done as f64 / self.size as f64;
                say(&format!("{}: {share:.0}%, {}/s", self.what, HumanBytes(speed as u64)));
            }
        }
    }

    impl Drop for ProgressLine {
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

/// Without the command-line interface, messages go to `tracing` instead of standard error.
#[cfg(not(feature = "cli"))]
mod imp {
    pub(super) struct ProgressLine;

    impl ProgressLine {
        pub(super) fn new(what: &str, size: u64, _done: u64) -> Self {
            say(&format!("downloading {what}, {size} bytes"));
            Self
        }

        pub(super) fn at(&mut self, _done: u64) {}
    }

    pub(super) fn say(line: &str) {
        tracing::info!("{line}");
    }
}
