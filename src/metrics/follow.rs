//! Who follows a run beside `metrics.jsonl`: TensorBoard, and a program that is fed its lines.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Metrics;
use super::tensorboard::EventFile;
use crate::error::{Error, Result};
use crate::files;

/// Folder of event files within a run's folder.
pub const TENSORBOARD: &str = "tensorboard";
/// What the program of `log.command` says, within a run's folder.
pub const SAID: &str = "log_command.txt";
/// How long the program is waited for in silence after the run.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long its last lines may take it.
const GRACE: Duration = Duration::from_secs(60);

/// Where the metrics of a run go beside `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `tensorboard`: event files in the run's folder `tensorboard/`, with the names of Hugging Face's trainers.
    pub report_to: Vec<Tracker>,
    /// A program and its arguments that reads each line of `metrics.jsonl` on its standard input as it is written; what it
    /// says goes to `log_command.txt` of the run's folder. It finds the folder in TEMPERING_RUN and the identity of the run,
    /// the same after a resume, in TEMPERING_RUN_ID. Empty for none.
    pub command: Vec<String>,
}

impl LogConfig {
    /// Settings that cannot work, one line each.
    pub fn mistakes(&self) -> Vec<String> {
        let nameless = self.command.first().is_some_and(String::is_empty);
        let mistake = format!("log.command = {:?} names no program", self.command);
        nameless.then_some(mistake).into_iter().collect()
    }
}

/// A tool that a run writes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", rename_all = "snake_case")]
pub enum Tracker {
    /// TensorBoard.
    Tensorboard,
}

impl TryFrom<String> for Tracker {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        match name.as_str() {
            "tensorboard" => Ok(Self::Tensorboard),
            "wandb" | "trackio" | "mlflow" => Err(format!(
                "log.report_to = [\"{name}\"]: its client is a Python program; set log.command = [\"python3\", \
                 \"examples/log_{name}.py\"] instead"
            )),
            "none" => Err("log.report_to = [\"none\"]: give an empty list, []".to_string()),
            _ => Err(format!(
                "log.report_to = [\"{name}\"] is not known (tensorboard is; for others there is log.command)"
            )),
        }
    }
}

/// A step as a follower sees it beside its metrics.
#[derive(Debug, Default)]
pub struct Sample {
    /// Length of each completion, in tokens.
    pub lengths: Vec<f64>,
    /// Entropy of each sampled token at temperature 1, in nats.
    pub entropies: Vec<f64>,
    /// Some of the completions, as they are shown; empty in most steps.
    pub texts: Vec<String>,
}

/// All that follow a run.
#[derive(Debug)]
pub struct Followers {
    events: Option<EventFile>,
    program: Option<Program>,
}

impl Followers {
    /// Opens what `config` asks for, for the run `id` in the folder `run`; `step` is the last step of a resumed run that stays.
    ///
    /// # Errors
    /// A file that cannot be written, a program that cannot be started.
    pub fn open(config: &LogConfig, run: &Path, id: &str, step: Option<usize>) -> Result<Self> {
        let wanted = config.report_to.contains(&Tracker::Tensorboard);
        if step.is_none() {
            // What an earlier run left that ended before its first step.
            files::remove_dir(&run.join(TENSORBOARD))?;
        }
        let events = wanted.then(|| EventFile::create(&run.join(TENSORBOARD), step)).transpose()?;
        let program = (!config.command.is_empty()).then(|| Program::start(&config.command, run, id)).transpose()?;
        Ok(Self { events, program })
    }

    /// Passes on a line of `metrics.jsonl`.
    ///
    /// # Errors
    /// When an event file cannot be written. A program that has ended is said to have, once, and is no error.
    pub fn metrics(&mut self, metrics: &Metrics) -> Result<()> {
        if let Some(program) = &mut self.program {
            program.tell(metrics);
        }
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(metrics))
    }

    /// Passes on the completions of a step.
    ///
    /// # Errors
    /// When an event file cannot be written.
    pub fn sample(&mut self, step: usize, sample: impl FnOnce() -> Sample) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let sample = sample();
        events.histogram(step, "completions/length", &sample.lengths)?;
        events.histogram(step, "entropy/tokens", &sample.entropies)?;
        if sample.texts.is_empty() { Ok(()) } else { events.texts(step, "completions/text", sample.texts) }
    }
}

/// The program of `log.command`. A thread writes to it, so that a slow one does not stop the training.
#[derive(Debug)]
struct Program {
    command: Vec<String>,
    child: Child,
    /// None once the program is known to have ended.
    lines: Option<Sender<String>>,
    /// Lines that it was sent, and those of them that it has taken.
    sent: usize,
    taken: Arc<AtomicUsize>,
}

impl Program {
    fn start(command: &[String], run: &Path, id: &str) -> Result<Self> {
        let path = run.join(SAID);
        let said = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        let heard = said.try_clone().map_err(Error::io(&path))?;
        let mut process = Command::new(&command[0]);
        process.args(&command[1..]).stdin(Stdio::piped()).stdout(said).stderr(heard);
        process.env("TEMPERING_RUN", run).env("TEMPERING_RUN_ID", id);
        // Ctrl-C is for the training, which ends its lines once the step is over.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut process, 0);
        let mut child = process
            .spawn()
            .map_err(|error| Error::Invalid(format!("log.command = {command:?} cannot be started: {error}")))?;
        let mut stdin = child.stdin.take().expect("standard input is piped");
        let (lines, to_write) = channel::<String>();
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&taken);
        std::thread::spawn(move || {
            for line in to_write {
                if stdin.write_all(line.as_bytes()).is_err() {
                    break;
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { command: command.to_vec(), child, lines: Some(lines), sent: 0, taken })
    }

    fn tell(&mut self, metrics: &Metrics) {
        let Some(lines) = &self.lines else { return };
        self.sent += 1;
        let ended = match self.child.try_wait() {
            Ok(None) => lines.send(metrics.line()).err().map(|_| "has closed its standard input".to_string()),
            Ok(Some(status)) => Some(format!("ended with {status}")),
            Err(error) => Some(format!("is lost: {error}")),
        };
        if let Some(ended) = ended {
            let step = metrics.get("step").unwrap_or_default();
            let command = &self.command;
            tracing::warn!(
                "log.command = {command:?} {ended}: it has no lines from step {step} on (metrics.jsonl has all of them; see \
                 {SAID} in the run's folder)"
            );
            self.lines = None;
        }
    }
}

/// Kills the program and all that it started.
fn end_group(child: &mut Child) {
    // It leads a group of its own.
    #[cfg(unix)]
    let _ = nix::sys::signal::killpg(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    );
    let _ = child.kill();
}

impl Drop for Program {
    /// Ends the lines, and waits for the program, which may still be sending them somewhere.
    fn drop(&mut self) {
        let told = self.lines.take().is_some();
        let (start, mut patient) = (Instant::now(), true);
        let command = &self.command;
        while let Ok(None) = self.child.try_wait() {
            if patient && start.elapsed() > PATIENCE {
                patient = false;
                tracing::warn!("waiting for log.command = {command:?}, {} s at most", GRACE.as_secs());
            }
            if start.elapsed() > GRACE {
                let (taken, sent) = (self.taken.load(Ordering::Relaxed), self.sent);
                tracing::warn!(
                    "log.command = {command:?} has not ended {} s after the run, with {taken} of {sent} lines taken; killed",
                    GRACE.as_secs()
                );
                end_group(&mut self.child);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        match self.child.wait() {
            Ok(status) if told && !status.success() => {
                tracing::warn!("log.command = {:?} ended with {status}; see {SAID} in the run's folder", self.command);
            }
            _ => {}
        }
    }
}
