//! The operations the decoder and the learner are made of.
//!
//! Each function here is the one definition of its operation. On the `cpu` device it runs as one fused pass with a
//! hand-written backward (`ops/cpu`), on GPU backends as kernels of our own (`ops/gpu`); everywhere else as the composition of
//! tensor operations in `ops/plain.rs`, attention in blocks of query rows (`ops/blockwise.rs`). Tests hold them equal.

mod blockwise;
mod cpu;
mod decode;
#[cfg(feature = "gpu")]
pub(crate) mod gpu;
pub(crate) mod path;
mod plain;
pub(crate) mod traffic;
pub(crate) mod update;

/// Row functions on host memory, for sampling.
pub(crate) use cpu::host;
pub(crate) use decode::{Decoding, add_rms_norm, attend, products, sample, swiglu_as};

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

use burn::tensor::kind::Basic;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData, Transaction};

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
        gpu: gpu::rms_norm(x, weight, epsilon),
        plain: plain::rms_norm(x, weight, epsilon)
    )
}

/// `silu(gate) · up`.
///
/// # Shapes
/// - all: `[rows, intermediate]`
pub(crate) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    on!(gate.device(), cpu: cpu::swiglu(gate, up), gpu: gpu::swiglu(gate, up), plain: plain::swiglu(gate, up))
}

/// `gelu(gate) · up`, with the hyperbolic tangent's approximation; on GPUs a composition of tensor operations.
///
/// # Shapes
/// - all: `[rows, intermediate]`
pub(crate) fn geglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    if cpu::serves(&gate.device()) { cpu::geglu(gate, up) } else { plain::geglu(gate, up) }
}

/// `x W + b`, factors in `format`, the result in f32. Factors of another format are converted.
///
/// # Shapes
/// - x: `[rows, input]`; weight: `[input, output]`; bias: `[output]`; output: `[rows, output]`
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, format: FloatDType) -> Tensor<2> {
    if format != FloatDType::F32 {
        return linear_in(x, weight, bias, format);
    }
    on!(
        x.device(),
        cpu: {
            let bias = bias.unwrap_or_else(|| no_bias(&x.device()));
            cpu::linear(x, weight, bias)
        },
        gpu: gpu::linear(x, weight, bias, format),
        plain: burn::tensor::module::linear(x, weight, bias)
    )
}

/// [`linear`] in 16 bits.
fn linear_in(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>, format: FloatDType) -> Tensor<2> {
    #[cfg(feature = "gpu")]
    if gpu::serves(&x.device()) {
        return gpu::linear(x, weight, bias, format);
    }
    let product = x.cast(format).matmul(weight.cast(format)).cast(FloatDType::F32);
    match bias {
        Some(bias) => product + bias.unsqueeze(),
        None => product,
    }
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
    if format == FloatDType::F32 && cpu::serves(&gate.device()) {
        let bias = bias.unwrap_or_else(|| no_bias(&gate.device()));
        cpu::swiglu_linear(gate, up, weight, bias)
    } else {
        linear(swiglu(gate, up), weight, bias, format)
    }
}

/// What stands for no bias where an operation must have one.
fn no_bias(device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::new(Vec::<f32>::new(), [0]), &device.clone().inner())
}

/// Zeros in memory taken once.
pub(crate) fn zeros(count: usize, device: &Device) -> Tensor<1> {
    if cpu::serves(device) {
        Tensor::from_data(TensorData::new(vec![0.0f32; count], [count]), device)
    } else {
        Tensor::zeros([count], device)
    }
}

/// `x W`: [`linear`] without a bias.
pub(crate) fn matmul(x: Tensor<2>, weight: Tensor<2>, format: FloatDType) -> Tensor<2> {
    #[cfg(feature = "gpu")]
    if gpu::serves(&x.device()) {
        return gpu::linear(x, weight, None, format);
    }
    if format == FloatDType::F32 { x.matmul(weight) } else { linear_in(x, weight, None, format) }
}

/// `x Wᵀ`, for a head that is the embedding; the gradient of `W` comes in the orientation of `W`. Formats as in [`linear`].
///
/// # Shapes
/// - x: `[rows, hidden]`; weight: `[vocab, hidden]`; output: `[rows, vocab]`
pub(crate) fn matmul_transposed(x: Tensor<2>, weight: Tensor<2>, format: FloatDType) -> Tensor<2> {
    #[cfg(feature = "gpu")]
    if gpu::serves(&x.device()) {
        return gpu::matmul_transposed(x, weight, format);
    }
    match (format, cpu::serves(&x.device())) {
        (FloatDType::F32, true) => cpu::matmul_transposed(x, weight),
        (FloatDType::F32, false) => x.matmul(weight.transpose()),
        _ => linear_in(x, weight.transpose(), None, format),
    }
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
/// that many keys at most, its own the last of them; on GPUs this is a composition of tensor operations.
///
/// # Shapes
/// - q: `[rows, heads, head_dim]`; k, v: `[rows, kv_heads, head_dim]`; output: `[rows, heads · head_dim]`
pub(crate) fn attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    lengths: &[usize],
    window: Option<usize>,
) -> Tensor<2> {
    let attention = if cpu::serves(&q.device()) { cpu::attention } else { plain::attention };
    attention(q, k, v, lengths, window)
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

/// Packed rows as a padded batch: `[sum of lengths, width_of_row]` to `[sequences · longest, width_of_row]`.
/// What stands in the padding is unspecified; its gradient must be zero.
fn unpack(rows: Tensor<2>, lengths: &[usize], longest: usize) -> Tensor<2> {
    if lengths.iter().all(|&length| length == longest) {
        return rows;
    }
    let mut from = Vec::with_capacity(lengths.len() * longest);
    let mut start = 0;
    for &length in lengths {
        from.extend((0..longest).map(|t| (start + t.min(length - 1)) as u32));
        start += length;
    }
    permuted(rows, from, || packed(lengths, longest))
}

/// The inverse of [`unpack`]: drops the padding.
fn pack(rows: Tensor<2>, lengths: &[usize], longest: usize) -> Tensor<2> {
    if lengths.iter().all(|&length| length == longest) {
        return rows;
    }
    permuted(rows, packed(lengths, longest), || {
        let mut back = vec![u32::MAX; lengths.len() * longest];
        packed(lengths, longest).into_iter().enumerate().for_each(|(row, at)| back[at as usize] = row as u32);
        back
    })
}

/// Where each packed row stands in the padded batch.
fn packed(lengths: &[usize], longest: usize) -> Vec<u32> {
    let rows = lengths.iter().enumerate();
    rows.flat_map(|(sequence, &length)| (0..length).map(move |t| (sequence * longest + t) as u32)).collect()
}

/// The rows at `from`. `back` says where in the result's gradient that of each row stands, so that a GPU, on which rows that
/// may meet are added one after another, takes them, too.
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
fn permuted(rows: Tensor<2>, from: Vec<u32>, back: impl FnOnce() -> Vec<u32>) -> Tensor<2> {
    let device = rows.device();
    #[cfg(feature = "gpu")]
    if gpu::serves(&device) {
        return gpu::take_rows(rows, from, back());
    }
    let from: Vec<i64> = from.into_iter().map(i64::from).collect();
    rows.select(0, index(&from, &device))
}

/// Tokens of padding that [`attention`] computes beside sequences of these lengths.
pub(crate) fn padding(lengths: &[usize], device: &Device) -> usize {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if cpu::serves(device) { 0 } else { longest * lengths.len() - lengths.iter().sum::<usize>() }
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

/// The given rows of `x`.
pub(crate) fn take_rows(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let device = x.device();
    x.select(0, index(&rows, &device))
}

/// A tensor's values, copied to the host where they are not there already.
///
/// # Panics
/// When the tensor is not f32.
pub(crate) fn to_host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    traffic::note_read();
    values(x.into_data())
}

/// The values of several tensors, in one read.
///
/// # Panics
/// When a tensor is not f32.
pub(crate) fn to_host_together(tensors: Vec<Tensor<1>>) -> Vec<Vec<f32>> {
    if tensors.is_empty() {
        return Vec::new();
    }
    traffic::note_read();
    let all = tensors.into_iter().fold(Transaction::default(), Transaction::register);
    all.execute().into_iter().map(values).collect()
}

fn values(data: TensorData) -> Vec<f32> {
    data.try_into_vec().unwrap_or_else(|error| panic!("tensor is not f32: {error:?}"))
}

/// A tensor on the device, of the device's own format for its kind.
pub(crate) fn to_device<const D: usize, K: Basic>(data: TensorData, device: &Device) -> Tensor<D, K> {
    let tensor = Tensor::from_data(data, device);
    traffic::note_sent(tensor.shape().num_elements() * tensor.dtype().size());
    tensor
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

fn index(indices: &[i64], device: &Device) -> Tensor<1, Int> {
    to_device(TensorData::from(indices), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Stream;

    fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
        let mut random = Stream::new(&[seed]);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| (random.unit() * 4.0 - 2.0) as f32).collect();
        let tensor = Tensor::from_data(TensorData::new(values, shape), device);
        if device.is_autodiff() { tensor.require_grad() } else { tensor }
    }

    /// Values and gradients of `f` under a random upstream gradient, the fused against the plain.
    fn compare<const D: usize>(f: impl Fn(&Device) -> (Tensor<D>, Vec<Tensor<1>>)) {
        let device = Device::flex().autodiff();
        let [fused, plain] = both(|| {
            let (out, inputs) = f(&device);
            let shape: [usize; D] = out.dims();
            let upstream = random(shape, 99, &device).detach();
            let gradients = (out.clone() * upstream).sum().backward();
            let gradients: Vec<Vec<f32>> =
                inputs.iter().map(|x| to_host(x.grad(&gradients).expect("input has a gradient"))).collect();
            (to_host(out.inner()), gradients)
        });
        close(&fused.0, &plain.0, "value");
        for (index, (fused, plain)) in fused.1.iter().zip(&plain.1).enumerate() {
            close(fused, plain, &format!("gradient of input {index}"));
        }
    }

    fn close(a: &[f32], b: &[f32], what: &str) {
        assert_eq!(a.len(), b.len(), "{what}");
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "{what} at {i}: {a} against {b}");
        }
    }

    /// A leaf of rank 1, so that gradients of all inputs have one type, and its reshaped view.
    fn leaf<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> (Tensor<1>, Tensor<D>) {
        let flat = random([shape.iter().product()], seed, device);
        (flat.clone(), flat.reshape(shape))
    }

    #[test]
    fn rms_norm_fused_equals_plain() {
        for (rows, width) in [(1, 1), (3, 17), (300, 64)] {
            compare(|device| {
                let (x, x_view) = leaf([rows, width], 1, device);
                let (w, w_view) = leaf([width], 2, device);
                (rms_norm(x_view, w_view, 1e-6), vec![x, w])
            });
        }
    }

    #[test]
    fn swiglu_fused_equals_plain() {
        compare(|device| {
            let (gate, gate_view) = leaf([37, 129], 1, device);
            let (up, up_view) = leaf([37, 129], 2, device);
            (swiglu(gate_view.mul_scalar(10.0), up_view), vec![gate, up])
        });
    }

    #[test]
    fn geglu_fused_equals_plain() {
        compare(|device| {
            let (gate, gate_view) = leaf([37, 129], 1, device);
            let (up, up_view) = leaf([37, 129], 2, device);
            (geglu(gate_view.mul_scalar(4.0), up_view), vec![gate, up])
        });
        // 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))), written down in f64.
        let gate = [-3.0f32, -0.5, 0.0, 1e-3, 0.7, 9.0];
        let inner = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        let expected = gate.map(|x| (0.5 * f64::from(x) * (1.0 + inner(x.into()).tanh())) as f32);
        let device = Device::flex().autodiff();
        both(|| {
            let row = |values: [f32; 6]| Tensor::from_data(TensorData::new(values.to_vec(), [1, 6]), &device);
            close(&to_host(geglu(row(gate), row([1.0; 6])).inner()), &expected, "gelu");
        });
    }

    #[test]
    fn a_part_of_a_head_rotates_and_the_rest_stays() {
        compare(|device| {
            let (x, x_view) = leaf([11, 3, 10], 1, device);
            let angles = random([11, 3], 2, device).detach();
            (rotary(x_view, &angles.clone().cos(), &angles.sin()), vec![x])
        });
        let device = Device::flex().autodiff();
        both(|| {
            let x: Tensor<3> = random([4, 2, 10], 1, &device);
            let angles: Tensor<2> = random([4, 3], 2, &device);
            let (cos, sin) = (angles.clone().cos(), angles.sin());
            let whole = rotary(x.clone(), &cos, &sin);
            let rest = |x: Tensor<3>| to_host(x.narrow(2, 6, 4).inner());
            assert_eq!(rest(whole.clone()), rest(x.clone()));
            let part = rotary(x.narrow(2, 0, 6), &cos, &sin);
            assert_eq!(to_host(whole.narrow(2, 0, 6).inner()), to_host(part.inner()));
        });
    }

    #[test]
    fn linear_fused_equals_plain_with_and_without_bias() {
        for (rows, input, output) in [(1, 1, 1), (5, 17, 33), (300, 64, 48)] {
            compare(|device| {
                let (x, x_view) = leaf([rows, input], 1, device);
                let (weight, weight_view) = leaf([input, output], 2, device);
                let (bias, bias_view) = leaf([output], 3, device);
                (linear(x_view, weight_view, Some(bias_view), FloatDType::F32), vec![x, weight, bias])
            });
            compare(|device| {
                let (x, x_view) = leaf([rows, input], 1, device);
                let (weight, weight_view) = leaf([input, output], 2, device);
                (linear(x_view, weight_view, None, FloatDType::F32), vec![x, weight])
            });
        }
    }

    #[test]
    fn swiglu_linear_fused_equals_plain_with_and_without_bias() {
        for (rows, inner, output) in [(1, 1, 1), (5, 17, 33), (300, 96, 48)] {
            for with_bias in [false, true] {
                compare(|device| {
                    let (gate, gate_view) = leaf([rows, inner], 1, device);
                    let (up, up_view) = leaf([rows, inner], 2, device);
                    let (weight, weight_view) = leaf([inner, output], 3, device);
                    let (bias, bias_view) = leaf([output], 4, device);
                    let out =
                        swiglu_linear(gate_view, up_view, weight_view, with_bias.then_some(bias_view), FloatDType::F32);
                    let mut inputs = vec![gate, up, weight];
                    inputs.extend(with_bias.then_some(bias));
                    (out, inputs)
                });
            }
        }
    }

    #[test]
    fn matmul_transposed_equals_the_product_with_the_transpose() {
        for (rows, hidden, vocab) in [(1, 1, 1), (5, 17, 33)] {
            compare(|device| {
                let (x, x_view) = leaf([rows, hidden], 1, device);
                let (weight, weight_view) = leaf([vocab, hidden], 2, device);
                (matmul_transposed(x_view, weight_view, FloatDType::F32), vec![x, weight])
            });
        }
    }

    #[test]
    fn a_seeded_backward_pass_goes_on_from_the_given_gradient() {
        let device = Device::flex().autodiff();
        both(|| {
            let x: Tensor<2> = random([3, 5], 1, &device);
            let upstream: Tensor<2> = random([3, 5], 2, &device.clone().inner());
            let gradients = seed(x.clone().mul_scalar(2.0), upstream.clone()).backward();
            let expected = to_host(upstream.mul_scalar(2.0));
            close(&to_host(x.grad(&gradients).unwrap()), &expected, "gradient");
        });
    }

    #[test]
    fn rotary_fused_equals_plain() {
        compare(|device| {
            let (x, x_view) = leaf([11, 3, 10], 1, device);
            let angles = random([11, 5], 2, device).detach();
            (rotary(x_view, &angles.clone().cos(), &angles.sin()), vec![x])
        });
    }

    #[test]
    fn attention_fused_equals_plain_for_ragged_sequences_and_shared_heads() {
        let above = blockwise::BLOCK + 9;
        for (heads, kv_heads, dim, lengths) in [
            (4, 2, 8, vec![5, 1, 33, 7]),
            (3, 1, 6, vec![2, 9]),
            (2, 2, 32, vec![70]),
            (4, 2, 40, vec![1]),
            (2, 1, 4, vec![3, above, 1, blockwise::BLOCK]),
        ] {
            compare(|device| {
                let rows = lengths.iter().sum();
                let (q, q_view) = leaf([rows, heads, dim], 1, device);
                let (k, k_view) = leaf([rows, kv_heads, dim], 2, device);
                let (v, v_view) = leaf([rows, kv_heads, dim], 3, device);
                (attention(q_view, k_view, v_view, &lengths, None), vec![q, k, v])
            });
        }
    }

    /// Windows of one key, of less and more than a block of rows of either path, and of all keys but one.
    #[test]
    fn attention_in_a_window_fused_equals_plain() {
        let long = blockwise::BLOCK + 90;
        for (heads, kv_heads, dim, lengths, window) in [
            (2, 1, 6, vec![5, 1, 33, 7], 1),
            (4, 2, 8, vec![40, 3, 110], 7),
            (3, 3, 10, vec![long, 20], 50),
            (2, 1, 4, vec![long], blockwise::BLOCK + 3),
            (1, 1, 32, vec![70, 100], 99),
        ] {
            compare(|device| {
                let rows = lengths.iter().sum();
                let (q, q_view) = leaf([rows, heads, dim], 1, device);
                let (k, k_view) = leaf([rows, kv_heads, dim], 2, device);
                let (v, v_view) = leaf([rows, kv_heads, dim], 3, device);
                (attention(q_view, k_view, v_view, &lengths, Some(window)), vec![q, k, v])
            });
        }
    }

    /// What a window hides has no say, and a window that hides nothing changes nothing.
    #[test]
    fn a_window_hides_what_is_before_it_and_nothing_else() {
        let device = Device::flex();
        both(|| {
            let of = |k: Tensor<3>, window| {
                let (q, v) = (random([9, 2, 4], 1, &device), random([9, 1, 4], 3, &device));
                to_host(attention(q, k, v, &[9], window))
            };
            let keys: Tensor<3> = random([9, 1, 4], 2, &device);
            let other = Tensor::cat(vec![random([1, 1, 4], 4, &device), keys.clone().narrow(0, 1, 8)], 0);
            let (ours, changed) = (of(keys.clone(), Some(3)), of(other, Some(3)));
            assert!(ours[..8] == of(keys.clone(), None)[..8] && ours[3 * 8..] == changed[3 * 8..]);
            assert!(ours[2 * 8..3 * 8] != changed[2 * 8..3 * 8]);
            close(&of(keys.clone(), Some(9)), &of(keys, None), "a window of all");
        });
    }

    #[test]
    fn scores_fused_equal_plain() {
        for (rows, vocab, temperature) in [(1, 3, 1.0), (1, 1, 1.0), (19, 101, 1.0), (8, 640, 0.6), (5, 33, 1.7)] {
            let targets: Vec<u32> = (0..rows).map(|row| (row * 7 % vocab) as u32).collect();
            let of = |device: &Device, pick: fn(Scores) -> Tensor<1>| {
                let (logits, view) = leaf([rows, vocab], 5, device);
                (pick(scores(view.mul_scalar(3.0), &targets, temperature)), vec![logits])
            };
            compare(|device| of(device, |scores| scores.log_prob));
            compare(|device| of(device, |scores| scores.entropy_sampling));
            compare(|device| of(device, |scores| scores.log_prob.mul_scalar(0.3) + scores.entropy_sampling));
            let device = Device::flex().autodiff();
            let [fused, plain] = both(|| {
                let scores = scores(random([rows, vocab], 5, &device), &targets, temperature);
                [to_host(scores.entropy.inner()), to_host(scores.collision.inner())]
            });
            close(&fused[0], &plain[0], "entropy");
            close(&fused[1], &plain[1], "collision probability");
        }
    }

    #[test]
    fn the_cache_fused_equals_plain() {
        // Two completions of one prompt, one of another and one without; what lies between them must not be looked at.
        let spans = vec![[0..3, 10..14], [0..3, 15..16], [4..9, 20..22], [9..9, 23..25]];
        let call = CacheCall::new(spans.iter().map(|[_, own]| own.end - 1).collect(), spans);
        let device = Device::flex();
        let [fused, plain] = both(|| {
            // Each way has its own copy of the call: it keeps tensors.
            let call = CacheCall::new(call.writes.clone(), call.spans.to_vec());
            let q = random([4, 4, 8], 1, &device);
            let table = |seed| write_rows(random([25, 16], seed, &device), random([4, 16], seed + 10, &device), &call);
            let (keys, values) = (table(2), table(3));
            [to_host(attention_cached(q, &keys, &values, &call)), to_host(keys)]
        });
        close(&fused[0], &plain[0], "attention");
        assert_eq!(fused[1], plain[1], "table");
    }
}
