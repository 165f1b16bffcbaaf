//! The operations on Burn's `flex` CPU backend: one pass over memory each, on all cores, with hand-written backward.
//!
//! [`kernels`] and [`attention`] are plain functions on slices; this file connects them to Burn through its
//! backend-extension mechanism. Each operation has a `Flex` form (the value) and an `Autodiff<Flex>` form (the value and
//! a backward step that recomputes what it can instead of storing it).

#![allow(missing_docs, reason = "the extension macro generates items that cannot carry documentation")]

mod attention;
mod kernels;
mod product;
mod rows;
mod scores;
mod update;

/// A tensor's values in logical order.
macro_rules! values {
    ($tensor:expr) => {{
        let tensor = $tensor;
        let (start, end) =
            (tensor.layout().start_offset(), tensor.layout().start_offset() + tensor.shape().num_elements());
        &tensor.storage::<f32>()[start..end]
    }};
}

/// The same to be written to; copies a tensor that something else holds, too.
macro_rules! values_mut {
    ($tensor:expr, $element:ty) => {{
        let tensor = $tensor;
        let (start, end) =
            (tensor.layout().start_offset(), tensor.layout().start_offset() + tensor.shape().num_elements());
        &mut tensor.storage_mut::<$element>()[start..end]
    }};
}

use {values, values_mut};

pub(crate) mod host {
    pub(crate) use super::kernels::{Softmax, exp, softmax};
}

use std::sync::Arc;

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Device, Tensor, TensorData};

use self::product::product;
use super::{Scores, Span};
#[cfg(test)]
pub(super) use update::address;
pub(super) use update::{accumulate, adamw, add_rows, sum_of_squares};

type Primitive = FloatTensor<Flex>;

/// Whether tensors on `device` are served here.
pub(super) fn serves(device: &Device) -> bool {
    static FLEX: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    device.clone().inner() == *FLEX.get_or_init(Device::flex)
}

#[backend_extension(Flex, Autodiff)]
pub(crate) trait CpuOps: Backend {
    fn op_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn op_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Vec<usize>,
    ) -> FloatTensor<Self>;
    fn op_attention_cached(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        spans: Arc<[Span]>,
    ) -> FloatTensor<Self>;
    fn op_write_rows(table: FloatTensor<Self>, rows: FloatTensor<Self>, at: Vec<usize>) -> FloatTensor<Self>;
    fn op_matmul_transposed(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_seed(x: FloatTensor<Self>, upstream: FloatTensor<Self>) -> FloatTensor<Self>;
    fn op_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self>;
}

pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let out = <Dispatch as CpuOps>::op_rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon as f32);
    Tensor::from_dispatch(out)
}

pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_swiglu(gate.into_dispatch(), up.into_dispatch()))
}

pub(super) fn rotary(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let out = <Dispatch as CpuOps>::op_rotary(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(out)
}

pub(super) fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, lengths: &[usize]) -> Tensor<2> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_attention(q, k, v, lengths.to_vec()))
}

pub(super) fn attention_cached(q: Tensor<3>, keys: Tensor<2>, values: Tensor<2>, spans: &Arc<[Span]>) -> Tensor<2> {
    let (q, keys, values) = (q.into_dispatch(), keys.into_dispatch(), values.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_attention_cached(q, keys, values, Arc::clone(spans)))
}

pub(super) fn write_rows(table: Tensor<2>, rows: Tensor<2>, at: &[usize]) -> Tensor<2> {
    let (table, rows) = (table.into_dispatch(), rows.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_write_rows(table, rows, at.to_vec()))
}

pub(super) fn matmul_transposed(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_matmul_transposed(x.into_dispatch(), weight.into_dispatch()))
}

/// An empty `bias` is none.
pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_linear(x, weight, bias.into_dispatch()))
}

pub(super) fn seed(x: Tensor<2>, upstream: Tensor<2>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as CpuOps>::op_seed(x.into_dispatch(), upstream.into_dispatch()))
}

pub(super) fn scores(logits: Tensor<2>, targets: &[u32], temperature: f32) -> Scores {
    let stacked = <Dispatch as CpuOps>::op_scores(logits.into_dispatch(), targets.to_vec(), temperature);
    let stacked = Tensor::<2>::from_dispatch(stacked);
    let figure = |k: usize| stacked.clone().slice([k..k + 1, 0..targets.len()]).reshape([targets.len()]);
    Scores {
        log_prob: figure(0),
        entropy: figure(1).detach(),
        entropy_sampling: figure(2),
        collision: figure(3).detach(),
    }
}

/// A contiguous tensor of two dimensions as a matrix.
macro_rules! matrix {
    ($tensor:expr) => {{
        let tensor = $tensor;
        let [rows, columns] = dims(tensor);
        product::Matrix::new(values!(tensor), rows, columns)
    }};
}

fn dims<const D: usize>(tensor: &Primitive) -> [usize; D] {
    tensor.shape().dims()
}

fn tensor(values: Vec<f32>, shape: impl Into<burn::tensor::Shape>) -> Primitive {
    Flex::float_from_data(TensorData::new(values, shape), &Default::default())
}

impl CpuOps for Flex {
    fn op_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        tensor(kernels::rms_norm(values!(&x), values!(&weight), epsilon), x.shape())
    }

    fn op_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        tensor(kernels::swiglu(values!(&gate), values!(&up)), gate.shape())
    }

    fn op_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, cos, sin) = (x.to_contiguous(), cos.to_contiguous(), sin.to_contiguous());
        let [_, heads, dim] = dims(&x);
        tensor(kernels::rotary(values!(&x), [values!(&cos), values!(&sin)], heads, dim / 2, 1.0), x.shape())
    }

    fn op_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Vec<usize>,
    ) -> FloatTensor<Self> {
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        let shape = attention::Heads::of(dims(&q), dims(&k));
        let out = attention::forward(values!(&q), values!(&k), values!(&v), &lengths, shape);
        let [rows, heads, dim] = dims(&q);
        tensor(out, [rows, heads * dim])
    }

    fn op_attention_cached(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        spans: Arc<[Span]>,
    ) -> FloatTensor<Self> {
        let (q, keys, values) = (q.to_contiguous(), keys.to_contiguous(), values.to_contiguous());
        let [rows, heads, dim] = dims(&q);
        let shape = attention::Heads { heads, kv_heads: keys.shape()[1] / dim, dim };
        tensor(attention::cached(values!(&q), values!(&keys), values!(&values), &spans, shape), [rows, heads * dim])
    }

    fn op_write_rows(mut table: FloatTensor<Self>, rows: FloatTensor<Self>, at: Vec<usize>) -> FloatTensor<Self> {
        let rows = rows.to_contiguous();
        let [_, width] = dims(&rows);
        assert!(table.is_contiguous() && table.layout().start_offset() == 0, "a cache table is never a view");
        let storage = table.storage_mut::<f32>();
        for (row, at) in values!(&rows).chunks_exact(width).zip(at) {
            storage[at * width..(at + 1) * width].copy_from_slice(row);
        }
        table
    }

    fn op_matmul_transposed(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let ([rows, _], [vocab, _]) = (dims(&x), dims(&weight));
        tensor(product(matrix!(&x), matrix!(&weight).transposed()), [rows, vocab])
    }

    fn op_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, weight, bias) = (x.to_contiguous(), weight.to_contiguous(), bias.to_contiguous());
        let ([rows, _], [_, width]) = (dims(&x), dims(&weight));
        let mut out = kernels::repeat(values!(&bias), rows, width);
        product::multiply(matrix!(&x), matrix!(&weight), &mut out, bias.shape()[0] > 0);
        tensor(out, [rows, width])
    }

    fn op_seed(_x: FloatTensor<Self>, _upstream: FloatTensor<Self>) -> FloatTensor<Self> {
        tensor(vec![0.0], [1])
    }

    fn op_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self> {
        let logits = logits.to_contiguous();
        let (figures, _) = scores::forward(values!(&logits), &targets, temperature);
        tensor(figures, [scores::FIGURES, targets.len()])
    }
}

#[derive(Debug)]
struct RmsNormStep;

impl Backward<Flex, 2> for RmsNormStep {
    type State = (Primitive, Primitive, f32);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, weight, epsilon) = ops.state;
        let (dx, dweight) = kernels::rms_norm_backward(values!(&x), values!(&weight), values!(&upstream), epsilon);
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, tensor(dx, x.shape()));
        }
        if let Some(node) = weight_node {
            grads.register::<Flex>(node.id, tensor(dweight, weight.shape()));
        }
    }
}

#[derive(Debug)]
struct SwigluStep;

impl Backward<Flex, 2> for SwigluStep {
    type State = (Primitive, Primitive);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (gate, up) = ops.state;
        let (dgate, dup) = kernels::swiglu_backward(values!(&gate), values!(&up), values!(&upstream));
        for (node, gradient) in ops.parents.into_iter().zip([dgate, dup]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, gate.shape()));
            }
        }
    }
}

#[derive(Debug)]
struct RotaryStep;

impl Backward<Flex, 1> for RotaryStep {
    type State = (Primitive, Primitive);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (cos, sin) = ops.state;
        let [_, heads, dim] = dims(&upstream);
        if let [Some(node)] = ops.parents {
            // The inverse of a rotation is its transpose.
            let back = kernels::rotary(values!(&upstream), [values!(&cos), values!(&sin)], heads, dim / 2, -1.0);
            grads.register::<Flex>(node.id, tensor(back, upstream.shape()));
        }
    }
}

#[derive(Debug)]
struct AttentionStep;

impl Backward<Flex, 3> for AttentionStep {
    type State = ([Primitive; 3], Vec<usize>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ([q, k, v], lengths) = ops.state;
        let shape = attention::Heads::of(dims(&q), dims(&k));
        let gradients = attention::backward(values!(&q), values!(&k), values!(&v), values!(&upstream), &lengths, shape);
        for ((node, gradient), like) in ops.parents.into_iter().zip(gradients).zip([&q, &k, &v]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, like.shape()));
            }
        }
    }
}

#[derive(Debug)]
struct MatmulTransposedStep;

impl Backward<Flex, 2> for MatmulTransposedStep {
    type State = (Primitive, Primitive);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, weight) = ops.state;
        let [x_node, weight_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<Flex>(node.id, tensor(product(matrix!(&upstream), matrix!(&weight)), x.shape()));
        }
        if let Some(node) = weight_node {
            let gradient = product(matrix!(&upstream).transposed(), matrix!(&x));
            grads.register::<Flex>(node.id, tensor(gradient, weight.shape()));
        }
    }
}

#[derive(Debug)]
struct LinearStep;

impl Backward<Flex, 3> for LinearStep {
    type State = (Primitive, Primitive);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (x, weight) = ops.state;
        let [x_node, weight_node, bias_node] = ops.parents;
        if let Some(node) = x_node {
            let gradient = product(matrix!(&upstream), matrix!(&weight).transposed());
            grads.register::<Flex>(node.id, tensor(gradient, x.shape()));
        }
        if let Some(node) = weight_node {
            let gradient = product(matrix!(&x).transposed(), matrix!(&upstream));
            grads.register::<Flex>(node.id, tensor(gradient, weight.shape()));
        }
        if let Some(node) = bias_node {
            let [_, width] = dims(&upstream);
            grads.register::<Flex>(node.id, tensor(kernels::sum_rows(values!(&upstream), width), [width]));
        }
    }
}

#[derive(Debug)]
struct SeedStep;

impl Backward<Flex, 1> for SeedStep {
    type State = Primitive;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        grads.consume::<Flex>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<Flex>(node.id, ops.state);
        }
    }
}

#[derive(Debug)]
struct ScoresStep;

impl Backward<Flex, 1> for ScoresStep {
    type State = (Primitive, Vec<u32>, f32, Vec<scores::Normaliser>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (mut logits, targets, temperature, normalisers) = ops.state;
        if let [Some(node)] = ops.parents {
            let rows = targets.len();
            let upstream = values!(&upstream);
            let figures = [&upstream[..rows], &upstream[2 * rows..3 * rows]];
            // The logits become their own gradient: nothing else holds them, or this copies them.
            scores::backward(values_mut!(&mut logits, f32), &targets, temperature, &normalisers, figures);
            grads.register::<Flex>(node.id, logits);
        }
    }
}

/// Records `$step` with `$state` when a gradient is wanted, and returns the value either way.
macro_rules! record {
    ($step:expr, $guards:expr, $state:expr, $value:expr) => {
        match $step.prepare::<C>($guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let value = $value;
                prep.finish($state, value)
            }
            OpsKind::UnTracked(prep) => prep.finish($value),
        }
    };
}

impl<C: CheckpointStrategy> CpuOps for Autodiff<Flex, C> {
    fn op_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let ((x, x_guard), (weight, weight_guard)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        record!(
            RmsNormStep,
            [x_guard, weight_guard],
            (x, weight, epsilon),
            Flex::op_rms_norm(x.clone(), weight.clone(), epsilon)
        )
    }

    fn op_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, gate_guard), (up, up_guard)) = (gate.into_parts(), up.into_parts());
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        record!(SwigluStep, [gate_guard, up_guard], (gate, up), Flex::op_swiglu(gate.clone(), up.clone()))
    }

    fn op_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, guard) = x.into_parts();
        let (cos, sin) = (cos.into_primitive().to_contiguous(), sin.into_primitive().to_contiguous());
        record!(RotaryStep, [guard], (cos, sin), Flex::op_rotary(x, cos.clone(), sin.clone()))
    }

    fn op_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        lengths: Vec<usize>,
    ) -> FloatTensor<Self> {
        let ((q, q_guard), (k, k_guard), (v, v_guard)) = (q.into_parts(), k.into_parts(), v.into_parts());
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        record!(
            AttentionStep,
            [q_guard, k_guard, v_guard],
            ([q, k, v], lengths),
            Flex::op_attention(q.clone(), k.clone(), v.clone(), lengths.clone())
        )
    }

    fn op_attention_cached(
        _q: FloatTensor<Self>,
        _keys: FloatTensor<Self>,
        _values: FloatTensor<Self>,
        _spans: Arc<[Span]>,
    ) -> FloatTensor<Self> {
        panic!("a cache is for generation: call forward on model.valid()")
    }

    fn op_write_rows(_table: FloatTensor<Self>, _rows: FloatTensor<Self>, _at: Vec<usize>) -> FloatTensor<Self> {
        panic!("a cache is for generation: call forward on model.valid()")
    }

    fn op_matmul_transposed(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((x, x_guard), (weight, weight_guard)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        record!(
            MatmulTransposedStep,
            [x_guard, weight_guard],
            (x, weight),
            Flex::op_matmul_transposed(x.clone(), weight.clone())
        )
    }

    fn op_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((x, x_guard), (weight, weight_guard), (bias, bias_guard)) =
            (x.into_parts(), weight.into_parts(), bias.into_parts());
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        record!(
            LinearStep,
            [x_guard, weight_guard, bias_guard],
            (x, weight),
            Flex::op_linear(x.clone(), weight.clone(), bias)
        )
    }

    fn op_seed(x: FloatTensor<Self>, upstream: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, guard) = x.into_parts();
        let upstream = upstream.into_primitive();
        record!(SeedStep, [guard], upstream, Flex::op_seed(x, upstream.clone()))
    }

    fn op_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self> {
        let (logits, guard) = logits.into_parts();
        let logits = logits.to_contiguous();
        let (figures, normalisers) = scores::forward(values!(&logits), &targets, temperature);
        let figures = tensor(figures, [scores::FIGURES, targets.len()]);
        match ScoresStep.prepare::<C>([guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((logits, targets, temperature, normalisers), figures),
            OpsKind::UnTracked(prep) => prep.finish(figures),
        }
    }
}
