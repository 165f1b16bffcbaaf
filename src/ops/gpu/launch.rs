//! The launches: shapes, memory and grids of the kernels.

use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::CubeCountSelection;

use super::kernels::{attention, linear, norm, pointwise, scores};
use crate::ops::traffic;

/// Rows in memory one after another, without gaps: CUDA's own tensors have some where a row is no multiple of its unit.
pub(super) fn dense(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// Token ids, places and states as kernels read them.
pub(super) fn integers(tensor: CubeTensor) -> CubeTensor {
    dense(cast(tensor, DType::I32))
}

/// A tensor that a kernel writes to where it is, whatever else holds it.
pub(super) fn written(tensor: CubeTensor) -> CubeTensor {
    assert!(tensor.is_contiguous() && tensor.dtype.size() == 4, "{tensor:?} is written where it is");
    tensor
}

/// A tensor to be written, on the device of `like`.
pub(super) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// Numbers from the host, on the device of `like`.
pub(super) fn send(like: &CubeTensor, values: &[u32]) -> CubeTensor {
    let bytes = u32::as_bytes(values);
    traffic::note_sent(bytes.len());
    let (client, device) = (like.client.clone(), like.device.clone());
    let handle = client.create_from_slice(bytes);
    CubeTensor::new_contiguous(client, device, [values.len()].into(), handle, DType::U32)
}

/// Units of a cube: a power of two that the device allows, `most` at most.
pub(super) fn units(client: &Client, most: u32) -> u32 {
    let allowed = client.properties().hardware.max_units_per_cube.clamp(1, most);
    if allowed.is_power_of_two() { allowed } else { allowed.next_power_of_two() >> 1 }
}

/// Units of a cube for rows of `width` elements: no more than there is work for.
pub(super) fn units_for(client: &Client, width: usize) -> u32 {
    units(client, (width as u32).next_power_of_two().clamp(32, 256))
}

/// A grid of `count` cubes, or a little more.
pub(super) fn cubes(client: &Client, count: usize) -> CubeCount {
    CubeCountSelection::new(client, u32::try_from(count).expect("a grid of less than 2³² cubes")).cube_count()
}

/// A grid of cubes of `units` for a unit per element.
pub(super) fn elements(client: &Client, count: usize, units: u32) -> CubeCount {
    cubes(client, count.div_ceil(units as usize))
}

/// A number format as kernels name it.
pub(super) fn elem(dtype: DType) -> ElemType {
    use cubecl::ir::FloatKind;
    match dtype {
        DType::F32 => ElemType::Float(FloatKind::F32),
        DType::F16 => ElemType::Float(FloatKind::F16),
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        DType::I32 => ElemType::Int(cubecl::ir::IntKind::I32),
        other => panic!("no kernel for {other:?}"),
    }
}

/// The format in which factors of products in `format` are kept.
pub(super) fn stored(format: FloatDType) -> DType {
    match format {
        FloatDType::Flex32 => DType::F32,
        format => format.into(),
    }
}

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

/// The largest address type of these tensors.
pub(super) fn addresses<const N: usize>(tensors: [&CubeTensor; N]) -> AddressType {
    tensors.into_iter().map(CubeTensor::required_address_type).max().unwrap_or_default()
}

/// A tensor to be written element by element in the place of `input`, the argument at `position` of the launch: the same
/// memory where nothing else holds it, else as much of it anew.
fn in_place(input: &CubeTensor, position: usize) -> (CubeTensor, TensorArg) {
    in_place_as(input, position, input.dtype)
}

/// [`in_place`], but in memory of its own where the format is not the input's.
fn in_place_as(input: &CubeTensor, position: usize, format: DType) -> (CubeTensor, TensorArg) {
    if input.can_mut() && format == input.dtype {
        (input.clone(), input.as_tensor_alias(position))
    } else {
        let out = empty(input, input.meta.shape().clone(), format);
        (out.clone(), out.into_tensor_arg())
    }
}

/// Elements that a unit reads at once, of rows of `width`.
pub(super) fn vector(width: usize) -> usize {
    if width.is_multiple_of(4) { 4 } else { 1 }
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

/// A zero, `[1]`, on the device of `like`.
pub(super) fn zero(like: &CubeTensor) -> CubeTensor {
    zeros_client(like.client.clone(), like.device.clone(), Shape::new([1]), DType::F32)
}

/// Indices on the device of `like`.
pub(super) fn upload(values: &[u32], like: &CubeTensor) -> CubeTensor {
    let handle = like.client.create_from_slice(u32::as_bytes(values));
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), Shape::new([values.len()]), handle, DType::U32)
}

/// The rows of `x` at `from`, zeros where that is no row.
pub(super) fn take_rows(x: CubeTensor, from: &[u32]) -> CubeTensor {
    let x = dense(x);
    let client = x.client.clone();
    let [_, width] = x.meta.shape().dims::<2>();
    let out = empty(&x, [from.len(), width], DType::F32);
    let from = upload(from, &x);
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

/// The same elements of a dense tensor under another shape.
pub(super) fn reshape(x: CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    CubeTensor::new_contiguous(x.client, x.device, shape.into(), x.handle, x.dtype)
}

/// In another format; the tensor itself where it has that one.
pub(super) fn cast(x: CubeTensor, format: DType) -> CubeTensor {
    burn_cubecl::kernel::cast(x, format)
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

/// All but the last dimension as one, dense.
fn rows_of(x: CubeTensor) -> CubeTensor {
    let x = dense(x);
    let keys = x.meta.shape()[x.meta.num_dims() - 1];
    let all = x.meta.num_elements() / keys;
    reshape(x, [all, keys])
}
