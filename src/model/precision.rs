//! The number format of weights and matrix products. Norms, softmax, log-probabilities and losses stay in f32.

use burn::module::LoraAdapter;
use burn::nn::Linear;
use burn::tensor::{Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops;

/// Precision of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit single precision.
    #[default]
    #[serde(alias = "float32")]
    F32,
    /// Single precision; operands of matrix products are rounded to a 10-bit mantissa (TF32, NVIDIA tensor cores).
    #[serde(alias = "tensorfloat32")]
    Tf32,
    /// bfloat16: the range of f32 with 8 bits of mantissa.
    #[serde(alias = "bfloat16")]
    Bf16,
    /// IEEE half precision; not for training, because its range is too small for gradients.
    #[serde(alias = "float16")]
    F16,
}

impl Precision {
    /// Return the format of products. Burn's Flex32 is stored in 32 bits and may be multiplied with fewer.
    pub(crate) fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Tf32 => FloatDType::Flex32,
            Self::Bf16 => FloatDType::BF16,
            Self::F16 => FloatDType::F16,
        }
    }

    /// Return whether products have 16-bit operands.
    pub(crate) fn is_short(self) -> bool {
        matches!(self, Self::Bf16 | Self::F16)
    }

    /// Return the stored format of the operands of products.
    pub(crate) fn stored(self) -> FloatDType {
        if self.is_short() { self.dtype() } else { FloatDType::F32 }
    }

    /// Reject unsupported precisions, and f16 on a device with autodiff: its range is too small for gradients.
    ///
    /// # Errors
    /// Names the supported formats.
    pub(crate) fn check(self, device: &Device) -> Result<()> {
        let name = format!("{self:?}").to_lowercase();
        if self == Self::F16 && device.is_autodiff() {
            let message = "model.dtype = \"f16\": small gradients vanish in f16; train in bf16 or f32";
            return Err(Error::Invalid(message.to_string()));
        }
        let computed = match self {
            Self::Tf32 => crate::device::has_tf32(device),
            _ => device.supports_dtype(self.dtype()),
        };
        if !computed {
            let formats = crate::device::float_formats(device).join(", ");
            return Err(Error::Invalid(format!(
                "--dtype {name} (model.dtype, rollout.dtype): not supported by this device; choose one of {formats}"
            )));
        }
        Ok(())
    }

    /// Compute `x W + b` in this precision, and `+ s (x A) B` with an adapter; input and output are f32.
    ///
    /// Weights in another format are converted here; in training they are f32 masters. Neither the product `A B` of an
    /// adapter nor the gradient of the base matrix is computed.
    ///
    /// # Shapes
    /// - x: `[rows, input]`; output: `[rows, output]`
    pub(super) fn linear(self, layer: &Linear, x: Tensor<2>) -> Tensor<2> {
        let (weight, bias) = (layer.weight.base(), bias(layer));
        match layer.weight.adapter() {
            Some(LoraAdapter { a, b, scale }) => {
                ops::adapted_linear(x, weight, bias, ([a.val(), b.val()], *scale), self.dtype())
            }
            None => ops::linear(x, weight, bias, self.dtype()),
        }
    }

    /// Compute `(silu(gate) · up) W + b` in this precision, as [`Self::linear`] does; inputs and output are f32.
    ///
    /// # Shapes
    /// - gate, up: `[rows, input]`; output: `[rows, output]`
    pub(super) fn swiglu_linear(self, layer: &Linear, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        let (weight, bias) = (layer.weight.base(), bias(layer));
        let Some(adapter) = layer.weight.adapter() else {
            return ops::swiglu_linear(gate, up, weight, bias, self.dtype());
        };
        if self != Self::F32 || !gate.device().is_autodiff() {
            return self.linear(layer, ops::swiglu(gate, up));
        }
        // Neither call keeps `silu(gate) · up` for the backward pass; it is as large as each operand.
        let low = ops::swiglu_linear(gate.clone(), up.clone(), adapter.a.val(), None, self.dtype());
        let low = ops::linear(low.mul_scalar(adapter.scale), adapter.b.val(), None, self.dtype());
        ops::swiglu_linear(gate, up, weight, bias, self.dtype()) + low
    }

    /// Compute `x W` for each layer in this precision, without biases. For a GPU, without gradients.
    pub(super) fn products<const N: usize>(self, layers: [&Linear; N], x: Tensor<2>) -> [Tensor<2>; N] {
        ops::products(x, layers.map(|layer| layer.weight.val()), self.dtype())
    }

    /// Compute `x Wᵀ` in this precision; input and output are f32.
    pub(super) fn matmul_transposed(self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        ops::matmul_transposed(x, weight, self.dtype())
    }
}

fn bias(layer: &Linear) -> Option<Tensor<1>> {
    layer.bias.as_ref().map(|bias| bias.val())
}
