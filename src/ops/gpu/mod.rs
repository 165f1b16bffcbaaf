//! The operations on every GPU backend, in kernels of our own: one source for CUDA, ROCm, Vulkan, Metal and WebGPU, and for
//! CubeCL's CPU runtime, on which they are tested.
//!
//! [`kernels`] has the kernels, [`launch`] their launches as functions on Burn's primitive, this file connects them to
//! tensors through Burn's backend-extension mechanism, [`autodiff`] has the backward steps, and [`inference`] what is computed
//! without gradients alone.

#![allow(missing_docs, reason = "the extension macro generates items that cannot carry documentation")]

mod autodiff;
pub(super) mod inference;
mod kernels;
mod launch;
pub(crate) mod product;
#[cfg(all(test, feature = "cuda"))]
mod ptx;
pub(super) mod update;

use std::ops::Range;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use burn_cubecl::tensor::CubeTensor;

use super::Scores;

type Primitive = CubeTensor;

/// Whether tensors on `device` are served here.
pub(crate) fn serves(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Cube(_))
}

#[backend_extension(Cube, Autodiff)]
pub(crate) trait GpuOps: Backend {
    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn gpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gpu_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gpu_take_rows(x: FloatTensor<Self>, from: Vec<u32>, back: Vec<u32>) -> FloatTensor<Self>;
    fn gpu_seed(x: FloatTensor<Self>, upstream: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gpu_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self>;
    fn gpu_product(x: FloatTensor<Self>, weight: FloatTensor<Self>, format: Format) -> FloatTensor<Self>;
    fn gpu_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        format: Format,
    ) -> FloatTensor<Self>;
}

/// What a product computes in, and whether its right factor is to be read as its transpose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    dtype: DType,
    transposed: bool,
}

impl Format {
    fn of(dtype: FloatDType) -> Self {
        Self { dtype: dtype.into(), transposed: false }
    }

    /// The weight as the right factor: in this format, transposed or not.
    fn right(self, weight: Primitive) -> Primitive {
        let weight = launch::cast(weight, self.dtype);
        if self.transposed { product::transposed(weight) } else { weight }
    }
}

pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let out = <Dispatch as GpuOps>::gpu_rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon as f32);
    Tensor::from_dispatch(out)
}

pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_swiglu(gate.into_dispatch(), up.into_dispatch()))
}

pub(super) fn rotary(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let out = <Dispatch as GpuOps>::gpu_rotary(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(out)
}

/// The rows of `x` at `from`, zeros where that is no row; its gradient is that of the result's rows at `back`.
pub(super) fn take_rows(x: Tensor<2>, from: Vec<u32>, back: Vec<u32>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_take_rows(x.into_dispatch(), from, back))
}

pub(super) fn seed(x: Tensor<2>, upstream: Tensor<2>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_seed(x.into_dispatch(), upstream.into_dispatch()))
}

pub(super) fn scores(logits: Tensor<2>, targets: &[u32], temperature: f32) -> Scores {
    let figures = <Dispatch as GpuOps>::gpu_scores(logits.into_dispatch(), targets.to_vec(), temperature);
    Scores::of(Tensor::from_dispatch(figures))
}

/// `x W + b`, factors in `format`, sums and the result in f32.
pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, format: FloatDType) -> Tensor<2> {
    let (x, weight, format) = (x.into_dispatch(), weight.into_dispatch(), Format::of(format));
    Tensor::from_dispatch(match bias {
        Some(bias) => <Dispatch as GpuOps>::gpu_linear(x, weight, bias.into_dispatch(), format),
        None => <Dispatch as GpuOps>::gpu_product(x, weight, format),
    })
}

/// `x Wᵀ`, as [`linear`].
pub(super) fn matmul_transposed(x: Tensor<2>, weight: Tensor<2>, format: FloatDType) -> Tensor<2> {
    let format = Format { transposed: true, ..Format::of(format) };
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_product(x.into_dispatch(), weight.into_dispatch(), format))
}

/// A product without autodiff, in f32.
pub(super) fn matmul(lhs: Tensor<4>, rhs: Tensor<4>) -> Tensor<4> {
    from_primitive(product::product(primitive(lhs), primitive(rhs), DType::F32))
}

/// The attention weights of scores of the query rows at `rows`, without autodiff, in their place.
pub(super) fn attention_weights(scores: Tensor<4>, rows: &Range<usize>, scale: f64) -> Tensor<4> {
    from_primitive(launch::attention_weights(primitive(scores), (rows.start, rows.len()), scale as f32))
}

/// The gradient of the scores from the weights and theirs, in the place of the latter.
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
    fn gpu_product(x: FloatTensor<Self>, weight: FloatTensor<Self>, format: Format) -> FloatTensor<Self> {
        product::product(launch::cast(x, format.dtype), format.right(weight), DType::F32)
    }

    fn gpu_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        format: Format,
    ) -> FloatTensor<Self> {
        launch::add_bias(Self::gpu_product(x, weight, format), bias)
    }

    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        launch::rms_norm(x, weight, epsilon, DType::F32)
    }

    fn gpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        launch::swiglu(gate, up, DType::F32)
    }

    fn gpu_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        launch::rotary(x, cos, sin, 1.0)
    }

    fn gpu_take_rows(x: FloatTensor<Self>, from: Vec<u32>, _back: Vec<u32>) -> FloatTensor<Self> {
        launch::take_rows(x, &from)
    }

    fn gpu_seed(x: FloatTensor<Self>, _upstream: FloatTensor<Self>) -> FloatTensor<Self> {
        launch::zero(&x)
    }

    fn gpu_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self> {
        let targets = launch::upload(&targets, &logits);
        let [figures, _] = launch::scores(logits, targets, temperature);
        figures
    }
}
