//! The numeric self-check: every kind of operation that training is made of, on the device and on the CPU.
//!
//! Inputs come from [`noise`](crate::noise), so both sides see the same numbers, and go through the functions of
//! [`ops`](crate::ops) that training calls. A kernel that writes zeros, drops a bias or reads past its end shows here and
//! not in the curves of a run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::Device;
use serde::Serialize;

use super::{operations, small};
use crate::model::Precision;
use crate::ops;

/// One operation's agreement with the CPU.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// What was computed.
    pub operation: String,
    /// Largest difference, as a share of the largest value of the CPU's result; infinite for values that are not finite
    /// or not there.
    pub error: f32,
    /// The largest error that rounding explains.
    pub tolerance: f32,
    /// What the backend said when it gave up.
    pub panic: Option<String>,
}

impl Outcome {
    /// Whether the operation computes what it should.
    pub fn ok(&self) -> bool {
        self.error <= self.tolerance
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operation, error, tolerance, panic } = self;
        match panic {
            None => write!(f, "{operation} (error {error:.1e}, tolerance {tolerance:.0e})"),
            Some(panic) => write!(f, "{operation} (the backend gave up: {panic})"),
        }
    }
}

/// Computes on a device; several results are compared each on its own scale.
pub(super) type Compute = Box<dyn Fn(&Device) -> Vec<Vec<f32>>>;

struct Check {
    operation: String,
    tolerance: f32,
    compute: Compute,
}

/// Compares every operation on `device` with the CPU, and with `precision` the product in that format.
///
/// The `cpu` device itself is compared with the compositions of tensor operations that its fused operations stand for.
pub fn self_check(device: &Device, precision: Precision) -> Vec<Outcome> {
    self_check_with(device, precision, |_, _| {})
}

/// As [`self_check`], with the device's results passed through `tamper` first, which is how a test breaks an operation.
pub fn self_check_with(device: &Device, precision: Precision, tamper: impl Fn(&str, &mut [Vec<f32>])) -> Vec<Outcome> {
    let reference = Device::flex();
    let host = ops::is_host(device);
    let run = |check: Check| {
        let Check { operation, tolerance, compute } = check;
        let expected = if host { ops::plainly(|| compute(&reference)) } else { compute(&reference) };
        match catch_unwind(AssertUnwindSafe(|| compute(device))) {
            Ok(mut results) => {
                tamper(&operation, &mut results);
                Outcome { error: error(&results, &expected), operation, tolerance, panic: None }
            }
            Err(panic) => {
                let text = (panic.downcast_ref::<String>().cloned())
                    .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
                Outcome { error: f32::INFINITY, operation, tolerance, panic: Some(text.unwrap_or_default()) }
            }
        }
    };
    checks(device, precision).into_iter().map(run).collect()
}

/// Largest difference between two results, relative to the largest expected value. A small part of a result has a small
/// scale of its own, but not below a thousandth of the whole: what cancels to nearly nothing is rounding.
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

/// Takes an operation's name, its tolerance and how to compute it.
pub(super) type Add<'a> = &'a mut dyn FnMut(&str, f32, Compute);

/// The operations, in the order a training step has them.
fn checks(device: &Device, precision: Precision) -> Vec<Check> {
    // 24 bits of mantissa, sums of up to a few hundred terms.
    let plain = 2e-5;
    let mut checks: Vec<Check> = Vec::new();
    let mut check = |operation: &str, tolerance: f32, compute: Compute| {
        checks.push(Check { operation: operation.to_string(), tolerance, compute });
    };
    check("noise to the device and back, to the bit", 0.0, Box::new(operations::noise_bits));
    operations::products(&mut check, device, precision, plain);
    operations::layers(&mut check, device, plain);
    operations::plain_operations(&mut check, plain);
    operations::own_operations(&mut check, plain);
    operations::recurrence(&mut check, plain);
    check("drawing tokens", plain, Box::new(operations::tokens));
    check("a small model's log-probabilities", 5.0 * plain, Box::new(|device| vec![small::log_probs(device)]));
    check("small models' logits with a cache", 5.0 * plain, Box::new(small::decoded));
    check("a small model's gradient", 20.0 * plain, Box::new(small::gradient));
    check("the same a second time, to the bit", 0.0, Box::new(|device| vec![operations::again(device)]));
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

    /// Each operation in turn computes zeros, a hundredth too much, or no number: it is caught and named, and no other.
    #[test]
    fn a_broken_operation_is_caught_and_named() {
        let breaks: [fn(f32) -> f32; 3] = [|_| 0.0, |x| 1.01 * x, |_| f32::NAN];
        let names: Vec<String> =
            self_check(&Device::flex(), Precision::F32).into_iter().map(|outcome| outcome.operation).collect();
        for (index, broken) in names.iter().enumerate() {
            let tamper = |operation: &str, results: &mut [Vec<f32>]| {
                if operation == broken {
                    results.iter_mut().flatten().for_each(|x| *x = breaks[index % 3](*x));
                }
            };
            let outcomes = self_check_with(&Device::flex(), Precision::F32, tamper);
            let failed: Vec<&String> = outcomes.iter().filter(|o| !o.ok()).map(|o| &o.operation).collect();
            assert_eq!(failed, [broken]);
        }
    }
}
