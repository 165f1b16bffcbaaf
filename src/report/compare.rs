//! The page of a comparison.

use serde::Serialize;

use super::numbers::{NONE, arrow};
use super::outcome::Tile;
use super::render;
use crate::error::Result;
use crate::eval::compare::{Comparison, Difference};
use crate::eval::figures::Estimate;
use crate::eval::table::estimate;

#[derive(Serialize)]
struct View<'a> {
    a: &'a str,
    b: &'a str,
    sentence: String,
    tiles: Vec<Tile>,
    settings: Vec<[&'a str; 3]>,
    rows: Vec<Row<'a>>,
    remark: String,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    /// In the order of the table's head.
    cells: [String; 10],
}

/// A page that shows a comparison of the two named evaluations, and in which settings they differ.
///
/// # Errors
/// None that a user could cause.
pub fn comparison(comparison: &Comparison, names: &[String; 2], settings: &[(String, [String; 2])]) -> Result<String> {
    let all = &comparison.overall;
    let percents = |[was, is]: [f64; 2]| arrow(format!("{:.1}", 100.0 * was), format!("{:.1}", 100.0 * is));
    let minus = |text: String| text.replace('-', "\u{2212}");
    let points = |points| minus(estimate(Some(points), 100.0, 1, true));
    let lengths = |[was, is]: [f64; 2]| arrow(format!("{was:.1}"), format!("{is:.1}"));
    let ratio = |ratio| estimate(Some(ratio), 1.0, 3, false);
    let score = |score: Option<Estimate>| match score {
        Some(_) => minus(estimate(score, 1.0, 2, true)),
        None => NONE.to_string(),
    };
    let tile = |name, value, note| Tile { name, value, note };
    let row = |(name, row): (_, &Difference)| Row {
        name,
        cells: [
            row.problems.to_string(),
            percents(row.accuracy),
            points(row.accuracy_difference),
            percents(row.accuracy_lenient),
            points(row.accuracy_lenient_difference),
            lengths(row.mean_length),
            ratio(row.length_ratio),
            score(row.efficiency_score),
            row.gained.to_string(),
            row.lost.to_string(),
        ],
    };
    let view = View {
        a: &names[0],
        b: &names[1],
        sentence: sentence(comparison),
        tiles: vec![
            tile("Accuracy (%)", percents(all.accuracy), format!("{} points", points(all.accuracy_difference))),
            tile("Mean length", lengths(all.mean_length), "tokens per completion".to_string()),
            tile("Length ratio", format!("{:.3}", all.length_ratio.value), ratio(all.length_ratio)),
            tile(
                "Gained and lost",
                format!("{} and {}", all.gained, all.lost),
                format!("of {} problems", all.problems),
            ),
        ],
        settings: settings.iter().map(|(name, [a, b])| [name.as_str(), a.as_str(), b.as_str()]).collect(),
        rows: comparison.rows().map(row).collect(),
        remark: comparison.remark(),
    };
    render("compare.html", include_str!("compare.html"), view)
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
            "<td>&lt;sums&gt;</td><td>2</td><td>50.0 → 100.0</td><td>+50.0 (+0.0..+100.0)</td>",
            "<td>12.0 → 9.0</td><td>0.750 (0.750..0.750)</td>",
            "The evaluations differ in rows: 1 and 2.",
            "includes zero",
            "prefers-color-scheme: dark",
        ] {
            assert!(html.contains(part), "the page lacks {part:?}:\n{html}");
        }
    }
}
