//! Memory and grids of launches: what a kernel reads, what it writes to, and how many units do it.

use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::*;
use cubecl::server::CubeCountSelection;

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
    match dtype {
        DType::F32 => ElemType::Float(FloatKind::F32),
        DType::F16 => ElemType::Float(FloatKind::F16),
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        DType::I32 => ElemType::Int(IntKind::I32),
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

/// The largest address type of these tensors.
pub(super) fn addresses<const N: usize>(tensors: [&CubeTensor; N]) -> AddressType {
    tensors.into_iter().map(CubeTensor::required_address_type).max().unwrap_or_default()
}

/// A tensor to be written element by element in the place of `input`, the argument at `position` of the launch: the same
/// memory where nothing else holds it, else as much of it anew.
pub(super) fn in_place(input: &CubeTensor, position: usize) -> (CubeTensor, TensorArg) {
    in_place_as(input, position, input.dtype)
}

/// [`in_place`], but in memory of its own where the format is not the input's.
pub(super) fn in_place_as(input: &CubeTensor, position: usize, format: DType) -> (CubeTensor, TensorArg) {
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

/// A zero, `[1]`, on the device of `like`.
pub(super) fn zero(like: &CubeTensor) -> CubeTensor {
    zeros_client(like.client.clone(), like.device.clone(), Shape::new([1]), DType::F32)
}

/// The same elements of a dense tensor under another shape.
pub(super) fn reshape(x: CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    CubeTensor::new_contiguous(x.client, x.device, shape.into(), x.handle, x.dtype)
}

/// In another format; the tensor itself where it has that one.
pub(super) fn cast(x: CubeTensor, format: DType) -> CubeTensor {
    burn_cubecl::kernel::cast(x, format)
}

/// All but the last dimension as one, dense.
pub(super) fn rows_of(x: CubeTensor) -> CubeTensor {
    let x = dense(x);
    let keys = x.meta.shape()[x.meta.num_dims() - 1];
    let all = x.meta.num_elements() / keys;
    reshape(x, [all, keys])
}
