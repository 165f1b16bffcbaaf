//! Benchmark of a training step: sampling, forward and backward passes, update.

use std::time::Instant;

use burn::tensor::Device;
use serde::Serialize;

use super::median;
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
use crate::threads;
use crate::train::Workload;
use crate::train::batch::{Sequence, micro_batches};
use crate::train::learner::{ActivationCheckpointing, Learner};
use crate::train::update::{self, Lesson};

/// Traffic between host and GPU while training. Machine-independent.
///
/// Bytes count tensors created on the host, not the shapes and scalars that are passed with each kernel launch.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StepTraffic {
    /// Kernel launches per forward and backward pass.
    pub launches_per_micro_batch: f64,
    /// Blocking reads from the device per forward and backward pass.
    pub reads_per_micro_batch: f64,
    /// Bytes sent to the device per forward and backward pass.
    pub uploaded_bytes_per_micro_batch: f64,
    /// Kernel launches per optimiser step, including the gradient norm.
    pub launches_per_optimizer_step: f64,
    /// Blocking reads from the device per optimiser step.
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

/// Size and options of a benchmarked step.
#[derive(Debug, Clone)]
pub struct StepShape {
    /// Completions per prompt.
    pub group: usize,
    /// Number of prompts.
    pub prompts: usize,
    /// Tokens per completion.
    pub tokens: usize,
    /// Whether completions are sampled. Otherwise they are synthetic and only training is timed.
    pub sampled: bool,
    /// Precision of matrix products.
    pub precision: Precision,
    /// Maximum number of tokens per forward and backward pass.
    pub tokens_per_microbatch: usize,
    /// Activation checkpointing mode.
    pub activation_checkpointing: ActivationCheckpointing,
    /// LoRA adapters; if given, only they are trained.
    pub lora: Option<LoraConfig>,
}

impl StepShape {
    /// Maximum number of tokens per prompt.
    pub const PROMPT_LENGTH: usize = 11;

    /// Return the requests of a step. Prompts have 8 to 11 tokens, like the short sums of the peer comparison.
    pub(super) fn requests(&self, config: &ModelConfig, round: u64) -> Vec<Request> {
        let prompt = |p: usize| {
            (0..Self::PROMPT_LENGTH - 3 + p % 4).map(|i| ((p * 31 + i * 7) % config.vocab_size) as u32).collect()
        };
        (0..self.prompts)
            .flat_map(|p| (0..self.group).map(move |g| (p, g)))
            .map(|(p, g)| Request { prompt: prompt(p), key: [0, round, p as u64, g as u64] })
            .collect()
    }

    pub(super) fn sampling(&self) -> Sampling {
        Sampling { max_completion_length: self.tokens, rows: self.group * self.prompts, ..Sampling::default() }
    }

    pub(super) fn learner(&self) -> Learner<'static> {
        Learner {
            tokens_per_microbatch: self.tokens_per_microbatch,
            activation_checkpointing: self.activation_checkpointing,
            ..Learner::default()
        }
    }

    /// Return lessons with alternating advantages of 1 and −1 and equal weights for all tokens of the step.
    pub(super) fn lessons(&self, sequences: Vec<Sequence>) -> Vec<Lesson> {
        let weight = 1.0 / (self.tokens * sequences.len()) as f32;
        let lesson = |(place, sequence): (usize, Sequence)| {
            let advantage = if place.is_multiple_of(2) { 1.0 } else { -1.0 };
            let terms = vec![TokenTerm { advantage, weight, ..TokenTerm::default() }; sequence.completion().len()];
            Lesson { place, sequence, terms, sampled: Vec::new(), old: Vec::new() }
        };
        sequences.into_iter().enumerate().map(lesson).collect()
    }

    /// Return the workload of the timed steps, for estimating their memory.
    fn workload(&self, sequences: &[Sequence], cache: CacheShape) -> Workload {
        let batches = micro_batches(sequences, self.tokens_per_microbatch);
        let largest = |of: fn(&Sequence) -> usize| {
            let sizes = batches.iter().map(|batch| sequences[batch.clone()].iter().map(of).sum());
            sizes.max().unwrap_or(0)
        };
        Workload {
            tokens: largest(|sequence| sequence.tokens.len() - 1),
            completion_tokens: largest(|sequence| sequence.completion().len()),
            longest: sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0),
            threads: threads::available(),
            learner: self.learner(),
            precision: self.precision,
            sampled_in: self.precision,
            moments: Moments::F32,
            lora: self.lora.clone(),
            cache: self.sampled.then_some(cache),
            reference: false,
        }
    }
}

/// Return the sequence of a prompt and its completion.
pub(super) fn sequence(request: &Request, completion: &[u32]) -> Sequence {
    Sequence { tokens: [request.prompt.as_slice(), completion].concat(), prompt: request.prompt.len() }
}

/// Times of a training step: medians over the timed steps.
#[derive(Debug, Clone, Serialize)]
pub struct StepTimes {
    /// Number of model parameters.
    pub parameters: usize,
    /// Sampling in seconds.
    pub generation_s: f64,
    /// Forward pass, backward pass and update in seconds.
    pub train_s: f64,
    /// Sampling and training in seconds.
    pub step_s: f64,
    /// Sampled tokens per second of sampling; `None` if completions are synthetic.
    pub generation_tokens_per_s: Option<f64>,
    /// Prompt and completion tokens per second of training.
    pub train_tokens_per_s: f64,
    /// Training speed in 10^9 operations per second: six operations per weight and token, plus attention scores and
    /// mixture. Recomputation does not count.
    pub train_gflops: f64,
    /// Peak resident memory of the process so far, in GB (2^30 bytes); `None` if unknown.
    pub peak_rss_gb: Option<f64>,
    /// Peak memory in GB (2^30 bytes) as estimated by [`crate::doctor::estimate`].
    pub estimated_gb: f64,
    /// Number of timed steps, after a warm-up.
    pub steps: usize,
    /// Traffic of the last step; `None` if the device is not a GPU.
    #[serde(flatten)]
    pub traffic: Option<StepTraffic>,
}

/// Times GRPO steps (DAPO loss, AdamW) of a random model. Every completion has full length and an advantage of ±1.
pub fn step(config: &ModelConfig, shape: &StepShape, steps: usize, device: &Device) -> StepTimes {
    let (mut config, training) = (config.clone(), device.clone().autodiff());
    let mut model = match &shape.lora {
        Some(lora) => {
            config.set_stored(Dtype::Bf16);
            lora.attach(CausalLm::random_base(&config, 0, &training, shape.precision), 0)
        }
        None => CausalLm::random_as(&config, 0, &training, shape.precision),
    };
    let parameters = names(&model).values().map(|shape| shape.iter().product::<usize>()).sum();
    let mut optimizer = AdamW::default();
    let (counter, mut traffic) = (Counter::new(), None);
    let (mut times, mut sequences): (Vec<[f64; 2]>, Vec<Sequence>) = (Vec::new(), Vec::new());
    for round in 0..steps as u64 + 1 {
        let start = Instant::now();
        let requests = shape.requests(&config, round);
        let completions = completions(&config, shape, &model, &requests);
        let generation = start.elapsed().as_secs_f64();

        let start = Instant::now();
        sequences = requests.iter().zip(&completions).map(|(request, tokens)| sequence(request, tokens)).collect();
        let seen;
        (model, seen) = learn(shape, &counter, model, &mut optimizer, &sequences);
        // Wait for the update; otherwise part of its time would count in the next round.
        device.sync().expect("every operation of the step succeeds");
        traffic = is_gpu(device).then_some(seen);
        if round > 0 {
            times.push([generation, start.elapsed().as_secs_f64()]);
        }
    }
    let (generation_s, train_s) = (median(times.iter().map(|t| t[0])), median(times.iter().map(|t| t[1])));
    let cache = cache_shape(&config, &shape.requests(&config, 0), &shape.sampling());
    let needed = shape.workload(&sequences, cache.expect("a cache without a bound holds everything"));
    let estimated = estimate::memory(&config, &needed).peak() as f64 / f64::from(1 << 30);
    let work: f64 = sequences.iter().map(|sequence| operations(&config, sequence)).sum();
    StepTimes {
        parameters,
        generation_s,
        train_s,
        step_s: median(times.iter().map(|t| t[0] + t[1])),
        generation_tokens_per_s: (shape.sampled)
            .then(|| (shape.group * shape.prompts * shape.tokens) as f64 / generation_s),
        train_tokens_per_s: sequences.iter().map(|sequence| sequence.tokens.len()).sum::<usize>() as f64 / train_s,
        train_gflops: work / train_s / 1e9,
        peak_rss_gb: peak_rss_gb(),
        estimated_gb: (estimated * 1000.0).round() / 1000.0,
        steps,
        traffic,
    }
}

/// Return the tokens of each completion, sampled or synthetic.
pub(super) fn completions(
    config: &ModelConfig,
    shape: &StepShape,
    model: &CausalLm,
    requests: &[Request],
) -> Vec<Vec<u32>> {
    if !shape.sampled {
        let token = |row: usize, i: usize| ((row * 7919 + i * 31 + 5) % config.vocab_size) as u32;
        return (0..requests.len()).map(|row| (0..shape.tokens).map(|i| token(row, i)).collect()).collect();
    }
    let sampled = generate(model, config, requests, &shape.sampling(), |_, _| Watch::Continue);
    let sampled = sampled.expect("a cache without a bound holds everything");
    sampled.into_iter().map(|completion| completion.tokens).collect()
}

/// Perform an update; return the model and the traffic between host and device.
fn learn(
    shape: &StepShape,
    counter: &Counter,
    model: CausalLm,
    optimizer: &mut AdamW,
    sequences: &[Sequence],
) -> (CausalLm, StepTraffic) {
    let optim = OptimConfig { learning_rate: 1e-4, ..OptimConfig::default() };
    let (learner, objective) = (shape.learner(), Stage::default().objective());
    let mut lessons = shape.lessons(sequences.to_vec());
    let before = counter.now();
    let (gradients, _, _) = update::gradients(&learner, &objective, &Correction::NONE, &model, &mut lessons);
    let learned = counter.now();
    let scale = optim.clip(gradients.norm());
    let model = optimizer.step(&optim, model, gradients, scale, optim.learning_rate);
    let micro_batches = micro_batches(sequences, shape.tokens_per_microbatch).len();
    (model, StepTraffic::of([learned - before, counter.now() - learned], micro_batches))
}

/// Return the FLOPs of training on a sequence.
fn operations(config: &ModelConfig, sequence: &Sequence) -> f64 {
    estimate::operations(config, sequence.tokens.len() - 1, sequence.completion().len(), 6)
}
