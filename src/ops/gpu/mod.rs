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
pub(super) mod update;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::tensor::CubeTensor;

use super::Scores;

type Primitive = CubeTensor;

/// Whether tensors on `device` are served here.
pub(super) fn serves(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Cube(_))
}

#[backend_extension(Cube, Autodiff)]
pub(crate) trait GpuOps: Backend {
    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn gpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gpu_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gpu_seed(x: FloatTensor<Self>, upstream: FloatTensor<Self>) -> FloatTensor<Self>;
    fn gpu_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self>;
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

pub(super) fn seed(x: Tensor<2>, upstream: Tensor<2>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as GpuOps>::gpu_seed(x.into_dispatch(), upstream.into_dispatch()))
}

pub(super) fn scores(logits: Tensor<2>, targets: &[u32], temperature: f32) -> Scores {
    let figures = <Dispatch as GpuOps>::gpu_scores(logits.into_dispatch(), targets.to_vec(), temperature);
    Scores::of(Tensor::from_dispatch(figures))
}

impl GpuOps for Cube {
    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        launch::rms_norm(x, weight, epsilon, DType::F32)
    }

    fn gpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        launch::swiglu(gate, up, DType::F32)
    }

    fn gpu_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        launch::rotary(x, cos, sin, 1.0)
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
