//! The messages between rank 0 and the other ranks: orders and replies.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::generate::{Completion, Request, Sampling};
use crate::model::{LoraConfig, Precision};
use crate::objective::{Correction, Objective, Statistics};
use crate::optim::OptimConfig;
use crate::stop::Stop;
use crate::train::batch::Sequence;
use crate::train::learner::{ActivationCheckpointing, Learner, Work};
use crate::train::update::Lesson;

/// An order of rank 0. Each order except [`Order::Cancel`], [`Order::Apply`] and [`Order::End`] has one reply.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Open the device and prepare for a model.
    Model(Box<Outline>),
    /// Take part in the broadcasts of weights and moments.
    Weights,
    /// Take the reference model: the base model of the adapters or, by broadcasts, another model.
    Reference,
    /// Sample completions.
    Sample { requests: Vec<Request>, sampling: Sampling },
    /// End the sampling; no effect once it has ended.
    Cancel,
    /// Compute the gradient of a loss over some lessons, and keep it.
    Learn { manner: LearnerOptions, objective: Objective, correction: Correction, lessons: Vec<Lesson> },
    /// Take part in the sum of the gradients.
    Sum,
    /// Take an optimiser step with the summed gradient.
    Apply { scale: f64, learning_rate: f64 },
    /// Score the completions of sequences, under the policy or the reference model.
    Read { manner: LearnerOptions, reference: bool, sequences: Vec<Sequence> },
    /// Reply with the digest of the weights.
    Digest,
    /// The run has ended.
    End,
}

/// A model without its weights.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Outline {
    /// `config.json`.
    pub(super) config: String,
    pub(super) precision: Precision,
    pub(super) lora: Option<LoraConfig>,
    /// Name of the device, for ranks without a `--device` of their own.
    pub(super) device: String,
    pub(super) optim: OptimConfig,
    /// Number of optimiser steps so far, and the name and size of each parameter with moments.
    pub(super) moments: (i32, Vec<(String, usize)>),
}

/// The options of a [`Learner`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct LearnerOptions {
    temperature: f32,
    tokens_per_microbatch: usize,
    activation_checkpointing: ActivationCheckpointing,
    logits: usize,
}

impl LearnerOptions {
    pub(super) fn of(learner: &Learner) -> Self {
        let Learner { temperature, tokens_per_microbatch, activation_checkpointing, logits, stop: _ } = *learner;
        Self { temperature, tokens_per_microbatch, activation_checkpointing, logits }
    }

    pub(super) fn learner(self) -> Learner<'static> {
        let Self { temperature, tokens_per_microbatch, activation_checkpointing, logits } = self;
        Learner { temperature, tokens_per_microbatch, activation_checkpointing, logits, stop: Stop::NEVER }
    }
}

/// A reply of a rank.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The version of the program and its command line; the first message of a rank.
    Hello(Vec<String>),
    /// Done.
    Ready,
    /// Pairs of a request of the share and a token sampled for it, since the last such message.
    Tokens(Vec<(u32, u32)>),
    Completions(Vec<Completion>),
    /// Sums over the lessons of the share, and the old log-probabilities of each lesson for which they were computed,
    /// in nats.
    Learned {
        statistics: Statistics,
        work: Work,
        old: Vec<Option<Vec<f32>>>,
    },
    /// Log-probabilities of each token of each completion, in nats.
    LogProbs(Vec<Vec<f32>>),
    Digest(String),
    /// Why the order failed.
    Failed(String),
}

pub(super) fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).expect("messages are lists of numbers and texts");
    bytes
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    ciborium::from_reader(bytes).expect("all ranks run the same version of the program")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::TokenTerm;

    /// Including numbers that JSON cannot represent.
    #[test]
    fn numbers_arrive_as_they_were() {
        let term = TokenTerm { old_log_prob: f32::NEG_INFINITY, advantage: 0.1, kl: 1e-40, ..TokenTerm::default() };
        let sequence = Sequence { tokens: vec![1, 151_935, u32::MAX], prompt: 2 };
        let lesson = Lesson { place: 3, sequence, terms: vec![term], sampled: vec![-0.5], old: Vec::new() };
        let back: Vec<Lesson> = decode(&encode(&std::slice::from_ref(&lesson)));
        assert_eq!((back[0].place, &back[0].sequence, &back[0].sampled), (3, &lesson.sequence, &lesson.sampled));
        assert_eq!(back[0].terms, lesson.terms);
        let read: Reply = decode(&encode(&Reply::LogProbs(vec![vec![f32::NAN, -0.0, f32::MAX]])));
        let Reply::LogProbs(lists) = read else { panic!("another message") };
        assert!(lists[0][0].is_nan());
        assert_eq!([lists[0][1], lists[0][2]].map(f32::to_bits), [-0.0, f32::MAX].map(f32::to_bits));
    }
}
