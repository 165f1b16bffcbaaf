//! Per-sequence state of a layer with a recurrence, in tables with one row per slot of the cache: the last inputs of
//! its convolution, and its recurrent state.

use burn::tensor::{Device, FloatDType, Tensor};

use super::ModelConfig;
use crate::ops::delta::{DeltaHeads, DeltaInputs, StateMove, causal_conv, delta_rule_cached, put_rows, states_of};
use crate::ops::{self, take_rows};

/// State tables of a layer.
#[derive(Debug)]
pub(super) struct States {
    /// `[slots, (taps − 1) · width]`.
    inputs: Tensor<2>,
    /// `[slots, values · key_dim · value_dim]`.
    states: Tensor<2>,
}

/// Return the elements that a layer keeps per sequence: inputs of the convolution, and the state.
pub(super) fn numbers(config: &ModelConfig) -> [usize; 2] {
    config.delta().map_or([0, 0], |(heads, taps)| [(taps - 1) * heads.widths().iter().sum::<usize>(), heads.state()])
}

impl States {
    /// Create tables of zeros, in f32 whatever the format of keys and values.
    pub(super) fn new(config: &ModelConfig, slots: usize, device: &Device) -> Self {
        let table = |width| ops::zeros(slots * width, FloatDType::F32, device).reshape([slots, width]);
        let [inputs, states] = numbers(config).map(table);
        Self { inputs, states }
    }

    /// Apply [`causal_conv`] to the announced tokens, after the earlier tokens of their sequences.
    pub(super) fn convolve(
        &mut self,
        x: Tensor<2>,
        weight: Tensor<2>,
        lengths: &[usize],
        moves: &[StateMove],
    ) -> Tensor<2> {
        let ([_, width], [_, taps], device) = (x.dims(), weight.dims(), x.device());
        let (count, kept) = (moves.len(), (taps - 1) * width);
        let Some(before) = states_of(&self.inputs, moves) else {
            let rows = last_rows(&x, lengths, taps - 1);
            self.inputs.inplace(|table| put_rows(table, moves, rows, &device));
            return causal_conv(x, weight, lengths);
        };
        assert_eq!(x.dims()[0], count, "one new token for each sequence");
        let both = Tensor::cat(vec![before, x], 1);
        let rows = both.clone().narrow(1, width, kept);
        self.inputs.inplace(|table| put_rows(table, moves, rows, &device));
        let all = causal_conv(both.reshape([count * taps, width]), weight, &vec![taps; count]);
        take_rows(all, &(0..count).map(|sequence| sequence * taps + taps - 1).collect::<Vec<_>>())
    }

    /// Apply the recurrence to the announced tokens.
    pub(super) fn recur(
        &mut self,
        inputs: DeltaInputs,
        lengths: &[usize],
        moves: &[StateMove],
        heads: DeltaHeads,
    ) -> Tensor<2> {
        let mut out = None;
        self.states.inplace(|table| {
            let (rows, table) = delta_rule_cached(inputs, table, lengths, moves, heads);
            out = Some(rows);
            table
        });
        out.expect("the table was visited")
    }
}

/// Return the last `count` rows of each sequence, padded with zeros in front, `[sequences, count · width]`.
fn last_rows(x: &Tensor<2>, lengths: &[usize], count: usize) -> Tensor<2> {
    let ([rows, width], device) = (x.dims(), x.device());
    let mut end = 0;
    let mut from = Vec::with_capacity(lengths.len() * count);
    for &length in lengths {
        end += length;
        from.extend((1..=count).rev().map(|back| if back <= length { end - back } else { rows }));
    }
    let padded = Tensor::cat(vec![x.clone(), Tensor::zeros([1, width], &device)], 0);
    take_rows(padded, &from).reshape([lengths.len(), count * width])
}
