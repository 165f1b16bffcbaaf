//! Kernel launches that forward and backward passes have in common.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::prelude::*;

use super::kernels::{attention, linear, norm, pointwise, scores};
use super::memory::{
    as_rows, cast, cubes, dense, elem, elements, empty, in_place, in_place_as, max_address_type, reshape, send, units,
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

/// Return `x + factor · part`, and its RMS norm in the format `stored`.
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

/// Gradients of `x` and of the weight.
pub(super) fn rms_norm_backward(
    x: CubeTensor,
    weight: CubeTensor,
    upstream: CubeTensor,
    epsilon: f32,
) -> [CubeTensor; 2] {
    /// Enough blocks to fill a large GPU; each loops over its rows.
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

/// Sum over rows to `[width]`: in groups of about the square root of the rows, then over the groups.
pub(super) fn sum_rows(x: CubeTensor) -> CubeTensor {
    let [rows, width] = x.meta.shape().dims();
    let each = ((rows as f64).sqrt().ceil() as usize).max(1);
    let parts = empty(&x, [rows.div_ceil(each), width], DType::F32);
    let out = empty(&x, [1, width], DType::F32);
    sum_each(x, each, parts.clone());
    sum_each(parts, rows.max(1), out.clone());
    reshape(out, [width])
}

/// Sum every `each` consecutive rows, in order.
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

/// Gradients of `gate` and `up` in the format `stored`; in f32 they reuse the inputs' memory if it is not shared.
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

/// Rotate by `direction` times the angles, in the memory of `x` if it is not shared.
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

/// Gather the rows of `x` at `from`, with zeros for invalid indices.
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
        max_address_type([&x, &out]),
        vector,
        x.into_tensor_arg(),
        from.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        width / vector,
    );
    out
}

/// Threads per block for a row of logits: there are few rows, so blocks are large.
fn units_for_vocabulary(client: &Client, vocab: usize) -> u32 {
    units(client, (vocab as u32).next_power_of_two().clamp(32, 512))
}

/// Return the statistics of every row, `[4, rows]`, and the normalisers of [`scores_backward`], `[3, rows]`.
pub(super) fn scores(logits: CubeTensor, targets: CubeTensor, temperature: f32) -> [CubeTensor; 2] {
    let logits = dense(logits);
    let client = logits.client.clone();
    let [rows, vocab] = logits.meta.shape().dims();
    let (statistics, normalisers) = (empty(&logits, [4, rows], DType::F32), empty(&logits, [3, rows], DType::F32));
    let units = units_for_vocabulary(&client, vocab);
    scores::scores::launch(
        &client,
        cubes(&client, rows),
        CubeDim::new_1d(units),
        logits.required_address_type(),
        logits.into_tensor_arg(),
        targets.into_tensor_arg(),
        statistics.clone().into_tensor_arg(),
        normalisers.clone().into_tensor_arg(),
        1.0 / temperature,
        temperature == 1.0,
        units as usize,
    );
    [statistics, normalisers]
}

/// Gradient of the logits, in their memory if it is not shared.
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

/// Add the bias to each row of `x` in place; `x` must be contiguous and not shared.
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

/// Threads per block for a row of attention weights: few, as there are many rows and a row waits only for its block.
fn units_for_keys(client: &Client, keys: usize) -> u32 {
    units_for(client, keys / 16)
}

/// Position of the first query row of a block, and query rows of the block.
type RowBlock = (usize, usize);

/// Attention weights of a block of scores; f32 weights overwrite the scores if these are not shared.
///
/// # Shapes
/// - scores, output: `[batch, kv_heads, group · rows, keys]`
pub(super) fn attention_weights(scores: CubeTensor, (first, rows): RowBlock, scale: f32, stored: DType) -> CubeTensor {
    let shape = scores.meta.shape().clone();
    let scores = as_rows(scores);
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

/// Gradient of the scores in the format of the weights; in f32 it overwrites `gradient` if that is not shared.
///
/// # Shapes
/// - weights, gradient, output: `[batch, kv_heads, group · rows, keys]`
pub(super) fn attention_weights_backward(
    weights: CubeTensor,
    gradient: CubeTensor,
    (first, rows): RowBlock,
    scale: f32,
) -> CubeTensor {
    let shape = gradient.meta.shape().clone();
    let (weights, gradient) = (as_rows(weights), as_rows(gradient));
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
