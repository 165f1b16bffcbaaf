//! The operations the decoder and the learner are made of.
//!
//! Each function here is the one definition of its operation. On the `cpu` device it runs as one fused pass with a
//! hand-written backward (`ops/cpu`), on GPU backends as kernels of our own (`ops/gpu`); everywhere else as the composition of
//! tensor operations in `ops/plain.rs`, attention in blocks of query rows (`ops/blockwise.rs`). Tests hold them equal.

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

/// Evaluates to the operation as the device has it: `ops/cpu`, `ops/gpu` where a GPU backend is compiled in, or `ops/plain.rs`.
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

/// The two runs of table rows that a new token may see: its prompt, and its completion so far, itself included.
pub(crate) type Span = [Range<usize>; 2];

/// What one forward pass does with the cache, the same for every layer.
#[derive(Debug, Default)]
pub(crate) struct CacheCall {
    /// Table row of each new token.
    writes: Vec<usize>,
    /// What each new token sees; none while prompts are read.
    spans: Arc<[Span]>,
    /// The same as tensors, made when first asked for.
    tensors: OnceLock<plain::CallTensors>,
    /// Where the new tokens go, as a tensor, made when first asked for.
    places: OnceLock<Tensor<1, Int>>,
}

impl CacheCall {
    pub(crate) fn new(writes: Vec<usize>, spans: Vec<Span>) -> Self {
        Self { writes, spans: spans.into(), tensors: OnceLock::new(), places: OnceLock::new() }
    }

    /// What each new token sees; none while prompts are read.
    pub(crate) fn spans(&self) -> &[Span] {
        &self.spans
    }
}

/// Whether the device is of a GPU backend: [`add_rms_norm`], [`attend`] and [`sample`] have kernels there.
pub(crate) fn is_gpu(device: &Device) -> bool {
    on!(device.clone(), cpu: false, gpu: true, plain: false)
}

/// What the head says about one token per row, in nats; gradients flow through `log_prob` and `entropy_sampling`.
#[derive(Debug, Clone)]
pub struct Scores {
    /// `log π(token)` at temperature 1 over `temperature`, `[rows]`.
    pub log_prob: Tensor<1>,
    /// Entropy of the distribution at temperature 1, `[rows]`.
    pub entropy: Tensor<1>,
    /// Entropy of the distribution at the sampling temperature, `[rows]`.
    pub entropy_sampling: Tensor<1>,
    /// `Σ p²` at the sampling temperature: the probability that two draws agree, `[rows]`.
    pub collision: Tensor<1>,
}

impl Scores {
    /// From the figures in this order, `[4, rows]`.
    fn of(figures: Tensor<2>) -> Self {
        let [_, rows] = figures.dims();
        let figure = |k: usize| figures.clone().slice([k..k + 1, 0..rows]).reshape([rows]);
        Self {
            log_prob: figure(0),
            entropy: figure(1).detach(),
            entropy_sampling: figure(2),
            collision: figure(3).detach(),
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

/// `gelu(gate) · up`, with the hyperbolic tangent's approximation; on GPUs a composition of tensor operations.
///
/// # Shapes
/// - all: `[rows, intermediate]`
pub(crate) fn geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    if cpu::serves(&gate.device()) { cpu::geglu(gate, up) } else { plain::geglu(gate, up) }
}

/// `x W + b`, factors in `format`, the result in f32. Factors of another format are converted, but on the `cpu` device: there
/// weights in f32 or bf16 are multiplied as they are stored, with `x` in f32, and bf16 as `format` rounds weights only.
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

/// `x W + b + s (x A) B` of an adapter beside a weight; formats as in [`linear`], on the `cpu` device without gradients in one
/// step.
///
/// # Shapes
/// - x: `[rows, input]`; weight: `[input, output]`; bias: `[output]`; factors: `[input, rank]`, `[rank, output]`; output:
///   `[rows, output]`
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
    // The factors are held in f32, and so are their products where that is no slower.
    let factors = if host { FloatDType::F32 } else { format };
    let low = linear(x.clone(), a, None, factors).mul_scalar(scale);
    linear(x, weight, bias, format) + linear(low, b, None, factors)
}

/// Whether a product is one of `ops/cpu`, which has none in f16.
fn on_host(x: &Tensor<2>, format: FloatDType) -> bool {
    format != FloatDType::F16 && cpu::serves(&x.device())
}

/// A weight for a product in `format` on the `cpu` device: one in 16 bits stays.
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

/// What stands for no bias where an operation must have one.
fn no_bias(device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(Vec::<f32>::new(), [0]), &device.clone().inner())
}

/// Zeros in memory taken once, in f32 or bf16.
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

/// `x Wᵀ`, for a head that is the embedding; the gradient of `W` comes in the orientation of `W`. Formats as in [`linear`].
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

/// `a b` in f32, without gradients on GPUs: Burn's own product rounds factors to TF32 there.
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

/// Rotates pairs `(i, i + width / 2)` of the first numbers of a head by the row's angles (the Hugging Face convention).
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

/// Causal attention within each of the packed sequences; several query heads share a key head. With a window a query sees
/// that many keys at most, its own the last of them; on GPUs this is a composition of tensor operations. Products are in
/// `format` on GPUs, in f32 elsewhere; the output is in f32.
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

/// Puts new rows into a table, in place where nothing else holds it.
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

/// Attention of one new token per sequence over the cache, which already holds that token.
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

/// A scalar whose gradient with respect to `x` is `upstream`: where a backward pass goes on from a gradient that is known.
///
/// Its value is not to be read.
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

/// Log-probability of one token per row, and what the distribution it came from is like.
///
/// `log_prob` is that of the distribution at `temperature`, the one tokens are sampled from. Where the
/// operation is one pass, backward writes the gradient into the logits' own memory.
///
/// # Shapes
/// - logits: `[rows, vocab]`; targets: one per row; outputs: `[rows]`
pub fn scores(logits: Tensor<2>, targets: &[u32], temperature: f32) -> Scores {
    assert_eq!(logits.dims()[0], targets.len(), "one target per row");
    on!(
        logits.device(),
        cpu: cpu::scores(logits, targets, temperature),
        gpu: gpu::scores(logits, targets, temperature),
        plain: plain::scores(logits, targets, temperature)
    )
}

/// Whether the device's memory is the host's and its operations are those of `ops/cpu`.
pub(crate) fn is_host(device: &Device) -> bool {
    cpu::serves(device)
}

/// Runs `compute` with the compositions of `ops/plain.rs` in the place of the `cpu` device's own operations, which are
/// checked against them. It must not go to other threads.
pub(crate) fn plainly<T>(compute: impl FnOnce() -> T) -> T {
    cpu::plainly(compute)
}

/// Where a tensor of the `cpu` device lies in memory.
#[cfg(test)]
pub(crate) fn address<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    to_host(cpu::address(x.inner()))
}

/// By the `cpu` device's own operations, and by the compositions of tensor operations that they are checked against.
#[cfg(test)]
pub(crate) fn both<T>(compute: impl Fn() -> T) -> [T; 2] {
    [compute(), plainly(&compute)]
}

#[cfg(test)]
mod tests;
