//! Live output of a run: TensorBoard event files, and a program that receives the metrics.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};
use tempering::config::{Settings, load};
use tempering::metrics::follow::{LogConfig, SAID, TENSORBOARD, Tracker};
use tempering::train::RlConfig;

use crate::support::{Workshop, interrupt_rl, read_lines, resume_rl, run_rl};

fn command(words: &[&str]) -> LogConfig {
    LogConfig { command: words.iter().map(ToString::to_string).collect(), ..LogConfig::default() }
}

/// The program receives every line of `metrics.jsonl`, in both halves of an interrupted run, under the same run id.
#[test]
fn a_program_is_fed_every_line() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("run");
    let script = "echo \"$TEMPERING_RUN_ID\"; sleep 0.2; cat >> \"$TEMPERING_RUN/seen.jsonl\"";
    config.log = command(&["sh", "-c", script]);
    interrupt_rl(&config, 3).unwrap_err();
    resume_rl(&config).unwrap();
    let run = workshop.run("run");
    assert_eq!(fs::read(run.join("seen.jsonl")).unwrap(), fs::read(run.join("metrics.jsonl")).unwrap());
    let said = fs::read_to_string(run.join(SAID)).unwrap();
    let ids: Vec<&str> = said.lines().collect();
    assert!(ids.len() == 2 && ids[0] == ids[1] && !ids[0].is_empty(), "{said}");
}

/// Training continues if the program ends, and does not start if the program does not exist.
#[test]
fn a_program_that_fails_costs_no_step() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("run");
    config.log = command(&["sh", "-c", "echo no such project >&2; exit 3"]);
    run_rl(&config).unwrap();
    let run = workshop.run("run");
    assert_eq!(read_lines(&run.join("metrics.jsonl")).len(), 8);
    assert_eq!(fs::read_to_string(run.join(SAID)).unwrap(), "no such project\n");
    config.name = "none".to_string();
    config.log = command(&["no-such-program"]);
    let error = run_rl(&config).unwrap_err().to_string();
    assert!(error.contains("log.command = [\"no-such-program\"] cannot be started"), "{error}");
    // Regression: such a program was written to the settings of a resumed run, and had to be removed there.
    let settings = fs::read(run.join("config.toml")).unwrap();
    config.name = "run".to_string();
    resume_rl(&config).unwrap_err();
    assert!(fs::read(run.join("config.toml")).unwrap() == settings);
    config.log = command(&[""]);
    assert!(config.validate()[0].contains("log.command"), "{:?}", config.validate());
    for (name, wanted) in [("wandb", "examples/log_wandb.py"), ("tensorbord", "supported: tensorboard")] {
        let error = load::<RlConfig>(None, &[format!("log.report_to=[\"{name}\"]")]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

/// Return the records of an event file. Unit tests of the writer check the checksums.
fn records(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        found.push(bytes[at + 12..at + 12 + length].to_vec());
        at += length + 16;
    }
    assert_eq!(at, bytes.len());
    found
}

/// Return whether a record contains a scalar: the end of its tag and the field `simple_value`.
fn has_scalar(record: &[u8], tag: &str, value: f32) -> bool {
    let wanted = [tag.as_bytes(), &[0x15], &value.to_le_bytes()].concat();
    record.windows(wanted.len()).any(|window| window == wanted)
}

#[test]
fn event_files_have_every_number_and_texts_and_histograms() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("run");
    config.log.report_to = vec![Tracker::Tensorboard];
    interrupt_rl(&config, 3).unwrap_err();
    resume_rl(&config).unwrap();
    let run = workshop.run("run");
    let mut paths: Vec<_> = fs::read_dir(run.join(TENSORBOARD)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert_eq!(paths.len(), 2, "one for each start: {paths:?}");
    let second = records(&paths[1]);
    // A session from step 4 on replaces later steps of earlier files: `step` 4, then `session_log` with `status` 1.
    assert!(second[1].ends_with(&[0x10, 4, 0x3a, 2, 8, 1]), "{:?}", second[1]);
    let all = [records(&paths[0]), second].concat();
    let lines: Vec<Map<String, Value>> = read_lines(&run.join("metrics.jsonl"));
    assert_eq!(lines.len(), 8);
    for line in &lines {
        let numbers = line.iter().filter(|(name, _)| *name != "step");
        let numbers: Vec<(&String, f32)> =
            numbers.filter_map(|(name, value)| Some((name, value.as_f64()? as f32))).collect();
        assert!(all.iter().any(|record| numbers.iter().all(|(name, value)| has_scalar(record, name, *value))));
    }
    for (text, count) in
        [("train/loss", 6), ("eval/accuracy", 4), ("train/completions/text", 4), ("train/entropy/tokens", 6)]
    {
        let found = all.iter().filter(|record| record.windows(text.len()).any(|window| window == text.as_bytes()));
        assert!(found.count() >= count, "{text}");
    }
}
