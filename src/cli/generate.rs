//! `generate`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{DeviceArgs, DistributionArgs, PrecisionArgs};
use crate::generate::{FinishReason, Request, Sampling, Watch, generate};
use crate::noise::mix_text;
use crate::text::chat::Prompt;
use crate::text::stop::StopStrings;
use crate::text::stream::TextStream;
use crate::text::tokenizer::Tokenizer;
use crate::{device, eval, model};

/// Answer one prompt, as it comes.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// Hugging Face directory.
    model: PathBuf,
    /// The user's message.
    #[arg(long, short, default_value = "Compute 47*6-(18+5).")]
    prompt: String,
    #[command(flatten)]
    distribution: DistributionArgs,
    /// Longest completion, in tokens.
    #[arg(long, default_value_t = 512)]
    max_completion_length: usize,
    /// Text that ends the answer, wherever it occurs; may be given several times.
    #[arg(long = "stop", value_name = "TEXT")]
    stop_strings: Vec<String>,
    /// Seed of the sampling noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: GenerateArgs) -> anyhow::Result<()> {
    let distribution = args.distribution.distribution()?;
    let device = device::parse(&args.device.device)?;
    let (config, model) = model::load_as(&args.model, &device, args.precision.dtype)?;
    let tokenizer = Tokenizer::load(&args.model)?;
    tokenizer.check_vocab(config.vocab_size, &args.model)?;
    let problem = crate::data::Problem::new(Prompt::Text(args.prompt), "");
    let prompt = tokenizer.encode_prompt(&problem.prompt)?;
    eval::check_room(&prompt, &config, &problem)?;
    let request = Request { prompt, key: [args.seed, 0, mix_text(&problem.prompt.text()), 0] };
    let sampling = Sampling {
        distribution,
        max_completion_length: args.max_completion_length,
        stop: tokenizer.stop_ids().to_vec(),
        rows: 1,
        ..Sampling::default()
    };
    let mut stop = StopStrings::new(&tokenizer, &args.stop_strings);
    let mut text = TextStream::new(&tokenizer, true);
    let mut out = std::io::stdout().lock();
    let mut failure = None;
    let completions = generate(&model, &config, &[request], &sampling, |_, token| {
        match write!(out, "{}", text.push(token)).and_then(|()| out.flush()) {
            Ok(()) if stop.push(0, token) => Watch::EndCompletion,
            Ok(()) => Watch::Continue,
            Err(error) => {
                failure = Some(error);
                Watch::EndAll
            }
        }
    })?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    writeln!(out, "{}", text.finish())?;
    for completion in completions {
        let end = match completion.finish_reason {
            FinishReason::Stop => "finished",
            FinishReason::Watcher => "ended by --stop",
            FinishReason::Length => "cut at --max-completion-length",
        };
        eprintln!("{} tokens, {end}", completion.tokens.len());
    }
    Ok(())
}
