//! Run directories: overwriting, resuming and extending runs, and their settings.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempering::Error;
use tempering::config::{Settings, load, to_toml};
use tempering::tasks::TaskFamily;
use tempering::train::RlConfig;
use tempering::train::Start;

use crate::support::{
    StopAt, Workshop, figures, final_weights, interrupt_rl, read_lines, resume_rl, run_rl, run_sft, session_rl,
    session_sft,
};

/// Return the settings of a run of two steps.
fn short(workshop: &Workshop, name: &str) -> RlConfig {
    let mut config = workshop.rl(name);
    config.stages[0].exit.max_steps = 2;
    config
}

/// Return the names of the entries of a folder.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// Assert that two runs are equal except for their timings.
#[track_caller]
fn assert_same(workshop: &Workshop, one: &str, other: &str) {
    assert_eq!(figures(&workshop.run(one)), figures(&workshop.run(other)));
    assert!(final_weights(&workshop.run(one)) == final_weights(&workshop.run(other)));
}

fn overwrite(config: &RlConfig, at: StopAt) -> String {
    session_rl(config, Start::Overwrite, at).0.unwrap_err().to_string()
}

#[test]
fn a_run_in_use_is_kept_unless_asked_otherwise() {
    let workshop = Workshop::new();
    let config = short(&workshop, "run");
    let error = resume_rl(&config).unwrap_err().to_string();
    assert!(error.contains("nothing to resume"), "{error}");
    run_rl(&config).unwrap();
    let before = figures(&workshop.run("run"));
    let error = run_rl(&config).unwrap_err().to_string();
    assert!(error.contains("already contains a run") && error.contains("--resume"), "{error}");
    assert_eq!(figures(&workshop.run("run")), before);
    for name in ["", "..", "a/b", "/tmp/x"] {
        let bad = RlConfig { name: name.to_string(), ..config.clone() };
        assert!(bad.validate()[0].contains("must be the name of a folder"), "{:?}", bad.validate());
        assert!(run_rl(&bad).is_err());
    }
}

/// Regression: the old run was deleted before the new run's data, model and device had been checked.
#[test]
fn overwriting_replaces_a_run_once_the_new_one_has_done_a_step() {
    let workshop = Workshop::new();
    let config = short(&workshop, "run");
    run_rl(&config).unwrap();
    let id = || fs::read_to_string(workshop.run("run/run.json")).unwrap();
    let first = id();
    let mut typo = config.clone();
    typo.data.train = workshop.path("typo.jsonl");
    assert!(overwrite(&typo, StopAt::Never).contains("typo.jsonl"));
    typo = RlConfig { device: "gpu".to_string(), ..config.clone() };
    assert!(overwrite(&typo, StopAt::Never).contains("unknown device"));
    for at in [StopAt::Evaluation(1), StopAt::FirstStep] {
        assert!(overwrite(&config, at).contains("before the first step"));
    }
    assert_eq!((id(), names(&workshop.path("runs"))), (first.clone(), vec!["run".to_string()]));
    // State after a kill between moving the old run aside and the first step of the new run.
    let aside = format!("run.old-{}", &read_id(&workshop.run("run"))[..8]);
    for with_new in [false, true] {
        fs::rename(workshop.run("run"), workshop.run(&aside)).unwrap();
        if with_new {
            fs::create_dir(workshop.run("run")).unwrap();
            fs::write(workshop.run("run/run.lock"), "").unwrap();
        }
        let (error, notes) = session_rl(&config, Start::New, StopAt::Never);
        assert!(
            error.unwrap_err().to_string().contains("already contains a run") && notes.contains("was restored"),
            "{notes}"
        );
        assert_eq!((id(), names(&workshop.path("runs"))), (first.clone(), vec!["run".to_string()]));
    }
    session_rl(&config, Start::Overwrite, StopAt::Never).0.unwrap();
    assert!(id() != first && names(&workshop.path("runs")) == ["run"]);
}

fn read_id(run: &Path) -> String {
    let origin: Value = serde_json::from_slice(&fs::read(run.join("run.json")).unwrap()).unwrap();
    origin["id"].as_str().unwrap().to_string()
}

/// Regression: overwriting deleted other folders: a thesis, the folder of all runs, the model itself.
#[test]
fn only_runs_are_replaced_and_not_what_the_run_reads() {
    let workshop = Workshop::new();
    let thesis = workshop.run("thesis");
    fs::create_dir_all(&thesis).unwrap();
    fs::write(thesis.join("chapter.tex"), "words").unwrap();
    let error = overwrite(&short(&workshop, "thesis"), StopAt::Never);
    assert!(error.contains("is not a run"), "{error}");
    assert!(run_rl(&short(&workshop, "thesis")).unwrap_err().to_string().contains("is not a run"));
    assert_eq!(names(&thesis), ["chapter.tex"]);
    let model = RlConfig { output_dir: workshop.path(""), ..short(&workshop, "model") };
    assert!(overwrite(&model, StopAt::Never).contains("is not a run"));

    let mut config = short(&workshop, "run");
    run_rl(&config).unwrap();
    config.model.path = workshop.run("run/final");
    let error = overwrite(&config, StopAt::Never);
    assert!(error.contains("model.path") && error.contains("would remove files that the run reads"), "{error}");
    assert!(
        workshop.run("run/final/model.safetensors").is_file() && names(&workshop.path("runs")) == ["run", "thesis"]
    );
}

/// Regression: a new run in a folder with old checkpoints pruned its own checkpoints and was resumed from the old ones.
#[test]
fn checkpoints_belong_to_one_run() {
    let workshop = Workshop::new();
    let mut config = short(&workshop, "old");
    config.train.save_steps = 1;
    run_rl(&config).unwrap();
    copy(&workshop.run("old"), &workshop.run("new"));
    fs::remove_file(workshop.run("new/metrics.jsonl")).unwrap();
    let new = RlConfig { seed: 7, name: "new".to_string(), ..config };
    assert!(run_rl(&new).unwrap_err().to_string().contains("already contains a run"));

    fs::remove_dir_all(workshop.run("new")).unwrap();
    interrupt_rl(&new, 1).unwrap_err();
    copy(&workshop.run("old/checkpoint-2"), &workshop.run("new/checkpoint-2"));
    let error = resume_rl(&new).unwrap_err().to_string();
    assert!(error.contains("checkpoints of another run") && error.contains("new/checkpoint-2"), "{error}");
    assert!(workshop.run("new/checkpoint-1").is_dir() && workshop.run("new/checkpoint-2").is_dir());
}

/// Regression: each of these changes was accepted silently, and the resumed run was a different one.
#[test]
fn a_resumed_run_keeps_its_settings_its_data_and_its_model() {
    let workshop = Workshop::new();
    let config = workshop.rl("run");
    run_rl(&RlConfig { name: "whole".to_string(), ..config.clone() }).unwrap();
    interrupt_rl(&config, 2).unwrap_err();
    let refused = |config: &RlConfig| resume_rl(config).unwrap_err().to_string();
    let mut other = RlConfig { seed: 3, ..config.clone() };
    other.optim.learning_rate = 0.5;
    other.stages.push(other.stages[0].clone());
    let error = refused(&other);
    for line in ["seed = 3 (was 0)", "optim.learning_rate = 0.5 (was 0.001)", "stages.1.name", "--resume"] {
        assert!(error.contains(line), "{line}: {error}");
    }
    for file in ["sums.jsonl", "model/config.json", "model/model.safetensors", "model/tokenizer_config.json"] {
        let bytes = fs::read(workshop.path(file)).unwrap();
        let other = if file.ends_with("json") { [b" ", &bytes[..]].concat() } else { changed(&bytes) };
        fs::write(workshop.path(file), other).unwrap();
        let error = refused(&config);
        let name = Path::new(file).file_name().unwrap().to_str().unwrap();
        assert!(error.contains(name) && error.contains("has changed since"), "{file}: {error}");
        fs::write(workshop.path(file), bytes).unwrap();
    }
    // Editing the stored settings to match does not help either.
    let beside = workshop.run("run/config.toml");
    let text = fs::read_to_string(&beside).unwrap();
    fs::write(&beside, text.replace("\nseed = 0", "\nseed = 7")).unwrap();
    let error = refused(&RlConfig { seed: 7, ..config.clone() });
    assert!(error.contains("seed = 7 (was 0)"), "{error}");
    let mut allowed = config.clone();
    (allowed.train.save_steps, allowed.train.tokens_per_microbatch, allowed.train.generation_rows) = (3, 256, 3);
    let (ended, notes) = session_rl(&allowed, Start::Resume, StopAt::Never);
    ended.unwrap();
    for line in ["resumed after step 2", "changed: train.save_steps = 3 (was 0)", "train.generation_rows = 3 (was 256)"]
    {
        assert!(notes.contains(line), "{line}: {notes}");
    }
    let [run, whole] = ["run", "whole"].map(|name| read_lines(&workshop.run(name).join("metrics.jsonl")));
    assert_eq!(run.len(), whole.len());
}

/// Return a changed copy of a file: a JSONL file gets its first row again, another file a different last byte.
fn changed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.starts_with(b"{\"") && bytes.ends_with(b"\n") {
        let row = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        bytes.extend_from_within(..row);
    } else if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    bytes
}

#[test]
fn a_finished_run_says_that_nothing_is_left_and_is_extended_to_what_a_longer_one_would_be() {
    let workshop = Workshop::new();
    run_rl(&workshop.rl("whole")).unwrap();
    let mut config = workshop.rl("run");
    config.stages[0].exit.max_steps = 3;
    run_rl(&config).unwrap();
    let before = (figures(&workshop.run("run")), final_weights(&workshop.run("run")));
    let (ended, notes) = session_rl(&config, Start::Resume, StopAt::Never);
    assert!(notes.contains("finished after step 3, nothing to do; raise max_steps"), "{notes}");
    assert_eq!(ended.unwrap().summary["steps"], 3);
    assert!((figures(&workshop.run("run")), final_weights(&workshop.run("run"))) == before);

    config.stages[0].exit.max_steps = 6;
    let (ended, notes) = session_rl(&config, Start::Resume, StopAt::Never);
    assert!(notes.contains("finished after step 3; it is extended to at most 6 steps"), "{notes}");
    let summary = ended.unwrap().summary;
    assert_eq!((summary["stages"].as_array().unwrap().len(), &summary["stages"][0]["last_step"]), (1, &6.into()));
    // Step 3 was the last of the short run, so its evaluation is the final one, not a periodic one.
    assert_same(&workshop, "run", "whole");
}

#[test]
fn fine_tuning_is_extended_too() {
    let workshop = Workshop::new();
    let config = |name: &str, steps| {
        let mut config = workshop.sft(name);
        config.train.max_steps = steps;
        config
    };
    run_sft(&config("whole", 4)).unwrap();
    run_sft(&config("run", 2)).unwrap();
    let (ended, notes) = session_sft(&config("run", 2), Start::Resume, StopAt::Never);
    assert!(ended.unwrap().ends_with("run/final") && notes.contains("nothing to do"), "{notes}");
    session_sft(&config("run", 4), Start::Resume, StopAt::Never).0.unwrap();
    assert_same(&workshop, "run", "whole");
    let error = resume_rl(&workshop.rl("run")).unwrap_err().to_string();
    assert!(error.contains("was started by `tempering sft`"), "{error}");
}

/// Regression: two processes wrote to the same `metrics.jsonl`.
#[test]
fn a_folder_in_use_is_refused_with_the_process() {
    let workshop = Workshop::new();
    let config = workshop.rl("run");
    interrupt_rl(&config, 1).unwrap_err();
    let lock = fs::File::options().write(true).open(workshop.run("run/run.lock")).unwrap();
    lock.lock().unwrap();
    for start in [Start::Resume, Start::Overwrite] {
        let error = session_rl(&config, start, StopAt::Never).0.unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
    }
    drop(lock);
    resume_rl(&config).unwrap();
}

#[test]
fn what_a_killed_process_left_half_done_is_cleared_away() {
    let workshop = Workshop::new();
    run_rl(&workshop.rl("whole")).unwrap();
    let halves = workshop.rl("halves");
    interrupt_rl(&halves, 2).unwrap_err();
    for name in ["checkpoint-4.partial", "checkpoint-1.removed", "final.partial"] {
        let dir = workshop.run("halves").join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("trainer_state.json"), "{\"cut").unwrap();
    }
    let (ended, notes) = session_rl(&halves, Start::Resume, StopAt::Never);
    ended.unwrap();
    assert!(notes.contains("checkpoint-1.removed: removed, because a killed process left it incomplete"), "{notes}");
    assert_same(&workshop, "halves", "whole");
    let mut left = names(&workshop.run("halves"));
    left.retain(|name| name != "checkpoint-2"); // where it was interrupted
    assert_eq!(left, names(&workshop.run("whole")));
}

/// Regression: a stop request was handled between steps only, although an evaluation can take hours.
#[test]
fn an_early_end_in_an_evaluation_or_within_a_step_changes_nothing() {
    let workshop = Workshop::new();
    run_rl(&workshop.rl("whole")).unwrap();
    let config = workshop.rl("run");
    // Nothing is saved yet during the first evaluation: the same command starts from scratch.
    let ended = session_rl(&config, Start::New, StopAt::Evaluation(1)).0;
    assert!(matches!(ended, Err(Error::Stopped)), "{ended:?}");
    let stops = [
        (Start::New, StopAt::Evaluation(2), 2),
        // The first evaluation of this session is that of step 2.
        (Start::Resume, StopAt::Evaluation(1), 2),
        (Start::Resume, StopAt::FirstStep, 2),
        (Start::Resume, StopAt::Step(3), 3),
        (Start::Resume, StopAt::FirstStep, 3),
        // The final evaluation, after that of step 4.
        (Start::Resume, StopAt::Evaluation(2), 6),
    ];
    for (start, at, step) in stops {
        match session_rl(&config, start, at).0 {
            Err(Error::Interrupted { checkpoint }) => {
                assert!(checkpoint.ends_with(format!("checkpoint-{step}")), "{checkpoint:?}");
            }
            other => panic!("{other:?}"),
        }
        assert!(!workshop.run("run/final").exists());
    }
    resume_rl(&config).unwrap();
    assert_same(&workshop, "run", "whole");
}

#[test]
fn an_early_end_of_fine_tuning_in_an_evaluation_or_within_a_step_changes_nothing() {
    let workshop = Workshop::new();
    let config = |name: &str| {
        let mut config = workshop.sft(name);
        (config.train.max_steps, config.train.eval_steps) = (3, 1);
        config
    };
    run_sft(&config("whole")).unwrap();
    let ended = session_sft(&config("run"), Start::New, StopAt::FirstStep).0;
    assert!(matches!(ended, Err(Error::Stopped)), "{ended:?}");
    let stops =
        [(Start::New, StopAt::Evaluation(1)), (Start::Resume, StopAt::Step(2)), (Start::Resume, StopAt::Evaluation(1))];
    for (start, at) in stops {
        let ended = session_sft(&config("run"), start, at).0;
        assert!(matches!(ended, Err(Error::Interrupted { .. })), "{ended:?}");
    }
    session_sft(&config("run"), Start::Resume, StopAt::Never).0.unwrap();
    assert_same(&workshop, "run", "whole");
}

/// `config.toml` in a run's directory contains its complete settings: it alone reproduces the run.
#[test]
fn the_settings_of_a_run_are_beside_it() {
    let workshop = Workshop::new();
    let config = short(&workshop, "run");
    run_rl(&config).unwrap();
    assert_eq!(fs::read_to_string(workshop.run("run/config.toml")).unwrap(), to_toml(&config));
}

/// Regression: a run that was resumed after midnight prompted with another date.
#[test]
fn a_run_keeps_the_date_of_its_start() {
    let workshop = Workshop::new();
    let path = workshop.path("model/tokenizer_config.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let template = tokenizer["chat_template"].as_str().unwrap();
    tokenizer["chat_template"] = format!("{{{{ strftime_now('%Y-%m-%d') }}}}{template}").into();
    fs::write(&path, tokenizer.to_string()).unwrap();
    let mut config = workshop.rl("run");
    (config.train.log_completions_steps, config.stages[0].exit.max_steps) = (1, 3);
    let stored = || load::<RlConfig>(Some(&workshop.run("run/config.toml")), &[]).unwrap().prompt.date;
    let change = |from: &str, to: &str| {
        for file in ["run/config.toml", "run/run.json"].map(|file| workshop.run(file)) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(&file, text.replace(from, to)).unwrap();
        }
    };
    let prompt = |step: usize| {
        let rows = read_lines(&workshop.run(&format!("run/completions/step_{step:05}.jsonl")));
        rows[0]["prompt"].as_str().unwrap().to_string()
    };
    interrupt_rl(&config, 1).unwrap_err();
    let start = stored();
    assert!(start.len() == 10 && prompt(1).contains(&start), "{start:?} {}", prompt(1));
    change(&start, "2020-02-29");
    session_rl(&config, Start::Resume, StopAt::Step(2)).0.unwrap_err();
    assert!(stored() == "2020-02-29" && prompt(2).contains("2020-02-29"), "{}", prompt(2));
    // Earlier versions stored no date.
    change("2020-02-29", "");
    let (ended, notes) = session_rl(&config, Start::Resume, StopAt::Never);
    ended.unwrap();
    assert!(notes.contains(&format!("changed: prompt.date = {:?} (was \"\")", stored())), "{notes}");
    assert!(stored().len() == 10 && prompt(3).contains(&stored()), "{}", prompt(3));
}

/// Regression: the step was read from the folder name, so a renamed checkpoint resumed at a step that it had not
/// reached.
#[test]
fn a_renamed_checkpoint_is_refused() {
    let workshop = Workshop::new();
    let config = workshop.rl("run");
    interrupt_rl(&config, 2).unwrap_err();
    let [own, other] = ["run/checkpoint-2", "run/checkpoint-5"].map(|name| workshop.run(name));
    fs::rename(&own, &other).unwrap();
    for start in [Start::Resume, Start::ResumeFrom(5)] {
        let error = session_rl(&config, start, StopAt::Never).0.unwrap_err().to_string();
        assert!(error.contains("checkpoint-5: was renamed") && error.contains("written after step 2"), "{error}");
    }
    fs::rename(&other, &own).unwrap();
    resume_rl(&config).unwrap();
}

/// Run started by an earlier version, which accepted such settings, must be resumable by a version that rejects them.
#[test]
fn a_resumed_run_may_drop_a_setting_without_effect() {
    let workshop = Workshop::new();
    let mut config = short(&workshop, "run");
    config.data.families = vec![TaskFamily::Story];
    assert!(config.validate()[0].starts_with("data.families = [\"story\"] is for"), "{:?}", config.validate());
    interrupt_rl(&config, 1).unwrap_err();
    config.data.families.clear();
    let (ended, notes) = session_rl(&config, Start::Resume, StopAt::Never);
    ended.unwrap();
    assert!(notes.contains("changed: data.families = [] (was [\"story\"])"), "{notes}");
}

/// A warning, not an error: a run that is shortened for a trial may keep its warm-up.
#[test]
fn a_warm_up_that_is_longer_than_the_run_is_remarked_on() {
    let workshop = Workshop::new();
    let mut config = short(&workshop, "run");
    config.optim.warmup_steps = 5;
    let (ended, notes) = session_rl(&config, Start::New, StopAt::Never);
    ended.unwrap();
    for part in
        ["optim.warmup_steps = 5 is longer than the run, which has at most 2 steps", "ends at 4.00e-4 and never"]
    {
        assert!(notes.contains(part), "{notes}");
    }
}
