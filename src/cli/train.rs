//! `train` and `sft`.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clap::Args;
use serde_json::Value;

use super::progress::Progress;
use super::{DeviceArgs, stop_on_interrupt};
use crate::config::{self, Settings};
use crate::device;
use crate::doctor::estimate;
use crate::doctor::{fit, memory};
use crate::error::Result;
use crate::model::ModelConfig;
use crate::report;
use crate::train::{self, Session, Workload};

/// What to train and where.
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// Settings (TOML).
    config: Option<PathBuf>,
    /// Change a setting: section.key=value; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Seed; short for --set seed=N.
    #[arg(long)]
    seed: Option<u64>,
    /// Number format of matrix products (f32 or bf16); short for --set model.dtype=….
    #[arg(long)]
    dtype: Option<String>,
    /// Continue the run's newest checkpoint.
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Delete an earlier run of the same name first.
    #[arg(long)]
    overwrite: bool,
    /// Print the resolved settings and stop.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl TrainArgs {
    fn settings<S: Settings>(&self) -> Result<S> {
        let mut sets = self.sets.clone();
        sets.extend(self.seed.map(|seed| format!("seed={seed}")));
        sets.extend(self.dtype.as_ref().map(|dtype| format!("model.dtype={dtype}")));
        config::load(self.config.as_deref(), &sets)
    }

    /// Removes an earlier run when asked to.
    fn clear(&self, run: &Path) -> Result<()> {
        if self.overwrite { crate::files::remove_dir(run) } else { Ok(()) }
    }
}

/// The memory estimate as comments, so that what a dry run prints is a file of settings still.
fn memory_lines(found: Result<(ModelConfig, Workload)>, device: &Device) -> String {
    let text = match found {
        Ok((model, workload)) => {
            let estimate = estimate::memory(&model, &workload);
            format!("memory on the cpu device:\n{estimate}{}", fit(&estimate, memory(device)))
        }
        Err(error) => format!("memory: not estimated, the model cannot be read: {error}"),
    };
    text.lines().fold("\n".to_string(), |lines, line| lines + "# " + line + "\n")
}

pub(super) fn sft(args: TrainArgs) -> anyhow::Result<()> {
    let config: train::sft::SftConfig = args.settings()?;
    if args.dry_run {
        print!("{}{}", config::to_toml(&config), memory_lines(config.workload(), &device::parse(&args.device.device)?));
        return Ok(());
    }
    args.clear(&config.output_dir.join(&config.name))?;
    let stop = stop_on_interrupt()?;
    let mut observer = Progress::new();
    let device = args.device.open_checked(config.model.dtype, &mut observer)?;
    let mut session = Session { device, observer: &mut observer, stop: &stop, resume: args.resume };
    let dir = train::sft::run(&config, &mut session)?;
    drop(observer);
    println!("model: {}", dir.display());
    Ok(())
}

pub(super) fn train(args: TrainArgs) -> anyhow::Result<()> {
    let config: train::rl::RlConfig = args.settings()?;
    if args.config.is_none() {
        config.check_embedded_model()?;
    }
    if args.dry_run {
        print!("{}{}", config::to_toml(&config), memory_lines(config.workload(), &device::parse(&args.device.device)?));
        return Ok(());
    }
    args.clear(&config.output_dir.join(&config.name))?;
    let stop = stop_on_interrupt()?;
    let mut observer = Progress::new();
    let device = args.device.open_checked(config.model.dtype, &mut observer)?;
    let mut session = Session { device, observer: &mut observer, stop: &stop, resume: args.resume };
    let finished = train::rl::run(&config, &mut session)?;
    drop(observer);
    println!("{}", conclusion(&finished.summary));
    let report = report::write(&finished.dir)?;
    println!("model:  {}\nreport: {}", finished.dir.join("final").display(), report.display());
    Ok(())
}

/// Before and after, per data source.
fn conclusion(summary: &Value) -> String {
    let number = |path: &str| summary.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let mut text = format!("{:<14}{:>18}{:>22}{:>8}\n", "held-out", "accuracy", "mean length", "floor");
    let mut row = |name: &str, at: &str, floor: Option<f64>| {
        let (base, last) = (format!("{at}/base"), format!("{at}/final"));
        let floor = floor.map_or("-".to_string(), |floor| format!("{floor:.1}"));
        text += &format!(
            "{name:<14}{:>7.1}% -> {:>5.1}%{:>10.1} -> {:>6.1}{floor:>10}\n",
            100.0 * number(&format!("{base}/accuracy")),
            100.0 * number(&format!("{last}/accuracy")),
            number(&format!("{base}/mean_length")),
            number(&format!("{last}/mean_length")),
        );
    };
    for (name, family) in summary["families"].as_object().into_iter().flatten() {
        row(name, &format!("/families/{name}"), family["floor"].as_f64());
    }
    row("all", "", summary.pointer("/final/floor").and_then(Value::as_f64));
    let (delta, ratio) = (number("/accuracy_delta"), number("/length_ratio"));
    text + &format!("length {:.1}% of the base's, accuracy {:+.1} points", 100.0 * ratio, 100.0 * delta)
}
