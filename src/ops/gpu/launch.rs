//! The launches of what passes forward and backward have in common.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::prelude::*;

use super::kernels::{attention, linear, norm, pointwise, scores};
use super::memory::{
    addresses, cast, cubes, dense, elem, elements, empty, in_place, in_place_as, reshape, rows_of, send, units,
    units_for, vector,
};

pub(super) fn rms_norm(x: CubeTensor, weight: CubeTensor, epsilon: f32, stored: DType) -> CubeTensor {
    let (x, weight) = (dense(x), dense(weight));
    let client = x.client.clone();
    let [rows, width] = x.meta.shape().dims();
    let out = empty(&x, [rows, width], stored);
    let units = units_for(&client, width);
    norm::rms_norm::launch(
        &client,
        cubes(&client, rows),
        CubeDim::new_1d(units),
        x.into_tensor_arg(),
        weight.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        epsilon,
        units as usize,
        elem(stored),
    );
    out
}

/// `x + factor · part`, and its norm in the format `stored`.
pub(super) fn add_rms_norm(
    x: CubeTensor,
    part: CubeTensor,
    weight: CubeTensor,
    factor: f32,
    epsilon: f32,
    stored: DType,
) -> (CubeTensor, CubeTensor) {
    let (x, part, weight) = (dense(x), dense(part), dense(weight));
    let client = x.client.clone();
    let [rows, width] = x.meta.shape().dims();
    let out = empty(&x, [rows, width], stored);
    let total = empty(&x, [rows, width], DType::F32);
    let units = units_for(&client, width);
    norm::add_rms_norm::launch(
        &client,
        cubes(&client, rows),
        CubeDim::new_1d(units),
        x.into_tensor_arg(),
        part.into_tensor_arg(),
        weight.into_tensor_arg(),
        total.clone().into_tensor_arg(),
        out.clone().into_tensor_arg(),
        epsilon,
        factor,
        units as usize,
        elem(stored),
    );
    (total, out)
}

/// The gradients of x and of the weight.
pub(super) fn rms_norm_backward(
    x: CubeTensor,
    weight: CubeTensor,
    upstream: CubeTensor,
    epsilon: f32,
) -> [CubeTensor; 2] {
    /// As many cubes as fill a large card; the rest is their rows.
    const CUBES: usize = 512;
    let upstream = dense(upstream);
    let client = x.client.clone();
    let [rows, width] = x.meta.shape().dims();
    let rows_per_cube = rows.div_ceil(CUBES).max(1);
    let count = rows.div_ceil(rows_per_cube);
    let dx = empty(&x, [rows, width], DType::F32);
    let parts = empty(&x, [count, width], DType::F32);
    let units = units_for(&client, width);
    norm::rms_norm_backward::launch(
        &client,
        cubes(&client, count),
        CubeDim::new_1d(units),
        x.into_tensor_arg(),
        weight.into_tensor_arg(),
        upstream.into_tensor_arg(),
        dx.clone().into_tensor_arg(),
        parts.clone().into_tensor_arg(),
        epsilon,
        rows_per_cube,
        units as usize,
    );
    [dx, sum_rows(parts)]
}

/// The sum over rows, `[width]`: in parts of about the root of the rows, then of the parts.
pub(super) fn sum_rows(x: CubeTensor) -> CubeTensor {
    let [rows, width] = x.meta.shape().dims();
    let each = ((rows as f64).sqrt().ceil() as usize).max(1);
    let parts = empty(&x, [rows.div_ceil(each), width], DType::F32);
    let out = empty(&x, [1, width], DType::F32);
    sum_each(x, each, parts.clone());
    sum_each(parts, rows.max(1), out.clone());
    reshape(out, [width])
}

/// The sums over every `each` rows, in order.
///
/// # Shapes
/// - out: `[parts, width]`
pub(super) fn sum_each(x: CubeTensor, each: usize, out: CubeTensor) {
    let x = dense(x);
    let client = x.client.clone();
    let units = units(&client, 64);
    norm::sum_rows::launch(
        &client,
        elements(&client, out.meta.num_elements(), units),
        CubeDim::new_1d(units),
        x.required_address_type(),
        x.into_tensor_arg(),
        out.into_tensor_arg(),
        each,
    );
}

pub(super) fn swiglu(gate: CubeTensor, up: CubeTensor, stored: DType) -> CubeTensor {
    let (gate, up) = (dense(gate), dense(up));
    let client = gate.client.clone();
    let [rows, width] = gate.meta.shape().dims();
    let out = empty(&gate, [rows, width], stored);
    let (vector, units) = (vector(width), units(&client, 256));
    pointwise::swiglu::launch(
        &client,
        elements(&client, rows * width / vector, units),
        CubeDim::new_1d(units),
        gate.required_address_type().max(up.required_address_type()),
        vector,
        gate.into_tensor_arg(),
        up.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        elem(stored),
    );
    out
}

/// The gradients of the gate and of the other factor, as products read them; in f32 in their memory where nothing else holds
/// them.
pub(super) fn swiglu_backward(
    gate: CubeTensor,
    up: CubeTensor,
    upstream: CubeTensor,
    stored: DType,
) -> [CubeTensor; 2] {
    let (gate, up, upstream) = (dense(gate), dense(up), dense(upstream));
    let client = gate.client.clone();
    let [rows, width] = gate.meta.shape().dims();
    let (vector, units) = (vector(width), units(&client, 256));
    let ((dgate, dgate_arg), (dup, dup_arg)) = (in_place_as(&gate, 0, stored), in_place_as(&up, 1, stored));
    pointwise::swiglu_backward::launch(
        &client,
        elements(&client, rows * width / vector, units),
        CubeDim::new_1d(units),
        gate.required_address_type().max(up.required_address_type()),
        vector,
        gate.into_tensor_arg(),
        up.into_tensor_arg(),
        upstream.into_tensor_arg(),
        dgate_arg,
        dup_arg,
        elem(stored),
    );
    [dgate, dup]
}

/// Rotates by `direction` times the angles, in the memory of `x` where nothing else holds it.
pub(super) fn rotary(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, direction: f32) -> CubeTensor {
    let (x, cos, sin) = (dense(x), dense(cos), dense(sin));
    let client = x.client.clone();
    let [rows, heads, dim] = x.meta.shape().dims();
    let units = units(&client, 256);
    let (out, out_arg) = in_place(&x, 0);
    pointwise::rotary::launch(
        &client,
        elements(&client, rows * heads * dim / 2, units),
        CubeDim::new_1d(units),
        x.into_tensor_arg(),
        cos.into_tensor_arg(),
        sin.into_tensor_arg(),
        out_arg,
        direction,
    );
    out
}

/// The rows of `x` at `from`, zeros where that is no row.
pub(super) fn take_rows(x: CubeTensor, from: &[u32]) -> CubeTensor {
    let x = dense(x);
    let client = x.client.clone();
    let [_, width] = x.meta.shape().dims::<2>();
    let out = empty(&x, [from.len(), width], DType::F32);
    let from = send(&x, from);
    let (vector, units) = (vector(width), units(&client, 256));
    pointwise::take_rows::launch(
        &client,
        elements(&client, out.meta.num_elements() / vector, units),
        CubeDim::new_1d(units),
        addresses([&x, &out]),
        vector,
        x.into_tensor_arg(),
        from.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        width / vector,
    );
    out
}

/// Units for a row of a vocabulary: there are few rows, so cubes are large.
fn units_for_vocabulary(client: &Client, vocab: usize) -> u32 {
    units(client, (vocab as u32).next_power_of_two().clamp(32, 512))
}

/// The figures of every row, `[4, rows]`, and the normalisers that [`scores_backward`] needs, `[3, rows]`.
pub(super) fn scores(logits: CubeTensor, targets: CubeTensor, temperature: f32) -> [CubeTensor; 2] {
    let logits = dense(logits);
    let client = logits.client.clone();
    let [rows, vocab] = logits.meta.shape().dims();
    let (figures, normalisers) = (empty(&logits, [4, rows], DType::F32), empty(&logits, [3, rows], DType::F32));
    let units = units_for_vocabulary(&client, vocab);
    scores::scores::launch(
        &client,
        cubes(&client, rows),
        CubeDim::new_1d(units),
        logits.required_address_type(),
        logits.into_tensor_arg(),
        targets.into_tensor_arg(),
        figures.clone().into_tensor_arg(),
        normalisers.clone().into_tensor_arg(),
        1.0 / temperature,
        temperature == 1.0,
        units as usize,
    );
    [figures, normalisers]
}

/// The gradient of the logits, in their memory where nothing else holds them.
pub(super) fn scores_backward(
    logits: CubeTensor,
    targets: CubeTensor,
    normalisers: CubeTensor,
    upstream: CubeTensor,
    temperature: f32,
) -> CubeTensor {
    let (logits, upstream) = (dense(logits), dense(upstream));
    let client = logits.client.clone();
    let [rows, vocab] = logits.meta.shape().dims();
    let units = units_for_vocabulary(&client, vocab);
    let (gradient, gradient_arg) = in_place(&logits, 0);
    scores::scores_backward::launch(
        &client,
        cubes(&client, rows),
        CubeDim::new_1d(units),
        logits.required_address_type(),
        logits.into_tensor_arg(),
        targets.into_tensor_arg(),
        normalisers.into_tensor_arg(),
        upstream.into_tensor_arg(),
        gradient_arg,
        1.0 / temperature,
    );
    gradient
}

/// Adds the bias to each row of a dense `x` that nothing else holds.
pub(super) fn add_bias(x: CubeTensor, bias: CubeTensor) -> CubeTensor {
    let bias = dense(cast(bias, DType::F32));
    let client = x.client.clone();
    let units = units(&client, 256);
    linear::add_bias::launch(
        &client,
        elements(&client, x.meta.num_elements(), units),
        CubeDim::new_1d(units),
        x.required_address_type(),
        x.clone().into_tensor_arg(),
        bias.into_tensor_arg(),
    );
    x
}

/// Units for a row of attention weights: there are many rows, and what a row waits for is its own units.
fn units_for_keys(client: &Client, keys: usize) -> u32 {
    units_for(client, keys / 16)
}

/// Rows of attention weights: shape, time of the first query row, and query rows of a block.
type Block = (usize, usize);

/// The attention weights of a block of scores, in f32 in their place.
///
/// # Shapes
/// - scores, output: `[batch, kv_heads, group · rows, keys]`
pub(super) fn attention_weights(scores: CubeTensor, (first, rows): Block, scale: f32, stored: DType) -> CubeTensor {
    let shape = scores.meta.shape().clone();
    let scores = rows_of(scores);
    let client = scores.client.clone();
    let [all, keys] = scores.meta.shape().dims();
    let units = units_for_keys(&client, keys);
    let (out, out_arg) = in_place_as(&scores, 0, stored);
    attention::weights::launch(
        &client,
        cubes(&client, all),
        CubeDim::new_1d(units),
        scores.required_address_type(),
        scores.into_tensor_arg(),
        out_arg,
        first,
        rows,
        scale,
        units as usize,
        elem(stored),
    );
    reshape(out, shape)
}

/// The gradient of the scores, in the format of the weights; in f32 in the place of theirs.
///
/// # Shapes
/// - weights, gradient, output: `[batch, kv_heads, group · rows, keys]`
pub(super) fn attention_weights_backward(
    weights: CubeTensor,
    gradient: CubeTensor,
    (first, rows): Block,
    scale: f32,
) -> CubeTensor {
    let shape = gradient.meta.shape().clone();
    let (weights, gradient) = (rows_of(weights), rows_of(gradient));
    let client = weights.client.clone();
    let [all, keys] = weights.meta.shape().dims();
    let (units, stored) = (units_for_keys(&client, keys), weights.dtype);
    let (out, out_arg) = in_place_as(&gradient, 1, stored);
    attention::weights_backward::launch(
        &client,
        cubes(&client, all),
        CubeDim::new_1d(units),
        gradient.required_address_type(),
        weights.into_tensor_arg(),
        gradient.into_tensor_arg(),
        out_arg,
        first,
        rows,
        scale,
        units as usize,
        elem(stored),
    );
    reshape(out, shape)
}
