//! The section `tokens` of a stage: which tokens learn, and what entropy adds.

use serde::{Deserialize, Serialize};

use crate::objective::TokenRules;
use crate::objective::entropy::EntropyTarget;
use crate::objective::steps::StepSelection;
use crate::objective::terms::{CovarianceRule, EntropyAdvantage};

/// Which tokens of a stage learn, and what entropy adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StageTokens {
    /// Whether to exclude completions truncated at the length limit from the loss.
    pub mask_truncated_completions: bool,
    /// Fraction of tokens, highest entropy first, that the surrogate and the entropy bonus act on (arXiv 2506.01939); 1
    /// for all.
    pub top_entropy_quantile: f64,
    /// Excludes or penalises the tokens with the largest covariance `c = (A − mean A)(log π − mean log π)` of advantage
    /// and log-probability (arXiv 2505.22617). N is the number of tokens, ρ the importance ratio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub covariance: Option<CovarianceRule>,
    /// Removes the advantage from some thinking steps (SAS, arXiv 2604.24003): in correct completions from those with
    /// the lowest mean log-probability, in all others from those with the highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_selection: Option<StepSelection>,
    /// Adds `min(α · H, |A| / κ)` to the advantage A of each token, with H its entropy, without a gradient through H
    /// (arXiv 2506.14758).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_advantage: Option<EntropyAdvantage>,
    /// Entropy bonus: subtracts a coefficient times the mean entropy from the loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_bonus: Option<EntropyBonus>,
}

impl Default for StageTokens {
    fn default() -> Self {
        Self {
            mask_truncated_completions: false,
            top_entropy_quantile: 1.0,
            covariance: None,
            step_selection: None,
            entropy_advantage: None,
            entropy_bonus: None,
        }
    }
}

/// The entropy bonus: the loss is lowered by a factor times the mean entropy of the tokens that learn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum EntropyBonus {
    /// Constant coefficient.
    Fixed {
        /// Coefficient.
        #[serde(default = "usual_factor")]
        entropy_coef: f32,
        /// Factor on `entropy_coef` for hard problems (CEEH, arXiv 2602.22642); requires the reward `ceeh_length`.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        entropy_hard_factor: f32,
    },
    /// Adaptive coefficient: increased after an optimiser step whose entropy is at most the target, decreased
    /// otherwise; the bonus is applied only after steps at or below the target. Rule and defaults as in TRL (arXiv
    /// 2505.22312).
    Adaptive {
        /// Initial coefficient.
        #[serde(default)]
        entropy_coef: f32,
        /// Minimum coefficient.
        #[serde(default)]
        entropy_coef_min: f32,
        /// Maximum coefficient.
        #[serde(default = "one")]
        entropy_coef_max: f32,
        /// Change of the coefficient per optimiser step.
        #[serde(default = "usual_delta")]
        entropy_coef_delta: f32,
        /// Target entropy, in nats per token at the sampling temperature.
        #[serde(default = "usual_target")]
        entropy_target: f64,
        /// Factor on the coefficient for hard problems (CEEH, arXiv 2602.22642); requires the reward `ceeh_length`.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        entropy_hard_factor: f32,
    },
}

/// The factor of Laser and CEEH.
fn usual_factor() -> f32 {
    1e-3
}

fn usual_delta() -> f32 {
    0.005
}

fn usual_target() -> f64 {
    0.2
}

fn one() -> f32 {
    1.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(value: &f32) -> bool {
    *value == 1.0
}

impl EntropyBonus {
    /// Return the factor at the start of a stage.
    pub fn coefficient(self) -> f32 {
        match self {
            Self::Fixed { entropy_coef, .. } | Self::Adaptive { entropy_coef, .. } => entropy_coef,
        }
    }

    /// Return the rule of adaptive control, if it is on.
    pub fn target(self) -> Option<EntropyTarget> {
        match self {
            Self::Fixed { .. } => None,
            Self::Adaptive { entropy_coef_min, entropy_coef_max, entropy_coef_delta, entropy_target, .. } => {
                let (min, max) = (entropy_coef_min, entropy_coef_max);
                Some(EntropyTarget { target: entropy_target, delta: entropy_coef_delta, min, max })
            }
        }
    }

    /// Return the multiplier of the factor on hard problems.
    pub fn hard_factor(self) -> f32 {
        match self {
            Self::Fixed { entropy_hard_factor, .. } | Self::Adaptive { entropy_hard_factor, .. } => entropy_hard_factor,
        }
    }

    fn mistakes(self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut require = |ok: bool, what: String| {
            if !ok {
                mistakes.push(format!("entropy_bonus.{what}"));
            }
        };
        let coef = self.coefficient();
        require(coef.is_finite(), format!("entropy_coef = {coef} must be a finite number"));
        let hard = self.hard_factor();
        require(hard >= 0.0 && hard.is_finite(), format!("entropy_hard_factor = {hard} must not be negative"));
        if let Some(EntropyTarget { target, delta, min, max }) = self.target() {
            require(min <= max, format!("entropy_coef_min = {min} must not be above entropy_coef_max = {max}"));
            let within = "must be between entropy_coef_min and entropy_coef_max";
            require((min..=max).contains(&coef), format!("entropy_coef = {coef} {within}, {min} and {max}"));
            require(delta > 0.0 && delta.is_finite(), format!("entropy_coef_delta = {delta} must be positive"));
            let fixed = "a constant coefficient; set type = \"fixed\", or remove entropy_bonus";
            require(min != max, format!("entropy_coef_min = {min} with entropy_coef_max = {max} is {fixed}"));
            require(target.is_finite(), format!("entropy_target = {target} must be a finite number"));
        } else {
            require(coef != 0.0, "entropy_coef = 0 has no effect: remove entropy_bonus".to_string());
        }
        mistakes
    }
}

impl StageTokens {
    /// Return the rules of a step, with the factor `beta` of the divergence and an entropy bonus of `entropy_coef`.
    pub(super) fn rules(&self, beta: f32, entropy_coef: f32) -> TokenRules {
        TokenRules {
            beta,
            top_entropy_quantile: self.top_entropy_quantile,
            covariance: self.covariance,
            entropy_advantage: self.entropy_advantage,
            entropy_coef,
            entropy_hard_factor: self.entropy_bonus.map_or(1.0, EntropyBonus::hard_factor),
        }
    }

    /// Return the mistakes in these settings, one line each. `has_record` tells whether a reward records which problems
    /// are hard.
    pub fn mistakes(&self, has_record: bool) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut require = |ok: bool, what: String| {
            if !ok {
                mistakes.push(what);
            }
        };
        let q = self.top_entropy_quantile;
        let share = q > 0.0 && q <= 1.0;
        require(share, format!("top_entropy_quantile = {q} must be above 0 and at most 1 (1 for all tokens)"));
        if let Some(mistake) = self.covariance.and_then(|covariance| covariance.mistake()) {
            require(false, format!("covariance.{mistake}"));
        }
        if let Some(mistake) = self.step_selection.as_ref().and_then(StepSelection::mistake) {
            require(false, format!("step_selection.{mistake}"));
        }
        let record = "only the reward ceeh_length marks hard problems: add this reward, or remove the setting";
        if let Some(EntropyAdvantage { alpha, kappa, hard_only }) = self.entropy_advantage {
            require(alpha > 0.0 && alpha.is_finite(), format!("entropy_advantage.alpha = {alpha} must be positive"));
            let kept = "otherwise an advantage could change its sign";
            require(kappa > 1.0, format!("entropy_advantage.kappa = {kappa} must be above 1: {kept}"));
            require(has_record || !hard_only, format!("entropy_advantage.hard_only = true has no effect: {record}"));
        }
        if let Some(bonus) = self.entropy_bonus {
            let factor = bonus.hard_factor();
            let acts = has_record || factor == 1.0;
            require(acts, format!("entropy_bonus.entropy_hard_factor = {factor} has no effect: {record}"));
            mistakes.extend(bonus.mistakes());
        }
        mistakes
    }
}
