//! What completions would have been worth under a smaller limit of length: of one set of completions, for several limits.

use serde::Serialize;

use super::record::Record;

/// Completions under a limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Budget {
    /// The limit, in tokens.
    pub tokens: usize,
    /// Share of completions that are right and no longer than that.
    pub accuracy: f64,
    /// Share that would have been cut.
    pub cut: f64,
    /// Share of those that would have been cut that are right as they were sampled: what a clip of this length in training would
    /// punish although it was right (29% at 4k of 8k tokens in arXiv 2604.24003). At least: some were cut then, and might have
    /// been right.
    pub cut_but_right: Option<f64>,
}

/// Limits that are shown, the largest of which cuts nothing more than was cut already.
const LIMITS: u32 = 6;

/// The completions under limits that are powers of two, up to the first that none is longer than.
pub(super) fn budgets(records: &[&Record]) -> Vec<Budget> {
    let longest = records.iter().map(|record| record.sample.length).max().unwrap_or(0);
    let largest = longest.next_power_of_two();
    let of = |tokens: usize| {
        let share = |part: usize, whole: usize| part as f64 / whole as f64;
        // One that was cut when it was sampled is cut at its own length, too.
        let is_kept = |record: &Record, tokens: usize| record.sample.length <= tokens && record.sample.finished;
        let right = |record: &&&Record| record.graded.strict.is_right();
        let (kept, cut): (Vec<&&Record>, Vec<&&Record>) = records.iter().partition(|record| is_kept(record, tokens));
        Budget {
            tokens,
            accuracy: share(kept.iter().filter(|record| right(record)).count(), records.len()),
            cut: share(cut.len(), records.len()),
            cut_but_right: (!cut.is_empty())
                .then(|| share(cut.iter().filter(|record| right(record)).count(), cut.len())),
        }
    };
    (0..LIMITS).rev().map(|halvings| largest >> halvings).filter(|&tokens| tokens > 0).map(of).collect()
}

/// A table of them, in percent.
pub(super) fn table(budgets: &[Budget]) -> String {
    let percent = |share: Option<f64>| share.map_or("-".to_string(), |share| format!("{:.1}", 100.0 * share));
    let row = |name: &str, cell: &dyn Fn(&Budget) -> String| {
        std::iter::once(name.to_string()).chain(budgets.iter().map(cell)).collect::<Vec<_>>()
    };
    super::table::aligned(&[
        row("cut at, tokens", &|budget| budget.tokens.to_string()),
        row("right (%)", &|budget| percent(Some(budget.accuracy))),
        row("cut (%)", &|budget| percent(Some(budget.cut))),
        row("right of the cut (%)", &|budget| percent(budget.cut_but_right)),
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
        assert_eq!(found.iter().map(|budget| budget.tokens).collect::<Vec<_>>(), [1, 2, 4, 8]);
        let at = |tokens: usize| *found.iter().find(|budget| budget.tokens == tokens).unwrap();
        assert_eq!(at(8), Budget { tokens: 8, accuracy: 0.5, cut: 0.0, cut_but_right: None });
        assert_eq!(at(4), Budget { tokens: 4, accuracy: 0.25, cut: 0.5, cut_but_right: Some(0.5) });
        assert_eq!(at(2), Budget { tokens: 2, accuracy: 0.0, cut: 1.0, cut_but_right: Some(0.5) });
        // Cut by the limit of the evaluation, 8 tokens.
        let mut unfinished = of(8, "so far");
        unfinished.sample.finished = false;
        let found = budgets(&records.iter().chain([&unfinished]).collect::<Vec<_>>());
        let expected = Budget { tokens: 8, accuracy: 0.4, cut: 0.2, cut_but_right: Some(0.0) };
        assert_eq!(found.last(), Some(&expected));
    }
}
