//! Causal attention, one block of query rows at a time, on any backend: no `T x T` tensor is stored.
//!
//! A block reads only the keys up to its end, and with a window only those that at least one of its rows attends to.
//! The backward pass recomputes each block's weights from queries and keys, as FlashAttention does (arXiv 2205.14135).
//! [`forward`] and [`backward`] are functions on tensors without autodiff; the rest of this file registers them as one
//! autodiff step through Burn's backend-extension mechanism.
//!
//! # Shapes
//! - q, output: `[batch, heads, time, head_dim]`; k, v: `[batch, kv_heads, time, head_dim]`

#![allow(missing_docs, reason = "the extension macro generates items that cannot carry documentation")]
#![cfg_attr(feature = "ndarray", allow(deprecated, reason = "Burn 0.23 drops ndarray; 0.22.1 is pinned"))]

use std::ops::Range;

#[cfg(feature = "ndarray")]
use burn::backend::NdArray;
use burn::backend::autodiff::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, DispatchKindConversion, DispatchTensor, Flex, backend_extension};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, FloatDType, Tensor};

#[cfg(feature = "gpu")]
use super::gpu;
use super::plain::scale;

/// Query rows per block on CPUs.
pub(super) const BLOCK: usize = 256;

/// Return the query rows per block for `rows` rows of scores per query over `time` keys. On a GPU a block has about
/// 2^25 scores and at most 1024 rows: smaller blocks are launches without work, larger ones score more hidden keys.
pub(super) fn block(device: &Device, rows: usize, time: usize) -> usize {
    #[cfg(feature = "gpu")]
    if gpu::serves(device) {
        return ((1 << 25) / (rows * time).max(1) / BLOCK * BLOCK).clamp(BLOCK, 4 * BLOCK);
    }
    let _ = (device, rows, time);
    BLOCK
}

/// Options of blockwise attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Query rows per block.
    pub block: usize,
    /// Maximum number of keys a query attends to, its own included; `None` for all past keys.
    pub window: Option<usize>,
    /// Operand format of products on a GPU; other devices use f32.
    pub format: FloatDType,
}

/// `softmax(q kᵀ / √d) v` over each row's past keys, limited to the last `window` keys if set.
pub(super) fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, options: Options) -> Tensor<4> {
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(<Dispatch as BlockwiseOps>::op_blockwise_attention(q, k, v, options))
}

/// A range of query rows, and the range of keys that at least one of them attends to.
#[derive(Clone)]
struct Block {
    rows: Range<usize>,
    keys: Range<usize>,
    window: Option<usize>,
    format: FloatDType,
}

fn blocks(time: usize, Options { block, window, format }: Options) -> impl Iterator<Item = Block> {
    (0..time.div_ceil(block)).map(move |index| {
        let rows = index * block..time.min((index + 1) * block);
        let keys = window.map_or(0, |window| (rows.start + 1).saturating_sub(window))..rows.end;
        Block { rows, keys, window, format }
    })
}

/// Slice `x` along the time dimension.
fn slice_time(x: &Tensor<4>, times: Range<usize>) -> Tensor<4> {
    x.clone().narrow(2, times.start, times.len())
}

/// Stack the query heads that share a key head as additional rows: `[batch, kv_heads, group · rows, head_dim]`.
fn grouped(x: Tensor<4>, kv_heads: usize) -> Tensor<4> {
    let [batch, heads, rows, dim] = x.dims();
    x.reshape([batch, kv_heads, heads / kv_heads * rows, dim])
}

/// Convert `x` to the operand format of products on a GPU; return it unchanged on other devices.
fn operand(x: Tensor<4>, format: FloatDType) -> Tensor<4> {
    #[cfg(feature = "gpu")]
    if gpu::serves(&x.device()) {
        return gpu::operand(x, format);
    }
    let _ = format;
    x
}

/// Product of two [`operand`]s in f32, without autodiff.
fn product(a: Tensor<4>, b: Tensor<4>, format: FloatDType) -> Tensor<4> {
    #[cfg(feature = "gpu")]
    if gpu::serves(&a.device()) {
        return gpu::matmul(a, b, format);
    }
    let _ = format;
    a.matmul(b)
}

/// Attention weights of a block, `[batch, kv_heads, group · rows, keys]`, as an [`operand`].
///
/// # Shapes
/// - q: [`grouped`]; k: `[batch, kv_heads, keys, head_dim]`
fn weights(q: Tensor<4>, k: Tensor<4>, Block { rows, keys, window, format }: &Block) -> Tensor<4> {
    let [_, _, all, dim] = q.dims();
    let scores = product(q, k.swap_dims(2, 3), *format);
    #[cfg(feature = "gpu")]
    if window.is_none() && gpu::serves(&scores.device()) {
        return gpu::attention_weights(scores, rows, scale(dim), *format);
    }
    let (shape, ahead) = ([rows.len(), keys.len()], (rows.start - keys.start) as i64);
    let mut hidden = Tensor::<2, Bool>::tril_mask(shape, ahead, &scores.device());
    if let Some(window) = window {
        hidden = hidden.bool_or(Tensor::triu_mask(shape, ahead + 1 - *window as i64, &scores.device()));
    }
    let hidden: Tensor<4, Bool> = hidden.repeat_dim(0, all / rows.len()).unsqueeze();
    operand(softmax(scores.mul_scalar(scale(dim)).mask_fill(hidden, f32::NEG_INFINITY), 3), *format)
}

/// Gradient of the scores before scaling: `scale · w ∘ (dw − Σ w ∘ dw)`, as an [`operand`].
fn through_softmax(weights: Tensor<4>, dweights: Tensor<4>, block: &Block, dim: usize) -> Tensor<4> {
    #[cfg(feature = "gpu")]
    if block.window.is_none() && gpu::serves(&weights.device()) {
        return gpu::attention_weights_backward(weights, dweights, &block.rows, scale(dim));
    }
    let weights = weights.cast(FloatDType::F32);
    let weighted = dweights * weights.clone();
    operand((weighted.clone() - weights * weighted.sum_dim(3)).mul_scalar(scale(dim)), block.format)
}

/// Attention output in f32; the inputs are [`operand`]s.
fn forward([q, k, v]: &[Tensor<4>; 3], options: Options) -> Tensor<4> {
    let ([batch, heads, time, dim], [_, kv_heads, _, _]) = (q.dims(), k.dims());
    let mixed = blocks(time, options).map(|block| {
        let Block { rows, keys, .. } = block.clone();
        let weights = weights(grouped(slice_time(q, rows.clone()), kv_heads), slice_time(k, keys.clone()), &block);
        product(weights, slice_time(v, keys), options.format).reshape([batch, heads, rows.len(), dim])
    });
    concat_blocks(mixed.collect())
}

/// Concatenate blocks of query rows.
fn concat_blocks(mut blocks: Vec<Tensor<4>>) -> Tensor<4> {
    if blocks.len() == 1 { blocks.remove(0) } else { Tensor::cat(blocks, 2) }
}

/// Gradients of q, k and v in f32, from the gradient of the output; all inputs are [`operand`]s.
fn backward([q, k, v]: &[Tensor<4>; 3], upstream: &Tensor<4>, options: Options) -> [Tensor<4>; 3] {
    let ([batch, heads, time, dim], [_, kv_heads, _, _]) = (q.dims(), k.dims());
    let product = |a, b| product(a, b, options.format);
    let zeros = |x: &Tensor<4>| x.zeros_like().cast(FloatDType::F32);
    let mut dq = Vec::new();
    // From the last block, which without a window covers all keys, so its gradients start the sums, to the first.
    let [mut dk, mut dv] = [k, v].map(|x| options.window.map(|_| zeros(x)));
    for block in blocks(time, options).collect::<Vec<_>>().into_iter().rev() {
        let Block { rows, keys, .. } = block.clone();
        let (k, v) = (slice_time(k, keys.clone()), slice_time(v, keys.clone()));
        let [q, upstream] = [q, upstream].map(|x| grouped(slice_time(x, rows.clone()), kv_heads));
        let weights = weights(q.clone(), k.clone(), &block);
        dv = Some(add_at(dv, keys.clone(), product(weights.clone().swap_dims(2, 3), upstream.clone())));
        let dweights = product(upstream, v.swap_dims(2, 3));
        let dscores = through_softmax(weights, dweights, &block, dim);
        dk = Some(add_at(dk, keys, product(dscores.clone().swap_dims(2, 3), q)));
        dq.push(product(dscores, k).reshape([batch, heads, rows.len(), dim]));
    }
    dq.reverse();
    [concat_blocks(dq), dk.unwrap_or_else(|| zeros(k)), dv.unwrap_or_else(|| zeros(v))]
}

/// Add `part` to `x` at the given times. Without `x`, `part` covers all times and is returned.
fn add_at(x: Option<Tensor<4>>, times: Range<usize>, part: Tensor<4>) -> Tensor<4> {
    let Some(x) = x else { return part };
    let [batch, heads, _, dim] = x.dims();
    let sum = slice_time(&x, times.clone()) + part;
    x.slice_assign([0..batch, 0..heads, times, 0..dim], sum)
}

#[backend_extension(
    Flex,
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "gpu"),
    Autodiff
)]
pub(crate) trait BlockwiseOps: Backend {
    fn op_blockwise_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        options: Options,
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

/// Implements the operation for a backend through its tensors.
macro_rules! value {
    ($backend:ty) => {
        impl BlockwiseOps for $backend {
            fn op_blockwise_attention(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                options: Options,
            ) -> FloatTensor<Self> {
                primitive::<Self>(forward(&[q, k, v].map(|x| operand(tensor::<Self>(x), options.format)), options))
            }
        }
    };
}

value!(Flex);
#[cfg(feature = "ndarray")]
value!(NdArray);
#[cfg(feature = "gpu")]
value!(burn::backend::Cube);

#[derive(Debug)]
struct AttentionStep;

impl<B: Backend> Backward<B, 3> for AttentionStep
where
    DispatchTensor: DispatchKindConversion<B>,
{
    /// q, k and v as operands, and the options.
    type State = ([Tensor<4>; 3], Options);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let upstream = tensor::<B>(grads.consume::<B>(&ops.node));
        let (inputs, options) = ops.state;
        let gradients = backward(&inputs, &operand(upstream, options.format), options);
        for (node, gradient) in ops.parents.into_iter().zip(gradients) {
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
        options: Options,
    ) -> FloatTensor<Self> {
        let ((q, q_guard), (k, k_guard), (v, v_guard)) = (q.into_parts(), k.into_parts(), v.into_parts());
        let inputs = [q, k, v].map(|x| operand(tensor::<B>(x), options.format));
        let out = primitive::<B>(forward(&inputs, options));
        match Backward::<B, 3>::prepare::<C>(AttentionStep, [q_guard, k_guard, v_guard]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((inputs, options), out),
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

    /// Reference: attention over all rows at once, under autodiff, with an explicit mask.
    fn dense_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, window: Option<usize>) -> Tensor<4> {
        let [_, heads, time, dim] = q.dims();
        let group = heads / k.dims()[1];
        let [k, v] = [k, v].map(|x| {
            let [batch, kv_heads, _, _] = x.dims();
            x.reshape([batch, kv_heads, 1, time * dim]).repeat_dim(2, group).reshape([batch, heads, time, dim])
        });
        let sees = |row: usize, key: usize| key <= row && window.is_none_or(|window| key + window > row);
        let hidden: Vec<bool> = (0..time * time).map(|at| !sees(at / time, at % time)).collect();
        let hidden = Tensor::<4, Bool>::from_data(TensorData::new(hidden, [1, 1, time, time]), &q.device());
        let scores = q.matmul(k.swap_dims(2, 3)).div_scalar((dim as f64).sqrt());
        softmax(scores.mask_fill(hidden, f32::NEG_INFINITY), 3).matmul(v)
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

    /// Lengths of one token, less than a block, one block, several blocks, and several with a partial last block.
    #[test]
    fn blocks_give_the_value_and_the_gradients_of_the_whole() {
        let block = 4;
        let device = Device::flex().autodiff();
        for (time, window) in [1, 2, 3, 4, 5, 8, 11, 12]
            .into_iter()
            .flat_map(|time| [None, Some(1), Some(3), Some(6)].map(|window| (time, window)))
        {
            for (batch, heads, kv_heads, dim) in [(1, 1, 1, 2), (2, 4, 2, 6), (3, 3, 1, 5), (2, 2, 2, 8)] {
                let run = |attend: &dyn Fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>| {
                    let of = |heads, seed| random([batch, heads, time, dim], seed, &device).require_grad();
                    let (q, k, v) = (of(heads, 1), of(kv_heads, 2), of(kv_heads, 3));
                    let out = attend(q.clone(), k.clone(), v.clone());
                    let upstream = random(out.dims(), 4, &device);
                    let gradients = (out.clone() * upstream).sum().backward();
                    [out.inner(), q.grad(&gradients).unwrap(), k.grad(&gradients).unwrap(), v.grad(&gradients).unwrap()]
                };
                let found = run(&|q, k, v| attention(q, k, v, Options { block, window, format: FloatDType::F32 }));
                let expected = run(&|q, k, v| dense_attention(q, k, v, window));
                for ((found, expected), name) in found.into_iter().zip(expected).zip(["value", "dq", "dk", "dv"]) {
                    assert_close(
                        found,
                        expected,
                        &format!("{name} for {time} tokens, {heads} of {kv_heads} heads, window {window:?}"),
                    );
                }
            }
        }
    }

    #[test]
    fn an_input_without_gradient_leaves_the_others_theirs() {
        let device = Device::flex().autodiff();
        let of = |seed| random([1, 2, 5, 4], seed, &device);
        let (q, k, v) = (of(1), of(2).require_grad(), of(3));
        let options = Options { block: 2, window: None, format: FloatDType::F32 };
        let gradients = attention(q.clone(), k.clone(), v.clone(), options).sum().backward();
        let expected = dense_attention(q, k.clone(), v, None).sum().backward();
        assert_close(k.grad(&gradients).unwrap(), k.grad(&expected).unwrap(), "dk");
    }

    /// The value does not depend on whether autodiff records it.
    #[test]
    fn without_autodiff_the_value_is_the_same() {
        let [plain, recorded] = [Device::flex(), Device::flex().autodiff()].map(|device| {
            let of = |seed| random([2, 2, 7, 4], seed, &device);
            to_host(attention(of(1), of(2), of(3), Options { block: 3, window: Some(4), format: FloatDType::F32 }))
        });
        assert_eq!(plain, recorded);
    }
}
