//! Model parameters by their checkpoint names.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use rayon::prelude::*;

use super::{CausalLm, ModelConfig, Precision};
use crate::model::tensors::TensorEntry;
use crate::noise::{Stream, mix_text};
use crate::ops;

/// The dotted name of the module being visited.
#[derive(Debug, Default)]
pub(crate) struct ParamPath(Vec<String>);

impl ParamPath {
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

/// Vectors that 16-bit checkpoints keep in f32; the decay of a recurrent state is an exponential of `A_log`.
const EXACT: [&str; 2] = [".linear_attn.A_log", ".linear_attn.norm.weight"];

/// Prefix of every tensor name in a PEFT file.
pub(super) const ADAPTER: &str = "base_model.model.";

/// Return a parameter's name in a checkpoint, and whether the checkpoint has its transpose: Burn stores a `Linear`
/// weight as `[input, output]`. The two matrices of a LoRA adapter have PEFT's names.
fn stored(path: &str) -> (String, bool) {
    for (factor, suffix) in [("A", ".weight.lora.a"), ("B", ".weight.lora.b")] {
        if let Some(module) = path.strip_suffix(suffix) {
            return (format!("{ADAPTER}{module}.lora_{factor}.weight"), true);
        }
    }
    let linear = ["_proj.weight", "_proj_qkv.weight", "_proj_z.weight", "_proj_b.weight", "_proj_a.weight"];
    (path.to_string(), linear.iter().any(|end| path.ends_with(end)) || path == "lm_head.weight")
}

/// Return all parameters by checkpoint name, in the checkpoint's orientation; values are fetched one by one.
pub(super) fn entries(model: &CausalLm) -> Vec<TensorEntry> {
    struct Entries(ParamPath, Vec<TensorEntry>);
    impl ModuleVisitor for Entries {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let (name, transposed) = stored(&self.0.name());
            let value = if transposed { param.val().swap_dims(D - 2, D - 1) } else { param.val() };
            let shape = value.dims().to_vec();
            self.1.push(TensorEntry {
                exact: EXACT.iter().any(|end| name.ends_with(end)),
                name,
                shape,
                values: Box::new(move || value.clone().cast(FloatDType::F32).into_data()),
            });
        }
    }
    let mut entries = Entries(ParamPath::default(), Vec::new());
    model.visit(&mut entries);
    entries.1
}

/// Return checkpoint names and shapes of all parameters, in the checkpoint's orientation.
pub fn names(model: &CausalLm) -> BTreeMap<String, Vec<usize>> {
    struct Names(ParamPath, BTreeMap<String, Vec<usize>>);
    impl ModuleVisitor for Names {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let mut shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
            let (name, transposed) = stored(&self.0.name());
            if transposed {
                shape.reverse();
            }
            self.1.insert(name, shape);
        }
    }
    let mut names = Names(ParamPath::default(), BTreeMap::new());
    model.visit(&mut names);
    names.1
}

/// Number format in which the matrices of a model are kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightFormat {
    /// One format.
    As(FloatDType),
    /// bf16 if that holds all values of a matrix exactly, as for most published checkpoints; else f32.
    Exactly,
}

impl WeightFormat {
    /// Return the format for a model that is not trained: the one that products read. On the `cpu` device, products of
    /// f32 read bf16 as well.
    fn for_products(precision: Precision, device: &Device) -> Self {
        match precision {
            Precision::F32 if ops::is_host(device) => Self::Exactly,
            _ => Self::As(precision.stored()),
        }
    }

    /// Return the format for a model that is trained if `device` has autodiff, in f32, and is not trained otherwise.
    pub(super) fn on(precision: Precision, device: &Device) -> Self {
        if device.is_autodiff() { Self::As(FloatDType::F32) } else { Self::for_products(precision, device) }
    }

    /// Return the format of matrices below adapters: as products read them on the `cpu` device, elsewhere f32.
    pub(super) fn below_adapters(precision: Precision, device: &Device) -> Self {
        if ops::is_host(device) { Self::for_products(precision, device) } else { Self::As(FloatDType::F32) }
    }

    fn format(self, data: &TensorData) -> FloatDType {
        let is_short = |x: &f32| x.to_bits() & 0xffff == 0;
        match self {
            Self::As(format) => format,
            Self::Exactly if data.as_slice::<f32>().is_ok_and(|values| values.iter().all(is_short)) => FloatDType::BF16,
            Self::Exactly => FloatDType::F32,
        }
    }
}

/// Replace parameters by `value(name, shape)`, data in the checkpoint's orientation; those without a value stay.
/// `held` applies to matrices; vectors (norms and biases) and convolutions are in f32.
pub(super) fn replace(
    model: CausalLm,
    held: WeightFormat,
    value: impl FnMut(&str, &[usize]) -> Option<TensorData>,
) -> CausalLm {
    struct Replace<F>(ParamPath, WeightFormat, F);
    impl<F: FnMut(&str, &[usize]) -> Option<TensorData>> ModuleMapper for Replace<F> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (name, transposed) = stored(&self.0.name());
            let device = param.lazy_device();
            let mut shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
            if transposed {
                shape.reverse();
            }
            let Some(data) = (self.2)(&name, &shape) else { return param };
            let format = if D != 2 { FloatDType::F32 } else { self.1.format(&data) };
            let tensor = Tensor::<D>::from_data(data, &device);
            let tensor = if transposed { contiguous(tensor.swap_dims(D - 2, D - 1)) } else { tensor };
            Param::from_tensor(tensor.cast(format))
        }
    }
    model.map(&mut Replace(ParamPath::default(), held, value))
}

/// Convert matrices to `dtype` for inference; vectors (norms, biases), convolutions and adapters stay in f32.
pub(super) fn cast(model: CausalLm, dtype: FloatDType) -> CausalLm {
    struct Cast(ParamPath, FloatDType);
    impl ModuleMapper for Cast {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let keep = D != 2 || stored(&self.0.name()).0.starts_with(ADAPTER);
            if keep { param } else { param.map(|value| value.cast(self.1)) }
        }
    }
    model.map(&mut Cast(ParamPath::default(), dtype))
}

/// Return a contiguous copy.
fn contiguous<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    let device = tensor.device();
    Tensor::from_data(tensor.into_data(), &device)
}

/// Initialise the weights: normal with the configuration's standard deviation, norms as the identity, biases zero.
/// Projections back into the residual stream are scaled by `1 / √(2 · layers)` (GPT-2). The values are a function of
/// the seed and the parameter's name only.
pub(super) fn initialise(model: CausalLm, config: &ModelConfig, held: WeightFormat, seed: u64) -> CausalLm {
    let (deviation, layers) = (config.initializer_range, config.num_hidden_layers);
    let norm = if config.has_unit_norms() { 0.0 } else { 1.0 };
    replace(model, held, |name, shape| {
        let count = shape.iter().product();
        let uniform = || {
            let mut random = Stream::new(&[seed, mix_text(name)]);
            move || random.unit()
        };
        let values: Vec<f32> = if name.ends_with("linear_attn.norm.weight") || name.ends_with(".dt_bias") {
            vec![1.0; count]
        } else if name.ends_with("norm.weight") {
            vec![norm; count]
        } else if name.ends_with(".A_log") {
            let mut random = uniform();
            (0..count).map(|_| (0.01 + 15.99 * random()).ln() as f32).collect()
        } else if name.ends_with(".conv1d.weight") {
            // As in PyTorch: uniform within `±1/√taps`.
            let (mut random, bound) = (uniform(), 1.0 / (shape[2] as f64).sqrt());
            (0..count).map(|_| ((2.0 * random() - 1.0) * bound) as f32).collect()
        } else if name.ends_with(".bias") {
            vec![0.0; count]
        } else {
            let residual =
                ["o_proj.weight", "out_proj.weight", "down_proj.weight"].iter().any(|end| name.ends_with(end));
            let scale = if residual { deviation / (2.0 * layers as f64).sqrt() } else { deviation };
            normals(&Stream::new(&[seed, mix_text(name)]), count, scale)
        };
        Some(TensorData::new(values, shape.to_vec()))
    })
}

/// Return normal numbers of the given standard deviation, in the order of the stream.
fn normals(stream: &Stream, count: usize, deviation: f64) -> Vec<f32> {
    const PART: usize = 1 << 14;
    let mut values = vec![0.0; count];
    values.par_chunks_mut(PART).enumerate().for_each(|(part, values)| {
        // Two draws for each number.
        let mut random = stream.skip((2 * part * PART) as u64);
        values.fill_with(|| (normal(&mut random) * deviation) as f32);
    });
    values
}

/// Return a standard normal number (Box–Muller).
fn normal(random: &mut Stream) -> f64 {
    let (u, v) = (1.0 - random.unit(), random.unit());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
