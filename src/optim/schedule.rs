//! Learning rate as a stateless function of the step.

use serde::{Deserialize, Serialize};

use super::OptimConfig;

/// Learning-rate schedule after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// Constant at the peak.
    Constant,
    /// Linear decay to zero at the last step.
    Linear,
    /// Half-cosine decay to zero at the last step.
    Cosine,
}

/// Return the learning rate of step `step` (from 1) of `total`.
pub fn learning_rate(config: &OptimConfig, step: usize, total: usize) -> f64 {
    if step <= config.warmup_steps {
        return config.learning_rate * step as f64 / config.warmup_steps as f64;
    }
    let span = total.saturating_sub(config.warmup_steps).max(1);
    let done = ((step - config.warmup_steps - 1) as f64 / span as f64).min(1.0);
    config.learning_rate
        * match config.lr_scheduler_type {
            LrScheduler::Constant => 1.0,
            LrScheduler::Linear => 1.0 - done,
            LrScheduler::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_linearly_then_follows_the_cosine() {
        let config = OptimConfig {
            learning_rate: 1.0,
            warmup_steps: 4,
            lr_scheduler_type: LrScheduler::Cosine,
            ..OptimConfig::default()
        };
        let rates: Vec<f64> = (1..=12).map(|step| learning_rate(&config, step, 12)).collect();
        assert_eq!(rates[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        // Halfway down after half of the eight remaining steps.
        assert!((rates[8] - 0.5).abs() < 1e-12, "{rates:?}");
        assert!(rates[4..].is_sorted_by(|a, b| a > b) && rates[11] > 0.0, "{rates:?}");
    }
}
