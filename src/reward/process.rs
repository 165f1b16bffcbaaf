//! A child process that answers lines with lines, and ends with everything that it started.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::stop::Stop;

/// Bytes of an answer at most: memory stays bounded when a program writes without an end.
pub(super) const LONGEST_LINE: usize = 1 << 20;

/// Bytes of a line of standard error at most; longer ones are cut into several.
const LONGEST_WORD: usize = 1 << 12;

/// Lines that are read ahead.
const AHEAD: usize = 16;

/// Lines of standard error that are kept.
const LAST_WORDS: usize = 20;

/// How often a request to stop is looked at while a process thinks.
const GLANCE: Duration = Duration::from_millis(100);

/// Process groups at work, by the number of their leader.
static AT_WORK: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Kills all reward programs of this process, for a caller that is about to end it without unwinding.
pub fn end_programs() {
    AT_WORK.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|&leader| kill_group(leader));
}

/// Kills a process group: its leader, and all that the leader started and that did not leave the group. Without groups,
/// nothing.
fn kill_group(leader: u32) {
    // An error says that the group is gone.
    #[cfg(unix)]
    let _ =
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(leader.cast_signed()), nix::sys::signal::Signal::SIGKILL);
}

/// The last lines that processes wrote to standard error.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    fn push(&self, line: String) {
        let mut words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        words.push_back(line);
        if words.len() > LAST_WORDS {
            words.pop_front();
        }
    }

    /// The end of an error message.
    pub(super) fn shown(&self) -> String {
        let words = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: String = words.iter().map(|line| format!("\n  {line}")).collect();
        format!("Its last lines on standard error:{}", if lines.is_empty() { " none" } else { &lines })
    }
}

/// Why there is no answer.
pub(super) enum Silence {
    /// The process is still at it.
    Timeout,
    /// The process has closed its standard output.
    Closed,
    /// [`LONGEST_LINE`] bytes came without the end of a line.
    Overlong,
    /// An early end was asked for.
    Stopped,
}

/// A running process; threads do the reading and writing, so that none can block the training.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    questions: SyncSender<String>,
    answers: Receiver<Line>,
    /// Closed when all of standard error has been read.
    heard: Receiver<()>,
    ended: bool,
}

/// A line, and whether its end was reached.
type Line = (String, bool);

impl Process {
    /// Starts `command`, a program and its arguments, in a process group of its own: Ctrl-C is for the training, which
    /// ends the program once the step is over. Lines of its standard error are shown and kept in `last_words`.
    pub(super) fn start(command: &[String], last_words: &LastWords) -> io::Result<Self> {
        let (program, arguments) = command.split_first().expect("a command is validated to name a program");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = {
            let mut at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
            let child = command.spawn()?;
            at_work.insert(child.id());
            child
        };
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
        let (answered, answers) = sync_channel(AHEAD);
        std::thread::spawn(move || {
            for line in lines(stdout, LONGEST_LINE) {
                let whole = line.1;
                if answered.send(line).is_err() || !whole {
                    break;
                }
            }
        });
        let last_words = last_words.clone();
        let (hearing, heard) = channel();
        std::thread::spawn(move || {
            let _hearing = hearing;
            for (line, _) in lines(stderr, LONGEST_WORD) {
                tracing::warn!("reward.command: {line}");
                last_words.push(line);
            }
        });
        Ok(Self { child, questions, answers, heard, ended: false })
    }

    /// Writes a line, its end included, and waits for the next line of the answer.
    pub(super) fn ask(&self, question: String, timeout: Duration, stop: Stop) -> Result<String, Silence> {
        let start = Instant::now();
        // Where the writing thread is gone, so is the program, and the answer says so.
        let _ = self.questions.send(question);
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            match self.answers.recv_timeout(left.min(GLANCE)) {
                Ok((line, true)) => return Ok(line),
                Ok((_, false)) => return Err(Silence::Overlong),
                Err(RecvTimeoutError::Disconnected) => return Err(Silence::Closed),
                Err(RecvTimeoutError::Timeout) if stop.requested() => return Err(Silence::Stopped),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Err(Silence::Timeout),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Ends the process, unless it has ended, and says how that came.
    pub(super) fn end(mut self) -> String {
        let end = self.kill().map_or_else(|e| format!("ended: {e}"), |status| format!("ended with {status}"));
        // Its last words; what left the process group may still hold the pipe, and is not waited for longer than this.
        let _ = self.heard.recv_timeout(Duration::from_secs(1));
        end
    }

    /// Kills the process and all that it started.
    fn kill(&mut self) -> io::Result<std::process::ExitStatus> {
        self.ended = true;
        {
            // The group has the number of its leader, which stays taken until the leader has been waited for.
            let mut at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
            at_work.remove(&self.child.id());
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
            // A process that nobody waits for stays in the system's table.
            let _ = self.kill();
        }
    }
}

/// Lines as they come, of at most `longest` bytes; what is not UTF-8 is replaced.
fn lines(pipe: impl Read, longest: usize) -> impl Iterator<Item = Line> {
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
