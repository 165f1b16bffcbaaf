//! Download of a file into the cache: resumed if interrupted, and verified before use.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::cache::Cache;
use super::client::{FileMetadata, HubClient, HubFailure};
use super::name::Name;
use super::progress::{DownloadProgress, say};
use crate::error::{Error, Result};
use crate::files;

/// Maximum number of attempts without progress. The wait doubles after each.
pub(super) const TRIES: u32 = 4;
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Retry `ask` until it succeeds, fails permanently or has failed [`TRIES`] times.
pub(super) fn retry<T>(name: &Name, mut ask: impl FnMut() -> std::result::Result<T, HubFailure>) -> Result<T> {
    let mut tried = 0;
    loop {
        match ask() {
            Ok(found) => return Ok(found),
            Err(HubFailure::Permanent(why)) => return Err(Error::Invalid(format!("{name}: {why}"))),
            Err(HubFailure::Transient(why)) => {
                tried += 1;
                if tried == TRIES {
                    return Err(Error::Engine(why));
                }
                std::thread::sleep(FIRST_WAIT * 2u32.pow(tried - 1));
            }
        }
    }
}

/// Download `file` of a commit into the cache, unless it is there.
///
/// # Errors
/// The Hub rejects the request, the connection is lost, size or hash of the content differ from the Hub's metadata, or
/// the file cannot be written.
pub(super) fn fetch(client: &HubClient, cache: &Cache, name: &Name, commit: &str, file: &str) -> Result<()> {
    let broken = |error| match error {
        Error::Engine(why) => Error::Invalid(format!(
            "{name}: {file} could not be downloaded: {why}. The partial file is kept: run the same command again to \
             continue the download"
        )),
        other => other,
    };
    let head = retry(name, || client.head(name, commit, file)).map_err(broken)?;
    let blob = cache.blob(&head.etag);
    files::create_dir(blob.parent().unwrap_or(&blob))?;
    let what = format!("{}/{file}", name.repository);
    let _lock = cache.lock(&head.etag, || say(&format!("{what}: waiting for another process that downloads it")))?;
    if !blob.is_file() {
        let mut part = PartialFile::open(incomplete(&blob), &head)?;
        {
            let mut progress = DownloadProgress::new(&what, head.size, part.size);
            let mut link = Some(head.clone());
            while part.size < head.size {
                let had = part.size;
                let went_on = retry(name, || {
                    // Storage links expire: request a new one after a failure.
                    let head = link.take().map_or_else(|| client.head(name, commit, file), Ok)?;
                    match part.go_on(client, name, &head, &mut progress) {
                        Err(HubFailure::Transient(_)) if part.size > had => Ok(()),
                        other => other,
                    }
                });
                went_on.map_err(broken)?;
            }
        }
        part.finish(name, file, &head, &blob)?;
    }
    cache.link(commit, file, &head.etag)
}

fn incomplete(blob: &Path) -> PathBuf {
    let mut name = blob.as_os_str().to_os_string();
    name.push(".incomplete");
    name.into()
}

/// Hash that an ETag states, of the content so far.
#[derive(Clone)]
enum Hash {
    /// Of large files.
    Sha256(Sha256),
    /// Of other files: git's id of a blob, SHA-1 of `blob <size>\0` and the content; some mirrors state that of the content.
    Sha1 { git: Sha1, plain: Sha1 },
    /// The ETag is no known hash, so the content is not verified.
    Unknown,
}

impl Hash {
    fn new(head: &FileMetadata) -> Self {
        match head.etag.len() {
            _ if !head.etag.bytes().all(|byte| byte.is_ascii_hexdigit()) => Self::Unknown,
            64 => Self::Sha256(Sha256::new()),
            40 => Self::Sha1 { git: Sha1::new_with_prefix(format!("blob {}\0", head.size)), plain: Sha1::new() },
            _ => Self::Unknown,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha1 { git, plain } => [git, plain].into_iter().for_each(|hash| hash.update(bytes)),
            Self::Unknown => {}
        }
    }

    /// Return the name of the hash and its value in hexadecimal, unless `etag` states it.
    fn differs(self, etag: &str) -> Option<(&'static str, String)> {
        let etag = etag.to_ascii_lowercase();
        let (name, value) = match self {
            Self::Sha256(hash) => ("SHA-256", format!("{:x}", hash.finalize())),
            Self::Sha1 { ref plain, .. } if format!("{:x}", plain.clone().finalize()) == etag => return None,
            Self::Sha1 { git, .. } => ("git id", format!("{:x}", git.finalize())),
            Self::Unknown => return None,
        };
        (value != etag).then_some((name, value))
    }
}

/// Partially downloaded file, with the hash of its content so far.
struct PartialFile {
    path: PathBuf,
    file: File,
    size: u64,
    hash: Hash,
}

impl PartialFile {
    /// Open the remainder of an earlier download, or an empty file.
    fn open(path: PathBuf, head: &FileMetadata) -> Result<Self> {
        let open = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut part = Self { file: open.map_err(Error::io(&path))?, path, size: 0, hash: Hash::new(head) };
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = part.file.read(&mut buffer).map_err(Error::io(&part.path))?;
            if read == 0 {
                break;
            }
            part.hash.update(&buffer[..read]);
            part.size += read as u64;
        }
        if part.size > head.size {
            part.empty(head)?;
        }
        Ok(part)
    }

    fn empty(&mut self, head: &FileMetadata) -> Result<()> {
        self.file.set_len(0).map_err(Error::io(&self.path))?;
        (self.size, self.hash) = (0, Hash::new(head));
        Ok(())
    }

    /// Append the content that a connection delivers. Write errors, such as a full disk, are permanent failures.
    fn go_on(
        &mut self,
        client: &HubClient,
        name: &Name,
        head: &FileMetadata,
        progress: &mut DownloadProgress,
    ) -> std::result::Result<(), HubFailure> {
        let own = |error: Error| HubFailure::Permanent(error.to_string());
        let (goes_on, mut content) = client.content(name, head, self.size)?;
        if !goes_on {
            self.empty(head).map_err(own)?;
        }
        let mut buffer = vec![0; 1 << 18];
        loop {
            let read = content.read(&mut buffer).map_err(|error| HubFailure::Transient(error.to_string()))?;
            if read == 0 {
                break;
            }
            if self.size + read as u64 > head.size {
                self.empty(head).map_err(own)?;
                return Err(HubFailure::Permanent(format!(
                    "{} has more bytes than the announced {}",
                    head.etag, head.size
                )));
            }
            self.file.write_all(&buffer[..read]).map_err(|error| own(Error::io(&self.path)(error)))?;
            self.hash.update(&buffer[..read]);
            self.size += read as u64;
            progress.at(self.size);
        }
        if self.size < head.size {
            return Err(HubFailure::Transient(format!(
                "the connection ended after {} of {} bytes",
                self.size, head.size
            )));
        }
        Ok(())
    }

    /// Verify the hash if the ETag is one, and rename the file to its blob.
    fn finish(mut self, name: &Name, file: &str, head: &FileMetadata, blob: &Path) -> Result<()> {
        if let Some((hash, found)) = self.hash.clone().differs(&head.etag) {
            self.empty(head)?;
            return Err(Error::Invalid(format!(
                "{name}: {file} was damaged in the download: its {hash} is {found}, but the Hub reports {}. The file \
                 is deleted; try again",
                head.etag
            )));
        }
        self.file.sync_all().map_err(Error::io(&self.path))?;
        files::rename(&self.path, blob)
    }
}
