//! The start of a run on servers: what they report about themselves, and the comparison with our model.

use serde_json::Value;
use tempering::generate::Distribution;
use tempering::model::Precision;
use tempering::rollout::settings::LogProbs;
use tempering::stage::{Stage, StageSampling};
use tempering::train::{RlConfig, Start};

use super::fake::{Fake, Kind, Setup};
use super::runs::{change, lines, refused, short, steps, train};
use crate::support::{Workshop, device, tiny};

/// Whether adapters are trained, a change to the start options of a server, and parts of the error.
type Refusal = (bool, fn(&mut Setup), &'static [&'static str]);

#[test]
fn a_server_that_cannot_do_what_a_run_needs_is_refused_before_anything_is_written() {
    let workshop = Workshop::new();
    let vllm: [Refusal; 10] = [
        (true, |s| s.version = "0.9.2".into(), &["0.9.2 returns no token ids", "0.10.2"]),
        (true, |s| s.name = "other".into(), &["does not serve rollout.model = \"policy\"", "other", "vllm serve"]),
        (true, |s| s.max_model_len = 40, &["context of 40 tokens", "--dtype float32 --max-model-len 536"]),
        (true, |s| s.quantization = Some("awq".into()), &["quantised weights (awq)"]),
        (true, |s| s.data_parallel_size = 2, &["2 data-parallel replicas", "rollout.urls"]),
        (true, |s| s.lora = false, &["--enable-lora"]),
        (true, |s| s.max_lora_rank = 2, &["--max-lora-rank 2, which is below lora.r = 4", "--max-lora-rank 8"]),
        (true, |s| s.loads_adapters = false, &["VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"]),
        (false, |s| s.managed = false, &["VLLM_SERVER_DEV_MODE=1"]),
        (true, |s| s.api_key = Some("secret".into()), &["401", "rollout.api_key_env"]),
    ];
    let sglang: [Refusal; 6] = [
        (true, |s| s.lora = false, &["--enable-lora", "sglang.launch_server"]),
        (true, |s| s.max_lora_rank = 2, &["--max-lora-rank 2, which is below lora.r = 4", "--max-lora-rank 4"]),
        (true, |s| s.data_parallel_size = 2, &["2 data-parallel replicas", "rollout.urls"]),
        (false, |s| s.max_model_len = 40, &["context of 40 tokens", "--dtype float32 --context-length 536"]),
        (false, |s| s.quantization = Some("fp8".into()), &["quantised weights (fp8)"]),
        (false, |s| s.api_key = Some("secret".into()), &["401", "rollout.api_key_env"]),
    ];
    let of =
        |kind, table: &[Refusal]| table.iter().map(|&(lora, how, parts)| (kind, lora, how, parts)).collect::<Vec<_>>();
    for (kind, lora, how, parts) in [of(Kind::Vllm, &vllm), of(Kind::Sglang, &sglang)].concat() {
        let mut setup = Setup::default();
        how(&mut setup);
        let fake = Fake::start(kind, &workshop.path("model"), setup);
        let mut config = short(&workshop, "refused", lora, kind, &[&fake]);
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
    refused(&config, Start::New, &["did not answer within rollout.start_timeout_s", "vllm serve"]);
    assert!(!workshop.path("runs/refused").exists());
}

#[test]
fn a_server_with_a_key_is_used_with_that_key() {
    let workshop = Workshop::new();
    // Any variable of this process will do.
    let key = std::env::var("PATH").unwrap();
    for kind in [Kind::Vllm, Kind::Sglang] {
        let setup = Setup { api_key: Some(key.clone()), ..Setup::default() };
        let fake = Fake::start(kind, &workshop.path("model"), setup);
        let mut config = short(&workshop, &format!("key-{kind:?}"), true, kind, &[&fake]);
        change(&mut config.rollout, |served| served.api_key_env = "PATH".into());
        train(&config, Start::New).unwrap();
    }
}

#[test]
fn a_server_with_another_model_is_caught() {
    let workshop = Workshop::new();
    let (shape, model) = tiny(99, &device());
    std::fs::create_dir(workshop.path("untrained")).unwrap();
    for entry in std::fs::read_dir(workshop.path("model")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), workshop.path("untrained").join(entry.file_name())).unwrap();
    }
    tempering::model::save(&workshop.path("untrained"), &shape, &model).unwrap();
    let fake = Fake::start(Kind::Vllm, &workshop.path("untrained"), Setup::default());
    refused(
        &short(&workshop, "another", true, Kind::Vllm, &[&fake]),
        Start::New,
        &["a model or weights other than model.path"],
    );
}

/// Regression: the limit for float32 was applied wherever the server computes in it, and our model in bfloat16 exceeds it
/// by rounding (1.8e-5 nats a token on the embedded model).
#[test]
fn a_model_in_bf16_differs_from_a_server_in_f32_by_its_rounding() {
    if !device().supports_dtype(burn::tensor::FloatDType::BF16) {
        eprintln!("SKIPPED a_model_in_bf16…: the device does not compute in bf16");
        return;
    }
    let workshop = Workshop::new();
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    let mut config = short(&workshop, "rounded", true, Kind::Vllm, &[&fake]);
    config.model.dtype = Precision::Bf16;
    change(&mut config.rollout, |served| served.max_mean_kl = 0.1);
    let dir = train(&config, Start::New).unwrap();
    let divergences = steps(&dir, "rollout/sync_kl");
    assert!(divergences.iter().all(|divergence| (1e-9..0.1).contains(divergence)), "{divergences:?}");
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
