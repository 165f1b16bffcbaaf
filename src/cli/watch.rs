//! The command `watch`.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use console::{Term, truncate_str};

use super::print;
use crate::report::screen;

/// Width in columns if standard output is no terminal.
const COLUMNS: usize = 80;

/// Plot the metrics of a run in the terminal, live.
#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// Run directory.
    run: PathBuf,
    /// Metric to show; may be repeated [default: accuracy, length, entropy, reward, cancellation, loss]
    #[arg(long = "metric", value_name = "NAME")]
    metrics: Vec<String>,
    /// Seconds between two updates
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    every: f64,
    /// Print the plot once and exit; the default if standard output is not a terminal, or if TERM=dumb
    #[arg(long, conflicts_with = "every")]
    once: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number".to_string())?;
    if seconds > 0.0 && seconds < 1e6 { Ok(seconds) } else { Err("must be positive".to_string()) }
}

/// Show the run until it is finished, or until no process works on it.
pub(super) fn run(args: &WatchArgs) -> anyhow::Result<()> {
    let terminal = Term::stdout();
    let dumb = std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
    if args.once || dumb || !stdout().is_terminal() {
        return print(&screen(&args.run, &args.metrics, COLUMNS)?.text);
    }
    loop {
        let (rows, columns) = terminal.size();
        let screen = screen(&args.run, &args.metrics, columns.into())?;
        // Wrapped lines or a scrolling screen would leave remains of the last screen.
        let lines: Vec<_> = screen
            .text
            .lines()
            .map(|line| truncate_str(line, columns.into(), "…"))
            .take(rows.saturating_sub(1).into())
            .collect();
        terminal.clear_screen()?;
        print(lines.join("\n"))?;
        if screen.over {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs_f64(args.every));
    }
}
