//! HTML page of a comparison of two evaluations.

use serde::Serialize;

use super::numbers::{NONE, arrow, fixed, p_value, signed};
use super::outcome::Tile;
use super::plot::{Ink, Mark, Plot, Series};
use super::plots::{RenderedPlot, figure};
use super::render;
use crate::error::Result;
use crate::eval::compare::{Comparison, Difference};
use crate::eval::figures::Estimate;

#[derive(Serialize)]
struct ComparisonPage<'a> {
    a: &'a str,
    b: &'a str,
    sentence: String,
    tiles: Vec<Tile>,
    notices: &'a [String],
    rows: Vec<ComparisonRow<'a>>,
    figures: Vec<RenderedPlot>,
    remark: String,
}

#[derive(Serialize)]
struct ComparisonRow<'a> {
    name: &'a str,
    problems: usize,
    /// Figure and interval of each column, in the order of the table header.
    cells: [[String; 2]; 7],
    gained: usize,
    lost: usize,
}

/// Return an HTML page that compares the two evaluations `names`, with `notices` (sentences) above the figures.
///
/// # Errors
/// Only internal ones: the template or the plot cannot be rendered.
pub fn comparison(comparison: &Comparison, names: &[String; 2], notices: &[String]) -> Result<String> {
    let all = &comparison.overall;
    let percents = |both: [f64; 2]| pair(both.map(|share| 100.0 * share));
    let points = |change| bounded(change, &|v| signed(Some(100.0 * v), 1));
    let ratio = |ratio| bounded(ratio, &|v| fixed(v, 3));
    let none = || [NONE.to_string(), String::new()];
    let row = |(name, row): (_, &Difference)| ComparisonRow {
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
    let view = ComparisonPage {
        a: &names[0],
        b: &names[1],
        sentence: sentence(comparison),
        tiles: vec![
            tile("Accuracy (%)", percents(all.accuracy), points(all.accuracy_difference), " points"),
            tile("Mean length (tokens)", pair(all.mean_length), ratio(all.length_ratio), " times as long"),
            tile("Problems gained", counted(all.gained), [counted(all.problems), String::new()], " problems in all"),
            tile("Problems lost", counted(all.lost), [counted(all.problems), String::new()], " problems in all"),
        ],
        notices,
        rows: comparison.rows().map(row).collect(),
        figures: vec![figure(plot(comparison))?],
        remark: comparison.remark(),
    };
    render("compare.html", include_str!("compare.html"), view)
}

fn pair([was, is]: [f64; 2]) -> String {
    arrow(fixed(was, 1), fixed(is, 1))
}

/// Format a figure and its interval. An interval of zero width becomes an empty text, an infinite bound `∞`.
fn bounded(Estimate { value, interval }: Estimate, text: &dyn Fn(f64) -> String) -> [String; 2] {
    let bounds =
        interval.filter(|[low, high]| low < high).map(|bounds| bounds.map(text).join(" to ").replace("inf", "∞"));
    [text(value), bounds.unwrap_or_default()]
}

/// Plot length and accuracy of each data source in both evaluations.
fn plot(comparison: &Comparison) -> Plot {
    let path = |row: &Difference| [0, 1].map(|k| (row.mean_length[k], 100.0 * row.accuracy[k]));
    let series = |label: &str, ink, mark, points: &[(f64, f64)]| Series {
        label: label.to_string(),
        ink,
        mark,
        points: points.to_vec(),
    };
    let ends: Vec<(f64, f64)> = comparison.rows().map(|(_, row)| path(row)[1]).collect();
    let legible = legible(&ends);
    let sources = comparison.rows().enumerate().flat_map(|(index, (name, row))| {
        // The row of all problems is the last; it is the only black one. The others are numbered: there are only four colours.
        let (ink, mark, legend) = match index == comparison.families.len() {
            true => (Ink::Text, String::new(), name.to_string()),
            false => (Ink::of_stage(index), (index + 1).to_string(), format!("{} {name}", index + 1)),
        };
        let points = path(row);
        [
            series(&legend, ink, Mark::Line, &points),
            series("", ink, Mark::Start, &points[..1]),
            series(if legible[index] { &mark } else { "" }, ink, Mark::End, &points[1..]),
        ]
    });
    Plot {
        title: "Accuracy against length".to_string(),
        note:
            "Hollow circle: first evaluation; filled circle: second evaluation. Numbers as in the legend, shown where \
             there is room."
                .to_string(),
        x_label: "mean length (tokens)",
        y_label: "accuracy (%)",
        from_zero: false,
        small: false,
        series: sources.collect(),
        stages: Vec::new(),
    }
}

/// Return for each point whether a label beside it is clear of the labels of the points before it.
fn legible(points: &[(f64, f64)]) -> Vec<bool> {
    let span = |of: fn(&(f64, f64)) -> f64| {
        let bounds = points.iter().map(of).fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        (bounds.1 - bounds.0).max(f64::MIN_POSITIVE)
    };
    let (width, height) = (span(|point| point.0), span(|point| point.1));
    // Shares of the plot that a label on either side of its point takes.
    let near = |a: &(f64, f64), b: &(f64, f64)| (a.0 - b.0).abs() < 0.15 * width && (a.1 - b.1).abs() < 0.12 * height;
    let mut shown: Vec<bool> = Vec::new();
    for (index, point) in points.iter().enumerate() {
        let clear = points[..index].iter().zip(&shown).all(|(other, &is_shown)| !is_shown || !near(point, other));
        shown.push(clear);
    }
    shown
}

/// Say whether the difference of accuracies is significant: whether its interval excludes zero and, with one completion
/// per problem, the exact sign test agrees.
fn sentence(comparison: &Comparison) -> String {
    let all = &comparison.overall;
    let what = match (all.accuracy_difference.interval.filter(|[low, high]| low < high), all.sign_test) {
        (None, _) => {
            "there is no confidence interval of the accuracy difference, because there are too few problems or all \
             changed equally"
                .to_string()
        }
        (Some([low, high]), _) if low <= 0.0 && high >= 0.0 => {
            "the confidence interval of the accuracy difference includes zero".to_string()
        }
        (Some(_), Some(p)) if p >= 0.05 => format!(
            "there is no significant accuracy difference: its confidence interval excludes zero, but {} by the exact \
             sign test",
            p_value(p)
        ),
        (Some([low, _]), p) => {
            let side = if low > 0.0 { "more" } else { "less" };
            let test = p.map_or_else(String::new, |p| format!(", and {} by the exact sign test", p_value(p)));
            format!("b is {side} accurate: the confidence interval of the difference excludes zero{test}")
        }
    };
    format!("Over {} problems, {what}.", all.problems)
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
        let notices = ["The evaluations differ in the setting rows: 1 and <2>.".to_string()];
        let html = comparison(&Comparison::new(&a, &b).unwrap(), &names, &notices).unwrap();
        for part in [
            "runs&#x2f;&lt;a&gt; → runs&#x2f;b",
            "<td>&lt;sums&gt;</td><td>2</td><td>50.0 → 100.0</td><td>+50.0<small>+0.0 to +100.0</small></td>",
            "<td>12.0 → 9.0</td><td>0.750</td>",
            "0.750 times as long</dd>",
            "<svg",
            "The evaluations differ in the setting rows: 1 and &lt;2&gt;.",
            "includes zero",
            "prefers-color-scheme: dark",
            "</span>1 &lt;sums&gt;</li>",
            "</span>all</li>",
        ] {
            assert!(html.contains(part), "the page lacks {part:?}:\n{html}");
        }
    }

    /// Regression: two gained problems (an interval of zero width), and five of 100 (p = 0.0625), were called a gain.
    #[test]
    fn few_gained_problems_are_no_verdict() {
        let said = |gained: usize, count: usize| {
            let side = |right: usize| {
                let texts = (0..count).map(|i| if i < right { "\\boxed{5}" } else { "\\boxed{4}" });
                evaluation(&texts.collect::<Vec<_>>())
            };
            sentence(&Comparison::new(&side(0), &side(gained)).unwrap())
        };
        assert!(said(2, 2).contains("no confidence interval of the accuracy difference"), "{}", said(2, 2));
        assert!(
            said(5, 100).contains("there is no significant accuracy difference") && said(5, 100).contains("p = 0.06")
        );
        assert!(said(20, 100).contains("b is more accurate") && said(20, 100).contains("p < 0.001"));
    }
}
