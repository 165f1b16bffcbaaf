//! Recorded training curves of four methods on the embedded model. A refactoring must not change any of these numbers.
//!
//! `TEMPERING_RECORD_GOLDEN=1 cargo test --release golden` records them again. The commit message must say which
//! numbers changed and why.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value, json};
use tempering::config;
use tempering::train::{RlConfig, Trainer};
use tempering::train::{Session, Start};

use crate::support::{column, device_name, figures, repository};

/// Columns of `metrics.jsonl` that are compared.
const COLUMNS: [&str; 4] = ["loss", "reward", "grad_norm", "completions/mean_length"];

/// Method files, with the number of steps of each stage.
const METHODS: [(&str, &[usize]); 4] =
    [("entropy_guided", &[10, 10]), ("dapo", &[20]), ("kimi_k15", &[20]), ("laser_de", &[20])];

/// Relative tolerance. On other processors than the recorded one, sums are computed in another order and eventually
/// another token is drawn: there only the first [`STEPS_ELSEWHERE`] steps are compared.
const TOLERANCE: f64 = 1e-5;
const STEPS_ELSEWHERE: usize = 2;
const TOLERANCE_ELSEWHERE: f64 = 1e-3;

fn golden() -> PathBuf {
    repository("assets/fixtures/golden.json")
}

/// Return the vector instruction set, which determines the order of sums.
fn processor() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        return "avx512";
    }
    std::env::consts::ARCH
}

fn curves(method: &str, steps: &[usize], folder: &Path) -> Map<String, Value> {
    let mut sets: Vec<String> = [
        "train.prompts_per_step=2",
        "train.eval_steps=0",
        "train.save_steps=0",
        "train.conflict_steps=0",
        "eval.num_problems=4",
    ]
    .map(str::to_string)
    .to_vec();
    sets.push(format!("output_dir={}", folder.display()));
    sets.push(format!("model.path={}", repository("assets/base").display()));
    sets.extend(steps.iter().enumerate().map(|(stage, steps)| format!("stages.{stage}.exit.max_steps={steps}")));
    let file = repository(&format!("configs/methods/{method}.toml"));
    let config: RlConfig = config::load(Some(&file), &sets).unwrap();
    let stop = AtomicBool::new(false);
    Trainer::new(&config).run(&mut Session { observer: &mut (), stop: &stop, start: Start::New }).unwrap();
    let rows = figures(&folder.join(method));
    COLUMNS.iter().map(|name| (name.to_string(), json!(column(&rows, name)))).collect()
}

#[test]
fn twenty_steps_of_four_methods_are_as_recorded() {
    if device_name() != "cpu" {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let found: Map<String, Value> = (METHODS.iter())
        .map(|(method, steps)| (method.to_string(), Value::Object(curves(method, steps, folder.path()))))
        .collect();
    if std::env::var_os("TEMPERING_RECORD_GOLDEN").is_some() {
        let text = serde_json::to_string(&json!({ "processor": processor(), "curves": found })).unwrap();
        std::fs::write(golden(), text + "\n").unwrap();
        return;
    }
    let recorded: Value = serde_json::from_slice(&std::fs::read(golden()).unwrap()).unwrap();
    let here = recorded["processor"] == processor();
    let (steps, tolerance) = if here { (usize::MAX, TOLERANCE) } else { (STEPS_ELSEWHERE, TOLERANCE_ELSEWHERE) };
    if !here {
        eprintln!(
            "the curves were recorded with {}: only their first {steps} steps are compared",
            recorded["processor"]
        );
    }
    for (method, _) in METHODS {
        for name in COLUMNS {
            let numbers = |curves: &Value| -> Vec<f64> {
                curves[method][name].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
            };
            let (want, got) = (numbers(&recorded["curves"]), numbers(&Value::Object(found.clone())));
            assert!(want.len() == got.len() && want.len() >= 20, "{method} {name}: {} steps", got.len());
            for (step, (want, got)) in want.iter().zip(&got).enumerate().take(steps) {
                let close = (want - got).abs() <= tolerance * want.abs().max(1e-3);
                assert!(close, "{method}: {name} of step {} is {got}, recorded {want}", step + 1);
            }
        }
    }
}
