//! Execution of the runs of a study: several at a time, each in its own process.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::{Plan, Planned, RunOutcome, Store};
use crate::config::to_toml;
use crate::error::{Error, Result};
use crate::files;
use crate::stop::Stop;

/// Event: a process of a run has ended.
#[derive(Debug)]
pub enum ProcessEnd<'a> {
    /// The run has finished. Its outcome is stored next.
    Run(&'a RunOutcome),
    /// The run failed and is retried. Holds the name of the run and the error.
    Again(&'a str, String),
    /// The run failed for the last time. Holds the name of the run and the error.
    Missing(&'a str, String),
}

/// Maximum number of attempts per run.
const MAX_TRIES: usize = 2;

/// Interval between checks of the running processes.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

struct RunningProcess {
    child: Child,
    planned: Planned,
    tries: usize,
}

impl Drop for RunningProcess {
    /// Kill the process if it still runs, so that none outlives an error or an early stop.
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Execute the `runs` that `store` lacks with `program` (this executable, except in tests) and store their outcomes.
/// Remove their folders. Return the names of the runs that failed twice.
///
/// # Errors
/// A file cannot be written, or [`Error::Stopped`] soon after `stop` was requested.
pub fn work(
    plan: &Plan,
    runs: Vec<Planned>,
    store: &mut Store,
    program: &Path,
    stop: Stop,
    report: &mut dyn FnMut(ProcessEnd<'_>),
) -> Result<Vec<String>> {
    let folder = plan.folder();
    files::create_dir(&folder)?;
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let most = if plan.config.processes == 0 { cores } else { plan.config.processes };
    let threads = (cores / most).max(1);
    let mut waiting: VecDeque<(Planned, usize)> =
        runs.into_iter().filter(|planned| store.get(planned).is_none()).map(|planned| (planned, 0)).collect();
    let mut running: Vec<RunningProcess> = Vec::new();
    let mut missing = Vec::new();
    while !(waiting.is_empty() && running.is_empty()) {
        stop.check()?;
        while running.len() < most
            && let Some((planned, tries)) = waiting.pop_front()
        {
            let child = start(&planned, program, threads)?;
            running.push(RunningProcess { child, planned, tries: tries + 1 });
        }
        thread::sleep(POLL_INTERVAL);
        let mut at = 0;
        while at < running.len() {
            let Some(status) = running[at].child.try_wait().map_err(Error::io(program))? else {
                at += 1;
                continue;
            };
            let RunningProcess { planned, tries, .. } = &running[at];
            let (planned, tries) = (planned.clone(), *tries);
            drop(running.swap_remove(at));
            stop.check()?;
            let (name, dir) = (&planned.config.name, place(&planned));
            let outcome = if status.success() {
                RunOutcome::read(&planned, &dir).map_err(|error| error.to_string())
            } else {
                Err(format!("{status}; last line of its log: {}", last_line(&log(&planned))))
            };
            match outcome {
                Ok(outcome) => {
                    report(ProcessEnd::Run(&outcome));
                    store.add(outcome)?;
                    files::remove_dir(&dir)?;
                    let _ = std::fs::remove_file(log(&planned));
                    let _ = std::fs::remove_file(settings(&planned));
                }
                Err(error) if tries < MAX_TRIES => {
                    report(ProcessEnd::Again(name, error));
                    waiting.push_front((planned, tries));
                }
                Err(error) => {
                    report(ProcessEnd::Missing(name, error));
                    missing.push(name.clone());
                }
            }
        }
    }
    Ok(missing)
}

fn place(planned: &Planned) -> PathBuf {
    planned.config.output_dir.join(&planned.config.name)
}

fn log(planned: &Planned) -> PathBuf {
    planned.config.output_dir.join(format!("{}.log", planned.config.name))
}

fn settings(planned: &Planned) -> PathBuf {
    planned.config.output_dir.join(format!("{}.toml", planned.config.name))
}

/// Start the process of a run. Runs take minutes, so an interrupted one is restarted instead of resumed.
fn start(planned: &Planned, program: &Path, threads: usize) -> Result<Child> {
    let file = settings(planned);
    files::write(&file, to_toml(&planned.config).as_bytes())?;
    let path = log(planned);
    let out = File::create(&path).map_err(Error::io(&path))?;
    let also = out.try_clone().map_err(Error::io(&path))?;
    Command::new(program)
        .args(["train", "--overwrite"])
        .arg(&file)
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(also)
        .spawn()
        .map_err(Error::io(program))
}

/// Return the last non-blank line of a log.
fn last_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nothing").to_string()
}
