//! What decoding computes on a GPU, for the functions of these names in `ops`: nothing goes up for a token, and a layer is a
//! dozen launches.

use burn::backend::Cube;
use burn::tensor::{FloatDType, Int, Tensor};
use burn_cubecl::tensor::CubeTensor;

use super::launch;
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

pub(crate) fn add_rms_norm(
    x: Tensor<2>,
    part: Option<(Tensor<2>, f64)>,
    weight: Tensor<1>,
    epsilon: f64,
    stored: FloatDType,
) -> (Tensor<2>, Tensor<2>) {
    let (weight, epsilon) = (primitive(weight), epsilon as f32);
    match part {
        None => {
            let normed = launch::rms_norm(primitive(x.clone()), weight, epsilon, stored.into());
            (x, tensor(normed))
        }
        Some((part, factor)) => {
            let (x, part) = (primitive(x), primitive(part));
            let (sum, normed) = launch::add_rms_norm(x, part, weight, factor as f32, epsilon, stored.into());
            (tensor(sum), tensor(normed))
        }
    }
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
    let q = launch::rotate_and_store(projections, biases, angles, states(), tables(), dim);
    tensor(launch::attention_cached(q, tables(), states(), dim, scale(dim) as f32, decoding.stored.into()))
}

pub(crate) fn swiglu(gate: Tensor<2>, up: Tensor<2>, stored: FloatDType) -> Tensor<2> {
    tensor(launch::swiglu_as(primitive(gate), primitive(up), stored.into()))
}

/// Writes rows into the table where it is.
///
/// # Shapes
/// - table, output: `[tokens, width]`; rows: `[n, width]`; writes: `[n]`
pub(crate) fn write_rows(table: Tensor<2>, rows: Tensor<2>, writes: Tensor<1, Int>) -> Tensor<2> {
    tensor(launch::write_rows(primitive(table), primitive(rows), integers(writes)))
}

pub(crate) fn sample(
    logits: Tensor<2>,
    temperature: f32,
    uniforms: Tensor<2>,
    place: usize,
    states: Tensor<2, Int>,
) -> (Tensor<1, Int>, Tensor<2>) {
    let (tokens, numbers) =
        launch::sample(primitive(logits), primitive(uniforms), integers(states), temperature, place);
    (Tensor::from_primitive::<Cube>(tokens), tensor(numbers))
}
