//! The short causal convolution of Gated DeltaNet with its `silu`, multi-threaded, with a hand-written backward pass.

#![allow(missing_docs, reason = "the extension macro generates items that cannot carry documentation")]

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::kernels::{rows_per_task, sigmoid};
use super::{Primitive, dims, tensor, values};

#[backend_extension(Flex, Autodiff)]
pub(crate) trait CpuConvolution: Backend {
    fn op_causal_conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, lengths: Vec<usize>) -> FloatTensor<Self>;
}

pub(in crate::ops) fn causal_conv(x: Tensor<2>, weight: Tensor<2>, lengths: &[usize]) -> Tensor<2> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(<Dispatch as CpuConvolution>::op_causal_conv(x, weight, lengths.to_vec()))
}

/// Position of each row in its sequence.
fn places(lengths: &[usize]) -> Vec<usize> {
    lengths.iter().flat_map(|&length| 0..length).collect()
}

/// Transpose `[width, taps]` to `[taps, width]`.
fn taps(weight: &[f32], width: usize) -> Vec<Vec<f32>> {
    let count = weight.len() / width;
    (0..count).map(|tap| weight.iter().skip(tap).step_by(count).copied().collect()).collect()
}

/// Compute the convolution at `row`, before the activation.
fn convolved(x: &[f32], taps: &[Vec<f32>], row: usize, place: usize, out: &mut [f32]) {
    let width = out.len();
    out.fill(0.0);
    for (tap, weight) in taps.iter().enumerate() {
        let back = taps.len() - 1 - tap;
        if back <= place {
            let x = &x[(row - back) * width..][..width];
            (out.iter_mut().zip(x).zip(weight)).for_each(|((out, x), weight)| *out = x.mul_add(*weight, *out));
        }
    }
}

fn conv(x: &[f32], weight: &[f32], width: usize, lengths: &[usize]) -> Vec<f32> {
    let (taps, places) = (taps(weight, width), places(lengths));
    let mut out = vec![0.0; x.len()];
    out.par_chunks_exact_mut(width).enumerate().with_min_len(rows_per_task(width)).for_each(|(row, out)| {
        convolved(x, &taps, row, places[row], out);
        out.iter_mut().for_each(|x| *x *= sigmoid(*x));
    });
    out
}

/// Gradients of `x` and of `weight`.
fn conv_backward(x: &[f32], weight: &[f32], width: usize, lengths: &[usize], upstream: &[f32]) -> [Vec<f32>; 2] {
    let (taps, places) = (taps(weight, width), places(lengths));
    let mut inner = vec![0.0; x.len()];
    let rows = inner.par_chunks_exact_mut(width).zip(upstream.par_chunks_exact(width)).enumerate();
    rows.with_min_len(rows_per_task(width)).for_each(|(row, (inner, upstream))| {
        convolved(x, &taps, row, places[row], inner);
        inner.iter_mut().zip(upstream).for_each(|(x, upstream)| {
            let s = sigmoid(*x);
            *x = upstream * s * (1.0 + *x * (1.0 - s));
        });
    });
    let mut dx = vec![0.0; x.len()];
    dx.par_chunks_exact_mut(width).enumerate().with_min_len(rows_per_task(width)).for_each(|(row, dx)| {
        for (tap, weight) in taps.iter().enumerate() {
            let back = taps.len() - 1 - tap;
            if places.get(row + back).is_some_and(|&place| place >= back) {
                let inner = &inner[(row + back) * width..][..width];
                (dx.iter_mut().zip(inner).zip(weight)).for_each(|((dx, inner), weight)| *dx += inner * weight);
            }
        }
    });
    let count = rows_per_task(width);
    let parts: Vec<Vec<f32>> = (inner.par_chunks(count * width).enumerate())
        .map(|(part, inner)| {
            let mut sums = vec![0.0; taps.len() * width];
            for (row, inner) in (part * count..).zip(inner.chunks_exact(width)) {
                for (tap, sums) in sums.chunks_exact_mut(width).enumerate() {
                    let back = taps.len() - 1 - tap;
                    if back <= places[row] {
                        let x = &x[(row - back) * width..][..width];
                        (sums.iter_mut().zip(inner).zip(x)).for_each(|((sum, inner), x)| *sum += inner * x);
                    }
                }
            }
            sums
        })
        .collect();
    let mut dweight = vec![0.0; weight.len()];
    for part in parts {
        for (tap, sums) in part.chunks_exact(width).enumerate() {
            dweight.iter_mut().skip(tap).step_by(taps.len()).zip(sums).for_each(|(sum, part)| *sum += part);
        }
    }
    [dx, dweight]
}

impl CpuConvolution for Flex {
    fn op_causal_conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, lengths: Vec<usize>) -> FloatTensor<Self> {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let [_, width] = dims(&x);
        tensor(conv(values!(&x), values!(&weight), width, &lengths), x.shape())
    }
}

#[derive(Debug)]
struct ConvStep;

impl Backward<Flex, 2> for ConvStep {
    type State = ([Primitive; 2], Vec<usize>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node).to_contiguous();
        let ([x, weight], lengths) = ops.state;
        let [_, width] = dims(&x);
        let gradients = conv_backward(values!(&x), values!(&weight), width, &lengths, values!(&upstream));
        for ((node, gradient), like) in ops.parents.into_iter().zip(gradients).zip([&x, &weight]) {
            if let Some(node) = node {
                grads.register::<Flex>(node.id, tensor(gradient, like.shape()));
            }
        }
    }
}

impl<C: CheckpointStrategy> CpuConvolution for Autodiff<Flex, C> {
    fn op_causal_conv(x: FloatTensor<Self>, weight: FloatTensor<Self>, lengths: Vec<usize>) -> FloatTensor<Self> {
        let ((x, x_guard), (weight, weight_guard)) = (x.into_parts(), weight.into_parts());
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let value = Flex::op_causal_conv(x.clone(), weight.clone(), lengths.clone());
        match ConvStep.prepare::<C>([x_guard, weight_guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(([x, weight], lengths), value),
            OpsKind::UnTracked(prep) => prep.finish(value),
        }
    }
}
