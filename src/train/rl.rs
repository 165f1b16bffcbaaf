//! The loop of reinforcement learning with verifiable rewards: sample, compute advantages, measure, update, and check
//! whether the stage ends.
//!
//! `trainer.rs` has the code before and after the loop, [`RlJob`] the inputs of a step. There is no value model, on purpose.

use std::time::Instant;

use super::Session;
use super::describe::{describe, diagnose};
use super::engine::RolloutEngine;
use super::guard::Guard;
use super::policy::Policy;
use super::run::Run;
use super::state::RlState;
use super::trainer::RlJob;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::rollout::{Group, Now, assign_advantages};

/// Train from `state` to the end of the last stage. A step replaces `state` only when it is complete: after an error, `state`
/// and the policy are those of the step before, or [`Policy::within_step`] is set.
///
/// # Errors
/// Errors of rewards and files, three steps in a row with numbers that are not finite, and [`crate::Error::Stopped`].
pub(super) fn learn(
    job: &RlJob,
    engine: &mut RolloutEngine,
    policy: &mut Policy,
    state: &mut RlState,
    run: &mut Run,
    session: &mut Session,
) -> Result<()> {
    let mut guard = Guard::default();
    while let Some(stage) = state.stage(job.config) {
        let start = Instant::now();
        let mut next = state.begin_step(stage);
        let stage = &stage.at(state.history.len());
        let mut metrics = Metrics::of_step(next.step);

        // 1. Sample a group of completions per problem, grade and score them; resample groups without spread if asked.
        let now = Now { stage, step: state.history.len(), memory: &state.memory, stop: session.stop() };
        let mut sampler = job.sampler(engine, policy, state);
        let drawn = (&job.prompts, job.config.train.prompts_per_step, &mut next.next_draw);
        let mut batch = job.rollouts.collect(&mut *sampler, drawn, now, &mut metrics, &mut session.sampling())?;
        job.announce(&mut *sampler, &next, stage)?;
        drop(sampler);
        job.rollouts.remember(&batch, stage, &mut next.memory, &mut metrics);
        // 2. Compute advantages from the rewards of each group.
        assign_advantages(&mut batch.groups, stage);
        // 3. Measure the completions, and the conflict of accuracy and length on their tokens.
        let mut figures = describe(&batch, stage, &mut metrics);
        next.sampled_tokens += batch.all().flat_map(|group| &group.rollouts).map(|r| r.length() as u64).sum::<u64>();
        metrics.set("sampled_tokens", next.sampled_tokens as f64);
        job.meter.step(next.step, policy.model(), &batch.groups, stage, &mut next.token_types, &mut metrics)?;
        figures.cancelled = metrics.get("conflict/cancellation");
        // 4. Update the policy.
        let skipped = job.update(stage, &batch.groups, policy, &mut next, &mut metrics)?;
        job.time(start, &batch, &mut metrics);
        diagnose(&batch.groups, next.step, &metrics, stage).into_iter().for_each(|line| session.observer.note(&line));
        // 5. End the step, and the stage if one of its exit rules holds.
        if let Some(exit) = next.end_step(job.config, figures) {
            session.observer.note(&format!("stage {} ends after step {}: {exit}", stage.name, next.step));
        }
        *state = next;
        job.log(&batch, (engine, policy), state, metrics, run, session)?;
        let sequences = batch.groups.iter().flat_map(Group::sequences);
        guard.check(skipped == 0, run.dir(), state.step, &job.rollouts.tokenizer, sequences)?;
        job.save(policy, state, run)?;
        session.stop().check()?;
    }
    Ok(())
}
