//! Advantages of a batch of scored completions, and the loss computed from them.
//!
//! An objective is a combination of independent choices; a published method is a set of choices in a config file. Data
//! flow: [`crate::reward`] scores completions; [`advantage`] compares the scores; [`steps`] and [`terms`] select the
//! tokens with a gradient and their weights; [`correction`] corrects for another engine's sampling; [`loss`] computes
//! the loss of a token and its derivative.

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
pub use terms::{TokenRuleInput, TokenRules};

pub use crate::reward::Parts;

/// TRL's `loss_type`: a surrogate together with an [`Aggregate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Clipped surrogate, mean over all tokens of the mini-batch (DAPO, arXiv 2503.14476).
    Dapo,
    /// Clipped surrogate, mean over the tokens of each completion, then over completions (GRPO, arXiv 2402.03300).
    Grpo,
    /// As `grpo`, with the importance ratio of the whole completion (GSPO, arXiv 2507.18071).
    Gspo,
    /// Clipped surrogate, sum over tokens divided by the number of completions times `max_completion_length` (Dr. GRPO,
    /// arXiv 2503.20783).
    DrGrpo,
    /// Clipped surrogate, mean over all tokens of each group, then over groups. TRL uses the tokens of a micro-batch
    /// instead of a group; here the loss does not depend on the micro-batch size.
    Bnpo,
    /// Clipped importance weights that keep the gradient of every token, mean over tokens (CISPO, arXiv 2506.13585).
    Cispo,
    /// Soft clipping, mean over the tokens of each completion, then over completions (SAPO, arXiv 2511.20347).
    Sapo,
}

/// Weighting of token losses within a mini-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    /// Equal weight for every token of the step.
    TokenMean,
    /// Equal weight for every completion, and for every token within a completion.
    SequenceMean,
    /// For every token, one over the number of completions times the length limit.
    ConstantLength,
    /// Equal weight for every group, and for every token within a group.
    GroupTokenMean,
}

impl LossType {
    /// Return the weighting of token losses.
    pub fn aggregate(self) -> Aggregate {
        match self {
            Self::Dapo | Self::Cispo => Aggregate::TokenMean,
            Self::Grpo | Self::Gspo | Self::Sapo => Aggregate::SequenceMean,
            Self::DrGrpo => Aggregate::ConstantLength,
            Self::Bnpo => Aggregate::GroupTokenMean,
        }
    }

    /// Return the level of the importance ratio.
    pub fn ratio(self) -> Ratio {
        if self == Self::Gspo { Ratio::Sequence } else { Ratio::Token }
    }
}

impl Aggregate {
    /// Return the weight of each token, one entry per completion. It is computed once for the mini-batch of an
    /// optimiser step, so the split into micro-batches does not change the loss.
    ///
    /// `lengths` has, for each problem, the number of tokens of each completion; 0 for a completion that is left out.
    /// Such a completion has weight 0 and is not counted, as in verl (TRL counts it among the completions).
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
