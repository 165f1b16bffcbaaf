//! Sampling completions. Knows nothing of text: tokens in, tokens out, stop tokens are passed in.

mod count;
mod engine;
mod read;
mod recorder;
mod room;
mod sampling;

pub use count::Count;
pub use engine::{cache_shape, generate};
pub use read::read;
pub use room::Room;
pub(crate) use sampling::draw;
pub use sampling::{Distribution, Sampled, sample};

use serde::{Deserialize, Serialize};

use crate::model::Precision;

/// How completions are sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// What each token is drawn from.
    pub distribution: Distribution,
    /// Completions end here at the latest.
    pub max_completion_length: usize,
    /// Tokens that end a completion; part of it.
    pub stop: Vec<u32>,
    /// Completions decoded together at most.
    pub rows: usize,
    /// Tokens the cache may hold at most, prompts and completions at their longest; fewer completions are decoded
    /// together to keep to it. 0 for as many as `rows` need.
    pub cache_tokens: usize,
    /// Tokens that each completion is decoded by between two looks at what has ended, on devices with memory of their own:
    /// looking waits for the device. What was decoded past an end is dropped, so no completion changes. Penalties and
    /// truncations look at every token.
    pub tokens_per_read: usize,
    /// Number format of matrix products; none for the model's own.
    pub precision: Option<Precision>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            distribution: Distribution::default(),
            max_completion_length: 512,
            stop: Vec::new(),
            rows: 128,
            cache_tokens: 0,
            tokens_per_read: 8,
            precision: None,
        }
    }
}

/// A completion to sample.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Prompt tokens, with any forced start of the completion.
    pub prompt: Vec<u32>,
    /// What the noise is a function of, beside the position: seed, step, problem, sample.
    pub key: [u64; 4],
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// A stop token, the last of the completion.
    Stop,
    /// The watcher ended it, after a stop string for instance.
    Watcher,
    /// The length limit, or the end of the whole call.
    Length,
}

/// A sampled completion and what the model said about each of its tokens, in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Tokens, with the stop token when there is one.
    pub tokens: Vec<u32>,
    /// Log-probability of each token at the sampling temperature among all tokens: what a trainer recomputes.
    pub log_probs: Vec<f32>,
    /// Log-probability under the distribution it was drawn from; differs from `log_probs` with a penalty or truncation.
    pub drawn_log_probs: Vec<f32>,
    /// Log-probability at temperature 1.
    pub unit_log_probs: Vec<f32>,
    /// Entropy of the distribution at temperature 1, per token.
    pub entropies: Vec<f32>,
    /// Entropy of the distribution at the sampling temperature, among all tokens.
    pub sampling_entropies: Vec<f32>,
    /// `Σ p²` of the same distribution.
    pub collisions: Vec<f32>,
    /// `Σ p² ln p` of the same distribution.
    pub collision_logs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

impl Completion {
    pub(crate) fn empty() -> Self {
        Self {
            tokens: Vec::new(),
            log_probs: Vec::new(),
            drawn_log_probs: Vec::new(),
            unit_log_probs: Vec::new(),
            entropies: Vec::new(),
            sampling_entropies: Vec::new(),
            collisions: Vec::new(),
            collision_logs: Vec::new(),
            finish_reason: FinishReason::Length,
        }
    }

    /// Of tokens that are there already, with their figures, such as [`read`] gives.
    pub fn of(sampled: &[Sampled], finish_reason: FinishReason) -> Self {
        let mut completion = Self { finish_reason, ..Self::empty() };
        sampled.iter().for_each(|sampled| completion.push(sampled));
        completion
    }

    fn push(&mut self, sampled: &Sampled) {
        self.tokens.push(sampled.token);
        self.log_probs.push(sampled.log_prob);
        self.drawn_log_probs.push(sampled.drawn_log_prob);
        self.unit_log_probs.push(sampled.unit_log_prob);
        self.entropies.push(sampled.entropy);
        self.sampling_entropies.push(sampled.sampling_entropy);
        self.collisions.push(sampled.collision);
        self.collision_logs.push(sampled.collision_log);
    }

    /// Ended of itself, not by the length limit.
    pub fn finished(&self) -> bool {
        self.finish_reason != FinishReason::Length
    }
}

/// Answer of a watcher to a new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Go on.
    Continue,
    /// End this completion with the token just seen.
    EndCompletion,
    /// End the whole call; what is there is returned.
    EndAll,
}

impl Watch {
    /// Continue, until an early end is asked for.
    pub fn until(stop: crate::stop::Stop) -> Self {
        if stop.requested() { Self::EndAll } else { Self::Continue }
    }
}
