//! The command `doctor`.

use std::path::PathBuf;

use clap::Args;

use super::paths::no_study;
use super::{DeviceArgs, PrecisionArgs};
use crate::config;
use crate::doctor::{DeviceMemory, Examination, examine};
use crate::train::RlConfig;

/// Show what this machine can compute on, and compare a device with the CPU.
/// Fails if an operation gives wrong results.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Settings of a `train` run (TOML): estimate whether the run fits into the device's memory.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn doctor(args: &DoctorArgs) -> anyhow::Result<()> {
    let settings = args.config.as_ref().map(|path| no_study(path, config::load::<RlConfig>(Some(path), &[])));
    let work = settings.transpose()?.map(|config| config.workload()).transpose()?;
    let examination = examine(&args.device.name()?, args.precision.dtype, work.as_ref())?;
    if args.json {
        super::print(serde_json::to_string_pretty(&examination)?)?;
    } else {
        super::print(text(&examination).trim_end())?;
    }
    let wrong: Vec<String> = examination.wrong().iter().map(ToString::to_string).collect();
    anyhow::ensure!(wrong.is_empty(), "{} computes wrong results: {}", examination.device, wrong.join("; "));
    Ok(())
}

fn text(examination: &Examination) -> String {
    let Examination { device, name, floats, memory, host, compiled, checks, check_s, fit, speed, .. } = examination;
    let mut lines = vec![
        format!("compiled backends: {}", compiled.join(", ")),
        format!("processor: {} threads, {}, memory {}", host.threads, or_none(&host.simd), bytes(host.memory)),
    ];
    lines.extend(examination.cuda_compiler.map(|compiler| format!("CUDA kernels are compiled by {compiler}")));
    let kept = |file: &PathBuf| format!("compiled kernels are cached in {}", file.display());
    lines.extend(examination.kernel_cache.as_ref().map(kept));
    if examination.adapters.is_empty() {
        lines.push("GPU devices: none".to_string());
    }
    for adapter in &examination.adapters {
        let driver = adapter.driver.as_ref().map_or(String::new(), |driver| format!(", driver {driver}"));
        lines.push(format!("--device {}: {}{driver}; {}", adapter.device, adapter.name, adapter.floats.join(", ")));
    }
    lines.push(String::new());
    let part = name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    lines.push(format!("{device}{part}: number formats {}; memory {}", floats.join(", "), bytes(*memory)));
    lines.push(format!("{:<48}{:>10}{:>11}", "operation, compared with the CPU", "error", "tolerance"));
    for outcome in checks {
        let verdict = if outcome.ok() { "" } else { "  WRONG" };
        lines.push(format!("{:<48}{:>10.1e}{:>11.0e}{verdict}", outcome.operation, outcome.error, outcome.tolerance));
    }
    let wrong = examination.wrong().len();
    lines.push(format!("{} of {} operations correct, in {check_s:.1} s", checks.len() - wrong, checks.len()));
    lines.extend(fit.clone());
    if let Some(speed) = speed {
        lines.push(format!(
            "speed: matrix products {:.0} GFLOP/s, memory {:.1} GB/s, sampling with a model of 0.85 M parameters {:.0} \
             tokens/s",
            speed.matrix_gflops, speed.memory_gb_per_s, speed.sampled_tokens_per_s
        ));
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "no known vector instructions".to_string() } else { names.join(" ") }
}

fn bytes(memory: Option<DeviceMemory>) -> String {
    let gigabytes = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    memory.map_or("unknown".to_string(), |memory| {
        format!("{:.1} of {:.1} GiB free", gigabytes(memory.free), gigabytes(memory.total))
    })
}
