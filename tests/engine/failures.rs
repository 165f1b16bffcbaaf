//! Server failures and their effect on a run.

use std::path::Path;

use serde_json::{Value, json};
use tempering::generate::Distribution;
use tempering::model::LoraConfig;
use tempering::rollout::settings::{LogProbs, RolloutConfig, ServedConfig, Sync};
use tempering::stage::{Stage, StageExit, StageSampling};
use tempering::train::{RlConfig, Start};

use super::equal::{lines, served, train};
use super::fake::{Fake, Fault, Kind, Setup};
use crate::support::{Workshop, device, tiny};

/// Change to the start options of a server.
type Change = fn(&mut Setup);

/// Return the settings of three steps that train adapters or all weights.
fn short(workshop: &Workshop, name: &str, lora: bool, kind: Kind, fakes: &[&Fake]) -> RlConfig {
    let mut config = RlConfig {
        lora: lora.then(|| LoraConfig { r: 4, ..LoraConfig::default() }),
        rollout: served(kind, fakes),
        ..workshop.rl(name)
    };
    config.stages[0].exit = StageExit { max_steps: 3, ..StageExit::default() };
    config.train.eval_steps = 0;
    config.train.save_steps = 1;
    config
}

fn change(rollout: &mut RolloutConfig, change: impl FnOnce(&mut ServedConfig)) {
    let (RolloutConfig::Vllm(served) | RolloutConfig::Sglang(served)) = rollout else { panic!("not served") };
    change(served);
}

/// Run a training that must fail with an error that contains each of `parts`.
fn refused(config: &RlConfig, start: Start, parts: &[&str]) {
    let error = train(config, start).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_server_that_cannot_do_what_a_run_needs_is_refused_before_anything_is_written() {
    let workshop = Workshop::new();
    let vllm: [(bool, Change, &[&str]); 9] = [
        (true, |s| s.version = "0.9.2".into(), &["0.9.2 gives no token ids", "0.10.2"]),
        (true, |s| s.name = "other".into(), &["no model \"policy\" (rollout.model)", "other", "vllm serve"]),
        (true, |s| s.max_model_len = 40, &["context of 40 tokens", "--max-model-len"]),
        (true, |s| s.quantization = Some("awq".into()), &["quantised weights (awq)"]),
        (true, |s| s.data_parallel_size = 2, &["2 replicas", "rollout.urls"]),
        (true, |s| s.lora = false, &["--enable-lora"]),
        (true, |s| s.loads_adapters = false, &["VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"]),
        (false, |s| s.managed = false, &["VLLM_SERVER_DEV_MODE=1"]),
        (true, |s| s.api_key = Some("secret".into()), &["401", "rollout.api_key_env"]),
    ];
    for (lora, how, parts) in vllm {
        let mut setup = Setup::default();
        how(&mut setup);
        let fake = Fake::start(Kind::Vllm, &workshop.path("model"), setup);
        let mut config = short(&workshop, "refused", lora, Kind::Vllm, &[&fake]);
        change(&mut config.rollout, |served| served.model = "policy".into());
        refused(&config, Start::New, parts);
    }
    // Another engine than configured, and no server at all.
    let fake = Fake::start(Kind::Sglang, &workshop.path("model"), Setup::default());
    refused(&short(&workshop, "refused", true, Kind::Vllm, &[&fake]), Start::New, &["is SGLang", "rollout.engine"]);
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    fake.die();
    let mut config = short(&workshop, "refused", true, Kind::Vllm, &[&fake]);
    change(&mut config.rollout, |served| served.start_timeout_s = 0.5);
    refused(&config, Start::New, &["no server after rollout.start_timeout_s", "vllm serve"]);
    assert!(!workshop.path("runs/refused").exists());
}

#[test]
fn what_passes_is_asked_for_again_and_counted() {
    let workshop = Workshop::new();
    for (kind, generate) in [(Kind::Vllm, "/v1/completions"), (Kind::Sglang, "/generate")] {
        let fake = Fake::start(kind, &workshop.path("model"), Setup::default());
        let mut config = short(&workshop, &format!("again{generate}").replace('/', "-"), true, kind, &[&fake]);
        change(&mut config.rollout, |served| (served.retries, served.concurrency) = (5, 1));
        // The first requests belong to the initial check, which is not retried.
        let abort = move |choice: &mut Value| match kind {
            Kind::Vllm => choice["finish_reason"] = json!("abort"),
            Kind::Sglang => choice["meta_info"]["finish_reason"] = json!({ "type": "abort" }),
        };
        fake.skip(generate, 4);
        fake.fail(generate, 1, Fault::Status(503));
        fake.fail(generate, 1, Fault::Reset);
        fake.fail(generate, 1, Fault::choices(abort));
        let dir = train(&config, Start::New).unwrap();
        let retries: f64 = lines(&dir).iter().filter_map(|line| line.get("rollout/retries")?.as_f64()).sum();
        // Retries during the evaluation are counted in the first step.
        assert!((retries - 3.0).abs() < 1e-9, "{kind:?}: {retries}");
        assert!(fake.max_concurrent() >= 1);
    }
}

#[test]
fn what_does_not_pass_ends_the_run_at_once_with_its_state_saved() {
    let workshop = Workshop::new();
    let faults: [(&str, Fault, &str); 4] = [
        ("ids", Fault::choices(|choice| choice["token_ids"] = Value::Null), "has no token ids"),
        ("vocabulary", Fault::choices(|choice| choice["token_ids"][0] = json!(100_000)), "none of the"),
        (
            "nan",
            Fault::choices(|choice| choice["logprobs"]["token_logprobs"][0] = Value::Null),
            "NaN is no log-probability",
        ),
        ("count", Fault::change(|answer| drop(answer["choices"].as_array_mut().unwrap().pop())), "were asked for"),
    ];
    for (name, fault, part) in faults {
        let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
        let config = short(&workshop, name, true, Kind::Vllm, &[&fake]);
        // The server works until it has the weights of the second step.
        fake.fail_after("/v1/load_lora_adapter", 1, "/v1/completions", fault);
        refused(&config, Start::New, &[part, "The state is saved", "--resume"]);
        fake.clear_faults();
        train(&config, Start::Resume).unwrap();
    }
}

#[test]
fn a_server_that_says_it_has_taken_weights_and_has_not_is_caught() {
    let workshop = Workshop::new();
    for (kind, update) in [(Kind::Vllm, "/collective_rpc"), (Kind::Sglang, "/update_weights_from_disk")] {
        let fake = Fake::start(kind, &workshop.path("model"), Setup::default());
        let config = short(&workshop, &format!("stale-{kind:?}"), false, kind, &[&fake]);
        fake.fail(update, 1, Fault::Idle);
        refused(&config, Start::New, &["other weights than those after 1 updates", &fake.url(), "The state is saved"]);
        // Resuming with the same server: it gets the weights of the checkpoint first.
        train(&config, Start::Resume).unwrap();
    }
    // The server has another model than the run.
    let (shape, model) = tiny(99, &device());
    std::fs::create_dir(workshop.path("untrained")).unwrap();
    for entry in std::fs::read_dir(workshop.path("model")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), workshop.path("untrained").join(entry.file_name())).unwrap();
    }
    tempering::model::save(&workshop.path("untrained"), &shape, &model).unwrap();
    let fake = Fake::start(Kind::Vllm, &workshop.path("untrained"), Setup::default());
    refused(&short(&workshop, "another", true, Kind::Vllm, &[&fake]), Start::New, &["another model than model.path"]);
}

#[test]
fn one_of_two_servers_may_go_and_the_last_one_may_not() {
    let workshop = Workshop::new();
    let fakes = [(); 2].map(|()| Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default()));
    let mut config = short(&workshop, "goes", true, Kind::Vllm, &[&fakes[0], &fakes[1]]);
    change(&mut config.rollout, |served| served.retries = 4);
    fakes[0].fail_after("/v1/load_lora_adapter", 1, "/v1/completions", Fault::Die);
    let dir = train(&config, Start::New).unwrap();
    assert!(fakes[0].is_gone());
    let servers: Vec<f64> = lines(&dir).iter().filter_map(|line| line.get("rollout/servers")?.as_f64()).collect();
    assert_eq!(servers.last(), Some(&1.0), "{servers:?}");

    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    let config = short(&workshop, "last", true, Kind::Vllm, &[&fake]);
    fake.fail_after("/v1/load_lora_adapter", 1, "/v1/completions", Fault::Die);
    refused(&config, Start::New, &["tried 2 times: rollout.retries = 1", "The state is saved"]);
}

#[test]
fn raw_log_probabilities_are_known_by_comparing_and_refused_where_they_would_be_used() {
    let workshop = Workshop::new();
    // A server that is not in development mode does not report the kind of log-probabilities.
    let setup = Setup { raw: true, managed: false, ..Setup::default() };
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), setup);
    let mut config = short(&workshop, "raw", true, Kind::Vllm, &[&fake]);
    config.stages = vec![Stage {
        sampling: StageSampling { temperature: 1.2, ..config.stages[0].sampling.clone() },
        ..config.stages[0].clone()
    }];
    assert_ne!(config.stages[0].distribution(), Distribution::default());
    // Without a correction they are not used for training, and the metrics compare values of the same temperature.
    let dir = train(&config, Start::New).unwrap();
    let largest = |line: &serde_json::Map<String, Value>| line.get("sampling/sampling_logp_difference/max")?.as_f64();
    assert!(lines(&dir).iter().filter_map(largest).all(|difference| difference < 1e-4));
    let corrected = |mut config: RlConfig, name: &str| {
        config.name = name.into();
        change(&mut config.rollout, |served| served.correction = tempering::objective::Correction::default());
        config
    };
    refused(&corrected(config.clone(), "raw2"), Start::New, &["raw", "--logprobs-mode processed_logprobs"]);
    // At temperature 1 both kinds agree for the full softmax, but not for a distribution truncated by top-p.
    let mut cut = corrected(config.clone(), "raw4");
    let sampling = StageSampling { temperature: 1.0, top_p: 0.95, ..config.stages[0].sampling.clone() };
    cut.stages = vec![Stage { sampling, ..config.stages[0].clone() }];
    refused(&cut, Start::New, &["raw", "--logprobs-mode processed_logprobs"]);
    // The settings override the detection.
    let mut wrong = config;
    wrong.name = "raw3".into();
    change(&mut wrong.rollout, |served| served.logprobs = LogProbs::Processed);
    refused(&wrong, Start::New, &["differ by"]);
}

#[test]
fn completions_of_the_next_step_may_be_asked_for_early() {
    let workshop = Workshop::new();
    for (lora, name) in [(true, "early-adapters"), (false, "early-weights")] {
        let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
        let mut config = short(&workshop, name, lora, Kind::Vllm, &[&fake]);
        change(&mut config.rollout, |served| {
            served.max_staleness = 1;
            served.correction = tempering::objective::Correction::default();
        });
        let dir = train(&config, Start::New).unwrap();
        let lags: Vec<f64> = steps(&dir, "rollout/staleness_max");
        assert_eq!(lags, [0.0, 1.0, 1.0], "{name}");
        // Completions requested early come from the previous policy: the difference is that of an update, not rounding.
        let moved = steps(&dir, "sampling/sampling_logp_difference/max");
        assert!(moved[0] < 1e-4 && moved[1] > 1e-4, "{moved:?}");
        // All early completions were used: the last step requests no further ones.
        assert_eq!(steps(&dir, "rollout/dropped_stale"), [0.0; 3]);
    }
}

/// Return a metric of each step.
fn steps(dir: &Path, name: &str) -> Vec<f64> {
    let steps = lines(dir).into_iter().filter(|line| line["step"].as_f64() > Some(0.0) && line.contains_key("loss"));
    steps.map(|line| line[name].as_f64().unwrap()).collect()
}

#[test]
fn a_server_that_hangs_and_a_program_that_fails_end_the_run_in_time() {
    let workshop = Workshop::new();
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    let mut config = short(&workshop, "hangs", true, Kind::Vllm, &[&fake]);
    change(&mut config.rollout, |served| (served.retries, served.request_timeout_s) = (0, 1.0));
    fake.fail_after("/v1/load_lora_adapter", 1, "/v1/completions", Fault::Hang);
    refused(&config, Start::New, &["has not answered within 1 s", "rollout.retries = 0", "The state is saved"]);

    // A program that transfers the weights reports success by its exit status.
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup { managed: false, ..Setup::default() });
    for (name, script, part) in [
        ("fails", "exit 3", "exit status: 3"),
        ("sleeps", "sleep 60", "has not ended within rollout.sync_timeout_s = 1 s"),
        // A program that reports success without transferring the weights.
        ("lies", "read line", "other weights than those after 1 updates"),
    ] {
        let mut config = short(&workshop, name, false, Kind::Vllm, &[&fake]);
        change(&mut config.rollout, |served| {
            served.sync = Sync::Command;
            served.command = ["sh", "-c", script].map(String::from).to_vec();
            served.sync_timeout_s = 1.0;
        });
        refused(&config, Start::New, &[part, "The state is saved"]);
    }
}
