//! The user's own reward, as a program in any language.
//!
//! The program reads one JSON object per line from its standard input and answers each with one on its standard output:
//!
//! ```text
//! {"id": 0, "prompt": "…", "completion": "…", "answer": "5", "data_source": "gsm8k", "finished": true, "tokens": 87, "extra": {…}}
//! {"id": 0, "score": 0.5}
//! ```
//!
//! `extra` has the row's other fields. A score of `null` says that there is no telling: the completion is left out and
//! counted. The answer must be written out at once (flushed), and anything that is not an answer belongs on standard
//! error, which is shown as warnings.
//!
//! The program runs as long as the training does. When it ends, or takes longer than `timeout_s` over one completion,
//! that completion is left out and the program is started again; three such failures in a row end the training.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Completion;
use crate::data::Problem;
use crate::error::{Error, Result};

/// Failures in a row that are taken for a program that does not work.
const FAILURES: usize = 3;

/// Lines of standard error that an error message shows.
const LAST_WORDS: usize = 20;

/// Which program, and how long it may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardCommand {
    /// The program and its arguments; no shell reads them. Empty for none.
    pub command: Vec<String>,
    /// Seconds for one completion; for the first one with the program's start.
    pub timeout_s: f64,
}

impl Default for RewardCommand {
    fn default() -> Self {
        Self { command: Vec::new(), timeout_s: 10.0 }
    }
}

impl RewardCommand {
    /// What cannot work, one line each; `used` says whether a stage has a reward of type `command`.
    pub fn mistakes(&self, used: bool) -> Vec<String> {
        let mut problems = Vec::new();
        if used && self.command.is_empty() {
            problems.push(
                "reward.command is empty, but a stage has a reward of type \"command\": name the program, such as \
                 [\"python3\", \"my_reward.py\"]"
                    .to_string(),
            );
        }
        if !used && !self.command.is_empty() {
            let command = &self.command;
            problems.push(format!(
                "reward.command = {command:?} is used by no stage: add {{ type = \"command\" }} to its rewards"
            ));
        }
        if Duration::try_from_secs_f64(self.timeout_s).is_err() || self.timeout_s == 0.0 {
            problems.push(format!("reward.timeout_s = {} must be positive", self.timeout_s));
        }
        problems
    }
}

/// A reward program at work.
#[derive(Debug)]
pub struct RewardProgram {
    command: Vec<String>,
    timeout: Duration,
    process: Option<Process>,
    last_words: Arc<Mutex<VecDeque<String>>>,
    asked: u64,
    restarts: usize,
    failures: usize,
}

/// A running process; threads do the reading and writing, so that none can block the training.
#[derive(Debug)]
struct Process {
    child: Child,
    questions: Sender<String>,
    answers: Receiver<String>,
    /// Closed when all of standard error has been read.
    heard: Receiver<()>,
}

#[derive(Deserialize)]
struct Answer {
    id: u64,
    /// May be null, but not missing.
    #[serde(deserialize_with = "Option::deserialize")]
    score: Option<f32>,
}

impl RewardProgram {
    /// Starts the program.
    ///
    /// # Errors
    /// When it cannot be started.
    ///
    /// # Panics
    /// When the command is empty.
    pub fn start(config: &RewardCommand) -> Result<Self> {
        let mut program = Self {
            command: config.command.clone(),
            timeout: Duration::from_secs_f64(config.timeout_s),
            process: None,
            last_words: Arc::default(),
            asked: 0,
            restarts: 0,
            failures: 0,
        };
        program.process = Some(program.spawn()?);
        Ok(program)
    }

    /// How often the program had to be started again.
    pub fn restarts(&self) -> usize {
        self.restarts
    }

    /// Asks for the score of a completion; `None` when the program cannot tell, ended or took too long.
    ///
    /// # Errors
    /// The third failure in a row, and a line that is no answer.
    pub fn score(&mut self, problem: &Problem, completion: &Completion) -> Result<Option<f32>> {
        let process = match self.process.take() {
            Some(process) => process,
            None => {
                self.restarts += 1;
                self.spawn()?
            }
        };
        let id = self.asked;
        self.asked += 1;
        let question = json!({
            "id": id,
            "prompt": problem.prompt.text(),
            "completion": completion.text,
            "answer": problem.answer,
            "data_source": problem.data_source,
            "finished": completion.finished,
            "tokens": completion.tokens,
            "extra": problem.extra,
        });
        // Where the writing thread is gone, so is the program, and the answer says so.
        let _ = process.questions.send(format!("{question}\n"));
        let failure = match process.answers.recv_timeout(self.timeout) {
            Ok(line) => {
                let score = self.read(&line, id)?;
                (self.failures, self.process) = (0, Some(process));
                return Ok(score);
            }
            Err(RecvTimeoutError::Timeout) => {
                process.end();
                format!("took longer than timeout_s = {}", self.timeout.as_secs_f64())
            }
            Err(RecvTimeoutError::Disconnected) => process.end(),
        };
        self.failures += 1;
        tracing::warn!("reward.command {failure}; the completion is left out");
        if self.failures < FAILURES {
            return Ok(None);
        }
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let words = words.iter().map(|line| format!("\n  {line}")).collect::<String>();
        Err(Error::Invalid(format!(
            "reward.command = {:?} failed {FAILURES} times in a row; the last time it {failure}. Its last lines on \
             standard error:{}",
            self.command,
            if words.is_empty() { " none" } else { &words }
        )))
    }

    /// The score in a line.
    fn read(&self, line: &str, asked: u64) -> Result<Option<f32>> {
        let refuse = |what: String| {
            Error::Invalid(format!(
                "reward.command = {:?} wrote {line:?}: {what}; expected {{\"id\": {asked}, \"score\": number or null}}, \
                 and everything else on standard error",
                self.command
            ))
        };
        let Answer { id, score } = serde_json::from_str(line).map_err(|e| refuse(e.to_string()))?;
        if id == asked { Ok(score) } else { Err(refuse(format!("id {id} was not asked for"))) }
    }

    fn spawn(&self) -> Result<Process> {
        let (program, arguments) = self.command.split_first().expect("a command is validated to name a program");
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for the training, which ends the program once the step is over.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let failed = |e| Error::Invalid(format!("reward.command = {:?} cannot be started: {e}", self.command));
        let mut child = command.spawn().map_err(failed)?;
        let (Some(mut stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all three are piped");
        };
        let (questions, to_write) = channel::<String>();
        std::thread::spawn(move || {
            for question in to_write {
                if stdin.write_all(question.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                    break;
                }
            }
        });
        let (answered, answers) = channel();
        std::thread::spawn(move || {
            for line in lines(stdout) {
                if answered.send(line).is_err() {
                    break;
                }
            }
        });
        let last_words = Arc::clone(&self.last_words);
        let (hearing, heard) = channel();
        std::thread::spawn(move || {
            let _hearing = hearing;
            for line in lines(stderr) {
                tracing::warn!("reward.command: {line}");
                let mut words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
                words.push_back(line);
                if words.len() > LAST_WORDS {
                    words.pop_front();
                }
            }
        });
        Ok(Process { child, questions, answers, heard })
    }
}

/// Lines as they come, until the end; what is not UTF-8 is replaced.
fn lines(pipe: impl std::io::Read) -> impl Iterator<Item = String> {
    let lines = BufReader::new(pipe).split(b'\n');
    lines.map_while(std::result::Result::ok).map(|line| String::from_utf8_lossy(&line).trim_end().to_string())
}

impl Process {
    /// Ends the program, unless it has ended, and says how that came.
    fn end(mut self) -> String {
        // An error says that it ended by itself.
        let _ = self.child.kill();
        let end = self.child.wait().map_or_else(|e| format!("ended: {e}"), |status| format!("ended with {status}"));
        // Its last words; what it started itself may still hold the pipe, and is not waited for longer than this.
        let _ = self.heard.recv_timeout(Duration::from_secs(1));
        end
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // As above; a process that nobody waits for stays in the system's table.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::data::Prompt;

    /// Answers every question with 0.5, one about a completion that was cut with null.
    const LOOP: &str = r#"id=${line#*:}; id=${id%%,*}
        case $line in *'"finished":false'*) score=null;; *) score=0.5;; esac
        echo "{\"id\":$id,\"score\":$score}""#;

    fn program(script: &str, timeout_s: f64) -> RewardProgram {
        let command = ["sh", "-c", script].map(str::to_string).to_vec();
        RewardProgram::start(&RewardCommand { command, timeout_s }).unwrap()
    }

    fn ask(program: &mut RewardProgram, text: &str, finished: bool) -> Result<Option<f32>> {
        let problem = Problem::new(Prompt::Text("2+3?".into()), "5");
        program.score(&problem, &Completion { text, tokens: 3, finished })
    }

    /// The message of the failure that ends the training, after two completions that are left out.
    fn third_failure(mut program: RewardProgram, text: &str) -> String {
        assert_eq!(ask(&mut program, text, true).unwrap(), None);
        assert_eq!(ask(&mut program, text, true).unwrap(), None);
        ask(&mut program, text, true).unwrap_err().to_string()
    }

    #[test]
    fn a_program_scores_or_abstains() {
        let mut program = program(&format!("while read -r line; do {LOOP}; done"), 60.0);
        for (finished, score) in [(true, Some(0.5)), (false, None), (true, Some(0.5))] {
            assert_eq!(ask(&mut program, "a \"quoted\"\nline, é", finished).unwrap(), score);
        }
        assert_eq!(program.restarts(), 0);
    }

    #[test]
    fn a_program_that_dies_now_and_then_is_started_again() {
        let mut program = program(&format!("read -r line; {LOOP}; read -r line; exit 1"), 60.0);
        let scores: Vec<_> = (0..6).map(|_| ask(&mut program, "x", true).unwrap()).collect();
        assert_eq!(scores, [Some(0.5), None, Some(0.5), None, Some(0.5), None]);
        assert_eq!(program.restarts(), 2);
    }

    #[test]
    fn three_deaths_in_a_row_are_an_error_with_the_programs_last_words() {
        let error = third_failure(program("read -r line; echo no module named x >&2; exit 3", 60.0), "x");
        assert!(error.contains("ended with exit status: 3") && error.contains("\n  no module named x"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let error = third_failure(program("read -r line; exec sleep 1000", 0.05), "x");
        assert!(error.contains("took longer than timeout_s = 0.05"), "{error}");
    }

    /// More text than fits a pipe, and nobody reads it: writing must not block the training either.
    #[test]
    fn a_program_that_does_not_read_is_ended() {
        let error = third_failure(program("exec sleep 1000", 0.05), &"x".repeat(1 << 20));
        assert!(error.contains("took longer"), "{error}");
    }

    #[test]
    fn a_line_that_is_no_answer_is_refused() {
        let table = [
            ("hello", "wrote \"hello\": expected value"),
            (r#"{\"id\": 7, \"score\": 1}"#, "id 7 was not asked for"),
            (r#"{\"id\": 0}"#, "missing field `score`"),
            (r#"{\"id\": 0, \"score\": 1e39}"#, "number out of range"),
        ];
        for (line, want) in table {
            let mut program = program(&format!("read -r line; echo \"{line}\"; read -r line"), 60.0);
            let error = ask(&mut program, "x", true).unwrap_err().to_string();
            assert!(error.contains(want) && error.contains("standard error"), "{error}");
        }
    }

    #[test]
    fn a_missing_program_and_settings_that_cannot_work_are_named() {
        let config = RewardCommand { command: vec!["no-such-program".to_string()], timeout_s: f64::NAN };
        let error = RewardProgram::start(&RewardCommand { timeout_s: 1.0, ..config.clone() }).unwrap_err().to_string();
        assert!(error.contains(r#"reward.command = ["no-such-program"] cannot be started"#), "{error}");
        let problems = config.mistakes(false).join("\n");
        assert!(problems.contains("is used by no stage") && problems.contains("timeout_s = NaN"), "{problems}");
        assert!(RewardCommand::default().mistakes(true)[0].contains("reward.command is empty"));
        assert!(RewardCommand::default().mistakes(false).is_empty());
    }
}
