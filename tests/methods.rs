//! Methods of the literature: advantages against other implementations, and every file in `configs/methods`.

use std::collections::BTreeSet;

use serde::Deserialize;
use tempering::config::{Settings, load};
use tempering::metrics::names::{ALL, pattern};
use tempering::objective::advantage::ScoredGroup;
use tempering::objective::{Advantage, DifficultyWeighting, Parts, advantages};
use tempering::reward::RewardKind;
use tempering::stage::Controller;
use tempering::train::RlConfig;

use crate::support::{
    Workshop, column, figures, final_weights, interrupt_rl, read_lines, repository, resume_rl, run_rl,
};

/// Contents of `assets/fixtures/advantage_reference.json`: rewards by completion, 4 per problem.
#[derive(Deserialize)]
struct Reference {
    group: usize,
    lengths: Vec<usize>,
    correct: Vec<bool>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: Advantage,
    weights: Vec<f32>,
    rewards: Vec<Vec<Option<f32>>>,
    difficulty: bool,
    advantages: Vec<f32>,
}

#[test]
fn advantages_are_those_of_trl_and_of_numpy() {
    let text = std::fs::read_to_string(repository("assets/fixtures/advantage_reference.json")).unwrap();
    let reference: Reference = serde_json::from_str(&text).unwrap();
    let weighting = DifficultyWeighting::default();
    for Case { kind, weights, rewards, difficulty, advantages: expected } in &reference.cases {
        let groups: Vec<ScoredGroup> = (0..rewards.len())
            .step_by(reference.group)
            .map(|start| {
                let members = start..start + reference.group;
                let reward = |k: usize| members.clone().map(|i| rewards[i][k].map(Parts::task)).collect();
                ScoredGroup {
                    rewards: (0..weights.len()).map(reward).collect(),
                    lengths: reference.lengths[members.clone()].to_vec(),
                    correct: reference.correct[members.clone()].iter().copied().map(Some).collect(),
                }
            })
            .collect();
        let got = advantages(*kind, difficulty.then_some(&weighting), &groups, weights).concat();
        let close = got.iter().zip(expected).all(|(got, expected)| (got.total() - expected).abs() < 1e-5);
        assert!(close && got.len() == expected.len(), "{kind:?} {weights:?} {difficulty}: {got:?} {expected:?}");
    }
    assert_eq!(reference.cases.len(), 24);
}

/// Return the names of the methods: the files in `configs/methods` except the one that they extend.
fn names() -> Vec<String> {
    let files = std::fs::read_dir(repository("configs/methods")).unwrap().map(|entry| entry.unwrap().path());
    let toml = files.filter(|path| path.extension().is_some_and(|end| end == "toml"));
    let stems = toml.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    let mut names: Vec<String> = stems.filter(|name| name != "base").collect();
    names.sort();
    names
}

#[test]
fn the_table_of_methods_has_a_row_for_each_file() {
    let table = std::fs::read_to_string(repository("configs/methods/README.md")).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut rows: Vec<&str> = rows.map(|(name, _)| name).collect();
    rows.sort_unstable();
    assert_eq!(rows, names());
    for name in names() {
        let file = repository(&format!("configs/methods/{name}.toml"));
        let text = std::fs::read_to_string(file).unwrap();
        let paper = table.lines().find_map(|line| line.strip_prefix(&format!("| `{name}` | "))?.split_once(' '));
        assert!(text.contains(&format!("arXiv {}", paper.unwrap().0)), "{name}: another paper in the table");
        assert!(text.contains(&format!("configs/methods/{name}.toml\n")), "{name}");
        let config: RlConfig = load(Some(&repository(&format!("configs/methods/{name}.toml"))), &[]).unwrap();
        assert_eq!(config.name, name);
    }
}

/// The average that `configs/methods/README.md` states.
#[test]
fn a_method_file_has_twelve_lines_at_most_in_the_mean() {
    let text = |name: &String| std::fs::read_to_string(repository(&format!("configs/methods/{name}.toml"))).unwrap();
    let lines = |text: String| text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    let counts: Vec<usize> = names().iter().map(|name| lines(text(name))).collect();
    assert!(counts.iter().sum::<usize>() <= 12 * counts.len(), "{counts:?}");
}

/// Only stages that follow arXiv 2511.14258 have the note that they are a reconstruction of it.
#[test]
fn a_note_stands_in_the_configuration_that_it_is_true_of() {
    for name in names() {
        let config: RlConfig = load(Some(&repository(&format!("configs/methods/{name}.toml"))), &[]).unwrap();
        let ours = ["entropy_guided", "closed_loop"].contains(&name.as_str());
        assert_eq!(config.note.is_some_and(|note| note.contains("2511.14258")), ours, "{name}");
    }
}

/// The quickstart is one of the methods.
#[test]
fn the_quickstart_is_the_entropy_guided_method() {
    let method: RlConfig = load(Some(&repository("configs/methods/entropy_guided.toml")), &[]).unwrap();
    assert_eq!(RlConfig::default().stages, method.stages);
}

/// Trains four steps of every method with a small model that sometimes answers sums correctly. Rewards must differ
/// between completions, and the loss must change the weights.
#[test]
fn every_method_trains() {
    let workshop = Workshop::new();
    let mut metrics = BTreeSet::new();
    for name in names() {
        let mut config = workshop.rl(&name);
        let method: RlConfig =
            load(Some(&repository(&format!("configs/methods/{name}.toml"))), &[]).unwrap_or_else(|e| panic!("{e}"));
        config.stages = method.stages;
        let quick = |controller| Controller { max_steps: 8, min_steps: 2, window: 2, ..controller };
        config.controller = method.controller.map(quick);
        (config.eval.num_problems, config.eval.num_generations) = (1, 3);
        config.train.eval_steps = 0;
        config.train.conflict_cosine_steps = 3;
        config.train.conflict_cosine_layers = vec!["model.layers.0.".to_string()];
        for stage in &mut config.stages {
            (stage.exit.max_steps, stage.sampling.max_completion_length) = (4, 24);
            for clip in &mut stage.sampling.max_completion_length_schedule {
                (clip.step, clip.value) = (clip.step / 10 - 1, clip.value / 10);
            }
            for reward in &mut stage.rewards {
                if let RewardKind::SoftOverlong(reward) = reward {
                    reward.soft_punish_cache = 8;
                }
            }
        }
        assert_eq!(config.validate(), Vec::<String>::new(), "{name}");
        run_rl(&config).unwrap_or_else(|error| panic!("{name}: {error}"));
        let rows = read_lines(&workshop.run(&name).join("metrics.jsonl"));
        for metric in rows.iter().flat_map(|row| row.keys()) {
            let pattern = pattern(metric).unwrap_or_else(|| panic!("{name}: {metric} is not in src/metrics/names.rs"));
            metrics.insert(pattern);
        }
        let finite = |metric: &str| {
            let values = column(&rows, metric);
            assert_eq!(values.len(), 4 * config.stages.len(), "{name} {metric}: {values:?}");
            assert!(values.iter().all(|value| value.is_finite()), "{name} {metric}: {values:?}");
            values
        };
        finite("loss");
        assert!(finite("grad_norm").iter().any(|&norm| norm > 0.0), "{name}");
        assert_eq!(column(&rows, "skipped_updates").last(), Some(&0.0), "{name}");
        for reward in config.stages.iter().flat_map(|stage| &stage.rewards) {
            let means = column(&rows, &format!("rewards/{}/mean", reward.name()));
            assert!(!means.is_empty() && means.iter().all(|mean| mean.is_finite()), "{name} {}", reward.name());
        }
        if name == "thinkprune" {
            assert_eq!(column(&rows, "max_completion_length"), [24.0, 19.0, 19.0, 12.0]);
        }
    }
    let unused: Vec<&str> = ALL.iter().map(|[pattern, ..]| *pattern).filter(|name| !metrics.contains(name)).collect();
    // Metrics of fine-tuning, reward programs, masks without a method, servers, and events that 4 steps may not have.
    let rare = |name: &&str| {
        ["num_tokens", "rewards/command/restarts", "tokens/masked_completions"].contains(name)
            || ["sampling/masked_share", "sampling/effective_sample_size"].contains(name)
            || ["timing_s/weight_sync", "timing_s/verify", "timing_s/score"].contains(name)
            || name.starts_with("rollout/")
            || ["target_<difficulty>", "conflict/connectors/", "conflict/steps/"].iter().any(|part| name.contains(part))
    };
    let unused: Vec<&&str> = unused.iter().filter(|name| !rare(name)).collect();
    assert!(unused.is_empty(), "listed in src/metrics/names.rs, set by no method: {unused:?}");
}

/// Checkpoints contain the memory of rewards: a resumed run with all three kinds ends like an uninterrupted one.
#[test]
fn a_resumed_run_remembers_what_its_rewards_did() {
    let workshop = Workshop::new();
    let text = r#"[{ "type": "ceeh_length" }, { "type": "laser_d", "grid": [4, 24, 2], "every": 2 },
                   { "type": "deep_compress", "moving_average": 0.5 }, { "type": "kimi_length", "warmup_steps": 4 }]"#;
    let config = |name: &str| {
        let mut config = workshop.rl(name);
        config.stages[0].rewards = serde_json::from_str(text).unwrap();
        config.stages[0].reward_weights = vec![];
        config
    };
    run_rl(&config("whole")).unwrap();
    let halves = config("halves");
    interrupt_rl(&halves, 3).unwrap_err();
    resume_rl(&halves).unwrap();
    let whole = figures(&workshop.run("whole"));
    assert_eq!(figures(&workshop.run("halves")), whole);
    assert!(final_weights(&workshop.run("halves")) == final_weights(&workshop.run("whole")));
    let rates = column(&whole, "rewards/deep_compress/pass_rate");
    assert!(rates.len() == 6 && rates.windows(2).any(|pair| pair[0] != pair[1]), "{rates:?}");
    assert!(!column(&whole, "rewards/laser_d/target_hard").is_empty());
}
