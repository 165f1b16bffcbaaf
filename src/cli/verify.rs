//! The command `verify`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value};

use super::STDOUT;
use super::paths::keep_apart;
use crate::error::{Error, Result};
use crate::{files, json, verify as verifier};

/// Grade answers against gold answers and explain the verdicts.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Gold answer, alone or within a solution.
    #[arg(long, requires = "answer", required_unless_present = "file", allow_hyphen_values = true)]
    gold: Option<String>,
    /// Answer to grade, alone or within a completion.
    #[arg(long, requires = "gold", allow_hyphen_values = true)]
    answer: Option<String>,
    /// JSONL file of {"gold": …, "answer": …}; each row is written with the fields strict, lenient and outcome added.
    #[arg(long, conflicts_with_all = ["gold", "answer"])]
    file: Option<PathBuf>,
    /// File to write; standard output when not given.
    #[arg(long, short, requires = "file", conflicts_with_all = ["gold", "answer"])]
    output: Option<PathBuf>,
}

pub(super) fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    if let (Some(gold), Some(answer)) = (&args.gold, &args.answer) {
        super::print(verifier::explain(gold, answer))?;
    }
    let Some(path) = &args.file else { return Ok(()) };
    keep_apart(&[("--output", args.output.as_ref())], &[path])?;
    let rows = graded_rows(path)?;
    match &args.output {
        Some(output) => files::write_json_lines(output, rows)?,
        None => {
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            for row in rows {
                writeln!(out, "{}", serde_json::to_string(&row)?).map_err(Error::io(STDOUT))?;
            }
            out.flush().map_err(Error::io(STDOUT))?;
        }
    }
    Ok(())
}

fn graded_rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = files::read_text(path)?;
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fail = |message: String| Error::file(format!("{}:{}", path.display(), number + 1), message);
        let mut row: Map<String, Value> =
            json::row(line).map_err(|e| fail(format!("expected one JSON object per line: {e}")))?;
        let field = |key: &str| match row.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            Some(other) => Err(fail(format!("{key}: expected a string or a number, got {other}"))),
            None => Err(fail(format!("no field {key}: expected {{\"gold\": …, \"answer\": …}}"))),
        };
        let graded = verifier::check(&field("gold")?, &field("answer")?);
        row.insert("strict".into(), graded.strict.is_right().into());
        row.insert("lenient".into(), graded.lenient.is_right().into());
        row.insert("outcome".into(), graded.strict.name().into());
        rows.push(row);
    }
    Ok(rows)
}
