//! Scoring of existing completions: sampled by another engine, or before an update.

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use rayon::prelude::*;

use super::sampling::{TokenSource, draws_on_device, figures};
use super::{Distribution, SampledToken};
use crate::model::{CausalLm, LOGITS};
use crate::ops::{self, is_host, to_host_together};

/// Score each `(prompt, completion)`: return its completion tokens with the statistics of
/// [`generate`](super::generate) for `distribution`. A pass has at most `tokens_per_pass` tokens, or one sequence.
///
/// A token excluded by top-k, top-p or min-p has a `drawn_log_prob` of −∞; if logits are not finite, the `log_prob` is
/// NaN. On the CPU the statistics of a completion depend on the other sequences by rounding only, since the summation
/// order of products depends on the number of rows.
///
/// # Panics
/// When a prompt is empty, or a token is not in the vocabulary.
pub fn read(
    model: &CausalLm,
    sequences: &[(&[u32], &[u32])],
    distribution: &Distribution,
    tokens_per_pass: usize,
) -> Vec<Vec<SampledToken>> {
    let model = model.for_inference();
    let vocab = model.vocab_size();
    for (prompt, completion) in sequences {
        assert!(!prompt.is_empty(), "empty prompt");
        assert!(
            prompt.iter().chain(*completion).all(|&token| (token as usize) < vocab),
            "a token that is not the model's"
        );
    }
    let mut read = vec![Vec::new(); sequences.len()];
    for places in passes(sequences, &model.device(), tokens_per_pass) {
        let pass = Pass::of(places.iter().map(|&place| sequences[place]));
        let hidden = ops::take_rows(model.forward(&pass.tokens, &pass.lengths, None), &pass.rows);
        let [rows, width] = hidden.dims();
        let most = model.rows_at_once(LOGITS);
        let mut sampled = Vec::with_capacity(rows);
        for first in (0..rows).step_by(most) {
            let part = first..(first + most).min(rows);
            let logits = model.logits(hidden.clone().slice([part.clone(), 0..width]));
            sampled.extend(score(logits, distribution, &pass.targets[part]));
        }
        let mut rest = sampled.into_iter();
        for place in places {
            read[place] = rest.by_ref().take(sequences[place].1.len()).collect();
        }
    }
    read
}

/// Group the indices of sequences with a completion into passes, sorted by length if the device pads to the longest.
fn passes(sequences: &[(&[u32], &[u32])], device: &Device, tokens_per_pass: usize) -> Vec<Vec<usize>> {
    let length = |place: usize| sequences[place].0.len() + sequences[place].1.len() - 1;
    let mut places: Vec<usize> = (0..sequences.len()).filter(|&place| !sequences[place].1.is_empty()).collect();
    if !is_host(device) {
        places.sort_by_key(|&place| length(place));
    }
    let (mut passes, mut held): (Vec<Vec<usize>>, usize) = (Vec::new(), 0);
    for place in places {
        match passes.last_mut() {
            Some(pass) if held + length(place) <= tokens_per_pass => pass.push(place),
            _ => {
                passes.push(vec![place]);
                held = 0;
            }
        }
        held += length(place);
    }
    passes
}

/// Packed sequences without the last token of each, from which nothing is predicted.
struct Pass<'a> {
    tokens: Vec<u32>,
    lengths: Vec<usize>,
    /// Rows that predict a completion token.
    rows: Vec<usize>,
    targets: Vec<Target<'a>>,
}

/// A completion token, and the tokens before it.
struct Target<'a> {
    token: u32,
    context: [&'a [u32]; 2],
}

impl<'a> Pass<'a> {
    fn of(sequences: impl Iterator<Item = (&'a [u32], &'a [u32])>) -> Self {
        let (mut tokens, mut lengths, mut rows, mut targets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (prompt, completion) in sequences {
            let (first, count) = (tokens.len(), prompt.len() + completion.len() - 1);
            tokens.extend(prompt.iter().chain(completion).take(count));
            lengths.push(count);
            let predicting: Range<usize> = first + prompt.len() - 1..first + count;
            rows.extend(predicting);
            let target = |(at, &token): (usize, &u32)| Target { token, context: [prompt, &completion[..at]] };
            targets.extend(completion.iter().enumerate().map(target));
        }
        Self { tokens, lengths, rows, targets }
    }
}

/// Compute the statistics of one token per row of `[rows, vocab]` logits, where [`draw`](super::draw) computes them.
fn score(logits: Tensor<2>, distribution: &Distribution, targets: &[Target]) -> Vec<SampledToken> {
    if draws_on_device(&logits.device(), distribution) {
        return score_on_device(logits, distribution, targets);
    }
    let [_, vocab] = logits.dims();
    let logits = ops::to_host(logits);
    let row = |(logits, target): (&[f32], &Target)| {
        let context = target.context.iter().copied().flatten().copied();
        figures(logits, distribution, TokenSource::Given(target.token), context)
    };
    logits.par_chunks_exact(vocab).zip(targets).with_min_len((4096 / vocab).max(1)).map(row).collect()
}

/// Use the learner's log-probability operation at three temperatures. The remaining statistic follows: with `C = Σ
/// p²`, the distribution at half the temperature is `q = p²/C`, so `Σ p² ln p = C (ln C − H(q)) / 2`.
fn score_on_device(logits: Tensor<2>, distribution: &Distribution, targets: &[Target]) -> Vec<SampledToken> {
    let tokens: Vec<u32> = targets.iter().map(|target| target.token).collect();
    let temperature = distribution.softmax_temperature();
    let at = |temperature: f32| ops::scores(logits.clone(), &tokens, temperature);
    let tempered = at(temperature);
    let unit = if temperature == 1.0 { tempered.log_prob.clone() } else { at(1.0).log_prob };
    let squared = at(temperature / 2.0).entropy_sampling;
    let columns = [tempered.log_prob, unit, tempered.entropy, tempered.entropy_sampling, tempered.collision, squared];
    let columns = to_host_together(columns.into());
    let row = |(row, &token): (usize, &u32)| {
        let [log_prob, unit_log_prob, entropy, sampling_entropy, collision, squared] =
            std::array::from_fn(|column| columns[column][row]);
        SampledToken {
            token,
            log_prob,
            drawn_log_prob: log_prob,
            unit_log_prob,
            entropy,
            sampling_entropy,
            collision,
            collision_log: collision * (collision.ln() - squared) / 2.0,
        }
    };
    tokens.iter().enumerate().map(row).collect()
}
