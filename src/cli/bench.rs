//! `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::DeviceArgs;
use crate::bench::ops::{OpsShape, operations};
use crate::bench::{RolloutShape, StepShape, rollout, step};
use crate::train::learner::ActivationCheckpointing;
use crate::{device, error::Error, model};

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
    /// Each fused operation of the cpu device beside the same as a composition of tensor operations.
    Ops(OpsArgs),
    /// Sampling alone, with a given model, every completion at full length.
    Rollout(RolloutArgs),
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
    /// Keep the inputs of blocks only, and run them again in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Timed steps, after one that is not.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
struct OpsArgs {
    /// Rows.
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// Width of the head.
    #[arg(long, default_value_t = 4096)]
    vocab: usize,
    /// Timed repetitions, after one that is not.
    #[arg(long, default_value_t = 9)]
    repeats: usize,
}

#[derive(Debug, Args)]
struct RolloutArgs {
    /// Hugging Face directory.
    model: PathBuf,
    /// Prompts.
    #[arg(long, default_value_t = 8)]
    prompts: usize,
    /// Completions per prompt.
    #[arg(long, default_value_t = 8)]
    group: usize,
    /// Tokens per prompt.
    #[arg(long, default_value_t = 32)]
    prompt_length: usize,
    /// Tokens per completion.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Completions decoded together at most.
    #[arg(long, default_value_t = 64)]
    rows: usize,
    /// Timed rollouts, after one that is not.
    #[arg(long, default_value_t = 3)]
    steps: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn bench(args: BenchArgs) -> anyhow::Result<()> {
    match args.what {
        What::Step(args) => bench_step(&args),
        What::Ops(args) => bench_ops(&args),
        What::Rollout(args) => bench_rollout(&args),
    }
}

fn bench_ops(args: &OpsArgs) -> anyhow::Result<()> {
    if args.repeats == 0 || args.tokens == 0 || args.vocab == 0 {
        return Err(Error::Invalid("sizes must be positive".to_string()).into());
    }
    let shape = OpsShape { rows: args.tokens, vocab: args.vocab };
    for times in operations(&shape, args.repeats) {
        println!("{}", serde_json::to_string(&times)?);
    }
    Ok(())
}

fn bench_rollout(args: &RolloutArgs) -> anyhow::Result<()> {
    let RolloutArgs { prompts, group, prompt_length, tokens, rows, steps, .. } = *args;
    if [prompts, group, prompt_length, tokens, rows, steps].contains(&0) {
        return Err(Error::Invalid("sizes must be positive".to_string()).into());
    }
    let (config, model) = model::load(&args.model, &device::parse(&args.device.device)?)?;
    let context = config.max_position_embeddings;
    if prompt_length + tokens > context {
        return Err(Error::Invalid(format!(
            "--prompt-length {prompt_length} and --tokens {tokens} are more than the model's context of {context}"
        ))
        .into());
    }
    let shape = RolloutShape { prompts, group, prompt_length, tokens, rows };
    println!("{}", serde_json::to_string(&rollout(&config, &model, &shape, steps))?);
    Ok(())
}

fn bench_step(args: &StepArgs) -> anyhow::Result<()> {
    let sizes = [args.hidden, args.layers, args.group, args.prompts, args.tokens, args.vocab, args.steps];
    let heads = (args.hidden / 64).max(4);
    if sizes.contains(&0) || !args.hidden.is_multiple_of(2 * heads) || !heads.is_multiple_of(2) {
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
        activation_checkpointing: if args.recompute {
            ActivationCheckpointing::Block
        } else {
            ActivationCheckpointing::None
        },
    };
    let times = step(&shape, args.steps, &device::parse(&args.device.device)?);
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}
