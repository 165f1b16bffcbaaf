//! Token sampling: one kernel from logits to the token and the statistics of its distribution.

use cubecl::prelude::*;

use super::decode::STATE;
use super::{least, max, sum_in};

/// Statistics per row of the result.
pub(crate) const NUMBERS: usize = 7;

/// Sums over a run of tokens: of weights, and of weights times their logarithms (`_log`).
#[derive(CubeType)]
struct PartialSums {
    /// At temperature 1.
    one: f32,
    one_log: f32,
    /// At the sampling temperature.
    own: f32,
    own_log: f32,
    /// Of squared weights, at the sampling temperature.
    square: f32,
    square_log: f32,
    /// Index of the first maximal logit; the vocabulary size if the run has none.
    first: usize,
}

/// Sample from the softmax of `logits · inverse` the token at which the cumulative weight exceeds `uniform` times the
/// total, or take the first maximal logit if `greedy`. One block per row. Increment the token count of the row's
/// state, unless its prompt and its completion start at the same place (padding).
///
/// Each thread sums a run of consecutive tokens. Thread 0 finds the run of the sample from all sums in shared memory;
/// the thread of that run finds the token.
///
/// # Shapes
/// - logits: `[rows, vocab]`; uniforms: `[rows, places]`; states: `[rows, 4]`
/// - tokens: `[rows]`; numbers: `[rows, 7]`: token, its log-probability, the same at temperature 1, entropy at
///   temperature 1, entropy, `Σ p²` and `Σ p² log p` of the distribution sampled from
#[cube(launch, address_type = "dynamic")]
pub(crate) fn sample(
    logits: &Tensor<f32>,
    uniforms: &Tensor<f32>,
    states: &mut Tensor<i32>,
    tokens: &mut Tensor<i32>,
    numbers: &mut Tensor<f32>,
    inverse: f32,
    place: usize,
    #[comptime] greedy: bool,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    if row >= logits.shape(0) {
        terminate!();
    }
    let vocab = logits.shape(1);
    let unit = UNIT_POS as usize;
    let from = row * vocab;
    let top = row_max(logits, from, vocab, units);
    let length = vocab.div_ceil(units);
    let begin = unit * length;
    let end = least(begin + length, vocab);
    let run = run(logits, from, begin, end, top, inverse);

    let mut runs = Shared::new_slice(units);
    let mut token = Shared::new_slice(1usize);
    if greedy {
        let mut firsts = Shared::new_slice(units);
        firsts[unit] = run.first as u32;
        sync_cube();
        if unit == 0 {
            token[0] = first_argmax(&firsts, vocab, units);
        }
    } else {
        runs[unit] = run.own;
        sync_cube();
        // The run that has the token, and the part of the threshold that is left for it.
        let mut found = Shared::new_slice(1usize);
        let mut left = Shared::new_slice(1usize);
        if unit == 0 {
            let (of, rest) = find_run(&runs, uniforms[row * uniforms.shape(1) + place], units);
            found[0] = of;
            left[0] = rest;
        }
        sync_cube();
        if UNIT_POS == found[0] {
            token[0] = find_token(logits, from, begin, end, top, inverse, left[0]);
        }
    }
    sync_cube();

    let one = sum_in(&mut runs, run.one);
    let one_log = sum_in(&mut runs, run.one_log);
    let own = sum_in(&mut runs, run.own);
    let own_log = sum_in(&mut runs, run.own_log);
    let square = sum_in(&mut runs, run.square);
    let square_log = sum_in(&mut runs, run.square_log);
    if unit == 0 {
        let token = token[0];
        let z = logits[from + token as usize] - top;
        let (log_one, log_own) = (one.ln(), own.ln());
        let collision = square / (own * own);
        let to = row * NUMBERS;
        tokens[row] = token as i32;
        numbers[to] = f32::cast_from(token);
        numbers[to + 1] = z * inverse - log_own;
        numbers[to + 2] = z - log_one;
        numbers[to + 3] = log_one - one_log / one;
        numbers[to + 4] = log_own - own_log / own;
        numbers[to + 5] = collision;
        numbers[to + 6] = square_log / (own * own) - collision * log_own;
        // Padding does not advance.
        let state = row * STATE;
        if states[state] != states[state + 2] {
            states[state + 3] += 1;
        }
    }
}

/// Maximal logit of the row that begins at `from`, returned to every thread.
#[cube]
fn row_max(logits: &Tensor<f32>, from: usize, vocab: usize, #[comptime] units: usize) -> f32 {
    let mut top = f32::new(-1e30);
    let mut i = UNIT_POS as usize;
    while i < vocab {
        let z = logits[from + i];
        if z > top {
            top = z;
        }
        i += units;
    }
    max(top, units)
}

/// Sum over the tokens from `begin` to `end`. The maximal logit `top` has the weight 1.
#[cube]
fn run(logits: &Tensor<f32>, from: usize, begin: usize, end: usize, top: f32, inverse: f32) -> PartialSums {
    let mut one = 0.0f32;
    let mut one_log = 0.0f32;
    let mut own = 0.0f32;
    let mut own_log = 0.0f32;
    let mut square = 0.0f32;
    let mut square_log = 0.0f32;
    let mut first = logits.shape(1);
    let mut i = begin;
    while i < end {
        let z = logits[from + i] - top;
        let weight = z.exp();
        one += weight;
        one_log += weight * z;
        let tempered = z * inverse;
        let weight = tempered.exp();
        own += weight;
        own_log += weight * tempered;
        square += weight * weight;
        square_log += weight * weight * tempered;
        if z == 0.0f32 && i < first {
            first = i;
        }
        i += 1;
    }
    PartialSums { one, one_log, own, own_log, square, square_log, first }
}

/// First maximal logit, from those of the runs; token 0 if the logits are not numbers.
#[cube]
fn first_argmax(firsts: &Shared<[u32]>, vocab: usize, #[comptime] units: usize) -> u32 {
    let mut best = firsts[0];
    for u in 1..units {
        if firsts[u] < best {
            best = firsts[u];
        }
    }
    if best >= vocab as u32 {
        best = 0u32;
    }
    best
}

/// Return the run in which the cumulative weight exceeds `uniform` times the total, and the threshold within the run.
#[cube]
fn find_run(runs: &Shared<[f32]>, uniform: f32, #[comptime] units: usize) -> (u32, f32) {
    let mut whole = 0.0f32;
    for u in 0..units {
        whole += runs[u];
    }
    let threshold = uniform * whole;
    let mut before = 0.0f32;
    let mut run = 0u32;
    let mut searching = true;
    for u in 0..units {
        if searching && runs[u] > 0.0f32 {
            // If rounding leaves the threshold above the total, the last run with any weight is found.
            run = u as u32;
            if before + runs[u] > threshold {
                searching = false;
            } else {
                before += runs[u];
            }
        }
    }
    if searching {
        before = threshold;
    }
    (run, threshold - before)
}

/// Return the token at which the cumulative weight from `begin` exceeds `left`; if rounding leaves that above the
/// total, the last token with any weight.
#[cube]
fn find_token(logits: &Tensor<f32>, from: usize, begin: usize, end: usize, top: f32, inverse: f32, left: f32) -> u32 {
    let mut before = 0.0f32;
    let mut token = begin;
    let mut searching = true;
    let mut i = begin;
    while i < end {
        let weight = ((logits[from + i] - top) * inverse).exp();
        if searching && weight > 0.0f32 {
            token = i;
            before += weight;
            if before > left {
                searching = false;
            }
        }
        i += 1;
    }
    token as u32
}
