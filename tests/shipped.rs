//! The configurations and data sets that come with the repository.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tempering::config::load;
use tempering::data::{Fields, load_problems};
use tempering::study::{Plan, StudyConfig};
use tempering::train::RlConfig;
use tempering::train::sft::SftConfig;

use crate::support::{Workshop, column, figures, read_lines, repository, run_rl};

/// Return the TOML files in a folder, recursively.
fn toml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = |path: PathBuf| if path.is_dir() { toml_files(&path) } else { vec![path] };
    entries.flat_map(files).filter(|path| path.extension().is_some_and(|end| end == "toml")).collect()
}

#[test]
fn every_configuration_is_valid() {
    let files = toml_files(&repository("configs"));
    assert!(!files.is_empty());
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy();
        if name == "base.toml" && file.parent().unwrap() != repository("configs") {
            continue; // read with each file that extends it
        }
        if file.parent().unwrap() == repository("configs/studies") {
            let study: StudyConfig = load(Some(&file), &[]).unwrap_or_else(|error| panic!("{error}"));
            Plan::new(study, &repository("configs/studies")).unwrap_or_else(|error| panic!("{error}"));
            continue;
        }
        if name.starts_with("base") || name.starts_with("sft") {
            load::<SftConfig>(Some(&file), &[]).unwrap_or_else(|error| panic!("{error}"));
        } else {
            let recipe = ["configs/recipes", "configs/studies/gsm8k"]
                .iter()
                .any(|dir| file.parent().unwrap() == repository(dir));
            let model = ["model.path=MODEL".to_string()];
            let sets: &[String] = if recipe { &model } else { &[] };
            load::<RlConfig>(Some(&file), sets).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// Regression: results are found by a digest of all settings; a new setting with its default orphaned 54 of them.
#[test]
fn committed_results_belong_to_their_study() {
    let folder = repository("configs/studies");
    let study: StudyConfig = load(Some(&folder.join("big.toml")), &[]).unwrap();
    let plan = Plan::new(study, &folder).unwrap();
    let arms =
        (0..plan.config.arms.len()).flat_map(|arm| (0..plan.config.arms[arm].settings.len()).map(move |at| (arm, at)));
    let seeds = || plan.config.choose_seeds.iter().chain(&plan.config.report_seeds);
    let planned: BTreeSet<String> = arms
        .flat_map(|(arm, at)| seeds().map(move |&seed| (arm, at, seed)))
        .map(|(arm, at, seed)| plan.run(arm, at, seed).key)
        .collect();
    let results = read_lines(&folder.join("big.jsonl"));
    assert!(!results.is_empty());
    for result in &results {
        assert!(planned.contains(result["key"].as_str().unwrap()), "{} is no run of the study", result["run"]);
    }
}

#[test]
fn train_without_a_file_is_the_quickstart() {
    let quickstart: RlConfig = load(Some(&repository("configs/quickstart.toml")), &[]).unwrap();
    assert_eq!(RlConfig::default(), quickstart);
    assert_eq!(load::<RlConfig>(None, &[]).unwrap(), quickstart);
}

#[test]
fn gsm8k_is_read_as_it_is_and_can_be_trained_on() {
    let [train, test] = ["train", "test"].map(|split| repository(&format!("../shared/data/gsm8k/{split}.jsonl")));
    if !train.is_file() || !test.is_file() {
        eprintln!("SKIPPED: no GSM8K at {}", train.display());
        return;
    }
    for (file, count) in [(&train, 7473), (&test, 1319)] {
        let problems = load_problems(file, &Fields::default()).unwrap();
        assert_eq!(problems.len(), count);
        assert!(problems.iter().all(|problem| problem.answer.parse::<f64>().is_ok()));
    }
    let workshop = Workshop::new();
    let mut config = workshop.rl("gsm8k");
    (config.data.train, config.data.eval) = (train, test);
    config.data.filter_overlong_prompts = true;
    config.stages[0].exit.max_steps = 2;
    run_rl(&config).unwrap();
    let rows = figures(&workshop.run("gsm8k"));
    for metric in ["loss", "grad_norm", "reward", "entropy", "frac_reward_zero_std"] {
        let values = column(&rows, metric);
        assert!(values.len() == 2 && values.iter().all(|value| value.is_finite()), "{metric}: {values:?}");
    }
    assert_eq!(column(&rows, "skipped_updates"), [0.0, 0.0]);
    assert!(column(&rows, "frac_reward_zero_std").iter().all(|share| (0.0..=1.0).contains(share)));
}
