//! Measures the entropy conflict of a model without training: samples, scores and measures groups as a training step
//! does, without an update.

use std::ops::Range;
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

/// Largest number of problems that are measured together, as in a training step. The blocks are of nearly equal size,
/// because each has the same weight in a mean over blocks. Their spread gives the errors of the means.
pub const BLOCK: usize = 8;
/// Number of problems whose completions are shown.
const SHOWN: usize = 4;

/// Options of an analysis.
#[derive(Debug, Clone)]
pub struct AnalyzeConfig {
    /// Completions per problem: the group.
    pub num_generations: usize,
    /// The stage that gives temperature, length, rewards and advantage.
    pub stage: Stage,
    /// The program of a reward of type `command`.
    pub reward: RewardCommand,
    /// Maximum rows decoded together.
    pub rows: usize,
    /// Seed of the sampling noise.
    pub seed: u64,
}

/// The results of an analysis.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// Number of problems.
    pub problems: usize,
    /// Metrics of all completions, with `conflict/…`.
    pub metrics: Metrics,
    /// `conflict/…` of each block of at most [`BLOCK`] problems.
    pub blocks: Vec<Metrics>,
    /// Token types of highest mean entropy; `None` if no type occurred often enough.
    pub types: Option<Types>,
    /// Completions to show.
    pub shown: Vec<Shown>,
}

/// Shown completions of one problem.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Name of the data set.
    pub data_source: String,
    /// The question.
    pub prompt: String,
    /// The right answer.
    pub answer: String,
    /// Some completions.
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

/// A token with its entropy and probability.
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

/// An event for the observer of [`analyze`].
#[derive(Debug, Clone, Copy)]
pub enum AnalysisEvent<'a> {
    /// Another token was sampled.
    Sampled(&'a Count),
    /// This number of problems is finished.
    Done(usize),
}

/// Sample `config.num_generations` completions of each problem and measure them. An error of `observe` ends the
/// analysis.
///
/// # Errors
/// A prompt that cannot be rendered or leaves no room for a completion; errors of a reward or of `observe`.
pub fn analyze(
    sampler: &mut dyn Sampler,
    subject: Subject,
    problems: &[Problem],
    config: &AnalyzeConfig,
    rewards: &[Arc<dyn Reward>],
    observe: &mut dyn FnMut(AnalysisEvent) -> Result<()>,
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
    // Enough problems to fill the rows a few times.
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
        let mut follow = |count: &Count| observe(AnalysisEvent::Sampled(count));
        let mut sampled = rollouts.groups(sampler, asked, now, &mut metrics, &mut follow)?;
        assign_advantages(&mut sampled, stage);
        groups.extend(sampled);
        observe(AnalysisEvent::Done(groups.len()))?;
    }
    let mut types = TokenTypes::default();
    let all = measured(&groups, stage, &connectors, &mut types);
    let blocks = blocks(groups.len()).map(|block| {
        let figures = measured(&groups[block], stage, &connectors, &mut TokenTypes::default());
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

/// Return blocks of at most [`BLOCK`] of `count` groups whose sizes differ by at most one.
fn blocks(count: usize) -> impl Iterator<Item = Range<usize>> {
    let number = count.div_ceil(BLOCK);
    (0..number).map(move |k| k * count / number..(k + 1) * count / number)
}

/// Write metrics of the completions under the names that training uses.
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

/// Return the shortest and the longest right completion of a group, and the longest wrong one.
fn pick(group: &Group) -> Vec<(&'static str, &Rollout)> {
    let of = |correct: bool| group.rollouts.iter().filter(move |r| r.answer.correct == Some(correct));
    let short = of(true).min_by_key(|r| r.length()).map(|r| ("right, the shortest", r));
    let long = of(true).max_by_key(|r| r.length()).map(|r| ("right, the longest", r));
    let wrong = of(false).max_by_key(|r| r.length()).map(|r| ("wrong, the longest", r));
    let mut picked: Vec<_> = [short, long, wrong].into_iter().flatten().collect();
    picked.dedup_by(|(_, a), (_, b)| std::ptr::eq(*a, *b));
    picked
}

/// Choose completions of the problems on which both accuracy and length vary most.
fn show(groups: &[Group], connectors: &Connectors) -> Vec<Shown> {
    let mut picked: Vec<_> = groups.iter().map(|group| (group, pick(group))).collect();
    picked.retain(|(_, picked)| !picked.is_empty());
    // First the problems with most kinds of completions, among them those with the widest spread of lengths.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: of nine problems the last was a block of its own, with the weight of the other eight.
    #[test]
    fn blocks_are_of_nearly_equal_size() {
        let sizes = |count| blocks(count).map(|block| block.len()).collect::<Vec<_>>();
        assert_eq!((sizes(9), sizes(16), sizes(3), sizes(17)), (vec![4, 5], vec![8, 8], vec![3], vec![5, 6, 6]));
        assert!(blocks(17).flatten().eq(0..17));
    }
}
