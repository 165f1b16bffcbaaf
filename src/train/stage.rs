//! Stages: what is optimised when, and when a stage is over.

use serde::{Deserialize, Serialize};

use crate::generate::Distribution;
use crate::objective::advantage::{Aggregation, ScaleRewards};
use crate::objective::{Advantage, LossType, RewardKind};

/// One stage of a schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stage {
    /// Its name in metrics and plots.
    pub name: String,
    /// Steps at most.
    pub max_steps: usize,
    /// Sampling temperature; the loss uses the same distribution.
    pub temperature: f32,
    /// Samples only the so many most probable tokens; 0 for all. The loss does not know of it, nor of the next three.
    pub top_k: usize,
    /// Samples only the most probable tokens that together reach this probability; 1 for all.
    pub top_p: f32,
    /// Samples only tokens at least this many times as probable as the most probable one; 0 for all.
    pub min_p: f32,
    /// Makes tokens that occurred before less likely; 1 for none.
    pub repetition_penalty: f32,
    /// Length clip L in tokens: a completion that reaches it unfinished is cut there and scores as wrong.
    pub max_completion_length: usize,
    /// Multiplies the scheduled learning rate.
    pub learning_rate_scale: f64,
    /// Rewards of a completion.
    pub rewards: Vec<RewardKind>,
    /// Weight of each reward; all 1 when empty.
    pub reward_weights: Vec<f32>,
    /// From rewards to advantages.
    pub advantage: Advantage,
    /// How token losses are weighed.
    pub loss_type: LossType,
    /// Lower clip of the ratio.
    pub epsilon: f32,
    /// Upper clip of the ratio.
    pub epsilon_high: f32,
    /// Ends the stage before `max_steps` when a quantity has stopped falling.
    pub plateau: Option<Plateau>,
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            name: "grpo".to_string(),
            max_steps: 100,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            max_completion_length: 512,
            learning_rate_scale: 1.0,
            rewards: vec![RewardKind::Accuracy],
            reward_weights: Vec::new(),
            advantage: Advantage::Group {
                scale_rewards: ScaleRewards::Group,
                multi_objective_aggregation: Aggregation::SumThenNormalize,
            },
            loss_type: LossType::Dapo,
            epsilon: 0.2,
            epsilon_high: 0.28,
            plateau: None,
        }
    }
}

/// The stage is over when the mean of the last `window` steps is not below that of the `window` before by more than
/// `tolerance` of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plateau {
    /// What is watched.
    pub metric: PlateauMetric,
    /// Steps per mean.
    pub window: usize,
    /// Least relative fall.
    pub tolerance: f64,
    /// Steps before which the stage does not end.
    pub min_steps: usize,
}

/// What a plateau is looked for in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlateauMetric {
    /// Mean completion length.
    Length,
    /// Mean entropy at temperature 1.
    Entropy,
}

impl Stage {
    /// Weights of the rewards, one each.
    pub fn weights(&self) -> Vec<f32> {
        if self.reward_weights.is_empty() { vec![1.0; self.rewards.len()] } else { self.reward_weights.clone() }
    }

    /// What completions are sampled from.
    pub fn distribution(&self) -> Distribution {
        let Self { repetition_penalty, temperature, top_k, top_p, min_p, .. } = *self;
        Distribution { repetition_penalty, temperature, top_k, top_p, min_p }
    }

    /// What cannot work in stage number `index`, one line each.
    pub fn problems(&self, index: usize) -> Vec<String> {
        let mut problems = Vec::new();
        let mut refuse = |bad: bool, what: String| {
            if bad {
                problems.push(format!("stages.{index}.{what}"));
            }
        };
        refuse(self.name.is_empty(), "name is empty".to_string());
        refuse(self.max_steps == 0, "max_steps = 0 must be positive".to_string());
        refuse(self.max_completion_length == 0, "max_completion_length = 0 must be positive".to_string());
        refuse(
            self.temperature == 0.0,
            "temperature = 0 must be positive: training samples, it is never greedy".into(),
        );
        self.distribution().problems().into_iter().for_each(|problem| refuse(true, problem));
        refuse(
            !(self.learning_rate_scale >= 0.0 && self.learning_rate_scale.is_finite()),
            format!("learning_rate_scale = {} must not be negative", self.learning_rate_scale),
        );
        refuse(self.rewards.is_empty(), "rewards is empty: nothing to learn from".to_string());
        refuse(
            !self.reward_weights.is_empty() && self.reward_weights.len() != self.rewards.len(),
            format!("reward_weights has {} entries for {} rewards", self.reward_weights.len(), self.rewards.len()),
        );
        let length = self.max_completion_length;
        for (k, problem) in self.rewards.iter().enumerate().filter_map(|(k, r)| Some((k, r.problem(length)?))) {
            refuse(true, format!("rewards.{k}.{problem}"));
        }
        refuse(!(0.0..1.0).contains(&self.epsilon), format!("epsilon = {} must be within [0, 1)", self.epsilon));
        refuse(
            self.epsilon_high.is_nan() || self.epsilon_high < 0.0,
            format!("epsilon_high = {} is negative", self.epsilon_high),
        );
        if let Some(plateau) = self.plateau {
            refuse(plateau.window == 0, "plateau.window = 0 must be positive".to_string());
        }
        problems
    }

    /// Why the stage is over after a step, given the history of its steps; `None` while it goes on.
    pub fn exit(&self, history: &[StepFigures]) -> Option<&'static str> {
        if history.len() >= self.max_steps {
            return Some("steps");
        }
        let plateau = self.plateau?;
        let needed = plateau.min_steps.max(2 * plateau.window);
        if history.len() < needed {
            return None;
        }
        let mean = |steps: &[StepFigures]| {
            let value = |step: &StepFigures| match plateau.metric {
                PlateauMetric::Length => step.length,
                PlateauMetric::Entropy => step.entropy,
            };
            steps.iter().map(value).sum::<f64>() / steps.len() as f64
        };
        let (before, last) = history[history.len() - 2 * plateau.window..].split_at(plateau.window);
        (mean(last) > mean(before) * (1.0 - plateau.tolerance)).then_some("plateau")
    }
}

/// What exit rules look at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepFigures {
    /// Mean completion length.
    pub length: f64,
    /// Mean entropy at temperature 1.
    pub entropy: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lengths: impl IntoIterator<Item = f64>) -> Vec<StepFigures> {
        lengths.into_iter().map(|length| StepFigures { length, entropy: 0.3 }).collect()
    }

    #[test]
    fn a_stage_ends_when_length_stops_falling_but_not_before_its_minimum() {
        let plateau = Plateau { metric: PlateauMetric::Length, window: 3, tolerance: 0.05, min_steps: 8 };
        let stage = Stage { plateau: Some(plateau), max_steps: 50, ..Stage::default() };
        let flat = |n: usize| history(std::iter::repeat_n(100.0, n));
        assert_eq!(stage.exit(&flat(7)), None);
        assert_eq!(stage.exit(&flat(8)), Some("plateau"));
        assert_eq!(stage.exit(&history((0..20).map(|i| 200.0 * 0.9f64.powi(i)))), None);
        assert_eq!(stage.exit(&history((0..50).map(|i| 200.0 * 0.9f64.powi(i)))), Some("steps"));
    }

    #[test]
    fn every_problem_of_a_stage_is_named() {
        let stage = Stage { max_steps: 0, temperature: 0.0, reward_weights: vec![1.0, 2.0], ..Stage::default() };
        let problems = stage.problems(1);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems.iter().all(|problem| problem.starts_with("stages.1.")), "{problems:?}");
    }
}
