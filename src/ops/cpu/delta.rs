//! The gated delta rule (arXiv 2412.06464), multi-threaded, with a hand-written backward pass.
//!
//! The state of a head is a matrix, `[key_dim, value_dim]`, whose columns are independent. A task is one head of one
//! sequence. It runs over the tokens once per block of columns, whose state stays in the L1 cache. The backward pass
//! stores the state every [`TOKENS`] tokens and recomputes the states in between.

#![allow(missing_docs, reason = "the extension macro generates items that cannot carry documentation")]
#![allow(clippy::too_many_arguments, reason = "the extension macro wants tensors one by one")]

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{Primitive, tensor, values, values_mut};
use crate::ops::delta::{DeltaHeads, DeltaInputs, StateMove};

/// Columns of a state that are computed together.
const COLUMNS: usize = 32;
/// Tokens between the states that the backward pass stores.
const TOKENS: usize = 32;

/// A block of columns of a row of the state.
type StateColumns = [f32; COLUMNS];

#[backend_extension(Flex, Autodiff)]
pub(crate) trait CpuDelta: Backend {
    fn op_delta_rule(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        lengths: Vec<usize>,
        heads: DeltaHeads,
    ) -> FloatTensor<Self>;
}

#[backend_extension(Flex)]
pub(crate) trait CpuDeltaCached: Backend {
    fn op_delta_cached(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        table: FloatTensor<Self>,
        lengths: Vec<usize>,
        moves: Vec<StateMove>,
        heads: DeltaHeads,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

pub(in crate::ops) fn delta_rule(inputs: DeltaInputs, lengths: &[usize], heads: DeltaHeads) -> Tensor<2> {
    let [q, k, v, decay, beta] = inputs.into_array().map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as CpuDelta>::op_delta_rule(q, k, v, decay, beta, lengths.to_vec(), heads))
}

pub(in crate::ops) fn delta_rule_cached(
    inputs: DeltaInputs,
    table: Tensor<2>,
    lengths: &[usize],
    moves: &[StateMove],
    heads: DeltaHeads,
) -> (Tensor<2>, Tensor<2>) {
    let [q, k, v, decay, beta] = inputs.into_array().map(Tensor::into_dispatch);
    let (table, lengths, moves) = (table.into_dispatch(), lengths.to_vec(), moves.to_vec());
    let (out, table) =
        <Dispatch as CpuDeltaCached>::op_delta_cached(q, k, v, decay, beta, table, lengths, moves, heads);
    (Tensor::from_dispatch(out), Tensor::from_dispatch(table))
}

/// Inputs of all heads and sequences, as in [`DeltaInputs`].
#[derive(Clone, Copy)]
struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    decay: &'a [f32],
    beta: &'a [f32],
    heads: DeltaHeads,
}

/// One value head of one sequence.
#[derive(Clone, Copy)]
struct ValueHead<'a> {
    inputs: Inputs<'a>,
    /// First row of the sequence.
    first: usize,
    length: usize,
    head: usize,
}

impl<'a> Inputs<'a> {
    /// List the value heads, sequence by sequence and head by head.
    fn value_heads(self, lengths: &[usize]) -> Vec<ValueHead<'a>> {
        let mut first = 0;
        let mut value_heads = Vec::with_capacity(lengths.len() * self.heads.values);
        for &length in lengths {
            value_heads.extend((0..self.heads.values).map(|head| ValueHead { inputs: self, first, length, head }));
            first += length;
        }
        value_heads
    }
}

impl ValueHead<'_> {
    fn key_row<'b>(&self, x: &'b [f32], t: usize) -> &'b [f32] {
        let heads = self.inputs.heads;
        let row = (self.first + t) * heads.keys + self.head / heads.group();
        &x[row * heads.key_dim..][..heads.key_dim]
    }

    fn scalar(&self, x: &[f32], t: usize) -> f32 {
        x[(self.first + t) * self.inputs.heads.values + self.head]
    }

    /// Copy columns from `from` on of this head's part of `[rows, values · value_dim]`, with zeros beyond the last.
    fn columns(&self, x: &[f32], t: usize, from: usize) -> StateColumns {
        let heads = self.inputs.heads;
        let start = ((self.first + t) * heads.values + self.head) * heads.value_dim;
        let source = &x[start + from..start + heads.value_dim.min(from + COLUMNS)];
        let mut row = [0.0; COLUMNS];
        row[..source.len()].copy_from_slice(source);
        row
    }

    /// Run token `t` of the recurrence. Return the prediction error `v − Sᵀ k` and the output.
    #[inline(always)]
    fn step(&self, state: &mut [StateColumns], t: usize, from: usize) -> (StateColumns, StateColumns) {
        let Inputs { q, k, v, decay, beta, .. } = self.inputs;
        let (alpha, beta) = (self.scalar(decay, t).exp(), self.scalar(beta, t));
        let (q, k, v) = (self.key_row(q, t), self.key_row(k, t), self.columns(v, t, from));
        let mut known = [0.0; COLUMNS];
        for (row, &k) in state.iter_mut().zip(k) {
            for j in 0..COLUMNS {
                row[j] *= alpha;
                known[j] = row[j].mul_add(k, known[j]);
            }
        }
        let (mut error, mut update, mut out) = (known, known, [0.0; COLUMNS]);
        for j in 0..COLUMNS {
            error[j] = v[j] - known[j];
            update[j] = beta * error[j];
        }
        for ((row, &k), &q) in state.iter_mut().zip(k).zip(q) {
            for j in 0..COLUMNS {
                row[j] = update[j].mul_add(k, row[j]);
                out[j] = row[j].mul_add(q, out[j]);
            }
        }
        (error, out)
    }

    /// Return the outputs, `[length, value_dim]`. Start from `state` and update it, or start from zeros if `None`.
    fn forward(&self, mut state: Option<&mut [f32]>) -> Vec<f32> {
        let DeltaHeads { key_dim, value_dim, .. } = self.inputs.heads;
        let mut outputs = vec![0.0; self.length * value_dim];
        let mut columns = vec![[0.0; COLUMNS]; key_dim];
        for from in (0..value_dim).step_by(COLUMNS) {
            let width = COLUMNS.min(value_dim - from);
            match &state {
                Some(state) => (columns.iter_mut().zip(state.chunks_exact(value_dim)))
                    .for_each(|(row, state)| row[..width].copy_from_slice(&state[from..from + width])),
                None => columns.fill([0.0; COLUMNS]),
            }
            for t in 0..self.length {
                let (_, out) = self.step(&mut columns, t, from);
                outputs[t * value_dim + from..][..width].copy_from_slice(&out[..width]);
            }
            if let Some(state) = &mut state {
                (columns.iter().zip(state.chunks_exact_mut(value_dim)))
                    .for_each(|(row, state)| state[from..from + width].copy_from_slice(&row[..width]));
            }
        }
        outputs
    }

    fn backward(&self, upstream: &[f32]) -> HeadGradients {
        let DeltaHeads { key_dim, value_dim, .. } = self.inputs.heads;
        let mut grads = HeadGradients::new(self.length, key_dim, value_dim);
        let mut after = vec![[0.0; COLUMNS]; TOKENS * key_dim];
        let mut error = [[0.0; COLUMNS]; TOKENS];
        for from in (0..value_dim).step_by(COLUMNS) {
            let mut state = vec![[0.0; COLUMNS]; key_dim];
            let mut kept = Vec::with_capacity(self.length.div_ceil(TOKENS) * key_dim);
            for t in 0..self.length {
                if t % TOKENS == 0 {
                    kept.extend_from_slice(&state);
                }
                self.step(&mut state, t, from);
            }
            let mut dstate = vec![[0.0; COLUMNS]; key_dim];
            for (chunk, kept) in kept.chunks_exact(key_dim).enumerate().rev() {
                let first = chunk * TOKENS;
                let count = TOKENS.min(self.length - first);
                state.copy_from_slice(kept);
                for i in 0..count {
                    error[i] = self.step(&mut state, first + i, from).0;
                    after[i * key_dim..(i + 1) * key_dim].copy_from_slice(&state);
                }
                for i in (0..count).rev() {
                    let before = if i == 0 { kept } else { &after[(i - 1) * key_dim..i * key_dim] };
                    let states = [before, &after[i * key_dim..(i + 1) * key_dim]];
                    let dout = self.columns(upstream, first + i, from);
                    self.step_backward(first + i, from, states, [&error[i], &dout], &mut dstate, &mut grads);
                }
            }
        }
        grads
    }

    /// Gradients of [`Self::step`]. `dstate` is the gradient of the state after the token, and becomes that before it.
    fn step_backward(
        &self,
        t: usize,
        from: usize,
        [before, after]: [&[StateColumns]; 2],
        [error, dout]: [&StateColumns; 2],
        dstate: &mut [StateColumns],
        grads: &mut HeadGradients,
    ) {
        let DeltaHeads { key_dim, value_dim, .. } = self.inputs.heads;
        let (alpha, beta) = (self.scalar(self.inputs.decay, t).exp(), self.scalar(self.inputs.beta, t));
        let (q, k) = (self.key_row(self.inputs.q, t), self.key_row(self.inputs.k, t));
        let (dq, dk) = (&mut grads.q[t * key_dim..][..key_dim], &mut grads.k[t * key_dim..][..key_dim]);
        let mut dupdate = [0.0; COLUMNS];
        for i in 0..key_dim {
            let mut read = [0.0; COLUMNS];
            for j in 0..COLUMNS {
                dstate[i][j] = dout[j].mul_add(q[i], dstate[i][j]);
                read[j] = dout[j] * after[i][j];
                dupdate[j] = dstate[i][j].mul_add(k[i], dupdate[j]);
            }
            dq[i] += sum(&read);
        }
        let (mut dbeta, mut dvalue, mut update) = ([0.0; COLUMNS], [0.0; COLUMNS], [0.0; COLUMNS]);
        for j in 0..COLUMNS {
            dbeta[j] = dupdate[j] * error[j];
            dvalue[j] = beta * dupdate[j];
            update[j] = beta * error[j];
        }
        grads.beta[t] += sum(&dbeta);
        let width = COLUMNS.min(value_dim - from);
        grads.v[t * value_dim + from..][..width].copy_from_slice(&dvalue[..width]);
        let mut ddecay = [0.0; COLUMNS];
        for i in 0..key_dim {
            let mut both = [0.0; COLUMNS];
            for j in 0..COLUMNS {
                let prior = alpha * before[i][j];
                both[j] = update[j].mul_add(dstate[i][j], -dvalue[j] * prior);
                let dprior = dstate[i][j] - dvalue[j] * k[i];
                ddecay[j] = dprior.mul_add(prior, ddecay[j]);
                dstate[i][j] = alpha * dprior;
            }
            dk[i] += sum(&both);
        }
        grads.decay[t] += sum(&ddecay);
    }
}

/// Sum in an order that vectorises.
#[inline(always)]
fn sum(row: &StateColumns) -> f32 {
    let mut lanes = [0.0f32; 8];
    for part in row.chunks_exact(8) {
        lanes.iter_mut().zip(part).for_each(|(lane, x)| *lane += x);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Gradients of the inputs of a [`ValueHead`].
struct HeadGradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    decay: Vec<f32>,
    beta: Vec<f32>,
}

impl HeadGradients {
    fn new(length: usize, key_dim: usize, value_dim: usize) -> Self {
        let zeros = |width| vec![0.0; length * width];
        Self { q: zeros(key_dim), k: zeros(key_dim), v: zeros(value_dim), decay: zeros(1), beta: zeros(1) }
    }
}

/// Combine `[length, dim]` of each head to `[rows, heads · dim]`, adding up `group` neighbouring heads.
fn assemble<'a>(heads: &[ValueHead], of: impl Fn(usize) -> &'a [f32], group: usize, dim: usize) -> Vec<f32> {
    let (rows, all) = heads.last().map_or((0, 0), |head| (head.first + head.length, head.inputs.heads.values));
    let width = all / group * dim;
    let mut out = vec![0.0; rows * width];
    for (index, head) in heads.iter().enumerate() {
        let place = head.head / group * dim;
        for (t, row) in of(index).chunks_exact(dim).enumerate() {
            let out = &mut out[(head.first + t) * width + place..][..dim];
            out.iter_mut().zip(row).for_each(|(out, x)| *out += x);
        }
    }
    out
}

fn forward(inputs: Inputs, lengths: &[usize]) -> Vec<f32> {
    let value_heads = inputs.value_heads(lengths);
    let outputs: Vec<Vec<f32>> = value_heads.par_iter().map(|head| head.forward(None)).collect();
    assemble(&value_heads, |head| &outputs[head], 1, inputs.heads.value_dim)
}

/// Gradients in the order of [`DeltaInputs::into_array`].
fn backward(inputs: Inputs, lengths: &[usize], upstream: &[f32]) -> [Vec<f32>; 5] {
    let (value_heads, heads) = (inputs.value_heads(lengths), inputs.heads);
    let grads: Vec<HeadGradients> = value_heads.par_iter().map(|head| head.backward(upstream)).collect();
    [
        assemble(&value_heads, |head| &grads[head].q, heads.group(), heads.key_dim),
        assemble(&value_heads, |head| &grads[head].k, heads.group(), heads.key_dim),
        assemble(&value_heads, |head| &grads[head].v, 1, heads.value_dim),
        assemble(&value_heads, |head| &grads[head].decay, 1, 1),
        assemble(&value_heads, |head| &grads[head].beta, 1, 1),
    ]
}

/// [`forward`] from and to the states in `table` that `moves` gives. Of several sequences that end in the same row
/// (padding), only the first is computed.
fn cached(inputs: Inputs, table: &mut [f32], lengths: &[usize], moves: &[StateMove]) -> Vec<f32> {
    let (size, value_heads) = (inputs.heads.state(), inputs.value_heads(lengths));
    for &StateMove { from, to } in moves {
        match from {
            Some(from) if from == to => {}
            Some(from) => table.copy_within(from * size..(from + 1) * size, to * size),
            None => table[to * size..(to + 1) * size].fill(0.0),
        }
    }
    let mut rows: Vec<Option<&mut [f32]>> = table.chunks_exact_mut(size).map(Some).collect();
    let states = moves.iter().flat_map(|step| {
        let heads = rows[step.to].take().map(|row| row.chunks_exact_mut(size / inputs.heads.values));
        let mut heads = heads.into_iter().flatten();
        (0..inputs.heads.values).map(move |_| heads.next()).collect::<Vec<_>>()
    });
    let tasks: Vec<(&ValueHead, Option<&mut [f32]>)> = value_heads.iter().zip(states).collect();
    let outputs: Vec<Vec<f32>> = (tasks.into_par_iter())
        .map(|(head, state)| match state {
            Some(state) => head.forward(Some(state)),
            None => vec![0.0; head.length * inputs.heads.value_dim],
        })
        .collect();
    assemble(&value_heads, |head| &outputs[head], 1, inputs.heads.value_dim)
}

/// View contiguous tensors as inputs.
fn read<'a>([q, k, v, decay, beta]: [&'a Primitive; 5], heads: DeltaHeads) -> Inputs<'a> {
    Inputs { q: values!(q), k: values!(k), v: values!(v), decay: values!(decay), beta: values!(beta), heads }
}

impl CpuDelta for Flex {
    fn op_delta_rule(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        lengths: Vec<usize>,
        heads: DeltaHeads,
    ) -> FloatTensor<Self> {
        let inputs = [q, k, v, decay, beta].map(|x| x.to_contiguous());
        tensor(forward(read(inputs.each_ref(), heads), &lengths), inputs[2].shape())
    }
}

impl CpuDeltaCached for Flex {
    fn op_delta_cached(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        mut table: FloatTensor<Self>,
        lengths: Vec<usize>,
        moves: Vec<StateMove>,
        heads: DeltaHeads,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let inputs = [q, k, v, decay, beta].map(|x| x.to_contiguous());
        let out = cached(read(inputs.each_ref(), heads), values_mut!(&mut table, f32), &lengths, &moves);
        (tensor(out, inputs[2].shape()), table)
    }
}

#[derive(Debug)]
struct DeltaStep;

impl Backward<Flex, 5> for DeltaStep {
    type State = ([Primitive; 5], Vec<usize>, DeltaHeads);

    fn backward(self, ops: Ops<Self::State, 5>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (inputs, lengths, heads) = ops.state;
        let gradients = backward(read(inputs.each_ref(), heads), &lengths, values!(&upstream));
        for ((node, gradient), like) in ops.parents.into_iter().zip(gradients).zip(&inputs) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, like.shape()));
            }
        }
    }
}

impl<C: CheckpointStrategy> CpuDelta for Autodiff<Flex, C> {
    fn op_delta_rule(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        decay: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        lengths: Vec<usize>,
        heads: DeltaHeads,
    ) -> FloatTensor<Self> {
        let [(q, q_guard), (k, k_guard), (v, v_guard), (decay, decay_guard), (beta, beta_guard)] =
            [q, k, v, decay, beta].map(|x| x.into_parts());
        let inputs = [q, k, v, decay, beta].map(|x| x.to_contiguous());
        let value = tensor(forward(read(inputs.each_ref(), heads), &lengths), inputs[2].shape());
        let guards = [q_guard, k_guard, v_guard, decay_guard, beta_guard];
        match DeltaStep.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inputs, lengths, heads), value),
            OpsKind::UnTracked(prep) => prep.finish(value),
        }
    }
}
