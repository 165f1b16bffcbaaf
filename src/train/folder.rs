//! The folder of a run: its name, its lock, and the replacement of an earlier run of that name.

use std::fs::File;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::checkpoint;
use super::origin::Origin;
use crate::error::{Error, Result};
use crate::files;

const LOCK: &str = "run.lock";
/// The log, which shows whether a run has finished a step.
pub(super) const METRICS: &str = "metrics.jsonl";

/// Return the mistake in the name of a run, if there is one: a name must be a single normal path component, so that the
/// run lies within `output_dir`.
pub(super) fn name_mistake(name: &str) -> Option<String> {
    let mut parts = Path::new(name).components();
    let ordinary = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    if ordinary && !name.contains(['/', '\\']) && !name.contains(char::is_control) {
        return None;
    }
    Some(format!(
        "name = {name:?} must be the name of a folder within output_dir: not empty, no \"/\", no line break, not \".\" or \
         \"..\""
    ))
}

/// A folder that is locked by this process. A run that it replaces is kept beside it until [`RunFolder::keep`]; if the
/// value is dropped before, the earlier run is restored.
#[derive(Debug)]
pub(super) struct RunFolder {
    dir: PathBuf,
    _lock: File,
    aside: Option<Aside>,
}

/// An earlier run that was renamed to make room for a new one.
#[derive(Debug)]
struct Aside {
    path: PathBuf,
    _lock: File,
}

/// The content of a folder.
enum FolderContent {
    /// The folder is empty or does not exist.
    Nothing,
    /// A run without a finished step: it ended before or during its first evaluation.
    Unstarted,
    /// A run with a finished step.
    Run,
    /// Files that are not a run.
    Other,
}

impl RunFolder {
    /// Claim the folder `dir` for a new run. `reads` are the files and folders that the run reads, by setting. `note`
    /// receives messages about an earlier run.
    ///
    /// # Errors
    /// If the folder holds a run with a finished step and `overwrite` is not set, holds files that are not a run,
    /// contains files that the run reads, or is in use by another process.
    pub(super) fn claim(
        dir: &Path,
        overwrite: bool,
        reads: &[(&'static str, PathBuf)],
        note: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        put_back(dir, note)?;
        match content(dir)? {
            FolderContent::Other => Err(Error::file(
                dir,
                "contains files but is not a run (it has no run.json), and only runs are replaced: choose another \
                 name, or move the folder away",
            )),
            FolderContent::Run if !overwrite => Err(Error::file(
                dir,
                format!(
                    "already contains a run: continue it with --resume {}, start another with --set name=…, or replace \
                     it with --overwrite",
                    dir.display()
                ),
            )),
            FolderContent::Run => Self::replace(dir, reads),
            FolderContent::Unstarted => {
                let folder = Self { dir: dir.to_path_buf(), _lock: lock(dir)?, aside: None };
                note(&format!("{}: the earlier run ended before its first step; starting again", dir.display()));
                Ok(folder)
            }
            FolderContent::Nothing => {
                files::create_dir(dir)?;
                Ok(Self { dir: dir.to_path_buf(), _lock: lock(dir)?, aside: None })
            }
        }
    }

    /// Rename the run in `dir` and claim the folder for a new run.
    fn replace(dir: &Path, reads: &[(&'static str, PathBuf)]) -> Result<Self> {
        let whole = dir.canonicalize().map_err(Error::io(dir))?;
        for (key, path) in reads {
            if path.canonicalize().is_ok_and(|path| path.starts_with(&whole)) {
                let message = format!(
                    "{key} = {path:?} is inside this folder: --overwrite would remove files that the run reads; move \
                     them or choose another name"
                );
                return Err(Error::file(dir, message));
            }
        }
        let old = lock(dir)?;
        let id = Origin::read(dir)?.id;
        let path = aside_path(dir, &id);
        files::rename(dir, &path)?;
        let aside = Some(Aside { path, _lock: old });
        // Not a `Folder` yet: if it fails, the earlier run is renamed back below.
        let claim = || {
            files::create_dir(dir)?;
            lock(dir)
        };
        match claim() {
            Ok(lock) => Ok(Self { dir: dir.to_path_buf(), _lock: lock, aside }),
            Err(error) => {
                let _ = std::fs::remove_dir_all(dir);
                aside.iter().try_for_each(|aside| files::rename(&aside.path, dir))?;
                Err(error)
            }
        }
    }

    /// Claim the folder of a run to resume it.
    ///
    /// # Errors
    /// If it holds no run or is in use by another process.
    pub(super) fn reopen(dir: &Path, note: &mut dyn FnMut(&str)) -> Result<Self> {
        if !Origin::marks(dir) {
            put_back(dir, note)?;
        }
        if !Origin::marks(dir) {
            let message = if dir.join(METRICS).is_file() {
                "has no run.json: the run was started by an older version and cannot be resumed; start a new run"
            } else {
                "is not the folder of a run, so there is nothing to resume; start without --resume"
            };
            return Err(Error::file(dir, message));
        }
        let lock_of_new = lock(dir)?;
        let aside = match Origin::read(dir)?.replaces {
            Some(name) if beside(dir, &name).is_dir() => {
                let path = beside(dir, &name);
                Some(Aside { _lock: lock(&path)?, path })
            }
            _ => None,
        };
        let mut folder = Self { dir: dir.to_path_buf(), _lock: lock_of_new, aside };
        if has_step(dir)? {
            folder.keep()?;
        }
        Ok(folder)
    }

    /// Return the path of the folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Return the folder name of the run that this one replaces.
    pub(super) fn replaces(&self) -> Option<PathBuf> {
        self.aside.as_ref().and_then(|aside| aside.path.file_name()).map(PathBuf::from)
    }

    /// Remove the run that this one replaces, since the new run has finished a step. Return whether there was one.
    pub(super) fn keep(&mut self) -> Result<bool> {
        match self.aside.take() {
            Some(aside) => files::remove_dir(&aside.path).map(|()| true),
            None => Ok(false),
        }
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let Some(aside) = &self.aside else { return };
        let back = files::remove_dir(&self.dir).and_then(|()| files::rename(&aside.path, &self.dir));
        match back {
            Ok(()) => tracing::warn!(
                "{}: the new run ended before its first step; the earlier run was restored",
                self.dir.display()
            ),
            Err(error) => {
                tracing::warn!("the earlier run is in {} and could not be restored: {error}", aside.path.display())
            }
        }
    }
}

/// Return the path that a run is renamed to while another run takes its name.
fn aside_path(dir: &Path, id: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    beside(dir, Path::new(&format!("{name}.old-{:.8}", id)))
}

fn beside(dir: &Path, name: &Path) -> PathBuf {
    // Only the last component of the recorded name is used, so that it cannot lead out of the folder of runs.
    dir.parent().unwrap_or(Path::new("")).join(name.file_name().unwrap_or_default())
}

/// Restore or remove an earlier run that a killed process left renamed.
fn put_back(dir: &Path, note: &mut dyn FnMut(&str)) -> Result<()> {
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    let prefix = format!("{}.old-", dir.file_name().unwrap_or_default().to_string_lossy());
    let found = if parent.is_dir() { files::entries(parent)? } else { Vec::new() };
    for (name, path) in found.into_iter().filter(|(name, _)| name.starts_with(&prefix)) {
        if name.ends_with(files::REMOVED) {
            std::fs::remove_dir_all(&path).map_err(Error::io(&path))?;
            continue;
        }
        if !Origin::marks(&path) || aside_path(dir, &Origin::read(&path)?.id).file_name() != path.file_name() {
            continue;
        }
        // A process that is replacing the run right now holds both locks.
        let _locks = (lock(&path)?, Origin::marks(dir).then(|| lock(dir)).transpose()?);
        if has_step(dir)? {
            files::remove_dir(&path)?;
        } else if Origin::marks(dir) || matches!(content(dir)?, FolderContent::Nothing) {
            files::remove_dir(dir)?;
            files::rename(&path, dir)?;
            let message = "the run that replaced it was killed before its first step; the earlier run was restored";
            note(&format!("{}: {message}", dir.display()));
        }
    }
    Ok(())
}

fn content(dir: &Path) -> Result<FolderContent> {
    if !dir.exists() {
        return Ok(FolderContent::Nothing);
    }
    Ok(if !Origin::marks(dir) {
        // These files are left by a process that was killed just after it created the folder.
        let begun = [LOCK, "run.json.partial"];
        if files::entries(dir)?.iter().all(|(name, _)| begun.contains(&name.as_str())) {
            FolderContent::Nothing
        } else {
            FolderContent::Other
        }
    } else if has_step(dir)? {
        FolderContent::Run
    } else {
        FolderContent::Unstarted
    })
}

/// Return whether a run has finished a step: the log has its line, or a checkpoint exists.
fn has_step(dir: &Path) -> Result<bool> {
    if !Origin::marks(dir) {
        return Ok(false);
    }
    let log = std::fs::read_to_string(dir.join(METRICS)).unwrap_or_default();
    let step = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64();
    Ok(log.lines().any(|line| step(line).is_some_and(|step| step > 0)) || checkpoint::exists(dir)?)
}

/// Lock the folder of a run.
fn lock(dir: &Path) -> Result<File> {
    files::lock(dir, LOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of the bad names once wrote or deleted files outside of a folder of its own within `runs`.
    #[test]
    fn a_name_is_one_ordinary_part_of_a_path() {
        for bad in ["", ".", "..", "/", "a/b", "a/", "./a", "../x", "/tmp/x", "a\\b", "a\0b", "a\nb", "a\u{1b}[2J"] {
            assert!(name_mistake(bad).is_some(), "{bad:?}");
        }
        for good in ["a", "a.b", "...", "mit Leerzeichen", "ü", ".hidden", "2024"] {
            assert_eq!(name_mistake(good), None, "{good:?}");
        }
    }
}
