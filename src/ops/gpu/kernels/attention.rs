//! The softmax of attention scores over each row's past keys, and its gradient.

use cubecl::prelude::*;

use super::{max, sum};

/// Compute attention weights of a block of query rows: `softmax(scale · scores)` over a row's past keys, 0 for later
/// keys. One thread block per row; its threads stride over the keys. `out` may be the memory of `scores`.
///
/// Heads are stacked as rows: row `r` has the position `first + r mod rows`, and sees that many keys and its own.
///
/// # Shapes
/// - scores, out: `[all, keys]`, `all` a multiple of `rows`
#[cube(launch, address_type = "dynamic")]
pub(crate) fn weights<O: Float>(
    scores: &Tensor<f32>,
    out: &mut Tensor<O>,
    first: usize,
    rows: usize,
    scale: f32,
    #[comptime] units: usize,
    #[define(O)] _stored: ElemType,
) {
    let row = CUBE_POS;
    if row >= scores.shape(0) {
        terminate!();
    }
    let keys = scores.shape(1);
    let from = row * keys;
    let seen = first + row % rows + 1;
    // Finite, because WGSL has no infinity.
    let mut largest = f32::new(-3.0e38);
    let mut key = UNIT_POS as usize;
    while key < seen {
        let score = scores[from + key] * scale;
        if score > largest {
            largest = score;
        }
        key += CUBE_DIM as usize;
    }
    let largest = max(largest, units);
    let mut total = 0.0f32;
    let mut key = UNIT_POS as usize;
    while key < seen {
        total += (scores[from + key] * scale - largest).exp();
        key += CUBE_DIM as usize;
    }
    let factor = 1.0 / sum(total, units);
    let mut key = UNIT_POS as usize;
    while key < keys {
        let mut weight = 0.0f32;
        if key < seen {
            weight = (scores[from + key] * scale - largest).exp() * factor;
        }
        out[from + key] = O::cast_from(weight);
        key += CUBE_DIM as usize;
    }
}

/// Compute the gradient of the scores from that of the weights: `w ∘ (dw − Σ w ∘ dw) · scale`. One thread block per
/// row, as in [`weights`]. `out` may be the memory of `gradient`.
///
/// # Shapes
/// - weights, gradient, out: `[all, keys]`
#[cube(launch, address_type = "dynamic")]
pub(crate) fn weights_backward<O: Float>(
    weights: &Tensor<O>,
    gradient: &Tensor<f32>,
    out: &mut Tensor<O>,
    first: usize,
    rows: usize,
    scale: f32,
    #[comptime] units: usize,
    #[define(O)] _stored: ElemType,
) {
    let row = CUBE_POS;
    if row >= weights.shape(0) {
        terminate!();
    }
    let keys = weights.shape(1);
    let from = row * keys;
    let seen = first + row % rows + 1;
    let mut mixed = 0.0f32;
    let mut key = UNIT_POS as usize;
    while key < seen {
        mixed += f32::cast_from(weights[from + key]) * gradient[from + key];
        key += CUBE_DIM as usize;
    }
    let mixed = sum(mixed, units);
    let mut key = UNIT_POS as usize;
    while key < keys {
        let mut value = 0.0f32;
        if key < seen {
            value = f32::cast_from(weights[from + key]) * (gradient[from + key] - mixed) * scale;
        }
        out[from + key] = O::cast_from(value);
        key += CUBE_DIM as usize;
    }
}
