//! The reports: one HTML page that shows what a run did, and one that compares two evaluations.

mod compare;
mod completions;
mod plot;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

pub use compare::comparison;
use completions::Example;
use plot::{Ink, Mark, Plot, Series};

/// Reads the run directory `run` and writes `run/report.html`, a page that needs nothing but itself.
///
/// Works on a run that is still going, and says so on the page.
pub fn write(run: &Path) -> Result<PathBuf> {
    let html = page(run)?;
    let path = run.join("report.html");
    fs::write(&path, html).map_err(Error::io(&path))?;
    Ok(path)
}

/// `summary.json`, written when a run ends.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Summary {
    name: Option<String>,
    seed: Option<u64>,
    model: Option<String>,
    device: Option<String>,
    steps: Option<u64>,
    seconds: Option<f64>,
    base: Evaluation,
    #[serde(rename = "final")]
    last: Evaluation,
    families: BTreeMap<String, Family>,
    stages: Vec<StageEnd>,
    peak_rss_gb: Option<f64>,
    reconstruction: Option<String>,
}

/// One evaluation on held-out problems.
#[derive(Deserialize, Default, Clone, Copy)]
#[serde(default)]
struct Evaluation {
    n: Option<u64>,
    accuracy: Option<f64>,
    accuracy_lenient: Option<f64>,
    mean_length: Option<f64>,
    entropy: Option<f64>,
}

/// A kind of problem; `floor` is the mean length of the shortest reference solutions.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Family {
    floor: Option<f64>,
    base: Evaluation,
    #[serde(rename = "final")]
    last: Evaluation,
}

#[derive(Deserialize)]
struct StageEnd {
    name: String,
    exit: Option<String>,
}

/// `metrics.jsonl` by step; a later line for a step overrides an earlier one (a resumed run).
struct Metrics(BTreeMap<u64, Map<String, Value>>);

#[derive(Deserialize)]
struct MetricsLine {
    step: u64,
    #[serde(flatten)]
    values: Map<String, Value>,
}

/// Steps `first..=last` of one stage.
#[derive(Debug, PartialEq)]
struct Stage {
    name: String,
    first: u64,
    last: u64,
}

impl Metrics {
    fn read(path: &Path) -> Result<Self> {
        let mut steps = BTreeMap::<u64, Map<String, Value>>::new();
        for line in read_lines::<MetricsLine>(path)? {
            steps.entry(line.step).or_default().extend(line.values);
        }
        Ok(Self(steps))
    }

    /// The steps at which `key` has a value, with the value.
    fn points(&self, key: &str) -> Vec<(f64, f64)> {
        self.0.iter().filter_map(|(&step, row)| Some((step as f64, row.get(key)?.as_f64()?))).collect()
    }

    /// The stages in order, from the rows that name one.
    fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::<Stage>::new();
        for (&step, row) in &self.0 {
            let Some(name) = row.get("stage").and_then(Value::as_str) else { continue };
            match stages.last_mut() {
                Some(stage) if stage.name == name => stage.last = step,
                _ => stages.push(Stage { name: name.into(), first: step, last: step }),
            }
        }
        stages
    }

    fn evaluation(row: &Map<String, Value>, prefix: &str) -> Evaluation {
        let value = |key: &str| row.get(&format!("{prefix}{key}")).and_then(Value::as_f64);
        Evaluation {
            n: None,
            accuracy: value("accuracy"),
            accuracy_lenient: value("accuracy_lenient"),
            mean_length: value("mean_length"),
            entropy: value("entropy"),
        }
    }

    /// What a summary would say so far, and the step of the latest evaluation.
    fn so_far(&self) -> (Summary, Option<u64>) {
        let evaluated = |row: &Map<String, Value>| row.get("eval/accuracy").is_some_and(Value::is_number);
        let base = self.0.get(&0).filter(|row| evaluated(row));
        let last = self.0.iter().rev().find(|(step, row)| **step > 0 && evaluated(row));
        let mut summary = Summary::default();
        let mut fill = |row: &Map<String, Value>, pick: fn(&mut Family) -> &mut Evaluation| {
            for key in row.keys() {
                let name = key.strip_prefix("eval/families/").and_then(|k| k.strip_suffix("/accuracy"));
                if let Some(name) = name {
                    let family = summary.families.entry(name.into()).or_default();
                    *pick(family) = Self::evaluation(row, &format!("eval/families/{name}/"));
                }
            }
            Self::evaluation(row, "eval/")
        };
        let base = base.map(|row| fill(row, |f| &mut f.base)).unwrap_or_default();
        let latest = last.map(|(_, row)| fill(row, |f| &mut f.last)).unwrap_or_default();
        (summary.base, summary.last) = (base, latest);
        summary.steps = self.0.keys().next_back().copied();
        let seconds = self.points("timing_s/step");
        summary.seconds = (!seconds.is_empty()).then(|| seconds.iter().map(|p| p.1).sum());
        (summary, last.map(|(&step, _)| step))
    }
}

/// One JSON value per line; blank lines are skipped, a malformed one is named.
fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| serde_json::from_str(line).map_err(|e| malformed(path, i + 1, &e))).collect()
}

fn malformed(path: &Path, line: usize, error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    let at = format!("{}:{line}", path.display());
    Error::file(at, format!("{reason} (column {}); mend or delete this line", error.column()))
}

/// `None` if the file does not exist.
fn optional<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// What the template shows; numbers are already text.
#[derive(Serialize)]
struct View {
    title: String,
    unfinished: Option<String>,
    tiles: Vec<Tile>,
    sentence: String,
    reconstruction: Option<String>,
    after: String,
    families: Vec<FamilyRow>,
    stages: Vec<String>,
    figures: Vec<Figure>,
    examples: Vec<Example>,
    shades: Vec<String>,
    runtime: Vec<(&'static str, String)>,
    config: Option<String>,
}

#[derive(Serialize)]
struct Tile {
    name: &'static str,
    value: String,
    note: String,
}

#[derive(Serialize)]
struct FamilyRow {
    name: String,
    /// Accuracy before, after, change; length before, after, change; floor; ratio to it before, after.
    cells: [String; 9],
}

#[derive(Serialize)]
struct Figure {
    title: &'static str,
    note: String,
    small: bool,
    svg: Option<String>,
    /// CSS class and colour variable of the swatch, and the label.
    legend: Vec<(&'static str, &'static str, String)>,
}

fn page(run: &Path) -> Result<String> {
    let metrics = Metrics::read(&run.join("metrics.jsonl"))?;
    let path = run.join("summary.json");
    let summary = optional(fs::read_to_string(&path).map_err(Error::io(&path)))?
        .map(|text| serde_json::from_str::<Summary>(&text).map_err(|e| Error::file(&path, e)))
        .transpose()?;
    let path = run.join("config.toml");
    let config = optional(fs::read_to_string(&path).map_err(Error::io(&path)))?;
    let before = optional(read_lines(&run.join("completions/eval_base.jsonl")))?.unwrap_or_default();
    let after = optional(read_lines(&run.join("completions/eval_final.jsonl")))?.unwrap_or_default();

    let finished = summary.is_some();
    let (so_far, evaluated) = metrics.so_far();
    let steps = so_far.steps.unwrap_or(0);
    let summary = summary.unwrap_or(so_far);
    let unfinished = (!finished).then(|| {
        let latest = match evaluated {
            Some(step) => format!("\u{201c}after\u{201d} is the latest evaluation, at step {step}"),
            None => "it has not been evaluated after training yet".into(),
        };
        format!("This run is unfinished: {steps} steps so far, no summary.json; {latest}.")
    });
    let stages = metrics.stages();
    let folder = run.file_name().map(|n| n.to_string_lossy().into_owned());
    let view = View {
        title: summary.name.clone().or(folder).unwrap_or_else(|| "run".into()),
        unfinished,
        tiles: tiles(&summary),
        sentence: sentence(&summary.base, &summary.last),
        reconstruction: summary.reconstruction.clone(),
        after: match evaluated {
            Some(step) if !finished => format!("step {step}"),
            _ => "after".into(),
        },
        families: summary.families.iter().map(family_row).collect(),
        stages: stages.iter().enumerate().map(|(i, s)| stage_text(s, summary.stages.get(i))).collect(),
        figures: plots(&metrics, &stages).into_iter().map(figure).collect::<Result<_>>()?,
        examples: completions::choose(before, after),
        shades: completions::shades(),
        runtime: runtime(&summary, &metrics, steps),
        config,
    };
    render("report.html", include_str!("report.html"), view)
}

/// Fills the page `name`, whose template is `source`.
fn render(name: &str, source: &str, view: impl Serialize) -> Result<String> {
    let view = serde_json::to_value(view).map_err(|e| Error::Invalid(format!("report: {e}")))?;
    let mut templates = minijinja::Environment::new();
    // The name ends in .html: everything is escaped unless the template says `safe` (only our own SVG).
    templates
        .add_template("style.css", include_str!("style.css"))
        .and_then(|()| templates.add_template(name, source))
        .and_then(|()| templates.get_template(name)?.render(template_value(view)))
        .map_err(|e| Error::Invalid(format!("report template: {e:#}")))
}

/// For the template engine, which we build without its serde feature.
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

const NONE: &str = "\u{2013}";

fn number(value: Option<f64>, places: usize) -> String {
    value.map_or(NONE.into(), |v| format!("{v:.places$}").replace('-', "\u{2212}"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or(NONE.into(), |v| format!("{:.1}%", 100.0 * v))
}

fn signed(value: Option<f64>, places: usize) -> String {
    value.map_or(NONE.into(), |v| format!("{v:+.places$}").replace('-', "\u{2212}"))
}

fn times(value: Option<f64>) -> String {
    value.map_or(NONE.into(), |v| format!("{v:.2}\u{d7}"))
}

fn arrow(before: String, after: String) -> String {
    format!("{before} \u{2192} {after}")
}

fn difference(before: Option<f64>, after: Option<f64>) -> Option<f64> {
    Some(after? - before?)
}

fn ratio(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    Some(part? / whole.filter(|w| *w > 0.0)?)
}

fn tiles(summary: &Summary) -> Vec<Tile> {
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

/// What the numbers say, and what they do not.
fn sentence(before: &Evaluation, after: &Evaluation) -> String {
    let (Some(p), Some(q)) = (before.accuracy, after.accuracy) else {
        return "There is no evaluation to compare with the base model's yet.".into();
    };
    let points = 100.0 * (q - p);
    let mut text = if points.abs() < 0.05 {
        "Held-out accuracy did not change to within 0.05 points".into()
    } else {
        format!("Held-out accuracy {} by {:.1} points", if points > 0.0 { "rose" } else { "fell" }, points.abs())
    };
    let n = before.n.map(|n| (n, after.n.unwrap_or(n))).filter(|(n, m)| *n > 0 && *m > 0);
    match n {
        Some((n, m)) => {
            let (low, high) = interval(p, n, q, m);
            let zero = if low > 0.0 || high < 0.0 { "excludes" } else { "includes" };
            let bounds = [low, high].map(|v| signed(Some(100.0 * v), 1)).join(" to ");
            let problems = if n == m { n.to_string() } else { format!("{n} and {m}") };
            text += &format!(
                " (95% interval {bounds}, which {zero} zero; {problems} problems, \
                 the two evaluations taken as independent)"
            );
        }
        None => text += " (the number of problems is not recorded, so no interval is given)",
    }
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

/// Newcombe's 95% interval for the change `q - p` of two proportions, from Wilson's for each.
fn interval(p: f64, n: u64, q: f64, m: u64) -> (f64, f64) {
    let wilson = |p: f64, n: u64| {
        let (n, z) = (n as f64, 1.959_964);
        let middle = p + z * z / (2.0 * n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).max(0.0).sqrt();
        ((middle - half) / (1.0 + z * z / n), (middle + half) / (1.0 + z * z / n))
    };
    let ((p_low, p_high), (q_low, q_high)) = (wilson(p, n), wilson(q, m));
    (q - p - (q - q_low).hypot(p_high - p), q - p + (q_high - q).hypot(p - p_low))
}

fn family_row((name, family): (&String, &Family)) -> FamilyRow {
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

fn stage_text(stage: &Stage, end: Option<&StageEnd>) -> String {
    let exit = end.filter(|e| e.name == stage.name).and_then(|e| e.exit.as_deref());
    let exit = exit.map_or(String::new(), |exit| format!(" (exit: {exit})"));
    format!("{}: steps {}\u{2013}{}{exit}", stage.name, stage.first, stage.last)
}

fn plots(metrics: &Metrics, stages: &[Stage]) -> Vec<Plot> {
    let series =
        |label: &str, ink, mark, key: &str| Series { label: label.into(), ink, mark, points: metrics.points(key) };
    let over_steps = |title, y_label, from_zero, series| Plot {
        title,
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
        small("Completions cut at the token limit", "share", "completions/clipped_ratio"),
    ]
}

/// Entropy against length: the path that training takes, one colour per stage.
fn portrait(metrics: &Metrics, stages: &[Stage]) -> Plot {
    let lengths: BTreeMap<u64, f64> =
        metrics.points("completions/mean_length").into_iter().map(|(step, v)| (step as u64, v)).collect();
    let entropies = metrics.points("entropy");
    let whole = [Stage { name: "training".into(), first: 0, last: u64::MAX }];
    let window = entropies.len() / 25 + 1;
    let (mut dots, mut paths) = (Vec::new(), Vec::<Series>::new());
    for (i, stage) in if stages.is_empty() { &whole } else { stages }.iter().enumerate() {
        let inside = entropies.iter().filter(|(step, _)| (stage.first..=stage.last).contains(&(*step as u64)));
        let raw: Vec<_> = inside.filter_map(|(step, e)| Some((*lengths.get(&(*step as u64))?, *e))).collect();
        // The path starts where the last stage's ends.
        let joint = paths.last().and_then(|s| s.points.last().copied());
        let points: Vec<_> = joint.into_iter().chain(smooth(&raw, window)).collect();
        let ink = Ink::of_stage(i);
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
        1 => "The line joins the training steps.".into(),
        _ => format!("Each dot is a training step; the line is their mean over {} steps.", 2 * (window / 2) + 1),
    };
    Plot {
        title: "Length against entropy",
        note,
        x_label: "mean length (tokens)",
        y_label: "nats per token, T = 1",
        from_zero: false,
        small: false,
        series: dots.into_iter().chain(paths).chain(ends).collect(),
        stages: Vec::new(),
    }
}

/// Centred mean over about `window` points, fewer at the ends.
fn smooth(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let half = window / 2;
    let mean = |i: usize| {
        let near = &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
        let (x, y) = near.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
        (x / near.len() as f64, y / near.len() as f64)
    };
    (0..points.len()).map(mean).collect()
}

fn figure(plot: Plot) -> Result<Figure> {
    let svg = plot.svg()?;
    let shown = plot.series.iter().filter(|s| !s.points.is_empty());
    let legend = shown.filter_map(|s| {
        let class = match s.mark {
            Mark::Line => "line",
            Mark::ThinLine => "thin",
            Mark::Dots => "dot",
            Mark::FaintDots | Mark::Start | Mark::End => return None,
        };
        Some((class, s.ink.variable(), s.label.clone()))
    });
    let legend = if plot.small { Vec::new() } else { legend.collect() };
    Ok(Figure { title: plot.title, note: plot.note, small: plot.small, svg, legend })
}

fn runtime(summary: &Summary, metrics: &Metrics, steps: u64) -> Vec<(&'static str, String)> {
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

fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).floor();
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{minutes} min {:.0} s", (s % 60.0).floor()),
        _ => format!("{} h {} min", (minutes / 60.0).floor(), minutes % 60.0),
    }
}

#[cfg(test)]
mod tests;
