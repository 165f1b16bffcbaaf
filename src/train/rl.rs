//! Reinforcement learning with verifiable rewards, in stages.
//!
//! A step: sample groups, grade, score, advantages, update. Left out, on purpose: a value model.

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::checkpoint::Trained;
use super::conflict::ConflictMeter;
use super::describe::{DIAGNOSED_STEPS, describe, diagnose};
use super::guard::Guard;
use super::origin::dated;
use super::run::{Point, Run, RunSettings};
use super::schedule::StepFigures;
use super::score::{OwnRewards, Scored, Scoring, compare, differ, remember};
pub use super::settings::{ModelSource, RlConfig, RlTrain};
use super::stage::Stage;
use super::update::Update;
use super::{Session, open_model};
use crate::conflict::TokenTypes;
use crate::data::Problem;
use crate::data::problems::Problems;
use crate::error::{Error, Result};
use crate::eval::check_room;
use crate::files;
use crate::generate::{Completion, Request, Sampling, Watch, generate};
use crate::metrics::{Metrics, peak_rss_gb};
use crate::model::{self, CausalLm, ModelConfig, distinct_shapes};
use crate::objective::Parts;
use crate::objective::entropy::EntropyControl;
use crate::objective::rewards::RewardState;
use crate::optim::learning_rate;
use crate::reward::Reward;
use crate::tasks::Split;
use crate::text::tokenizer::Tokenizer;
use crate::{device, stop::Stop};

/// Where a run stands, beside weights and optimiser; all a resumed run needs, since noise and data are functions of seed
/// and step.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Stages that are over, each time it was gone through.
    stage: usize,
    /// Whether the controller, where there is one, enhances.
    enhancing: bool,
    /// The best windowed accuracy the controller has seen.
    best_accuracy: f64,
    /// Steps of the current stage since it began; of the last one when the run is over.
    history: Vec<StepFigures>,
    /// Problems taken so far.
    next_problem: u64,
    /// Stages so far.
    stages: Vec<StageRecord>,
    /// Seconds spent before this start.
    seconds: f64,
    /// Evaluation of the model at the start, as in the summary.
    base: Value,
    /// Updates skipped because of a value that was not finite.
    skipped_updates: usize,
    /// The current stage's entropy bonus.
    entropy_control: Option<EntropyControl>,
    /// What rewards remember of the steps so far.
    rewards: RewardState,
    /// Token types by entropy, of all steps so far.
    token_types: TokenTypes,
}

/// A stage that has begun.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct StageRecord {
    name: String,
    first_step: usize,
    last_step: Option<usize>,
    exit: Option<String>,
}

/// A problem with the tokens of its prompt.
type Asked = (Problem, Vec<u32>);

/// All that the steps of a run need and do not change.
struct Job<'a> {
    config: &'a RlConfig,
    tokenizer: Tokenizer,
    model_config: ModelConfig,
    problems: Problems,
    device: Device,
    stop: Stop<'a>,
}

/// What came out of a run.
#[derive(Debug)]
pub struct Finished {
    /// The run directory.
    pub dir: PathBuf,
    /// `summary.json`.
    pub summary: Value,
}

/// Trains and writes `runs/<name>/`: configuration, metrics, completions, checkpoints, the final model, summary.
///
/// # Errors
/// User mistakes in files and settings, a full disk, three updates in a row that are not finite, or
/// [`Error::Interrupted`].
pub fn run(config: &RlConfig, session: &mut Session) -> Result<Finished> {
    run_with(config, session, &[])
}

/// As [`run`], with rewards of one's own, which stages name by `{ type = "custom", name = "…" }`.
///
/// # Errors
/// As [`run`], and when a stage names a reward that is not among them.
pub fn run_with(config: &RlConfig, session: &mut Session, rewards: &[&dyn Reward]) -> Result<Finished> {
    let start = Instant::now();
    let resumed = session.start.resumes().then(|| config.common().dir());
    let config = &dated(config, resumed.as_deref())?;
    let device = device::parse(&config.device)?;
    config.optim.check(&device)?;
    let problems = config.data.open(Split::Train)?;
    let tokenizer = Tokenizer::load(&config.model.path)?;
    let (held_out, report) = config.data.held_out(config.eval.num_problems, &tokenizer)?;
    if report.overlong > 0 {
        session.observer.note(&format!("held-out problems: {report}"));
    }
    let mut own = OwnRewards::new(&config.reward, rewards, &config.stages)?;
    let (mut run, point) = Run::open(config, session, &device, held_out, || {
        let ModelSource { path, dtype } = &config.model;
        let opened = open_model(path, *dtype, config.lora.as_ref(), config.seed, &device.clone().autodiff())?;
        tokenizer.check_vocab(opened.0.vocab_size, path)?;
        Ok(opened)
    })?;
    let Point::<State> { step: first, config: model_config, mut model, mut optimizer, mut state } = point;
    let job = Job { config, tokenizer, model_config, problems, device, stop: session.stop() };

    if state.base.is_null() {
        session.observer.note(&job.first_prompt()?);
        let evaluation = run.evaluate(job.trained(&model), "base", session)?;
        let mut metrics = Metrics::of_step(0);
        metrics.extend("eval/", evaluation.metrics());
        run.log(&metrics)?;
        state.base = evaluation.summary();
    }
    if let Err(error) = run.catch_up(job.trained(&model), session) {
        return Err(run.ended(error, first, job.trained(&model), &optimizer, &state));
    }
    job.reopen(&mut state, first, session);
    if job.stage(&state, first).is_none()
        && let Some(summary) = run.finished(first)?
    {
        session.observer.note(&format!(
            "{}: finished after step {first}, nothing to do; raise max_steps of the last stage, or cycles, to go on",
            run.dir().display()
        ));
        return Ok(Finished { dir: run.dir().to_path_buf(), summary });
    }

    let meter = ConflictMeter::new(&config.train, &job.tokenizer);
    let reference = job.reference(&model, state.stage)?;
    let total = config.max_steps();
    session.observer.begin("train", total);
    let before = state.seconds;
    let mut guard = Guard::default();
    let mut step = first;
    while let Some(stage) = job.stage(&state, step) {
        let begun = state.clone();
        step += 1;
        let step_start = Instant::now();
        if state.history.is_empty() {
            let (name, first_step) = (stage.name.clone(), step);
            state.stages.push(StageRecord { name, first_step, last_step: None, exit: None });
        }
        let mut metrics = Metrics::of_step(step);
        metrics.set_text("stage", &stage.name);

        let stage = &stage.at(state.history.len());
        metrics.set("max_completion_length", stage.max_completion_length as f64);

        // 1. Sample groups, 2. grade and score them.
        let scoring = Scoring { stage, step: state.history.len(), state: &state.rewards };
        let scored = match job.collect(&model, scoring, step, &mut state.next_problem, &mut own, &mut metrics) {
            Ok(scored) => scored,
            Err(error) => return Err(run.ended(error, step - 1, job.trained(&model), &optimizer, &begun)),
        };
        remember(&mut state.rewards, &scored, stage, config.train.num_generations);
        state.rewards.describe(&stage.rewards, &mut metrics);
        let figures = describe(&scored, stage, config.train.num_generations, &mut metrics);
        meter.step(step, &model, &scored, stage, &mut state.token_types, &mut metrics)?;
        state.history.push(StepFigures { cancelled: metrics.get("conflict/cancellation"), ..figures });
        // 3. Update.
        let mut control = state.entropy_control.unwrap_or(EntropyControl::new(stage.entropy_coef));
        let lr = learning_rate(&config.optim, step, total) * stage.learning_rate_scale;
        metrics.set("learning_rate", lr);
        let update = Update { config, stage, step, lr, reference: reference.as_ref().filter(|_| stage.beta > 0.0) };
        let finite;
        (model, finite) = update.run(model, &mut optimizer, &scored, &mut control, &mut metrics);
        state.entropy_control = Some(control);
        state.skipped_updates += usize::from(!finite);
        metrics.set("skipped_updates", state.skipped_updates as f64);

        let seconds = step_start.elapsed().as_secs_f64();
        metrics.set("timing_s/step", seconds);
        let tokens: usize = scored.iter().map(|scored| scored.sequence.tokens.len()).sum();
        metrics.set("perf/throughput", tokens as f64 / seconds);
        metrics.set("perf/distinct_shapes", distinct_shapes() as f64);
        let log_every = config.train.log_completions_steps;
        if log_every > 0 && (step == 1 || step % log_every == 0) {
            job.write_completions(run.dir(), step, &scored)?;
        }

        if step <= DIAGNOSED_STEPS {
            diagnose(&scored, &metrics, stage).into_iter().for_each(|line| session.observer.note(&line));
        }

        // 4. Is the stage over?
        if let Some(exit) = job.end_stage(&mut state, step) {
            session.observer.note(&format!("stage {} ends after step {step}: {exit}", stage.name));
        }
        let over = job.stage(&state, step).is_none();
        state.seconds = before + start.elapsed().as_secs_f64();
        let eval_every = config.train.eval_steps;
        if !over && eval_every > 0 && step % eval_every == 0 {
            if let Err(error) = run.log_evaluated(job.trained(&model), &mut metrics, session) {
                return Err(run.ended(error, step, job.trained(&model), &optimizer, &state));
            }
            session.observer.begin("train", total);
        } else {
            run.log(&metrics)?;
        }
        session.observer.advance(step, Some(&metrics));
        guard.check(finite, run.dir(), step, &job.tokenizer, scored.iter().map(|scored| &scored.sequence))?;

        state.seconds = before + start.elapsed().as_secs_f64();
        let stop = session.stop().requested();
        let due = config.train.save_steps > 0 && step % config.train.save_steps == 0;
        if due || over || stop {
            meter.write_types(run.dir(), &state.token_types)?;
            let checkpoint = run.save(step, job.trained(&model), &optimizer, &state)?;
            if stop && !over {
                return Err(Error::Interrupted { checkpoint });
            }
        }
    }
    let seconds = before + start.elapsed().as_secs_f64();
    let finished = job.finish(&mut run, &model, step, &state, seconds, session);
    finished.map_err(|error| run.ended(error, step, job.trained(&model), &optimizer, &state))
}

impl Job<'_> {
    /// The model at the start of the run, when a stage that is still to come holds the policy close to it: below adapters
    /// it is there already.
    fn reference(&self, model: &CausalLm, stage: usize) -> Result<Option<CausalLm>> {
        let RlConfig { stages, cycles, controller, .. } = self.config;
        let mut to_come = (0..stages.len() * cycles).skip(if controller.is_some() { 0 } else { stage });
        if to_come.all(|stage| stages[stage % stages.len()].beta == 0.0) {
            return Ok(None);
        }
        if self.config.lora.is_some() {
            return Ok(Some(model::lora::detach(model)));
        }
        let ModelSource { path, dtype } = &self.config.model;
        Ok(Some(model::load_as(path, &self.device, *dtype)?.1))
    }

    /// The stage of the step after `step`; none when the run is over.
    fn stage(&self, state: &State, step: usize) -> Option<&Stage> {
        let stages = &self.config.stages;
        match &self.config.controller {
            Some(controller) if step >= controller.max_steps => None,
            Some(controller) => Some(&stages[controller.stage(stages, !state.enhancing)]),
            None => (state.stage < stages.len() * self.config.cycles).then(|| &stages[state.stage % stages.len()]),
        }
    }

    /// Why the stage is over after `step`, if it is.
    fn exit(&self, state: &mut State, step: usize) -> Option<String> {
        let Some(controller) = &self.config.controller else {
            let stages = &self.config.stages;
            return stages[state.stage % stages.len()].exit(&state.history).map(str::to_string);
        };
        if step >= controller.max_steps {
            return Some("steps".to_string());
        }
        let reason = controller.switch(!state.enhancing, &state.history, state.best_accuracy);
        let accuracy = controller.accuracy(&state.history).unwrap_or(0.0);
        state.best_accuracy = state.best_accuracy.max(accuracy);
        reason
    }

    /// Ends the stage if it is over after `step`, and says why it is. The last stage's steps stay in the state, so that
    /// the run can be extended.
    fn end_stage(&self, state: &mut State, step: usize) -> Option<String> {
        let exit = self.exit(state, step)?;
        if let Some(record) = state.stages.last_mut() {
            (record.last_step, record.exit) = (Some(step), Some(exit.clone()));
        }
        state.stage += 1;
        if self.stage(state, step).is_some() {
            state.enhancing = !state.enhancing;
            state.history.clear();
            state.entropy_control = None;
        }
        Some(exit)
    }

    /// Looks again, by the settings of now, whether the stage that a resumed run was in after `step` is over.
    fn reopen(&self, state: &mut State, step: usize, session: &mut Session) {
        let Some(record) = state.stages.last_mut().filter(|_| !state.history.is_empty()) else { return };
        let was_over = record.last_step.take().is_some();
        record.exit = None;
        state.stage -= usize::from(was_over);
        self.end_stage(state, step);
        if was_over && self.stage(state, step).is_some() {
            let total = self.config.max_steps();
            session
                .observer
                .note(&format!("the run was over after step {step}; it is extended to {total} steps at most"));
        }
    }

    /// What the model is first shown, so that a missing or wrong chat template is seen.
    fn first_prompt(&self) -> Result<String> {
        let problem = self.problems.shuffled(self.config.seed, 0);
        Ok(format!("first prompt: {:?}", self.tokenizer.render_prompt(&problem.prompt)?))
    }

    /// Samples groups and scores them; where the stage says so, goes on until enough have rewards that differ.
    fn collect(
        &self,
        model: &CausalLm,
        scoring: Scoring,
        step: usize,
        next_problem: &mut u64,
        own: &mut OwnRewards,
        metrics: &mut Metrics,
    ) -> Result<Vec<Scored>> {
        let (train, stage) = (&self.config.train, scoring.stage);
        let group = train.num_generations;
        let most = stage.max_num_gen_batches.max(1);
        let (mut kept, mut flat): (Vec<Scored>, Vec<Scored>) = (Vec::new(), Vec::new());
        let (mut sampling_s, mut reward_s, mut batches, mut overlong) = (0.0, 0.0, 0, 0);
        while batches < most && kept.len() < train.prompts_per_step * group {
            batches += 1;
            let start = Instant::now();
            let wanted = train.prompts_per_step - kept.len() / group;
            let (problems, left_out) = self.step_problems(next_problem, wanted)?;
            overlong += left_out;
            let groups = self.sample(model, stage, step, &problems)?;
            sampling_s += start.elapsed().as_secs_f64();
            let start = Instant::now();
            let scored = own.score(&problems, groups, scoring, &self.tokenizer, metrics)?;
            reward_s += start.elapsed().as_secs_f64();
            if most == 1 {
                kept = scored;
                break;
            }
            let mut scored = scored.into_iter();
            for _ in &problems {
                let of_problem: Vec<Scored> = scored.by_ref().take(group).collect();
                if differ(&of_problem, stage) { &mut kept } else { &mut flat }.extend(of_problem);
            }
        }
        if most > 1 {
            metrics.set("sampling/num_gen_batches", batches as f64);
            metrics.set("sampling/replaced_problems", (flat.len() / group) as f64);
            metrics.set("sampling/missing_problems", (train.prompts_per_step - kept.len() / group) as f64);
        }
        if kept.is_empty() {
            // Nothing to learn from: the step still says what was seen.
            kept = flat;
            kept.truncate(train.prompts_per_step * group);
        }
        metrics.set("data/overlong_prompts", overlong as f64);
        metrics.set("timing_s/gen", sampling_s);
        metrics.set("timing_s/reward", reward_s);
        compare(&mut kept, stage, group);
        Ok(kept)
    }

    /// One group of completions for each problem.
    fn sample(&self, model: &CausalLm, stage: &Stage, step: usize, problems: &[Asked]) -> Result<Vec<Vec<Completion>>> {
        let train = &self.config.train;
        let sampling = Sampling {
            distribution: stage.distribution(),
            max_completion_length: stage.max_completion_length,
            stop: self.tokenizer.stop_ids().to_vec(),
            rows: train.generation_rows,
            cache_tokens: train.generation_cache_tokens,
            tokens_per_read: train.generation_tokens_per_read,
        };
        let request = |(problem, prompt): &Asked, sample: usize| Request {
            prompt: prompt.clone(),
            key: [self.config.seed, step as u64, problem.id, sample as u64],
        };
        let requests: Vec<Request> = (problems.iter())
            .flat_map(|problem| (0..train.num_generations).map(move |sample| request(problem, sample)))
            .collect();
        let mut completions =
            generate(model, &self.model_config, &requests, &sampling, |_, _| Watch::until(self.stop))?.into_iter();
        self.stop.check()?;
        Ok(problems.iter().map(|_| completions.by_ref().take(train.num_generations).collect()).collect())
    }

    /// The next `count` problems with their prompts, and how many were left out for being too long.
    fn step_problems(&self, next: &mut u64, count: usize) -> Result<(Vec<Asked>, usize)> {
        let data = &self.config.data;
        let mut found = Vec::with_capacity(count);
        for _ in 0..count {
            let problem = self.problems.shuffled(self.config.seed, *next);
            *next += 1;
            let prompt = self.tokenizer.encode_prompt(&problem.prompt)?;
            if !data.reads(prompt.len(), &problem)? {
                continue;
            }
            check_room(&prompt, &self.model_config, &problem)?;
            found.push((problem, prompt));
        }
        if found.is_empty() {
            return Err(Error::Invalid(format!(
                "all of {count} prompts in a row are longer than data.max_prompt_length = {}: raise it",
                data.max_prompt_length
            )));
        }
        let overlong = count - found.len();
        Ok((found, overlong))
    }

    fn trained<'a>(&'a self, model: &'a CausalLm) -> Trained<'a> {
        let adapter = self.config.common().adapter();
        Trained { config: &self.model_config, model, adapter, tokenizer: &self.tokenizer }
    }

    /// The first completions of a step, with rewards and advantages.
    fn write_completions(&self, dir: &Path, step: usize, scored: &[Scored]) -> Result<()> {
        let rows = scored.iter().take(2 * self.config.train.num_generations).map(|scored| {
            json!({
                "step": step,
                "prompt": self.tokenizer.decode(&scored.sequence.tokens[..scored.sequence.prompt], false),
                "completion": self.tokenizer.decode(&scored.completion.tokens, false),
                "verdict": scored.verdict,
                "length": scored.completion.tokens.len(),
                "rewards": scored.rewards.iter().map(|reward| reward.map(Parts::total)).collect::<Vec<_>>(),
                "advantage": scored.advantage,
            })
        });
        files::write_json_lines(&dir.join(format!("completions/step_{step:05}.jsonl")), rows)
    }

    fn finish(
        &self,
        run: &mut Run,
        model: &CausalLm,
        step: usize,
        state: &State,
        seconds: f64,
        session: &mut Session,
    ) -> Result<Finished> {
        let start = Instant::now();
        let evaluation = run.evaluate(self.trained(model), "final", session)?;
        let mut metrics = Metrics::of_step(step);
        metrics.extend("eval/", evaluation.metrics());
        run.log(&metrics)?;
        let last = evaluation.summary();
        let (base, figures) = (&state.base, evaluation.overall());
        let number = |path: &str| base.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let families: serde_json::Map<String, Value> = evaluation
            .families()
            .iter()
            .map(|(name, f)| {
                let row = json!({ "floor": f.floor, "base": base["families"][name], "final": last["families"][name] });
                (name.clone(), row)
            })
            .collect();
        let summary = json!({
            "name": self.config.name,
            "seed": self.config.seed,
            "model": self.config.model.path,
            "device": self.config.device,
            "steps": step,
            "seconds": (seconds + start.elapsed().as_secs_f64()).round(),
            "peak_rss_gb": peak_rss_gb(),
            "base": base["overall"],
            "final": last["overall"],
            "verdicts": { "base": base["verdicts"], "final": last["verdicts"] },
            "length_ratio": figures.mean_length / number("/overall/mean_length"),
            "accuracy_delta": figures.accuracy - number("/overall/accuracy"),
            "families": families,
            "stages": state.stages,
            "skipped_updates": state.skipped_updates,
            "reconstruction": "compress: arXiv 2511.14258 as a third-party summary gives it; enhance: a reconstruction, \
                               the paper's formulae for it are not known to us",
        });
        run.finish(step, self.trained(model), &summary)?;
        Ok(Finished { dir: run.dir().to_path_buf(), summary })
    }
}
