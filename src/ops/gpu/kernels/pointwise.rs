//! Element-wise kernels: the gated linear unit, rotary embedding, and copies.

use cubecl::prelude::*;

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::new(1.0f32);
    one / (one + (-x).exp())
}

/// `gate · sigmoid(gate) · up`; one thread per vector.
///
/// # Shapes
/// - all: `[rows, width]`, `width` a multiple of the vector
#[cube(launch, address_type = "dynamic")]
pub(crate) fn swiglu<O: Float, N: Size>(
    gate: &Tensor<Vector<f32, N>>,
    up: &Tensor<Vector<f32, N>>,
    out: &mut Tensor<Vector<O, N>>,
    #[define(O)] _stored: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i >= out.len() {
        terminate!();
    }
    let gate = gate[i];
    out[i] = Vector::cast_from(gate * sigmoid::<N>(gate) * up[i]);
}

/// With `s = sigmoid(gate)`: `dgate = g · up · (s + gate·s·(1 − s))` and `dup = g · gate·s`; one thread per vector. In
/// f32 each output may be in the memory of its input.
///
/// # Shapes
/// - all: `[rows, width]`, `width` a multiple of the vector
#[cube(launch, address_type = "dynamic")]
pub(crate) fn swiglu_backward<O: Float, N: Size>(
    gate: &Tensor<Vector<f32, N>>,
    up: &Tensor<Vector<f32, N>>,
    upstream: &Tensor<Vector<f32, N>>,
    dgate: &mut Tensor<Vector<O, N>>,
    dup: &mut Tensor<Vector<O, N>>,
    #[define(O)] _stored: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i >= upstream.len() {
        terminate!();
    }
    let (gate, up, upstream) = (gate[i], up[i], upstream[i]);
    let share = sigmoid::<N>(gate);
    let silu = gate * share;
    dgate[i] = Vector::cast_from(upstream * up * (share + silu * (Vector::new(1.0f32) - share)));
    dup[i] = Vector::cast_from(upstream * silu);
}

/// Rotate every pair `(i, i + dim / 2)` by `direction` times its angle; one thread per pair. `out` may be the memory
/// of `x`.
///
/// # Shapes
/// - x, out: `[rows, heads, dim]`; cos, sin: `[rows, dim / 2]`
#[cube(launch)]
pub(crate) fn rotary(x: &Tensor<f32>, cos: &Tensor<f32>, sin: &Tensor<f32>, out: &mut Tensor<f32>, direction: f32) {
    let pair = ABSOLUTE_POS;
    let (heads, half) = (x.shape(1), x.shape(2) / 2);
    let head = pair / half;
    let row = head / heads;
    if row >= x.shape(0) {
        terminate!();
    }
    let i = pair % half;
    let first = head * 2 * half + i;
    let second = first + half;
    let (cos, sin) = (cos[row * half + i], sin[row * half + i] * direction);
    let (a, b) = (x[first], x[second]);
    out[first] = a * cos - b * sin;
    out[second] = b * cos + a * sin;
}

/// Gather rows of `x`, with zeros for invalid indices; one thread per vector.
///
/// # Shapes
/// - x: `[rows, width]`; from: `[n]`; out: `[n, width]`; `line` is `width` in vectors
#[cube(launch, address_type = "dynamic")]
pub(crate) fn take_rows<N: Size>(
    x: &Tensor<Vector<f32, N>>,
    from: &Tensor<u32>,
    out: &mut Tensor<Vector<f32, N>>,
    line: usize,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let (rows, width) = (x.shape(0), line);
    let row = from[ABSOLUTE_POS / width] as usize;
    let mut value = Vector::new(0.0f32);
    if row < rows {
        value = x[row * width + ABSOLUTE_POS % width];
    }
    out[ABSOLUTE_POS] = value;
}

/// Copy `from` to `to`; one thread per element.
///
/// # Shapes
/// - from, to: the same shape
#[cube(launch)]
pub(crate) fn overwrite<N: Numeric>(from: &Tensor<N>, to: &mut Tensor<N>, #[define(N)] _format: ElemType) {
    if ABSOLUTE_POS >= to.len() {
        terminate!();
    }
    to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
}
