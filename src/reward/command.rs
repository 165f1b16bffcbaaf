//! A user-defined reward, computed by a program in any language.
//!
//! The program reads one JSON object per line from its standard input and answers each with a line on standard output:
//!
//! ```text
//! {"id": 0, "prompt": "…", "completion": "…", "answer": "5", "data_source": "gsm8k", "finished": true, "tokens": 87, "extra": {…}}
//! {"id": 0, "score": 0.5}
//! ```
//!
//! `extra` has the row's other fields. A score of `null` means that the completion cannot be judged: it is left out and
//! counted. The setting `part` assigns scores to the task or to length; `{"id": 0, "task": 1.0, "length": -0.2}` gives
//! both parts instead. Every answer must be flushed at once. All other output belongs on standard error, which is shown
//! as warnings. With `batch = true` a line is a list of such objects, all completions of a group, and so is its answer.
//!
//! The program runs during the whole training, in `workers` processes. The completions of a step are dealt to them in
//! turn, one line at a time. When a run opens, every worker must answer a trial question. If a worker exits later, or
//! exceeds `timeout_s` for a line, its completions are left out and the worker is restarted. Three such failures in a
//! row end the training. A worker is killed together with its process group, also when the training is killed (SIGKILL).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::process::{MAX_ANSWER_LINE, NoAnswer, Process, StderrTail};
use super::{Answer, AnswerGroup, Memory, Part, Parts, Reward};
use crate::data::Problem;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::stop::Stop;

/// Consecutive failures after which the program counts as broken.
const FAILURES: usize = 3;

/// Reward computed by the program of `reward.command`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {}

impl Reward for Command {
    fn name(&self) -> &str {
        "command"
    }

    /// # Panics
    /// Always; [`super::Rewards`] scores with the program.
    fn score(&self, _group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        unreachable!("the program is started when a run opens")
    }
}

/// Settings of the reward program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RewardCommand {
    /// Program and arguments, run without a shell; empty for none.
    pub command: Vec<String>,
    /// Timeout per line, in seconds; for the first line it includes the start of the program.
    pub timeout_s: f64,
    /// Number of processes of the program that run in parallel.
    pub workers: usize,
    /// Part that the score belongs to, in the conflict analysis and in decomposed advantages.
    pub part: Part,
    /// Whether a line has all completions of a problem, as a list, and so has its answer; false if not set.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub batch: bool,
}

impl Default for RewardCommand {
    fn default() -> Self {
        Self { command: Vec::new(), timeout_s: 10.0, workers: 1, part: Part::Task, batch: false }
    }
}

impl RewardCommand {
    /// Return the settings that cannot work; `used` tells whether a stage has a reward of type `command`.
    pub fn mistakes(&self, used: bool) -> Vec<String> {
        let mut mistakes = Vec::new();
        if used && self.command.is_empty() {
            mistakes.push(
                "reward.command is empty, but a stage has a reward of type \"command\": set reward.command to the \
                    program, such as [\"python3\", \"my_reward.py\"]"
                    .to_string(),
            );
        }
        if !used && !self.command.is_empty() {
            let command = &self.command;
            mistakes.push(format!(
                "reward.command = {command:?} is not used by any stage: add {{ type = \"command\" }} to the rewards of \
                    a stage"
            ));
        }
        if Duration::try_from_secs_f64(self.timeout_s).is_err() || self.timeout_s == 0.0 {
            mistakes.push(format!("reward.timeout_s = {} must be positive", self.timeout_s));
        }
        if self.workers == 0 {
            mistakes.push("reward.workers = 0 must be positive".to_string());
        }
        mistakes
    }
}

/// A running reward program.
#[derive(Debug)]
pub struct RewardProgram {
    program: SharedProgram,
    workers: Mutex<Vec<ProgramWorker>>,
}

/// Settings and state shared by the workers.
#[derive(Debug)]
struct SharedProgram {
    command: Vec<String>,
    timeout: Duration,
    batch: bool,
    part: Part,
    stderr_tail: StderrTail,
    /// Restarts since the last [`Reward::describe`].
    restarts: AtomicUsize,
}

/// One process of the program, restarted after a failure.
#[derive(Debug, Default)]
struct ProgramWorker {
    process: Option<Process>,
    asked: u64,
    /// Consecutive failures.
    failures: usize,
}

/// A completion to judge.
#[derive(Clone, Copy)]
struct Question<'a> {
    problem: &'a Problem,
    completion: &'a str,
    tokens: usize,
    finished: bool,
}

/// Answer of the program: a score, or parts.
#[derive(Deserialize)]
struct Scored {
    id: u64,
    /// `Some(None)` for null, `None` if missing.
    #[serde(default, deserialize_with = "present")]
    score: Option<Option<f32>>,
    task: Option<f32>,
    length: Option<f32>,
}

fn present<'de, D: Deserializer<'de>>(value: D) -> std::result::Result<Option<Option<f32>>, D::Error> {
    Option::deserialize(value).map(Some)
}

impl RewardProgram {
    /// Start the workers and send each the trial question: a right answer to `trial`.
    ///
    /// # Errors
    /// Settings with [`RewardCommand::mistakes`], a program that cannot be started or does not answer, and a line that
    /// is not a valid answer.
    pub fn open(config: &RewardCommand, trial: &Problem) -> Result<Self> {
        if let Some(mistake) = config.mistakes(true).into_iter().next() {
            return Err(Error::Invalid(mistake));
        }
        let program = SharedProgram {
            command: config.command.clone(),
            timeout: Duration::from_secs_f64(config.timeout_s),
            batch: config.batch,
            part: config.part,
            stderr_tail: StderrTail::default(),
            restarts: AtomicUsize::new(0),
        };
        let mut workers: Vec<ProgramWorker> = (0..config.workers).map(|_| ProgramWorker::default()).collect();
        let completion = format!("\\boxed{{{}}}", trial.answer);
        let question = [Question { problem: trial, completion: &completion, tokens: 1, finished: true }];
        workers.iter_mut().try_for_each(|worker| worker.start(&program))?;
        deal(&mut workers, &vec![&question; config.workers], |worker, question| worker.try_out(&program, *question))?;
        Ok(Self { program, workers: Mutex::new(workers) })
    }
}

impl Reward for RewardProgram {
    fn name(&self) -> &str {
        "command"
    }

    fn score(&self, group: &AnswerGroup, memory: &Memory) -> Result<Vec<Option<Parts>>> {
        self.score_all(std::slice::from_ref(group), memory, Stop::NEVER).map(|mut scores| scores.remove(0))
    }

    fn score_all(&self, groups: &[AnswerGroup], _memory: &Memory, stop: Stop) -> Result<Vec<Vec<Option<Parts>>>> {
        let questions = groups.iter().map(|group| {
            let question = |answer| Question::of(group.problem, answer);
            group.answers.iter().map(question).collect()
        });
        let questions: Vec<Vec<Question>> = questions.collect();
        let at_once = |group: &Vec<Question>| if self.program.batch { group.len().max(1) } else { 1 };
        let lines: Vec<&[Question]> = questions.iter().flat_map(|group| group.chunks(at_once(group))).collect();
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let scores = deal(&mut workers, &lines, |worker, line| worker.score(&self.program, line, stop))?;
        let mut scores = scores.into_iter().flatten();
        Ok(groups.iter().map(|group| scores.by_ref().take(group.answers.len()).collect()).collect())
    }

    fn describe(&self, _memory: &Memory, metrics: &mut Metrics) {
        metrics.set("rewards/command/restarts", self.program.restarts.swap(0, Ordering::Relaxed) as f64);
    }
}

/// Deal questions to workers in turn, run all workers concurrently, and return the answers in the order of the
/// questions. The first error stops all workers.
fn deal<Q: Sync, T: Send>(
    workers: &mut [ProgramWorker],
    questions: &[Q],
    ask: impl Fn(&mut ProgramWorker, &Q) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (count, failed) = (workers.len(), AtomicBool::new(false));
    let work = |(first, worker): (usize, &mut ProgramWorker)| -> Result<Vec<T>> {
        let mut answers = Vec::new();
        for question in questions.iter().skip(first).step_by(count) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            answers.push(ask(worker, question).inspect_err(|_| failed.store(true, Ordering::Relaxed))?);
        }
        Ok(answers)
    };
    let work = &work;
    let answers: Vec<Result<Vec<T>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = workers.iter_mut().enumerate().map(|worker| scope.spawn(move || work(worker))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker's thread does not panic")).collect()
    });
    let answers: Vec<Vec<T>> = answers.into_iter().collect::<Result<_>>()?;
    let mut answers: Vec<_> = answers.into_iter().map(Vec::into_iter).collect();
    Ok((0..questions.len()).map(|i| answers[i % count].next().expect("one answer per question")).collect())
}

impl ProgramWorker {
    fn start(&mut self, program: &SharedProgram) -> Result<()> {
        let failed = |e| {
            Error::Invalid(format!(
                "reward.command = {:?} cannot be started: {e}; give the path of the program and its arguments",
                program.command
            ))
        };
        self.process = Some(Process::start(&program.command, &program.stderr_tail).map_err(failed)?);
        Ok(())
    }

    /// Ask the trial question.
    fn try_out(&mut self, program: &SharedProgram, question: &[Question]) -> Result<()> {
        self.ask(program, question, Stop::NEVER)?.map(drop).map_err(|failure| {
            Error::Invalid(format!(
                "reward.command = {:?} did not answer the test request sent at the start of every run: it {failure}. \
                 The program must flush each answer immediately (in Python: print(…, flush=True)); if it starts \
                 slowly, raise reward.timeout_s. {}",
                program.command,
                program.stderr_tail.summary()
            ))
        })
    }

    /// Return the scores of the completions of a line; `None` if the program gives none, exits or exceeds the timeout.
    fn score(&mut self, program: &SharedProgram, questions: &[Question], stop: Stop) -> Result<Vec<Option<Parts>>> {
        if self.process.is_none() {
            program.restarts.fetch_add(1, Ordering::Relaxed);
            self.start(program)?;
        }
        let failure = match self.ask(program, questions, stop)? {
            Ok(scores) => {
                self.failures = 0;
                return Ok(scores);
            }
            Err(failure) => failure,
        };
        self.failures += 1;
        tracing::warn!("reward.command {failure}; completions without a score: {}", questions.len());
        if self.failures < FAILURES {
            return Ok(vec![None; questions.len()]);
        }
        Err(Error::Invalid(format!(
            "reward.command = {:?} failed {FAILURES} times in a row; the last time it {failure}. {}",
            program.command,
            program.stderr_tail.summary()
        )))
    }

    /// Return the answer to the questions of a line, or how the process failed; a failed process is ended.
    fn ask(
        &mut self,
        program: &SharedProgram,
        questions: &[Question],
        stop: Stop,
    ) -> Result<std::result::Result<Vec<Option<Parts>>, String>> {
        let process = self.process.take().expect("the process is started");
        let id = self.asked;
        self.asked += questions.len() as u64;
        match process.ask(program.line(questions, id), program.timeout, stop) {
            Ok(line) => {
                let scores = program.read(&line, id, questions.len())?;
                self.process = Some(process);
                Ok(Ok(scores))
            }
            Err(NoAnswer::Overlong) => {
                Err(program.refuse(&format!("{MAX_ANSWER_LINE} bytes without a line break"), "too long", id))
            }
            Err(NoAnswer::Unread) => {
                Err(program.refuse("an answer to a request that it had not read", "each request has its answer", id))
            }
            Err(NoAnswer::Timeout) => {
                process.end();
                Ok(Err(format!("took longer than reward.timeout_s = {}", program.timeout.as_secs_f64())))
            }
            Err(NoAnswer::Closed) => Ok(Err(process.end())),
            Err(NoAnswer::Stopped) => Err(Error::Stopped),
        }
    }
}

impl<'a> Question<'a> {
    fn of(problem: &'a Problem, answer: &'a Answer) -> Self {
        Self { problem, completion: &answer.text, tokens: answer.length(), finished: answer.finished }
    }

    fn json(&self, id: u64) -> Value {
        json!({
            "id": id,
            "prompt": self.problem.prompt.text(),
            "completion": self.completion,
            "answer": self.problem.answer,
            "data_source": self.problem.data_source,
            "finished": self.finished,
            "tokens": self.tokens,
            "extra": self.problem.extra,
        })
    }
}

impl SharedProgram {
    /// Return the line that asks `questions`, which have the ids from `first` on.
    fn line(&self, questions: &[Question], first: u64) -> String {
        let objects: Vec<Value> = questions.iter().zip(first..).map(|(question, id)| question.json(id)).collect();
        if self.batch { format!("{}\n", Value::Array(objects)) } else { format!("{}\n", objects[0]) }
    }

    /// Parse the scores in a line that answers `count` questions, which have the ids from `first` on.
    fn read(&self, line: &str, first: u64, count: usize) -> Result<Vec<Option<Parts>>> {
        let refuse = |why: String| self.refuse(&format!("{line:?}"), &why, first);
        let one = |line| serde_json::from_str(line).map(|scored| vec![scored]);
        let read = if self.batch { serde_json::from_str(line) } else { one(line) };
        let scored: Vec<Scored> = read.map_err(|e| refuse(e.to_string()))?;
        if scored.len() != count {
            return Err(refuse(format!("{} answers to {count} requests", scored.len())));
        }
        scored.into_iter().zip(first..).map(|(scored, id)| self.parts(scored, id).map_err(refuse)).collect()
    }

    /// Return the parts that an answer gives, or why it is not valid.
    fn parts(&self, scored: Scored, asked: u64) -> std::result::Result<Option<Parts>, String> {
        match scored {
            Scored { id, .. } if id != asked => Err(format!("id {id} was not requested")),
            Scored { score: Some(score), task: None, length: None, .. } => Ok(score.map(|s| self.part.of(s))),
            Scored { score: Some(_), .. } => Err("both score and task or length are given".to_string()),
            Scored { task: None, length: None, .. } => Err("missing field `score`".to_string()),
            Scored { task, length, .. } => Ok(Some(Parts { task: task.unwrap_or(0.0), length: length.unwrap_or(0.0) })),
        }
    }

    fn refuse(&self, wrote: &str, why: &str, asked: u64) -> Error {
        let list = if self.batch { "a list with one object for each completion: " } else { "" };
        Error::Invalid(format!(
            "reward.command = {:?} wrote {wrote}: {why}; expected {list}{{\"id\": {asked}, \"score\": number or null}} \
                or {{\"id\": {asked}, \"task\": number, \"length\": number}}, and all other output on standard error",
            self.command
        ))
    }
}

#[cfg(all(test, unix))]
mod tests;
