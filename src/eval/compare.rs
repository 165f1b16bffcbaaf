//! Comparison of two evaluations of the same problems.
//!
//! Problems are paired, so that their difficulty does not blur the difference; intervals are 95% bootstrap intervals
//! over the pairs. The accuracy-efficiency score is that of O1-Pruner (arXiv 2501.12570), from `a` to `b`:
//!
//! ```text
//! AES = 1 · ΔLength + 3 · |ΔAcc|   when ΔAcc ≥ 0
//!       1 · ΔLength − 5 · |ΔAcc|   when ΔAcc < 0
//! ΔLength = (length_a − length_b) / length_a,  ΔAcc = (accuracy_b − accuracy_a) / accuracy_a
//! ```
//!
//! Other papers also use weight 5 for gains; scores of different papers are not comparable.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::bootstrap::{interval, sign_test};
use super::figures::Estimate;
use super::table::{aligned, estimate, wrapped};
use super::{Evaluation, ProblemKey, ProblemRecords, disagreement};
use crate::error::{Error, Result};

/// Difference between two evaluations on one data source, or on all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Number of problems in both.
    pub problems: usize,
    /// Strict accuracy of a and b.
    pub accuracy: [f64; 2],
    /// Accuracy of b minus that of a.
    pub accuracy_difference: Estimate,
    /// Lenient accuracy of a and b.
    pub accuracy_lenient: [f64; 2],
    /// Lenient accuracy of b minus that of a.
    pub accuracy_lenient_difference: Estimate,
    /// Mean length of a and b in tokens.
    pub mean_length: [f64; 2],
    /// Mean length of b divided by that of a.
    pub length_ratio: Estimate,
    /// The accuracy-efficiency score; `None` if a has no right completion.
    pub efficiency_score: Option<Estimate>,
    /// Number of problems with a larger share of right completions in b.
    pub gained: usize,
    /// Number of problems with a smaller share of right completions in b.
    pub lost: usize,
    /// Two-sided p-value of the exact sign test on `gained` and `lost`; `None` if a problem has several completions.
    pub sign_test: Option<f64>,
}

/// A comparison of `b` with `a`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Differences by data source.
    pub families: BTreeMap<String, Difference>,
    /// Difference over all problems.
    pub overall: Difference,
    /// Numbers of problems that only a has and that only b has; they are left out.
    pub unmatched: [usize; 2],
}

/// Strict accuracy, lenient accuracy and mean length of one problem, in a and in b.
struct ProblemPair {
    strict: [f64; 2],
    lenient: [f64; 2],
    length: [f64; 2],
    /// Whether each of the two has one completion.
    single: bool,
}

impl ProblemPair {
    fn new(a: &ProblemRecords, b: &ProblemRecords) -> Self {
        let mean = |group: &ProblemRecords, value: &dyn Fn(&super::Record) -> f64| {
            group.records.iter().map(value).sum::<f64>() / group.records.len() as f64
        };
        let both = |value: &dyn Fn(&super::Record) -> f64| [mean(a, value), mean(b, value)];
        Self {
            strict: both(&|record| f64::from(u8::from(record.graded.strict.is_right()))),
            lenient: both(&|record| f64::from(u8::from(record.graded.lenient.is_right()))),
            length: both(&|record| record.sample.length as f64),
            single: a.records.len() == 1 && b.records.len() == 1,
        }
    }
}

impl Comparison {
    /// Compare `b` with `a`.
    ///
    /// # Errors
    /// When they have no problem in common, or disagree on the prompt or the right answer of a problem.
    pub fn new(a: &Evaluation, b: &Evaluation) -> Result<Self> {
        let mut others: HashMap<_, &ProblemRecords> = b.groups.iter().map(|group| (&group.key, group)).collect();
        let mut families: BTreeMap<String, Vec<ProblemPair>> = BTreeMap::new();
        for group in &a.groups {
            let Some(other) = others.remove(&group.key) else { continue };
            if let Some([was, is]) = disagreement(&group.records[0].sample, &other.records[0].sample) {
                let ProblemKey { data_source, problem, .. } = &group.key;
                return Err(Error::Invalid(format!(
                    "problem {problem} of {data_source} has {was} in the first evaluation and {is} in the second: \
                     evaluate both on the same data"
                )));
            }
            families.entry(group.key.data_source.clone()).or_default().push(ProblemPair::new(group, other));
        }
        let all: Vec<&ProblemPair> = families.values().flatten().collect();
        if all.is_empty() {
            return Err(Error::Invalid(format!(
                "the two evaluations have no problem in common ({} and {} problems): evaluate both on the same data",
                a.groups.len(),
                b.groups.len()
            )));
        }
        Ok(Self {
            unmatched: [a.groups.len() - all.len(), others.len()],
            overall: difference(&all),
            families: families
                .iter()
                .map(|(name, p)| (name.clone(), difference(&p.iter().collect::<Vec<_>>())))
                .collect(),
        })
    }

    /// Return the data sources by name, then all problems as `all`.
    pub fn rows(&self) -> impl Iterator<Item = (&str, &Difference)> {
        self.families.iter().map(|(name, row)| (name.as_str(), row)).chain([("all", &self.overall)])
    }

    /// Format the comparison as a table.
    pub fn table(&self) -> String {
        let head =
            ["", "problems", "accuracy %", "points", "lenient points", "tokens", "ratio", "AES", "gained", "lost"];
        let mut rows = vec![head.map(str::to_string).to_vec()];
        rows.extend(self.rows().map(|(name, row)| {
            let [was, is] = row.accuracy.map(|accuracy| 100.0 * accuracy);
            let [long, short] = row.mean_length;
            vec![
                name.to_string(),
                row.problems.to_string(),
                format!("{was:.1} -> {is:.1}"),
                estimate(Some(row.accuracy_difference), 100.0, 1, true),
                estimate(Some(row.accuracy_lenient_difference), 100.0, 1, true),
                format!("{long:.1} -> {short:.1}"),
                estimate(Some(row.length_ratio), 1.0, 3, false),
                estimate(row.efficiency_score, 1.0, 2, true),
                row.gained.to_string(),
                row.lost.to_string(),
            ]
        }));
        aligned(&rows) + &wrapped(&self.remark())
    }

    /// Return an explanation of the figures.
    pub fn remark(&self) -> String {
        let [a, b] = self.unmatched;
        let left_out = match (a, b) {
            (0, 0) => String::new(),
            _ => format!(" Left out: {a} problems that are only in the first evaluation and {b} only in the second."),
        };
        format!(
            "Problems are paired. Beside a figure: its 95% bootstrap interval over problems, omitted where resampling \
             the problems changes nothing; ∞: no upper bound, because more than 2.5% of the resamples have no correct \
             completion in the first evaluation. AES: accuracy-efficiency score (arXiv 2501.12570), relative length \
             reduction plus 3 times the relative gain in accuracy (5 times a loss); above 0 the second evaluation is \
             better. Gained and lost: problems of which a larger or smaller share of completions is \
             correct.{left_out}{}",
            self.graders()
        )
    }

    /// Name rows where the readings disagree on the sign: the style of answers has changed, not only their quality.
    fn graders(&self) -> String {
        let apart = |(name, row): (&str, &Difference)| {
            let [strict, lenient] = [row.accuracy_difference.value, row.accuracy_lenient_difference.value];
            (strict * lenient < 0.0).then(|| {
                format!(
                    " The sign of the accuracy difference of {name} depends on the grading: {:+.1} points strict, \
                     {:+.1} lenient.",
                    100.0 * strict,
                    100.0 * lenient
                )
            })
        };
        self.rows().filter_map(apart).collect()
    }
}

fn difference(pairs: &[&ProblemPair]) -> Difference {
    let everything: Vec<usize> = (0..pairs.len()).collect();
    let mean = |value: fn(&ProblemPair) -> f64, drawn: &[usize]| {
        drawn.iter().map(|&i| value(pairs[i])).sum::<f64>() / drawn.len() as f64
    };
    let both = |a, b| [mean(a, &everything), mean(b, &everything)];
    let of = |statistic: &(dyn Fn(&[usize]) -> f64 + Sync)| Estimate {
        value: statistic(&everything),
        interval: interval(pairs.len(), statistic),
    };
    let (accuracy, mean_length) = (both(|p| p.strict[0], |p| p.strict[1]), both(|p| p.length[0], |p| p.length[1]));
    let score = |drawn: &[usize]| {
        efficiency_score(
            [mean(|p| p.strict[0], drawn), mean(|p| p.strict[1], drawn)],
            [mean(|p| p.length[0], drawn), mean(|p| p.length[1], drawn)],
        )
    };
    let gained = pairs.iter().filter(|pair| pair.strict[1] > pair.strict[0]).count();
    let lost = pairs.iter().filter(|pair| pair.strict[1] < pair.strict[0]).count();
    Difference {
        problems: pairs.len(),
        accuracy,
        accuracy_difference: of(&|drawn| mean(|p| p.strict[1] - p.strict[0], drawn)),
        accuracy_lenient: both(|p| p.lenient[0], |p| p.lenient[1]),
        accuracy_lenient_difference: of(&|drawn| mean(|p| p.lenient[1] - p.lenient[0], drawn)),
        mean_length,
        length_ratio: of(&|drawn| mean(|p| p.length[1], drawn) / mean(|p| p.length[0], drawn)),
        efficiency_score: Some(of(&score)).filter(|score| score.value.is_finite()),
        gained,
        lost,
        sign_test: pairs.iter().all(|pair| pair.single).then(|| sign_test(gained, lost)),
    }
}

/// Return the accuracy-efficiency score of a change from the first accuracy and mean length to the second.
pub fn efficiency_score(accuracy: [f64; 2], length: [f64; 2]) -> f64 {
    let shorter = (length[0] - length[1]) / length[0];
    let better = (accuracy[1] - accuracy[0]) / accuracy[0];
    shorter + if better < 0.0 { 5.0 } else { 3.0 } * better
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Record;
    use crate::eval::record::tests::record;

    fn evaluation(rows: &[(&str, &str, &str)]) -> Evaluation {
        let records: Vec<Record> = rows.iter().map(|(source, id, text)| record(source, id, 0, text)).collect();
        Evaluation::new(records).unwrap()
    }

    #[test]
    fn the_efficiency_score_is_that_of_the_formula() {
        // Half as long; accuracy 0.8 to 0.88 is 10% more, to 0.6 is 25% less.
        assert!((efficiency_score([0.8, 0.8], [200.0, 100.0]) - 0.5).abs() < 1e-12);
        assert!((efficiency_score([0.8, 0.88], [200.0, 100.0]) - (0.5 + 0.3)).abs() < 1e-12);
        assert!((efficiency_score([0.8, 0.6], [200.0, 100.0]) - (0.5 - 1.25)).abs() < 1e-12);
    }

    /// By hand, strictly read: of x, problem 1 is lost (9 to 8 bytes), 2 is gained, 3 is lost; of y, 1 stays wrong.
    #[test]
    fn figures_are_those_of_the_paired_problems() {
        let a = evaluation(&[
            ("x", "1", "\\boxed{5}"),
            ("x", "2", "\\boxed{4}"),
            ("x", "3", "\\boxed{5}"),
            ("y", "1", "\\boxed{4}"),
            ("y", "2", "\\boxed{5}"),
        ]);
        let b = evaluation(&[
            ("y", "1", "it is 5"),
            ("x", "3", "\\boxed{6}"),
            ("x", "2", "\\boxed{5}"),
            ("x", "1", "\\boxed5 "),
            ("x", "9", "\\boxed{5}"),
        ]);
        let comparison = Comparison::new(&a, &b).unwrap();
        assert_eq!(comparison.unmatched, [1, 1]);
        let x = &comparison.families["x"];
        assert_eq!((x.problems, x.gained, x.lost), (3, 1, 2));
        let all = &comparison.overall;
        assert_eq!((all.problems, all.gained, all.lost), (4, 1, 2));
        assert_eq!((all.accuracy, all.accuracy_lenient), ([0.5, 0.25], [0.5, 0.75]));
        assert_eq!(all.accuracy_difference.value, -0.25);
        assert!((all.length_ratio.value - (7.0 + 9.0 + 9.0 + 8.0) / 36.0).abs() < 1e-12);
        // y 1 is now right in the lenient reading only; over all problems the readings disagree on the sign.
        let table = comparison.table().replace('\n', " ");
        assert!(
            table.contains(
                "The sign of the accuracy difference of all depends on the grading: -25.0 points strict, +25.0 lenient"
            ),
            "{table}"
        );
        assert!(!table.contains("difference of x depends"), "{table}");
        assert!(table.contains("1 problems that are only in the first evaluation and 1 only in the second"), "{table}");
    }

    /// An unpaired interval would miss this: accuracy varies between problems, the difference does not.
    #[test]
    fn equal_outcomes_have_an_interval_without_width() {
        let rows = |text: &'static str| (0..40).map(move |i| (i, if i % 2 == 0 { text } else { "no idea" }));
        let make = |text| {
            let records = rows(text).map(|(i, text)| record("x", &i.to_string(), 0, text)).collect();
            Evaluation::new(records).unwrap()
        };
        let comparison = Comparison::new(&make("so \\boxed{5}"), &make("\\boxed{5}")).unwrap();
        assert_eq!(comparison.overall.accuracy_difference, Estimate { value: 0.0, interval: Some([0.0, 0.0]) });
        let [low, high] = comparison.overall.length_ratio.interval.unwrap();
        assert!(low < comparison.overall.length_ratio.value && comparison.overall.length_ratio.value < high);
    }

    #[test]
    fn different_problems_or_answers_are_refused() {
        let a = evaluation(&[("x", "1", "5")]);
        let error = Comparison::new(&a, &evaluation(&[("x", "2", "5")])).unwrap_err().to_string();
        assert!(error.contains("no problem in common (1 and 1 problems)"), "{error}");
        let mut b = a.clone();
        b.groups[0].records[0].sample.answer = "6".to_string();
        let error = Comparison::new(&a, &b).unwrap_err().to_string();
        assert!(
            error.contains("problem 1 of x has the answer \"5\" in the first evaluation and the answer \"6\""),
            "{error}"
        );
        // Regression: the same id with another prompt was paired, and so were two answers within one evaluation.
        let mut b = a.clone();
        b.groups[0].records[0].sample.prompt = "2+3?".to_string();
        assert!(Comparison::new(&a, &b).is_ok(), "a prompt that is missing is unknown");
        let mut a = b.clone();
        a.groups[0].records[0].sample.prompt = "1+4?".to_string();
        let error = Comparison::new(&a, &b).unwrap_err().to_string();
        assert!(error.contains("has the prompt \"1+4?\" in the first evaluation and the prompt \"2+3?\""), "{error}");
        let mut two: Vec<Record> = (0..2).map(|sample| record("x", "1", sample, "5")).collect();
        two[1].sample.answer = "6".to_string();
        let error = Evaluation::new(two).unwrap_err().to_string();
        assert!(error.contains("has the answer \"5\" in one line and the answer \"6\" in another"), "{error}");
    }
}
