//! Metrics of the updates of a step.

use std::ops::Range;

use super::Example;
use crate::metrics::Metrics;
use crate::objective::correction::{Mode, differences, ratio};
use crate::objective::{Correction, Statistics, Surrogate};
use crate::stage::Stage;
use crate::train::learner::Work;

/// Figures of each optimiser step of a step. A metric is the mean over them, as in TRL.
#[derive(Debug, Default)]
pub(super) struct Log {
    losses: Vec<f64>,
    policy_losses: Vec<f64>,
    kls: Vec<f64>,
    norms: Vec<f64>,
    low: Vec<f64>,
    high: Vec<f64>,
    pub(super) low_entropy: Vec<f64>,
    pub(super) covariance: Vec<f64>,
    pub(super) coefficients: Vec<f64>,
    work: Work,
    /// Optimiser steps that were left out.
    pub(super) skipped: usize,
}

impl Log {
    /// Add one optimiser step: statistics of its loss, number of importance ratios, gradient norm, and work.
    pub(super) fn note(&mut self, statistics: &Statistics, ratios: usize, norm: f64, work: Work) {
        let share = |count: usize| count as f64 / ratios.max(1) as f64;
        self.losses.push(statistics.loss);
        self.policy_losses.push(statistics.policy_loss);
        self.kls.push(statistics.kl_sum / statistics.tokens.max(1) as f64);
        self.norms.push(norm);
        self.low.push(share(statistics.low));
        self.high.push(share(statistics.high));
        self.work.add(work);
    }

    /// Set the metrics of losses, gradients, clipping, and work.
    pub(super) fn describe(&self, stage: &Stage, metrics: &mut Metrics) {
        metrics.set_mean("loss", &self.losses);
        metrics.set_mean("grad_norm", &self.norms);
        if stage.loss.kl.is_some() {
            metrics.set_mean("kl", &self.kls);
        }
        if stage.has_entropy_bonus() || stage.loss.kl.is_some() {
            metrics.set_mean("policy_loss", &self.policy_losses);
        }
        if stage.has_entropy_bonus() {
            metrics.set_mean("entropy_coef", &self.coefficients);
        }
        if stage.tokens.top_entropy_quantile < 1.0 {
            metrics.set_mean("tokens/low_entropy_share", &self.low_entropy);
        }
        if stage.tokens.covariance.is_some() {
            metrics.set_mean("tokens/covariance_share", &self.covariance);
        }
        match stage.objective().surrogate {
            Surrogate::Clip { .. } => {
                let either: Vec<f64> = self.low.iter().zip(&self.high).map(|(low, high)| low + high).collect();
                metrics.set_mean("clip_ratio/low_mean", &self.low);
                metrics.set_mean("clip_ratio/high_mean", &self.high);
                metrics.set_mean("clip_ratio/region_mean", &either);
            }
            Surrogate::Cispo { .. } => metrics.set_mean("cispo_clip_ratio", &self.high),
            Surrogate::Sapo { .. } | Surrogate::Unclipped => {}
        }
        self.work.describe(metrics);
    }
}

/// Set the shares of masked completions and of tokens without an advantage, where the stage has such rules.
pub(super) fn describe_tokens(stage: &Stage, examples: &[Example], metrics: &mut Metrics) {
    if stage.tokens.mask_truncated_completions {
        let masked = examples.iter().filter(|example| !example.takes_part).count();
        metrics.set("tokens/masked_completions", masked as f64 / examples.len().max(1) as f64);
    }
    if stage.tokens.step_selection.is_some() {
        let silent: usize = examples.iter().flat_map(|example| &example.silent).map(Range::len).sum();
        let tokens: usize = examples.iter().map(|example| example.sampled.len()).sum();
        metrics.set("tokens/silent_share", silent as f64 / tokens.max(1) as f64);
    }
}

/// Set the metrics of the difference between the log-probabilities of the sampler and of the trainer (`old`), over all
/// completions whose old ones are known (TRL's `sampling/…`, which it sets with vLLM): of all completions of another engine or
/// format, else of those with a gradient. Ratios are those that `correction` leaves, of tokens or of completions.
pub(super) fn describe_mismatch(
    correction: &Correction,
    examples: &[Example],
    old: &[Vec<f32>],
    metrics: &mut Metrics,
) {
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
