//! Settings of supervised fine-tuning.

use std::path::PathBuf;

use burn::tensor::Device;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::data::problems::{DataConfig, TASKS};
use crate::error::{Error, Result};
use crate::eval::EvalConfig;
use crate::hub::RepoKind;
use crate::metrics::follow::LogConfig;
use crate::model::{self, CausalLm, LoraConfig, ModelConfig, Precision};
use crate::optim::OptimConfig;
use crate::text::prompt::PromptConfig;
use crate::text::tokenizer::Tokenizer;
use crate::threads;
use crate::train::idle::idle;
use crate::train::learner::{ActivationCheckpointing, Learner};
use crate::train::run::{Common, Idle, RunSettings};
use crate::train::{StepSize, Workload, open_model};

/// Settings of `tempering sft`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {
    /// Random seed of the weight initialisation and the data order.
    pub seed: u64,
    /// Directory that contains all runs.
    pub output_dir: PathBuf,
    /// Name of the run: its directory within `output_dir`.
    pub name: String,
    /// Compute device: cpu, ndarray, cuda, rocm, vulkan, metal or wgpu, optionally with an index: `cuda:1`.
    pub device: String,
    /// Model to train.
    pub model: SftModel,
    /// LoRA: train low-rank adapters instead of all weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Training and evaluation data.
    pub data: DataConfig,
    /// Prompt format. Conversations are used unchanged except for these settings; `suffix = "auto"` applies to
    /// evaluation problems only.
    pub prompt: PromptConfig,
    /// Number of steps, batch sizes and checkpoints.
    pub train: SftTrain,
    /// AdamW optimiser and learning-rate schedule.
    pub optim: OptimConfig,
    /// Evaluation on held-out problems.
    pub eval: EvalConfig,
    /// Destinations of the metrics in addition to `metrics.jsonl`.
    pub log: LogConfig,
}

/// A checkpoint to start from, or the shape of a new model.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftModel {
    /// Path of a Hugging Face model directory, or Hub name `owner/name[@revision]`, to start from; empty for a new
    /// model.
    pub path: PathBuf,
    /// Path or Hub name of the tokenizer; empty for that of `path`.
    pub tokenizer: PathBuf,
    /// Precision of matrix products with `path`: f32 or bf16. Weights and all other operations stay in f32. On the cpu
    /// device bf16 only rounds the weights, which makes training slower.
    pub dtype: Precision,
    /// Hidden size of a new model.
    pub hidden_size: usize,
    /// Feed-forward size of a new model.
    pub intermediate_size: usize,
    /// Number of layers of a new model.
    pub num_hidden_layers: usize,
    /// Number of query heads of a new model.
    pub num_attention_heads: usize,
    /// Number of key and value heads of a new model.
    pub num_key_value_heads: usize,
}

impl Default for SftModel {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            tokenizer: PathBuf::new(),
            dtype: Precision::F32,
            hidden_size: 128,
            intermediate_size: 384,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 2,
        }
    }
}

impl Serialize for SftModel {
    /// Write the settings without those of a new model if there is a `path`: they have no effect.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("path", &self.path)?;
        map.serialize_entry("tokenizer", &self.tokenizer)?;
        map.serialize_entry("dtype", &self.dtype)?;
        if self.path.as_os_str().is_empty() {
            map.serialize_entry("hidden_size", &self.hidden_size)?;
            map.serialize_entry("intermediate_size", &self.intermediate_size)?;
            map.serialize_entry("num_hidden_layers", &self.num_hidden_layers)?;
            map.serialize_entry("num_attention_heads", &self.num_attention_heads)?;
            map.serialize_entry("num_key_value_heads", &self.num_key_value_heads)?;
        }
        map.end()
    }
}

/// How long to train and in what portions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftTrain {
    /// Number of optimiser steps.
    pub max_steps: usize,
    /// Minimum number of tokens per step: conversations are added to the batch until it has this many tokens.
    pub tokens_per_step: usize,
    /// Number of initial steps in which the embedded tasks appear only in their lean style, with next to no prose: the
    /// model learns the computation first and the prose around it later. A small model learns both in a third of the
    /// tokens that way.
    pub curriculum_steps: usize,
    /// Maximum number of tokens per forward and backward pass; does not affect the result.
    pub tokens_per_microbatch: usize,
    /// Activation (gradient) checkpointing: activations kept for the backward pass; does not affect the result.
    pub activation_checkpointing: ActivationCheckpointing,
    /// Maximum conversation length in tokens; a longer conversation is an error, or is dropped with
    /// `data.filter_overlong_prompts`.
    pub max_length: usize,
    /// Interval in steps between checkpoints.
    pub save_steps: usize,
    /// Maximum number of checkpoints to keep; the oldest ones are deleted. 0 keeps all.
    pub save_total_limit: usize,
    /// Interval in steps between evaluations; 0 evaluates only at the end.
    pub eval_steps: usize,
}

impl Default for SftTrain {
    fn default() -> Self {
        Self {
            max_steps: 1000,
            tokens_per_step: 8192,
            curriculum_steps: 0,
            tokens_per_microbatch: 8192,
            activation_checkpointing: ActivationCheckpointing::None,
            max_length: 1024,
            save_steps: 500,
            save_total_limit: 2,
            eval_steps: 0,
        }
    }
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            output_dir: "runs".into(),
            name: "sft".to_string(),
            device: "cpu".to_string(),
            model: SftModel::default(),
            lora: None,
            data: DataConfig::default(),
            prompt: PromptConfig::default(),
            train: SftTrain::default(),
            optim: OptimConfig { learning_rate: 2e-5, ..OptimConfig::default() },
            eval: EvalConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Settings for SftConfig {
    /// TRL's learning rate for supervised fine-tuning of all weights. The default of [`OptimConfig`] is for
    /// reinforcement learning.
    fn below() -> &'static str {
        "optim.learning_rate = 2e-5"
    }

    fn validate(&self) -> Vec<String> {
        let mut problems = [self.common().mistakes(), self.prompt.mistakes()].concat();
        let train = &self.train;
        for (key, value) in [
            ("max_steps", train.max_steps),
            ("tokens_per_step", train.tokens_per_step),
            ("tokens_per_microbatch", train.tokens_per_microbatch),
            ("save_steps", train.save_steps),
        ] {
            if value == 0 {
                problems.push(format!("train.{key} = 0 must be positive"));
            }
        }
        if self.data.tasks_count > 0 {
            let count = self.data.tasks_count;
            problems.push(format!(
                "data.tasks_count = {count} is for `tempering train` only: `sft` generates new traces without limit; \
                 remove it"
            ));
        }
        if self.model.path.as_os_str().is_empty() && self.model.tokenizer.as_os_str().is_empty() {
            problems.push(
                "model.path is empty: give the model to fine-tune (--set model.path=MODEL), or, for a new model, the \
                 folder of a tokenizer (--set model.tokenizer=FOLDER)"
                    .to_string(),
            );
        }
        if self.model.path.as_os_str().is_empty() && (self.lora.is_some() || self.model.dtype != Precision::F32) {
            problems.push(
                "model.path is empty, but [lora] and model.dtype need an existing model: set model.path or remove them"
                    .to_string(),
            );
        }
        problems.extend(self.idle().into_iter().map(|idle| idle.mistake));
        problems
    }
}

impl SftConfig {
    pub(super) fn model(&self, tokenizer: &Tokenizer, device: &Device) -> Result<(ModelConfig, CausalLm)> {
        if !self.model.path.as_os_str().is_empty() {
            let SftModel { path, dtype, .. } = &self.model;
            return open_model(path, *dtype, self.lora.as_ref(), self.seed, device);
        }
        let mut config = self.model_config()?;
        config.max_position_embeddings = self.train.max_length;
        config.eos_token_id = tokenizer.turn_end().last().map(|&id| id.into());
        config.pad_token_id = Some(tokenizer.pad_id());
        let problems = config.mistakes();
        if !problems.is_empty() {
            return Err(Error::Config { origin: "model".to_string(), problems });
        }
        let model = CausalLm::random(&config, self.seed, device);
        Ok((config, model))
    }

    /// Return the configuration of the trained model.
    fn model_config(&self) -> Result<ModelConfig> {
        if !self.model.path.as_os_str().is_empty() {
            return model::config_of(&self.model.path);
        }
        let shape = &self.model;
        let tokenizer = Tokenizer::load(self.tokenizer_dir())?;
        Ok(ModelConfig::qwen2(
            tokenizer.vocab_size(),
            shape.hidden_size,
            shape.intermediate_size,
            shape.num_hidden_layers,
            shape.num_attention_heads,
            shape.num_key_value_heads,
        ))
    }

    /// Return the maximum number of tokens of a conversation, and the setting that limits it, as text.
    ///
    /// # Errors
    /// If the model's configuration cannot be read.
    pub(super) fn longest(&self) -> Result<(usize, String)> {
        let own = self.train.max_length;
        if !self.model.path.as_os_str().is_empty() {
            let context = model::config_of(&self.model.path)?.max_position_embeddings;
            if context < own {
                return Ok((context, format!("max_position_embeddings = {context} of model.path")));
            }
        }
        Ok((own, format!("train.max_length = {own}")))
    }

    /// Return the workload of a step for the memory estimate.
    ///
    /// # Errors
    /// If the model's configuration cannot be read.
    pub fn workload(&self) -> Result<(ModelConfig, Workload)> {
        let tokens = self.train.tokens_per_microbatch.min(self.train.tokens_per_step);
        let workload = Workload {
            tokens,
            completion_tokens: tokens,
            longest: self.train.max_length.min(tokens),
            threads: threads::available(),
            learner: self.learner(),
            precision: self.model.dtype,
            sampled_in: self.model.dtype,
            moments: self.optim.adam_moments,
            lora: self.lora.clone(),
            cache: None,
            reference: false,
        };
        Ok((self.model_config()?, workload))
    }

    /// Return the sequences of a step for the estimate of operations.
    pub fn step_size(&self) -> StepSize {
        let tokens = self.train.max_length.min(self.train.tokens_per_step);
        let sequences = self.train.tokens_per_step.div_ceil(tokens.max(1));
        StepSize { sequences, tokens, completion_tokens: tokens, passes: 1 }
    }

    pub(super) fn learner(&self) -> Learner<'static> {
        Learner {
            tokens_per_microbatch: self.train.tokens_per_microbatch,
            activation_checkpointing: self.train.activation_checkpointing,
            ..Learner::default()
        }
    }

    pub(super) fn tokenizer_dir(&self) -> &PathBuf {
        if self.model.tokenizer.as_os_str().is_empty() { &self.model.path } else { &self.model.tokenizer }
    }
}

impl RunSettings for SftConfig {
    const COMMAND: &'static str = "sft";

    fn common(&self) -> Common<'_> {
        Common {
            output_dir: &self.output_dir,
            name: &self.name,
            device: &self.device,
            precision: self.model.dtype,
            lora: self.lora.as_ref(),
            model: &self.model.path,
            tokenizer: self.tokenizer_dir(),
            data: &self.data,
            optim: &self.optim,
            eval: &self.eval,
            steps: self.train.max_steps,
            save_total_limit: self.train.save_total_limit,
            log: &self.log,
        }
    }

    fn idle(&self) -> Vec<Idle> {
        let mut found = self.common().idle();
        // `validate` refuses it for any data.
        found.retain(|idle| idle.key != "data.tasks_count");
        let DataConfig { train, eval, .. } = &self.data;
        if train.as_os_str() != TASKS {
            let reason = format!("is for the embedded tasks and has no effect with data.train = {train:?}");
            found.extend(idle("train", &self.train, &["curriculum_steps"], &reason));
            if eval.as_os_str() == TASKS {
                let reason = "is for files of problems and has no effect here: data.train has conversations, and \
                    data.eval is not a file";
                found.extend(idle("data", &self.data, &["prompt_field", "answer_field"], reason));
            }
        }
        if !self.model.path.as_os_str().is_empty() {
            let keys =
                ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"];
            let reason = format!("is for a new model and has no effect with model.path = {:?}", self.model.path);
            // With a path, the shape is not written.
            let shape = SftModel { path: PathBuf::new(), ..self.model.clone() };
            found.extend(idle("model", &shape, &keys, &reason));
        }
        found
    }

    fn names(&mut self) -> Vec<(RepoKind, &mut PathBuf)> {
        let (SftModel { path, tokenizer, .. }, DataConfig { train, eval, .. }) = (&mut self.model, &mut self.data);
        vec![(RepoKind::Model, path), (RepoKind::Model, tokenizer), (RepoKind::Data, train), (RepoKind::Data, eval)]
    }

    fn place(&mut self) -> (&mut PathBuf, &mut String) {
        (&mut self.output_dir, &mut self.name)
    }

    fn date(&mut self) -> Option<&mut String> {
        Some(&mut self.prompt.date)
    }
}
