//! Models and data sets from the Hugging Face Hub.
//!
//! [`model`] and [`data`] resolve user input to local paths. A path is returned as it is. A repository name
//! (`owner/name@revision`, for data sets with configuration and split `owner/name:config:split`) is downloaded into the
//! cache shared with `huggingface_hub` (`cache.rs`). Within a process, a name always refers to the same commit. Input
//! is a path if it begins with `.`, `/` or `~`, does not have exactly one slash, exists, or lies in an existing folder
//! ([`Name::of`]). `hf:owner/name` is always a repository.
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HOME` | folder of cache and token; default `~/.cache/huggingface` |
//! | `HF_HUB_CACHE` | folder of the cache; default `hub` in `HF_HOME` |
//! | `HF_ENDPOINT` | URL of the Hub; default `https://huggingface.co` |
//! | `HF_TOKEN` | access token; default: content of the file `token` in `HF_HOME` |
//! | `HF_HUB_OFFLINE` | `1`: no network requests, only the cache is used |
//!
//! Only required files are downloaded: configuration, tokenizer, safetensors; Parquet and JSON of data sets. Pickled
//! files are never downloaded.

mod cache;
mod card;
pub(crate) mod choose;
mod client;
mod download;
mod name;
mod progress;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use self::cache::{Cache, is_inside};
use self::client::HubClient;
use self::name::is_commit;
pub(crate) use self::name::is_revision;
pub use self::name::{Name, RepoKind};
use crate::error::{Error, Result};
use crate::files;

/// Files of a model to download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelFiles {
    /// Configuration and tokenizer.
    Settings,
    /// Configuration, tokenizer and weights.
    Whole,
}

/// Return the folder of the model that `path` is or names.
///
/// # Errors
/// A mistyped path, or for names the errors of [`Hub::model`].
pub fn model(path: &Path, files: ModelFiles) -> Result<PathBuf> {
    match named(RepoKind::Model, path)? {
        Some(name) => Hub::from_env().model(&name, files),
        None => Ok(path.to_path_buf()),
    }
}

/// Return the files of the data set that `path` is or names, in order.
///
/// # Errors
/// A mistyped path, or for names the errors of [`Hub::data`].
pub fn data(path: &Path) -> Result<Vec<PathBuf>> {
    match named(RepoKind::Data, path)? {
        Some(name) => Hub::from_env().data(&name),
        None => Ok(vec![path.to_path_buf()]),
    }
}

/// Return `path`, or if it is a name, the name pinned to its current commit. Settings store the pinned name, so that a
/// resumed run uses the same version.
///
/// # Errors
/// As [`commit`].
pub fn pinned(kind: RepoKind, path: &Path) -> Result<PathBuf> {
    Ok(match (named(kind, path)?, commit(kind, path)?) {
        (Some(name), Some(commit)) => name.at(&commit).into(),
        _ => path.to_path_buf(),
    })
}

/// Return the commit of a name; `None` for a path.
///
/// # Errors
/// A mistyped path, or an error of the Hub.
pub fn commit(kind: RepoKind, path: &Path) -> Result<Option<String>> {
    let Some(name) = named(kind, path)? else { return Ok(None) };
    commit_of(&name).map(Some)
}

/// Return the commit of a name.
///
/// # Errors
/// An error of the Hub.
pub fn commit_of(name: &Name) -> Result<String> {
    match name.commit() {
        Some(commit) => Ok(commit.to_string()),
        None => Hub::from_env().open(name).map(|opened| opened.commit),
    }
}

/// Return the repository name in `path`, if it is one. Log a message if a local path hides a repository name.
fn named(kind: RepoKind, path: &Path) -> Result<Option<Name>> {
    let name = Name::of(kind, path)?;
    if name.is_none()
        && let Some(hidden) = Name::hidden_by(kind, path)
    {
        say_hidden(path, &hidden);
    }
    Ok(name)
}

/// Say once that a local path hides a repository name: as a warning if the cache has the repository, and not for the
/// project's own folders otherwise.
fn say_hidden(path: &Path, name: &Name) {
    let cached = Cache::of(&Hub::from_env().cache, name).exists();
    if (name.is_in_project() && !cached) || !is_first(path) {
        return;
    }
    let line =
        format!("{name}: the local file or folder of this name is used; write hf:{name} for the repository on the Hub");
    if cached {
        tracing::warn!("{line}");
    } else {
        progress::say(&line);
    }
}

/// Return whether this is the first message of this process about `path`.
pub(crate) fn is_first(path: &Path) -> bool {
    static SAID: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_path_buf())
}

/// Connection settings of the Hub.
#[derive(Clone)]
pub struct Hub {
    /// URL of the Hub.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Access token.
    pub token: Option<String>,
    /// Whether only the cache is used.
    pub offline: bool,
    /// Timeout for connecting, for a response and for each read.
    pub patience: Duration,
}

impl fmt::Debug for Hub {
    /// Format the settings without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache, token: _, offline, patience } = self;
        let mut shown = f.debug_struct("Hub");
        shown.field("endpoint", endpoint).field("cache", cache).field("offline", offline).field("patience", patience);
        shown.finish_non_exhaustive()
    }
}

/// Repository at a commit.
#[derive(Debug, Clone)]
struct OpenedRepository {
    commit: String,
    /// Paths of all files or, offline without a stored listing, of the files in the cache.
    listing: Vec<String>,
    /// Whether the listing is complete.
    whole: bool,
}

impl Hub {
    /// Return the settings from environment variables.
    pub fn from_env() -> Self {
        let set = |name: &str| {
            std::env::var(name).ok().map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
        };
        let user = || PathBuf::from(set("HOME").or_else(|| set("USERPROFILE")).unwrap_or_else(|| ".".to_string()));
        let folder = |text: String| match text.strip_prefix("~/") {
            Some(rest) => user().join(rest),
            None => text.into(),
        };
        let caches = || set("XDG_CACHE_HOME").map_or_else(|| user().join(".cache"), folder);
        let home = set("HF_HOME").map_or_else(|| caches().join("huggingface"), folder);
        let stored = || std::fs::read_to_string(home.join("token")).ok().map(|token| token.trim().to_string());
        let on = |value: String| ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str());
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string()),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), folder),
            token: set("HF_TOKEN").or_else(stored).filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(on),
            patience: Duration::from_secs(30),
        }
    }

    /// Download a model into the cache, unless it is there; return its folder.
    ///
    /// # Errors
    /// No such repository or revision, private or gated (each with advice); offline and not in the cache; no
    /// safetensors weights; a lost connection, a corrupt download, a full disk.
    pub fn model(&self, name: &Name, files: ModelFiles) -> Result<PathBuf> {
        let opened = self.open(name)?;
        let fault = |why: String| self.fault(name, &opened, &why);
        let mut wanted = choose::small(&opened.listing);
        if files == ModelFiles::Whole {
            let weights = choose::weights(&opened.listing).map_err(fault)?;
            self.fetch(name, &opened, &[weights.to_string()])?;
            if weights == choose::INDEX {
                wanted.extend(self.shards(name, &opened)?);
            }
        }
        self.fetch(name, &opened, &wanted)?;
        self.finish(name, &opened)
    }

    /// Download the files of a data set into the cache, unless they are there; returns their paths. Warn if they may be
    /// a part of them: offline, from a cache without a list of the files.
    ///
    /// # Errors
    /// As [`Self::model`], and a name that matches no split or several.
    pub fn data(&self, name: &Name) -> Result<Vec<PathBuf>> {
        let opened = self.open(name)?;
        let mut readme = None;
        let card = "README.md".to_string();
        if opened.listing.contains(&card) {
            self.fetch(name, &opened, std::slice::from_ref(&card))?;
            readme = Some(files::read_text(&self.snapshot(name, &opened).join(&card))?);
        }
        let wanted = choose::data(name, &opened.listing, readme.as_deref());
        let wanted = wanted.map_err(|why| self.fault(name, &opened, &why))?;
        if !opened.whole && is_first(Path::new(&name.to_string())) {
            tracing::warn!(
                "{name}: HF_HUB_OFFLINE is set, and the cache has no file list of commit {}: only the cached files are \
                 read, which may be a part of the data set: {}",
                opened.commit,
                wanted.join(", ")
            );
        }
        self.fetch(name, &opened, &wanted)?;
        let dir = self.finish(name, &opened)?;
        Ok(wanted.iter().map(|file| dir.join(file)).collect())
    }

    /// Return the weight files listed in the index.
    fn shards(&self, name: &Name, opened: &OpenedRepository) -> Result<Vec<String>> {
        let path = self.snapshot(name, opened).join(choose::INDEX);
        let index: Value = files::read_json(&path)?;
        let places = index["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str());
        let shards: BTreeSet<&str> = places.collect();
        match shards.iter().find(|shard| !is_inside(shard) || !shard.ends_with(".safetensors")) {
            Some(shard) => Err(Error::file(
                &path,
                format!("weight_map: {shard:?} is not the name of a safetensors file in the repository"),
            )),
            None => Ok(shards.into_iter().map(str::to_string).collect()),
        }
    }

    fn client(&self) -> HubClient {
        HubClient::new(&self.endpoint, self.token.clone(), self.patience)
    }

    fn snapshot(&self, name: &Name, opened: &OpenedRepository) -> PathBuf {
        Cache::of(&self.cache, name).snapshot(&opened.commit)
    }

    /// Return an error about the content of a repository. If the listing is incomplete, the message says so.
    fn fault(&self, name: &Name, opened: &OpenedRepository, why: &str) -> Error {
        let part = match opened.whole {
            true => String::new(),
            false => format!(
                "; HF_HUB_OFFLINE is set, and only the cached files of commit {} are known, which may be incomplete",
                opened.commit
            ),
        };
        Error::Invalid(format!("{name}: {why}{part}"))
    }

    /// Return commit and files of a name. Resolved once per process, so that a branch does not move meanwhile.
    fn open(&self, name: &Name) -> Result<OpenedRepository> {
        type Known = HashMap<(String, PathBuf, RepoKind, String, String), OpenedRepository>;
        static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
        let (endpoint, revision) = (self.endpoint.clone(), name.revision().to_string());
        let key = (endpoint, self.cache.clone(), name.kind, name.repository.clone(), revision);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        if let Some(opened) = known.get(&key) {
            return Ok(opened.clone());
        }
        let opened = self.resolve(name)?;
        known.insert(key, opened.clone());
        Ok(opened)
    }

    fn resolve(&self, name: &Name) -> Result<OpenedRepository> {
        let cache = Cache::of(&self.cache, name);
        let asked = name.revision();
        if let Some(listing) = name.commit().and_then(|commit| cache.listing(commit)) {
            return Ok(OpenedRepository { commit: asked.to_string(), listing, whole: true });
        }
        if self.offline {
            return self.resolve_offline(name, &cache);
        }
        self.check().map_err(|why| Error::Invalid(format!("{name}: {why}")))?;
        let listing = download::retry(name, || self.client().list(name)).map_err(|error| match error {
            Error::Engine(why) => Error::Invalid(format!(
                "{name}: cannot reach the Hub: {why}{}",
                match cache.commit_of(asked) {
                    Some(commit) => format!(". The cache has commit {commit}: set HF_HUB_OFFLINE=1 to use it"),
                    None => ". Without a network connection, give the path of a local folder or file".to_string(),
                }
            )),
            other => other,
        })?;
        let commit = listing.sha.clone();
        let listing: Vec<String> = listing.files().into_iter().filter(|file| is_inside(file)).collect();
        cache.keep_listing(&commit, &listing);
        Ok(OpenedRepository { commit, listing, whole: true })
    }

    /// Check that endpoint and token are well-formed.
    fn check(&self) -> std::result::Result<(), String> {
        let endpoint = &self.endpoint;
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(format!("HF_ENDPOINT is {endpoint:?}: give the full URL, such as \"https://huggingface.co\""));
        }
        // The message must not contain any part of the token.
        if self.token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(
                "the token (HF_TOKEN, or the file token in HF_HOME) contains a space, a line break or another invalid \
                 character: correct it"
                    .to_string(),
            );
        }
        Ok(())
    }

    /// Resolve a name from the cache only.
    fn resolve_offline(&self, name: &Name, cache: &Cache) -> Result<OpenedRepository> {
        let asked = name.revision();
        let commit = if is_commit(asked) { Some(asked.to_string()) } else { cache.commit_of(asked) };
        let known = commit.and_then(|commit| {
            let (listing, whole) = match cache.listing(&commit) {
                Some(listing) => (listing, true),
                None => (cache.present(&commit), false),
            };
            Some(OpenedRepository { commit, listing, whole }).filter(|opened| !opened.listing.is_empty())
        });
        known.ok_or_else(|| {
            Error::Invalid(format!(
                "{name}: HF_HUB_OFFLINE is set, and revision {asked:?} is not in the cache ({}): download it with a \
                 network connection first, or give the path of a local folder or file",
                self.cache.display()
            ))
        })
    }

    /// Download the files of a commit that are not in the cache.
    fn fetch(&self, name: &Name, opened: &OpenedRepository, wanted: &[String]) -> Result<()> {
        let (cache, dir) = (Cache::of(&self.cache, name), self.snapshot(name, opened));
        let missing: Vec<&String> = wanted.iter().filter(|file| !dir.join(file).is_file()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if self.offline {
            let missing = missing.iter().map(|file| file.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::Invalid(format!(
                "{name}: HF_HUB_OFFLINE is set, and files of commit {} are not in the cache ({}): {missing}; download \
                 them with a network connection first",
                opened.commit,
                self.cache.display()
            )));
        }
        let client = self.client();
        missing.into_iter().try_for_each(|file| download::fetch(&client, &cache, name, &opened.commit, file))
    }

    /// Store the commit of the branch after all files have been downloaded; return the snapshot folder.
    fn finish(&self, name: &Name, opened: &OpenedRepository) -> Result<PathBuf> {
        if !self.offline {
            Cache::of(&self.cache, name).keep_ref(name.revision(), &opened.commit);
        }
        Ok(self.snapshot(name, opened))
    }
}
