//! Training: supervised fine-tuning and reinforcement learning, with checkpoints that continue exactly.

mod advice;
pub mod analyze;
pub mod batch;
pub mod checkpoint;
mod conflict;
pub mod cosine;
mod describe;
mod engine;
mod folder;
mod guard;
pub mod learner;
mod origin;
pub(crate) mod policy;
mod rl;
pub mod run;
pub mod settings;
pub mod sft;
mod state;
pub mod team;
pub mod token_scores;
mod trainer;
pub(crate) mod update;
mod workload;

pub(crate) use origin::{digests_of, settled};
pub use settings::RlConfig;
pub use trainer::{Finished, Trainer};
pub use workload::Workload;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;

use crate::error::{Error, Result};
use crate::generate::Count;
use crate::hub::{self, Part};
use crate::metrics::Metrics;
use crate::model::{self, CausalLm, LoraConfig, ModelConfig, Precision};
use crate::stop::Stop;

/// The environment of a run: whom to tell, when to stop, and whether it is new.
pub struct Session<'a> {
    /// Told of every step.
    pub observer: &'a mut dyn Observer,
    /// Set (by Ctrl-C) when the run should save its state and end.
    pub stop: &'a AtomicBool,
    /// Whether the run is new.
    pub start: Start,
}

impl<'a> Session<'a> {
    /// The request to end early.
    pub fn stop(&self) -> Stop<'a> {
        Stop::new(self.stop)
    }

    /// Follows the sampling of completions: tells the observer, and ends it when an early end is asked for.
    fn sampling(&mut self) -> impl FnMut(&Count) -> Result<()> {
        let stop = self.stop();
        let observer = &mut *self.observer;
        move |count| {
            observer.sampled(count);
            stop.check()
        }
    }
}

/// How a run starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// As a new run, in a folder without another.
    #[default]
    New,
    /// As a new run that replaces one of the same name once its first step is done.
    Overwrite,
    /// From the newest checkpoint of the run.
    Resume,
    /// From the checkpoint of this step; later ones are removed.
    ResumeFrom(usize),
}

impl Start {
    /// Whether an earlier run goes on.
    pub fn resumes(self) -> bool {
        matches!(self, Self::Resume | Self::ResumeFrom(_))
    }

    fn from(self) -> Option<usize> {
        if let Self::ResumeFrom(step) = self { Some(step) } else { None }
    }
}

/// Follows a run.
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

/// An observer that ignores everything.
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
    if lora.is_some() && model::lora::is_adapter(&hub::model(path, Part::Settings)?) {
        let message = "is an adapter already, and [lora] asks for another: `tempering merge` it and train the result";
        return Err(Error::file(path, message));
    }
    let Some(lora) = lora else { return model::load_as(path, device, precision) };
    let (config, model) = model::load_base(path, device, precision)?;
    lora.fits(&model).map_err(|message| Error::file(path, message))?;
    Ok((config, lora.attach(model, seed)))
}
