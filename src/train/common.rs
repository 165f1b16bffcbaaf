//! The settings that runs of both commands have.

use std::path::{Path, PathBuf};

use super::folder::name_mistake;
use super::idle::{Idle, idle};
use crate::config::{Settings, twice};
use crate::data::problems::{DataConfig, TASKS};
use crate::eval::EvalConfig;
use crate::hub::RepoKind;
use crate::metrics::follow::LogConfig;
use crate::model::{LoraConfig, Precision};
use crate::optim::OptimConfig;

/// Settings of a run, of either command.
pub trait RunSettings: Settings + Clone {
    /// The command that starts the run.
    const COMMAND: &'static str;

    /// Return the settings that all runs have.
    fn common(&self) -> Common<'_>;

    /// Return the settings that are given and have no effect.
    fn idle(&self) -> Vec<Idle> {
        self.common().idle()
    }

    /// Return the settings that may name a repository of the Hub.
    fn names(&mut self) -> Vec<(RepoKind, &mut PathBuf)>;

    /// Return `output_dir` and `name`.
    fn place(&mut self) -> (&mut PathBuf, &mut String);

    /// Return the date that chat templates see; empty for the date of the start.
    fn date(&mut self) -> Option<&mut String> {
        None
    }
}

/// The settings that all runs have.
#[derive(Debug, Clone, Copy)]
pub struct Common<'a> {
    /// Folder of all runs.
    pub output_dir: &'a Path,
    /// Folder of this run within it.
    pub name: &'a str,
    /// Name of the device.
    pub device: &'a str,
    /// Number format of matrix products.
    pub precision: Precision,
    /// Adapters, if only they are trained.
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
    /// Maximum number of steps.
    pub steps: usize,
    /// Number of checkpoints to keep; 0 for all.
    pub save_total_limit: usize,
    /// Where metrics go beside `metrics.jsonl`.
    pub log: &'a LogConfig,
}

impl<'a> Common<'a> {
    /// Return the run's folder.
    pub fn dir(&self) -> PathBuf {
        self.output_dir.join(self.name)
    }

    /// Return the adapters' settings and their base model, if only adapters are trained.
    pub(super) fn adapter(&self) -> Option<(&'a LoraConfig, &'a Path)> {
        self.lora.map(|lora| (lora, self.model))
    }

    /// Return the mistakes in these settings, one line each.
    pub(super) fn mistakes(&self) -> Vec<String> {
        let lora = self.lora.map(LoraConfig::mistakes).unwrap_or_default();
        let name = name_mistake(self.name).into_iter().collect();
        let lists = [
            twice("data.families", &self.data.families),
            twice("log.report_to", &self.log.report_to),
            self.lora.and_then(|lora| twice("lora.target_modules", &lora.target_modules)),
        ];
        let lists = lists.into_iter().flatten().collect();
        let sections = [self.data.mistakes(), self.optim.mistakes(), self.eval.mistakes(), self.log.mistakes()];
        [name, sections.concat(), lora, lists].concat()
    }

    /// Return the settings that are given and have no effect.
    pub(super) fn idle(&self) -> Vec<Idle> {
        let DataConfig { train, eval, .. } = self.data;
        let [of_tasks, on_tasks] = [train, eval].map(|path| path.as_os_str() == TASKS);
        let both = format!("has no effect with data.train = {train:?} and data.eval = {eval:?}");
        let mut found = Vec::new();
        if !of_tasks && !on_tasks {
            let keys = ["families", "difficulties", "tasks_seed"];
            found.extend(idle("data", self.data, &keys, &format!("is for the embedded tasks and {both}")));
        }
        if !of_tasks {
            let reason = format!("is for the embedded tasks and has no effect with data.train = {train:?}");
            found.extend(idle("data", self.data, &["tasks_count"], &reason));
        }
        if of_tasks && on_tasks {
            let keys = ["prompt_field", "answer_field"];
            found.extend(idle("data", self.data, &keys, &format!("is for files and {both}")));
        }
        if self.eval.temperature == 0.0 {
            let reason = "has no effect with eval.temperature = 0, which always takes the most probable token";
            found.extend(idle("eval", self.eval, &["top_k", "top_p", "min_p", "seed"], reason));
            let reason = "repeats the same completion with eval.temperature = 0";
            found.extend(idle("eval", self.eval, &["num_generations"], reason));
        }
        found
    }

    /// Return a remark if the warm-up is longer than the run. It is not refused: a run that is shortened for a trial
    /// keeps the warm-up of its settings.
    pub(super) fn warmup_remark(&self) -> Option<String> {
        let (OptimConfig { warmup_steps, learning_rate, .. }, steps) = (self.optim, self.steps);
        (*warmup_steps > steps).then(|| {
            format!(
                "optim.warmup_steps = {warmup_steps} is longer than the run, which has at most {steps} steps: the learning \
                 rate ends at {:.2e} and never reaches optim.learning_rate = {learning_rate:e}",
                learning_rate * steps as f64 / *warmup_steps as f64
            )
        })
    }
}
