//! A reinforcement-learning run, from its settings to its summary.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Device;
use serde_json::Value;

use super::checkpoint::TrainedModel;
use super::conflict::ConflictMeter;
use super::engine::RolloutEngine;
use super::folder::METRICS;
use super::origin::{digests_of_given, settled};
use super::policy::Policy;
use super::rl::learn;
use super::run::{Run, RunSettings, StartPoint};
use super::settings::{ModelSource, RlConfig};
use super::state::RlState;
use super::team::Team;
use super::update::{UpdateSettings, examples};
use super::{Session, open_model};
use crate::data::Problem;
use crate::data::problems::Problems;
use crate::device;
use crate::error::Result;
use crate::generate::{Room, Sampling};
use crate::metrics::{Metrics, keep_final_evaluation};
use crate::model::{self, CausalLm, ModelConfig, distinct_shapes, names};
use crate::objective::entropy::EntropyControl;
use crate::optim::learning_rate;
use crate::reward::{Reward, Rewards};
use crate::rollout::{Batch, Group, Prompts, Rollouts, Sampler};
use crate::stage::Stage;
use crate::stop::Stop;
use crate::tasks::Split;
use crate::text::tokenizer::Tokenizer;

/// A reinforcement-learning run: its settings, and rewards and problems that a program may add.
///
/// ```no_run
/// use std::sync::atomic::AtomicBool;
/// use tempering::config::load;
/// use tempering::train::{RlConfig, Session, Start, Trainer};
///
/// # fn main() -> tempering::Result<()> {
/// let config: RlConfig = load(None, &["name=mine".to_string()])?;
/// let stop = AtomicBool::new(false);
/// let mut session = Session { observer: &mut (), stop: &stop, start: Start::New };
/// let finished = Trainer::new(&config).run(&mut session)?;
/// println!("{}", finished.dir.display());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Trainer<'a> {
    config: &'a RlConfig,
    rewards: Vec<Arc<dyn Reward>>,
    problems: Option<Vec<Problem>>,
    held_out: Option<Vec<Problem>>,
    team: Option<&'a Team<'a>>,
}

/// The result of a run.
#[derive(Debug)]
#[non_exhaustive]
pub struct Finished {
    /// The run's folder.
    pub dir: PathBuf,
    /// `summary.json`.
    pub summary: Value,
}

impl<'a> Trainer<'a> {
    /// Create a run from settings alone.
    pub fn new(config: &'a RlConfig) -> Self {
        Self { config, rewards: Vec::new(), problems: None, held_out: None, team: None }
    }

    /// Add a reward, which stages refer to by `{ type = "custom", name = "…" }`.
    #[must_use]
    pub fn reward(mut self, reward: impl Reward + 'static) -> Self {
        self.rewards.push(Arc::new(reward));
        self
    }

    /// Train on these problems instead of `data.train`. A resumed run must be given the same problems.
    #[must_use]
    pub fn problems(mut self, problems: Vec<Problem>) -> Self {
        self.problems = Some(problems);
        self
    }

    /// Evaluate on these problems instead of `data.eval`.
    #[must_use]
    pub fn held_out(mut self, problems: Vec<Problem>) -> Self {
        self.held_out = Some(problems);
        self
    }

    /// Train on all ranks of a team.
    #[must_use]
    pub fn team(mut self, team: &'a Team<'a>) -> Self {
        self.team = (team.size() > 1).then_some(team);
        self
    }

    /// Train and write `runs/<name>/`: settings, metrics, completions, checkpoints, the final model, the summary.
    ///
    /// # Errors
    /// User mistakes in files and settings; a full disk; three steps in a row that are not finite; a custom reward that
    /// was not added; [`crate::Error::Interrupted`].
    pub fn run(self, session: &mut Session) -> Result<Finished> {
        let start = Instant::now();
        let resumed = session.start.resumes().then(|| self.config.common().dir());
        let config = &settled(self.config, resumed.as_deref())?;
        if let Some(team) = self.team {
            team.describe(config)?.iter().for_each(|line| session.observer.note(line));
        }
        let device = device::parse(&config.device)?;
        config.optim.check(&device)?;
        config.rollout.own().and_then(|own| own.dtype).map_or(Ok(()), |dtype| dtype.check(&device))?;
        let tokenizer = Tokenizer::load(&config.model.path)?.with_prompt(&config.prompt)?;
        tokenizer.notes().iter().for_each(|note| session.observer.note(note));
        // With the date that the prompts have, if the chat template reads one.
        let config = &RlConfig { prompt: tokenizer.prompt().clone(), ..config.clone() };
        let given = [("problems", self.problems.as_deref()), ("held-out problems", self.held_out.as_deref())];
        let given = digests_of_given(given);
        let problems = self.problems.map_or_else(|| config.data.open(Split::Train), |rows| Ok(Problems::Rows(rows)))?;
        let trial = problems.get(0);
        let (prompts, report) = Prompts::open(problems, &config.data, &tokenizer, room(config)?, config.seed)?;
        let (held_out, held_out_report) = match self.held_out {
            Some(problems) => {
                config.data.short_enough(problems, &config.data.eval, &tokenizer, usize::MAX, |_, _| Ok(()))?
            }
            None => config.data.held_out(config.eval.num_problems, &tokenizer)?,
        };
        for (what, report) in [("training problems", report), ("held-out problems", held_out_report)] {
            if report.overlong > 0 {
                session.observer.note(&format!("{what}: {report}"));
            }
        }
        let kinds = config.stages.iter().map(|stage| stage.rewards.as_slice());
        let rewards = Rewards::open(kinds, &config.reward, &self.rewards, &trial)?;
        let stop = session.stop();
        let model_config = model::config_of(&config.model.path)?;
        let mut engine = RolloutEngine::open(config, &model_config, stop, &mut |line| session.observer.note(line))?;
        let (mut run, point) = Run::open(config, session, &device, (held_out, given), || {
            let ModelSource { path, dtype } = &config.model;
            let opened = open_model(path, *dtype, config.lora.as_ref(), config.seed, &device.clone().autodiff())?;
            tokenizer.check_vocab(opened.0.vocab_size, path)?;
            Ok(opened)
        })?;
        let StartPoint::<RlState> { step, config: model_config, model, optimizer, mut state } = point;
        state.step = step;
        let mut policy = Policy::new(model_config, model, optimizer).on(self.team);
        if let Some(team) = self.team {
            let shared = (&policy.config, policy.model(), &policy.optimizer);
            team.share(shared, (config.model.dtype, config.lora.as_ref()), &config.optim, &config.device)?;
        }
        let mut job = RlJob {
            config,
            prompts,
            meter: ConflictMeter::new(&config.train, &tokenizer, session.stop()),
            rollouts: Rollouts {
                engine: Sampling {
                    stop: tokenizer.stop_ids().to_vec(),
                    rows: config.train.generation_rows,
                    cache_tokens: config.train.generation_cache_tokens,
                    tokens_per_read: config.train.generation_tokens_per_read,
                    precision: config.rollout.own().and_then(|own| own.dtype),
                    ..Sampling::default()
                },
                tokenizer,
                rewards,
                num_generations: config.train.num_generations,
                seed: config.seed,
            },
            reference: None,
            stop: session.stop(),
            start,
            before: state.seconds,
        };
        let ended = job.whole(&mut engine, &mut policy, &mut state, &mut run, &device, session);
        engine.close();
        ended.map_err(|error| {
            if policy.within_step {
                return run.ended_within_step(&error);
            }
            run.ended(error, state.step, job.trained(&policy), &policy.optimizer, &state)
        })
    }
}

/// The parts of a run that its steps use and do not change.
pub(super) struct RlJob<'a> {
    pub(super) config: &'a RlConfig,
    pub(super) prompts: Prompts,
    pub(super) rollouts: Rollouts,
    pub(super) meter: ConflictMeter<'a>,
    /// The initial model, if a stage that is not finished has a divergence term (`loss.kl`).
    reference: Option<CausalLm>,
    stop: Stop<'a>,
    start: Instant,
    /// Seconds spent before the run was resumed.
    before: f64,
}

impl RlJob<'_> {
    /// Do the whole run, from the evaluation of the base model to the summary.
    fn whole(
        &mut self,
        engine: &mut RolloutEngine,
        policy: &mut Policy,
        state: &mut RlState,
        run: &mut Run,
        device: &Device,
        session: &mut Session,
    ) -> Result<Finished> {
        if state.base.is_null() {
            state.base = self.evaluate_base(engine, policy, state, run, session)?;
        }
        run.catch_up(self.trained(policy), &mut *self.sampler(engine, policy, state), session)?;
        let total = self.config.max_steps();
        if state.reopen(self.config) {
            let (step, every) = (state.step, self.config.train.eval_steps);
            if every > 0 && step.is_multiple_of(every) {
                keep_final_evaluation(&run.dir().join(METRICS), step)?;
            }
            session
                .observer
                .note(&format!("the run had finished after step {step}; it is extended to at most {total} steps"));
        }
        if state.stage(self.config).is_none()
            && let Some(summary) = run.finished(state.step)?
        {
            session.observer.note(&format!(
                "{}: finished after step {}, nothing to do; raise max_steps of the last stage, or cycles, to continue",
                run.dir().display(),
                state.step
            ));
            return Ok(Finished { dir: run.dir().to_path_buf(), summary });
        }
        self.reference = self.reference(policy.model(), state.stage, device)?;
        if let (Some(reference), Some(team)) = (&self.reference, policy.team) {
            team.share_reference(reference, self.config.lora.is_some())?;
        }
        session.observer.begin("train", total);
        session.observer.resume(state.step);
        learn(self, engine, policy, state, run, session)?;
        self.finish(engine, policy, state, run, session)
    }

    fn evaluate_base(
        &self,
        engine: &mut RolloutEngine,
        policy: &Policy,
        state: &RlState,
        run: &mut Run,
        session: &mut Session,
    ) -> Result<Value> {
        let first = self.prompts.draw(0)?;
        let shown = self.rollouts.tokenizer.render_prompt(&first.problem.prompt)?;
        session.observer.note(&format!("first prompt: {shown:?}"));
        let parameters = names(policy.model()).values().map(|shape| shape.iter().product::<usize>()).sum();
        let remarks = [self.config.learning_rate_remark(parameters), self.config.precision_remark(&policy.device())];
        remarks.into_iter().flatten().for_each(|remark| session.observer.note(&remark));
        let mut sampler = self.sampler(engine, policy, state);
        let evaluation = run.evaluate(self.trained(policy), &mut *sampler, "base", session)?;
        drop(sampler);
        let records = evaluation.groups.iter().flat_map(|group| &group.records);
        let lengths: Vec<usize> = records.map(|record| record.sample.length).collect();
        self.config.length_clip_remark(&lengths).into_iter().for_each(|remark| session.observer.note(&remark));
        let mut metrics = Metrics::of_step(0);
        metrics.extend("eval/", evaluation.metrics());
        run.log(&metrics)?;
        Ok(evaluation.summary())
    }

    /// Return the initial model if a stage from number `stage` on needs it. With adapters it is the base model, which
    /// is already loaded.
    fn reference(&self, model: &CausalLm, stage: usize, device: &Device) -> Result<Option<CausalLm>> {
        let RlConfig { stages, cycles, controller, .. } = self.config;
        let mut to_come = (0..stages.len() * cycles).skip(if controller.is_some() { 0 } else { stage });
        if to_come.all(|stage| stages[stage % stages.len()].loss.kl.is_none()) {
            return Ok(None);
        }
        if self.config.lora.is_some() {
            return Ok(Some(model::lora::detach(model)));
        }
        let ModelSource { path, dtype } = &self.config.model;
        Ok(Some(model::load_as(path, device, *dtype)?.1))
    }

    fn trained<'b>(&'b self, policy: &'b Policy) -> TrainedModel<'b> {
        let adapter = self.config.common().adapter();
        TrainedModel {
            config: &policy.config,
            model: policy.model(),
            adapter,
            tokenizer: &self.rollouts.tokenizer,
            team: policy.team,
        }
    }

    /// Return the sampler of the policy after the steps of `state`.
    pub(super) fn sampler<'b>(
        &'b self,
        engine: &'b mut RolloutEngine,
        policy: &'b Policy,
        state: &RlState,
    ) -> Box<dyn Sampler + 'b> {
        engine.sampler(self.trained(policy), (state.step, self.config.train.tokens_per_microbatch), self.stop)
    }

    /// Announce the requests of the step after `next` to the sampler, if there is one.
    pub(super) fn announce(&self, sampler: &mut dyn Sampler, next: &RlState, stage: &Stage) -> Result<()> {
        if !sampler.looks_ahead() || next.step == self.config.max_steps() {
            return Ok(());
        }
        let wanted = self.config.train.prompts_per_step as u64;
        let asked =
            (next.next_draw..next.next_draw + wanted).map(|draw| self.prompts.draw(draw)).collect::<Result<_>>()?;
        self.rollouts.announce(sampler, asked, stage);
        Ok(())
    }

    /// Update the policy on the groups of a step. Return the number of skipped updates.
    pub(super) fn update(
        &self,
        stage: &Stage,
        groups: &[Group],
        policy: &mut Policy,
        next: &mut RlState,
        metrics: &mut Metrics,
    ) -> Result<usize> {
        let mut control = next.entropy_control.unwrap_or(EntropyControl::new(stage.entropy_coef()));
        let lr = learning_rate(&self.config.optim, next.step, self.config.max_steps()) * stage.learning_rate_scale;
        metrics.set("learning_rate", lr);
        let reference = self.reference.as_ref().filter(|_| stage.loss.kl.is_some());
        let update = UpdateSettings { config: self.config, stage, step: next.step, lr, reference, stop: self.stop };
        let skipped = update.run(policy, &examples(groups, stage), &mut control, metrics)?;
        next.entropy_control = Some(control);
        next.skipped_updates += skipped;
        metrics.set("skipped_updates", next.skipped_updates as f64);
        Ok(skipped)
    }

    /// Write the speed of a step that began at `start`.
    pub(super) fn time(&self, start: Instant, batch: &Batch, metrics: &mut Metrics) {
        let seconds = start.elapsed().as_secs_f64();
        metrics.set("timing_s/step", seconds);
        let tokens = |of: fn(&Group) -> usize| batch.groups.iter().map(of).sum::<usize>() as f64;
        let sampled = tokens(|group| group.rollouts.iter().map(|rollout| rollout.length()).sum());
        let prompts = tokens(|group| group.rollouts.len() * group.prompt.len());
        metrics.set("perf/throughput", (prompts + sampled) / seconds);
        metrics.set("perf/sampling_throughput", sampled / metrics.get("timing_s/gen").unwrap_or(f64::INFINITY));
        metrics.set("perf/distinct_shapes", distinct_shapes() as f64);
    }

    /// Log a finished step, evaluate if that is due, and write some completions.
    pub(super) fn log(
        &self,
        batch: &Batch,
        (engine, policy): (&mut RolloutEngine, &Policy),
        state: &mut RlState,
        mut metrics: Metrics,
        run: &mut Run,
        session: &mut Session,
    ) -> Result<()> {
        let due = |every: usize| every > 0 && state.step.is_multiple_of(every);
        let train = &self.config.train;
        let shown = due(train.log_completions_steps) || (train.log_completions_steps > 0 && state.step == 1);
        if shown {
            self.write_completions(run.dir(), state.step, &batch.groups)?;
        }
        state.seconds = self.seconds();
        if due(train.eval_steps) && state.stage(self.config).is_some() {
            let mut sampler = self.sampler(engine, policy, state);
            run.log_evaluated(self.trained(policy), &mut *sampler, &mut metrics, session)?;
            session.observer.begin("train", self.config.max_steps());
            session.observer.resume(state.step);
        } else {
            run.log(&metrics)?;
        }
        run.show(state.step, || self.sample(&batch.groups, shown))?;
        session.observer.advance(state.step, Some(&metrics));
        Ok(())
    }

    /// Save a checkpoint if that is due.
    pub(super) fn save(&self, policy: &Policy, state: &mut RlState, run: &mut Run) -> Result<()> {
        let every = self.config.train.save_steps;
        if every > 0 && state.step.is_multiple_of(every) || state.stage(self.config).is_none() {
            state.seconds = self.seconds();
            if let Some(team) = policy.team {
                team.compare(policy.model(), &format!("after step {}", state.step))?;
            }
            self.meter.write_types(run.dir(), &state.token_types)?;
            run.save(state.step, self.trained(policy), &policy.optimizer, state)?;
        }
        Ok(())
    }

    /// Return the seconds spent on the run so far.
    pub(super) fn seconds(&self) -> f64 {
        self.before + self.start.elapsed().as_secs_f64()
    }

    fn finish(
        &self,
        engine: &mut RolloutEngine,
        policy: &Policy,
        state: &RlState,
        run: &mut Run,
        session: &mut Session,
    ) -> Result<Finished> {
        let mut sampler = self.sampler(engine, policy, state);
        let evaluation = run.evaluate(self.trained(policy), &mut *sampler, "final", session)?;
        drop(sampler);
        let mut metrics = Metrics::of_step(state.step);
        metrics.extend("eval/", evaluation.metrics());
        run.log(&metrics)?;
        let summary = self.summary(state, &evaluation);
        run.finish(state.step, self.trained(policy), &summary)?;
        Ok(Finished { dir: run.dir().to_path_buf(), summary })
    }
}

/// Return the room that the prompts of a run must leave for completions.
fn room(config: &RlConfig) -> Result<Room<'static>> {
    let longest = config.stages.iter().flat_map(|stage| stage.sampling.clips()).max().unwrap_or(0);
    let ModelConfig { max_position_embeddings, .. } = model::config_of(&config.model.path)?;
    Ok(Room {
        max_position_embeddings,
        max_completion_length: longest,
        setting: "the stages' largest max_completion_length",
    })
}
