//! Stages: what is sampled, rewarded and optimised while one lasts; `schedule` says how long.

use serde::{Deserialize, Serialize};

use super::schedule::{LengthTarget, Plateau};
use crate::generate::Distribution;
use crate::objective::advantage::{Aggregation, ScaleRewards};
use crate::objective::entropy::EntropyTarget;
use crate::objective::terms::{Covariance, EntropyAdvantage};
use crate::objective::{
    Advantage, Aggregate, DifficultyWeighting, KlEstimator, LossType, Objective, Ratio, RewardKind, Surrogate,
    TokenRules,
};
use crate::reward::Accuracy;

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
    /// Length clips that take its place from a step of the stage on, in the order of their steps (ThinkPrune, arXiv
    /// 2504.01296).
    pub max_completion_length_schedule: Vec<LengthClip>,
    /// Multiplies the scheduled learning rate.
    pub learning_rate_scale: f64,
    /// Rewards of a completion.
    pub rewards: Vec<RewardKind>,
    /// Weight of each reward; all 1 when empty.
    pub reward_weights: Vec<f32>,
    /// From rewards to advantages.
    pub advantage: Advantage,
    /// Weighs advantages by the difficulty of their problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difficulty_weighting: Option<DifficultyWeighting>,
    /// Optimiser steps that use the same completions.
    pub num_iterations: usize,
    /// Surrogate, and how token losses are weighed.
    pub loss_type: LossType,
    /// Whether ratios are those of tokens or of whole completions.
    pub importance_sampling_level: Ratio,
    /// Lower clip of the ratio.
    pub epsilon: f32,
    /// Upper clip of the ratio; with CISPO the largest factor itself, not its distance from 1.
    pub epsilon_high: f32,
    /// Bound on the ratio of tokens with a negative advantage (dual clip); none for no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<f32>,
    /// τ of SAPO where the advantage is positive.
    pub sapo_temperature_pos: f32,
    /// τ of SAPO where it is not.
    pub sapo_temperature_neg: f32,
    /// Factor of the divergence from the model at the start of the run, which is kept in memory for it; 0 for none.
    pub beta: f32,
    /// The estimate of that divergence.
    pub kl_estimator: KlEstimator,
    /// Completions cut at the length limit take no part in the loss.
    pub mask_truncated_completions: bool,
    /// Share of tokens, those of the largest entropy, that learn; 1 for all.
    pub top_entropy_quantile: f64,
    /// Takes out, or holds, the tokens with the largest covariance of log-probability and advantage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covariance: Option<Covariance>,
    /// What entropy adds to each token's advantage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_advantage: Option<EntropyAdvantage>,
    /// Factor of the entropy bonus; with `use_adaptive_entropy`, where it starts.
    pub entropy_coef: f32,
    /// The bonus is so many times as large on hard problems (CEEH).
    pub entropy_hard_factor: f32,
    /// Moves `entropy_coef` up by `entropy_coef_delta` after a step whose entropy is at most `entropy_target`, else down,
    /// within its bounds; the bonus acts only after steps at or below the target (TRL's rule; arXiv 2505.22312).
    pub use_adaptive_entropy: bool,
    /// Least `entropy_coef` of adaptive control.
    pub entropy_coef_min: f32,
    /// Largest `entropy_coef` of adaptive control.
    pub entropy_coef_max: f32,
    /// Its step.
    pub entropy_coef_delta: f32,
    /// The entropy it aims at, in nats per token at the sampling temperature.
    pub entropy_target: f64,
    /// Replaces problems whose completions all have the same reward: so many batches are sampled for a step at most, and a
    /// step that still has too few problems goes on with those it has. 0 and 1 for no replacement.
    pub max_num_gen_batches: usize,
    /// Ends the stage before `max_steps` when a quantity has stopped falling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plateau: Option<Plateau>,
    /// Ends the stage before `max_steps` when completions are short enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_target: Option<LengthTarget>,
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
            max_completion_length_schedule: Vec::new(),
            learning_rate_scale: 1.0,
            rewards: vec![Accuracy {}.into()],
            reward_weights: Vec::new(),
            advantage: Advantage::Group {
                scale_rewards: ScaleRewards::Group,
                multi_objective_aggregation: Aggregation::SumThenNormalize,
            },
            difficulty_weighting: None,
            num_iterations: 1,
            loss_type: LossType::Dapo,
            importance_sampling_level: Ratio::Token,
            epsilon: 0.2,
            epsilon_high: 0.28,
            delta: None,
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            beta: 0.0,
            kl_estimator: KlEstimator::K3,
            mask_truncated_completions: false,
            top_entropy_quantile: 1.0,
            covariance: None,
            entropy_advantage: None,
            entropy_coef: 0.0,
            entropy_hard_factor: 1.0,
            use_adaptive_entropy: false,
            entropy_coef_min: 0.0,
            entropy_coef_max: 1.0,
            entropy_coef_delta: 0.005,
            entropy_target: 0.2,
            max_num_gen_batches: 0,
            plateau: None,
            length_target: None,
        }
    }
}

/// A length clip from a step of a stage on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthClip {
    /// Steps of the stage that are over when it begins, at least 1.
    pub step: usize,
    /// The `max_completion_length` from then on.
    pub value: usize,
}

impl Stage {
    /// Weights of the rewards, one each.
    pub fn weights(&self) -> Vec<f32> {
        if self.reward_weights.is_empty() { vec![1.0; self.rewards.len()] } else { self.reward_weights.clone() }
    }

    /// The stage as it is when `steps` of its steps are over: with the length clip of that time.
    pub fn at(&self, steps: usize) -> Self {
        let clip = self.max_completion_length_schedule.iter().rev().find(|clip| clip.step <= steps);
        let max_completion_length = clip.map_or(self.max_completion_length, |clip| clip.value);
        Self { max_completion_length, ..self.clone() }
    }

    /// What completions are sampled from.
    pub fn distribution(&self) -> Distribution {
        let Self { repetition_penalty, temperature, top_k, top_p, min_p, .. } = *self;
        Distribution { repetition_penalty, temperature, top_k, top_p, min_p }
    }

    /// The loss of its tokens.
    pub fn objective(&self) -> Objective {
        let surrogate = match self.loss_type {
            LossType::Cispo => Surrogate::Cispo { max: self.epsilon_high },
            LossType::Sapo => {
                Surrogate::Sapo { positive: self.sapo_temperature_pos, negative: self.sapo_temperature_neg }
            }
            LossType::Dapo | LossType::Grpo | LossType::DrGrpo | LossType::Bnpo => {
                Surrogate::Clip { low: self.epsilon, high: self.epsilon_high, delta: self.delta }
            }
        };
        Objective { ratio: self.importance_sampling_level, surrogate, kl_estimator: self.kl_estimator }
    }

    /// The rule of adaptive entropy control, where it is on.
    pub fn entropy_target(&self) -> Option<EntropyTarget> {
        self.use_adaptive_entropy.then_some(EntropyTarget {
            target: self.entropy_target,
            delta: self.entropy_coef_delta,
            min: self.entropy_coef_min,
            max: self.entropy_coef_max,
        })
    }

    /// Whether entropy enters the loss, in some step at least.
    pub fn has_entropy_bonus(&self) -> bool {
        self.use_adaptive_entropy || self.entropy_coef != 0.0
    }

    /// Which of its tokens learn, with an entropy bonus of `entropy_coef`.
    pub fn token_rules(&self, entropy_coef: f32) -> TokenRules {
        TokenRules {
            beta: self.beta,
            top_entropy_quantile: self.top_entropy_quantile,
            covariance: self.covariance,
            entropy_advantage: self.entropy_advantage,
            entropy_coef,
            entropy_hard_factor: self.entropy_hard_factor,
        }
    }

    /// What cannot work in stage number `index`, one line each.
    pub fn mistakes(&self, index: usize) -> Vec<String> {
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
        self.distribution().mistakes().into_iter().for_each(|problem| refuse(true, problem));
        refuse(
            !(self.learning_rate_scale >= 0.0 && self.learning_rate_scale.is_finite()),
            format!("learning_rate_scale = {} must not be negative", self.learning_rate_scale),
        );
        refuse(self.rewards.is_empty(), "rewards is empty: nothing to learn from".to_string());
        refuse(
            !self.reward_weights.is_empty() && self.reward_weights.len() != self.rewards.len(),
            format!("reward_weights has {} entries for {} rewards", self.reward_weights.len(), self.rewards.len()),
        );
        let mut before = 0;
        for (k, clip) in self.max_completion_length_schedule.iter().enumerate() {
            let LengthClip { step, value } = *clip;
            let key = format!("max_completion_length_schedule.{k}");
            refuse(value == 0, format!("{key}.value = 0 must be positive"));
            refuse(step <= before, format!("{key}.step = {step} must be above {before}"));
            before = step;
        }
        if let Some(problem) = self.advantage.mistake() {
            refuse(true, format!("advantage.{problem}"));
        }
        let clips = self.max_completion_length_schedule.iter().map(|clip| clip.value);
        let length = clips.chain([self.max_completion_length]).min().unwrap_or(0);
        for (k, reward) in self.rewards.iter().enumerate() {
            reward.mistakes(length).into_iter().for_each(|mistake| refuse(true, format!("rewards.{k}.{mistake}")));
        }
        for (k, weight) in self.reward_weights.iter().enumerate() {
            refuse(!weight.is_finite(), format!("reward_weights.{k} = {weight} must be a finite number"));
        }
        self.loss_mistakes().into_iter().for_each(|problem| refuse(true, problem));
        self.exit_mistakes().into_iter().for_each(|problem| refuse(true, problem));
        problems
    }

    fn loss_mistakes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut require = |ok: bool, what: String| {
            if !ok {
                problems.push(what);
            }
        };
        let not_negative = |value: f32| value >= 0.0 && value.is_finite();
        require(self.num_iterations > 0, "num_iterations = 0 must be positive".to_string());
        require((0.0..1.0).contains(&self.epsilon), format!("epsilon = {} must be within [0, 1)", self.epsilon));
        let high = self.epsilon_high;
        if self.loss_type == LossType::Cispo {
            let what =
                "must be at least 1 with loss_type = \"cispo\", where it is the largest factor itself (5.0 is usual)";
            require(high >= 1.0, format!("epsilon_high = {high} {what}"));
        } else {
            require(not_negative(high), format!("epsilon_high = {high} must not be negative"));
        }
        if let Some(delta) = self.delta {
            let clips = matches!(self.objective().surrogate, Surrogate::Clip { .. });
            require(clips, format!("delta = {delta} has no meaning for a loss_type without a clip: remove it"));
            let least = 1.0 + high;
            require(delta > least, format!("delta = {delta} must be above 1 + epsilon_high = {least}"));
        }
        let whole = self.importance_sampling_level == Ratio::Sequence;
        require(
            !whole || self.loss_type.aggregate() == Aggregate::SequenceMean,
            "importance_sampling_level = \"sequence\" (GSPO) needs a loss that is a mean over completions: set loss_type = \"grpo\""
                .to_string(),
        );
        let (positive, negative) = (self.sapo_temperature_pos, self.sapo_temperature_neg);
        require(positive > 0.0 && positive.is_finite(), format!("sapo_temperature_pos = {positive} must be positive"));
        require(negative > 0.0 && negative.is_finite(), format!("sapo_temperature_neg = {negative} must be positive"));
        require(not_negative(self.beta), format!("beta = {} must not be negative", self.beta));
        let q = self.top_entropy_quantile;
        require(
            q > 0.0 && q <= 1.0,
            format!("top_entropy_quantile = {q} must be above 0 and at most 1 (1 for all tokens)"),
        );
        if let Some(problem) = self.covariance.and_then(|covariance| covariance.mistake()) {
            require(false, format!("covariance.{problem}"));
        }
        if let Some(EntropyAdvantage { alpha, kappa, .. }) = self.entropy_advantage {
            require(alpha > 0.0 && alpha.is_finite(), format!("entropy_advantage.alpha = {alpha} must be positive"));
            let kept = "an advantage would change its sign";
            require(kappa > 1.0, format!("entropy_advantage.kappa = {kappa} must be above 1: {kept}"));
        }
        require(self.entropy_coef.is_finite(), format!("entropy_coef = {} must be a number", self.entropy_coef));
        require(
            not_negative(self.entropy_hard_factor),
            format!("entropy_hard_factor = {} must not be negative", self.entropy_hard_factor),
        );
        let (least, most) = (self.entropy_coef_min, self.entropy_coef_max);
        require(least <= most, format!("entropy_coef_min = {least} must not be above entropy_coef_max = {most}"));
        if self.use_adaptive_entropy {
            let coef = self.entropy_coef;
            let within = "must be within entropy_coef_min and entropy_coef_max";
            require((least..=most).contains(&coef), format!("entropy_coef = {coef} {within}, {least} and {most}"));
            let delta = self.entropy_coef_delta;
            require(delta > 0.0 && delta.is_finite(), format!("entropy_coef_delta = {delta} must be positive"));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_clip_follows_its_schedule() {
        let clips = [(10, 300), (20, 200)].map(|(step, value)| LengthClip { step, value });
        let stage =
            Stage { max_completion_length: 400, max_completion_length_schedule: clips.to_vec(), ..Stage::default() };
        assert_eq!([0, 9, 10, 19, 20].map(|steps| stage.at(steps).max_completion_length), [400, 400, 300, 300, 200]);
        assert!(stage.mistakes(0).is_empty());
        let back = Stage { max_completion_length_schedule: vec![clips[1], clips[0]], ..stage };
        let problem = "stages.0.max_completion_length_schedule.1.step = 10 must be above 20";
        assert_eq!(back.mistakes(0), [problem]);
    }

    #[test]
    fn every_problem_of_a_stage_is_named() {
        let stage = Stage { max_steps: 0, temperature: 0.0, reward_weights: vec![1.0, 2.0], ..Stage::default() };
        let problems = stage.mistakes(1);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems.iter().all(|problem| problem.starts_with("stages.1.")), "{problems:?}");
    }
}
