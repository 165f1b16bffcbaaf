//! Metrics of the entropy conflict in training runs.

use std::fs;

use serde_json::Value;
use tempering::objective::Parts;
use tempering::report;
use tempering::train::batch::Sequence;
use tempering::train::cosine::gradient_cosines;
use tempering::train::learner::Learner;

use crate::cli::{succeed, user_error};
use crate::support::{Workshop, device, final_weights, read_lines, run_rl, tiny};

fn sequences() -> Vec<Sequence> {
    let sequence = |start: u32| Sequence { tokens: (0..14).map(|i| 5 + (start + i * 31) % 400).collect(), prompt: 4 };
    vec![sequence(1), sequence(90), sequence(201)]
}

#[test]
fn parts_that_ask_for_the_same_are_parallel_and_for_the_opposite_antiparallel() {
    let (_, model) = tiny(3, &device().autodiff());
    let learner = Learner { temperature: 1.0, tokens_per_microbatch: 20, ..Learner::default() };
    let cosines = |length: fn(f32) -> f32, layers: &[&str]| {
        let advantages = [0.5, -1.0, 2.0].map(|task| Parts { task, length: length(task) });
        let layers: Vec<String> = layers.iter().map(|layer| layer.to_string()).collect();
        gradient_cosines(&model, &learner, &sequences(), &advantages, &[0.1, 0.2, 0.1], &layers)
    };
    let same = cosines(|task| 3.0 * task, &["model.layers.1.", "model.norm"]).unwrap();
    assert_eq!(same.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["", "model.layers.1.", "model.norm"]);
    assert!(same.iter().all(|(_, cosine)| (cosine - 1.0).abs() < 1e-5), "{same:?}");
    let opposite = cosines(|task| -task, &[]).unwrap();
    assert!((opposite[0].1 + 1.0).abs() < 1e-5, "{opposite:?}");
    let other = cosines(|task| task * task, &[]).unwrap();
    assert!(other[0].1.abs() < 0.99, "{other:?}");
    assert_eq!(cosines(|_| 0.0, &[]).unwrap(), [], "no length part, no angle");
    let error = cosines(|task| task, &["layers.9"]).unwrap_err().to_string();
    assert!(error.contains("conflict_cosine_layers has \"layers.9\"") && error.contains("model.norm"), "{error}");
}

#[test]
fn measuring_changes_nothing_and_is_done_as_often_as_asked() {
    let workshop = Workshop::new();
    let run = |name: &str, every: usize| {
        let mut config = workshop.rl(name);
        // At temperature 1 most groups have completions of equal length: there is no length part to measure.
        (config.stages[0].exit.max_steps, config.stages[0].sampling.temperature) = (4, 1.5);
        config.train.conflict_steps = every;
        config.train.conflict_cosine_steps = every;
        run_rl(&config).unwrap();
        final_weights(&workshop.run(name))
    };
    assert!(run("never", 0) == run("second", 2), "a measurement moved the weights");
    let measured = |name: &str, key: &str| -> Vec<u64> {
        let rows =
            read_lines(&workshop.run(name).join("metrics.jsonl")).into_iter().filter(|row| row.contains_key(key));
        rows.map(|row| row["step"].as_u64().unwrap()).collect()
    };
    for key in ["conflict/tokens", "conflict/deciles/grad_share_task", "timing_s/conflict_cosine"] {
        assert_eq!(measured("second", key), [2, 4], "{key}");
        assert_eq!(measured("never", key), [0; 0], "{key}");
    }
    let report = |name: &str| fs::read_to_string(report::write(&workshop.run(name)).unwrap()).unwrap();
    assert!(
        report("second").contains("The entropy conflict") && report("second").contains("Predicted from the samples")
    );
    assert!(!report("never").contains("The entropy conflict"));
}

#[test]
fn a_model_is_analysed_without_training() {
    let workshop = Workshop::new();
    let (model, data) = (workshop.path("model"), workshop.path("sums.jsonl"));
    let (page, json) = (workshop.path("a.html"), workshop.path("a.json"));
    let words = ["--set", "sampling.max_completion_length=16", "-n", "4", "--html"];
    let [set, short, n, four, html] = words;
    let said = succeed(&[&"analyze", &model, &data, &set, &short, &n, &four, &html, &page, &"--json", &json]);
    assert!(said.contains("Predicted from the samples"), "{said}");
    let page = fs::read_to_string(page).unwrap();
    for part in ["token by token", "A accuracy ", "entropy ", "<svg", "prefers-color-scheme"] {
        assert!(page.contains(part), "the page lacks {part:?}");
    }
    assert!(!page.contains("<script") && !page.contains("src="), "a page that needs nothing but itself");
    let json: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!((json["problems"].as_u64(), json["blocks"].as_array().map(Vec::len)), (Some(16), Some(2)));
    let tokens = |row: &Value| row["conflict/tokens"].as_f64().unwrap();
    let blocks: f64 = json["blocks"].as_array().unwrap().iter().map(tokens).sum();
    assert_eq!(tokens(&json["metrics"]), blocks);

    // Regression: an output that cannot be written was found after all the sampling.
    let nowhere = workshop.path("none/a.json");
    let refused = user_error(&[&"analyze", &model, &data, &"--json", &nowhere]);
    assert!(refused.contains("--json") && refused.contains("the folder"), "{refused}");
    let alone = user_error(&[&"analyze", &model, &data, &n, &"1"]);
    assert!(alone.contains("--num-generations 1 must be at least 2"), "{alone}");
    let unknown =
        user_error(&[&"analyze", &model, &data, &"--config", &"configs/quickstart.toml", &"--stage", &"anneal"]);
    assert!(
        unknown.contains("has no stage anneal: give --stage a number from 0 to 1 or one of compress, enhance"),
        "{unknown}"
    );
    let setting = user_error(&[&"analyze", &model, &data, &set, &"sampling.temprature=1"]);
    assert!(setting.contains("temperature"), "{setting}");
}
