//! Rows of a data file of any supported kind.

use std::path::Path;

use serde_json::{Map, Value};

use super::shapes::{RowFault, kind};
use crate::error::{Error, Result};
use crate::{files, json};

type JsonRow = Map<String, Value>;

/// Parse every row of a file with `read`; the extension selects the kind of file.
pub(super) fn rows<T>(
    path: &Path,
    mut read: impl FnMut(&str, JsonRow) -> std::result::Result<T, RowFault>,
) -> Result<Vec<T>> {
    if path.is_dir() {
        return Err(Error::file(
            path,
            "is a folder; give a file in it, or owner/name of a data set on the Hugging Face Hub",
        ));
    }
    let mut found = Vec::new();
    let mut take = |place: String, row: Value| -> Result<()> {
        let row = match row {
            Value::Object(row) => row,
            other => return Err(Error::file(place, format!("expected one JSON object per row, got {}", kind(&other)))),
        };
        let list = found.is_empty().then(|| rows_within(&row)).flatten();
        let advice =
            list.map(|name| format!("; the rows are in the field {name}: write that list to a .json file of its own"));
        found.push(read(&place, row).map_err(|fault| Error::file(&place, fault + &advice.unwrap_or_default()))?);
        Ok(())
    };
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    match ending.as_str() {
        // A file named like a benchmark has no extension: it is read as JSON.
        "" if super::benchmarks::is_name(path) => lines(path, true, &mut take)?,
        "jsonl" | "json" => lines(path, ending == "json", &mut take)?,
        "parquet" => super::parquet::rows(path, &mut take)?,
        "gz" | "zst" | "bz2" | "xz" | "zip" => {
            return Err(Error::file(
                path,
                "is a compressed file: decompress it; supported formats are .jsonl, .json, .parquet",
            ));
        }
        _ => {
            let message = format!(
                "unknown data format (file extension {ending:?}); supported formats are .jsonl, .json, .parquet; a \
                 data set on the Hugging Face Hub is named owner/name:config:split, and the built-in benchmark names \
                 are {}",
                super::benchmarks::names()
            );
            return Err(Error::file(path, message));
        }
    }
    if found.is_empty() {
        return Err(Error::file(path, "the file has no rows; expected at least one JSON object"));
    }
    Ok(found)
}

/// Return the field of a row that holds all rows of a file, as in `{"data": [{…}, …]}`.
fn rows_within(row: &JsonRow) -> Option<&'static str> {
    let names = ["data", "rows", "train", "test", "validation", "examples"];
    let is_rows = |list: &Vec<Value>| list.first().is_some_and(Value::is_object);
    names.into_iter().find(|name| row.get(*name).and_then(Value::as_array).is_some_and(is_rows))
}

/// Return the kind of a file that is not JSON, by its first bytes, and advice.
fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 5] = [
        (&[0x1f, 0x8b], "this is gzip: decompress it"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "this is Zstandard: decompress it"),
        (b"PK\x03\x04", "this is a zip archive: unpack it"),
        (b"PAR1", "this is Parquet: rename it to .parquet"),
        (b"version https://git-lfs", "this is a pointer of Git LFS: fetch the file itself with git lfs pull"),
    ];
    kinds.into_iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, what)| what)
}

/// Read one object per line or, if `may_be_list`, one list of objects.
fn lines(path: &Path, may_be_list: bool, take: &mut dyn FnMut(String, Value) -> Result<()>) -> Result<()> {
    let bytes = files::read(path)?;
    if let Some(what) = other_kind(&bytes) {
        return Err(Error::file(path, what));
    }
    let text = files::text(path, &bytes)?;
    let is_list = text.trim_start().starts_with('[');
    if is_list && may_be_list {
        let rows: Vec<Value> = json::row(text).map_err(|e| Error::file(path, e))?;
        return (1..).zip(rows).try_for_each(|(number, row)| take(format!("{} row {number}", path.display()), row));
    }
    if is_list && json::row::<Vec<JsonRow>>(text).is_ok() {
        return Err(Error::file(
            path,
            "the file is one JSON list of rows, but .jsonl has one object per line: rename it to .json",
        ));
    }
    // One object over several lines.
    if may_be_list && let Ok(row @ Value::Object(_)) = json::row(text) {
        return take(format!("{} row 1", path.display()), row);
    }
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("{}:{number}", path.display());
        let row =
            json::row(line).map_err(|e| Error::file(&place, format!("expected one JSON object per line: {e}")))?;
        take(place, row)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, text: &str) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        rows(&path, |_, row| {
            let text = row.get("a").and_then(Value::as_str).map(str::to_string);
            text.ok_or_else(|| "a = 1: expected a text".to_string())
        })
    }

    #[test]
    fn lines_and_lists_give_the_same_rows() {
        let lines = "\u{feff}{\"a\": \"x\"}\n\n{\"a\": \"y\"}\n";
        for (name, text) in [("d.jsonl", lines), ("d.json", lines), ("d.JSON", "[{\"a\": \"x\"},\n {\"a\": \"y\"}]")] {
            assert_eq!(load(name, text).unwrap(), ["x", "y"], "{name}");
        }
    }

    #[test]
    fn mistakes_are_named_by_file_and_place() {
        let table = [
            ("d.jsonl", "{\"a\": \"x\"}\n\n[1]", "d.jsonl:3: expected one JSON object per row, got a list"),
            ("d.jsonl", "{\"a\": \"x\"}\n{", "d.jsonl:2: expected one JSON object per line: EOF"),
            ("d.jsonl", "{\"a\": \"x\"}\n{\"a\": 1}", "d.jsonl:2: a = 1: expected a text"),
            ("d.json", "[{\"a\": \"x\"}, {\"a\": 1}]", "d.json row 2: a = 1: expected a text"),
            ("d.json", "[{\"a\": \"x\"}", "d.json: EOF while parsing a list"),
            ("d.jsonl", "\n", "d.jsonl: the file has no rows"),
            ("d.parquet", "PAR1 and no more", "d.parquet: incomplete or damaged Parquet file"),
            (
                "d.csv",
                "a\nx",
                "d.csv: unknown data format (file extension \"csv\"); supported formats are .jsonl, .json, .parquet",
            ),
            (
                "d.jsonl",
                "[{\"a\": \"x\"}]",
                "d.jsonl: the file is one JSON list of rows, but .jsonl has one object per line: rename",
            ),
            (
                "d.json",
                "{\"data\":\n[{\"a\": \"x\"}]}",
                "expected a text; the rows are in the field data: write that list to",
            ),
            ("d.jsonl.gz", "x", "d.jsonl.gz: is a compressed file: decompress it"),
            ("d.jsonl", "PAR1", "d.jsonl: this is Parquet: rename it to .parquet"),
            ("d.jsonl", "version https://git-lfs.github.com/spec/v1\noid", "d.jsonl: this is a pointer of Git LFS"),
        ];
        for (name, text, want) in table {
            let error = load(name, text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        assert_eq!(other_kind(&[0x1f, 0x8b, 8, 0]), Some("this is gzip: decompress it"));
        let folder = tempfile::tempdir().unwrap();
        let folder = rows(folder.path(), |_, _| Ok(())).unwrap_err().to_string();
        assert!(folder.contains(": is a folder; give a file in it, or owner/name"), "{folder}");
        let missing = rows(Path::new("no/rows.jsonl"), |_, _| Ok(())).unwrap_err().to_string();
        assert!(missing.starts_with("no/rows.jsonl: "), "{missing}");
    }
}
