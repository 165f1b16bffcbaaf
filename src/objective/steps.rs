//! Which steps of a reasoning learn (SAS, arXiv 2604.24003).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::metrics::mean;
use crate::reward::Answer;

/// Takes the advantage from some steps of the thinking: from those that the policy was least sure of in right completions, from
/// those that it was surest of in wrong ones. How sure it was is the mean log-probability of a step's tokens.
///
/// Their tokens count in the weights of the loss, and the divergence from a reference acts on them. The paper takes 0.3 of both.
/// Its code (HanNight/SAS 78b201c, `ray_trainer.py`) rounds `n + 1 · share` up where `(n + 1) · share` is meant, n separators:
/// it takes all steps of right completions and none of wrong ones, which is `right = 1, wrong = 0` here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepSelection {
    /// Share of the steps of right completions, rounded up.
    pub right: f64,
    /// Share of the steps of all other completions, rounded down.
    pub wrong: f64,
    /// Text between steps.
    pub separator: String,
}

impl Default for StepSelection {
    /// The published values.
    fn default() -> Self {
        Self { right: 0.3, wrong: 0.3, separator: "\n\n".to_string() }
    }
}

impl StepSelection {
    /// The tokens of a completion that have no advantage, as runs of places; `log_probs` has the sampler's of each, in nats.
    /// Needs [`Answer::pieces`].
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

    /// A setting that cannot work, as `key = value` and the reason.
    pub fn mistake(&self) -> Option<String> {
        let share = |key: &str, value: f64| {
            (!(0.0..=1.0).contains(&value)).then(|| format!("{key} = {value} must be within 0 and 1"))
        };
        let nothing = (self.right == 0.0 && self.wrong == 0.0)
            .then(|| "right = 0 and wrong = 0 do nothing: remove step_selection".to_string());
        let separator = self
            .separator
            .is_empty()
            .then(|| "separator is empty: name the text that stands between steps".to_string());
        share("right", self.right).or(share("wrong", self.wrong)).or(nothing).or(separator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reward::tests::traced;

    /// Four steps of thinking whose means are −0.5, −3, −0.1 and −2, and an answer.
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
        // 0.3 of four steps: 1.2, up to two and down to one.
        assert_eq!(StepSelection::default().silent(&right, &log_probs), [2..4, 5..6]);
        assert_eq!(StepSelection::default().silent(&wrong, &log_probs), vec![Range { start: 4, end: 5 }]);
        // What the published code does.
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
            (StepSelection { right: 0.0, wrong: 0.0, ..usual() }, "do nothing"),
            (StepSelection { separator: String::new(), ..usual() }, "separator is empty"),
        ] {
            assert!(selection.mistake().unwrap().contains(expected), "{expected}");
        }
    }
}
