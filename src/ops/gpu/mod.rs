//! The operations on every GPU backend, in kernels of our own: one source for CUDA, ROCm, Vulkan, Metal and WebGPU, and for
//! CubeCL's CPU runtime, on which they are tested.
//!
//! [`kernels`] has the kernels, [`launch`] their launches as functions on Burn's primitive, this file connects them to
//! tensors through Burn's backend-extension mechanism, and [`autodiff`] has the backward steps.

#![allow(missing_docs, reason = "the extension macro generates items that cannot carry documentation")]

mod autodiff;
mod kernels;
mod launch;
pub(super) mod update;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Cube, Dispatch, DispatchDevice, backend_extension};
use burn::tensor::{Device, Tensor};
use burn_cubecl::tensor::CubeTensor;

type Primitive = CubeTensor;

/// Whether tensors on `device` are served here.
pub(crate) fn serves(device: &Device) -> bool {
    matches!(device.clone().inner().as_dispatch(), DispatchDevice::Cube(_))
}

#[backend_extension(Cube, Autodiff)]
pub(crate) trait GpuOps: Backend {
    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
}

pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let out = <Dispatch as GpuOps>::gpu_rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon as f32);
    Tensor::from_dispatch(out)
}

impl GpuOps for Cube {
    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        launch::rms_norm(x, weight, epsilon)
    }
}
