//! The commands `train` and `sft`.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clap::Args;
use serde_json::Value;

use super::paths::no_study;
use super::progress::ProgressDisplay;
use super::{device_name, print, stop_on_signal};
use crate::config;
use crate::device;
use crate::doctor::estimate;
use crate::doctor::{self, fit, matrix_gflops, memory};
use crate::error::{Error, Result};
use crate::files;
use crate::model::ModelConfig;
use crate::ops::is_host;
use crate::ranks;
use crate::report::{self, duration};
use crate::train::RlConfig;
use crate::train::run::RunSettings;
use crate::train::sft::SftConfig;
use crate::train::team::{self, Team};
use crate::train::{self, Observer, Session, Start, StepSize, Trainer, Workload};

/// What to train and where.
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// Settings file (TOML).
    config: Option<PathBuf>,
    /// Change a setting: section.key=value; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Seed; short for --set seed=N.
    #[arg(long)]
    seed: Option<u64>,
    /// Number format of matrix products (f32, tf32 or bf16); short for --set model.dtype=….
    #[arg(long)]
    dtype: Option<String>,
    /// Device: cpu, ndarray, cuda[:n], rocm[:n], vulkan[:n], metal, wgpu[:n]; short for --set device=…
    /// [default: the variable TEMPERING_DEVICE].
    #[arg(long)]
    device: Option<String>,
    /// Continue a run from its newest checkpoint. RUN is the folder or the name of the run, which keeps its own
    /// settings; without RUN, the settings file names the run. Given settings must equal those of the run, except for
    /// its length, how often it evaluates and saves, and its use of memory.
    #[arg(long, value_name = "RUN", num_args = 0..=1, conflicts_with = "overwrite")]
    resume: Option<Option<PathBuf>>,
    /// Continue from this checkpoint instead of the newest, and remove the later ones.
    #[arg(long, value_name = "STEP", requires = "resume")]
    from_checkpoint: Option<usize>,
    /// Replace an earlier run of the same name as soon as the first step of this run is finished.
    #[arg(long)]
    overwrite: bool,
    /// Print the resolved settings, and the estimated memory and operations of a step, and exit.
    #[arg(long)]
    dry_run: bool,
}

impl TrainArgs {
    fn start(&self) -> Start {
        match (&self.resume, self.from_checkpoint) {
            (Some(_), Some(step)) => Start::ResumeFrom(step),
            (Some(_), None) => Start::Resume,
            (None, _) if self.overwrite => Start::Overwrite,
            (None, _) => Start::New,
        }
    }

    /// Return the parts of the command line that must be equal on all ranks.
    fn told(&self) -> Vec<String> {
        let Self { config, sets, seed, dtype, device: _, resume, from_checkpoint, overwrite, dry_run } = self;
        let mut told = vec![format!("version {}", env!("CARGO_PKG_VERSION"))];
        told.extend(config.as_ref().map(|path| path.display().to_string()));
        told.extend(sets.iter().map(|set| format!("--set {set}")));
        told.extend(seed.map(|seed| format!("--seed {seed}")));
        told.extend(dtype.as_ref().map(|dtype| format!("--dtype {dtype}")));
        told.extend(
            resume.as_ref().map(|run| format!("--resume {}", run.as_deref().unwrap_or(Path::new("")).display())),
        );
        told.extend(from_checkpoint.map(|step| format!("--from-checkpoint {step}")));
        told.extend(
            [(*overwrite, "--overwrite"), (*dry_run, "--dry-run")]
                .iter()
                .filter(|(set, _)| *set)
                .map(|(_, name)| name.to_string()),
        );
        told
    }

    /// Whether a `--set` sets this key.
    fn is_set(&self, key: &str) -> bool {
        self.sets.iter().any(|set| set.split('=').next().is_some_and(|own| own.trim() == key))
    }

    /// Return the device named by the option or the environment; `None` if a `--set` names it.
    fn device(&self) -> Result<Option<String>> {
        if self.is_set("device") { Ok(None) } else { device_name(self.device.as_deref()) }
    }

    fn settings<S: RunSettings>(&self) -> Result<S> {
        let short = [
            ("--seed", self.seed.is_some(), "seed"),
            ("--dtype", self.dtype.is_some(), "model.dtype"),
            ("--device", self.device.is_some(), "device"),
        ];
        if let Some((option, _, key)) = short.into_iter().find(|(_, given, key)| *given && self.is_set(key)) {
            return Err(Error::Invalid(format!("{option} and --set {key}=… give the same setting: remove one")));
        }
        let mut sets = self.sets.clone();
        sets.extend(self.seed.map(|seed| format!("seed={seed}")));
        sets.extend(self.dtype.as_ref().map(|dtype| format!("model.dtype={dtype}")));
        sets.extend(self.device()?.map(|device| format!("device={device}")));
        let load = |file: Option<&Path>| match file {
            Some(file) => no_study(file, config::load(Some(file), &sets)),
            None => config::load(None, &sets),
        };
        let Some(named) = &self.resume else { return load(self.config.as_deref()) };
        // `--resume FILE`: the file has settings, which name the run.
        let (named, file) = match named {
            Some(path) if path.is_file() && self.config.is_none() => (None, Some(path)),
            Some(path) => (Some(path), self.config.as_ref()),
            None => (None, self.config.as_ref()),
        };
        match (named, file) {
            (None, Some(file)) => load(Some(file)),
            (None, None) => {
                let named: S = load(None)?;
                resumed(&named.common().dir(), None, &sets)
            }
            (Some(path), file) => resumed(&run_dir(path)?, file.map(PathBuf::as_path), &sets),
        }
    }
}

/// Return the folder of the run that `--resume` names.
fn run_dir(path: &Path) -> Result<PathBuf> {
    let below = Path::new("runs").join(path);
    let found = [path, &below].into_iter().find(|dir| dir.is_dir());
    let message = "no such run; give its folder, such as --resume runs/quickstart";
    found.map(Path::to_path_buf).ok_or_else(|| Error::file(path, message))
}

/// Load the settings of the run in `dir`, or those in `file`, with `sets`. `output_dir` and `name` become those of
/// `dir`.
fn resumed<S: RunSettings>(dir: &Path, file: Option<&Path>, sets: &[String]) -> Result<S> {
    let own = dir.join("config.toml");
    check_resumed(dir, S::COMMAND, file.is_none() && !own.is_file())?;
    let mut config: S = config::load(Some(file.unwrap_or(&own)), sets)?;
    let whole = dir.canonicalize().map_err(Error::io(dir))?;
    let (output_dir, own_name) = config.place();
    let is_place = |set: &&String| set.starts_with("name=") || set.starts_with("output_dir=");
    if let Some(set) = sets.iter().find(is_place)
        && output_dir.join(&*own_name).canonicalize().ok().as_ref() != Some(&whole)
    {
        let message = format!("--set {set}: a resumed run stays in its folder, {}: remove this", dir.display());
        return Err(Error::Invalid(message));
    }
    // Paths such as `.` have no last component. A link keeps its own name.
    let place = if dir.file_name().is_some() { dir } else { &whole };
    *own_name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    *output_dir = place.parent().unwrap_or(Path::new("")).to_path_buf();
    Ok(config)
}

/// Refuse to resume a folder that is no run, a run of another command, and a run `without` settings.
fn check_resumed(dir: &Path, command: &str, without: bool) -> Result<()> {
    let mark = dir.join("run.json");
    let parent = dir.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let refuse = |message: String| Err(Error::file(dir, message));
    if mark.is_file() {
        let origin: Value = files::read_json(&mark)?;
        return match origin["command"].as_str() {
            Some(other) if other != command => refuse(format!(
                "was started by `tempering {other}`, not by `tempering {command}`: continue it with `tempering {other} \
                 --resume {}`",
                dir.display()
            )),
            _ if without => refuse(format!(
                "its config.toml is missing: restore it, or give the settings file with which the run was started, \
                 `tempering {command} SETTINGS --resume {}`",
                dir.display()
            )),
            _ => Ok(()),
        };
    }
    if parent.join("run.json").is_file() {
        let step = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let step = step.strip_prefix("checkpoint-").map(|step| format!(" --from-checkpoint {step}"));
        let (run, step) = (parent.display(), step.unwrap_or_default());
        return refuse(format!("is inside the folder of a run: continue the run with --resume {run}{step}"));
    }
    if without {
        refuse("is not the folder of a run, so there is nothing to resume; start without --resume".to_string())
    } else {
        Ok(())
    }
}

/// What the memory and the operations of a step are estimated from.
type Cost = (Result<(ModelConfig, Workload)>, StepSize);

/// Format the estimates of memory and time as comments, so that the output of a dry run is a valid settings file.
fn estimate_lines((found, size): Cost, device: &Device) -> String {
    let text = match found {
        Ok((model, workload)) => {
            let estimate = estimate::memory(&model, &workload);
            let fit = fit(&estimate, memory(device));
            let time = time(estimate::step_operations(&model, &workload, &size), device);
            format!("memory on the cpu device:\n{estimate}{fit}\n{time}")
        }
        Err(error) => format!("memory: not estimated, because the model cannot be read: {error}"),
    };
    text.lines().fold("\n".to_string(), |lines, line| lines + "# " + line + "\n")
}

/// Return a line with the operations of a step and, on the CPU, the least time that they take. Sampling takes longer
/// than its operations say: each token of a few rows needs all weights from memory.
fn time(operations: f64, device: &Device) -> String {
    let counted = format!(
        "time: {operations:.1e} floating-point operations in a step with prompts and completions of maximum length"
    );
    if !is_host(device) {
        return counted;
    }
    let gflops = matrix_gflops(device);
    let seconds = operations / gflops / 1e9;
    let seconds = if seconds < 10.0 { format!("{seconds:.1} s") } else { duration(seconds) };
    format!("{counted},\n  at least {seconds} at {gflops:.0} GFLOP/s, as measured now with 1024 x 1024 matrix products")
}

/// Resolve the settings and train with them; a dry run only prints them and their `cost`. `check_defaults` checks
/// settings that do not come from a file. Return `None` after a dry run.
fn start<S: RunSettings, T>(
    args: &TrainArgs,
    check_defaults: fn(&S) -> Result<()>,
    cost: fn(&S) -> Cost,
    run: impl FnOnce(&S, &mut Session) -> Result<T>,
) -> anyhow::Result<Option<T>> {
    let config: S = args.settings()?;
    if args.config.is_none() && args.resume.is_none() {
        check_defaults(&config)?;
    }
    let common = config.common();
    let device = device::parse(common.device)?;
    if args.dry_run {
        print(format!("{}{}", config::to_toml(&config), estimate_lines(cost(&config), &device)))?;
        return Ok(None);
    }
    let stop = stop_on_signal()?;
    let mut observer = ProgressDisplay::new();
    observer.note(&doctor::require(common.device, &device, common.precision)?);
    let mut session = Session { observer: &mut observer, stop: &stop, start: args.start() };
    Ok(Some(run(&config, &mut session)?))
}

pub(super) fn sft(args: &TrainArgs) -> anyhow::Result<()> {
    let cost = |config: &SftConfig| (config.workload(), config.step_size());
    if let Some(dir) = start(args, |_| Ok(()), cost, train::sft::run)? {
        print(format!("model: {}", dir.display()))?;
    }
    Ok(())
}

pub(super) fn train(args: &TrainArgs) -> anyhow::Result<()> {
    let ranks = ranks::join()?;
    if ranks.rank() > 0 {
        // Only rank 0 handles signals. The other ranks continue until it ends them.
        ctrlc::set_handler(|| {})?;
        team::serve(&*ranks, args.told(), &mut |name, precision| {
            let given = args.device()?;
            let name = given.as_deref().unwrap_or(name);
            let device = device::parse(name)?;
            doctor::require(name, &device, precision)?;
            Ok(device)
        });
        return Ok(());
    }
    let team = Team::gather(&*ranks, &args.told())?;
    let cost = |config: &RlConfig| (config.workload(), config.step_size());
    if let Some(finished) = start(args, RlConfig::check_embedded_model, cost, |config, session| {
        Trainer::new(config).team(&team).run(session)
    })? {
        let report = report::write(&finished.dir)?;
        print(conclusion(&finished.summary))?;
        print(format!("model:  {}\nreport: {}", finished.dir.join("final").display(), report.display()))?;
    }
    Ok(())
}

/// Format a table of accuracy and length before and after training, per data source.
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
    let legend = "floor: mean length of the shortest reference solutions, where known";
    text + &format!("length {:.1}% of the base model's, accuracy {:+.1} points; {legend}", 100.0 * ratio, 100.0 * delta)
}
