//! Counting completions while they are sampled.

use super::Sampling;

/// Progress of the sampling of a set of completions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// Completions in all.
    pub total: usize,
    /// Completions that have ended.
    pub ended: usize,
    /// Tokens sampled.
    pub tokens: usize,
    /// Tokens of the completions that have ended.
    pub ended_tokens: usize,
    /// Tokens of each request of the present call of [`super::generate`].
    lengths: Vec<usize>,
}

impl Count {
    /// Nothing of `total` completions is there yet.
    pub fn new(total: usize) -> Self {
        Self { total, ..Self::default() }
    }

    /// Another call of [`super::generate`] begins, whose requests are numbered from 0 again.
    pub fn next_call(&mut self) {
        self.lengths.clear();
    }

    /// Counts a token that the watcher of a call of [`super::generate`] with `sampling` is shown.
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
