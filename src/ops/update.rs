//! Operations on gradients and weights after the backward pass: sums, norms, and the AdamW update.
//!
//! On the `cpu` device each is one multi-threaded pass, on GPU backends a kernel; both write into existing memory.
//! Elsewhere each is a composition of tensor operations. None supports autodiff.

use burn::tensor::{FloatDType, IndexingUpdateOp, Tensor};

#[cfg(feature = "gpu")]
use super::gpu;
use super::traffic::index;
use super::{cpu, on, plain, to_host};

/// Scalars of one AdamW step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWStep {
    /// Factor of the gradient, for gradient clipping.
    pub scale: f32,
    /// Decay of the first moment, `β₁`.
    pub beta1: f32,
    /// Decay of the second moment, `β₂`.
    pub beta2: f32,
    /// Added to the square root of the bias-corrected second moment.
    pub epsilon: f32,
    /// Learning rate with the bias correction of the first moment: `lr / (1 − β₁ᵗ)`.
    pub rate: f32,
    /// Bias correction of the second moment: `1 / (1 − β₂ᵗ)`.
    pub correction: f32,
    /// Factor of the weight, for decoupled weight decay: `1 − lr·λ`.
    pub keep: f32,
}

/// `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `θ ← keep·θ − rate·m / (√(v·correction) + ε)`; returns θ and [m, v].
///
/// Computes in f32 and rounds the moments to their storage format.
///
/// # Shapes
/// - all: `[parameters]`
pub(crate) fn adamw(
    value: Tensor<1>,
    moments: [Tensor<1>; 2],
    gradient: Tensor<1>,
    step: &AdamWStep,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    on!(
        value.device(),
        cpu: cpu::adamw(value, moments, gradient, *step),
        gpu: gpu::update::adamw(value, moments, gradient, *step),
        plain: adamw_plain(value, moments, gradient, step)
    )
}

pub(super) fn adamw_plain(
    value: Tensor<1>,
    [m, v]: [Tensor<1>; 2],
    gradient: Tensor<1>,
    step: &AdamWStep,
) -> (Tensor<1>, [Tensor<1>; 2]) {
    let stored: FloatDType = m.dtype().into();
    let (m, v) = (m.cast(FloatDType::F32), v.cast(FloatDType::F32));
    let gradient = gradient.mul_scalar(step.scale);
    let m = m.mul_scalar(step.beta1) + gradient.clone().mul_scalar(1.0 - step.beta1);
    let v = v.mul_scalar(step.beta2) + gradient.powi_scalar(2).mul_scalar(1.0 - step.beta2);
    let root = v.clone().mul_scalar(step.correction).sqrt().add_scalar(step.epsilon);
    let value = value.mul_scalar(step.keep) - m.clone().mul_scalar(step.rate) / root;
    (value, [m.cast(stored), v.cast(stored)])
}

/// `sum + part`, written into the memory of `sum` (on GPU backends by Burn's own addition).
///
/// # Shapes
/// - all: `[parameters]`
pub(crate) fn accumulate(sum: Tensor<1>, part: Tensor<1>) -> Tensor<1> {
    if cpu::serves(&sum.device()) { cpu::accumulate(sum, part) } else { sum + part }
}

/// Add `rows[i]` to row `at[i]` of `table`, in the memory of `table`; `at` may have duplicates.
///
/// # Shapes
/// - table, output: `[n, width]`; rows: `[at.len(), width]`
pub(crate) fn add_rows(table: Tensor<2>, rows: Tensor<2>, at: &[u32]) -> Tensor<2> {
    assert_eq!(rows.dims()[0], at.len(), "rows and their places");
    on!(
        table.device(),
        cpu: cpu::add_rows(table, rows, at),
        gpu: gpu::update::add_rows(table, rows, at),
        plain: add_rows_plain(table, rows, at)
    )
}

fn add_rows_plain(table: Tensor<2>, rows: Tensor<2>, at: &[u32]) -> Tensor<2> {
    let at: Vec<i64> = at.iter().map(|&row| i64::from(row)).collect();
    let at = index(&at, &table.device());
    table.select_assign(0, at, rows, IndexingUpdateOp::Add)
}

/// `Σ x²` over all `tensors`, added in their order; on a GPU with a single read from the device.
pub(crate) fn sum_of_squares(tensors: &[&Tensor<1>]) -> f64 {
    let Some(first) = tensors.first() else { return 0.0 };
    let total = |of: fn(Tensor<1>) -> f64| tensors.iter().fold(0.0, |sum, &x| sum + of(x.clone()));
    on!(
        first.device(),
        cpu: total(cpu::sum_of_squares),
        gpu: gpu::update::sum_of_squares(tensors),
        plain: total(|x| f64::from(to_host(plain::sum(x.powi_scalar(2)))[0]))
    )
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::noise::Stream;
    use crate::ops::{both, to_host};

    fn random(len: usize, seed: u64, device: &Device) -> Tensor<1> {
        let mut random = Stream::new(&[seed]);
        let values: Vec<f32> = (0..len).map(|_| (random.unit() * 2.0 - 1.0) as f32).collect();
        Tensor::from_data(TensorData::from(values.as_slice()), device)
    }

    #[track_caller]
    fn close(fused: &[f32], plain: &[f32], tolerance: f32) {
        assert_eq!(fused.len(), plain.len());
        for (i, (a, b)) in fused.iter().zip(plain).enumerate() {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "at {i}: {a} against {b}");
        }
    }

    /// Several steps, so that non-zero moments are read. In bf16 the two may differ by one unit in the last of 8 bits.
    #[test]
    fn adamw_fused_equals_plain() {
        let device = Device::flex();
        let fused = |value, moments, gradient, step: &AdamWStep| cpu::adamw(value, moments, gradient, *step);
        let paths: [&dyn Fn(_, _, _, &AdamWStep) -> _; 2] = [&fused, &adamw_plain];
        for (dtype, tolerance) in [(FloatDType::F32, 1e-6), (FloatDType::BF16, 1.0 / 128.0)] {
            for len in [1, 7, 70_001] {
                let [fused, plain] = paths.map(|adamw| {
                    let mut value = random(len, 1, &device);
                    let mut moments = [(); 2].map(|()| Tensor::<1>::zeros([len], &device).cast(dtype));
                    for t in 1..=3 {
                        let step = AdamWStep {
                            scale: 0.7,
                            beta1: 0.9,
                            beta2: 0.95,
                            epsilon: 1e-8,
                            rate: 1e-2 / (1.0 - 0.9f32.powi(t)),
                            correction: 1.0 / (1.0 - 0.95f32.powi(t)),
                            keep: 0.999,
                        };
                        (value, moments) = adamw(value, moments, random(len, 1 + t as u64, &device), &step);
                    }
                    [value].into_iter().chain(moments).map(|x| to_host(x.cast(FloatDType::F32))).collect::<Vec<_>>()
                });
                for (fused, plain) in fused.iter().zip(&plain) {
                    close(fused, plain, tolerance);
                }
            }
        }
    }

    #[test]
    fn sums_fused_equal_plain() {
        let device = Device::flex();
        let [fused, plain] = both(|| {
            let sum = accumulate(random(40_003, 1, &device), random(40_003, 2, &device));
            let square = sum_of_squares(&[&sum]) as f32;
            // Row 3 occurs twice.
            let table = random(35, 3, &device).reshape([5, 7]);
            let table = add_rows(table, random(21, 4, &device).reshape([3, 7]), &[3, 0, 3]);
            [vec![square], to_host(sum), to_host(table)]
        });
        for (fused, plain) in fused.iter().zip(&plain) {
            close(fused, plain, 2e-6);
        }
    }
}
