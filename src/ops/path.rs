//! The fused and the reference implementation of each operation, side by side, for benchmarks.

use burn::tensor::{FloatDType, Tensor};

use super::delta::{self, DeltaHeads, DeltaInputs};
use super::update::{AdamWStep, adamw_plain};
use super::{RowScores, cpu, plain};

type AdamWFn = fn(Tensor<1>, [Tensor<1>; 2], Tensor<1>, &AdamWStep) -> (Tensor<1>, [Tensor<1>; 2]);

/// One implementation of each operation.
#[derive(Clone, Copy)]
pub(crate) struct OpPath {
    pub rms_norm: fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>,
    pub swiglu: fn(Tensor<2>, Tensor<2>) -> Tensor<2>,
    pub swiglu_linear: fn(Tensor<2>, Tensor<2>, Tensor<2>) -> Tensor<2>,
    pub rotary: fn(Tensor<3>, Tensor<2>, Tensor<2>) -> Tensor<3>,
    pub attention: fn(Tensor<3>, Tensor<3>, Tensor<3>, &[usize]) -> Tensor<2>,
    pub scores: fn(Tensor<2>, &[u32], f32) -> RowScores,
    pub causal_conv: fn(Tensor<2>, Tensor<2>, &[usize]) -> Tensor<2>,
    pub delta_rule: fn(DeltaInputs, &[usize], DeltaHeads) -> Tensor<2>,
    pub adamw: AdamWFn,
}

/// Fused operations of the `cpu` device.
pub(crate) const FUSED: OpPath = OpPath {
    rms_norm: cpu::rms_norm,
    swiglu: cpu::swiglu,
    swiglu_linear: |gate, up, weight| {
        let bias = super::no_bias(&gate.device());
        cpu::swiglu_linear(gate, up, weight, bias)
    },
    rotary: cpu::rotary,
    attention: |q, k, v, lengths| cpu::attention(q, k, v, lengths, None),
    scores: cpu::scores,
    causal_conv: cpu::causal_conv,
    delta_rule: cpu::delta_rule,
    adamw: |value, moments, gradient, step| cpu::adamw(value, moments, gradient, *step),
};

/// Compositions of tensor operations, on any device.
pub(crate) const PLAIN: OpPath = OpPath {
    rms_norm: plain::rms_norm,
    swiglu: plain::swiglu,
    swiglu_linear: |gate, up, weight| burn::tensor::module::linear(plain::swiglu(gate, up), weight, None),
    rotary: plain::rotary,
    attention: |q, k, v, lengths| plain::attention(q, k, v, lengths, None, FloatDType::F32),
    scores: plain::scores,
    causal_conv: delta::conv_plain,
    delta_rule: |inputs, lengths, heads| delta::in_chunks(inputs, lengths, heads, None).0,
    adamw: adamw_plain,
};
