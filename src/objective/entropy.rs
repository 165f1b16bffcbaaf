//! Coefficient of the entropy bonus, fixed or adaptive.

use serde::{Deserialize, Serialize};

/// Range and target of adaptive control (TRL's rule; arXiv 2505.22312).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EntropyTarget {
    /// Target entropy, in nats per token at the sampling temperature.
    pub target: f64,
    /// Change of the coefficient per optimiser step.
    pub delta: f32,
    /// Smallest coefficient.
    pub min: f32,
    /// Largest coefficient.
    pub max: f32,
}

/// State of the control between optimiser steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EntropyControl {
    coef: f32,
    /// Entropy of the last optimiser step; `None` before the first, which has no bonus under adaptive control.
    last: Option<f64>,
}

impl EntropyControl {
    /// Return the state at the start of a stage.
    pub fn new(coef: f32) -> Self {
        Self { coef, last: None }
    }

    /// Return the factor of the bonus in this step. With adaptive control it is 0 unless the last step's entropy was
    /// at or below the target.
    pub fn coefficient(&self, adaptive: Option<EntropyTarget>) -> f32 {
        match adaptive {
            Some(rule) if self.last.is_none_or(|last| last > rule.target) => 0.0,
            _ => self.coef,
        }
    }

    /// Record a step's entropy, update the coefficient for the next step and return it.
    pub fn observe(&mut self, entropy: f64, adaptive: Option<EntropyTarget>) -> f32 {
        if let Some(rule) = adaptive {
            let step = if entropy <= rule.target { rule.delta } else { -rule.delta };
            self.coef = (self.coef + step).clamp(rule.min, rule.max);
        }
        self.last = Some(entropy);
        self.coef
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TRL's rule: 0 before the first measurement; up at or below the target and down above it, within the bounds. The
    /// bonus acts after a step at or below the target, with the coefficient that this step set.
    #[test]
    fn adaptive_control_follows_trls_rule() {
        let rule = Some(EntropyTarget { target: 0.2, delta: 0.01, min: 0.0, max: 0.02 });
        let mut control = EntropyControl::new(0.0);
        assert_eq!(control.coefficient(rule), 0.0);
        let mut seen = Vec::new();
        for entropy in [0.1, 0.15, 0.1, 0.3, 0.2] {
            control.observe(entropy, rule);
            seen.push((control.coefficient(rule) * 1000.0).round());
        }
        assert_eq!(seen, [10.0, 20.0, 20.0, 0.0, 20.0]);
    }

    #[test]
    fn a_fixed_coefficient_stays() {
        let mut control = EntropyControl::new(0.05);
        assert_eq!(control.coefficient(None), 0.05);
        control.observe(9.0, None);
        assert_eq!(control.coefficient(None), 0.05);
    }
}
