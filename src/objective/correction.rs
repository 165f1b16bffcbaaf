//! Correction for completions that another engine sampled. Its probabilities differ from those of the trained model
//! because of rounding, different kernels or older weights.
//!
//! With `d_t = ln π_old(y_t) − ln π_engine(y_t)`, both at the sampling temperature and `π_old` the trained model before
//! the first update of the step, each token's surrogate is multiplied by a factor without a gradient. The factor of a
//! sequence applies to all its tokens. Differences, sums and means are clamped to ±20 before exponentiation, as in
//! verl; a difference that is NaN counts as 0, as in TRL.
//!
//! | mode | factor | from |
//! |---|---|---|
//! | `token_truncate` | `e^{d_t}`, clipped to `[min, max]` | TRL; TIS of F. Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" |
//! | `token_mask` | `e^{d_t}` within `[min, max]`, else 0 | TRL; IcePop |
//! | `sequence_truncate` | `e^{Σ d_t}`, clipped to `[min, max]` | TRL |
//! | `sequence_mask` | `e^{Σ d_t}` within `[min, max]`, else 0 | TRL, its default with a `max` of 3 |
//! | `geometric_mask` | 1 where `e^{mean d_t}` is within `[min, max]`, else 0 | SkyRL's `geometric`; verl's `seq_mean_k1` has the bounds on `e^{−mean d_t}` |
//!
//! As in TRL 1.16 (`GRPOTrainer._compute_loss`), the factor multiplies the surrogate (here with KL-Cov's penalty, as in
//! verl), but not the divergence from the reference model or the entropy bonus. A completion whose factor is 0 still
//! counts in the mean. (verl excludes masked completions from the mean.)

use serde::{Deserialize, Serialize};

use super::loss::TokenTerm;

/// Correction for the difference between the engine that samples and the trained model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Correction {
    /// Source of the old log-probabilities in the ratio of the loss.
    pub old_log_probs: OldLogProbs,
    /// Factor of each token's loss.
    pub mode: Mode,
    /// Largest ratio that counts in full; 3.0 unless given, and 1.01 with geometric_mask. No ratio is above e^20, 4.9e8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Smallest ratio that counts in full; none unless given, and 1 / max with geometric_mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
}

/// Source of the old log-probabilities in the ratio of the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OldLogProbs {
    /// The trained model before the first update of the step.
    #[default]
    Trainer,
    /// The engine, without a pass of the trainer: the clip bounds both differences at once (verl's `bypass_mode`).
    /// Requires mode = "none", because the ratio includes the factor; verl, too, leaves it out then.
    Engine,
}

/// Factor of a token's loss; see the module's documentation for the formulae.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// 1.
    None,
    /// The token's ratio, held within the bounds.
    TokenTruncate,
    /// The token's ratio, or 0 where it is out of bounds.
    TokenMask,
    /// The ratio of the whole completion, held within the bounds.
    SequenceTruncate,
    /// The ratio of the whole completion, or 0 where it is out of bounds.
    #[default]
    SequenceMask,
    /// 1, or 0 where the geometric mean of the completion's ratios is out of bounds.
    GeometricMask,
}

impl Default for Correction {
    /// TRL's default: completions whose ratio is above 3 are masked.
    fn default() -> Self {
        Self { mode: Mode::default(), ..Self::NONE }
    }
}

/// Return the trainer's log-probability (`old`) minus the engine's (`sampled`) for each token, in nats.
pub fn differences(old: &[f32], sampled: &[f32]) -> Vec<f32> {
    old.iter().zip(sampled).map(|(old, sampled)| old - sampled).collect()
}

/// Largest absolute value of an exponent.
const LIMIT: f64 = 20.0;

/// Return `e^log`, with `log` clamped to ±20.
pub fn ratio(log: f64) -> f64 {
    log.clamp(-LIMIT, LIMIT).exp()
}

impl Correction {
    /// No correction, for an engine that samples from the trained model itself.
    pub const NONE: Self = Self { old_log_probs: OldLogProbs::Trainer, mode: Mode::None, max: None, min: None };

    /// Whether the engine's log-probabilities are used.
    pub fn reads_sampled(&self) -> bool {
        self.mode != Mode::None || self.old_log_probs == OldLogProbs::Engine
    }

    /// Whether all tokens of a completion have the same factor.
    pub fn is_of_sequences(&self) -> bool {
        matches!(self.mode, Mode::SequenceTruncate | Mode::SequenceMask | Mode::GeometricMask)
    }

    /// Return the factor of each token of a completion, given `ln π_old − ln π_engine` for each.
    pub fn factors(&self, differences: &[f32]) -> Vec<f32> {
        let known = |d: &f32| if d.is_nan() { 0.0 } else { f64::from(d.clamp(f32::MIN, f32::MAX)) };
        let logs = differences.iter().map(known);
        let all = |factor: f64| vec![factor as f32; differences.len()];
        let [min, max] = self.bounds();
        let inside = |ratio: f64| ratio >= min && ratio <= max;
        let masked = |ratio: f64| if inside(ratio) { ratio } else { 0.0 };
        match self.mode {
            Mode::None => all(1.0),
            Mode::TokenTruncate => logs.map(|log| ratio(log).clamp(min, max) as f32).collect(),
            Mode::TokenMask => logs.map(|log| masked(ratio(log)) as f32).collect(),
            Mode::SequenceTruncate => all(ratio(logs.sum()).clamp(min, max)),
            Mode::SequenceMask => all(masked(ratio(logs.sum()))),
            Mode::GeometricMask => {
                let mean = logs.sum::<f64>() / differences.len().max(1) as f64;
                all(f64::from(inside(ratio(mean))))
            }
        }
    }

    /// Set the old log-probabilities of a completion's terms and apply the factors. `old` and `sampled` are the
    /// tokens' log-probabilities by the model before the first update and by the engine, each read only if needed.
    pub fn apply(&self, terms: &mut [TokenTerm], old: &[f32], sampled: &[f32]) {
        let compared = if self.old_log_probs == OldLogProbs::Engine { sampled } else { old };
        terms.iter_mut().zip(compared).for_each(|(term, &log_prob)| term.old_log_prob = log_prob);
        if self.mode == Mode::None {
            return;
        }
        for (term, factor) in terms.iter_mut().zip(self.factors(&differences(old, sampled))) {
            term.weight *= factor;
            term.covariance_kl *= factor;
        }
    }

    /// Return the smallest and the largest ratio that count in full.
    fn bounds(&self) -> [f64; 2] {
        let geometric = self.mode == Mode::GeometricMask;
        let max = self.max.unwrap_or(if geometric { 1.01 } else { 3.0 });
        [self.min.unwrap_or(if geometric { 1.0 / max } else { 0.0 }), max]
    }

    /// Return the settings that cannot work, each as `key = value` and the reason.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.old_log_probs == OldLogProbs::Engine && self.mode != Mode::None {
            mistakes.push(
                "old_log_probs = \"engine\" already includes the correction in the ratio: set mode = \"none\""
                    .to_string(),
            );
        }
        let given = [("max", self.max), ("min", self.min)];
        for (key, value) in given.into_iter().filter_map(|(key, value)| value.map(|value| (key, value))) {
            if self.mode == Mode::None {
                mistakes.push(format!("{key} = {value} has no effect with mode = \"none\": remove it"));
            } else if !(value > 0.0 && value.is_finite()) {
                mistakes.push(format!("{key} = {value} must be positive"));
            }
        }
        let [min, max] = self.bounds();
        if mistakes.is_empty() && min >= max {
            mistakes.push(format!("max = {max} must be above min = {min}"));
        }
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mode: Mode, min: Option<f64>, max: Option<f64>) -> Correction {
        Correction { mode, min, max, ..Correction::NONE }
    }

    #[test]
    fn the_geometric_mask_keeps_or_drops_whole_completions_by_their_mean() {
        let mask = of(Mode::GeometricMask, Some(0.9), Some(1.2));
        assert_eq!(mask.factors(&[0.5, -0.3, 0.1]), [1.0; 3]);
        assert_eq!(mask.factors(&[0.5, -0.3, 0.7]), [0.0; 3]);
        assert_eq!(mask.factors(&[-0.5, 0.1]), [0.0; 2]);
        // The default bounds are 1% on either side.
        let mask = of(Mode::GeometricMask, None, None);
        assert_eq!([0.0099, -0.0099, 0.0101, -0.0101].map(|d| mask.factors(&[d])[0]), [1.0, 1.0, 0.0, 0.0]);
    }

    /// Beyond TRL's test cases: no sum overflows, and no factor is NaN.
    #[test]
    fn differences_without_bound_give_finite_factors() {
        let far = [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e9, f32::NAN, 300.0];
        for mode in [
            Mode::None,
            Mode::TokenTruncate,
            Mode::TokenMask,
            Mode::SequenceTruncate,
            Mode::SequenceMask,
            Mode::GeometricMask,
        ] {
            let correction = of(mode, None, Some(1e9));
            for differences in [&far[..], &far[..1], &far[1..2], &far[4..], &[]] {
                let factors = correction.factors(differences);
                assert_eq!(factors.len(), differences.len());
                assert!(factors.iter().all(|factor| factor.is_finite() && *factor >= 0.0), "{mode:?}: {factors:?}");
            }
        }
        assert_eq!(of(Mode::TokenMask, None, Some(1e9)).factors(&[25.0]), [20f64.exp() as f32]);
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let engine = Correction { old_log_probs: OldLogProbs::Engine, ..Correction::NONE };
        for good in [Correction::default(), Correction::NONE, engine, of(Mode::TokenMask, Some(0.5), Some(5.0))] {
            assert!(good.mistakes().is_empty(), "{:?}", good.mistakes());
        }
        for (bad, word) in [
            (Correction { mode: Mode::TokenMask, ..engine }, "old_log_probs"),
            (of(Mode::None, None, Some(2.0)), "max"),
            (of(Mode::SequenceMask, Some(-1.0), None), "min"),
            (of(Mode::SequenceMask, Some(4.0), None), "max"),
            (of(Mode::TokenTruncate, None, Some(f64::INFINITY)), "max"),
            (of(Mode::GeometricMask, None, Some(0.9)), "max"),
        ] {
            let mistakes = bad.mistakes();
            assert!(mistakes.len() == 1 && mistakes[0].contains(word), "{bad:?}: {mistakes:?}");
        }
    }
}
