//! Files on disk: read with errors that name them, written whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Reads a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(Error::io(path))
}

/// Creates a folder and its parents.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io(path))
}

/// Reads and parses a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read(path)?).map_err(|error| Error::file(path, error))
}

/// Writes `value` as indented JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    // Our own types serialise: string keys, no failing implementations.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_else(|error| unreachable!("{error}"));
    text.push('\n');
    write(path, text.as_bytes())
}

/// Writes rows as JSON lines.
pub(crate) fn write_json_lines<T: Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<()> {
    let file = File::create(path).map_err(Error::io(path))?;
    let mut writer = BufWriter::new(file);
    for row in rows {
        let line = serde_json::to_string(&row).unwrap_or_else(|error| unreachable!("{error}"));
        writeln!(writer, "{line}").map_err(Error::io(path))?;
    }
    writer.flush().map_err(Error::io(path))
}

/// Writes a file under a temporary name and renames it: a reader sees the old content or the new, never a part.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    let attempt = || -> std::io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    attempt().map_err(|error| {
        let _ = std::fs::remove_file(&partial);
        Error::Io { path: path.to_path_buf(), source: error }
    })
}

/// Fills a file under a temporary name and renames it: what fails half-way leaves nothing.
pub(crate) fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let partial = path.with_extension("partial");
    let mut out = BufWriter::new(File::create(&partial).map_err(Error::io(path))?);
    let filled = fill(&mut out).and_then(|()| out.flush().map_err(Error::io(path)));
    if let Err(error) = filled {
        let _ = std::fs::remove_file(&partial);
        return Err(error);
    }
    std::fs::rename(&partial, path).map_err(Error::io(path))
}

/// Fills a folder under a temporary name and renames it into place, replacing an older one of that name.
pub(crate) fn write_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let partial = PathBuf::from(format!("{}.partial", path.display()));
    remove_dir(&partial)?;
    create_dir(&partial)?;
    if let Err(error) = fill(&partial) {
        let _ = std::fs::remove_dir_all(&partial);
        return Err(error);
    }
    remove_dir(path)?;
    std::fs::rename(&partial, path).map_err(Error::io(path))
}

/// Removes a folder when it is there.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}
