//! RMS norm, its gradient, and sums over rows.

use cubecl::prelude::*;

use super::sum;

/// `x / sqrt(mean(x²) + ε) · weight`; one block per row.
///
/// # Shapes
/// - x, out: `[rows, width]`; weight: `[width]`
#[cube(launch)]
pub(crate) fn rms_norm<O: Float>(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    out: &mut Tensor<O>,
    epsilon: f32,
    #[comptime] units: usize,
    #[define(O)] _stored: ElemType,
) {
    let row = CUBE_POS;
    if row >= x.shape(0) {
        terminate!();
    }
    let width = x.shape(1);
    let from = row * width;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let value = x[from + i];
        squares += value * value;
        i += CUBE_DIM as usize;
    }
    let scale = (sum(squares, units) / f32::cast_from(width) + epsilon).inverse_sqrt();
    let mut i = UNIT_POS as usize;
    while i < width {
        out[from + i] = O::cast_from(x[from + i] * scale * weight[i]);
        i += CUBE_DIM as usize;
    }
}

/// Gradients of [`rms_norm`]; one block per `rows_per_cube` rows, one after another.
///
/// With `s = 1 / sqrt(mean(x²) + ε)`: `dx = s · (g·w − x · s² · mean(g·w·x))`. `parts` gets each block's sum of `g·x·s`
/// over its rows, for the gradient of the weight.
///
/// # Shapes
/// - x, upstream, dx: `[rows, width]`; weight: `[width]`; parts: `[cubes, width]`
#[cube(launch)]
pub(crate) fn rms_norm_backward(
    x: &Tensor<f32>,
    weight: &Tensor<f32>,
    upstream: &Tensor<f32>,
    dx: &mut Tensor<f32>,
    parts: &mut Tensor<f32>,
    epsilon: f32,
    rows_per_cube: usize,
    #[comptime] units: usize,
) {
    let cube = CUBE_POS;
    if cube >= parts.shape(0) {
        terminate!();
    }
    let (rows, width) = (x.shape(0), x.shape(1));
    let part = cube * width;
    // Each thread has its own columns of the part, so that no two write to the same element.
    let mut i = UNIT_POS as usize;
    while i < width {
        parts[part + i] = 0.0;
        i += CUBE_DIM as usize;
    }
    let mut row = cube * rows_per_cube;
    let end = clamp_max(row + rows_per_cube, rows);
    while row < end {
        let from = row * width;
        let mut squares = 0.0f32;
        let mut mixed = 0.0f32;
        let mut i = UNIT_POS as usize;
        while i < width {
            let value = x[from + i];
            squares += value * value;
            mixed += upstream[from + i] * weight[i] * value;
            i += CUBE_DIM as usize;
        }
        let scale = (sum(squares, units) / f32::cast_from(width) + epsilon).inverse_sqrt();
        let pull = scale * scale * sum(mixed, units) / f32::cast_from(width);
        let mut i = UNIT_POS as usize;
        while i < width {
            let (value, gradient) = (x[from + i], upstream[from + i]);
            dx[from + i] = scale * (gradient * weight[i] - value * pull);
            parts[part + i] += gradient * value * scale;
            i += CUBE_DIM as usize;
        }
        row += 1;
    }
}

/// Rows that a thread of [`sum_rows`] loads at a time.
const LOADS: usize = 8;

/// Sum every `each` consecutive rows; one thread per part and column.
///
/// # Shapes
/// - x: `[rows, width]`; out: `[parts, width]`
#[cube(launch, address_type = "dynamic")]
pub(crate) fn sum_rows(x: &Tensor<f32>, out: &mut Tensor<f32>, each: usize) {
    let (rows, width) = (x.shape(0), x.shape(1));
    if ABSOLUTE_POS >= out.shape(0) * width {
        terminate!();
    }
    let (part, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    let end = clamp_max((part + 1) * each, rows);
    let mut total = 0.0f32;
    let mut row = part * each;
    // Several loads are in flight at a time; the sum is in the order of rows.
    while row + LOADS <= end {
        let mut values = Array::<f32>::new(LOADS);
        #[unroll]
        for i in 0..LOADS {
            values[i] = x[(row + i) * width + column];
        }
        #[unroll]
        for i in 0..LOADS {
            total += values[i];
        }
        row += LOADS;
    }
    while row < end {
        total += x[row * width + column];
        row += 1;
    }
    out[ABSOLUTE_POS] = total;
}

#[cube]
fn clamp_max(value: usize, most: usize) -> usize {
    if value < most { value } else { most }
}

/// [`rms_norm`] of `x + factor · part`, and that sum in `total`; one block per row.
///
/// # Shapes
/// - x, part, total, out: `[rows, width]`; weight: `[width]`
#[cube(launch)]
pub(crate) fn add_rms_norm<O: Float>(
    x: &Tensor<f32>,
    part: &Tensor<f32>,
    weight: &Tensor<f32>,
    total: &mut Tensor<f32>,
    out: &mut Tensor<O>,
    epsilon: f32,
    factor: f32,
    #[comptime] units: usize,
    #[define(O)] _stored: ElemType,
) {
    let row = CUBE_POS;
    if row >= x.shape(0) {
        terminate!();
    }
    let width = x.shape(1);
    let from = row * width;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < width {
        let value = x[from + i] + part[from + i] * factor;
        total[from + i] = value;
        squares += value * value;
        i += CUBE_DIM as usize;
    }
    let scale = (sum(squares, units) / f32::cast_from(width) + epsilon).inverse_sqrt();
    // Each thread reads only what it wrote itself, so that no barrier is needed.
    let mut i = UNIT_POS as usize;
    while i < width {
        out[from + i] = O::cast_from(total[from + i] * scale * weight[i]);
        i += CUBE_DIM as usize;
    }
}
