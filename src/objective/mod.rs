//! What is learned from a batch of scored completions: advantages, and the loss they enter.
//!
//! An objective is a composition of independent choices; a method of the literature is a set of them in a config file.
//! The way of the data: [`crate::reward`] scores completions, [`advantage`] compares scores, [`steps`] and [`terms`] say which
//! tokens learn and with how much, [`correction`] makes up for another engine's sampling, [`loss`] is the loss of a token and its
//! derivative.

pub mod advantage;
pub mod correction;
pub mod entropy;
pub mod loss;
pub mod steps;
pub mod terms;

use serde::{Deserialize, Serialize};

pub use advantage::{Advantage, DifficultyWeighting, advantages};
pub use correction::Correction;
pub use loss::{KlEstimator, Objective, Ratio, Statistics, Surrogate, TokenTerm, Upstream};
pub use terms::{Drawn, TokenRules};

pub use crate::reward::Parts;

/// TRL's `loss_type`: a surrogate together with an [`Aggregate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Clip, every token of the step weighs the same (DAPO, arXiv 2503.14476).
    Dapo,
    /// Clip, every completion weighs the same (GRPO, arXiv 2402.03300).
    Grpo,
    /// As `grpo`, with the ratio of the whole completion (GSPO, arXiv 2507.18071).
    Gspo,
    /// Clip, every token weighs one over completions times `max_completion_length` (Dr. GRPO, arXiv 2503.20783).
    DrGrpo,
    /// Clip, every token of a group weighs the same, and every group. TRL takes the tokens of one micro-batch instead of a
    /// group; ours does not change with the micro-batch.
    Bnpo,
    /// Clipped factors that keep every gradient, token mean (CISPO, arXiv 2506.13585).
    Cispo,
    /// Soft clip, completion mean (SAPO, arXiv 2511.20347).
    Sapo,
}

/// How token losses are weighed against each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    /// Every token of the step weighs the same.
    TokenMean,
    /// Every completion weighs the same, and every token of one.
    SequenceMean,
    /// Every token weighs one over completions times the length limit.
    ConstantLength,
    /// Every group weighs the same, and every token of one.
    GroupTokenMean,
}

impl LossType {
    /// Its part beside the surrogate.
    pub fn aggregate(self) -> Aggregate {
        match self {
            Self::Dapo | Self::Cispo => Aggregate::TokenMean,
            Self::Grpo | Self::Gspo | Self::Sapo => Aggregate::SequenceMean,
            Self::DrGrpo => Aggregate::ConstantLength,
            Self::Bnpo => Aggregate::GroupTokenMean,
        }
    }

    /// Whether its ratios are those of tokens or of completions.
    pub fn ratio(self) -> Ratio {
        if self == Self::Gspo { Ratio::Sequence } else { Ratio::Token }
    }
}

impl Aggregate {
    /// Weight of each token, one list entry per completion; counted once for the mini-batch of an optimiser step, so that
    /// no split into micro-batches changes the loss.
    ///
    /// `lengths` has a group per problem and in it the tokens of each completion, 0 for one that is left out: it weighs
    /// nothing and is not counted, as in verl (TRL counts it among the completions).
    pub fn weights(self, lengths: &[Vec<usize>], max_completion_length: usize) -> Vec<Vec<f32>> {
        let tokens: usize = lengths.iter().flatten().sum();
        let completions = lengths.iter().flatten().filter(|&&length| length > 0).count();
        let groups = lengths.iter().filter(|group| group.iter().any(|&length| length > 0)).count();
        let weight = |group: &[usize], length: usize| match self {
            _ if length == 0 => 0.0,
            Self::TokenMean => 1.0 / tokens as f32,
            Self::SequenceMean => 1.0 / (completions * length) as f32,
            Self::ConstantLength => 1.0 / (completions * max_completion_length) as f32,
            Self::GroupTokenMean => 1.0 / (groups * group.iter().sum::<usize>()) as f32,
        };
        lengths.iter().map(|group| group.iter().map(|&length| weight(group, length)).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_the_means_they_are_named_for() {
        let lengths = [vec![3, 1], vec![4, 0]];
        for (aggregate, expected) in [
            (Aggregate::TokenMean, [1.0 / 8.0, 1.0 / 8.0, 1.0 / 8.0, 0.0]),
            (Aggregate::SequenceMean, [1.0 / 9.0, 1.0 / 3.0, 1.0 / 12.0, 0.0]),
            (Aggregate::ConstantLength, [1.0 / 30.0, 1.0 / 30.0, 1.0 / 30.0, 0.0]),
            (Aggregate::GroupTokenMean, [1.0 / 8.0, 1.0 / 8.0, 1.0 / 8.0, 0.0]),
        ] {
            let weights = aggregate.weights(&lengths, 10).concat();
            assert!(weights.iter().zip(expected).all(|(a, e)| (a - e).abs() < 1e-7), "{aggregate:?}: {weights:?}");
        }
    }
}
