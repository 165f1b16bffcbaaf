//! Contribution of one sampled token, in closed form from five numbers of its distribution.
//!
//! π is the softmax at the sampling temperature and `a` the token drawn. Of π, `H` is the entropy, `C = Σ π²` the
//! collision probability, and `D = Σ π² ln π`.
//!
//! 1. `∇_z ln π(a) = e_a − π`, so its norm is [`logit_gradient`] `= sqrt(1 − 2 π(a) + C)` (arXiv 2506.12912); its mean
//!    square over `a ∼ π` is `1 − C`, which grows with entropy.
//! 2. A step of size `η` along `A (e_a − π)` changes the entropy by `η A` times [`entropy_drift`] `= −[π(a) (ln π(a) +
//!    H) − (D + H C)]`, to first order. With a constant `A` the mean over `a ∼ π` is 0: entropy changes only if `A`
//!    depends on `ln π(a)`.
//! 3. Hence the change for a batch is `−η Cov(ln π(a), π(a) (A − mean A))` (arXiv 2505.22617).

use super::MeasuredCompletion;
use crate::objective::Parts;

/// Return the norm of the gradient of `ln π(a)` with respect to π's logits. From f32 inputs its error is about 2.5e-4,
/// less than the norm for a token of probability 0.9998.
pub fn logit_gradient(log_prob: f64, collision: f64) -> f64 {
    // Rounding can make the square negative.
    (1.0 - 2.0 * log_prob.exp() + collision).max(0.0).sqrt()
}

/// Return the change of entropy in nats per unit step along the gradient of `ln π(a)` with respect to π's logits.
pub fn entropy_drift(log_prob: f64, entropy: f64, collision: f64, collision_log: f64) -> f64 {
    let p = log_prob.exp();
    let surprise = if p > 0.0 { p * (log_prob + entropy) } else { 0.0 };
    collision_log + entropy * collision - surprise
}

/// A token with the inputs of the measures.
#[derive(Debug, Clone, Copy)]
pub(super) struct MeasuredToken {
    /// Entropy at temperature 1.
    pub(super) entropy: f64,
    /// Entropy at the sampling temperature.
    pub(super) sampling_entropy: f64,
    pub(super) log_prob: f64,
    pub(super) weight: f64,
    pub(super) advantage: Parts,
    /// [`logit_gradient`] with respect to the model's logits before the division by the temperature.
    pub(super) gradient: f64,
    /// [`entropy_drift`] for a step along that gradient.
    pub(super) drift: f64,
    pub(super) connector: bool,
}

/// Return the tokens of a sample drawn at `temperature`; `connector` flags those that begin a connector.
pub(super) fn tokens<'a>(
    sample: &'a MeasuredCompletion<'a>,
    temperature: f64,
    connector: &'a [bool],
) -> impl Iterator<Item = MeasuredToken> + 'a {
    (0..sample.tokens.len()).map(move |i| {
        let [log_prob, entropy, collision, collision_log] =
            [sample.log_probs, sample.sampling_entropies, sample.collisions, sample.collision_logs]
                .map(|figures| f64::from(figures[i]));
        MeasuredToken {
            entropy: f64::from(sample.entropies[i]),
            sampling_entropy: entropy,
            log_prob,
            weight: f64::from(sample.weight),
            advantage: sample.advantage,
            gradient: logit_gradient(log_prob, collision) / temperature,
            drift: entropy_drift(log_prob, entropy, collision, collision_log) / (temperature * temperature),
            connector: connector[i],
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f64; 6] = [1.3, -0.4, 0.2, 2.1, -1.7, 0.9];

    fn softmax(logits: &[f64]) -> Vec<f64> {
        let total: f64 = logits.iter().map(|z| z.exp()).sum();
        logits.iter().map(|z| z.exp() / total).collect()
    }

    fn sum(p: &[f64], f: impl Fn(f64) -> f64) -> f64 {
        p.iter().map(|&p| f(p)).sum()
    }

    fn entropy(p: &[f64]) -> f64 {
        -sum(p, |p| p * p.ln())
    }

    /// Return the central difference of `f` along each logit.
    fn gradient(f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
        let step = 1e-5;
        let at = |i: usize, by: f64| {
            let mut logits = LOGITS;
            logits[i] += by;
            f(&logits)
        };
        (0..LOGITS.len()).map(|i| (at(i, step) - at(i, -step)) / (2.0 * step)).collect()
    }

    #[test]
    fn the_gradients_length_is_that_of_finite_differences() {
        let p = softmax(&LOGITS);
        for a in 0..p.len() {
            let numeric = gradient(|logits| softmax(logits)[a].ln());
            let length = numeric.iter().map(|g| g * g).sum::<f64>().sqrt();
            let ours = logit_gradient(p[a].ln(), sum(&p, |p| p * p));
            assert!((ours - length).abs() < 1e-9, "{a}: {ours} against {length}");
        }
    }

    #[test]
    fn its_mean_square_is_one_minus_the_collision_probability() {
        let p = softmax(&LOGITS);
        let collision = sum(&p, |p| p * p);
        let mean = sum(&p, |p| p * logit_gradient(p.ln(), collision).powi(2));
        assert!((mean - (1.0 - collision)).abs() < 1e-12);
    }

    /// Compare with the directional derivative of the entropy along `e_a − π`, and the mean with the covariance.
    #[test]
    fn the_drift_is_that_of_finite_differences_and_cancels_in_the_mean() {
        let p = softmax(&LOGITS);
        let (h, c, d) = (entropy(&p), sum(&p, |p| p * p), sum(&p, |p| p * p * p.ln()));
        let numeric = gradient(|logits| entropy(&softmax(logits)));
        let drift = |a: usize| entropy_drift(p[a].ln(), h, c, d);
        for a in 0..p.len() {
            let along: f64 = (0..p.len()).map(|i| numeric[i] * (f64::from(u8::from(i == a)) - p[i])).sum();
            assert!((drift(a) - along).abs() < 1e-9, "{a}: {} against {along}", drift(a));
        }
        let mean: f64 = (0..p.len()).map(|a| p[a] * drift(a)).sum();
        assert!(mean.abs() < 1e-12, "{mean}");
        // With an advantage that differs from token to token, the mean is −Cov(ln π, π (A − mean A)).
        let advantage = [1.0, -0.5, 0.3, 2.0, -1.0, 0.0];
        let mean: f64 = (0..p.len()).map(|a| p[a] * advantage[a] * drift(a)).sum();
        let expect = |f: &dyn Fn(usize) -> f64| (0..p.len()).map(|a| p[a] * f(a)).sum::<f64>();
        let centre = expect(&|a| advantage[a]);
        let (log, push) = (|a: usize| p[a].ln(), |a: usize| p[a] * (advantage[a] - centre));
        let covariance = expect(&|a| log(a) * push(a)) - expect(&log) * expect(&push);
        assert!((mean + covariance).abs() < 1e-12, "{mean} against {covariance}");
    }

    /// Rewarding the most probable token lowers the entropy; rewarding a rare token raises it.
    #[test]
    fn a_rewarded_rare_token_raises_entropy() {
        let p = softmax(&LOGITS);
        let (h, c, d) = (entropy(&p), sum(&p, |p| p * p), sum(&p, |p| p * p * p.ln()));
        assert!(entropy_drift(p[3].ln(), h, c, d) < 0.0 && entropy_drift(p[4].ln(), h, c, d) > 0.0);
    }

    #[test]
    fn a_certain_token_has_no_gradient_and_no_drift() {
        assert_eq!(logit_gradient(0.0, 1.0 - 1e-7), 0.0);
        assert_eq!((logit_gradient(0.0, 1.0), entropy_drift(0.0, 0.0, 1.0, 0.0)), (0.0, 0.0));
        assert_eq!(entropy_drift(f64::NEG_INFINITY, 0.0, 1.0, 0.0), 0.0);
    }
}
