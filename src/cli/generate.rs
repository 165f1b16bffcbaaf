//! The command `generate`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::engine::EngineArgs;
use super::paths::not_a_run;
use super::progress::say;
use super::{DeviceArgs, DistributionArgs, PrecisionArgs, PromptArgs, STDOUT};
use crate::error::{Error, Result};
use crate::generate::{Distribution, FinishReason, Request, Room, Sampling, Watch};
use crate::model::{self, Precision};
use crate::noise::mix_text;
use crate::text::chat::Prompt;
use crate::text::prompt::PromptConfig;
use crate::text::stop::StopStrings;
use crate::text::stream::TextStream;
use crate::text::tokenizer::Tokenizer;

/// Generate a completion of one prompt and print it token by token.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// Hugging Face directory, or owner/name[@revision] of the Hub.
    model: PathBuf,
    /// User message.
    #[arg(long, short, default_value = "Compute 47*6-(18+5).")]
    prompt: String,
    #[command(flatten)]
    asked: PromptArgs,
    #[command(flatten)]
    distribution: DistributionArgs,
    /// Maximum completion length in tokens.
    #[arg(long, default_value_t = 512)]
    max_completion_length: usize,
    /// Text that ends the completion when it occurs; may be repeated.
    #[arg(long = "stop", value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    stop_strings: Vec<String>,
    /// Seed of sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: GenerateArgs) -> anyhow::Result<()> {
    not_a_run(&args.model, &["final", "adapter"])?;
    let is_other = args.precision.dtype != Precision::F32;
    args.engine.check(&[("--device", args.device.device.is_some()), ("--dtype", is_other)])?;
    let (device, name) = args.device.open()?;
    let config = model::config_of(&args.model)?;
    let tokenizer = args.asked.tokenizer(&args.model, PromptConfig::default())?;
    tokenizer.check_vocab(config.vocab_size, &args.model)?;
    let distribution = args.distribution.distribution(published(&tokenizer)?, &[("--seed", args.seed != 0)])?;
    let prompt = tokenizer.encode_prompt(&Prompt::Text(args.prompt.clone()))?;
    let room = Room {
        max_position_embeddings: config.max_position_embeddings,
        max_completion_length: args.max_completion_length,
        setting: "--max-completion-length",
    };
    let max_completion_length = room.left(prompt.len());
    if max_completion_length == 0 {
        room.check(prompt.len(), &args.prompt)?;
    }
    let (at, longest) = ((&device, name.as_str()), prompt.len() + max_completion_length);
    let mut opened = args.engine.open(&args.model, at, args.precision.dtype, || Ok(longest), false)?;
    let (mut sampler, _) = opened.sampler();
    let request = Request { prompt, key: [args.seed, 0, mix_text(&args.prompt), 0] };
    let sampling = Sampling {
        distribution,
        max_completion_length,
        stop: tokenizer.stop_ids().to_vec(),
        rows: 1,
        ..Sampling::default()
    };
    let mut stop = StopStrings::new(&tokenizer, &args.stop_strings);
    let mut text = TextStream::new(&tokenizer, true);
    let mut out = std::io::stdout().lock();
    let mut failure = None;
    let completions =
        sampler.sample(&[request], &sampling, &mut |_, token| match write!(out, "{}", text.push(token))
            .and_then(|()| out.flush())
        {
            Ok(()) if stop.push(0, token) => Watch::EndCompletion,
            Ok(()) => Watch::Continue,
            Err(error) => {
                failure = Some(error);
                Watch::EndAll
            }
        })?;
    if let Some(error) = failure {
        return Err(Error::io(STDOUT)(error).into());
    }
    writeln!(out, "{}", text.finish()).map_err(Error::io(STDOUT))?;
    for completion in completions {
        let end = match completion.finish_reason {
            FinishReason::Stop => "finished",
            FinishReason::Watcher => "ended by --stop",
            FinishReason::Length if max_completion_length < args.max_completion_length => {
                "truncated at the model's max_position_embeddings"
            }
            FinishReason::Length => "truncated at --max-completion-length",
        };
        say(format_args!("{} tokens, {end}", completion.tokens.len()));
    }
    Ok(())
}

/// Return the sampling settings in the model's `generation_config.json`. If there are any, they are printed.
fn published(tokenizer: &Tokenizer) -> Result<Distribution> {
    let settings = tokenizer.recommended()?;
    if !settings.unsupported.is_empty() {
        say(format_args!("generation_config.json: not supported and left out: {}", settings.unsupported.join(", ")));
    }
    let mut distribution = Distribution::default();
    let mut taken = Vec::new();
    if let Some(temperature) = settings.temperature {
        distribution.temperature = temperature;
        taken.push(format!("temperature {temperature}"));
    }
    if settings.do_sample == Some(false) {
        distribution.temperature = 0.0;
        taken = vec!["do_sample false (greedy decoding)".to_string()];
    }
    if let Some(top_k) = settings.top_k {
        distribution.top_k = top_k;
        taken.push(format!("top_k {top_k}"));
    }
    for (name, value, setting) in [
        ("top_p", settings.top_p, &mut distribution.top_p),
        ("min_p", settings.min_p, &mut distribution.min_p),
        ("repetition_penalty", settings.repetition_penalty, &mut distribution.repetition_penalty),
    ] {
        if let Some(value) = value {
            *setting = value;
            taken.push(format!("{name} {value}"));
        }
    }
    if !taken.is_empty() {
        say(format_args!("from generation_config.json; options override these values: {}", taken.join(", ")));
    }
    Ok(distribution)
}
