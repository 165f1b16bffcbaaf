//! Whether a server's model is the trained one.
//!
//! A server that answers 200 to new weights may go on with the old ones, with half of them, or with a prefix cache of the
//! old ones. So a few short completions are sampled after every change and scored by our own model.

use super::protocol::Told;
use crate::generate::Sampled;
use crate::rollout::settings::LogProbs;

/// Prompts that a check samples from.
pub(super) const PROMPTS: usize = 4;
/// Tokens of each of its completions at most.
pub(super) const TOKENS: usize = 24;

/// Divergence of a server in single precision whose weights are right: 100 times what was seen (vLLM on a CPU: 1e-5 nats
/// from token to token).
const SINGLE: f64 = 1e-6;
/// The same of a server that computes in 16 bits: a log-probability off by 1.4e-2 nats, about two steps of bfloat16 at 1.
const SIXTEEN: f64 = 1e-4;
/// How many times as large as at the first check the divergence may be.
const TIMES: f64 = 10.0;

/// The divergence of the trained model from a server's, in nats a token, over the tokens that the server sampled:
/// mean of `r − 1 − ln r` with `r` the ratio of the probabilities (k3 of J. Schulman's "Approximating KL divergence").
pub(super) fn divergence(pairs: impl Iterator<Item = (f32, f32)>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for (ours, theirs) in pairs {
        let log = f64::from(ours - theirs).clamp(-20.0, 20.0);
        sum += log.exp() - 1.0 - log;
        count += 1;
    }
    sum / count.max(1) as f64
}

/// The divergences when the server's log-probabilities are read as those at the sampling temperature, and as raw ones.
pub(super) fn divergences(told: &[Told], scored: &[Vec<Sampled>]) -> [f64; 2] {
    let pairs = |of: fn(&Sampled) -> f32| {
        let of_one = |(scored, told): (&Vec<Sampled>, &Told)| -> Vec<(f32, f32)> {
            scored.iter().map(of).zip(told.log_probs.iter().copied()).collect()
        };
        divergence(scored.iter().zip(told).flat_map(of_one))
    };
    [pairs(|sampled| sampled.log_prob), pairs(|sampled| sampled.unit_log_prob)]
}

/// What the log-probabilities are, and the divergence under that reading. At temperature 1 both are the same.
pub(super) fn reading(known: LogProbs, [processed, raw]: [f64; 2], temperature: f32) -> (LogProbs, f64) {
    match known {
        LogProbs::Processed => (known, processed),
        LogProbs::Raw => (known, raw),
        LogProbs::Auto if temperature == 1.0 => (known, processed),
        LogProbs::Auto if raw < processed => (LogProbs::Raw, raw),
        LogProbs::Auto => (LogProbs::Processed, processed),
    }
}

/// The largest divergence of a server whose weights are right: that which the settings allow, and not many times that
/// of the first check, or of the server's precision.
pub(super) fn limit(most: f64, is_f32: bool, before: Option<f64>) -> f64 {
    let rounding = if is_f32 { Some(SINGLE) } else { before.map(|before| (TIMES * before).max(SIXTEEN)) };
    rounding.map_or(most, |rounding| rounding.min(most))
}
