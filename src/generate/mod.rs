//! Sampling completions: prompts are read once and shared by their group, rows are decoded together, and rows that end
//! leave the batch. Knows nothing of text: stop tokens are passed in.

mod sampling;

pub use sampling::{Sampled, sample};

use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use crate::model::{CausalLm, KvCache, ModelConfig};
use crate::noise;

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Completions end here at the latest.
    pub max_completion_length: usize,
    /// Tokens that end a completion; part of it.
    pub stop: Vec<u32>,
    /// Rows decoded together at most.
    pub rows: usize,
}

/// A completion to sample.
#[derive(Debug, Clone)]
pub struct Request {
    /// Prompt tokens, with any forced start of the completion.
    pub prompt: Vec<u32>,
    /// What the noise is a function of, beside the position: seed, step, problem, sample.
    pub key: [u64; 4],
}

/// A sampled completion and what the model said about each of its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// Tokens, with the stop token when there is one.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the distribution it was drawn from.
    pub log_probs: Vec<f32>,
    /// Entropy in nats of the distribution at temperature 1, per token.
    pub entropies: Vec<f32>,
    /// Entropy in nats of the distribution at the sampling temperature, per token.
    pub sampling_entropies: Vec<f32>,
    /// Ended by a stop token, not by the length limit.
    pub finished: bool,
}

/// Samples one completion per request, in the order of the requests.
///
/// Consecutive requests with equal prompts share the reading of the prompt. `observe` sees `(request, token)` as they
/// come and may end the whole call early; what is there by then is returned.
///
/// # Panics
/// When a prompt is empty.
pub fn generate(
    model: &CausalLm,
    config: &ModelConfig,
    requests: &[Request],
    sampling: &Sampling,
    mut observe: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Vec<Completion> {
    let model = model.for_inference();
    let device = model.device();
    let empty = Completion {
        tokens: Vec::new(),
        log_probs: Vec::new(),
        entropies: Vec::new(),
        sampling_entropies: Vec::new(),
        finished: false,
    };
    let mut completions = vec![empty; requests.len()];
    for (chunk, first) in requests.chunks(sampling.rows.max(1)).zip((0..).step_by(sampling.rows.max(1))) {
        let flow = Decoding::new(&model, config, chunk, sampling, &device)
            .run(&mut completions[first..first + chunk.len()], &mut |row, token| observe(first + row, token));
        if flow.is_break() {
            break;
        }
    }
    completions
}

/// One batch of rows on its way.
struct Decoding<'a> {
    model: &'a CausalLm,
    requests: &'a [Request],
    sampling: &'a Sampling,
    device: &'a Device,
    cache: KvCache,
    /// Request of each row; `None` once it has finished.
    active: Vec<Option<usize>>,
    /// Logits of the next token of each row, `[rows, vocab]`.
    logits: Tensor<2>,
}

impl<'a> Decoding<'a> {
    /// Reads the prompts, each distinct one once.
    fn new(
        model: &'a CausalLm,
        config: &ModelConfig,
        requests: &'a [Request],
        sampling: &'a Sampling,
        device: &'a Device,
    ) -> Self {
        let mut prompts: Vec<&[u32]> = requests.iter().map(|request| request.prompt.as_slice()).collect();
        prompts.dedup();
        let mut rows = Vec::with_capacity(requests.len());
        for request in requests {
            let same = rows.last().is_some_and(|&last: &usize| prompts[last] == request.prompt);
            let next = rows.last().map_or(0, |&last| last + 1);
            rows.push(if same { next - 1 } else { next });
        }
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
        assert!(!lengths.contains(&0), "empty prompt");
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut cache = KvCache::new(config, prompts.len(), longest, device);
        let hidden = model.forward(&prompts.concat(), &lengths, Some(&mut cache));
        cache.start_decoding(&lengths);
        let ends: Vec<usize> = lengths
            .iter()
            .scan(0, |end, &length| {
                *end += length;
                Some(*end)
            })
            .collect();
        let last: Vec<usize> = rows.iter().map(|&prompt| ends[prompt] - 1).collect();
        let logits = model.logits(crate::ops::take_rows(hidden, &last));
        if rows.len() > prompts.len() {
            cache.select(&rows, device);
        }
        cache.reserve(sampling.max_completion_length);
        Self { model, requests, sampling, device, cache, active: (0..requests.len()).map(Some).collect(), logits }
    }

    fn run(
        mut self,
        completions: &mut [Completion],
        observe: &mut impl FnMut(usize, u32) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for position in 0..self.sampling.max_completion_length {
            let drawn = self.draw(position);
            let tokens: Vec<u32> = drawn.iter().map(|sampled| sampled.token).collect();
            for (row, sampled) in drawn.into_iter().enumerate() {
                let Some(request) = self.active[row] else { continue };
                let completion = &mut completions[request];
                completion.tokens.push(sampled.token);
                completion.log_probs.push(sampled.log_prob);
                completion.entropies.push(sampled.entropy);
                completion.sampling_entropies.push(sampled.sampling_entropy);
                completion.finished = self.sampling.stop.contains(&sampled.token);
                if completion.finished {
                    self.active[row] = None;
                }
                observe(request, sampled.token)?;
            }
            let Some(tokens) = self.compact(tokens) else { break };
            if position + 1 < self.sampling.max_completion_length {
                let hidden = self.model.forward(&tokens, &vec![1; tokens.len()], Some(&mut self.cache));
                self.logits = self.model.logits(hidden);
            }
        }
        ControlFlow::Continue(())
    }

    /// Drops finished rows once they are a quarter of the batch (dropping copies the cache, carrying one along costs a
    /// row of compute); returns the tokens of the rows that stay, or nothing when all have finished.
    fn compact(&mut self, tokens: Vec<u32>) -> Option<Vec<u32>> {
        let alive: Vec<usize> = (0..self.active.len()).filter(|&row| self.active[row].is_some()).collect();
        if alive.is_empty() {
            return None;
        }
        if alive.len() * 4 > self.active.len() * 3 {
            return Some(tokens);
        }
        self.cache.select(&alive, self.device);
        self.active = alive.iter().map(|&row| self.active[row]).collect();
        Some(alive.iter().map(|&row| tokens[row]).collect())
    }

    /// Draws the next token of every row from the host's copy of the logits.
    fn draw(&self, position: usize) -> Vec<Sampled> {
        let vocab = self.logits.dims()[1];
        let logits = crate::ops::to_host(self.logits.clone());
        let row = |(row, logits): (usize, &[f32])| {
            let key = self.active[row].map_or([0; 4], |request| self.requests[request].key);
            let [seed, step, problem, sample_index] = key;
            let uniform = noise::uniform(&[seed, step, problem, sample_index, position as u64]);
            sample(logits, self.sampling.temperature, uniform)
        };
        logits.par_chunks_exact(vocab).enumerate().with_min_len(8).map(row).collect()
    }
}
