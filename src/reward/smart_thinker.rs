//! SmartThinker (arXiv 2603.08000): penalises length beyond the best length, as much as possible without moving a right
//! answer below the group's mean reward.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward};
use crate::error::Result;
use crate::metrics::mean;

/// `1 − Λ · max(0, len − l*)` for a right answer, 0 for a wrong one.
///
/// With μ and σ² the mean and (population) variance of all lengths of the group, and μ', σ'² those of the right
/// answers: `l* = (σ'² μ − σ² μ') / (σ'² − σ²)`, where normal distributions of right and of all lengths are furthest
/// apart, clamped to the shortest and the longest; the shortest if σ'² > σ², or if all are right. `Λ = p_wrong /
/// (largest excess − mean excess)`, largest over right answers and mean over the group, is the largest weight with
/// which no right answer is below the mean of the group's rewards; 0 if all are right. The formula is that of the code
/// (`SJTU-RTEAS/SmartThinker`, 42a6dd7, `src/workers/reward_manager/SmartThinker.py`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmartThinker {}

fn variance(values: &[f64]) -> f64 {
    let centre = mean(values);
    mean(&values.iter().map(|value| (value - centre).powi(2)).collect::<Vec<_>>())
}

/// Return l* from the lengths of all answers and of the right ones, of which there is at least one.
fn best_length(all: &[f64], right: &[f64]) -> f64 {
    let shortest = all.iter().copied().fold(f64::INFINITY, f64::min);
    let longest = all.iter().copied().fold(0.0, f64::max);
    let (of_all, of_right) = (variance(all), variance(right));
    if right.len() == all.len() || of_right > of_all + 1e-6 {
        return shortest;
    }
    if (of_right - of_all).abs() < 1e-6 {
        return if mean(right) < mean(all) { longest } else { shortest };
    }
    ((of_right * mean(all) - of_all * mean(right)) / (of_right - of_all)).clamp(shortest, longest)
}

impl Reward for SmartThinker {
    fn name(&self) -> &str {
        "smart_thinker"
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let right = group.right_lengths();
        if right.is_empty() {
            return Ok(group.each(|_, _| Parts::task(0.0)));
        }
        let best = best_length(&group.lengths(), &right);
        let excess = |length: f64| (length - best).max(0.0);
        let largest = right.iter().map(|length| excess(*length)).fold(0.0, f64::max);
        let known = group.answers.iter().filter(|answer| answer.correct.is_some()).count() as f64;
        let average = right.iter().map(|length| excess(*length)).sum::<f64>() / known;
        let weight = (1.0 - group.pass_rate()) / (largest - average + 1e-6);
        Ok(group.each(|answer, right| match right {
            true => Parts { task: 1.0, length: -(weight * excess(answer.length() as f64)) as f32 },
            false => Parts::task(0.0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, scores};
    use super::*;

    /// Right 10, 20, wrong 30, 60: μ = 30, σ² = 350, μ' = 15, σ'² = 25; l* = (25 · 30 − 350 · 15) / (25 − 350) =
    /// 13.846. The excess is 0 and 6.154, its mean 1.538, Λ = 0.5 / 4.615. The longer right answer earns 1 − 0.6667 =
    /// 0.3333, which is the mean of the group's rewards, (1 + 0.3333) / 4.
    #[test]
    fn no_right_answer_is_below_the_mean() {
        let group = [answer(true, 10), answer(true, 20), answer(false, 30), answer(false, 60)];
        let got: Vec<f32> = scores(&SmartThinker {}, &group).into_iter().flatten().collect();
        assert!((got[0] - 1.0).abs() < 1e-6 && (got[1] - 1.0 / 3.0).abs() < 1e-5, "{got:?}");
        assert!((got.iter().sum::<f32>() / 4.0 - got[1]).abs() < 1e-5 && got[2..] == [0.0, 0.0]);
    }

    #[test]
    fn nothing_is_paid_for_length_where_all_are_right_or_none() {
        let all = [answer(true, 10), answer(true, 90)];
        assert_eq!(scores(&SmartThinker {}, &all), [Some(1.0), Some(1.0)]);
        assert_eq!(scores(&SmartThinker {}, &[answer(false, 10), answer(false, 90)]), [Some(0.0), Some(0.0)]);
    }

    #[test]
    fn the_best_length_by_hand() {
        assert_eq!(best_length(&[10.0, 90.0, 50.0], &[10.0, 90.0]), 10.0);
        // One right answer has no variance: l* is its own length.
        assert_eq!(best_length(&[10.0, 40.0, 70.0], &[40.0]), 40.0);
        assert_eq!(best_length(&[7.0, 7.0], &[7.0]), 7.0);
    }
}
