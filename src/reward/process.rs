//! A child process that answers lines with lines and is killed together with its descendants.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::stop::Stop;

/// Maximum size of an answer line in bytes; it bounds memory when a program writes without line breaks.
pub(super) const MAX_ANSWER_LINE: usize = 1 << 20;

/// Maximum size of a line of standard error in bytes; longer lines are split.
const MAX_STDERR_LINE: usize = 1 << 12;

/// Number of answer lines that are read ahead.
const READ_AHEAD: usize = 16;

/// Number of lines of standard error that are kept.
const KEPT_LINES: usize = 20;

/// Number of lines of standard error that are logged per second; a program that writes without end fills no disk.
const LOGGED_LINES: usize = 100;

/// Interval between checks for a stop request while waiting for an answer.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Running process groups, by the process id of their leader.
static RUNNING_GROUPS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Kill all reward programs of this process. For a caller that is about to exit without unwinding.
pub fn end_programs() {
    RUNNING_GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|&leader| kill_group(leader));
}

/// Kill a process group: the leader and all its descendants that did not leave the group. Does nothing on platforms
/// without process groups.
fn kill_group(leader: u32) {
    // An error means that the group is gone.
    #[cfg(unix)]
    let _ =
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(leader.cast_signed()), nix::sys::signal::Signal::SIGKILL);
}

/// Start a shell that kills a process group once this process is gone, even if by SIGKILL: its standard input, which
/// nobody writes to, then closes. Return `None` on a platform without process groups or shell.
fn guard(leader: u32) -> Option<Child> {
    if !cfg!(unix) {
        return None;
    }
    let mut command = Command::new("sh");
    command.args(["-c", "read -r line; kill -s KILL -- \"-$0\"", &leader.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().ok()
}

/// The last lines that processes wrote to standard error.
#[derive(Debug, Clone, Default)]
pub(super) struct StderrTail(Arc<Mutex<VecDeque<String>>>);

impl StderrTail {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_back(line);
        if lines.len() > KEPT_LINES {
            lines.pop_front();
        }
    }

    /// Return the lines as the end of an error message.
    pub(super) fn summary(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text: String = lines.iter().map(|line| format!("\n  {line}")).collect();
        format!("Last lines of its standard error:{}", if text.is_empty() { " none" } else { &text })
    }
}

/// Reason why there is no answer.
pub(super) enum NoAnswer {
    /// The process did not answer in time.
    Timeout,
    /// The process has closed its standard output.
    Closed,
    /// [`MAX_ANSWER_LINE`] bytes came without a line break.
    Overlong,
    /// The process answered earlier lines without reading them.
    Unread,
    /// A stop was requested.
    Stopped,
}

/// A running process. Threads do the reading and writing, so that neither can block the training.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// See [`guard`].
    pub(super) guard: Option<Child>,
    questions: SyncSender<String>,
    answers: Receiver<OutputLine>,
    /// Disconnected once all of standard error has been read.
    stderr_read: Receiver<()>,
    ended: bool,
}

/// A line, and whether it is complete.
type OutputLine = (String, bool);

impl Process {
    /// Start `command`, a program and its arguments, in its own process group: Ctrl-C reaches only the training, which
    /// ends the program after the step. Lines of standard error are logged as warnings and kept in `stderr_tail`.
    pub(super) fn start(command: &[String], stderr_tail: &StderrTail) -> io::Result<Self> {
        let (program, arguments) = command.split_first().expect("a command is validated to name a program");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = {
            let mut running = RUNNING_GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
            let child = command.spawn()?;
            running.insert(child.id());
            child
        };
        let guard = guard(child.id());
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all three are piped");
        };
        let (questions, to_write) = sync_channel::<String>(1);
        std::thread::spawn(move || {
            for question in to_write {
                if stdin.write_all(question.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                    break;
                }
            }
        });
        let (answered, answers) = sync_channel(READ_AHEAD);
        std::thread::spawn(move || {
            for line in lines(stdout, MAX_ANSWER_LINE) {
                let whole = line.1;
                if answered.send(line).is_err() || !whole {
                    break;
                }
            }
        });
        let stderr_tail = stderr_tail.clone();
        let (reading, stderr_read) = channel();
        std::thread::spawn(move || {
            let _reading = reading;
            let (mut second, mut count) = (Instant::now(), 0);
            for (line, _) in lines(stderr, MAX_STDERR_LINE) {
                if second.elapsed() >= Duration::from_secs(1) {
                    (second, count) = (Instant::now(), 0);
                }
                count += 1;
                match count {
                    ..=LOGGED_LINES => tracing::warn!("reward.command: {line}"),
                    _ if count == LOGGED_LINES + 1 => {
                        tracing::warn!(
                            "reward.command: more than {LOGGED_LINES} lines in a second; the others are left out"
                        );
                    }
                    _ => {}
                }
                stderr_tail.push(line);
            }
        });
        Ok(Self { child, guard, questions, answers, stderr_read, ended: false })
    }

    /// Write a line, including its line break, and wait for the next line of the answer.
    pub(super) fn ask(&self, question: String, timeout: Duration, stop: Stop) -> Result<String, NoAnswer> {
        let start = Instant::now();
        // If the writing thread is gone, so is the program, and reading the answer reports it.
        if let Err(TrySendError::Full(_)) = self.questions.try_send(question) {
            return Err(NoAnswer::Unread);
        }
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            match self.answers.recv_timeout(left.min(POLL_INTERVAL)) {
                Ok((line, true)) => return Ok(line),
                Ok((_, false)) => return Err(NoAnswer::Overlong),
                Err(RecvTimeoutError::Disconnected) => return Err(NoAnswer::Closed),
                Err(RecvTimeoutError::Timeout) if stop.requested() => return Err(NoAnswer::Stopped),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(NoAnswer::Timeout),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// End the process, unless it has exited, and return how it ended.
    pub(super) fn end(mut self) -> String {
        let end = self.kill().map_or_else(|e| format!("ended: {e}"), |status| format!("ended with {status}"));
        // Wait for the rest of standard error, but not longer: a process outside the group may still hold the pipe.
        let _ = self.stderr_read.recv_timeout(Duration::from_secs(1));
        end
    }

    /// Kill the process and all that it started.
    fn kill(&mut self) -> io::Result<std::process::ExitStatus> {
        self.ended = true;
        if let Some(mut guard) = self.guard.take() {
            // Before its standard input closes.
            let _ = guard.kill().and_then(|()| guard.wait());
        }
        {
            // The group's id is the leader's process id, which stays reserved until the leader has been waited for.
            let mut running = RUNNING_GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
            running.remove(&self.child.id());
            kill_group(self.child.id());
        }
        #[cfg(not(unix))]
        let _ = self.child.kill();
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            // A process that is not waited for stays a zombie.
            let _ = self.kill();
        }
    }
}

/// Yield lines of at most `longest` bytes as they arrive; invalid UTF-8 is replaced.
fn lines(pipe: impl Read, longest: usize) -> impl Iterator<Item = OutputLine> {
    let mut pipe = BufReader::new(pipe);
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let read = pipe.by_ref().take(longest as u64).read_until(b'\n', &mut line).ok()?;
        let whole = read < longest || line.ends_with(b"\n");
        (read > 0).then(|| (String::from_utf8_lossy(&line).trim_end().to_string(), whole))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded() {
        let read = |text: &str| lines(text.as_bytes(), 4).collect::<Vec<_>>();
        let line = |text: &str, whole| (text.to_string(), whole);
        assert_eq!(read("ab\n\ncd"), [line("ab", true), line("", true), line("cd", true)]);
        assert_eq!(read("abc\nd"), [line("abc", true), line("d", true)]);
        assert_eq!(read("abcdef\n"), [line("abcd", false), line("ef", true)]);
    }
}
