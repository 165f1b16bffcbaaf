//! Drawing tokens: one kernel from logits to the token and what is known of its distribution.

use cubecl::prelude::*;

use super::decode::STATE;
use super::{max, sum_in};

/// Numbers of a row of the result.
pub(crate) const NUMBERS: usize = 7;

/// Draws from the softmax of `logits · inverse` where the running sum of its weights passes a share `uniform` of the whole, or
/// takes the first of the largest logits; a cube per row. Then the row's state has one token more, unless its prompt and its
/// completion lie in the same place.
///
/// Each unit has a run of neighbouring tokens: the run is found from the sums of all, the token by the unit that has the run.
///
/// # Shapes
/// - logits: `[rows, vocab]`; uniforms: `[rows, places]`; states: `[rows, 4]`
/// - tokens: `[rows]`; numbers: `[rows, 7]`: the token, its log-probability, that at temperature 1, the entropy at temperature
///   1, that of the distribution, `Σ p²` and `Σ p² log p` of the distribution
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

    // 1. The largest logit.
    let mut most = f32::new(-1e30);
    let mut i = unit;
    while i < vocab {
        let z = logits[from + i];
        if z > most {
            most = z;
        }
        i += units;
    }
    let most = max(most, units);

    // 2. The sums of the unit's run: of weights, and of weights times their logarithms, at both temperatures.
    let length = vocab.div_ceil(units);
    let begin = unit * length;
    let mut end = begin + length;
    if end > vocab {
        end = vocab;
    }
    let mut one = 0.0f32;
    let mut one_log = 0.0f32;
    let mut own = 0.0f32;
    let mut own_log = 0.0f32;
    let mut square = 0.0f32;
    let mut square_log = 0.0f32;
    let mut first = vocab;
    let mut i = begin;
    while i < end {
        let z = logits[from + i] - most;
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
    let mut runs = Shared::new_slice(units);
    let mut firsts = Shared::new_slice(units);
    runs[unit] = own;
    firsts[unit] = first as u32;
    sync_cube();

    // 3. The run in which the threshold lies, and what comes before it.
    let mut found = Shared::new_slice(2usize);
    let mut chosen = Shared::new_slice(1usize);
    if unit == 0 {
        if greedy {
            let mut best = firsts[0];
            for u in 1..units {
                if firsts[u] < best {
                    best = firsts[u];
                }
            }
            // None where the logits are not numbers.
            if best >= vocab as u32 {
                best = 0u32;
            }
            chosen[0] = best;
        } else {
            let mut whole = 0.0f32;
            for u in 0..units {
                whole += runs[u];
            }
            let threshold = uniforms[row * uniforms.shape(1) + place] * whole;
            let mut before = 0.0f32;
            let mut run = 0u32;
            let mut searching = true;
            for u in 0..units {
                if searching && runs[u] > 0.0f32 {
                    // The last run that has any weight, should rounding leave the threshold above all.
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
            found[0] = threshold - before;
            found[1] = f32::cast_from(run);
        }
    }
    sync_cube();

    // 4. The token.
    if !greedy {
        if f32::cast_from(UNIT_POS) == found[1] {
            let left = found[0];
            let mut before = 0.0f32;
            let mut token = begin;
            let mut searching = true;
            let mut i = begin;
            while i < end {
                let weight = ((logits[from + i] - most) * inverse).exp();
                if searching && weight > 0.0f32 {
                    token = i;
                    before += weight;
                    if before > left {
                        searching = false;
                    }
                }
                i += 1;
            }
            chosen[0] = token as u32;
        }
        sync_cube();
    }

    let one = sum_in(&mut runs, one);
    let one_log = sum_in(&mut runs, one_log);
    let own = sum_in(&mut runs, own);
    let own_log = sum_in(&mut runs, own_log);
    let square = sum_in(&mut runs, square);
    let square_log = sum_in(&mut runs, square_log);
    if unit == 0 {
        let token = chosen[0];
        let z = logits[from + token as usize] - most;
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
        // What pads a pass stays where it is.
        let state = row * STATE;
        if states[state] != states[state + 2] {
            states[state + 3] += 1;
        }
    }
}
