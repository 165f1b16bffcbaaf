//! Supervised fine-tuning: masked cross-entropy on completions.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Workload;
use super::batch::Sequence;
use super::checkpoint::Trained;
use super::guard::Guard;
use super::learner::{ActivationCheckpointing, Learner, arrange};
use super::origin::dated;
use super::run::{Common, Point, Run, RunSettings};
use super::{Session, open_model};
use crate::config::Settings;
use crate::data::problems::{DataConfig, TASKS};
use crate::data::shuffle::Shuffle;
use crate::data::{self, Conversation};
use crate::device;
use crate::error::{Error, Result};
use crate::eval::EvalConfig;
use crate::metrics::Metrics;
use crate::model::{self, CausalLm, LoraConfig, ModelConfig, Precision};
use crate::noise::Stream;
use crate::objective::Upstream;
use crate::optim::{AdamW, Gradients, OptimConfig, learning_rate};
use crate::stop::Stop;
use crate::tasks::{Generator, Manner, Split};
use crate::text::chat::Prompt;
use crate::text::prompt::PromptConfig;
use crate::text::tokenizer::Tokenizer;

/// Settings of `tempering sft`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {
    /// Seed of weights and data order.
    pub seed: u64,
    /// Folder of all runs.
    pub output_dir: PathBuf,
    /// Folder of this run within it.
    pub name: String,
    /// Where to compute: cpu, ndarray, cuda[:n], rocm[:n], vulkan[:n], metal or wgpu[:n].
    pub device: String,
    /// What is trained.
    pub model: SftModel,
    /// Train adapters of this size instead of all weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// What it is trained and evaluated on.
    pub data: DataConfig,
    /// How the model is asked. Conversations are taken as they are but for what is set here; `suffix = "auto"` is for the
    /// problems of the evaluation.
    pub prompt: PromptConfig,
    /// How long and in what portions.
    pub train: SftTrain,
    /// The optimiser.
    pub optim: OptimConfig,
    /// Evaluation on held-out problems.
    pub eval: EvalConfig,
}

/// A checkpoint to start from, or the shape of a new model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftModel {
    /// Hugging Face directory to start from; empty for a new model.
    pub path: PathBuf,
    /// Directory of the tokenizer; that of `path` when empty.
    pub tokenizer: PathBuf,
    /// What matrix products are computed in, with `path`: f32 or bf16; weights, and all between the products, are f32.
    pub dtype: Precision,
    /// Width of a new model.
    pub hidden_size: usize,
    /// Feed-forward width of a new model.
    pub intermediate_size: usize,
    /// Blocks of a new model.
    pub num_hidden_layers: usize,
    /// Query heads of a new model.
    pub num_attention_heads: usize,
    /// Key and value heads of a new model.
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

/// How long to train and in what portions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftTrain {
    /// Optimiser steps.
    pub max_steps: usize,
    /// Tokens per step: conversations are taken until they have so many.
    pub tokens_per_step: usize,
    /// For so many steps the embedded tasks come in their lean manner only: the computation first, then the prose around
    /// it. A small model learns both in a third of the tokens that way.
    pub curriculum_steps: usize,
    /// Tokens of one forward and backward pass at most; does not change the result.
    pub tokens_per_microbatch: usize,
    /// What the backward pass finds kept: everything (`none`), or each block's input (`block`), which takes a third more
    /// time and a fraction of the memory; does not change the result.
    pub activation_checkpointing: ActivationCheckpointing,
    /// Longest conversation in tokens; a longer one is an error.
    pub max_length: usize,
    /// A checkpoint every this many steps.
    pub save_steps: usize,
    /// Checkpoints kept, the newest ones; 0 for all.
    pub save_total_limit: usize,
    /// An evaluation every this many steps; 0 for one at the end.
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
        }
    }
}

impl Settings for SftConfig {
    /// TRL's learning rate for supervised fine-tuning of all weights; that of [`OptimConfig`] is for reinforcement learning.
    fn below() -> &'static str {
        "optim.learning_rate = 2e-5"
    }

    fn validate(&self) -> Vec<String> {
        let lora = self.lora.as_ref().map(LoraConfig::mistakes).unwrap_or_default();
        let name = self.common().mistakes();
        let mut problems =
            [name, self.data.mistakes(), self.prompt.mistakes(), self.optim.mistakes(), self.eval.mistakes(), lora]
                .concat();
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
            problems
                .push(format!("data.tasks_count = {count} is for `train`; fine-tuning writes new traces without end"));
        }
        if self.model.path.as_os_str().is_empty() && self.model.tokenizer.as_os_str().is_empty() {
            problems.push("model.tokenizer is empty: a new model needs a tokenizer directory".to_string());
        }
        if self.model.path.as_os_str().is_empty() && (self.lora.is_some() || self.model.dtype != Precision::F32) {
            problems.push("model.path is empty: [lora] and model.dtype are for a model that exists".to_string());
        }
        problems
    }
}

impl SftConfig {
    fn model(&self, tokenizer: &Tokenizer, device: &Device) -> Result<(ModelConfig, CausalLm)> {
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

    /// The configuration of the model that is trained.
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

    /// What a step needs memory for.
    ///
    /// # Errors
    /// When the model's configuration cannot be read.
    pub fn workload(&self) -> Result<(ModelConfig, Workload)> {
        let tokens = self.train.tokens_per_microbatch.min(self.train.tokens_per_step);
        let workload = Workload {
            tokens,
            completion_tokens: tokens,
            learner: self.learner(),
            precision: self.model.dtype,
            moments: self.optim.adam_moments,
            lora: self.lora.clone(),
            cache: None,
            reference: false,
        };
        Ok((self.model_config()?, workload))
    }

    fn learner(&self) -> Learner<'static> {
        Learner {
            tokens_per_microbatch: self.train.tokens_per_microbatch,
            activation_checkpointing: self.train.activation_checkpointing,
            ..Learner::default()
        }
    }

    fn tokenizer_dir(&self) -> &PathBuf {
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
            save_total_limit: self.train.save_total_limit,
        }
    }

    fn place(&mut self) -> (&mut PathBuf, &mut String) {
        (&mut self.output_dir, &mut self.name)
    }

    fn date(&mut self) -> Option<&mut String> {
        Some(&mut self.prompt.date)
    }
}

/// Conversations by index.
enum Conversations {
    Tasks(Generator),
    Rows(Vec<Conversation>),
}

impl Conversations {
    fn open(data: &DataConfig) -> Result<Self> {
        if data.train.as_os_str() == TASKS {
            return Ok(Self::Tasks(data.generator()));
        }
        Ok(Self::Rows(data::load_conversations(&data.train)?))
    }

    /// The conversation a run meets at `index`; rows come shuffled anew each epoch.
    fn get(&self, seed: u64, index: u64, lean: bool) -> Conversation {
        match self {
            Self::Tasks(generator) => {
                let manner = |random: &mut Stream| if lean { Manner::Lean } else { Manner::draw(random) };
                let mut messages = generator.row_in(Split::Train, index, manner).messages;
                let completion = messages.pop().map(|message| message.content).unwrap_or_default();
                Conversation { prompt: Prompt::Messages(messages), completion }
            }
            Self::Rows(rows) => rows[Shuffle::new(seed, rows.len()).row(index)].clone(),
        }
    }
}

/// Prompt as the template renders it, completion, end of turn.
fn encode(tokenizer: &Tokenizer, conversation: &Conversation, max_length: usize) -> Result<Sequence> {
    let mut tokens = tokenizer.encode_prompt(&conversation.prompt)?;
    let prompt = tokens.len();
    tokens.extend(tokenizer.encode_completion(&conversation.completion)?);
    if tokens.len() > max_length {
        return Err(Error::Invalid(format!(
            "a conversation has {} tokens, more than train.max_length = {max_length}; raise it or shorten the row: {:.80}…",
            tokens.len(),
            conversation.prompt.text()
        )));
    }
    Ok(Sequence { tokens, prompt })
}

/// What a resumed run must know beside weights and optimiser.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct State {
    next_row: u64,
    num_tokens: usize,
}

/// All that the steps of a run need and do not change.
struct Job<'a> {
    config: &'a SftConfig,
    tokenizer: Tokenizer,
    model_config: ModelConfig,
    conversations: Conversations,
    stop: Stop<'a>,
}

/// Trains, evaluates and writes `runs/<name>/`; returns the final model's directory.
///
/// # Errors
/// User mistakes in files and settings, a full disk, three steps in a row that are not finite, or
/// [`Error::Interrupted`].
pub fn run(config: &SftConfig, session: &mut Session) -> Result<PathBuf> {
    let resumed = session.start.resumes().then(|| config.common().dir());
    let config = &dated(config, resumed.as_deref())?;
    let device = device::parse(&config.device)?;
    config.optim.check(&device)?;
    let tokenizer = Tokenizer::load(config.tokenizer_dir())?.with_prompt(&config.prompt)?;
    tokenizer.notes().iter().for_each(|note| session.observer.note(note));
    let config = &SftConfig { prompt: tokenizer.prompt().clone(), ..config.clone() };
    let conversations = Conversations::open(&config.data)?;
    let (held_out, _) = config.data.held_out(config.eval.num_problems, &tokenizer)?;
    let (mut run, point) = Run::open(config, session, &device, held_out, || {
        let opened = config.model(&tokenizer, &device.clone().autodiff())?;
        tokenizer.check_vocab(opened.0.vocab_size, config.tokenizer_dir())?;
        Ok(opened)
    })?;
    let Point::<State> { step: first, config: model_config, mut model, mut optimizer, mut state } = point;
    let job = Job { config, tokenizer, model_config, conversations, stop: session.stop() };
    let train = &config.train;
    if first == 0 {
        session.observer.note(&job.first_prompt()?);
    }
    if let Err(error) = run.catch_up(job.trained(&model), session) {
        return Err(run.ended(error, first, job.trained(&model), &optimizer, &state));
    }
    if first >= train.max_steps && run.finished(first)?.is_some() {
        let message = "nothing to do; raise train.max_steps to go on";
        session.observer.note(&format!("{}: finished after step {first}, {message}", run.dir().display()));
        return Ok(run.dir().join("final"));
    }
    session.observer.begin("sft", train.max_steps);
    session.observer.resume(first);
    let mut guard = Guard::default();
    for step in first + 1..=train.max_steps {
        let mut metrics = Metrics::of_step(step);
        let begun = state;
        let sequences = job.take(&mut state.next_row, step <= train.curriculum_steps)?;
        let stepped = job.step(model, &mut optimizer, sequences, &mut state, &mut metrics);
        model = stepped.model;
        if stepped.stopped {
            return Err(run.ended(Error::Stopped, step - 1, job.trained(&model), &optimizer, &begun));
        }
        if train.eval_steps > 0 && step % train.eval_steps == 0 && step < train.max_steps {
            if let Err(error) = run.log_evaluated(job.trained(&model), &mut metrics, session) {
                return Err(run.ended(error, step, job.trained(&model), &optimizer, &state));
            }
            session.observer.begin("sft", train.max_steps);
        } else {
            run.log(&metrics)?;
        }
        session.observer.advance(step, Some(&metrics));
        let sequences = stepped.sequences.iter().map(|sequence| sequence.tokens.split_at(sequence.prompt));
        guard.check(stepped.finite, run.dir(), step, &job.tokenizer, sequences)?;
        let stop = job.stop.requested();
        if step % train.save_steps == 0 || step == train.max_steps || stop {
            let checkpoint = run.save(step, job.trained(&model), &optimizer, &state)?;
            if stop && step < train.max_steps {
                return Err(Error::Interrupted { checkpoint });
            }
        }
    }
    let last = first.max(train.max_steps);
    let finished = job.finish(&mut run, &model, last, session);
    finished.map_err(|error| run.ended(error, last, job.trained(&model), &optimizer, &state))
}

/// What came of a step.
struct Stepped {
    model: CausalLm,
    sequences: Vec<Sequence>,
    /// Whether all of the step was computed, and applied.
    finite: bool,
    /// Whether an early end was asked for before the step changed anything.
    stopped: bool,
}

impl Job<'_> {
    /// What the model is first shown, so that a missing or wrong chat template is seen.
    fn first_prompt(&self) -> Result<String> {
        let first = self.conversations.get(self.config.seed, 0, false);
        Ok(format!("first prompt: {:?}", self.tokenizer.render_prompt(&first.prompt)?))
    }

    /// The next conversations, until they have `tokens_per_step` tokens.
    fn take(&self, next_row: &mut u64, lean: bool) -> Result<Vec<Sequence>> {
        const AT_ONCE: u64 = 32;
        let Self { config, tokenizer, conversations, .. } = self;
        let (mut sequences, mut tokens) = (Vec::new(), 0);
        loop {
            let encoded: Vec<Sequence> = (*next_row..*next_row + AT_ONCE)
                .into_par_iter()
                .map(|index| encode(tokenizer, &conversations.get(config.seed, index, lean), config.train.max_length))
                .collect::<Result<_>>()?;
            for sequence in encoded {
                tokens += sequence.tokens.len();
                sequences.push(sequence);
                *next_row += 1;
                if tokens >= config.train.tokens_per_step {
                    return Ok(sequences);
                }
            }
        }
    }

    /// One optimiser step: every completion token of the step weighs the same, whatever the micro-batches.
    fn step(
        &self,
        model: CausalLm,
        optimizer: &mut AdamW,
        mut sequences: Vec<Sequence>,
        state: &mut State,
        metrics: &mut Metrics,
    ) -> Stepped {
        let start = Instant::now();
        let optim = &self.config.optim;
        arrange(&mut sequences, &model.device(), |sequence| sequence);
        let total: usize = sequences.iter().map(|sequence| sequence.completion().len()).sum();
        let mut gradients = Gradients::default();
        let (mut loss, mut entropy) = (0.0, 0.0);
        let learner = Learner { stop: self.stop, ..self.config.learner() };
        let work = learner.backward(&model, &sequences, &mut gradients, |_, scores| {
            let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
            loss -= sum(&scores.log_prob) / total as f64;
            entropy += sum(&scores.entropy) / total as f64;
            let tokens = scores.log_prob.len();
            Some(Upstream { log_prob: vec![-1.0 / total as f32; tokens], entropy: vec![0.0; tokens] })
        });
        if self.stop.requested() {
            return Stepped { model, sequences, finite: true, stopped: true };
        }
        let norm = gradients.norm();
        let step = metrics.get("step").unwrap_or_default() as usize;
        let lr = learning_rate(optim, step, self.config.train.max_steps);
        let model =
            if norm.is_finite() { optimizer.step(optim, model, gradients, optim.clip(norm), lr) } else { model };
        state.num_tokens += sequences.iter().map(|sequence| sequence.tokens.len()).sum::<usize>();
        metrics.set("loss", loss);
        metrics.set("entropy", entropy);
        metrics.set("grad_norm", norm);
        work.describe(metrics);
        metrics.set("learning_rate", lr);
        metrics.set("num_tokens", state.num_tokens as f64);
        metrics.set("timing_s/step", start.elapsed().as_secs_f64());
        Stepped { model, sequences, finite: work.skipped == 0 && norm.is_finite(), stopped: false }
    }

    fn trained<'a>(&'a self, model: &'a CausalLm) -> Trained<'a> {
        let adapter = self.config.common().adapter();
        Trained { config: &self.model_config, model, adapter, tokenizer: &self.tokenizer }
    }

    fn finish(&self, run: &mut Run, model: &CausalLm, step: usize, session: &mut Session) -> Result<PathBuf> {
        let evaluation = run.evaluate(self.trained(model), "final", session)?;
        session.observer.note(&evaluation.table());
        run.finish(step, self.trained(model), &evaluation.summary())
    }
}
