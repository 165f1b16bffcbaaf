//! A real vLLM, started by `.ci/vllm`, with the embedded model and with a copy that has an untied output matrix.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use tempering::config::load;
use tempering::tasks::{Generator, Split};
use tempering::text::tokenizer::Tokenizer;
use tempering::train::{RlConfig, Start};

use super::post;
use super::runs::{AfterStep, lines, session, train, train_with};
use crate::support::repository;

/// Return the server URL in an environment variable. If it is not set, prints a message and return `None`.
fn server(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    if url.is_none() {
        eprintln!("SKIPPED: {variable} is not set: no real vLLM to test with (.ci/vllm starts one)");
    }
    url
}

/// Return the settings of three steps at three temperatures, each with few short completions.
fn config(url: &str, model: &Path, dir: &Path, sets: &[&str]) -> RlConfig {
    let stage = |temperature: &str| {
        format!(
            "{{ name = \"t{temperature}\", rewards = [{{ type = \"accuracy\" }}], sampling = {{ temperature = {temperature}, \
             max_completion_length = 96 }}, advantage = {{ type = \"absolute\" }}, exit = {{ max_steps = 1 }} }}"
        )
    };
    let stages = ["1.0", "0.5", "1.2"].map(stage).join(", ");
    let all = [
        "name=real".to_string(),
        format!("output_dir={}", dir.display()),
        format!("model.path={}", model.display()),
        format!("stages=[{stages}]"),
        "train.prompts_per_step=8".to_string(),
        "train.num_generations=4".to_string(),
        "train.save_steps=1".to_string(),
        "eval.num_problems=4".to_string(),
        "eval.max_completion_length=96".to_string(),
        "optim.learning_rate=0.001".to_string(),
        "optim.warmup_steps=0".to_string(),
        "rollout.engine=vllm".to_string(),
        format!("rollout.urls=[\"{url}\"]"),
        "rollout.retries=1".to_string(),
    ];
    load(None, &all.into_iter().chain(sets.iter().map(ToString::to_string)).collect::<Vec<_>>()).unwrap()
}

/// Assert that the server's log-probabilities are those of the current weights, at every temperature. With all or half
/// of the previous step's weights the mean difference is 1e-2 nats; rounding of a single token was at most 1.5e-4.
fn assert_no_mismatch(dir: &Path) {
    for (statistic, most) in [("mean", 1e-5), ("max", 1e-3)] {
        let name = format!("sampling/sampling_logp_difference/{statistic}");
        let found: Vec<f64> = lines(dir).iter().filter_map(|line| line.get(&name)?.as_f64()).collect();
        assert!(found.len() == 3 && found.iter().all(|difference| *difference < most), "{name}: {found:?}");
    }
}

/// Regression: transformers 5, which vLLM uses for tokenizers, replaced the pre-tokenizer in the embedded models'
/// files: `\boxed{` became four tokens.
#[test]
fn a_real_vllm_reads_texts_as_the_tokens_that_we_do() {
    let Some(url) = server("TEMPERING_VLLM_UNTIED_URL") else { return };
    let (tokenizer, generator) = (Tokenizer::load(&repository("assets/base")).unwrap(), Generator::new(0));
    for index in 0..20 {
        let text = &generator.row(Split::HeldOut, index).messages[1].content;
        let answer = post(&format!("{url}/tokenize"), &json!({ "prompt": text, "add_special_tokens": false }));
        assert_eq!(answer["tokens"], json!(tokenizer.encode(text).unwrap()), "{text}");
    }
}

#[test]
fn a_real_vllm_samples_from_adapters_of_every_step_and_an_old_output_matrix_is_caught() {
    let Some(url) = server("TEMPERING_VLLM_URL") else { return };
    let (base, dir) = (repository("assets/base"), tempfile::tempdir().unwrap());
    let run = train(&config(&url, &base, dir.path(), &["lora.r=8"]), Start::New).unwrap();
    assert_no_mismatch(&run);
    // A folder that the server cannot see: the error has the server's message, and no state is lost.
    let sets = ["lora.r=8", "name=unseen", "rollout.server_dir=/nowhere"];
    let error = train(&config(&url, &base, dir.path(), &sets), Start::New).unwrap_err().to_string();
    assert!(
        error.contains("/v1/load_lora_adapter responds with status 404") && error.contains("The state is saved"),
        "{error}"
    );
    // vLLM 0.32 on a CPU responds 200 but keeps the old output matrix of a model with tied embeddings: the server is not of
    // use for adapters afterwards.
    let error = train(&config(&url, &base, dir.path(), &["name=tied"]), Start::New).unwrap_err().to_string();
    assert!(error.contains("weights other than those after 1 updates"), "{error}");
    // Whole weights in a folder that it cannot see. This comes last: the next request ends the server. It has other weights
    // than the run, which therefore sends those of the start and has no state yet.
    let sets = ["name=nowhere", "rollout.server_dir=/nowhere"];
    let error = train(&config(&url, &base, dir.path(), &sets), Start::New).unwrap_err().to_string();
    assert!(error.contains("/collective_rpc responds with status 500") && error.contains("restart it"), "{error}");
}

/// Send a signal to the processes of the server with the untied model.
fn signal(name: &str) {
    let group = std::env::var("TEMPERING_VLLM_UNTIED_PID").expect("the process group of the server");
    let status = Command::new("kill").args([&format!("-{name}"), "--", &format!("-{group}")]).status();
    assert!(status.unwrap().success());
}

#[test]
fn a_real_vllm_reads_all_weights_of_every_step_from_a_folder_and_may_hang_or_die() {
    let Some(url) = server("TEMPERING_VLLM_UNTIED_URL") else { return };
    let model = PathBuf::from(std::env::var("TEMPERING_VLLM_UNTIED").expect("the folder of the model that it serves"));
    let dir = tempfile::tempdir().unwrap();
    // A server that hangs. The run trains adapters: when the server goes on, it reads what it was asked to, and half of all
    // weights would end it. This comes first, because later the server has other weights than the run.
    let hangs = config(&url, &model, dir.path(), &["name=hangs", "lora.r=8", "rollout.sync_timeout_s=5"]);
    let mut stop = AfterStep(|step| {
        if step == 1 {
            signal("STOP");
        }
    });
    let ended = session(&hangs, Start::New, &mut stop, &AtomicBool::new(false));
    signal("CONT");
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("did not answer within 5 s") && error.contains("The state is saved"), "{error}");
    assert_no_mismatch(&train(&hangs, Start::Resume).unwrap());

    assert_no_mismatch(&train(&config(&url, &model, dir.path(), &[]), Start::New).unwrap());

    let kill = |step| {
        if step == 1 {
            signal("KILL");
        }
    };
    let error = train_with(&config(&url, &model, dir.path(), &["name=dies"]), kill).unwrap_err().to_string();
    assert!(
        error.contains("no server of rollout.urls is available") && error.contains("The state is saved"),
        "{error}"
    );
}
