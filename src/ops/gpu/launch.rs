//! The launches: shapes, memory and grids of the kernels.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::CubeCountSelection;

use super::kernels::{attention, linear, norm};

/// Rows in memory one after another, without gaps: CUDA's own tensors have some where a row is no multiple of its unit.
pub(super) fn dense(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// A tensor to be written, on the device of `like`.
pub(super) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
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

/// A float format as kernels name it.
pub(super) fn elem(dtype: DType) -> ElemType {
    use cubecl::ir::FloatKind;
    match dtype {
        DType::F32 => ElemType::Float(FloatKind::F32),
        DType::F16 => ElemType::Float(FloatKind::F16),
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        other => panic!("no kernel for {other:?}"),
    }
}

pub(super) fn rms_norm(x: CubeTensor, weight: CubeTensor, epsilon: f32) -> CubeTensor {
    let (x, weight) = (dense(x), dense(weight));
    let client = x.client.clone();
    let [rows, width] = x.meta.shape().dims();
    let out = empty(&x, [rows, width], DType::F32);
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
        elem(DType::F32),
    );
    out
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
    let each = (rows as f64).sqrt().ceil() as usize;
    let out = sum_each(sum_each(x, each.max(1)), rows.max(1));
    reshape(out, [width])
}

/// The sums over every `each` rows, `[parts, width]`.
fn sum_each(x: CubeTensor, each: usize) -> CubeTensor {
    let x = dense(x);
    let client = x.client.clone();
    let [rows, width] = x.meta.shape().dims();
    let parts = rows.div_ceil(each);
    let out = empty(&x, [parts, width], DType::F32);
    let units = units(&client, 64);
    norm::sum_rows::launch(
        &client,
        elements(&client, parts * width, units),
        CubeDim::new_1d(units),
        x.required_address_type(),
        x.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        each,
    );
    out
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

/// Rows of attention weights: shape, time of the first query row, and query rows of a block.
type Block = (usize, usize);

/// The attention weights of a block of scores, in their place.
///
/// # Shapes
/// - scores, output: `[batch, kv_heads, group · rows, keys]`
pub(super) fn attention_weights(scores: CubeTensor, (first, rows): Block, scale: f32) -> CubeTensor {
    let shape = scores.meta.shape().clone();
    let flat = rows_of(scores);
    let client = flat.client.clone();
    let [all, keys] = flat.meta.shape().dims();
    let units = units_for(&client, keys);
    attention::weights::launch(
        &client,
        cubes(&client, all),
        CubeDim::new_1d(units),
        flat.required_address_type(),
        flat.clone().into_tensor_arg(),
        first,
        rows,
        scale,
        units as usize,
    );
    reshape(flat, shape)
}

/// The gradient of the scores, in the place of that of the weights.
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
    let units = units_for(&client, keys);
    attention::weights_backward::launch(
        &client,
        cubes(&client, all),
        CubeDim::new_1d(units),
        weights.required_address_type(),
        weights.into_tensor_arg(),
        gradient.clone().into_tensor_arg(),
        first,
        rows,
        scale,
        units as usize,
    );
    reshape(gradient, shape)
}

/// All but the last dimension as one, dense.
fn rows_of(x: CubeTensor) -> CubeTensor {
    let x = dense(x);
    let keys = x.meta.shape()[x.meta.num_dims() - 1];
    let all = x.meta.num_elements() / keys;
    reshape(x, [all, keys])
}
