//! The command `compare`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};

use super::paths::keep_apart;
use super::print;
use crate::eval::compare::Comparison;
use crate::eval::saved::SettingDifference;
use crate::eval::source::{CompletionsSource, SavedEvaluation, differing};
use crate::{files, report};

/// Compare two evaluations of the same problems.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// First evaluation: a folder written by `eval --output`, a run (its final evaluation) or a completions file.
    a: PathBuf,
    /// Second evaluation, in any of these forms.
    b: PathBuf,
    /// Also write an HTML page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Also write the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let sources = [CompletionsSource::locate(&args.a)?, CompletionsSource::locate(&args.b)?];
    let inputs: Vec<&Path> = sources.iter().flat_map(CompletionsSource::files).collect();
    keep_apart(&[("--html", args.html.as_ref()), ("--json", args.json.as_ref())], &inputs)?;
    let [a, b] = sources.map(CompletionsSource::read);
    let (a, b) = (a?, b?);
    let comparison = Comparison::new(&a.evaluation, &b.evaluation)?;
    let names = [&args.a, &args.b].map(|path| path.display().to_string());
    let settings = a.settings.as_ref().zip(b.settings.as_ref()).map(|(a, b)| differing(a, b));
    let notices = notices(&names, [&a, &b], settings.as_deref());
    if let Some(path) = &args.html {
        files::write(path, report::comparison(&comparison, &names, &notices)?.as_bytes())?;
    }
    if let Some(path) = &args.json {
        let mut figures = json!(comparison);
        figures["settings"] = settings.map(|settings| settings.into_iter().map(as_json).collect::<Map<_, _>>()).into();
        figures["unfinished"] = json!([a.unfinished.is_some(), b.unfinished.is_some()]);
        files::write_json(path, &figures)?;
    }
    print(comparison.table())?;
    notices.iter().try_for_each(print)
}

/// Return a setting that differs as a JSON value: its two values, null where one is not known.
fn as_json((name, values): SettingDifference) -> (String, Value) {
    let value = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
    (name, values.map(|text| text.map(value)).to_vec().into())
}

/// Return what a reader must know beside the figures: evaluations that are not whole, and settings.
fn notices(names: &[String; 2], saved: [&SavedEvaluation; 2], settings: Option<&[SettingDifference]>) -> Vec<String> {
    let each = || names.iter().zip(saved);
    let unfinished = each().filter_map(|(name, saved)| Some(format!("{name} {}.", saved.unfinished.as_ref()?)));
    let unknown = each().filter(|(_, saved)| saved.settings.is_none());
    let unknown = unknown.map(|(name, _)| format!("The settings of {name} are unknown."));
    let differ = settings.unwrap_or_default().iter().map(|(name, values)| {
        let [a, b] = values.each_ref().map(|value| value.as_deref().unwrap_or("unknown"));
        format!("The evaluations differ in the setting {name}: {a} and {b}.")
    });
    unfinished.chain(unknown).chain(differ).collect()
}
