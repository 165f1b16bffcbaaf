//! Root-mean-square normalisation with a learned scale (arXiv 1910.07467).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, FloatDType, Tensor};

use super::ModelConfig;
use crate::ops;

/// `x / sqrt(mean(x²) + ε) · weight`, or `· (1 + weight)`, depending on the family.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Scale, `[width]`.
    pub weight: Param<Tensor<1>>,
    epsilon: f64,
    unit: bool,
}

impl RmsNorm {
    pub(super) fn new(config: &ModelConfig, width: usize, device: &Device) -> Self {
        let weight = Initializer::Ones.init([width], device);
        Self { weight, epsilon: config.rms_norm_eps, unit: config.has_unit_norms() }
    }

    /// Create a norm whose weight is the scale itself, in every family.
    pub(super) fn plain(width: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: Initializer::Ones.init([width], device), epsilon, unit: false }
    }

    pub(super) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::rms_norm(x, self.scale(), self.epsilon)
    }

    /// Apply [`Self::forward`] to parts of rows, each as wide as the norm.
    pub(super) fn parts(&self, x: Tensor<2>) -> Tensor<2> {
        let ([rows, width], [own]) = (x.dims(), self.weight.lazy_shape().dims());
        self.forward(x.reshape([rows * width / own, own])).reshape([rows, width])
    }

    /// Return the factor of the normalised values.
    fn scale(&self) -> Tensor<1> {
        let weight = self.weight.val();
        if self.unit { weight.add_scalar(1.0) } else { weight }
    }

    /// Return `x + factor · part` (`x` without a part), and its norm, in the format `stored` if given.
    pub(super) fn after(
        &self,
        x: Tensor<2>,
        part: Option<(Tensor<2>, f64)>,
        stored: Option<FloatDType>,
    ) -> (Tensor<2>, Tensor<2>) {
        if let Some(stored) = stored {
            return ops::add_rms_norm(x, part, self.scale(), self.epsilon, stored);
        }
        let x = match part {
            None => x,
            Some((part, 1.0)) => x + part,
            Some((part, factor)) => x + part.mul_scalar(factor),
        };
        (x.clone(), self.forward(x))
    }
}
