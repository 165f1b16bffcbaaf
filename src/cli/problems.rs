//! Options for the problems of a command: data sets named on the command line, and how they are read.

use std::path::{Path, PathBuf};

use clap::Args;

use super::paths::whole;
use crate::data::problems::{DataConfig, TASKS};
use crate::data::{DataReport, Problem};
use crate::error::{Error, Result};
use crate::tasks::TaskFamily;
use crate::text::tokenizer::Tokenizer;

/// How data sets are read.
#[derive(Debug, Args)]
pub(super) struct ProblemArgs {
    /// Maximum prompt length in tokens; a longer prompt is an error [default: the model's context minus one].
    #[arg(long)]
    max_prompt_length: Option<usize>,
    /// Leave out prompts that are too long, and report their number, instead of failing.
    #[arg(long)]
    filter_overlong_prompts: bool,
    /// Seed of the embedded tasks [default: 0].
    #[arg(long)]
    tasks_seed: Option<u64>,
    /// Difficulties of the embedded tasks, from 1 to 4 [default: 1-3].
    #[arg(long, value_name = "FROM-TO", value_parser = difficulties)]
    difficulties: Option<[u8; 2]>,
    #[command(flatten)]
    families: FamilyArgs,
    /// Name of the field with the prompt.
    #[arg(long)]
    prompt_field: Option<String>,
    /// Name of the field with the answer.
    #[arg(long)]
    answer_field: Option<String>,
}

/// Parse difficulties such as `1-3` or `2`.
fn difficulties(text: &str) -> std::result::Result<[u8; 2], String> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) if 1 <= from && from <= to && to <= 4 => Ok([from, to]),
        _ => Err("expected a difficulty from 1 to 4, or a range such as 1-3".to_string()),
    }
}

impl ProblemArgs {
    /// Refuse data that is named twice, and options that have no effect on any of the data.
    ///
    /// # Errors
    /// The option and the data.
    pub(super) fn check(&self, data: &[PathBuf]) -> Result<()> {
        let invalid = |message: String| Err(Error::Invalid(message));
        let paths: Vec<PathBuf> = data.iter().map(|data| whole(data)).collect();
        if let Some(twice) = (1..data.len()).find(|&at| paths[..at].contains(&paths[at])) {
            return invalid(format!(
                "{} is given twice, and its problems would count twice: remove one",
                data[twice].display()
            ));
        }
        let names = data.iter().map(|data| data.display().to_string()).collect::<Vec<_>>().join(" ");
        let of_tasks = [
            ("--family", !self.families.families.is_empty()),
            ("--difficulties", self.difficulties.is_some()),
            ("--tasks-seed", self.tasks_seed.is_some()),
        ];
        let of_files =
            [("--prompt-field", self.prompt_field.is_some()), ("--answer-field", self.answer_field.is_some())];
        let idle = |options: &[(&'static str, bool)], has_use: bool| {
            options.iter().find(|(_, given)| *given && !has_use).map(|(option, _)| *option)
        };
        if let Some(option) = idle(&of_tasks, data.iter().any(|data| is_tasks(data))) {
            return invalid(format!("{option} is for the embedded tasks and has no effect on {names}: remove it"));
        }
        if let Some(option) = idle(&of_files, data.iter().any(|data| !is_tasks(data))) {
            return invalid(format!("{option} is for files and has no effect on {names}: remove it"));
        }
        Ok(())
    }

    /// Return the first `limit` problems (0 for all) of one data set, for a model with a context of `context` tokens.
    pub(super) fn open(
        &self,
        data: &Path,
        limit: usize,
        context: usize,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<Problem>, DataReport)> {
        let config = DataConfig {
            eval: data.to_path_buf(),
            families: self.families.chosen()?,
            difficulties: self.difficulties.unwrap_or([1, 3]),
            tasks_seed: self.tasks_seed.unwrap_or(0),
            prompt_field: self.prompt_field.clone(),
            answer_field: self.answer_field.clone(),
            // At least one token is left for the completion.
            max_prompt_length: self.max_prompt_length.unwrap_or(context - 1),
            filter_overlong_prompts: self.filter_overlong_prompts,
            ..DataConfig::default()
        };
        config.held_out(limit, tokenizer)
    }
}

/// Which families of the embedded tasks are meant.
#[derive(Debug, Args)]
pub(super) struct FamilyArgs {
    /// Family of the embedded tasks; may be repeated [default: the six standard ones, all but guarded and dead_ends].
    #[arg(long = "family", value_name = "NAME")]
    families: Vec<String>,
}

impl FamilyArgs {
    /// Return the families that were named, or the usual ones.
    pub(super) fn chosen(&self) -> Result<Vec<TaskFamily>> {
        let known = || TaskFamily::ALL.map(TaskFamily::name).join(", ");
        let parse = |name: &String| {
            TaskFamily::parse(name)
                .ok_or_else(|| Error::Invalid(format!("--family {name}: unknown; choose from {}", known())))
        };
        if let Some(twice) = (1..self.families.len()).find(|&at| self.families[..at].contains(&self.families[at])) {
            return Err(Error::Invalid(format!("--family {} is given twice: remove one", self.families[twice])));
        }
        if self.families.is_empty() {
            Ok(TaskFamily::USUAL.to_vec())
        } else {
            self.families.iter().map(parse).collect()
        }
    }
}

/// Whether a data set named on the command line is the embedded tasks.
pub(super) fn is_tasks(path: &Path) -> bool {
    path.as_os_str() == TASKS
}
