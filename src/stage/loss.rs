//! The section `loss` of a stage: the loss of its tokens, and how often a batch of completions is used.
//!
//! The section is tagged by `type`. Each type has its own keys; a key of another type is refused.

use serde::{Deserialize, Serialize};

use crate::config;
use crate::objective::{KlEstimator, LossType, Objective, Surrogate};

/// The loss of a stage's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Keys", into = "Keys")]
pub struct StageLoss {
    /// How token losses are weighed, and whether ratios are those of tokens or of completions (key `type`).
    pub loss_type: LossType,
    /// From ratio and advantage to the loss of a token.
    pub surrogate: Surrogate,
    /// KL penalty towards the reference model: the model at the start of the run, which is kept in memory.
    pub kl: Option<Kl>,
    /// Number of passes over the completions of a step.
    pub num_iterations: usize,
    /// Number of mini-batches into which the completions of a step are split, with one optimiser step each.
    pub steps_per_generation: usize,
}

/// The divergence from the reference model as a part of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kl {
    /// KL coefficient.
    pub beta: f32,
    /// KL estimator per token, with `d = log π_ref − log π`.
    pub estimator: KlEstimator,
}

impl Default for Kl {
    /// The factor of most published reasoning runs, and TRL's estimator.
    fn default() -> Self {
        Self { beta: 1e-3, estimator: KlEstimator::K3 }
    }
}

impl Default for StageLoss {
    /// TRL's default: a mean over tokens, clipped at 0.2 and 0.28 (DAPO, arXiv 2503.14476).
    fn default() -> Self {
        Self::of(LossType::Dapo)
    }
}

impl StageLoss {
    /// Return a loss with its published settings: one use of each batch, no divergence.
    pub fn of(loss_type: LossType) -> Self {
        let clip = |low, high| Surrogate::Clip { low, high, delta: None };
        let surrogate = match loss_type {
            LossType::Dapo => clip(0.2, 0.28),
            LossType::Grpo | LossType::DrGrpo | LossType::Bnpo => clip(0.2, 0.2),
            LossType::Gspo => clip(3e-4, 4e-4),
            LossType::Cispo => Surrogate::Cispo { max: 5.0 },
            LossType::Sapo => Surrogate::Sapo { positive: 1.0, negative: 1.05 },
        };
        Self { loss_type, surrogate, kl: None, num_iterations: 1, steps_per_generation: 1 }
    }

    /// Return the factor of the divergence from the reference model; 0 without one.
    pub fn beta(&self) -> f32 {
        self.kl.map_or(0.0, |kl| kl.beta)
    }

    /// Return the loss of a token.
    pub fn objective(&self) -> Objective {
        let kl_estimator = self.kl.unwrap_or_default().estimator;
        Objective { ratio: self.loss_type.ratio(), surrogate: self.surrogate, kl_estimator }
    }

    /// Return the mistakes in these settings, one line each.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut require = |ok: bool, what: String| {
            if !ok {
                mistakes.push(what);
            }
        };
        let positive = |value: f32| value > 0.0 && value.is_finite();
        match self.surrogate {
            Surrogate::Clip { low, high, delta } => {
                require((0.0..1.0).contains(&low), format!("epsilon = {low} must be at least 0 and below 1"));
                let not_negative = high >= 0.0 && high.is_finite();
                require(not_negative, format!("epsilon_high = {high} must not be negative"));
                let least = 1.0 + high;
                if let Some(delta) = delta {
                    require(delta > least, format!("delta = {delta} must be above 1 + epsilon_high = {least}"));
                }
            }
            Surrogate::Cispo { max } => {
                let why = "must be at least 1 with type = \"cispo\", where it is the maximum importance weight itself \
                    (usually 5.0)";
                require(max >= 1.0, format!("epsilon_high = {max} {why}"));
            }
            Surrogate::Sapo { positive: up, negative: down } => {
                require(positive(up), format!("sapo_temperature_pos = {up} must be positive"));
                require(positive(down), format!("sapo_temperature_neg = {down} must be positive"));
            }
            Surrogate::Unclipped => {}
        }
        if let Some(Kl { beta, .. }) = self.kl {
            require(
                positive(beta),
                format!("kl.beta = {beta} must be positive; to train without a KL penalty, remove kl"),
            );
        }
        mistakes.extend(config::count("num_iterations", self.num_iterations, 1, 10_000));
        mistakes.extend(config::count("steps_per_generation", self.steps_per_generation, 1, 10_000));
        mistakes
    }
}

/// The section as it is written, with the keys of all types.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    /// Loss type: surrogate, weighting of tokens, and importance ratio per token or per completion.
    r#type: LossType,
    /// Lower clipping range: the ratio is clipped at 1 − `epsilon` (not with cispo and sapo).
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon: Option<f32>,
    /// Upper clipping range: the ratio is clipped at 1 + `epsilon_high`; with cispo, the maximum importance weight
    /// itself (not with sapo).
    #[serde(skip_serializing_if = "Option::is_none")]
    epsilon_high: Option<f32>,
    /// Dual clipping: upper bound on the ratio of tokens with a negative advantage, above 1 + `epsilon_high`; not set
    /// for no bound (not with cispo and sapo).
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<f32>,
    /// Temperature τ of the soft clip for tokens with a positive advantage (only with sapo; default 1.0).
    #[serde(skip_serializing_if = "Option::is_none")]
    sapo_temperature_pos: Option<f32>,
    /// Temperature τ of the soft clip for all other tokens (only with sapo; default 1.05).
    #[serde(skip_serializing_if = "Option::is_none")]
    sapo_temperature_neg: Option<f32>,
    /// Number of passes over the completions of a step.
    num_iterations: usize,
    /// Number of mini-batches into which the completions of a step are split, with one optimiser step each.
    steps_per_generation: usize,
    /// KL penalty towards the reference model: the model at the start of the run, which is kept in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    kl: Option<Kl>,
}

#[allow(clippy::derivable_impls, reason = "the numbers are not 0")]
impl Default for Keys {
    fn default() -> Self {
        Self { epsilon: None, epsilon_high: None, ..Self::from(StageLoss::default()) }
    }
}

impl From<StageLoss> for Keys {
    fn from(loss: StageLoss) -> Self {
        let StageLoss { loss_type, surrogate, kl, num_iterations, steps_per_generation } = loss;
        let none = Self {
            r#type: loss_type,
            epsilon: None,
            epsilon_high: None,
            delta: None,
            sapo_temperature_pos: None,
            sapo_temperature_neg: None,
            num_iterations,
            steps_per_generation,
            kl,
        };
        match surrogate {
            Surrogate::Clip { low, high, delta } => {
                Self { epsilon: Some(low), epsilon_high: Some(high), delta, ..none }
            }
            Surrogate::Cispo { max } => Self { epsilon_high: Some(max), ..none },
            Surrogate::Sapo { positive, negative } => {
                Self { sapo_temperature_pos: Some(positive), sapo_temperature_neg: Some(negative), ..none }
            }
            Surrogate::Unclipped => none,
        }
    }
}

impl TryFrom<Keys> for StageLoss {
    type Error = String;

    fn try_from(keys: Keys) -> Result<Self, String> {
        let Keys { r#type, kl, num_iterations, steps_per_generation, .. } = keys;
        let mut loss = Self { kl, num_iterations, steps_per_generation, ..Self::of(r#type) };
        let written = [
            ("epsilon", keys.epsilon),
            ("epsilon_high", keys.epsilon_high),
            ("delta", keys.delta),
            ("sapo_temperature_pos", keys.sapo_temperature_pos),
            ("sapo_temperature_neg", keys.sapo_temperature_neg),
        ];
        for (key, value) in written {
            let Some(value) = value else { continue };
            match (key, &mut loss.surrogate) {
                ("epsilon", Surrogate::Clip { low, .. }) => *low = value,
                ("epsilon_high", Surrogate::Clip { high, .. }) => *high = value,
                ("delta", Surrogate::Clip { delta, .. }) => *delta = Some(value),
                ("epsilon_high", Surrogate::Cispo { max }) => *max = value,
                ("sapo_temperature_pos", Surrogate::Sapo { positive, .. }) => *positive = value,
                ("sapo_temperature_neg", Surrogate::Sapo { negative, .. }) => *negative = value,
                (_, surrogate) => {
                    let own = match surrogate {
                        Surrogate::Clip { .. } => "epsilon, epsilon_high, delta",
                        Surrogate::Cispo { .. } => "epsilon_high",
                        Surrogate::Sapo { .. } => "sapo_temperature_pos, sapo_temperature_neg",
                        Surrogate::Unclipped => "none of these",
                    };
                    let name = toml::Value::try_from(r#type).expect("a type is a text");
                    return Err(format!(
                        "key `{key}` has no effect with type = {name}, whose keys are {own}: remove it"
                    ));
                }
            }
        }
        Ok(loss)
    }
}
