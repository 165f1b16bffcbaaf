//! Sentences about the entropy conflict, generated from the figures of the measured steps.
//!
//! A sentence states a direction only if the 95% interval of the mean over steps excludes zero. Otherwise it says that
//! the effect is not measurable. Consecutive steps of a run are correlated, so the errors are a guide, not a test.

use serde_json::{Map, Value};

use super::numbers::{percent, signed};
use crate::eval::student;

/// Metrics of a step.
pub(crate) type MetricsRow = Map<String, Value>;

/// Name of the rows that figures are averaged over, singular and plural.
pub(crate) type CountNoun = [&'static str; 2];

/// Mean over steps with its standard error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mean {
    pub(super) value: f64,
    /// Standard error; `None` for a single step.
    error: Option<f64>,
    /// Number of steps.
    count: usize,
}

impl Mean {
    /// Return `None` if there are no values.
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.collect();
        if values.is_empty() {
            return None;
        }
        let count = values.len();
        let error = (count > 1).then(|| crate::metrics::deviation(&values) / (count as f64).sqrt());
        Some(Self { value: crate::metrics::mean(&values), error, count })
    }

    /// Return 1 or −1 if the 95% interval excludes zero, else 0.
    fn sign(self) -> i32 {
        let Some(error) = self.error else { return 0 };
        let width = student::quantile(self.count as f64 - 1.0) * error;
        i32::from(self.value > width) - i32::from(self.value < -width)
    }

    /// Format the mean with its error, rounded to two significant digits of the error, and its number of rows. `unit`
    /// is the name of a row, singular and plural.
    fn text(self, unit: CountNoun) -> String {
        // An error below this is rounding: the values are equal.
        let error = self.error.filter(|error| *error > 1e-9 * self.value.abs());
        let scale = error.unwrap_or(self.value.abs() / 10.0);
        let places = if scale > 0.0 { (1.0 - scale.log10().floor()).max(0.0) as usize } else { 1 };
        let (value, error) = match places {
            0..=9 => (signed(Some(self.value), places), error.map(|error| format!("{error:.places$}"))),
            _ => (format!("{:+.1e}", self.value), error.map(|error| format!("{error:.1e}"))),
        };
        let error = error.map_or_else(String::new, |error| format!(" \u{b1} {error}"));
        format!("{value}{error}, {} {}", self.count, unit[usize::from(self.count > 1)])
    }
}

/// Return the metric `conflict/{name}` of a row. `name` may end with `[k]` for entry `k` of a list, or with `[..k]`
/// for the mean of the entries before `k`.
fn figure(row: &MetricsRow, name: &str) -> Option<f64> {
    let (name, index) = match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
        Some((name, index)) => (name, Some(index)),
        None => (name, None),
    };
    let value = row.get(&format!("conflict/{name}"))?;
    match index.map(|index| (index, index.strip_prefix(".."))) {
        None => value.as_f64(),
        Some((_, Some(end))) => {
            let entries = value.as_array()?.iter().take(end.parse().ok()?).filter_map(Value::as_f64);
            Some(Mean::of(entries)?.value)
        }
        Some((index, None)) => value.get(index.parse::<usize>().ok()?)?.as_f64(),
    }
}

/// Return the mean of a figure over the steps that have it.
pub(super) fn mean(rows: &[&MetricsRow], name: &str) -> Option<Mean> {
    Mean::of(rows.iter().filter_map(|row| figure(row, name)))
}

/// Return the mean of figure `a` minus figure `b` over the steps that have both.
fn difference(rows: &[&MetricsRow], a: &str, b: &str) -> Option<Mean> {
    Mean::of(rows.iter().filter_map(|row| Some(figure(row, a)? - figure(row, b)?)))
}

/// Return the findings as sentences, the verdict first; `None` if no row was measured.
///
/// `unit` is the name of the rows, for example "step" and "steps".
pub(crate) fn sentences(rows: &[&MetricsRow], unit: CountNoun) -> Option<Vec<String>> {
    if !rows.iter().any(|row| row.contains_key("conflict/tokens")) {
        return None;
    }
    let changes = [mean(rows, "entropy_change_task"), mean(rows, "entropy_change_length")];
    let pushes = [mean(rows, "connectors/push_task"), mean(rows, "connectors/push_length")];
    let mut text = vec![verdict(changes, pushes)];
    if changes.iter().any(Option::is_some) {
        text.push(entropy(changes, unit));
    }
    text.extend(opposition(rows));
    text.extend(connectors(rows, pushes, unit));
    text.extend(gradient(rows));
    text.extend(mislabelled(rows, unit));
    Some(text)
}

/// State whether the parts change entropy, or if that is not measurable push connectors, in opposite directions.
fn verdict(changes: [Option<Mean>; 2], pushes: [Option<Mean>; 2]) -> String {
    let text = match changes {
        [None, None] => "No token has a nonzero advantage: there is nothing to measure",
        [Some(_), None] => "The length part is zero everywhere, so there is no conflict between two parts to measure",
        [None, Some(_)] => "The accuracy part is zero everywhere, so there is no conflict between two parts to measure",
        [Some(task), Some(length)] => match (task.sign(), length.sign()) {
            (1, -1) => "Conflict in entropy: accuracy raises it and length lowers it, as in the paper",
            (-1, 1) => "Conflict in entropy, but opposite to the paper: accuracy lowers it and length raises it",
            (1, 1) => "No conflict in entropy: both parts raise it",
            (-1, -1) => "No conflict in entropy: both parts lower it",
            _ if matches!(pushes, [Some(task), Some(length)] if task.sign() * length.sign() == -1) => {
                "No measurable conflict in the entropy of all tokens, but the parts push connectors in opposite \
                 directions"
            }
            _ => "No measurable conflict in entropy",
        },
    };
    format!("{text}.")
}

fn entropy(changes: [Option<Mean>; 2], unit: CountNoun) -> String {
    let verb = |mean: Mean| match mean.sign() {
        1 => "raises entropy",
        -1 => "lowers entropy",
        _ => "has no measurable effect on entropy",
    };
    let clause = |(name, change): (&str, Option<Mean>)| {
        change.map(|m| format!("the {name} part {} ({})", verb(m), m.text(unit)))
    };
    let clauses: Vec<String> = ["accuracy", "length"].into_iter().zip(changes).filter_map(clause).collect();
    format!(
        "Predicted from the samples, in nats per token for an update of unit size on the logits (mean \u{b1} standard \
         error): {}.",
        clauses.join(", ")
    )
}

/// State how much of the two parts' updates cancels, and on which tokens.
fn opposition(rows: &[&MetricsRow]) -> Option<String> {
    let all = mean(rows, "cancellation")?.value;
    let strength = match all {
        a if a < 0.05 => "hardly oppose each other",
        a if a < 0.25 => "partly oppose each other",
        _ => "strongly oppose each other",
    };
    let mut text = format!("Per token, the parts {strength}: {} of their gradients cancels", percent(Some(all)));
    let compare = |name: &str, here: &str, there: &str| {
        let (difference, here, there) = (difference(rows, here, there)?, mean(rows, here)?, mean(rows, there)?);
        let more = match difference.sign() {
            1 => "more",
            -1 => "less",
            _ => "not measurably more or less",
        };
        Some(format!("{more} {name} ({} against {})", percent(Some(here.value)), percent(Some(there.value))))
    };
    let places = [
        compare("on connectors than on other tokens", "connectors/cancellation", "others/cancellation"),
        compare(
            "in the decile of highest entropy than in the others",
            "deciles/cancellation[9]",
            "deciles/cancellation[..9]",
        ),
    ];
    let places: Vec<String> = places.into_iter().flatten().collect();
    if !places.is_empty() {
        text += &format!("; {}", places.join(", "));
    }
    if let Some(share) = mean(rows, "opposed_share") {
        text += &format!("; on {} of the tokens accuracy pushes up and length pushes down", percent(Some(share.value)));
        if let Some(share) = mean(rows, "connectors/opposed_share") {
            text += &format!(" ({} of the connectors)", percent(Some(share.value)));
        }
    }
    Some(text + ".")
}

/// State in which direction each part pushes connectors.
fn connectors(rows: &[&MetricsRow], pushes: [Option<Mean>; 2], unit: CountNoun) -> Option<String> {
    let per_1000 = mean(rows, "connectors/per_1000")?.value;
    if per_1000 == 0.0 {
        return Some("No connector of the lexicon occurred.".into());
    }
    let mut text = format!("Of 1000 tokens, {per_1000:.1} begin a connector");
    if let (Some(here), Some(there)) = (mean(rows, "connectors/entropy"), mean(rows, "others/entropy")) {
        text += &format!(
            ", with an entropy of {:.3} nats, compared with {:.3} nats for other tokens",
            here.value, there.value
        );
    }
    if let [Some(task), Some(length)] = pushes {
        let pushes = format!("accuracy {}; length {}", task.text(unit), length.text(unit));
        text += &match (task.sign(), length.sign()) {
            (1, -1) => {
                format!("; in total, accuracy pushes them up and length pushes them down, as in the paper ({pushes})")
            }
            (-1, 1) => {
                format!(
                    "; in total, accuracy pushes them down and length pushes them up, opposite to the paper ({pushes})"
                )
            }
            (1, 1) => format!("; in total, both parts push them up ({pushes})"),
            (-1, -1) => format!("; in total, both parts push them down ({pushes})"),
            _ => format!("; no measurable difference between the directions of the two parts ({pushes})"),
        };
    }
    Some(text + ".")
}

/// State the share of the squared gradient that falls on the tokens of highest entropy.
fn gradient(rows: &[&MetricsRow]) -> Option<String> {
    let share = |name: &str| mean(rows, &format!("deciles/{name}[9]")).map(|m| percent(Some(m.value)));
    let parts = [("accuracy", share("grad_share_task")), ("length", share("grad_share_length"))];
    let parts: Vec<String> =
        parts.into_iter().filter_map(|(name, share)| Some(format!("{} of the {name} part\u{2019}s", share?))).collect();
    (!parts.is_empty()).then(|| {
        format!("The decile of the tokens with the highest entropy has {} squared gradient.", parts.join(" and "))
    })
}

/// State the share of correct answers with a negative advantage. Every row has the same weight in the mean.
fn mislabelled(rows: &[&MetricsRow], unit: CountNoun) -> Option<String> {
    let Mean { value, count, .. } = mean(rows, "negative_given_correct")?;
    let average = if count > 1 { format!(" of a {}, on average,", unit[0]) } else { String::new() };
    Some(match value {
        0.0 => "No correct completion has a negative advantage.".into(),
        _ => format!("Of the correct completions{average} {} have a negative advantage.", percent(Some(value))),
    })
}

/// Return predicted and realised change of entropy, for each pair of consecutive steps that has both.
pub(super) fn changes(rows: &[(u64, &MetricsRow)]) -> Vec<(f64, f64)> {
    let entropy = |row: &MetricsRow| row.get("entropy/sampling").and_then(Value::as_f64);
    let pair = |pair: &[(u64, &MetricsRow)]| {
        let [(step, row), (next, after)] = pair else { return None };
        let predicted = figure(row, "entropy_change")?;
        (step + 1 == *next).then_some((predicted, entropy(after)? - entropy(row)?))
    };
    rows.windows(2).filter_map(pair).collect()
}

/// Smallest number of steps for which a correlation is reported.
const MIN_STEPS: usize = 10;

/// Compare the predicted with the realised [`changes`]. `None` for fewer than [`MIN_STEPS`] steps or zero variance.
pub(super) fn prediction(changes: &[(f64, f64)]) -> Option<String> {
    let count = changes.len() as f64;
    let mean = |f: &dyn Fn(&(f64, f64)) -> f64| changes.iter().map(f).sum::<f64>() / count;
    let (x, y) = (mean(&|c| c.0), mean(&|c| c.1));
    let spread = (mean(&|c| (c.0 - x).powi(2)) * mean(&|c| (c.1 - y).powi(2))).sqrt();
    // Rounding makes the variance of constant values slightly larger than zero.
    let least = f64::EPSILON * (mean(&|c| c.0.powi(2)) * mean(&|c| c.1.powi(2))).sqrt();
    if changes.len() < MIN_STEPS || spread.is_nan() || spread <= least {
        return None;
    }
    let correlation = mean(&|c| (c.0 - x) * (c.1 - y)) / spread;
    let agree = changes.iter().filter(|c| (c.0 > 0.0) == (c.1 > 0.0)).count();
    Some(format!(
        "Predicted and realised change have the same sign at {agree} of {} steps; their correlation is {}.",
        changes.len(),
        signed(Some(correlation), 2)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Return 30 steps whose figures vary by 1% around the given values.
    fn rows(figures: &[(&str, f64)]) -> Vec<MetricsRow> {
        let row = |step: i32| {
            let near = |value: f64| Value::from(value * (1.0 + 0.01 * f64::from(step % 3 - 1)));
            let mut row: MetricsRow =
                figures.iter().map(|(name, value)| (format!("conflict/{name}"), near(*value))).collect();
            let top = |name: &str| row.get(&format!("conflict/{name}")).cloned().unwrap_or(Value::Null);
            let lists = ["cancellation", "grad_share_task", "grad_share_length"]
                .map(|name| (name, top(&format!("top/{name}"))));
            for (name, top) in lists {
                let list: Vec<Value> =
                    (0..9).map(|k| if k < 4 { Value::Null } else { 0.3.into() }).chain([top]).collect();
                row.insert(format!("conflict/deciles/{name}"), list.into());
            }
            row.insert("conflict/tokens".into(), 100.into());
            row
        };
        (0..30).map(row).collect()
    }

    fn text(rows: &[MetricsRow]) -> String {
        sentences(&rows.iter().collect::<Vec<_>>(), STEPS).unwrap().join(" ")
    }

    fn assert_says(text: &str, parts: &[&str]) {
        parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in: {text}"));
    }

    const STEPS: CountNoun = ["step", "steps"];

    const AS_THE_PAPER_SAYS: [(&str, f64); 16] = [
        ("entropy_change_task", 0.004),
        ("entropy_change_length", -0.002),
        ("cancellation", 0.3),
        ("connectors/cancellation", 0.5),
        ("others/cancellation", 0.29),
        ("top/cancellation", 0.44),
        ("opposed_share", 0.31),
        ("connectors/opposed_share", 0.52),
        ("connectors/per_1000", 40.0),
        ("connectors/entropy", 0.9),
        ("others/entropy", 0.05),
        ("connectors/push_task", 0.02),
        ("connectors/push_length", -0.01),
        ("top/grad_share_task", 0.8),
        ("top/grad_share_length", 0.7),
        ("negative_given_correct", 0.125),
    ];

    #[test]
    fn a_run_as_the_paper_says() {
        let text = text(&rows(&AS_THE_PAPER_SAYS));
        assert_says(
            &text,
            &[
                "Conflict in entropy: accuracy raises it and length lowers it, as in the paper.",
                "the accuracy part raises entropy (+0.0040000 ± 0.0000061, 30 steps), the length part lowers entropy (−0.002",
                "strongly oppose each other: 30.0% of their gradients cancels",
                "more on connectors than on other tokens (50.0% against 29.0%)",
                "more in the decile of highest entropy than in the others (44.0% against 30.0%)",
                "on 31.0% of the tokens accuracy pushes up and length pushes down (52.0% of the connectors)",
                "40.0 begin a connector, with an entropy of 0.900 nats, compared with 0.050",
                "accuracy pushes them up and length pushes them down, as in the paper",
                "has 80.0% of the accuracy part’s and 70.0% of the length part’s squared gradient",
                "Of the correct completions of a step, on average, 12.5% have a negative advantage.",
            ],
        );
    }

    #[test]
    fn a_run_with_the_opposite_outcome() {
        let opposite: Vec<(&str, f64)> = (AS_THE_PAPER_SAYS.iter())
            .map(|&(name, value)| match name {
                "entropy_change_task" | "entropy_change_length" | "connectors/push_task" | "connectors/push_length" => {
                    (name, -value)
                }
                "connectors/cancellation" | "top/cancellation" => (name, 0.1),
                "negative_given_correct" => (name, 0.0),
                _ => (name, value),
            })
            .collect();
        let text = text(&rows(&opposite));
        assert_says(
            &text,
            &[
                "Conflict in entropy, but opposite to the paper: accuracy lowers it and length raises it.",
                "less on connectors than on other tokens (10.0% against 29.0%)",
                "less in the decile of highest entropy",
                "accuracy pushes them down and length pushes them up, opposite to the paper",
                "No correct completion has a negative advantage.",
            ],
        );
    }

    #[test]
    fn what_scatters_around_nothing_is_not_told_from_nothing() {
        let mut steps = rows(&AS_THE_PAPER_SAYS);
        for (index, row) in steps.iter_mut().enumerate() {
            let sign = if index % 2 == 0 { 1.0 } else { -1.0 };
            for name in ["entropy_change_task", "connectors/push_length"] {
                row.insert(format!("conflict/{name}"), (sign * 0.01).into());
            }
            row.insert("conflict/cancellation".into(), 0.01.into());
            row.insert("conflict/connectors/cancellation".into(), (0.29 + sign * 0.2).into());
        }
        assert_says(
            &text(&steps),
            &[
                "No measurable conflict in entropy.",
                "the accuracy part has no measurable effect on entropy",
                "hardly oppose each other",
                "not measurably more or less on connectors",
                "no measurable difference between the directions of the two parts",
            ],
        );
        // Regression: the headline reported no conflict above a text that said "accuracy pushes them up and length pushes
        // them down".
        for row in &mut steps {
            row.insert("conflict/connectors/push_length".into(), (-0.01).into());
        }
        assert_says(
            &text(&steps),
            &["but the parts push connectors in opposite directions.", "pushes them up and length pushes them down"],
        );
    }

    #[test]
    fn a_part_that_did_not_act_is_said_to_be_missing() {
        let alone = text(&rows(&[("entropy_change_task", -0.01), ("connectors/per_1000", 0.0)]));
        assert_says(
            &alone,
            &["The length part is zero everywhere", "the accuracy part lowers entropy (−0.010", "No connector"],
        );
        assert!(!alone.contains("oppose"), "{alone}");
        assert_says(&text(&rows(&[])), &["No token has a nonzero advantage"]);
        assert_eq!(sentences(&[&MetricsRow::new()], STEPS), None);
    }

    /// Regression: the text was "Over 30 steps" for a part of two steps, and an error could be "± 0.000000000".
    #[test]
    fn each_part_has_its_own_number_of_steps() {
        let mut steps = rows(&AS_THE_PAPER_SAYS);
        for row in steps.iter_mut().skip(2) {
            row.remove("conflict/entropy_change_length");
        }
        assert_says(&text(&steps), &["30 steps), the length part", ", 2 steps)."]);
        let mean = |values: &[f64]| Mean::of(values.iter().copied()).unwrap().text(STEPS);
        assert_eq!(mean(&[0.1; 3]), "+0.100, 3 steps");
        assert_eq!(mean(&[0.5]), "+0.500, 1 step");
        assert_eq!(mean(&[1e-10, 2e-10, 3e-10]), "+2.0e-10 ± 5.8e-11, 3 steps");
    }

    #[test]
    fn predictions_are_held_against_the_next_step() {
        let row = |change: f64, entropy: f64| -> MetricsRow {
            [("conflict/entropy_change".into(), change.into()), ("entropy/sampling".into(), entropy.into())]
                .into_iter()
                .collect()
        };
        let steps = [row(0.1, 1.0), row(-0.2, 1.1), row(0.3, 0.9), row(0.0, 1.2), row(0.1, 1.2)];
        let numbered: Vec<(u64, &MetricsRow)> = [1, 2, 3, 4, 9].into_iter().zip(&steps).collect();
        let found = changes(&numbered);
        assert_eq!(found.len(), 3, "a gap is no change of one step: {found:?}");
        assert_eq!(prediction(&found), None, "three steps have no correlation");
        assert_says(&prediction(&found.repeat(4)).unwrap(), &["same sign at 12 of 12 steps", "correlation is +1.00"]);
        assert_eq!(prediction(&[(0.1, 0.2); 15]), None);
    }
}
