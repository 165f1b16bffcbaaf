//! `bench`.

use clap::{Args, Subcommand};

use super::DeviceArgs;
use crate::bench::{StepShape, step};
use crate::{device, error::Error};

/// Measure speed and memory; prints JSON.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One GRPO step: sampling, forward, backward, update, every completion at full length.
    Step(StepArgs),
}

#[derive(Debug, Args)]
struct StepArgs {
    /// Width of the model.
    #[arg(long, default_value_t = 128)]
    hidden: usize,
    /// Blocks.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Completions per prompt.
    #[arg(long, default_value_t = 8)]
    group: usize,
    /// Prompts.
    #[arg(long, default_value_t = 8)]
    prompts: usize,
    /// Tokens per completion.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Vocabulary.
    #[arg(long, default_value_t = 98)]
    vocab: usize,
    /// Tokens of one forward and backward pass at most.
    #[arg(long, default_value_t = 2048)]
    tokens_per_microbatch: usize,
    /// Timed steps, after one that is not.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn bench(args: BenchArgs) -> anyhow::Result<()> {
    let What::Step(args) = args.what;
    let sizes = [args.hidden, args.layers, args.group, args.prompts, args.tokens, args.vocab, args.steps];
    let heads = (args.hidden / 64).max(4);
    if sizes.contains(&0) || args.hidden % (2 * heads) != 0 || heads % 2 != 0 {
        return Err(Error::Invalid(
            "sizes must be positive, --hidden a multiple of 8 (of 128 from 256 on)".to_string(),
        )
        .into());
    }
    let shape = StepShape {
        hidden: args.hidden,
        layers: args.layers,
        group: args.group,
        prompts: args.prompts,
        tokens: args.tokens,
        vocab: args.vocab,
        tokens_per_microbatch: args.tokens_per_microbatch,
    };
    let times = step(&shape, args.steps, &device::parse(&args.device.device)?);
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}
