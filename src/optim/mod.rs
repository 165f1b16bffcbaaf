//! Optimiser: gradient accumulation, clipping by the global norm, and the step.

mod adamw;
mod schedule;

pub use adamw::AdamW;
pub use schedule::{LrScheduler, learning_rate};

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Gradients as BurnGradients, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{CausalLm, ParamPath};
use crate::ops::{self, update};
use crate::ranks::Reduce;

/// Number format of the optimiser's moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// Single precision, 8 bytes per parameter.
    F32,
    /// bfloat16, 4 bytes per parameter; requires `adam_beta2` of at most 0.99.
    Bf16,
}

impl Moments {
    fn dtype(self) -> FloatDType {
        match self {
            Self::F32 => FloatDType::F32,
            Self::Bf16 => FloatDType::BF16,
        }
    }

    /// Return the bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Maximum `adam_beta2` for moments in bf16, in which a value changes by 1/256 or not at all.
const BF16_BETA2: f64 = 0.99;

/// Settings of the optimiser; keys and defaults are those of Hugging Face `TrainingArguments` unless said otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning-rate schedule after warm-up.
    pub lr_scheduler_type: LrScheduler,
    /// Number of steps of linear warm-up.
    pub warmup_steps: usize,
    /// Decoupled weight decay, applied to matrices only.
    pub weight_decay: f64,
    /// Decay rate β₁ of the first moment.
    pub adam_beta1: f64,
    /// Decay rate β₂ of the second moment.
    pub adam_beta2: f64,
    /// Constant ε added to the square root of the second moment.
    pub adam_epsilon: f64,
    /// Storage precision of both moments.
    pub adam_moments: Moments,
    /// Maximum global gradient norm (gradient clipping); 0 disables clipping.
    pub max_grad_norm: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-6,
            lr_scheduler_type: LrScheduler::Constant,
            warmup_steps: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            adam_moments: Moments::F32,
            max_grad_norm: 1.0,
        }
    }
}

impl OptimConfig {
    /// Return one message per invalid setting.
    pub fn mistakes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut positive = |key: &str, value: f64| {
            if !(value > 0.0 && value.is_finite()) {
                problems.push(format!("optim.{key} = {value} must be a positive number"));
            }
        };
        positive("learning_rate", self.learning_rate);
        positive("adam_epsilon", self.adam_epsilon);
        for (key, value) in [("max_grad_norm", self.max_grad_norm), ("weight_decay", self.weight_decay)] {
            if !(value >= 0.0 && value.is_finite()) {
                problems.push(format!("optim.{key} = {value} must not be negative"));
            }
        }
        for (key, value) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            if !(0.0..1.0).contains(&value) {
                problems.push(format!("optim.{key} = {value} must be at least 0 and below 1"));
            }
        }
        if self.adam_moments == Moments::Bf16 && self.adam_beta2 > BF16_BETA2 {
            problems.push(format!(
                "optim.adam_beta2 = {} with adam_moments = \"bf16\": 8 bits of mantissa cannot represent such small \
                    changes, and the second moment would never decrease; choose at most {BF16_BETA2}, or adam_moments \
                    = \"f32\"",
                self.adam_beta2
            ));
        }
        problems
    }

    /// Return the clip factor for a gradient of this global norm: at most 1.
    pub fn clip(&self, norm: f64) -> f64 {
        if self.max_grad_norm == 0.0 { 1.0 } else { (self.max_grad_norm / norm).min(1.0) }
    }

    /// Check that the device supports the format of the moments.
    ///
    /// # Errors
    /// Names the alternative.
    pub fn check(&self, device: &Device) -> Result<()> {
        if device.supports_dtype(self.adam_moments.dtype()) {
            return Ok(());
        }
        Err(Error::Invalid("optim.adam_moments = \"bf16\": this device does not support bf16; use \"f32\"".to_string()))
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";

/// Maximum elements that ranks sum at a time, or one larger parameter: few calls, little memory beside the gradient.
const SUMMED: usize = 4 << 20;

/// Gradients by parameter name, flattened; sums over micro-batches.
#[derive(Debug, Default)]
pub struct Gradients(pub(crate) BTreeMap<String, Tensor<1>>);

impl Gradients {
    /// Add the gradients of one backward pass. Parameters without a gradient are skipped.
    pub fn add(&mut self, model: &CausalLm, gradients: &mut BurnGradients) {
        struct Add<'a>(ParamPath, &'a mut BTreeMap<String, Tensor<1>>, &'a mut BurnGradients);
        impl ModuleVisitor for Add<'_> {
            fn enter_module(&mut self, name: &str, _container: &str) {
                self.0.enter(name);
            }
            fn exit_module(&mut self, _name: &str, _container: &str) {
                self.0.exit();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Some(gradient) = param.base().grad_remove(self.2) else { return };
                let count = gradient.shape().num_elements();
                let gradient = gradient.reshape([count]);
                let name = self.0.name();
                let sum = match self.1.remove(&name) {
                    Some(sum) => update::accumulate(sum, gradient),
                    None => gradient,
                };
                self.1.insert(name, sum);
            }
        }
        model.visit(&mut Add(ParamPath::default(), &mut self.0, gradients));
    }

    /// Add other gradients.
    pub(crate) fn merge(&mut self, other: Self) {
        for (name, gradient) in other.0 {
            let sum = match self.0.remove(&name) {
                Some(sum) => update::accumulate(sum, gradient),
                None => gradient,
            };
            self.0.insert(name, sum);
        }
    }

    /// Add the gradient of the embedding rows of `tokens`, unless the embedding is frozen.
    ///
    /// # Shapes
    /// - rows: `[tokens, hidden]`
    pub(crate) fn add_embedding(&mut self, model: &CausalLm, tokens: &[u32], rows: Tensor<2>) {
        let weight = model.model.embed_tokens.weight.base();
        if !weight.is_require_grad() {
            return;
        }
        let shape = weight.dims();
        let rows = match model.embedding_multiplier() {
            1.0 => rows,
            multiplier => rows.mul_scalar(multiplier),
        };
        // A tied head has added its gradient already.
        let zeros = || ops::zeros(shape[0] * shape[1], FloatDType::F32, &rows.device());
        let sum = self.0.remove(EMBEDDING).unwrap_or_else(zeros);
        let sum = update::add_rows(sum.reshape(shape), rows, tokens);
        self.0.insert(EMBEDDING.to_string(), sum.reshape([shape[0] * shape[1]]));
    }

    /// Replace the gradient of the parameters of `model` by its sum over all ranks; a rank may lack some gradients.
    /// Every rank must call it.
    pub fn sum(&mut self, model: &CausalLm, ranks: &dyn Reduce) {
        if ranks.size() == 1 {
            return;
        }
        let (device, trained) = (model.device().inner(), trained(model));
        let mut holders: Vec<f32> =
            trained.iter().map(|(name, _)| f32::from(u8::from(self.0.contains_key(name)))).collect();
        ranks.sum(&mut holders);
        let held: Vec<(String, usize)> =
            trained.into_iter().zip(holders).filter(|(_, holders)| *holders > 0.0).map(|(part, _)| part).collect();
        let mut rest = &held[..];
        while !rest.is_empty() {
            let mut count = 0;
            let fits = |(_, size): &&(String, usize)| {
                count += size;
                count == *size || count <= SUMMED
            };
            let (bucket, later) = rest.split_at(rest.iter().take_while(fits).count());
            rest = later;
            let mine: Vec<bool> = bucket.iter().map(|(name, _)| self.0.contains_key(name)).collect();
            let own = bucket.iter().filter_map(|(name, _)| self.0.remove(name)).collect();
            let mut own = ops::to_host_together(own).into_iter();
            let mut flat = Vec::with_capacity(bucket.iter().map(|(_, size)| size).sum());
            for ((_, size), mine) in bucket.iter().zip(mine) {
                match if mine { own.next() } else { None } {
                    Some(values) => flat.extend(values),
                    None => flat.resize(flat.len() + size, 0.0),
                }
            }
            ranks.sum(&mut flat);
            let mut first = 0;
            for (name, size) in bucket {
                let values = TensorData::from(&flat[first..first + size]);
                self.0.insert(name.clone(), ops::to_device(values, &device));
                first += size;
            }
        }
    }

    /// Return the global norm: the square root of the sum of all squares.
    pub fn norm(&self) -> f64 {
        update::sum_of_squares(&self.0.values().collect::<Vec<_>>()).sqrt()
    }

    /// Iterate over the names of the parameters that have a gradient.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Return each parameter's flattened gradient by name, in the model's orientation: matrices `[inputs, outputs]`.
    pub fn to_host(&self) -> BTreeMap<String, Vec<f32>> {
        self.0.iter().map(|(name, gradient)| (name.clone(), ops::to_host(gradient.clone()))).collect()
    }
}

/// Return names and sizes of the trained parameters.
fn trained(model: &CausalLm) -> Vec<(String, usize)> {
    struct Trained(ParamPath, Vec<(String, usize)>);
    impl ModuleVisitor for Trained {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.base();
            if value.is_require_grad() {
                self.1.push((self.0.name(), value.shape().num_elements()));
            }
        }
    }
    let mut found = Trained(ParamPath::default(), Vec::new());
    model.visit(&mut found);
    found.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_trl_no_bound_on_the_norm_is_0_and_decay_is_not_negative() {
        let config =
            |max_grad_norm, weight_decay| OptimConfig { max_grad_norm, weight_decay, ..OptimConfig::default() };
        assert_eq!([0.5, 4.0, 0.0].map(|norm| config(1.0, 0.0).clip(norm)), [1.0, 0.25, 1.0]);
        assert_eq!([1e9, 0.0].map(|norm| config(0.0, 0.0).clip(norm)), [1.0; 2]);
        assert!(config(0.0, 0.1).mistakes().is_empty());
        for (norm, decay, key) in
            [(-1.0, 0.0, "max_grad_norm"), (1.0, -0.1, "weight_decay"), (1.0, f64::NAN, "weight_decay")]
        {
            assert!(config(norm, decay).mistakes()[0].contains(key));
        }
    }

    #[test]
    fn moments_in_bf16_ask_for_a_faster_second_moment_and_a_device_that_has_them() {
        let config = OptimConfig { adam_moments: Moments::Bf16, ..OptimConfig::default() };
        assert!(config.mistakes()[0].contains("adam_beta2 = 0.999"), "{:?}", config.mistakes());
        assert!(OptimConfig { adam_beta2: 0.95, ..config.clone() }.mistakes().is_empty());
        assert!(config.check(&Device::flex()).is_ok());
        #[cfg(feature = "ndarray")]
        {
            let ndarray = crate::device::parse("ndarray").unwrap();
            let refused = config.check(&ndarray).unwrap_err().to_string();
            assert!(refused.contains("use \"f32\""), "{refused}");
        }
    }
}
