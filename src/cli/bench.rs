//! The command `bench`.

use std::path::PathBuf;

use burn::tensor::Device;
use clap::{Args, Subcommand};

use super::{DeviceArgs, PrecisionArgs, print, within};
use crate::bench::growth::Servers;
use crate::bench::ops::{OpsShape, operations};
#[cfg(feature = "gpu")]
use crate::bench::products::{Chosen, Shapes, products};
use crate::bench::scale::{Assumed, scale};
use crate::bench::{RolloutShape, Size, StepShape, rollout, step};
use crate::config::{LENGTHS, ROWS, STEPS};
use crate::model::{self, CausalLm, LoraConfig, ModelConfig};
use crate::train::learner::ActivationCheckpointing;
use crate::{doctor, error::Error, ranks, train::team};

/// Measure speed and memory; prints JSON.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// One GRPO step: sampling, forward and backward pass, and update, with all completions at full length.
    Step(StepArgs),
    /// The same step on the ranks started by mpirun or srun, timed by part, and a performance model for more ranks.
    Scale(ScaleArgs),
    /// Each fused operation of the cpu device, compared with its composition of plain tensor operations.
    Ops(OpsArgs),
    /// Matrix multiplication routines on a GPU for the shapes of a model, compared with the default routine.
    #[cfg(feature = "gpu")]
    Products(ProductsArgs),
    /// Sampling only, with a given model and all completions at full length.
    Rollout(RolloutArgs),
}

#[derive(Debug, Args)]
struct StepArgs {
    /// Model of one of these sizes, instead of --hidden, --layers and --vocab.
    #[arg(long, value_enum, conflicts_with_all = ["hidden", "layers", "vocab"])]
    size: Option<Size>,
    /// Hidden size; the feed-forward size is four times as large (4864 for hidden sizes of 512 and more).
    #[arg(long, default_value_t = 128)]
    hidden: usize,
    /// Number of transformer layers.
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// Number of completions per prompt.
    #[arg(long, default_value_t = 8)]
    group: usize,
    /// Number of prompts.
    #[arg(long, default_value_t = 8)]
    prompts: usize,
    /// Tokens per completion.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Vocabulary size.
    #[arg(long, default_value_t = 98)]
    vocab: usize,
    /// Maximum number of tokens in one forward and backward pass.
    #[arg(long, default_value_t = 2048)]
    tokens_per_microbatch: usize,
    /// Do not sample: use random completions and time training only.
    #[arg(long)]
    no_sampling: bool,
    /// Train LoRA adapters of this rank on all projections of a frozen model.
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// Activation checkpointing: keep only the inputs of layers and recompute the rest in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Number of timed steps, after one warm-up step.
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
    /// Bandwidth between ranks in the performance model, in 10^9 bytes per second [default: as measured].
    #[arg(long)]
    gb_per_s: Option<f64>,
    /// Number of vLLM or SGLang servers in the performance model, which sample instead of the ranks.
    #[arg(long, requires = "tokens_per_s")]
    servers: Option<usize>,
    /// Sampling speed of each server, in tokens per second.
    #[arg(long, requires = "servers")]
    tokens_per_s: Option<f64>,
    /// Speed at which weights are written for the servers and read by each, in 10^9 bytes per second [default: 1].
    #[arg(long, requires = "servers")]
    sync_gb_per_s: Option<f64>,
    /// Seconds that checking the new weights of all servers takes [default: 1].
    #[arg(long, requires = "servers")]
    check_s: Option<f64>,
}

impl ScaleArgs {
    /// Return the assumptions of the performance model.
    fn assumed(&self) -> Result<Assumed, Error> {
        for (option, value) in [
            ("--gb-per-s", self.gb_per_s),
            ("--servers", self.servers.map(|servers| servers as f64)),
            ("--tokens-per-s", self.tokens_per_s),
            ("--sync-gb-per-s", self.sync_gb_per_s),
            ("--check-s", self.check_s),
        ] {
            if value.is_some_and(|value| !(value > 0.0 && value.is_finite())) {
                return Err(Error::Invalid(format!("{option} must be a positive number")));
            }
        }
        let servers = self.servers.zip(self.tokens_per_s).map(|(servers, tokens_per_s)| Servers {
            servers,
            tokens_per_s,
            sync_bytes_per_s: 1e9 * self.sync_gb_per_s.unwrap_or(1.0),
            check_s: self.check_s.unwrap_or(1.0),
        });
        Ok(Assumed { bytes_per_s: self.gb_per_s.map(|gb| 1e9 * gb), servers })
    }
}

#[derive(Debug, Args)]
struct OpsArgs {
    /// Number of rows (tokens).
    #[arg(long, default_value_t = 2048)]
    tokens: usize,
    /// Number of columns of the output matrix (vocabulary size).
    #[arg(long, default_value_t = 4096)]
    vocab: usize,
    /// Number of timed repetitions, after one warm-up repetition.
    #[arg(long, default_value_t = 9)]
    repeats: usize,
}

#[cfg(feature = "gpu")]
#[derive(Debug, Args)]
struct ProductsArgs {
    /// Size of the model whose shapes are measured.
    #[arg(long, value_enum, default_value = "0.5b")]
    size: Size,
    /// Shapes to measure.
    #[arg(long, value_enum, default_value = "all")]
    shapes: Shapes,
    /// Measure only routines whose names begin with this, and the default one; may be repeated.
    #[arg(long = "routine", value_name = "NAME")]
    routines: Vec<String>,
    /// Time limit in seconds: no measurement begins later.
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
    /// Random model of one of these sizes, instead of MODEL.
    #[arg(long, value_enum, conflicts_with = "model")]
    size: Option<Size>,
    /// Number of prompts.
    #[arg(long, default_value_t = 8)]
    prompts: usize,
    /// Number of completions per prompt.
    #[arg(long, default_value_t = 8)]
    group: usize,
    /// Tokens per prompt.
    #[arg(long, default_value_t = 32)]
    prompt_length: usize,
    /// Tokens per completion.
    #[arg(long, default_value_t = 128)]
    tokens: usize,
    /// Maximum number of completions decoded in one batch.
    #[arg(long, default_value_t = 64)]
    rows: usize,
    /// Number of timed rollouts, after one warm-up rollout.
    #[arg(long, default_value_t = 3)]
    steps: usize,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn bench(args: BenchArgs) -> anyhow::Result<()> {
    if !matches!(args.what, BenchCommand::Scale(_)) {
        ranks::refuse()?;
    }
    match args.what {
        BenchCommand::Step(args) => bench_step(&args),
        BenchCommand::Scale(args) => bench_scale(&args),
        BenchCommand::Ops(args) => bench_ops(&args),
        #[cfg(feature = "gpu")]
        BenchCommand::Products(args) => bench_products(&args),
        BenchCommand::Rollout(args) => bench_rollout(&args),
    }
}

/// The largest accepted number of logits of `bench ops`: 8 GiB in f32.
const MAX_LOGITS: usize = 1 << 31;

fn bench_ops(args: &OpsArgs) -> anyhow::Result<()> {
    within(&[
        ("--tokens", args.tokens, 1, ROWS),
        ("--vocab", args.vocab, 1, ROWS),
        ("--repeats", args.repeats, 1, STEPS),
    ])?;
    let logits = args.tokens * args.vocab;
    if logits > MAX_LOGITS {
        let (tokens, vocab) = (args.tokens, args.vocab);
        let message = format!(
            "--tokens {tokens} with --vocab {vocab} makes {logits} logits, more than the maximum of {MAX_LOGITS}: \
             lower one of the two"
        );
        return Err(Error::Invalid(message).into());
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
    within(&[("--seconds", usize::try_from(args.seconds).unwrap_or(usize::MAX), 1, STEPS)])?;
    let (device, _) = args.device.open()?;
    args.precision.dtype.check(&device)?;
    if !crate::ops::gpu::serves(&device) {
        return Err(Error::Invalid("--device must be a GPU: on the CPU there are no routines to compare".into()).into());
    }
    let mut table = String::new();
    let longest = std::time::Duration::from_secs(args.seconds);
    let chosen = Chosen { shapes: args.shapes, precision: args.precision.dtype, routines: &args.routines };
    // The shapes do not depend on the context.
    for times in products(&args.size.config(1), chosen, &device, longest) {
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
    within(&[("--prompt-length", prompt_length, 1, LENGTHS), ("--rows", rows, 1, ROWS)])?;
    check_workload(prompts, group, tokens, steps)?;
    let (device, precision) = (args.device.open()?.0, args.precision.dtype);
    precision.check(&device)?;
    let config = match (&args.model, args.size) {
        (Some(dir), _) => model::config_of(dir)?,
        (None, Some(size)) => size.config(prompt_length + tokens),
        (None, None) => unreachable!("one of them is required"),
    };
    let context = config.max_position_embeddings;
    if prompt_length + tokens > context {
        return Err(Error::Invalid(format!(
            "--prompt-length {prompt_length} plus --tokens {tokens} is more than the model's context of {context} \
             tokens: lower one of the two"
        ))
        .into());
    }
    let model = match &args.model {
        Some(dir) => model::load_as(dir, &device, precision)?.1,
        None => CausalLm::random_as(&config, 0, &device, precision),
    };
    let shape = RolloutShape { prompts, group, prompt_length, tokens, rows };
    print(serde_json::to_string(&rollout(&config, &model, &shape, steps))?)
}

/// Refuse a workload that is empty or that no machine holds.
fn check_workload(prompts: usize, group: usize, tokens: usize, steps: usize) -> Result<(), Error> {
    within(&[
        ("--prompts", prompts, 1, ROWS),
        ("--group", group, 1, ROWS),
        ("--tokens", tokens, 1, LENGTHS),
        ("--steps", steps, 1, STEPS),
    ])?;
    let completions = prompts * group;
    if completions > ROWS {
        return Err(Error::Invalid(format!(
            "--group {group} for each of --prompts {prompts} makes {completions} completions, more than the maximum of \
             {ROWS}: lower one of the two"
        )));
    }
    Ok(())
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
    let assumed = args.assumed()?;
    let (config, shape, device) = step_shape(&args.step)?;
    if !shape.sampled {
        let message = "--no-sampling cannot be used with `bench scale`, which times the whole step; --servers models \
            sampling on servers";
        return Err(Error::Invalid(message.to_string()).into());
    }
    let several = (team.size() > 1).then_some(&team);
    let times = scale(&config, &shape, args.step.steps, (&args.step.device.name()?, &device), several, &assumed)?;
    print(serde_json::to_string(&times)?)
}

fn bench_step(args: &StepArgs) -> anyhow::Result<()> {
    let (config, shape, device) = step_shape(args)?;
    super::print(serde_json::to_string(&step(&config, &shape, args.steps, &device))?)
}

/// Return the model, the workload and the device that the arguments describe.
fn step_shape(args: &StepArgs) -> anyhow::Result<(ModelConfig, StepShape, Device)> {
    check_workload(args.prompts, args.group, args.tokens, args.steps)?;
    within(&[
        ("--tokens-per-microbatch", args.tokens_per_microbatch, 1, usize::MAX),
        ("--lora", args.lora.unwrap_or(1), 1, 1 << 16),
    ])?;
    let context = StepShape::PROMPT_LENGTH + args.tokens;
    let config = match args.size {
        Some(size) => size.config(context),
        None => ModelConfig { max_position_embeddings: context, ..step_model(args)? },
    };
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
    within(&[("--hidden", hidden, 1, 1 << 15), ("--layers", layers, 1, 1 << 10), ("--vocab", vocab, 1, ROWS)])?;
    let heads = (hidden / 64).max(4);
    if !hidden.is_multiple_of(2 * heads) || !heads.is_multiple_of(2) {
        let message = format!("--hidden {hidden} must be a multiple of 8 (of 128 from 256 on)");
        return Err(Error::Invalid(message));
    }
    let inner = if hidden >= 512 { 4864 } else { 4 * hidden };
    Ok(ModelConfig::qwen2(vocab, hidden, inner, layers, heads, 2))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, CliCommand};

    fn parse(words: &[&str]) -> BenchCommand {
        let CliCommand::Bench(args) = Cli::parse_from([&["tempering", "bench"][..], words].concat()).command else {
            panic!("another command")
        };
        args.what
    }

    fn model_of(options: &[&str]) -> anyhow::Result<ModelConfig> {
        let BenchCommand::Step(args) = parse(&[&["step", "--device", "cpu"][..], options].concat()) else {
            panic!("not a step")
        };
        step_shape(&args).map(|(config, ..)| config)
    }

    /// Regression: such numbers ended in a panic or in an allocation that failed.
    #[test]
    fn numbers_that_cannot_be_meant_are_refused_by_their_option() {
        let huge = usize::MAX.to_string();
        for option in ["--group", "--prompts", "--tokens", "--steps", "--lora", "--hidden", "--layers", "--vocab"] {
            for (value, message) in [(&huge[..], "must be at most"), ("0", "0 must be positive")] {
                let error = model_of(&[option, value]).unwrap_err().to_string();
                assert!(error.contains(&format!("{option} {value}")) && error.contains(message), "{error}");
            }
        }
        let error = model_of(&["--group", "1048576", "--prompts", "2"]).unwrap_err().to_string();
        assert!(error.contains("--group 1048576 for each of --prompts 2 makes 2097152 completions"), "{error}");
        for words in [&["--tokens", &huge[..]][..], &["--vocab", &huge], &["--tokens", "1048576", "--vocab", "1048576"]]
        {
            let BenchCommand::Ops(args) = parse(&[&["ops"][..], words].concat()) else { panic!("not ops") };
            let error = bench_ops(&args).unwrap_err().to_string();
            assert!(error.contains(words[0]) && error.contains(words[1]), "{error}");
        }
    }

    /// Regression: random models had a context of 8192 tokens, which `bench step` did not look at.
    #[test]
    fn a_random_model_has_the_context_of_its_workload() {
        for model in [&["--size", "0.5b"][..], &["--hidden", "64"]] {
            let config = model_of(&[model, &["--tokens", "16384"]].concat()).unwrap();
            assert_eq!(config.max_position_embeddings, StepShape::PROMPT_LENGTH + 16_384, "{model:?}");
        }
        let base = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/base");
        let BenchCommand::Rollout(args) = parse(&["rollout", base, "--device", "cpu", "--tokens", "1000"]) else {
            panic!("not a rollout")
        };
        let error = bench_rollout(&args).unwrap_err().to_string();
        assert!(error.contains("--tokens 1000 is more than the model's context of 1024"), "{error}");
    }
}
