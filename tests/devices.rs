//! Comparison of the quickstart on the device under test with the same run on the CPU.

use std::sync::atomic::AtomicBool;

use tempering::train::{RlConfig, Trainer};
use tempering::train::{Session, Start};

use crate::support::{column, device_name, figures, within};

/// Run five steps of the quickstart with fewer and shorter completions: three of its first stage, two of its second.
fn quickstart(device: &str) -> Vec<serde_json::Map<String, serde_json::Value>> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = RlConfig { output_dir: dir.path().to_path_buf(), ..RlConfig::default() };
    (config.train.prompts_per_step, config.train.num_generations, config.train.eval_steps) = (2, 4, 0);
    (config.eval.num_problems, config.eval.max_completion_length) = (2, 8);
    for (stage, steps) in config.stages.iter_mut().zip([3, 2]) {
        (stage.exit.max_steps, stage.sampling.max_completion_length) = (steps, 80);
    }
    config.device = device.to_string();
    let stop = AtomicBool::new(false);
    Trainer::new(&config).run(&mut Session { observer: &mut (), stop: &stop, start: Start::New }).unwrap();
    figures(&dir.path().join("quickstart"))
}

/// Compare the device under test with `cpu`, or `cpu` with `ndarray` (no fused operations) if that is compiled in.
#[test]
fn the_quickstart_has_the_losses_of_the_cpu() {
    let device = device_name();
    let other = if device == "cpu" { "ndarray" } else { "cpu" };
    if other == "ndarray" && !cfg!(feature = "ndarray") {
        eprintln!("!!!! SKIPPED: build with --features ndarray for a device to compare cpu with !!!!");
        return;
    }
    let (ours, theirs) = (quickstart(&device), quickstart(other));
    for metric in ["loss", "grad_norm", "entropy", "reward", "completions/mean_length"] {
        let (ours, theirs) = (column(&ours, metric), column(&theirs, metric));
        let largest = theirs.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
        assert!(theirs.len() == 5 && largest > 0.0, "{metric}: {theirs:?}");
        let difference = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("{metric}: largest difference {difference:.1e} of {largest:.3}");
        assert!(
            difference <= f64::from(within(1e-4)) * largest,
            "{metric}: {ours:?} on {device}, {theirs:?} on {other}"
        );
    }
}
