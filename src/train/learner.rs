//! From sequences and the derivatives of a loss to gradients: what every kind of training here does on the device.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};

use super::batch::{Sequence, completion_scores, micro_batches};
use crate::model::CausalLm;
use crate::objective::Upstream;
use crate::ops::to_host;
use crate::optim::Gradients;

/// How a step is computed; nothing here changes its result beyond rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learner {
    /// Temperature of the distribution whose log-probabilities are learned.
    pub temperature: f32,
    /// Tokens of one forward and backward pass at most.
    pub tokens_per_microbatch: usize,
}

/// What the model says of the completion tokens of some sequences, end to end, in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScores {
    /// Log-probability at the learner's temperature.
    pub log_prob: Vec<f32>,
    /// Entropy at temperature 1.
    pub entropy: Vec<f32>,
    /// Entropy at the learner's temperature.
    pub sampling_entropy: Vec<f32>,
}

impl Learner {
    /// Adds the gradient of a loss over `sequences` to `gradients`.
    ///
    /// `loss` is told which sequences a micro-batch holds and what the model says of their completion tokens, and answers
    /// with the derivatives of the loss, or with nothing when the micro-batch must be left out.
    pub fn backward(
        &self,
        model: &CausalLm,
        sequences: &[Sequence],
        gradients: &mut Gradients,
        mut loss: impl FnMut(Range<usize>, &TokenScores) -> Option<Upstream>,
    ) {
        for range in micro_batches(sequences, self.tokens_per_microbatch) {
            let scores = completion_scores(model, &sequences[range.clone()], self.temperature);
            let seen = TokenScores {
                log_prob: to_host(scores.log_prob.clone().inner()),
                entropy: to_host(scores.entropy.inner()),
                sampling_entropy: to_host(scores.entropy_sampling.clone().inner()),
            };
            let Some(upstream) = loss(range, &seen) else { continue };
            let device = scores.log_prob.device();
            let pull = |x: Tensor<1>, by: &[f32]| (x * Tensor::from_data(TensorData::from(by), &device)).sum();
            let mut product = pull(scores.log_prob, &upstream.log_prob);
            if upstream.entropy.iter().any(|&derivative| derivative != 0.0) {
                product = product + pull(scores.entropy_sampling, &upstream.entropy);
            }
            gradients.add(model, &mut product.backward());
        }
    }

    /// Log-probabilities of the completion tokens of each sequence, without gradients.
    pub fn log_probs(&self, model: &CausalLm, sequences: &[Sequence]) -> Vec<Vec<f32>> {
        let mut lists = Vec::with_capacity(sequences.len());
        for range in micro_batches(sequences, self.tokens_per_microbatch) {
            let sequences = &sequences[range];
            let mut values = &to_host(completion_scores(model, sequences, self.temperature).log_prob)[..];
            for sequence in sequences {
                let (own, rest) = values.split_at(sequence.completion().len());
                lists.push(own.to_vec());
                values = rest;
            }
        }
        lists
    }
}
