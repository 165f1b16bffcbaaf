//! The command `compare`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::paths::keep_apart;
use super::print;
use crate::eval::compare::Comparison;
use crate::eval::saved::Manifest;
use crate::eval::{Evaluation, record};
use crate::{files, report};

/// Compare two evaluations of the same problems.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// First evaluation: a folder of `eval --output`, a run (its final evaluation) or a completions file.
    a: PathBuf,
    /// Second evaluation, of the same kinds.
    b: PathBuf,
    /// Write a page, too.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the figures as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let [a, b] = [record::locate(&args.a)?, record::locate(&args.b)?];
    let manifests = [&args.a, &args.b].map(|path| path.join("eval.json"));
    let outputs = [("--html", args.html.as_ref()), ("--json", args.json.as_ref())];
    keep_apart(&outputs, &[&a, &b, &manifests[0], &manifests[1]])?;
    let read = |path: &Path| Evaluation::new(record::read(path)?);
    let comparison = Comparison::new(&read(&a)?, &read(&b)?)?;
    let mut settings = Vec::new();
    if let (Some(a), Some(b)) = (Manifest::read(&args.a)?, Manifest::read(&args.b)?) {
        settings = a.differences(&b);
        settings.retain(|(name, _)| name != "model_digest");
    }
    if let Some(path) = &args.html {
        let names = [&args.a, &args.b].map(|path| path.display().to_string());
        files::write(path, report::comparison(&comparison, &names, &settings)?.as_bytes())?;
    }
    if let Some(path) = &args.json {
        files::write_json(path, &comparison)?;
    }
    print(comparison.table())?;
    for (name, [a, b]) in &settings {
        print(format_args!("the evaluations differ in {name}: {a} and {b}"))?;
    }
    Ok(())
}
