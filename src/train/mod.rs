//! Training: supervised fine-tuning and reinforcement learning, with checkpoints that continue exactly.

mod advice;
pub mod analyze;
pub mod batch;
pub mod checkpoint;
mod conflict;
pub mod cosine;
mod describe;
mod guard;
pub mod learner;
pub mod rl;
pub mod schedule;
mod score;
pub mod settings;
pub mod sft;
pub mod stage;
mod update;
mod workload;

pub use workload::Workload;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;

use crate::error::{Error, Result};
use crate::generate::Count;
use crate::metrics::Metrics;
use crate::model::{self, CausalLm, LoraConfig, ModelConfig, Precision};

/// What a run is given by whoever started it: where to compute, whom to tell, when to stop.
pub struct Session<'a> {
    /// Where tensors live.
    pub device: Device,
    /// Told of every step.
    pub observer: &'a mut dyn Observer,
    /// Set (by Ctrl-C) when the run should save its state and end.
    pub stop: &'a AtomicBool,
    /// Continue the newest checkpoint of the run directory instead of starting anew.
    pub resume: bool,
}

impl Session<'_> {
    fn should_stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// Someone who follows a run.
pub trait Observer {
    /// A phase began that takes `total` units (steps or problems).
    fn begin(&mut self, phase: &str, total: usize);
    /// Of the phase that just began, `done` units were over before this start.
    fn resume(&mut self, _done: usize) {}
    /// `done` units of the phase are over; `metrics` are those of the last step, when it was a step.
    fn advance(&mut self, done: usize, metrics: Option<&Metrics>);
    /// Completions of the phase, or of its present step, are being sampled; called at every token.
    fn sampled(&mut self, _count: &Count) {}
    /// Something worth a line.
    fn note(&mut self, line: &str);
}

/// Nobody.
impl Observer for () {
    fn begin(&mut self, _phase: &str, _total: usize) {}
    fn advance(&mut self, _done: usize, _metrics: Option<&Metrics>) {}
    fn note(&mut self, _line: &str) {}
}

/// The model a run starts from, on a device with autodiff: all of it trained, or adapters on it.
fn open_model(
    path: &Path,
    precision: Precision,
    lora: Option<&LoraConfig>,
    seed: u64,
    device: &Device,
) -> Result<(ModelConfig, CausalLm)> {
    if lora.is_some() && model::lora::is_adapter(path) {
        let message = "is an adapter already, and [lora] asks for another: `tempering merge` it and train the result";
        return Err(Error::file(path, message));
    }
    let (config, model) = model::load_as(path, device, precision)?;
    Ok(match lora {
        Some(lora) => (config, lora.attach(model, seed)),
        None => (config, model),
    })
}

/// Makes the run directory, refusing to overwrite another run's results.
fn open_run(dir: &Path, resume: bool) -> Result<PathBuf> {
    let used = dir.join("metrics.jsonl").is_file();
    if resume && !used {
        return Err(Error::Invalid(format!("{}: nothing to resume; start without --resume", dir.display())));
    }
    if !resume && used {
        return Err(Error::Invalid(format!(
            "{}: holds a run already; --resume continues it, --set name=… starts another, --overwrite replaces it",
            dir.display()
        )));
    }
    crate::files::create_dir(dir)?;
    Ok(dir.to_path_buf())
}
