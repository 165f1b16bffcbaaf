//! Model directories: lookup, detection of adapters, and the base model of an adapter.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files;
use crate::hub::{self, ModelFiles, Name, RepoKind};

/// File that marks a directory as an adapter's.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// File with the weights of a model.
pub(crate) const MODEL_WEIGHTS: &str = "model.safetensors";
/// File that maps tensors to shards.
pub(crate) const MODEL_INDEX: &str = "model.safetensors.index.json";

/// Return the directory `dir` or, if it is the name of a model on the Hub, the downloaded directory.
///
/// # Errors
/// When there is no such directory, and the errors of [`hub::model`] for a name.
pub(crate) fn find(dir: &Path, part: ModelFiles) -> Result<PathBuf> {
    let found = hub::model(dir, part)?;
    if found.is_dir() {
        return Ok(found);
    }
    Err(Error::file(
        dir,
        if dir.exists() {
            "is a file; expected the folder of a model"
        } else {
            "no such folder; expected the folder of a model, or the name of one on the Hugging Face Hub (owner/name)"
        },
    ))
}

/// Return whether a directory holds an adapter and no full model; the base's `config.json` may be beside an adapter.
pub fn is_adapter(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    has(ADAPTER_CONFIG) && !(has(MODEL_WEIGHTS) || has(MODEL_INDEX))
}

/// Return the base model of the adapter in `dir`, as its file names it: a directory, or a Hub name and revision.
///
/// # Errors
/// When `adapter_config.json` is malformed, or names a path that is mistyped.
pub fn base_name(dir: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct AdapterConfigFile {
        base_model_name_or_path: Option<PathBuf>,
        revision: Option<String>,
    }
    let path = dir.join(ADAPTER_CONFIG);
    let AdapterConfigFile { base_model_name_or_path: base, revision } = files::read_json(&path)?;
    let base = base.unwrap_or_default();
    let name = Name::of(RepoKind::Model, &base).map_err(|error| Error::file(&path, error))?;
    Ok(match (name, revision) {
        (Some(name), Some(revision)) if name.revision.is_none() => name.at(&revision).into(),
        _ => base,
    })
}

/// Return the directory of the base model of the adapter in `dir`.
///
/// # Errors
/// As [`base_name`], when it names no model, and the errors of the Hub for a name.
pub fn base(dir: &Path, part: ModelFiles) -> Result<PathBuf> {
    let path = dir.join(ADAPTER_CONFIG);
    let base = hub::model(&base_name(dir)?, part).map_err(|error| Error::file(&path, error))?;
    match base_fault(&base) {
        None => Ok(base),
        Some(fault) => Err(Error::file(path, fault)),
    }
}

/// Return why the directory `base` cannot be the base model of an adapter, if it cannot.
fn base_fault(base: &Path) -> Option<String> {
    if !base.is_dir() {
        Some(format!(
            "base_model_name_or_path = {base:?} is not a local folder; write the path of the base model, or its name \
             on the Hub"
        ))
    } else if is_adapter(base) {
        Some(format!("base_model_name_or_path = {base:?} is itself an adapter; `tempering merge` it first"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_folder_of_a_model_is_told() {
        let error = |dir: &str| find(Path::new(dir), ModelFiles::Settings).unwrap_err().to_string();
        for local in ["./models/x", "/models/x", "a/b/c", "model"] {
            assert!(error(local).starts_with(&format!("{local}: no such folder; expected")), "{local}");
        }
        assert!(error("src/nothing").contains("hf:src/nothing"));
        assert!(error("Cargo.toml").contains("is a file"));
        assert_eq!(find(Path::new("src"), ModelFiles::Whole).unwrap(), Path::new("src"));
    }

    /// PEFT stores the revision of the base beside its name.
    #[test]
    fn the_base_of_an_adapter_is_at_its_revision() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            std::fs::write(dir.path().join(ADAPTER_CONFIG), text).unwrap();
            base_name(dir.path()).unwrap()
        };
        let at = r#"{"base_model_name_or_path": "SomeLab/Small", "revision": "v2"}"#;
        assert_eq!(of(at), Path::new("hf:SomeLab/Small@v2"));
        assert_eq!(of(r#"{"base_model_name_or_path": "SomeLab/Small", "revision": null}"#), Path::new("SomeLab/Small"));
        assert_eq!(of(r#"{"base_model_name_or_path": "/models/x", "revision": "v2"}"#), Path::new("/models/x"));
    }
}
