//! `generate` and `report`.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;

use super::{DeviceArgs, PrecisionArgs};
use crate::generate::{Request, Sampling, generate};
use crate::noise::mix_text;
use crate::text::chat::Prompt;
use crate::text::stream::TextStream;
use crate::text::tokenizer::Tokenizer;
use crate::{device, error::Error, eval, model, report};

/// Answer one prompt, as it comes.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// Hugging Face directory.
    model: PathBuf,
    /// The user's message.
    #[arg(long, short, default_value = "Compute 47*6-(18+5).")]
    prompt: String,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Longest completion, in tokens.
    #[arg(long, default_value_t = 512)]
    max_completion_length: usize,
    /// Seed of the sampling noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: GenerateArgs) -> anyhow::Result<()> {
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        return Err(Error::Invalid(format!("--temperature {} must be 0 (greedy) or positive", args.temperature)).into());
    }
    let device = device::parse(&args.device.device)?;
    let (config, model) = model::load_as(&args.model, &device, args.precision.dtype)?;
    let tokenizer = Tokenizer::load(&args.model)?;
    tokenizer.check_vocab(config.vocab_size, &args.model)?;
    let problem = crate::data::Problem::new(Prompt::Text(args.prompt), "");
    let prompt = tokenizer.encode_prompt(&problem.prompt)?;
    eval::check_room(&prompt, &config, &problem)?;
    let request = Request { prompt, key: [args.seed, 0, mix_text(&problem.prompt.text()), 0] };
    let sampling = Sampling {
        temperature: args.temperature,
        max_completion_length: args.max_completion_length,
        stop: tokenizer.stop_ids().to_vec(),
        rows: 1,
    };
    let mut text = TextStream::new(&tokenizer, true);
    let mut out = std::io::stdout().lock();
    let mut failure = None;
    let completions = generate(&model, &config, &[request], &sampling, |_, token| {
        match write!(out, "{}", text.push(token)).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    if let Some(error) = failure {
        return Err(error.into());
    }
    writeln!(out, "{}", text.finish())?;
    for completion in completions {
        let end = if completion.finished { "finished" } else { "cut at --max-completion-length" };
        eprintln!("{} tokens, {end}", completion.tokens.len());
    }
    Ok(())
}

/// Write a run's report again.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Run directory.
    run: PathBuf,
}

pub(super) fn write_report(args: &ReportArgs) -> anyhow::Result<()> {
    println!("{}", report::write(&args.run)?.display());
    Ok(())
}
