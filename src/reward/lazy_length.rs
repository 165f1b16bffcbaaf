//! Short-RL (arXiv 2505.12284): a length penalty only while accuracy holds, and only beyond a tolerance.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, require};
use crate::error::Result;
use crate::metrics::{Metrics, mean};
use crate::stop::Stop;

/// The lazy length penalty. For a right answer of `len` tokens, with `min` and `max` the shortest and the longest right
/// answer of the group: 0.5 when `len ≤ min + length_tolerance`, else `0.5 − (len − min) / (max − min)`; 0 for a wrong
/// one. In a step whose accuracy is more than `accuracy_tolerance` below the best step so far, all get 0.
///
/// The formula is that of the code (`lblankl/Short-RL`, 07cea8a, `deepscaler/deepscaler/rewards/ShortRL.py`), which
/// adds it to the rewards for accuracy and form with weight 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LazyLength {
    /// Number of tokens beyond the shortest correct answer of the group without a penalty; published: 100 for
    /// mathematics, 200 for puzzles.
    pub length_tolerance: usize,
    /// Maximum decrease of a step's accuracy below the best so far at which the reward applies, within [0, 1].
    pub accuracy_tolerance: f32,
}

impl Default for LazyLength {
    fn default() -> Self {
        Self { length_tolerance: 100, accuracy_tolerance: 0.05 }
    }
}

/// Return the share of right answers over all groups, among those whose correctness is known.
fn accuracy(groups: &[AnswerGroup]) -> f64 {
    let known = groups.iter().flat_map(|group| group.answers).filter_map(|answer| answer.correct);
    mean(&known.map(|right| f64::from(u8::from(right))).collect::<Vec<_>>())
}

impl LazyLength {
    fn scores(&self, group: &AnswerGroup) -> Vec<Option<Parts>> {
        let right = group.right_lengths();
        let shortest = right.iter().copied().fold(f64::INFINITY, f64::min);
        let longest = right.iter().copied().fold(0.0, f64::max);
        group.each_length(|answer, right| {
            let over = answer.length() as f64 - shortest;
            match right {
                false => 0.0,
                true if over <= self.length_tolerance as f64 => 0.5,
                true => (0.5 - over / (longest - shortest)) as f32,
            }
        })
    }
}

impl Reward for LazyLength {
    fn name(&self) -> &str {
        "lazy_length"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let tolerance = self.accuracy_tolerance;
        found([require((0.0..=1.0).contains(&tolerance), "accuracy_tolerance", tolerance, "between 0 and 1")])
    }

    fn score(&self, group: &AnswerGroup, memory: &Memory) -> Result<Vec<Option<Parts>>> {
        self.score_all(std::slice::from_ref(group), memory, Stop::NEVER).map(|mut scores| scores.remove(0))
    }

    /// Score the groups together, because the accuracy is that of all groups.
    fn score_all(&self, groups: &[AnswerGroup], memory: &Memory, _stop: Stop) -> Result<Vec<Vec<Option<Parts>>>> {
        let least = memory.best_accuracy.unwrap_or(0.0) - f64::from(self.accuracy_tolerance);
        let nothing = |group: &AnswerGroup| group.each_length(|_, _| 0.0);
        let holds = accuracy(groups) >= least;
        Ok(groups.iter().map(|group| if holds { self.scores(group) } else { nothing(group) }).collect())
    }

    fn remember(&self, groups: &[AnswerGroup], memory: &mut Memory) {
        memory.best_accuracy = Some(memory.best_accuracy.unwrap_or(0.0).max(accuracy(groups)));
    }

    fn describe(&self, memory: &Memory, metrics: &mut Metrics) {
        metrics.set("rewards/lazy_length/best_accuracy", memory.best_accuracy.unwrap_or(0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, assert_near, parts, remember, scores};
    use super::*;

    /// Right lengths 10, 25 and 60: the second is within 15 tokens of the first, the third is penalised for all 50.
    #[test]
    fn the_lazy_penalty_by_hand() {
        let reward = LazyLength { length_tolerance: 15, ..LazyLength::default() };
        let group = [answer(true, 10), answer(true, 25), answer(true, 60), answer(false, 90), answer(true, 26)];
        assert_near(&scores(&reward, &group), &[0.5, 0.5, -0.5, 0.0, 0.5 - 16.0 / 50.0]);
        let strict = LazyLength { length_tolerance: 0, ..reward };
        assert_near(&scores(&strict, &[answer(true, 7), answer(true, 7)]), &[0.5, 0.5]);
    }

    #[test]
    fn nothing_is_paid_where_accuracy_has_fallen() {
        let reward = LazyLength { accuracy_tolerance: 0.25, ..LazyLength::default() };
        let (right, wrong) = (answer(true, 10), answer(false, 10));
        let with = |right_answers: usize| {
            let answers = [vec![right.clone(); right_answers], vec![wrong.clone(); 4 - right_answers]];
            answers.concat()
        };
        let mut memory = Memory::default();
        remember(&reward, &mut memory, &[(1, &with(4)), (2, &with(2))]);
        assert_eq!(memory.best_accuracy, Some(0.75));
        let paid = |right_answers| parts(&reward, &with(right_answers), &memory)[0].unwrap().length;
        assert_eq!([paid(4), paid(2), paid(1)], [0.5, 0.5, 0.0]);
        remember(&reward, &mut memory, &[(1, &with(1))]);
        assert_eq!(memory.best_accuracy, Some(0.75));
    }
}
