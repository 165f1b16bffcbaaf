//! Stages of a run: each sets sampling, rewards, loss and exit rules, in sections.

mod controller;
mod exit;
mod loss;
mod sampling;
mod tokens;

use serde::{Deserialize, Serialize};

pub use controller::Controller;
pub use exit::{LengthTarget, Plateau, PlateauMetric, StageExit, StepFigures};
pub use loss::{Kl, StageLoss};
pub use sampling::{LengthClip, StageSampling};
pub use tokens::{EntropyBonus, StageTokens};

use crate::generate::Distribution;
use crate::objective::entropy::EntropyTarget;
use crate::objective::terms::CovarianceRule;
use crate::objective::{Advantage, DifficultyWeighting, LossType, Objective, Surrogate, TokenRules};
use crate::reward::{Accuracy, RewardKind};

/// Largest size of a weight in `reward_weights`. Scores are at most 1e9, so that weighted sums are finite in f32.
const LARGEST_WEIGHT: f32 = 1e6;

/// One stage of a schedule. Each section has only keys that act, and validates itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stage {
    /// Name of the stage in metrics and plots.
    pub name: String,
    /// Factor on the scheduled learning rate.
    pub learning_rate_scale: f64,
    /// Reward functions. len is the length of a completion in tokens, L the stage's `max_completion_length`.
    pub rewards: Vec<RewardKind>,
    /// Weight of each reward function; empty for 1 each.
    pub reward_weights: Vec<f32>,
    /// Sampling distribution and maximum length of the completions.
    pub sampling: StageSampling,
    /// Computation of the advantage A from the reward R.
    pub advantage: Advantage,
    /// Weights advantages by problem difficulty (GRPO-LEAD, arXiv 2504.09696): with p the fraction of correct
    /// completions of the group and `w(x) = lowest + (highest − lowest) / (1 + e^(steepness · (x − midpoint)))`, a
    /// positive advantage is multiplied by w(p) and a negative one by w(1 − p).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difficulty_weighting: Option<DifficultyWeighting>,
    /// Loss, and number of updates per batch.
    pub loss: StageLoss,
    /// Token selection and entropy terms.
    pub tokens: StageTokens,
    /// Conditions that end the stage.
    pub exit: StageExit,
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            name: "grpo".to_string(),
            learning_rate_scale: 1.0,
            rewards: vec![Accuracy {}.into()],
            reward_weights: Vec::new(),
            sampling: StageSampling::default(),
            advantage: Advantage::default(),
            difficulty_weighting: None,
            loss: StageLoss::default(),
            tokens: StageTokens::default(),
            exit: StageExit::default(),
        }
    }
}

impl Stage {
    /// Return one weight for each reward.
    pub fn weights(&self) -> Vec<f32> {
        if self.reward_weights.is_empty() { vec![1.0; self.rewards.len()] } else { self.reward_weights.clone() }
    }

    /// Return the stage after `steps` of its steps, with the length clip that applies then.
    pub fn at(&self, steps: usize) -> Self {
        let clip = self.sampling.max_completion_length_schedule.iter().rev().find(|clip| clip.step <= steps);
        let mut stage = self.clone();
        stage.sampling.max_completion_length = clip.map_or(self.sampling.max_completion_length, |clip| clip.value);
        stage
    }

    /// Return the sampling distribution of completions.
    pub fn distribution(&self) -> Distribution {
        self.sampling.distribution()
    }

    /// Return the loss of a token. With KL-Cov, no token is clipped.
    pub fn objective(&self) -> Objective {
        let is_kl_cov = matches!(self.tokens.covariance, Some(CovarianceRule::KlCov { .. }));
        let objective = self.loss.objective();
        if is_kl_cov { Objective { surrogate: Surrogate::Unclipped, ..objective } } else { objective }
    }

    /// Return the rule of adaptive entropy control, if it is on.
    pub fn entropy_target(&self) -> Option<EntropyTarget> {
        self.tokens.entropy_bonus.and_then(EntropyBonus::target)
    }

    /// Return the factor of the entropy bonus at the start of the stage; 0 without a bonus.
    pub fn entropy_coef(&self) -> f32 {
        self.tokens.entropy_bonus.map_or(0.0, EntropyBonus::coefficient)
    }

    /// Whether entropy enters the loss in at least one step.
    pub fn has_entropy_bonus(&self) -> bool {
        self.tokens.entropy_bonus.is_some()
    }

    /// Return which tokens learn, with an entropy bonus of `entropy_coef`.
    pub fn token_rules(&self, entropy_coef: f32) -> TokenRules {
        self.tokens.rules(self.loss.beta(), entropy_coef)
    }

    /// Return the mistakes in stage number `index`, one line each.
    pub fn mistakes(&self, index: usize) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.name.is_empty() {
            mistakes.push("name is empty: give the stage a name".to_string());
        }
        let scale = self.learning_rate_scale;
        if scale == 0.0 {
            mistakes.push("learning_rate_scale = 0 must be positive, or the stage would learn nothing".to_string());
        } else if !(scale > 0.0 && scale.is_finite()) {
            mistakes.push(format!("learning_rate_scale = {scale} must be positive"));
        }
        if self.rewards.is_empty() {
            mistakes.push("rewards is empty: add at least one reward".to_string());
        }
        let (weights, rewards) = (self.reward_weights.len(), self.rewards.len());
        if weights != 0 && weights != rewards {
            mistakes.push(format!(
                "reward_weights has {weights} entries for {rewards} rewards: give one weight per reward"
            ));
        }
        if weights > 0 && self.reward_weights.iter().all(|weight| *weight == 0.0) {
            mistakes.push("reward_weights are all 0: at least one must differ from 0".to_string());
        }
        let fits = |weight: &f32| weight.abs() <= LARGEST_WEIGHT;
        for (k, weight) in self.reward_weights.iter().enumerate().filter(|(_, weight)| !fits(weight)) {
            let most = LARGEST_WEIGHT;
            mistakes.push(format!("reward_weights.{k} = {weight} must be a number from -{most} to {most}"));
        }
        let section = |name: &str, found: Vec<String>| -> Vec<String> {
            found.into_iter().map(|mistake| format!("{name}.{mistake}")).collect()
        };
        let shortest = self.sampling.clips().min().unwrap_or(0);
        for (k, reward) in self.rewards.iter().enumerate() {
            mistakes.extend(section(&format!("rewards.{k}"), reward.mistakes(shortest)));
        }
        for (k, reward) in self.rewards.iter().enumerate() {
            if let Some(first) = self.rewards[..k].iter().position(|other| other == reward) {
                let name = reward.name();
                mistakes.push(format!(
                    "rewards.{k} repeats rewards.{first}, {name:?}: remove one, and raise the weight of the other in \
                     reward_weights if needed"
                ));
            }
        }
        let has_record = self.rewards.iter().any(RewardKind::keeps_hardness);
        mistakes.extend(section("sampling", self.sampling.mistakes()));
        mistakes.extend(section("advantage", self.advantage.mistake().into_iter().collect()));
        mistakes.extend(section("difficulty_weighting", self.difficulty_mistakes()));
        mistakes.extend(section("loss", self.loss.mistakes()));
        mistakes.extend(section("tokens", self.tokens.mistakes(has_record)));
        mistakes.extend(section("exit", self.exit.mistakes()));
        if self.objective().surrogate == Surrogate::Unclipped {
            let what = "tokens.covariance.type = \"kl_cov\"";
            if self.loss.loss_type != LossType::Dapo {
                mistakes.push(format!("{what} has its own loss without clipping: set loss.type = \"dapo\""));
            }
            if self.loss.surrogate != StageLoss::of(LossType::Dapo).surrogate {
                mistakes.push(format!("loss.epsilon, epsilon_high and delta have no effect with {what}: remove them"));
            }
            if self.loss.steps_per_generation * self.loss.num_iterations == 1 {
                mistakes.push(format!(
                    "{what} has no effect with a single update per step: set loss.steps_per_generation to more than 1, \
                     such as 8"
                ));
            }
        }
        mistakes.into_iter().map(|mistake| format!("stages.{index}.{mistake}")).collect()
    }

    /// Return the mistakes in the section `difficulty_weighting`, one line each.
    fn difficulty_mistakes(&self) -> Vec<String> {
        let Some(DifficultyWeighting { lowest, highest, steepness, midpoint }) = self.difficulty_weighting else {
            return Vec::new();
        };
        let mut mistakes = Vec::new();
        for (key, value) in [("lowest", lowest), ("highest", highest)] {
            if !(value >= 0.0 && value.is_finite()) {
                mistakes.push(format!("{key} = {value} must not be negative"));
            }
        }
        for (key, value) in [("steepness", steepness), ("midpoint", midpoint)] {
            if !value.is_finite() {
                mistakes.push(format!("{key} = {value} must be a finite number"));
            }
        }
        let remove = "gives all problems the same weight: remove difficulty_weighting";
        if steepness == 0.0 {
            mistakes.push(format!("steepness = 0 {remove}"));
        } else if lowest == highest {
            mistakes.push(format!("lowest = {lowest} with highest = {highest} {remove}"));
        }
        mistakes
    }
}

#[cfg(test)]
mod tests;
