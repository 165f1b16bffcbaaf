//! Reference implementations as compositions of tensor operations, used on every device without kernels of its own.
//! Only attention has a custom backward pass here, in `ops/blockwise.rs`.

use burn::tensor::activation::{log_softmax, sigmoid, silu, softmax};
use burn::tensor::{Bool, Device, FloatDType, IndexingUpdateOp, Int, Tensor, TensorData};

use super::rows::{pack, unpack};
use super::traffic::index;
use super::{CacheCall, RowScores, Span, blockwise, to_device};

pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let scale = x.clone().powi_scalar(2).mean_dim(1).add_scalar(epsilon).sqrt();
    x / scale * weight.unsqueeze()
}

pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, format: FloatDType) -> Tensor<2> {
    if format == FloatDType::F32 {
        return burn::tensor::module::linear(x, weight.cast(format), bias);
    }
    let product = x.cast(format).matmul(weight.cast(format)).cast(FloatDType::F32);
    match bias {
        Some(bias) => product + bias.unsqueeze(),
        None => product,
    }
}

pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    silu(gate) * up
}

pub(super) fn geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    // 0.5 (1 + tanh u) equals sigmoid(2u).
    let inner = gate.clone() + gate.clone().powi_scalar(3).mul_scalar(CUBIC);
    gate * sigmoid(inner.mul_scalar(2.0 * SLOPE)) * up
}

/// `gelu(x) ≈ x / 2 · (1 + tanh(SLOPE · (x + CUBIC · x³)))` (arXiv 1606.08415).
pub(super) const CUBIC: f64 = 0.044715;
/// `√(2 / π)`.
pub(super) const SLOPE: f64 = 0.797_884_560_802_865_4;

pub(super) fn rotary(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    let half = x.dims()[2] / 2;
    let (first, second) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let (cos, sin): (Tensor<3>, Tensor<3>) = (cos.unsqueeze_dim(1), sin.unsqueeze_dim(1));
    let rotated = [first.clone() * cos.clone() - second.clone() * sin.clone(), second * cos + first * sin];
    Tensor::cat(rotated.to_vec(), 2)
}

pub(super) fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    lengths: &[usize],
    window: Option<usize>,
    format: FloatDType,
) -> Tensor<2> {
    let [_, heads, dim] = q.dims();
    let (batch, longest) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
    // [rows, heads, dim] -> [batch, heads, longest, dim]
    let spread = |x: Tensor<3>| {
        let [_, heads, dim] = x.dims();
        unpack(x.reshape([-1, (heads * dim) as i32]), lengths, longest)
            .reshape([batch, longest, heads, dim])
            .swap_dims(1, 2)
    };
    let options = blockwise::Options { block: blockwise::block(&q.device(), batch * heads, longest), window, format };
    let mixed = blockwise::attention(spread(q), spread(k), spread(v), options).swap_dims(1, 2);
    pack(mixed.reshape([batch * longest, heads * dim]), lengths, longest)
}

/// Tensors of a [`CacheCall`].
#[derive(Debug)]
pub(super) struct CallTensors {
    /// Cache rows each new token attends to, `[n · longest]`, padded with row 0.
    reads: Tensor<1, Int>,
    /// `[n, 1, 1, longest]`: true where a read is padding.
    padding: Tensor<4, Bool>,
    longest: usize,
}

/// `longest` is rounded up to a multiple of this, so that devices that compile a kernel per shape see few shapes.
const READ_BUCKET: usize = 64;

fn call_tensors<'a>(call: &'a CacheCall, device: &Device) -> &'a CallTensors {
    call.tensors.get_or_init(|| {
        let seen = |[prompt, own]: &Span| prompt.len() + own.len();
        let longest = call.spans.iter().map(seen).max().unwrap_or(0).next_multiple_of(READ_BUCKET);
        let (mut reads, mut padding) = (Vec::new(), Vec::new());
        for span in call.spans.iter() {
            let rows = span.iter().cloned().flatten().chain(std::iter::repeat(0)).take(longest);
            reads.extend(rows.map(|row| row as i64));
            padding.extend((0..longest).map(|at| at >= seen(span)));
        }
        CallTensors {
            reads: index(&reads, device),
            padding: to_device(TensorData::new(padding, [call.spans.len(), 1, 1, longest]), device),
            longest,
        }
    })
}

/// Return the cache row of each new token, `[n]`, uploaded on first use.
pub(super) fn writes(call: &CacheCall, device: &Device) -> Tensor<1, Int> {
    let upload = || {
        let writes: Vec<i64> = call.writes.iter().map(|&row| row as i64).collect();
        index(&writes, device)
    };
    call.places.get_or_init(upload).clone()
}

pub(super) fn write_rows(table: Tensor<2>, rows: Tensor<2>, call: &CacheCall) -> Tensor<2> {
    let writes = writes(call, &table.device());
    table.select_assign(0, writes, rows, IndexingUpdateOp::Assign)
}

pub(super) fn attention_cached(q: Tensor<3>, keys: Tensor<2>, values: Tensor<2>, call: &CacheCall) -> Tensor<2> {
    let [rows, heads, dim] = q.dims();
    let kv_heads = keys.dims()[1] / dim;
    let tensors = call_tensors(call, &q.device());
    let gather = |table: Tensor<2>| {
        table.select(0, tensors.reads.clone()).reshape([rows, tensors.longest, kv_heads, dim]).swap_dims(1, 2)
    };
    let q = q.reshape([rows, kv_heads, heads / kv_heads, dim]);
    let scores = super::matmul(q, gather(keys).swap_dims(2, 3)).mul_scalar(scale(dim));
    let scores = scores.mask_fill(tensors.padding.clone(), f32::NEG_INFINITY);
    super::matmul(softmax(scores, 3), gather(values)).reshape([rows, heads * dim])
}

/// Scale of attention scores: `1 / √dim`.
pub(super) fn scale(dim: usize) -> f64 {
    1.0 / (dim as f64).sqrt()
}

/// Sum `x` in two ordered stages. A GPU's sum of a whole tensor adds in the order in which threads arrive, which
/// changed the last bits of the gradient norm and so of a resumed run.
pub(super) fn sum(x: Tensor<1>) -> Tensor<1> {
    const WIDTH: usize = 1024;
    let [length] = x.dims();
    let rows = length / WIDTH;
    let mut parts = Vec::new();
    if rows > 0 {
        parts.push(x.clone().narrow(0, 0, rows * WIDTH).reshape([rows, WIDTH]).sum_dim(1).reshape([rows]));
    }
    if length > rows * WIDTH {
        parts.push(x.narrow(0, rows * WIDTH, length - rows * WIDTH));
    }
    Tensor::cat(parts, 0).sum_dim(0)
}

pub(super) fn scores(logits: Tensor<2>, targets: &[u32], temperature: f32) -> RowScores {
    let rows = targets.len();
    let device = logits.device();
    let targets: Vec<i64> = targets.iter().map(|&token| i64::from(token)).collect();
    let targets = to_device::<2, Int>(TensorData::new(targets, [rows, 1]), &device);
    let unit = log_softmax(logits.clone().detach(), 1);
    let sampling = log_softmax(logits.div_scalar(temperature), 1);
    let entropy = |log_probs: Tensor<2>| (log_probs.clone().exp() * log_probs).sum_dim(1).neg().reshape([rows]);
    RowScores {
        log_prob: sampling.clone().gather(1, targets).reshape([rows]),
        entropy: entropy(unit),
        entropy_sampling: entropy(sampling.clone()),
        collision: sampling.detach().mul_scalar(2.0).exp().sum_dim(1).reshape([rows]),
    }
}
