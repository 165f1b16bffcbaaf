//! Causal attention over one block of query rows at a time, on any backend: nothing of size `T x T` is ever kept.
//!
//! Only the keys up to a block's end are looked at. The backward pass computes the weights of each block again from
//! queries and keys, as FlashAttention does (arXiv 2205.14135). [`forward`] and [`backward`] are functions on tensors without
//! autodiff; the rest of this file makes one recorded step of them, through Burn's backend-extension mechanism.
//!
//! # Shapes
//! - q, output: `[batch, heads, time, head_dim]`; k, v: `[batch, kv_heads, time, head_dim]`

#![allow(missing_docs, reason = "the extension macro generates items that cannot carry documentation")]
#![allow(deprecated, reason = "Burn 0.23 drops ndarray; 0.22.1 is pinned, and a second CPU backend checks the first")]

use std::ops::Range;

use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchKindConversion, DispatchTensor, Flex, NdArray, backend_extension};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor};

#[cfg(feature = "gpu")]
use super::gpu;
use super::plain::scale;

/// Query rows of a block on processors.
pub(super) const BLOCK: usize = 256;

/// Query rows of a block for `rows` rows of scores per query, over `time` keys: on a GPU so many that a block has some 2^25
/// scores, up to 1024 rows. Fewer would be launches without work, more look at keys that no row sees.
pub(super) fn block(device: &Device, rows: usize, time: usize) -> usize {
    #[cfg(feature = "gpu")]
    if gpu::serves(device) {
        return ((1 << 25) / (rows * time).max(1) / BLOCK * BLOCK).clamp(BLOCK, 4 * BLOCK);
    }
    let _ = (device, rows, time);
    BLOCK
}

/// `softmax(q kᵀ / √d) v` over each row's own past, `block` query rows at a time.
pub(super) fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, block: usize) -> Tensor<4> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(<Dispatch as BlockwiseOps>::op_blockwise_attention(q, k, v, block))
}

/// The query rows of each block.
fn blocks(time: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    (0..time.div_ceil(block)).map(move |index| index * block..time.min((index + 1) * block))
}

/// What stands at the given times.
fn at(x: &Tensor<4>, times: Range<usize>) -> Tensor<4> {
    x.clone().narrow(2, times.start, times.len())
}

/// The heads that share a key head become more query rows of it: `[batch, kv_heads, group · rows, head_dim]`.
fn grouped(x: Tensor<4>, kv_heads: usize) -> Tensor<4> {
    let [batch, heads, rows, dim] = x.dims();
    x.reshape([batch, kv_heads, heads / kv_heads * rows, dim])
}

/// A product without autodiff.
fn product(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "gpu")]
    if gpu::serves(&a.device()) {
        return gpu::matmul(a, b);
    }
    a.matmul(b)
}

/// Attention weights of a block, `[batch, kv_heads, group · rows, rows.end]`.
///
/// # Shapes
/// - q: [`grouped`]; k: `[batch, kv_heads, rows.end, head_dim]`
fn weights(q: Tensor<4>, k: Tensor<4>, rows: &Range<usize>) -> Tensor<4> {
    let [_, _, all, dim] = q.dims();
    let scores = product(q, k.swap_dims(2, 3));
    #[cfg(feature = "gpu")]
    if gpu::serves(&scores.device()) {
        return gpu::attention_weights(scores, rows, scale(dim));
    }
    let past = Tensor::<2, Bool>::tril_mask([rows.len(), rows.end], rows.start as i64, &scores.device());
    let future: Tensor<4, Bool> = past.repeat_dim(0, all / rows.len()).unsqueeze();
    softmax(scores.mul_scalar(scale(dim)).mask_fill(future, f32::NEG_INFINITY), 3)
}

/// The gradient of the scores, through the softmax: `w ∘ (dw − Σ w ∘ dw)`, and the scale.
fn through_softmax(weights: Tensor<4>, dweights: Tensor<4>, rows: &Range<usize>, dim: usize) -> Tensor<4> {
    #[cfg(feature = "gpu")]
    if gpu::serves(&weights.device()) {
        return gpu::attention_weights_backward(weights, dweights, rows, scale(dim));
    }
    let _ = rows;
    let weighted = dweights * weights.clone();
    (weighted.clone() - weights * weighted.sum_dim(3)).mul_scalar(scale(dim))
}

fn forward(q: &Tensor<4>, k: &Tensor<4>, v: &Tensor<4>, block: usize) -> Tensor<4> {
    let ([batch, heads, time, dim], [_, kv_heads, _, _]) = (q.dims(), k.dims());
    let mixed = blocks(time, block).map(|rows| {
        let weights = weights(grouped(at(q, rows.clone()), kv_heads), at(k, 0..rows.end), &rows);
        product(weights, at(v, 0..rows.end)).reshape([batch, heads, rows.len(), dim])
    });
    together(mixed.collect())
}

/// Blocks of query rows, one after another.
fn together(mut blocks: Vec<Tensor<4>>) -> Tensor<4> {
    if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(blocks, 2) }
}

/// The gradients of q, k and v, from that of the output.
fn backward([q, k, v]: &[Tensor<4>; 3], upstream: &Tensor<4>, block: usize) -> [Tensor<4>; 3] {
    let ([batch, heads, time, dim], [_, kv_heads, _, _]) = (q.dims(), k.dims());
    let (mut dq, mut dk, mut dv) = (Vec::new(), None, None);
    // From the last block, whose gradients are of all keys, to the first: the others add to it.
    for rows in blocks(time, block).collect::<Vec<_>>().into_iter().rev() {
        let past = 0..rows.end;
        let (k, v) = (at(k, past.clone()), at(v, past.clone()));
        let [q, upstream] = [q, upstream].map(|x| grouped(at(x, rows.clone()), kv_heads));
        let weights = weights(q.clone(), k.clone(), &rows);
        dv = Some(add(dv, past.clone(), product(weights.clone().swap_dims(2, 3), upstream.clone())));
        let dweights = product(upstream, v.swap_dims(2, 3));
        let dscores = through_softmax(weights, dweights, &rows, dim);
        dk = Some(add(dk, past, product(dscores.clone().swap_dims(2, 3), q)));
        dq.push(product(dscores, k).reshape([batch, heads, rows.len(), dim]));
    }
    dq.reverse();
    [together(dq), dk.unwrap_or_else(|| k.zeros_like()), dv.unwrap_or_else(|| v.zeros_like())]
}

/// Adds to what stands at the given times; the first part, which has all of them, is the sum.
fn add(x: Option<Tensor<4>>, times: Range<usize>, part: Tensor<4>) -> Tensor<4> {
    let Some(x) = x else { return part };
    let [batch, heads, _, dim] = x.dims();
    let sum = at(&x, times.clone()) + part;
    x.slice_assign([0..batch, 0..heads, times, 0..dim], sum)
}

#[backend_extension(
    Flex,
    NdArray,
    Cube: cfg(feature = "gpu"),
    Autodiff
)]
pub(crate) trait BlockwiseOps: Backend {
    fn op_blockwise_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self>;
}

fn tensor<B: Backend>(primitive: FloatTensor<B>) -> Tensor<4>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    Tensor::from_primitive::<B>(primitive)
}

fn primitive<B: Backend>(tensor: Tensor<4>) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    tensor.try_into_primitive::<B>().expect("operations stay on the backend of their inputs")
}

/// A backend's value of the operation, by way of its tensors.
macro_rules! value {
    ($backend:ty) => {
        impl BlockwiseOps for $backend {
            fn op_blockwise_attention(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                block: usize,
            ) -> FloatTensor<Self> {
                let [q, k, v] = [q, k, v].map(tensor::<Self>);
                primitive::<Self>(forward(&q, &k, &v, block))
            }
        }
    };
}

value!(Flex);
value!(NdArray);
#[cfg(feature = "gpu")]
value!(burn::backend::Cube);

#[derive(Debug)]
struct AttentionStep;

impl<B: Backend> Backward<B, 3> for AttentionStep
where
    DispatchTensor: DispatchKindConversion<B>,
{
    /// q, k and v, and the rows of a block.
    type State = ([Tensor<4>; 3], usize);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = tensor::<B>(grads.consume::<B>(&ops.node));
        let (inputs, block) = ops.state;
        for (node, gradient) in ops.parents.into_iter().zip(backward(&inputs, &upstream, block)) {
            if let Some(node) = node {
                grads.register::<B>(node.id, primitive::<B>(gradient));
            }
        }
    }
}

impl<B: BlockwiseOps, C: CheckpointStrategy> BlockwiseOps for Autodiff<B, C>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    fn op_blockwise_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        let ((q, q_guard), (k, k_guard), (v, v_guard)) = (q.into_parts(), k.into_parts(), v.into_parts());
        let inputs = [q, k, v].map(tensor::<B>);
        let [q, k, v] = &inputs;
        let out = primitive::<B>(forward(q, k, v, block));
        match Backward::<B, 3>::prepare::<C>(AttentionStep, [q_guard, k_guard, v_guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inputs, block), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::noise::Stream;
    use crate::ops::to_host;

    /// All of it at once, under autodiff.
    fn whole(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        let [_, heads, time, dim] = q.dims();
        let group = heads / k.dims()[1];
        let [k, v] = [k, v].map(|x| {
            let [batch, kv_heads, _, _] = x.dims();
            x.reshape([batch, kv_heads, 1, time * dim]).repeat_dim(2, group).reshape([batch, heads, time, dim])
        });
        let future = Tensor::<2, Bool>::tril_mask([time, time], 0, &q.device()).unsqueeze::<4>();
        let scores = q.matmul(k.swap_dims(2, 3)).div_scalar((dim as f64).sqrt());
        softmax(scores.mask_fill(future, f32::NEG_INFINITY), 3).matmul(v)
    }

    fn random(shape: [usize; 4], seed: u64, device: &Device) -> Tensor<4> {
        let mut random = Stream::new(&[seed]);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| (random.unit() * 4.0 - 2.0) as f32).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    #[track_caller]
    fn assert_close(found: Tensor<4>, expected: Tensor<4>, what: &str) {
        assert_eq!(found.dims(), expected.dims(), "{what}");
        let largest = to_host(expected.clone().abs().max());
        let distance = to_host((found - expected).abs().max());
        assert!(distance[0] <= 1e-5 * largest[0], "{what}: {distance:?} of {largest:?}");
    }

    /// Sequences of one token, below a block, of one, of several, and not of a whole number of them.
    #[test]
    fn blocks_give_the_value_and_the_gradients_of_the_whole() {
        let block = 4;
        for device in [Device::ndarray().autodiff(), Device::flex().autodiff()] {
            for time in [1, 2, 3, 4, 5, 8, 11, 12] {
                for (batch, heads, kv_heads, dim) in [(1, 1, 1, 2), (2, 4, 2, 6), (3, 3, 1, 5), (2, 2, 2, 8)] {
                    let run = |attend: &dyn Fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>| {
                        let of = |heads, seed| random([batch, heads, time, dim], seed, &device).require_grad();
                        let (q, k, v) = (of(heads, 1), of(kv_heads, 2), of(kv_heads, 3));
                        let out = attend(q.clone(), k.clone(), v.clone());
                        let upstream = random(out.dims(), 4, &device);
                        let gradients = (out.clone() * upstream).sum().backward();
                        [
                            out.inner(),
                            q.grad(&gradients).unwrap(),
                            k.grad(&gradients).unwrap(),
                            v.grad(&gradients).unwrap(),
                        ]
                    };
                    let found = run(&|q, k, v| attention(q, k, v, block));
                    for ((found, expected), name) in found.into_iter().zip(run(&whole)).zip(["value", "dq", "dk", "dv"])
                    {
                        assert_close(
                            found,
                            expected,
                            &format!("{name} for {time} tokens, {heads} of {kv_heads} heads"),
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn an_input_without_gradient_leaves_the_others_theirs() {
        let device = Device::ndarray().autodiff();
        let of = |seed| random([1, 2, 5, 4], seed, &device);
        let (q, k, v) = (of(1), of(2).require_grad(), of(3));
        let gradients = attention(q.clone(), k.clone(), v.clone(), 2).sum().backward();
        let expected = whole(q, k.clone(), v).sum().backward();
        assert_close(k.grad(&gradients).unwrap(), k.grad(&expected).unwrap(), "dk");
    }

    /// The value does not depend on whether it is recorded.
    #[test]
    fn without_autodiff_the_value_is_the_same() {
        let [plain, recorded] = [Device::ndarray(), Device::ndarray().autodiff()].map(|device| {
            let of = |seed| random([2, 2, 7, 4], seed, &device);
            to_host(attention(of(1), of(2), of(3), 3))
        });
        assert_eq!(plain, recorded);
    }
}
