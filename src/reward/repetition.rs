//! Repetition penalty: the share of repeated n-grams.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward};
use crate::error::Result;

/// Number of words of an n-gram.
const WORDS: usize = 4;

/// Minus the share of 4-grams of words that occurred before: 0 for a text without repeats, towards −1 for a loop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repetition {}

impl Reward for Repetition {
    fn name(&self) -> &str {
        "repetition"
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.each(|answer, _| Parts::task(0.0 - repeated(&answer.text))))
    }
}

/// Return the share of 4-grams of words that occurred before, within [0, 1).
pub(super) fn repeated(text: &str) -> f32 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let total = words.windows(WORDS).count();
    if total == 0 {
        return 0.0;
    }
    let different = words.windows(WORDS).collect::<HashSet<_>>().len();
    1.0 - different as f32 / total as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_cost_more_than_prose() {
        assert_eq!(repeated("too short"), 0.0);
        assert_eq!(repeated("one two three four five six"), 0.0);
        // 20 words: 17 four-grams, of which 1 is new.
        assert!((repeated(&"wait ".repeat(20)) - (1.0 - 1.0 / 17.0)).abs() < 1e-6);
    }
}
