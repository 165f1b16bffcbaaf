//! A penalty that grows before the length limit.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, require};
use crate::error::Result;

/// Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13), right or wrong, with L the stage's
/// `max_completion_length` and c the cache: 0 up to `L − c` tokens, then `((L − c) − len) / c`, −1 at L.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SoftOverlong {
    /// Number of tokens before L over which the penalty grows from 0 to −1, within 1 and L. The paper uses 4096 with an
    /// L of 20480.
    pub soft_punish_cache: usize,
}

impl Default for SoftOverlong {
    fn default() -> Self {
        Self { soft_punish_cache: 4096 }
    }
}

impl Reward for SoftOverlong {
    fn name(&self) -> &str {
        "soft_overlong"
    }

    fn mistakes(&self, max_completion_length: usize) -> Vec<String> {
        let c = self.soft_punish_cache;
        let rule = format!("between 1 and max_completion_length = {max_completion_length}");
        found([require(c > 0 && c <= max_completion_length, "soft_punish_cache", c, &rule)])
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let c = self.soft_punish_cache;
        let start = group.limit.saturating_sub(c);
        // 0 − x rather than −x, so that the result without excess is 0, not −0.
        Ok(group.each_length(|answer, _| 0.0 - answer.length().saturating_sub(start).min(c) as f32 / c as f32))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, scores};
    use super::*;

    /// L = 100 and c = 20: 0 up to 80 tokens, −1/20 for each further token, −1 at 100.
    #[test]
    fn soft_overlong_punishment_is_dapos_formula() {
        let reward = SoftOverlong { soft_punish_cache: 20 };
        let group = [10, 80, 81, 90, 99, 100].map(|length| answer(length % 2 == 0, length));
        assert_eq!(scores(&reward, &group), [0.0, 0.0, -0.05, -0.5, -0.95, -1.0].map(Some));
        let mistake = "soft_punish_cache = 20 must be between 1 and max_completion_length = 19";
        assert_eq!(reward.mistakes(19), [mistake]);
        assert!(reward.mistakes(20).is_empty() && SoftOverlong { soft_punish_cache: 0 }.mistakes(20).len() == 1);
    }
}
