//! Evaluates whether a server serves the trained weights.
//!
//! A server that answers 200 to a weight update may still use the old weights, half of the new ones, or a prefix cache
//! of the old ones. Therefore our own model scores a few short completions after each update.

use super::protocol::ServerCompletion;
use crate::generate::{Distribution, SampledToken};
use crate::rollout::settings::LogProbs;

/// Maximum number of prompts that a check samples from.
pub(super) const MAX_PROMPTS: usize = 4;
/// Maximum number of tokens of each completion of a check.
pub(super) const MAX_TOKENS: usize = 24;

/// Largest divergence of a float32 server with the right weights: 100 times the observed one (vLLM on a CPU: 1e-5 nats
/// from token to token).
const F32_LIMIT: f64 = 1e-6;
/// Lower bound of that of a 16-bit server: a log-probability off by 1.4e-2 nats, about two steps of bfloat16 at 1.
const SIXTEEN_BIT_LIMIT: f64 = 1e-4;
/// Largest ratio of the divergence of a 16-bit server to that of its first check.
const MAX_RATIO: f64 = 10.0;

/// Comparison of a server's model with ours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measurement {
    /// The kind of log-probabilities that fits the server's best.
    pub(super) reading: LogProbs,
    /// Divergence under that reading, in nats per token.
    pub(super) divergence: f64,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckOutcome {
    Passed,
    /// The divergence exceeds the limit or is not a number.
    OtherWeights,
    /// The correction cannot use raw log-probabilities.
    RawLogProbs,
}

impl Measurement {
    /// Compare a server's completions with the scores of our model. `known` is the kind of its log-probabilities.
    /// `Auto` finds it out, except at temperature 1, where both kinds are equal.
    pub(super) fn of(
        told: &[ServerCompletion],
        scored: &[Vec<SampledToken>],
        known: LogProbs,
        temperature: f32,
    ) -> Self {
        let divergence_from = |ours: fn(&SampledToken) -> f32| {
            let tokens = scored.iter().flatten().map(ours);
            divergence(tokens.zip(told.iter().flat_map(|completion| completion.log_probs.iter().copied())))
        };
        let processed = divergence_from(|sampled| sampled.log_prob);
        let raw = divergence_from(|sampled| sampled.unit_log_prob);
        let reading = match known {
            LogProbs::Auto if temperature != 1.0 && raw < processed => LogProbs::Raw,
            LogProbs::Auto if temperature != 1.0 => LogProbs::Processed,
            known => known,
        };
        Self { reading, divergence: if reading == LogProbs::Raw { raw } else { processed } }
    }

    /// Judges the measurement. `corrected` are the distributions whose log-probabilities the correction reads.
    pub(super) fn verdict(self, limit: f64, corrected: &[Distribution]) -> CheckOutcome {
        if self.divergence.is_nan() || self.divergence > limit {
            CheckOutcome::OtherWeights
        } else if self.reading == LogProbs::Raw && corrected.iter().any(|drawn| *drawn != Distribution::default()) {
            CheckOutcome::RawLogProbs
        } else {
            CheckOutcome::Passed
        }
    }
}

/// Return the divergence of our model from a server's in nats per token, given `(ours, theirs)` log-probabilities of
/// sampled tokens: the mean of `r − 1 − ln r`, where `r` is the ratio of our probability to the server's (k3 of
/// J. Schulman's "Approximating KL divergence").
pub(super) fn divergence(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for (ours, theirs) in pairs {
        let log = f64::from(ours - theirs).clamp(-20.0, 20.0);
        sum += log.exp() - 1.0 - log;
        count += 1;
    }
    sum / count.max(1) as f64
}

/// Return the largest divergence of a server with the right weights: `max_mean_kl`, or less if the rounding of the
/// server's number format explains less. `first` is the divergence of its first check.
pub(super) fn limit(max_mean_kl: f64, is_f32: bool, first: Option<f64>) -> f64 {
    let rounding = if is_f32 { Some(F32_LIMIT) } else { first.map(|first| (MAX_RATIO * first).max(SIXTEEN_BIT_LIMIT)) };
    rounding.map_or(max_mean_kl, |rounding| rounding.min(max_mean_kl))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_weights_come_before_raw_log_probabilities() {
        let (hot, plain) = ([Distribution::at(1.5)], [Distribution::default()]);
        for (reading, divergence, corrected, verdict) in [
            (LogProbs::Processed, 1e-7, hot, CheckOutcome::Passed),
            (LogProbs::Processed, 1e-5, hot, CheckOutcome::OtherWeights),
            (LogProbs::Raw, f64::NAN, hot, CheckOutcome::OtherWeights),
            (LogProbs::Raw, 1e-7, hot, CheckOutcome::RawLogProbs),
            (LogProbs::Raw, 1e-7, plain, CheckOutcome::Passed),
        ] {
            assert_eq!(Measurement { reading, divergence }.verdict(1e-6, &corrected), verdict, "{divergence}");
        }
    }

    #[test]
    fn the_limit_follows_the_precision_of_the_server() {
        assert_eq!([limit(0.01, true, None), limit(1e-8, true, None)], [1e-6, 1e-8]);
        let sixteen_bit = [None, Some(0.0), Some(1e-4), Some(0.1)].map(|first| limit(0.01, false, first));
        assert_eq!(sixteen_bit, [0.01, 1e-4, 1e-3, 0.01]);
    }
}
