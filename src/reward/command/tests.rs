use std::path::Path;
use std::time::Instant;

use super::super::tests::{answer, problem};
use super::super::{Answer, RewardKind, Rewards};
use super::*;

/// Shell code that answers a question with 0.5, or with null if the completion was cut.
const LOOP: &str = r#"id=${line#*:}; id=${id%%,*}
    case $line in *'"finished":false'*) score=null;; *) score=0.5;; esac
    echo "{\"id\":$id,\"score\":$score}""#;

fn config(script: &str) -> RewardCommand {
    let command = ["sh", "-c", script].map(str::to_string).to_vec();
    RewardCommand { command, timeout_s: 60.0, ..RewardCommand::default() }
}

fn open(config: &RewardCommand) -> Result<RewardProgram> {
    RewardProgram::open(config, &problem(1))
}

/// Open a program with enough time for the trial question, then shorten the timeout.
fn impatient(config: &RewardCommand) -> RewardProgram {
    let mut program = open(config).unwrap();
    program.program.timeout = Duration::from_millis(300);
    program
}

/// Return a program that answers the trial question and then runs the script.
fn after_trial(script: &str) -> RewardCommand {
    config(&format!("read -r line; {LOOP}; {script}"))
}

fn ask_all(program: &RewardProgram, answers: &[Answer]) -> Result<Vec<Option<Parts>>> {
    let problem = problem(1);
    program.score(&AnswerGroup { problem: &problem, answers, limit: 100, step: 0 }, &Memory::default())
}

fn ask(program: &RewardProgram, text: &str, finished: bool) -> Result<Option<f32>> {
    let answer = Answer { text: text.to_string(), finished, ..answer(true, 3) };
    Ok(ask_all(program, &[answer])?[0].map(Parts::total))
}

fn restarts(program: &RewardProgram) -> Option<f64> {
    let mut metrics = Metrics::default();
    program.describe(&Memory::default(), &mut metrics);
    metrics.get("rewards/command/restarts")
}

/// Return the error of the third failure, which ends the training, after two completions that are left out.
fn third_failure(program: RewardProgram, text: &str) -> String {
    assert_eq!(ask(&program, text, true).unwrap(), None);
    assert_eq!(ask(&program, text, true).unwrap(), None);
    ask(&program, text, true).unwrap_err().to_string()
}

#[test]
fn a_program_scores_or_abstains() {
    let program = open(&config(&format!("while read -r line; do {LOOP}; done"))).unwrap();
    for (finished, score) in [(true, Some(0.5)), (false, None), (true, Some(0.5))] {
        assert_eq!(ask(&program, "a \"quoted\"\nline, é", finished).unwrap(), score);
    }
    assert_eq!(restarts(&program), Some(0.0));
}

/// Restarts are counted over all groups scored since they were last written.
#[test]
fn a_program_that_dies_now_and_then_is_started_again() {
    let program = open(&config(&format!("read -r line; {LOOP}; read -r line; exit 1"))).unwrap();
    let scores: Vec<_> = (0..6).map(|_| ask(&program, "x", true).unwrap()).collect();
    assert_eq!(scores, [None, Some(0.5), None, Some(0.5), None, Some(0.5)]);
    assert_eq!((restarts(&program), restarts(&program)), (Some(3.0), Some(0.0)));
}

#[test]
fn three_deaths_in_a_row_are_an_error_with_the_programs_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once");
    // Only the first process answers.
    let script = format!(
        "read -r line; if mkdir {}; then {LOOP}; read -r line; fi; echo no module named x >&2; exit 3",
        once.display()
    );
    let error = third_failure(open(&config(&script)).unwrap(), "x");
    assert!(error.contains("ended with exit status: 3") && error.contains("\n  no module named x"), "{error}");
}

/// Return a program that answers only the trial question, also after a restart.
fn silent(then: &str) -> RewardCommand {
    let script = format!("read -r line; case $line in *boxed*) {LOOP};; esac; {then}");
    config(&script)
}

#[test]
fn a_program_that_hangs_is_ended() {
    let error = third_failure(impatient(&silent("read -r line; exec sleep 1000")), "x");
    assert!(error.contains("took longer than reward.timeout_s = 0.3"), "{error}");
}

/// The question exceeds the pipe's buffer and is never read: writing must not block the training.
#[test]
fn a_program_that_does_not_read_is_ended() {
    let error = third_failure(impatient(&silent("exec sleep 1000")), &"x".repeat(1 << 20));
    assert!(error.contains("took longer"), "{error}");
}

#[test]
fn a_line_that_is_no_answer_is_refused() {
    let table = [
        ("hello", "wrote \"hello\": expected value"),
        (r#"{\"id\": 7, \"score\": 1}"#, "id 7 was not requested"),
        (r#"{\"id\": 0}"#, "missing field `score`"),
        (r#"{\"id\": 0, \"score\": 1e39}"#, "number out of range"),
        (r#"{\"id\": 0, \"score\": NaN}"#, "expected value"),
        (r#"{\"id\": 0, \"score\": 1, \"length\": 0}"#, "both score and task or length"),
    ];
    for (line, want) in table {
        let error = open(&config(&format!("read -r line; echo \"{line}\"; read -r line"))).unwrap_err().to_string();
        assert!(error.contains(want) && error.contains("standard error"), "{error}");
    }
}

#[test]
fn a_missing_program_and_settings_that_cannot_work_are_named() {
    let config = RewardCommand { command: vec!["no-such-program".to_string()], ..RewardCommand::default() };
    let error = open(&config).unwrap_err().to_string();
    assert!(error.contains(r#"reward.command = ["no-such-program"] cannot be started"#), "{error}");
    let mistakes = RewardCommand { timeout_s: f64::NAN, workers: 0, ..config }.mistakes(false).join("\n");
    assert!(mistakes.contains("is not used by any stage") && mistakes.contains("timeout_s = NaN"), "{mistakes}");
    assert!(mistakes.contains("reward.workers = 0 must be positive"), "{mistakes}");
    assert!(RewardCommand::default().mistakes(true)[0].contains("reward.command is empty"));
    assert!(RewardCommand::default().mistakes(false).is_empty());
}

/// Like a Python program that prints without `flush=True`: its answers stay in its buffer.
#[test]
fn a_program_that_does_not_flush_is_found_out_when_the_run_opens() {
    let quick = RewardCommand { timeout_s: 0.2, ..config(&format!("while read -r line; do {LOOP}; done | sort")) };
    let error = open(&quick).unwrap_err().to_string();
    assert!(error.contains("test request") && error.contains("took longer than reward.timeout_s = 0.2"), "{error}");
    assert!(error.contains("flush=True"), "{error}");
}

/// Regression: once the pipe to such a program was full, the run stood still, and Ctrl-C was not heard.
#[test]
fn a_program_that_answers_without_reading_is_refused() {
    let program =
        open(&config("id=0; while echo \"{\\\"id\\\":$id,\\\"score\\\":0}\"; do id=$((id + 1)); done")).unwrap();
    let error = (0..10).find_map(|_| ask(&program, &"x".repeat(1 << 17), true).err()).unwrap().to_string();
    assert!(error.contains("wrote an answer to a request that it had not read"), "{error}");
}

/// 20 MB without a line break.
#[test]
fn a_flood_without_a_newline_is_an_error() {
    let flood = "read -r line; head -c 20000000 /dev/zero | tr '\\0' x; read -r line";
    let error = open(&config(flood)).unwrap_err().to_string();
    assert!(error.contains("wrote 1048576 bytes without a line break"), "{error}");
    let program = open(&after_trial(flood)).unwrap();
    let error = ask(&program, "x", true).unwrap_err().to_string();
    assert!(error.contains("wrote 1048576 bytes without a line break"), "{error}");
}

/// Wait up to 60 seconds until `done`; return whether it became true.
fn within_reason(done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Whether a process is gone or a zombie.
fn gone(number: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{number}/status")).unwrap_or_default();
    status.contains("State:\tZ") || nix::sys::signal::kill(nix::unistd::Pid::from_raw(number), None).is_err()
}

/// Return a program that starts a child after its trial, and the child's process id.
fn with_child(folder: &Path, then: &str) -> (RewardProgram, i32) {
    let file = folder.join("child");
    let script = format!("sleep 1000 & echo $! > {0}.new; mv {0}.new {0}; read -r line; {then}", file.display());
    let program = impatient(&after_trial(&script));
    assert!(within_reason(|| file.exists()));
    let child: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    assert!(!gone(child));
    std::fs::remove_file(file).unwrap();
    (program, child)
}

/// `sh -c "python judge.py"`: killing only the shell would leave the judge running.
#[test]
fn what_a_program_started_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    // After a timeout, and after the program's own exit, with the child still holding its pipes.
    for then in ["wait", "exit 1"] {
        let (program, child) = with_child(folder.path(), then);
        assert_eq!(ask(&program, "x", true).unwrap(), None);
        assert!(within_reason(|| gone(child)), "{then}");
    }
    // After the run.
    let (program, child) = with_child(folder.path(), "wait");
    drop(program);
    assert!(within_reason(|| gone(child)));
}

/// What SIGKILL does to the training: its end of the guard's pipe closes. Regression: a program that did not read its
/// standard input at that moment stayed behind.
#[test]
fn a_program_does_not_outlive_a_killed_training() {
    let folder = tempfile::tempdir().unwrap();
    let (program, child) = with_child(folder.path(), "exec sleep 1000");
    let mut workers = program.workers.lock().unwrap();
    drop(workers[0].process.as_mut().unwrap().guard.as_mut().unwrap().stdin.take());
    assert!(within_reason(|| gone(child)));
}

/// Each worker waits until all three have a question: with fewer, none would ever answer.
#[test]
fn workers_answer_at_the_same_time_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        r#"cd {}; while read -r line; do
        id=${{line#*:}}; id=${{id%%,*}}; tokens=${{line#*tokens\":}}; tokens=${{tokens%%,*}}
        : > $id.$$; while [ $(ls -d $id.* | wc -l) -lt 3 ]; do sleep 0.01; done
        echo "{{\"id\":$id,\"score\":$tokens}}"; done"#,
        folder.path().display()
    );
    let program = open(&RewardCommand { workers: 3, ..config(&script) }).unwrap();
    let answers: Vec<Answer> = (1..=6).map(|length| answer(true, length)).collect();
    let scores: Vec<f32> = ask_all(&program, &answers).unwrap().into_iter().map(|s| s.unwrap().total()).collect();
    assert_eq!(scores, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
}

#[test]
fn a_program_gives_parts_or_a_score_for_the_part_of_the_settings() {
    let script = r#"while read -r line; do id=${line#*:}; id=${id%%,*}
        case $line in *'"finished":false'*) echo "{\"id\":$id,\"task\":1,\"length\":-0.25}";;
            *) echo "{\"id\":$id,\"score\":-0.5}";; esac; done"#;
    let answers = [answer(true, 3), Answer { finished: false, ..answer(true, 3) }];
    let given = Some(Parts { task: 1.0, length: -0.25 });
    for (part, whole) in [(Part::Task, Parts::task(-0.5)), (Part::Length, Parts::length(-0.5))] {
        let program = open(&RewardCommand { part, ..config(script) }).unwrap();
        assert_eq!(ask_all(&program, &answers).unwrap(), [Some(whole), given]);
    }
    let config: RewardCommand = toml::from_str("command = ['judge']\npart = 'length'").unwrap();
    assert_eq!((config.part, config.workers), (Part::Length, 1));
}

/// The program scores each completion of a line by its id; one that forgets a completion is refused.
#[test]
fn a_batch_is_all_completions_of_a_problem() {
    let answering = |ids: &str| {
        let script = format!(
            r#"while read -r line; do
            scores=; for id in $(printf '%s' "$line" | grep -o '"id":[0-9]*' | cut -d: -f2 {ids}); do
            scores="$scores,{{\"id\":$id,\"score\":$id}}"; done; echo "[${{scores#,}}]"; done"#
        );
        open(&RewardCommand { batch: true, ..config(&script) }).unwrap()
    };
    let answers = [answer(true, 3), answer(false, 4), answer(true, 5)];
    let scores = ask_all(&answering(""), &answers).unwrap();
    assert_eq!(scores, [1.0, 2.0, 3.0].map(|score| Some(Parts::task(score))), "the test request has the id 0");
    let error = ask_all(&answering("| head -n 2"), &answers).unwrap_err().to_string();
    assert!(error.contains("2 answers to 3 requests") && error.contains("expected a list"), "{error}");
}

/// A row without a usable answer, which no built-in reward scores.
#[test]
fn a_program_scores_rows_without_an_answer() {
    let kinds = [RewardKind::from(Command {})];
    let program = config(&format!("while read -r line; do {LOOP}; done"));
    let problem = problem(1);
    let rewards = Rewards::open([kinds.as_slice()], &program, &[], &problem).unwrap();
    let answers = [Answer { correct: None, correct_lenient: None, correct_cut: None, ..answer(true, 3) }];
    let group = AnswerGroup { problem: &problem, answers: &answers, limit: 100, step: 0 };
    assert_eq!(rewards.score(&kinds, &[group], &Memory::default(), Stop::NEVER).unwrap(), [[[Some(Parts::task(0.5))]]]);
}

/// Ctrl-C while a program computes: the run does not wait for `timeout_s`.
#[test]
fn a_request_to_stop_does_not_wait_for_an_answer() {
    let program = open(&after_trial("read -r line; exec sleep 1000")).unwrap();
    let (problem, answers, flag) = (problem(1), [answer(true, 3)], AtomicBool::new(true));
    let group = AnswerGroup { problem: &problem, answers: &answers, limit: 100, step: 0 };
    let start = Instant::now();
    let error = program.score_all(&[group], &Memory::default(), Stop::new(&flag)).unwrap_err();
    assert!(matches!(error, Error::Stopped) && start.elapsed() < Duration::from_secs(30), "{error}");
}
