//! The command line. `dispatch` maps each subcommand to its module.

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
use crate::error::Error;
use crate::generate::Distribution;
use crate::model::Precision;
use crate::ranks;
use crate::text::prompt::PromptConfig;
use crate::text::tokenizer::Tokenizer;
use crate::{config, device};

/// Make a reasoning model concise without making it worse.
#[derive(Debug, Parser)]
#[command(name = "tempering", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
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
    /// Generate a completion of one prompt
    Generate(generate::GenerateArgs),
    /// Grade answers against gold answers and explain the verdicts
    Verify(verify::VerifyArgs),
    /// Write the log-probability and the entropy of every token of given texts as JSONL
    Score(score::ScoreArgs),
    /// Merge an adapter into its base model.
    Merge(merge::MergeArgs),
    /// Regenerate the report of a run
    Report(report::ReportArgs),
    /// Plot the metrics of a run in the terminal, live
    Watch(watch::WatchArgs),
    /// List all settings with their defaults as a TOML settings file
    Settings(settings::SettingsArgs),
    /// List all metrics with their units and meanings
    Metrics,
    /// Measure speed and memory and print JSON
    Bench(bench::BenchArgs),
    /// List the devices of this machine, and compare the results of a device with the CPU
    Doctor(doctor::DoctorArgs),
    /// Write the embedded tasks as JSONL.
    Tasks(tasks::TasksArgs),
    /// Train a small tokenizer on the embedded tasks
    Tokenizer(tokenizer::TokenizerArgs),
}

/// Where to compute.
#[derive(Debug, Args)]
struct DeviceArgs {
    /// Device: cpu, ndarray, cuda[:n], rocm[:n], vulkan[:n], metal, wgpu[:n], cubecl-cpu
    /// [default: the variable TEMPERING_DEVICE, or cpu]
    #[arg(long)]
    device: Option<String>,
}

impl DeviceArgs {
    /// Return the name of the device.
    fn name(&self) -> crate::error::Result<String> {
        Ok(device_name(self.device.as_deref())?.unwrap_or_else(|| "cpu".to_string()))
    }

    /// Return the device and its name.
    fn open(&self) -> crate::error::Result<(Device, String)> {
        let name = self.name()?;
        Ok((device::parse(&name)?, name))
    }
}

/// Return the device named by the option, or else by the environment variable. Clap could read the variable itself, but
/// would treat it as a given option: in errors, and in conflicts with other options.
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
    /// Sampling temperature; 0 is greedy decoding [default: 1]
    #[arg(long)]
    temperature: Option<f32>,
    /// Sample from this number of most probable tokens; 0 for all [default: 0]
    #[arg(long)]
    top_k: Option<usize>,
    /// Sample from the most probable tokens whose total probability reaches this value [default: 1]
    #[arg(long)]
    top_p: Option<f32>,
    /// Sample from tokens with at least this fraction of the largest probability [default: 0]
    #[arg(long)]
    min_p: Option<f32>,
    /// Repetition penalty: above 1 makes earlier tokens less likely; 1 for none [default: 1]
    #[arg(long)]
    repetition_penalty: Option<f32>,
}

impl DistributionArgs {
    /// Return the distribution, with `defaults` for options that are not given. `others` are options of the command
    /// that have no effect at temperature 0; each comes with whether it is given.
    fn distribution(&self, defaults: Distribution, others: &[(&str, bool)]) -> crate::error::Result<Distribution> {
        let distribution = Distribution {
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
        };
        let mut problems = distribution.mistakes();
        if distribution.temperature == 0.0 {
            let own = [
                ("--top-k", self.top_k.is_some_and(|k| k > 0)),
                ("--top-p", self.top_p.is_some_and(|p| p < 1.0)),
                ("--min-p", self.min_p.is_some_and(|p| p > 0.0)),
            ];
            let idle = own.iter().chain(others).filter(|(_, given)| *given);
            let advice = "has no effect at temperature 0, which always takes the most probable token: remove it";
            problems.extend(idle.map(|(option, _)| format!("{option} {advice}")));
        }
        refuse(problems).map(|()| distribution)
    }
}

/// Return an error that lists the mistakes in options, if there are any.
fn refuse(problems: Vec<String>) -> crate::error::Result<()> {
    if problems.is_empty() { Ok(()) } else { Err(Error::Config { origin: "command line".to_string(), problems }) }
}

/// Refuse options outside their range: each is a name, a value, and the smallest and largest accepted value.
fn within(options: &[(&str, usize, usize, usize)]) -> crate::error::Result<()> {
    let mistakes = options.iter().filter_map(|&(option, value, least, most)| config::count(option, value, least, most));
    refuse(mistakes.map(|mistake| mistake.replacen(" = ", " ", 1)).collect())
}

/// How the model is asked; the `[prompt]` section of a run's settings.
#[derive(Debug, Args)]
struct PromptArgs {
    /// System message before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Text appended to the question; "auto" asks for \boxed{} if the answer in the data is a formula [default: auto]
    #[arg(long, value_name = "TEXT")]
    suffix: Option<String>,
    /// Date that the chat template sees, such as 2026-11-26 [default: today]
    #[arg(long)]
    date: Option<String>,
    /// Name of the chat template, if the model has several
    #[arg(long = "chat-template", value_name = "NAME")]
    template: Option<String>,
    /// Variable of the chat template, such as enable_thinking=false; may be repeated
    #[arg(long = "template-kwarg", value_name = "KEY=VALUE")]
    template_kwargs: Vec<String>,
}

impl PromptArgs {
    /// Load the tokenizer in `dir` with the prompt `settings`; given options override them. Notes for the user go to
    /// standard error.
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
        settings.template = self.template.clone().or(settings.template);
        let mut keys = Vec::new();
        for pair in &self.template_kwargs {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(Error::Invalid(format!("--template-kwarg {pair}: expected KEY=VALUE")));
            };
            if keys.contains(&key.trim()) {
                return Err(Error::Invalid(format!("--template-kwarg {pair}: {key} is given twice; remove one")));
            }
            keys.push(key.trim());
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
    /// Number format of weights and matrix products; everything else is computed in f32.
    /// bf16 rounds weights stored in f32 and halves the data read per token: it speeds up GPUs and sampling, but slows
    /// down training on the cpu device
    #[arg(long, value_parser = precision, default_value = "f32", value_name = "f32|tf32|bf16|f16")]
    dtype: Precision,
}

/// Parse the name of a number format.
fn precision(name: &str) -> std::result::Result<Precision, String> {
    serde_json::from_value(name.into()).map_err(|_| "choose from f32, tf32, bf16 and f16".to_string())
}

/// Run a parsed command line; [`exit_code`] maps its error. If the reader of the output closes it (`| head`), the
/// command ends without an error.
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

/// The name of standard output in errors.
const STDOUT: &str = "standard output";

/// Write a line to standard output.
fn print(line: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(io::stdout().lock(), "{line}").map_err(Error::io(STDOUT))?)
}

fn dispatch(command: CliCommand) -> anyhow::Result<()> {
    if !matches!(command, CliCommand::Train(_) | CliCommand::Bench(_)) {
        ranks::refuse()?;
    }
    match command {
        CliCommand::Train(args) => train::train(&args),
        CliCommand::Sft(args) => train::sft(&args),
        CliCommand::Study(args) => study::study(&args),
        CliCommand::Eval(args) => eval::run(args),
        CliCommand::Compare(args) => compare::run(&args),
        CliCommand::Analyze(args) => analyze::run(&args),
        CliCommand::Generate(args) => generate::run(args),
        CliCommand::Verify(args) => verify::verify(args),
        CliCommand::Score(args) => score::score(&args),
        CliCommand::Merge(args) => merge::merge(&args),
        CliCommand::Report(args) => report::run(&args),
        CliCommand::Watch(args) => watch::run(&args),
        CliCommand::Settings(args) => settings::run(&args),
        CliCommand::Metrics => metrics::run(),
        CliCommand::Bench(args) => bench::bench(args),
        CliCommand::Doctor(args) => doctor::doctor(&args),
        CliCommand::Tasks(args) => tasks::tasks(args),
        CliCommand::Tokenizer(args) => tokenizer::run(args),
    }
}

/// Return the message of an error, with each cause once.
pub fn message(error: &anyhow::Error) -> String {
    // Our own errors contain their causes.
    error.downcast_ref::<Error>().map_or_else(|| format!("{error:#}"), ToString::to_string)
}

/// Return the exit code: 130 after Ctrl-C, 2 for a user mistake, 1 for any other error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted { .. } | Error::Stopped) => 130,
        Some(_) => 2,
        None => 1,
    }
}

/// Return a flag that Ctrl-C, SIGTERM and SIGHUP set. The second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            // Files are written under temporary names and renamed: saved files stay intact.
            crate::reward::end_programs();
            std::process::exit(130);
        }
        say("stopping: saving the state of the last step; press Ctrl-C again to exit immediately");
    })?;
    Ok(stop)
}
