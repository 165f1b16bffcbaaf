//! Benchmark of the fused operations of the `cpu` device against the equivalent compositions of tensor operations.

use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use serde::Serialize;

use super::median;
use crate::noise::Stream;
use crate::ops::delta::{DeltaHeads, DeltaInputs};
use crate::ops::{path, update};

/// Sizes of the benchmarked operations.
#[derive(Debug, Clone, Copy)]
pub struct OpsShape {
    /// Tokens of a micro-batch, in sequences of 128.
    pub rows: usize,
    /// Vocabulary size.
    pub vocab: usize,
}

/// Times of an operation: medians over the repeats.
#[derive(Debug, Clone, Serialize)]
pub struct OpTimes {
    /// Name of the operation.
    pub name: &'static str,
    /// Forward and backward pass of the fused operation, in milliseconds.
    pub fused_ms: f64,
    /// Forward and backward pass of the composition, in milliseconds.
    pub plain_ms: f64,
}

const HIDDEN: usize = 256;
const INNER: usize = 1024;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const SEQUENCE: usize = 128;
/// Four heads with the dimensions of Qwen 3.5.
const DELTA: DeltaHeads = DeltaHeads { keys: 4, values: 4, key_dim: 128, value_dim: 128 };
/// Number of weights of the timed AdamW step.
const WEIGHTS: usize = 4 << 20;

fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut random = Stream::new(&[seed]);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| (random.unit() * 2.0 - 1.0) as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn timed(repeats: usize, mut run: impl FnMut()) -> f64 {
    run();
    median((0..repeats).map(|_| {
        let start = Instant::now();
        run();
        1e3 * start.elapsed().as_secs_f64()
    }))
}

/// Time every operation, fused and composed.
pub fn operations(shape: &OpsShape, repeats: usize) -> Vec<OpTimes> {
    let device = Device::flex().autodiff();
    let OpsShape { rows, vocab } = *shape;
    let leaf = |width: usize, seed| random([rows, width], seed, &device).require_grad();
    let lengths: Vec<usize> = (0..rows).step_by(SEQUENCE).map(|first| SEQUENCE.min(rows - first)).collect();
    let targets: Vec<u32> = (0..rows).map(|row| (row % vocab) as u32).collect();
    let heads = |x: Tensor<2>, heads: usize| x.reshape([rows, heads, HIDDEN / HEADS]);
    let (x, gate, up, logits) = (leaf(HIDDEN, 1), leaf(INNER, 2), leaf(INNER, 3), leaf(vocab, 4));
    let (k, v) = (leaf(HIDDEN / HEADS * KV_HEADS, 5), leaf(HIDDEN / HEADS * KV_HEADS, 6));
    let down = random([INNER, HIDDEN], 9, &device).require_grad();
    let weight = random([HIDDEN], 7, &device).require_grad();
    let angles = random([rows, HIDDEN / HEADS / 2], 8, &device.clone().inner());
    let (cos, sin) = (angles.clone().cos(), angles.sin());

    let taps = random([INNER, 4], 10, &device).require_grad();
    let made = |width: usize, seed, f: fn(Tensor<2>) -> Tensor<2>| {
        Tensor::from_inner(f(random([rows, width], seed, &device.clone().inner()))).require_grad()
    };
    let [queries, keys, values] = DELTA.widths();
    let delta = DeltaInputs {
        q: made(queries, 11, |x| x.mul_scalar(0.1)),
        k: made(keys, 12, |x| x.mul_scalar(0.1)),
        v: made(values, 13, |x| x),
        decay: made(DELTA.values, 14, |x| x.abs().neg()),
        beta: made(DELTA.values, 15, Tensor::abs),
    };

    type OpCall<'a> = Box<dyn Fn(&path::OpPath) -> Tensor<1> + 'a>;
    let cases: [(&'static str, OpCall); 8] = [
        ("rms_norm", Box::new(|path| (path.rms_norm)(x.clone(), weight.clone(), 1e-6).sum())),
        ("swiglu", Box::new(|path| (path.swiglu)(gate.clone(), up.clone()).sum())),
        ("swiglu_linear", Box::new(|path| (path.swiglu_linear)(gate.clone(), up.clone(), down.clone()).sum())),
        ("rotary", Box::new(|path| (path.rotary)(heads(x.clone(), HEADS), cos.clone(), sin.clone()).sum())),
        (
            "attention",
            Box::new(|path| {
                let (q, k, v) = (heads(x.clone(), HEADS), heads(k.clone(), KV_HEADS), heads(v.clone(), KV_HEADS));
                (path.attention)(q, k, v, &lengths).sum()
            }),
        ),
        ("scores", Box::new(|path| (path.scores)(logits.clone(), &targets, 0.8).log_prob.sum())),
        ("causal_conv", Box::new(|path| (path.causal_conv)(up.clone(), taps.clone(), &lengths).sum())),
        ("delta_rule", Box::new(|path| (path.delta_rule)(delta.clone(), &lengths, DELTA).sum())),
    ];
    let mut times: Vec<OpTimes> = (cases.iter())
        .map(|(name, run)| {
            let [fused_ms, plain_ms] = [path::FUSED, path::PLAIN].map(|path| {
                timed(repeats, || {
                    run(&path).backward();
                })
            });
            OpTimes { name, fused_ms, plain_ms }
        })
        .collect();
    times.push(adamw(repeats));
    times
}

fn adamw(repeats: usize) -> OpTimes {
    let device = Device::flex();
    let step = update::AdamWStep {
        scale: 1.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        rate: 1e-3,
        correction: 1.0,
        keep: 1.0,
    };
    let gradient: Tensor<1> = random([WEIGHTS], 1, &device);
    let [fused_ms, plain_ms] = [path::FUSED, path::PLAIN].map(|path| {
        let mut state = Some((gradient.zeros_like() + 1.0, [gradient.zeros_like() + 0.0, gradient.zeros_like() + 0.0]));
        timed(repeats, || {
            let (value, moments) = state.take().expect("put back below");
            state = Some((path.adamw)(value, moments, gradient.clone(), &step));
        })
    });
    OpTimes { name: "adamw", fused_ms, plain_ms }
}
