//! The cache of repositories, shared with `huggingface_hub`.
//!
//! ```text
//! models--owner--name/refs/main                  commit of a branch at the last request
//! models--owner--name/blobs/<etag>               file contents; `<etag>.incomplete` during a download
//! models--owner--name/snapshots/<commit>/<path>  links to blobs
//! models--owner--name/.listings/<commit>.json    ours only: all files of a commit, to detect partial downloads
//! .locks/models--owner--name/<etag>.lock         held while a blob is downloaded
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::name::{Name, is_commit};
use crate::error::{Error, Result};
use crate::files;

/// Cache folder of a repository.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    /// Folder of all repositories.
    root: PathBuf,
    /// Name of the repository's folder in `root`.
    folder: String,
}

impl Cache {
    pub(super) fn of(root: &Path, name: &Name) -> Self {
        let folder = format!("{}--{}", name.kind.plural(), name.repository.replace('/', "--"));
        Self { root: root.to_path_buf(), folder }
    }

    fn dir(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    /// Return whether the cache has a folder for the repository.
    pub(super) fn exists(&self) -> bool {
        self.dir().is_dir()
    }

    /// Return the folder with the files of a commit.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.dir().join("snapshots").join(commit)
    }

    /// Return the path of a blob, whether or not it exists.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.dir().join("blobs").join(etag)
    }

    /// Return the stored commit of a branch or tag, as of the last request.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.dir().join("refs").join(revision)).ok()?;
        Some(text.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Store the commit of a branch or tag.
    pub(super) fn keep_ref(&self, revision: &str, commit: &str) {
        if revision != commit && self.commit_of(revision).as_deref() != Some(commit) {
            write_metadata(&self.dir().join("refs").join(revision), commit.as_bytes());
        }
    }

    /// Return the stored list of all files of a commit.
    pub(super) fn listing(&self, commit: &str) -> Option<Vec<String>> {
        files::read_json(&self.listing_path(commit)).ok()
    }

    /// Store the list of all files of a commit.
    pub(super) fn keep_listing(&self, commit: &str, listing: &[String]) {
        if self.listing(commit).as_deref() != Some(listing) {
            write_metadata(&self.listing_path(commit), &serde_json::to_vec(listing).expect("texts are JSON"));
        }
    }

    fn listing_path(&self, commit: &str) -> PathBuf {
        self.dir().join(".listings").join(format!("{commit}.json"))
    }

    /// Return the relative paths of a commit's files in the cache, which may be incomplete.
    pub(super) fn present(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for (_, path) in files::entries(&folder).unwrap_or_default() {
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(inside) = path.strip_prefix(&root).ok().and_then(Path::to_str) {
                    found.push(inside.to_string());
                }
            }
        }
        found.sort();
        found
    }

    /// Link the blob `etag` at the path `file` of a commit.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let place = self.snapshot(commit).join(file);
        let up = "../".repeat(2 + Path::new(file).components().count() - 1);
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if std::fs::read_link(&place).is_ok_and(|there| there == target) {
            return Ok(());
        }
        files::create_dir(place.parent().unwrap_or(&place))?;
        let own = temporary_path(&place);
        let put = || symlink(&target, &self.blob(etag), &own).and_then(|()| std::fs::rename(&own, &place));
        put().inspect_err(|_| drop(std::fs::remove_file(&own))).map_err(Error::io(&place))
    }

    /// Lock a blob for downloading. If another process holds the lock, calls `on_wait` and waits.
    pub(super) fn lock(&self, etag: &str, on_wait: impl FnOnce()) -> Result<File> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        files::create_dir(path.parent().unwrap_or(&path))?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(Error::io(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                on_wait();
                file.lock().map_err(Error::io(&path))?;
            }
            // Some network file systems do not support locks.
            Err(TryLockError::Error(error)) => tracing::warn!(
                "{}: cannot be locked ({error}); make sure that no other process downloads the same file",
                path.display()
            ),
            Ok(()) => {}
        }
        Ok(file)
    }
}

/// Return a temporary path beside `path` that is unique among processes and threads.
fn temporary_path(path: &Path) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{}-{count}-{name}", std::process::id()))
}

/// Write a metadata file of the cache atomically, so that concurrent writers do not conflict. If it cannot be written,
/// for example in a cache owned by another user, logs a warning; the next start requests the data from the Hub again.
fn write_metadata(path: &Path, bytes: &[u8]) {
    let own = temporary_path(path);
    let put = || {
        std::fs::create_dir_all(path.parent().unwrap_or(path))?;
        std::fs::write(&own, bytes)?;
        std::fs::rename(&own, path)
    };
    if let Err(error) = put() {
        let _ = std::fs::remove_file(&own);
        tracing::warn!(
            "{}: cannot be written ({error}); the next start will request this from the Hub again",
            path.display()
        );
    }
}

#[cfg(unix)]
fn symlink(relative: &Path, _blob: &Path, place: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, place)
}

/// Copy the blob, as `huggingface_hub` does where creating links needs special privileges.
#[cfg(not(unix))]
fn symlink(_relative: &Path, blob: &Path, place: &Path) -> std::io::Result<()> {
    std::fs::copy(blob, place).map(drop)
}

/// Return whether a path of a repository stays within the destination folder.
pub(super) fn is_inside(file: &str) -> bool {
    !file.is_empty()
        && !file.contains(|c: char| c == '\\' || c.is_control())
        && Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: two processes that downloaded the same repository used the same temporary file.
    #[test]
    fn the_same_is_kept_by_many_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let name =
            Name { kind: super::super::RepoKind::Model, repository: "o/n".into(), parts: vec![], revision: None };
        let (cache, commit) = (Cache::of(dir.path(), &name), "0".repeat(40));
        let listing: Vec<String> = (0..500).map(|number| format!("file-{number}")).collect();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        cache.keep_ref("main", &commit);
                        cache.keep_listing(&commit, &listing);
                        cache.link(&commit, "config.json", "etag").unwrap();
                        assert_eq!(cache.listing(&commit).as_ref(), Some(&listing));
                    }
                });
            }
        });
        assert_eq!(cache.commit_of("main"), Some(commit.clone()));
        assert_eq!(std::fs::read_dir(cache.snapshot(&commit)).unwrap().count(), 1);
    }

    #[test]
    fn paths_that_lead_out_are_told() {
        for bad in ["", "../x", "/x", "a/../../x", "a\\..\\x", "./x"] {
            assert!(!is_inside(bad), "{bad:?}");
        }
        assert!(is_inside("main/test-0.parquet") && is_inside("config.json"));
    }
}
