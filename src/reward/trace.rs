//! Entropy along a completion, by the parts of its text.

use super::Answer;
use crate::metrics::mean;

impl Answer {
    /// Mean entropies of the thinking, up to `</think>`, and of what follows it, in nats; 0 where there are no tokens.
    /// Without a `</think>` all is answer. Needs [`Answer::pieces`].
    pub fn think_and_answer_entropy(&self) -> [f64; 2] {
        const END: &str = "</think>";
        let text = self.pieces.concat();
        let (start, end) = text.find(END).map_or((0, 0), |at| (at, at + END.len()));
        let of = |keep: &dyn Fn(usize, usize) -> bool| {
            let kept = self.spans().filter(|&(from, to, _)| keep(from, to));
            mean(&kept.map(|(_, _, entropy)| entropy).collect::<Vec<_>>())
        };
        [of(&|_, to| to <= start), of(&|from, _| from >= end)]
    }

    /// Mean entropy of each step, in nats: steps are the texts between separators. A token belongs to the step it begins
    /// in, a separator to the step before it. Needs [`Answer::pieces`].
    pub fn step_entropies(&self, separator: &str) -> Vec<f64> {
        let text = self.pieces.concat();
        let ends: Vec<usize> = text.match_indices(separator).map(|(at, found)| at + found.len()).collect();
        let mut steps = vec![Vec::new(); ends.len() + 1];
        for (from, _, entropy) in self.spans() {
            steps[ends.partition_point(|&end| end <= from)].push(entropy);
        }
        steps.iter().filter(|step| !step.is_empty()).map(|step| mean(step)).collect()
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
mod tests {
    use super::super::tests::traced;

    /// `</think>` may be one token or several, and a token may hold more than the separator.
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
