//! The entropy conflict of a model as it is: groups sampled, scored and measured as a training step would, and no update.

use std::sync::Arc;

use serde::Serialize;

use super::conflict::measured;
use crate::conflict::{Connectors, TokenTypes, Types};
use crate::data::Problem;
use crate::error::{Error, Result};
use crate::eval::Subject;
use crate::generate::{Count, Room, Sampling};
use crate::metrics::{Metrics, mean};
use crate::objective::Parts;
use crate::reward::{Memory, Reward, RewardCommand, Rewards};
use crate::rollout::{Asked, Group, Now, Rollout, Rollouts, Sampler, assign_advantages};
use crate::stage::Stage;
use crate::stop::Stop;

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

/// What an observer of [`analyze`] is told.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Another token was sampled.
    Sampled(&'a Count),
    /// The number of problems that are done.
    Done(usize),
}

/// Samples `config.num_generations` completions of each problem and measures them. `observe` ends the analysis by an error.
///
/// # Errors
/// A prompt that cannot be rendered or leaves no room for a completion, and what a reward or `observe` says.
pub fn analyze(
    sampler: &mut dyn Sampler,
    subject: Subject,
    problems: &[Problem],
    config: &AnalyzeConfig,
    rewards: &[Arc<dyn Reward>],
    observe: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<Analysis> {
    let stage = &config.stage;
    let Some(trial) = problems.first() else {
        return Err(Error::Invalid("there are no problems to analyse".to_string()));
    };
    let tokenizer = subject.tokenizer;
    let rollouts = Rollouts {
        engine: Sampling { stop: tokenizer.stop_ids().to_vec(), rows: config.rows, ..Sampling::default() },
        tokenizer: tokenizer.clone(),
        rewards: Rewards::open([stage.rewards.as_slice()], &config.reward, rewards, trial)?,
        num_generations: config.num_generations,
        seed: config.seed,
    };
    let connectors = Connectors::new(tokenizer);
    let mut metrics = Metrics::default();
    let mut groups: Vec<Group> = Vec::with_capacity(problems.len());
    // As many at once as fill the rows a few times over.
    let at_once = (4 * config.rows / config.num_generations).max(1);
    let now = Now { stage, step: 0, memory: &Memory::default(), stop: Stop::NEVER };
    let room = Room {
        max_position_embeddings: subject.model_config.max_position_embeddings,
        max_completion_length: stage.sampling.max_completion_length,
        setting: "the stage's sampling.max_completion_length",
    };
    let keyed: Vec<_> = Asked::keys(problems, 0).collect();
    for keyed in keyed.chunks(at_once) {
        let asked = keyed.iter().map(|&keyed| Asked::of(keyed, &[], tokenizer, room)).collect::<Result<_>>()?;
        let mut follow = |count: &Count| observe(Event::Sampled(count));
        let mut sampled = rollouts.groups(sampler, asked, now, &mut metrics, &mut follow)?;
        assign_advantages(&mut sampled, stage);
        groups.extend(sampled);
        observe(Event::Done(groups.len()))?;
    }
    let mut types = TokenTypes::default();
    let all = measured(&groups, stage, &connectors, &mut types);
    let blocks = groups.chunks(BLOCK).map(|block| {
        let figures = measured(block, stage, &connectors, &mut TokenTypes::default());
        let mut metrics = Metrics::default();
        metrics.extend("conflict/", figures.metrics());
        metrics
    });
    let blocks = blocks.collect();
    describe(&groups, &mut metrics);
    rollouts.rewards.describe(&stage.rewards, now.memory, &mut metrics);
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
        shown: show(&groups, &connectors),
    })
}

/// What the completions were like, under the names that training has for it.
fn describe(groups: &[Group], metrics: &mut Metrics) {
    let rollouts: Vec<&Rollout> = groups.iter().flat_map(|group| &group.rollouts).collect();
    let of = |f: &dyn Fn(&Rollout) -> f64| mean(&rollouts.iter().map(|rollout| f(rollout)).collect::<Vec<_>>());
    let tokens = |f: &dyn Fn(&Rollout) -> &[f32]| {
        mean(&rollouts.iter().flat_map(|rollout| f(rollout)).map(|&h| f64::from(h)).collect::<Vec<_>>())
    };
    let judged = rollouts.iter().filter_map(|r| r.answer.correct).map(|right| f64::from(u8::from(right)));
    metrics.set_mean("rewards/accuracy/mean", &judged.collect::<Vec<_>>());
    metrics.set("completions/mean_length", of(&|r| r.length() as f64));
    metrics.set("completions/clipped_ratio", of(&|r| f64::from(u8::from(!r.completion.finished()))));
    metrics.set("entropy", tokens(&|r| &r.completion.entropies));
    metrics.set("entropy/sampling", tokens(&|r| &r.completion.sampling_entropies));
}

/// Of a group, the shortest and the longest right completion and the longest wrong one.
fn pick(group: &Group) -> Vec<(&'static str, &Rollout)> {
    let of = |correct: bool| group.rollouts.iter().filter(move |r| r.answer.correct == Some(correct));
    let short = of(true).min_by_key(|r| r.length()).map(|r| ("right, the shortest", r));
    let long = of(true).max_by_key(|r| r.length()).map(|r| ("right, the longest", r));
    let wrong = of(false).max_by_key(|r| r.length()).map(|r| ("wrong, the longest", r));
    let mut picked: Vec<_> = [short, long, wrong].into_iter().flatten().collect();
    picked.dedup_by(|(_, a), (_, b)| std::ptr::eq(*a, *b));
    picked
}

/// Completions of the problems on which accuracy and length have most to say.
fn show(groups: &[Group], connectors: &Connectors) -> Vec<Shown> {
    let mut picked: Vec<_> = groups.iter().map(|group| (group, pick(group))).collect();
    picked.retain(|(_, picked)| !picked.is_empty());
    // Most kinds first, then the widest spread of lengths.
    picked.sort_by_key(|(_, picked)| {
        let lengths = || picked.iter().map(|(_, rollout)| rollout.length());
        std::cmp::Reverse((picked.len(), lengths().max().unwrap_or(0) - lengths().min().unwrap_or(0)))
    });
    let completion = |(what, rollout): (&'static str, &Rollout)| {
        let c = &rollout.completion;
        let flags = connectors.read(&c.tokens).connector;
        let token = |i: usize| ShownToken {
            text: connectors.piece(c.tokens[i]).to_string(),
            entropy: c.entropies[i],
            probability: c.log_probs[i].exp(),
            connector: flags[i],
        };
        ShownCompletion { what, advantage: rollout.advantage, tokens: (0..c.tokens.len()).map(token).collect() }
    };
    let shown = picked.into_iter().take(SHOWN).map(|(group, picked)| Shown {
        data_source: group.problem.data_source.clone(),
        prompt: group.problem.prompt.text(),
        answer: group.problem.answer.clone(),
        completions: picked.into_iter().map(completion).collect(),
    });
    shown.collect()
}
