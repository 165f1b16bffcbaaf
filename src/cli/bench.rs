//! The command `bench`.

use std::path::PathBuf;

use burn::tensor::Device;
use clap::{Args, Subcommand};

use super::{DeviceArgs, PrecisionArgs, print};
use crate::bench::ops::{OpsShape, operations};
#[cfg(feature = "gpu")]
use crate::bench::products::{Chosen, Shapes, products};
use crate::bench::scale::scale;
use crate::bench::{RolloutShape, Size, StepShape, rollout, step};
use crate::model::{self, CausalLm, LoraConfig, ModelConfig};
use crate::train::learner::ActivationCheckpointing;
use crate::{doctor, error::Error, ranks, train::team};

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
    /// The same step on the ranks that mpirun or srun has started, by part, and a model of it on more.
    Scale(ScaleArgs),
    /// Each fused operation of the cpu device beside the same as a composition of tensor operations.
    Ops(OpsArgs),
    /// The routines for matrix products on a GPU, on the shapes of a model, beside the one that the rule takes.
    #[cfg(feature = "gpu")]
    Products(ProductsArgs),
    /// Sampling alone, with a given model, every completion at full length.
    Rollout(RolloutArgs),
}

#[derive(Debug, Args)]
struct StepArgs {
    /// A model of one of these sizes, in the place of --hidden, --layers and --vocab.
    #[arg(long, value_enum, conflicts_with_all = ["hidden", "layers", "vocab"])]
    size: Option<Size>,
    /// Width of the model; the feed-forward width is four times it (4864 from 512 on).
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
    /// Do not sample: completions are made up, and training alone is timed.
    #[arg(long)]
    no_sampling: bool,
    /// Train adapters of this rank on all projections, over a frozen model.
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// Keep the inputs of blocks only, and run them again in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Timed steps, after one that is not.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
struct ScaleArgs {
    #[command(flatten)]
    step: StepArgs,
    /// Bandwidth between ranks of the model, in 10^9 bytes per second [default: as measured].
    #[arg(long)]
    gb_per_s: Option<f64>,
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

#[cfg(feature = "gpu")]
#[derive(Debug, Args)]
struct ProductsArgs {
    /// The model whose shapes these are.
    #[arg(long, value_enum, default_value = "0.5b")]
    size: Size,
    /// Which shapes.
    #[arg(long, value_enum, default_value = "all")]
    shapes: Shapes,
    /// Only the routines whose names begin so, and the one that the rule takes; may be repeated.
    #[arg(long = "routine", value_name = "NAME")]
    routines: Vec<String>,
    /// Begin no measurement after so many seconds.
    #[arg(long, default_value_t = 90)]
    seconds: u64,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Debug, Args)]
struct RolloutArgs {
    /// Hugging Face directory, or owner/name[@revision] of the Hub.
    #[arg(required_unless_present = "size")]
    model: Option<PathBuf>,
    /// A random model of one of these sizes, in the place of MODEL.
    #[arg(long, value_enum, conflicts_with = "model")]
    size: Option<Size>,
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
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn bench(args: BenchArgs) -> anyhow::Result<()> {
    if !matches!(args.what, What::Scale(_)) {
        ranks::refuse()?;
    }
    match args.what {
        What::Step(args) => bench_step(&args),
        What::Scale(args) => bench_scale(&args),
        What::Ops(args) => bench_ops(&args),
        #[cfg(feature = "gpu")]
        What::Products(args) => bench_products(&args),
        What::Rollout(args) => bench_rollout(&args),
    }
}

fn bench_ops(args: &OpsArgs) -> anyhow::Result<()> {
    if args.repeats == 0 || args.tokens == 0 || args.vocab == 0 {
        return Err(Error::Invalid("sizes must be positive".to_string()).into());
    }
    let shape = OpsShape { rows: args.tokens, vocab: args.vocab };
    for times in operations(&shape, args.repeats) {
        print(serde_json::to_string(&times)?)?;
    }
    Ok(())
}

/// Print a line of JSON per shape, then a table of all shapes.
#[cfg(feature = "gpu")]
fn bench_products(args: &ProductsArgs) -> anyhow::Result<()> {
    let (device, _) = args.device.open()?;
    args.precision.dtype.check(&device)?;
    if !crate::ops::gpu::serves(&device) {
        return Err(
            Error::Invalid("--device must be of a GPU backend: on the CPU there is nothing to choose".into()).into()
        );
    }
    let mut table = String::new();
    let longest = std::time::Duration::from_secs(args.seconds);
    let chosen = Chosen { shapes: args.shapes, precision: args.precision.dtype, routines: &args.routines };
    for times in products(&args.size.config(), chosen, &device, longest) {
        print(serde_json::to_string(&times)?)?;
        let [m, n, k] = times.mnk;
        table += &format!("\n{}: {m} x {n} x {k}\n", times.name);
        for routine in &times.routines {
            let mark = if times.rule.as_ref() == Some(&routine.routine) { '*' } else { ' ' };
            let told = match (routine.us, routine.tflops, &routine.failure) {
                (Some(us), Some(tflops), _) => format!("{us:10.1} us {tflops:7.1} TFLOP/s"),
                (_, _, failure) => {
                    failure.as_deref().unwrap_or_default().lines().next().unwrap_or_default().to_string()
                }
            };
            table += &format!("{mark} {:26} first {:7.0} ms {told}\n", routine.routine, routine.first_ms);
        }
    }
    print(table)
}

fn bench_rollout(args: &RolloutArgs) -> anyhow::Result<()> {
    let RolloutArgs { prompts, group, prompt_length, tokens, rows, steps, .. } = *args;
    if [prompts, group, prompt_length, tokens, rows, steps].contains(&0) {
        return Err(Error::Invalid("sizes must be positive".to_string()).into());
    }
    let (device, precision) = (args.device.open()?.0, args.precision.dtype);
    precision.check(&device)?;
    let (config, model) = match (&args.model, args.size.map(Size::config)) {
        (_, Some(config)) => {
            let model = CausalLm::random_as(&config, 0, &device, precision);
            (config, model)
        }
        (Some(dir), None) => model::load_as(dir, &device, precision)?,
        (None, None) => unreachable!("one of them is required"),
    };
    let context = config.max_position_embeddings;
    if prompt_length + tokens > context {
        return Err(Error::Invalid(format!(
            "--prompt-length {prompt_length} and --tokens {tokens} are more than the model's context of {context}"
        ))
        .into());
    }
    let shape = RolloutShape { prompts, group, prompt_length, tokens, rows };
    print(serde_json::to_string(&rollout(&config, &model, &shape, steps))?)
}

fn bench_scale(args: &ScaleArgs) -> anyhow::Result<()> {
    let (ranks, told) = (ranks::join()?, vec![format!("{args:?}")]);
    if ranks.rank() > 0 {
        team::serve(&*ranks, told, &mut |_, precision| {
            let (device, name) = args.step.device.open()?;
            doctor::require(&name, &device, precision)?;
            Ok(device)
        });
        return Ok(());
    }
    let team = team::Team::gather(&*ranks, &told)?;
    let (config, shape, device) = step_shape(&args.step)?;
    if !shape.sampled {
        return Err(Error::Invalid("--no-sampling: `bench scale` times the whole step".to_string()).into());
    }
    let bandwidth = args.gb_per_s.map(|gb| 1e9 * gb);
    if bandwidth.is_some_and(|bandwidth| !(bandwidth > 0.0 && bandwidth.is_finite())) {
        return Err(Error::Invalid("--gb-per-s must be a positive number".to_string()).into());
    }
    let several = (team.size() > 1).then_some(&team);
    let times = scale(&config, &shape, args.step.steps, (&args.step.device.name()?, &device), several, bandwidth)?;
    print(serde_json::to_string(&times)?)
}

fn bench_step(args: &StepArgs) -> anyhow::Result<()> {
    let (config, shape, device) = step_shape(args)?;
    super::print(serde_json::to_string(&step(&config, &shape, args.steps, &device))?)
}

/// Return the model, the workload and the device that the arguments describe.
fn step_shape(args: &StepArgs) -> anyhow::Result<(ModelConfig, StepShape, Device)> {
    let config = match args.size {
        Some(size) => size.config(),
        None => step_model(args)?,
    };
    if [args.group, args.prompts, args.tokens, args.steps, args.lora.unwrap_or(1)].contains(&0) {
        return Err(Error::Invalid("sizes must be positive".to_string()).into());
    }
    let (device, _) = args.device.open()?;
    args.precision.dtype.check(&device.clone().autodiff())?;
    let shape = StepShape {
        group: args.group,
        prompts: args.prompts,
        tokens: args.tokens,
        sampled: !args.no_sampling,
        precision: args.precision.dtype,
        tokens_per_microbatch: args.tokens_per_microbatch,
        activation_checkpointing: if args.recompute {
            ActivationCheckpointing::Block
        } else {
            ActivationCheckpointing::None
        },
        lora: args.lora.map(|r| LoraConfig { r, ..LoraConfig::default() }),
    };
    Ok((config, shape, device))
}

/// Return the model that --hidden, --layers and --vocab describe.
fn step_model(args: &StepArgs) -> Result<ModelConfig, Error> {
    let StepArgs { hidden, layers, vocab, .. } = *args;
    let heads = (hidden / 64).max(4);
    if [hidden, layers, vocab].contains(&0) || !hidden.is_multiple_of(2 * heads) || !heads.is_multiple_of(2) {
        let message = "sizes must be positive, --hidden a multiple of 8 (of 128 from 256 on)";
        return Err(Error::Invalid(message.to_string()));
    }
    let inner = if hidden >= 512 { 4864 } else { 4 * hidden };
    let config = ModelConfig::qwen2(vocab, hidden, inner, layers, heads, 2);
    Ok(ModelConfig { max_position_embeddings: 8192, ..config })
}
