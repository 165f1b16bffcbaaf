//! The page of a comparison.

use serde::Serialize;

use super::numbers::{NONE, arrow, fixed, signed};
use super::outcome::Tile;
use super::plot::{Ink, Mark, Plot, Series};
use super::plots::{Figure, figure};
use super::render;
use crate::error::Result;
use crate::eval::compare::{Comparison, Difference};
use crate::eval::figures::Estimate;

#[derive(Serialize)]
struct View<'a> {
    a: &'a str,
    b: &'a str,
    sentence: String,
    tiles: Vec<Tile>,
    settings: Vec<[&'a str; 3]>,
    rows: Vec<Row<'a>>,
    figures: Vec<Figure>,
    remark: String,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    problems: usize,
    /// In the order of the table's head; each a figure and its interval.
    cells: [[String; 2]; 7],
    gained: usize,
    lost: usize,
}

/// A page that shows a comparison of the two named evaluations, and in which settings they differ.
///
/// # Errors
/// None that a user could cause.
pub fn comparison(comparison: &Comparison, names: &[String; 2], settings: &[(String, [String; 2])]) -> Result<String> {
    let all = &comparison.overall;
    let percents = |both: [f64; 2]| pair(both.map(|share| 100.0 * share));
    let points = |change| bounded(change, &|v| signed(Some(100.0 * v), 1));
    let ratio = |ratio| bounded(ratio, &|v| fixed(v, 3));
    let none = || [NONE.to_string(), String::new()];
    let row = |(name, row): (_, &Difference)| Row {
        name,
        problems: row.problems,
        cells: [
            [percents(row.accuracy), String::new()],
            points(row.accuracy_difference),
            [percents(row.accuracy_lenient), String::new()],
            points(row.accuracy_lenient_difference),
            [pair(row.mean_length), String::new()],
            ratio(row.length_ratio),
            row.efficiency_score.map_or_else(none, |score| bounded(score, &|v| signed(Some(v), 2))),
        ],
        gained: row.gained,
        lost: row.lost,
    };
    let tile = |name, value, [figure, interval]: [String; 2], unit: &str| {
        let interval = if interval.is_empty() { interval } else { format!(", 95% interval {interval}") };
        Tile { name, value, note: format!("{figure}{unit}{interval}") }
    };
    let counted = |count: usize| count.to_string();
    let view = View {
        a: &names[0],
        b: &names[1],
        sentence: sentence(comparison),
        tiles: vec![
            tile("Accuracy (%)", percents(all.accuracy), points(all.accuracy_difference), " points"),
            tile("Mean length (tokens)", pair(all.mean_length), ratio(all.length_ratio), " times as long"),
            tile("Problems gained", counted(all.gained), [counted(all.problems), String::new()], " problems in all"),
            tile("Problems lost", counted(all.lost), [counted(all.problems), String::new()], " problems in all"),
        ],
        settings: settings.iter().map(|(name, [a, b])| [name.as_str(), a.as_str(), b.as_str()]).collect(),
        rows: comparison.rows().map(row).collect(),
        figures: vec![figure(plot(comparison))?],
        remark: comparison.remark(),
    };
    render("compare.html", include_str!("compare.html"), view)
}

fn pair([was, is]: [f64; 2]) -> String {
    arrow(fixed(was, 1), fixed(is, 1))
}

/// A figure and its interval as texts; an interval without width is none.
fn bounded(Estimate { value, interval }: Estimate, text: &dyn Fn(f64) -> String) -> [String; 2] {
    let bounds = interval.filter(|[low, high]| low < high).map(|bounds| bounds.map(text).join(" to "));
    [text(value), bounds.unwrap_or_default()]
}

/// Where each data source was and is.
fn plot(comparison: &Comparison) -> Plot {
    let path = |row: &Difference| [0, 1].map(|k| (row.mean_length[k], 100.0 * row.accuracy[k]));
    let series = |label: &str, ink, mark, points: &[(f64, f64)]| Series {
        label: label.to_string(),
        ink,
        mark,
        points: points.to_vec(),
    };
    let sources = comparison.rows().enumerate().flat_map(|(index, (name, row))| {
        let (ink, points) = (if name == "all" { Ink::Text } else { Ink::of_stage(index) }, path(row));
        [
            series(name, ink, Mark::Line, &points),
            series("", ink, Mark::Start, &points[..1]),
            series("", ink, Mark::End, &points[1..]),
        ]
    });
    Plot {
        title: "Accuracy against length".to_string(),
        note: "By data source; from the hollow circle (the first evaluation) to the filled one (the second)."
            .to_string(),
        x_label: "mean length (tokens)",
        y_label: "accuracy (%)",
        from_zero: false,
        small: false,
        series: sources.collect(),
        stages: Vec::new(),
    }
}

/// Whether the difference of accuracies is told from none.
fn sentence(comparison: &Comparison) -> String {
    let what = match comparison.overall.accuracy_difference.interval {
        Some([low, _]) if low > 0.0 => "b is more accurate: the interval of the difference excludes zero",
        Some([_, high]) if high < 0.0 => "b is less accurate: the interval of the difference excludes zero",
        Some(_) => "the interval of the difference of accuracies includes zero",
        None => "there are too few problems for an interval of the difference of accuracies",
    };
    format!("Over {} problems, {what}.", comparison.overall.problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Evaluation;
    use crate::eval::record::{Record, Sample};

    fn evaluation(texts: &[&str]) -> Evaluation {
        let sample = |(i, text): (usize, &&str)| Sample {
            problem: i.to_string(),
            sample: 0,
            data_source: "<sums>".to_string(),
            prompt: String::new(),
            answer: "5".to_string(),
            completion: text.to_string(),
            finished: true,
            length: text.len(),
            floor: None,
            entropy_sum: None,
        };
        Evaluation::new(texts.iter().enumerate().map(sample).map(Record::new).collect()).unwrap()
    }

    #[test]
    fn the_page_shows_the_table_and_escapes_names() {
        let a = evaluation(&["so \\boxed{5}", "so \\boxed{4}"]);
        let b = evaluation(&["\\boxed{5}", "\\boxed{5}"]);
        let names = ["runs/<a>".to_string(), "runs/b".to_string()];
        let settings = [("rows".to_string(), ["1".to_string(), "2".to_string()])];
        let html = comparison(&Comparison::new(&a, &b).unwrap(), &names, &settings).unwrap();
        for part in [
            "runs&#x2f;&lt;a&gt; → runs&#x2f;b",
            "<td>&lt;sums&gt;</td><td>2</td><td>50.0 → 100.0</td><td>+50.0<small>+0.0 to +100.0</small></td>",
            "<td>12.0 → 9.0</td><td>0.750</td>",
            "0.750 times as long</dd>",
            "<svg",
            "The evaluations differ in rows: 1 and 2.",
            "includes zero",
            "prefers-color-scheme: dark",
        ] {
            assert!(html.contains(part), "the page lacks {part:?}:\n{html}");
        }
    }
}
