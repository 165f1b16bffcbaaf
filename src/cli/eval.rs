//! `eval` and `compare`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::problems::{ProblemArgs, is_tasks};
use super::progress::Progress;
use super::{DeviceArgs, DistributionArgs, PrecisionArgs};
use crate::eval::compare::Comparison;
use crate::eval::saved::{Manifest, evaluate_into};
use crate::eval::{EvalConfig, Evaluation, Subject, evaluate, record};
use crate::generate::Distribution;
use crate::stop::Stop;
use crate::text::tokenizer::Tokenizer;
use crate::train::Observer;
use crate::{device, error::Error, files, model, report};

/// Sample completions of held-out problems and grade them.
#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// Hugging Face directory.
    #[arg(required_unless_present = "from")]
    model: Option<PathBuf>,
    /// Files (.jsonl, .json, .parquet), or "tasks" for the embedded problems.
    #[arg(required_unless_present = "from")]
    data: Vec<PathBuf>,
    /// Sample nothing; grade a completions file, or that of an --output folder, again.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["model", "data", "output"])]
    from: Option<PathBuf>,
    /// Problems of each data set: the first so many [default: 600 of the tasks, all of a file].
    #[arg(long)]
    num_problems: Option<usize>,
    /// Completions per problem.
    #[arg(long, short = 'n', default_value_t = 1)]
    num_generations: usize,
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
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl EvalArgs {
    fn config(&self) -> Result<EvalConfig, Error> {
        let Distribution { repetition_penalty, temperature, top_k, top_p, min_p } = self.distribution.distribution()?;
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

pub(super) fn eval(args: EvalArgs) -> anyhow::Result<()> {
    let Some(model_dir) = &args.model else {
        // Without a model there is a file: the command line was refused otherwise.
        let path = record::locate(&args.from.unwrap_or_default())?;
        println!("{}", Evaluation::new(record::read(&path)?)?.table());
        return Ok(());
    };
    let config = args.config()?;
    let device = device::parse(&args.device.device)?;
    let (model_config, model) = model::load_as(model_dir, &device, args.precision.dtype)?;
    let tokenizer = Tokenizer::load(model_dir)?;
    tokenizer.check_vocab(model_config.vocab_size, model_dir)?;
    let mut problems = Vec::new();
    let mut reports = Vec::new();
    for data in &args.data {
        let context = model_config.max_position_embeddings;
        let limit = args.num_problems.unwrap_or(if is_tasks(data) { EvalConfig::default().num_problems } else { 0 });
        let (found, report) = args.problems.open(data, limit, context, &tokenizer)?;
        eprintln!("{}: {report}", data.display());
        reports.push((data.clone(), report));
        problems.extend(found);
    }
    let subject = Subject { model: &model, model_config: &model_config, tokenizer: &tokenizer };
    let mut progress = Progress::new();
    progress.begin("evaluate", problems.len());
    let evaluation = match &args.output {
        Some(dir) => {
            let manifest = Manifest::new(model_dir, &args.device.device, reports, &problems, &config)?;
            let mut report = |done| progress.advance(done, None);
            evaluate_into(dir, &manifest, subject, &problems, &config, &mut report)?
        }
        None => {
            let mut done = 0;
            let records = evaluate(subject, &problems, &config, Stop::NEVER, &mut |lines| {
                done += lines.len() / config.num_generations;
                progress.advance(done, None);
                Ok(())
            })?;
            Evaluation::new(records)?
        }
    };
    drop(progress);
    println!("{}", evaluation.table());
    Ok(())
}

/// Compare two evaluations of the same problems.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// What to compare with: a folder of `eval --output`, a run (its final evaluation) or a completions file.
    a: PathBuf,
    /// What to compare.
    b: PathBuf,
    /// Write a page, too.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the figures as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn compare(args: &CompareArgs) -> anyhow::Result<()> {
    let read = |path: &Path| Evaluation::new(record::read(&record::locate(path)?)?);
    let comparison = Comparison::new(&read(&args.a)?, &read(&args.b)?)?;
    let mut settings = Vec::new();
    if let (Some(a), Some(b)) = (Manifest::read(&args.a)?, Manifest::read(&args.b)?) {
        settings = a.differences(&b);
        settings.retain(|(name, _)| name != "model_digest");
    }
    println!("{}", comparison.table());
    for (name, [a, b]) in &settings {
        println!("the evaluations differ in {name}: {a} and {b}");
    }
    if let Some(path) = &args.html {
        let names = [&args.a, &args.b].map(|path| path.display().to_string());
        files::write(path, report::comparison(&comparison, &names, &settings)?.as_bytes())?;
    }
    if let Some(path) = &args.json {
        files::write_json(path, &comparison)?;
    }
    Ok(())
}
