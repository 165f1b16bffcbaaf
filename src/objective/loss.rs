//! Loss of a completion and its derivatives, in closed form on the host, as functions of each token's log-probability
//! and entropy and of values known before the update ([`TokenTerm`]).
//!
//! The learner evaluates both after its forward pass and backpropagates the derivatives through the model. This module
//! uses no tensors and no micro-batches. A token's weight includes its divisor, computed once for the mini-batch.

use serde::{Deserialize, Serialize};

/// Level of the importance ratio `ρ = π / π_old` (TRL's `importance_sampling_level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ratio {
    /// Probability of each token.
    Token,
    /// Probability of the completion to the power of one over its length, for all its tokens (GSPO, arXiv 2507.18071).
    Sequence,
}

/// Function from a token's ratio and advantage to its loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Surrogate {
    /// `−min(min(ρ, δ)·A, clip(ρ, 1 − ε, 1 + ε_high)·A)` (PPO, arXiv 1707.06347; two bounds: DAPO; δ: the dual clip of
    /// arXiv 1912.09729 as in TRL).
    Clip {
        /// ε.
        low: f32,
        /// ε_high.
        high: f32,
        /// δ, the bound on the ratio when the advantage is negative; `None` for no bound.
        delta: Option<f32>,
    },
    /// `−ρ·A`, for KL-Cov, whose penalty replaces the clip (arXiv 2505.22617; verl's `compute_policy_loss_kl_cov`).
    Unclipped,
    /// `−min(ρ, max)·A·log π` with the factor held constant: no token loses its gradient (CISPO, arXiv 2506.13585).
    Cispo {
        /// The largest factor.
        max: f32,
    },
    /// `−(4/τ)·σ(τ·(ρ − 1))·A`, a soft clip (SAPO, arXiv 2511.20347).
    Sapo {
        /// τ for positive advantages.
        positive: f32,
        /// τ for all other advantages.
        negative: f32,
    },
}

/// Estimator of the divergence from the reference model per token, with `d = log π_ref − log π`
/// (<http://joschu.net/blog/kl-approx.html>).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `−d`.
    K1,
    /// `d² / 2`.
    K2,
    /// `e^d − d − 1`, as in TRL.
    #[default]
    K3,
}

/// Inputs of a token's loss that are known before the update.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f32; 7]", into = "[f32; 7]")]
pub struct TokenTerm {
    /// Log-probability before the first update that uses the token, in nats: the trainer's, or that of the engine that
    /// sampled it if the ratio is taken against the engine's.
    pub old_log_prob: f32,
    /// Log-probability under the reference model, in nats; read only if `kl` is not 0.
    pub reference_log_prob: f32,
    /// Advantage of the token.
    pub advantage: f32,
    /// Factor of the surrogate; 0 if the token is excluded from it.
    pub weight: f32,
    /// Factor of the divergence from the reference model: `beta` times the weight.
    pub kl: f32,
    /// Factor of `|log ρ|` (KL-Cov, arXiv 2505.22617).
    pub covariance_kl: f32,
    /// Factor of the entropy; their product is subtracted from the loss.
    pub entropy: f32,
}

impl From<TokenTerm> for [f32; 7] {
    fn from(term: TokenTerm) -> Self {
        let TokenTerm { old_log_prob, reference_log_prob, advantage, weight, kl, covariance_kl, entropy } = term;
        [old_log_prob, reference_log_prob, advantage, weight, kl, covariance_kl, entropy]
    }
}

impl From<[f32; 7]> for TokenTerm {
    fn from(numbers: [f32; 7]) -> Self {
        let [old_log_prob, reference_log_prob, advantage, weight, kl, covariance_kl, entropy] = numbers;
        Self { old_log_prob, reference_log_prob, advantage, weight, kl, covariance_kl, entropy }
    }
}

impl TokenTerm {
    /// Whether the loss of the token can have a gradient.
    pub fn learns(&self) -> bool {
        self.weight * self.advantage != 0.0 || self.kl != 0.0 || self.covariance_kl != 0.0 || self.entropy != 0.0
    }
}

/// Definition of the loss of a token term.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Level of the importance ratio: token or completion.
    pub ratio: Ratio,
    /// Function from ratio and advantage to loss.
    pub surrogate: Surrogate,
    /// Estimator of the divergence from the reference model.
    pub kl_estimator: KlEstimator,
}

/// Derivatives of the loss with respect to the model's outputs for each token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Upstream {
    /// Derivatives with respect to the log-probabilities.
    pub log_prob: Vec<f32>,
    /// Derivatives with respect to the entropies at the sampling temperature.
    pub entropy: Vec<f32>,
}

impl Objective {
    /// Add the loss of a completion, or of part of one, to `statistics` and append its derivatives to `upstream`.
    ///
    /// With [`Ratio::Sequence`] the slices must cover the whole completion; otherwise any range of tokens is allowed.
    ///
    /// # Panics
    /// When the slices differ in length.
    pub fn evaluate(
        &self,
        terms: &[TokenTerm],
        log_prob: &[f32],
        entropy: &[f32],
        statistics: &mut Statistics,
        upstream: &mut Upstream,
    ) {
        assert!(terms.len() == log_prob.len() && terms.len() == entropy.len(), "terms and tokens");
        let log_ratios = terms.iter().zip(log_prob).map(|(term, log_prob)| f64::from(log_prob - term.old_log_prob));
        let sequence = log_ratios.clone().sum::<f64>() / terms.len().max(1) as f64;
        let first = upstream.log_prob.len();
        let mut of_sequence = 0.0;
        for (((term, &log_prob), &entropy), log_ratio) in terms.iter().zip(log_prob).zip(entropy).zip(log_ratios) {
            let ratio = match self.ratio {
                Ratio::Token => log_ratio,
                Ratio::Sequence => sequence,
            }
            .exp();
            let surrogate = self.surrogate.of(ratio, term, f64::from(log_prob));
            let weight = f64::from(term.weight);
            let mut derivative = weight * surrogate.by_log_prob;
            match self.ratio {
                Ratio::Token => derivative += weight * surrogate.by_log_ratio,
                Ratio::Sequence => of_sequence += weight * surrogate.by_log_ratio / terms.len() as f64,
            }
            statistics.policy_loss += weight * surrogate.value;
            statistics.loss += weight * surrogate.value;
            if term.kl != 0.0 {
                let (value, by_log_prob) = self.kl_estimator.of(f64::from(term.reference_log_prob - log_prob));
                statistics.loss += f64::from(term.kl) * value;
                statistics.kl_sum += value;
                derivative += f64::from(term.kl) * by_log_prob;
            }
            if term.covariance_kl != 0.0 {
                statistics.loss += f64::from(term.covariance_kl) * log_ratio.abs();
                let sign = if log_ratio == 0.0 { 0.0 } else { log_ratio.signum() };
                derivative += f64::from(term.covariance_kl) * sign;
            }
            statistics.loss -= f64::from(term.entropy) * f64::from(entropy);
            statistics.tokens += 1;
            if self.ratio == Ratio::Token || upstream.log_prob.len() == first {
                statistics.count(self.surrogate, term, ratio);
            }
            upstream.log_prob.push(derivative as f32);
            upstream.entropy.push(-term.entropy);
        }
        if of_sequence != 0.0 {
            upstream.log_prob[first..].iter_mut().for_each(|derivative| *derivative += of_sequence as f32);
        }
    }
}

/// A surrogate's value and its derivatives.
struct Value {
    value: f64,
    by_log_ratio: f64,
    by_log_prob: f64,
}

impl Surrogate {
    fn of(self, ratio: f64, term: &TokenTerm, log_prob: f64) -> Value {
        let advantage = f64::from(term.advantage);
        match self {
            Self::Clip { low, high, delta } => {
                let bound = delta.map_or(f64::INFINITY, f64::from);
                let (floor, ceiling) = (1.0 - f64::from(low), 1.0 + f64::from(high));
                let raw = ratio.min(bound) * advantage;
                let clipped = ratio.clamp(floor, ceiling) * advantage;
                let moves = if raw <= clipped { ratio <= bound } else { ratio >= floor && ratio <= ceiling };
                let by_log_ratio = if moves { -ratio * advantage } else { 0.0 };
                Value { value: -raw.min(clipped), by_log_ratio, by_log_prob: 0.0 }
            }
            Self::Unclipped => Value { value: -ratio * advantage, by_log_ratio: -ratio * advantage, by_log_prob: 0.0 },
            Self::Cispo { max } => {
                let factor = ratio.min(f64::from(max)) * advantage;
                Value { value: -factor * log_prob, by_log_ratio: 0.0, by_log_prob: -factor }
            }
            Self::Sapo { positive, negative } => {
                let tau = f64::from(if advantage > 0.0 { positive } else { negative });
                let gate = 1.0 / (1.0 + (-tau * (ratio - 1.0)).exp());
                let slope = 4.0 * gate * (1.0 - gate);
                Value {
                    value: -4.0 / tau * gate * advantage,
                    by_log_ratio: -slope * ratio * advantage,
                    by_log_prob: 0.0,
                }
            }
        }
    }
}

impl KlEstimator {
    /// Return the estimate for `d = log π_ref − log π` and its derivative with respect to `log π`.
    fn of(self, d: f64) -> (f64, f64) {
        match self {
            Self::K1 => (-d, 1.0),
            Self::K2 => (d * d / 2.0, -d),
            Self::K3 => (d.exp() - d - 1.0, 1.0 - d.exp()),
        }
    }
}

/// Sums over the tokens of an update.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Total loss: surrogate, divergence, KL-Cov penalty and entropy bonus.
    pub loss: f64,
    /// Contribution of the surrogate to the loss.
    pub policy_loss: f64,
    /// Sum of the divergence estimates, before `beta`.
    pub kl_sum: f64,
    /// Number of tokens evaluated.
    pub tokens: usize,
    /// Ratios clipped from below: under `1 − ε` with a negative advantage. A sequence-level ratio counts once.
    pub low: usize,
    /// Ratios clipped from above: over `1 + ε_high` (CISPO: over its bound) with a positive advantage.
    pub high: usize,
    /// Ratios that are not finite.
    pub non_finite: usize,
}

impl Statistics {
    fn count(&mut self, surrogate: Surrogate, term: &TokenTerm, ratio: f64) {
        let (floor, ceiling) = match surrogate {
            Surrogate::Clip { low, high, .. } => (1.0 - f64::from(low), 1.0 + f64::from(high)),
            Surrogate::Cispo { max } => (0.0, f64::from(max)),
            Surrogate::Sapo { .. } | Surrogate::Unclipped => (0.0, f64::INFINITY),
        };
        self.low += usize::from(term.advantage < 0.0 && ratio < floor);
        self.high += usize::from(term.advantage > 0.0 && ratio > ceiling);
        self.non_finite += usize::from(!ratio.is_finite());
    }

    /// Whether the loss and all ratios are finite.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.non_finite == 0
    }

    /// Add the sums of another part of the update.
    pub fn add(&mut self, other: &Self) {
        self.loss += other.loss;
        self.policy_loss += other.policy_loss;
        self.kl_sum += other.kl_sum;
        self.tokens += other.tokens;
        self.low += other.low;
        self.high += other.high;
        self.non_finite += other.non_finite;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Surrogate = Surrogate::Clip { low: 0.2, high: 0.28, delta: None };

    fn objective(ratio: Ratio, surrogate: Surrogate) -> Objective {
        Objective { ratio, surrogate, kl_estimator: KlEstimator::K3 }
    }

    fn evaluate(objective: &Objective, terms: &[TokenTerm], log_prob: &[f32]) -> (Statistics, Upstream) {
        let (mut statistics, mut upstream) = (Statistics::default(), Upstream::default());
        let entropy: Vec<f32> = (0..terms.len()).map(|i| 0.1 * i as f32).collect();
        objective.evaluate(terms, log_prob, &entropy, &mut statistics, &mut upstream);
        (statistics, upstream)
    }

    /// Ratios 1.5 (clipped above), 0.5 (kept, since A > 0), 1, and 0.5 with a negative advantage (clipped below).
    #[test]
    fn clips_as_by_hand_and_a_clipped_token_has_no_gradient() {
        let term = |advantage| TokenTerm { advantage, weight: 0.25, ..TokenTerm::default() };
        let terms = [term(1.0), term(1.0), term(1.0), term(-2.0)];
        let log_prob = [1.5f32.ln(), 0.5f32.ln(), 0.0, 0.5f32.ln()];
        let (statistics, upstream) = evaluate(&objective(Ratio::Token, CLIP), &terms, &log_prob);
        assert!((statistics.loss - -(1.28 + 0.5 + 1.0 - 1.6) / 4.0).abs() < 1e-6, "{statistics:?}");
        assert_eq!((statistics.tokens, statistics.low, statistics.high), (4, 1, 1));
        let expected = [0.0, -0.125, -0.25, 0.0];
        assert!(upstream.log_prob.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{upstream:?}");
        assert_eq!((upstream.log_prob[0], upstream.log_prob[3]), (0.0, 0.0));
    }

    /// Compare with central differences of the loss, for clip, dual clip and SAPO, both levels of the ratio and every
    /// estimator, with every term in use, at points away from the corners of the clip.
    #[test]
    fn derivatives_are_those_of_the_loss() {
        let terms: Vec<TokenTerm> = (0..5)
            .map(|i| TokenTerm {
                old_log_prob: -1.0 - 0.3 * i as f32,
                reference_log_prob: -0.8 - 0.35 * i as f32,
                advantage: [1.0, -0.7, 0.4, -1.3, 0.0][i],
                weight: [0.2, 0.2, 0.0, 0.1, 0.3][i],
                kl: 0.05,
                covariance_kl: if i == 1 { 0.3 } else { 0.0 },
                entropy: 0.02,
            })
            .collect();
        let log_prob = [-0.55f32, -1.6, -1.58, -2.1, -2.3];
        let surrogates = [
            CLIP,
            Surrogate::Clip { low: 0.2, high: 0.2, delta: Some(1.1) },
            Surrogate::Sapo { positive: 1.0, negative: 1.05 },
        ];
        for surrogate in surrogates {
            for ratio in [Ratio::Token, Ratio::Sequence] {
                for kl_estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
                    let objective = Objective { ratio, surrogate, kl_estimator };
                    let (_, upstream) = evaluate(&objective, &terms, &log_prob);
                    for i in 0..terms.len() {
                        let shifted = |by: f32| {
                            let mut log_prob = log_prob;
                            log_prob[i] += by;
                            evaluate(&objective, &terms, &log_prob).0.loss
                        };
                        let numeric = (shifted(1e-3) - shifted(-1e-3)) / 2e-3;
                        let exact = f64::from(upstream.log_prob[i]);
                        assert!((numeric - exact).abs() < 2e-4, "{objective:?} token {i}: {numeric} against {exact}");
                    }
                    assert!(upstream.entropy.iter().all(|&derivative| derivative == -0.02));
                }
            }
        }
    }

    /// CISPO's factor is held constant, so its gradient is `−min(ρ, max)·A·w`, not the derivative of its value.
    #[test]
    fn cispo_keeps_the_gradient_of_every_token() {
        let term = |advantage| TokenTerm { advantage, weight: 0.5, ..TokenTerm::default() };
        let (statistics, upstream) = evaluate(
            &objective(Ratio::Token, Surrogate::Cispo { max: 2.0 }),
            &[term(1.0), term(-1.0)],
            &[3.0f32.ln(), 0.5f32.ln()],
        );
        assert!((upstream.log_prob[0] + 1.0).abs() < 1e-6 && (upstream.log_prob[1] - 0.25).abs() < 1e-6);
        assert_eq!(statistics.high, 1);
    }
}
