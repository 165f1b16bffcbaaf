//! Root-mean-square normalisation with a learned scale (arXiv 1910.07467).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, FloatDType, Tensor};

use crate::ops;

/// `x / sqrt(mean(x²) + ε) · weight`.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Scale, `[width]`.
    pub weight: Param<Tensor<1>>,
    epsilon: f64,
}

impl RmsNorm {
    pub(super) fn new(width: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: Initializer::Ones.init([width], device), epsilon }
    }

    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::rms_norm(x, self.weight.val(), self.epsilon)
    }

    /// `x + factor · part` where there is a part, and its norm in the format `stored` where one is asked for.
    pub(super) fn after(
        &self,
        x: Tensor<2>,
        part: Option<(Tensor<2>, f64)>,
        stored: Option<FloatDType>,
    ) -> (Tensor<2>, Tensor<2>) {
        if let Some(stored) = stored {
            return ops::add_rms_norm(x, part, self.weight.val(), self.epsilon, stored);
        }
        let x = match part {
            None => x,
            Some((part, 1.0)) => x + part,
            Some((part, factor)) => x + part.mul_scalar(factor),
        };
        (x.clone(), self.forward(x))
    }
}
