//! Names of repositories, as opposed to local paths.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};

/// Kind of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RepoKind {
    /// A model, or an adapter.
    Model,
    /// A data set.
    Data,
}

impl RepoKind {
    /// Return the kind as used in the Hub's URLs and cache folders.
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

/// Name of a repository at a revision and, for data sets, of a part.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    /// Kind of the repository.
    pub kind: RepoKind,
    /// `owner/name`.
    pub repository: String,
    /// Parts after the repository of a data set: configuration and split, one of them, or a file.
    pub parts: Vec<String>,
    /// Branch, tag or commit; `None` for the main branch.
    pub revision: Option<String>,
}

/// Prefix of a repository name. A text with this prefix is never a path.
const PREFIX: &str = "hf:";

/// Folders of this project. The embedded settings refer to files in them, so a path that begins with one is never a
/// repository name, even if the folder does not exist.
const PROJECT_FOLDERS: [&str; 3] = ["assets", "configs", "runs"];

/// Extensions of data files: a data set name with one of them is a path.
pub(super) const ENDINGS: [&str; 3] = ["parquet", "jsonl", "json"];

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repository)?;
        self.parts.iter().try_for_each(|part| write!(f, ":{part}"))?;
        self.revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
    }
}

impl Name {
    /// Return the repository that `path` names; `None` for a local path.
    ///
    /// Anything that exists is a path. Otherwise `owner/name` is a repository, unless a local folder `owner` exists:
    /// then it is a mistyped path, and only `hf:owner/name` names the repository.
    ///
    /// # Errors
    /// A mistyped path, or `hf:` before an invalid name.
    pub fn of(kind: RepoKind, path: &Path) -> Result<Option<Self>> {
        let Some(text) = path.to_str() else { return Ok(None) };
        if let Some(marked) = text.strip_prefix(PREFIX) {
            let wrong = || Error::Invalid(format!("{text}: expected {PREFIX}{}", kind.form()));
            return Self::read(kind, marked).map(Some).ok_or_else(wrong);
        }
        let named = Self::read(kind, text);
        if path.exists() {
            return Ok(None);
        }
        let Some(named) = named else { return Ok(None) };
        let (owner, _) = named.repository.split_once('/').unwrap_or_default();
        if named.is_in_project() || Path::new(owner).is_dir() {
            let what = if kind == RepoKind::Model { "folder" } else { "file" };
            let why = if Path::new(owner).is_dir() { "exists" } else { "belongs to this project" };
            let clone = match owner {
                "assets" | "configs" => {
                    " It is part of this project's repository: run the command in a clone of the repository."
                }
                _ => "",
            };
            let message = format!(
                "no such {what}.{clone} The folder {owner} {why}, so this is read as a local path; write \
                 {PREFIX}{text} for the repository on the Hub"
            );
            return Err(Error::file(path, message));
        }
        Ok(Some(named))
    }

    /// Return whether the name has the form of a path in one of the project's own folders.
    pub(super) fn is_in_project(&self) -> bool {
        self.repository.split_once('/').is_some_and(|(owner, _)| PROJECT_FOLDERS.contains(&owner))
    }

    /// Return the repository name that the local path `path` hides because it has the form of one.
    pub(super) fn hidden_by(kind: RepoKind, path: &Path) -> Option<Self> {
        path.to_str().filter(|text| !text.starts_with(PREFIX)).and_then(|text| Self::read(kind, text))
    }

    /// Parse a name; return `None` if `text` does not have the form of one.
    fn read(kind: RepoKind, text: &str) -> Option<Self> {
        let (place, revision) = match text.split_once('@') {
            Some((place, revision)) => (place, Some(revision)),
            None => (text, None),
        };
        let mut parts = place.split(':');
        let repository = parts.next()?;
        let parts: Vec<String> = parts.map(str::to_string).collect();
        let (owner, name) = repository.split_once('/')?;
        let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        let most = if kind == RepoKind::Model { 0 } else { 2 };
        let well = is_valid_name(owner)
            && is_valid_name(name)
            && (kind == RepoKind::Model || !ENDINGS.contains(&ending))
            && parts.len() <= most
            && (parts.is_empty() || parts.iter().any(|part| !part.is_empty()))
            && revision.is_none_or(is_revision);
        let revision = revision.map(str::to_string);
        well.then(|| Self { kind, repository: repository.to_string(), parts, revision })
    }

    /// Return the commit, if the revision is a commit hash.
    pub fn commit(&self) -> Option<&str> {
        self.revision.as_deref().filter(|revision| is_commit(revision))
    }

    /// Return branch, tag or commit; `main` by default.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Return the name at a commit or another revision, as stored in settings: with `hf:`, so that it is never a path.
    pub fn at(&self, commit: &str) -> String {
        format!("{PREFIX}{}", Self { revision: Some(commit.to_string()), ..self.clone() })
    }
}

/// Return whether a text is valid as an account or repository name by the Hub's rules.
fn is_valid_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: char| c == '-' || c == '.';
    (1..=96).contains(&text.len())
        && text.chars().all(plain)
        && !text.starts_with(ends)
        && !text.ends_with(ends)
        && !text.contains("..")
        && !text.contains("--")
}

/// Return whether a text is valid as a branch, tag or commit, and safe as a path in the cache.
pub(crate) fn is_revision(text: &str) -> bool {
    !text.contains("..")
        && text.split('/').all(|part| !part.is_empty() && part != ".")
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

/// Return whether a text is a commit hash.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: RepoKind, text: &str) -> Option<String> {
        Name::of(kind, Path::new(text)).unwrap().map(|name| name.to_string())
    }

    /// Regression: outside a clone, the quickstart downloaded `assets/base` of an unrelated account.
    #[test]
    fn the_projects_own_folders_are_never_names() {
        for path in ["assets/none", "runs/none", "configs/none"] {
            assert!(Name::of(RepoKind::Model, Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn names_are_read_and_written() {
        for text in ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@v1.0", "a_b/c@refs/pr/1"] {
            assert_eq!(of(RepoKind::Model, text).as_deref(), Some(text));
            assert_eq!(of(RepoKind::Model, &format!("hf:{text}")).as_deref(), Some(text));
        }
        for text in
            ["openai/gsm8k", "openai/gsm8k:main:test", "o/g:test@refs/convert/parquet", "o/g:data/x.jsonl", "o/g::test"]
        {
            assert_eq!(of(RepoKind::Data, text).as_deref(), Some(text));
        }
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let name = Name::of(RepoKind::Data, Path::new("o/g:test")).unwrap().unwrap();
        assert_eq!((name.commit(), name.at(commit)), (None, format!("hf:o/g:test@{commit}")));
        assert_eq!(Name::of(RepoKind::Data, Path::new(&name.at(commit))).unwrap().unwrap().commit(), Some(commit));
    }

    /// Paths must not cause network requests.
    #[test]
    fn paths_are_no_names() {
        for path in [
            "./a/b", "../a", "/a/b", "~/b", "a", "a/b/c", "a/", "/b", "a//b", "a b/c", "-a/b", "a/..", "a/b--c",
            "C:\\a", "a/b@", "a/b@../x", "a/b:main",
        ] {
            assert_eq!(of(RepoKind::Model, path), None, "{path}");
        }
        for path in ["x/rows.jsonl", "x/rows.json", "x/train.parquet", "gsm8k", "a/b:c:d:e", "a/b:", "a/b::"] {
            assert_eq!(of(RepoKind::Data, path), None, "{path}");
        }
        // Existing files and folders are paths.
        assert_eq!((of(RepoKind::Model, "assets/base"), of(RepoKind::Data, "src/lib.rs")), (None, None));
    }

    /// A mistyped path such as `runs/qucikstart` must not be requested from the Hub.
    #[test]
    fn a_path_that_is_mistyped_is_told_and_the_mark_overrides() {
        let error = Name::of(RepoKind::Model, Path::new("src/none")).unwrap_err().to_string();
        assert!(error.starts_with("src/none: no such folder. The folder src exists"), "{error}");
        assert!(error.contains("write hf:src/none for the repository"), "{error}");
        assert_eq!(of(RepoKind::Model, "hf:src/none").as_deref(), Some("src/none"));
        let error = Name::of(RepoKind::Data, Path::new("hf:none")).unwrap_err().to_string();
        assert!(error.contains("expected hf:owner/name[:config][:split][@revision]"), "{error}");
    }
}
