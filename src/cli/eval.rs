//! `eval`.

use std::path::PathBuf;

use clap::Args;

use super::progress::Progress;
use super::{DeviceArgs, PrecisionArgs, is_tasks};
use crate::eval::{EvalConfig, evaluate};
use crate::problems::DataConfig;
use crate::tasks::Split;
use crate::text::tokenizer::Tokenizer;
use crate::train::Observer;
use crate::{device, error::Error, files, model};

/// Sample completions of held-out problems and grade them.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Hugging Face directory.
    model: PathBuf,
    /// JSONL file, or "tasks" for the embedded ones.
    data: PathBuf,
    /// Problems: the first so many; 0 for all of a file.
    #[arg(long, default_value_t = 600)]
    num_problems: usize,
    /// Completions per problem.
    #[arg(long, default_value_t = 1)]
    num_generations: usize,
    /// Sampling temperature; 0 is greedy.
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Longest completion, in tokens.
    #[arg(long, default_value_t = 512)]
    max_completion_length: usize,
    /// Rows decoded together at most.
    #[arg(long, default_value_t = 128)]
    rows: usize,
    /// Seed of the sampling noise.
    #[arg(long, default_value_t = 1_000_003)]
    seed: u64,
    /// Seed of the embedded tasks.
    #[arg(long, default_value_t = 0)]
    tasks_seed: u64,
    /// Force the start of the embedded tasks' terse manner.
    #[arg(long)]
    terse: bool,
    /// Field with the prompt.
    #[arg(long)]
    prompt_field: Option<String>,
    /// Field with the answer.
    #[arg(long)]
    answer_field: Option<String>,
    /// Directory for summary.json and completions.jsonl.
    #[arg(long, short)]
    output: Option<PathBuf>,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn eval(args: EvalArgs) -> anyhow::Result<()> {
    let config = EvalConfig {
        num_problems: args.num_problems,
        num_generations: args.num_generations,
        temperature: args.temperature,
        max_completion_length: args.max_completion_length,
        rows: args.rows,
        seed: args.seed,
        terse: args.terse,
    };
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config { origin: "eval".to_string(), problems }.into());
    }
    let data = DataConfig {
        eval: args.data.clone(),
        prompt_field: args.prompt_field,
        answer_field: args.answer_field,
        tasks_seed: args.tasks_seed,
        ..DataConfig::default()
    };
    let limit = if is_tasks(&args.data) { args.num_problems.max(1) } else { args.num_problems };
    let problems = data.open(Split::HeldOut)?.take(limit)?;
    let device = device::parse(&args.device.device)?;
    let (model_config, model) = model::load_as(&args.model, &device, args.precision.dtype)?;
    let tokenizer = Tokenizer::load(&args.model)?;
    tokenizer.check_vocab(model_config.vocab_size, &args.model)?;
    let mut progress = Progress::new();
    progress.begin("evaluate", problems.len());
    let mut report = |done: usize| progress.advance(done, None);
    let evaluation = evaluate(&model, &model_config, &tokenizer, &problems, &config, &mut report)?;
    drop(progress);
    println!("{}", evaluation.table());
    if let Some(dir) = args.output {
        files::create_dir(&dir)?;
        files::write_json(&dir.join("summary.json"), &evaluation.summary())?;
        let rows = evaluation.records.iter().map(|record| record.json(&tokenizer));
        files::write_json_lines(&dir.join("completions.jsonl"), rows)?;
    }
    Ok(())
}
