//! The command line. [`run`] is the program's table of contents.

mod analyze;
mod bench;
mod doctor;
mod eval;
mod generate;
mod merge;
mod problems;
mod progress;
mod score;
mod tasks;
mod train;
mod verify;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Parser, Subcommand};

use crate::error::Error;
use crate::generate::Distribution;
use crate::model::Precision;

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
    /// Evaluate a model on files of problems or on the embedded tasks ("tasks").
    Eval(eval::EvalArgs),
    /// Compare two evaluations of the same problems.
    Compare(eval::CompareArgs),
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
    Report(generate::ReportArgs),
    /// Measure speed and memory; prints JSON.
    Bench(bench::BenchArgs),
    /// Show what this machine can compute on, and compare a device with the CPU.
    Doctor(doctor::DoctorArgs),
    /// Write the embedded tasks as JSONL.
    Tasks(tasks::TasksArgs),
    /// Train the small tokenizer on the embedded tasks.
    Tokenizer(tasks::TokenizerArgs),
}

/// Where to compute.
#[derive(Debug, Args)]
struct DeviceArgs {
    /// cpu, ndarray, cuda[:n], rocm[:n], vulkan[:n], metal, wgpu[:n]
    #[arg(long, default_value = "cpu", env = "TEMPERING_DEVICE")]
    device: String,
}

/// What tokens are drawn from; names and defaults of Hugging Face.
#[derive(Debug, Args)]
struct DistributionArgs {
    /// Sampling temperature; 0 is greedy.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Only the so many most probable tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Only the most probable tokens that together reach this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Only tokens at least this many times as probable as the most probable one.
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Makes tokens that occurred before less likely; 1 for none.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
}

impl DistributionArgs {
    fn distribution(&self) -> crate::error::Result<Distribution> {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty } = *self;
        let distribution = Distribution { repetition_penalty, temperature, top_k, top_p, min_p };
        match distribution.mistakes() {
            problems if problems.is_empty() => Ok(distribution),
            problems => Err(Error::Config { origin: "command line".to_string(), problems }),
        }
    }
}

/// In what to compute.
#[derive(Debug, Args)]
struct PrecisionArgs {
    /// Number format of weights and matrix products; all else is computed in f32
    #[arg(long, value_parser = precision, default_value = "f32", value_name = "f32|bf16|f16")]
    dtype: Precision,
}

/// The number format of that name.
fn precision(name: &str) -> std::result::Result<Precision, String> {
    serde_json::from_value(name.into()).map_err(|_| "known are f32, bf16 and f16".to_string())
}

/// Runs a parsed command line; what goes wrong is for [`exit_code`].
///
/// # Errors
/// Whatever the command says.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Train(args) => train::train(&args),
        Command::Sft(args) => train::sft(&args),
        Command::Eval(args) => eval::eval(args),
        Command::Compare(args) => eval::compare(&args),
        Command::Analyze(args) => analyze::run(&args),
        Command::Generate(args) => generate::run(args),
        Command::Verify(args) => verify::verify(args),
        Command::Score(args) => score::score(&args),
        Command::Merge(args) => merge::merge(&args),
        Command::Report(args) => generate::write_report(&args),
        Command::Bench(args) => bench::bench(args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Tasks(args) => tasks::tasks(args),
        Command::Tokenizer(args) => tasks::tokenizer(args),
    }
}

/// 130 after Ctrl-C, 2 for a user's mistake, 1 for anything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted { .. } | Error::Stopped) => 130,
        Some(_) => 2,
        None => 1,
    }
}

/// Whether a command failed only since nobody reads its output any more, as after `| head`: that is no failure.
pub fn output_closed(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A flag that Ctrl-C, SIGTERM and SIGHUP set; the second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            // Files are written under other names and renamed: what is saved stays whole.
            std::process::exit(130);
        }
        // The terminal may be gone.
        let _ = writeln!(io::stderr(), "stopping: the state of the last step is being saved; again to end at once");
    })?;
    Ok(stop)
}
