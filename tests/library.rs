//! Runs by a program of one's own: its rewards, its problems, and what its observer is told.

use std::sync::atomic::AtomicBool;

use serde_json::Value;
use tempering::data::{Fields, Problem, load_problems};
use tempering::metrics::Metrics;
use tempering::reward::{AnswerGroup, Custom, Memory, Parts, Reward};
use tempering::train::{Observer, Session, Start, Trainer};

use crate::support::{StopAt, Workshop, column, figures, in_session};

/// Reward of lengths below the mean of the step before, which is kept in memory.
#[derive(Debug)]
struct ShorterThanBefore;

impl Reward for ShorterThanBefore {
    fn name(&self) -> &str {
        "shorter_than_before"
    }

    fn score(&self, group: &AnswerGroup, memory: &Memory) -> tempering::Result<Vec<Option<Parts>>> {
        let before = memory.custom.get(self.name()).and_then(Value::as_f64).unwrap_or(0.0);
        Ok(group.lengths().into_iter().map(|length| Some(Parts::length((before - length) as f32))).collect())
    }

    fn remember(&self, groups: &[AnswerGroup], memory: &mut Memory) {
        let lengths: Vec<f64> = groups.iter().flat_map(|group| group.lengths()).collect();
        let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
        memory.custom.insert(self.name().to_string(), mean.into());
    }
}

/// Regression: a reward of a program had no place in memory that a checkpoint keeps.
#[test]
fn the_memory_of_a_rust_type_is_kept_in_checkpoints() {
    let workshop = Workshop::new();
    let run = |name: &str, start: Start, at: StopAt| {
        let mut config = workshop.rl(name);
        config.stages[0].rewards = vec![Custom { name: "shorter_than_before".to_string() }.into()];
        config.stages[0].reward_weights = Vec::new();
        config.stages[0].exit.max_steps = 3;
        in_session(start, at, |session| Trainer::new(&config).reward(ShorterThanBefore).run(session)).0
    };
    run("whole", Start::New, StopAt::Never).unwrap();
    run("halves", Start::New, StopAt::Step(1)).unwrap_err();
    run("halves", Start::Resume, StopAt::Never).unwrap();
    let whole = figures(&workshop.run("whole"));
    assert_eq!(figures(&workshop.run("halves")), whole);
    let means = column(&whole, "rewards/shorter_than_before/mean");
    assert!(means.len() == 3 && means[1].abs() < means[0].abs(), "the second step knows the first: {means:?}");
}

/// Regression: a run with problems from memory could be resumed with others.
#[test]
fn a_resumed_run_is_given_the_same_problems() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("run");
    config.stages[0].exit.max_steps = 2;
    let run = |problems: Option<Vec<Problem>>, start: Start, at: StopAt| {
        let trainer = Trainer::new(&config);
        let trainer = match problems {
            Some(problems) => trainer.problems(problems),
            None => trainer,
        };
        in_session(start, at, |session| trainer.run(session)).0
    };
    let problems = load_problems(&workshop.path("sums.jsonl"), &Fields::default()).unwrap();
    run(Some(problems.clone()), Start::New, StopAt::Step(1)).unwrap_err();
    let refused = |problems| run(problems, Start::Resume, StopAt::Never).unwrap_err().to_string();
    let mut others = problems.clone();
    others[3].answer = "7".to_string();
    let error = refused(Some(others));
    assert!(error.contains("the program's list of problems has changed since the run started"), "{error}");
    let error = refused(None);
    assert!(error.contains("the program's list of problems is missing"), "{error}");
    run(Some(problems), Start::Resume, StopAt::Never).unwrap();
}

/// Observer of the problems that evaluations have finished.
#[derive(Default)]
struct Evaluations {
    is_running: bool,
    done: Vec<usize>,
}

impl Observer for Evaluations {
    fn begin(&mut self, phase: &str, _total: usize) {
        self.is_running = phase == "evaluate";
    }
    fn advance(&mut self, done: usize, _metrics: Option<&Metrics>) {
        if self.is_running {
            self.done.push(done);
        }
    }
    fn note(&mut self, _line: &str) {}
}

/// Regression: "evaluate 0/40" was printed beside "40 of 40 completions ended; 0 s left".
#[test]
fn an_evaluation_is_said_to_advance_once_problems_are_finished() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("run");
    (config.train.eval_steps, config.stages[0].exit.max_steps) = (0, 1);
    // Four problems are sampled together.
    (config.eval.rows, config.eval.num_problems) = (1, 6);
    let (stop, mut observer) = (AtomicBool::new(false), Evaluations::default());
    let mut session = Session { observer: &mut observer, stop: &stop, start: Start::New };
    Trainer::new(&config).run(&mut session).unwrap();
    assert_eq!(observer.done, [4, 6, 4, 6]);
}
