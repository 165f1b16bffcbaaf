//! HTML reports of a run, a comparison of two evaluations, an analysis and a study.

mod analysis;
mod compare;
mod completions;
mod conflict;
mod findings;
mod method;
mod numbers;
mod outcome;
mod plot;
mod plots;
mod run;
mod study;
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files;

pub use analysis::{analysis, analysis_json, analysis_text};
pub use compare::comparison;
use completions::{ComparedProblem, SavedCompletion};
use method::StageRow;
pub(crate) use numbers::duration;
use outcome::{FamilyRow, Tile, family_row, runtime, sentence, tiles};
use plots::{RenderedPlot, figure, plots};
use run::{MetricsByStep, RunSummary, optional, read_lines};
pub use study::{study, study_text};
pub use terminal::{Screen, screen};

/// Read the run directory `run`, write the self-contained page `run/report.html` and return its path.
///
/// The run may be unfinished; the page says so.
pub fn write(run: &Path) -> Result<PathBuf> {
    let html = page(run)?;
    let path = run.join("report.html");
    files::write(&path, html.as_bytes())?;
    Ok(path)
}

/// Data of the template `report.html`. Numbers are already formatted as text.
#[derive(Serialize)]
struct RunPage {
    title: String,
    unfinished: Option<String>,
    tiles: Vec<Tile>,
    sentence: String,
    note: Option<String>,
    after: String,
    families: Vec<FamilyRow>,
    stages: Vec<StageRow>,
    figures: Vec<RenderedPlot>,
    conflict: conflict::ConflictSection,
    examples: Vec<ComparedProblem>,
    shades: Vec<String>,
    runtime: Vec<(&'static str, String)>,
    config: Option<String>,
}

fn page(run: &Path) -> Result<String> {
    let Some(metrics) = MetricsByStep::of_run(run)? else {
        return Err(Error::file(run, "no metrics yet: the run has not finished its first evaluation"));
    };
    let written = RunSummary::read(run)?;
    let finished = written.as_ref().is_some_and(|summary| summary.is_of(&metrics));
    let path = run.join("config.toml");
    let config = optional(fs::read_to_string(&path).map_err(Error::io(&path)))?;
    let settings: toml::Table =
        toml::from_str(config.as_deref().unwrap_or_default()).map_err(|e| Error::file(&path, e))?;
    // In an unfinished run eval_final.jsonl is incomplete, or that of an earlier end: not of the evaluation shown.
    let rows = |which: &str| -> Result<Vec<SavedCompletion>> {
        let path = run.join(format!("completions/eval_{which}.jsonl"));
        if finished { Ok(optional(read_lines(&path))?.unwrap_or_default()) } else { Ok(Vec::new()) }
    };
    let (before, after) = (rows("base")?, rows("final")?);

    let (so_far, evaluated) = metrics.so_far();
    let steps = so_far.steps.unwrap_or(0);
    let unfinished = (!finished).then(|| {
        let latest = match evaluated {
            Some(step) => format!("\u{201c}after\u{201d} is the latest evaluation, at step {step}"),
            None => "there is no evaluation after training yet".into(),
        };
        let summary = match written.as_ref().and_then(|summary| summary.steps) {
            Some(end) => format!("summary.json is from its earlier end, after step {end}"),
            None => "no summary.json".into(),
        };
        format!("This run is unfinished: {steps} steps so far, {summary}; {latest}.")
    });
    let summary = written.filter(|_| finished).unwrap_or(so_far);
    let stages = metrics.stages();
    let folder = run.file_name().map(|n| n.to_string_lossy().into_owned());
    let view = RunPage {
        title: summary.name.clone().or(folder).unwrap_or_else(|| "run".into()),
        unfinished,
        tiles: tiles(&summary),
        sentence: sentence(&summary.base, &summary.last, completions::change(&before, &after).as_ref()),
        note: summary.note.clone(),
        after: match evaluated {
            Some(step) if !finished => format!("step {step}"),
            _ => "after".into(),
        },
        families: summary.families.iter().map(family_row).collect(),
        stages: method::stages(&settings, &stages, &summary.stages),
        figures: plots(&metrics, &stages).into_iter().map(figure).collect::<Result<_>>()?,
        conflict: conflict::section(run, &metrics, &stages)?,
        examples: completions::choose(before, after),
        shades: completions::shades(),
        runtime: runtime(&summary, &metrics, steps),
        config,
    };
    render("report.html", include_str!("report.html"), view)
}

/// Render the page `name` from the template text `source`.
fn render(name: &str, source: &str, view: impl Serialize) -> Result<String> {
    let view = serde_json::to_value(view).map_err(|e| Error::Invalid(format!("report: {e}")))?;
    let mut templates = minijinja::Environment::new();
    // minijinja escapes everything in templates named *.html, except values marked `safe` (only our own SVG).
    let parts = [
        ("style.css", include_str!("style.css")),
        ("head.html", include_str!("head.html")),
        ("figures.html", include_str!("figures.html")),
        ("conflict.html", include_str!("conflict.html")),
        ("types.html", include_str!("types.html")),
    ];
    (parts.into_iter().chain([(name, source)]))
        .try_for_each(|(name, source)| templates.add_template(name, source))
        .and_then(|()| templates.get_template(name)?.render(template_value(view)))
        .map_err(|e| Error::Invalid(format!("report template: {e:#}")))
}

/// Convert a JSON value for minijinja, which is built without its serde feature.
fn template_value(value: Value) -> minijinja::Value {
    match value {
        Value::Null => ().into(),
        Value::Bool(v) => v.into(),
        Value::Number(v) => v.as_u64().map_or_else(|| v.as_f64().into(), Into::into),
        Value::String(v) => v.into(),
        Value::Array(v) => v.into_iter().map(template_value).collect(),
        Value::Object(v) => minijinja::Value::from_pairs(v.into_iter().map(|(k, v)| (k, template_value(v)))),
    }
}

#[cfg(test)]
mod tests;
