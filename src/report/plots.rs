//! Plots of a run.

use std::collections::BTreeMap;

use serde::Serialize;

use super::plot::{Ink, Mark, Plot, Series};
use super::run::{MetricsByStep, StageSpan};
use crate::error::Result;

#[derive(Serialize)]
pub(super) struct RenderedPlot {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) small: bool,
    pub(super) svg: Option<String>,
    /// CSS class and colour variable of the swatch, and label, for each legend entry.
    pub(super) legend: Vec<(&'static str, &'static str, String)>,
}

pub(super) fn plots(metrics: &MetricsByStep, stages: &[StageSpan]) -> Vec<Plot> {
    let series =
        |label: &str, ink, mark, key: &str| Series { label: label.into(), ink, mark, points: metrics.points(key) };
    let over_steps = |title: &str, y_label, from_zero, series| Plot {
        title: title.into(),
        note: String::new(),
        x_label: "step",
        y_label,
        from_zero,
        small: false,
        series,
        stages: stages.iter().map(|s| (s.first as f64, s.name.clone())).collect(),
    };
    let small = |title, y_label, key| {
        let series = vec![series(title, Ink::Blue, Mark::ThinLine, key)];
        Plot { small: true, ..over_steps(title, y_label, true, series) }
    };
    vec![
        over_steps(
            "Accuracy",
            "share correct",
            false,
            vec![
                series("training batches", Ink::Blue, Mark::ThinLine, "rewards/accuracy/mean"),
                series("held out", Ink::Purple, Mark::Dots, "eval/accuracy"),
            ],
        ),
        over_steps(
            "Mean length",
            "tokens",
            true,
            vec![
                series("wrong", Ink::Orange, Mark::ThinLine, "completions/mean_length_wrong"),
                series("correct", Ink::Green, Mark::ThinLine, "completions/mean_length_correct"),
                series("all training", Ink::Blue, Mark::Line, "completions/mean_length"),
                series("held out", Ink::Purple, Mark::Dots, "eval/mean_length"),
            ],
        ),
        over_steps(
            "Entropy",
            "nats per token",
            true,
            vec![
                series("at the sampling temperature", Ink::Orange, Mark::ThinLine, "entropy/sampling"),
                series("at temperature 1", Ink::Blue, Mark::Line, "entropy"),
                series("held out", Ink::Purple, Mark::Dots, "eval/entropy"),
            ],
        ),
        portrait(metrics, stages),
        small("Gradient norm", "norm", "grad_norm"),
        small("Completions truncated at the token limit", "share", "completions/clipped_ratio"),
    ]
}

/// Plot entropy against mean length over training, with one colour per stage.
pub(super) fn portrait(metrics: &MetricsByStep, stages: &[StageSpan]) -> Plot {
    let lengths: BTreeMap<u64, f64> =
        metrics.points("completions/mean_length").into_iter().map(|(step, v)| (step as u64, v)).collect();
    let entropies = metrics.points("entropy");
    let whole = [StageSpan { name: "training".into(), first: 0, last: u64::MAX }];
    let window = entropies.len() / 25 + 1;
    let (mut dots, mut paths) = (Vec::new(), Vec::<Series>::new());
    let mut names = Vec::<&str>::new();
    for stage in if stages.is_empty() { &whole } else { stages } {
        let inside = entropies.iter().filter(|(step, _)| (stage.first..=stage.last).contains(&(*step as u64)));
        let raw: Vec<_> = inside.filter_map(|(step, e)| Some((*lengths.get(&(*step as u64))?, *e))).collect();
        // The path starts at the end of the previous stage's path.
        let joint = paths.last().and_then(|s| s.points.last().copied());
        let points: Vec<_> = joint.into_iter().chain(smooth(&raw, window)).collect();
        // A stage that occurs again (cycles) has the same colour.
        if !names.contains(&stage.name.as_str()) {
            names.push(&stage.name);
        }
        let ink = Ink::of_stage(names.iter().position(|name| *name == stage.name).unwrap_or(0));
        dots.push(Series { label: String::new(), ink, mark: Mark::FaintDots, points: raw });
        paths.push(Series { label: stage.name.clone(), ink, mark: Mark::Line, points });
    }
    let end = |label: &str, mark, point: Option<(f64, f64)>| Series {
        label: label.into(),
        ink: Ink::Text,
        mark,
        points: point.into_iter().collect(),
    };
    let first = paths.iter().find_map(|s| s.points.first().copied());
    let last = paths.iter().rev().find_map(|s| s.points.last().copied());
    let ends = [end("start", Mark::Start, first), end("end", Mark::End, last)];
    let note = match window {
        1 => "The line connects the training steps.".into(),
        _ => format!("Each dot is a training step; the line is their mean over {} steps.", 2 * (window / 2) + 1),
    };
    Plot {
        title: "Length against entropy".into(),
        note,
        x_label: "mean length (tokens)",
        y_label: "nats per token, T = 1",
        from_zero: false,
        small: false,
        series: dots.into_iter().chain(paths).chain(ends).collect(),
        stages: Vec::new(),
    }
}

/// Return the centred moving average over about `window` points, fewer at the ends.
pub(super) fn smooth(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let half = window / 2;
    let mean = |i: usize| {
        let near = &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
        let (x, y) = near.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
        (x / near.len() as f64, y / near.len() as f64)
    };
    (0..points.len()).map(mean).collect()
}

pub(super) fn figure(plot: Plot) -> Result<RenderedPlot> {
    let svg = plot.svg()?;
    let mut legend = Vec::new();
    for series in plot.series.iter().filter(|s| !plot.small && !s.points.is_empty()) {
        let class = match series.mark {
            Mark::Line => "line",
            Mark::ThinLine => "thin",
            Mark::Dots => "dot",
            Mark::FaintDots | Mark::Start | Mark::End => continue,
        };
        let entry = (class, series.ink.variable(), series.label.clone());
        if !legend.contains(&entry) {
            legend.push(entry);
        }
    }
    Ok(RenderedPlot { title: plot.title, note: plot.note, small: plot.small, svg, legend })
}
