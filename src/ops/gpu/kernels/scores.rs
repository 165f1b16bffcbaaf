//! Log-probability, entropies and collision probability of rows of logits, and their gradient.

use cubecl::prelude::*;

use super::{max, sum};

/// Add a logit to the sums `Σ e`, `Σ e·z` and `Σ e²`, with `e = e^z`.
#[cube]
fn add(z: f32, weight: &mut f32, weighted: &mut f32, square: &mut f32) {
    let e = z.exp();
    *weight += e;
    *weighted += e * z;
    *square += e * e;
}

/// Change the sums of [`add`] as if every `z` had been `by` larger.
#[cube]
fn shift(by: f32, weight: &mut f32, weighted: &mut f32, square: &mut f32) {
    let factor = by.exp();
    *weighted = (*weighted + by * *weight) * factor;
    *weight *= factor;
    *square *= factor * factor;
}

/// Compute the statistics of each row; one block per row, which is read once. Each thread keeps the running maximum of
/// its elements and sums relative to it; then the block rescales them to one maximum and adds them. `inverse` is 1 / T.
/// With `same`, T is 1, and the sums at temperature 1 (`unit_*`) are not computed separately.
///
/// # Shapes
/// - logits: `[rows, vocab]`; targets: `[rows]`
/// - statistics: `[4, rows]`: log-probability of the target at T, entropy at 1, entropy at T, `Σ p²` at T
/// - normalisers: `[3, rows]`: maximum, `ln Σ e^((z − max) / T)`, entropy at T
#[cube(launch, address_type = "dynamic")]
pub(crate) fn scores(
    logits: &Tensor<f32>,
    targets: &Tensor<u32>,
    statistics: &mut Tensor<f32>,
    normalisers: &mut Tensor<f32>,
    inverse: f32,
    #[comptime] same: bool,
    #[comptime] units: usize,
) {
    let (rows, width) = (logits.shape(0), logits.shape(1));
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (from, end) = (row * width, row * width + width);
    let step = CUBE_DIM as usize;
    let mut largest = f32::new(-1e30); // below every logit, and finite when divided by a temperature
    let mut weight = 0.0f32;
    let mut weighted = 0.0f32;
    let mut square = 0.0f32;
    let mut unit_weight = 0.0f32;
    let mut unit_weighted = 0.0f32;
    let mut unit_square = 0.0f32;
    let mut i = from + UNIT_POS as usize;
    // Four loads are in flight at a time, with one check for a new maximum.
    while i + 3 * step < end {
        let (a, b, c, d) = (logits[i], logits[i + step], logits[i + 2 * step], logits[i + 3 * step]);
        let most = a.max(b).max(c.max(d));
        if most > largest {
            shift((largest - most) * inverse, &mut weight, &mut weighted, &mut square);
            if !same {
                shift(largest - most, &mut unit_weight, &mut unit_weighted, &mut unit_square);
            }
            largest = most;
        }
        add((a - largest) * inverse, &mut weight, &mut weighted, &mut square);
        add((b - largest) * inverse, &mut weight, &mut weighted, &mut square);
        add((c - largest) * inverse, &mut weight, &mut weighted, &mut square);
        add((d - largest) * inverse, &mut weight, &mut weighted, &mut square);
        if !same {
            add(a - largest, &mut unit_weight, &mut unit_weighted, &mut unit_square);
            add(b - largest, &mut unit_weight, &mut unit_weighted, &mut unit_square);
            add(c - largest, &mut unit_weight, &mut unit_weighted, &mut unit_square);
            add(d - largest, &mut unit_weight, &mut unit_weighted, &mut unit_square);
        }
        i += 4 * step;
    }
    while i < end {
        let a = logits[i];
        if a > largest {
            shift((largest - a) * inverse, &mut weight, &mut weighted, &mut square);
            if !same {
                shift(largest - a, &mut unit_weight, &mut unit_weighted, &mut unit_square);
            }
            largest = a;
        }
        add((a - largest) * inverse, &mut weight, &mut weighted, &mut square);
        if !same {
            add(a - largest, &mut unit_weight, &mut unit_weighted, &mut unit_square);
        }
        i += step;
    }
    let most = max(largest, units);
    shift((largest - most) * inverse, &mut weight, &mut weighted, &mut square);
    let (weight, weighted, square) = (sum(weight, units), sum(weighted, units), sum(square, units));
    let log = weight.ln();
    let entropy = log - weighted / weight;
    let mut unit_entropy = entropy;
    if !same {
        shift(largest - most, &mut unit_weight, &mut unit_weighted, &mut unit_square);
        let (weight, weighted) = (sum(unit_weight, units), sum(unit_weighted, units));
        unit_entropy = weight.ln() - weighted / weight;
    }
    if UNIT_POS == 0 {
        let target = logits[from + targets[row] as usize];
        statistics[row] = (target - most) * inverse - log;
        statistics[rows + row] = unit_entropy;
        statistics[2 * rows + row] = entropy;
        statistics[3 * rows + row] = square / (weight * weight);
        normalisers[row] = most;
        normalisers[rows + row] = log;
        normalisers[2 * rows + row] = entropy;
    }
}

/// Compute the gradient of the logits, `(a·(onehot − p) − b·p·(ln p + H)) / T`; one block per row. `a` and `b` are the
/// upstream gradients of the log-probability and of the entropy at T, `p` and `H` the probabilities and the entropy at
/// T. `gradient` may be the memory of `logits`.
///
/// # Shapes
/// - logits, gradient: `[rows, vocab]`; targets: `[rows]`; normalisers: `[3, rows]`; upstream: `[4, rows]`
#[cube(launch, address_type = "dynamic")]
pub(crate) fn scores_backward(
    logits: &Tensor<f32>,
    targets: &Tensor<u32>,
    normalisers: &Tensor<f32>,
    upstream: &Tensor<f32>,
    gradient: &mut Tensor<f32>,
    inverse: f32,
) {
    let (rows, width) = (logits.shape(0), logits.shape(1));
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let (from, end) = (row * width, row * width + width);
    let step = CUBE_DIM as usize;
    let (a, b) = (upstream[row], upstream[2 * rows + row]);
    let mut i = from + UNIT_POS as usize;
    if a == 0.0 && b == 0.0 {
        // No gradient for this token.
        while i < end {
            gradient[i] = 0.0;
            i += step;
        }
    } else {
        let (most, log) = (normalisers[row], normalisers[rows + row]);
        let level = a + b * normalisers[2 * rows + row];
        let target = from + targets[row] as usize;
        while i + 3 * step < end {
            let (j, k, l) = (i + step, i + 2 * step, i + 3 * step);
            let (s, t, u, v) = (logits[i], logits[j], logits[k], logits[l]);
            gradient[i] = derivative((s - most) * inverse - log, b, level, inverse, a, i == target);
            gradient[j] = derivative((t - most) * inverse - log, b, level, inverse, a, j == target);
            gradient[k] = derivative((u - most) * inverse - log, b, level, inverse, a, k == target);
            gradient[l] = derivative((v - most) * inverse - log, b, level, inverse, a, l == target);
            i += 4 * step;
        }
        while i < end {
            gradient[i] = derivative((logits[i] - most) * inverse - log, b, level, inverse, a, i == target);
            i += step;
        }
    }
}

/// `(a·[target] − p·(b·ln p + level)) / T`, where `log` is `ln p`.
#[cube]
fn derivative(log: f32, b: f32, level: f32, inverse: f32, a: f32, target: bool) -> f32 {
    let own = select(target, a, 0.0f32);
    (own - log.exp() * (b * log + level)) * inverse
}
