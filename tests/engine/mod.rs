//! Completions from servers: a fake server with injected faults, and a real vLLM.

mod commands;
mod equal;
mod failures;
pub(crate) mod fake;
mod real;
mod runs;
mod start;
mod updates;

use serde_json::{Value, json};
use tempering::generate::{Distribution, Request, Sampling, Watch, generate};
use tempering::model;

use self::fake::{Fake, Kind, Setup};
use crate::support::{device, repository};

/// Send a POST request without the client under test.
fn post(url: &str, body: &Value) -> Value {
    let answer = ureq::post(url).header("Content-Type", "application/json").send(body.to_string());
    serde_json::from_str(&answer.unwrap().body_mut().read_to_string().unwrap()).unwrap()
}

#[test]
fn the_fake_gives_the_completions_of_our_own_engine_in_both_protocols() {
    let base = repository("assets/base");
    let (config, policy) = model::load(&base, &device()).unwrap();
    let (prompt, key) = (vec![1, 30, 31, 32], [7, 3, 11]);
    let requests: Vec<Request> =
        (0..3).map(|sample| Request { prompt: prompt.clone(), key: [key[0], key[1], key[2], sample] }).collect();
    let sampling = Sampling {
        distribution: Distribution::at(1.2),
        max_completion_length: 12,
        stop: vec![2],
        ..Sampling::default()
    };
    let own = generate(&policy, &config, &requests, &sampling, |_, _| Watch::Continue).unwrap();
    let tokens: Vec<&Vec<u32>> = own.iter().map(|completion| &completion.tokens).collect();
    let seed = (tempering::noise::mix(&key) >> 1) & !0xffff;

    let fake = Fake::start(Kind::Vllm, &base, Setup::default());
    fake.register_key(key);
    let body = json!({ "model": "policy", "prompt": prompt, "n": 3, "seed": seed, "max_tokens": 12,
                       "temperature": 1.2, "stop_token_ids": [2] });
    let answer = post(&format!("{}/v1/completions", fake.url()), &body);
    let told: Vec<&Value> = answer["choices"].as_array().unwrap().iter().map(|choice| &choice["token_ids"]).collect();
    assert_eq!(json!(told), json!(tokens));
    assert_eq!(fake.seen("/v1/completions").len(), 1);

    let fake = Fake::start(Kind::Sglang, &base, Setup::default());
    fake.register_key(key);
    let body = json!({ "input_ids": prompt, "return_logprob": true,
                       "sampling_params": { "n": 3, "sampling_seed": seed, "max_new_tokens": 12, "temperature": 1.2,
                                            "stop_token_ids": [2] } });
    let answer = post(&format!("{}/generate", fake.url()), &body);
    let told: Vec<&Value> = answer.as_array().unwrap().iter().map(|choice| &choice["output_ids"]).collect();
    assert_eq!(json!(told), json!(tokens));
}
