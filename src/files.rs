//! Files on disk: errors of reads name the file; writes are atomic, and durable when the call returns.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Suffix of a file or folder that is being written.
const PARTIAL: &str = ".partial";
/// Suffix of a folder that was replaced, or is being removed.
pub(crate) const REMOVED: &str = ".removed";

/// Read a whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(Error::io(path))
}

/// Read a text file, without the byte-order mark that some editors add.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let bytes = read(path)?;
    Ok(text(path, &bytes)?.to_string())
}

/// Return the content of `path` as text, without a byte-order mark.
pub(crate) fn text<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str> {
    const MARK: char = '\u{feff}';
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::file(path, "the text is UTF-16; save it as UTF-8"));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        Error::file(format!("{}:{line}", path.display()), "the text is not UTF-8; save it as UTF-8")
    })?;
    Ok(text.strip_prefix(MARK).unwrap_or(text))
}

/// Create a folder and its parents.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io(path))
}

/// Read and parse a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &read(path)?)
}

/// Parse the content of `path` as JSON.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_str(text(path, bytes)?).map_err(|error| Error::file(path, error))
}

/// Write `value` as indented JSON.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    // The project's types always serialise: string keys, no failing implementations.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_else(|error| unreachable!("{error}"));
    text.push('\n');
    write(path, text.as_bytes())
}

/// Write rows as JSON lines.
pub(crate) fn write_json_lines<T: Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) -> Result<()> {
    write_with(path, |out| {
        for row in rows {
            let line = serde_json::to_string(&row).unwrap_or_else(|error| unreachable!("{error}"));
            writeln!(out, "{line}").map_err(Error::io(path))?;
        }
        Ok(())
    })
}

/// Write a file under a temporary name and rename it: a reader sees the old content or the new, never a part.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |out| out.write_all(bytes).map_err(Error::io(path)))
}

/// Fill a file under a temporary name and rename it: a failure leaves nothing behind.
pub(crate) fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    // A pipe or a device such as /dev/stdout cannot be replaced by a rename.
    if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        let mut out = BufWriter::new(File::create(path).map_err(Error::io(path))?);
        return fill(&mut out).and_then(|()| out.flush().map_err(Error::io(path)));
    }
    let partial = with_ending(path, PARTIAL);
    let write = || {
        let mut out = BufWriter::new(File::create(&partial).map_err(Error::io(path))?);
        fill(&mut out)?;
        let file = out.into_inner().map_err(|error| Error::io(path)(error.into_error()))?;
        file.sync_all().map_err(Error::io(path))?;
        rename(&partial, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&partial)))
}

/// Fill a folder under a temporary name and rename it into place, replacing an older one of that name.
///
/// The old folder or the new one exists at every moment, under its name or as `<name>.removed`: [`recover`] restores an
/// old one that was not replaced.
pub(crate) fn write_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (partial, removed) = (with_ending(path, PARTIAL), with_ending(path, REMOVED));
    remove_tree(&partial)?;
    create_dir(&partial)?;
    if let Err(error) = fill(&partial).and_then(|()| sync_dir_content(&partial)) {
        let _ = std::fs::remove_dir_all(&partial);
        return Err(error);
    }
    if path.exists() {
        remove_tree(&removed)?;
        rename(path, &removed)?;
    }
    rename(&partial, path)?;
    remove_tree(&removed)
}

/// Remove a folder if it exists. Its name disappears atomically, before its files.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let removed = with_ending(path, REMOVED);
    remove_tree(&removed)?;
    rename(path, &removed)?;
    remove_tree(&removed)
}

/// Clean up the folder `dir` after a process that was killed in [`write_dir`] or [`remove_dir`]; return the names of
/// what it removed.
pub(crate) fn recover(dir: &Path) -> Result<Vec<String>> {
    let mut cleared = Vec::new();
    for (name, path) in entries(dir)? {
        let base = if let Some(base) = name.strip_suffix(PARTIAL) {
            Some((base, false))
        } else {
            name.strip_suffix(REMOVED).map(|base| (base, true))
        };
        match base {
            // A checkpoint that is being removed is not needed; an export is, until the next one exists.
            Some((base, true)) if !dir.join(base).exists() && !base.starts_with("checkpoint-") => {
                rename(&path, &dir.join(base))?;
            }
            Some(_) if path.is_dir() => {
                remove_tree(&path)?;
                cleared.push(name);
            }
            Some(_) => {
                std::fs::remove_file(&path).map_err(Error::io(&path))?;
                cleared.push(name);
            }
            None => {}
        }
    }
    Ok(cleared)
}

/// Return names and paths of a folder's entries, sorted by name.
pub(crate) fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let entry = entry.map_err(Error::io(dir))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Rename, and sync the new name to disk.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(Error::io(to))?;
    sync_dir(to.parent().unwrap_or(Path::new("")))
}

/// Sync the names in a folder to disk; only possible on Unix.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io(dir))?;
    }
    Ok(())
}

/// Sync the files of a folder and their names to disk.
fn sync_dir_content(dir: &Path) -> Result<()> {
    for (_, path) in entries(dir)? {
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))?;
    }
    sync_dir(dir)
}

/// Remove a folder, or a link to one, if it exists.
fn remove_tree(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(ending);
    name.into()
}

/// Return the SHA-256 of a file in hexadecimal, as `sha256sum` prints it.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut Hashing(&mut hash)).map_err(Error::io(path))?;
    Ok(hex(hash))
}

/// Return the SHA-256 of bytes in hexadecimal.
pub(crate) fn sha256_of(bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytes);
    hex(hash)
}

/// Return a hash of a file's size and content that takes a fraction of a second for any size. Files up to 16 MiB are
/// hashed whole; of larger ones the size, the first and last MiB, and 64 KiB at each of 64 places between them.
///
/// For weights: different models differ in their headers or in nearly every tensor, so a sample distinguishes them.
/// Reading a large model a second time would double the time a run takes to start.
pub(crate) fn sampled_sha256(path: &Path) -> Result<String> {
    const WHOLE: u64 = 16 << 20;
    const END: u64 = 1 << 20;
    const PLACES: u64 = 64;
    let mut file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    if size <= WHOLE {
        return sha256(path);
    }
    let mut hash = Sha256::new();
    hash.update(size.to_le_bytes());
    let between = (1..=PLACES).map(|place| (place * (size / (PLACES + 1)), 64 << 10));
    let mut take = |start: u64, length: u64| -> std::io::Result<()> {
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(start))?;
        std::io::copy(&mut (&mut file).take(length), &mut Hashing(&mut hash)).map(drop)
    };
    for (start, length) in [(0, END), (size - END, END)].into_iter().chain(between) {
        take(start, length).map_err(Error::io(path))?;
    }
    Ok(hex(hash))
}

/// A writer that updates a hash.
struct Hashing<'a>(&'a mut Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Return the complete lines of a JSON Lines file: all but a last line that ends within its JSON value, which a killed
/// process leaves.
pub(crate) fn complete_lines(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let last = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes[end..]);
    if last.is_err_and(|error| error.is_eof()) { &bytes[..end] } else { bytes }
}

/// Return the reason of a JSON error without the position in the text.
pub(crate) fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_string()
}

/// Lock a folder by its file `name`. The operating system releases the lock when the process ends, however it ends.
///
/// # Errors
/// When another process holds it, and errors of the operating system.
pub(crate) fn lock(dir: &Path, name: &str) -> Result<File> {
    let path = dir.join(name);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.map_err(Error::io(&path))?;
    // `tempering watch` locks it for an instant to see whether a process works on the run.
    let attempt = (0..3).find_map(|_| match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            std::thread::sleep(Duration::from_millis(50));
            None
        }
        outcome => Some(outcome),
    });
    match attempt.unwrap_or_else(|| file.try_lock()) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = (&file).read_to_string(&mut owner);
            let message = format!("is in use by process {}: wait until it ends, or stop it", owner.trim());
            return Err(Error::file(dir, message));
        }
        // Some network file systems do not support locks.
        Err(TryLockError::Error(error)) => {
            tracing::warn!(
                "{}: cannot be locked ({error}); make sure that no other process uses the folder",
                path.display()
            );
        }
    }
    let mark = file.set_len(0).and_then(|()| writeln!(&file, "{}", std::process::id()));
    mark.map_err(Error::io(&path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For a moment neither the old folder nor the new one existed, and a kill then lost both.
    #[test]
    fn a_folder_replaced_half_way_is_put_back_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let fill = |text: &'static str| move |dir: &Path| std::fs::write(dir.join("x"), text).map_err(Error::io(dir));
        write_dir(&at("final"), fill("old")).unwrap();
        write_dir(&at("final"), |_| Err(Error::Invalid("full".into()))).unwrap_err();
        assert_eq!(std::fs::read(at("final/x")).unwrap(), b"old");
        // Killed between the two renames, while removing a checkpoint, and while writing two things.
        std::fs::rename(at("final"), at("final.removed")).unwrap();
        for name in ["checkpoint-3.removed", "checkpoint-4.partial"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("summary.json.partial"), "{").unwrap();
        let cleared = recover(dir.path()).unwrap();
        assert_eq!(cleared, ["checkpoint-3.removed", "checkpoint-4.partial", "summary.json.partial"]);
        assert_eq!(entries(dir.path()).unwrap().len(), 1);
        assert_eq!(std::fs::read(at("final/x")).unwrap(), b"old");
        write_dir(&at("final"), fill("new")).unwrap();
        assert_eq!(std::fs::read(at("final/x")).unwrap(), b"new");
        assert_eq!(entries(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn texts_lose_their_mark_and_other_encodings_are_named() {
        let path = Path::new("x.jsonl");
        assert_eq!(text(path, "\u{feff}é".as_bytes()).unwrap(), "é");
        let fault = |bytes: &[u8]| text(path, bytes).unwrap_err().to_string();
        assert_eq!(fault(b"a\n\xe9\n"), "x.jsonl:2: the text is not UTF-8; save it as UTF-8");
        assert_eq!(fault(b"\xff\xfe{\0"), "x.jsonl: the text is UTF-16; save it as UTF-8");
    }

    #[test]
    fn the_sampled_hash_sees_ends_size_and_the_places_between() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut bytes = vec![7u8; 20 << 20];
        let mut hash = |change: &dyn Fn(&mut Vec<u8>)| {
            change(&mut bytes);
            std::fs::write(&path, &bytes).unwrap();
            sampled_sha256(&path).unwrap()
        };
        let first = hash(&|_| ());
        let changed = [
            hash(&|bytes| bytes[3] ^= 1),
            hash(&|bytes| *bytes.last_mut().unwrap() ^= 1),
            hash(&|bytes| {
                let middle = bytes.len() / 65;
                bytes[20 * middle + 9] ^= 1;
            }),
            hash(&|bytes| bytes.push(7)),
        ];
        assert!(changed.iter().all(|other| *other != first));
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(&sampled_sha256(&path).unwrap()[..16], "ba7816bf8f01cfea");
    }
}
