//! Autodiff versions of the operations: the value, and a backward step that computes the gradients of the inputs.

use burn::backend::Cube;
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;

use super::launch;
use super::memory::{self, dense};
use super::product::transposed;
use super::{GpuOps, Primitive, ProductFormat};

#[derive(Debug)]
struct RmsNormStep;

impl Backward<Cube, 2> for RmsNormStep {
    type State = (Primitive, Primitive, f32);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Cube>(&ops.node);
        let (x, weight, epsilon) = ops.state;
        let gradients = launch::rms_norm_backward(x, weight, upstream, epsilon);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<Cube>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct SwigluStep;

impl Backward<Cube, 2> for SwigluStep {
    /// Both inputs, and the storage format of the output.
    type State = (Primitive, Primitive, DType);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Cube>(&ops.node);
        let (gate, up, stored) = ops.state;
        // The products that computed the inputs read their gradients in this format too.
        let gradients = launch::swiglu_backward(gate, up, memory::cast(upstream, DType::F32), stored);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(node) = node {
                grads.register::<Cube>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct RotaryStep;

impl Backward<Cube, 1> for RotaryStep {
    type State = (Primitive, Primitive);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Cube>(&ops.node);
        let (cos, sin) = ops.state;
        if let [Some(node)] = ops.parents {
            // The inverse of a rotation is its transpose.
            grads.register::<Cube>(node.id, launch::rotary(upstream, cos, sin, -1.0));
        }
    }
}

#[derive(Debug)]
struct TakeRowsStep;

impl Backward<Cube, 1> for TakeRowsStep {
    /// For each row of the input, its row in the gradient of the output.
    type State = Vec<u32>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Cube>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<Cube>(node.id, launch::take_rows(upstream, &ops.state));
        }
    }
}

#[derive(Debug)]
struct SeedStep;

impl Backward<Cube, 1> for SeedStep {
    type State = Primitive;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        grads.consume::<Cube>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<Cube>(node.id, ops.state);
        }
    }
}

#[derive(Debug)]
struct ScoresStep;

impl Backward<Cube, 1> for ScoresStep {
    /// Logits, targets, normalisers and temperature.
    type State = (Primitive, Primitive, Primitive, f32);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Cube>(&ops.node);
        let (logits, targets, normalisers, temperature) = ops.state;
        if let [Some(node)] = ops.parents {
            // The gradient overwrites the logits if they are not shared.
            let gradient = launch::scores_backward(logits, targets, normalisers, upstream, temperature);
            grads.register::<Cube>(node.id, gradient);
        }
    }
}

/// Needed gradients of a product's operands: `dx = dy · Wᵀ`, `dW = xᵀ · dy`, with operands in the format of the
/// product, sums and results in f32. `x` is in that format already, the weight in its storage format.
fn product_backward(
    x: Primitive,
    weight: Primitive,
    format: ProductFormat,
    upstream: Primitive,
    needed: [bool; 2],
) -> [Option<Primitive>; 2] {
    // Converted once for both products.
    let upstream = format.operand(upstream);
    let dx = || format.product(upstream.clone(), transposed(format.rhs(weight)));
    let dweight = || match format.transposed {
        true => format.product(transposed(upstream.clone()), x),
        false => format.product(transposed(x), upstream.clone()),
    };
    [needed[0].then(dx), needed[1].then(dweight)]
}

#[derive(Debug)]
struct ProductStep;

impl Backward<Cube, 2> for ProductStep {
    /// `x` in the operand format of the product, the weight in its storage format.
    type State = (Primitive, Primitive, ProductFormat);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Cube>(&ops.node);
        let (x, weight, format) = ops.state;
        let needed = [0, 1].map(|parent| ops.parents[parent].is_some());
        let gradients = product_backward(x, weight, format, upstream, needed);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Cube>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct LinearStep;

impl Backward<Cube, 3> for LinearStep {
    type State = (Primitive, Primitive, ProductFormat);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Cube>(&ops.node);
        let (x, weight, format) = ops.state;
        let needed = [0, 1, 2].map(|parent| ops.parents[parent].is_some());
        let dbias = needed[2].then(|| launch::sum_rows(memory::cast(upstream.clone(), DType::F32)));
        let [dx, dweight] = product_backward(x, weight, format, upstream, [needed[0], needed[1]]);
        for (node, gradient) in ops.parents.into_iter().zip([dx, dweight, dbias]) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Cube>(node.id, gradient);
            }
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

impl<C: CheckpointStrategy> GpuOps for Autodiff<Cube, C> {
    fn gpu_product(x: FloatTensor<Self>, weight: FloatTensor<Self>, format: ProductFormat) -> FloatTensor<Self> {
        let ((x, x_guard), (weight, weight_guard)) = (x.into_parts(), weight.into_parts());
        let x = format.operand(x);
        record!(
            ProductStep,
            [x_guard, weight_guard],
            (x, weight, format),
            Cube::gpu_product(x.clone(), weight.clone(), format)
        )
    }

    fn gpu_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        format: ProductFormat,
    ) -> FloatTensor<Self> {
        let ((x, x_guard), (weight, weight_guard), (bias, bias_guard)) =
            (x.into_parts(), weight.into_parts(), bias.into_parts());
        let x = format.operand(x);
        record!(
            LinearStep,
            [x_guard, weight_guard, bias_guard],
            (x, weight, format),
            Cube::gpu_linear(x.clone(), weight.clone(), bias, format)
        )
    }

    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32, stored: DType) -> FloatTensor<Self> {
        let ((x, x_guard), (weight, weight_guard)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (dense(x), dense(weight));
        record!(
            RmsNormStep,
            [x_guard, weight_guard],
            (x, weight, epsilon),
            launch::rms_norm(x.clone(), weight.clone(), epsilon, stored)
        )
    }

    fn gpu_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>, stored: DType) -> FloatTensor<Self> {
        let ((gate, gate_guard), (up, up_guard)) = (gate.into_parts(), up.into_parts());
        let (gate, up) = (dense(gate), dense(up));
        record!(
            SwigluStep,
            [gate_guard, up_guard],
            (gate, up, stored),
            launch::swiglu(gate.clone(), up.clone(), stored)
        )
    }

    fn gpu_rotary(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, guard) = x.into_parts();
        let (cos, sin) = (dense(cos.into_primitive()), dense(sin.into_primitive()));
        record!(RotaryStep, [guard], (cos, sin), launch::rotary(x, cos.clone(), sin.clone(), 1.0))
    }

    fn gpu_take_rows(x: FloatTensor<Self>, from: Vec<u32>, back: Vec<u32>) -> FloatTensor<Self> {
        let (x, guard) = x.into_parts();
        record!(TakeRowsStep, [guard], back, launch::take_rows(x, &from))
    }

    fn gpu_seed(x: FloatTensor<Self>, upstream: FloatTensor<Self>) -> FloatTensor<Self> {
        let (x, guard) = x.into_parts();
        let upstream = upstream.into_primitive();
        record!(SeedStep, [guard], upstream, memory::zero(&x))
    }

    fn gpu_scores(logits: FloatTensor<Self>, targets: Vec<u32>, temperature: f32) -> FloatTensor<Self> {
        let (logits, guard) = logits.into_parts();
        let logits = dense(logits);
        let targets = memory::send(&logits, &targets);
        let [statistics, normalisers] = launch::scores(logits.clone(), targets.clone(), temperature);
        match ScoresStep.prepare::<C>([guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((logits, targets, normalisers, temperature), statistics),
            OpsKind::UnTracked(prep) => prep.finish(statistics),
        }
    }
}
