//! Scores of given tokens under a model: the log-probability of each token and the entropy of its distribution.

use serde::Serialize;

use crate::model::CausalLm;
use crate::train::batch::Sequence;
use crate::train::learner::Learner;

/// A sequence with the scores of its tokens, in nats. The first token has none, since nothing predicts it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SequenceScores {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// At position `i`, the log-probability of token `i` given the tokens before it.
    pub logprobs: Vec<Option<f32>>,
    /// At position `i`, the entropy of the distribution that predicted token `i`.
    pub entropy: Vec<Option<f32>>,
}

/// Score sequences at `temperature` in one packed forward pass.
///
/// # Panics
/// If a sequence is empty.
pub fn score(model: &CausalLm, sequences: Vec<Vec<u32>>, temperature: f32) -> Vec<SequenceScores> {
    assert!(sequences.iter().all(|tokens| !tokens.is_empty()), "empty sequence");
    // A sequence of one token has no token with a score.
    let asked = sequences.iter().filter(|tokens| tokens.len() > 1);
    let asked: Vec<Sequence> = asked.map(|tokens| Sequence { tokens: tokens.clone(), prompt: 1 }).collect();
    let learner = Learner { temperature, tokens_per_microbatch: usize::MAX, ..Learner::default() };
    let mut read = learner.read(model, &asked).into_iter();
    let scored = |input_ids: Vec<u32>| {
        let scores = if input_ids.len() > 1 { read.next() } else { None }.unwrap_or_default();
        let after_first = |values: Vec<f32>| std::iter::once(None).chain(values.into_iter().map(Some)).collect();
        let (logprobs, entropy) = (after_first(scores.log_prob), after_first(scores.sampling_entropy));
        SequenceScores { input_ids, logprobs, entropy }
    };
    sequences.into_iter().map(scored).collect()
}
