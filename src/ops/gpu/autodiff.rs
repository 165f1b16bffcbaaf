//! The operations with autodiff: the value, and the step that turns its gradient into those of the inputs.

use burn::backend::Cube;
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;

use super::launch::{self, dense};
use super::{GpuOps, Primitive};

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

impl<C: CheckpointStrategy> GpuOps for Autodiff<Cube, C> {
    fn gpu_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let ((x, x_guard), (weight, weight_guard)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (dense(x), dense(weight));
        record!(
            RmsNormStep,
            [x_guard, weight_guard],
            (x, weight, epsilon),
            launch::rms_norm(x.clone(), weight.clone(), epsilon, DType::F32)
        )
    }
}
