//! Tensor operations used by the decoder and the learner.
//!
//! Each function dispatches one operation by device: on `cpu` to a fused pass with a hand-written backward (`ops/cpu`),
//! on GPU backends to our own kernels (`ops/gpu`), elsewhere to a composition of tensor operations in `ops/plain.rs`,
//! with attention in blocks of query rows (`ops/blockwise.rs`). Tests check that the implementations agree.

mod blockwise;
mod cpu;
mod decode;
pub(crate) mod delta;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
pub(crate) mod path;
mod plain;
mod rows;
pub(crate) mod traffic;
pub(crate) mod update;

/// Row functions on host memory, for sampling.
pub(crate) use cpu::host;
pub(crate) use decode::{Decoding, Repeated, add_rms_norm, attend, products, sample, swiglu_as};
pub(crate) use rows::{padding, take_rows};
pub(crate) use traffic::{to_device, to_host, to_host_together};

/// Selects the implementation for `$device`: `ops/gpu` if a GPU backend is compiled in, `ops/cpu`, or `ops/plain.rs`.
macro_rules! on {
    ($device:expr, cpu: $cpu:expr, gpu: $gpu:expr, plain: $plain:expr) => {{
        let device = $device;
        #[cfg(feature = "gpu")]
        if gpu::serves(&device) {
            return $gpu;
        }
        if cpu::serves(&device) { $cpu } else { $plain }
    }};
}

use on;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use half::bf16;

/// The two ranges of KV-cache rows a new token attends to: its prompt, and its completion including the token itself.
pub(crate) type Span = [Range<usize>; 2];

/// KV-cache reads and writes of one forward pass, shared by all layers.
#[derive(Debug, Default)]
pub(crate) struct CacheCall {
    /// Cache row that each new token is written to.
    writes: Vec<usize>,
    /// Cache rows each new token attends to; empty during prompt prefill.
    spans: Arc<[Span]>,
    /// `spans` as tensors, created on first use.
    tensors: OnceLock<plain::CallTensors>,
    /// `writes` as a tensor, created on first use.
    places: OnceLock<Tensor<1, Int>>,
}

impl CacheCall {
    pub(crate) fn new(writes: Vec<usize>, spans: Vec<Span>) -> Self {
        Self { writes, spans: spans.into(), tensors: OnceLock::new(), places: OnceLock::new() }
    }

    /// Cache rows each new token attends to; empty during prompt prefill.
    pub(crate) fn spans(&self) -> &[Span] {
        &self.spans
    }
}

/// Whether `device` belongs to a GPU backend, which has kernels for [`add_rms_norm`], [`attend`] and [`sample`].
pub(crate) fn is_gpu(device: &Device) -> bool {
    on!(device.clone(), cpu: false, gpu: true, plain: false)
}

/// Statistics of one next-token distribution and target token per row; logarithms and entropies are in nats. Gradients
/// flow only through `log_prob` and `entropy_sampling`.
#[derive(Debug, Clone)]
pub struct RowScores {
    /// `log π(token)` at the sampling temperature, `[rows]`.
    pub log_prob: Tensor<1>,
    /// Entropy of the distribution at temperature 1, `[rows]`.
    pub entropy: Tensor<1>,
    /// Entropy of the distribution at the sampling temperature, `[rows]`.
    pub entropy_sampling: Tensor<1>,
    /// `Σ p²` at the sampling temperature: the probability that two samples are equal, `[rows]`.
    pub collision: Tensor<1>,
}

impl RowScores {
    /// Split `statistics`, `[4, rows]`, whose rows are the fields in the order of their declaration.
    fn of(statistics: Tensor<2>) -> Self {
        let [_, rows] = statistics.dims();
        let statistic = |k: usize| statistics.clone().slice([k..k + 1, 0..rows]).reshape([rows]);
        Self {
            log_prob: statistic(0),
            entropy: statistic(1).detach(),
            entropy_sampling: statistic(2),
            collision: statistic(3).detach(),
        }
    }
}

/// `x / sqrt(mean(x²) + ε) · weight`, over the last dimension.
///
/// # Shapes
/// - x, output: `[rows, hidden]`; weight: `[hidden]`
pub(crate) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    on!(
        x.device(),
        cpu: cpu::rms_norm(x, weight, epsilon),
        gpu: gpu::rms_norm(x, weight, epsilon, FloatDType::F32),
        plain: plain::rms_norm(x, weight, epsilon)
    )
}

/// `silu(gate) · up`.
///
/// # Shapes
/// - all: `[rows, intermediate]`
pub(crate) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    on!(gate.device(), cpu: cpu::swiglu(gate, up), gpu: gpu::swiglu(gate, up, FloatDType::F32), plain: plain::swiglu(gate, up))
}

/// `gelu(gate) · up` with the tanh approximation of GELU. GPU backends compose it from tensor operations.
///
/// # Shapes
/// - all: `[rows, intermediate]`
pub(crate) fn geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    if cpu::serves(&gate.device()) { cpu::geglu(gate, up) } else { plain::geglu(gate, up) }
}

/// `x W + b` with operands in `format` and the result in f32. Operands in another format are converted, except on the
/// `cpu` device: it multiplies f32 and bf16 weights as stored, with `x` in f32; `format` bf16 rounds only the weight.
///
/// # Shapes
/// - x: `[rows, input]`; weight: `[input, output]`; bias: `[output]`; output: `[rows, output]`
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, format: FloatDType) -> Tensor<2> {
    if on_host(&x, format) {
        let bias = bias.unwrap_or_else(|| no_bias(&x.device()));
        return cpu::linear(x, rounded(weight, format), bias);
    }
    #[cfg(feature = "gpu")]
    if gpu::serves(&x.device()) {
        return gpu::linear(x, weight, bias, format);
    }
    plain::linear(x, weight, bias, format)
}

/// `x W + b + s (x A) B`: a linear layer with a LoRA adapter. Formats as in [`linear`]; on the `cpu` device without
/// autodiff this is a single operation.
///
/// # Shapes
/// - x: `[rows, input]`; weight: `[input, output]`; bias: `[output]`; A: `[input, rank]`; B: `[rank, output]`
/// - output: `[rows, output]`
pub(crate) fn adapted_linear(
    x: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    ([a, b], scale): ([Tensor<2>; 2], f64),
    format: FloatDType,
) -> Tensor<2> {
    let host = on_host(&x, format);
    if host && !x.device().is_autodiff() {
        let bias = bias.unwrap_or_else(|| no_bias(&x.device()));
        return cpu::adapted_linear(x, rounded(weight, format), bias, [a, b], scale as f32);
    }
    // A and B are stored in f32. The `cpu` device also multiplies them in f32, because that is no slower there.
    let factors = if host { FloatDType::F32 } else { format };
    let low = linear(x.clone(), a, None, factors).mul_scalar(scale);
    linear(x, weight, bias, format) + linear(low, b, None, factors)
}

/// Whether `ops/cpu` computes a product of `x` in `format`; it does not support f16.
fn on_host(x: &Tensor<2>, format: FloatDType) -> bool {
    format != FloatDType::F16 && cpu::serves(&x.device())
}

/// Round `weight` to bf16 if that is `format`; otherwise returns it, since `ops/cpu` multiplies weights as stored.
fn rounded(weight: Tensor<2>, format: FloatDType) -> Tensor<2> {
    if format == FloatDType::BF16 { weight.cast(format) } else { weight }
}

/// `(silu(gate) · up) W + b`: the second half of a gated feed-forward layer; formats as in [`linear`].
///
/// # Shapes
/// - gate, up: `[rows, intermediate]`; weight: `[intermediate, output]`; bias: `[output]`; output: `[rows, output]`
pub(crate) fn swiglu_linear(
    gate: Tensor<2>,
    up: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    format: FloatDType,
) -> Tensor<2> {
    if on_host(&gate, format) {
        let bias = bias.unwrap_or_else(|| no_bias(&gate.device()));
        cpu::swiglu_linear(gate, up, rounded(weight, format), bias)
    } else {
        linear(swiglu(gate, up), weight, bias, format)
    }
}

/// Return an empty bias, which `ops/cpu` reads as none.
fn no_bias(device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(Vec::<f32>::new(), [0]), &device.clone().inner())
}

/// Return `count` zeros in f32 or bf16, with a single allocation.
pub(crate) fn zeros(count: usize, format: FloatDType, device: &Device) -> Tensor<1> {
    let options = (device, DType::from(format));
    if !cpu::serves(device) {
        return Tensor::zeros([count], options);
    }
    let data = match format {
        FloatDType::BF16 => TensorData::new(vec![bf16::ZERO; count], [count]),
        _ => TensorData::new(vec![0.0f32; count], [count]),
    };
    Tensor::from_data(data, options)
}

/// `x Wᵀ`, for an LM head tied to the embedding. The gradient of `W` has the layout of `W`. Formats as in [`linear`].
///
/// # Shapes
/// - x: `[rows, hidden]`; weight: `[vocab, hidden]`; output: `[rows, vocab]`
pub(crate) fn matmul_transposed(x: Tensor<2>, weight: Tensor<2>, format: FloatDType) -> Tensor<2> {
    if on_host(&x, format) {
        return cpu::matmul_transposed(x, rounded(weight, format));
    }
    #[cfg(feature = "gpu")]
    if gpu::serves(&x.device()) {
        return gpu::matmul_transposed(x, weight, format);
    }
    plain::linear(x, weight.transpose(), None, format)
}

/// `a b` in f32. Without autodiff on GPUs: it is our own kernel, because Burn's product rounds operands to TF32 there.
///
/// # Shapes
/// - a: `[.., m, k]`; b: `[.., k, n]`; output: `[.., m, n]`
pub(crate) fn matmul<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if gpu::serves(&a.device()) {
        return gpu::matmul(a, b, FloatDType::F32);
    }
    a.matmul(b)
}

/// Apply rotary embedding (Hugging Face convention) to pairs `(i, i + width / 2)` of a head's first `width` elements.
///
/// # Shapes
/// - x, output: `[rows, heads, head_dim]`; cos, sin: `[rows, width / 2]`, `width` at most `head_dim`
pub(crate) fn rotary(x: Tensor<3>, cos: &Tensor<2>, sin: &Tensor<2>) -> Tensor<3> {
    let ([_, _, dim], width) = (x.dims(), 2 * cos.dims()[1]);
    if width < dim {
        let (rotated, rest) = (x.clone().narrow(2, 0, width), x.narrow(2, width, dim - width));
        return Tensor::cat(vec![rotary(rotated, cos, sin), rest], 2);
    }
    let (cos, sin) = (cos.clone(), sin.clone());
    on!(x.device(), cpu: cpu::rotary(x, cos, sin), gpu: gpu::rotary(x, cos, sin), plain: plain::rotary(x, cos, sin))
}

/// Causal self-attention within each packed sequence; several query heads may share a key head. With `window` a query
/// attends to at most that many keys, the last being its own; on GPUs this case is composed of tensor operations.
/// Products are in `format` on GPUs and in f32 elsewhere; the output is in f32.
///
/// # Shapes
/// - q: `[rows, heads, head_dim]`; k, v: `[rows, kv_heads, head_dim]`; output: `[rows, heads · head_dim]`
pub(crate) fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    lengths: &[usize],
    window: Option<usize>,
    format: FloatDType,
) -> Tensor<2> {
    if cpu::serves(&q.device()) {
        cpu::attention(q, k, v, lengths, window)
    } else {
        plain::attention(q, k, v, lengths, window, format)
    }
}

/// Write `rows` to the cache rows given by `call`, in place if `table` is not shared.
///
/// # Shapes
/// - table, output: `[tokens, width]`; rows: `[n, width]`
pub(crate) fn write_rows(table: Tensor<2>, rows: Tensor<2>, call: &CacheCall) -> Tensor<2> {
    assert_eq!(rows.dims()[0], call.writes.len(), "new rows and their places");
    on!(
        table.device(),
        cpu: cpu::write_rows(table, rows, &call.writes),
        gpu: {
            let writes = plain::writes(call, &table.device());
            gpu::inference::write_rows(table, rows, writes)
        },
        plain: plain::write_rows(table, rows, call)
    )
}

/// Attention of one new token per sequence over the KV cache, which already contains that token.
///
/// # Shapes
/// - q: `[n, heads, head_dim]`; keys, values: `[tokens, kv_heads · head_dim]`; output: `[n, heads · head_dim]`
pub(crate) fn attention_cached(q: Tensor<3>, keys: &Tensor<2>, values: &Tensor<2>, call: &CacheCall) -> Tensor<2> {
    assert_eq!(q.dims()[0], call.spans.len(), "queries and what they see");
    if cpu::serves(&q.device()) {
        cpu::attention_cached(q, keys.clone(), values.clone(), &call.spans)
    } else {
        plain::attention_cached(q, keys.clone(), values.clone(), call)
    }
}

/// Return a scalar whose gradient with respect to `x` is `upstream`, to start a backward pass from a known gradient.
///
/// The value of the scalar is unspecified.
///
/// # Shapes
/// - x, upstream: `[rows, width]`; upstream without autodiff
pub(crate) fn seed(x: Tensor<2>, upstream: Tensor<2>) -> Tensor<1> {
    assert_eq!(x.dims(), upstream.dims(), "a value and its gradient");
    on!(
        x.device(),
        cpu: cpu::seed(x, upstream),
        gpu: gpu::seed(x, upstream),
        plain: (x * Tensor::from_inner(upstream)).sum()
    )
}

/// Compute the log-probability of one target token per row, and the entropies and collision probability of the row.
///
/// `log_prob` is taken at `temperature`, the sampling temperature. The fused implementations write the gradient into
/// the memory of `logits` in the backward pass.
///
/// # Shapes
/// - logits: `[rows, vocab]`; targets: one per row; outputs: `[rows]`
pub fn scores(logits: Tensor<2>, targets: &[u32], temperature: f32) -> RowScores {
    assert_eq!(logits.dims()[0], targets.len(), "one target per row");
    on!(
        logits.device(),
        cpu: cpu::scores(logits, targets, temperature),
        gpu: gpu::scores(logits, targets, temperature),
        plain: plain::scores(logits, targets, temperature)
    )
}

/// Whether `device` is the `cpu` device: its memory is host memory, and `ops/cpu` implements its operations.
pub(crate) fn is_host(device: &Device) -> bool {
    cpu::serves(device)
}

/// Run `compute` with the reference operations of `ops/plain.rs` in place of those of `ops/cpu`. The switch is per
/// thread, so `compute` must not run operations on other threads.
pub(crate) fn plainly<T>(compute: impl FnOnce() -> T) -> T {
    cpu::plainly(compute)
}

/// Return the memory address of a tensor on the `cpu` device.
#[cfg(test)]
pub(crate) fn address<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    to_host(cpu::address(x.inner()))
}

/// Run `compute` twice: with the operations of `ops/cpu`, then with the reference operations.
#[cfg(test)]
pub(crate) fn both<T>(compute: impl Fn() -> T) -> [T; 2] {
    [compute(), plainly(&compute)]
}

#[cfg(test)]
mod tests;
