//! The repetition penalty: how much of a completion says the same again.

use std::collections::HashSet;

use crate::data::Problem;
use crate::reward::{Completion, Reward};

/// Minus the share of word n-grams that occurred before: 0 for a text without repeats, towards −1 for a loop.
#[derive(Debug, Clone, Copy)]
pub struct Repetition {
    /// Words per n-gram, at least 1.
    pub words: usize,
}

impl Default for Repetition {
    fn default() -> Self {
        Self { words: 4 }
    }
}

impl Reward for Repetition {
    fn name(&self) -> &str {
        "repetition"
    }

    fn score(&self, _problem: &Problem, completion: &Completion) -> Option<f32> {
        let words: Vec<&str> = completion.text.split_whitespace().collect();
        let total = words.windows(self.words.max(1)).count();
        if total == 0 {
            return Some(0.0);
        }
        let different = words.windows(self.words.max(1)).collect::<HashSet<_>>().len();
        Some(different as f32 / total as f32 - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Prompt;

    #[test]
    fn loops_cost_more_than_prose() {
        let problem = Problem::new(Prompt::Text("q".into()), "5");
        let score =
            |text| Repetition::default().score(&problem, &Completion { text, tokens: 1, finished: true }).unwrap();
        assert_eq!(score("too short"), 0.0);
        assert_eq!(score("one two three four five six"), 0.0);
        // 20 words: 17 four-grams, of which 1 is new.
        let text = "wait ".repeat(20);
        assert!((score(&text) - (1.0 / 17.0 - 1.0)).abs() < 1e-6);
    }
}
