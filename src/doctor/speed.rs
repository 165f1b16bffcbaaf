//! Speed of a device in three short measurements.

use std::time::{Duration, Instant};

use burn::tensor::{Device, FloatDType, Tensor};
use serde::Serialize;

use crate::generate::{Request, Sampling, Watch, generate};
use crate::model::{CausalLm, ModelConfig};
use crate::ops;

/// Speed of a device: the best of several repeats after a warm-up.
#[derive(Debug, Clone, Serialize)]
pub struct Speed {
    /// Speed of 1024 x 1024 matrix products in f32, in 10^9 operations per second.
    pub matrix_gflops: f64,
    /// Memory bandwidth (reads and writes) while adding 1 to 64 MiB, in 10^9 bytes per second.
    pub memory_gb_per_s: f64,
    /// Sampled tokens per second with the base model's shape (0.85 M parameters), 32 completions of 32 tokens.
    pub sampled_tokens_per_s: f64,
}

/// Measure the speed of 1024 x 1024 matrix products in f32, in 10^9 operations per second, for a third of a second.
pub fn matrix_gflops(device: &Device) -> f64 {
    const SIDE: usize = 1024;
    let square: Tensor<2> = Tensor::ones([SIDE, SIDE], device).div_scalar(SIDE as f32);
    let product = || ops::linear(square.clone(), square.clone(), None, FloatDType::F32);
    let seconds = best(|| read(product().narrow(0, 0, 1).narrow(1, 0, 1)));
    2.0 * (SIDE as f64).powi(3) / seconds / 1e9
}

/// Measure the speed of a device.
pub fn speed(device: &Device) -> Speed {
    const FLOATS: usize = 1 << 24;
    let long: Tensor<2> = Tensor::zeros([FLOATS / 4096, 4096], device);
    let pass = best(|| read(long.clone().add_scalar(1.0).narrow(0, 0, 1).narrow(1, 0, 1)));
    // The base model's shape with random weights, whose values do not affect speed.
    let config = ModelConfig::qwen2(512, 128, 384, 4, 4, 2);
    let model = CausalLm::random(&config, 0, device);
    const TOKENS: usize = 32;
    let request =
        |i: u32| Request { prompt: (0..16).map(|t| 1 + (i / 8 + t) % 500).collect(), key: [0, 0, 0, i.into()] };
    let requests: Vec<Request> = (0..32).map(request).collect();
    let sampling = Sampling { max_completion_length: TOKENS, rows: requests.len(), ..Sampling::default() };
    let rollout = best(|| {
        generate(&model, &config, &requests, &sampling, |_, _| Watch::Continue)
            .expect("a cache without a bound holds everything");
    });
    Speed {
        matrix_gflops: matrix_gflops(device),
        memory_gb_per_s: 8.0 * FLOATS as f64 / pass / 1e9,
        sampled_tokens_per_s: (requests.len() * TOKENS) as f64 / rollout,
    }
}

/// Wait until `number` is computed by reading it back, the only synchronisation that works on every backend.
fn read(number: Tensor<2>) {
    assert!(number.into_scalar::<f32>().is_finite());
}

/// Return the seconds of the fastest run, after a warm-up run for compilation and autotuning.
fn best(run: impl Fn()) -> f64 {
    run();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < Duration::from_millis(300) || best.is_infinite() {
        let begun = Instant::now();
        run();
        best = best.min(begun.elapsed().as_secs_f64());
    }
    best
}
