//! Figures of a set of graded completions: scores with intervals, and lengths.
//!
//! Every score is a mean over problems of a value between 0 and 1, computed from the problem's `n` completions, `c` of
//! which are right. `mean@n`, `maj@n` and `best@n` are verl's names.
//!
//! | score | per problem |
//! |---|---|
//! | `mean@n` | `c / n`: accuracy |
//! | `pass@k` | `1 − C(n − c, k) / C(n, k)`: unbiased estimate of the probability that one of `k` completions is right (Chen et al., arXiv 2107.03374); for powers of two up to n |
//! | `maj@n` | 1 if the most frequent answer is right. Completions without an answer do not vote; an answer that cannot be parsed does. Answers that equal each other in both directions of the comparison form one class, transitively. In a tie between classes, or within a class that is graded differently, the score is the share that is right. The order does not matter |
//! | `best@n` | 1 if any of the n is right; also called `pass@n` |

use rayon::prelude::*;
use serde::{Serialize, Serializer};

use super::ProblemRecords;
use super::bootstrap::{interval, quantile};
use super::record::Record;
use crate::metrics::mean;
use crate::verify::{Verdict, compare};

/// A figure with its 95% bootstrap interval, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Lower and upper bound; infinite (`null` in JSON) for an interval without that bound.
    pub interval: Option<[f64; 2]>,
}

/// Scores by name, in display order.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores(pub Vec<(String, Estimate)>);

impl Scores {
    /// Return the score with this name.
    pub fn get(&self, name: &str) -> Option<Estimate> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, estimate)| *estimate)
    }
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, estimate)| (name, estimate)))
    }
}

/// Quantiles of completion lengths in tokens, interpolated linearly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// 5% quantile.
    pub p5: f64,
    /// 25% quantile.
    pub p25: f64,
    /// Median.
    pub p50: f64,
    /// 75% quantile.
    pub p75: f64,
    /// 95% quantile.
    pub p95: f64,
    /// Longest completion.
    pub max: f64,
}

/// Figures of the completions of a set of problems.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Number of completions.
    pub n: usize,
    /// Number of problems.
    pub problems: usize,
    /// Completions per problem.
    pub samples: usize,
    /// Share of completions that are right in the strict reading.
    pub accuracy: f64,
    /// Share of completions that are right if the last formula or number counts.
    pub accuracy_lenient: f64,
    /// Share of completions in which the strict reading finds an answer, right or not.
    pub found: f64,
    /// Share of completions in which the lenient reading finds an answer.
    pub found_lenient: f64,
    /// Scores in the strict reading.
    pub strict: Scores,
    /// Scores in the lenient reading.
    pub lenient: Scores,
    /// Mean length in tokens.
    pub mean_length: f64,
    /// Interval of the mean length.
    pub mean_length_interval: Option<[f64; 2]>,
    /// Mean length of right completions; `None` without any.
    pub mean_length_correct: Option<f64>,
    /// Mean length of wrong completions; `None` without any.
    pub mean_length_wrong: Option<f64>,
    /// Quantiles of the lengths.
    pub length_percentiles: Percentiles,
    /// Share of completions that hit the length limit.
    pub clipped_ratio: f64,
    /// Tokens of all completions per right completion; `None` without a right one.
    pub tokens_per_correct: Option<f64>,
    /// Interval of `tokens_per_correct`.
    pub tokens_per_correct_interval: Option<[f64; 2]>,
    /// Mean entropy per token at temperature 1, in nats, where known.
    pub entropy: Option<f64>,
    /// Mean number of tokens of the shortest sufficient solution, where known.
    pub floor: Option<f64>,
}

impl Figures {
    /// Compute figures of at least one problem; `intervals` also computes intervals, which takes 1000 times as long.
    pub(super) fn of(groups: &[&ProblemRecords], intervals: bool) -> Self {
        let records: Vec<&Record> = groups.iter().flat_map(|group| &group.records).collect();
        let interval = |statistic: &(dyn Fn(&[usize]) -> f64 + Sync)| {
            if intervals { interval(groups.len(), statistic) } else { None }
        };
        let samples = groups[0].records.len();
        let everything: Vec<usize> = (0..groups.len()).collect();
        let scores = |reading: Reading| {
            let rows: Vec<Vec<f64>> = groups.par_iter().map(|group| reading.tally(&group.records).scores()).collect();
            let estimate = |(k, name)| {
                let over = |drawn: &[usize]| drawn.iter().map(|&i| rows[i][k]).sum::<f64>() / drawn.len() as f64;
                (name, Estimate { value: over(&everything), interval: interval(&over) })
            };
            Scores(score_names(samples).into_iter().enumerate().map(estimate).collect())
        };
        let (strict, lenient) = (scores(Reading::Strict), scores(Reading::Lenient));

        let tokens: Vec<f64> = groups.iter().map(|group| sum(group, |r| r.sample.length as f64)).collect();
        let right: Vec<f64> = groups.iter().map(|group| sum(group, |r| f64::from(u8::from(is_right(r))))).collect();
        let ratio = |drawn: &[usize]| {
            drawn.iter().map(|&i| tokens[i]).sum::<f64>() / drawn.iter().map(|&i| right[i]).sum::<f64>()
        };
        let per_completion =
            |drawn: &[usize]| drawn.iter().map(|&i| tokens[i]).sum::<f64>() / (drawn.len() * samples) as f64;

        let mean_length = |keep: &dyn Fn(&Record) -> bool| -> Option<f64> {
            let lengths: Vec<f64> = records.iter().filter(|r| keep(r)).map(|r| r.sample.length as f64).collect();
            (!lengths.is_empty()).then(|| mean(&lengths))
        };
        let share = |is: &dyn Fn(&Record) -> bool| {
            records.iter().filter(|record| is(record)).count() as f64 / records.len() as f64
        };
        let floors: Vec<f64> = records.iter().filter_map(|r| r.sample.floor).map(|floor| floor as f64).collect();
        let tokens_per_correct = Some(ratio(&everything)).filter(|tokens| tokens.is_finite());
        Self {
            n: records.len(),
            problems: groups.len(),
            samples,
            accuracy: share(&is_right),
            accuracy_lenient: share(&|record| record.graded.lenient.is_right()),
            found: share(&|record| found(record.graded.strict)),
            found_lenient: share(&|record| found(record.graded.lenient)),
            strict,
            lenient,
            mean_length: per_completion(&everything),
            mean_length_interval: interval(&per_completion),
            mean_length_correct: mean_length(&is_right),
            mean_length_wrong: mean_length(&|record| !is_right(record)),
            length_percentiles: percentiles(&records),
            clipped_ratio: share(&|record| !record.sample.finished),
            tokens_per_correct,
            tokens_per_correct_interval: tokens_per_correct.and_then(|_| interval(&ratio)),
            entropy: entropy(&records),
            floor: (!floors.is_empty()).then(|| mean(&floors)),
        }
    }
}

fn is_right(record: &Record) -> bool {
    record.graded.strict.is_right()
}

fn sum(group: &ProblemRecords, value: impl Fn(&Record) -> f64) -> f64 {
    group.records.iter().map(value).sum()
}

fn percentiles(records: &[&Record]) -> Percentiles {
    let mut lengths: Vec<f64> = records.iter().map(|record| record.sample.length as f64).collect();
    lengths.sort_unstable_by(f64::total_cmp);
    let at = |q: f64| quantile(&lengths, q);
    Percentiles { p5: at(0.05), p25: at(0.25), p50: at(0.5), p75: at(0.75), p95: at(0.95), max: at(1.0) }
}

/// Return the mean over the tokens of completions with known entropies.
fn entropy(records: &[&Record]) -> Option<f64> {
    let known = records.iter().filter_map(|r| Some((r.sample.entropy_sum?, r.sample.length as f64)));
    let (nats, tokens) = known.fold((0.0, 0.0), |(nats, tokens), (n, t)| (nats + n, tokens + t));
    (tokens > 0.0).then(|| nats / tokens)
}

/// Whether the reading found an answer.
fn found(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Right | Verdict::Wrong | Verdict::Undecided)
}

/// Reading of answers whose verdicts count.
#[derive(Clone, Copy)]
enum Reading {
    Strict,
    Lenient,
}

/// Counts of a problem's completions in one reading.
struct Tally {
    samples: usize,
    right: usize,
    majority: f64,
}

impl Reading {
    fn verdict(self, record: &Record) -> Verdict {
        match self {
            Self::Strict => record.graded.strict,
            Self::Lenient => record.graded.lenient,
        }
    }

    fn tally(self, records: &[Record]) -> Tally {
        let right = records.iter().filter(|record| self.verdict(record).is_right()).count();
        Tally { samples: records.len(), right, majority: self.majority(records) }
    }

    /// Return the share of right completions among those with the most frequent answer.
    fn majority(self, records: &[Record]) -> f64 {
        let mut classes: Vec<Class> = Vec::new();
        for record in records {
            let verdict = self.verdict(record);
            let stated = |answer: &&str| verdict != Verdict::NoAnswer && !answer.is_empty();
            let Some(answer) = record.graded.extracted.as_deref().filter(stated) else { continue };
            // The new answer may merge classes that were separate.
            let (same, others) = classes.into_iter().partition(|class| class.has(answer));
            let mut class = Class { votes: 1, right: usize::from(verdict.is_right()), answers: vec![answer] };
            class = Vec::into_iter(same).fold(class, Class::join);
            classes = others;
            classes.push(class);
        }
        let most = classes.iter().map(|class| class.votes).max();
        let first: Vec<f64> = (classes.iter().filter(|class| Some(class.votes) == most))
            .map(|class| class.right as f64 / class.votes as f64)
            .collect();
        if first.is_empty() { 0.0 } else { mean(&first) }
    }
}

/// Class of equal answers.
struct Class<'a> {
    votes: usize,
    right: usize,
    /// Different spellings of the answer.
    answers: Vec<&'a str>,
}

impl<'a> Class<'a> {
    /// Whether `answer` belongs to the class. Both directions must hold: 0.33 would accept 1/3, but not 1/3 0.33.
    fn has(&self, answer: &str) -> bool {
        let same = |other: &&str| compare(other, answer).is_right() && compare(answer, other).is_right();
        self.answers.contains(&answer) || self.answers.iter().any(same)
    }

    fn join(mut self, other: Class<'a>) -> Self {
        self.votes += other.votes;
        self.right += other.right;
        let new = other.answers.into_iter().filter(|answer| !self.answers.contains(answer));
        self.answers.extend(new.collect::<Vec<_>>());
        self
    }
}

/// Yield the values of `k` for `pass@k`.
fn powers_of_two(n: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |k| Some(2 * k)).take_while(move |&k| k <= n)
}

/// Return the names of the scores for `n` completions per problem, in the order of [`Tally::scores`].
fn score_names(n: usize) -> Vec<String> {
    let pass = powers_of_two(n).map(|k| format!("pass@{k}"));
    std::iter::once(format!("mean@{n}")).chain(pass).chain([format!("maj@{n}"), format!("best@{n}")]).collect()
}

impl Tally {
    fn scores(&self) -> Vec<f64> {
        let (n, c) = (self.samples, self.right);
        let pass = powers_of_two(n).map(|k| pass_at(k, n, c));
        let last = [self.majority, f64::from(u8::from(c > 0))];
        std::iter::once(c as f64 / n as f64).chain(pass).chain(last).collect()
    }
}

/// Return `1 − C(n − c, k) / C(n, k)`, computed as a product that does not overflow.
fn pass_at(k: usize, n: usize, c: usize) -> f64 {
    if n - c < k {
        return 1.0;
    }
    1.0 - (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::record::Sample;
    use crate::eval::record::tests::record;
    use crate::noise::Stream;

    /// Enumerate all ways to choose k of n completions, and count those with a right one.
    #[test]
    fn pass_at_k_is_the_share_of_choices_with_a_right_one() {
        for (n, c) in [(1, 0), (1, 1), (4, 1), (5, 2), (6, 6), (6, 0)] {
            for k in 1..=n {
                let choices = (0u32..1 << n).filter(|set| set.count_ones() as usize == k);
                let (hits, all) = choices.fold((0, 0), |(hits, all), set| {
                    // The first c completions are the right ones.
                    (hits + u32::from(set & ((1 << c) - 1) != 0), all + 1)
                });
                let expected = f64::from(hits) / f64::from(all);
                assert!((pass_at(k, n, c) - expected).abs() < 1e-12, "n {n} c {c} k {k}");
            }
        }
    }

    /// By hand: stated and right, stated and wrong, right in passing, nothing, and stated but cut.
    #[test]
    fn each_reading_says_how_often_it_finds_an_answer() {
        let mut records: Vec<Record> = ["\\boxed{5}", "\\boxed{4}", "perhaps 5", "no idea", "\\boxed{5}"]
            .iter()
            .enumerate()
            .map(|(i, text)| record("s", "1", i, text))
            .collect();
        let cut = Sample { finished: false, ..records[4].sample.clone() };
        records[4] = Record::new(cut);
        let key = super::super::ProblemKey { data_source: "s".to_string(), problem: "1".to_string(), repeat: 0 };
        let figures = Figures::of(&[&ProblemRecords { key, records }], false);
        assert_eq!((figures.found, figures.found_lenient), (0.4, 0.8));
        assert_eq!((figures.accuracy, figures.accuracy_lenient), (0.2, 0.6));
    }

    #[test]
    fn the_majority_counts_equal_answers_together_and_a_tie_by_its_share() {
        let majority = |completions: &[&str]| {
            let records: Vec<_> = (0..).zip(completions).map(|(i, text)| record("s", "1", i, text)).collect();
            (Reading::Strict.majority(&records), Reading::Lenient.majority(&records))
        };
        // 10/2 and 5.0 are 5, against one vote each for 4 and 3.
        assert_eq!(majority(&["\\boxed{4}", "\\boxed{10/2}", "\\boxed{3}", "\\boxed{5.0}"]), (1.0, 1.0));
        assert_eq!(majority(&["\\boxed{4}", "\\boxed{5}"]), (0.5, 0.5));
        // Two unstated 4s vote in the lenient reading only.
        assert_eq!(majority(&["it is 4", "\\boxed{5}", "it is 4"]), (1.0, 0.0));
        assert_eq!(majority(&["no idea", "", "\\boxed{}"]), (0.0, 0.0));
        // Regression: an answer that cannot be parsed did not vote, so that a minority won.
        assert_eq!(majority(&["\\boxed{\\sum_{k} a_k}", "\\boxed{5}", "\\boxed{\\sum_{k} a_k}"]), (0.0, 0.0));
    }

    /// Regression: the first member of a class decided, and 0.33 accepted 1/3, so the order changed the majority.
    #[test]
    fn the_majority_does_not_depend_on_the_order() {
        const ANSWERS: [&str; 9] = ["0.33", "1/3", "\\frac13", "1/2", "0.5", "50\\%", "50", "0.333", "x"];
        let mut random = Stream::new(&[7]);
        for round in 0..200 {
            let mut texts: Vec<String> = (0..7).map(|_| format!("\\boxed{{{}}}", random.choose(&ANSWERS))).collect();
            let gold = ANSWERS[round % ANSWERS.len()];
            let majority = |texts: &[String]| {
                let graded = |(i, text): (usize, &String)| {
                    Record::new(Sample { answer: gold.to_string(), ..record("s", "1", i, text).sample })
                };
                Reading::Strict.majority(&texts.iter().enumerate().map(graded).collect::<Vec<_>>())
            };
            let first = majority(&texts);
            for _ in 0..4 {
                random.shuffle(&mut texts);
                assert!((majority(&texts) - first).abs() < 1e-12, "{gold}: {texts:?}");
            }
        }
    }
}
