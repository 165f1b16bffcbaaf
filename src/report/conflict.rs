//! Report section on the entropy conflict: findings per stage, plots and token types.

use std::path::Path;

use serde::Serialize;

use super::findings::{self, CountNoun, MetricsRow};
use super::plot::{Ink, Mark, Plot, Series};
use super::plots::{RenderedPlot, figure};
use super::run::{MetricsByStep, StageSpan, optional};
use crate::conflict::{DECILES, Types};
use crate::error::Result;

/// Data of the template `conflict.html`; empty if no step was measured.
#[derive(Serialize)]
pub(super) struct ConflictSection {
    findings: Vec<Finding>,
    figures: Vec<RenderedPlot>,
    types: Option<Types>,
}

/// Findings of a stage as text.
#[derive(Serialize)]
struct Finding {
    name: String,
    verdict: String,
    sentences: Vec<String>,
}

/// Rows that are evaluated together: the steps of one stage.
struct StageRows<'a> {
    name: &'a str,
    rows: Vec<(u64, &'a MetricsRow)>,
}

impl StageRows<'_> {
    fn rows(&self) -> Vec<&MetricsRow> {
        self.rows.iter().map(|(_, row)| *row).collect()
    }
}

/// Build the section of a run.
pub(super) fn section(run: &Path, metrics: &MetricsByStep, stages: &[StageSpan]) -> Result<ConflictSection> {
    let mut groups: Vec<StageRows> = Vec::new();
    for stage in stages {
        // A stage that occurs again (cycles) counts as the same stage.
        let rows = metrics.0.range(stage.first..=stage.last).map(|(&step, row)| (step, row));
        match groups.iter_mut().find(|group| group.name == stage.name) {
            Some(group) => group.rows.extend(rows),
            None => groups.push(StageRows { name: &stage.name, rows: rows.collect() }),
        }
    }
    let mut section = by_group(&groups, ["step", "steps"])?;
    if !section.findings.is_empty() {
        let over_steps = over_steps(metrics, &groups, stages);
        let figures = over_steps.into_iter().map(figure).collect::<Result<Vec<_>>>()?;
        section.figures.extend(figures);
        section.types = optional(crate::files::read_json(&run.join("token_types.json")))?;
    }
    Ok(section)
}

/// Build the section for rows that are not steps of a run. `unit` is the name of the rows.
pub(super) fn of_blocks(rows: &[&MetricsRow], unit: CountNoun, types: Option<Types>) -> Result<ConflictSection> {
    // Non-consecutive step numbers: blocks do not follow one another, so no change between them is computed.
    let rows = (0..).step_by(2).zip(rows.iter().copied()).collect();
    let section = by_group(&[StageRows { name: "", rows }], unit)?;
    Ok(ConflictSection { types, ..section })
}

/// Build the findings and the decile plots of each group.
fn by_group(groups: &[StageRows], unit: CountNoun) -> Result<ConflictSection> {
    let several = groups.len() > 1;
    let (mut findings, mut figures) = (Vec::new(), Vec::new());
    for group in groups {
        let rows = group.rows();
        let Some(mut sentences) = findings::sentences(&rows, unit) else { continue };
        sentences.extend(findings::prediction(&findings::changes(&group.rows)));
        let verdict = sentences.remove(0);
        findings.push(Finding { name: group.name.to_string(), verdict, sentences });
        let name = if several { format!(", {}", group.name) } else { String::new() };
        for plot in by_decile(&rows, &name) {
            figures.push(figure(plot)?);
        }
    }
    Ok(ConflictSection { findings, figures, types: None })
}

/// Return the plots over deciles of token entropy.
fn by_decile(rows: &[&MetricsRow], name: &str) -> [Plot; 2] {
    let curve = |label: &str, ink, key: &str| {
        let at = |k: usize| Some((k as f64 + 0.5, findings::mean(rows, &format!("deciles/{key}[{k}]"))?.value));
        Series { label: label.into(), ink, mark: Mark::Line, points: (0..DECILES).filter_map(at).collect() }
    };
    let connectors = |label: &str, ink, key: &str| {
        let place = findings::mean(rows, "connectors/decile").zip(findings::mean(rows, &format!("connectors/{key}")));
        let points = place.map(|(x, y)| (x.value, y.value)).into_iter().collect();
        Series { label: label.into(), ink, mark: Mark::Dots, points }
    };
    let plot = |title: &str, y_label, from_zero, note: &str, series| Plot {
        title: format!("{title}{name}"),
        note: note.into(),
        x_label: "deciles of the tokens by entropy",
        y_label,
        from_zero,
        small: false,
        series,
        stages: Vec::new(),
    };
    [
        plot(
            "Gradient by entropy",
            "share of the squared gradient",
            true,
            "Share of each part\u{2019}s squared logit gradient; it would be 0.1 per decile if entropy had no \
             influence.",
            vec![
                curve("accuracy", Ink::Blue, "grad_share_task"),
                curve("length", Ink::Orange, "grad_share_length"),
                Series { mark: Mark::ThinLine, ..curve("both", Ink::Text, "grad_share") },
            ],
        ),
        plot(
            "Advantage by entropy",
            "mean advantage",
            false,
            "The dots are the connectors, at their mean decile.",
            vec![
                curve("accuracy", Ink::Blue, "advantage_task"),
                curve("length", Ink::Orange, "advantage_length"),
                connectors("accuracy, on connectors", Ink::Blue, "advantage_task"),
                connectors("length, on connectors", Ink::Orange, "advantage_length"),
            ],
        ),
    ]
}

/// Return the plots over steps, and the plot of realised against predicted change of entropy.
fn over_steps(metrics: &MetricsByStep, groups: &[StageRows], stages: &[StageSpan]) -> Vec<Plot> {
    let series = |label: &str, ink, mark, key: &str| Series {
        label: label.into(),
        ink,
        mark,
        points: metrics.points(&format!("conflict/{key}")),
    };
    let plot = |title: &str, y_label, from_zero, note: &str, series| Plot {
        title: title.into(),
        note: note.into(),
        x_label: "step",
        y_label,
        from_zero,
        small: false,
        series,
        stages: stages.iter().map(|stage| (stage.first as f64, stage.name.clone())).collect(),
    };
    let scatter = |(index, group): (usize, &StageRows)| Series {
        label: group.name.into(),
        ink: Ink::of_stage(index),
        mark: Mark::Dots,
        points: findings::changes(&group.rows),
    };
    let mut plots = vec![
        plot(
            "Opposition",
            "share of the gradients that cancels",
            true,
            "Per token: 0 if the gradients of the two parts agree, 1 if they cancel.",
            vec![
                series("other tokens", Ink::Blue, Mark::ThinLine, "others/cancellation"),
                series("connectors", Ink::Orange, Mark::Line, "connectors/cancellation"),
            ],
        ),
        plot(
            "Connectors",
            "per 1000 tokens",
            true,
            "",
            vec![series("connectors of the lexicon", Ink::Green, Mark::Line, "connectors/per_1000")],
        ),
        plot(
            "Predicted change of entropy",
            "nats per token and unit step",
            false,
            "Above zero: an update along this part of the gradient raises the entropy of the sampled tokens.",
            vec![
                series("accuracy", Ink::Blue, Mark::Line, "entropy_change_task"),
                series("length", Ink::Orange, Mark::Line, "entropy_change_length"),
            ],
        ),
        plot(
            "Covariance of advantage and log-probability",
            "nats",
            false,
            "Above zero: tokens that are already likely are rewarded, and entropy falls.",
            vec![
                series("accuracy", Ink::Blue, Mark::ThinLine, "covariance/task"),
                series("length", Ink::Orange, Mark::ThinLine, "covariance/length"),
                series("both", Ink::Text, Mark::Line, "covariance/mean"),
            ],
        ),
        Plot {
            x_label: "predicted, nats per token and unit step",
            stages: Vec::new(),
            ..plot(
                "Change of entropy, predicted and realised",
                "to the next step, nats",
                false,
                "The next step samples other problems, which also changes its entropy.",
                groups.iter().enumerate().map(scatter).collect(),
            )
        },
    ];
    plots.retain(|plot| plot.series.iter().any(|series| !series.points.is_empty()));
    plots
}
