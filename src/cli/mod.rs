//! The command line. [`run`] is the program's table of contents.

mod analyze;
mod bench;
mod compare;
mod doctor;
mod engine;
mod eval;
mod generate;
mod merge;
mod metrics;
mod paths;
mod problems;
mod progress;
mod report;
mod score;
mod settings;
mod study;
mod tasks;
mod tokenizer;
mod train;
mod verify;
mod watch;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use clap::{Args, Parser, Subcommand};

use self::progress::say;
use crate::device;
use crate::error::Error;
use crate::generate::Distribution;
use crate::model::Precision;
use crate::ranks;
use crate::text::prompt::PromptConfig;
use crate::text::tokenizer::Tokenizer;

/// Make a reasoning model concise without making it worse.
#[derive(Debug, Parser)]
#[command(name = "tempering", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train by reinforcement learning (configs/quickstart.toml when no file is given).
    Train(train::TrainArgs),
    /// Fine-tune on conversations.
    Sft(train::TrainArgs),
    /// Compare methods: arms, settings and seeds at an equal budget.
    Study(study::StudyArgs),
    /// Evaluate a model on files of problems or on the embedded tasks ("tasks").
    Eval(eval::EvalArgs),
    /// Compare two evaluations of the same problems.
    Compare(compare::CompareArgs),
    /// Measure the entropy conflict of a model without training it.
    Analyze(analyze::AnalyzeArgs),
    /// Answer one prompt, as it comes.
    Generate(generate::GenerateArgs),
    /// Compare answers with right ones and say why they are (not) equal.
    Verify(verify::VerifyArgs),
    /// Write log-probability and entropy of every token of given texts, as JSONL.
    Score(score::ScoreArgs),
    /// Merge an adapter into its base model.
    Merge(merge::MergeArgs),
    /// Write a run's report again.
    Report(report::ReportArgs),
    /// Show a run's curves in the terminal, live.
    Watch(watch::WatchArgs),
    /// List all settings with their defaults, as a file of settings.
    Settings(settings::SettingsArgs),
    /// List all metrics with their units.
    Metrics,
    /// Measure speed and memory; prints JSON.
    Bench(bench::BenchArgs),
    /// Show what this machine can compute on, and compare a device with the CPU.
    Doctor(doctor::DoctorArgs),
    /// Write the embedded tasks as JSONL.
    Tasks(tasks::TasksArgs),
    /// Train the small tokenizer on the embedded tasks.
    Tokenizer(tokenizer::TokenizerArgs),
}

/// Where to compute.
#[derive(Debug, Args)]
struct DeviceArgs {
    /// cpu, ndarray, cuda[:n], rocm[:n], vulkan[:n], metal, wgpu[:n], cubecl-cpu [default: cpu, or what TEMPERING_DEVICE says]
    #[arg(long)]
    device: Option<String>,
}

impl DeviceArgs {
    /// The device's name.
    fn name(&self) -> crate::error::Result<String> {
        Ok(device_name(self.device.as_deref())?.unwrap_or_else(|| "cpu".to_string()))
    }

    /// The device and its name.
    fn open(&self) -> crate::error::Result<(Device, String)> {
        let name = self.name()?;
        Ok((device::parse(&name)?, name))
    }
}

/// The device that the option names, or else the environment. Clap's own reading of the environment would take the variable
/// for an option, which an error then names and other options conflict with.
fn device_name(option: Option<&str>) -> crate::error::Result<Option<String>> {
    const VARIABLE: &str = "TEMPERING_DEVICE";
    let (None, Some(name)) = (option, std::env::var_os(VARIABLE)) else { return Ok(option.map(str::to_string)) };
    let name = name.to_string_lossy().into_owned();
    let of_variable = |error: Error| match error {
        Error::Device { name, message } => {
            Error::Invalid(format!("{VARIABLE}={name}: {message}; or unset the variable"))
        }
        other => other,
    };
    device::parse(&name).map_err(of_variable)?;
    Ok(Some(name))
}

/// What tokens are drawn from; names of Hugging Face.
#[derive(Debug, Args)]
struct DistributionArgs {
    /// Sampling temperature; 0 is greedy [default: 1]
    #[arg(long)]
    temperature: Option<f32>,
    /// Only this many most probable tokens; 0 for all [default: 0]
    #[arg(long)]
    top_k: Option<usize>,
    /// Only the most probable tokens that together reach this probability [default: 1]
    #[arg(long)]
    top_p: Option<f32>,
    /// Only tokens at least this many times as probable as the most probable one [default: 0]
    #[arg(long)]
    min_p: Option<f32>,
    /// Makes tokens that occurred before less likely; 1 for none [default: 1]
    #[arg(long)]
    repetition_penalty: Option<f32>,
}

impl DistributionArgs {
    /// The distribution, with `defaults` for what is not given.
    fn distribution(&self, defaults: Distribution) -> crate::error::Result<Distribution> {
        let distribution = Distribution {
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
        };
        match distribution.mistakes() {
            problems if problems.is_empty() => Ok(distribution),
            problems => Err(Error::Config { origin: "command line".to_string(), problems }),
        }
    }
}

/// How the model is asked; the `[prompt]` section of a run's settings.
#[derive(Debug, Args)]
struct PromptArgs {
    /// Text of a system turn before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Text after the question; "auto" asks for \boxed{} where a file's answer is a formula [default: auto]
    #[arg(long, value_name = "TEXT")]
    suffix: Option<String>,
    /// Date that the chat template sees, such as 2026-11-26 [default: today]
    #[arg(long)]
    date: Option<String>,
    /// Variable of the chat template, such as enable_thinking=false; may be repeated
    #[arg(long = "template-kwarg", value_name = "KEY=VALUE")]
    template_kwargs: Vec<String>,
}

impl PromptArgs {
    /// The tokenizer in `dir`, told how to ask by `settings` and what is given beside them. What a user should know of
    /// it goes to standard error.
    fn tokenizer(&self, dir: &Path, mut settings: PromptConfig) -> crate::error::Result<Tokenizer> {
        let given = [
            (&self.system, &mut settings.system),
            (&self.suffix, &mut settings.suffix),
            (&self.date, &mut settings.date),
        ];
        for (given, setting) in given {
            if let Some(given) = given {
                setting.clone_from(given);
            }
        }
        for pair in &self.template_kwargs {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(Error::Invalid(format!("--template-kwarg {pair}: expected KEY=VALUE")));
            };
            let text = || toml::Value::String(value.to_string());
            let value = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
            settings.chat_template_kwargs.insert(key.trim().to_string(), value.unwrap_or_else(text));
        }
        let tokenizer = Tokenizer::load(dir)?.with_prompt(&settings)?;
        tokenizer.notes().iter().for_each(say);
        Ok(tokenizer)
    }
}

/// In what to compute.
#[derive(Debug, Args)]
struct PrecisionArgs {
    /// Number format of weights and matrix products; all else is computed in f32
    #[arg(long, value_parser = precision, default_value = "f32", value_name = "f32|tf32|bf16|f16")]
    dtype: Precision,
}

/// The number format of that name.
fn precision(name: &str) -> std::result::Result<Precision, String> {
    serde_json::from_value(name.into()).map_err(|_| "known are f32, tf32, bf16 and f16".to_string())
}

/// Runs a parsed command line; [`exit_code`] takes its error. A reader of the output that goes away (`| head`) ends the
/// command quietly.
///
/// # Errors
/// The error of the command.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    let outcome = dispatch(cli.command);
    let closed = |error: &anyhow::Error| {
        let failed = match error.downcast_ref::<Error>() {
            Some(Error::Io { path, source }) if path.as_os_str() == STDOUT => Some(source),
            _ => error.downcast_ref::<io::Error>(),
        };
        failed.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if outcome.as_ref().is_err_and(closed) { Ok(()) } else { outcome }
}

/// What errors call standard output.
const STDOUT: &str = "standard output";

/// Writes a line to standard output.
fn print(line: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{line}").map_err(Error::io(STDOUT))?)
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    if !matches!(command, Command::Train(_) | Command::Bench(_)) {
        ranks::refuse()?;
    }
    match command {
        Command::Train(args) => train::train(&args),
        Command::Sft(args) => train::sft(&args),
        Command::Study(args) => study::study(&args),
        Command::Eval(args) => eval::run(args),
        Command::Compare(args) => compare::run(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::Generate(args) => generate::run(args),
        Command::Verify(args) => verify::verify(args),
        Command::Score(args) => score::score(&args),
        Command::Merge(args) => merge::merge(&args),
        Command::Report(args) => report::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Settings(args) => settings::run(&args),
        Command::Metrics => metrics::run(),
        Command::Bench(args) => bench::bench(args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Tasks(args) => tasks::tasks(args),
        Command::Tokenizer(args) => tokenizer::run(args),
    }
}

/// The message of an error, each part of it once.
pub fn message(error: &anyhow::Error) -> String {
    // Ours say their causes themselves.
    error.downcast_ref::<Error>().map_or_else(|| format!("{error:#}"), ToString::to_string)
}

/// 130 after Ctrl-C, 2 for a user's mistake, 1 for anything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted { .. } | Error::Stopped) => 130,
        Some(_) => 2,
        None => 1,
    }
}

/// A flag that Ctrl-C, SIGTERM and SIGHUP set; the second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            // Files are written under other names and renamed: what is saved stays whole.
            crate::reward::end_programs();
            std::process::exit(130);
        }
        say("stopping: the state of the last step is being saved; again to end at once");
    })?;
    Ok(stop)
}
