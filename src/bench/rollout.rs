//! Benchmark of sampling without training.

use std::time::Instant;

use burn::tensor::DType;
use serde::Serialize;

use super::median;
use crate::generate::{Request, Sampling, Watch, cache_shape, generate};
use crate::metrics::peak_rss_gb;
use crate::model::{CausalLm, ModelConfig, names};
use crate::ops::is_gpu;
use crate::ops::traffic::{Counter, Traffic};

/// Traffic between host and GPU while decoding. Machine-independent; see [`StepTraffic`](super::StepTraffic).
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RolloutTraffic {
    /// Kernel launches per decode step, which decodes one token in each row.
    pub launches_per_token: f64,
    /// Blocking reads from the device per decode step.
    pub reads_per_token: f64,
    /// Bytes sent to the device per decode step.
    pub uploaded_bytes_per_token: f64,
}

/// Size of a benchmarked rollout.
#[derive(Debug, Clone, Copy)]
pub struct RolloutShape {
    /// Number of prompts.
    pub prompts: usize,
    /// Completions per prompt.
    pub group: usize,
    /// Tokens per prompt.
    pub prompt_length: usize,
    /// Tokens sampled per completion.
    pub tokens: usize,
    /// Maximum number of completions decoded together.
    pub rows: usize,
}

/// Times of a rollout: medians over the timed rollouts.
#[derive(Debug, Clone, Serialize)]
pub struct RolloutTimes {
    /// Number of model parameters.
    pub parameters: usize,
    /// Prefill and one sampled token per completion, in seconds.
    pub prefill_s: f64,
    /// Whole rollout in seconds.
    pub rollout_s: f64,
    /// Sampled tokens per second of the whole rollout.
    pub tokens_per_s: f64,
    /// Decode step of all rows in seconds: rollout minus prefill, divided by the number of steps.
    pub decode_step_s: f64,
    /// Size of the KV cache in bytes.
    pub cache_bytes: usize,
    /// Peak resident memory of the process so far, in GB (2^30 bytes); `None` if unknown.
    pub peak_rss_gb: Option<f64>,
    /// Number of timed rollouts, after a warm-up.
    pub steps: usize,
    /// Traffic of the last rollout without the prefill; `None` if the device is not a GPU.
    #[serde(flatten)]
    pub traffic: Option<RolloutTraffic>,
}

/// Times rollouts at temperature 1 in which every completion has full length.
///
/// # Panics
/// A size is 0, or a sequence exceeds the model's context.
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
