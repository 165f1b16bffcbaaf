//! Progress counter of sampling.

use super::Sampling;

/// Progress of sampling a set of completions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// Total number of completions.
    pub total: usize,
    /// Number of completions that have ended.
    pub ended: usize,
    /// Number of tokens sampled.
    pub tokens: usize,
    /// Number of tokens of the completions that have ended.
    pub ended_tokens: usize,
    /// Tokens so far of each request in the current call of [`super::generate`].
    lengths: Vec<usize>,
}

impl Count {
    /// Create a counter for `total` completions.
    pub fn new(total: usize) -> Self {
        Self { total, ..Self::default() }
    }

    /// Start another call of [`super::generate`], whose requests are numbered from 0 again.
    pub fn next_call(&mut self) {
        self.lengths.clear();
    }

    /// Count a token passed to the watcher by a call of [`super::generate`] with `sampling`.
    pub fn take(&mut self, request: usize, token: u32, sampling: &Sampling) {
        if self.lengths.len() <= request {
            self.lengths.resize(request + 1, 0);
        }
        let length = &mut self.lengths[request];
        *length += 1;
        self.tokens += 1;
        if *length == sampling.max_completion_length || sampling.stop.contains(&token) {
            self.ended += 1;
            self.ended_tokens += *length;
        }
    }
}
