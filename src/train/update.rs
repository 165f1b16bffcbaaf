//! From the completions of a step to optimiser steps.
//!
//! The order is TRL's (`GRPOTrainer._prepare_inputs`): the completions of a step are shuffled and divided into
//! `steps_per_generation` mini-batches. The list of mini-batches is processed `num_iterations` times, with one optimiser step
//! per mini-batch. Advantages are computed over whole groups, before the division. verl has the same with
//! `ppo_mini_batch_size` (prompts per mini-batch) and `ppo_epochs`.
//!
//! Old log-probabilities are those of the trainer's model before the first optimiser step. Those of the sampler, which differ
//! by rounding or more, are used to select tokens, for the mismatch metrics, and for the importance-sampling factors of
//! another engine ([`Correction`], which can also make them the old ones). Until the first optimiser step, the old
//! log-probabilities are those of the training pass itself, so the ratio is exactly 1. Those of all other completions (of later
//! mini-batches, and of completions without a gradient, for the mismatch metrics) come from one forward pass without
//! gradients before that step. It takes about a third of the time of the training pass.
//!
//! Loss weights are normalised per mini-batch. So does TRL, except for `dapo` and `cispo`, where it divides by the tokens of
//! all mini-batches: its gradients are then smaller by a factor of `steps_per_generation`. All optimiser steps of a step use
//! the same learning rate.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::log::Log;
use super::batch::Sequence;
use super::learner::{Learner, Work, arrange};
use super::policy::Policy;
use super::settings::RlConfig;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::model::CausalLm;
use crate::noise::{Purpose, Stream};
use crate::objective::correction::OldLogProbs;
use crate::objective::entropy::EntropyControl;
use crate::objective::{Correction, Objective, Ratio, Statistics, TokenRuleInput, TokenTerm, Upstream};
use crate::optim::Gradients;
use crate::rollout::{Group, Rollout};
use crate::stage::Stage;
use crate::stop::Stop;

mod log;
#[cfg(test)]
mod tests;

/// A completion to learn from.
#[derive(Debug, Clone)]
pub(super) struct Example<'a> {
    /// Index of its group in the step.
    pub(super) group: usize,
    /// Prompt and completion.
    pub(super) sequence: Sequence,
    /// Log-probability of each completion token by the sampler, in nats.
    pub(super) sampled: &'a [f32],
    /// Entropy of the distribution of each token at the sampling temperature, in nats.
    pub(super) entropies: &'a [f32],
    /// Advantage of the whole completion.
    pub(super) advantage: f32,
    /// Ranges of tokens whose advantage is 0 instead.
    pub(super) silent: Vec<Range<usize>>,
    /// Whether its problem is hard by the definition of CEEH.
    pub(super) hard: bool,
    /// Whether the loss includes it (`tokens.mask_truncated_completions`).
    pub(super) takes_part: bool,
}

/// The completions of `groups`, in order.
pub(super) fn examples<'a>(groups: &'a [Group], stage: &Stage) -> Vec<Example<'a>> {
    let (masks, selection) = (stage.tokens.mask_truncated_completions, stage.tokens.step_selection.as_ref());
    let example = |place: usize, group: &Group, rollout: &'a Rollout| Example {
        group: place,
        sequence: Sequence {
            tokens: [&group.prompt[..], &rollout.completion.tokens].concat(),
            prompt: group.prompt.len(),
        },
        sampled: &rollout.completion.log_probs,
        entropies: &rollout.completion.sampling_entropies,
        advantage: rollout.advantage.total(),
        silent: selection.map(|steps| steps.silent(&rollout.answer, &rollout.completion.log_probs)).unwrap_or_default(),
        hard: group.hard,
        takes_part: !masks || rollout.completion.finished(),
    };
    let of_group = |(place, group): (usize, &'a Group)| group.rollouts.iter().map(move |r| example(place, group, r));
    groups.iter().enumerate().flat_map(of_group).collect()
}

/// Weight of each token of each completion in a loss over `examples`; 0 for completions that the loss excludes.
pub(super) fn weights<'a>(examples: impl Iterator<Item = &'a Example<'a>> + Clone, stage: &Stage) -> Vec<f32> {
    let length = |example: &Example| if example.takes_part { example.sampled.len() } else { 0 };
    let groups = examples.clone().map(|example| example.group + 1).max().unwrap_or(0);
    let mut lengths = vec![Vec::new(); groups];
    examples.clone().for_each(|example| lengths[example.group].push(length(example)));
    let weights = stage.loss.loss_type.aggregate().weights(&lengths, stage.sampling.max_completion_length);
    let mut rest: Vec<_> = weights.into_iter().map(Vec::into_iter).collect();
    examples.map(|example| rest[example.group].next().expect("one weight per completion")).collect()
}

/// A completion with a gradient.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Lesson {
    /// Index of the completion in the step.
    pub(crate) place: usize,
    /// Prompt and completion.
    pub(crate) sequence: Sequence,
    /// Loss term of each completion token.
    pub(crate) terms: Vec<TokenTerm>,
    /// Log-probability of each token by the sampler, for [`Correction`].
    pub(crate) sampled: Vec<f32>,
    /// Log-probability of each token before the first optimiser step; empty until the training pass sets them.
    pub(crate) old: Vec<f32>,
}

impl Lesson {
    /// Set the log-probabilities before the first optimiser step, and apply `correction` to the terms.
    pub(super) fn set_old(&mut self, old: &[f32], correction: &Correction) {
        self.old = old.to_vec();
        correction.apply(&mut self.terms, old, &self.sampled);
    }
}

/// Compute the gradient of the loss over `lessons`, its statistics, and the amount of work. A micro-batch whose loss is not
/// finite is left out and counted in [`Work`].
pub(crate) fn gradients(
    learner: &Learner,
    objective: &Objective,
    correction: &Correction,
    model: &CausalLm,
    lessons: &mut [Lesson],
) -> (Gradients, Statistics, Work) {
    let sequences: Vec<Sequence> = lessons.iter().map(|lesson| lesson.sequence.clone()).collect();
    let (mut gradients, mut parts) = (Gradients::default(), BTreeMap::new());
    let work = learner.backward(model, &sequences, &mut gradients, |range, scores| {
        let (mut upstream, mut seen) = (Upstream::default(), Statistics::default());
        let (start, mut first) = (range.start, 0);
        for lesson in &mut lessons[range] {
            let tokens = first..first + lesson.terms.len();
            first = tokens.end;
            let (log_prob, entropy) = (&scores.log_prob[tokens.clone()], &scores.sampling_entropy[tokens]);
            if lesson.old.is_empty() {
                lesson.set_old(log_prob, correction);
            }
            objective.evaluate(&lesson.terms, log_prob, entropy, &mut seen, &mut upstream);
        }
        seen.is_finite().then(|| {
            parts.insert(start, seen);
            upstream
        })
    });
    // Added in the order of the completions, in which the learner may not have called.
    let mut statistics = Statistics::default();
    parts.values().for_each(|seen| statistics.add(seen));
    (gradients, statistics, work)
}

/// Settings of the updates of a step.
pub(super) struct UpdateSettings<'a> {
    pub(super) config: &'a RlConfig,
    pub(super) stage: &'a Stage,
    pub(super) step: usize,
    /// Learning rate of each optimiser step.
    pub(super) lr: f64,
    /// Model at the start of the run, if the stage has `loss.kl`.
    pub(super) reference: Option<&'a CausalLm>,
    /// Interrupts the step before its first optimiser step: in any micro-batch.
    pub(super) stop: Stop<'a>,
}

impl UpdateSettings<'_> {
    /// Update `policy` on the completions of a step. Return the number of optimiser steps that were left out because the loss or
    /// gradient was not finite. A completion whose loss is not finite is left out of its mini-batch and counted in
    /// `skipped_sequences`.
    ///
    /// A mini-batch without any gradient makes no optimiser step. Completions without a gradient count in the weights.
    ///
    /// # Errors
    /// An advantage that is not finite (a reward is to blame), a stop before the first optimiser step, or a failure of another
    /// rank. The policy is unchanged unless [`Policy::within_step`] is set.
    pub(super) fn run(
        &self,
        policy: &mut Policy,
        examples: &[Example],
        control: &mut EntropyControl,
        metrics: &mut Metrics,
    ) -> Result<usize> {
        check(examples)?;
        let start = Instant::now();
        let (objective, correction) = (self.stage.objective(), self.config.rollout.correction());
        let mini_batches = self.mini_batches(examples.len());
        let reference = self.reference_log_probs(policy, examples, metrics)?;
        let mut old = OldValues(vec![Vec::new(); examples.len()]);
        let (mut log, mut updated) = (Log::default(), false);
        for (number, places) in (0..self.stage.loss.num_iterations).flat_map(|_| &mini_batches).enumerate() {
            let batch = MiniBatch { number, examples: places.iter().map(|&place| (place, &examples[place])).collect() };
            let mut lessons = self.lessons(&batch, &reference, control, &mut log);
            arrange(&mut lessons, &policy.device(), |lesson| &lesson.sequence);
            if updated {
                old.recall(&mut lessons, &correction);
            }
            let stop = if number == 0 { self.stop } else { Stop::NEVER };
            let (gradients, statistics, work) =
                policy.gradients(&self.learner(stop), &objective, &correction, &mut lessons)?;
            stop.check()?;
            if !updated {
                old.keep(&lessons);
            }
            if number == 0 {
                self.read_other_old(policy, examples, mini_batches.len(), &mut old, metrics)?;
            }
            let norm = gradients.norm();
            log.note(&statistics, batch.ratios(objective.ratio), norm, work);
            if lessons.is_empty() {
                continue;
            }
            if !norm.is_finite() || work.skipped == lessons.len() {
                log.skipped += 1;
                continue;
            }
            policy.apply(&self.config.optim, gradients, self.config.optim.clip(norm), self.lr);
            (updated, policy.within_step) = (true, true);
        }
        policy.within_step = false;
        log.describe(self.stage, metrics);
        log::describe_tokens(self.stage, examples, metrics);
        log::describe_mismatch(&correction, examples, &old.0, metrics);
        metrics.set("timing_s/update_actor", start.elapsed().as_secs_f64());
        Ok(log.skipped)
    }

    /// Divide `count` completions into mini-batches of their indices. Sizes differ by at most one; none is empty.
    fn mini_batches(&self, count: usize) -> Vec<Vec<usize>> {
        let parts = self.stage.loss.steps_per_generation;
        let mut places: Vec<usize> = (0..count).collect();
        if parts > 1 {
            let key = [Purpose::MiniBatches.word(), self.config.seed, self.step as u64];
            Stream::new(&key).shuffle(&mut places);
        }
        let batch = |part: usize| places[part * count / parts..(part + 1) * count / parts].to_vec();
        (0..parts).map(batch).filter(|batch| !batch.is_empty()).collect()
    }

    /// The completions of `batch` with a gradient, and the loss terms of their tokens. `reference` has the log-probabilities of
    /// the reference model by completion of the step.
    fn lessons(
        &self,
        batch: &MiniBatch,
        reference: &[Vec<f32>],
        control: &mut EntropyControl,
        log: &mut Log,
    ) -> Vec<Lesson> {
        let stage = self.stage;
        let key = [Purpose::Covariance.word(), self.config.seed, self.step as u64, batch.number as u64];
        let rules = stage.token_rules(control.coefficient(stage.entropy_target()));
        let (terms, counts) = rules.terms(&batch.drawn(stage), &mut Stream::new(&key));
        let share = |count: usize| count as f64 / counts.tokens.max(1) as f64;
        log.low_entropy.push(share(counts.low_entropy));
        log.covariance.push(share(counts.covariance));
        log.coefficients.push(f64::from(control.observe(counts.entropy, stage.entropy_target())));
        let taught = batch.examples.iter().zip(terms).filter(|(_, terms)| terms.iter().any(TokenTerm::learns));
        let lesson = |(&(place, example), mut terms): (&(usize, &Example), Vec<TokenTerm>)| {
            terms.iter_mut().zip(&reference[place]).for_each(|(term, &log_prob)| term.reference_log_prob = log_prob);
            Lesson {
                place,
                sequence: example.sequence.clone(),
                terms,
                sampled: example.sampled.to_vec(),
                old: Vec::new(),
            }
        };
        taught.map(lesson).collect()
    }

    fn learner<'b>(&self, stop: Stop<'b>) -> Learner<'b> {
        Learner {
            stop,
            temperature: self.stage.sampling.temperature,
            tokens_per_microbatch: self.config.train.tokens_per_microbatch,
            activation_checkpointing: self.config.train.activation_checkpointing,
            ..Learner::default()
        }
    }

    /// Log-probabilities of the reference model by completion of the step; empty without `loss.kl`.
    fn reference_log_probs(
        &self,
        policy: &Policy,
        examples: &[Example],
        metrics: &mut Metrics,
    ) -> Result<Vec<Vec<f32>>> {
        let mut log_probs = vec![Vec::new(); examples.len()];
        if let Some(reference) = self.reference {
            let time = self.read_missing(policy, Some(reference), examples, &mut log_probs)?;
            metrics.set("timing_s/ref", time.as_secs_f64());
        }
        Ok(log_probs)
    }

    /// Compute the old log-probabilities of completions that the first training pass did not cover, if later mini-batches or
    /// the mismatch metrics need them.
    fn read_other_old(
        &self,
        policy: &Policy,
        examples: &[Example],
        mini_batches: usize,
        old: &mut OldValues,
        metrics: &mut Metrics,
    ) -> Result<()> {
        let rollout = &self.config.rollout;
        // With a single mini-batch, the rest has no gradient. It only shows the mismatch of another engine or format.
        let needed = mini_batches > 1 || !rollout.is_exact();
        if needed && rollout.correction().old_log_probs == OldLogProbs::Trainer {
            let time = self.read_missing(policy, None, examples, &mut old.0)?;
            metrics.set("timing_s/old_log_prob", time.as_secs_f64());
        }
        Ok(())
    }

    /// Fill the empty entries of `log_probs` for completions that the loss includes, by the policy or by `reference`. Return the
    /// time.
    ///
    /// # Errors
    /// Those of other ranks, and [`Error::Stopped`]: it is called before the first optimiser step.
    fn read_missing(
        &self,
        policy: &Policy,
        reference: Option<&CausalLm>,
        examples: &[Example],
        log_probs: &mut [Vec<f32>],
    ) -> Result<Duration> {
        let start = Instant::now();
        let mut missing: Vec<(usize, Sequence)> = (examples.iter().enumerate())
            .filter(|(place, example)| example.takes_part && log_probs[*place].is_empty())
            .map(|(place, example)| (place, example.sequence.clone()))
            .collect();
        arrange(&mut missing, &policy.device(), |(_, sequence)| sequence);
        let (places, sequences): (Vec<usize>, Vec<Sequence>) = missing.into_iter().unzip();
        let read = policy.read(&self.learner(self.stop), reference, &sequences)?;
        self.stop.check()?;
        places.into_iter().zip(read).for_each(|(place, read)| log_probs[place] = read);
        Ok(start.elapsed())
    }
}

/// Log-probabilities before the first optimiser step, by completion of the step and token; empty where not yet known.
struct OldValues(Vec<Vec<f32>>);

impl OldValues {
    /// Keep those of `lessons` that a training pass has set.
    fn keep(&mut self, lessons: &[Lesson]) {
        for lesson in lessons.iter().filter(|lesson| !lesson.old.is_empty()) {
            self.0[lesson.place].clone_from(&lesson.old);
        }
    }

    /// Set those of `lessons` that are known.
    fn recall(&self, lessons: &mut [Lesson], correction: &Correction) {
        for lesson in lessons.iter_mut().filter(|lesson| !self.0[lesson.place].is_empty()) {
            lesson.set_old(&self.0[lesson.place], correction);
        }
    }
}

/// The completions of one optimiser step, with their indices in the step.
struct MiniBatch<'a> {
    /// Index among the optimiser steps of the step.
    number: usize,
    examples: Vec<(usize, &'a Example<'a>)>,
}

impl<'a> MiniBatch<'a> {
    fn drawn(&self, stage: &Stage) -> Vec<TokenRuleInput<'a>> {
        let weights = weights(self.examples.iter().map(|(_, example)| *example), stage);
        let drawn = |(&(_, example), weight): (&(usize, &'a Example<'a>), f32)| TokenRuleInput {
            log_probs: example.sampled,
            entropies: example.entropies,
            advantage: example.advantage,
            silent: &example.silent,
            weight,
            hard: example.hard,
        };
        self.examples.iter().zip(weights).map(drawn).collect()
    }

    /// Number of importance ratios in the loss: of tokens or of completions.
    fn ratios(&self, ratio: Ratio) -> usize {
        let part = self.examples.iter().filter(|(_, example)| example.takes_part);
        match ratio {
            Ratio::Token => part.map(|(_, example)| example.sampled.len()).sum(),
            Ratio::Sequence => part.count(),
        }
    }
}

fn check(examples: &[Example]) -> Result<()> {
    let bad = examples.iter().filter(|example| !example.advantage.is_finite()).count();
    if bad == 0 {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{bad} of {} completions have an advantage that is not a finite number: a reward of this stage, or one of its \
         reward_weights, is not finite or too large",
        examples.len()
    )))
}
