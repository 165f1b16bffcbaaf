//! Autodiff versions of the operations: the value, and a backward step that computes the gradients of the inputs.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};

use super::{CpuOps, Primitive, Span, attention, dims, kernels, matrix, product, scores, tensor, values, values_mut};

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

/// Backward step of a gated activation.
#[derive(Debug)]
struct GatedStep<A>(PhantomData<A>);

impl<A: kernels::Activation + Send + Debug + 'static> Backward<Flex, 2> for GatedStep<A> {
    type State = (Primitive, Primitive);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (gate, up) = ops.state;
        let (dgate, dup) = kernels::gated_backward::<A>(values!(&gate), values!(&up), values!(&upstream));
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
    type State = ([Primitive; 3], Vec<usize>, Option<usize>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ([q, k, v], lengths, window) = ops.state;
        let shape = attention::AttentionShape::of(dims(&q), k.shape()[1], window);
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
            grads.register::<Flex>(node.id, tensor(product(matrix(&upstream), matrix(&weight)), x.shape()));
        }
        if let Some(node) = weight_node {
            let gradient = product(matrix(&upstream).transposed(), matrix(&x));
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
            let gradient = product(matrix(&upstream), matrix(&weight).transposed());
            grads.register::<Flex>(node.id, tensor(gradient, x.shape()));
        }
        if let Some(node) = weight_node {
            let gradient = product(matrix(&x).transposed(), matrix(&upstream));
            grads.register::<Flex>(node.id, tensor(gradient, weight.shape()));
        }
        if let Some(node) = bias_node {
            let [_, width] = dims(&upstream);
            grads.register::<Flex>(node.id, tensor(kernels::sum_rows(values!(&upstream), width), [width]));
        }
    }
}

/// Stores `gate` and `up` but not their product, which is as large as either; the backward pass recomputes it.
#[derive(Debug)]
struct SwigluLinearStep;

impl Backward<Flex, 4> for SwigluLinearStep {
    type State = (Primitive, Primitive, Primitive);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let (gate, up, weight) = ops.state;
        let [gate_node, up_node, weight_node, bias_node] = ops.parents;
        if let Some(node) = weight_node {
            let x = Flex::op_swiglu(gate.clone(), up.clone());
            let gradient = product(matrix(&x).transposed(), matrix(&upstream));
            grads.register::<Flex>(node.id, tensor(gradient, weight.shape()));
        }
        if let Some(node) = bias_node {
            let [_, width] = dims(&upstream);
            grads.register::<Flex>(node.id, tensor(kernels::sum_rows(values!(&upstream), width), [width]));
        }
        let dx = product(matrix(&upstream), matrix(&weight).transposed());
        let (dgate, dup) = kernels::gated_backward::<kernels::Silu>(values!(&gate), values!(&up), &dx);
        for (node, gradient) in [gate_node, up_node].into_iter().zip([dgate, dup]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, gate.shape()));
            }
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
            let statistics = [&upstream[..rows], &upstream[2 * rows..3 * rows]];
            // The gradient overwrites the logits; `values_mut` copies them first if they are shared.
            scores::backward(values_mut!(&mut logits, f32), &targets, temperature, &normalisers, statistics);
            grads.register::<Flex>(node.id, logits);
        }
    }
}

/// Records `$step` with `$state` if a gradient is needed, and returns the value either way.
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
        let step = GatedStep(PhantomData::<kernels::Silu>);
        record!(step, [gate_guard, up_guard], (gate, up), Flex::op_swiglu(gate.clone(), up.clone()))
    }

    fn op_geglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, gate_guard), (up, up_guard)) = (gate.into_parts(), up.into_parts());
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let step = GatedStep(PhantomData::<kernels::Gelu>);
        record!(step, [gate_guard, up_guard], (gate, up), Flex::op_geglu(gate.clone(), up.clone()))
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
        window: Option<usize>,
    ) -> FloatTensor<Self> {
        let ((q, q_guard), (k, k_guard), (v, v_guard)) = (q.into_parts(), k.into_parts(), v.into_parts());
        let (q, k, v) = (q.to_contiguous(), k.to_contiguous(), v.to_contiguous());
        record!(
            AttentionStep,
            [q_guard, k_guard, v_guard],
            ([q, k, v], lengths, window),
            Flex::op_attention(q.clone(), k.clone(), v.clone(), lengths.clone(), window)
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

    fn op_adapted_linear(
        _x: FloatTensor<Self>,
        _weight: FloatTensor<Self>,
        _bias: FloatTensor<Self>,
        _a: FloatTensor<Self>,
        _b: FloatTensor<Self>,
        _scale: f32,
    ) -> FloatTensor<Self> {
        panic!("one step without gradients: with them it is several")
    }

    fn op_swiglu_linear(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ((gate, gate_guard), (up, up_guard)) = (gate.into_parts(), up.into_parts());
        let ((weight, weight_guard), (bias, bias_guard)) = (weight.into_parts(), bias.into_parts());
        let (gate, up, weight) = (gate.to_contiguous(), up.to_contiguous(), weight.to_contiguous());
        record!(
            SwigluLinearStep,
            [gate_guard, up_guard, weight_guard, bias_guard],
            (gate, up, weight),
            Flex::op_swiglu_linear(gate.clone(), up.clone(), weight.clone(), bias)
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
        let (statistics, normalisers) = scores::forward(values!(&logits), &targets, temperature);
        let statistics = tensor(statistics, [scores::STATISTICS, targets.len()]);
        match ScoresStep.prepare::<C>([guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((logits, targets, temperature, normalisers), statistics),
            OpsKind::UnTracked(prep) => prep.finish(statistics),
        }
    }
}
