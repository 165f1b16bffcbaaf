//! Sampling of completions. Independent of text: tokens in, tokens out; stop tokens are passed in.

mod count;
mod engine;
mod parallel;
mod read;
mod recorder;
mod room;
mod sampling;

pub use count::Count;
pub use engine::{cache_shape, generate};
pub use read::read;
pub use room::Room;
pub(crate) use sampling::draw;
pub use sampling::{Distribution, SampledToken, sample};

use serde::{Deserialize, Serialize};

use crate::model::Precision;

/// Settings of sampling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Distribution that tokens are drawn from.
    pub distribution: Distribution,
    /// Maximum tokens of a completion.
    pub max_completion_length: usize,
    /// Tokens that end a completion and are part of it.
    pub stop: Vec<u32>,
    /// Maximum number of completions decoded at a time.
    pub rows: usize,
    /// Maximum tokens in the KV cache, with prompts and completions at their maximum length; fewer completions are
    /// decoded at a time to stay within it. 0 for as many as `rows` need.
    pub cache_tokens: usize,
    /// Decoding steps between two reads of the sampled tokens, on devices with memory of their own: reading waits for
    /// the device. Tokens decoded past the end of a completion are dropped, so no completion changes. With penalties or
    /// truncation every token is read.
    pub tokens_per_read: usize,
    /// Precision of matrix products; `None` for the model's own.
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
    /// Prompt tokens, including any forced start of the completion.
    pub prompt: Vec<u32>,
    /// Key of the noise, together with the position: seed, step, problem, sample.
    pub key: [u64; 4],
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// A stop token, which is the last token of the completion.
    Stop,
    /// The watcher ended it, for instance after a stop string.
    Watcher,
    /// The length limit, or the end of the whole call.
    Length,
}

/// A sampled completion with statistics of the model for each token, in nats.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Tokens, including the stop token if there is one.
    pub tokens: Vec<u32>,
    /// Log-probability of each token at the sampling temperature over the whole vocabulary, as a trainer recomputes it.
    pub log_probs: Vec<f32>,
    /// Log-probability under the distribution it was drawn from; differs from `log_probs` with a penalty or truncation.
    pub drawn_log_probs: Vec<f32>,
    /// Log-probability at temperature 1.
    pub unit_log_probs: Vec<f32>,
    /// Entropy of the distribution at temperature 1, per token.
    pub entropies: Vec<f32>,
    /// Entropy of the distribution at the sampling temperature, over the whole vocabulary.
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

    /// Build a completion from existing tokens and their statistics, such as those of [`read`].
    pub fn of(sampled: &[SampledToken], finish_reason: FinishReason) -> Self {
        let mut completion = Self { finish_reason, ..Self::empty() };
        sampled.iter().for_each(|sampled| completion.push(sampled));
        completion
    }

    fn push(&mut self, sampled: &SampledToken) {
        self.tokens.push(sampled.token);
        self.log_probs.push(sampled.log_prob);
        self.drawn_log_probs.push(sampled.drawn_log_prob);
        self.unit_log_probs.push(sampled.unit_log_prob);
        self.entropies.push(sampled.entropy);
        self.sampling_entropies.push(sampled.sampling_entropy);
        self.collisions.push(sampled.collision);
        self.collision_logs.push(sampled.collision_log);
    }

    /// Keep the first `count` tokens. If there are more, it ends there for `reason`.
    fn cut(&mut self, count: usize, reason: FinishReason) {
        if self.tokens.len() > count {
            self.finish_reason = reason;
        }
        self.tokens.truncate(count);
        let statistics = [
            &mut self.log_probs,
            &mut self.drawn_log_probs,
            &mut self.unit_log_probs,
            &mut self.entropies,
            &mut self.sampling_entropies,
            &mut self.collisions,
            &mut self.collision_logs,
        ];
        statistics.into_iter().for_each(|values| values.truncate(count));
    }

    /// Return whether it ended by itself, not by the length limit.
    pub fn finished(&self) -> bool {
        self.finish_reason != FinishReason::Length
    }
}

/// Decision of a watcher about a new token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Continue the completion.
    Continue,
    /// End this completion with the token just seen.
    EndCompletion,
    /// End the whole call and return the tokens so far.
    EndAll,
}

impl Watch {
    /// Return `EndAll` once `stop` is requested, else `Continue`.
    pub fn until(stop: crate::stop::Stop) -> Self {
        if stop.requested() { Self::EndAll } else { Self::Continue }
    }
}
