//! Short runs on servers.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value};
use tempering::metrics::Metrics;
use tempering::model::LoraConfig;
use tempering::objective::Correction;
use tempering::rollout::settings::{RolloutConfig, ServedConfig};
use tempering::stage::StageExit;
use tempering::train::{Observer, RlConfig, Session, Start, Trainer};

use super::fake::{Fake, Kind};
use crate::support::Workshop;

/// Train; return the run's folder.
pub(super) fn train(config: &RlConfig, start: Start) -> tempering::Result<PathBuf> {
    session(config, start, &mut (), &AtomicBool::new(false))
}

/// Train until the end or until `stop` is set; return the run's folder.
pub(super) fn session(
    config: &RlConfig,
    start: Start,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> tempering::Result<PathBuf> {
    let mut session = Session { observer, stop, start };
    Ok(Trainer::new(config).run(&mut session)?.dir)
}

/// Observer that calls a function with the number of each finished step.
pub(super) struct AfterStep<F>(pub(super) F);

impl<F: FnMut(usize)> Observer for AfterStep<F> {
    fn begin(&mut self, _phase: &str, _total: usize) {}
    fn advance(&mut self, done: usize, metrics: Option<&Metrics>) {
        if metrics.is_some() {
            (self.0)(done);
        }
    }
    fn note(&mut self, _line: &str) {}
}

/// Train and call `after` with the number of each finished step.
pub(super) fn train_with(config: &RlConfig, after: impl FnMut(usize)) -> tempering::Result<PathBuf> {
    session(config, Start::New, &mut AfterStep(after), &AtomicBool::new(false))
}

/// Return the lines of a run's log.
pub(super) fn lines(dir: &Path) -> Vec<Map<String, Value>> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Return a metric of each step.
pub(super) fn steps(dir: &Path, name: &str) -> Vec<f64> {
    let steps = lines(dir).into_iter().filter(|line| line["step"].as_f64() > Some(0.0) && line.contains_key("loss"));
    steps.map(|line| line[name].as_f64().unwrap()).collect()
}

/// Return settings for sampling from servers.
pub(super) fn served(kind: Kind, fakes: &[&Fake]) -> RolloutConfig {
    let served = ServedConfig {
        urls: fakes.iter().map(|fake| fake.url()).collect(),
        start_timeout_s: 5.0,
        retries: 1,
        correction: Correction::NONE,
        ..ServedConfig::default()
    };
    match kind {
        Kind::Vllm => RolloutConfig::Vllm(served),
        Kind::Sglang => RolloutConfig::Sglang(served),
    }
}

/// Return the settings of three steps that train adapters or all weights.
pub(super) fn short(workshop: &Workshop, name: &str, lora: bool, kind: Kind, fakes: &[&Fake]) -> RlConfig {
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

/// Change the settings for sampling from servers.
pub(super) fn change(rollout: &mut RolloutConfig, change: impl FnOnce(&mut ServedConfig)) {
    let (RolloutConfig::Vllm(served) | RolloutConfig::Sglang(served)) = rollout else { panic!("not served") };
    change(served);
}

/// Run a training that must fail with an error that contains each of `parts`.
pub(super) fn refused(config: &RlConfig, start: Start, parts: &[&str]) {
    let error = train(config, start).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{part}: {error}");
    }
}
