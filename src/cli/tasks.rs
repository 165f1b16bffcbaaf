//! The command `tasks`: writes the embedded problems as files.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::problems::FamilyArgs;
use super::{STDOUT, print};
use crate::data::problems::DataConfig;
use crate::error::Error;
use crate::files;
use crate::tasks::{Generator, Split, summary};
use crate::text::tokenizer::Tokenizer;

/// Write generated problems with their reference traces as JSONL.
#[derive(Debug, Args)]
pub(super) struct TasksArgs {
    /// Number of rows to write.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Split to write.
    #[arg(long, value_enum, default_value_t = SplitArg::Train)]
    split: SplitArg,
    /// Seed of the problems.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    families: FamilyArgs,
    /// Lowest difficulty.
    #[arg(long, default_value_t = DataConfig::default().difficulties[0])]
    from: u8,
    /// Highest difficulty.
    #[arg(long, default_value_t = DataConfig::default().difficulties[1])]
    to: u8,
    /// File to write; standard output when not given.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Print mean lengths and accuracies per family instead of rows, with lengths in tokens of this model's tokenizer.
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["output", "split"])]
    summary: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitArg {
    Train,
    HeldOut,
}

pub(super) fn tasks(args: TasksArgs) -> anyhow::Result<()> {
    if args.from < 1 || args.from > args.to || args.to > 4 {
        return Err(Error::Invalid(format!(
            "--from {} --to {}: difficulties must be from 1 to 4, with --from at most --to",
            args.from, args.to
        ))
        .into());
    }
    let mut generator = Generator::new(args.seed);
    generator.difficulties = args.from..=args.to;
    generator.families = args.families.chosen()?;
    if let Some(model) = args.summary {
        let tokenizer = Tokenizer::load(&model)?;
        let tokens = |text: &str| tokenizer.encode(text).map_or(0, |tokens| tokens.len());
        return print(summary(&generator, args.count, tokens));
    }
    let split = match args.split {
        SplitArg::Train => Split::Train,
        SplitArg::HeldOut => Split::HeldOut,
    };
    let rows = (0..args.count).map(|index| generator.row(split, index));
    match args.output {
        Some(path) => files::write_json_lines(&path, rows)?,
        None => {
            let mut out = std::io::stdout().lock();
            for row in rows {
                writeln!(out, "{}", serde_json::to_string(&row)?).map_err(Error::io(STDOUT))?;
            }
        }
    }
    Ok(())
}
