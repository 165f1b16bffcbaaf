//! From a step's scored completions to one or more optimiser steps.

use std::time::Instant;

use super::batch::Sequence;
use super::learner::{Learner, Work, arrange};
use super::score::Scored;
use super::settings::RlConfig;
use super::stage::Stage;
use crate::metrics::Metrics;
use crate::model::CausalLm;
use crate::noise::Stream;
use crate::objective::entropy::EntropyControl;
use crate::objective::{Drawn, Statistics, TokenTerm, Upstream};
use crate::optim::{AdamW, Gradients};

/// What an update needs beside the completions.
pub(super) struct Update<'a> {
    pub(super) config: &'a RlConfig,
    pub(super) stage: &'a Stage,
    pub(super) step: usize,
    pub(super) lr: f64,
    /// The model at the start of the run; there when the stage has `loss.kl`.
    pub(super) reference: Option<&'a CausalLm>,
}

/// A completion that has a gradient: its tokens and their terms.
type Lesson = (Sequence, Vec<TokenTerm>);

/// Weight of each token of each completion, in groups of `group`; 0 for completions that are left out.
pub(super) fn weights(scored: &[Scored], stage: &Stage, group: usize) -> Vec<f32> {
    let length = |s: &Scored| if takes_part(s, stage) { s.completion.tokens.len() } else { 0 };
    let lengths: Vec<Vec<usize>> = scored.chunks(group).map(|group| group.iter().map(length).collect()).collect();
    stage.loss.loss_type.aggregate().weights(&lengths, stage.sampling.max_completion_length).concat()
}

fn takes_part(scored: &Scored, stage: &Stage) -> bool {
    !stage.tokens.mask_truncated_completions || scored.completion.finished()
}

impl Update<'_> {
    /// `num_iterations` optimiser steps on the same completions; says whether all of them was finite. Sequences that are
    /// not are left out of a step, and a step whose gradient is not is left out, and so are those after it.
    ///
    /// Completions without a gradient count in the weights and are not computed.
    pub(super) fn run(
        &self,
        mut model: CausalLm,
        optimizer: &mut AdamW,
        scored: &[Scored],
        control: &mut EntropyControl,
        metrics: &mut Metrics,
    ) -> (CausalLm, bool) {
        let start = Instant::now();
        let mut lessons = self.lessons(scored, control, metrics);
        arrange(&mut lessons, &model.device(), |(sequence, _)| sequence);
        let mut statistics = Statistics::default();
        let (mut norms, mut work) = (Vec::new(), Work::default());
        let mut finite = true;
        for _ in 0..self.stage.loss.num_iterations {
            let (gradients, seen, done) = self.gradients(&model, &lessons);
            let norm = gradients.norm();
            statistics.add(&seen);
            norms.push(norm);
            work.add(done);
            finite &= norm.is_finite() && done.skipped == 0;
            if !norm.is_finite() || lessons.is_empty() {
                break;
            }
            let scale = self.config.optim.clip(norm);
            model = optimizer.step(&self.config.optim, model, gradients, scale, self.lr);
        }
        self.describe(&statistics, &norms, metrics);
        work.describe(metrics);
        metrics.set("timing_s/update_actor", start.elapsed().as_secs_f64());
        (model, finite)
    }

    /// The completions that have something to teach, with what each of their tokens has.
    fn lessons(&self, scored: &[Scored], control: &mut EntropyControl, metrics: &mut Metrics) -> Vec<Lesson> {
        let stage = self.stage;
        let drawn: Vec<Drawn> = (scored.iter().zip(weights(scored, stage, self.config.train.num_generations)))
            .map(|(s, weight)| Drawn {
                log_probs: &s.completion.log_probs,
                entropies: &s.completion.sampling_entropies,
                advantage: s.advantage.total(),
                weight,
                hard: s.hard,
            })
            .collect();
        let coefficient = control.coefficient(stage.entropy_target());
        let mut random = Stream::new(&[self.config.seed, self.step as u64]);
        let (terms, counts) = stage.token_rules(coefficient).terms(&drawn, &mut random);
        let share = |count: usize| count as f64 / counts.tokens.max(1) as f64;
        if stage.has_entropy_bonus() {
            metrics.set("entropy_coef", f64::from(control.observe(counts.entropy, stage.entropy_target())));
        }
        if stage.tokens.top_entropy_quantile < 1.0 {
            metrics.set("tokens/low_entropy_share", share(counts.low_entropy));
        }
        if stage.tokens.covariance.is_some() {
            metrics.set("tokens/covariance_share", share(counts.covariance));
        }
        if stage.tokens.mask_truncated_completions {
            let masked = scored.iter().filter(|s| !takes_part(s, stage)).count();
            metrics.set("tokens/masked_completions", masked as f64 / scored.len().max(1) as f64);
        }
        let taught = scored.iter().zip(terms).filter(|(_, terms)| terms.iter().any(TokenTerm::learns));
        let mut lessons: Vec<Lesson> = taught.map(|(s, terms)| (s.sequence.clone(), terms)).collect();
        if let Some(reference) = self.reference {
            let start = Instant::now();
            let sequences: Vec<Sequence> = lessons.iter().map(|(sequence, _)| sequence.clone()).collect();
            for ((_, terms), log_probs) in lessons.iter_mut().zip(self.learner().log_probs(reference, &sequences)) {
                terms.iter_mut().zip(log_probs).for_each(|(term, log_prob)| term.reference_log_prob = log_prob);
            }
            metrics.set("timing_s/ref", start.elapsed().as_secs_f64());
        }
        lessons
    }

    fn learner(&self) -> Learner {
        Learner {
            temperature: self.stage.sampling.temperature,
            tokens_per_microbatch: self.config.train.tokens_per_microbatch,
            activation_checkpointing: self.config.train.activation_checkpointing,
            ..Learner::default()
        }
    }

    /// The gradient of the whole step, and what was counted on the way.
    fn gradients(&self, model: &CausalLm, lessons: &[Lesson]) -> (Gradients, Statistics, Work) {
        let objective = self.stage.objective();
        let sequences: Vec<Sequence> = lessons.iter().map(|(sequence, _)| sequence.clone()).collect();
        let (mut gradients, mut statistics) = (Gradients::default(), Statistics::default());
        let work = self.learner().backward(model, &sequences, &mut gradients, |range, scores| {
            let (mut upstream, mut seen) = (Upstream::default(), Statistics::default());
            let mut first = 0;
            for (_, terms) in &lessons[range] {
                let tokens = first..first + terms.len();
                first = tokens.end;
                let (log_prob, entropy) = (&scores.log_prob[tokens.clone()], &scores.sampling_entropy[tokens]);
                objective.evaluate(terms, log_prob, entropy, &mut seen, &mut upstream);
            }
            let finite = seen.is_finite();
            if finite {
                statistics.add(&seen);
            }
            finite.then_some(upstream)
        });
        (gradients, statistics, work)
    }

    fn describe(&self, statistics: &Statistics, norms: &[f64], metrics: &mut Metrics) {
        let updates = norms.len().max(1) as f64;
        let tokens = statistics.tokens.max(1) as f64;
        metrics.set("loss", statistics.loss / updates);
        metrics.set("grad_norm", norms.iter().sum::<f64>() / updates);
        if self.stage.loss.kl.is_some() {
            metrics.set("kl", statistics.kl_sum / tokens);
        }
        if self.stage.has_entropy_bonus() || self.stage.loss.kl.is_some() {
            metrics.set("policy_loss", statistics.policy_loss / updates);
        }
        metrics.set("clip_ratio/low_mean", statistics.low as f64 / tokens);
        metrics.set("clip_ratio/high_mean", statistics.high as f64 / tokens);
        metrics.set("clip_ratio/region_mean", (statistics.low + statistics.high) as f64 / tokens);
        metrics.set("sampling/sampling_logp_difference/mean", statistics.difference_sum / tokens);
        metrics.set("sampling/sampling_logp_difference/max", statistics.difference_max);
        if statistics.tokens > 0 {
            metrics.set("sampling/importance_sampling_ratio/min", statistics.ratio_min);
            metrics.set("sampling/importance_sampling_ratio/mean", statistics.ratio_sum / tokens);
            metrics.set("sampling/importance_sampling_ratio/max", statistics.ratio_max);
        }
    }
}
