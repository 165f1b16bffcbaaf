//! The section `exit` of a stage: rules that end it.

use serde::{Deserialize, Serialize};

use super::Stage;
use crate::config::{self, STEPS};

/// The figures of a step that exit rules read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepFigures {
    /// Mean completion length.
    pub length: f64,
    /// Mean entropy at temperature 1, in nats per token.
    pub entropy: f64,
    /// Share of right completions, within 0 and 1.
    pub accuracy: f64,
    /// Share of the effort on tokens that the task part and the length part of advantages spend against each other
    /// (`conflict/cancellation`); `None` if it was not measured or if only one of the parts acts.
    pub cancelled: Option<f64>,
}

/// Rules that end a stage; the first one that applies ends it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StageExit {
    /// Maximum number of steps of the stage.
    pub max_steps: usize,
    /// Ends the stage early when a metric stops decreasing: for `patience` consecutive steps, the mean of the last
    /// `window` steps is not below that of the `window` steps before by more than the fraction `tolerance`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plateau: Option<Plateau>,
    /// Ends the stage early when the mean completion length is at most `tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_target: Option<LengthTarget>,
}

impl Default for StageExit {
    fn default() -> Self {
        Self { max_steps: 100, plateau: None, length_target: None }
    }
}

/// Ends the stage when, `patience` steps in a row, the mean of the last `window` steps is not below the mean of the
/// `window` steps before by more than the share `tolerance`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plateau {
    /// Metric to monitor.
    pub metric: PlateauMetric,
    /// Number of steps per mean.
    pub window: usize,
    /// Minimum relative decrease.
    pub tolerance: f64,
    /// Minimum number of steps of the stage.
    pub min_steps: usize,
    /// Number of consecutive steps for which the condition must hold.
    pub patience: usize,
}

impl Default for Plateau {
    fn default() -> Self {
        Self { metric: PlateauMetric::Length, window: 10, tolerance: 0.05, min_steps: 20, patience: 1 }
    }
}

/// The quantity in which a plateau is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlateauMetric {
    /// Mean completion length.
    Length,
    /// Mean entropy at temperature 1.
    Entropy,
}

/// Ends the stage when the mean length of the last `window` steps is at most `tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthTarget {
    /// Target of the mean completion length, in tokens.
    pub tokens: f64,
    /// Number of steps of the mean.
    #[serde(default = "ten")]
    pub window: usize,
}

fn ten() -> usize {
    10
}

pub(super) fn mean(steps: &[StepFigures], value: impl Fn(&StepFigures) -> f64) -> f64 {
    steps.iter().map(value).sum::<f64>() / steps.len().max(1) as f64
}

impl Plateau {
    fn reached(&self, history: &[StepFigures]) -> bool {
        let flat = |history: &[StepFigures]| {
            if history.len() < 2 * self.window {
                return false;
            }
            let value = |step: &StepFigures| match self.metric {
                PlateauMetric::Length => step.length,
                PlateauMetric::Entropy => step.entropy,
            };
            let (before, last) = history[history.len() - 2 * self.window..].split_at(self.window);
            mean(last, value) > mean(before, value) * (1.0 - self.tolerance)
        };
        let count = history.len();
        count >= self.min_steps && count >= self.patience && (0..self.patience).all(|i| flat(&history[..count - i]))
    }
}

impl Stage {
    /// Return why the stage is over after the last step of `history`, the steps of this stage; `None` while it goes on.
    pub fn exit(&self, history: &[StepFigures]) -> Option<&'static str> {
        let StageExit { max_steps, plateau, length_target } = self.exit;
        if history.len() >= max_steps {
            return Some("steps");
        }
        if let Some(LengthTarget { tokens, window }) = length_target
            && history.len() >= window
            && mean(&history[history.len() - window..], |step| step.length) <= tokens
        {
            return Some("length target");
        }
        plateau.filter(|plateau| plateau.reached(history)).map(|_| "plateau")
    }
}

impl StageExit {
    /// Return the mistakes in these settings, one line each.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes: Vec<String> = config::count("max_steps", self.max_steps, 1, STEPS).into_iter().collect();
        if let Some(plateau) = self.plateau {
            mistakes.extend(config::count("plateau.window", plateau.window, 1, STEPS));
            mistakes.extend(config::count("plateau.patience", plateau.patience, 1, STEPS));
            if !plateau.tolerance.is_finite() {
                mistakes.push(format!("plateau.tolerance = {} must be a finite number", plateau.tolerance));
            }
        }
        if let Some(target) = self.length_target {
            mistakes.extend(config::count("length_target.window", target.window, 1, STEPS));
            if target.tokens.is_nan() || target.tokens <= 0.0 {
                mistakes.push(format!("length_target.tokens = {} must be positive", target.tokens));
            }
        }
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lengths: impl IntoIterator<Item = f64>) -> Vec<StepFigures> {
        let step = |length| StepFigures { length, entropy: 0.3, accuracy: 0.8, cancelled: None };
        lengths.into_iter().map(step).collect()
    }

    fn flat(n: usize) -> Vec<StepFigures> {
        history(std::iter::repeat_n(100.0, n))
    }

    fn ending(exit: StageExit) -> Stage {
        Stage { exit, ..Stage::default() }
    }

    const PLATEAU: Plateau =
        Plateau { metric: PlateauMetric::Length, window: 3, tolerance: 0.05, min_steps: 8, patience: 1 };

    #[test]
    fn a_stage_ends_when_length_stops_falling_but_not_before_its_minimum() {
        let stage = ending(StageExit { plateau: Some(PLATEAU), max_steps: 50, ..StageExit::default() });
        assert_eq!(stage.exit(&flat(7)), None);
        assert_eq!(stage.exit(&flat(8)), Some("plateau"));
        assert_eq!(stage.exit(&history((0..20).map(|i| 200.0 * 0.9f64.powi(i)))), None);
        assert_eq!(stage.exit(&history((0..50).map(|i| 200.0 * 0.9f64.powi(i)))), Some("steps"));
    }

    /// One flat window within a fall must not end a stage with `patience`.
    #[test]
    fn a_patient_plateau_must_be_seen_several_times_in_a_row() {
        let falling = (0..12).map(|i| 200.0 * 0.9f64.powi(i));
        let bump = history(falling.chain([70.0, 75.0, 80.0]));
        let stage =
            |patience| ending(StageExit { plateau: Some(Plateau { patience, ..PLATEAU }), ..StageExit::default() });
        assert_eq!(stage(1).exit(&bump), Some("plateau"));
        assert_eq!(stage(4).exit(&bump), None);
        assert_eq!(stage(4).exit(&flat(8)), None, "six steps are the first that can be flat");
        assert_eq!(stage(4).exit(&flat(9)), Some("plateau"));
    }

    #[test]
    fn a_length_target_is_for_the_mean_of_its_window() {
        let stage =
            ending(StageExit { length_target: Some(LengthTarget { tokens: 50.0, window: 2 }), ..StageExit::default() });
        assert_eq!(stage.exit(&history([100.0, 60.0, 44.0])), None);
        assert_eq!(stage.exit(&history([100.0, 56.0, 44.0])), Some("length target"));
        assert_eq!(stage.exit(&history([44.0])), None);
    }
}
