//! Supervised fine-tuning: cross-entropy on completion tokens.

mod conversations;
mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use settings::{SftConfig, SftModel, SftTrain};

use self::conversations::{Conversations, sequence};
use super::Session;
use super::batch::Sequence;
use super::checkpoint::TrainedModel;
use super::guard::Guard;
use super::learner::{Learner, arrange};
use super::origin::settled;
use super::policy::Policy;
use super::run::{Run, RunSettings, StartPoint};
use crate::device;
use crate::error::Result;
use crate::metrics::Metrics;
use crate::objective::Upstream;
use crate::optim::{Gradients, learning_rate};
use crate::stop::Stop;
use crate::text::tokenizer::Tokenizer;

/// The state that a resumed run needs beside weights and optimiser.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct SftState {
    /// Number of finished steps.
    #[serde(skip)]
    step: usize,
    next_row: u64,
    num_tokens: usize,
}

/// The parts of a run that its steps use and do not change.
struct SftJob<'a> {
    config: &'a SftConfig,
    tokenizer: Tokenizer,
    conversations: Conversations,
    stop: Stop<'a>,
}

/// Train, evaluate and write `runs/<name>/`. Return the final model's directory.
///
/// # Errors
/// User mistakes in files and settings; a full disk; three steps in a row that are not finite;
/// [`crate::Error::Interrupted`].
pub fn run(config: &SftConfig, session: &mut Session) -> Result<PathBuf> {
    let resumed = session.start.resumes().then(|| config.common().dir());
    let config = &settled(config, resumed.as_deref())?;
    let device = device::parse(&config.device)?;
    config.optim.check(&device)?;
    let tokenizer = Tokenizer::load(config.tokenizer_dir())?.with_prompt(&config.prompt)?;
    tokenizer.notes().iter().for_each(|note| session.observer.note(note));
    let config = &SftConfig { prompt: tokenizer.prompt().clone(), ..config.clone() };
    let (conversations, overlong) = Conversations::open(config, &tokenizer)?;
    if let Conversations::Rows(rows) = &conversations
        && overlong > 0
    {
        let (kept, (longest, _)) = (rows.len(), config.longest()?);
        session.observer.note(&format!(
            "{kept} conversations; {overlong} more left out because they have more than {longest} tokens"
        ));
    }
    let (held_out, report) = config.data.held_out(config.eval.num_problems, &tokenizer)?;
    if report.overlong > 0 {
        session.observer.note(&format!("held-out problems: {report}"));
    }
    let (mut run, point) = Run::open(config, session, &device, (held_out, BTreeMap::new()), || {
        let opened = config.model(&tokenizer, &device.clone().autodiff())?;
        tokenizer.check_vocab(opened.0.vocab_size, config.tokenizer_dir())?;
        Ok(opened)
    })?;
    let StartPoint::<SftState> { step, config: model_config, model, optimizer, mut state } = point;
    state.step = step;
    let mut policy = Policy::new(model_config, model, optimizer);
    let job = SftJob { config, tokenizer, conversations, stop: session.stop() };
    let ended = job.whole(&mut policy, &mut state, &mut run, session);
    ended.map_err(|error| run.ended(error, state.step, job.trained(&policy), &policy.optimizer, &state))
}

impl SftJob<'_> {
    fn whole(
        &self,
        policy: &mut Policy,
        state: &mut SftState,
        run: &mut Run,
        session: &mut Session,
    ) -> Result<PathBuf> {
        let last = self.config.train.max_steps;
        if state.step == 0 {
            // Shown to make a missing or wrong chat template visible.
            let first = self.conversations.get(self.config.seed, 0, false);
            let shown = self.tokenizer.render_prompt(&first.prompt)?;
            session.observer.note(&format!("first prompt: {shown:?}"));
        }
        run.catch_up(self.trained(policy), &mut policy.sampler(), session)?;
        if state.step >= last && run.finished(state.step)?.is_some() {
            let message = "nothing to do; raise train.max_steps to continue";
            session.observer.note(&format!("{}: finished after step {}, {message}", run.dir().display(), state.step));
            return Ok(run.dir().join("final"));
        }
        session.observer.begin("sft", last);
        session.observer.resume(state.step);
        self.learn(policy, state, run, session)?;
        let evaluation = run.evaluate(self.trained(policy), &mut policy.sampler(), "final", session)?;
        session.observer.note(&evaluation.table());
        run.finish(state.step, self.trained(policy), &evaluation.summary())
    }

    /// Train from `state` until the last step. After an error, `state` is that of the last finished step.
    fn learn(&self, policy: &mut Policy, state: &mut SftState, run: &mut Run, session: &mut Session) -> Result<()> {
        let train = &self.config.train;
        let mut guard = Guard::default();
        while state.step < train.max_steps {
            let mut next = SftState { step: state.step + 1, ..*state };
            let mut metrics = Metrics::of_step(next.step);
            let mut sequences = self.take(&mut next.next_row, next.step <= train.curriculum_steps)?;
            arrange(&mut sequences, &policy.device(), |sequence| sequence);
            let finite = self.update(policy, &sequences, &mut next, &mut metrics)?;
            *state = next;
            let over = state.step == train.max_steps;
            if train.eval_steps > 0 && state.step.is_multiple_of(train.eval_steps) && !over {
                run.log_evaluated(self.trained(policy), &mut policy.sampler(), &mut metrics, session)?;
                session.observer.begin("sft", train.max_steps);
                session.observer.resume(state.step);
            } else {
                run.log(&metrics)?;
            }
            session.observer.advance(state.step, Some(&metrics));
            let split = sequences.iter().map(|sequence| sequence.tokens.split_at(sequence.prompt));
            guard.check(finite, run.dir(), state.step, &self.tokenizer, split)?;
            if over || state.step.is_multiple_of(train.save_steps) {
                run.save(state.step, self.trained(policy), &policy.optimizer, state)?;
            }
            self.stop.check()?;
        }
        Ok(())
    }

    /// Return the next conversations, until they have `tokens_per_step` tokens.
    fn take(&self, next_row: &mut u64, lean: bool) -> Result<Vec<Sequence>> {
        const AT_ONCE: u64 = 32;
        let Self { config, tokenizer, conversations, .. } = self;
        let (mut sequences, mut tokens) = (Vec::new(), 0);
        loop {
            let encoded: Vec<Sequence> = (*next_row..*next_row + AT_ONCE)
                .into_par_iter()
                .map(|index| sequence(tokenizer, &conversations.get(config.seed, index, lean), config.train.max_length))
                .collect::<Result<_>>()?;
            for sequence in encoded {
                tokens += sequence.tokens.len();
                sequences.push(sequence);
                *next_row += 1;
                if tokens >= config.train.tokens_per_step {
                    return Ok(sequences);
                }
            }
        }
    }

    /// Take one optimiser step, in which every completion token has the same weight in any micro-batch. Return whether
    /// all numbers were finite and the step was applied.
    ///
    /// # Errors
    /// [`crate::Error::Stopped`], before anything has changed.
    fn update(
        &self,
        policy: &mut Policy,
        sequences: &[Sequence],
        next: &mut SftState,
        metrics: &mut Metrics,
    ) -> Result<bool> {
        let start = Instant::now();
        let optim = &self.config.optim;
        let total: usize = sequences.iter().map(|sequence| sequence.completion().len()).sum();
        let mut gradients = Gradients::default();
        let mut sums = BTreeMap::new();
        let learner = Learner { stop: self.stop, ..self.config.learner() };
        let work = learner.backward(policy.model(), sequences, &mut gradients, |range, scores| {
            let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>() / total as f64;
            sums.insert(range.start, [-sum(&scores.log_prob), sum(&scores.entropy)]);
            let tokens = scores.log_prob.len();
            Some(Upstream { log_prob: vec![-1.0 / total as f32; tokens], entropy: vec![0.0; tokens] })
        });
        self.stop.check()?;
        // In the order of the sequences, in which the learner may not have called.
        let [loss, entropy] =
            sums.values().fold([0.0, 0.0], |[loss, entropy], part| [loss + part[0], entropy + part[1]]);
        let norm = gradients.norm();
        let lr = learning_rate(optim, next.step, self.config.train.max_steps);
        if norm.is_finite() {
            policy.apply(optim, gradients, optim.clip(norm), lr);
        }
        next.num_tokens += sequences.iter().map(|sequence| sequence.tokens.len()).sum::<usize>();
        metrics.set("loss", loss);
        metrics.set("entropy", entropy);
        metrics.set("grad_norm", norm);
        work.describe(metrics);
        metrics.set("learning_rate", lr);
        metrics.set("num_tokens", next.num_tokens as f64);
        metrics.set("timing_s/step", start.elapsed().as_secs_f64());
        Ok(work.skipped == 0 && norm.is_finite())
    }

    fn trained<'b>(&'b self, policy: &'b Policy) -> TrainedModel<'b> {
        let adapter = self.config.common().adapter();
        TrainedModel { config: &policy.config, model: policy.model(), adapter, tokenizer: &self.tokenizer, team: None }
    }
}
