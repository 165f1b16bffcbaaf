//! Parameters by their checkpoint names.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};

use super::CausalLm;
use crate::noise::{Stream, mix_text};

/// The dotted name of the module being visited.
#[derive(Debug, Default)]
pub(crate) struct Path(Vec<String>);

impl Path {
    pub(crate) fn enter(&mut self, name: &str) {
        self.0.push(name.to_string());
    }

    pub(crate) fn exit(&mut self) {
        self.0.pop();
    }

    pub(crate) fn name(&self) -> String {
        self.0.join(".")
    }
}

/// Whether a parameter is a `Linear` weight, which Burn keeps as `[input, output]` and checkpoints as the transpose.
pub(super) fn is_transposed(name: &str) -> bool {
    name.ends_with("_proj.weight") || name == "lm_head.weight"
}

/// Every parameter as f32 data under its checkpoint name, in the checkpoint's orientation.
pub fn collect(model: &CausalLm) -> BTreeMap<String, TensorData> {
    struct Collect(Path, BTreeMap<String, TensorData>);
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = self.0.name();
            let value = if is_transposed(&name) { param.val().swap_dims(D - 2, D - 1) } else { param.val() };
            self.1.insert(name, value.into_data());
        }
    }
    let mut collect = Collect(Path::default(), BTreeMap::new());
    model.visit(&mut collect);
    collect.1
}

/// Checkpoint names and shapes of all parameters, in the checkpoint's orientation.
pub fn names(model: &CausalLm) -> BTreeMap<String, Vec<usize>> {
    struct Names(Path, BTreeMap<String, Vec<usize>>);
    impl ModuleVisitor for Names {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let mut shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
            let name = self.0.name();
            if is_transposed(&name) {
                shape.reverse();
            }
            self.1.insert(name, shape);
        }
    }
    let mut names = Names(Path::default(), BTreeMap::new());
    model.visit(&mut names);
    names.1
}

/// Replaces every parameter by `value(name, shape)`, data in the checkpoint's orientation.
pub(super) fn replace(model: CausalLm, value: impl FnMut(&str, &[usize]) -> TensorData) -> CausalLm {
    struct Replace<F>(Path, F);
    impl<F: FnMut(&str, &[usize]) -> TensorData> ModuleMapper for Replace<F> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (name, device) = (self.0.name(), param.lazy_device());
            let mut shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
            let transposed = is_transposed(&name);
            if transposed {
                shape.reverse();
            }
            let tensor = Tensor::<D>::from_data((self.1)(&name, &shape), &device);
            let tensor = if transposed { contiguous(tensor.swap_dims(D - 2, D - 1)) } else { tensor };
            Param::from_tensor(tensor)
        }
    }
    model.map(&mut Replace(Path::default(), value))
}

/// A copy whose memory order is its logical order.
fn contiguous<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    let device = tensor.device();
    Tensor::from_data(tensor.into_data(), &device)
}

/// Fresh weights: normal with the given standard deviation, norms one, biases zero; projections back into the residual
/// stream are scaled by `1 / √(2 · layers)` (GPT-2). A function of the seed and the parameter's name only.
pub(super) fn initialise(model: CausalLm, deviation: f64, layers: usize, seed: u64) -> CausalLm {
    replace(model, |name, shape| {
        let count = shape.iter().product();
        let values: Vec<f32> = if name.ends_with("norm.weight") {
            vec![1.0; count]
        } else if name.ends_with(".bias") {
            vec![0.0; count]
        } else {
            let residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            let scale = if residual { deviation / (2.0 * layers as f64).sqrt() } else { deviation };
            let mut random = Stream::new(&[seed, mix_text(name)]);
            (0..count).map(|_| (normal(&mut random) * scale) as f32).collect()
        };
        TensorData::new(values, shape.to_vec())
    })
}

/// A standard normal number (Box–Muller).
fn normal(random: &mut Stream) -> f64 {
    let (u, v) = (1.0 - random.unit(), random.unit());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
