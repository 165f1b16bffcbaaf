//! DOT (arXiv 2601.03969): if all completions of a problem are right, the tail of the longest is cut off.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, positive, require};
use crate::error::Result;
use crate::metrics::{deviation, mean};

/// 1 for a right answer and 0 for a wrong one. If all answers of the group are right, 0 for an answer longer than the
/// mean length plus `deviations` standard deviations by at least `min_removed` tokens. Published: the completion is cut
/// there and graded again, without its answer; here it is kept whole and gets 0. With n completions none is further
/// from the mean than (n − 1) / √n deviations: n = 8 reaches 2.47.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dot {
    /// Number of standard deviations above the mean length of the group.
    pub deviations: f32,
    /// Minimum number of tokens beyond that threshold for an answer to get 0.
    pub min_removed: usize,
}

impl Default for Dot {
    fn default() -> Self {
        Self { deviations: 3.0, min_removed: 32 }
    }
}

impl Reward for Dot {
    fn name(&self) -> &str {
        "dot"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        found([
            positive("deviations", self.deviations),
            require(self.min_removed > 0, "min_removed", self.min_removed, "positive"),
        ])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let lengths = group.lengths();
        let all_right = group.answers.iter().all(|answer| answer.correct == Some(true));
        let cut = mean(&lengths) + f64::from(self.deviations) * deviation(&lengths) + self.min_removed as f64;
        let too_long = |length: usize| all_right && length as f64 >= cut;
        Ok(group.each(|answer, right| match right {
            true => Parts { task: 1.0, length: if too_long(answer.length()) { -1.0 } else { 0.0 } },
            false => Parts::task(0.0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, scores};
    use super::*;

    /// Lengths 10, 10, 10, 50: mean 20, deviation 20; mean plus one deviation is 40, ten tokens below the longest.
    #[test]
    fn the_tail_of_an_easy_problem_is_worth_nothing() {
        let group = |last: bool| [answer(true, 10), answer(true, 10), answer(true, 10), answer(last, 50)];
        let reward = |min_removed| Dot { deviations: 1.0, min_removed };
        assert_eq!(scores(&reward(10), &group(true)), [Some(1.0), Some(1.0), Some(1.0), Some(0.0)]);
        assert_eq!(scores(&reward(11), &group(true)), [Some(1.0); 4]);
        assert_eq!(scores(&reward(1), &group(false)), [Some(1.0), Some(1.0), Some(1.0), Some(0.0)]);
        assert_eq!(scores(&reward(1), &[answer(true, 10), answer(true, 10)]), [Some(1.0); 2]);
    }
}
