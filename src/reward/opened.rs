//! The rewards of a run, ready to score.

use std::sync::Arc;

use super::command::RewardProgram;
use super::{AnswerGroup, Memory, Parts, Reward, RewardCommand, RewardKind};
use crate::data::Problem;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::stop::Stop;

/// The rewards of all stages of a run: built-in ones, the user's running program, and the user's Rust types.
#[derive(Debug, Default)]
pub struct Rewards {
    program: Option<RewardProgram>,
    custom: Vec<Arc<dyn Reward>>,
}

impl Rewards {
    /// Start the program if a stage uses it and test it with `trial`, a problem of the run. Check the names of
    /// custom rewards.
    ///
    /// # Errors
    /// A name that is not among `custom`, and a program that is not named, cannot be started or does not answer.
    pub fn open<'a>(
        stages: impl IntoIterator<Item = &'a [RewardKind]>,
        command: &RewardCommand,
        custom: &[Arc<dyn Reward>],
        trial: &Problem,
    ) -> Result<Self> {
        let mut program = None;
        for kind in stages.into_iter().flatten() {
            match kind {
                RewardKind::Command(_) if program.is_none() => program = Some(RewardProgram::open(command, trial)?),
                RewardKind::Custom(kind) if custom.iter().all(|reward| reward.name() != kind.name) => {
                    let known: Vec<&str> = custom.iter().map(|reward| reward.name()).collect();
                    return Err(Error::Invalid(format!(
                        "a stage has the custom reward name = {:?}, but the training program registers {known:?}: \
                         custom rewards are Rust types passed to tempering::train::Trainer::reward",
                        kind.name
                    )));
                }
                _ => {}
            }
        }
        Ok(Self { program, custom: custom.to_vec() })
    }

    /// Return the reward of a kind.
    fn of<'a>(&'a self, kind: &'a RewardKind) -> &'a dyn Reward {
        match kind {
            RewardKind::Command(_) => self.program.as_ref().expect("the program is started when the run opens"),
            RewardKind::Custom(kind) => {
                let found = self.custom.iter().find(|reward| reward.name() == kind.name);
                found.expect("the names are looked for when the run opens").as_ref()
            }
            _ => kind.reward(),
        }
    }

    /// Whether one of `kinds` reads [`super::Answer::pieces`].
    pub fn reads_pieces(&self, kinds: &[RewardKind]) -> bool {
        kinds.iter().any(|kind| self.of(kind).reads_pieces())
    }

    /// Score groups by each of `kinds`; the result is indexed by group, kind and answer.
    ///
    /// # Errors
    /// Errors of a reward, values that are not finite or not one per answer, and [`Error::Stopped`].
    pub fn score(
        &self,
        kinds: &[RewardKind],
        groups: &[AnswerGroup],
        memory: &Memory,
        stop: Stop,
    ) -> Result<Vec<Vec<Vec<Option<Parts>>>>> {
        let mut scores: Vec<Vec<_>> = groups.iter().map(|_| Vec::with_capacity(kinds.len())).collect();
        for kind in kinds {
            let reward = self.of(kind);
            let given = reward.score_all(groups, memory, stop)?;
            assert_eq!(given.len(), groups.len(), "the reward {:?} scores each group", reward.name());
            for ((scores, given), group) in scores.iter_mut().zip(given).zip(groups) {
                check(reward.name(), &given, group)?;
                scores.push(given);
            }
        }
        Ok(scores)
    }

    /// Pass all graded groups of a step to the rewards' memory.
    pub fn remember(&self, kinds: &[RewardKind], groups: &[AnswerGroup], memory: &mut Memory) {
        kinds.iter().for_each(|kind| self.of(kind).remember(groups, memory));
    }

    /// Write metrics specific to a reward; called once a step, after [`Rewards::remember`].
    pub fn describe(&self, kinds: &[RewardKind], memory: &Memory, metrics: &mut Metrics) {
        kinds.iter().for_each(|kind| self.of(kind).describe(memory, metrics));
    }
}

/// Largest size of a score. Weights are at most 1e6, so that squares of weighted sums are finite in f32.
const LARGEST: f32 = 1e9;

/// Reject scores that are not finite, beyond [`LARGEST`] or not one per answer, so that no such number enters a run.
fn check(name: &str, scores: &[Option<Parts>], group: &AnswerGroup) -> Result<()> {
    let (count, size) = (scores.len(), group.answers.len());
    if count != size {
        return Err(Error::Invalid(format!(
            "the reward {name:?} returned {count} scores for a group of {size} completions"
        )));
    }
    let fits = |parts: &Parts| parts.task.abs() <= LARGEST && parts.length.abs() <= LARGEST;
    match scores.iter().flatten().find(|parts| !fits(parts)) {
        Some(Parts { task, length }) => Err(Error::Invalid(format!(
            "the reward {name:?} returned task = {task} and length = {length}, which is not finite or beyond \
             {LARGEST:e}, for a completion of {:?}; it must return no score for a completion that it cannot score",
            group.problem.prompt.text()
        ))),
        None => Ok(()),
    }
}
