//! Updates of the weights on servers, with failures.

use std::collections::BTreeSet;

use serde_json::json;
use tempering::rollout::settings::Sync;
use tempering::train::Start;

use super::fake::{Fake, Fault, Kind, Setup};
use super::runs::{change, refused, short, steps, train, train_with};
use crate::support::Workshop;

/// The metric of the log-probabilities of a step: larger than rounding where a server had other weights.
const DIFFERENCE: &str = "sampling/sampling_logp_difference/max";

#[test]
fn a_server_that_says_it_has_taken_weights_and_has_not_is_caught() {
    let workshop = Workshop::new();
    for (kind, update) in [(Kind::Vllm, "/collective_rpc"), (Kind::Sglang, "/update_weights_from_disk")] {
        let fake = Fake::start(kind, &workshop.path("model"), Setup::default());
        let config = short(&workshop, &format!("stale-{kind:?}"), false, kind, &[&fake]);
        fake.fail(update, 1, Fault::Idle);
        refused(&config, Start::New, &["weights other than those after 1 updates", &fake.url(), "The state is saved"]);
        // Resuming with the same server: it gets the weights of the checkpoint first.
        train(&config, Start::Resume).unwrap();
    }
}

#[test]
fn a_program_that_transfers_weights_reports_success_by_its_exit_status() {
    let workshop = Workshop::new();
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup { managed: false, ..Setup::default() });
    for (name, script, part) in [
        ("fails", "exit 3", "exit status: 3"),
        ("sleeps", "sleep 60", "did not exit within rollout.sync_timeout_s = 1 s"),
        // A program that reports success without transferring the weights.
        ("lies", "read line", "weights other than those after 1 updates"),
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

/// A failed update of all weights ends a vLLM server at its next request, so it gets none until it was restarted.
#[test]
fn a_server_whose_update_fails_is_left_out_until_it_is_started_again() {
    let workshop = Workshop::new();
    let fakes = [(); 2].map(|()| Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default()));
    let mut config = short(&workshop, "half", false, Kind::Vllm, &[&fakes[0], &fakes[1]]);
    config.stages[0].exit.max_steps = 4;
    fakes[0].fail("/collective_rpc", 1, Fault::Status(500));
    let after = |step| match step {
        2 => {
            assert!(!fakes[0].is_gone(), "a request reached it");
            fakes[0].die();
        }
        3 => fakes[0].revive(),
        _ => {}
    };
    let dir = train_with(&config, after).unwrap();
    assert_eq!(steps(&dir, "rollout/servers"), [2.0, 1.0, 1.0, 2.0]);
    assert!(steps(&dir, DIFFERENCE).iter().all(|difference| *difference < 1e-4));

    // The only server, which does not see the folder.
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    let mut config = short(&workshop, "nowhere", false, Kind::Vllm, &[&fake]);
    change(&mut config.rollout, |served| served.server_dir = "/nowhere".into());
    let parts = ["/collective_rpc responds with status 500", "restart it", "The state is saved"];
    refused(&config, Start::New, &parts);
    let body = json!({ "model": "policy", "prompt": [1, 30], "n": 1, "seed": 1, "max_tokens": 1 });
    let _ = ureq::post(format!("{}/v1/completions", fake.url())).send(body.to_string());
    assert!(fake.is_gone());
}

/// Regression: any failed update of all weights excluded a server for the rest of the run, also where the server keeps its
/// weights: SGLang after a 400.
#[test]
fn a_server_that_keeps_its_weights_is_asked_again_in_the_next_step() {
    let workshop = Workshop::new();
    let fakes = [(); 2].map(|()| Fake::start(Kind::Sglang, &workshop.path("model"), Setup::default()));
    let config = short(&workshop, "keeps", false, Kind::Sglang, &[&fakes[0], &fakes[1]]);
    // The update of the second step, and the attempt to take the server in again.
    fakes[0].fail("/update_weights_from_disk", 2, Fault::Status(400));
    let dir = train(&config, Start::New).unwrap();
    assert_eq!(steps(&dir, "rollout/servers"), [2.0, 1.0, 2.0]);
    assert!(steps(&dir, DIFFERENCE).iter().all(|difference| *difference < 1e-4));
}

#[test]
fn a_server_that_was_lost_comes_back_with_the_current_weights_or_not_at_all() {
    let workshop = Workshop::new();
    for (lora, update) in [(true, "/v1/load_lora_adapter"), (false, "/collective_rpc")] {
        for honest in [true, false] {
            let fakes = [(); 2].map(|()| Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default()));
            let config = short(&workshop, &format!("back-{lora}-{honest}"), lora, Kind::Vllm, &[&fakes[0], &fakes[1]]);
            let mut before = 0;
            let after = |step| match step {
                1 => fakes[0].die(),
                2 => {
                    fakes[0].revive();
                    before = fakes[0].seen("/v1/completions").len();
                    if !honest {
                        fakes[0].fail(update, usize::MAX, Fault::Idle);
                    }
                }
                _ => {}
            };
            let dir = train_with(&config, after).unwrap();
            assert_eq!(steps(&dir, "rollout/servers"), [2.0, 1.0, if honest { 2.0 } else { 1.0 }], "{lora} {honest}");
            assert!(steps(&dir, DIFFERENCE).iter().all(|difference| *difference < 1e-4));
            // Checks ask for single completions, steps for groups.
            let asked = fakes[0].seen("/v1/completions").split_off(before);
            assert!(!asked.is_empty());
            assert_eq!(asked.iter().any(|(_, body)| body["n"] != 1), honest);
        }
    }
}

#[test]
fn a_prefix_cache_of_earlier_weights_is_not_used() {
    let workshop = Workshop::new();
    for salted in [true, false] {
        let setup = Setup { prefix_cache: true, salted, ..Setup::default() };
        let fake = Fake::start(Kind::Vllm, &workshop.path("model"), setup.clone());
        let mut config = short(&workshop, &format!("cache-{salted}"), false, Kind::Vllm, &[&fake]);
        // Every step has all problems: each prompt is in the cache afterwards.
        config.train.prompts_per_step = 16;
        let dir = train(&config, Start::New).unwrap();
        assert!(steps(&dir, DIFFERENCE).iter().all(|difference| *difference < 1e-4));
        // Salts alone suffice. A server that ignores them is told to empty its cache, and checked again.
        assert_eq!(fake.seen("/reset_prefix_cache").is_empty(), salted);
        if !salted {
            let fake = Fake::start(Kind::Vllm, &workshop.path("model"), setup);
            config.name = "kept".into();
            config.rollout = short(&workshop, "kept", false, Kind::Vllm, &[&fake]).rollout;
            fake.fail("/reset_prefix_cache", usize::MAX, Fault::Status(404));
            refused(&config, Start::New, &["weights other than those after 1 updates", "a prefix cache"]);
        }
    }
}

#[test]
fn an_adapter_whose_loading_is_not_confirmed_is_loaded_again() {
    let workshop = Workshop::new();
    for (kind, load, unload) in [
        (Kind::Vllm, "/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
        (Kind::Sglang, "/load_lora_adapter", "/unload_lora_adapter"),
    ] {
        let fake = Fake::start(kind, &workshop.path("model"), Setup::default());
        let config = short(&workshop, &format!("unconfirmed-{kind:?}"), true, kind, &[&fake]);
        fake.fail(load, 1, Fault::Lost);
        let dir = train(&config, Start::New).unwrap();
        assert!(steps(&dir, DIFFERENCE).iter().all(|difference| *difference < 1e-4));
        // The first update, its repetition that is refused, and the one after the adapter was unloaded.
        let names = names(&fake, load);
        assert!(names[0] == names[1] && names[1] == names[2] && names[2] != names[3], "{names:?}");
        assert!(names.iter().all(|name| fake.seen(unload).iter().any(|(_, body)| body["lora_name"] == **name)));
    }
    // Regression: in a run of this name, every refusal of an adapter was taken for the message that it is loaded already.
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    let config = short(&workshop, "already", true, Kind::Vllm, &[&fake]);
    fake.fail("/v1/load_lora_adapter", usize::MAX, Fault::Status(400));
    refused(&config, Start::New, &["/v1/load_lora_adapter responds with status 400", "already", "The state is saved"]);
}

/// Return the names under which adapters were to be loaded, in order.
fn names(fake: &Fake, load: &str) -> Vec<String> {
    fake.seen(load).iter().map(|(_, body)| body["lora_name"].as_str().unwrap().to_string()).collect()
}

#[test]
fn a_resumed_run_uses_no_name_of_an_adapter_again() {
    let workshop = Workshop::new();
    let fake = Fake::start(Kind::Vllm, &workshop.path("model"), Setup::default());
    let config = short(&workshop, "names", true, Kind::Vllm, &[&fake]);
    fake.fail_after("/v1/load_lora_adapter", 1, "/v1/completions", Fault::Status(400));
    refused(&config, Start::New, &["The state is saved"]);
    fake.clear_faults();
    train(&config, Start::Resume).unwrap();
    let names = names(&fake, "/v1/load_lora_adapter");
    assert!(names[0].ends_with("-v1") && names[1].ends_with("-v1") && names.len() > 2, "{names:?}");
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
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
