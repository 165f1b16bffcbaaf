//! Sources of problems: the embedded tasks, generated without end, or a file, read once and shuffled each epoch.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::config::{self, LENGTHS, PROBLEMS};
use crate::data::shuffle::Shuffle;
use crate::data::{self, DataReport, Fields, Problem};
use crate::error::{Error, Result};
use crate::noise::{Purpose, mix};
use crate::tasks::{Generator, Split, TaskFamily};
use crate::text::chat::{Message, Prompt};
use crate::text::tokenizer::Tokenizer;

/// Name of the embedded tasks in place of a file.
pub const TASKS: &str = "tasks";

/// Training and evaluation problems.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Training data: `"tasks"` for the embedded tasks, a file (`.jsonl`, `.json`, `.parquet`), or a Hugging Face Hub
    /// dataset `owner/name[:config][:split][@revision]`.
    pub train: PathBuf,
    /// Evaluation data: `"tasks"` for the held-out split of the embedded tasks, or a file or dataset as for `train`.
    pub eval: PathBuf,
    /// Families of the embedded tasks; empty for arithmetic, equation, remainder, story, sequence and base. The other
    /// two, guarded and dead_ends, are used by `assets/study`.
    pub families: Vec<TaskFamily>,
    /// Minimum and maximum difficulty of the embedded tasks, each from 1 to 4.
    pub difficulties: [u8; 2],
    /// Seed of the embedded tasks; a different seed gives different problems of the same families.
    pub tasks_seed: u64,
    /// Number of embedded tasks to train on, repeated every epoch; 0 generates new ones in every step.
    pub tasks_count: u64,
    /// Name of the prompt field, for files that do not use one of the standard names.
    pub prompt_field: Option<String>,
    /// Name of the answer field, for files that do not use one of the standard names.
    pub answer_field: Option<String>,
    /// Maximum prompt length in tokens; a longer prompt is an error.
    pub max_prompt_length: usize,
    /// Whether to drop prompts above `max_prompt_length`, and report their number, instead of raising an error;
    /// fine-tuning also drops conversations longer than `train.max_length`.
    pub filter_overlong_prompts: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: TASKS.into(),
            eval: TASKS.into(),
            families: Vec::new(),
            difficulties: [1, 3],
            tasks_seed: 0,
            tasks_count: 0,
            prompt_field: None,
            answer_field: None,
            max_prompt_length: 512,
            filter_overlong_prompts: false,
        }
    }
}

impl DataConfig {
    /// Return one message per invalid setting.
    pub fn mistakes(&self) -> Vec<String> {
        let [low, high] = self.difficulties;
        let mut problems = Vec::new();
        for (key, path) in
            [("train", &self.train), ("eval", &self.eval)].iter().filter(|(_, path)| path.as_os_str().is_empty())
        {
            problems.push(format!("data.{key} = {path:?} is empty: give a file, a name on the Hub, or {TASKS:?}"));
        }
        if low < 1 || low > high || high > 4 {
            problems.push(format!("data.difficulties = [{low}, {high}] must be [from, to] with 1 <= from <= to <= 4"));
        }
        problems.extend(config::count("data.max_prompt_length", self.max_prompt_length, 1, LENGTHS));
        problems.extend(config::count("data.tasks_count", self.tasks_count as usize, 0, PROBLEMS));
        problems
    }

    /// Return the generator of the embedded tasks that these settings describe.
    pub fn generator(&self) -> Generator {
        let families = if self.families.is_empty() { TaskFamily::USUAL.to_vec() } else { self.families.clone() };
        Generator { families, difficulties: self.difficulties[0]..=self.difficulties[1], seed: self.tasks_seed }
    }

    /// Open the training or the held-out problems.
    ///
    /// # Errors
    /// When the file is missing or malformed.
    pub fn open(&self, split: Split) -> Result<Problems> {
        let path = if split == Split::Train { &self.train } else { &self.eval };
        if path.as_os_str() == TASKS {
            let tasks = Problems::Tasks(self.generator(), split);
            let repeated = split == Split::Train && self.tasks_count > 0;
            let rows = || (0..self.tasks_count).map(|index| tasks.shuffled(0, index)).collect();
            return Ok(if repeated { Problems::Rows(rows()) } else { tasks });
        }
        let fields = Fields { prompt_field: self.prompt_field.clone(), answer_field: self.answer_field.clone() };
        Ok(Problems::Rows(data::load_problems(path, &fields)?))
    }

    /// Return the first `limit` held-out problems (0: all of a file), without overlong ones if these are filtered.
    ///
    /// # Errors
    /// When the file is missing or malformed, when a prompt is overlong and not filtered, or when no problem is left.
    pub fn held_out(&self, limit: usize, tokenizer: &Tokenizer) -> Result<(Vec<Problem>, DataReport)> {
        self.short_enough(self.open(Split::HeldOut)?.take(limit)?, &self.eval, tokenizer, usize::MAX, |_, _| Ok(()))
    }

    /// Return the `problems` of `file` whose prompts are short enough, and how many are not. `check` is called with
    /// the tokens of each prompt that may have more than `certain`.
    ///
    /// # Errors
    /// A prompt that is too long without `filter_overlong_prompts`, errors of `check`, and when no problem is left.
    pub fn short_enough(
        &self,
        problems: Vec<Problem>,
        file: &Path,
        tokenizer: &Tokenizer,
        certain: usize,
        check: impl Fn(usize, &Problem) -> Result<()> + Sync,
    ) -> Result<(Vec<Problem>, DataReport)> {
        let fits = |problem: &Problem| -> Result<bool> {
            // A very long prompt is neither rendered, which would exceed a template's work limit, nor encoded.
            let overlong =
                |text: &str| Some(tokenizer.least_tokens(text.len())).filter(|n| *n > self.max_prompt_length);
            if let Some(least) = overlong(&problem.prompt.text()) {
                return self.reads(least, "at least ", problem);
            }
            let text = tokenizer.render_prompt(&problem.prompt).map_err(|error| problem.fault(error))?;
            // A token has at least one byte and at most those of the longest token: most prompts need not be encoded.
            if text.len() < certain.min(self.max_prompt_length) {
                return Ok(true);
            }
            if let Some(least) = overlong(&text) {
                return self.reads(least, "at least ", problem);
            }
            let tokens = tokenizer.encode_prompt(&problem.prompt).map_err(|error| problem.fault(error))?.len();
            if !self.reads(tokens, "", problem)? {
                return Ok(false);
            }
            check(tokens, problem).map(|()| true).map_err(|error| problem.fault(error))
        };
        // Collect all results first, so that the error is that of the first row in any order of threads.
        let fit: Vec<Result<bool>> = problems.par_iter().map(fits).collect();
        let fit: Vec<bool> = fit.into_iter().collect::<Result<_>>()?;
        let overlong = fit.iter().filter(|fits| !**fits).count();
        let mut fit = fit.into_iter();
        let kept: Vec<Problem> = problems.into_iter().filter(|_| fit.next().unwrap_or(false)).collect();
        if kept.is_empty() {
            let message =
                format!("all prompts are longer than max_prompt_length = {}: raise it", self.max_prompt_length);
            return Err(Error::file(file, message));
        }
        let report = DataReport { overlong, ..DataReport::of(&kept) };
        Ok((kept, report))
    }

    /// Return whether a prompt of this many tokens is short enough; `bound` is "at least " for a lower bound.
    ///
    /// # Errors
    /// When it is too long and `filter_overlong_prompts` is not set.
    fn reads(&self, tokens: usize, bound: &str, problem: &Problem) -> Result<bool> {
        if tokens > self.max_prompt_length && !self.filter_overlong_prompts {
            return Err(problem.fault(format!(
                "a prompt has {bound}{tokens} tokens, more than max_prompt_length = {}; raise it if the model's \
                 context (max_position_embeddings) allows, or set filter_overlong_prompts to leave such rows out: \
                 {:.80}…",
                self.max_prompt_length,
                problem.prompt.text()
            )));
        }
        Ok(tokens <= self.max_prompt_length)
    }
}

/// Problems by index.
#[derive(Debug, Clone)]
pub enum Problems {
    /// Generated problems, without end.
    Tasks(Generator, Split),
    /// Rows of a file.
    Rows(Vec<Problem>),
}

impl Problems {
    /// Return the problem at `index` in a fixed order: task `index`, or row `index` (modulo their number).
    pub fn get(&self, index: u64) -> Problem {
        match self {
            Self::Rows(rows) => rows[(index % rows.len() as u64) as usize].clone(),
            Self::Tasks(generator, split) => {
                let task = generator.task(*split, index);
                let prompt = Prompt::Messages(vec![Message::user(task.question.as_str())]);
                let mut problem = Problem::new(prompt, task.answer.as_str());
                problem.data_source = task.data_source();
                problem.floor = Some(task.floor_text());
                problem.extra.insert("terse_opening".to_string(), task.terse_opening().into());
                problem
            }
        }
    }

    /// Return the problem a training run meets at `index`; rows are shuffled anew each epoch, as a function of `seed`.
    pub fn shuffled(&self, seed: u64, index: u64) -> Problem {
        match self {
            // In the upper half of all indices; fine-tuning starts at 0, so RL meets problems new to the base model.
            Self::Tasks(..) => {
                let first = (1 << 63) | (mix(&[Purpose::Order.word(), seed]) >> 1);
                self.get(first.wrapping_add(index))
            }
            Self::Rows(rows) => rows[Shuffle::new(seed, rows.len()).row(index)].clone(),
        }
    }

    /// Return the number of distinct problems; `None` for the embedded tasks.
    pub fn count(&self) -> Option<usize> {
        match self {
            Self::Tasks(..) => None,
            Self::Rows(rows) => Some(rows.len()),
        }
    }

    /// Return the first `limit` problems (0: all of a file).
    ///
    /// # Errors
    /// When `limit` is 0 for the embedded tasks, which have no end.
    pub fn take(&self, limit: usize) -> Result<Vec<Problem>> {
        let count = match (self.count(), limit) {
            (None, 0) => {
                let message =
                    "the number of problems is 0, which means all, but the embedded tasks are endless: set one";
                return Err(Error::Invalid(message.to_string()));
            }
            (Some(count), 0) => count,
            (Some(count), limit) => limit.min(count),
            (None, limit) => limit,
        };
        Ok((0..count as u64).map(|index| self.get(index)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Duplicated rows are separate rows: each occurs once in an epoch.
    #[test]
    fn an_epoch_of_duplicated_problems_has_each_row_once() {
        let row = |n: usize| Problem::new(Prompt::Messages(vec![Message::user(format!("{}?", n / 2))]), n.to_string());
        let problems = Problems::Rows((0..10).map(row).collect());
        let epoch = |number: u64| -> Vec<String> {
            (10 * number..10 * number + 10).map(|index| problems.shuffled(3, index).answer).collect()
        };
        let mut answers = epoch(0);
        assert!(answers != epoch(1));
        answers.sort_by_key(|answer| answer.parse::<usize>().unwrap());
        assert_eq!(answers, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
    }

    /// An overlong prompt was once reported by its source only.
    #[test]
    fn an_overlong_prompt_is_told_by_its_row() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.jsonl");
        let prompts = ["q".to_string(), "1+".repeat(40), "1+".repeat(4000)];
        let rows = prompts.map(|prompt| format!(r#"{{"prompt": "{prompt}", "answer": "1"}}"#));
        std::fs::write(&file, rows.join("\n")).unwrap();
        let tokenizer = Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/base")).unwrap();
        let fault = |max_prompt_length: usize, certain: usize| {
            let data = DataConfig { max_prompt_length, ..DataConfig::default() };
            let problems = data::load_problems(&file, &Fields::default()).unwrap();
            let check = |tokens, _: &Problem| {
                if tokens > 64 { Err(Error::Invalid("fills the context".into())) } else { Ok(()) }
            };
            data.short_enough(problems, &file, &tokenizer, certain, check).unwrap_err().to_string()
        };
        let error = fault(64, usize::MAX);
        assert!(
            error.contains("x.jsonl:2: a prompt has") && error.contains("more than max_prompt_length = 64"),
            "{error}"
        );
        // Regression: the lower bound of a prompt that is not encoded was stated as its length.
        let error = fault(512, usize::MAX);
        assert!(error.contains("x.jsonl:3: a prompt has at least 615 tokens"), "{error}");
        let error = fault(512, 0);
        assert!(error.ends_with("x.jsonl:2: fills the context"), "{error}");
    }

    /// All 64 bits of a seed matter, and the largest seed does not overflow.
    #[test]
    fn seeds_far_apart_give_other_tasks() {
        let tasks = Problems::Tasks(DataConfig::default().generator(), Split::Train);
        let text = |seed: u64| (0..8).map(|index| tasks.shuffled(seed, index).prompt.text()).collect::<Vec<_>>();
        assert!(text(1) != text(1 + (1 << 32)) && text(0) != text(u64::MAX));
        assert_eq!(text(5), text(5));
    }
}
