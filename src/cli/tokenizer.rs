//! The command `tokenizer`: trains a tokenizer on the embedded tasks.

use std::path::PathBuf;

use clap::Args;

use super::print;
use super::problems::FamilyArgs;
use crate::error::Error;
use crate::files;
use crate::tasks::{Generator, Split};
use crate::text::bpe;

/// Train a byte-level BPE on the embedded tasks and write it as Hugging Face files.
#[derive(Debug, Args)]
pub(super) struct TokenizerArgs {
    /// Directory to write to.
    output: PathBuf,
    /// Vocabulary size, including the 256 bytes and the special tokens.
    #[arg(long, default_value_t = 512)]
    vocab_size: usize,
    /// Number of traces to train on.
    #[arg(long, default_value_t = 20_000)]
    count: u64,
    /// Seed of the problems.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    families: FamilyArgs,
}

pub(super) fn run(args: TokenizerArgs) -> anyhow::Result<()> {
    let file = args.output.join("tokenizer.json");
    if file.exists() {
        return Err(Error::file(file, "already exists; choose another folder").into());
    }
    let generator = Generator { families: args.families.chosen()?, ..Generator::new(args.seed) };
    let texts = (0..args.count).flat_map(move |index| {
        generator.row(Split::Train, index).messages.into_iter().flat_map(|message| [message.role, message.content])
    });
    let tokenizer = bpe::train(texts, args.vocab_size)?;
    files::create_dir(&args.output)?;
    bpe::write(&tokenizer, &args.output)?;
    print(format_args!("{} entries: {}", tokenizer.get_vocab_size(true), args.output.display()))
}
