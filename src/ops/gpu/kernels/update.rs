//! The AdamW update, rows added to a table, and sums of squares.

use cubecl::prelude::*;

use super::{least, sum};

/// An AdamW step in place; one thread per vector. Moments are rounded to their storage format.
///
/// # Shapes
/// - all: `[parameters]`
#[cube(launch)]
pub(crate) fn adamw<M: Float, N: Size>(
    value: &mut Tensor<Vector<f32, N>>,
    first: &mut Tensor<Vector<M, N>>,
    second: &mut Tensor<Vector<M, N>>,
    gradient: &Tensor<Vector<f32, N>>,
    scale: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    rate: f32,
    correction: f32,
    keep: f32,
    #[define(M)] _stored: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at >= value.len() {
        terminate!();
    }
    let g = gradient[at] * Vector::new(scale);
    let m = Vector::<f32, N>::cast_from(first[at]) * Vector::new(beta1) + g * Vector::new(1.0 - beta1);
    let v = Vector::<f32, N>::cast_from(second[at]) * Vector::new(beta2) + g * g * Vector::new(1.0 - beta2);
    let root = (v * Vector::new(correction)).sqrt() + Vector::new(epsilon);
    value[at] = value[at] * Vector::new(keep) - m * Vector::new(rate) / root;
    first[at] = Vector::cast_from(m);
    second[at] = Vector::cast_from(v);
}

/// Add to each of `places` rows of `table` its rows of `rows`, in order. A block has one such row and a run of
/// columns, a thread one column, so that no two threads write to the same element.
///
/// `plan` concatenates: the indices of `rows`, sorted by destination; where those of each destination begin, and the
/// end of the last; the destinations.
///
/// # Shapes
/// - table: `[n, width]`; rows: `[count, width]`; plan: `[count + places + 1 + places]`
#[cube(launch)]
pub(crate) fn add_rows(table: &mut Tensor<f32>, rows: &Tensor<f32>, plan: &Tensor<u32>, places: usize) {
    let width = table.shape(1);
    let across = width.div_ceil(CUBE_DIM as usize);
    let place = CUBE_POS / across;
    let column = CUBE_POS % across * CUBE_DIM as usize + UNIT_POS as usize;
    if place >= places || column >= width {
        terminate!();
    }
    let starts = rows.shape(0);
    let end = plan[starts + place + 1] as usize;
    let at = plan[starts + places + 1 + place] as usize * width + column;
    let mut total = table[at];
    let mut next = plan[starts + place] as usize;
    while next < end {
        total += rows[plan[next] as usize * width + column];
        next += 1;
    }
    table[at] = total;
}

/// Write `Σ x²` of every `chunk` elements to `parts`, from index `from` on; one block per chunk.
///
/// # Shapes
/// - x: `[count]`; parts: `[at least from + chunks]`
#[cube(launch)]
pub(crate) fn sums_of_squares(
    x: &Tensor<f32>,
    parts: &mut Tensor<f32>,
    from: usize,
    #[comptime] chunk: usize,
    #[comptime] units: usize,
) {
    let count = x.len();
    let start = CUBE_POS * chunk;
    if start >= count {
        terminate!();
    }
    let end = least(start + chunk, count);
    let mut squares = 0.0f32;
    let mut i = start + UNIT_POS as usize;
    while i < end {
        squares += x[i] * x[i];
        i += CUBE_DIM as usize;
    }
    let total = sum(squares, units);
    if UNIT_POS == 0 {
        parts[from + CUBE_POS] = total;
    }
}
