//! HTML page of a study, and its figures as JSON and CSV.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::numbers::{NONE, fixed, number, signed};
use super::plot::{Ink, Mark, Plot, Series};
use super::plots::{RenderedPlot, figure};
use super::render;
use crate::error::Result;
use crate::eval::figures::Estimate;
use crate::files;
use crate::study::{ArmFindings, Findings, HeldOutFigures};

#[derive(Serialize)]
struct StudyPage<'a> {
    name: &'a str,
    facts: Vec<String>,
    against: &'a str,
    sources: Vec<&'a String>,
    rows: Vec<ArmRow>,
    settings: Vec<SettingRow>,
    missing: &'a [String],
    figures: Vec<RenderedPlot>,
    curves: Vec<RenderedPlot>,
}

#[derive(Serialize)]
struct ArmRow {
    number: String,
    name: String,
    setting: String,
    /// Figure and interval of each column.
    cells: Vec<[String; 2]>,
    /// Accuracy and length of each data source.
    sources: Vec<[String; 2]>,
    /// Figures read from traces and advantages.
    mechanism: Vec<String>,
}

#[derive(Serialize)]
struct SettingRow {
    arm: String,
    setting: String,
    chosen: bool,
    cells: Vec<String>,
}

/// Write `study.html` (self-contained), `study.json` and `study.csv` into `folder`; return the path of the page.
///
/// # Errors
/// A file cannot be written.
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
        format!("Every run trains on {} sampled tokens.", findings.sampled_tokens),
        format!(
            "For each arm, the setting with the highest accuracy on seeds {:?} is selected, among those with at most \
             {}% of the base model's length (this limit does not apply to arms that do not shorten); it is reported on \
             seeds {:?}.",
            findings.seeds[0],
            fixed(100.0 * findings.length_budget, 0),
            findings.seeds[1]
        ),
        "Intervals are 95% Student's t intervals over seeds and problems, which are wide if few seeds differ much. \
         Those of a single run are over problems only, and are marked."
            .to_string(),
    ];
    let view = StudyPage {
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
    // Use the full key, with the stage, if the same key is set in two stages.
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
    measured: &HeldOutFigures,
    difference: Option<Estimate>,
    sources: &[&String],
) -> ArmRow {
    let bounded = |estimate: Estimate, text: &dyn Fn(f64) -> String| {
        let bounds = estimate.interval.map(|bounds| bounds.map(text).join(" to "));
        [text(estimate.value), bounds.unwrap_or_default()]
    };
    let plain = |text: String| [text, String::new()];
    let mut accuracy = bounded(measured.accuracy, &percent);
    if is_single(measured) {
        accuracy[1] += ", over problems only";
    }
    let share = |share: Option<f64>| share.map_or_else(|| NONE.to_string(), percent);
    let entropy = |at: usize| measured.entropy.map(|entropy| entropy[at]);
    ArmRow {
        number: number_.to_string(),
        name: name.to_string(),
        setting: setting.to_string(),
        cells: vec![
            plain(measured.runs.to_string()),
            accuracy,
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
        let text = |of: &dyn Fn(&HeldOutFigures) -> String| measured.as_ref().map_or_else(|| NONE.to_string(), of);
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

fn point(measured: &HeldOutFigures) -> (f64, f64) {
    (100.0 * measured.length_ratio, 100.0 * measured.accuracy.value)
}

/// Plot accuracy against length of every setting, the Pareto front, and the chosen settings by arm number.
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
        series("a setting, selection seeds", Ink::Faint, Mark::Dots, all.clone()),
    ];
    shown.extend(findings.base.as_ref().map(|base| series("base", Ink::Text, Mark::Start, vec![point(base)])));
    shown.extend(findings.arms.iter().enumerate().filter_map(|(index, arm)| {
        let label = (index + 1).to_string();
        Some(series(&label, Ink::of_stage(index), Mark::End, vec![point(arm.reported.as_ref()?)]))
    }));
    Plot {
        title: "Accuracy against length".to_string(),
        note: "Numbers are the rows of the table: the selected setting of each arm, over the reported seeds.".into(),
        x_label: "mean length (% of the base model's)",
        y_label: "accuracy (%)",
        from_zero: false,
        small: false,
        series: shown,
        stages: Vec::new(),
    }
}

fn by_source(findings: &Findings, source: &str) -> Plot {
    let at =
        |measured: &HeldOutFigures| measured.sources.get(source).map(|[accuracy, length]| (*length, 100.0 * accuracy));
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

/// Plot accuracy and length of the training batches of an arm's reported runs.
fn curves(findings: &Findings, arm: &ArmFindings) -> Plot {
    let base = findings.base.as_ref().map_or(f64::NAN, |base| base.length);
    let series = |label: &str, ink, of: &dyn Fn(&crate::study::CurvePoint) -> f64| {
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

/// Return the table of arms as text.
pub fn study_text(findings: &Findings) -> String {
    let difference = format!("to {}", findings.against);
    let head = ["", "arm", "runs", "accuracy", "95%", &difference, "95%", "length", "% base"];
    let bounds = |estimate: Estimate, text: &dyn Fn(f64) -> String| {
        estimate.interval.map_or_else(String::new, |bounds| bounds.map(text).join(".."))
    };
    let points = |v: f64| signed(Some(100.0 * v), 1);
    let row = |number: String, name: &str, measured: &HeldOutFigures, difference: Option<Estimate>| {
        let mark = if is_single(measured) { "*" } else { "" };
        [
            number,
            name.to_string(),
            measured.runs.to_string(),
            percent(measured.accuracy.value),
            bounds(measured.accuracy, &percent) + mark,
            difference.map_or_else(String::new, |difference| points(difference.value)),
            difference.map_or_else(String::new, |difference| bounds(difference, &points)),
            fixed(measured.length, 1),
            percent(measured.length_ratio),
        ]
    };
    let mut rows = vec![head.map(str::to_string)];
    rows.extend(findings.base.iter().map(|base| row(String::new(), "the base model", base, None)));
    rows.extend(findings.arms.iter().enumerate().filter_map(|(index, arm)| {
        Some(row((index + 1).to_string(), &arm.name, arm.reported.as_ref()?, arm.difference))
    }));
    let mut text = aligned(&rows);
    let reported = findings.arms.iter().filter_map(|arm| arm.reported.as_ref());
    if findings.base.iter().chain(reported).any(is_single) {
        text += "* over problems only: a single run\n";
    }
    for (index, arm) in findings.arms.iter().enumerate().filter(|(_, arm)| arm.reported.is_none()) {
        let whole = arm.settings.iter().all(|(_, measured)| measured.is_some());
        let why = match (whole, arm.chosen) {
            (false, _) => "runs are missing",
            (true, None) => "no setting is within the length budget",
            (true, Some(_)) => "not reported yet",
        };
        text += &format!("{} {}: {why}\n", index + 1, arm.name);
    }
    if !findings.missing.is_empty() {
        text += &format!("{} runs are missing\n", findings.missing.len());
    }
    text
}

/// Return whether the interval of an accuracy is over problems only, since there is a single run.
fn is_single(measured: &HeldOutFigures) -> bool {
    measured.runs == 1 && measured.accuracy.interval.is_some()
}

/// Format rows as lines with columns two spaces apart; the first two columns are left-aligned.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let length = |text: &str| text.chars().count();
    let widths: [usize; N] = std::array::from_fn(|k| rows.iter().map(|row| length(&row[k])).max().unwrap_or(0));
    let cell = |(k, text): (usize, &String)| {
        let room = " ".repeat(widths[k] - length(text));
        if k < 2 { format!("{text}{room}") } else { format!("{room}{text}") }
    };
    let line =
        |row: &[String; N]| row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_string();
    rows.iter().map(|row| line(row) + "\n").collect()
}

/// Return the CSV text: one line for the base model, for each setting and for each reported arm.
fn csv(findings: &Findings) -> String {
    let mut text =
        "arm,setting,seeds,chosen,runs,accuracy,low,high,length,length_ratio,cut,all_right_std\n".to_string();
    let mut line = |arm: &str, setting: &str, seeds: &str, chosen: bool, measured: &HeldOutFigures| {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: columns ran together (`31.7..100.0−14.1`), the head was cut, and nothing said that the interval of a
    /// single run is over problems only.
    #[test]
    fn the_table_has_columns_and_marks_intervals_over_problems_alone() {
        let measured = |runs| HeldOutFigures {
            runs,
            accuracy: Estimate { value: 0.8, interval: Some([0.317, 1.0]) },
            length: 120.0,
            length_ratio: 0.5,
            accuracy_of_runs: [0.8; 2],
            cut: 0.0,
            sources: BTreeMap::new(),
            readings: BTreeMap::new(),
            all_right_std: None,
            entropy: None,
        };
        let arm = |name: &str, runs| ArmFindings {
            name: name.to_string(),
            settings: vec![(BTreeMap::new(), Some(measured(runs)))],
            chosen: Some(0),
            reported: Some(measured(runs)),
            difference: Some(Estimate { value: -0.141, interval: Some([-1.0, 0.9]) }),
            spread: None,
            curves: Vec::new(),
        };
        let mut findings = Findings {
            name: "s".to_string(),
            sampled_tokens: 1,
            length_budget: 0.5,
            seeds: [vec![0], vec![1, 2]],
            against: "two stages, T 1.2".to_string(),
            base: Some(measured(1)),
            arms: vec![arm("an arm with a name of more than 28 letters", 2)],
            missing: Vec::new(),
        };
        let text = study_text(&findings);
        let words = |line: &str| {
            line.split("  ").map(str::trim).filter(|w| !w.is_empty()).map(String::from).collect::<Vec<_>>()
        };
        let lines: Vec<Vec<String>> = text.lines().map(words).collect();
        assert_eq!(lines[0], ["arm", "runs", "accuracy", "95%", "to two stages, T 1.2", "95%", "length", "% base"]);
        assert_eq!(lines[1], ["the base model", "1", "80.0", "31.7..100.0*", "120.0", "50.0"]);
        let arm_line = ["1", "an arm with a name of more than 28 letters", "2", "80.0", "31.7..100.0", "\u{2212}14.1"];
        assert_eq!(lines[2][..6], arm_line);
        assert_eq!(lines[2][6..], ["\u{2212}100.0..+90.0", "120.0", "50.0"]);
        assert!(text.ends_with("* over problems only: a single run\n"), "{text}");
        assert!(page(&findings).unwrap().contains("<small>31.7 to 100.0, over problems only</small>"));
        findings.base = None;
        assert!(!study_text(&findings).contains("over problems only"));
    }
}
