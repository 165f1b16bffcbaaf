//! Runs with completions from a server equal runs of the built-in engine.

use std::path::Path;

use serde_json::Value;
use tempering::data::{Fields, load_problems};
use tempering::model::LoraConfig;
use tempering::noise::Purpose;
use tempering::train::{RlConfig, Start};

use super::fake::{Fake, Kind, Setup};
use super::runs::{lines, served, train};
use crate::support::Workshop;

/// Assert that two runs have equal figures, except timings, server metrics and entropies (from other passes).
fn assert_alike(own: &Path, served: &Path) {
    let (own, served) = (lines(own), lines(served));
    assert_eq!(own.len(), served.len());
    for (own, served) in own.iter().zip(&served) {
        for (name, value) in own.iter().filter(|(name, _)| !name.starts_with("timing_s/") && !name.starts_with("perf/"))
        {
            let close = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
                (Some(a), Some(b)) => (a - b).abs() <= 1e-4 * a.abs().max(1.0),
                _ => a == b,
            };
            let alike = match (value.as_array(), served[name].as_array()) {
                (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b)),
                _ => close(value, &served[name]),
            };
            assert!(alike, "{name}: {value} and {}", served[name]);
        }
    }
}

/// Make a server answer the requests of a run on the sums like the built-in engine.
fn register_keys(fake: &Fake, workshop: &Workshop, config: &RlConfig) {
    (0..64).for_each(|draw| fake.register_key([config.seed, Purpose::Rollouts.word(), draw]));
    let problems = load_problems(&workshop.path("sums.jsonl"), &Fields::default()).unwrap();
    problems.iter().for_each(|problem| fake.register_key([config.eval.seed, 0, problem.id]));
}

#[test]
fn a_run_on_servers_is_to_the_bit_the_run_of_our_own_engine() {
    for (kind, lora) in [(Kind::Vllm, false), (Kind::Vllm, true), (Kind::Sglang, false), (Kind::Sglang, true)] {
        let workshop = Workshop::new();
        let lora = lora.then(|| LoraConfig { r: 4, ..LoraConfig::default() });
        let own = RlConfig { lora, ..workshop.rl("own") };
        let fakes = [(); 2].map(|()| Fake::start(kind, &workshop.path("model"), Setup::default()));
        fakes.iter().for_each(|fake| register_keys(fake, &workshop, &own));
        let ours = train(&own, Start::New).unwrap();
        let remote =
            RlConfig { rollout: served(kind, &[&fakes[0], &fakes[1]]), ..RlConfig { name: "remote".into(), ..own } };
        let theirs = train(&remote, Start::New).unwrap();
        assert_alike(&ours, &theirs);
        let weights = |dir: &Path| std::fs::read(dir.join("final/model.safetensors")).unwrap();
        assert!(weights(&ours) == weights(&theirs), "{kind:?}");
        // Both servers got requests, and no adapter of the run is left on them.
        let generate = if kind == Kind::Vllm { "/v1/completions" } else { "/generate" };
        assert!(fakes.iter().all(|fake| !fake.seen(generate).is_empty()));
        assert!(fakes.iter().all(|fake| fake.adapters().is_empty()), "{:?}", fakes[0].adapters());
        assert!(std::fs::read_dir(theirs.join("sync")).unwrap().next().is_none());
    }
}
