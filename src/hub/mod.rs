//! Models and data sets by name, from the Hugging Face Hub.
//!
//! [`model`] and [`data`] turn what a user wrote into places on this machine: a path stays what it is, and a name of a
//! repository (`owner/name@revision`; of a data set with configuration and split, `owner/name:config:split`) is fetched into
//! the cache that `huggingface_hub` has, too (`cache.rs`). In one process a name means one commit. What begins with `.`, `/` or
//! `~`, has other than one slash, exists, or lies in a folder that exists is a path ([`Name::of`]); `hf:owner/name` is none.
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HOME` | folder of cache and token; `~/.cache/huggingface` where it is not set |
//! | `HF_HUB_CACHE` | folder of the cache; `hub` in that folder |
//! | `HF_ENDPOINT` | address of the Hub; `https://huggingface.co` |
//! | `HF_TOKEN` | token of an account; the file `token` in `HF_HOME` |
//! | `HF_HUB_OFFLINE` | `1`: nothing is asked of the network, only the cache is looked in |
//!
//! Only files that are used are fetched: configuration, tokenizer, safetensors; Parquet and JSON of data sets. Nothing that
//! is pickled is.

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
use self::client::Client;
use self::name::is_commit;
pub(crate) use self::name::is_revision;
pub use self::name::{Kind, Name};
use crate::error::{Error, Result};
use crate::files;

/// How much of a model is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Configuration and tokenizer.
    Settings,
    /// The weights, too.
    Whole,
}

/// The folder of the model that `path` is or names.
///
/// # Errors
/// A path that is mistyped, and, of a name, what [`Hub::model`] says.
pub fn model(path: &Path, part: Part) -> Result<PathBuf> {
    match named(Kind::Model, path)? {
        Some(name) => Hub::from_env().model(&name, part),
        None => Ok(path.to_path_buf()),
    }
}

/// The files of the data set that `path` is or names, in order.
///
/// # Errors
/// A path that is mistyped, and, of a name, what [`Hub::data`] says.
pub fn data(path: &Path) -> Result<Vec<PathBuf>> {
    match named(Kind::Data, path)? {
        Some(name) => Hub::from_env().data(&name),
        None => Ok(vec![path.to_path_buf()]),
    }
}

/// `path`, and where it is a name the name at the commit that it means now: what settings keep, so that a run goes on with
/// what it was started with.
///
/// # Errors
/// As [`commit`].
pub fn pinned(kind: Kind, path: &Path) -> Result<PathBuf> {
    Ok(match (named(kind, path)?, commit(kind, path)?) {
        (Some(name), Some(commit)) => name.at(&commit).into(),
        _ => path.to_path_buf(),
    })
}

/// The commit that a name means; none for a path.
///
/// # Errors
/// A path that is mistyped, and what the Hub says.
pub fn commit(kind: Kind, path: &Path) -> Result<Option<String>> {
    let Some(name) = named(kind, path)? else { return Ok(None) };
    commit_of(&name).map(Some)
}

/// The commit that a name means.
///
/// # Errors
/// What the Hub says.
pub fn commit_of(name: &Name) -> Result<String> {
    match name.commit() {
        Some(commit) => Ok(commit.to_string()),
        None => Hub::from_env().open(name).map(|opened| opened.commit),
    }
}

/// The name that `path` is, if it is one; that a path hides one is said.
fn named(kind: Kind, path: &Path) -> Result<Option<Name>> {
    let name = Name::of(kind, path)?;
    if name.is_none()
        && let Some(hidden) = Name::hidden_by(kind, path)
    {
        say_hidden(path, &hidden);
    }
    Ok(name)
}

/// Says once that a path is taken where a repository has the same name: where one is in the cache, so that people see it.
fn say_hidden(path: &Path, name: &Name) {
    static SAID: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if !SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_path_buf()) {
        return;
    }
    let line = format!("{name}: what is here under this name is taken; hf:{name} names the repository of the Hub");
    if Cache::of(&Hub::from_env().cache, name).exists() {
        tracing::warn!("{line}");
    } else {
        tracing::info!("{line}");
    }
}

/// Where repositories are asked for and kept.
#[derive(Clone)]
pub struct Hub {
    /// Address.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Token of an account.
    pub token: Option<String>,
    /// Only the cache is looked in.
    pub offline: bool,
    /// The longest wait for an answer, or for a part of one.
    pub patience: Duration,
}

impl fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, cache, token: _, offline, patience } = self;
        let mut shown = f.debug_struct("Hub");
        shown.field("endpoint", endpoint).field("cache", cache).field("offline", offline).field("patience", patience);
        shown.finish_non_exhaustive()
    }
}

/// A repository at a commit.
#[derive(Debug, Clone)]
struct Opened {
    commit: String,
    /// Paths of all its files or, where only the cache was looked in, of those known.
    listing: Vec<String>,
    /// Whether that is all.
    whole: bool,
}

impl Hub {
    /// As the environment says.
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

    /// Has a model in the cache; gives its folder.
    ///
    /// # Errors
    /// What the Hub refuses, each with what to do: no such repository or revision, private, gated; offline and not in the
    /// cache; no weights in safetensors; a connection that is cut for good, a file that comes damaged, a full disk.
    pub fn model(&self, name: &Name, part: Part) -> Result<PathBuf> {
        let opened = self.open(name)?;
        let fault = |why: String| self.fault(name, &opened, &why);
        let mut wanted = choose::small(&opened.listing);
        if part == Part::Whole {
            let weights = choose::weights(&opened.listing).map_err(fault)?;
            self.fetch(name, &opened, &[weights.to_string()])?;
            if weights == choose::INDEX {
                wanted.extend(self.shards(name, &opened)?);
            }
        }
        self.fetch(name, &opened, &wanted)?;
        self.settle(name, &opened)
    }

    /// Has the files of a data set in the cache; gives their places.
    ///
    /// # Errors
    /// As [`Self::model`], and a name that means none of its parts or several of them.
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
        self.fetch(name, &opened, &wanted)?;
        let dir = self.settle(name, &opened)?;
        Ok(wanted.iter().map(|file| dir.join(file)).collect())
    }

    /// The files that the index of the weights names.
    fn shards(&self, name: &Name, opened: &Opened) -> Result<Vec<String>> {
        let path = self.snapshot(name, opened).join(choose::INDEX);
        let index: Value = files::read_json(&path)?;
        let places = index["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str());
        let shards: BTreeSet<&str> = places.collect();
        match shards.iter().find(|shard| !is_inside(shard) || !shard.ends_with(".safetensors")) {
            Some(shard) => Err(Error::file(&path, format!("{shard:?} is no name of a safetensors file"))),
            None => Ok(shards.into_iter().map(str::to_string).collect()),
        }
    }

    fn client(&self) -> Client {
        Client::new(&self.endpoint, self.token.clone(), self.patience)
    }

    fn snapshot(&self, name: &Name, opened: &Opened) -> PathBuf {
        Cache::of(&self.cache, name).snapshot(&opened.commit)
    }

    /// A fault of what a repository holds; of a part of one it is said that it is a part.
    fn fault(&self, name: &Name, opened: &Opened, why: &str) -> Error {
        let part = match opened.whole {
            true => String::new(),
            false => format!(
                "; HF_HUB_OFFLINE is set, and this goes by what is in the cache of commit {}, which may be a part",
                opened.commit
            ),
        };
        Error::Invalid(format!("{name}: {why}{part}"))
    }

    /// The commit that a name means, and its files. Once in a process: a branch that moves meanwhile does not.
    fn open(&self, name: &Name) -> Result<Opened> {
        type Known = HashMap<(String, PathBuf, Kind, String, String), Opened>;
        static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
        let (endpoint, revision) = (self.endpoint.clone(), name.revision().to_string());
        let key = (endpoint, self.cache.clone(), name.kind, name.repository.clone(), revision);
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        if let Some(opened) = known.get(&key) {
            return Ok(opened.clone());
        }
        let opened = self.look(name)?;
        known.insert(key, opened.clone());
        Ok(opened)
    }

    fn look(&self, name: &Name) -> Result<Opened> {
        let cache = Cache::of(&self.cache, name);
        let asked = name.revision();
        if let Some(listing) = name.commit().and_then(|commit| cache.listing(commit)) {
            return Ok(Opened { commit: asked.to_string(), listing, whole: true });
        }
        if self.offline {
            return self.look_in(name, &cache);
        }
        self.check().map_err(|why| Error::Invalid(format!("{name}: {why}")))?;
        let listing = download::insist(name, || self.client().list(name)).map_err(|error| match error {
            Error::Engine(why) => Error::Invalid(format!(
                "{name}: the Hub cannot be reached: {why}{}",
                match cache.commit_of(asked) {
                    Some(commit) => format!(". The cache has commit {commit} of it: HF_HUB_OFFLINE=1 takes that"),
                    None => ". Without a network give the path of a folder or file".to_string(),
                }
            )),
            other => other,
        })?;
        let commit = listing.sha.clone();
        let listing: Vec<String> = listing.files().into_iter().filter(|file| is_inside(file)).collect();
        cache.keep_listing(&commit, &listing);
        Ok(Opened { commit, listing, whole: true })
    }

    /// Whether address and token can be sent.
    fn check(&self) -> std::result::Result<(), String> {
        let endpoint = &self.endpoint;
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(format!("HF_ENDPOINT is {endpoint:?}: write the whole address, as \"https://huggingface.co\""));
        }
        // Not to be shown, not even in part.
        if self.token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(
                "the token (HF_TOKEN, or the file token in HF_HOME) has a space, a line break or another character \
                        that no token has"
                    .to_string(),
            );
        }
        Ok(())
    }

    /// What the cache has.
    fn look_in(&self, name: &Name, cache: &Cache) -> Result<Opened> {
        let asked = name.revision();
        let commit = if is_commit(asked) { Some(asked.to_string()) } else { cache.commit_of(asked) };
        let known = commit.and_then(|commit| {
            let (listing, whole) = match cache.listing(&commit) {
                Some(listing) => (listing, true),
                None => (cache.present(&commit), false),
            };
            Some(Opened { commit, listing, whole }).filter(|opened| !opened.listing.is_empty())
        });
        known.ok_or_else(|| {
            Error::Invalid(format!(
                "{name}: HF_HUB_OFFLINE is set, and revision {asked:?} is not in the cache ({}): fetch it with a network first, or give \
                 the path of a folder or file",
                self.cache.display()
            ))
        })
    }

    /// Has files of a commit in the cache.
    fn fetch(&self, name: &Name, opened: &Opened, wanted: &[String]) -> Result<()> {
        let (cache, dir) = (Cache::of(&self.cache, name), self.snapshot(name, opened));
        let missing: Vec<&String> = wanted.iter().filter(|file| !dir.join(file).is_file()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        if self.offline {
            let missing = missing.iter().map(|file| file.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::Invalid(format!(
                "{name}: HF_HUB_OFFLINE is set, and of commit {} the cache ({}) lacks {missing}: fetch it with a network first",
                opened.commit,
                self.cache.display()
            )));
        }
        let client = self.client();
        missing.into_iter().try_for_each(|file| download::fetch(&client, &cache, name, &opened.commit, file))
    }

    /// All that was wanted of a commit is here: from now on the cache says that the branch is there.
    fn settle(&self, name: &Name, opened: &Opened) -> Result<PathBuf> {
        if !self.offline {
            Cache::of(&self.cache, name).keep_ref(name.revision(), &opened.commit);
        }
        Ok(self.snapshot(name, opened))
    }
}
