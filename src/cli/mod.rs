//! The command line. [`run`] is the program's table of contents.

mod bench;
mod eval;
mod generate;
mod merge;
mod progress;
mod score;
mod tasks;
mod train;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Parser, Subcommand};

use crate::error::Error;
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
    /// Evaluate a model on a JSONL file or on the embedded tasks ("tasks").
    Eval(eval::EvalArgs),
    /// Answer one prompt, as it comes.
    Generate(generate::GenerateArgs),
    /// Write log-probability and entropy of every token of given texts, as JSONL.
    Score(score::ScoreArgs),
    /// Merge an adapter into its base model.
    Merge(merge::MergeArgs),
    /// Write a run's report again.
    Report(generate::ReportArgs),
    /// Measure speed and memory; prints JSON.
    Bench(bench::BenchArgs),
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

/// In what to compute.
#[derive(Debug, Args)]
struct PrecisionArgs {
    /// Number format of weights and matrix products; all else is computed in f32
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Precision,
}

/// Runs a parsed command line; what goes wrong is for [`exit_code`].
///
/// # Errors
/// Whatever the command says.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Train(args) => train::train(args),
        Command::Sft(args) => train::sft(args),
        Command::Eval(args) => eval::eval(args),
        Command::Generate(args) => generate::run(args),
        Command::Score(args) => score::score(&args),
        Command::Merge(args) => merge::merge(&args),
        Command::Report(args) => generate::write_report(&args),
        Command::Bench(args) => bench::bench(args),
        Command::Tasks(args) => tasks::tasks(args),
        Command::Tokenizer(args) => tasks::tokenizer(args),
    }
}

/// 130 after Ctrl-C, 2 for a user's mistake, 1 for anything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted { .. }) => 130,
        Some(_) => 2,
        None => 1,
    }
}

/// A flag that Ctrl-C sets; a second Ctrl-C ends the process at once.
fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
    })?;
    Ok(stop)
}

/// A data set as named on the command line: the embedded tasks or a file.
fn is_tasks(path: &Path) -> bool {
    path.as_os_str() == crate::problems::TASKS
}
