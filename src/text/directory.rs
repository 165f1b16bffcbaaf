//! Directories of models: whether one is there, whether it holds an adapter, and of which model.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files;
use crate::hub::{self, Kind, Name, Part};

/// The file that makes a directory an adapter's.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The weights of a model.
pub(crate) const MODEL_WEIGHTS: &str = "model.safetensors";
/// Which file has which tensor, where they are several.
pub(crate) const MODEL_INDEX: &str = "model.safetensors.index.json";

/// The directory that `dir` is or, as the name of a model on the Hub, stands for.
///
/// # Errors
/// When it is none, and what [`hub::model`] says of a name.
pub(crate) fn find(dir: &Path, part: Part) -> Result<PathBuf> {
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

/// Whether a directory holds an adapter and no model of its own; the `config.json` of the base may lie beside an adapter.
pub fn is_adapter(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    has(ADAPTER_CONFIG) && !(has(MODEL_WEIGHTS) || has(MODEL_INDEX))
}

/// The model that the adapter in `dir` belongs to, as its file names it: a directory, or a name on the Hub with its revision.
///
/// # Errors
/// When `adapter_config.json` is malformed, or names a path that is mistyped.
pub fn base_name(dir: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct File {
        base_model_name_or_path: Option<PathBuf>,
        revision: Option<String>,
    }
    let path = dir.join(ADAPTER_CONFIG);
    let File { base_model_name_or_path: base, revision } = files::read_json(&path)?;
    let base = base.unwrap_or_default();
    let name = Name::of(Kind::Model, &base).map_err(|error| Error::file(&path, error))?;
    Ok(match (name, revision) {
        (Some(name), Some(revision)) if name.revision.is_none() => name.at(&revision).into(),
        _ => base,
    })
}

/// The directory of the model that the adapter in `dir` belongs to.
///
/// # Errors
/// As [`base_name`], when it names no model, and what the Hub says of a name.
pub fn base(dir: &Path, part: Part) -> Result<PathBuf> {
    let path = dir.join(ADAPTER_CONFIG);
    let base = hub::model(&base_name(dir)?, part).map_err(|error| Error::file(&path, error))?;
    match base_fault(&base) {
        None => Ok(base),
        Some(fault) => Err(Error::file(path, fault)),
    }
}

/// Why the directory `base` cannot be the model of an adapter, if it cannot.
fn base_fault(base: &Path) -> Option<String> {
    if !base.is_dir() {
        Some(format!(
            "base_model_name_or_path = {base:?} is not a directory here; write the base model's path, or its name on the Hub"
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
        let error = |dir: &str| find(Path::new(dir), Part::Settings).unwrap_err().to_string();
        for local in ["./models/x", "/models/x", "a/b/c", "model"] {
            assert!(error(local).starts_with(&format!("{local}: no such folder; expected")), "{local}");
        }
        assert!(error("src/nothing").contains("hf:src/nothing"));
        assert!(error("Cargo.toml").contains("is a file"));
        assert_eq!(find(Path::new("src"), Part::Whole).unwrap(), Path::new("src"));
    }

    /// PEFT keeps the revision of the base beside its name.
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
