//! What a reward is told of a completion.

/// A graded completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Whether the answer is right (strictly read, so finished too); none when the row cannot be scored.
    pub correct: Option<bool>,
    /// Whether it is right when any last number counts; none when the row cannot be scored.
    pub correct_lenient: Option<bool>,
    /// Whether the stated answer is right, be the completion finished or cut; none when the row cannot be scored.
    pub correct_cut: Option<bool>,
    /// Whether it ended by itself.
    pub finished: bool,
    /// Whether it has the form `<think>…</think>` and then a stated answer.
    pub formatted: bool,
    /// Minus the share of repeated 4-grams of words ([`crate::reward::Repetition`]).
    pub repetition: f32,
    /// Tokens, the stop token included.
    pub length: usize,
    /// Its text and entropies; empty unless a reward of the stage reads them ([`super::RewardKind::reads_trace`]).
    pub trace: Trace,
}

/// The text of a completion token by token, with the entropy each token was drawn at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// Text of each token; part of a character shows as U+FFFD.
    pub pieces: Vec<String>,
    /// Entropy at the sampling temperature, per token, in nats.
    pub entropies: Vec<f32>,
}

impl Trace {
    /// Mean entropies of the thinking, up to `</think>`, and of what follows it; 0 where there are no tokens. Without a
    /// `</think>` all is answer.
    pub fn think_and_answer(&self) -> [f64; 2] {
        const END: &str = "</think>";
        let text = self.pieces.concat();
        let (start, end) = text.find(END).map_or((0, 0), |at| (at, at + END.len()));
        let mean = |keep: &dyn Fn(usize, usize) -> bool| {
            let kept: Vec<f64> =
                self.spans().filter(|&(from, to, _)| keep(from, to)).map(|(_, _, entropy)| entropy).collect();
            crate::metrics::mean(&kept)
        };
        [mean(&|_, to| to <= start), mean(&|from, _| from >= end)]
    }

    /// Mean entropy of each step: the text between separators. A token belongs to the step it begins in, a separator to
    /// the step before it.
    pub fn steps(&self, separator: &str) -> Vec<f64> {
        let text = self.pieces.concat();
        let ends: Vec<usize> = text.match_indices(separator).map(|(at, found)| at + found.len()).collect();
        let mut steps = vec![Vec::new(); ends.len() + 1];
        for (from, _, entropy) in self.spans() {
            steps[ends.partition_point(|&end| end <= from)].push(entropy);
        }
        steps.iter().filter(|step| !step.is_empty()).map(|step| crate::metrics::mean(step)).collect()
    }

    /// Where each token begins and ends in the text, with its entropy.
    fn spans(&self) -> impl Iterator<Item = (usize, usize, f64)> + '_ {
        let mut at = 0;
        self.pieces.iter().zip(&self.entropies).map(move |(piece, &entropy)| {
            let from = at;
            at += piece.len();
            (from, at, f64::from(entropy))
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Context, RewardKind, RewardState};
    use super::*;
    use crate::objective::Parts;

    pub(in super::super) fn outcome(correct: bool, length: usize) -> Outcome {
        Outcome {
            correct: Some(correct),
            correct_lenient: Some(true),
            correct_cut: Some(correct),
            finished: true,
            formatted: true,
            repetition: -0.5,
            length,
            trace: Trace::default(),
        }
    }

    /// Rewards, as wholes, of a group where nothing is the user's own, for L = 100, in the first step.
    pub(in super::super) fn scores(kind: &RewardKind, group: &[Outcome]) -> Vec<Option<f32>> {
        let state = RewardState::default();
        let own = vec![None; group.len()];
        let context = Context { max_completion_length: 100, step: 0, problem: 1, state: &state, own: &own };
        kind.score(group, &context).into_iter().map(|reward| reward.map(Parts::total)).collect()
    }

    #[track_caller]
    pub(in super::super) fn assert_near(got: &[Option<f32>], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        let near = got.iter().zip(expected).all(|(got, expected)| (got.unwrap() - expected).abs() < 1e-5);
        assert!(near, "{got:?} {expected:?}");
    }

    /// `</think>` may be one token or several, and a token may hold more than the separator.
    #[test]
    fn a_trace_is_cut_where_the_text_is() {
        let trace = |pieces: &[&str], entropies: &[f32]| Trace {
            pieces: pieces.iter().map(|piece| piece.to_string()).collect(),
            entropies: entropies.to_vec(),
        };
        let whole = trace(&["a", "b", "</think>", "c"], &[1.0, 3.0, 9.0, 5.0]);
        let pieces = trace(&["a", "b", "</", "think", ">", "c"], &[1.0, 3.0, 9.0, 9.0, 9.0, 5.0]);
        assert_eq!(whole.think_and_answer(), [2.0, 5.0]);
        assert_eq!(pieces.think_and_answer(), [2.0, 5.0]);
        assert_eq!(trace(&["a", "c"], &[1.0, 5.0]).think_and_answer(), [0.0, 3.0]);
        let steps = trace(&["a", "\n", "\n", "b", "c.\n\n", "d"], &[1.0, 2.0, 3.0, 4.0, 6.0, 7.0]);
        assert_eq!(steps.steps("\n\n"), [2.0, 5.0, 7.0]);
    }
}
