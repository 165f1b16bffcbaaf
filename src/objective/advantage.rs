//! From rewards to advantages.

use serde::{Deserialize, Serialize};

use crate::metrics::{deviation, mean};

/// How a completion's rewards become its advantage.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Advantage {
    /// `A = beta · R`, not relative to the group; with rewards of at least 0 it never pushes a completion down
    /// (arXiv 2511.14258, compression stage, as a third-party summary gives it).
    Absolute {
        /// Scale.
        beta: f32,
    },
    /// Relative to the completions of the same problem.
    Group {
        /// What the difference from the mean is divided by.
        scale_rewards: ScaleRewards,
        /// How several rewards are combined.
        multi_objective_aggregation: Aggregation,
    },
}

/// TRL's `scale_rewards`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The group's standard deviation (sample deviation, plus 1e-4).
    Group,
    /// Nothing (Dr. GRPO).
    None,
}

/// TRL's `multi_objective_aggregation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Add the weighted rewards, then normalise.
    SumThenNormalize,
    /// Normalise each reward on its own, then add with weights (GDPO, arXiv 2601.05242, without its batch whitening).
    NormalizeThenSum,
}

/// TRL's constant: added to the deviation.
const EPSILON: f64 = 1e-4;

/// Advantages of the completions of one problem.
///
/// `rewards[k][i]` is reward `k` of completion `i`; a `None` takes no part in means and deviations, and what it would
/// have added is 0.
pub fn advantages(kind: Advantage, rewards: &[Vec<Option<f32>>], weights: &[f32]) -> Vec<f32> {
    let count = rewards.first().map_or(0, Vec::len);
    let weighted = |k: usize, i: usize| rewards[k][i].map(|reward| f64::from(weights[k]) * f64::from(reward));
    let sums: Vec<Option<f64>> = (0..count)
        .map(|i| (0..rewards.len()).filter_map(|k| weighted(k, i)).fold(None, |sum, r| Some(sum.unwrap_or(0.0) + r)))
        .collect();
    let advantages: Vec<f64> = match kind {
        Advantage::Absolute { beta } => sums.iter().map(|sum| f64::from(beta) * sum.unwrap_or(0.0)).collect(),
        Advantage::Group { scale_rewards, multi_objective_aggregation: Aggregation::SumThenNormalize } => {
            normalise(&sums, scale_rewards)
        }
        Advantage::Group { scale_rewards, multi_objective_aggregation: Aggregation::NormalizeThenSum } => {
            let mut total = vec![0.0; count];
            for (rewards, &weight) in rewards.iter().zip(weights) {
                let rewards: Vec<Option<f64>> = rewards.iter().map(|reward| reward.map(f64::from)).collect();
                for (total, part) in total.iter_mut().zip(normalise(&rewards, scale_rewards)) {
                    *total += f64::from(weight) * part;
                }
            }
            total
        }
    };
    advantages.into_iter().map(|advantage| advantage as f32).collect()
}

fn normalise(rewards: &[Option<f64>], scale: ScaleRewards) -> Vec<f64> {
    let scored: Vec<f64> = rewards.iter().flatten().copied().collect();
    let divisor = match scale {
        ScaleRewards::Group => deviation(&scored) + EPSILON,
        ScaleRewards::None => 1.0,
    };
    let mean = mean(&scored);
    // A single score has nothing to be compared with.
    let alone = scored.len() < 2;
    rewards.iter().map(|reward| reward.filter(|_| !alone).map_or(0.0, |reward| (reward - mean) / divisor)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRPO: Advantage = Advantage::Group {
        scale_rewards: ScaleRewards::Group,
        multi_objective_aggregation: Aggregation::SumThenNormalize,
    };

    /// `(r - r.mean()) / (r.std() + 1e-4)` with torch's std (one degree of freedom less) for [1, 0, 0, 1]: ±0.865875.
    #[test]
    fn group_advantage_is_trls() {
        let a = advantages(GRPO, &[vec![Some(1.0), Some(0.0), Some(0.0), Some(1.0)]], &[1.0]);
        assert!((a[0] - 0.865_875).abs() < 1e-6 && (a[1] + 0.865_875).abs() < 1e-6, "{a:?}");
    }

    #[test]
    fn equal_rewards_and_unscored_completions_teach_nothing() {
        assert_eq!(advantages(GRPO, &[vec![Some(1.0); 4]], &[1.0]), [0.0; 4]);
        let a = advantages(GRPO, &[vec![Some(1.0), None, Some(0.0)]], &[1.0]);
        assert!(a[0] > 0.0 && a[1] == 0.0 && a[2] < 0.0, "{a:?}");
    }

    #[test]
    fn absolute_advantage_is_never_negative_for_rewards_that_are_not() {
        let a = advantages(Advantage::Absolute { beta: 2.0 }, &[vec![Some(0.5), Some(0.0), None]], &[1.0]);
        assert_eq!(a, [1.0, 0.0, 0.0]);
    }

    #[test]
    fn each_reward_normalised_on_its_own_weighs_the_same_whatever_its_scale() {
        let kind = Advantage::Group {
            scale_rewards: ScaleRewards::Group,
            multi_objective_aggregation: Aggregation::NormalizeThenSum,
        };
        let small = vec![Some(0.00), Some(0.05), Some(0.10), Some(0.15)];
        let large = vec![Some(0.0), Some(50.0), Some(100.0), Some(150.0)];
        let accuracy = vec![Some(1.0), Some(0.0), Some(1.0), Some(0.0)];
        let a = advantages(kind, &[accuracy.clone(), small], &[1.0, 0.5]);
        let b = advantages(kind, &[accuracy, large], &[1.0, 0.5]);
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 2e-3), "{a:?} {b:?}");
    }
}
