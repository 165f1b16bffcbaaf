//! Outcome of a run: tiles, a sentence with a confidence interval, and table rows of task families.

use serde::Serialize;

use super::completions::Change;
use super::numbers::{NONE, arrow, difference, duration, number, p_value, percent, ratio, signed, times};
use super::run::{EvaluationFigures, FamilyFigures, MetricsByStep, RunSummary};

#[derive(Serialize)]
pub(super) struct Tile {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) note: String,
}

#[derive(Serialize)]
pub(super) struct FamilyRow {
    pub(super) name: String,
    /// Accuracy before, after, change; length before, after, change; floor; length over floor before, after.
    pub(super) cells: [String; 9],
}

pub(super) fn tiles(summary: &RunSummary) -> Vec<Tile> {
    let (b, a) = (&summary.base, &summary.last);
    let points = difference(b.accuracy, a.accuracy).map(|d| 100.0 * d);
    let lenient = arrow(percent(b.accuracy_lenient), percent(a.accuracy_lenient));
    let tile = |name, value, note: &str| Tile { name, value, note: note.into() };
    vec![
        tile(
            "Held-out accuracy",
            arrow(percent(b.accuracy), percent(a.accuracy)),
            &format!("{} points; lenient {lenient}", signed(points, 1)),
        ),
        tile("Mean length", arrow(number(b.mean_length, 1), number(a.mean_length, 1)), "tokens per completion"),
        tile("Length ratio", number(ratio(a.mean_length, b.mean_length), 2), "mean length after \u{f7} before"),
        tile("Held-out entropy", arrow(number(b.entropy, 3), number(a.entropy, 3)), "nats per token, T = 1"),
    ]
}

/// Describe the change of accuracy and length. `change` is the change of accuracy paired by problem. The interval is
/// said to exclude zero only if the sign test, where there is one, agrees.
pub(super) fn sentence(before: &EvaluationFigures, after: &EvaluationFigures, change: Option<&Change>) -> String {
    let (Some(p), Some(q)) = (before.accuracy, after.accuracy) else {
        return "There is no evaluation yet to compare with that of the base model.".into();
    };
    let points = 100.0 * (q - p);
    let mut text = if points.abs() < 0.05 {
        "Held-out accuracy changed by less than 0.05 points".into()
    } else {
        format!("Held-out accuracy {} by {:.1} points", if points > 0.0 { "rose" } else { "fell" }, points.abs())
    };
    text += &match change {
        Some(Change { problems, interval: Some([low, high]), p }) => {
            let zero = match (*low > 0.0 || *high < 0.0, p) {
                (true, Some(p)) if *p >= 0.05 => {
                    format!("but {} by the exact sign test: this may be chance", p_value(*p))
                }
                (true, Some(p)) => format!("which excludes zero; {} by the exact sign test", p_value(*p)),
                (true, None) => "which excludes zero".into(),
                (false, _) => "which includes zero".into(),
            };
            let bounds = [low, high].map(|v| signed(Some(100.0 * v), 1)).join(" to ");
            format!(" (95% interval {bounds}, {zero}; {problems} problems, paired)")
        }
        Some(Change { problems: 1, .. }) => " (only 1 problem, so no interval)".to_string(),
        Some(Change { problems, .. }) => format!(" (unchanged on each of {problems} problems, so no interval)"),
        None => " (no completions that both evaluations share, so no interval)".to_string(),
    };
    if let (Some(b), Some(a)) = (before.mean_length, after.mean_length) {
        let change = match ratio(Some(a), Some(b)) {
            Some(r) if r < 0.9995 => format!("fell by {:.1}%", 100.0 * (1.0 - r)),
            Some(r) if r > 1.0005 => format!("rose by {:.1}%", 100.0 * (r - 1.0)),
            _ => "did not change".into(),
        };
        text += &format!("; mean length {change}, from {b:.1} to {a:.1} tokens");
    }
    text + "."
}

pub(super) fn family_row((name, family): (&String, &FamilyFigures)) -> FamilyRow {
    let (b, a) = (&family.base, &family.last);
    let points = difference(b.accuracy, a.accuracy).map(|d| 100.0 * d);
    let shorter = ratio(a.mean_length, b.mean_length).map(|r| 100.0 * (r - 1.0));
    let cells = [
        percent(b.accuracy),
        percent(a.accuracy),
        signed(points, 1),
        number(b.mean_length, 1),
        number(a.mean_length, 1),
        shorter.map_or(NONE.into(), |_| signed(shorter, 0) + "%"),
        number(family.floor, 1),
        times(ratio(b.mean_length, family.floor)),
        times(ratio(a.mean_length, family.floor)),
    ];
    FamilyRow { name: name.clone(), cells }
}

pub(super) fn runtime(summary: &RunSummary, metrics: &MetricsByStep, steps: u64) -> Vec<(&'static str, String)> {
    let total = |key| metrics.points(key).iter().map(|p| p.1).sum::<f64>();
    let share = ratio(Some(total("timing_s/gen")), Some(total("timing_s/step")));
    let rows = [
        ("Model", summary.model.clone()),
        ("Device", summary.device.clone()),
        ("Seed", summary.seed.map(|s| s.to_string())),
        ("Steps", Some(summary.steps.unwrap_or(steps).to_string())),
        ("Time", summary.seconds.map(duration)),
        ("Share of step time spent generating", share.filter(|s| *s > 0.0).map(|s| percent(Some(s)))),
        ("Peak memory", summary.peak_rss_gb.map(|gb| format!("{gb:.2} GB"))),
    ];
    rows.into_iter().map(|(name, value)| (name, value.unwrap_or_else(|| "not recorded".into()))).collect()
}
