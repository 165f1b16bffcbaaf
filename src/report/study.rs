//! The page of a study, and its figures as JSON and as a table of comma-separated values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::numbers::{NONE, fixed, number, signed};
use super::plot::{Ink, Mark, Plot, Series};
use super::plots::{Figure, figure};
use super::render;
use crate::error::Result;
use crate::eval::figures::Estimate;
use crate::files;
use crate::study::{ArmFindings, Findings, Measured};

#[derive(Serialize)]
struct View<'a> {
    name: &'a str,
    facts: Vec<String>,
    against: &'a str,
    sources: Vec<&'a String>,
    rows: Vec<Row>,
    settings: Vec<SettingRow>,
    missing: &'a [String],
    figures: Vec<Figure>,
    curves: Vec<Figure>,
}

#[derive(Serialize)]
struct Row {
    number: String,
    name: String,
    setting: String,
    /// Each a figure and its interval.
    cells: Vec<[String; 2]>,
    /// Accuracy and length of each data source.
    sources: Vec<[String; 2]>,
    /// What traces and advantages show.
    mechanism: Vec<String>,
}

#[derive(Serialize)]
struct SettingRow {
    arm: String,
    setting: String,
    chosen: bool,
    cells: Vec<String>,
}

/// Writes `study.html`, a page that needs nothing but itself, `study.json` and `study.csv` into `folder`; gives the page.
///
/// # Errors
/// When they cannot be written.
pub fn study(findings: &Findings, folder: &Path) -> Result<PathBuf> {
    files::write_json(&folder.join("study.json"), findings)?;
    files::write(&folder.join("study.csv"), csv(findings).as_bytes())?;
    let path = folder.join("study.html");
    files::write(&path, page(findings)?.as_bytes())?;
    Ok(path)
}

fn page(findings: &Findings) -> Result<String> {
    let sources: Vec<&String> = findings.base.iter().flat_map(|base| base.sources.keys()).collect();
    let base = findings.base.as_ref().map(|base| row("", "the base model", "", base, None, &sources));
    let arms = findings.arms.iter().enumerate().filter_map(|(index, arm)| {
        let setting = described(&arm.settings[arm.chosen?].0);
        let reported = arm.reported.as_ref()?;
        Some(row(&(index + 1).to_string(), &arm.name, &setting, reported, arm.difference, &sources))
    });
    let facts = vec![
        format!("{} tokens sampled to learn from in every run.", findings.sampled_tokens),
        format!(
            "Of each arm's settings the one is taken that is most accurate on seeds {:?} at no more than {}% of the base's \
             length (but for arms that do not shorten); it is reported on seeds {:?}.",
            findings.seeds[0],
            fixed(100.0 * findings.length_budget, 0),
            findings.seeds[1]
        ),
        "Intervals are 95% intervals by Student's t over seeds and problems: wide where few seeds differ much."
            .to_string(),
    ];
    let view = View {
        name: &findings.name,
        facts,
        against: &findings.against,
        rows: base.into_iter().chain(arms).collect(),
        settings: findings.arms.iter().flat_map(setting_rows).collect(),
        missing: &findings.missing,
        figures: std::iter::once(front(findings))
            .chain(sources.iter().map(|source| by_source(findings, source)))
            .map(figure)
            .collect::<Result<_>>()?,
        curves: findings.arms.iter().map(|arm| figure(curves(findings, arm))).collect::<Result<_>>()?,
        sources,
    };
    render("study.html", include_str!("study.html"), view)
}

fn described(setting: &BTreeMap<String, String>) -> String {
    if setting.is_empty() {
        return "as in the file".to_string();
    }
    let short = |key: &str| key.rsplit('.').next().unwrap_or(key).to_string();
    // The stage is told where the same key is set in two.
    let ambiguous = |key: &str| setting.keys().filter(|other| short(other) == short(key)).count() > 1;
    let named = |key: &String| if ambiguous(key) { key.clone() } else { short(key) };
    setting.iter().map(|(key, value)| format!("{} {value}", named(key))).collect::<Vec<_>>().join(", ")
}

fn percent(share: f64) -> String {
    fixed(100.0 * share, 1)
}

fn row(
    number_: &str,
    name: &str,
    setting: &str,
    measured: &Measured,
    difference: Option<Estimate>,
    sources: &[&String],
) -> Row {
    let bounded = |estimate: Estimate, text: &dyn Fn(f64) -> String| {
        let bounds = estimate.interval.map(|bounds| bounds.map(text).join(" to "));
        [text(estimate.value), bounds.unwrap_or_default()]
    };
    let plain = |text: String| [text, String::new()];
    let share = |share: Option<f64>| share.map_or_else(|| NONE.to_string(), percent);
    let entropy = |at: usize| measured.entropy.map(|entropy| entropy[at]);
    Row {
        number: number_.to_string(),
        name: name.to_string(),
        setting: setting.to_string(),
        cells: vec![
            plain(measured.runs.to_string()),
            bounded(measured.accuracy, &percent),
            plain(measured.accuracy_of_runs.map(percent).join(" to ")),
            difference.map_or_else(
                || plain(NONE.to_string()),
                |difference| bounded(difference, &|v| signed(Some(100.0 * v), 1)),
            ),
            plain(fixed(measured.length, 1)),
            plain(percent(measured.length_ratio)),
            plain(percent(measured.cut)),
        ],
        sources: sources
            .iter()
            .map(|source| match measured.sources.get(*source) {
                Some([accuracy, length]) => [percent(*accuracy), fixed(*length, 0)],
                None => [NONE.to_string(), String::new()],
            })
            .collect(),
        mechanism: vec![
            number(measured.all_right_std, 2),
            share(measured.checked("guarded-1")),
            share(measured.checked("guarded-2")),
            share(measured.checked("guarded-3")),
            number(measured.decision_entropy("guarded"), 3),
            number(measured.door_entropy(), 3),
            number(entropy(0), 3),
            number(entropy(1), 3),
        ],
    }
}

fn setting_rows(arm: &ArmFindings) -> impl Iterator<Item = SettingRow> {
    arm.settings.iter().enumerate().map(|(index, (setting, measured))| {
        let text = |of: &dyn Fn(&Measured) -> String| measured.as_ref().map_or_else(|| NONE.to_string(), of);
        SettingRow {
            arm: arm.name.clone(),
            setting: described(setting),
            chosen: arm.chosen == Some(index),
            cells: vec![
                text(&|m| percent(m.accuracy.value)),
                text(&|m| percent(m.length_ratio)),
                text(&|m| number(m.all_right_std, 2)),
                text(&|m| m.checked("guarded-1").map_or_else(|| NONE.to_string(), percent)),
                text(&|m| m.checked("guarded-3").map_or_else(|| NONE.to_string(), percent)),
            ],
        }
    })
}

fn point(measured: &Measured) -> (f64, f64) {
    (100.0 * measured.length_ratio, 100.0 * measured.accuracy.value)
}

/// Every setting as a point, the front of those that no other beats in both, and the chosen ones by number.
fn front(findings: &Findings) -> Plot {
    let mut all: Vec<(f64, f64)> =
        findings.arms.iter().flat_map(|arm| &arm.settings).filter_map(|(_, m)| m.as_ref().map(point)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut best = f64::NEG_INFINITY;
    let front = all.iter().copied().filter(|(_, accuracy)| {
        let better = *accuracy > best;
        best = best.max(*accuracy);
        better
    });
    let series = |label: &str, ink, mark, points| Series { label: label.to_string(), ink, mark, points };
    let mut shown = vec![
        series("not beaten in both", Ink::Green, Mark::Line, front.collect()),
        series("a setting, seeds to choose by", Ink::Blue, Mark::Dots, all.clone()),
    ];
    shown.extend(findings.base.as_ref().map(|base| series("base", Ink::Text, Mark::Start, vec![point(base)])));
    shown.extend(findings.arms.iter().enumerate().filter_map(|(index, arm)| {
        let label = (index + 1).to_string();
        Some(series(&label, Ink::of_stage(index), Mark::End, vec![point(arm.reported.as_ref()?)]))
    }));
    Plot {
        title: "Accuracy against length".to_string(),
        note: "Numbers are the rows of the table: the chosen setting of an arm, over the seeds that are reported."
            .into(),
        x_label: "mean length (% of the base's)",
        y_label: "accuracy (%)",
        from_zero: false,
        small: false,
        series: shown,
        stages: Vec::new(),
    }
}

fn by_source(findings: &Findings, source: &str) -> Plot {
    let at = |measured: &Measured| measured.sources.get(source).map(|[accuracy, length]| (*length, 100.0 * accuracy));
    let mut series: Vec<Series> = (findings.base.iter().filter_map(at))
        .map(|point| Series { label: "base".into(), ink: Ink::Text, mark: Mark::Start, points: vec![point] })
        .collect();
    series.extend(findings.arms.iter().enumerate().filter_map(|(index, arm)| {
        let point = at(arm.reported.as_ref()?)?;
        let label = (index + 1).to_string();
        Some(Series { label, ink: Ink::of_stage(index), mark: Mark::End, points: vec![point] })
    }));
    Plot {
        title: source.to_string(),
        note: String::new(),
        x_label: "mean length (tokens)",
        y_label: "accuracy (%)",
        from_zero: false,
        small: true,
        series,
        stages: Vec::new(),
    }
}

/// Accuracy and length of the training batches of an arm's reported runs.
fn curves(findings: &Findings, arm: &ArmFindings) -> Plot {
    let base = findings.base.as_ref().map_or(f64::NAN, |base| base.length);
    let series = |label: &str, ink, of: &dyn Fn(&crate::study::Moment) -> f64| {
        arm.curves
            .iter()
            .map(|curve| Series {
                label: label.to_string(),
                ink,
                mark: Mark::ThinLine,
                points: curve.iter().map(|moment| (moment.tokens / 1000.0, of(moment))).collect(),
            })
            .collect::<Vec<_>>()
    };
    Plot {
        title: arm.name.clone(),
        note: String::new(),
        x_label: "thousand tokens sampled",
        y_label: "share",
        from_zero: true,
        small: true,
        series: series("accuracy", Ink::Blue, &|moment| moment.accuracy)
            .into_iter()
            .chain(series("length", Ink::Orange, &|moment| moment.length / base))
            .collect(),
        stages: Vec::new(),
    }
}

/// The table as text.
pub fn study_text(findings: &Findings) -> String {
    let mut text = format!(
        "{:<3}{:<28}{:>6}{:>10}{:>16}{:>18}{:>10}{:>9}\n",
        "",
        "arm",
        "runs",
        "accuracy",
        "95%",
        format!("to {}", short(&findings.against, 12)),
        "length",
        "% base"
    );
    let mut line = |number: String, name: &str, measured: &Measured, difference: Option<Estimate>| {
        let bounds = |estimate: Estimate, text: &dyn Fn(f64) -> String| {
            estimate.interval.map_or_else(String::new, |bounds| bounds.map(text).join(".."))
        };
        let change = difference.map_or_else(String::new, |difference| {
            let points = |v: f64| signed(Some(100.0 * v), 1);
            format!("{} {}", points(difference.value), bounds(difference, &points))
        });
        text += &format!(
            "{number:<3}{:<28}{:>6}{:>10}{:>16}{change:>18}{:>10}{:>9}\n",
            short(name, 27),
            measured.runs,
            percent(measured.accuracy.value),
            bounds(measured.accuracy, &percent),
            fixed(measured.length, 1),
            percent(measured.length_ratio)
        );
    };
    if let Some(base) = &findings.base {
        line(String::new(), "the base model", base, None);
    }
    for (index, arm) in findings.arms.iter().enumerate() {
        if let Some(measured) = &arm.reported {
            line((index + 1).to_string(), &arm.name, measured, arm.difference);
        }
    }
    for (index, arm) in findings.arms.iter().enumerate().filter(|(_, arm)| arm.reported.is_none()) {
        let whole = arm.settings.iter().all(|(_, measured)| measured.is_some());
        let why = match (whole, arm.chosen) {
            (false, _) => "runs are missing",
            (true, None) => "no setting is within the length budget",
            (true, Some(_)) => "not reported yet",
        };
        text += &format!("{:<3}{:<28}{why}\n", index + 1, short(&arm.name, 27));
    }
    if !findings.missing.is_empty() {
        text += &format!("{} runs are missing\n", findings.missing.len());
    }
    text
}

fn short(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// Every setting and every report, a line each.
fn csv(findings: &Findings) -> String {
    let mut text =
        "arm,setting,seeds,chosen,runs,accuracy,low,high,length,length_ratio,cut,all_right_std\n".to_string();
    let mut line = |arm: &str, setting: &str, seeds: &str, chosen: bool, measured: &Measured| {
        let [low, high] = measured.accuracy.interval.unwrap_or([f64::NAN; 2]);
        let spread = measured.all_right_std.map_or_else(String::new, |spread| spread.to_string());
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        text += &format!(
            "{},{},{seeds},{chosen},{},{},{low},{high},{},{},{},{spread}\n",
            quoted(arm),
            quoted(setting),
            measured.runs,
            measured.accuracy.value,
            measured.length,
            measured.length_ratio,
            measured.cut
        );
    };
    if let Some(base) = &findings.base {
        line("base", "", "", false, base);
    }
    for arm in &findings.arms {
        for (index, (setting, measured)) in arm.settings.iter().enumerate() {
            if let Some(measured) = measured {
                line(&arm.name, &described(setting), "choose", arm.chosen == Some(index), measured);
            }
        }
        if let (Some(chosen), Some(measured)) = (arm.chosen, &arm.reported) {
            line(&arm.name, &described(&arm.settings[chosen].0), "report", true, measured);
        }
    }
    text
}
