//! What this machine has, whether its numbers are right, and what it can do.
//!
//! Trainers go wrong in silence where a driver or a kernel is broken: losses fall, and nothing is learned. So
//! [`require`] compares the device with the CPU before the first step, and [`examine`] tells all that is known of it.

mod check;
pub mod estimate;
mod fit;
mod memory;
mod operations;
mod small;
mod speed;

pub use check::{Outcome, self_check, self_check_with};
pub use fit::fit;
pub use memory::{Memory, memory};
pub use speed::{Speed, speed};

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use serde::Serialize;

use crate::device::{self, Adapter};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, Precision};
use crate::train::Workload;

/// The processor and what is built for it.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Threads that CPU operations use.
    pub threads: usize,
    /// Vector instructions the processor has, of those that make a difference here.
    pub simd: Vec<&'static str>,
    /// Memory of the machine, or of the control group.
    pub memory: Option<Memory>,
}

/// All that is known of a device.
#[derive(Debug, Clone, Serialize)]
pub struct Examination {
    /// As `--device` has it.
    pub device: String,
    /// What it calls itself; none for the CPU backends.
    pub name: Option<String>,
    /// Number formats it computes in.
    pub floats: Vec<&'static str>,
    /// Its memory, where the system tells.
    pub memory: Option<Memory>,
    /// The processor.
    pub host: Host,
    /// Backends in this binary.
    pub compiled: Vec<&'static str>,
    /// What compiles CUDA's kernels, where CUDA is one of them.
    pub cuda_compiler: Option<&'static str>,
    /// Where GPU backends keep compiled kernels.
    pub kernel_cache: Option<PathBuf>,
    /// Devices that the GPU backends found.
    pub adapters: Vec<Adapter>,
    /// Agreement with the CPU.
    pub checks: Vec<Outcome>,
    /// Seconds the comparison took, most of it compilation of kernels where there are kernels.
    pub check_s: f64,
    /// Whether a run fits into it, when one was asked about.
    pub fit: Option<String>,
    /// Its speed; none when its numbers are wrong.
    pub speed: Option<Speed>,
}

impl Examination {
    /// The operations that the device gets wrong.
    pub fn wrong(&self) -> Vec<&Outcome> {
        self.checks.iter().filter(|outcome| !outcome.ok()).collect()
    }
}

/// Examines the device of that name, and whether `work` on a model of that configuration fits into it.
///
/// # Errors
/// When there is no such device, or it does not compute in `precision`.
pub fn examine(name: &str, precision: Precision, work: Option<&(ModelConfig, Workload)>) -> Result<Examination> {
    let adapters = device::adapters();
    let device = device::parse(name)?;
    precision.check(&device)?;
    let start = Instant::now();
    let checks = self_check(&device, precision);
    let check_s = start.elapsed().as_secs_f64();
    let right = checks.iter().all(Outcome::ok);
    Ok(Examination {
        device: name.to_string(),
        name: device::identity(&device).map(|identity| identity.name),
        floats: device::float_formats(&device),
        memory: memory(&device),
        host: host(),
        compiled: device::compiled(),
        cuda_compiler: device::cuda_compiler(),
        kernel_cache: device::kernel_cache(),
        adapters,
        checks,
        check_s,
        fit: work.map(|(model, work)| fit(&estimate::memory(model, work), memory(&device))),
        speed: right.then(|| speed(&device)),
    })
}

/// Compares a device with the CPU before it is trained on, and says so in a line.
///
/// # Errors
/// Naming the operations that differ, when any does.
pub fn require(name: &str, device: &Device, precision: Precision) -> Result<String> {
    precision.check(&device.clone().autodiff())?;
    let start = Instant::now();
    let outcomes = self_check(device, precision);
    let wrong: Vec<String> = outcomes.iter().filter(|outcome| !outcome.ok()).map(ToString::to_string).collect();
    if !wrong.is_empty() {
        let message = format!(
            "computes wrong numbers, training on it would teach nothing: {}. Update its driver, or train on another \
             device; `tempering doctor --device {name}` shows everything that was compared",
            wrong.join("; ")
        );
        return Err(Error::Device { name: name.to_string(), message });
    }
    let part = device::identity(device).map_or(String::new(), |identity| format!(" ({})", identity.name));
    Ok(format!(
        "device {name}{part}: matrix products in {}, all else in f32; {} operations agree with the CPU ({:.1} s)",
        format!("{precision:?}").to_lowercase(),
        outcomes.len(),
        start.elapsed().as_secs_f64()
    ))
}

fn host() -> Host {
    Host { threads: rayon::current_num_threads(), simd: simd(), memory: memory(&Device::flex()) }
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Vec<&'static str> {
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    found.into_iter().filter(|(_, found)| *found).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn simd() -> Vec<&'static str> {
    vec!["neon"] // part of the base architecture
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn simd() -> Vec<&'static str> {
    Vec::new()
}
