//! Failures of servers while they sample, and their effect on a run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempering::train::Start;

use super::fake::{Fake, Fault, Kind, Setup};
use super::runs::{change, lines, refused, session, short, train};
use crate::support::Workshop;

#[test]
fn what_passes_is_asked_for_again_and_counted() {
    let workshop = Workshop::new();
    for (kind, generate) in [(Kind::Vllm, "/v1/completions"), (Kind::Sglang, "/generate")] {
        let fake = Fake::start(kind, &workshop.path("model"), Setup::default());
        let mut config = short(&workshop, &format!("again{generate}").replace('/', "-"), true, kind, &[&fake]);
        change(&mut config.rollout, |served| (served.retries, served.concurrency) = (5, 1));
        // The initial check needs four requests of vLLM and eight of SGLang, where it is repeated after each fault.
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
    let nan = Fault::choices(|choice| choice["logprobs"]["token_logprobs"][0] = Value::Null);
    let short_by_one = Fault::change(|answer| drop(answer["choices"].as_array_mut().unwrap().pop()));
    // The number of requests of the second step that succeed: those of the check are four.
    let faults: [(&str, usize, Fault, &str); 6] = [
        ("ids", 0, Fault::choices(|choice| choice["token_ids"] = Value::Null), "has no token ids"),
        (
            "vocabulary",
            4,
            Fault::choices(|choice| choice["token_ids"][0] = json!(100_000)),
            "100000 is outside the vocabulary",
        ),
        ("nan", 0, nan, "NaN is not a valid log-probability"),
        ("count", 4, short_by_one, "requested 4 completions, received 3"),
        ("refused", 4, Fault::Status(400), "/v1/completions responds with status 400"),
        ("missing", 4, Fault::Status(404), "/v1/completions responds with status 404"),
    ];
    for (name, succeed, fault, part) in faults {
        let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
        let config = short(&workshop, name, true, Kind::Vllm, &[&fake]);
        // The server works until it has the weights of the second step.
        fake.inject(("/v1/load_lora_adapter", 1), "/v1/completions", succeed, Fault::None);
        fake.fail_after("/v1/load_lora_adapter", 1, "/v1/completions", fault);
        refused(&config, Start::New, &[part, "The state is saved", "--resume"]);
        fake.clear_faults();
        train(&config, Start::Resume).unwrap();
    }
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
fn two_servers_that_fail_at_the_same_time_end_the_run_with_its_state_saved() {
    let workshop = Workshop::new();
    let start = || [(); 2].map(|()| Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default()));
    let fakes = start();
    let config = short(&workshop, "both-die", true, Kind::Vllm, &[&fakes[0], &fakes[1]]);
    for fake in &fakes {
        fake.fail_after("/v1/load_lora_adapter", 1, "/v1/completions", Fault::Die);
    }
    refused(&config, Start::New, &["tried 2 times: rollout.retries = 1", "The state is saved"]);
    assert!(fakes.iter().all(Fake::is_gone));

    let fakes = start();
    let config = short(&workshop, "both-refuse", true, Kind::Vllm, &[&fakes[0], &fakes[1]]);
    for fake in &fakes {
        fake.fail("/v1/load_lora_adapter", usize::MAX, Fault::Status(400));
    }
    let (one, other) = (fakes[0].url(), fakes[1].url());
    refused(&config, Start::New, &["no server of rollout.urls is available", &one, &other, "The state is saved"]);
}

#[test]
fn a_server_that_hangs_ends_the_run_in_time() {
    let workshop = Workshop::new();
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    let mut config = short(&workshop, "hangs", true, Kind::Vllm, &[&fake]);
    change(&mut config.rollout, |served| (served.retries, served.request_timeout_s) = (0, 1.0));
    fake.fail_after("/v1/load_lora_adapter", 1, "/v1/completions", Fault::Hang);
    refused(&config, Start::New, &["did not answer within 1 s", "rollout.retries = 0", "The state is saved"]);
}

/// Regression: Ctrl-C waited for the end of a request to load weights, or of a check: 600 s.
#[test]
fn an_early_end_does_not_wait_for_a_server_that_hangs() {
    let workshop = Workshop::new();
    let (load, reload, sample) = ("/v1/load_lora_adapter", "/collective_rpc", "/v1/completions");
    for (name, update, hung) in [("load", load, load), ("reload", reload, reload), ("check", load, sample)] {
        let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
        let config = short(&workshop, name, update == load, Kind::Vllm, &[&fake]);
        fake.fail_after(update, usize::from(hung != update), hung, Fault::Hang);
        let (start, stop) = (Instant::now(), AtomicBool::new(false));
        let hangs =
            || !fake.seen(update).is_empty() && fake.seen("").last().is_some_and(|(path, _)| path.starts_with(hung));
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !hangs() && start.elapsed() < Duration::from_secs(120) {
                    std::thread::sleep(Duration::from_millis(20));
                }
                stop.store(true, Ordering::SeqCst);
            });
            session(&config, Start::New, &mut (), &stop)
        });
        let error = ended.unwrap_err();
        assert!(matches!(error, tempering::Error::Interrupted { .. }), "{name}: {error}");
        assert!(start.elapsed() < Duration::from_secs(300), "{name}");
    }
}

/// Regression: servers went on with the requests of a failed step as long as our process lived.
#[test]
fn requests_of_a_step_that_fails_are_aborted_at_the_servers() {
    let workshop = Workshop::new();
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    let config = short(&workshop, "aborted", true, Kind::Vllm, &[&fake]);
    // After the check of the second step, one request hangs and the next ones fail.
    let after = ("/v1/load_lora_adapter", 1);
    for (times, fault) in [(4, Fault::None), (1, Fault::Hang), (usize::MAX, Fault::Status(400))] {
        fake.inject(after, "/v1/completions", times, fault);
    }
    refused(&config, Start::New, &["/v1/completions responds with status 400", "The state is saved"]);
    let start = Instant::now();
    while fake.aborted() == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "the request still hangs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn servers_that_drift_from_our_model_within_a_step_end_the_run_with_its_state_saved() {
    let workshop = Workshop::new();
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    let config = short(&workshop, "drifts", true, Kind::Vllm, &[&fake]);
    // The check asks for single completions and passes.
    let shifted = Fault::change(|answer| {
        let choices = answer["choices"].as_array_mut().unwrap();
        if choices.len() > 1 {
            let log_probs =
                choices.iter_mut().flat_map(|choice| choice["logprobs"]["token_logprobs"].as_array_mut().unwrap());
            log_probs.for_each(|log_prob| *log_prob = json!(log_prob.as_f64().unwrap() - 0.5));
        }
    });
    fake.fail_after("/v1/load_lora_adapter", 1, "/v1/completions", shifted);
    let parts =
        ["more than rollout.max_mean_kl = 0.01, although they agreed after the weight transfer", "The state is saved"];
    refused(&config, Start::New, &parts);
}
