//! Selection of the reasoning steps whose tokens have an advantage (SAS, arXiv 2604.24003).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::metrics::mean;
use crate::reward::Answer;

/// Selection of the thinking steps whose advantage is removed: the least confident steps of right completions and the
/// most confident steps of wrong ones. Confidence is the mean log-probability of a step's tokens.
///
/// These tokens still count in the weights of the loss, and the divergence from a reference model acts on them. The
/// paper has 0.3 for both. Its code (HanNight/SAS 78b201c, `ray_trainer.py`) rounds `n + 1 · share` up, not `(n + 1) ·
/// share`, n separators: all steps of right completions and none of wrong ones, here `right = 1, wrong = 0`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepSelection {
    /// Fraction of the thinking steps of correct completions that lose their advantage, rounded up.
    pub right: f64,
    /// Fraction of the thinking steps of all other completions that lose their advantage, rounded down.
    pub wrong: f64,
    /// Text that separates thinking steps.
    pub separator: String,
}

impl Default for StepSelection {
    /// The published values.
    fn default() -> Self {
        Self { right: 0.3, wrong: 0.3, separator: "\n\n".to_string() }
    }
}

impl StepSelection {
    /// Return the tokens of a completion that have no advantage, as index ranges. `log_probs` has the sampler's
    /// log-probability of each token, in nats. Require [`Answer::pieces`].
    pub fn silent(&self, answer: &Answer, log_probs: &[f32]) -> Vec<Range<usize>> {
        let confidence = |step: &Range<usize>| {
            let tokens: Vec<f64> = log_probs[step.clone()].iter().map(|&log_prob| f64::from(log_prob)).collect();
            mean(&tokens)
        };
        let mut steps: Vec<(f64, Range<usize>)> =
            answer.thinking_steps(&self.separator).into_iter().map(|step| (confidence(&step), step)).collect();
        steps.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = steps.len() as f64;
        let taken = match answer.correct {
            Some(true) => 0..(count * self.right).ceil() as usize,
            _ => steps.len() - (count * self.wrong).floor() as usize..steps.len(),
        };
        steps.drain(taken).map(|(_, step)| step).collect()
    }

    /// Return a setting that cannot work, as `key = value` and the reason.
    pub fn mistake(&self) -> Option<String> {
        let share = |key: &str, value: f64| {
            (!(0.0..=1.0).contains(&value)).then(|| format!("{key} = {value} must be between 0 and 1"))
        };
        let nothing = (self.right == 0.0 && self.wrong == 0.0)
            .then(|| "right = 0 and wrong = 0 have no effect: remove step_selection".to_string());
        let separator =
            self.separator.is_empty().then(|| "separator is empty: give the text that separates steps".to_string());
        share("right", self.right).or(share("wrong", self.wrong)).or(nothing).or(separator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::traced;

    /// Return four thinking steps with means −0.5, −3, −0.1 and −2, followed by an answer.
    fn completion(correct: bool) -> (Answer, [f32; 8]) {
        let pieces = ["a", " b\n\n", "c", "\n\n", "d\n\n", "e", "</think>", "7"].map(|piece| (piece, 1.0));
        (traced(correct, &pieces), [-0.2, -0.8, -4.0, -2.0, -0.1, -2.0, -9.0, -9.0])
    }

    #[test]
    fn unsure_steps_of_right_completions_and_sure_ones_of_wrong_completions_are_silent() {
        let ((right, log_probs), (wrong, _)) = (completion(true), completion(false));
        let half = StepSelection { right: 0.5, wrong: 0.5, ..StepSelection::default() };
        assert_eq!(half.silent(&right, &log_probs), [2..4, 5..6]);
        assert_eq!(half.silent(&wrong, &log_probs), [0..2, 4..5]);
        // 0.3 of four steps is 1.2, rounded up to 2 (right) or down to 1 (wrong).
        assert_eq!(StepSelection::default().silent(&right, &log_probs), [2..4, 5..6]);
        assert_eq!(StepSelection::default().silent(&wrong, &log_probs), vec![Range { start: 4, end: 5 }]);
        // Equivalent to the published code.
        let code = StepSelection { right: 1.0, wrong: 0.0, ..StepSelection::default() };
        assert_eq!(code.silent(&right, &log_probs).len(), 4);
        assert!(code.silent(&wrong, &log_probs).is_empty());
    }

    #[test]
    fn a_share_outside_its_bounds_and_a_selection_that_selects_nothing_are_refused() {
        let usual = StepSelection::default;
        assert_eq!(usual().mistake(), None);
        for (selection, expected) in [
            (StepSelection { right: 1.5, ..usual() }, "right = 1.5"),
            (StepSelection { wrong: f64::NAN, ..usual() }, "wrong = NaN"),
            (StepSelection { right: 0.0, wrong: 0.0, ..usual() }, "have no effect"),
            (StepSelection { separator: String::new(), ..usual() }, "separator is empty"),
        ] {
            assert!(selection.mistake().unwrap().contains(expected), "{expected}");
        }
    }
}
