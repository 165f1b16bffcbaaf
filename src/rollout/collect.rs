//! Sampling, grading and scoring of the groups of a step.

use std::time::Instant;

use rayon::prelude::*;

use super::{Asked, Group, Prompts, Rollout, Sampler, requests};
use crate::error::Result;
use crate::generate::{Completion, Count, Sampling, Watch};
use crate::metrics::Metrics;
use crate::reward::{self, Answer, Memory, Parts, Rewards, answer};
use crate::stage::Stage;
use crate::stop::Stop;
use crate::text::tokenizer::Tokenizer;

/// The groups of a step.
#[derive(Debug, Default)]
pub struct Batch {
    /// Groups to learn from.
    pub groups: Vec<Group>,
    /// Groups that were replaced because all their rewards are equal.
    pub replaced: Vec<Group>,
}

impl Batch {
    /// Iterate over all sampled groups.
    pub fn all(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().chain(&self.replaced)
    }
}

/// The position of a step in its stage, and the state that rewards keep between steps.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// The stage, with the maximum completion length of this step.
    pub stage: &'a Stage,
    /// Number of completed steps of the stage.
    pub step: usize,
    /// The memory of the rewards.
    pub memory: &'a Memory,
    /// The request to end early.
    pub stop: Stop<'a>,
}

/// Samples completions of prompts, and grades and scores them.
#[derive(Debug)]
pub struct Rollouts {
    /// Decodes completions into text.
    pub tokenizer: Tokenizer,
    /// The opened rewards of all stages.
    pub rewards: Rewards,
    /// Number of completions per prompt.
    pub num_generations: usize,
    /// Settings of the engine. The stage overrides the distribution and the maximum completion length.
    pub engine: Sampling,
    /// Seed of the sampling noise.
    pub seed: u64,
}

/// A callback for each sampled token; an error ends the sampling.
pub type Follow<'a> = dyn FnMut(&Count) -> Result<()> + 'a;

impl Rollouts {
    /// Sample and score one group for each of `asked`.
    ///
    /// # Errors
    /// Errors of the sampler, the rewards and `follow`.
    pub fn groups(
        &self,
        sampler: &mut dyn Sampler,
        asked: Vec<Asked>,
        now: Now,
        metrics: &mut Metrics,
        follow: &mut Follow,
    ) -> Result<Vec<Group>> {
        let start = Instant::now();
        let Now { stage, step, memory, stop } = now;
        let limit = stage.sampling.max_completion_length;
        let sampling = self.sampling(stage);
        let completions = self.sample(sampler, &asked, &sampling, follow)?;
        sampler.describe(metrics);
        metrics.add("timing_s/gen", start.elapsed().as_secs_f64());

        let start = Instant::now();
        let with_pieces = stage.tokens.step_selection.is_some() || self.rewards.reads_pieces(&stage.rewards);
        let count = self.num_generations;
        let answers: Vec<Answer> = (completions.par_iter().enumerate())
            .map(|(i, completion)| answer(&asked[i / count].problem, &self.tokenizer, completion, with_pieces))
            .collect();
        let graded: Vec<reward::AnswerGroup> = (asked.iter().zip(answers.chunks(count)))
            .map(|(asked, answers)| reward::AnswerGroup { problem: &asked.problem, answers, limit, step })
            .collect();
        let scores = self.rewards.score(&stage.rewards, &graded, memory, stop)?;
        let hard: Vec<bool> = graded.iter().map(|group| memory.is_hard(group)).collect();
        drop(graded);
        metrics.add("timing_s/reward", start.elapsed().as_secs_f64());
        Ok(assemble(asked, completions, answers, scores, hard))
    }

    fn sampling(&self, stage: &Stage) -> Sampling {
        let max_completion_length = stage.sampling.max_completion_length;
        Sampling { distribution: stage.distribution(), max_completion_length, ..self.engine.clone() }
    }

    /// Announce to the sampler that the completions of `asked` are requested next, unless the stage changes.
    pub fn announce(&self, sampler: &mut dyn Sampler, asked: Vec<Asked>, stage: &Stage) {
        sampler.prepare(&requests(&asked, self.num_generations, self.seed), &self.sampling(stage));
    }

    fn sample(
        &self,
        sampler: &mut dyn Sampler,
        asked: &[Asked],
        sampling: &Sampling,
        follow: &mut Follow,
    ) -> Result<Vec<Completion>> {
        let requests = requests(asked, self.num_generations, self.seed);
        let mut count = Count::new(requests.len());
        let mut followed = Ok(());
        let completions = sampler.sample(&requests, sampling, &mut |request, token| {
            count.take(request, token, sampling);
            if followed.is_ok() {
                followed = follow(&count);
            }
            if followed.is_ok() { Watch::Continue } else { Watch::EndAll }
        });
        followed.and(completions)
    }

    /// Sample the `wanted` groups of a step with consecutive draws from `next_draw`. If the stage allows several
    /// batches, further draws replace groups whose rewards are all equal. A step without other groups keeps these, so
    /// that its metrics have values.
    ///
    /// # Errors
    /// As [`Rollouts::groups`].
    pub fn collect(
        &self,
        sampler: &mut dyn Sampler,
        (prompts, wanted, next_draw): (&Prompts, usize, &mut u64),
        now: Now,
        metrics: &mut Metrics,
        follow: &mut Follow,
    ) -> Result<Batch> {
        let most = now.stage.sampling.max_num_gen_batches.max(1);
        let weights = now.stage.weights();
        let mut batch = Batch::default();
        let mut batches = 0;
        while batches < most && batch.groups.len() < wanted {
            batches += 1;
            let first = *next_draw;
            *next_draw += (wanted - batch.groups.len()) as u64;
            let asked = (first..*next_draw).map(|draw| prompts.draw(draw)).collect::<Result<_>>()?;
            let groups = self.groups(sampler, asked, now, metrics, follow)?;
            let (kept, flat): (Vec<_>, Vec<_>) =
                groups.into_iter().partition(|group| most == 1 || group.differs(&weights));
            batch.groups.extend(kept);
            batch.replaced.extend(flat);
        }
        if most > 1 {
            metrics.set("sampling/num_gen_batches", batches as f64);
            metrics.set("sampling/replaced_problems", batch.replaced.len() as f64);
            metrics.set("sampling/missing_problems", (wanted - batch.groups.len()) as f64);
        }
        if batch.groups.is_empty() {
            let rest = batch.replaced.split_off(wanted.min(batch.replaced.len()));
            batch.groups = std::mem::replace(&mut batch.replaced, rest);
        }
        Ok(batch)
    }

    /// Update the memory of the rewards of a stage with all groups of a step, and set the metrics of the rewards.
    pub fn remember(&self, batch: &Batch, stage: &Stage, memory: &mut Memory, metrics: &mut Metrics) {
        let answers: Vec<Vec<Answer>> =
            batch.all().map(|group| group.rollouts.iter().map(|rollout| rollout.answer.clone()).collect()).collect();
        let limit = stage.sampling.max_completion_length;
        let graded: Vec<reward::AnswerGroup> = (batch.all().zip(&answers))
            .map(|(group, answers)| reward::AnswerGroup { problem: &group.problem, answers, limit, step: 0 })
            .collect();
        self.rewards.remember(&stage.rewards, &graded, memory);
        self.rewards.describe(&stage.rewards, memory, metrics);
    }
}

/// Assemble the groups of a step. `scores` has the indices group, reward, answer.
fn assemble(
    asked: Vec<Asked>,
    completions: Vec<Completion>,
    answers: Vec<Answer>,
    scores: Vec<Vec<Vec<Option<Parts>>>>,
    hard: Vec<bool>,
) -> Vec<Group> {
    let count = completions.len() / asked.len().max(1);
    let mut rollouts = completions.into_iter().zip(answers);
    let mut groups = Vec::with_capacity(asked.len());
    for ((asked, scores), hard) in asked.into_iter().zip(scores).zip(hard) {
        let rollout = |(i, (completion, answer)): (usize, (Completion, Answer))| Rollout {
            completion,
            answer,
            rewards: scores.iter().map(|reward| reward[i]).collect(),
            advantage: Parts::default(),
        };
        let rollouts = rollouts.by_ref().take(count).enumerate().map(rollout).collect();
        groups.push(Group { problem: asked.problem.into_owned(), prompt: asked.prompt, rollouts, hard });
    }
    groups
}
