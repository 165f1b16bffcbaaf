//! Reinforcement learning with verifiable rewards, in stages.
//!
//! A step: sample groups, grade, score, advantages, update. Left out, on purpose: a value model.

use std::path::PathBuf;
use std::time::Instant;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::checkpoint::Trained;
use super::conflict::ConflictMeter;
use super::describe::{DIAGNOSED_STEPS, describe, diagnose};
use super::guard::Guard;
use super::score::{OwnRewards, Scored, Scoring, compare, remember};
pub use super::settings::{ModelSource, RlConfig, RlTrain};
use super::stage::StepFigures;
use super::update::Update;
use super::{Session, checkpoint, open_model, open_run};
use crate::config::to_toml;
use crate::conflict::TokenTypes;
use crate::data::Problem;
use crate::error::{Error, Result};
use crate::eval::{Evaluation, Subject, check_room, evaluate, record};
use crate::files;
use crate::generate::{Completion, Request, Sampling, Watch, generate};
use crate::metrics::{Metrics, MetricsLog};
use crate::model::{self, CausalLm, ModelConfig, distinct_shapes};
use crate::objective::Parts;
use crate::objective::entropy::EntropyControl;
use crate::objective::rewards::RewardState;
use crate::optim::{AdamW, learning_rate};
use crate::problems::Problems;
use crate::report;
use crate::reward::Reward;
use crate::tasks::Split;
use crate::text::tokenizer::Tokenizer;

/// Where a run stands, beside weights and optimiser; all a resumed run needs, since noise and data are functions of seed
/// and step.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    /// Current stage; one past the last when the run is over.
    stage: usize,
    /// Steps of the current stage.
    history: Vec<StepFigures>,
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

/// A run in progress.
struct Run<'a> {
    config: &'a RlConfig,
    tokenizer: Tokenizer,
    model_config: ModelConfig,
    problems: Problems,
    held_out: Vec<Problem>,
    dir: PathBuf,
}

/// What came out of a run.
#[derive(Debug)]
pub struct Finished {
    /// The run directory.
    pub dir: PathBuf,
    /// The report.
    pub report: PathBuf,
    /// `summary.json`.
    pub summary: Value,
}

/// Trains and writes `runs/<name>/`: configuration, metrics, completions, checkpoints, the final model, summary, report.
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
    config.optim.check(&session.device)?;
    let problems = config.data.open(Split::Train)?;
    let tokenizer = Tokenizer::load(&config.model.path)?;
    let (held_out, report) = config.data.held_out(config.eval.num_problems, &tokenizer)?;
    if report.overlong > 0 {
        session.observer.note(&format!("held-out problems: {report}"));
    }
    let mut own = OwnRewards::new(&config.reward, rewards, &config.stages)?;
    let dir = open_run(&config.output_dir.join(&config.name), session.resume)?;
    let loaded = if session.resume {
        checkpoint::load_newest::<State>(&dir, &session.device, config.model.dtype, config.lora.as_ref())?
    } else {
        None
    };
    let (first, model_config, mut model, mut optimizer, mut state) = match loaded {
        Some(l) => (l.step, l.config, l.model, l.optimizer, l.state),
        None => {
            let ModelSource { path, dtype } = &config.model;
            let device = session.device.clone().autodiff();
            let (model_config, model) = open_model(path, *dtype, config.lora.as_ref(), config.seed, &device)?;
            (0, model_config, model, AdamW::default(), State::default())
        }
    };
    tokenizer.check_vocab(model_config.vocab_size, &config.model.path)?;
    files::write(&dir.join("config.toml"), to_toml(config).as_bytes())?;
    files::create_dir(&dir.join("completions"))?;
    let resumed = session.resume.then_some(first).filter(|_| !state.base.is_null());
    let mut log = MetricsLog::open(&dir.join("metrics.jsonl"), resumed)?;
    let run = Run { config, tokenizer, model_config, problems, held_out, dir };

    if state.base.is_null() {
        session.observer.note(&run.first_prompt()?);
        let evaluation = run.evaluate(&model, "base", session)?;
        let mut metrics = Metrics::of_step(0);
        metrics.extend("eval/", evaluation.metrics());
        log.append(&metrics)?;
        state.base = evaluation.summary();
    }

    let meter = ConflictMeter::new(&config.train, &run.tokenizer);
    let reference = run.reference(&session.device, state.stage)?;
    let total = config.max_steps();
    session.observer.begin("train", total);
    let before = state.seconds;
    let mut guard = Guard::default();
    let mut step = first;
    while let Some(stage) = config.stages.get(state.stage) {
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
        let scored = run.collect(&model, scoring, step, &mut own, &mut metrics)?;
        remember(&mut state.rewards, &scored, stage, config.train.num_generations);
        state.rewards.describe(&stage.rewards, &mut metrics);
        state.history.push(describe(&scored, stage, config.train.num_generations, &mut metrics));
        meter.step(step, &model, &scored, stage, &mut state.token_types, &mut metrics)?;
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
            run.write_completions(step, &scored)?;
        }

        if step <= DIAGNOSED_STEPS {
            diagnose(&scored, &metrics, stage).into_iter().for_each(|line| session.observer.note(&line));
        }

        // 4. Is the stage over?
        if let Some(exit) = stage.exit(&state.history) {
            if let Some(record) = state.stages.last_mut() {
                (record.last_step, record.exit) = (Some(step), Some(exit.to_string()));
            }
            session.observer.note(&format!("stage {} ends after step {step}: {exit}", stage.name));
            state.stage += 1;
            state.history.clear();
            state.entropy_control = None;
        }
        let over = state.stage == config.stages.len();
        let eval_every = config.train.eval_steps;
        if !over && eval_every > 0 && step % eval_every == 0 {
            let evaluation = run.evaluate(&model, "during", session)?;
            metrics.extend("eval/", evaluation.metrics());
            session.observer.note(&format!("step {step}: held-out {}", evaluation.line()));
            session.observer.begin("train", total);
        }
        log.append(&metrics)?;
        session.observer.advance(step, Some(&metrics));
        guard.check(finite, &run.dir, step, &run.tokenizer, scored.iter().map(|scored| &scored.sequence))?;

        state.seconds = before + start.elapsed().as_secs_f64();
        let stop = session.should_stop();
        let due = config.train.save_steps > 0 && step % config.train.save_steps == 0;
        if due || over || stop {
            let saved = Trained { config: &run.model_config, model: &model, adapter: config.adapter() };
            let keep = config.train.save_total_limit;
            meter.write_types(&run.dir, &state.token_types)?;
            let checkpoint = checkpoint::save(&run.dir, step, saved, &run.tokenizer, &optimizer, &state, keep)?;
            if stop && !over {
                return Err(Error::Interrupted { checkpoint });
            }
        }
    }
    run.finish(&model, step, &state, before + start.elapsed().as_secs_f64(), &mut log, session)
}

impl Run<'_> {
    /// The model at the start of the run, when a stage that is still to come holds the policy close to it.
    fn reference(&self, device: &Device, stage: usize) -> Result<Option<CausalLm>> {
        if self.config.stages[stage.min(self.config.stages.len())..].iter().all(|stage| stage.beta == 0.0) {
            return Ok(None);
        }
        let ModelSource { path, dtype } = &self.config.model;
        Ok(Some(model::load_as(path, device, *dtype)?.1))
    }

    /// What the model is first shown, so that a missing or wrong chat template is seen.
    fn first_prompt(&self) -> Result<String> {
        let problem = self.problems.shuffled(self.config.seed, 0);
        Ok(format!("first prompt: {:?}", self.tokenizer.render_prompt(&problem.prompt)?))
    }

    /// Samples groups and scores them.
    fn collect(
        &self,
        model: &CausalLm,
        scoring: Scoring,
        step: usize,
        own: &mut OwnRewards,
        metrics: &mut Metrics,
    ) -> Result<Vec<Scored>> {
        let (train, stage) = (&self.config.train, scoring.stage);
        let start = Instant::now();
        let problems = self.step_problems(step, metrics)?;
        let sampling = Sampling {
            distribution: stage.distribution(),
            max_completion_length: stage.max_completion_length,
            stop: self.tokenizer.stop_ids().to_vec(),
            rows: train.generation_rows,
            cache_tokens: train.generation_cache_tokens,
            tokens_per_read: train.generation_tokens_per_read,
        };
        let request = |(problem, prompt): &(Problem, Vec<u32>), sample: usize| Request {
            prompt: prompt.clone(),
            key: [self.config.seed, step as u64, problem.id, sample as u64],
        };
        let requests: Vec<Request> = (problems.iter())
            .flat_map(|problem| (0..train.num_generations).map(move |sample| request(problem, sample)))
            .collect();
        let completions = generate(model, &self.model_config, &requests, &sampling, |_, _| Watch::Continue)?;
        metrics.set("timing_s/gen", start.elapsed().as_secs_f64());

        let start = Instant::now();
        let groups: Vec<Vec<Completion>> = {
            let mut completions = completions.into_iter();
            problems.iter().map(|_| completions.by_ref().take(train.num_generations).collect()).collect()
        };
        let mut scored = own.score(&problems, groups, scoring, &self.tokenizer, metrics)?;
        compare(&mut scored, stage, train.num_generations);
        metrics.set("timing_s/reward", start.elapsed().as_secs_f64());
        Ok(scored)
    }

    /// The problems of a step with their prompts.
    fn step_problems(&self, step: usize, metrics: &mut Metrics) -> Result<Vec<(Problem, Vec<u32>)>> {
        let (count, data) = (self.config.train.prompts_per_step as u64, &self.config.data);
        let mut found = Vec::with_capacity(count as usize);
        let mut overlong = 0;
        for i in 0..count {
            let problem = self.problems.shuffled(self.config.seed, (step as u64 - 1) * count + i);
            let prompt = self.tokenizer.encode_prompt(&problem.prompt)?;
            if !data.reads(prompt.len(), &problem)? {
                overlong += 1;
                continue;
            }
            check_room(&prompt, &self.model_config, &problem)?;
            found.push((problem, prompt));
        }
        metrics.set("data/overlong_prompts", f64::from(overlong));
        if found.is_empty() {
            return Err(Error::Invalid(format!(
                "all {count} prompts of step {step} are longer than data.max_prompt_length = {}: raise it",
                data.max_prompt_length
            )));
        }
        Ok(found)
    }

    fn evaluate(&self, model: &CausalLm, which: &str, session: &mut Session) -> Result<Evaluation> {
        session.observer.begin("evaluate", self.held_out.len());
        let path = self.dir.join(format!("completions/eval_{which}.jsonl"));
        let mut writer = if which == "during" { None } else { Some(record::Writer::create(&path)?) };
        let mut done = 0;
        let subject = Subject { model, model_config: &self.model_config, tokenizer: &self.tokenizer };
        let records = evaluate(subject, &self.held_out, &self.config.eval, &mut |lines| {
            done += lines.len() / self.config.eval.num_generations;
            session.observer.advance(done, None);
            writer.as_mut().map_or(Ok(()), |writer| writer.append(lines))
        })?;
        let evaluation = Evaluation::new(records)?;
        if which != "during" {
            session.observer.note(&format!("{which}: held-out {}", evaluation.line()));
        }
        Ok(evaluation)
    }

    /// The first completions of a step, with rewards and advantages.
    fn write_completions(&self, step: usize, scored: &[Scored]) -> Result<()> {
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
        files::write_json_lines(&self.dir.join(format!("completions/step_{step:05}.jsonl")), rows)
    }

    fn finish(
        &self,
        model: &CausalLm,
        step: usize,
        state: &State,
        seconds: f64,
        log: &mut MetricsLog,
        session: &mut Session,
    ) -> Result<Finished> {
        let start = Instant::now();
        let evaluation = self.evaluate(model, "final", session)?;
        let mut metrics = Metrics::of_step(step);
        metrics.extend("eval/", evaluation.metrics());
        log.append(&metrics)?;
        checkpoint::export(&self.dir.join("final"), &self.model_config, model, &self.tokenizer)?;
        if let Some(adapter) = self.config.adapter() {
            checkpoint::export_adapter(&self.dir.join("adapter"), model, adapter, &self.tokenizer)?;
        }
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
            "device": format!("{:?}", session.device),
            "steps": step,
            "seconds": (seconds + start.elapsed().as_secs_f64()).round(),
            "peak_rss_gb": crate::bench::peak_rss_gb(),
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
        files::write_json(&self.dir.join("summary.json"), &summary)?;
        let report = report::write(&self.dir)?;
        Ok(Finished { dir: self.dir.clone(), report, summary })
    }
}
