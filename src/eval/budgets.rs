//! Accuracy of one set of completions under several smaller length limits.

use serde::Serialize;

use super::record::Record;

/// Statistics of completions under a length limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Budget {
    /// The limit, in tokens.
    pub tokens: usize,
    /// Share of completions that are right and within the limit.
    pub accuracy: f64,
    /// Share of completions that would have been cut.
    pub cut: f64,
    /// Share of right ones among completions that ended by themselves and would have been cut: a clip of this length in
    /// training would penalise them although they are right (29% at 4k of 8k tokens in arXiv 2604.24003). Completions
    /// that the evaluation itself cut are left out: whether they would have been right is not known.
    pub cut_but_right: Option<f64>,
}

/// Number of limits shown.
const LIMITS: usize = 6;

/// Return the statistics for limits that are powers of two, and last for the longest length, which cuts nothing that
/// was not cut already. None is above the limit of the evaluation itself.
pub(super) fn budgets(records: &[&Record]) -> Vec<Budget> {
    let longest = records.iter().map(|record| record.sample.length).max().unwrap_or(0);
    let mut limits: Vec<usize> = (0..usize::BITS).map(|k| 1_usize << k).take_while(|&power| power < longest).collect();
    limits.push(longest);
    let of = |tokens: usize| {
        let share = |part: usize, whole: usize| part as f64 / whole as f64;
        // A completion that was cut when it was sampled also counts as cut at its own length.
        let is_kept = |record: &Record, tokens: usize| record.sample.length <= tokens && record.sample.finished;
        let right = |record: &&&Record| record.graded.strict.is_right();
        let (kept, cut): (Vec<&&Record>, Vec<&&Record>) = records.iter().partition(|record| is_kept(record, tokens));
        let ended: Vec<&&Record> = cut.iter().copied().filter(|record| record.sample.finished).collect();
        Budget {
            tokens,
            accuracy: share(kept.iter().filter(|record| right(record)).count(), records.len()),
            cut: share(cut.len(), records.len()),
            cut_but_right: (!ended.is_empty())
                .then(|| share(ended.iter().filter(|record| right(record)).count(), ended.len())),
        }
    };
    limits[limits.len().saturating_sub(LIMITS)..].iter().copied().map(of).collect()
}

/// Format the statistics as a table, in percent.
pub(super) fn table(budgets: &[Budget]) -> String {
    let percent = |share: Option<f64>| share.map_or("-".to_string(), |share| format!("{:.1}", 100.0 * share));
    let row = |name: &str, cell: &dyn Fn(&Budget) -> String| {
        std::iter::once(name.to_string()).chain(budgets.iter().map(cell)).collect::<Vec<_>>()
    };
    super::table::aligned(&[
        row("cut at (tokens)", &|budget| budget.tokens.to_string()),
        row("correct (%)", &|budget| percent(Some(budget.accuracy))),
        row("cut (%)", &|budget| percent(Some(budget.cut))),
        row("correct without the cut, of those cut (%)", &|budget| percent(budget.cut_but_right)),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::*;

    #[test]
    fn what_is_longer_than_the_limit_counts_as_cut() {
        let of = |length: usize, text: &str| {
            let mut record = record("s", "1", 0, text);
            record.sample.length = length;
            record
        };
        // The problem's answer is 5.
        let records = [of(3, "\\boxed{5}"), of(4, "\\boxed{4}"), of(5, "\\boxed{5}"), of(7, "\\boxed{4}")];
        let found = budgets(&records.iter().collect::<Vec<_>>());
        assert_eq!(found.iter().map(|budget| budget.tokens).collect::<Vec<_>>(), [1, 2, 4, 7]);
        let at = |tokens: usize| *found.iter().find(|budget| budget.tokens == tokens).unwrap();
        assert_eq!(at(7), Budget { tokens: 7, accuracy: 0.5, cut: 0.0, cut_but_right: None });
        assert_eq!(at(4), Budget { tokens: 4, accuracy: 0.25, cut: 0.5, cut_but_right: Some(0.5) });
        assert_eq!(at(2), Budget { tokens: 2, accuracy: 0.0, cut: 1.0, cut_but_right: Some(0.5) });
        // Regression: a completion cut by the limit of the evaluation, 12 tokens, counted as cut and not right, and
        // there was a column for 16 tokens.
        let mut unfinished = of(12, "so far");
        unfinished.sample.finished = false;
        let found = budgets(&records.iter().chain([&unfinished]).collect::<Vec<_>>());
        assert_eq!(found.iter().map(|budget| budget.tokens).collect::<Vec<_>>(), [1, 2, 4, 8, 12]);
        assert_eq!(found[4], Budget { tokens: 12, accuracy: 0.4, cut: 0.2, cut_but_right: None });
        assert_eq!(found[2], Budget { tokens: 4, accuracy: 0.2, cut: 0.6, cut_but_right: Some(0.5) });
        let long = of(u32::MAX as usize, "\\boxed{5}");
        let found = budgets(&[&long]);
        assert_eq!((found.len(), found[0].tokens, found[5].tokens), (6, 1 << 27, u32::MAX as usize));
    }
}
