//! Evaluation: sample completions of held-out problems, grade them, and report figures per data source.
//!
//! [`evaluate`] samples, [`figures`] defines the scores, [`saved`] keeps an evaluation in a folder and resumes an
//! interrupted one, [`mod@source`] reads it back, [`compare`] compares two. Training evaluates with the same code,
//! and a seed separate from that of its own sampling.

pub mod bootstrap;
pub mod budgets;
pub mod compare;
pub mod figures;
pub mod protocol;
pub mod record;
pub mod saved;
pub mod source;
pub mod student;
pub(crate) mod table;

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{self, COMPLETIONS, LENGTHS, PROBLEMS, ROWS};
use crate::data::Problem;
use crate::error::{Error, Result};
use crate::generate::{Completion, Count, Distribution, Room, Sampling, Watch};
use crate::metrics::Metrics;
use crate::model::ModelConfig;
use crate::rollout::{Asked, Sampler, requests};
use crate::text::tokenizer::Tokenizer;
pub use bootstrap::sign_test;
pub use figures::Figures;
pub use record::{CompletionLine, Record, Sample};

/// Settings of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Number of problems, from the start of the data; 0 for all problems of a file.
    pub num_problems: usize,
    /// Number of completions per problem.
    pub num_generations: usize,
    /// Sampling temperature; 0 for greedy decoding.
    pub temperature: f32,
    /// Top-k sampling: number of most probable tokens to keep; 0 disables.
    pub top_k: usize,
    /// Nucleus sampling: cumulative probability of the most probable tokens to keep; 1 disables.
    pub top_p: f32,
    /// Min-p sampling: minimum probability of a token relative to that of the most probable token; 0 disables.
    pub min_p: f32,
    /// Repetition penalty: makes tokens that occurred before less likely if above 1; 1 disables.
    pub repetition_penalty: f32,
    /// Maximum completion length in tokens.
    pub max_completion_length: usize,
    /// Maximum number of completions decoded in parallel.
    pub rows: usize,
    /// Seed of the sampling noise, independent of the training seed.
    pub seed: u64,
    /// Whether to start each completion with the opening of the embedded tasks' terse style, to measure accuracy
    /// without thinking.
    pub terse: bool,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            num_problems: 600,
            num_generations: 1,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_completion_length: 512,
            rows: 128,
            seed: 1_000_003,
            terse: false,
        }
    }
}

impl EvalConfig {
    /// Return the settings that cannot work, one line each.
    pub fn mistakes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, value, least, most) in [
            ("num_problems", self.num_problems, 0, PROBLEMS),
            ("num_generations", self.num_generations, 1, ROWS),
            ("max_completion_length", self.max_completion_length, 1, LENGTHS),
            ("rows", self.rows, 1, ROWS),
        ] {
            problems.extend(config::count(&format!("eval.{key}"), value, least, most));
        }
        let (count, each) = (self.num_problems, self.num_generations);
        if count <= PROBLEMS && each <= ROWS && count * each > COMPLETIONS {
            problems.push(format!(
                "eval.num_generations = {each} for each of num_problems = {count} makes {} completions, more than \
                 {COMPLETIONS}: lower one of the two",
                count * each
            ));
        }
        problems.extend(self.distribution().mistakes().into_iter().map(|problem| format!("eval.{problem}")));
        problems
    }

    /// Return the distribution that completions are sampled from.
    fn distribution(&self) -> Distribution {
        let Self { repetition_penalty, temperature, top_k, top_p, min_p, .. } = *self;
        Distribution { repetition_penalty, temperature, top_k, top_p, min_p }
    }

    /// Return the room that prompts must leave in the context.
    fn room(&self, model: &ModelConfig) -> Room<'static> {
        Room {
            max_position_embeddings: model.max_position_embeddings,
            max_completion_length: self.max_completion_length,
            setting: "eval.max_completion_length",
        }
    }

    /// Return the number of problems that are sampled, graded and written together. Their completions fill the rows
    /// several times, so that few rows idle while the longest completion ends.
    fn problems_at_once(&self) -> usize {
        (4 * self.rows / self.num_generations).max(1)
    }
}

/// The evaluated model, except for its weights, which the sampler has.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Shape of the model.
    pub model_config: &'a ModelConfig,
    /// Tokenizer of the model.
    pub tokenizer: &'a Tokenizer,
}

/// Events reported to the observer of [`evaluate`].
#[derive(Debug, Clone, Copy)]
pub enum EvaluationEvent<'a> {
    /// Number of problems that an interrupted evaluation has done; only from [`saved::evaluate_into`].
    Resumed(usize),
    /// A token was sampled.
    Sampled(&'a Count),
    /// Completions were graded: lines of a completions file, a few problems at a time, in order.
    Graded(&'a [CompletionLine]),
}

/// Sample and grade `num_generations` completions of each of `problems` from index `first` on.
///
/// An error of `observe` ends the evaluation. While the device samples, all cores grade the completions before.
///
/// # Errors
/// A prompt that cannot be rendered or leaves no room for the longest completion in the model's context, and an error
/// of the sampler or of `observe`.
pub fn evaluate(
    sampler: &mut dyn Sampler,
    subject: Subject,
    problems: &[Problem],
    first: usize,
    config: &EvalConfig,
    observe: &mut dyn FnMut(EvaluationEvent) -> Result<()>,
) -> Result<Vec<Record>> {
    let Subject { model_config, tokenizer } = subject;
    let sampling = Sampling {
        distribution: config.distribution(),
        max_completion_length: config.max_completion_length,
        stop: tokenizer.stop_ids().to_vec(),
        rows: config.rows,
        ..Sampling::default()
    };
    let keyed: Vec<_> = Asked::keys(problems, first).collect();
    let mut records = Vec::new();
    let mut count = Count::new(keyed.len() * config.num_generations);
    let mut sampled: Vec<UngradedCompletion> = Vec::new();
    for keyed in keyed.chunks(config.problems_at_once()) {
        let forced: Vec<_> =
            keyed.iter().map(|(p, _)| forced_start(p, tokenizer, config.terse)).collect::<Result<_>>()?;
        let ask = |(&keyed, forced): (_, &Vec<u32>)| Asked::of(keyed, forced, tokenizer, config.room(model_config));
        let asked: Vec<Asked> = keyed.iter().zip(&forced).map(ask).collect::<Result<_>>()?;
        let requests = requests(&asked, config.num_generations, config.seed);
        count.next_call();
        let (mut lines, mut seen) = (Vec::new(), Ok(()));
        let completions = rayon::in_place_scope(|scope| {
            scope.spawn(|_| lines = grade(&sampled, tokenizer));
            sampler.sample(&requests, &sampling, &mut |request, token| {
                count.take(request, token, &sampling);
                if seen.is_ok() {
                    seen = observe(EvaluationEvent::Sampled(&count));
                }
                if seen.is_ok() { Watch::Continue } else { Watch::EndAll }
            })
        });
        seen?;
        // The first call has no completions before it.
        if !lines.is_empty() {
            observe(EvaluationEvent::Graded(&lines))?;
        }
        records.extend(lines.into_iter().map(|line| line.record));
        let of = |i: usize| (keyed[i / config.num_generations].0, &forced[i / config.num_generations]);
        sampled = (completions?.into_iter().enumerate())
            .map(|(i, completion)| {
                let (problem, forced) = of(i);
                UngradedCompletion { problem, sample: i % config.num_generations, forced: forced.clone(), completion }
            })
            .collect();
    }
    let lines = grade(&sampled, tokenizer);
    observe(EvaluationEvent::Graded(&lines))?;
    records.extend(lines.into_iter().map(|line| line.record));
    Ok(records)
}

/// Grade completions and return their lines, in order.
fn grade(sampled: &[UngradedCompletion], tokenizer: &Tokenizer) -> Vec<CompletionLine> {
    sampled.par_iter().map(|sampled| sampled.line(tokenizer)).collect()
}

/// A completion of an evaluation.
struct UngradedCompletion<'a> {
    problem: &'a Problem,
    sample: usize,
    /// Forced start of the completion.
    forced: Vec<u32>,
    completion: Completion,
}

impl UngradedCompletion<'_> {
    /// Grade the completion.
    fn line(&self, tokenizer: &Tokenizer) -> CompletionLine {
        let completion = &self.completion;
        let ids = [self.forced.as_slice(), &completion.tokens].concat();
        // Completions sampled by a server alone have no entropies.
        let known = completion.entropies.len() == completion.tokens.len();
        let rounded = completion.entropies.iter().map(|h| (h * 1e4).round() / 1e4);
        let entropy: Vec<f32> = self.forced.iter().map(|_| 0.0).chain(rounded).filter(|_| known).collect();
        let floor = self.problem.floor.as_ref().and_then(|floor| tokenizer.encode(floor).ok());
        let sample = Sample {
            problem: self.problem.id.to_string(),
            sample: self.sample,
            data_source: self.problem.data_source.clone(),
            prompt: self.problem.prompt.text(),
            answer: self.problem.answer.clone(),
            completion: tokenizer.completion_text(&ids),
            finished: completion.finished(),
            length: ids.len(),
            floor: floor.map(|tokens| tokens.len() + 1),
            entropy_sum: known.then(|| record::entropy_sum(&entropy)),
        };
        let tokens = ids.iter().map(|&id| tokenizer.token_text(id)).collect();
        CompletionLine { record: Record::new(sample), tokens, entropy }
    }
}

/// Return the tokens that a terse evaluation forces.
fn forced_start(problem: &Problem, tokenizer: &Tokenizer, terse: bool) -> Result<Vec<u32>> {
    if !terse {
        return Ok(Vec::new());
    }
    match problem.extra.get("terse_opening").and_then(Value::as_str) {
        Some(opening) => tokenizer.encode(opening),
        None => Err(Error::Invalid(
            "--terse works on the embedded tasks only: other rows have no field terse_opening".to_string(),
        )),
    }
}

/// Return the number of tokens of the longest prompt, with the start that a terse evaluation forces.
///
/// # Errors
/// When a prompt cannot be rendered or has no terse start.
pub fn longest_prompt(problems: &[Problem], tokenizer: &Tokenizer, terse: bool) -> Result<usize> {
    problems.iter().try_fold(0, |longest, problem| {
        let prompt = tokenizer.encode_prompt(&problem.prompt)?;
        Ok(longest.max(prompt.len() + forced_start(problem, tokenizer, terse)?.len()))
    })
}

/// Identity of a problem within an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProblemKey {
    /// Data source of the problem.
    pub data_source: String,
    /// Id of the problem.
    pub problem: String,
    /// Number of earlier problems with the same id: a data set may contain a problem twice.
    pub repeat: usize,
}

/// The completions of one problem.
#[derive(Debug, Clone)]
pub struct ProblemRecords {
    /// Identity of the problem.
    pub key: ProblemKey,
    /// Its completions; every problem has equally many.
    pub records: Vec<Record>,
}

/// Return in what two completions under one id show that their problems are different ones. An empty prompt is
/// unknown.
fn disagreement(a: &Sample, b: &Sample) -> Option<[String; 2]> {
    if a.answer != b.answer {
        return Some([a, b].map(|sample| format!("the answer {:?}", sample.answer)));
    }
    let known = !a.prompt.is_empty() && !b.prompt.is_empty();
    (known && a.prompt != b.prompt).then(|| [a, b].map(|sample| format!("the prompt {:?}", sample.prompt)))
}

/// Graded completions, grouped by problem.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Groups in the order of the problems; at least one.
    pub groups: Vec<ProblemRecords>,
}

impl Evaluation {
    /// Group completions by problem.
    ///
    /// # Errors
    /// When there are none, problems differ in the number of completions, or completions of a problem in prompt or
    /// answer.
    pub fn new(records: Vec<Record>) -> Result<Self> {
        let mut groups: Vec<ProblemRecords> = Vec::new();
        let mut places: HashMap<ProblemKey, usize> = HashMap::new();
        let mut seen: HashMap<(String, String, usize), usize> = HashMap::new();
        for record in records {
            let Sample { data_source, problem, sample, .. } = &record.sample;
            // The same sample of the same problem again: the data set has the problem twice.
            let repeats = seen.entry((data_source.clone(), problem.clone(), *sample)).or_insert(0);
            let key = ProblemKey { data_source: data_source.clone(), problem: problem.clone(), repeat: *repeats };
            *repeats += 1;
            let place = *places.entry(key.clone()).or_insert(groups.len());
            if place == groups.len() {
                groups.push(ProblemRecords { key, records: Vec::new() });
            }
            groups[place].records.push(record);
        }
        for ProblemRecords { key: ProblemKey { data_source, problem, .. }, records } in &groups {
            let mut others = records[1..].iter().filter_map(|other| disagreement(&records[0].sample, &other.sample));
            if let Some([one, other]) = others.next() {
                return Err(Error::Invalid(format!(
                    "problem {problem} of {data_source} has {one} in one line and {other} in another: the lines come \
                     from different data sets; keep those of one evaluation"
                )));
            }
        }
        let samples = groups.first().map_or(0, |group| group.records.len());
        match groups.iter().find(|group| group.records.len() != samples) {
            _ if groups.is_empty() => Err(Error::Invalid("there are no completions to evaluate".to_string())),
            None => Ok(Self { groups }),
            Some(ProblemRecords { key: ProblemKey { data_source, problem, .. }, records }) => {
                Err(Error::Invalid(format!(
                    "problem {problem} of {data_source} has {} completions, but the first problem has {samples}; if \
                     the evaluation is unfinished, repeat its `tempering eval --output` command to continue it",
                    records.len()
                )))
            }
        }
    }

    /// Compute figures over all problems, without intervals.
    pub fn overall(&self) -> Figures {
        Figures::of(&self.groups.iter().collect::<Vec<_>>(), false)
    }

    /// Compute figures by data source, without intervals.
    pub fn families(&self) -> BTreeMap<String, Figures> {
        self.by_source(false)
    }

    fn by_source(&self, intervals: bool) -> BTreeMap<String, Figures> {
        let mut sources: BTreeMap<String, Vec<&ProblemRecords>> = BTreeMap::new();
        for group in &self.groups {
            sources.entry(group.key.data_source.clone()).or_default().push(group);
        }
        sources.into_iter().map(|(source, groups)| (source, Figures::of(&groups, intervals))).collect()
    }

    /// Compute figures by data source and then over all problems, with intervals.
    fn rows(&self) -> Vec<(String, Figures)> {
        let all = Figures::of(&self.groups.iter().collect::<Vec<_>>(), true);
        self.by_source(true).into_iter().chain([("all".to_string(), all)]).collect()
    }

    /// Count the verdicts of the strict reading.
    pub fn verdicts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for record in self.groups.iter().flat_map(|group| &group.records) {
            *counts.entry(record.graded.strict.name().to_string()).or_insert(0) += 1;
        }
        counts
    }

    /// Return the figures as metrics.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        let overall = self.overall();
        metrics.set("accuracy", overall.accuracy);
        metrics.set("accuracy_lenient", overall.accuracy_lenient);
        metrics.set("mean_length", overall.mean_length);
        metrics.set("clipped_ratio", overall.clipped_ratio);
        metrics.set_mean("entropy", &overall.entropy.into_iter().collect::<Vec<_>>());
        for (name, estimate) in overall.strict.0.iter().filter(|_| overall.samples > 1) {
            metrics.set(name, estimate.value);
        }
        for (name, figures) in self.families() {
            metrics.set(format!("families/{name}/accuracy"), figures.accuracy);
            metrics.set(format!("families/{name}/mean_length"), figures.mean_length);
        }
        metrics
    }

    /// Return statistics of the completions under smaller length limits.
    pub fn budgets(&self) -> Vec<budgets::Budget> {
        budgets::budgets(&self.groups.iter().flat_map(|group| &group.records).collect::<Vec<_>>())
    }

    /// Return all figures as JSON.
    pub fn summary(&self) -> Value {
        let mut families = self.rows();
        let overall = families.pop().map(|(_, figures)| figures);
        let families: BTreeMap<String, Figures> = families.into_iter().collect();
        json!({ "overall": overall, "families": families, "verdicts": self.verdicts(), "budgets": self.budgets() })
    }

    /// Summarise the evaluation in one line.
    pub fn line(&self) -> String {
        let overall = self.overall();
        let entropy = overall.entropy.map_or(String::new(), |nats| format!(", entropy {nats:.3} nats"));
        format!(
            "accuracy {:.1}% (lenient {:.1}%), mean length {:.1} tokens{entropy}, {} problems x {}",
            100.0 * overall.accuracy,
            100.0 * overall.accuracy_lenient,
            overall.mean_length,
            overall.problems,
            overall.samples
        )
    }

    /// Format tables of all data sources, and the verdicts.
    pub fn table(&self) -> String {
        let verdicts: Vec<String> = self.verdicts().iter().map(|(name, count)| format!("{name} {count}")).collect();
        let budgets = budgets::table(&self.budgets());
        format!("{}\n{budgets}\nverdicts: {}", table::tables(&self.rows()), verdicts.join(", "))
    }
}
