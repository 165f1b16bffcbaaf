//! Figures as text.

use super::figures::{Estimate, Figures};

/// Two tables, one line per data source each: scores with their 95% intervals, and lengths in tokens.
pub(super) fn tables(rows: &[(String, Figures)]) -> String {
    let samples = rows.last().map_or(1, |(_, figures)| figures.samples);
    let names = shown(samples);
    let mean = format!("mean@{samples}");
    let mut scores = vec![["scores in %".to_string(), "problems".to_string()].to_vec()];
    scores[0].extend(names.iter().cloned().chain([format!("lenient {mean}")]));
    let head = ["tokens", "mean", "correct", "wrong", "p50", "p95", "max", "cut", "per correct", "floor"];
    let mut lengths = vec![head.map(str::to_string).to_vec()];
    for (name, f) in rows {
        let mut row = vec![name.clone(), f.problems.to_string()];
        row.extend(names.iter().map(|score| estimate(f.strict.get(score), 100.0, 1, false)));
        row.push(estimate(f.lenient.get(&mean), 100.0, 1, false));
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
    format!("{}\n{}In brackets 95% bootstrap intervals over problems.\n", aligned(&scores), aligned(&lengths))
}

/// The scores in the table: with one completion per problem they are all the same.
fn shown(samples: usize) -> Vec<String> {
    let mut names = vec![format!("mean@{samples}")];
    if samples > 1 {
        let powers = std::iter::successors(Some(2), |k| Some(2 * k)).take_while(|&k| k < samples);
        names.extend(powers.map(|k| format!("pass@{k}")));
        names.extend([format!("maj@{samples}"), format!("best@{samples}")]);
    }
    names
}

/// `value (low..high)`, scaled, with so many places; `-` for none.
pub(crate) fn estimate(estimate: Option<Estimate>, scale: f64, places: usize, signed: bool) -> String {
    let number = |value: f64| match signed {
        true => format!("{:+.places$}", scale * value),
        false => format!("{:.places$}", scale * value),
    };
    match estimate {
        Some(Estimate { value, interval: Some([low, high]) }) => {
            format!("{} ({}..{})", number(value), number(low), number(high))
        }
        Some(Estimate { value, interval: None }) => number(value),
        None => "-".to_string(),
    }
}

/// Rows of equally many cells as lines: the first column to the left, the others to the right.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |k: usize| rows.iter().map(|row| row[k].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row[1..].iter().zip(&widths[1..]).map(|(cell, width)| format!("  {cell:>width$}"));
        format!("{:<first$}{}\n", row[0], cells.collect::<String>(), first = widths[0])
    };
    rows.iter().map(line).collect()
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
}
