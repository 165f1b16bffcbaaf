//! Figures as text.

use super::figures::{Estimate, Figures};

/// Two tables, one line per data source each: scores with their 95% intervals, and lengths in tokens.
pub(super) fn tables(rows: &[(String, Figures)]) -> String {
    let name_width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(12) + 2;
    let samples = rows.last().map_or(1, |(_, figures)| figures.samples);
    let mut text = format!("{:<name_width$}{:>9}", "scores in %", "problems");
    let names = shown(samples);
    for name in &names {
        text += &format!("{name:>22}");
    }
    text += &format!("{:>22}\n", format!("lenient mean@{samples}"));
    for (name, figures) in rows {
        text += &format!("{name:<name_width$}{:>9}", figures.problems);
        for score in &names {
            text += &format!("{:>22}", percent(figures.strict.get(score)));
        }
        text += &format!("{:>22}\n", percent(figures.lenient.get(&format!("mean@{samples}"))));
    }

    text += &format!("\n{:<name_width$}", "tokens");
    for name in ["mean", "95% interval", "correct", "wrong", "p50", "p95", "max", "cut", "per correct", "floor"] {
        text += &format!("{name:>width$}", width = width(name));
    }
    text += "\n";
    for (name, f) in rows {
        let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.1}"));
        let interval = f.mean_length_interval.map_or("-".to_string(), |[low, high]| format!("{low:.1}..{high:.1}"));
        let percentiles = &f.length_percentiles;
        let cells = [
            ("mean", number(Some(f.mean_length))),
            ("95% interval", interval),
            ("correct", number(f.mean_length_correct)),
            ("wrong", number(f.mean_length_wrong)),
            ("p50", format!("{:.0}", percentiles.p50)),
            ("p95", format!("{:.0}", percentiles.p95)),
            ("max", format!("{:.0}", percentiles.max)),
            ("cut", format!("{:.1}%", 100.0 * f.clipped_ratio)),
            ("per correct", number(f.tokens_per_correct)),
            ("floor", number(f.floor)),
        ];
        text += &format!("{name:<name_width$}");
        for (column, cell) in cells {
            text += &format!("{cell:>width$}", width = width(column));
        }
        text += "\n";
    }
    text
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

fn width(column: &str) -> usize {
    column.len().max(6) + if column == "95% interval" { 6 } else { 3 }
}

fn percent(estimate: Option<Estimate>) -> String {
    match estimate {
        Some(Estimate { value, interval: Some([low, high]) }) => {
            format!("{:.1} ({:.1}..{:.1})", 100.0 * value, 100.0 * low, 100.0 * high)
        }
        Some(Estimate { value, interval: None }) => format!("{:.1}", 100.0 * value),
        None => "-".to_string(),
    }
}
