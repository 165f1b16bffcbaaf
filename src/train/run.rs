//! A run: opened once, as new or to go on; logged, evaluated and saved while it lasts; finished once. `train` and `sft` are
//! the same here.
//!
//! A run has an identity, in `run.json` of its folder and in each of its checkpoints. Its folder is locked while a process
//! uses it. Everything it reads is opened before anything is written, and an earlier run of its name stays until its first
//! step is done.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checkpoint::{self, Trained};
use super::folder::{Folder, METRICS, name_mistake};
use super::origin::{self, Origin};
use super::{Session, Start};
use crate::config::Settings;
use crate::data::Problem;
use crate::data::problems::DataConfig;
use crate::error::{Error, Result};
use crate::eval::{EvalConfig, Evaluation, Event, Subject, evaluate, record};
use crate::files;
use crate::hub::Kind;
use crate::metrics::follow::{Followers, LogConfig, Sample};
use crate::metrics::{Metrics, MetricsLog};
use crate::model::{CausalLm, LoraConfig, ModelConfig, Precision};
use crate::optim::{AdamW, LrScheduler, OptimConfig};
use crate::rollout::Sampler;

const SUMMARY: &str = "summary.json";

/// Settings of a run, whatever it trains by.
pub trait RunSettings: Settings + Clone {
    /// The command that starts such a run.
    const COMMAND: &'static str;

    /// What every run has.
    fn common(&self) -> Common<'_>;

    /// Settings that may name a repository of the Hub.
    fn names(&mut self) -> Vec<(Kind, &mut PathBuf)>;

    /// `output_dir` and `name`.
    fn place(&mut self) -> (&mut PathBuf, &mut String);

    /// The date that chat templates see; empty for that of the start.
    fn date(&mut self) -> Option<&mut String> {
        None
    }
}

/// The settings that every run has.
#[derive(Debug, Clone, Copy)]
pub struct Common<'a> {
    /// Folder of all runs.
    pub output_dir: &'a Path,
    /// Folder of this run within it.
    pub name: &'a str,
    /// Name of the device.
    pub device: &'a str,
    /// Format of matrix products.
    pub precision: Precision,
    /// Adapters, when only they are trained.
    pub lora: Option<&'a LoraConfig>,
    /// Folder of the model; empty for a new one.
    pub model: &'a Path,
    /// Folder of the tokenizer.
    pub tokenizer: &'a Path,
    /// Problems.
    pub data: &'a DataConfig,
    /// The optimiser.
    pub optim: &'a OptimConfig,
    /// Evaluation on held-out problems.
    pub eval: &'a EvalConfig,
    /// Checkpoints kept; 0 for all.
    pub save_total_limit: usize,
    /// Who follows the metrics.
    pub log: &'a LogConfig,
}

impl<'a> Common<'a> {
    /// The run's folder.
    pub fn dir(&self) -> PathBuf {
        self.output_dir.join(self.name)
    }

    /// What a checkpoint of adapters must know.
    pub(super) fn adapter(&self) -> Option<(&'a LoraConfig, &'a Path)> {
        self.lora.map(|lora| (lora, self.model))
    }

    /// What cannot work, one line each.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let lora = self.lora.map(LoraConfig::mistakes).unwrap_or_default();
        let name = name_mistake(self.name).into_iter().collect();
        [name, self.data.mistakes(), self.optim.mistakes(), self.eval.mistakes(), self.log.mistakes(), lora].concat()
    }
}

/// Where a run begins or goes on: after `step`, with what is trained.
pub(super) struct Point<S> {
    pub(super) step: usize,
    pub(super) config: ModelConfig,
    pub(super) model: CausalLm,
    pub(super) optimizer: AdamW,
    pub(super) state: S,
}

impl<S: Default> Point<S> {
    fn first((config, model): (ModelConfig, CausalLm)) -> Self {
        Self { step: 0, config, model, optimizer: AdamW::default(), state: S::default() }
    }
}

/// Clears away what a killed process left half-done in the run's folder.
fn clear(dir: &Path, note: &mut dyn FnMut(&str)) -> Result<()> {
    for name in files::recover(dir)? {
        note(&format!("{}: removed, a killed process left it half-done", dir.join(name).display()));
    }
    Ok(())
}

/// A run whose folder this process has.
#[derive(Debug)]
pub(super) struct Run {
    folder: Folder,
    origin: Origin,
    /// Opened by the first line: a run that has nothing left to do keeps all of its lines.
    log: Option<MetricsLog>,
    followers: Followers,
    /// The step whose line is the last that stays; none for a new run.
    logged: Option<usize>,
    save_total_limit: usize,
    newest: Option<(usize, PathBuf)>,
    held_out: Vec<Problem>,
    eval: EvalConfig,
    /// What the newest step measured, while the evaluation that belongs to it lasts.
    unlogged: Option<Metrics>,
}

/// `trainer_state.json`.
#[derive(Serialize, Deserialize)]
struct Saved<S> {
    unlogged: Option<Metrics>,
    state: S,
}

impl Run {
    /// Opens a run, as `session.start` says. The caller has opened all that the run reads (`held_out`: the problems that it
    /// is evaluated on); `open_model` opens the model, before anything is written.
    ///
    /// # Errors
    /// What `open_model` says; a folder that is not this run's or is in use; settings, data or model other than those a
    /// resumed run was started with; a damaged checkpoint.
    pub(super) fn open<C: RunSettings, S: Default + DeserializeOwned>(
        config: &C,
        session: &mut Session,
        device: &Device,
        held_out: Vec<Problem>,
        open_model: impl FnOnce() -> Result<(ModelConfig, CausalLm)>,
    ) -> Result<(Self, Point<S>)> {
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
            point = Point::first(open_model()?);
            let mut new = Origin::new(config)?;
            folder = Folder::claim(&dir, session.start == Start::Overwrite, &origin::reads(&common)?, &mut note)?;
            clear(&dir, &mut note)?;
            new.replaces = folder.replaces();
            new.write(&dir)?;
            (origin, newest) = (new, None);
        } else {
            folder = Folder::reopen(&dir, &mut note)?;
            origin = Origin::read(&dir)?;
            let changed = origin.compare(&dir, config)?;
            clear(&dir, &mut note)?;
            newest = checkpoint::choose(&dir, &origin.id, session.start.from())?;
            point = match &newest {
                Some((step, path)) => {
                    let checkpoint::Loaded { config, model, optimizer, state } =
                        checkpoint::load::<Saved<S>>(path, device, common.precision)?;
                    unlogged = state.unlogged;
                    Point { step: *step, config, model, optimizer, state: state.state }
                }
                None => Point::first(open_model()?),
            };
            note(&format!("{}: resumed after step {}", dir.display(), point.step));
            changed.iter().for_each(|line| note(&format!("changed: {line}")));
            let length = |line: &String| line.contains("max_steps = ") || line.starts_with("cycles = ");
            if common.optim.lr_scheduler_type != LrScheduler::Constant && changed.iter().any(length) {
                note("the learning rate follows its schedule over the new length from here on");
            }
            if session.start.from().is_some() {
                for step in checkpoint::remove_after(&dir, &origin.id, point.step)? {
                    note(&format!("checkpoint-{step} removed: the run goes on from checkpoint-{}", point.step));
                }
            }
        }
        origin.write_settings(&dir, config)?;
        files::create_dir(&dir.join("completions"))?;
        let logged = newest.as_ref().map(|(step, _)| step - usize::from(unlogged.is_some()));
        let followers = Followers::open(common.log, &dir, &origin.id, logged)?;
        let (save_total_limit, eval) = (common.save_total_limit, common.eval.clone());
        let run =
            Self { folder, origin, log: None, followers, logged, save_total_limit, newest, held_out, eval, unlogged };
        Ok((run, point))
    }

    /// The run's folder.
    pub(super) fn dir(&self) -> &Path {
        self.folder.dir()
    }

    /// Appends to `metrics.jsonl`. The first step that is logged ends the wait of a run that this one replaces.
    pub(super) fn log(&mut self, metrics: &Metrics) -> Result<()> {
        if self.log.is_none() {
            self.log = Some(MetricsLog::open(&self.dir().join(METRICS), self.logged)?);
        }
        self.log.as_mut().map_or(Ok(()), |log| log.append(metrics))?;
        self.followers.metrics(metrics)?;
        if metrics.get("step").is_some_and(|step| step > 0.0) { self.prove() } else { Ok(()) }
    }

    /// Ends the wait of a run that this one replaces.
    fn prove(&mut self) -> Result<()> {
        if self.folder.keep()? {
            self.origin.replaces = None;
            self.origin.write(self.folder.dir())?;
        }
        Ok(())
    }

    /// Shows those who follow the run what the completions of a step are like, after its metrics.
    pub(super) fn show(&mut self, step: usize, sample: impl FnOnce() -> Sample) -> Result<()> {
        self.followers.sample(step, sample)
    }

    /// Evaluates after a step, and logs what came out with the step's own figures. Where that is interrupted, a resumed run
    /// does it in [`Self::catch_up`].
    pub(super) fn log_evaluated(
        &mut self,
        trained: Trained,
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

    /// Makes up for an evaluation that was interrupted.
    pub(super) fn catch_up(
        &mut self,
        trained: Trained,
        sampler: &mut dyn Sampler,
        session: &mut Session,
    ) -> Result<()> {
        let unlogged = self.unlogged.take();
        unlogged.map_or(Ok(()), |mut metrics| self.log_evaluated(trained, sampler, &mut metrics, session))
    }

    /// Evaluates; completions go to `completions/eval_<which>.jsonl`, but for evaluations `during` training.
    ///
    /// # Errors
    /// As [`evaluate`], [`Error::Stopped`], and when the model gives no finite numbers.
    pub(super) fn evaluate(
        &self,
        Trained { config, tokenizer, .. }: Trained,
        sampler: &mut dyn Sampler,
        which: &str,
        session: &mut Session,
    ) -> Result<Evaluation> {
        session.observer.begin("evaluate", self.held_out.len());
        let path = self.dir().join(format!("completions/eval_{which}.jsonl"));
        let mut writer = if which == "during" { None } else { Some(record::Writer::create(&path)?) };
        let mut done = 0;
        let (stop, subject) = (session.stop(), Subject { model_config: config, tokenizer });
        let records = evaluate(sampler, subject, &self.held_out, 0, &self.eval, &mut |event| {
            match event {
                Event::Sampled(count) => session.observer.sampled(count),
                Event::Graded(lines) => {
                    done += lines.len() / self.eval.num_generations;
                    session.observer.advance(done, None);
                    writer.as_mut().map_or(Ok(()), |writer| writer.append(lines))?;
                }
                Event::Resumed(_) => {}
            }
            stop.check()
        })?;
        let evaluation = Evaluation::new(records)?;
        if evaluation.overall().entropy.is_some_and(|entropy| !entropy.is_finite()) {
            return Err(Error::NotFinite(format!(
                "the {which} evaluation: the model gives numbers that are not finite; nothing is exported. If training made \
                 it so, lower optim.learning_rate in a new run, or go on from an older checkpoint"
            )));
        }
        if which != "during" {
            session.observer.note(&format!("{which}: held-out {}", evaluation.line()));
        }
        Ok(evaluation)
    }

    /// Writes `checkpoint-<step>`, unless it is there, and removes the oldest ones beyond the limit.
    pub(super) fn save(
        &mut self,
        step: usize,
        trained: Trained,
        optimizer: &AdamW,
        state: &impl Serialize,
    ) -> Result<PathBuf> {
        if let Some((newest, path)) = &self.newest
            && *newest == step
        {
            return Ok(path.clone());
        }
        let state = Saved { unlogged: self.unlogged.clone(), state };
        let path = checkpoint::save(self.folder.dir(), &self.origin.id, step, trained, optimizer, &state)?;
        if step > 0 {
            self.prove()?;
        }
        checkpoint::prune(self.folder.dir(), &self.origin.id, self.save_total_limit)?;
        self.newest = Some((step, path.clone()));
        Ok(path)
    }

    /// The error that a run ends with after `error`: the state after `step`, the last that is done, is saved first, unless the
    /// numbers are broken or files cannot be written.
    pub(super) fn ended(
        &mut self,
        error: Error,
        step: usize,
        trained: Trained,
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

    /// The summary of the run, when all of it is written and ends with `step`.
    pub(super) fn finished(&self, step: usize) -> Result<Option<Value>> {
        let path = self.dir().join(SUMMARY);
        let done = self.origin.finished == Some(step) && path.is_file() && self.dir().join("final").is_dir();
        done.then(|| files::read_json(&path)).transpose()
    }

    /// Writes `final/`, for adapters `adapter/`, and `summary.json`; gives the folder of the final model.
    pub(super) fn finish(&mut self, step: usize, trained: Trained, summary: &Value) -> Result<PathBuf> {
        let Trained { config, model, adapter, tokenizer, team: _ } = trained;
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
