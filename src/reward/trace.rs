//! Entropy of the sections of a completion.

use std::ops::Range;

use super::Answer;
use crate::metrics::mean;

/// Mark that ends the thinking.
const END: &str = "</think>";

impl Answer {
    /// Return the mean entropies of the thinking, up to `</think>`, and of the text after it, in nats; 0 without
    /// tokens. Without `</think>` the whole text is the answer. Require [`Answer::pieces`].
    pub fn think_and_answer_entropy(&self) -> [f64; 2] {
        let text = self.pieces.concat();
        let (start, end) = text.find(END).map_or((0, 0), |at| (at, at + END.len()));
        let of = |keep: &dyn Fn(usize, usize) -> bool| {
            let kept = self.spans().filter(|&(from, to, _)| keep(from, to));
            mean(&kept.map(|(_, _, entropy)| entropy).collect::<Vec<_>>())
        };
        [of(&|_, to| to <= start), of(&|from, _| from >= end)]
    }

    /// Return the mean entropy of each step of the text, in nats. Require [`Answer::pieces`].
    pub fn step_entropies(&self, separator: &str) -> Vec<f64> {
        let entropies: Vec<f64> = self.spans().map(|(_, _, entropy)| entropy).collect();
        self.steps(separator, &self.pieces.concat()).into_iter().map(|step| mean(&entropies[step])).collect()
    }

    /// Return the token range of each step of the thinking, up to `</think>`; without it, of the whole completion but
    /// its last token. Require [`Answer::pieces`].
    pub fn thinking_steps(&self, separator: &str) -> Vec<Range<usize>> {
        let mut text = self.pieces.concat();
        let last = self.pieces.last().map_or(0, String::len);
        text.truncate(text.find(END).unwrap_or(text.len() - last));
        self.steps(separator, &text)
    }

    /// Return the token range of each step of `text`, a prefix of the pieces; `separator` separates steps. A token
    /// belongs to the step in which it begins, a separator to the step before it. No step is empty.
    fn steps(&self, separator: &str, text: &str) -> Vec<Range<usize>> {
        let starts: Vec<usize> = self.spans().map(|(from, _, _)| from).collect();
        let ends = text.match_indices(separator).map(|(at, found)| at + found.len()).chain([text.len()]);
        let mut first = 0;
        let step = |end: usize| {
            let step = first..starts.partition_point(|&start| start < end);
            first = step.end;
            step
        };
        ends.map(step).filter(|step| !step.is_empty()).collect()
    }

    /// Yield the start and end of each token in the text, in bytes, with its entropy.
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
mod tests {
    use super::super::tests::traced;

    /// `</think>` may be one token or several, and a token may contain more than the separator.
    #[test]
    fn a_trace_is_cut_where_the_text_is() {
        let whole = traced(true, &[("a", 1.0), ("b", 3.0), ("</think>", 9.0), ("c", 5.0)]);
        let pieces = traced(true, &[("a", 1.0), ("b", 3.0), ("</", 9.0), ("think", 9.0), (">", 9.0), ("c", 5.0)]);
        assert_eq!(whole.think_and_answer_entropy(), [2.0, 5.0]);
        assert_eq!(pieces.think_and_answer_entropy(), [2.0, 5.0]);
        assert_eq!(traced(true, &[("a", 1.0), ("c", 5.0)]).think_and_answer_entropy(), [0.0, 3.0]);
        let steps = traced(true, &[("a", 1.0), ("\n", 2.0), ("\n", 3.0), ("b", 4.0), ("c.\n\n", 6.0), ("d", 7.0)]);
        assert_eq!(steps.step_entropies("\n\n"), [2.0, 5.0, 7.0]);
    }
}
