//! Names of repositories, told from paths.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A model, or an adapter.
    Model,
    /// A data set.
    Data,
}

impl Kind {
    /// The kind in the addresses and folders of the Hub.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Data => "datasets",
        }
    }

    fn form(self) -> &'static str {
        match self {
            Self::Model => "owner/name[@revision]",
            Self::Data => "owner/name[:config][:split][@revision]",
        }
    }
}

/// A repository at a revision, and of a data set the part that is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// What it holds.
    pub kind: Kind,
    /// `owner/name`.
    pub repository: String,
    /// Of a data set what follows it, between colons: configuration and split, one of them, or a file.
    pub parts: Vec<String>,
    /// Branch, tag or commit; none for the main branch.
    pub revision: Option<String>,
}

/// What begins a name that is no path, whatever lies in the working directory.
const MARK: &str = "hf:";

/// Folders of this repository. The embedded settings name files in them, so a path that begins with one is never a name of the
/// Hub, not even where the folder is missing.
const OWN: [&str; 3] = ["assets", "configs", "runs"];

/// Endings of files of data: a name that has one is a path.
pub(super) const ENDINGS: [&str; 3] = ["parquet", "jsonl", "json"];

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        self.parts.iter().try_for_each(|part| write!(f, ":{part}"))?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

impl Name {
    /// The repository that `path` names; none for a path on this machine.
    ///
    /// What exists is a path. Else `owner/name` is of the Hub, unless there is a folder `owner` here: then it is a path that
    /// is mistyped, and `hf:owner/name` names the repository.
    ///
    /// # Errors
    /// That mistyped path, and `hf:` before something that is no name.
    pub fn of(kind: Kind, path: &Path) -> Result<Option<Self>> {
        let Some(text) = path.to_str() else { return Ok(None) };
        if let Some(marked) = text.strip_prefix(MARK) {
            let wrong = || Error::Invalid(format!("{text}: expected {MARK}{} after the mark of the Hub", kind.form()));
            return Self::read(kind, marked).map(Some).ok_or_else(wrong);
        }
        let named = Self::read(kind, text);
        if path.exists() {
            return Ok(None);
        }
        let Some(named) = named else { return Ok(None) };
        let (owner, _) = named.repository.split_once('/').unwrap_or_default();
        if OWN.contains(&owner) || Path::new(owner).is_dir() {
            let what = if kind == Kind::Model { "folder" } else { "file" };
            let why = if Path::new(owner).is_dir() { "is here" } else { "is one of this project's" };
            let clone = match owner {
                "assets" | "configs" => " It comes with the repository: run in a clone of that.",
                _ => "",
            };
            let message = format!(
                "no such {what}.{clone} The folder {owner} {why}, so this is taken for a path and nothing is fetched; write \
                 {MARK}{text} to name a repository of the Hub"
            );
            return Err(Error::file(path, message));
        }
        Ok(Some(named))
    }

    /// Whether `path` is one on this machine that has the form of a name.
    pub(super) fn hidden_by(kind: Kind, path: &Path) -> Option<Self> {
        path.to_str().filter(|text| !text.starts_with(MARK)).and_then(|text| Self::read(kind, text))
    }

    /// Reads the form of a name.
    fn read(kind: Kind, text: &str) -> Option<Self> {
        let (place, revision) = match text.split_once('@') {
            Some((place, revision)) => (place, Some(revision)),
            None => (text, None),
        };
        let mut parts = place.split(':');
        let repository = parts.next()?;
        let parts: Vec<String> = parts.map(str::to_string).collect();
        let (owner, name) = repository.split_once('/')?;
        let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let most = if kind == Kind::Model { 0 } else { 2 };
        let well = is_word(owner)
            && is_word(name)
            && (kind == Kind::Model || !ENDINGS.contains(&ending))
            && parts.len() <= most
            && (parts.is_empty() || parts.iter().any(|part| !part.is_empty()))
            && revision.is_none_or(is_revision);
        let revision = revision.map(str::to_string);
        well.then(|| Self { kind, repository: repository.to_string(), parts, revision })
    }

    /// The commit, where the revision is one.
    pub fn commit(&self) -> Option<&str> {
        self.revision.as_deref().filter(|revision| is_commit(revision))
    }

    /// Branch, tag or commit.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The name at a commit or another revision, as settings keep it: no path, wherever it is read.
    pub fn at(&self, commit: &str) -> String {
        format!("{MARK}{}", Self { revision: Some(commit.to_string()), ..self.clone() })
    }
}

/// The Hub's rule for the name of an account or of a repository.
fn is_word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: char| c == '-' || c == '.';
    (1..=96).contains(&text.len())
        && text.chars().all(plain)
        && !text.starts_with(ends)
        && !text.ends_with(ends)
        && !text.contains("..")
        && !text.contains("--")
}

/// Whether a text may name a branch, a tag or a commit; it is a path in the cache, too, and stays within its folder there.
pub(crate) fn is_revision(text: &str) -> bool {
    !text.contains("..")
        && text.split('/').all(|part| !part.is_empty() && part != ".")
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

/// Whether a text is the hash of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind, text: &str) -> Option<String> {
        Name::of(kind, Path::new(text)).unwrap().map(|name| name.to_string())
    }

    /// Outside the repository the quickstart fetched a stranger's `assets/base`.
    #[test]
    fn the_projects_own_folders_are_never_names() {
        for path in ["assets/none", "runs/none", "configs/none"] {
            assert!(Name::of(Kind::Model, Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn names_are_read_and_written() {
        for text in ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@v1.0", "a_b/c@refs/pr/1"] {
            assert_eq!(of(Kind::Model, text).as_deref(), Some(text));
            assert_eq!(of(Kind::Model, &format!("hf:{text}")).as_deref(), Some(text));
        }
        for text in
            ["openai/gsm8k", "openai/gsm8k:main:test", "o/g:test@refs/convert/parquet", "o/g:data/x.jsonl", "o/g::test"]
        {
            assert_eq!(of(Kind::Data, text).as_deref(), Some(text));
        }
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let name = Name::of(Kind::Data, Path::new("o/g:test")).unwrap().unwrap();
        assert_eq!((name.commit(), name.at(commit)), (None, format!("hf:o/g:test@{commit}")));
        assert_eq!(Name::of(Kind::Data, Path::new(&name.at(commit))).unwrap().unwrap().commit(), Some(commit));
    }

    /// Nothing is asked of the network where a path was meant.
    #[test]
    fn paths_are_no_names() {
        for path in [
            "./a/b", "../a", "/a/b", "~/b", "a", "a/b/c", "a/", "/b", "a//b", "a b/c", "-a/b", "a/..", "a/b--c",
            "C:\\a", "a/b@", "a/b@../x", "a/b:main",
        ] {
            assert_eq!(of(Kind::Model, path), None, "{path}");
        }
        for path in ["x/rows.jsonl", "x/rows.json", "x/train.parquet", "gsm8k", "a/b:c:d:e", "a/b:", "a/b::"] {
            assert_eq!(of(Kind::Data, path), None, "{path}");
        }
        // What is here is a path.
        assert_eq!((of(Kind::Model, "assets/base"), of(Kind::Data, "src/lib.rs")), (None, None));
    }

    /// `runs/qucikstart` must not be asked of the Hub.
    #[test]
    fn a_path_that_is_mistyped_is_told_and_the_mark_overrides() {
        let error = Name::of(Kind::Model, Path::new("src/none")).unwrap_err().to_string();
        assert!(error.starts_with("src/none: no such folder. The folder src is here"), "{error}");
        assert!(error.contains("write hf:src/none to name"), "{error}");
        assert_eq!(of(Kind::Model, "hf:src/none").as_deref(), Some("src/none"));
        let error = Name::of(Kind::Data, Path::new("hf:none")).unwrap_err().to_string();
        assert!(error.contains("expected hf:owner/name[:config][:split][@revision]"), "{error}");
    }
}
