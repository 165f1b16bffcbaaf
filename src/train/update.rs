//! From a step's completions to optimiser steps.
//!
//! The order is TRL's (`GRPOTrainer._prepare_inputs`): the completions of a step are shuffled and cut into
//! `steps_per_generation` mini-batches, and that list is gone through `num_iterations` times, with one optimiser step for
//! each mini-batch. Advantages come from whole groups, before the cut. verl says the same with `ppo_mini_batch_size`
//! (prompts of a mini-batch) and `ppo_epochs`.
//!
//! The ratio compares with the policy before the first of these updates, as the trainer itself computes it: the sampler's
//! log-probabilities, which differ by rounding or more, serve for choosing tokens, for the mismatch metrics, and for the
//! factors that make up for another engine's sampling ([`Correction`]; there, too, what compares with that engine instead). Up
//! to the first update the old log-probabilities are those of the pass that is learned from, so that the ratio is 1 exactly.
//! All other completions go through one forward pass without gradients before that update: those of later mini-batches,
//! and, for the mismatch metrics, those without a gradient. It takes about a third of the time of learning from them.
//!
//! Weights are counted per mini-batch. TRL does so too, but for `dapo` and `cispo`, whose tokens it counts over all
//! mini-batches: there its gradients are smaller by a factor of `steps_per_generation`. The learning rate is that of the
//! step for all its updates.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::batch::Sequence;
use super::learner::{Learner, Work, arrange};
use super::policy::Policy;
use super::settings::RlConfig;
use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::model::CausalLm;
use crate::noise::{Purpose, Stream};
use crate::objective::correction::{Mode, OldLogProbs, differences, ratio};
use crate::objective::entropy::EntropyControl;
use crate::objective::{Correction, Drawn, Objective, Ratio, Statistics, Surrogate, TokenTerm, Upstream};
use crate::optim::Gradients;
use crate::rollout::{Group, Rollout};
use crate::stage::Stage;
use crate::stop::Stop;

/// A completion as an update sees it.
#[derive(Debug, Clone)]
pub(super) struct Example<'a> {
    /// Place of its group in the step.
    pub(super) group: usize,
    /// Prompt and completion.
    pub(super) sequence: Sequence,
    /// The sampler's log-probability of each token, in nats.
    pub(super) sampled: &'a [f32],
    /// Entropy before each token at the sampling temperature, in nats.
    pub(super) entropies: &'a [f32],
    /// Its advantage.
    pub(super) advantage: f32,
    /// Tokens that have none of it.
    pub(super) silent: Vec<Range<usize>>,
    /// Whether its problem is a hard one, in the sense of CEEH.
    pub(super) hard: bool,
    /// Whether it counts in the loss.
    pub(super) takes_part: bool,
}

/// The completions of a step, group by group.
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

/// Weight of each token of each completion in a loss over all of them; 0 for those that take no part.
pub(super) fn weights<'a>(examples: impl Iterator<Item = &'a Example<'a>> + Clone, stage: &Stage) -> Vec<f32> {
    let length = |example: &Example| if example.takes_part { example.sampled.len() } else { 0 };
    let groups = examples.clone().map(|example| example.group + 1).max().unwrap_or(0);
    let mut lengths = vec![Vec::new(); groups];
    examples.clone().for_each(|example| lengths[example.group].push(length(example)));
    let weights = stage.loss.loss_type.aggregate().weights(&lengths, stage.sampling.max_completion_length);
    let mut rest: Vec<_> = weights.into_iter().map(Vec::into_iter).collect();
    examples.map(|example| rest[example.group].next().expect("one weight per completion")).collect()
}

/// A completion that has a gradient.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Lesson {
    /// Its place in the step.
    pub(crate) place: usize,
    /// Prompt and completion.
    pub(crate) sequence: Sequence,
    /// One per token.
    pub(crate) terms: Vec<TokenTerm>,
    /// The sampler's log-probability of each token; read where a correction asks for it.
    pub(crate) sampled: Vec<f32>,
    /// The model's before the first update of the step; empty where the pass to come gives them.
    pub(crate) old: Vec<f32>,
}

impl Lesson {
    /// Takes the model's log-probabilities before the first update of the step.
    pub(super) fn learn_old(&mut self, old: &[f32], correction: &Correction) {
        self.old = old.to_vec();
        correction.apply(&mut self.terms, old, &self.sampled);
    }
}

/// The gradient of a loss over `lessons`, its statistics, and the amount of work.
pub(crate) fn gradients(
    learner: &Learner,
    objective: &Objective,
    correction: &Correction,
    model: &CausalLm,
    lessons: &mut [Lesson],
) -> (Gradients, Statistics, Work) {
    let sequences: Vec<Sequence> = lessons.iter().map(|lesson| lesson.sequence.clone()).collect();
    let (mut gradients, mut statistics) = (Gradients::default(), Statistics::default());
    let work = learner.backward(model, &sequences, &mut gradients, |range, scores| {
        let (mut upstream, mut seen) = (Upstream::default(), Statistics::default());
        let mut first = 0;
        for lesson in &mut lessons[range] {
            let tokens = first..first + lesson.terms.len();
            first = tokens.end;
            let (log_prob, entropy) = (&scores.log_prob[tokens.clone()], &scores.sampling_entropy[tokens]);
            if lesson.old.is_empty() {
                lesson.learn_old(log_prob, correction);
            }
            objective.evaluate(&lesson.terms, log_prob, entropy, &mut seen, &mut upstream);
        }
        let finite = seen.is_finite();
        if finite {
            statistics.add(&seen);
        }
        finite.then_some(upstream)
    });
    (gradients, statistics, work)
}

/// The updates of a step.
pub(super) struct Update<'a> {
    pub(super) config: &'a RlConfig,
    pub(super) stage: &'a Stage,
    pub(super) step: usize,
    /// Learning rate of each of them.
    pub(super) lr: f64,
    /// The model at the start of the run; there when the stage has `loss.kl`.
    pub(super) reference: Option<&'a CausalLm>,
    /// Ends the step until its first update.
    pub(super) stop: Stop<'a>,
}

impl Update<'_> {
    /// Updates the policy on the completions of a step; gives the number of updates that were left out because of a loss or
    /// gradient that is not finite. A completion that is not finite is left out of its update and counted in
    /// `skipped_sequences`.
    ///
    /// A mini-batch in which nothing has a gradient makes no update. Completions without a gradient count in the weights.
    ///
    /// # Errors
    /// When an advantage is not finite: then a reward is to blame. When an early end is asked for before the first update.
    /// The policy is as it was, both times. What other ranks say.
    pub(super) fn run(
        &self,
        policy: &mut Policy,
        examples: &[Example],
        control: &mut EntropyControl,
        metrics: &mut Metrics,
    ) -> Result<usize> {
        check(examples)?;
        let start = Instant::now();
        let batches = self.mini_batches(examples.len());
        let reference = self.references(policy, examples, metrics)?;
        let mut known = Known { old: vec![Vec::new(); examples.len()], reference };
        let (objective, mut log) = (self.stage.objective(), Log::default());
        let correction = self.config.rollout.correction();
        let mut updated = false;
        let updates = (0..self.stage.loss.num_iterations).flat_map(|_| &batches).enumerate();
        for (number, batch) in updates {
            let batch = MiniBatch { number, examples: batch.iter().map(|&place| (place, &examples[place])).collect() };
            let mut lessons = self.lessons(&batch, &known, control, &mut log);
            arrange(&mut lessons, &policy.device(), |lesson| &lesson.sequence);
            for lesson in lessons.iter_mut().filter(|lesson| updated && !known.old[lesson.place].is_empty()) {
                lesson.learn_old(&known.old[lesson.place], &correction);
            }
            let learner = self.learner(if number == 0 { self.stop } else { Stop::NEVER });
            let (gradients, seen, work) = policy.gradients(&learner, &objective, &correction, &mut lessons)?;
            if !updated {
                known.keep(&lessons);
            }
            if number == 0 {
                self.stop.check()?;
            }
            // Of completions that teach nothing they tell only how far another engine, or format, is from the trainer.
            let wanted = batches.len() > 1 || !self.config.rollout.is_exact();
            if number == 0 && wanted && correction.old_log_probs == OldLogProbs::Trainer {
                let reading = self.read(policy, None, examples, &mut known.old)?;
                metrics.set("timing_s/old_log_prob", reading.as_secs_f64());
            }
            let norm = gradients.norm();
            log.note(&seen, batch.ratios(objective.ratio), norm, work);
            if lessons.is_empty() {
                continue;
            }
            if !norm.is_finite() || work.skipped == lessons.len() {
                log.skipped += 1;
                continue;
            }
            policy.apply(&self.config.optim, gradients, self.config.optim.clip(norm), self.lr);
            updated = true;
        }
        self.describe(&log, metrics);
        if self.stage.tokens.mask_truncated_completions {
            let masked = examples.iter().filter(|example| !example.takes_part).count();
            metrics.set("tokens/masked_completions", masked as f64 / examples.len().max(1) as f64);
        }
        if self.stage.tokens.step_selection.is_some() {
            let silent: usize = examples.iter().flat_map(|example| &example.silent).map(Range::len).sum();
            let tokens: usize = examples.iter().map(|example| example.sampled.len()).sum();
            metrics.set("tokens/silent_share", silent as f64 / tokens.max(1) as f64);
        }
        mismatch(&correction, examples, &known.old, metrics);
        metrics.set("timing_s/update_actor", start.elapsed().as_secs_f64());
        Ok(log.skipped)
    }

    /// Places of the completions of each mini-batch; sizes differ by one at most, and none is empty.
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

    /// The completions of a mini-batch that have a gradient, with the terms of their tokens.
    fn lessons(&self, batch: &MiniBatch, known: &Known, control: &mut EntropyControl, log: &mut Log) -> Vec<Lesson> {
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
            let reference = &known.reference[place];
            terms.iter_mut().zip(reference).for_each(|(term, &log_prob)| term.reference_log_prob = log_prob);
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

    /// Log-probabilities under the reference model, where there is one.
    fn references(&self, policy: &Policy, examples: &[Example], metrics: &mut Metrics) -> Result<Vec<Vec<f32>>> {
        let mut lists = vec![Vec::new(); examples.len()];
        if let Some(reference) = self.reference {
            metrics.set("timing_s/ref", self.read(policy, Some(reference), examples, &mut lists)?.as_secs_f64());
        }
        Ok(lists)
    }

    /// Log-probabilities, under the policy or a reference model, of those completions that take part and have none yet; the time it took.
    fn read(
        &self,
        policy: &Policy,
        reference: Option<&CausalLm>,
        examples: &[Example],
        lists: &mut [Vec<f32>],
    ) -> Result<Duration> {
        let start = Instant::now();
        let mut missing: Vec<(usize, Sequence)> = (examples.iter().enumerate())
            .filter(|(place, example)| example.takes_part && lists[*place].is_empty())
            .map(|(place, example)| (place, example.sequence.clone()))
            .collect();
        arrange(&mut missing, &policy.device(), |(_, sequence)| sequence);
        let (places, sequences): (Vec<usize>, Vec<Sequence>) = missing.into_iter().unzip();
        for (place, read) in places.into_iter().zip(policy.read(&self.learner(Stop::NEVER), reference, &sequences)?) {
            lists[place] = read;
        }
        Ok(start.elapsed())
    }

    fn describe(&self, log: &Log, metrics: &mut Metrics) {
        let stage = self.stage;
        metrics.set_mean("loss", &log.losses);
        metrics.set_mean("grad_norm", &log.norms);
        if stage.loss.kl.is_some() {
            metrics.set_mean("kl", &log.kls);
        }
        if stage.has_entropy_bonus() || stage.loss.kl.is_some() {
            metrics.set_mean("policy_loss", &log.policy_losses);
        }
        if stage.has_entropy_bonus() {
            metrics.set_mean("entropy_coef", &log.coefficients);
        }
        if stage.tokens.top_entropy_quantile < 1.0 {
            metrics.set_mean("tokens/low_entropy_share", &log.low_entropy);
        }
        if stage.tokens.covariance.is_some() {
            metrics.set_mean("tokens/covariance_share", &log.covariance);
        }
        match stage.objective().surrogate {
            Surrogate::Clip { .. } => {
                let either: Vec<f64> = log.low.iter().zip(&log.high).map(|(low, high)| low + high).collect();
                metrics.set_mean("clip_ratio/low_mean", &log.low);
                metrics.set_mean("clip_ratio/high_mean", &log.high);
                metrics.set_mean("clip_ratio/region_mean", &either);
            }
            Surrogate::Cispo { .. } => metrics.set_mean("cispo_clip_ratio", &log.high),
            Surrogate::Sapo { .. } | Surrogate::Unclipped => {}
        }
        log.work.describe(metrics);
    }
}

/// Log-probabilities of the tokens of each completion of a step; empty where they are not known.
struct Known {
    /// Before the first update.
    old: Vec<Vec<f32>>,
    /// Under the reference model.
    reference: Vec<Vec<f32>>,
}

impl Known {
    /// Takes the old log-probabilities of lessons that a pass has gone over.
    fn keep(&mut self, lessons: &[Lesson]) {
        for lesson in lessons.iter().filter(|lesson| !lesson.old.is_empty()) {
            self.old[lesson.place].clone_from(&lesson.old);
        }
    }
}

/// The completions of one update, with their places in the step.
struct MiniBatch<'a> {
    /// Updates of the step before this one.
    number: usize,
    examples: Vec<(usize, &'a Example<'a>)>,
}

impl<'a> MiniBatch<'a> {
    fn drawn(&self, stage: &Stage) -> Vec<Drawn<'a>> {
        let weights = weights(self.examples.iter().map(|(_, example)| *example), stage);
        let drawn = |(&(_, example), weight): (&(usize, &'a Example<'a>), f32)| Drawn {
            log_probs: example.sampled,
            entropies: example.entropies,
            advantage: example.advantage,
            silent: &example.silent,
            weight,
            hard: example.hard,
        };
        self.examples.iter().zip(weights).map(drawn).collect()
    }

    /// Ratios that the loss compares: all tokens, or all completions, that take part.
    fn ratios(&self, ratio: Ratio) -> usize {
        let part = self.examples.iter().filter(|(_, example)| example.takes_part);
        match ratio {
            Ratio::Token => part.map(|(_, example)| example.sampled.len()).sum(),
            Ratio::Sequence => part.count(),
        }
    }
}

/// Figures of each update of a step; the metric is their mean, as TRL logs it.
#[derive(Debug, Default)]
struct Log {
    losses: Vec<f64>,
    policy_losses: Vec<f64>,
    kls: Vec<f64>,
    norms: Vec<f64>,
    low: Vec<f64>,
    high: Vec<f64>,
    low_entropy: Vec<f64>,
    covariance: Vec<f64>,
    coefficients: Vec<f64>,
    work: Work,
    /// Updates left out.
    skipped: usize,
}

impl Log {
    fn note(&mut self, seen: &Statistics, ratios: usize, norm: f64, work: Work) {
        let share = |count: usize| count as f64 / ratios.max(1) as f64;
        self.losses.push(seen.loss);
        self.policy_losses.push(seen.policy_loss);
        self.kls.push(seen.kl_sum / seen.tokens.max(1) as f64);
        self.norms.push(norm);
        self.low.push(share(seen.low));
        self.high.push(share(seen.high));
        self.work.add(work);
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

/// How far the sampler's log-probabilities are from the trainer's, over all completions whose old ones are known (TRL's
/// `sampling/…`, which it writes with vLLM): of all of them, or where the trained model itself samples of those that are learned
/// from. And what the correction makes of it: ratios are those after it, of tokens or of
/// completions as it has them.
fn mismatch(correction: &Correction, examples: &[Example], old: &[Vec<f32>], metrics: &mut Metrics) {
    let compared = examples.iter().zip(old).map(|(example, old)| differences(old, example.sampled));
    let compared: Vec<Vec<f32>> = compared.filter(|differences| !differences.is_empty()).collect();
    let logs: Vec<f64> = compared.iter().flatten().map(|&log| f64::from(log)).filter(|log| log.is_finite()).collect();
    if logs.is_empty() {
        return;
    }
    let mean = |values: &[f64], of: fn(f64) -> f64| values.iter().map(|&x| of(x)).sum::<f64>() / values.len() as f64;
    let largest = |values: &[f64], of: fn(f64) -> f64| values.iter().map(|&x| of(x)).fold(f64::NEG_INFINITY, f64::max);
    metrics.set("sampling/sampling_logp_difference/mean", mean(&logs, f64::abs));
    metrics.set("sampling/sampling_logp_difference/max", largest(&logs, f64::abs));
    metrics.set("sampling/kl", mean(&logs, |log| ratio(log) - 1.0 - log));
    metrics.set("sampling/mult_prob_error", mean(&logs, |log| ratio(log.abs())));
    let factors = |differences: &Vec<f32>| {
        let factors = correction.factors(differences);
        let count = if correction.is_of_sequences() { 1 } else { factors.len() };
        factors.into_iter().take(count).map(f64::from)
    };
    let none = correction.mode == Mode::None;
    let ratios: Vec<f64> =
        if none { logs.iter().map(|&log| ratio(log)).collect() } else { compared.iter().flat_map(factors).collect() };
    metrics.set("sampling/importance_sampling_ratio/min", -largest(&ratios, |ratio| -ratio));
    metrics.set("sampling/importance_sampling_ratio/mean", mean(&ratios, |ratio| ratio));
    metrics.set("sampling/importance_sampling_ratio/max", largest(&ratios, |ratio| ratio));
    if !none {
        metrics.set("sampling/masked_share", mean(&ratios, |ratio| f64::from(ratio == 0.0)));
        let squares = mean(&ratios, |ratio| ratio * ratio);
        let size = if squares == 0.0 { 0.0 } else { mean(&ratios, |ratio| ratio).powi(2) / squares };
        metrics.set("sampling/effective_sample_size", size);
    }
}

#[cfg(test)]
mod tests;
