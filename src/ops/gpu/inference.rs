//! GPU implementations of the decoding functions of the same names in `ops`: nothing is uploaded per token, and a layer
//! takes about ten launches.

use burn::backend::Cube;
use burn::tensor::{DType, FloatDType, Int, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::kernels::{decode, sample as draw};
use super::launch;
use super::memory::{
    self, cubes, dense, elem, elements, empty, in_place_target, integers as indices, max_address_type, units,
};
use super::{is_relaxed, product};
use crate::ops::Decoding;
use crate::ops::plain::scale;

fn primitive<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    tensor.try_into_primitive::<Cube>().expect("a tensor on a GPU, without autodiff")
}

fn integers<const D: usize>(tensor: Tensor<D, Int>) -> CubeTensor {
    tensor.try_into_primitive::<Cube>().expect("a tensor on a GPU")
}

fn tensor<const D: usize>(primitive: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(primitive)
}

/// Return `x + factor · part`, and its RMS norm in the operand format of products in `format`.
pub(super) fn add_rms_norm(
    x: Tensor<2>,
    (part, factor): (Tensor<2>, f64),
    weight: Tensor<1>,
    epsilon: f64,
    format: FloatDType,
) -> (Tensor<2>, Tensor<2>) {
    let [x, part] = [x, part].map(primitive);
    let (factor, epsilon, stored) = (factor as f32, epsilon as f32, memory::stored(format));
    let (sum, normed) = launch::add_rms_norm(x, part, primitive(weight), factor, epsilon, stored);
    (tensor(sum), tensor(normed))
}

pub(crate) fn attend(
    projections: [Tensor<2>; 3],
    biases: Option<[Tensor<1>; 3]>,
    rotates: bool,
    [keys, values]: [&Tensor<2>; 2],
    dim: usize,
    decoding: &Decoding,
) -> Tensor<2> {
    let tables = || [keys, values].map(|table| primitive(table.clone()));
    let states = || integers(decoding.states.clone());
    let angles = rotates.then(|| decoding.angles.clone().map(primitive));
    let projections = projections.map(primitive);
    let biases = biases.map(|biases| biases.map(primitive));
    let q = launch_rotate_and_store(projections, biases, angles, states(), tables(), dim);
    let [max_keys, _] = decoding.angles[0].dims();
    tensor(launch_attention(q, tables(), states(), (dim, max_keys), scale(dim) as f32, memory::stored(decoding.stored)))
}

pub(crate) fn products<const N: usize>(x: Tensor<2>, weights: [Tensor<2>; N], format: FloatDType) -> [Tensor<2>; N] {
    let operand = |x| memory::cast(primitive(x), memory::stored(format));
    product::products(operand(x), weights.map(operand), is_relaxed(format)).map(tensor)
}

/// Write rows to the table in place.
///
/// # Shapes
/// - table, output: `[tokens, width]`; rows: `[n, width]`; writes: `[n]`
pub(crate) fn write_rows(table: Tensor<2>, rows: Tensor<2>, writes: Tensor<1, Int>) -> Tensor<2> {
    tensor(launch_write_rows(primitive(table), primitive(rows), integers(writes)))
}

pub(crate) fn sample(
    logits: Tensor<2>,
    temperature: f32,
    uniforms: Tensor<2>,
    place: usize,
    states: Tensor<2, Int>,
) -> (Tensor<1, Int>, Tensor<2>) {
    let (tokens, numbers) = launch_sample(primitive(logits), primitive(uniforms), integers(states), temperature, place);
    (Tensor::from_primitive::<Cube>(tokens), tensor(numbers))
}

/// Launch [`decode::rotate_and_store`], with optional `biases` and `angles`. Return the queries; keys and values are
/// written to the tables in place.
fn launch_rotate_and_store(
    [q, k, v]: [CubeTensor; 3],
    biases: Option<[CubeTensor; 3]>,
    angles: Option<[CubeTensor; 2]>,
    states: CubeTensor,
    [keys, values]: [CubeTensor; 2],
    dim: usize,
) -> CubeTensor {
    let [q, k, v] = [q, k, v].map(dense);
    let ([keys, values], states) = ([keys, values].map(in_place_target), indices(states));
    let client = q.client.clone();
    let [rows, width] = q.meta.shape().dims();
    let [_, kv_width] = k.meta.shape().dims::<2>();
    let out = empty(&q, [rows, width], DType::F32);
    let (biased, rotates) = (biases.is_some(), angles.is_some());
    // Absent biases and angles are not read; `q` is passed in their place.
    let [q_bias, k_bias, v_bias] = biases.map_or_else(|| [q.clone(), q.clone(), q.clone()], |biases| biases.map(dense));
    let [query_angles, angles] = angles.map_or_else(|| [q.clone(), q.clone()], |angles| angles.map(dense));
    let units = units(&client, 128);
    decode::rotate_and_store::launch(
        &client,
        elements(&client, rows * (width + 2 * kv_width) / 2, units),
        CubeDim::new_1d(units),
        max_address_type([&q, &keys, &values]),
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

/// Write rows to the table in place; nothing else may be reading it.
fn launch_write_rows(table: CubeTensor, rows: CubeTensor, writes: CubeTensor) -> CubeTensor {
    let (rows, table, writes) = (dense(rows), in_place_target(table), indices(writes));
    let client = rows.client.clone();
    let count = rows.meta.num_elements();
    let units = units(&client, 128);
    decode::write_rows::launch(
        &client,
        elements(&client, count, units),
        CubeDim::new_1d(units),
        max_address_type([&rows, &table]),
        rows.into_tensor_arg(),
        writes.into_tensor_arg(),
        table.clone().into_tensor_arg(),
    );
    table
}

/// Launch [`decode::attention`]; `max_keys` is the maximum number of keys of a sequence.
fn launch_attention(
    q: CubeTensor,
    [keys, values]: [CubeTensor; 2],
    states: CubeTensor,
    (dim, max_keys): (usize, usize),
    scale: f32,
    stored: DType,
) -> CubeTensor {
    let (q, states) = (dense(q), indices(states));
    let client = q.client.clone();
    let [rows, width] = q.meta.shape().dims();
    let [_, kv_width] = keys.meta.shape().dims::<2>();
    let (kv_heads, group, vector) = (kv_width / dim, width / kv_width, memory::vector(dim));
    let vectors = dim / vector;
    let out = empty(&q, [rows, width], stored);
    // One key per thread; fewer threads if the weights and queries of all heads would not fit in shared memory.
    let hardware = &client.properties().hardware;
    let shared_bytes = |units: u32| 4 * (group * (units as usize + dim + 1) + units as usize + units as usize * vector);
    let min_units = (vectors.max(group) as u32).next_power_of_two();
    let mut units = units(&client, (max_keys as u32).next_power_of_two().clamp(32, 256).max(min_units));
    while units > min_units && shared_bytes(units) > hardware.max_shared_memory_size {
        units /= 2;
    }
    decode::attention::launch(
        &client,
        cubes(&client, rows * kv_heads),
        CubeDim::new_1d(units),
        max_address_type([&q, &keys, &values]),
        vector,
        q.into_tensor_arg(),
        keys.into_tensor_arg(),
        values.into_tensor_arg(),
        states.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        scale,
        kv_heads,
        decode::DecodeShape { group, vectors, units: units as usize },
        elem(stored),
    );
    out
}

/// Launch [`draw::sample`]. Return the tokens and the statistics; `states` is updated in place.
fn launch_sample(
    logits: CubeTensor,
    uniforms: CubeTensor,
    states: CubeTensor,
    temperature: f32,
    place: usize,
) -> (CubeTensor, CubeTensor) {
    let (logits, uniforms, states) = (dense(logits), dense(uniforms), in_place_target(states));
    assert_eq!(states.dtype, DType::I32, "states");
    let client = logits.client.clone();
    let [rows, vocab] = logits.meta.shape().dims::<2>();
    let tokens = empty(&logits, [rows], DType::I32);
    let numbers = empty(&logits, [rows, draw::NUMBERS], DType::F32);
    let units = units(&client, (vocab as u32 / 16).next_power_of_two().clamp(32, 512));
    let greedy = temperature == 0.0;
    draw::sample::launch(
        &client,
        cubes(&client, rows),
        CubeDim::new_1d(units),
        max_address_type([&logits]),
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
