//! Computation of advantages from the rewards of a step.
//!
//! Given the means and deviations, every kind is linear in the rewards. Each part is centred on its own mean; both are
//! divided by the deviation of whole rewards. So the parts of an advantage add up to the whole.

use serde::{Deserialize, Serialize};

use super::Parts;

/// Rule that computes advantages from rewards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Advantage {
    /// `A = beta · R`, without a group baseline; with rewards of at least 0 no advantage is negative (arXiv 2511.14258,
    /// compression stage, according to a third-party summary).
    Absolute {
        /// Scale factor.
        #[serde(default = "one")]
        beta: f32,
    },
    /// Reward minus the mean of the group (GRPO, arXiv 2402.03300).
    Group {
        /// Divisor of the difference: group (standard deviation of the group), batch (standard deviation of all rewards
        /// of the step) or none (no scaling, Dr. GRPO).
        #[serde(default)]
        scale_rewards: ScaleRewards,
        /// Combination of several rewards: sum_then_normalize (add the weighted rewards, then normalise) or
        /// normalize_then_sum (normalise each reward within its group, add with weights, then normalise over the step;
        /// GDPO, arXiv 2601.05242).
        #[serde(default)]
        multi_objective_aggregation: Aggregation,
    },
    /// Reward minus the mean of the *other* completions of the group (RLOO, arXiv 2402.14740).
    LeaveOneOut,
    /// Reward minus the mean of the group, then whitened over all tokens of the step (REINFORCE++ with baseline, arXiv
    /// 2501.03262): minus the token-weighted mean, divided by the square root of the token-weighted variance plus 1e-8.
    ReinforcePlusPlusBaseline {
        /// Added after whitening to the advantage of completions with a reward of at least 1 (DLER, arXiv 2510.15110:
        /// 0.1).
        #[serde(default)]
        correct_advantage_boost: f32,
    },
}

fn one() -> f32 {
    1.0
}

impl Default for Advantage {
    /// GRPO's advantage, on the weighted sum of the rewards.
    fn default() -> Self {
        Self::Group { scale_rewards: ScaleRewards::default(), multi_objective_aggregation: Aggregation::default() }
    }
}

/// TRL's `scale_rewards`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The group's standard deviation.
    #[default]
    Group,
    /// The standard deviation of all rewards of the step.
    Batch,
    /// Nothing (Dr. GRPO).
    None,
}

/// TRL's `multi_objective_aggregation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Add the weighted rewards, then normalise.
    #[default]
    SumThenNormalize,
    /// Normalise each reward in its group, add with weights, then normalise over the step (GDPO, arXiv 2601.05242).
    NormalizeThenSum,
}

impl Advantage {
    /// Return a setting that cannot work, as `key = value` and the reason.
    pub fn mistake(&self) -> Option<String> {
        match self {
            Self::Absolute { beta } if !(*beta > 0.0 && beta.is_finite()) => {
                Some(format!("beta = {beta} must be positive"))
            }
            Self::Group { scale_rewards, multi_objective_aggregation: Aggregation::NormalizeThenSum }
                if *scale_rewards != ScaleRewards::Group =>
            {
                Some(
                    "scale_rewards must be \"group\" where multi_objective_aggregation = \"normalize_then_sum\", which \
                        normalises each reward within its group and the sum over the step"
                        .to_string(),
                )
            }
            Self::ReinforcePlusPlusBaseline { correct_advantage_boost: boost }
                if !(*boost >= 0.0 && boost.is_finite()) =>
            {
                Some(format!("correct_advantage_boost = {boost} must not be negative"))
            }
            _ => None,
        }
    }
}

/// Weights of groups by difficulty (GRPO-LEAD, arXiv 2504.09696): with p the share of right completions of a group and
/// `w(x) = lowest + (highest − lowest) / (1 + e^(steepness · (x − midpoint)))`, a positive advantage is multiplied by
/// `w(p)` and a negative one by `w(1 − p)`. Defaults are the published values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DifficultyWeighting {
    /// Weight for x far above the midpoint.
    pub lowest: f32,
    /// Weight for x far below the midpoint.
    pub highest: f32,
    /// Steepness of the transition between the two.
    pub steepness: f32,
    /// Value of x at which the weight is halfway between the two.
    pub midpoint: f32,
}

impl Default for DifficultyWeighting {
    fn default() -> Self {
        Self { lowest: 0.4, highest: 1.5, steepness: 10.0, midpoint: 0.75 }
    }
}

impl DifficultyWeighting {
    fn weight(&self, x: f32) -> f32 {
        self.lowest + (self.highest - self.lowest) / (1.0 + (self.steepness * (x - self.midpoint)).exp())
    }
}

/// Rewards, lengths and correctness of the completions of one problem.
#[derive(Debug, Clone, Default)]
pub struct ScoredGroup {
    /// `rewards[k][i]` is reward `k` of completion `i`; `None` if it cannot be scored.
    pub rewards: Vec<Vec<Option<Parts>>>,
    /// Number of tokens of each completion.
    pub lengths: Vec<usize>,
    /// Whether each answer is correct; `None` if that cannot be determined.
    pub correct: Vec<Option<bool>>,
}

/// Constant added to a standard deviation, as in TRL (verl: 1e-6, and 1e-8 under the root when whitening).
const EPSILON: f64 = 1e-4;

/// Compute the advantages of all completions of a step, group by group.
///
/// A reward that is `None` is left out of means and deviations and contributes 0; a completion without any reward has
/// an advantage of 0. Standard deviations have the divisor n − 1.
///
/// # Panics
/// When a group does not have a list of rewards for each weight.
pub fn advantages(
    kind: Advantage,
    difficulty: Option<&DifficultyWeighting>,
    groups: &[ScoredGroup],
    weights: &[f32],
) -> Vec<Vec<Parts>> {
    assert!(groups.iter().all(|group| group.rewards.len() == weights.len()), "a weight for each reward");
    let sums = || weighted_sums(groups, weights, |rewards| rewards);
    let mut advantages = match kind {
        Advantage::Absolute { beta } => sums().map_scored(|_, value| value.scale(f64::from(beta))),
        Advantage::LeaveOneOut => leave_one_out(&sums()),
        Advantage::Group { scale_rewards, multi_objective_aggregation: Aggregation::SumThenNormalize } => {
            let sums = sums();
            let of_step = sums.moments();
            sums.map_groups(|group| {
                let (mean, deviation) = moments(group);
                let divisor = match scale_rewards {
                    ScaleRewards::Group => deviation + EPSILON,
                    ScaleRewards::Batch => of_step.1 + EPSILON,
                    ScaleRewards::None => 1.0,
                };
                (mean, divisor)
            })
        }
        Advantage::Group { multi_objective_aggregation: Aggregation::NormalizeThenSum, .. } => {
            let sums = weighted_sums(groups, weights, normalised);
            let (mean, deviation) = sums.moments();
            sums.map_scored(|_, value| value.standardise(mean, deviation + EPSILON))
        }
        Advantage::ReinforcePlusPlusBaseline { correct_advantage_boost } => {
            let sums = sums();
            let whitened = whiten_tokens(&sums.map_groups(|group| (moments(group).0, 1.0)), groups);
            whitened.map_scored(|(g, i), value| {
                // The tolerance allows for rounding in sums of weighted rewards.
                let right = sums.0[g][i].is_some_and(|reward| reward.total() >= 1.0 - 1e-5);
                value.plus(PartPair([if right { f64::from(correct_advantage_boost) } else { 0.0 }, 0.0]))
            })
        }
    }
    .finish();
    if let Some(weighting) = difficulty {
        for (group, advantages) in groups.iter().zip(&mut advantages) {
            let known: Vec<bool> = group.correct.iter().flatten().copied().collect();
            let right = known.iter().filter(|&&right| right).count() as f32 / known.len().max(1) as f32;
            for advantage in advantages {
                *advantage = *advantage * weighting.weight(if advantage.total() > 0.0 { right } else { 1.0 - right });
            }
        }
    }
    advantages
}

/// [`Parts`] in double precision, as `[task, length]`.
#[derive(Debug, Clone, Copy, Default)]
struct PartPair([f64; 2]);

impl PartPair {
    fn total(self) -> f64 {
        self.0[0] + self.0[1]
    }

    fn plus(self, other: Self) -> Self {
        Self([self.0[0] + other.0[0], self.0[1] + other.0[1]])
    }

    fn scale(self, factor: f64) -> Self {
        Self(self.0.map(|part| part * factor))
    }

    fn standardise(self, mean: Self, divisor: f64) -> Self {
        self.plus(mean.scale(-1.0)).scale(1.0 / divisor)
    }
}

impl From<Parts> for PartPair {
    fn from(parts: Parts) -> Self {
        Self([f64::from(parts.task), f64::from(parts.length)])
    }
}

/// Values of all completions, group by group; `None` for completions without a reward.
struct GroupValues(Vec<Vec<Option<PartPair>>>);

impl GroupValues {
    fn map_scored(&self, f: impl Fn((usize, usize), PartPair) -> PartPair) -> Self {
        let group = |(g, group): (usize, &Vec<Option<PartPair>>)| {
            group.iter().enumerate().map(|(i, value)| value.map(|value| f((g, i), value))).collect()
        };
        Self(self.0.iter().enumerate().map(group).collect())
    }

    /// Subtract the mean and divide by the divisor that `f` returns for the values of a group.
    fn map_groups(&self, f: impl Fn(&[Option<PartPair>]) -> (PartPair, f64)) -> Self {
        let group = |group: &Vec<Option<PartPair>>| {
            let (mean, divisor) = f(group);
            group.iter().map(|value| value.map(|value| value.standardise(mean, divisor))).collect()
        };
        Self(self.0.iter().map(group).collect())
    }

    fn moments(&self) -> (PartPair, f64) {
        moments(&self.0.concat())
    }

    fn finish(self) -> Vec<Vec<Parts>> {
        let parts = |value: Option<PartPair>| {
            let [task, length] = value.unwrap_or_default().0;
            Parts { task: task as f32, length: length as f32 }
        };
        self.0.into_iter().map(|group| group.into_iter().map(parts).collect()).collect()
    }
}

/// Return the weighted sum of each completion's rewards; `prepare` first transforms each reward over its group.
fn weighted_sums(
    groups: &[ScoredGroup],
    weights: &[f32],
    prepare: impl Fn(Vec<Option<PartPair>>) -> Vec<Option<PartPair>>,
) -> GroupValues {
    let of_group = |group: &ScoredGroup| {
        let rewards = group.rewards.iter().zip(weights).map(|(rewards, &weight)| {
            let rewards = prepare(rewards.iter().map(|reward| reward.map(PartPair::from)).collect());
            rewards.into_iter().map(move |reward| reward.map(|reward| reward.scale(f64::from(weight))))
        });
        let mut sums = vec![None; group.lengths.len()];
        for reward in rewards {
            for (sum, reward) in sums.iter_mut().zip(reward) {
                *sum = sum.map_or(reward, |sum: PartPair| Some(sum.plus(reward.unwrap_or_default())));
            }
        }
        sums
    };
    GroupValues(groups.iter().map(of_group).collect())
}

fn normalised(values: Vec<Option<PartPair>>) -> Vec<Option<PartPair>> {
    let (mean, deviation) = moments(&values);
    values.into_iter().map(|value| value.map(|value| value.standardise(mean, deviation + EPSILON))).collect()
}

/// Return the mean of each part and the standard deviation of the totals, ignoring `None`.
fn moments(values: &[Option<PartPair>]) -> (PartPair, f64) {
    weighted_moments(values.iter().flatten().map(|&value| (value, 1.0)))
}

/// Weighted version of [`moments`]. The deviation is `sqrt(Σ w (x − mean)² / (Σ w − 1))`, or 0 if `Σ w` is at most 1.
fn weighted_moments(values: impl Iterator<Item = (PartPair, f64)> + Clone) -> (PartPair, f64) {
    // Relative to the first value, so that the mean of equal values is exact and their advantage is exactly 0.
    let Some((first, _)) = values.clone().next() else { return (PartPair::default(), 0.0) };
    let total: f64 = values.clone().map(|(_, weight)| weight).sum();
    let offset = |value: PartPair| value.plus(first.scale(-1.0));
    let shift = values
        .clone()
        .map(|(value, weight)| offset(value).scale(weight / total))
        .fold(PartPair::default(), PartPair::plus);
    let squares: f64 =
        values.map(|(value, weight)| weight * offset(value).standardise(shift, 1.0).total().powi(2)).sum();
    (first.plus(shift), if total > 1.0 { (squares / (total - 1.0)).sqrt() } else { 0.0 })
}

fn leave_one_out(sums: &GroupValues) -> GroupValues {
    GroupValues(
        (sums.0.iter())
            .map(|group| {
                let (mean, _) = moments(group);
                let count = group.iter().flatten().count() as f64;
                // r − (Σ r − r) / (n − 1) = (r − mean) · n / (n − 1); a single score has no baseline and gets 0.
                let factor = if count > 1.0 { count / (count - 1.0) } else { 0.0 };
                group.iter().map(|value| value.map(|value| value.standardise(mean, 1.0).scale(factor))).collect()
            })
            .collect(),
    )
}

/// Whiten over the tokens of the step: the weight of a completion is its number of tokens.
fn whiten_tokens(values: &GroupValues, groups: &[ScoredGroup]) -> GroupValues {
    let lengths = groups.iter().flat_map(|group| &group.lengths);
    let weighted: Vec<(PartPair, f64)> = (values.0.iter().flatten().zip(lengths))
        .filter_map(|(value, &length)| Some(((*value)?, length as f64)))
        .collect();
    let (mean, deviation) = weighted_moments(weighted.iter().copied());
    values.map_scored(|_, value| value.standardise(mean, (deviation * deviation + 1e-8).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRPO: Advantage = Advantage::Group {
        scale_rewards: ScaleRewards::Group,
        multi_objective_aggregation: Aggregation::SumThenNormalize,
    };
    const GDPO: Advantage = Advantage::Group {
        scale_rewards: ScaleRewards::Group,
        multi_objective_aggregation: Aggregation::NormalizeThenSum,
    };

    fn grouped(scale_rewards: ScaleRewards) -> Advantage {
        Advantage::Group { scale_rewards, multi_objective_aggregation: Aggregation::SumThenNormalize }
    }

    /// Return a group with task rewards only; a completion is correct if its first reward is at least 1.
    fn group(rewards: &[&[Option<f32>]]) -> ScoredGroup {
        let task = |rewards: &&[Option<f32>]| rewards.iter().map(|reward| reward.map(Parts::task)).collect();
        ScoredGroup {
            rewards: rewards.iter().map(task).collect(),
            lengths: (1..=rewards[0].len()).collect(),
            correct: rewards[0].iter().map(|reward| reward.map(|reward| reward >= 1.0)).collect(),
        }
    }

    fn totals(kind: Advantage, groups: &[ScoredGroup], weights: &[f32]) -> Vec<f32> {
        advantages(kind, None, groups, weights).concat().into_iter().map(Parts::total).collect()
    }

    fn assert_near(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 2e-6), "{got:?} {expected:?}");
    }

    /// `(r - r.mean()) / (r.std() + 1e-4)` with torch's std (divisor n − 1) for [1, 0, 0, 1]: ±0.865875.
    #[test]
    fn group_advantage_is_trls() {
        let group = group(&[&[Some(1.0), Some(0.0), Some(0.0), Some(1.0)]]);
        assert_near(&totals(GRPO, &[group], &[1.0]), &[0.865_875, -0.865_875, -0.865_875, 0.865_875]);
    }

    #[test]
    fn equal_rewards_and_unscored_completions_teach_nothing() {
        for kind in [GRPO, GDPO, grouped(ScaleRewards::Batch), grouped(ScaleRewards::None), Advantage::LeaveOneOut] {
            // 0.1 + 0.7 · 0.3 is rounded, and summing it three times does not give exactly three times its value.
            let equal = group(&[&[Some(0.1); 3], &[Some(0.3); 3]]);
            assert_eq!(totals(kind, &[equal.clone(), equal], &[1.0, 0.7]), [0.0; 6], "{kind:?}");
            let a = totals(kind, &[group(&[&[Some(1.0), None, Some(0.0)]])], &[1.0]);
            assert!(a[0] > 0.0 && a[1] == 0.0 && a[2] < 0.0, "{kind:?} {a:?}");
            assert_eq!(totals(kind, &[group(&[&[Some(1.0), None, None]])], &[1.0]), [0.0; 3], "{kind:?}");
        }
    }

    #[test]
    fn absolute_advantage_is_never_negative_for_rewards_that_are_not() {
        let group = group(&[&[Some(0.5), Some(0.0), None]]);
        assert_eq!(totals(Advantage::Absolute { beta: 2.0 }, &[group], &[1.0]), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn each_reward_normalised_on_its_own_weighs_the_same_whatever_its_scale() {
        let small = [Some(0.00), Some(0.05), Some(0.10), Some(0.15)];
        let large = [Some(0.0), Some(50.0), Some(100.0), Some(150.0)];
        let accuracy = [Some(1.0), Some(0.0), Some(1.0), Some(0.0)];
        let a = totals(GDPO, &[group(&[&accuracy, &small])], &[1.0, 0.5]);
        let b = totals(GDPO, &[group(&[&accuracy, &large])], &[1.0, 0.5]);
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 2e-3), "{a:?} {b:?}");
    }

    /// By hand for rewards 1, 0, 0: the baselines are the means of the others, (0 + 0) / 2 and (1 + 0) / 2.
    #[test]
    fn leaving_one_out_compares_with_the_others() {
        let group = group(&[&[Some(1.0), Some(0.0), Some(0.0)]]);
        assert_near(&totals(Advantage::LeaveOneOut, &[group], &[1.0]), &[1.0, -0.5, -0.5]);
    }

    /// Rewards 1 and 0 with lengths 1 and 3: centred on the group's mean ±0.5; over 4 tokens the mean is −0.25 and the
    /// variance 0.25, so 1.5 and −0.5. The boost of the correct completion is added to 1.5.
    #[test]
    fn whitening_weighs_tokens_and_the_boost_comes_after() {
        let mut group = group(&[&[Some(1.0), Some(0.0)]]);
        group.lengths = vec![1, 3];
        for boost in [0.0, 0.1] {
            let kind = Advantage::ReinforcePlusPlusBaseline { correct_advantage_boost: boost };
            assert_near(&totals(kind, std::slice::from_ref(&group), &[1.0]), &[1.5 + boost, -0.5]);
        }
    }

    /// The weight is 1.4994 for a correct answer if p = 0 and for a wrong one if p = 1; 0.4834 in the opposite cases.
    #[test]
    fn difficulty_weighs_right_answers_of_hard_problems_and_wrong_ones_of_easy_ones() {
        let weighting = DifficultyWeighting::default();
        assert!((weighting.weight(0.0) - 1.499_39).abs() < 1e-5 && (weighting.weight(1.0) - 0.483_44).abs() < 1e-5);
        let one_right = group(&[&[Some(1.0), Some(0.0), Some(0.0), Some(0.0)]]);
        let plain = totals(GRPO, std::slice::from_ref(&one_right), &[1.0]);
        let weighed: Vec<f32> =
            advantages(GRPO, Some(&weighting), &[one_right], &[1.0]).concat().into_iter().map(Parts::total).collect();
        let (hard, easy) = (weighting.weight(0.25), weighting.weight(0.75));
        assert_near(&weighed, &[plain[0] * hard, plain[1] * easy, plain[2] * easy, plain[3] * easy]);
    }

    /// Splitting rewards into parts changes no advantage: the parts add up to the advantage of the whole rewards.
    #[test]
    fn parts_add_up_to_the_advantage_of_the_whole_rewards() {
        let parts = |g: usize, k: usize, i: usize| {
            let noise = |salt: usize| ((g * 31 + k * 17 + i * 7 + salt * 13) % 23) as f32 / 23.0 - 0.4;
            (!(g + 2 * k + i).is_multiple_of(7)).then(|| Parts { task: noise(1), length: noise(2) })
        };
        let split: Vec<ScoredGroup> = (0..3)
            .map(|g| ScoredGroup {
                rewards: (0..2).map(|k| (0..5).map(|i| parts(g, k, i)).collect()).collect(),
                lengths: (0..5).map(|i| 3 + (g * 5 + i * 11) % 17).collect(),
                correct: (0..5).map(|i| Some((g + i) % 2 == 0)).collect(),
            })
            .collect();
        let mut whole = split.clone();
        for reward in whole.iter_mut().flat_map(|group| &mut group.rewards).flatten() {
            *reward = reward.map(|reward| Parts::task(reward.total()));
        }
        let boosted = Advantage::ReinforcePlusPlusBaseline { correct_advantage_boost: 0.1 };
        let kinds = [GRPO, GDPO, grouped(ScaleRewards::Batch), grouped(ScaleRewards::None)];
        for kind in kinds.into_iter().chain([Advantage::LeaveOneOut, boosted, Advantage::Absolute { beta: 0.7 }]) {
            for weighting in [None, Some(DifficultyWeighting::default())] {
                let split = advantages(kind, weighting.as_ref(), &split, &[1.0, 0.3]).concat();
                let whole = advantages(kind, weighting.as_ref(), &whole, &[1.0, 0.3]).concat();
                let close = split.iter().zip(&whole).all(|(split, whole)| (split.total() - whole.total()).abs() < 1e-6);
                assert!(close, "{kind:?}: {split:?} {whole:?}");
                assert!(split.iter().any(|advantage| advantage.length != 0.0));
            }
        }
    }

    #[test]
    fn settings_that_contradict_each_other_are_named() {
        let kind = Advantage::Group {
            scale_rewards: ScaleRewards::None,
            multi_objective_aggregation: Aggregation::NormalizeThenSum,
        };
        assert!(kind.mistake().unwrap().starts_with("scale_rewards must be"));
        assert_eq!(Advantage::Absolute { beta: 0.0 }.mistake().unwrap(), "beta = 0 must be positive");
        assert_eq!(GDPO.mistake(), None);
    }
}
