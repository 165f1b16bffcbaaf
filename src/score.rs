//! What a model says of given tokens: the log-probability of each, and the entropy of the distribution it came from.

use serde::Serialize;

use crate::model::CausalLm;
use crate::ops::{scores, to_host};

/// Logits held at once, in numbers: 256 MB.
const LOGITS: usize = 64 << 20;

/// A sequence with what the model says of it, in nats; nothing predicts the first token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenScores {
    /// The tokens.
    pub input_ids: Vec<u32>,
    /// At position `i`, the log-probability of token `i` after those before it.
    pub logprobs: Vec<Option<f32>>,
    /// At position `i`, the entropy of the distribution that predicted token `i`.
    pub entropy: Vec<Option<f32>>,
}

/// Scores sequences in one packed forward pass, under the distributions at `temperature`.
///
/// # Panics
/// When a sequence is empty.
pub fn score(model: &CausalLm, sequences: Vec<Vec<u32>>, temperature: f32) -> Vec<TokenScores> {
    assert!(sequences.iter().all(|tokens| !tokens.is_empty()), "empty sequence");
    let inputs: Vec<&[u32]> = sequences.iter().map(|s| &s[..s.len() - 1]).filter(|s| !s.is_empty()).collect();
    let targets: Vec<u32> = sequences.iter().flat_map(|tokens| &tokens[1..]).copied().collect();
    let (mut logprobs, mut entropy) = (Vec::with_capacity(targets.len()), Vec::with_capacity(targets.len()));
    if !targets.is_empty() {
        let lengths: Vec<usize> = inputs.iter().map(|tokens| tokens.len()).collect();
        let hidden = model.forward(&inputs.concat(), &lengths, None);
        let [_, width] = hidden.dims();
        let vocab = model.model.embed_tokens.weight.lazy_shape()[0];
        let at_once = (LOGITS / vocab).max(1);
        for (index, targets) in targets.chunks(at_once).enumerate() {
            let first = index * at_once;
            let rows = hidden.clone().slice([first..first + targets.len(), 0..width]);
            let scores = scores(model.logits(rows), targets, temperature);
            logprobs.extend(to_host(scores.log_prob));
            entropy.extend(to_host(scores.entropy_sampling));
        }
    }
    let mut figures = logprobs.into_iter().zip(entropy);
    let after_first = |tokens: Vec<u32>| {
        let (mut logprobs, mut entropy) = (vec![None], vec![None]);
        for (logprob, h) in figures.by_ref().take(tokens.len() - 1) {
            logprobs.push(Some(logprob));
            entropy.push(Some(h));
        }
        TokenScores { input_ids: tokens, logprobs, entropy }
    };
    sequences.into_iter().map(after_first).collect()
}
