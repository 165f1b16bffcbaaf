//! Sampling of the next token of every row from its logits.

use std::borrow::Cow;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::ops::{self, host};

/// The distribution that tokens are drawn from: the softmax of the logits after the following adjustments, in this
/// order. Names and defaults are those of TRL and Hugging Face.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Divides positive and multiplies negative logits of tokens that occurred before (arXiv 1909.05858); 1 for none.
    pub repetition_penalty: f32,
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f32,
    /// Keeps the k most probable tokens, and any as probable as the last of them; 0 for all.
    pub top_k: usize,
    /// Keeps the most probable tokens that together reach this probability (arXiv 1904.09751); 1 for all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as probable as the most probable one (arXiv 2407.01082); 0 for all.
    pub min_p: f32,
}

impl Default for Distribution {
    fn default() -> Self {
        Self { repetition_penalty: 1.0, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

impl Distribution {
    /// Return the softmax over all tokens at a temperature.
    pub fn at(temperature: f32) -> Self {
        Self { temperature, ..Self::default() }
    }

    /// Return one message per invalid setting: `key = value` and the reason.
    pub fn mistakes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |ok: bool, key: &str, value: f32, rule: &str| {
            if !ok {
                problems.push(format!("{key} = {value} must be {rule}"));
            }
        };
        let Self { repetition_penalty, temperature, top_p, min_p, .. } = *self;
        // Logits divided by less could be infinite.
        let divides = temperature >= 1e-20 && temperature.is_finite();
        require(temperature == 0.0 || divides, "temperature", temperature, "0 (greedy) or at least 1e-20");
        require(top_p > 0.0 && top_p <= 1.0, "top_p", top_p, "above 0 and at most 1 (1 for all tokens)");
        require((0.0..=1.0).contains(&min_p), "min_p", min_p, "between 0 and 1 (0 for all tokens)");
        let positive = repetition_penalty > 0.0 && repetition_penalty.is_finite();
        require(positive, "repetition_penalty", repetition_penalty, "positive (1 for none)");
        problems
    }

    /// Return whether tokens are excluded by top-k, top-p or min-p.
    fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// Return the temperature of the statistics: greedy decoding reports those at 1.
    pub(super) fn softmax_temperature(&self) -> f32 {
        if self.temperature == 0.0 { 1.0 } else { self.temperature }
    }
}

/// A drawn token with statistics of its distribution, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: u32,
    /// Its log-probability at the sampling temperature over all tokens, as a trainer recomputes it; NaN if logits are
    /// not finite.
    pub log_prob: f32,
    /// Its log-probability under the distribution it was drawn from, with penalty and truncation.
    pub drawn_log_prob: f32,
    /// Its log-probability at temperature 1 over all tokens.
    pub unit_log_prob: f32,
    /// Entropy at temperature 1.
    pub entropy: f32,
    /// Entropy at the sampling temperature, over all tokens.
    pub sampling_entropy: f32,
    /// `Σ p²` over all tokens at the sampling temperature.
    pub collision: f32,
    /// `Σ p² ln p` over all tokens at the sampling temperature.
    pub collision_log: f32,
}

/// Draw one token per row of `[rows, vocab]` logits by inverting the cumulative distribution at `uniforms[row]`.
/// `contexts` are the tokens before it, for the repetition penalty.
///
/// Logits in host memory are read there. On other devices the draw happens on the device, and seven numbers per row are
/// copied back, unless a penalty or truncation needs the logits themselves.
pub(crate) fn draw(
    logits: Tensor<2>,
    distribution: &Distribution,
    uniforms: &[f32],
    contexts: &[[&[u32]; 2]],
) -> Vec<SampledToken> {
    let [rows, vocab] = logits.dims();
    assert!(rows == uniforms.len() && rows == contexts.len(), "one uniform and one context per row");
    let device = logits.device();
    if draws_on_device(&device, distribution) {
        let uniforms = ops::to_device(TensorData::new(uniforms.to_vec(), [rows, 1]), &device);
        return fetch(DeviceTokens::on_device(logits, distribution, uniforms, 0, None).numbers);
    }
    let logits = ops::to_host(logits);
    // A few rows of a large vocabulary still use all cores; many small rows are processed in batches.
    let batch = (4096 / vocab).max(1);
    let row = |((logits, &uniform), context): ((&[f32], &f32), &[&[u32]; 2])| {
        sample(logits, distribution, uniform, context.iter().copied().flatten().copied())
    };
    logits.par_chunks_exact(vocab).zip(uniforms).zip(contexts).with_min_len(batch).map(row).collect()
}

/// Return whether tokens are drawn on the device of the logits: not on the host, or with a penalty or truncation.
pub(super) fn draws_on_device(device: &Device, distribution: &Distribution) -> bool {
    !ops::is_host(device) && !distribution.truncates() && distribution.repetition_penalty == 1.0
}

/// Tokens drawn on a device, still in its memory.
pub(super) struct DeviceTokens {
    /// `[rows]`.
    pub tokens: Tensor<1, Int>,
    /// The fields of [`SampledToken`] that the device computes, `[rows, 7]`.
    pub numbers: Tensor<2>,
}

impl DeviceTokens {
    /// Draw without truncation, each row at the uniform in column `place`; on a GPU also count the token in `states`.
    ///
    /// # Shapes
    /// - logits: `[rows, vocab]`; uniforms: `[rows, places]`; states: `[rows, 4]`, see `ops::Decoding`
    pub(super) fn on_device(
        logits: Tensor<2>,
        distribution: &Distribution,
        uniforms: Tensor<2>,
        place: usize,
        states: Option<Tensor<2, Int>>,
    ) -> Self {
        let [rows, _] = logits.dims();
        let device = logits.device();
        if ops::is_gpu(&device) {
            let states = states.unwrap_or_else(|| Tensor::<1, Int>::zeros([rows * 4], &device).reshape([rows, 4]));
            let (tokens, numbers) = ops::sample(logits, distribution.temperature, uniforms, place, states);
            return Self { tokens, numbers };
        }
        let uniforms = uniforms.narrow(1, place, 1);
        let temperature = distribution.softmax_temperature();
        let unit = log_softmax(logits.clone(), 1);
        let tempered = if temperature == 1.0 { unit.clone() } else { log_softmax(logits.div_scalar(temperature), 1) };
        let tokens: Tensor<2, Int> = if distribution.temperature == 0.0 {
            tempered.clone().argmax(1)
        } else {
            invert_on_device(tempered.clone().exp(), uniforms)
        };
        let entropy = |log_probs: &Tensor<2>| (log_probs.clone().exp() * log_probs.clone()).sum_dim(1).neg();
        let squares = tempered.clone().mul_scalar(2.0).exp();
        let columns = vec![
            tokens.clone().float(),
            tempered.clone().gather(1, tokens.clone()),
            unit.clone().gather(1, tokens.clone()),
            entropy(&unit),
            entropy(&tempered),
            squares.clone().sum_dim(1),
            (squares * tempered).sum_dim(1),
        ];
        Self { tokens: tokens.reshape([rows]), numbers: Tensor::cat(columns, 1) }
    }
}

/// [`invert`] with tensor operations: finds the block first, then the token in it.
///
/// # Shapes
/// - weights: `[rows, vocab]`; uniforms: `[rows, 1]`; result: `[rows, 1]`
fn invert_on_device(weights: Tensor<2>, uniforms: Tensor<2>) -> Tensor<2, Int> {
    let [rows, vocab] = weights.dims();
    let blocks = vocab.div_ceil(BLOCK);
    let padding = Tensor::zeros([rows, blocks * BLOCK - vocab], &weights.device());
    let padded = if blocks * BLOCK == vocab { weights } else { Tensor::cat(vec![weights, padding], 1) };
    let weights: Tensor<3> = padded.reshape([rows, blocks, BLOCK]);
    // Number of cumulative sums up to the threshold, which is kept below the last of them.
    let place = |sums: Tensor<2>, threshold: Tensor<2>| {
        let [rows, count] = sums.dims();
        let below = sums.clone().narrow(1, count - 1, 1).mul_scalar(1.0 - 1e-7);
        let threshold = threshold.min_pair(below).expand([rows, count]);
        sums.lower_equal(threshold).int().sum_dim(1).clamp_max(count as i64 - 1)
    };
    let sums = weights.clone().sum_dim(2).reshape([rows, blocks]);
    let ends = sums.clone().cumsum(1);
    let threshold = uniforms * ends.clone().narrow(1, blocks - 1, 1);
    let block: Tensor<2, Int> = place(ends.clone(), threshold.clone());
    let before = (ends - sums).gather(1, block.clone());
    let index = block.clone().reshape([rows, 1, 1]).expand([rows, 1, BLOCK]);
    let ends = weights.gather(1, index).reshape([rows, BLOCK]).cumsum(1);
    let token = place(ends, threshold - before);
    (block.mul_scalar(BLOCK as i64) + token).clamp_max(vocab as i64 - 1)
}

/// Copy drawn tokens to the host.
pub(super) fn fetch(numbers: Tensor<2>) -> Vec<SampledToken> {
    let row = |row: &[f32; 7]| {
        let [token, log_prob, unit_log_prob, entropy, sampling_entropy, collision, collision_log] = *row;
        SampledToken {
            token: token as u32, // integers below 2^24 are exact in f32
            log_prob,
            drawn_log_prob: log_prob,
            unit_log_prob,
            entropy,
            sampling_entropy,
            collision,
            collision_log,
        }
    };
    ops::to_host(numbers).as_chunks::<7>().0.iter().map(row).collect()
}

/// Source of a row's token.
#[derive(Debug, Clone, Copy)]
pub(super) enum TokenSource {
    /// Drawn at this uniform.
    Drawn(f32),
    /// Known in advance.
    Given(u32),
}

impl TokenSource {
    fn token(self, draw: impl FnOnce(f32) -> usize) -> usize {
        match self {
            Self::Drawn(uniform) => draw(uniform),
            Self::Given(token) => token as usize,
        }
    }
}

/// Draw from one row of logits at `uniform`; `context` are the tokens before it.
pub fn sample(
    logits: &[f32],
    distribution: &Distribution,
    uniform: f32,
    context: impl Iterator<Item = u32>,
) -> SampledToken {
    figures(logits, distribution, TokenSource::Drawn(uniform), context)
}

/// Return the token of one row of logits and the statistics of its distribution; `context` are the tokens before it.
pub(super) fn figures(
    logits: &[f32],
    distribution: &Distribution,
    choice: TokenSource,
    context: impl Iterator<Item = u32>,
) -> SampledToken {
    let inverse = 1.0 / distribution.softmax_temperature();
    let unit = host::softmax(logits, 1.0);
    let tempered = if inverse == 1.0 { unit } else { host::softmax(logits, inverse) };
    let log_prob =
        |z: f32, softmax: &host::Softmax, inverse: f32| (z - softmax.max) * inverse - softmax.normaliser.ln();
    let penalised = penalise(logits, distribution.repetition_penalty, context);
    let (token, drawn_log_prob) = if distribution.temperature == 0.0 {
        let token = choice.token(|_| most_probable(&penalised));
        (token, log_prob(logits[token], &unit, 1.0))
    } else if distribution.truncates() {
        choose_truncated(&penalised, distribution, choice)
    } else {
        let softmax = match &penalised {
            Cow::Borrowed(_) => tempered,
            Cow::Owned(penalised) => host::softmax(penalised, inverse),
        };
        let token = choice.token(|uniform| invert(&penalised, softmax.max, inverse, uniform));
        (token, log_prob(penalised[token], &softmax, inverse))
    };
    SampledToken {
        token: token as u32,
        log_prob: log_prob(logits[token], &tempered, inverse),
        drawn_log_prob,
        unit_log_prob: log_prob(logits[token], &unit, 1.0),
        entropy: unit.entropy,
        sampling_entropy: tempered.entropy,
        collision: tempered.collision,
        collision_log: tempered.collision_log,
    }
}

fn penalise(logits: &[f32], penalty: f32, context: impl Iterator<Item = u32>) -> Cow<'_, [f32]> {
    if penalty == 1.0 {
        return Cow::Borrowed(logits);
    }
    let mut penalised = logits.to_vec();
    for token in context {
        // Starts from the unchanged logit, so that a token that occurred twice is penalised once.
        let logit = logits[token as usize];
        penalised[token as usize] = if logit > 0.0 { logit / penalty } else { logit * penalty };
    }
    Cow::Owned(penalised)
}

/// Return the first index of the maximum.
fn most_probable(logits: &[f32]) -> usize {
    let mut best = 0;
    for (index, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = index;
        }
    }
    best
}

/// Number of tokens whose weights are summed before the total sum: weights far below the largest keep their share.
const BLOCK: usize = 256;

/// Return the token at which the cumulative sum of `e^((z − max)/T)` exceeds the share `uniform` of the total.
///
/// A cumulative sum in f32 that has reached 1 ignores weights below 6e-8, of which a large vocabulary has many.
fn invert(logits: &[f32], max: f32, inverse: f32, uniform: f32) -> usize {
    let weight = |z: f32| host::exp((z - max) * inverse);
    let sum = |block: &[f32]| -> f64 {
        let (whole, rest) = block.as_chunks::<16>();
        let mut lanes = [0.0f32; 16];
        for chunk in whole {
            lanes.iter_mut().zip(chunk).for_each(|(lane, &z)| *lane += weight(z));
        }
        lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + rest.iter().map(|&z| f64::from(weight(z))).sum::<f64>()
    };
    let sums: Vec<f64> = logits.chunks(BLOCK).map(sum).collect();
    let threshold = f64::from(uniform) * sums.iter().sum::<f64>();
    let mut before = 0.0;
    let block = sums.iter().position(|sum| {
        let here = before + sum > threshold;
        before += if here { 0.0 } else { *sum };
        here
    });
    // `None` if the logits are not numbers; the caller detects this by the log-probability.
    let first = block.unwrap_or(0) * BLOCK;
    let tokens = &logits[first..logits.len().min(first + BLOCK)];
    let drawn = tokens.iter().position(|&z| {
        let weight = f64::from(weight(z));
        before += weight;
        before > threshold && weight > 0.0
    });
    // Rounding can leave the sum slightly below the threshold.
    first + drawn.unwrap_or_else(|| most_probable(tokens))
}

/// Return a token kept by top-k, top-p and min-p, and its log-probability among them; −∞ for an excluded given token.
fn choose_truncated(logits: &[f32], distribution: &Distribution, choice: TokenSource) -> (usize, f32) {
    let kept = truncate(logits, distribution);
    let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let (token, weight) = match choice {
        TokenSource::Drawn(uniform) => {
            let mut sum = 0.0;
            let drawn = kept.iter().find(|&&(_, weight)| {
                sum += f64::from(weight);
                sum > f64::from(uniform) * total
            });
            // Nothing is kept if the logits are not numbers.
            drawn.or(kept.first()).copied().unwrap_or((0, f32::NAN))
        }
        TokenSource::Given(token) => {
            let token = token as usize;
            (token, kept.iter().find(|(kept, _)| *kept == token).map_or(0.0, |&(_, weight)| weight))
        }
    };
    (token, (f64::from(weight) / total).ln() as f32)
}

/// Return the kept tokens with their weights (1 for the most probable), most probable first.
fn truncate(logits: &[f32], distribution: &Distribution) -> Vec<(usize, f32)> {
    let inverse = 1.0 / distribution.temperature;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut kept: Vec<(usize, f32)> = logits.iter().map(|&z| host::exp((z - max) * inverse)).enumerate().collect();
    let by_weight = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if (1..kept.len()).contains(&distribution.top_k) {
        let (_, &mut (_, least), _) = kept.select_nth_unstable_by(distribution.top_k - 1, by_weight);
        kept.retain(|&(_, weight)| weight >= least);
    }
    let total: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let top_p = f64::from(distribution.top_p);
    if top_p < 1.0 {
        // Tokens below this weight have a total share of less than 1 − top_p: sorting the others is enough.
        let negligible = (1.0 - top_p) * total / kept.len() as f64;
        kept.retain(|&(_, weight)| f64::from(weight) >= negligible);
    }
    kept.sort_unstable_by(by_weight);
    let mut before = 0.0;
    let mut stays = |weight: f32| {
        let stay = before < top_p * total;
        before += f64::from(weight);
        stay
    };
    let nucleus = kept.iter().take_while(|(_, weight)| stays(*weight)).count().max(1);
    kept.truncate(nucleus);
    kept.retain(|&(_, weight)| weight >= distribution.min_p);
    kept
}

#[cfg(test)]
mod tests;
