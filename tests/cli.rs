//! The command-line program: exit codes, files, interruptions.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempering::config::{self, to_toml};
use tempering::data::{Fields, load_conversations, load_problems};
use tempering::train::RlConfig;
use tempering::train::sft::SftConfig;

use crate::support::{
    Workshop, device_name, figures, final_weights, interrupt_rl, read_lines, repository, resume_rl, run_rl,
};

/// Exit code and output of a command.
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

/// Run a command that must succeed; return its standard output and standard error.
pub(crate) fn both(args: &[&dyn AsRef<OsStr>]) -> (String, String) {
    let ended = tempering(args);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    (ended.out, ended.err)
}

pub(crate) fn user_error(args: &[&dyn AsRef<OsStr>]) -> String {
    let ended = tempering(args);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    ended.err
}

/// Background process that is killed at the end of the test.
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

/// Return the settings of a run with `steps` steps and a checkpoint every five, and the path of their file.
fn long_run(workshop: &Workshop, name: &str, steps: usize) -> (RlConfig, std::path::PathBuf) {
    let mut config = workshop.rl(name);
    config.train.save_steps = 5;
    config.stages[0].exit.max_steps = steps;
    let file = workshop.path(&format!("{name}.toml"));
    std::fs::write(&file, to_toml(&config)).unwrap();
    (config, file)
}

#[test]
fn a_dry_run_prints_settings_that_resolve_to_themselves() {
    let workshop = Workshop::new();
    // The time of a step is estimated with a speed that is measured each time.
    let timeless = |text: &str| text.lines().filter(|line| !line.contains("GFLOP/s")).collect::<Vec<_>>().join("\n");
    for (command, file) in [("train", "configs/quickstart.toml"), ("sft", "configs/base.toml")] {
        let printed = succeed(&[&command, &file, &"--dry-run", &"--seed", &"7", &"--set", &"optim.learning_rate=3e-4"]);
        let copy = workshop.path("copy.toml");
        std::fs::write(&copy, &printed).unwrap();
        assert_eq!(timeless(&succeed(&[&command, &copy, &"--dry-run"])), timeless(&printed));
        assert!(
            printed.contains("\n# time: ") && printed.contains(" floating-point operations in a step"),
            "{printed}"
        );
        let sets = ["seed=7", "optim.learning_rate=3e-4", &format!("device={}", device_name())].map(str::to_string);
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
    let error = user_error(&[&"train", &"--set", &"stages.0.rewards.0.w=1", &"--dry-run"]);
    assert!(error.contains("--set stages.0.rewards.0.w=1: unknown key stages.0.rewards.0.w"), "{error}");
    let error = user_error(&[&"train", &"configs/quickstart.toml", &"--set", &"rollout.dtpe=bf16", &"--dry-run"]);
    assert!(error.contains("--set rollout.dtpe=bf16: unknown key rollout.dtpe; did you mean dtype?"), "{error}");
    let printed = succeed(&[&"train", &"configs/quickstart.toml", &"--set", &"rollout.dtype=bf16", &"--dry-run"]);
    assert!(printed.contains("engine = \"own\"\ndtype = \"bf16\""), "the engine is own where none is named: {printed}");
    let error = user_error(&[&"train", &"--set", &"train.num_generations=1", &"--dry-run"]);
    assert!(error.contains("train.num_generations = 1 must be at least 2"), "{error}");
}

#[test]
fn an_unknown_device_or_a_missing_model_ends_with_2() {
    let workshop = Workshop::new();
    let (_, file) = long_run(&workshop, "run", 1);
    let error = user_error(&[&"train", &file, &"--device", &"gpu"]);
    assert!(error.contains("--device gpu: unknown device; choose from cpu"), "{error}");
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
fn two_evaluations_of_several_data_sets_are_compared() {
    let workshop = Workshop::new();
    let model = workshop.path("model");
    let sums = workshop.path("sums.jsonl");
    let evaluate = |out: &Path, seed: &str, sums: &Path| {
        let common: [&dyn AsRef<OsStr>; 10] =
            [&"eval", &model, &sums, &"tasks", &"--num-problems", &"6", &"--difficulties", &"1", &"--output", &out];
        succeed(&[&common[..], &[&"--max-completion-length", &"8", &"-n", &"2", &"--seed", &seed]].concat())
    };
    let [a, b, other] = ["a", "b", "other"].map(|name| workshop.path(name));
    let table = evaluate(&a, "1", &sums);
    evaluate(&b, "2", &sums);
    let first: Vec<_> = read_lines(&a.join("completions.jsonl")).into_iter().take(2).collect();
    assert_eq!((&first[0]["data_source"], &first[1]["sample"]), (&json!("sums"), &json!(1)));
    assert_eq!(succeed(&[&"eval", &"--from", &a]), table, "graded again, the same comes out");

    let (page, figures) = (workshop.path("page.html"), workshop.path("figures.json"));
    let text = succeed(&[&"compare", &a, &b, &"--html", &page, &"--json", &figures]);
    assert!(text.contains("sums") && text.contains("differ in the setting seed: 1 and 2"), "{text}");
    assert!(std::fs::read_to_string(page).unwrap().contains("differ in the setting seed"));
    let figures: Value = serde_json::from_slice(&std::fs::read(figures).unwrap()).unwrap();
    assert_eq!((&figures["overall"]["problems"], &figures["unmatched"]), (&json!(12), &json!([0, 0])));

    let row = workshop.write_lines("row.jsonl", [json!({"prompt": "Compute 0+0.", "answer": "0"})]);
    succeed(&[&"eval", &model, &row, &"--max-completion-length", &"8", &"--output", &other]);
    let error = user_error(&[&"compare", &a, &b, &"--json", &a.join("completions.jsonl")]);
    assert!(
        error.contains("--json") && error.contains("completions.jsonl: is an input or another output of this command"),
        "{error}"
    );
    let error = user_error(&[&"compare", &a, &other]);
    assert!(error.contains("no problem in common (12 and 1 problems)"), "{error}");
}

#[test]
fn bad_input_to_eval_is_named() {
    let workshop = Workshop::new();
    let model = workshop.path("model");
    let sums = workshop.path("sums.jsonl");
    let eval = |data: &Path, more: &[&dyn AsRef<OsStr>]| {
        let start: [&dyn AsRef<OsStr>; 3] = [&"eval", &model, &data];
        user_error(&[&start, more].concat())
    };
    for (name, text, want) in [
        ("a.csv", "", "a.csv: unknown data format (file extension \"csv\")"),
        ("a.jsonl", r#"{"prompt": "q", "answer": {}}"#, "a.jsonl:1: answer = {}: expected a string"),
        ("a.parquet", "PAR1", "a.parquet: incomplete or damaged Parquet file"),
    ] {
        std::fs::write(workshop.path(name), text).unwrap();
        let error = eval(&workshop.path(name), &[]);
        assert!(error.contains(want), "{error}");
    }
    let error = eval(&workshop.path("none.jsonl"), &[]);
    assert!(error.contains("none.jsonl: No such file"), "{error}");
    let error = eval(&sums, &[&"--max-prompt-length", &"3"]);
    assert!(error.contains("more than max_prompt_length = 3") && error.contains("Compute 1+1."), "{error}");
    let error = eval(&sums, &[&"--max-prompt-length", &"3", &"--filter-overlong-prompts"]);
    assert!(error.contains("sums.jsonl: all prompts are longer than max_prompt_length = 3"), "{error}");
    // Saved completions are graded, so sampling options have no effect and are rejected.
    for option in [["--protocol", "paper"], ["-n", "4"], ["--seed", "3"], ["--top-p", "0.9"], ["--device", "cpu"]] {
        let error = user_error(&[&"eval", &"--from", &sums, &option[0], &option[1]]);
        assert!(error.contains("cannot be used with"), "{error}");
    }
    let out = workshop.path("out");
    std::fs::create_dir(&out).unwrap();
    let lock = std::fs::File::create(out.join("eval.lock")).unwrap();
    lock.lock().unwrap();
    let error = eval(&sums, &[&"--output", &out]);
    assert!(error.contains("out: is in use by process"), "{error}");
    std::fs::remove_file(model.join("tokenizer.json")).unwrap();
    let error = eval(&sums, &[]);
    assert!(error.contains("tokenizer.json: no such file: copy it"), "{error}");
}

/// Regression: each of these had another effect than requested, or overwrote a file.
#[test]
fn what_does_nothing_or_harm_is_refused() {
    let workshop = Workshop::new();
    let [model, sums] = ["model", "sums.jsonl"].map(|name| workshop.path(name).display().to_string());
    let (model, sums) = (model.as_str(), sums.as_str());
    let [served, urls] = ["engine=vllm", "urls=[\"http://127.0.0.1:1\"]"];
    let table: [(&[&str], &str); 21] = [
        (
            &["eval", model, sums, "--difficulties", "1"],
            "--difficulties is for the embedded tasks and has no effect on",
        ),
        (&["eval", model, "tasks", "--prompt-field", "q"], "--prompt-field is for files and has no effect on tasks"),
        (&["eval", model, "tasks", sums, "tasks"], "tasks is given twice"),
        (&["eval", model, sums, "--output", sums], "sums.jsonl: is a file, but --output must be a folder"),
        (&["tasks", "--family", "guarded", "--family", "guarded"], "--family guarded is given twice"),
        (&["tasks", "--summary", model, "--output", "x"], "cannot be used with"),
        (&["verify", "--gold", "1", "--answer", "1", "--output", "x"], "cannot be used with"),
        (&["verify", "--file", sums, "--output", sums], "sums.jsonl: is an input or another output of this command"),
        (&["tokenizer", model], "tokenizer.json: already exists"),
        (&["train", "configs/studies/quick.toml"], "quick.toml: is a study"),
        (&["doctor", "--config", "configs/studies/quick.toml"], "quick.toml: is a study"),
        (&["train", "--dry-run", "--seed", "1", "--set", "seed=2"], "--seed and --set seed=… give the same setting"),
        (&["eval", model, sums, "--temperature", "0", "--top-p", "0.9"], "--top-p has no effect at temperature 0"),
        (
            &["eval", model, sums, "--temperature", "0", "-n", "4"],
            "--num-generations above 1 has no effect at temperature 0",
        ),
        (&["generate", model, "--temperature", "0", "--seed", "3"], "--seed has no effect at temperature 0"),
        (&["generate", model, "--template-kwarg", "a=1", "--template-kwarg", "a=2"], "a is given twice"),
        (
            &["generate", model, "--rollout", served, "--rollout", urls, "--dtype", "bf16"],
            "--dtype has no effect if servers sample",
        ),
        (
            &["eval", model, sums, "--rollout", served, "--rollout", urls, "--rollout", "max_staleness=1"],
            "--rollout max_staleness is for training",
        ),
        (&["generate", model, "--stop", ""], "--stop <TEXT>"),
        (&["score", model, "--input", sums, "--tokens-per-batch", "0"], "--tokens-per-batch 0 must be positive"),
        (&["watch", "x", "--once", "--every", "1"], "cannot be used with"),
    ];
    for (args, want) in table {
        let args: Vec<&dyn AsRef<OsStr>> = args.iter().map(|arg| arg as &dyn AsRef<OsStr>).collect();
        let error = user_error(&args);
        assert!(error.contains(want), "{error}");
    }
    for (name, want) in [("", "TEMPERING_DEVICE=: unknown device"), ("gpu", "TEMPERING_DEVICE=gpu: unknown device")] {
        for args in [["train", "--dry-run"], ["generate", model]] {
            let args = args.map(|arg| arg.to_string());
            let output = command(&[&args[0], &args[1]]).env("TEMPERING_DEVICE", name).output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.code() == Some(2) && error.contains(want), "{error}");
        }
    }
}

/// Regression: the environment variable overrode the command line.
#[test]
fn a_device_that_is_set_is_not_that_of_the_environment() {
    let output = command(&[&"train", &"--dry-run", &"--set", &"device=cpu"]).env("TEMPERING_DEVICE", "gpu").output();
    let output = output.unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && printed.contains("\ndevice = \"cpu\"\n"), "{printed}");
}

/// Regression: the report was written after the table was printed, or not at all, and the error named no file.
#[cfg(target_os = "linux")]
#[test]
fn a_full_output_costs_no_report_and_is_named() {
    let workshop = Workshop::new();
    let (config, file) = long_run(&workshop, "run", 1);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(&[&"train", &file]).stdout(full).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("standard output: No space left"), "{error}");
    assert!(workshop.run(&config.name).join("report.html").is_file());
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
    assert!(error.contains("already contains a run"), "{error}");
    let [model, sums, own] = [&workshop.path("model"), &workshop.path("sums.jsonl"), &run.join("config.toml")];
    let below = run.join("completions");
    let refused: [(&[&dyn AsRef<OsStr>], String); 6] = [
        (&[&"generate", &run], format!("give the path of its model, {}", run.join("final").display())),
        (&[&"merge", &run, &"--output", &"x"], format!("give the path of its model, {}", run.join("final").display())),
        (&[&"eval", model, sums, &"--output", &run], "is the folder of a run: choose another --output".to_string()),
        (&[&"sft", &"--resume", &run], "was started by `tempering train`, not by `tempering sft`".to_string()),
        (
            &[&"train", &"--resume", &below],
            format!("is inside the folder of a run: continue the run with --resume {}", run.display()),
        ),
        (&[&"train", &"--resume", &run], "its config.toml is missing".to_string()),
    ];
    // Regression: the name was ignored, and a link was looked for under the name of its target.
    let error = user_error(&[&"train", &"--resume", &run, &"--set", &"name=other"]);
    assert!(error.contains("--set name=other: a resumed run stays in its folder"), "{error}");
    #[cfg(unix)]
    {
        let link = workshop.path("link");
        std::os::unix::fs::symlink(&run, &link).unwrap();
        succeed(&[&"train", &"--resume", &link]);
    }
    std::fs::remove_file(own).unwrap();
    for (args, want) in refused {
        let error = user_error(args);
        assert!(error.contains(&want), "{error}");
    }
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
    let error = user_error(&[&"train", &"--resume", &run, &"--set", &"seed=9"]);
    assert!(error.contains("seed = 9 (was 0)"), "{error}");
    succeed(&[&"train", &"--resume", &run]);
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
    let mut background =
        Background::start(&[&"train", &file, &"--set", &"train.save_steps=0", &"--set", &"train.eval_steps=0"]);
    background.wait_until(|| std::fs::read_to_string(run.join("metrics.jsonl")).is_ok_and(|t| t.lines().count() > 2));
    let interrupt = Command::new("kill").args(["-INT", &background.0.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let status = background.0.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let error = std::io::read_to_string(background.0.stderr.take().unwrap()).unwrap();
    let way_on = format!("continue with --resume {}", run.display());
    assert!(error.contains("stopping: ") && error.contains(&way_on), "{error}");
    let steps = figures(&run).last().unwrap()["step"].as_u64().unwrap();
    assert!(run.join(format!("checkpoint-{steps}/trainer_state.json")).is_file());
}

/// `println!` panics when a reader such as `head` closes the pipe.
#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let workshop = Workshop::new();
    let texts = workshop.path("texts.jsonl");
    let rows = "{\"text\": \"2+3\", \"messages\": null}\n".repeat(2000);
    std::fs::write(&texts, format!("\u{feff}{rows}")).unwrap();
    let score = ["score", "assets/base", "--input", texts.to_str().unwrap()];
    for args in [&["tasks", "--count", "3000"][..], &["train", "--dry-run"], &score] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tempering"));
        child.args(args).current_dir(repository("")).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        let error = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), error.contains("panicked")), (Some(0), false), "{args:?}: {error}");
    }
}

/// A limit on file sizes simulates a full disk: both make a write fail part-way.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_while_saving_costs_the_checkpoint_being_saved_and_no_more() {
    let workshop = Workshop::new();
    let [mut whole, mut config] = ["whole", "full"].map(|name| workshop.rl(name));
    // Conflict metrics alone would reach the limit.
    (whole.train.conflict_steps, config.train.conflict_steps) = (0, 0);
    run_rl(&whole).unwrap();
    let (file, run) = (workshop.path("full.toml"), workshop.run("full"));
    std::fs::write(&file, to_toml(&config)).unwrap();
    interrupt_rl(&config, 2).unwrap_err();
    let mut shell = Command::new("sh");
    let limited = "trap '' XFSZ; ulimit -f 40; exec \"$@\"";
    shell.args(["-c", limited, "sh", env!("CARGO_BIN_EXE_tempering"), "train", "--resume"]).arg(&file);
    let output = shell.env("TEMPERING_DEVICE", device_name()).current_dir(repository("")).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("checkpoint-6.partial"), "{error}");
    let entries = std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(entries.filter(|name| name.starts_with("checkpoint")).collect::<Vec<_>>(), ["checkpoint-2"]);
    resume_rl(&config).unwrap();
    assert_eq!(figures(&run), figures(&workshop.run("whole")));
    assert!(final_weights(&run) == final_weights(&workshop.run("whole")));
}

#[test]
fn doctor_compares_the_device_and_says_whether_a_run_fits() {
    let config = repository("configs/quickstart.toml");
    let printed = succeed(&[&"doctor", &"--device", &"cpu", &"--config", &config, &"--json"]);
    let examination: Value = serde_json::from_str(&printed).unwrap();
    let checks = examination["checks"].as_array().unwrap();
    let wrong =
        |check: &&Value| check["error"].as_f64().is_none_or(|error| error > check["tolerance"].as_f64().unwrap());
    assert!(!checks.is_empty() && checks.iter().filter(wrong).count() == 0, "{printed}");
    assert!(examination["fit"].as_str().unwrap().starts_with("it fits"), "{printed}");
    assert!(examination["speed"]["sampled_tokens_per_s"].as_f64().unwrap() > 0.0);
}
