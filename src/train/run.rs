//! The life of a run, shared by `train` and `sft`: it is opened as new or resumed, then logged, evaluated and saved,
//! and finished once.
//!
//! A run has an identity, stored in `run.json` of its folder and in each of its checkpoints. Its folder is locked while
//! a process uses it. All files that it reads are opened before anything is written. An earlier run of the same name is
//! kept until the first step of the new one is finished.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checkpoint::{self, TrainedModel};
pub use super::common::{Common, RunSettings};
use super::folder::{METRICS, RunFolder};
pub use super::idle::Idle;
use super::origin::{self, Origin};
use super::{Session, Start};
use crate::data::Problem;
use crate::error::{Error, Result};
use crate::eval::{EvalConfig, Evaluation, EvaluationEvent, Subject, evaluate, record};
use crate::files;
use crate::metrics::follow::{Followers, StepData};
use crate::metrics::{Metrics, MetricsLog};
use crate::model::{CausalLm, ModelConfig};
use crate::optim::{AdamW, LrScheduler};
use crate::rollout::Sampler;

const SUMMARY: &str = "summary.json";

/// The state at which a run starts or is resumed, after `step`.
pub(super) struct StartPoint<S> {
    pub(super) step: usize,
    pub(super) config: ModelConfig,
    pub(super) model: CausalLm,
    pub(super) optimizer: AdamW,
    pub(super) state: S,
}

impl<S: Default> StartPoint<S> {
    fn first((config, model): (ModelConfig, CausalLm)) -> Self {
        Self { step: 0, config, model, optimizer: AdamW::default(), state: S::default() }
    }
}

/// Remove incomplete files that a killed process left in the run's folder.
fn clear(dir: &Path, note: &mut dyn FnMut(&str)) -> Result<()> {
    for name in files::recover(dir)? {
        note(&format!("{}: removed, because a killed process left it incomplete", dir.join(name).display()));
    }
    Ok(())
}

/// A run whose folder is locked by this process.
#[derive(Debug)]
pub(super) struct Run {
    folder: RunFolder,
    origin: Origin,
    /// Opened with the first line, so that a finished run keeps all its lines.
    log: Option<MetricsLog>,
    followers: Followers,
    /// The last step whose line in the log is kept; `None` for a new run.
    logged: Option<usize>,
    save_total_limit: usize,
    newest: Option<(usize, PathBuf)>,
    held_out: Vec<Problem>,
    eval: EvalConfig,
    /// Metrics of the newest step, until its evaluation is finished and they are logged.
    unlogged: Option<Metrics>,
}

/// `trainer_state.json`.
#[derive(Serialize, Deserialize)]
struct SavedState<S> {
    unlogged: Option<Metrics>,
    state: S,
}

impl Run {
    /// Open a run as `session.start` requests. The caller has already opened all other files that the run reads;
    /// `held_out` are the problems of its evaluations, and `given` has the digests of problems that are of no file.
    /// `open_model` opens the model before anything is written.
    ///
    /// # Errors
    /// Errors of `open_model`; a folder that belongs to another run or is in use; settings, data or model that differ
    /// from those a resumed run was started with; a damaged checkpoint.
    pub(super) fn open<C: RunSettings, S: Default + DeserializeOwned>(
        config: &C,
        session: &mut Session,
        device: &Device,
        (held_out, given): (Vec<Problem>, BTreeMap<String, String>),
        open_model: impl FnOnce() -> Result<(ModelConfig, CausalLm)>,
    ) -> Result<(Self, StartPoint<S>)> {
        let common = config.common();
        let mistakes = common.mistakes();
        if !mistakes.is_empty() {
            return Err(Error::Config { origin: "settings".to_string(), problems: mistakes });
        }
        let dir = common.dir();
        let mut note = |line: &str| session.observer.note(line);
        let (folder, mut origin, point, newest);
        let mut unlogged = None;
        if let Start::New | Start::Overwrite = session.start {
            point = StartPoint::first(open_model()?);
            let mut new = Origin::new(config, given)?;
            folder = RunFolder::claim(&dir, session.start == Start::Overwrite, &origin::reads(&common)?, &mut note)?;
            clear(&dir, &mut note)?;
            new.replaces = folder.replaces();
            new.write(&dir)?;
            (origin, newest) = (new, None);
        } else {
            folder = RunFolder::reopen(&dir, &mut note)?;
            origin = Origin::read(&dir)?;
            let changed = origin.compare(&dir, config, given)?;
            clear(&dir, &mut note)?;
            newest = checkpoint::choose(&dir, &origin.id, session.start.from())?;
            point = match &newest {
                Some((step, path)) => {
                    let checkpoint::Loaded { config, model, optimizer, state } =
                        checkpoint::load::<SavedState<S>>(path, device, common.precision)?;
                    unlogged = state.unlogged;
                    StartPoint { step: *step, config, model, optimizer, state: state.state }
                }
                None => StartPoint::first(open_model()?),
            };
            note(&format!("{}: resumed after step {}", dir.display(), point.step));
            changed.iter().for_each(|line| note(&format!("changed: {line}")));
            let length = |line: &String| line.contains("max_steps = ") || line.starts_with("cycles = ");
            if common.optim.lr_scheduler_type != LrScheduler::Constant && changed.iter().any(length) {
                note("the learning rate schedule now spans the new length of the run");
            }
        }
        common.warmup_remark().into_iter().for_each(|remark| note(&remark));
        let logged = newest.as_ref().map(|(step, _)| step - usize::from(unlogged.is_some()));
        // Before the settings are written and checkpoints removed: the program of `log.command` may be missing.
        let followers = Followers::open(common.log, &dir, &origin.id, logged)?;
        if session.start.from().is_some() {
            for step in checkpoint::remove_after(&dir, &origin.id, point.step)? {
                note(&format!("checkpoint-{step} removed: the run continues from checkpoint-{}", point.step));
            }
        }
        origin.write_settings(&dir, config)?;
        files::create_dir(&dir.join("completions"))?;
        let (save_total_limit, eval) = (common.save_total_limit, common.eval.clone());
        let run =
            Self { folder, origin, log: None, followers, logged, save_total_limit, newest, held_out, eval, unlogged };
        Ok((run, point))
    }

    /// Return the run's folder.
    pub(super) fn dir(&self) -> &Path {
        self.folder.dir()
    }

    /// Append a line to `metrics.jsonl`. With the first logged step, the run that this one replaces is removed.
    pub(super) fn log(&mut self, metrics: &Metrics) -> Result<()> {
        if self.log.is_none() {
            self.log = Some(MetricsLog::open(&self.dir().join(METRICS), self.logged)?);
        }
        self.log.as_mut().map_or(Ok(()), |log| log.append(metrics))?;
        self.followers.metrics(metrics)?;
        if metrics.get("step").is_some_and(|step| step > 0.0) { self.remove_replaced() } else { Ok(()) }
    }

    /// Remove the run that this one replaces, if it is still there.
    fn remove_replaced(&mut self) -> Result<()> {
        if self.folder.keep()? {
            self.origin.replaces = None;
            self.origin.write(self.folder.dir())?;
        }
        Ok(())
    }

    /// Pass a sample of a step's completions to the followers of the run, after its metrics.
    pub(super) fn show(&mut self, step: usize, sample: impl FnOnce() -> StepData) -> Result<()> {
        self.followers.sample(step, sample)
    }

    /// Evaluate after a step, and log the result together with the step's metrics. If this is interrupted, a resumed
    /// run repeats it in [`Self::catch_up`].
    pub(super) fn log_evaluated(
        &mut self,
        trained: TrainedModel,
        sampler: &mut dyn Sampler,
        metrics: &mut Metrics,
        session: &mut Session,
    ) -> Result<()> {
        self.unlogged = Some(metrics.clone());
        let evaluation = self.evaluate(trained, sampler, "during", session)?;
        metrics.extend("eval/", evaluation.metrics());
        let step = metrics.get("step").unwrap_or_default();
        session.observer.note(&format!("step {step}: held-out {}", evaluation.line()));
        self.log(metrics)?;
        self.unlogged = None;
        Ok(())
    }

    /// Repeat an evaluation that was interrupted, if there is one.
    pub(super) fn catch_up(
        &mut self,
        trained: TrainedModel,
        sampler: &mut dyn Sampler,
        session: &mut Session,
    ) -> Result<()> {
        let unlogged = self.unlogged.take();
        unlogged.map_or(Ok(()), |mut metrics| self.log_evaluated(trained, sampler, &mut metrics, session))
    }

    /// Evaluate. Completions are written to `completions/eval_<which>.jsonl`, except for evaluations `during` training.
    ///
    /// # Errors
    /// See [`evaluate`]; [`Error::Stopped`]; numbers of the model that are not finite.
    pub(super) fn evaluate(
        &self,
        TrainedModel { config, tokenizer, .. }: TrainedModel,
        sampler: &mut dyn Sampler,
        which: &str,
        session: &mut Session,
    ) -> Result<Evaluation> {
        session.observer.begin("evaluate", self.held_out.len());
        let path = self.dir().join(format!("completions/eval_{which}.jsonl"));
        let mut writer = if which == "during" { None } else { Some(record::CompletionsWriter::create(&path)?) };
        let mut done = 0;
        let (stop, subject) = (session.stop(), Subject { model_config: config, tokenizer });
        let records = evaluate(sampler, subject, &self.held_out, 0, &self.eval, &mut |event| {
            match event {
                EvaluationEvent::Sampled(count) => session.observer.sampled(count),
                EvaluationEvent::Graded(lines) => {
                    done += lines.len() / self.eval.num_generations;
                    session.observer.advance(done, None);
                    writer.as_mut().map_or(Ok(()), |writer| writer.append(lines))?;
                }
                EvaluationEvent::Resumed(_) => {}
            }
            stop.check()
        })?;
        let evaluation = Evaluation::new(records)?;
        if evaluation.overall().entropy.is_some_and(|entropy| !entropy.is_finite()) {
            return Err(Error::NotFinite(format!(
                "the {which} evaluation: the model's outputs are not finite (NaN or infinite), and no model is \
                 written. If this is due to training, lower optim.learning_rate in a new run, or continue from an \
                 older checkpoint"
            )));
        }
        if which != "during" {
            session.observer.note(&format!("{which}: held-out {}", evaluation.line()));
        }
        Ok(evaluation)
    }

    /// Write `checkpoint-<step>` unless it exists, and remove the oldest checkpoints beyond the limit.
    pub(super) fn save(
        &mut self,
        step: usize,
        trained: TrainedModel,
        optimizer: &AdamW,
        state: &impl Serialize,
    ) -> Result<PathBuf> {
        if let Some((newest, path)) = &self.newest
            && *newest == step
        {
            return Ok(path.clone());
        }
        let state = SavedState { unlogged: self.unlogged.clone(), state };
        let path = checkpoint::save(self.folder.dir(), &self.origin.id, step, trained, optimizer, &state)?;
        if step > 0 {
            self.remove_replaced()?;
        }
        checkpoint::prune(self.folder.dir(), &self.origin.id, self.save_total_limit)?;
        self.newest = Some((step, path.clone()));
        Ok(path)
    }

    /// Return the error that a run ends with after `error`. The state after the last finished `step` is saved first,
    /// unless numbers are not finite or files cannot be written.
    pub(super) fn ended(
        &mut self,
        error: Error,
        step: usize,
        trained: TrainedModel,
        optimizer: &AdamW,
        state: &impl Serialize,
    ) -> Error {
        if step == 0 || matches!(error, Error::NotFinite(_) | Error::Io { .. } | Error::Interrupted { .. }) {
            return error;
        }
        let checkpoint = match self.save(step, trained, optimizer, state) {
            Ok(checkpoint) => checkpoint,
            Err(unsaved) => return Error::Invalid(format!("{error}\nThe state could not be saved: {unsaved}")),
        };
        let (place, dir) = (checkpoint.display(), self.dir().display());
        let saved = format!("\nThe state is saved in {place}: continue with --resume {dir}");
        match error {
            Error::Stopped => Error::Interrupted { checkpoint },
            Error::Engine(why) => Error::Engine(why + &saved),
            Error::File { path, message } => Error::File { path, message: message + &saved },
            error => Error::Invalid(error.to_string() + &saved),
        }
    }

    /// Return the error that a run ends with after `error` between two updates of a step. The model is then no longer
    /// that of the last finished step, so nothing is saved.
    pub(super) fn ended_within_step(&self, error: &Error) -> Error {
        let dir = self.dir().display();
        let way_on = match &self.newest {
            Some((step, _)) => format!("--resume {dir} continues after step {step}"),
            None => format!("there is no checkpoint yet, so --resume {dir} starts from the beginning"),
        };
        Error::Invalid(format!("{error}\nThe step was interrupted between its updates, so nothing is saved; {way_on}"))
    }

    /// Return the summary of the run if it finished with `step` and all its files exist.
    pub(super) fn finished(&self, step: usize) -> Result<Option<Value>> {
        let path = self.dir().join(SUMMARY);
        let done = self.origin.finished == Some(step) && path.is_file() && self.dir().join("final").is_dir();
        done.then(|| files::read_json(&path)).transpose()
    }

    /// Write `final/`, for adapters also `adapter/`, and `summary.json`. Return the folder of the final model.
    pub(super) fn finish(&mut self, step: usize, trained: TrainedModel, summary: &Value) -> Result<PathBuf> {
        let TrainedModel { config, model, adapter, tokenizer, team: _ } = trained;
        let last = self.dir().join("final");
        checkpoint::export(&last, config, model, tokenizer)?;
        if let Some(adapter) = adapter {
            checkpoint::export_adapter(&self.dir().join("adapter"), model, adapter, tokenizer)?;
        }
        files::write_json(&self.dir().join(SUMMARY), summary)?;
        self.origin.finished = Some(step);
        self.origin.write(self.folder.dir())?;
        Ok(last)
    }
}
