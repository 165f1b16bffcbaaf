//! Evaluation: sample completions of held-out problems, grade them, say what came out per data source.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::Problem;
use crate::error::{Error, Result};
use crate::generate::{Completion, Distribution, Request, Sampling, Watch, generate};
use crate::metrics::{Metrics, mean};
use crate::model::{CausalLm, ModelConfig};
use crate::reward::{Verdict, grade};
use crate::text::tokenizer::Tokenizer;

/// How to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Problems: the first so many; 0 for all of a file.
    pub num_problems: usize,
    /// Completions per problem.
    pub num_generations: usize,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f32,
    /// Longest completion, in tokens.
    pub max_completion_length: usize,
    /// Rows decoded together at most.
    pub rows: usize,
    /// Seed of the sampling noise, apart from training's.
    pub seed: u64,
    /// Force the start of the embedded tasks' terse manner, to see what the model can do without thinking.
    pub terse: bool,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            num_problems: 600,
            num_generations: 1,
            temperature: 1.0,
            max_completion_length: 512,
            rows: 128,
            seed: 1_000_003,
            terse: false,
        }
    }
}

impl EvalConfig {
    /// What cannot work, one line each.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, value) in [
            ("num_generations", self.num_generations),
            ("max_completion_length", self.max_completion_length),
            ("rows", self.rows),
        ] {
            if value == 0 {
                problems.push(format!("eval.{key} = 0 must be positive"));
            }
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            problems.push(format!("eval.temperature = {} must be 0 (greedy) or positive", self.temperature));
        }
        problems
    }
}

/// One graded completion.
#[derive(Debug, Clone)]
pub struct Record {
    /// The problem's identity.
    pub problem: u64,
    /// The question.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// Where the problem is from.
    pub data_source: String,
    /// Verdict on the stated answer.
    pub strict: Verdict,
    /// Verdict when any last number counts.
    pub lenient: Verdict,
    /// Tokens of the shortest sufficient solution, end of turn included, where known.
    pub floor: Option<usize>,
    /// Forced start of the completion, in tokens.
    pub forced: Vec<u32>,
    /// What was sampled after it.
    pub completion: Completion,
}

impl Record {
    /// Tokens of the completion, forced start included.
    pub fn length(&self) -> usize {
        self.forced.len() + self.completion.tokens.len()
    }

    /// The line of a completions file.
    pub fn json(&self, tokenizer: &Tokenizer) -> Value {
        let tokens: Vec<String> =
            self.forced.iter().chain(&self.completion.tokens).map(|&token| tokenizer.token_text(token)).collect();
        let entropy: Vec<f32> = std::iter::repeat_n(0.0, self.forced.len())
            .chain(self.completion.entropies.iter().map(|h| (h * 1e4).round() / 1e4))
            .collect();
        json!({
            "problem": self.problem.to_string(),
            "prompt": self.prompt,
            "answer": self.answer,
            "data_source": self.data_source,
            "correct": self.strict.is_right(),
            "correct_lenient": self.lenient.is_right(),
            "verdict": self.strict,
            "finished": self.completion.finished(),
            "length": self.length(),
            "tokens": tokens,
            "entropy": entropy,
        })
    }
}

/// All graded completions of one evaluation.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// In the order of the problems.
    pub records: Vec<Record>,
}

/// Samples and grades `num_generations` completions per problem; `progress` is told how many problems are done.
///
/// # Errors
/// A prompt that cannot be rendered, or one that leaves no room for a completion in the model's context.
pub fn evaluate(
    model: &CausalLm,
    model_config: &ModelConfig,
    tokenizer: &Tokenizer,
    problems: &[Problem],
    config: &EvalConfig,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    let sampling = Sampling {
        distribution: Distribution::at(config.temperature),
        max_completion_length: config.max_completion_length,
        stop: tokenizer.stop_ids().to_vec(),
        rows: config.rows,
        ..Sampling::default()
    };
    let mut records = Vec::with_capacity(problems.len() * config.num_generations);
    // A few batches at a time, so that progress shows.
    let chunk = (config.rows / config.num_generations).max(1);
    for problems in problems.chunks(chunk) {
        let mut requests = Vec::new();
        let mut forced = Vec::new();
        for problem in problems {
            let start = forced_start(problem, tokenizer, config.terse)?;
            let mut prompt = tokenizer.encode_prompt(&problem.prompt)?;
            check_room(&prompt, model_config, problem)?;
            prompt.extend(&start);
            for sample in 0..config.num_generations as u64 {
                requests.push(Request { prompt: prompt.clone(), key: [config.seed, 0, problem.id, sample] });
                forced.push((problem, start.clone()));
            }
        }
        let completions = generate(model, model_config, &requests, &sampling, |_, _| Watch::Continue)?;
        let graded = completions.into_par_iter().zip(forced).map(|(completion, (problem, forced))| {
            let text = tokenizer.decode(&[forced.as_slice(), &completion.tokens].concat(), true);
            let graded = grade(&problem.answer, &text, completion.finished());
            let floor = problem.floor.as_ref().and_then(|floor| tokenizer.encode(floor).ok());
            Record {
                problem: problem.id,
                prompt: problem.prompt.text(),
                answer: problem.answer.clone(),
                data_source: problem.data_source.clone(),
                strict: graded.strict,
                lenient: graded.lenient,
                floor: floor.map(|tokens| tokens.len() + 1),
                forced,
                completion,
            }
        });
        records.extend(graded.collect::<Vec<_>>());
        progress(records.len() / config.num_generations);
    }
    Ok(Evaluation { records })
}

/// The tokens a terse evaluation forces.
fn forced_start(problem: &Problem, tokenizer: &Tokenizer, terse: bool) -> Result<Vec<u32>> {
    if !terse {
        return Ok(Vec::new());
    }
    match problem.extra.get("terse_opening").and_then(Value::as_str) {
        Some(opening) => tokenizer.encode(opening),
        None => {
            Err(Error::Invalid("--terse works on the embedded tasks only: other rows have no terse start".to_string()))
        }
    }
}

/// Refuses a prompt that leaves no room in the model's context.
pub(crate) fn check_room(prompt: &[u32], config: &ModelConfig, problem: &Problem) -> Result<()> {
    if prompt.len() < config.max_position_embeddings {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "a prompt of {} has {} tokens; the model reads max_position_embeddings = {}: {:.80}…",
        problem.data_source,
        prompt.len(),
        config.max_position_embeddings,
        problem.prompt.text()
    )))
}

/// Figures of a set of records.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Completions.
    pub n: usize,
    /// Share right, strictly read.
    pub accuracy: f64,
    /// Share right when any last number counts.
    pub accuracy_lenient: f64,
    /// Mean length in tokens.
    pub mean_length: f64,
    /// Mean length of the right ones; none without any.
    pub mean_length_correct: Option<f64>,
    /// Mean length of the wrong ones; none without any.
    pub mean_length_wrong: Option<f64>,
    /// Share that hit the length limit.
    pub clipped_ratio: f64,
    /// Mean entropy per token at temperature 1, in nats.
    pub entropy: f64,
    /// Mean tokens of the shortest sufficient solution, where known.
    pub floor: Option<f64>,
}

impl Figures {
    fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        let records: Vec<&Record> = records.collect();
        let share = |is: &dyn Fn(&Record) -> bool| {
            records.iter().filter(|record| is(record)).count() as f64 / records.len().max(1) as f64
        };
        let lengths = |keep: &dyn Fn(&Record) -> bool| -> Option<f64> {
            let lengths: Vec<f64> = records.iter().filter(|r| keep(r)).map(|r| r.length() as f64).collect();
            (!lengths.is_empty()).then(|| mean(&lengths))
        };
        let entropies: Vec<f64> =
            records.iter().flat_map(|record| &record.completion.entropies).map(|&h| f64::from(h)).collect();
        let floors: Vec<f64> = records.iter().filter_map(|record| record.floor).map(|floor| floor as f64).collect();
        Self {
            n: records.len(),
            accuracy: share(&|record| record.strict.is_right()),
            accuracy_lenient: share(&|record| record.lenient.is_right()),
            mean_length: lengths(&|_| true).unwrap_or(0.0),
            mean_length_correct: lengths(&|record| record.strict.is_right()),
            mean_length_wrong: lengths(&|record| !record.strict.is_right()),
            clipped_ratio: share(&|record| !record.completion.finished()),
            entropy: mean(&entropies),
            floor: (!floors.is_empty()).then(|| mean(&floors)),
        }
    }
}

impl Evaluation {
    /// Figures of all records.
    pub fn overall(&self) -> Figures {
        Figures::of(self.records.iter())
    }

    /// Figures by data source.
    pub fn families(&self) -> BTreeMap<String, Figures> {
        let mut sources: Vec<&str> = self.records.iter().map(|record| record.data_source.as_str()).collect();
        sources.sort_unstable();
        sources.dedup();
        let figures = |source: &str| Figures::of(self.records.iter().filter(|record| record.data_source == source));
        sources.into_iter().map(|source| (source.to_string(), figures(source))).collect()
    }

    /// How often each verdict was reached.
    pub fn verdicts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for record in &self.records {
            *counts.entry(record.strict.name().to_string()).or_insert(0) += 1;
        }
        counts
    }

    /// The figures under metric names.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        let overall = self.overall();
        metrics.set("accuracy", overall.accuracy);
        metrics.set("accuracy_lenient", overall.accuracy_lenient);
        metrics.set("mean_length", overall.mean_length);
        metrics.set("clipped_ratio", overall.clipped_ratio);
        metrics.set("entropy", overall.entropy);
        for (name, figures) in self.families() {
            metrics.set(format!("families/{name}/accuracy"), figures.accuracy);
            metrics.set(format!("families/{name}/mean_length"), figures.mean_length);
        }
        metrics
    }

    /// Everything, as JSON.
    pub fn summary(&self) -> Value {
        json!({ "overall": self.overall(), "families": self.families(), "verdicts": self.verdicts() })
    }

    /// One line.
    pub fn line(&self) -> String {
        let overall = self.overall();
        format!(
            "accuracy {:.1}% (lenient {:.1}%), mean length {:.1} tokens, entropy {:.3} nats, n = {}",
            100.0 * overall.accuracy,
            100.0 * overall.accuracy_lenient,
            overall.mean_length,
            overall.entropy,
            overall.n
        )
    }

    /// A table of all data sources.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<14}{:>6}{:>10}{:>10}{:>10}{:>8}{:>10}{:>10}\n",
            "", "n", "accuracy", "lenient", "length", "floor", "clipped", "entropy"
        );
        for (name, f) in self.families().into_iter().chain([("all".to_string(), self.overall())]) {
            let floor = f.floor.map_or("-".to_string(), |floor| format!("{floor:.1}"));
            text += &format!(
                "{:<14}{:>6}{:>9.1}%{:>9.1}%{:>10.1}{:>8}{:>9.1}%{:>10.3}\n",
                name,
                f.n,
                100.0 * f.accuracy,
                100.0 * f.accuracy_lenient,
                f.mean_length,
                floor,
                100.0 * f.clipped_ratio,
                f.entropy
            );
        }
        let verdicts: Vec<String> = self.verdicts().iter().map(|(name, count)| format!("{name} {count}")).collect();
        text + &format!("verdicts: {}", verdicts.join(", "))
    }
}
