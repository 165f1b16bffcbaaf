//! Runs on several processes: the same numbers as on one, and termination of all ranks when one is lost.
//!
//! Needs `mpirun` and a binary with the feature `mpi`. Without them these tests print a message and are skipped.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempering::config::to_toml;
use tempering::rollout::settings::{RolloutConfig, ServedConfig};
use tempering::train::RlConfig;

use crate::engine::fake::{Fake, Kind, Setup};
use crate::support::{Workshop, column, device_name, figures, final_weights, repository};

/// Return the reason why ranks are not available, if they are not.
fn missing() -> Option<&'static str> {
    let mpirun = || Command::new("mpirun").arg("--version").output().is_ok_and(|output| output.status.success());
    let why = match () {
        () if !cfg!(feature = "mpi") => "built without --features mpi",
        () if device_name() != "cpu" => "ranks share the device under test only where that is the CPU",
        () if !mpirun() => "there is no mpirun",
        () => return None,
    };
    eprintln!("SKIPPED, nothing on several ranks is tested: {why}");
    Some(why)
}

/// Return the command that runs the program with `ranks` ranks under `mpirun`.
fn mpirun(ranks: usize, args: &[&dyn AsRef<OsStr>]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-n", &ranks.to_string()]);
    command.arg(env!("CARGO_BIN_EXE_tempering")).args(args.iter().map(|arg| arg.as_ref()));
    command.env("TEMPERING_DEVICE", device_name()).env("RAYON_NUM_THREADS", "1").current_dir(repository(""));
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Run `train` with the arguments `args` on `ranks` ranks; return its output.
#[track_caller]
fn train(ranks: usize, args: &[&dyn AsRef<OsStr>]) -> String {
    let output = mpirun(ranks, &[&[&"train" as &dyn AsRef<OsStr>], args].concat()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

fn write(workshop: &Workshop, config: &RlConfig) -> std::path::PathBuf {
    let file = workshop.path(&format!("{}.toml", config.name));
    std::fs::write(&file, to_toml(config)).unwrap();
    file
}

/// Return the settings of three steps with two updates each, over few problems.
fn short(workshop: &Workshop, name: &str) -> RlConfig {
    let mut config = workshop.rl(name);
    config.stages[0].exit.max_steps = 3;
    config.stages[0].loss.steps_per_generation = 2;
    config.train.save_steps = 2;
    config
}

/// Return the concatenated f32 weights of a safetensors file.
fn numbers(file: &[u8]) -> Vec<f32> {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    file[8 + header..].as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Return the relative difference `‖a − b‖ / ‖b‖`.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    (a.iter().zip(b).map(|(a, b)| square(a - b)).sum::<f64>() / b.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

#[test]
fn one_two_and_four_ranks_learn_what_one_process_learns() {
    if missing().is_some() {
        return;
    }
    let workshop = Workshop::new();
    let run = |ranks: usize, name: &str| {
        train(ranks, &[&write(&workshop, &short(&workshop, name))]);
        let run = workshop.run(name);
        (column(&figures(&run), "loss"), column(&figures(&run), "eval/accuracy"), final_weights(&run))
    };
    let alone = run(1, "one");
    assert!(alone.0.len() == 3 && alone.0.iter().any(|loss| *loss != 0.0), "{:?}", alone.0);
    let two = run(2, "two");
    for (losses, accuracies, weights) in [&two, &run(4, "four")] {
        assert_eq!(accuracies, &alone.1);
        // Absolute tolerance: a loss is the mean of terms of magnitude 1 (the advantages) that cancel.
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6;
        assert!(losses.len() == 3 && losses.iter().zip(&alone.0).all(near), "{losses:?} {:?}", alone.0);
        let apart = difference(&numbers(weights), &numbers(&alone.2));
        assert!(apart < 1e-6, "weights {apart}");
    }
    // With the same number of ranks, results are bitwise reproducible.
    assert!(run(2, "again") == two);
}

/// Tests adapters, a reference model, and the old log-probabilities of later iterations.
#[test]
fn adapters_and_a_reference_model_are_on_all_ranks() {
    if missing().is_some() {
        return;
    }
    let workshop = Workshop::new();
    for lora in [false, true] {
        let run = |ranks: usize| {
            let mut config = short(&workshop, &format!("{ranks}{lora}"));
            config.stages[0].loss.kl = Some(tempering::stage::Kl::default());
            config.stages[0].loss.num_iterations = 2;
            config.lora = lora.then(|| tempering::model::LoraConfig { r: 4, ..Default::default() });
            train(ranks, &[&write(&workshop, &config)]);
            let run = workshop.run(&config.name);
            (column(&figures(&run), "kl"), final_weights(&run))
        };
        let (alone, two) = (run(1), run(2));
        assert!(alone.0.iter().any(|kl| *kl != 0.0), "{:?}", alone.0);
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * b.abs().max(1e-4);
        assert!(alone.0.iter().zip(&two.0).all(near), "{:?} {:?}", alone.0, two.0);
        let apart = difference(&numbers(&two.1), &numbers(&alone.1));
        assert!(apart < 1e-6, "weights {apart}");
    }
}

#[test]
fn a_run_on_two_ranks_that_is_resumed_ends_as_one_that_was_not_interrupted() {
    if missing().is_some() {
        return;
    }
    let workshop = Workshop::new();
    train(2, &[&write(&workshop, &short(&workshop, "whole"))]);
    let halves = write(&workshop, &short(&workshop, "halves"));
    train(2, &[&halves, &"--set", &"stages.0.exit.max_steps=2"]);
    let said = train(2, &[&"--resume", &workshop.run("halves"), &"--set", &"stages.0.exit.max_steps=3"]);
    assert!(said.contains("resumed after step 2"), "{said}");
    assert!(final_weights(&workshop.run("halves")) == final_weights(&workshop.run("whole")));
}

#[test]
fn mistakes_are_said_once_and_the_ranks_that_differ_are_named() {
    if missing().is_some() {
        return;
    }
    let workshop = Workshop::new();
    let file = write(&workshop, &short(&workshop, "differ"));
    let mut command = mpirun(1, &[&"train", &file]);
    command.args([":", "-n", "1", env!("CARGO_BIN_EXE_tempering"), "train"]).arg(&file).args(["--seed", "7"]);
    let output = command.output().unwrap();
    let error = said(&output);
    assert!(
        output.status.code() == Some(2) && error.contains("rank 1 has --seed 7, but rank 0 has no such argument"),
        "{error}"
    );
    assert!(!workshop.run("differ").exists());
    let output = mpirun(2, &[&"train", &"--set", &"optim.learning_rat=1"]).output().unwrap();
    let error = said(&output);
    assert!(output.status.code() == Some(2) && error.matches("unknown key").count() == 1, "{error}");
    let output = mpirun(2, &[&"tasks"]).output().unwrap();
    assert!(said(&output).contains("start this command without mpirun"), "{}", said(&output));
}

/// Servers sample for rank 0, which distributes what is learned over all ranks; each rank needs the log-probabilities of
/// the servers for the correction.
#[test]
fn two_ranks_on_a_server_learn_what_one_process_learns_from_it() {
    if missing().is_some() {
        return;
    }
    let workshop = Workshop::new();
    for max_staleness in [0, 1] {
        let run = |ranks: usize| {
            // Its weights change with the run.
            let server = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
            let mut config = short(&workshop, &format!("served{ranks}{max_staleness}"));
            let served = ServedConfig { urls: vec![server.url()], max_staleness, ..ServedConfig::default() };
            config.rollout = RolloutConfig::Vllm(served);
            let said = train(ranks, &[&write(&workshop, &config)]);
            assert_eq!(said.matches("training is divided among the ranks").count(), usize::from(ranks > 1), "{said}");
            let run = workshop.run(&config.name);
            let requests = server.seen("/v1/completions").len();
            (
                column(&figures(&run), "loss"),
                column(&figures(&run), "rollout/staleness_max"),
                requests,
                final_weights(&run),
            )
        };
        let (alone, two) = (run(1), run(2));
        assert!(alone.0.len() == 3 && alone.0.iter().any(|loss| *loss != 0.0), "{:?}", alone.0);
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-6;
        assert!(two.0.len() == 3 && two.0.iter().zip(&alone.0).all(near), "{:?} {:?}", two.0, alone.0);
        assert_eq!(alone.1.last(), Some(&(max_staleness as f64)));
        assert_eq!(two.1, alone.1);
        // A rank that asked for its own completions would send more of them.
        assert_eq!(two.2, alone.2);
        let apart = difference(&numbers(&two.3), &numbers(&alone.3));
        assert!(apart < 1e-6, "weights {apart}");
    }
}

#[test]
fn ranks_that_wait_for_others_are_told_and_ranks_without_work_are_refused() {
    if missing().is_some() {
        return;
    }
    let workshop = Workshop::new();
    let mut config = short(&workshop, "uneven");
    (config.train.prompts_per_step, config.train.num_generations) = (1, 4);
    let file = write(&workshop, &config);
    let said = train(2, &[&file]);
    assert_eq!(said.matches("to a multiple of 2").count(), 1, "{said}");
    let many = write(&workshop, &RlConfig { name: "many".to_string(), ..config });
    let output = mpirun(5, &[&"train", &many]).output().unwrap();
    let error = self::said(&output);
    assert!(output.status.code() == Some(2) && error.contains("5 ranks for the 4 completions"), "{error}");
    assert!(!workshop.run("many").exists());
}

#[test]
fn a_model_of_growth_has_servers_in_the_place_of_sampling() {
    let bench = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tempering"));
        command.args(["bench", "scale", "--prompts", "2", "--group", "2", "--tokens", "8", "--hidden", "32"]);
        command.args(["--layers", "1", "--steps", "1", "--device", "cpu"]).args(args).output().unwrap()
    };
    let output = bench(&["--servers", "2", "--tokens-per-s", "100", "--sync-gb-per-s", "1e-3", "--gb-per-s", "1"]);
    assert!(output.status.success(), "{}", said(&output));
    let times: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(times["measured"]["sampling_s"].is_null() && times["measured"]["score_s"].as_f64() > Some(0.0), "{times}");
    let steps = times["modelled"].as_array().unwrap();
    assert_eq!(steps.iter().map(|step| step["ranks"].as_u64().unwrap()).max(), Some(64));
    let sync = 3e-6 * times["all_reduce_bytes"].as_f64().unwrap() + 1.0;
    for step in steps {
        assert!((step["sampling_s"].as_f64().unwrap() - 0.16).abs() < 1e-9, "{step}");
        assert!((step["sync_s"].as_f64().unwrap() - sync).abs() < 1e-9, "{step}");
        assert!(step["overlapped_step_s"].as_f64() < step["step_s"].as_f64(), "{step}");
    }
    for (args, told) in [
        (&["--tokens-per-s", "100"][..], "--servers"),
        (&["--servers", "2"], "--tokens-per-s"),
        (&["--servers", "0", "--tokens-per-s", "100"], "--servers must be a positive number"),
    ] {
        let output = bench(args);
        assert!(output.status.code() == Some(2) && said(&output).contains(told), "{args:?}: {}", said(&output));
    }
}

/// Return the process id of a rank among the descendants of `mpirun`.
#[cfg(target_os = "linux")]
fn process(rank: usize, file: &Path) -> Option<u32> {
    let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
    let has = |path: std::path::PathBuf, text: &str| {
        let bytes = std::fs::read(path).unwrap_or_default();
        bytes.split(|byte| *byte == 0).any(|part| part == text.as_bytes())
    };
    let processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let is = |id: &u32| {
        let folder = Path::new("/proc").join(id.to_string());
        has(folder.join("environ"), &wanted) && has(folder.join("cmdline"), file.to_str().unwrap())
    };
    processes.filter_map(|name| name.parse().ok()).find(is)
}

/// `mpirun` process that is killed at the end of the test.
struct Ranks(Child);

impl Drop for Ranks {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_rank_that_is_killed_ends_all_and_the_run_can_be_resumed() {
    if missing().is_some() {
        return;
    }
    let workshop = Workshop::new();
    for rank in [1, 0] {
        let mut config = short(&workshop, &format!("lost{rank}"));
        config.stages[0].exit.max_steps = 2000;
        let (file, run) = (write(&workshop, &config), workshop.run(&config.name));
        let mut command = mpirun(2, &[&"train", &file]);
        let mut ranks = Ranks(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        let start = Instant::now();
        while !run.join("checkpoint-4").is_dir() {
            assert!(ranks.0.try_wait().unwrap().is_none(), "ended too early");
            assert!(start.elapsed() < Duration::from_secs(120), "waited in vain");
            std::thread::sleep(Duration::from_millis(5));
        }
        let victim = process(rank, &file).unwrap();
        assert!(Command::new("kill").args(["-9", &victim.to_string()]).status().unwrap().success());
        let start = Instant::now();
        let status = loop {
            if let Some(status) = ranks.0.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the other rank goes on");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut error = String::new();
        std::io::Read::read_to_string(&mut ranks.0.stderr.take().unwrap(), &mut error).unwrap();
        assert!(!status.success() && error.contains(&format!("rank {rank}")), "{status}: {error}");
        assert!(process(1 - rank, &file).is_none(), "rank {} is left", 1 - rank);
        let done = column(&figures(&run), "step").last().copied().unwrap() as usize;
        train(2, &[&"--resume", &run, &"--set", &format!("stages.0.exit.max_steps={}", done + 1)]);
    }
}

/// Otherwise the processes would overwrite each other's files in the run's directory.
#[test]
fn a_program_that_cannot_join_the_others_says_what_to_build() {
    if cfg!(feature = "mpi") {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_tempering"));
    for (key, value) in [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_LOCALID", "0")] {
        command.env(key, value);
    }
    let output = command.arg("train").output().unwrap();
    assert!(output.status.code() == Some(2) && said(&output).contains("--features mpi"), "{}", said(&output));
}
