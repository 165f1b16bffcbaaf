//! Consumers of a run's metrics besides `metrics.jsonl`: TensorBoard, and a program that receives the lines.

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
/// File with the output of the program of `log.command`, within a run's folder.
pub const SAID: &str = "log_command.txt";
/// Time after the run until a warning that the program is still running.
const WARN_AFTER: Duration = Duration::from_secs(2);
/// Time after the run until the program is killed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Destinations of a run's metrics besides `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Experiment trackers. `tensorboard` writes event files to `tensorboard/` in the directory of the run, with the
    /// metric names of Hugging Face's trainers.
    pub report_to: Vec<Tracker>,
    /// Program and arguments; the program receives each line of `metrics.jsonl` on standard input as it is written. Its
    /// output goes to `log_command.txt` in the directory of the run. The environment variable TEMPERING_RUN contains
    /// that directory, and TEMPERING_RUN_ID the identity of the run, which is the same after a resume. Empty for none.
    pub command: Vec<String>,
}

impl LogConfig {
    /// Return the settings that cannot work, one line each.
    pub fn mistakes(&self) -> Vec<String> {
        let nameless = self.command.first().is_some_and(String::is_empty);
        let mistake = format!(
            "log.command = {:?} has no program name: give the program and its arguments, or [] for none",
            self.command
        );
        nameless.then_some(mistake).into_iter().collect()
    }
}

/// A tool that a run writes files for.
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
            // The reader of the settings adds the key and the value.
            "wandb" | "trackio" | "mlflow" => Err(format!(
                "supported through a script: set log.command = [\"python3\", \"examples/log_{name}.py\"] instead"
            )),
            "none" => Err("give an empty list, []".to_string()),
            _ => Err("not supported (supported: tensorboard; for other trackers set log.command)".to_string()),
        }
    }
}

/// Data of a step for followers, besides its metrics.
#[derive(Debug, Default)]
pub struct StepData {
    /// Length of each completion, in tokens.
    pub lengths: Vec<f64>,
    /// Entropy of each sampled token at temperature 1, in nats.
    pub entropies: Vec<f64>,
    /// Some of the completions, as shown to users; empty in most steps.
    pub texts: Vec<String>,
}

/// All consumers of a run's metrics.
#[derive(Debug)]
pub struct Followers {
    events: Option<EventFile>,
    program: Option<LogProgram>,
}

impl Followers {
    /// Open the followers for the run `id` in the folder `run`; `step` is the last step that a resumed run keeps.
    ///
    /// # Errors
    /// When a file cannot be written, or a program cannot be started.
    pub fn open(config: &LogConfig, run: &Path, id: &str, step: Option<usize>) -> Result<Self> {
        let wanted = config.report_to.contains(&Tracker::Tensorboard);
        if step.is_none() {
            // Remove the files of an earlier run that ended before its first step.
            files::remove_dir(&run.join(TENSORBOARD))?;
        }
        let events = wanted.then(|| EventFile::create(&run.join(TENSORBOARD), step)).transpose()?;
        let program = (!config.command.is_empty()).then(|| LogProgram::start(&config.command, run, id)).transpose()?;
        Ok(Self { events, program })
    }

    /// Pass on a line of `metrics.jsonl`.
    ///
    /// # Errors
    /// When an event file cannot be written. The end of the program is no error; a warning reports it once.
    pub fn metrics(&mut self, metrics: &Metrics) -> Result<()> {
        if let Some(program) = &mut self.program {
            program.tell(metrics);
        }
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(metrics))
    }

    /// Pass on the completions of a step.
    ///
    /// # Errors
    /// When an event file cannot be written.
    pub fn sample(&mut self, step: usize, sample: impl FnOnce() -> StepData) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let sample = sample();
        events.histogram(step, "completions/length", &sample.lengths)?;
        events.histogram(step, "entropy/tokens", &sample.entropies)?;
        if sample.texts.is_empty() { Ok(()) } else { events.texts(step, "completions/text", sample.texts) }
    }
}

/// The program of `log.command`. A thread writes to it, so that a slow program does not block the training.
#[derive(Debug)]
struct LogProgram {
    command: Vec<String>,
    child: Child,
    /// `None` once the program is known to have ended.
    lines: Option<Sender<String>>,
    /// Number of lines sent to the program, and of those written to its pipe.
    sent: usize,
    written: Arc<AtomicUsize>,
}

impl LogProgram {
    fn start(command: &[String], run: &Path, id: &str) -> Result<Self> {
        let path = run.join(SAID);
        let said = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        let heard = said.try_clone().map_err(Error::io(&path))?;
        let mut process = Command::new(&command[0]);
        process.args(&command[1..]).stdin(Stdio::piped()).stdout(said).stderr(heard);
        process.env("TEMPERING_RUN", run).env("TEMPERING_RUN_ID", id);
        // Ctrl-C reaches only the training, which ends the program's input after the step.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut process, 0);
        let mut child = process
            .spawn()
            .map_err(|error| Error::Invalid(format!("log.command = {command:?} cannot be started: {error}")))?;
        let mut stdin = child.stdin.take().expect("standard input is piped");
        let (lines, to_write) = channel::<String>();
        let written = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&written);
        std::thread::spawn(move || {
            for line in to_write {
                if stdin.write_all(line.as_bytes()).is_err() {
                    break;
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(Self { command: command.to_vec(), child, lines: Some(lines), sent: 0, written })
    }

    fn tell(&mut self, metrics: &Metrics) {
        let Some(lines) = &self.lines else { return };
        self.sent += 1;
        let ended = match self.child.try_wait() {
            Ok(None) => lines.send(metrics.line()).err().map(|_| "has closed its standard input".to_string()),
            Ok(Some(status)) => Some(format!("ended with {status}")),
            Err(error) => Some(format!("cannot be checked: {error}")),
        };
        if let Some(ended) = ended {
            let step = metrics.get("step").unwrap_or_default();
            let command = &self.command;
            tracing::warn!(
                "log.command = {command:?} {ended}: it receives no lines from step {step} on (metrics.jsonl has all of \
                 them; its output is in {SAID} in the run's folder)"
            );
            self.lines = None;
        }
    }
}

/// Kill the program and all that it started.
fn end_group(child: &mut Child) {
    // The program leads its own process group.
    #[cfg(unix)]
    let _ = nix::sys::signal::killpg(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    );
    let _ = child.kill();
}

impl Drop for LogProgram {
    /// Close the program's input and wait for the program, which may still be sending lines somewhere.
    fn drop(&mut self) {
        let told = self.lines.take().is_some();
        let (start, mut patient) = (Instant::now(), true);
        let command = &self.command;
        while let Ok(None) = self.child.try_wait() {
            if patient && start.elapsed() > WARN_AFTER {
                patient = false;
                tracing::warn!("waiting up to {} s for log.command = {command:?} to exit", EXIT_TIMEOUT.as_secs());
            }
            if start.elapsed() > EXIT_TIMEOUT {
                // The pipe takes lines that the program has not read.
                let (written, sent) = (self.written.load(Ordering::Relaxed), self.sent);
                tracing::warn!(
                    "log.command = {command:?} has not exited {} s after the run; {written} of {sent} lines were \
                     delivered, and it was killed",
                    EXIT_TIMEOUT.as_secs()
                );
                end_group(&mut self.child);
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        match self.child.wait() {
            Ok(status) if told && !status.success() => {
                tracing::warn!(
                    "log.command = {:?} ended with {status}; its output is in {SAID} in the run's folder",
                    self.command
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: the reader of the settings adds the key, which then stood three times in the line.
    #[test]
    fn an_unknown_tracker_is_refused_without_the_key() {
        for name in ["wandb", "none", "tensorbord"] {
            let error = Tracker::try_from(name.to_string()).unwrap_err();
            assert!(!error.contains("log.report_to"), "{error}");
        }
    }
}
