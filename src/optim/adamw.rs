//! AdamW (arXiv 1711.05101) with bias correction, as in PyTorch.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::{Gradients, OptimConfig};
use crate::error::Result;
use crate::model::{CausalLm, ParamPath};
use crate::tensors::{self, Dtype, Entry, TensorFile};

const STEPS: &str = "steps";

/// First and second moments by parameter name, and the number of steps taken.
#[derive(Debug, Default)]
pub struct AdamW {
    moments: BTreeMap<String, [Tensor<1>; 2]>,
    steps: i32,
}

impl AdamW {
    /// One step with gradients scaled by `scale` (the clip factor); parameters without a gradient stay as they are.
    ///
    /// `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `θ ← θ − lr·(m̂ / (√v̂ + ε) + λθ)`, decay on matrices only.
    pub fn step(
        &mut self,
        config: &OptimConfig,
        model: CausalLm,
        gradients: Gradients,
        scale: f64,
        lr: f64,
    ) -> CausalLm {
        self.steps += 1;
        let correction = [config.adam_beta1, config.adam_beta2].map(|beta| 1.0 - beta.powi(self.steps));
        model.map(&mut Update { path: ParamPath::default(), state: self, gradients, config, scale, lr, correction })
    }

    /// Writes the moments and the step count.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let entry = |name: String, values: &Tensor<1>| {
            let values = values.clone();
            Entry { name, shape: values.dims().to_vec(), values: Box::new(move || values.clone().into_data()) }
        };
        let mut entries: Vec<Entry> = (self.moments.iter())
            .flat_map(|(name, [m, v])| [entry(format!("{name}.exp_avg"), m), entry(format!("{name}.exp_avg_sq"), v)])
            .collect();
        let steps = self.steps as f32;
        entries.push(Entry { name: STEPS.to_string(), shape: vec![1], values: Box::new(move || [steps].into()) });
        tensors::write(path, Dtype::F32, &entries)
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// A missing, cut or foreign file.
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

struct Update<'a> {
    path: ParamPath,
    state: &'a mut AdamW,
    gradients: Gradients,
    config: &'a OptimConfig,
    scale: f64,
    lr: f64,
    correction: [f64; 2],
}

impl ModuleMapper for Update<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        let Some(gradient) = self.gradients.0.remove(&name) else { return param };
        let gradient = gradient.mul_scalar(self.scale);
        let (beta1, beta2) = (self.config.adam_beta1, self.config.adam_beta2);
        let [m, v] = self.state.moments.remove(&name).unwrap_or_else(|| [gradient.zeros_like(), gradient.zeros_like()]);
        let m = m.mul_scalar(beta1) + gradient.clone().mul_scalar(1.0 - beta1);
        let v = v.mul_scalar(beta2) + gradient.powi_scalar(2).mul_scalar(1.0 - beta2);
        let denominator = v.clone().div_scalar(self.correction[1]).sqrt().add_scalar(self.config.adam_epsilon);
        let step = m.clone().mul_scalar(self.lr / self.correction[0]) / denominator;
        self.state.moments.insert(name, [m, v]);
        let decay = if D > 1 { self.lr * self.config.weight_decay } else { 0.0 };
        param.map(|value| {
            let shape = value.shape();
            let inner = value.inner();
            let inner = if decay > 0.0 { inner.mul_scalar(1.0 - decay) } else { inner };
            Tensor::from_inner(inner - step.reshape(shape)).require_grad()
        })
    }
}
