//! The entropy conflict of a model as it is: groups sampled, scored and measured as a training step would, and no update.

use std::sync::Arc;

use serde::Serialize;

use super::conflict::measured;
use super::score::{Scored, Scoring, compare, score};
use super::stage::Stage;
use crate::conflict::{Connectors, TokenTypes, Types};
use crate::data::Problem;
use crate::error::{Error, Result};
use crate::eval::Subject;
use crate::generate::{Request, Room, Sampling, Watch, generate};
use crate::metrics::{Metrics, mean};
use crate::objective::Parts;
use crate::reward::{Memory, Reward, RewardCommand, Rewards};

/// Problems that are measured together, as a step of training would: their spread gives the errors of the means.
pub const BLOCK: usize = 8;
/// Problems whose completions are shown.
const SHOWN: usize = 4;

/// How to analyse.
#[derive(Debug, Clone)]
pub struct AnalyzeConfig {
    /// Completions per problem: the group.
    pub num_generations: usize,
    /// Temperature, length, rewards and advantage.
    pub stage: Stage,
    /// The program of a reward of type `command`.
    pub reward: RewardCommand,
    /// Rows decoded together at most.
    pub rows: usize,
    /// Seed of the sampling noise.
    pub seed: u64,
}

/// What an analysis found.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// Problems.
    pub problems: usize,
    /// Figures of all completions: what they were like, and `conflict/…`.
    pub metrics: Metrics,
    /// `conflict/…` of each [`BLOCK`] of problems.
    pub blocks: Vec<Metrics>,
    /// Token types of highest mean entropy; none when no type occurred often enough.
    pub types: Option<Types>,
    /// Completions to look at.
    pub shown: Vec<Shown>,
}

/// Completions of one problem.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Where it is from.
    pub data_source: String,
    /// The question.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// Some of its completions.
    pub completions: Vec<ShownCompletion>,
}

/// A completion, token by token.
#[derive(Debug, Clone, Serialize)]
pub struct ShownCompletion {
    /// Why it is shown.
    pub what: &'static str,
    /// Its advantage.
    pub advantage: Parts,
    /// Its tokens.
    pub tokens: Vec<ShownToken>,
}

/// A token with what the model said of it.
#[derive(Debug, Clone, Serialize)]
pub struct ShownToken {
    /// Its text.
    pub text: String,
    /// Entropy at temperature 1, in nats.
    pub entropy: f32,
    /// Its probability at the sampling temperature.
    pub probability: f32,
    /// Whether a connector begins in it.
    pub connector: bool,
}

/// Samples `config.num_generations` completions of each problem and measures them; `observe` is told how many problems are
/// done.
///
/// # Errors
/// A prompt that cannot be rendered or leaves no room for a completion, and what a reward program says.
pub fn analyze(
    subject: Subject,
    problems: &[Problem],
    config: &AnalyzeConfig,
    rewards: &[Arc<dyn Reward>],
    observe: &mut dyn FnMut(usize),
) -> Result<Analysis> {
    let stage = &config.stage;
    let Some(trial) = problems.first() else {
        return Err(Error::Invalid("there are no problems to analyse".to_string()));
    };
    let rewards = Rewards::open([stage.rewards.as_slice()], &config.reward, rewards, trial)?;
    let connectors = Connectors::new(subject.tokenizer);
    let mut metrics = Metrics::default();
    let mut scored = Vec::with_capacity(problems.len() * config.num_generations);
    // As many at once as fill the rows a few times over.
    let at_once = (4 * config.rows / config.num_generations).max(1);
    for problems in problems.chunks(at_once) {
        scored.extend(sample(subject, problems, config, &rewards)?);
        observe(scored.len() / config.num_generations);
    }
    let mut types = TokenTypes::default();
    let all = measured(&scored, stage, config.num_generations, &connectors, &mut types);
    let blocks = scored.chunks(BLOCK * config.num_generations).map(|block| {
        let figures = measured(block, stage, config.num_generations, &connectors, &mut TokenTypes::default());
        let mut metrics = Metrics::default();
        metrics.extend("conflict/", figures.metrics());
        metrics
    });
    let blocks = blocks.collect();
    describe(&scored, &mut metrics);
    rewards.describe(&stage.rewards, &Memory::default(), &mut metrics);
    metrics.extend("conflict/", all.metrics());
    let ranking = types.ranking();
    if let Some(ranking) = &ranking {
        metrics.extend("conflict/types/", ranking.metrics());
    }
    Ok(Analysis {
        problems: problems.len(),
        metrics,
        blocks,
        types: ranking.map(|ranking| Types::new(&ranking, types.tokens(), &connectors)),
        shown: show(problems, &scored, config.num_generations, &connectors),
    })
}

/// Groups of completions, scored.
fn sample(subject: Subject, problems: &[Problem], config: &AnalyzeConfig, rewards: &Rewards) -> Result<Vec<Scored>> {
    let Subject { model, model_config, tokenizer } = subject;
    let room = Room {
        max_position_embeddings: model_config.max_position_embeddings,
        max_completion_length: config.stage.max_completion_length,
        setting: "the stage's max_completion_length",
    };
    let mut asked = Vec::with_capacity(problems.len());
    let mut requests = Vec::with_capacity(problems.len() * config.num_generations);
    for problem in problems {
        let prompt = tokenizer.encode_prompt(&problem.prompt)?;
        room.check(prompt.len(), &problem.prompt.text())?;
        requests.extend(
            (0..config.num_generations)
                .map(|sample| Request { prompt: prompt.clone(), key: [config.seed, 0, problem.id, sample as u64] }),
        );
        asked.push((problem.clone(), prompt));
    }
    let sampling = Sampling {
        distribution: config.stage.distribution(),
        max_completion_length: config.stage.sampling.max_completion_length,
        stop: tokenizer.stop_ids().to_vec(),
        rows: config.rows,
        ..Sampling::default()
    };
    let mut completions = generate(model, model_config, &requests, &sampling, |_, _| Watch::Continue)?.into_iter();
    let groups = asked.iter().map(|_| completions.by_ref().take(config.num_generations).collect()).collect();
    let scoring = Scoring { stage: &config.stage, step: 0, memory: &Memory::default(), rewards };
    let mut scored = score(&asked, groups, scoring, tokenizer)?;
    compare(&mut scored, &config.stage, config.num_generations);
    Ok(scored)
}

/// What the completions were like, under the names that training has for it.
fn describe(scored: &[Scored], metrics: &mut Metrics) {
    let of = |f: &dyn Fn(&Scored) -> f64| mean(&scored.iter().map(f).collect::<Vec<_>>());
    let tokens =
        |f: &dyn Fn(&Scored) -> &[f32]| mean(&scored.iter().flat_map(f).map(|&h| f64::from(h)).collect::<Vec<_>>());
    metrics.set("rewards/accuracy/mean", of(&|s| f64::from(u8::from(s.outcome.correct == Some(true)))));
    metrics.set("completions/mean_length", of(&|s| s.completion.tokens.len() as f64));
    metrics.set("completions/clipped_ratio", of(&|s| f64::from(u8::from(!s.completion.finished()))));
    metrics.set("entropy", tokens(&|s| &s.completion.entropies));
    metrics.set("entropy/sampling", tokens(&|s| &s.completion.sampling_entropies));
}

/// Of the problems on which accuracy and length have most to say: the shortest and the longest right completion, and the
/// longest wrong one.
fn show(problems: &[Problem], scored: &[Scored], group: usize, connectors: &Connectors) -> Vec<Shown> {
    let length = |s: &&Scored| s.completion.tokens.len();
    let pick = |group: &[Scored]| -> Vec<(&'static str, usize)> {
        let index = |s: &Scored| group.iter().position(|other| std::ptr::eq(s, other)).unwrap_or_default();
        let of = |correct: bool| group.iter().filter(move |s| s.outcome.correct == Some(correct));
        let short = of(true).min_by_key(length).map(|s| ("right, the shortest", index(s)));
        let long = of(true).max_by_key(length).map(|s| ("right, the longest", index(s)));
        let wrong = of(false).max_by_key(length).map(|s| ("wrong, the longest", index(s)));
        let mut picked: Vec<_> = [short, long, wrong].into_iter().flatten().collect();
        picked.dedup_by_key(|(_, index)| *index);
        picked
    };
    let groups = problems.iter().zip(scored.chunks(group)).map(|(problem, group)| (problem, group, pick(group)));
    let mut groups: Vec<_> = groups.filter(|(_, _, picked)| !picked.is_empty()).collect();
    // Most kinds first, then the widest spread of lengths.
    groups.sort_by_key(|(_, group, picked)| {
        let lengths = || picked.iter().map(|(_, index)| group[*index].completion.tokens.len());
        std::cmp::Reverse((picked.len(), lengths().max().unwrap_or(0) - lengths().min().unwrap_or(0)))
    });
    let completion = |what, scored: &Scored| {
        let c = &scored.completion;
        let flags = connectors.read(&c.tokens).connector;
        let token = |i: usize| ShownToken {
            text: connectors.piece(c.tokens[i]).to_string(),
            entropy: c.entropies[i],
            probability: c.log_probs[i].exp(),
            connector: flags[i],
        };
        ShownCompletion { what, advantage: scored.advantage, tokens: (0..c.tokens.len()).map(token).collect() }
    };
    let shown = groups.into_iter().take(SHOWN).map(|(problem, group, picked)| Shown {
        data_source: problem.data_source.clone(),
        prompt: problem.prompt.text(),
        answer: problem.answer.clone(),
        completions: picked.into_iter().map(|(what, index)| completion(what, &group[index])).collect(),
    });
    shown.collect()
}
