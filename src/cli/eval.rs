//! `eval`.

use std::path::PathBuf;

use clap::Args;

use super::engine::EngineArgs;
use super::problems::{ProblemArgs, is_tasks};
use super::progress::{Progress, say};
use super::{DeviceArgs, DistributionArgs, PrecisionArgs, PromptArgs, print};
use crate::eval::saved::{Manifest, evaluate_into};
use crate::eval::{EvalConfig, Evaluation, Event, Subject, evaluate, record};
use crate::generate::Distribution;
use crate::hub::{self, Kind};
use crate::text::prompt::PromptConfig;
use crate::train::Observer;
use crate::{device, error::Error};

/// Sample completions of held-out problems and grade them.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Hugging Face directory, or owner/name[@revision] of the Hub.
    #[arg(required_unless_present = "from")]
    model: Option<PathBuf>,
    /// Files (.jsonl, .json, .parquet), owner/name[:config][:split][@revision] of the Hub, or "tasks" for the embedded problems.
    #[arg(required_unless_present = "from")]
    data: Vec<PathBuf>,
    /// Sample nothing; grade a completions file, or that of an --output folder, again.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["model", "data", "output"])]
    from: Option<PathBuf>,
    /// Number of problems, from the start of each data set [default: 600 of the tasks, all of a file].
    #[arg(long)]
    num_problems: Option<usize>,
    /// Completions per problem.
    #[arg(long, short = 'n', default_value_t = 1)]
    num_generations: usize,
    #[command(flatten)]
    asked: PromptArgs,
    #[command(flatten)]
    distribution: DistributionArgs,
    /// Longest completion, in tokens.
    #[arg(long, default_value_t = 512)]
    max_completion_length: usize,
    /// Rows decoded together at most.
    #[arg(long, default_value_t = 128)]
    rows: usize,
    /// Seed of the sampling noise.
    #[arg(long, default_value_t = 1_000_003)]
    seed: u64,
    /// Force the start of the embedded tasks' terse manner.
    #[arg(long)]
    terse: bool,
    /// Folder for eval.json, completions.jsonl and summary.json; an interrupted evaluation goes on there.
    #[arg(long, short)]
    output: Option<PathBuf>,
    #[command(flatten)]
    problems: ProblemArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl EvalArgs {
    fn config(&self) -> Result<EvalConfig, Error> {
        let Distribution { repetition_penalty, temperature, top_k, top_p, min_p } =
            self.distribution.distribution(Distribution::default())?;
        let config = EvalConfig {
            num_problems: self.num_problems.unwrap_or(0),
            num_generations: self.num_generations,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            max_completion_length: self.max_completion_length,
            rows: self.rows,
            seed: self.seed,
            terse: self.terse,
        };
        let problems = config.mistakes();
        if problems.is_empty() { Ok(config) } else { Err(Error::Config { origin: "eval".to_string(), problems }) }
    }
}

pub(super) fn run(args: EvalArgs) -> anyhow::Result<()> {
    let Some(model_dir) = &args.model else {
        // Without a model there is a file: the command line was refused otherwise.
        let path = record::locate(&args.from.unwrap_or_default())?;
        return print(Evaluation::new(record::read(&path)?)?.table());
    };
    let config = args.config()?;
    let device = device::parse(&args.device.device)?;
    let at = (&device, args.device.device.as_str());
    let mut opened = args.engine.open(model_dir, at, args.precision.dtype, config.max_completion_length, false)?;
    let place = opened.place.clone();
    let (mut sampler, model_config) = opened.sampler();
    let tokenizer = args.asked.tokenizer(model_dir, PromptConfig::default())?;
    tokenizer.check_vocab(model_config.vocab_size, model_dir)?;
    let mut problems = Vec::new();
    let mut reports = Vec::new();
    for data in &args.data {
        let context = model_config.max_position_embeddings;
        let limit = args.num_problems.unwrap_or(if is_tasks(data) { EvalConfig::default().num_problems } else { 0 });
        let (found, report) = args.problems.open(data, limit, context, &tokenizer)?;
        say(format_args!("{}: {report}", data.display()));
        reports.push((hub::pinned(Kind::Data, data)?, report));
        problems.extend(found);
    }
    let subject = Subject { model_config, tokenizer: &tokenizer };
    let mut progress = Progress::new();
    progress.begin("evaluate", problems.len());
    let mut done = 0;
    let mut follow = |event: Event| {
        match event {
            Event::Resumed(problems) => {
                done = problems;
                progress.resume(done);
            }
            Event::Sampled(count) => progress.sampled(count),
            Event::Graded(lines) => {
                done += lines.len() / config.num_generations;
                progress.advance(done, None);
            }
        }
        Ok(())
    };
    let evaluation = match &args.output {
        Some(dir) => {
            let mut manifest = Manifest::new(model_dir, &place, reports, &problems, &config)?;
            manifest.settings.insert("prompt".to_string(), serde_json::json!(tokenizer.prompt()));
            evaluate_into(dir, &manifest, &mut *sampler, subject, &problems, &config, &mut follow)?
        }
        None => Evaluation::new(evaluate(&mut *sampler, subject, &problems, 0, &config, &mut follow)?)?,
    };
    drop(progress);
    print(evaluation.table())
}
