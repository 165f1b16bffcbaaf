//! The operations on GPU backends, as kernels of our own: one source for CUDA, ROCm, Vulkan, Metal and WebGPU, and for
//! CubeCL's CPU runtime, on which they are tested.
//!
//! [`kernels`] has the kernels, [`launch`] their launches as functions on Burn's primitive, [`memory`] the helpers for
//! buffers and grids. This file connects them to tensors through Burn's backend-extension mechanism. [`autodiff`] has
//! the backward steps, [`inference`] the operations without autodiff; [`product`] chooses the matrix-product kernel.

#![allow(missing_docs, reason = "the extension macro generates items that cannot carry documentation")]

mod autodiff;
pub(super) mod inference;
mod kernels;
mod launch;
mod memory;
pub(crate) mod product;
#[cfg(all(test, feature = "cuda"))]
mod ptx;
pub(super) mod recording;
pub(crate) mod routine;
mod scalar_few_rows;
mod tensor_cores;
pub(super) mod update;

use std::ops::Range;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use burn_cubecl::tensor::CubeTensor;

use super::RowScores;

type Primitive = CubeTensor;

/// Whether `device` belongs to a GPU backend.
pub(crate) fn serves(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Cube(_))
}

#[backend_extension(Cube, Autodiff)]
pub(crate) trait GpuOps: Backend {
    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32, stored: DType) -> FloatTensor<Self>;
    fn gpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>, stored: DType) -> FloatTensor<Self>;
    fn gpu_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gpu_take_rows(x: FloatTensor<Self>, from: Vec<u32>, back: Vec<u32>) -> FloatTensor<Self>;
    fn gpu_seed(x: FloatTensor<Self>, upstream: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gpu_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self>;
    fn gpu_product(x: FloatTensor<Self>, weight: FloatTensor<Self>, format: ProductFormat) -> FloatTensor<Self>;
    fn gpu_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        format: ProductFormat,
    ) -> FloatTensor<Self>;
}

/// Operand format of a product, and whether its right-hand operand is transposed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProductFormat {
    dtype: FloatDType,
    transposed: bool,
}

impl ProductFormat {
    fn of(dtype: FloatDType) -> Self {
        Self { dtype, transposed: false }
    }

    /// Convert an operand to this format.
    fn operand(self, x: Primitive) -> Primitive {
        memory::cast(x, memory::stored(self.dtype))
    }

    /// Convert a weight to the right-hand operand, transposed if set.
    fn rhs(self, weight: Primitive) -> Primitive {
        let weight = self.operand(weight);
        if self.transposed { product::transposed(weight) } else { weight }
    }

    /// Product of operands in this format, in f32.
    fn product(self, lhs: Primitive, rhs: Primitive) -> Primitive {
        product::product(lhs, rhs, is_relaxed(self.dtype))
    }
}

/// Whether products may round f32 operands to the input format of tensor cores.
fn is_relaxed(format: FloatDType) -> bool {
    format == FloatDType::Flex32
}

/// RMS norm, stored in the operand format of products in `format`.
pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64, format: FloatDType) -> Tensor<2> {
    let (x, weight, stored) = (x.into_dispatch(), weight.into_dispatch(), memory::stored(format));
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_rms_norm(x, weight, epsilon as f32, stored))
}

/// Return `x + factor · part` (`x` without a part), and its [`rms_norm`].
pub(super) fn add_rms_norm(
    x: Tensor<2>,
    part: Option<(Tensor<2>, f64)>,
    weight: Tensor<1>,
    epsilon: f64,
    format: FloatDType,
) -> (Tensor<2>, Tensor<2>) {
    let x = match part {
        Some(part) if !x.device().is_autodiff() => {
            return inference::add_rms_norm(x, part, weight, epsilon, format);
        }
        Some((part, 1.0)) => x + part,
        Some((part, factor)) => x + part.mul_scalar(factor),
        None => x,
    };
    (x.clone(), rms_norm(x, weight, epsilon, format))
}

/// `silu(gate) · up`, stored in the operand format of products in `format`.
pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>, format: FloatDType) -> Tensor<2> {
    let (gate, up, stored) = (gate.into_dispatch(), up.into_dispatch(), memory::stored(format));
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_swiglu(gate, up, stored))
}

pub(super) fn rotary(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let out = <Dispatch as GpuOps>::gpu_rotary(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(out)
}

/// Gather the rows of `x` at `from`, zeros for invalid indices; the gradient is gathered from the result's at `back`.
pub(super) fn take_rows(x: Tensor<2>, from: Vec<u32>, back: Vec<u32>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_take_rows(x.into_dispatch(), from, back))
}

pub(super) fn seed(x: Tensor<2>, upstream: Tensor<2>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_seed(x.into_dispatch(), upstream.into_dispatch()))
}

pub(super) fn scores(logits: Tensor<2>, targets: &[u32], temperature: f32) -> RowScores {
    let statistics = <Dispatch as GpuOps>::gpu_scores(logits.into_dispatch(), targets.to_vec(), temperature);
    RowScores::of(Tensor::from_dispatch(statistics))
}

/// `x W + b` with operands in `format`; sums and the result are in f32.
pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, format: FloatDType) -> Tensor<2> {
    let (x, weight, format) = (x.into_dispatch(), weight.into_dispatch(), ProductFormat::of(format));
    Tensor::from_dispatch(match bias {
        Some(bias) => <Dispatch as GpuOps>::gpu_linear(x, weight, bias.into_dispatch(), format),
        None => <Dispatch as GpuOps>::gpu_product(x, weight, format),
    })
}

/// `x Wᵀ`, otherwise as [`linear`].
pub(super) fn matmul_transposed(x: Tensor<2>, weight: Tensor<2>, format: FloatDType) -> Tensor<2> {
    let format = ProductFormat { transposed: true, ..ProductFormat::of(format) };
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_product(x.into_dispatch(), weight.into_dispatch(), format))
}

/// Convert `x` to the operand format of products in `format`, without autodiff.
pub(super) fn operand(x: Tensor<4>, format: FloatDType) -> Tensor<4> {
    from_primitive(ProductFormat::of(format).operand(primitive(x)))
}

/// Product of two [`operand`]s in f32, without autodiff.
pub(super) fn matmul<const D: usize>(lhs: Tensor<D>, rhs: Tensor<D>, format: FloatDType) -> Tensor<D> {
    from_primitive(ProductFormat::of(format).product(primitive(lhs), primitive(rhs)))
}

/// Attention weights from the scores of the query rows at `rows`, as an [`operand`], without autodiff.
pub(super) fn attention_weights(scores: Tensor<4>, rows: &Range<usize>, scale: f64, format: FloatDType) -> Tensor<4> {
    let rows = (rows.start, rows.len());
    from_primitive(launch::attention_weights(primitive(scores), rows, scale as f32, memory::stored(format)))
}

/// Gradient of the scores from the weights and their gradient, as an [`operand`], without autodiff.
pub(super) fn attention_weights_backward(
    weights: Tensor<4>,
    gradient: Tensor<4>,
    rows: &Range<usize>,
    scale: f64,
) -> Tensor<4> {
    let (weights, gradient) = (primitive(weights), primitive(gradient));
    from_primitive(launch::attention_weights_backward(weights, gradient, (rows.start, rows.len()), scale as f32))
}

fn primitive<const D: usize>(tensor: Tensor<D>) -> Primitive {
    tensor.try_into_primitive::<Cube>().expect("a tensor of a GPU backend, without autodiff")
}

fn from_primitive<const D: usize>(primitive: Primitive) -> Tensor<D> {
    Tensor::from_primitive::<Cube>(primitive)
}

impl GpuOps for Cube {
    fn gpu_product(x: FloatTensor<Self>, weight: FloatTensor<Self>, format: ProductFormat) -> FloatTensor<Self> {
        format.product(format.operand(x), format.rhs(weight))
    }

    fn gpu_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        format: ProductFormat,
    ) -> FloatTensor<Self> {
        launch::add_bias(Self::gpu_product(x, weight, format), bias)
    }

    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32, stored: DType) -> FloatTensor<Self> {
        launch::rms_norm(x, weight, epsilon, stored)
    }

    fn gpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>, stored: DType) -> FloatTensor<Self> {
        launch::swiglu(gate, up, stored)
    }

    fn gpu_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        launch::rotary(x, cos, sin, 1.0)
    }

    fn gpu_take_rows(x: FloatTensor<Self>, from: Vec<u32>, _back: Vec<u32>) -> FloatTensor<Self> {
        launch::take_rows(x, &from)
    }

    fn gpu_seed(x: FloatTensor<Self>, _upstream: FloatTensor<Self>) -> FloatTensor<Self> {
        memory::zero(&x)
    }

    fn gpu_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self> {
        let targets = memory::send(&logits, &targets);
        let [statistics, _] = launch::scores(logits, targets, temperature);
        statistics
    }
}
