//! The command `eval`.

use std::path::{Path, PathBuf};

use clap::{Arg, Args};

use super::engine::EngineArgs;
use super::paths::not_a_run;
use super::problems::{ProblemArgs, is_tasks};
use super::progress::{ProgressDisplay, say};
use super::{DeviceArgs, DistributionArgs, PrecisionArgs, PromptArgs, print};
use crate::data::benchmarks;
use crate::error::Error;
use crate::eval::protocol::Protocol;
use crate::eval::saved::{Manifest, check_output, evaluate_into};
use crate::eval::source::CompletionsSource;
use crate::eval::{EvalConfig, Evaluation, EvaluationEvent, Subject, evaluate, longest_prompt};
use crate::generate::Distribution;
use crate::model::{self, Precision};
use crate::text::prompt::PromptConfig;
use crate::train::Observer;

/// Sample completions of held-out problems and grade them.
#[derive(Debug, Args)]
#[command(mut_args(of_model))]
pub(super) struct EvalArgs {
    /// Hugging Face directory, or owner/name[@revision] of the Hub.
    #[arg(required_unless_present_any = ["from", "protocol"])]
    model: Option<PathBuf>,
    /// Files (.jsonl, .json, .parquet), owner/name[:config][:split][@revision] of the Hub, a benchmark (math500, aime24, aime25,
    /// amc23, olympiadbench, minerva, gsm8k), or "tasks" for the embedded problems.
    #[arg(required_unless_present_any = ["from", "protocol"])]
    data: Vec<PathBuf>,
    /// Do not sample; grade a completions file, or that of an --output folder, again.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["model", "data", "output", "protocol", "num_problems",
        "num_generations", "max_completion_length", "rows", "seed", "terse", "system", "suffix", "date", "template_kwargs",
        "template", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_prompt_length",
        "filter_overlong_prompts", "tasks_seed", "difficulties", "families", "prompt_field", "answer_field", "rollout", "dtype",
        "device"])]
    from: Option<PathBuf>,
    /// Defaults for the other options; without MODEL: print these defaults and the sources of the benchmarks
    /// [default: paper if the data has a benchmark, else plain].
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// Number of problems from the start of each data set [default: 600 for the embedded tasks, all for files].
    #[arg(long)]
    num_problems: Option<usize>,
    /// Completions per problem [default: the protocol's, 1 or 16].
    #[arg(long, short = 'n')]
    num_generations: Option<usize>,
    #[command(flatten)]
    asked: PromptArgs,
    #[command(flatten)]
    distribution: DistributionArgs,
    /// Maximum completion length in tokens [default: the protocol's, 512 or 32768].
    #[arg(long)]
    max_completion_length: Option<usize>,
    /// Maximum number of completions decoded in one batch.
    #[arg(long, default_value_t = 128)]
    rows: usize,
    /// Seed of sampling.
    #[arg(long, default_value_t = 1_000_003)]
    seed: u64,
    /// Force completions to begin as the terse solutions of the embedded tasks do.
    #[arg(long)]
    terse: bool,
    /// Folder for eval.json, completions.jsonl and summary.json; an interrupted evaluation is continued there.
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

/// Make an option require a model: without one, `--protocol` only describes itself and `--from` refuses all others.
fn of_model(option: Arg) -> Arg {
    let alone = ["model", "data", "from", "protocol"].contains(&option.get_id().as_str());
    if alone { option } else { option.requires("model") }
}

impl EvalArgs {
    /// Return the protocol of the option, or else the default for the data.
    fn protocol(&self) -> Protocol {
        let benchmark = self.data.iter().any(|data| benchmarks::of(data).is_some());
        self.protocol.unwrap_or(if benchmark { Protocol::Paper } else { Protocol::Plain })
    }

    fn config(&self) -> Result<EvalConfig, Error> {
        let protocol = self.protocol().config();
        let defaults =
            Distribution { temperature: protocol.temperature, top_p: protocol.top_p, ..Distribution::default() };
        let Distribution { repetition_penalty, temperature, top_k, top_p, min_p } = self.distribution.distribution(
            defaults,
            &[
                ("--seed", self.seed != EvalConfig::default().seed),
                ("--num-generations above 1", self.num_generations.is_some_and(|n| n > 1)),
            ],
        )?;
        // At temperature 0 all completions of a problem are equal.
        let num_generations = if temperature == 0.0 { 1 } else { protocol.num_generations };
        let config = EvalConfig {
            num_problems: self.num_problems.unwrap_or(0),
            num_generations: self.num_generations.unwrap_or(num_generations),
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            max_completion_length: self.max_completion_length.unwrap_or(protocol.max_completion_length),
            rows: self.rows,
            seed: self.seed,
            terse: self.terse,
        };
        let problems: Vec<String> = config.mistakes().iter().map(|mistake| of_option(mistake)).collect();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(Error::Config { origin: "command line".to_string(), problems })
        }
    }
}

/// Return the mistake in a setting of the section `eval` as one in the option that gives it.
fn of_option(mistake: &str) -> String {
    let (key, rest) = mistake.strip_prefix("eval.").unwrap_or(mistake).split_once(' ').unwrap_or((mistake, ""));
    format!("--{} {}", key.replace('_', "-"), rest.trim_start_matches("= "))
}

/// Return the date that the chat template saw when an evaluation in the folder `dir` began.
fn earlier_date(dir: &Path) -> Result<Option<String>, Error> {
    let manifest = Manifest::read(dir)?;
    let date = manifest.and_then(|manifest| Some(manifest.settings.get("prompt")?["date"].as_str()?.to_string()));
    Ok(date.filter(|date| !date.is_empty()))
}

pub(super) fn run(args: EvalArgs) -> anyhow::Result<()> {
    if let (None, None, Some(protocol)) = (&args.model, &args.from, args.protocol) {
        return print(explained(protocol));
    }
    let Some(model_dir) = &args.model else {
        // Without a model there is a file: the command line was refused otherwise.
        let path = args.from.unwrap_or_default();
        let saved = CompletionsSource::locate(&path)?.read()?;
        print(saved.evaluation.table())?;
        return saved.unfinished.map_or(Ok(()), |why| print(format_args!("{} {why}.", path.display())));
    };
    if args.data.is_empty() {
        return Err(Error::Invalid(
            "no DATA given: name files, data sets of the Hub, benchmarks or \"tasks\"".to_string(),
        )
        .into());
    }
    not_a_run(model_dir, &["final", "adapter"])?;
    args.output.as_ref().map_or(Ok(()), |dir| check_output(dir))?;
    args.problems.check(&args.data)?;
    args.engine.check(&[
        ("--device", args.device.device.is_some()),
        ("--dtype", args.precision.dtype != Precision::F32),
        ("--rows", args.rows != EvalConfig::default().rows),
    ])?;
    let (config, protocol) = (args.config()?, args.protocol());
    if protocol == Protocol::Paper {
        say(format_args!("protocol paper; options override its values: {}", protocol.describe()));
    }
    let (device, name) = args.device.open()?;
    let model_config = model::config_of(model_dir)?;
    let mut tokenizer = args
        .asked
        .tokenizer(model_dir, PromptConfig { suffix: protocol.suffix().to_string(), ..PromptConfig::default() })?;
    // An interrupted evaluation goes on with the date that it began with.
    if let (Some(dir), None) = (&args.output, &args.asked.date)
        && let Some(date) = earlier_date(dir)?
        && !tokenizer.prompt().date.is_empty()
    {
        let prompt = PromptConfig { date, ..tokenizer.prompt().clone() };
        tokenizer = tokenizer.with_prompt(&prompt)?;
    }
    tokenizer.check_vocab(model_config.vocab_size, model_dir)?;
    let mut problems = Vec::new();
    let mut reports = Vec::new();
    for data in &args.data {
        let context = model_config.max_position_embeddings;
        let limit = args.num_problems.unwrap_or(if is_tasks(data) { EvalConfig::default().num_problems } else { 0 });
        let (found, report) = args.problems.open(data, limit, context, &tokenizer)?;
        say(format_args!("{}: {report}", data.display()));
        reports.push((benchmarks::pinned(data)?, report));
        problems.extend(found);
    }
    let at = (&device, name.as_str());
    let longest = || Ok(longest_prompt(&problems, &tokenizer, config.terse)? + config.max_completion_length);
    let mut opened = args.engine.open(model_dir, at, args.precision.dtype, longest, false)?;
    let (place, served_model) = (opened.place.clone(), opened.served_model.clone());
    let (mut sampler, model_config) = opened.sampler();
    let subject = Subject { model_config, tokenizer: &tokenizer };
    let mut progress = ProgressDisplay::new();
    progress.begin("evaluate", problems.len());
    let mut done = 0;
    let mut follow = |event: EvaluationEvent| {
        match event {
            EvaluationEvent::Resumed(problems) => {
                done = problems;
                progress.resume(done);
            }
            EvaluationEvent::Sampled(count) => progress.sampled(count),
            EvaluationEvent::Graded(lines) => {
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
            // Servers compute in what they were started with.
            let (key, value) = match served_model {
                None => ("dtype", serde_json::json!(args.precision.dtype)),
                Some(model) => ("served_model", serde_json::json!(model)),
            };
            manifest.settings.insert(key.to_string(), value);
            evaluate_into(dir, &manifest, &mut *sampler, subject, &problems, &config, &mut follow)?
        }
        None => Evaluation::new(evaluate(&mut *sampler, subject, &problems, 0, &config, &mut follow)?)?,
    };
    drop(progress);
    print(evaluation.table())
}

/// Describe a protocol and the sources of benchmarks.
fn explained(protocol: Protocol) -> String {
    let name = if protocol == Protocol::Paper { "paper" } else { "plain" };
    let mut text = format!("protocol {name}: {}\n\n", protocol.describe());
    text += &format!(
        "{:<14} {:>8}  {:<47} {:<22} {}\n",
        "benchmark", "problems", "data set on the Hub", "columns", "licence"
    );
    for row in benchmarks::ALL {
        let columns = format!("{}, {}", row.question, row.answer);
        text += &format!("{:<14} {:>8}  {:<47} {columns:<22} {}\n", row.name, row.problems, row.source, row.licence);
    }
    text += "\nPapers sample 16 completions (some 64) per AIME and AMC problem, and 16 or, to save time, 4 per problem \
        of the others: -n 4.\n";
    text + "Other options override the protocol. Strict accuracy counts the stated answer of a finished completion; \
        lenient accuracy counts the last formula or number."
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Id, Parser};

    use crate::cli::{Cli, CliCommand};

    /// Regression: `--protocol` without a model described the protocol, whatever other options were given.
    #[test]
    fn options_without_a_model_are_refused() {
        let parse = |options: &[&str]| Cli::try_parse_from([&["tempering", "eval"], options].concat());
        assert!(parse(&["--protocol", "plain"]).is_ok());
        for option in [&["-n", "5"][..], &["--temperature", "3"], &["--rows", "128"], &["--terse"]] {
            let error = parse(&[&["--protocol", "plain"], option].concat()).unwrap_err().to_string();
            assert!(error.contains("<MODEL>"), "{error}");
            assert!(parse(&[&["model", "tasks"], option].concat()).is_ok());
        }
    }

    /// Regression: the paper's 16 completions were sampled at temperature 0, too, where they are equal.
    #[test]
    fn one_completion_is_sampled_at_temperature_0() {
        for (temperature, count) in [("0", 1), ("0.5", 16)] {
            let words = ["tempering", "eval", "m", "tasks", "--protocol", "paper", "--temperature", temperature];
            let CliCommand::Eval(args) = Cli::parse_from(words).command else { panic!("another command") };
            assert_eq!(args.config().unwrap().num_generations, count);
        }
    }

    /// `eval --from` samples nothing: every other option of `eval` must be refused with it.
    #[test]
    fn from_stands_alone() {
        let mut command = Cli::command();
        command.build();
        let eval = command.find_subcommand("eval").unwrap();
        let from = eval.get_arguments().find(|option| option.get_id() == "from").unwrap();
        let refused: Vec<&Id> = eval.get_arg_conflicts_with(from).into_iter().map(|option| option.get_id()).collect();
        let others = eval.get_arguments().map(|option| option.get_id()).filter(|id| *id != "from" && *id != "help");
        let missed: Vec<&Id> = others.filter(|id| !refused.contains(id)).collect();
        assert!(missed.is_empty(), "add them to conflicts_with_all of --from: {missed:?}");
    }
}
