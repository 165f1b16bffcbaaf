//! The program as people run it: exit codes, files, interruptions.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempering::config::{self, to_toml};
use tempering::data::{Fields, load_conversations, load_problems};
use tempering::train::rl::RlConfig;
use tempering::train::sft::SftConfig;

use crate::support::{Workshop, device_name, figures, final_weights, read_lines, repository, run_rl};

/// How a command ended and what it said.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn command(args: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tempering"));
    command.args(args.iter().map(|arg| arg.as_ref()));
    command.env("TEMPERING_DEVICE", device_name()).current_dir(repository(""));
    command
}

fn tempering(args: &[&dyn AsRef<OsStr>]) -> Ended {
    let output = command(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

pub(crate) fn succeed(args: &[&dyn AsRef<OsStr>]) -> String {
    let ended = tempering(args);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    ended.out
}

pub(crate) fn user_error(args: &[&dyn AsRef<OsStr>]) -> String {
    let ended = tempering(args);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    ended.err
}

/// A run in the background, ended with the test.
struct Background(Child);

impl Background {
    fn start(args: &[&dyn AsRef<OsStr>]) -> Self {
        Self(command(args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn wait_until(&mut self, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(self.0.try_wait().unwrap().is_none(), "the run ended too early");
            assert!(start.elapsed() < Duration::from_secs(120), "waited in vain");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A run of so many steps, a checkpoint every five, and the file that says so.
fn long_run(workshop: &Workshop, name: &str, steps: usize) -> (RlConfig, std::path::PathBuf) {
    let mut config = workshop.rl(name);
    config.train.save_steps = 5;
    config.stages[0].max_steps = steps;
    let file = workshop.path(&format!("{name}.toml"));
    std::fs::write(&file, to_toml(&config)).unwrap();
    (config, file)
}

#[test]
fn a_dry_run_prints_settings_that_resolve_to_themselves() {
    let workshop = Workshop::new();
    for (command, file) in [("train", "configs/quickstart.toml"), ("sft", "configs/base.toml")] {
        let printed = succeed(&[&command, &file, &"--dry-run", &"--seed", &"7", &"--set", &"optim.learning_rate=3e-4"]);
        let copy = workshop.path("copy.toml");
        std::fs::write(&copy, &printed).unwrap();
        assert_eq!(succeed(&[&command, &copy, &"--dry-run"]), printed);
        let sets = ["seed=7".to_string(), "optim.learning_rate=3e-4".to_string()];
        if command == "train" {
            let read: RlConfig = config::load(Some(&copy), &[]).unwrap();
            assert_eq!((read.seed, read.optim.learning_rate), (7, 3e-4));
            assert_eq!(read, config::load(Some(&repository(file)), &sets).unwrap());
        } else {
            let read: SftConfig = config::load(Some(&copy), &[]).unwrap();
            assert_eq!(read, config::load(Some(&repository(file)), &sets).unwrap());
        }
    }
}

#[test]
fn a_mistyped_setting_ends_with_2_and_the_nearest_name() {
    let error = user_error(&[&"train", &"--set", &"optim.learning_rat=1", &"--dry-run"]);
    assert!(error.contains("unknown key optim.learning_rat; did you mean learning_rate?"), "{error}");
    let error = user_error(&[&"train", &"--set", &"train.num_generations=1", &"--dry-run"]);
    assert!(error.contains("train.num_generations = 1 must be at least 2"), "{error}");
}

#[test]
fn an_unknown_device_or_a_missing_model_ends_with_2() {
    let workshop = Workshop::new();
    let (_, file) = long_run(&workshop, "run", 1);
    let error = user_error(&[&"train", &file, &"--device", &"gpu"]);
    assert!(error.contains("--device gpu: unknown device; known are cpu"), "{error}");
    assert!(!workshop.run("run").exists());
    let error = user_error(&[&"eval", &workshop.path("no-model"), &"tasks"]);
    assert!(error.contains("no-model"), "{error}");
}

#[test]
fn tasks_are_written_as_rows_that_can_be_trained_on() {
    let workshop = Workshop::new();
    let file = workshop.path("tasks.jsonl");
    succeed(&[&"tasks", &"--count", &"30", &"--output", &file]);
    let problems = load_problems(&file, &Fields::default()).unwrap();
    assert_eq!((problems.len(), load_conversations(&file).unwrap().len()), (30, 30));
    assert!(problems.iter().all(|problem| !problem.answer.is_empty() && problem.floor.is_some()));
    assert_eq!(succeed(&[&"tasks", &"--count", &"30"]), std::fs::read_to_string(&file).unwrap());
    succeed(&[&"tasks", &"--count", &"30", &"--split", &"held-out", &"--output", &file]);
    let held_out = load_problems(&file, &Fields::default()).unwrap();
    assert!(held_out.iter().all(|problem| problems.iter().all(|other| other.id != problem.id)));
}

#[test]
fn eval_grades_a_file_like_gsm8k() {
    let workshop = Workshop::new();
    let rows = [("18", "2+3"), ("1,080", "1000+80"), ("-4", "1-5"), ("0.5", "1/2")];
    let row =
        |(answer, sum)| json!({ "question": format!("Compute {sum}."), "answer": format!("It is so.\n#### {answer}") });
    let file = workshop.write_lines("questions.jsonl", rows.map(row));
    let (model, out) = (workshop.path("model"), workshop.path("out"));
    let args: [&dyn AsRef<OsStr>; 9] =
        [&"eval", &model, &file, &"--num-generations", &"2", &"--max-completion-length", &"8", &"--output", &out];
    let table = succeed(&args);
    assert!(table.contains("gsm8k"), "the rows have the shape of GSM8K: {table}");
    let summary: Value = serde_json::from_slice(&std::fs::read(out.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["overall"]["n"], 8);
    let records = read_lines(&out.join("completions.jsonl"));
    let answers: Vec<&str> = records.iter().step_by(2).filter_map(|record| record["answer"].as_str()).collect();
    assert_eq!(answers, ["18", "1080", "-4", "0.5"]);
    assert_eq!(succeed(&args), table, "the same seed gives the same table");
}

#[test]
fn generate_and_report_work_on_what_training_left() {
    let workshop = Workshop::new();
    let (config, file) = long_run(&workshop, "run", 1);
    let printed = succeed(&[&"train", &file]);
    let run = workshop.run(&config.name);
    assert!(printed.contains(&*run.join("final").to_string_lossy()), "{printed}");
    let text = || succeed(&[&"generate", &run.join("final"), &"-p", &"Compute 2+2.", &"--max-completion-length", &"8"]);
    assert_eq!(text(), text());
    let report = succeed(&[&"report", &run]);
    assert!(Path::new(report.trim()).is_file(), "{report}");
    let error = user_error(&[&"train", &file]);
    assert!(error.contains("holds a run already"), "{error}");
    succeed(&[&"train", &file, &"--overwrite"]);
}

#[test]
fn a_killed_run_resumes_and_ends_as_one_that_was_not() {
    let workshop = Workshop::new();
    let (whole, _) = long_run(&workshop, "whole", 60);
    run_rl(&whole).unwrap();
    let (_, file) = long_run(&workshop, "killed", 60);
    let run = workshop.run("killed");
    let mut background = Background::start(&[&"train", &file]);
    background.wait_until(|| run.join("checkpoint-10").exists());
    background.0.kill().unwrap();
    background.0.wait().unwrap();
    assert!(!run.join("final").exists(), "the run was over before it was killed");
    succeed(&[&"train", &file, &"--resume"]);
    assert_eq!(figures(&run), figures(&workshop.run("whole")));
    assert!(final_weights(&run) == final_weights(&workshop.run("whole")));
    let kept = (1..=60).filter(|step| run.join(format!("checkpoint-{step}")).exists()).collect::<Vec<_>>();
    assert_eq!(kept, [55, 60]);
}

#[cfg(unix)]
#[test]
fn control_c_saves_the_state_and_ends_with_130() {
    let workshop = Workshop::new();
    let (_, file) = long_run(&workshop, "run", 100_000);
    let run = workshop.run("run");
    let mut background = Background::start(&[&"train", &file, &"--set", &"train.save_steps=0"]);
    background.wait_until(|| std::fs::read_to_string(run.join("metrics.jsonl")).is_ok_and(|t| t.lines().count() > 2));
    let interrupt = Command::new("kill").args(["-INT", &background.0.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let status = background.0.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let error = std::io::read_to_string(background.0.stderr.take().unwrap()).unwrap();
    assert!(error.contains("continue with --resume"), "{error}");
    let steps = figures(&run).last().unwrap()["step"].as_u64().unwrap();
    assert!(run.join(format!("checkpoint-{steps}/trainer_state.json")).is_file());
}
