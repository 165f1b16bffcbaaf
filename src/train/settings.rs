//! Settings of a reinforcement-learning run: a tree of strict tables, each defined by the module that uses it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::idle::idle;
use super::learner::{ActivationCheckpointing, Learner};
use super::run::{Common, Idle, RunSettings};
use super::workload::{StepSize, Workload};
use crate::config::{self, COUNTS, LENGTHS, ROWS, Settings};
use crate::data::problems::DataConfig;
use crate::error::Result;
use crate::eval::EvalConfig;
use crate::hub::RepoKind;
use crate::metrics::follow::LogConfig;
use crate::model::{self, CacheShape, LoraConfig, ModelConfig, Precision};
use crate::optim::OptimConfig;
use crate::reward::{RewardCommand, RewardKind};
use crate::rollout::settings::{RolloutConfig, Sync};
use crate::stage::Controller;
use crate::stage::Stage;
use crate::text::prompt::PromptConfig;
use crate::threads;

/// Settings of `tempering train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RlConfig {
    /// Random seed of the sampling noise and the data order.
    #[serde(default)]
    pub seed: u64,
    /// Directory that contains all runs.
    #[serde(default = "output_dir")]
    pub output_dir: PathBuf,
    /// Name of the run: its directory within `output_dir`.
    pub name: String,
    /// Free-text note, shown in the summary and the report of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Compute device: cpu, ndarray, cuda, rocm, vulkan, metal or wgpu, optionally with an index: `cuda:1`.
    #[serde(default = "cpu")]
    pub device: String,
    /// Model to train.
    #[serde(default)]
    pub model: ModelSource,
    /// LoRA: train low-rank adapters instead of all weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Training and evaluation data.
    #[serde(default)]
    pub data: DataConfig,
    /// Prompt format.
    #[serde(default)]
    pub prompt: PromptConfig,
    /// Engine that generates the completions.
    #[serde(default)]
    pub rollout: RolloutConfig,
    /// Batch sizes, checkpoints and logging intervals.
    #[serde(default)]
    pub train: RlTrain,
    /// AdamW optimiser and learning-rate schedule.
    #[serde(default)]
    pub optim: OptimConfig,
    /// Evaluation before, during and after training.
    #[serde(default)]
    pub eval: EvalConfig,
    /// Destinations of the metrics in addition to `metrics.jsonl`.
    #[serde(default)]
    pub log: LogConfig,
    /// User-defined reward program, for stages with a reward of type `command`.
    #[serde(default)]
    pub reward: RewardCommand,
    /// Training stages, in order of execution.
    pub stages: Vec<Stage>,
    /// Number of passes through the list of stages.
    #[serde(default = "once")]
    pub cycles: usize,
    /// Controller that switches between two stages based on measurements, instead of running the stages in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<Controller>,
}

fn once() -> usize {
    1
}

fn output_dir() -> PathBuf {
    "runs".into()
}

fn cpu() -> String {
    "cpu".to_string()
}

/// The model to start from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSource {
    /// Path of a Hugging Face model directory or of a PEFT adapter directory, which is merged into its base model; or
    /// Hub name `owner/name[@revision]`.
    pub path: PathBuf,
    /// Precision of matrix products: f32, bf16, or tf32 (NVIDIA only). Weights and all other operations stay in f32. On
    /// the cpu device bf16 only rounds the weights, which makes training slower.
    pub dtype: Precision,
}

/// Batches and checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlTrain {
    /// Number of problems per step.
    pub prompts_per_step: usize,
    /// Number of completions per problem (group size).
    pub num_generations: usize,
    /// Maximum number of tokens sampled for training, including those of replaced groups; the run ends after the step
    /// that reaches it. 0 for no limit. Used to compare methods at an equal token budget.
    pub max_sampled_tokens: u64,
    /// Maximum number of completions decoded in parallel.
    pub generation_rows: usize,
    /// Maximum number of tokens in the KV cache during sampling; fewer completions are decoded in parallel to stay
    /// within it. A recurrent state counts as the number of tokens that take the same memory. 0 for no limit.
    pub generation_cache_tokens: usize,
    /// Number of decoding steps between two reads of the sampled tokens, which detect finished completions; only on
    /// devices with their own memory. Does not change the completions.
    pub generation_tokens_per_read: usize,
    /// Maximum number of tokens per forward and backward pass; does not affect the result.
    pub tokens_per_microbatch: usize,
    /// Activation (gradient) checkpointing: activations kept for the backward pass; does not affect the result.
    pub activation_checkpointing: ActivationCheckpointing,
    /// Interval in steps between checkpoints; 0 saves only at the end.
    pub save_steps: usize,
    /// Maximum number of checkpoints to keep; the oldest ones are deleted. 0 keeps all.
    pub save_total_limit: usize,
    /// Interval in steps between evaluations; 0 evaluates only before and after training.
    pub eval_steps: usize,
    /// Interval in steps at which a sample of the completions is written, in addition to step 1; 0 disables.
    pub log_completions_steps: usize,
    /// Interval in steps between measurements of the entropy conflict (metrics `conflict/…`); 0 disables.
    pub conflict_steps: usize,
    /// Interval in steps between measurements of the cosine of the accuracy and length gradients, which take two
    /// additional forward and backward passes; 0 disables.
    pub conflict_cosine_steps: usize,
    /// Prefixes of parameter names; for each of them the cosine is also measured over the matching parameters alone.
    pub conflict_cosine_layers: Vec<String>,
}

impl Default for RlTrain {
    fn default() -> Self {
        Self {
            prompts_per_step: 8,
            num_generations: 8,
            max_sampled_tokens: 0,
            generation_rows: 256,
            generation_cache_tokens: 0,
            generation_tokens_per_read: 8,
            tokens_per_microbatch: 8192,
            activation_checkpointing: ActivationCheckpointing::None,
            save_steps: 50,
            save_total_limit: 2,
            eval_steps: 0,
            log_completions_steps: 20,
            conflict_steps: 1,
            conflict_cosine_steps: 0,
            conflict_cosine_layers: Vec::new(),
        }
    }
}

impl Default for RlConfig {
    /// `configs/quickstart.toml`.
    fn default() -> Self {
        let text = include_str!("../../configs/quickstart.toml");
        toml::from_str(text).expect("the embedded quickstart.toml is tested to be valid")
    }
}

impl Settings for RlConfig {
    fn validate(&self) -> Vec<String> {
        let mut problems = [self.common().mistakes(), self.prompt.mistakes()].concat();
        if self.model.path.as_os_str().is_empty() {
            problems.push(
                "model.path is empty: give the folder of a model, or owner/name on the Hub, with --set model.path=MODEL"
                    .to_string(),
            );
        }
        let train = &self.train;
        for (key, value, most) in [
            ("prompts_per_step", train.prompts_per_step, ROWS),
            ("num_generations", train.num_generations, ROWS),
            ("generation_rows", train.generation_rows, ROWS),
            ("generation_tokens_per_read", train.generation_tokens_per_read, LENGTHS),
            ("tokens_per_microbatch", train.tokens_per_microbatch, usize::MAX),
        ] {
            problems.extend(config::count(&format!("train.{key}"), value, 1, most));
        }
        let (prompts, each) = (train.prompts_per_step, train.num_generations);
        if prompts <= ROWS && each <= ROWS && prompts * each > ROWS {
            problems.push(format!(
                "train.num_generations = {each} for each of prompts_per_step = {prompts} makes {} completions per \
                 step, more than the maximum of {ROWS}: lower one of the two",
                prompts * each
            ));
        }
        problems.extend(config::count("train.max_sampled_tokens", train.max_sampled_tokens as usize, 0, COUNTS));
        if train.num_generations == 1 {
            problems.push(
                "train.num_generations = 1 must be at least 2, because an advantage compares the completions of a \
                 problem"
                    .to_string(),
            );
        }
        problems.extend(self.rollout.mistakes());
        match self.rollout.served().map(|(_, served)| served.sync) {
            Some(Sync::None) => {
                problems.push(
                    "rollout.sync = \"none\" sends no new weights to the servers, which training needs".to_string(),
                );
            }
            None if self.rollout.own().is_some_and(|own| own.dtype == Some(self.model.dtype)) => {
                problems.push("rollout.dtype equals model.dtype, which is its default: remove it".to_string());
            }
            Some(Sync::Lora) if self.lora.is_none() => {
                problems.push(
                    "rollout.sync = \"lora\" needs adapters: add a section [lora], or set rollout.sync = \"disk\""
                        .to_string(),
                );
            }
            _ => {}
        }
        if self.stages.is_empty() {
            problems.push("stages is empty: add at least one [[stages]] table".to_string());
        }
        problems.extend(self.stages.iter().enumerate().flat_map(|(index, stage)| stage.mistakes(index)));
        problems.extend(self.ambiguous_stages());
        problems.extend(config::twice("train.conflict_cosine_layers", &train.conflict_cosine_layers));
        let completions = train.prompts_per_step.saturating_mul(train.num_generations);
        for (index, stage) in self.stages.iter().enumerate().filter(|(_, s)| s.loss.steps_per_generation > completions)
        {
            problems.push(format!(
                "stages.{index}.loss.steps_per_generation = {} must not be above the {completions} completions of a step",
                stage.loss.steps_per_generation
            ));
        }
        problems.extend(config::count("cycles", self.cycles, 1, 1_000_000));
        if let Some(controller) = &self.controller {
            problems.extend(controller.mistakes(&self.stages, self.cycles));
            if controller.cancelled_high < 1.0 && train.conflict_steps == 0 {
                let high = controller.cancelled_high;
                problems.push(format!(
                    "controller.cancelled_high = {high} needs measurements of the conflict: set train.conflict_steps = \
                     1, or controller.cancelled_high = 1"
                ));
            }
        }
        let used =
            self.stages.iter().any(|stage| stage.rewards.iter().any(|kind| matches!(kind, RewardKind::Command(_))));
        problems.extend(self.reward.mistakes(used));
        problems.extend(self.idle().into_iter().map(|idle| idle.mistake));
        problems
    }
}

impl RlConfig {
    /// Return mistakes in the names of stages. A stage may occur again under its name. Two stages with the same name
    /// and other settings are refused: metrics and the report would take them for one.
    fn ambiguous_stages(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, stage) in self.stages.iter().enumerate() {
            let same = |other: &Stage| Stage { exit: stage.exit, ..other.clone() } == *stage;
            let other = |other: &Stage| other.name == stage.name && !same(other);
            if let Some(first) = self.stages[..index].iter().position(other) {
                problems.push(format!(
                    "stages.{index}.name = {:?} is also the name of stages.{first}, which has other settings: the \
                     report could not distinguish them; choose another name",
                    stage.name
                ));
            }
        }
        problems
    }

    /// Return the number of steps of the run if no stage ends early.
    pub fn max_steps(&self) -> usize {
        match &self.controller {
            Some(controller) => controller.max_steps,
            None => self.cycles * self.stages.iter().map(|stage| stage.exit.max_steps).sum::<usize>(),
        }
    }

    /// Return the workload of a step for the memory estimate: the largest micro-batch and the largest cache of any
    /// stage.
    ///
    /// # Errors
    /// If the model's configuration cannot be read.
    pub fn workload(&self) -> Result<(ModelConfig, Workload)> {
        let model = model::config_of(&self.model.path)?;
        let (train, prompt_length) = (&self.train, self.data.max_prompt_length);
        let completion_length = self.stages.iter().flat_map(|stage| stage.sampling.clips()).max().unwrap_or(0);
        let sequences = train.prompts_per_step * train.num_generations;
        let taken = (train.tokens_per_microbatch / (prompt_length + completion_length)).clamp(1, sequences);
        let shape = |completions: usize| {
            let prompts = train.prompts_per_step.min(completions);
            CacheShape { prompts, prompt_length, completions, completion_length }
        };
        let most = train.generation_rows.min(sequences);
        let bound = train.generation_cache_tokens;
        let fits = |completions: &usize| bound == 0 || shape(*completions).tokens_worth(&model) <= bound;
        let cache = shape((1..=most).rev().find(fits).unwrap_or(1));
        let workload = Workload {
            tokens: taken * (prompt_length + completion_length),
            completion_tokens: taken * completion_length,
            longest: prompt_length + completion_length,
            threads: threads::available(),
            learner: Learner {
                tokens_per_microbatch: train.tokens_per_microbatch,
                activation_checkpointing: train.activation_checkpointing,
                ..Learner::default()
            },
            precision: self.model.dtype,
            sampled_in: self.rollout.own().and_then(|own| own.dtype).unwrap_or(self.model.dtype),
            moments: self.optim.adam_moments,
            lora: self.lora.clone(),
            cache: self.rollout.served().is_none().then_some(cache),
            reference: self.stages.iter().any(|stage| stage.loss.kl.is_some()),
        };
        Ok((model, workload))
    }

    /// Return the sequences of a step of the stage with the longest completions, for the estimate of operations.
    pub fn step_size(&self) -> StepSize {
        let completion_tokens = self.stages.iter().flat_map(|stage| stage.sampling.clips()).max().unwrap_or(0);
        StepSize {
            sequences: self.train.prompts_per_step * self.train.num_generations,
            tokens: self.data.max_prompt_length + completion_tokens,
            completion_tokens,
            passes: self.stages.iter().map(|stage| stage.loss.num_iterations).max().unwrap_or(1),
        }
    }
}

impl RunSettings for RlConfig {
    const COMMAND: &'static str = "train";

    fn common(&self) -> Common<'_> {
        Common {
            output_dir: &self.output_dir,
            name: &self.name,
            device: &self.device,
            precision: self.model.dtype,
            lora: self.lora.as_ref(),
            model: &self.model.path,
            tokenizer: &self.model.path,
            data: &self.data,
            optim: &self.optim,
            eval: &self.eval,
            steps: self.max_steps(),
            save_total_limit: self.train.save_total_limit,
            log: &self.log,
        }
    }

    fn idle(&self) -> Vec<Idle> {
        let mut found = self.common().idle();
        if self.train.conflict_cosine_steps == 0 {
            let reason = "has no effect with train.conflict_cosine_steps = 0, which measures no cosine";
            found.extend(idle("train", &self.train, &["conflict_cosine_layers"], reason));
        }
        if self.reward.command.is_empty() {
            let keys = ["timeout_s", "workers", "part", "batch"];
            found.extend(idle("reward", &self.reward, &keys, "has no effect without reward.command"));
        }
        found
    }

    fn names(&mut self) -> Vec<(RepoKind, &mut PathBuf)> {
        let DataConfig { train, eval, .. } = &mut self.data;
        vec![(RepoKind::Model, &mut self.model.path), (RepoKind::Data, train), (RepoKind::Data, eval)]
    }

    fn place(&mut self) -> (&mut PathBuf, &mut String) {
        (&mut self.output_dir, &mut self.name)
    }

    fn date(&mut self) -> Option<&mut String> {
        Some(&mut self.prompt.date)
    }
}
