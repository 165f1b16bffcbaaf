//! The command `analyze`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::engine::EngineArgs;
use super::paths::{keep_apart, no_study, not_a_run};
use super::problems::ProblemArgs;
use super::progress::{ProgressDisplay, say};
use super::{DeviceArgs, PrecisionArgs, PromptArgs, within};
use crate::config::{self, PROBLEMS, ROWS, Settings};
use crate::error::{Error, Result};
use crate::eval::{EvalConfig, Subject, longest_prompt};
use crate::model;
use crate::reward::RewardCommand;
use crate::stage::Stage;
use crate::text::prompt::PromptConfig;
use crate::train::Observer;
use crate::train::analyze::{AnalysisEvent, AnalyzeConfig, analyze};
use crate::train::settings::RlConfig;
use crate::{files, report};

/// Measure the entropy conflict of a model without training it.
///
/// Sample groups of completions, compute the advantages that a training stage would give them, and report how the
/// accuracy part and the length part of these advantages act on the same tokens. Without --config the stage is that of
/// configs/methods/kimi_k15.toml: GRPO with accuracy and Kimi's length reward (weight 0.4).
#[derive(Debug, Args)]
pub(super) struct AnalyzeArgs {
    /// Hugging Face directory, or owner/name[@revision] of the Hub.
    model: PathBuf,
    /// Files (.jsonl, .json, .parquet), owner/name[:config][:split][@revision] of the Hub, or "tasks" for the embedded problems.
    #[arg(required = true)]
    data: Vec<PathBuf>,
    /// Number of problems from the start of each data set; 0 for all (files only).
    #[arg(long, default_value_t = 128)]
    num_problems: usize,
    /// Completions per problem [default: the configuration's, or 8].
    #[arg(long, short = 'n')]
    num_generations: Option<usize>,
    /// Settings of a training run (TOML) whose stage gives temperature, length, rewards and advantage.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Stage of --config, by number from 0 or by name.
    #[arg(long, requires = "config", default_value = "0")]
    stage: String,
    /// Change a setting: key=value of the stage, or with --config section.key=value of the file; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Write an HTML page with the figures and some completions token by token.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Maximum number of completions decoded in one batch.
    #[arg(long, default_value_t = 128)]
    rows: usize,
    /// Seed of sampling.
    #[arg(long, default_value_t = 1_000_003)]
    seed: u64,
    #[command(flatten)]
    asked: PromptArgs,
    #[command(flatten)]
    problems: ProblemArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A stage on its own, with the default rewards of an analysis.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
struct AnalysisStage(Stage);

impl Default for AnalysisStage {
    /// The stage of `configs/methods/kimi_k15.toml`.
    fn default() -> Self {
        let text = include_str!("../../configs/methods/kimi_k15.toml");
        let mut file: toml::Table = toml::from_str(text).expect("the embedded kimi_k15.toml is tested to be valid");
        let stages: Vec<Stage> =
            (file.remove("stages").and_then(|stages| stages.try_into().ok())).expect("it has a stage");
        Self(stages[0].clone())
    }
}

impl Settings for AnalysisStage {
    fn validate(&self) -> Vec<String> {
        self.0.mistakes(0).iter().map(|problem| problem.trim_start_matches("stages.0.").to_string()).collect()
    }
}

impl AnalyzeArgs {
    fn settings(&self) -> Result<(AnalyzeConfig, PromptConfig)> {
        let (stage, reward, group, prompt) = match &self.config {
            None => (
                config::load::<AnalysisStage>(None, &self.sets)?.0,
                RewardCommand::default(),
                8,
                PromptConfig::default(),
            ),
            Some(file) => {
                let config: RlConfig = no_study(file, config::load(Some(file), &self.sets))?;
                let group = config.train.num_generations;
                (named(&config.stages, &self.stage, file)?, config.reward, group, config.prompt)
            }
        };
        let num_generations = self.num_generations.unwrap_or(group);
        within(&[
            ("--num-generations", num_generations, 2, ROWS),
            ("--num-problems", self.num_problems, 0, PROBLEMS),
            ("--rows", self.rows, 1, ROWS),
        ])?;
        // The completions of all problems are in memory, as those of a step of training are.
        let completions = self.num_problems * num_generations;
        if completions > ROWS {
            return Err(Error::Invalid(format!(
                "--num-generations {num_generations} for each of --num-problems {} makes {completions} completions, \
                 more than the maximum of {ROWS}: lower one of the two",
                self.num_problems
            )));
        }
        Ok((AnalyzeConfig { num_generations, stage, reward, rows: self.rows, seed: self.seed }, prompt))
    }
}

fn named(stages: &[Stage], name: &str, file: &Path) -> Result<Stage> {
    let by_number = name.parse::<usize>().ok().and_then(|number| stages.get(number));
    let mut named = stages.iter().filter(|stage| stage.name == name);
    let found = named.next();
    if named.next().is_some() {
        return Err(Error::file(file, format!("has several stages named {name}: give --stage a number, from 0")));
    }
    found.or(by_number).cloned().ok_or_else(|| {
        let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
        Error::file(
            file,
            format!(
                "has no stage {name}: give --stage a number from 0 to {} or one of {}",
                stages.len() - 1,
                names.join(", ")
            ),
        )
    })
}

/// Refuse an output that cannot be written, before anything is sampled.
fn writable(option: &str, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let refuse = |message: String| Err(Error::Invalid(format!("{option} {}: {message}", path.display())));
    if path.is_dir() {
        return refuse("is a folder: give the path of a file".to_string());
    }
    if folder.is_dir() {
        Ok(())
    } else {
        refuse(format!("the folder {} does not exist: create it or choose another path", folder.display()))
    }
}

pub(super) fn run(args: &AnalyzeArgs) -> anyhow::Result<()> {
    let (config, asked) = args.settings()?;
    args.problems.check(&args.data)?;
    args.engine.check(&[("--rows", args.rows != EvalConfig::default().rows)])?;
    not_a_run(&args.model, &["final", "adapter"])?;
    let inputs: Vec<&Path> = args.data.iter().chain(&args.config).map(PathBuf::as_path).collect();
    let outputs = [("--html", args.html.as_ref()), ("--json", args.json.as_ref())];
    keep_apart(&outputs, &inputs)?;
    outputs.into_iter().try_for_each(|(option, path)| path.map_or(Ok(()), |path| writable(option, path)))?;
    let (device, name) = args.device.open()?;
    let model_config = model::config_of(&args.model)?;
    let tokenizer = args.asked.tokenizer(&args.model, asked)?;
    tokenizer.check_vocab(model_config.vocab_size, &args.model)?;
    let mut problems = Vec::new();
    for data in &args.data {
        let context = model_config.max_position_embeddings;
        let (found, report) = args.problems.open(data, args.num_problems, context, &tokenizer)?;
        say(format_args!("{}: {report}", data.display()));
        problems.extend(found);
    }
    let at = (&device, name.as_str());
    let most = config.stage.sampling.max_completion_length;
    let longest = || Ok(longest_prompt(&problems, &tokenizer, false)? + most);
    let mut opened = args.engine.open(&args.model, at, args.precision.dtype, longest, true)?;
    let (mut sampler, model_config) = opened.sampler();
    let subject = Subject { model_config, tokenizer: &tokenizer };
    let mut progress = ProgressDisplay::new();
    progress.begin("analyze", problems.len());
    let analysis = analyze(&mut *sampler, subject, &problems, &config, &[], &mut |event| {
        match event {
            AnalysisEvent::Sampled(count) => progress.sampled(count),
            AnalysisEvent::Done(problems) => progress.advance(problems, None),
        }
        Ok(())
    })?;
    drop(progress);
    report::analysis_text(&analysis).iter().try_for_each(super::print)?;
    if let Some(path) = &args.html {
        let data: Vec<String> = args.data.iter().map(|data| data.display().to_string()).collect();
        let settings = format!(
            "{} completions for each of {} problems of {}, with the settings of stage {:?}: temperature {}, at most {} \
             tokens.",
            config.num_generations,
            analysis.problems,
            data.join(", "),
            config.stage.name,
            config.stage.sampling.temperature,
            config.stage.sampling.max_completion_length,
        );
        let page = report::analysis(&analysis, &args.model.display().to_string(), &settings)?;
        files::write(path, page.as_bytes())?;
    }
    if let Some(path) = &args.json {
        files::write_json(path, &report::analysis_json(&analysis))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, CliCommand};

    /// Regression: such numbers ended in a panic or in an allocation that failed.
    #[test]
    fn numbers_that_cannot_be_meant_are_refused_by_their_option() {
        let huge = usize::MAX.to_string();
        let table: [(&[&str], &str); 5] = [
            (&["-n", &huge], "--num-generations 18446744073709551615 must be at most 1048576"),
            (
                &["-n", "1000000"],
                "--num-generations 1000000 for each of --num-problems 128 makes 128000000 completions",
            ),
            (&["--num-problems", &huge], "--num-problems 18446744073709551615 must be at most 1000000"),
            (&["--num-problems", "1000000"], "--num-generations 8 for each of --num-problems 1000000 makes 8000000"),
            (&["--rows", "0"], "--rows 0 must be positive"),
        ];
        for (options, message) in table {
            let words = [&["tempering", "analyze", "model", "tasks"][..], options].concat();
            let CliCommand::Analyze(args) = Cli::parse_from(words).command else { panic!("another command") };
            let error = args.settings().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
