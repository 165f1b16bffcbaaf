//! Training: supervised fine-tuning and reinforcement learning. A run that is resumed from a checkpoint gives the same
//! result as one that was never interrupted.

mod advice;
pub mod analyze;
pub mod batch;
pub mod checkpoint;
mod common;
mod conflict;
pub mod cosine;
mod describe;
mod engine;
mod folder;
mod guard;
mod idle;
pub mod learner;
mod origin;
mod output;
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
pub use workload::{StepSize, Workload};

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;

use crate::error::{Error, Result};
use crate::generate::Count;
use crate::hub::{self, ModelFiles};
use crate::metrics::Metrics;
use crate::model::{self, CausalLm, LoraConfig, ModelConfig, Precision};
use crate::stop::Stop;

/// The environment of a run: its observer, its stop flag, and how it starts.
pub struct Session<'a> {
    /// Is notified of every step.
    pub observer: &'a mut dyn Observer,
    /// Set (by Ctrl-C) to make the run save its state and end.
    pub stop: &'a AtomicBool,
    /// How the run starts.
    pub start: Start,
}

impl<'a> Session<'a> {
    /// Return the stop request, which ends the run early.
    pub fn stop(&self) -> Stop<'a> {
        Stop::new(self.stop)
    }

    /// Return a callback for sampling that notifies the observer and fails once a stop is requested.
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
    /// As a new run, in a folder that holds no run.
    #[default]
    New,
    /// As a new run that replaces one of the same name after its first step.
    Overwrite,
    /// From the newest checkpoint of the run.
    Resume,
    /// From the checkpoint of this step; later ones are removed.
    ResumeFrom(usize),
}

impl Start {
    /// Whether an earlier run is resumed.
    pub fn resumes(self) -> bool {
        matches!(self, Self::Resume | Self::ResumeFrom(_))
    }

    fn from(self) -> Option<usize> {
        if let Self::ResumeFrom(step) = self { Some(step) } else { None }
    }
}

/// Receives the progress of a run.
pub trait Observer {
    /// A phase of `total` units (steps or problems) has begun.
    fn begin(&mut self, phase: &str, total: usize);
    /// `done` units of the phase that has just begun were finished before this start.
    fn resume(&mut self, _done: usize) {}
    /// `done` units of the phase are finished; `metrics` are those of the last step, if the units are steps.
    fn advance(&mut self, done: usize, metrics: Option<&Metrics>);
    /// Completions of the phase or of its current step are being sampled; called at every token.
    fn sampled(&mut self, _count: &Count) {}
    /// A message for the user, one line.
    fn note(&mut self, line: &str);
}

/// An observer that ignores everything.
impl Observer for () {
    fn begin(&mut self, _phase: &str, _total: usize) {}
    fn advance(&mut self, _done: usize, _metrics: Option<&Metrics>) {}
    fn note(&mut self, _line: &str) {}
}

/// Open the initial model of a run on a device with autodiff. All weights are trained, or adapters only.
fn open_model(
    path: &Path,
    precision: Precision,
    lora: Option<&LoraConfig>,
    seed: u64,
    device: &Device,
) -> Result<(ModelConfig, CausalLm)> {
    if lora.is_some() && model::lora::is_adapter(&hub::model(path, ModelFiles::Settings)?) {
        let message =
            "is already an adapter, and [lora] would add another: merge it with `tempering merge` and train the result";
        return Err(Error::file(path, message));
    }
    let Some(lora) = lora else { return model::load_as(path, device, precision) };
    let (config, model) = model::load_base(path, device, precision)?;
    lora.fits(&model).map_err(|message| Error::file(path, message))?;
    Ok((config, lora.attach(model, seed)))
}
