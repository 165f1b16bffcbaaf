//! Gated DeltaNet (arXiv 2412.06464), in three of four layers of Qwen 3.5: a short convolution, a recurrence whose
//! state is a matrix per head, and a gated norm.

#![allow(non_snake_case, reason = "names of checkpoints")]

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::{log_sigmoid, sigmoid};
use burn::tensor::{Device, FloatDType, Tensor};
use serde_json::Value;

use super::attention::Rows;
use super::norm::RmsNorm;
use super::{KvCache, ModelConfig};
use crate::ops;
use crate::ops::delta::{DeltaHeads, DeltaInputs, causal_conv, delta_rule};

/// Names in `layer_types` of a layer with this recurrence, and of one with attention.
const LINEAR: &str = "linear_attention";
const FULL: &str = "full_attention";
/// Default interval of layers with attention.
const INTERVAL: u64 = 4;
/// Added to the sum of squares when queries and keys are normalised.
const EPSILON: f64 = 1e-6;

/// Keys of the sizes of the recurrence, with the defaults of transformers.
const SIZES: [(&str, u64); 5] = [
    ("linear_num_key_heads", 16),
    ("linear_num_value_heads", 32),
    ("linear_key_head_dim", 128),
    ("linear_value_head_dim", 128),
    ("linear_conv_kernel_dim", 4),
];

impl ModelConfig {
    /// Return the heads of the recurrence and the taps of its convolution; `None` in a family without recurrences.
    pub(crate) fn delta(&self) -> Option<(DeltaHeads, usize)> {
        self.family().filter(|family| family.delta)?;
        let size = |(key, default): (&str, u64)| self.rest.get(key).and_then(Value::as_u64).unwrap_or(default) as usize;
        let [keys, values, key_dim, value_dim, taps] = SIZES.map(size);
        Some((DeltaHeads { keys, values, key_dim, value_dim }, taps))
    }

    /// Return whether a layer has the recurrence in place of attention.
    pub(crate) fn is_recurrent(&self, layer: usize) -> bool {
        if !self.family().is_some_and(|family| family.delta) {
            return false;
        }
        if let Some(types) = self.rest.get("layer_types").and_then(Value::as_array) {
            return types.get(layer).is_some_and(|kind| kind == LINEAR);
        }
        let interval = self.rest.get("full_attention_interval").and_then(Value::as_u64).filter(|&every| every > 0);
        !(layer as u64 + 1).is_multiple_of(interval.unwrap_or(INTERVAL))
    }

    /// Return one message per invalid key of the recurrence.
    pub(super) fn delta_mistakes(&self) -> Vec<String> {
        let Some((heads, taps)) = self.delta() else { return Vec::new() };
        let mut problems = Vec::new();
        for (key, _) in SIZES {
            let given = self.rest.get(key).filter(|value| !value.is_null());
            if let Some(value) = given.filter(|value| !value.as_u64().is_some_and(|size| (1..1 << 16).contains(&size)))
            {
                problems.push(format!("{key} = {value} must be a positive integer below 65536"));
            }
        }
        if problems.is_empty() && taps == 1 {
            problems.push("linear_conv_kernel_dim = 1 must be at least 2".to_string());
        }
        for (key, known) in [("output_gate_type", ["silu", "swish"]), ("attn_output_gate", ["true"; 2])] {
            let given = self.rest.get(key).filter(|value| !value.is_null());
            let plain = |value: &Value| value.as_str().map_or(value.to_string(), str::to_string);
            if let Some(value) = given.filter(|value| !known.contains(&plain(value).as_str())) {
                problems.push(format!("{key} = {value} is not supported (supported: {})", known[1]));
            }
        }
        if problems.is_empty() && !heads.values.is_multiple_of(heads.keys) {
            let DeltaHeads { keys, values, .. } = heads;
            problems
                .push(format!("linear_num_value_heads = {values} is not a multiple of linear_num_key_heads = {keys}"));
        }
        if let Some(types) = self.rest.get("layer_types").filter(|value| !value.is_null()) {
            let list = types.as_array().filter(|list| list.iter().all(|kind| *kind == LINEAR || *kind == FULL));
            if list.is_none_or(|list| list.len() < self.num_hidden_layers) {
                problems.push(format!("layer_types = {types} must have \"{FULL}\" or \"{LINEAR}\" for each layer"));
            }
        }
        problems
    }
}

/// Weight of a depthwise convolution.
#[derive(Module, Debug)]
pub struct Convolution {
    /// `[width, 1, taps]`.
    pub weight: Param<Tensor<3>>,
}

/// Gated delta rule in place of attention: `o = Sᵀ q`, with a state `S` that decays and is updated by every token.
#[derive(Module, Debug)]
pub struct GatedDeltaNet {
    /// Queries, keys and values before the convolution, `[hidden, 2 · keys · key_dim + values · value_dim]`.
    pub in_proj_qkv: Linear,
    /// Output gate, `[hidden, values · value_dim]`.
    pub in_proj_z: Linear,
    /// Update rates, `[hidden, values]`.
    pub in_proj_b: Linear,
    /// Decays, `[hidden, values]`.
    pub in_proj_a: Linear,
    /// Convolution over queries, keys and values.
    pub conv1d: Convolution,
    /// Added to the decays, `[values]`.
    pub dt_bias: Param<Tensor<1>>,
    /// Logarithms of the factors of the decays, `[values]`.
    pub A_log: Param<Tensor<1>>,
    /// Norm of each head's output.
    pub norm: RmsNorm,
    /// Output, `[values · value_dim, hidden]`.
    pub out_proj: Linear,
    #[module(skip)]
    heads: DeltaHeads,
}

impl GatedDeltaNet {
    /// Create the recurrence of a layer; `None` for a layer with attention.
    pub(super) fn new(config: &ModelConfig, layer: usize, device: &Device) -> Option<Self> {
        let (heads, taps) = config.delta().filter(|_| config.is_recurrent(layer))?;
        let (hidden, [q, k, v]) = (config.hidden_size, heads.widths());
        let linear = |input, output: usize| LinearConfig::new(input, output).with_bias(false).init(device);
        let vector = || Param::from_tensor(Tensor::zeros([heads.values], device));
        Some(Self {
            in_proj_qkv: linear(hidden, q + k + v),
            in_proj_z: linear(hidden, v),
            in_proj_b: linear(hidden, heads.values),
            in_proj_a: linear(hidden, heads.values),
            conv1d: Convolution { weight: Param::from_tensor(Tensor::zeros([q + k + v, 1, taps], device)) },
            dt_bias: vector(),
            A_log: vector(),
            norm: RmsNorm::plain(heads.value_dim, config.rms_norm_eps, device),
            out_proj: linear(v, hidden),
            heads,
        })
    }

    /// Mix each packed sequence with its past; with a cache, also with the tokens read before.
    ///
    /// # Shapes
    /// - x, output: `[rows, hidden]`
    pub(super) fn forward(&self, x: Tensor<2>, rows: &Rows, cache: Option<(&mut KvCache, usize)>) -> Tensor<2> {
        let ([_, _, taps], heads) = (self.conv1d.weight.lazy_shape().dims(), self.heads);
        let project = |layer| rows.precision.linear(layer, x.clone()).cast(FloatDType::F32);
        // 1. Project. 2. Convolve.
        let mixed = project(&self.in_proj_qkv);
        let taps = self.conv1d.weight.val().reshape([-1, taps as i32]);
        let (mixed, cache) = match cache {
            None => (causal_conv(mixed, taps, &rows.lengths), None),
            Some((cache, layer)) => (cache.convolve(layer, mixed, taps, &rows.lengths), Some((cache, layer))),
        };
        // 3. Normalise queries and keys to unit length, divide queries by √key_dim; compute rates and decays.
        let [q, k, v] = heads.widths();
        let unit = |from, width, scale: f64| {
            let dim = heads.key_dim;
            let weight = Tensor::<1>::ones([dim], &x.device()).mul_scalar(scale / (dim as f64).sqrt());
            let parts = mixed.clone().narrow(1, from, width).reshape([-1, dim as i32]);
            ops::rms_norm(parts, weight, EPSILON / dim as f64).reshape([-1, width as i32])
        };
        let softplus = |x: Tensor<2>| log_sigmoid(x.neg()).neg();
        let inputs = DeltaInputs {
            q: unit(0, q, 1.0 / (heads.key_dim as f64).sqrt()),
            k: unit(q, k, 1.0),
            v: mixed.clone().narrow(1, q + k, v),
            decay: softplus(project(&self.in_proj_a) + self.dt_bias.val().unsqueeze())
                * self.A_log.val().exp().neg().unsqueeze(),
            beta: sigmoid(project(&self.in_proj_b)),
        };
        // 4. Run the recurrence.
        let out = match cache {
            None => delta_rule(inputs, &rows.lengths, heads),
            Some((cache, layer)) => cache.recur(layer, inputs, &rows.lengths, heads),
        };
        // 5. Norm, gate, output.
        let gated = ops::swiglu(project(&self.in_proj_z), self.norm.parts(out));
        rows.precision.linear(&self.out_proj, gated)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(edit: Value) -> ModelConfig {
        let mut config = ModelConfig::qwen2(64, 32, 48, 8, 4, 2);
        (config.model_type, config.architectures) = ("qwen3_5_text".to_string(), Vec::new());
        config.rest.extend(edit.as_object().unwrap().clone());
        config
    }

    /// The defaults are those of transformers.
    #[test]
    fn every_fourth_layer_attends_where_the_file_does_not_say() {
        let recurrent =
            |edit: Value| (0..8).filter(|&layer| config(edit.clone()).is_recurrent(layer)).collect::<Vec<_>>();
        assert_eq!(recurrent(json!({})), [0, 1, 2, 4, 5, 6]);
        assert_eq!(recurrent(json!({"full_attention_interval": 2})), [0, 2, 4, 6]);
        let mut types = vec!["full_attention"; 8];
        types[5] = "linear_attention";
        assert_eq!(recurrent(json!({ "layer_types": types })), [5]);
        let (heads, taps) = config(json!({})).delta().unwrap();
        assert_eq!((heads, taps), (DeltaHeads { keys: 16, values: 32, key_dim: 128, value_dim: 128 }, 4));
        assert!(ModelConfig::qwen2(64, 32, 48, 8, 4, 2).delta().is_none());
    }

    #[test]
    fn sizes_and_kinds_that_cannot_be_are_named() {
        let mistakes = |edit: Value| config(edit).mistakes();
        assert_eq!(mistakes(json!({"linear_num_key_heads": null})), Vec::<String>::new());
        for value in [json!(0), json!(-2), json!("16"), json!(1u64 << 40)] {
            let found = mistakes(json!({ "linear_key_head_dim": value }));
            assert_eq!(found, [format!("linear_key_head_dim = {value} must be a positive integer below 65536")]);
        }
        assert_eq!(mistakes(json!({"linear_conv_kernel_dim": 1})), ["linear_conv_kernel_dim = 1 must be at least 2"]);
        assert!(mistakes(json!({"output_gate_type": "swish", "attn_output_gate": true})).is_empty());
        let found = mistakes(json!({"output_gate_type": "sigmoid", "attn_output_gate": false}));
        assert!(found[0].starts_with("output_gate_type") && found[1].starts_with("attn_output_gate"), "{found:?}");
        let found = mistakes(json!({"linear_num_key_heads": 3}));
        assert_eq!(found, ["linear_num_value_heads = 32 is not a multiple of linear_num_key_heads = 3"]);
        for types in [json!(["linear_attention"]), json!(vec!["sliding_attention"; 8]), json!("all")] {
            assert!(mistakes(json!({ "layer_types": types }))[0].starts_with("layer_types = "), "{types}");
        }
    }
}
