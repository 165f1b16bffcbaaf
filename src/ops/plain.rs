//! The operations as compositions of tensor operations: the reference, and the path of every device without its own.

use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use super::{CacheSpan, Scores, pack, unpack};

pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let scale = x.clone().powi_scalar(2).mean_dim(1).add_scalar(epsilon).sqrt();
    x / scale * weight.unsqueeze()
}

pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    silu(gate) * up
}

pub(super) fn rotary(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    let (first, second) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let (cos, sin): (Tensor<3>, Tensor<3>) = (cos.unsqueeze_dim(1), sin.unsqueeze_dim(1));
    let rotated = [first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
    Tensor::cat(rotated.to_vec(), 2)
}

pub(super) fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, lengths: &[usize]) -> Tensor<2> {
    let [_, heads, dim] = q.dims();
    let [_, kv_heads, _] = k.dims();
    let (batch, longest) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
    // [rows, heads, dim] -> [batch, heads, longest, dim]
    let spread = |x: Tensor<3>, heads: usize| {
        unpack(x.reshape([-1, (heads * dim) as i32]), lengths, longest)
            .reshape([batch, longest, heads, dim])
            .swap_dims(1, 2)
    };
    // The heads that share a key head become more query rows of it.
    let group = heads / kv_heads;
    let q = spread(q, heads).reshape([batch, kv_heads, group * longest, dim]);
    let (k, v) = (spread(k, kv_heads), spread(v, kv_heads));
    let past = Tensor::<2, Bool>::tril_mask([longest, longest], 0, &q.device());
    let future: Tensor<4, Bool> = past.repeat_dim(0, group).unsqueeze();
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(scale(dim));
    let weights = softmax(scores.mask_fill(future, f32::NEG_INFINITY), 3);
    let mixed = weights.matmul(v).reshape([batch, heads, longest, dim]).swap_dims(1, 2);
    pack(mixed.reshape([batch * longest, heads * dim]), lengths, longest)
}

pub(super) fn attention_cached(q: Tensor<3>, keys: Tensor<4>, values: Tensor<4>, span: &CacheSpan) -> Tensor<2> {
    let [batch, heads, dim] = q.dims();
    let kv_heads = keys.dims()[1];
    let q = q.reshape([batch, kv_heads, heads / kv_heads, dim]);
    let (k, v) = (keys.narrow(2, 0, span.written), values.narrow(2, 0, span.written));
    let scores = q.matmul(k.swap_dims(2, 3)).mul_scalar(scale(dim));
    let scores = scores.mask_fill(hidden_slots(span, &v.device()), f32::NEG_INFINITY);
    softmax(scores, 3).matmul(v).reshape([batch, heads * dim])
}

/// `[batch, 1, 1, written]`: true where a row must not look.
fn hidden_slots(span: &CacheSpan, device: &Device) -> Tensor<4, Bool> {
    let hidden: Vec<bool> = (span.prompts.iter())
        .flat_map(|&prompt| (0..span.written).map(move |slot| slot >= prompt && slot < span.width))
        .collect();
    Tensor::from_data(TensorData::new(hidden, [span.prompts.len(), 1, 1, span.written]), device)
}

fn scale(dim: usize) -> f64 {
    1.0 / (dim as f64).sqrt()
}

pub(super) fn scores(logits: Tensor<2>, targets: &[u32], temperature: f32) -> Scores {
    let rows = targets.len();
    let device = logits.device();
    let targets: Vec<i64> = targets.iter().map(|&token| i64::from(token)).collect();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [rows, 1]), &device);
    let sampling = log_softmax(logits.clone().div_scalar(temperature), 1);
    let entropy = |log_probs: Tensor<2>| (log_probs.clone().exp() * log_probs).sum_dim(1).neg().reshape([rows]);
    Scores {
        log_prob: sampling.clone().gather(1, targets).reshape([rows]),
        entropy: entropy(log_softmax(logits.detach(), 1)),
        entropy_sampling: entropy(sampling.detach()),
    }
}
