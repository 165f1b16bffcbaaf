//! The launches: shapes, memory and grids of the kernels.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::CubeCountSelection;

use super::kernels::{decode, norm, sample};

/// Rows in memory one after another, without gaps: CUDA's own tensors have some where a row is no multiple of its unit.
pub(super) fn dense(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// Token ids, places and states as kernels read them.
fn integers(tensor: CubeTensor) -> CubeTensor {
    dense(cast(tensor, DType::I32))
}

/// A tensor that a kernel writes to where it is, whatever else holds it.
fn written(tensor: CubeTensor) -> CubeTensor {
    assert!(tensor.is_contiguous() && tensor.dtype.size() == 4, "{tensor:?} is written where it is");
    tensor
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

/// `x + factor · part` and its norm; the sum goes into the memory of x where nothing else holds it.
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

/// The sum over rows, `[width]`.
pub(super) fn sum_rows(x: CubeTensor) -> CubeTensor {
    let x = dense(x);
    let client = x.client.clone();
    let [_, width] = x.meta.shape().dims::<2>();
    let out = empty(&x, [width], DType::F32);
    let units = units(&client, 64);
    norm::sum_rows::launch(
        &client,
        elements(&client, width, units),
        CubeDim::new_1d(units),
        x.into_tensor_arg(),
        out.clone().into_tensor_arg(),
    );
    out
}

/// The largest address type of these tensors.
pub(super) fn addresses<const N: usize>(tensors: [&CubeTensor; N]) -> AddressType {
    tensors.into_iter().map(CubeTensor::required_address_type).max().unwrap_or_default()
}

/// See [`decode::rotate_and_store`]; `biases` and `angles` where there are some. Returns the queries; keys and values are
/// written where the tables are.
pub(super) fn rotate_and_store(
    [q, k, v]: [CubeTensor; 3],
    biases: Option<[CubeTensor; 3]>,
    angles: Option<[CubeTensor; 2]>,
    states: CubeTensor,
    [keys, values]: [CubeTensor; 2],
    dim: usize,
) -> CubeTensor {
    let [q, k, v] = [q, k, v].map(dense);
    let ([keys, values], states) = ([keys, values].map(written), integers(states));
    let client = q.client.clone();
    let [rows, width] = q.meta.shape().dims();
    let [_, kv_width] = k.meta.shape().dims::<2>();
    let out = empty(&q, [rows, width], DType::F32);
    let (biased, rotates) = (biases.is_some(), angles.is_some());
    // What is not there is not read: anything stands for it.
    let [q_bias, k_bias, v_bias] = biases.map_or_else(|| [q.clone(), q.clone(), q.clone()], |biases| biases.map(dense));
    let [query_angles, angles] = angles.map_or_else(|| [q.clone(), q.clone()], |angles| angles.map(dense));
    let units = units(&client, 128);
    decode::rotate_and_store::launch(
        &client,
        elements(&client, rows * (width + 2 * kv_width) / 2, units),
        CubeDim::new_1d(units),
        addresses([&q, &keys, &values]),
        q.into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        q_bias.into_tensor_arg(),
        k_bias.into_tensor_arg(),
        v_bias.into_tensor_arg(),
        query_angles.into_tensor_arg(),
        angles.into_tensor_arg(),
        states.into_tensor_arg(),
        keys.into_tensor_arg(),
        values.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        dim,
        rotates,
        biased,
    );
    out
}

/// Writes rows into the table where it is; nothing else may be reading it.
pub(super) fn write_rows(table: CubeTensor, rows: CubeTensor, writes: CubeTensor) -> CubeTensor {
    let (rows, table, writes) = (dense(rows), written(table), integers(writes));
    let client = rows.client.clone();
    let count = rows.meta.num_elements();
    let units = units(&client, 128);
    decode::write_rows::launch(
        &client,
        elements(&client, count, units),
        CubeDim::new_1d(units),
        addresses([&rows, &table]),
        rows.into_tensor_arg(),
        writes.into_tensor_arg(),
        table.clone().into_tensor_arg(),
    );
    table
}

/// See [`decode::attention`].
pub(super) fn attention_cached(
    q: CubeTensor,
    [keys, values]: [CubeTensor; 2],
    states: CubeTensor,
    dim: usize,
    scale: f32,
    stored: DType,
) -> CubeTensor {
    let (q, states) = (dense(q), integers(states));
    let client = q.client.clone();
    let [rows, width] = q.meta.shape().dims();
    let [_, kv_width] = keys.meta.shape().dims::<2>();
    let out = empty(&q, [rows, width], stored);
    let units = units(&client, 128);
    decode::attention::launch(
        &client,
        cubes(&client, rows * (kv_width / dim)),
        CubeDim::new_1d(units),
        addresses([&q, &keys, &values]),
        q.into_tensor_arg(),
        keys.into_tensor_arg(),
        values.into_tensor_arg(),
        states.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        scale,
        width / kv_width,
        dim,
        elem(stored),
    );
    out
}

/// See [`sample::sample`]: the tokens and the numbers; `states` is advanced where it is.
pub(super) fn sample(
    logits: CubeTensor,
    uniforms: CubeTensor,
    states: CubeTensor,
    temperature: f32,
    place: usize,
) -> (CubeTensor, CubeTensor) {
    let (logits, uniforms, states) = (dense(logits), dense(uniforms), written(states));
    assert_eq!(states.dtype, DType::I32, "states");
    let client = logits.client.clone();
    let [rows, vocab] = logits.meta.shape().dims::<2>();
    let tokens = empty(&logits, [rows], DType::I32);
    let numbers = empty(&logits, [rows, sample::NUMBERS], DType::F32);
    let units = units(&client, (vocab as u32 / 16).next_power_of_two().clamp(32, 512));
    let greedy = temperature == 0.0;
    sample::sample::launch(
        &client,
        cubes(&client, rows),
        CubeDim::new_1d(units),
        addresses([&logits]),
        logits.into_tensor_arg(),
        uniforms.into_tensor_arg(),
        states.into_tensor_arg(),
        tokens.clone().into_tensor_arg(),
        numbers.clone().into_tensor_arg(),
        if greedy { 1.0 } else { 1.0 / temperature },
        place,
        greedy,
        units as usize,
    );
    (tokens, numbers)
}

/// `silu(gate) · up` in the format `stored`.
pub(super) fn swiglu_as(gate: CubeTensor, up: CubeTensor, stored: DType) -> CubeTensor {
    let (gate, up) = (dense(gate), dense(up));
    let client = gate.client.clone();
    let [rows, width] = gate.meta.shape().dims();
    let out = empty(&gate, [rows, width], stored);
    let units = units(&client, 256);
    decode::swiglu::launch(
        &client,
        elements(&client, rows * width, units),
        CubeDim::new_1d(units),
        addresses([&gate, &out]),
        gate.into_tensor_arg(),
        up.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        elem(stored),
    );
    out
}
