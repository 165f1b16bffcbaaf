//! Diagnosis of a machine: hardware, numeric correctness, memory and speed.
//!
//! A broken driver or kernel fails silently: the loss falls, but the model learns nothing. So [`require`] compares the
//! device with the CPU before the first training step, and [`examine`] collects a full diagnosis.

mod check;
pub mod estimate;
mod fit;
mod memory;
mod operations;
mod small;
mod speed;

pub use check::{OperationComparison, self_check, self_check_with};
pub use fit::fit;
pub use memory::{DeviceMemory, memory};
pub use speed::{Speed, matrix_gflops, speed};

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use serde::Serialize;

use crate::device::{self, Adapter};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, Precision};
use crate::train::Workload;

/// The host processor.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Number of threads for CPU operations.
    pub threads: usize,
    /// Relevant SIMD instruction sets that the processor supports.
    pub simd: Vec<&'static str>,
    /// Memory of the machine, limited by the control group.
    pub memory: Option<DeviceMemory>,
}

/// Diagnosis of a device.
#[derive(Debug, Clone, Serialize)]
pub struct Examination {
    /// Device name as given to `--device`.
    pub device: String,
    /// Name reported by the device; `None` for the CPU backends.
    pub name: Option<String>,
    /// Supported floating-point formats.
    pub floats: Vec<&'static str>,
    /// Memory of the device, if known.
    pub memory: Option<DeviceMemory>,
    /// The host processor.
    pub host: Host,
    /// Backends compiled into this binary.
    pub compiled: Vec<&'static str>,
    /// Compiler of the CUDA kernels, if CUDA is compiled in.
    pub cuda_compiler: Option<&'static str>,
    /// Directory where GPU backends cache compiled kernels.
    pub kernel_cache: Option<PathBuf>,
    /// Devices found by the GPU backends.
    pub adapters: Vec<Adapter>,
    /// Results of the self-check.
    pub checks: Vec<OperationComparison>,
    /// Duration of the self-check in seconds. On GPUs, most of it is kernel compilation.
    pub check_s: f64,
    /// Line that says whether the given run fits into the device's memory; `None` if no run was given.
    pub fit: Option<String>,
    /// Speed; `None` if the self-check failed.
    pub speed: Option<Speed>,
}

impl Examination {
    /// Return the operations that failed the self-check.
    pub fn wrong(&self) -> Vec<&OperationComparison> {
        self.checks.iter().filter(|outcome| !outcome.ok()).collect()
    }
}

/// Examine the device `name`, and check whether the model and workload `work` fit into its memory.
///
/// # Errors
/// There is no such device, or it does not support `precision`.
pub fn examine(name: &str, precision: Precision, work: Option<&(ModelConfig, Workload)>) -> Result<Examination> {
    let adapters = device::adapters();
    let device = device::parse(name)?;
    precision.check(&device)?;
    let start = Instant::now();
    let checks = self_check(&device, precision);
    let check_s = start.elapsed().as_secs_f64();
    let right = checks.iter().all(OperationComparison::ok);
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

/// Compare a device with the CPU before training; return a line that describes the result.
///
/// # Errors
/// The device does not support `precision`, or operations differ; the error names them.
pub fn require(name: &str, device: &Device, precision: Precision) -> Result<String> {
    precision.check(&device.clone().autodiff())?;
    let start = Instant::now();
    let outcomes = self_check(device, precision);
    let wrong: Vec<String> = outcomes.iter().filter(|outcome| !outcome.ok()).map(ToString::to_string).collect();
    if !wrong.is_empty() {
        let message = format!(
            "computes wrong results and cannot be used for training: {}. Update its driver, or train on another \
             device; `tempering doctor --device {name}` lists all comparisons",
            wrong.join("; ")
        );
        return Err(Error::Device { name: name.to_string(), message });
    }
    let part = device::identity(device).map_or(String::new(), |identity| format!(" ({})", identity.name));
    Ok(format!(
        "device {name}{part}: matrix products in {}, everything else in f32; {} operations agree with the CPU ({:.1} \
         s)",
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
