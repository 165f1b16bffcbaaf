//! AdamW (arXiv 1711.05101) with bias correction, as in PyTorch.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use super::{Gradients, OptimConfig};
use crate::error::Result;
use crate::model::tensors::{self, Dtype, TensorEntry, TensorFile};
use crate::model::{CausalLm, ParamPath};
use crate::ops;
use crate::ops::update::{self, AdamWStep};

const STEPS: &str = "steps";

/// First and second moments by parameter name, and the number of steps taken.
#[derive(Debug, Default)]
pub struct AdamW {
    moments: BTreeMap<String, [Tensor<1>; 2]>,
    steps: i32,
}

impl AdamW {
    /// Perform one step with gradients scaled by `scale` (the clip factor); parameters without a gradient stay.
    ///
    /// `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `θ ← θ − lr·(m̂ / (√v̂ + ε) + λθ)`, with weight decay on matrices
    /// only. Weights and moments are updated in place, unless the weights are shared.
    pub fn step(
        &mut self,
        config: &OptimConfig,
        model: CausalLm,
        gradients: Gradients,
        scale: f64,
        lr: f64,
    ) -> CausalLm {
        self.steps += 1;
        let correction = |beta: f64| 1.0 / (1.0 - beta.powi(self.steps));
        let step = AdamWStep {
            scale: scale as f32,
            beta1: config.adam_beta1 as f32,
            beta2: config.adam_beta2 as f32,
            epsilon: config.adam_epsilon as f32,
            rate: (lr * correction(config.adam_beta1)) as f32,
            correction: correction(config.adam_beta2) as f32,
            keep: 1.0,
        };
        let keep = (1.0 - lr * config.weight_decay) as f32;
        let format = config.adam_moments.dtype();
        model.map(&mut AdamWMapper { path: ParamPath::default(), state: self, gradients, step, keep, format })
    }

    /// Return the number of steps taken, and name and size of each parameter with moments.
    pub(crate) fn outline(&self) -> (i32, Vec<(String, usize)>) {
        (self.steps, self.moments.iter().map(|(name, [m, _])| (name.clone(), m.dims()[0])).collect())
    }

    /// Iterate over both moments of each parameter, in the order of [`Self::outline`].
    pub(crate) fn moments(&self) -> impl Iterator<Item = Vec<f32>> {
        self.moments.values().flatten().map(|values| ops::to_host(values.clone().cast(FloatDType::F32)))
    }

    /// Build the state of an outline; `fetch` fills the moments in their order.
    pub(crate) fn rebuild(
        (steps, outline): (i32, Vec<(String, usize)>),
        device: &Device,
        mut fetch: impl FnMut(&mut [f32]),
    ) -> Self {
        let mut moment = |count: usize| {
            let mut values = vec![0.0; count];
            fetch(&mut values);
            Tensor::from_data(TensorData::from(values.as_slice()), device)
        };
        let moments = outline.into_iter().map(|(name, count)| (name, [(); 2].map(|()| moment(count)))).collect();
        Self { moments, steps }
    }

    /// Write the moments and the step count.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let entry = |name: String, values: &Tensor<1>| {
            let values = values.clone();
            let shape = values.dims().to_vec();
            let data = move || values.clone().cast(FloatDType::F32).into_data();
            TensorEntry { name, shape, exact: true, values: Box::new(data) }
        };
        let mut entries: Vec<TensorEntry> = (self.moments.iter())
            .flat_map(|(name, [m, v])| [entry(format!("{name}.exp_avg"), m), entry(format!("{name}.exp_avg_sq"), v)])
            .collect();
        let steps = self.steps as f32;
        let values = Box::new(move || [steps].into());
        entries.push(TensorEntry { name: STEPS.to_string(), shape: vec![1], exact: true, values });
        tensors::write(path, Dtype::F32, &entries)
    }

    /// Read the state written by [`Self::save`].
    ///
    /// # Errors
    /// A missing, truncated or unrelated file.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let file = TensorFile::open(path)?;
        let mut state = Self { moments: BTreeMap::new(), steps: file.read(STEPS)?.first().map_or(0, |&n| n as i32) };
        for name in file.names().filter_map(|name| name.strip_suffix(".exp_avg")) {
            let moment = |which: &str| -> Result<Tensor<1>> {
                let values = file.read(&format!("{name}.{which}"))?;
                Ok(Tensor::from_data(TensorData::from(values.as_slice()), device))
            };
            state.moments.insert(name.to_string(), [moment("exp_avg")?, moment("exp_avg_sq")?]);
        }
        Ok(state)
    }
}

struct AdamWMapper<'a> {
    path: ParamPath,
    state: &'a mut AdamW,
    gradients: Gradients,
    /// Step for vectors, which have no weight decay.
    step: AdamWStep,
    /// Weight-decay factor of matrices.
    keep: f32,
    format: FloatDType,
}

impl ModuleMapper for AdamWMapper<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        let Some(gradient) = self.gradients.0.remove(&name) else { return param };
        let (count, device) = (gradient.dims()[0], gradient.device());
        let zeros = || ops::zeros(count, self.format, &device);
        let moments = self.state.moments.remove(&name).unwrap_or_else(|| [zeros(), zeros()]);
        // Moments from a checkpoint are in f32.
        let moments = moments.map(|moment| moment.cast(self.format));
        let keep = if D > 1 { self.keep } else { 1.0 };
        param.map(|value| {
            let shape = value.shape();
            let value = value.inner().reshape([count]);
            let (value, moments) = update::adamw(value, moments, gradient, &AdamWStep { keep, ..self.step });
            self.state.moments.insert(name, moments);
            Tensor::from_inner(value.reshape(shape)).require_grad()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    /// Return the memory address of each weight.
    fn addresses(model: &CausalLm) -> Vec<Vec<f32>> {
        struct Addresses(Vec<Vec<f32>>);
        impl burn::module::ModuleVisitor for Addresses {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.0.push(crate::ops::address(param.val()));
            }
        }
        let mut found = Addresses(Vec::new());
        model.visit(&mut found);
        found.0
    }

    /// With 0.5 B parameters there is no memory for a second copy of weights or moments.
    #[test]
    fn weights_and_moments_stay_where_they_are() {
        let device = Device::flex();
        let config = ModelConfig::qwen2(64, 16, 32, 2, 4, 2);
        let mut model = CausalLm::random(&config, 0, &device.clone().autodiff());
        let mut optimizer = AdamW::default();
        let gradients = || {
            let tokens = [1, 2, 3, 4];
            let loss = model_loss(&model, &tokens);
            let mut gradients = Gradients::default();
            gradients.add(&model, &mut loss.backward());
            gradients
        };
        let gradients = [gradients(), gradients()];
        let before = addresses(&model);
        let mut moments: Vec<Vec<Vec<f32>>> = Vec::new();
        for gradients in gradients {
            model = optimizer.step(&OptimConfig::default(), model, gradients, 1.0, 1e-3);
            let at = optimizer.moments.values().flatten().map(|moment| crate::ops::address(moment.clone())).collect();
            moments.push(at);
        }
        assert_eq!(addresses(&model), before);
        assert_eq!(moments[0], moments[1]);
    }

    fn model_loss(model: &CausalLm, tokens: &[u32]) -> Tensor<1> {
        model.logits(model.forward(tokens, &[tokens.len()], None)).sum()
    }
}
