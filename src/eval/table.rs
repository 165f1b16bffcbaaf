//! Figures as text, in lines of at most [`WIDTH`] columns.

use super::figures::{Estimate, Figures};

/// Maximum width of a line in columns; only longer names exceed it.
const WIDTH: usize = 100;

/// Format two tables with a line per data source: scores with 95% intervals, and lengths in tokens.
pub(super) fn tables(rows: &[(String, Figures)]) -> String {
    let samples = rows.last().map_or(1, |(_, figures)| figures.samples);
    let names = shown(samples);
    let mean = format!("mean@{samples}");
    let mut scores = vec![["scores in %".to_string(), "problems".to_string()].to_vec()];
    let head = names.iter().map(|name| format!("strict {name}"));
    let graders = [format!("lenient {mean}"), "strict found".to_string(), "lenient found".to_string()];
    scores[0].extend(head.chain(graders));
    let head = ["tokens", "mean", "correct", "wrong", "p50", "p95", "max", "cut", "per correct", "floor"];
    let mut lengths = vec![head.map(str::to_string).to_vec()];
    for (name, f) in rows {
        let mut row = vec![name.clone(), f.problems.to_string()];
        row.extend(names.iter().map(|score| estimate(f.strict.get(score), 100.0, 1, false)));
        row.push(estimate(f.lenient.get(&mean), 100.0, 1, false));
        row.extend([f.found, f.found_lenient].map(|share| format!("{:.1}", 100.0 * share)));
        scores.push(row);

        let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.1}"));
        let mean_length = Estimate { value: f.mean_length, interval: f.mean_length_interval };
        let per_correct = f.tokens_per_correct.map(|value| Estimate { value, interval: f.tokens_per_correct_interval });
        let percentiles = &f.length_percentiles;
        lengths.push(vec![
            name.clone(),
            estimate(Some(mean_length), 1.0, 1, false),
            number(f.mean_length_correct),
            number(f.mean_length_wrong),
            format!("{:.0}", percentiles.p50),
            format!("{:.0}", percentiles.p95),
            format!("{:.0}", percentiles.max),
            format!("{:.1}%", 100.0 * f.clipped_ratio),
            estimate(per_correct, 1.0, 1, false),
            number(f.floor),
        ]);
    }
    let legend = wrapped(
        "In brackets: 95% bootstrap intervals over problems, omitted where resampling the problems changes nothing; ∞: \
         no upper bound, because more than 2.5% of the resamples have no correct completion. strict: the stated answer \
         of a finished completion counts; lenient: the last formula or number counts; found: share of completions in \
         which this reading finds an answer, correct or not. cut: share of completions truncated at the length limit; \
         per correct: tokens of all completions per correct one; floor: mean length of the shortest reference \
         solutions, where known.",
    );
    format!("{}\n{}\n{legend}", aligned(&scores), aligned(&lengths))
}

/// Return the scores in the table; with one completion per problem all scores are equal.
fn shown(samples: usize) -> Vec<String> {
    let mut names = vec![format!("mean@{samples}")];
    if samples > 1 {
        let powers = std::iter::successors(Some(2), |k| Some(2 * k)).take_while(|&k| k < samples);
        names.extend(powers.map(|k| format!("pass@{k}")));
        names.extend([format!("maj@{samples}"), format!("best@{samples}")]);
    }
    names
}

/// Format `value (low..high)`, scaled, with `places` decimals; without an interval of no width; `None` as `-`,
/// infinity as `∞`.
pub(super) fn estimate(estimate: Option<Estimate>, scale: f64, places: usize, signed: bool) -> String {
    let number = |value: f64| match signed {
        true => format!("{:+.places$}", scale * value).replace("inf", "∞"),
        false => format!("{:.places$}", scale * value).replace("inf", "∞"),
    };
    match estimate {
        Some(Estimate { value, interval: Some([low, high]) }) if low < high => {
            format!("{} ({}..{})", number(value), number(low), number(high))
        }
        Some(Estimate { value, .. }) => number(value),
        None => "-".to_string(),
    }
}

/// Align rows with equal numbers of cells: the first column to the left, the others to the right. Columns that do not
/// fit into a line follow below, with the first column repeated.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |k: usize| rows.iter().map(|row| row[k].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    let mut next = 1;
    while next < columns {
        let start = next;
        let mut used = widths[0];
        while next < columns && (next == start || used + 2 + widths[next] <= WIDTH) {
            used += 2 + widths[next];
            next += 1;
        }
        for row in rows {
            text += &format!("{:<first$}", row[0], first = widths[0]);
            for k in start..next {
                text += &format!("  {:>width$}", row[k], width = widths[k]);
            }
            text.push('\n');
        }
    }
    text
}

/// Wrap a paragraph to lines of at most [`WIDTH`] columns.
pub(super) fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let long = word.chars().count();
        if used > 0 && used + 1 + long > WIDTH {
            lines.push('\n');
            used = 0;
        } else if used > 0 {
            lines.push(' ');
            used += 1;
        }
        lines += word;
        used += long;
    }
    lines + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stand_under_each_other_and_apart() {
        let rows = [["", "n", "mean"], ["olympiade", "1", "50.0 (25.0..75.0)"], ["é", "1000", "-"]];
        let text = aligned(&rows.map(|row| row.map(str::to_string).to_vec()));
        assert_eq!(
            text,
            "              n               mean\n\
             olympiade     1  50.0 (25.0..75.0)\n\
             é          1000                  -\n"
        );
    }

    /// Regression: a comparison was 212 columns wide.
    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let row: Vec<String> = (0..9).map(|k| format!("{k} (10.0..100.0)")).collect();
        let text = aligned(&[row.clone(), row.clone()]) + &wrapped(&row.join(" "));
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(row.iter().all(|cell| text.matches(cell.as_str()).count() >= 2), "{text}");
    }

    #[test]
    fn an_interval_without_width_is_left_out() {
        let of = |interval| estimate(Some(Estimate { value: 0.5, interval: Some(interval) }), 100.0, 1, false);
        assert_eq!((of([0.5, 0.5]), of([0.25, 0.75])), ("50.0".to_string(), "50.0 (25.0..75.0)".to_string()));
        assert_eq!(of([0.25, f64::INFINITY]), "50.0 (25.0..∞)");
    }
}
