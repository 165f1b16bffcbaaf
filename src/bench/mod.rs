//! Benchmarks of the real paths: the same generation, loss and optimiser that `train` uses, on a random model.

pub mod ops;
#[cfg(feature = "gpu")]
pub mod products;
pub mod scale;

use std::time::Instant;

use burn::tensor::{DType, Device};
use serde::Serialize;

use crate::doctor::estimate;
use crate::generate::{Request, Sampling, Watch, cache_shape, generate};
use crate::metrics::peak_rss_gb;
use crate::model::tensors::Dtype;
use crate::model::{CacheShape, CausalLm, LoraConfig, ModelConfig, Precision, names};
use crate::objective::{Correction, TokenTerm};

use crate::ops::is_gpu;
use crate::ops::traffic::{Counter, Traffic};
use crate::optim::{AdamW, Moments, OptimConfig};
use crate::stage::Stage;
use crate::train::Workload;
use crate::train::batch::{Sequence, micro_batches};
use crate::train::learner::{ActivationCheckpointing, Learner};
use crate::train::update::{self, Lesson};

/// Models to measure devices with, from one that fits into a cache to one that a single card just trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Size {
    /// 1.0 M parameters: 128 x 4, vocabulary 98.
    #[cfg_attr(feature = "cli", value(name = "1m"))]
    Million,
    /// 0.13 B parameters: 768 x 12, vocabulary 32,000.
    #[cfg_attr(feature = "cli", value(name = "0.1b"))]
    TenthBillion,
    /// 0.49 B parameters: the shape of Qwen2.5-0.5B.
    #[cfg_attr(feature = "cli", value(name = "0.5b"))]
    HalfBillion,
    /// 1.54 B parameters: the shape of Qwen2.5-1.5B.
    #[cfg_attr(feature = "cli", value(name = "1.5b"))]
    Billions,
}

impl Size {
    /// The shape, with a context of 8192.
    pub fn config(self) -> ModelConfig {
        let config = match self {
            Self::Million => ModelConfig::qwen2(98, 128, 512, 4, 4, 2),
            Self::TenthBillion => ModelConfig::qwen2(32_000, 768, 3072, 12, 12, 2),
            Self::HalfBillion => ModelConfig::qwen2(151_936, 896, 4864, 24, 14, 2),
            Self::Billions => ModelConfig::qwen2(151_936, 1536, 8960, 28, 12, 2),
        };
        ModelConfig { max_position_embeddings: 8192, ..config }
    }
}

/// What passes between the host and a GPU in training, the same on every machine.
///
/// Bytes are those of tensors made on the host, without the shapes and numbers that go along with each launch.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StepTraffic {
    /// Kernels launched per forward and backward pass.
    pub launches_per_micro_batch: f64,
    /// Reads that wait for the device per forward and backward pass.
    pub reads_per_micro_batch: f64,
    /// Bytes sent to the device per forward and backward pass.
    pub uploaded_bytes_per_micro_batch: f64,
    /// Kernels launched per optimiser step, the gradient norm included.
    pub launches_per_optimizer_step: f64,
    /// Reads that wait for the device per optimiser step.
    pub reads_per_optimizer_step: f64,
    /// Bytes sent to the device per optimiser step.
    pub uploaded_bytes_per_optimizer_step: f64,
}

impl StepTraffic {
    fn of([passes, update]: [Traffic; 2], micro_batches: usize) -> Self {
        let per = |count: u64| count as f64 / micro_batches.max(1) as f64;
        Self {
            launches_per_micro_batch: per(passes.launches),
            reads_per_micro_batch: per(passes.reads),
            uploaded_bytes_per_micro_batch: per(passes.sent),
            launches_per_optimizer_step: update.launches as f64,
            reads_per_optimizer_step: update.reads as f64,
            uploaded_bytes_per_optimizer_step: update.sent as f64,
        }
    }
}

/// What passes between the host and a GPU in decoding, the same on every machine; as in [`StepTraffic`].
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RolloutTraffic {
    /// Kernels launched per decoded token: a decode step, which decodes one for each row.
    pub launches_per_token: f64,
    /// Reads that wait for the device per decoded token of each row.
    pub reads_per_token: f64,
    /// Bytes sent to the device per decoded token of each row.
    pub uploaded_bytes_per_token: f64,
}

/// Amount of work of one benchmarked step.
#[derive(Debug, Clone)]
pub struct StepShape {
    /// Completions per prompt.
    pub group: usize,
    /// Prompts.
    pub prompts: usize,
    /// Tokens per completion.
    pub tokens: usize,
    /// Whether they are sampled; else they are made up, and training alone is timed.
    pub sampled: bool,
    /// What matrix products are computed in.
    pub precision: Precision,
    /// Tokens of one forward and backward pass at most.
    pub tokens_per_microbatch: usize,
    /// What is kept for the backward pass.
    pub activation_checkpointing: ActivationCheckpointing,
    /// Adapters, to train these alone.
    pub lora: Option<LoraConfig>,
}

/// Medians over the timed steps.
#[derive(Debug, Clone, Serialize)]
pub struct StepTimes {
    /// Parameters of the model.
    pub parameters: usize,
    /// Sampling, seconds.
    pub generation_s: f64,
    /// Forward, backward and update, seconds.
    pub train_s: f64,
    /// Both, seconds.
    pub step_s: f64,
    /// Sampled tokens per second of sampling; none where nothing was sampled.
    pub generation_tokens_per_s: Option<f64>,
    /// Prompt and completion tokens per second of training.
    pub train_tokens_per_s: f64,
    /// Arithmetic of training per second, in 10^9: six operations per weight and token for the products, and attention's
    /// own, nothing that is recomputed.
    pub train_gflops: f64,
    /// Largest resident memory of the process so far, GB (2^30 bytes); none where the system does not tell.
    pub peak_rss_gb: Option<f64>,
    /// The same as [`crate::doctor::estimate`] computes it.
    pub estimated_gb: f64,
    /// Steps timed, after one that is not.
    pub steps: usize,
    /// Launches, reads and bytes of the last step; none where no kernels are launched.
    #[serde(flatten)]
    pub traffic: Option<StepTraffic>,
}

/// Times GRPO steps (DAPO loss, AdamW) of a random model with every completion at full length and an advantage of ±1.
pub fn step(config: &ModelConfig, shape: &StepShape, steps: usize, device: &Device) -> StepTimes {
    let (mut config, training) = (config.clone(), device.clone().autodiff());
    let mut model = match &shape.lora {
        Some(lora) => {
            config.set_stored(Dtype::Bf16);
            lora.attach(CausalLm::random_base(&config, 0, &training, shape.precision), 0)
        }
        None => CausalLm::random_as(&config, 0, &training, shape.precision),
    };
    let config = &config;
    let parameters = names(&model).values().map(|shape| shape.iter().product::<usize>()).sum();
    let optim = OptimConfig { learning_rate: 1e-4, ..OptimConfig::default() };
    let objective = Stage::default().objective();
    let learner = Learner {
        tokens_per_microbatch: shape.tokens_per_microbatch,
        activation_checkpointing: shape.activation_checkpointing,
        ..Learner::default()
    };
    let mut optimizer = AdamW::default();
    let sampling =
        Sampling { max_completion_length: shape.tokens, rows: shape.group * shape.prompts, ..Sampling::default() };
    let mut times: Vec<[f64; 2]> = Vec::new();
    let (mut trained_tokens, mut work) = (0, 0.0);
    let mut estimated = 0;
    let (counter, mut traffic) = (Counter::new(), None);
    for round in 0..steps as u64 + 1 {
        let start = Instant::now();
        // Prompts of 8 to 11 tokens, like the peer's short sums.
        let prompt =
            |p: usize| (0..8 + p % 4).map(|i| ((p * 31 + i * 7) % config.vocab_size) as u32).collect::<Vec<u32>>();
        let requests: Vec<Request> = (0..shape.prompts)
            .flat_map(|p| (0..shape.group).map(move |g| (p, g)))
            .map(|(p, g)| Request { prompt: prompt(p), key: [0, round, p as u64, g as u64] })
            .collect();
        // Tokens, and the log-probabilities they were drawn with.
        let completions: Vec<(Vec<u32>, Vec<f32>)> = if shape.sampled {
            let sampled = generate(&model, config, &requests, &sampling, |_, _| Watch::Continue)
                .expect("a cache without a bound holds everything");
            sampled.into_iter().map(|completion| (completion.tokens, completion.log_probs)).collect()
        } else {
            (0..requests.len()).map(|row| made_up(config, row, shape.tokens)).collect()
        };
        let generation = start.elapsed().as_secs_f64();

        let start = Instant::now();
        let sequences: Vec<Sequence> = (requests.iter().zip(&completions))
            .map(|(r, (tokens, _))| Sequence { tokens: [r.prompt.as_slice(), tokens].concat(), prompt: r.prompt.len() })
            .collect();
        trained_tokens = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        work = sequences.iter().map(|sequence| operations(config, sequence)).sum();
        let cache = cache_shape(config, &requests, &sampling).expect("a cache without a bound holds everything");
        let needed = workload(shape, &learner, &sequences, shape.sampled.then_some(cache));
        estimated = estimate::memory(config, &needed).peak();
        let weight = 1.0 / (shape.tokens * sequences.len()) as f32;
        let lesson = |(place, sequence): (usize, &Sequence)| {
            let advantage = if place.is_multiple_of(2) { 1.0 } else { -1.0 };
            let term = TokenTerm { advantage, weight, ..TokenTerm::default() };
            let terms = vec![term; sequence.completion().len()];
            Lesson { place, sequence: sequence.clone(), terms, sampled: Vec::new(), old: Vec::new() }
        };
        let mut lessons: Vec<Lesson> = sequences.iter().enumerate().map(lesson).collect();
        let before = counter.now();
        let (gradients, _, _) = update::gradients(&learner, &objective, &Correction::NONE, &model, &mut lessons);
        let learned = counter.now();
        let scale = (1.0 / gradients.norm()).min(1.0);
        model = optimizer.step(&optim, model, gradients, scale, optim.learning_rate);
        traffic = is_gpu(device).then(|| {
            let micro_batches = micro_batches(&sequences, learner.tokens_per_microbatch).len();
            StepTraffic::of([learned - before, counter.now() - learned], micro_batches)
        });
        // The update would otherwise still be under way, and count in the next round.
        device.sync().expect("every operation of the step succeeds");
        let train = start.elapsed().as_secs_f64();
        if round > 0 {
            times.push([generation, train]);
        }
    }
    let (generation_s, train_s) = (median(times.iter().map(|t| t[0])), median(times.iter().map(|t| t[1])));
    StepTimes {
        parameters,
        generation_s,
        train_s,
        step_s: median(times.iter().map(|t| t[0] + t[1])),
        generation_tokens_per_s: (shape.sampled)
            .then(|| (shape.group * shape.prompts * shape.tokens) as f64 / generation_s),
        train_tokens_per_s: trained_tokens as f64 / train_s,
        train_gflops: work / train_s / 1e9,
        peak_rss_gb: peak_rss_gb(),
        estimated_gb: (estimated as f64 / f64::from(1 << 30) * 1000.0).round() / 1000.0,
        steps,
        traffic,
    }
}

/// A completion that nobody sampled, as probable as any other under an untrained model.
fn made_up(config: &ModelConfig, row: usize, tokens: usize) -> (Vec<u32>, Vec<f32>) {
    let token = |i: usize| ((row * 7919 + i * 31 + 5) % config.vocab_size) as u32;
    ((0..tokens).map(token).collect(), vec![-(config.vocab_size as f32).ln(); tokens])
}

/// Floating-point operations of training on one sequence. The head runs on the rows before completion tokens only.
fn operations(config: &ModelConfig, sequence: &Sequence) -> f64 {
    let tokens = (sequence.tokens.len() - 1) as f64;
    let head = (config.vocab_size * config.hidden_size) as f64;
    let tables = if config.tie_word_embeddings { 1.0 } else { 2.0 };
    let blocks = estimate::parameters(config) as f64 - tables * head;
    let width = (config.num_attention_heads * config.head_dim() * config.num_hidden_layers) as f64;
    // Scores and mixture, forward and twice that backward, over half of the square.
    let attention = 6.0 * tokens * tokens * width;
    6.0 * (blocks * tokens + head * sequence.completion().len() as f64) + attention
}

fn workload(
    shape: &StepShape,
    learner: &Learner<'static>,
    sequences: &[Sequence],
    cache: Option<CacheShape>,
) -> Workload {
    let batches = micro_batches(sequences, learner.tokens_per_microbatch);
    let largest = |of: fn(&Sequence) -> usize| {
        let sizes = batches.iter().map(|batch| sequences[batch.clone()].iter().map(of).sum());
        sizes.max().unwrap_or(0)
    };
    Workload {
        tokens: largest(|sequence| sequence.tokens.len() - 1),
        completion_tokens: largest(|sequence| sequence.completion().len()),
        learner: *learner,
        precision: shape.precision,
        sampled_in: shape.precision,
        moments: Moments::F32,
        lora: shape.lora.clone(),
        cache,
        reference: false,
    }
}

/// Amount of work of a benchmarked rollout.
#[derive(Debug, Clone, Copy)]
pub struct RolloutShape {
    /// Prompts.
    pub prompts: usize,
    /// Completions per prompt.
    pub group: usize,
    /// Tokens per prompt.
    pub prompt_length: usize,
    /// Tokens per completion, all of them sampled.
    pub tokens: usize,
    /// Completions decoded together at most.
    pub rows: usize,
}

/// Medians over the timed rollouts.
#[derive(Debug, Clone, Serialize)]
pub struct RolloutTimes {
    /// Parameters of the model.
    pub parameters: usize,
    /// Reading the prompts and drawing one token each, seconds.
    pub prefill_s: f64,
    /// The whole rollout, seconds.
    pub rollout_s: f64,
    /// Sampled tokens per second of the whole rollout.
    pub tokens_per_s: f64,
    /// One decode step of all rows, seconds: the rollout without the prefill over its steps.
    pub decode_step_s: f64,
    /// Keys and values set aside, bytes.
    pub cache_bytes: usize,
    /// Largest resident memory of the process so far, GB (2^30 bytes); none where the system does not tell.
    pub peak_rss_gb: Option<f64>,
    /// Rollouts timed, after one that is not.
    pub steps: usize,
    /// Launches, reads and bytes of the last rollout, without the prefill; none where no kernels are launched.
    #[serde(flatten)]
    pub traffic: Option<RolloutTraffic>,
}

/// Times rollouts at temperature 1 with every completion at full length.
///
/// # Panics
/// When a size is 0 or a sequence longer than the model's context.
pub fn rollout(config: &ModelConfig, model: &CausalLm, shape: &RolloutShape, steps: usize) -> RolloutTimes {
    assert!(shape.prompt_length + shape.tokens <= config.max_position_embeddings, "sequence beyond the context");
    let token = |p: usize, i: usize| ((p * 7919 + i * 31 + 1) % config.vocab_size) as u32;
    let requests: Vec<Request> = (0..shape.prompts)
        .flat_map(|p| (0..shape.group).map(move |g| (p, g)))
        .map(|(p, g)| Request {
            prompt: (0..shape.prompt_length).map(|i| token(p, i)).collect(),
            key: [0, 0, p as u64, g as u64],
        })
        .collect();
    let counter = Counter::new();
    let time = |max_completion_length: usize| {
        let before = counter.now();
        let sampling = Sampling { max_completion_length, rows: shape.rows, ..Sampling::default() };
        let start = Instant::now();
        generate(model, config, &requests, &sampling, |_, _| Watch::Continue)
            .expect("a cache without a bound holds everything");
        (start.elapsed().as_secs_f64(), counter.now() - before)
    };
    time(shape.tokens);
    let timed = |tokens: usize| {
        let mut last = Traffic::default();
        let seconds = median((0..steps).map(|_| {
            let (seconds, traffic) = time(tokens);
            last = traffic;
            seconds
        }));
        (seconds, last)
    };
    let ((whole, all), (prefill, reading)) = (timed(shape.tokens), timed(1));
    let sampling = Sampling { max_completion_length: shape.tokens, rows: shape.rows, ..Sampling::default() };
    let cache = cache_shape(config, &requests, &sampling).expect("a cache without a bound holds everything");
    let decoded = requests.len().div_ceil(shape.rows) * (shape.tokens - 1).max(1);
    let traffic = is_gpu(&model.device()).then(|| {
        let per = |of: fn(Traffic) -> u64| of(all).saturating_sub(of(reading)) as f64 / decoded as f64;
        RolloutTraffic {
            launches_per_token: per(|traffic| traffic.launches),
            reads_per_token: per(|traffic| traffic.reads),
            uploaded_bytes_per_token: per(|traffic| traffic.sent),
        }
    });
    RolloutTimes {
        parameters: names(model).values().map(|shape| shape.iter().product::<usize>()).sum(),
        prefill_s: prefill,
        rollout_s: whole,
        tokens_per_s: (requests.len() * shape.tokens) as f64 / whole,
        decode_step_s: (whole - prefill) / decoded as f64,
        cache_bytes: cache.bytes(config, DType::from(model.cache_format()).size()),
        peak_rss_gb: peak_rss_gb(),
        steps,
        traffic,
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
