//! Buffers and grids of kernel launches. CubeCL calls a thread block a cube, a thread a unit and a warp a plane.

use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind, IntKind};
use cubecl::prelude::*;
use cubecl::server::CubeCountSelection;

use crate::ops::traffic;

/// Make a tensor contiguous: CUDA's own tensors have padded rows where a row is not a multiple of its alignment.
pub(super) fn dense(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// Convert token ids, positions and states to the integer format of kernels, contiguous.
pub(super) fn integers(tensor: CubeTensor) -> CubeTensor {
    dense(cast(tensor, DType::I32))
}

/// Check that a kernel can write a tensor in place, even if it is shared.
pub(super) fn in_place_target(tensor: CubeTensor) -> CubeTensor {
    assert!(tensor.is_contiguous() && tensor.dtype.size() == 4, "{tensor:?} is written where it is");
    tensor
}

/// Allocate a contiguous tensor on the device of `like`.
pub(super) fn empty(like: &CubeTensor, shape: impl Into<Shape>, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// Upload integers to the device of `like`.
pub(super) fn send(like: &CubeTensor, values: &[u32]) -> CubeTensor {
    let bytes = u32::as_bytes(values);
    traffic::note_sent(bytes.len());
    let (client, device) = (like.client.clone(), like.device.clone());
    let handle = client.create_from_slice(bytes);
    CubeTensor::new_contiguous(client, device, [values.len()].into(), handle, DType::U32)
}

/// Threads per block: a power of two that the device allows, at most `most`.
pub(super) fn units(client: &Client, most: u32) -> u32 {
    let allowed = client.properties().hardware.max_units_per_cube.clamp(1, most);
    if allowed.is_power_of_two() { allowed } else { allowed.next_power_of_two() >> 1 }
}

/// Threads per block for rows of `width` elements, not more than there is work for.
pub(super) fn units_for(client: &Client, width: usize) -> u32 {
    units(client, (width as u32).next_power_of_two().clamp(32, 256))
}

/// A grid of `count` blocks, or a little more.
pub(super) fn cubes(client: &Client, count: usize) -> CubeCount {
    CubeCountSelection::new(client, u32::try_from(count).expect("a grid of less than 2³² cubes")).cube_count()
}

/// A grid with a thread per element, in blocks of `units` threads.
pub(super) fn elements(client: &Client, count: usize, units: u32) -> CubeCount {
    cubes(client, count.div_ceil(units as usize))
}

/// A number format as a CubeCL type.
pub(super) fn elem(dtype: DType) -> ElemType {
    match dtype {
        DType::F32 => ElemType::Float(FloatKind::F32),
        DType::F16 => ElemType::Float(FloatKind::F16),
        DType::BF16 => ElemType::Float(FloatKind::BF16),
        DType::I32 => ElemType::Int(IntKind::I32),
        other => panic!("no kernel for {other:?}"),
    }
}

/// Storage format of the operands of products in `format`.
pub(super) fn stored(format: FloatDType) -> DType {
    match format {
        FloatDType::Flex32 => DType::F32,
        format => format.into(),
    }
}

/// The largest address type that these tensors require.
pub(super) fn max_address_type<const N: usize>(tensors: [&CubeTensor; N]) -> AddressType {
    tensors.into_iter().map(CubeTensor::required_address_type).max().unwrap_or_default()
}

/// Output of an element-wise kernel whose argument at `position` is `input`: the memory of `input` if it is not shared,
/// otherwise new memory.
pub(super) fn in_place(input: &CubeTensor, position: usize) -> (CubeTensor, TensorArg) {
    in_place_as(input, position, input.dtype)
}

/// [`in_place`], but in new memory if `format` is not the format of the input.
pub(super) fn in_place_as(input: &CubeTensor, position: usize, format: DType) -> (CubeTensor, TensorArg) {
    if input.can_mut() && format == input.dtype {
        (input.clone(), input.as_tensor_alias(position))
    } else {
        let out = empty(input, input.meta.shape().clone(), format);
        (out.clone(), out.into_tensor_arg())
    }
}

/// Elements that a thread reads at once, in rows of `width`.
pub(super) fn vector(width: usize) -> usize {
    if width.is_multiple_of(4) { 4 } else { 1 }
}

/// A zero, `[1]`, on the device of `like`.
pub(super) fn zero(like: &CubeTensor) -> CubeTensor {
    zeros_client(like.client.clone(), like.device.clone(), Shape::new([1]), DType::F32)
}

/// Reinterpret a contiguous tensor under another shape.
pub(super) fn reshape(x: CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    CubeTensor::new_contiguous(x.client, x.device, shape.into(), x.handle, x.dtype)
}

/// Convert to another format; return the tensor itself if it has that format.
pub(super) fn cast(x: CubeTensor, format: DType) -> CubeTensor {
    burn_cubecl::kernel::cast(x, format)
}

/// Merge all dimensions but the last, contiguous.
pub(super) fn as_rows(x: CubeTensor) -> CubeTensor {
    let x = dense(x);
    let keys = x.meta.shape()[x.meta.num_dims() - 1];
    let all = x.meta.num_elements() / keys;
    reshape(x, [all, keys])
}
