//! Numeric self-check: compares every kind of operation used in training on the device with the CPU.
//!
//! Inputs come from [`noise`](crate::noise), so both sides get the same numbers, and go through the functions of
//! [`ops`](crate::ops) that training calls. A kernel that writes zeros, drops a bias or reads out of bounds is found
//! here and not in the training curves.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::Device;
use serde::Serialize;

use super::{operations, small};
use crate::model::Precision;
use crate::ops;

/// Comparison of an operation with the CPU.
#[derive(Debug, Clone, Serialize)]
pub struct OperationComparison {
    /// Description of the operation.
    pub operation: String,
    /// Largest absolute difference relative to the largest value of the CPU's result; infinite if values are missing or
    /// not finite.
    pub error: f32,
    /// Largest error that rounding can explain.
    pub tolerance: f32,
    /// Panic message of the backend, if it panicked.
    pub panic: Option<String>,
}

impl OperationComparison {
    /// Return whether the error is within the tolerance.
    pub fn ok(&self) -> bool {
        self.error <= self.tolerance
    }
}

impl std::fmt::Display for OperationComparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operation, error, tolerance, panic } = self;
        match panic {
            None => write!(f, "{operation} (error {error:.1e}, tolerance {tolerance:.0e})"),
            Some(panic) => write!(f, "{operation} (the backend panicked: {panic})"),
        }
    }
}

/// Computation on a device. Each of its results is compared on its own scale.
pub(super) type Compute = Box<dyn Fn(&Device) -> Vec<Vec<f32>>>;

struct Check {
    operation: String,
    tolerance: f32,
    compute: Compute,
}

/// Compare every operation on `device` with the CPU, including the matrix product in `precision`.
///
/// The `cpu` device compares its fused operations with the equivalent compositions of tensor operations.
pub fn self_check(device: &Device, precision: Precision) -> Vec<OperationComparison> {
    self_check_with(device, precision, |_, _| {})
}

/// Like [`self_check`], but pass the device's results through `tamper`, with which tests break an operation.
pub fn self_check_with(
    device: &Device,
    precision: Precision,
    tamper: impl Fn(&str, &mut [Vec<f32>]),
) -> Vec<OperationComparison> {
    let reference = Device::flex();
    let host = ops::is_host(device);
    let run = |check: Check| {
        let Check { operation, tolerance, compute } = check;
        let expected = if host { ops::plainly(|| compute(&reference)) } else { compute(&reference) };
        match catch_unwind(AssertUnwindSafe(|| compute(device))) {
            Ok(mut results) => {
                tamper(&operation, &mut results);
                OperationComparison { error: error(&results, &expected), operation, tolerance, panic: None }
            }
            Err(panic) => {
                let text = (panic.downcast_ref::<String>().cloned())
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                OperationComparison {
                    error: f32::INFINITY,
                    operation,
                    tolerance,
                    panic: Some(text.unwrap_or_default()),
                }
            }
        }
    };
    checks(device, precision).into_iter().map(run).collect()
}

/// Return the largest difference between two results, relative to the largest expected value. Each part has its own
/// scale, at least a thousandth of the whole result's: a part that cancels to almost zero is rounding error.
fn error(results: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let largest = |values: &[f32]| values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let whole = expected.iter().map(|part| largest(part)).fold(f32::MIN_POSITIVE, f32::max);
    let part = |(ours, theirs): (&Vec<f32>, &Vec<f32>)| {
        let scale = largest(theirs).max(1e-3 * whole);
        if ours.len() != theirs.len() {
            return f32::INFINITY;
        }
        let difference = |(a, b): (&f32, &f32)| if a.is_finite() { (a - b).abs() / scale } else { f32::INFINITY };
        ours.iter().zip(theirs).map(difference).fold(0.0, f32::max)
    };
    if results.len() != expected.len() {
        return f32::INFINITY;
    }
    results.iter().zip(expected).map(part).fold(0.0, f32::max)
}

/// Callback that registers a check: name, tolerance and computation.
pub(super) type AddCheck<'a> = &'a mut dyn FnMut(&str, f32, Compute);

/// Return the checks, in the order of a training step.
fn checks(device: &Device, precision: Precision) -> Vec<Check> {
    // f32 has a 24-bit mantissa; sums have up to a few hundred terms.
    let plain = 2e-5;
    let mut checks: Vec<Check> = Vec::new();
    let mut check = |operation: &str, tolerance: f32, compute: Compute| {
        checks.push(Check { operation: operation.to_string(), tolerance, compute });
    };
    check("noise to the device and back, bit-identical", 0.0, Box::new(operations::noise_bits));
    operations::products(&mut check, device, precision, plain);
    operations::layers(&mut check, device, plain);
    operations::plain_operations(&mut check, plain);
    operations::own_operations(&mut check, plain);
    operations::recurrence(&mut check, plain);
    check("drawing tokens", plain, Box::new(operations::tokens));
    check("a small model's log-probabilities", 5.0 * plain, Box::new(|device| vec![small::log_probs(device)]));
    check("small models' logits with a cache", 5.0 * plain, Box::new(small::decoded));
    check("a small model's gradient", 20.0 * plain, Box::new(small::gradient));
    check("the same a second time, bit-identical", 0.0, Box::new(|device| vec![operations::again(device)]));
    operations::updates(&mut check, device, plain);
    check("a step of AdamW", plain, Box::new(small::step));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_passes() {
        for outcome in self_check(&Device::flex(), Precision::F32) {
            assert!(outcome.ok(), "{outcome:?}");
        }
    }

    /// Each operation in turn returns zeros, values a little more too large than it may (at least 1.1%), or NaN. The check
    /// reports it and no other operation.
    #[test]
    fn a_broken_operation_is_caught_and_named() {
        for (index, sound) in self_check(&Device::flex(), Precision::F32).into_iter().enumerate() {
            // Errors are relative to the largest value.
            let broken = &sound.operation;
            let scale = 1.0 + sound.tolerance.max(0.01) * 1.1;
            let tamper = |operation: &str, results: &mut [Vec<f32>]| {
                if operation == broken {
                    results.iter_mut().flatten().for_each(|x| *x = [0.0, scale * *x, f32::NAN][index % 3]);
                }
            };
            let outcomes = self_check_with(&Device::flex(), Precision::F32, tamper);
            let failed: Vec<&String> = outcomes.iter().filter(|o| !o.ok()).map(|o| &o.operation).collect();
            assert_eq!(failed, [broken]);
        }
    }
}
