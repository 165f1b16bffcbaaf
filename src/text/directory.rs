//! Directories of models: whether one is there, whether it holds an adapter, and of which model.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files;

/// The file that makes a directory an adapter's.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The weights of a model.
pub(crate) const MODEL_WEIGHTS: &str = "model.safetensors";
/// Which file has which tensor, where they are several.
pub(crate) const MODEL_INDEX: &str = "model.safetensors.index.json";

/// Checks that `dir` is a directory on this machine.
///
/// # Errors
/// When it is none; names of models on a hub are told to be downloaded.
pub(crate) fn check(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parts: Vec<_> = dir.iter().map(|part| part.to_string_lossy()).collect();
    let message = match parts.as_slice() {
        [owner, name] if !dir.exists() && !owner.starts_with(['.', '/']) => format!(
            "no such folder. Nothing is downloaded: if this names a model of the Hugging Face hub, run \
             `hf download {owner}/{name} --local-dir {name}` and give the folder {name}"
        ),
        _ if dir.exists() => "is a file; expected the folder of a model".to_string(),
        _ => "no such folder; expected the folder of a model".to_string(),
    };
    Err(Error::file(dir, message))
}

/// Whether a directory holds an adapter and no model of its own; the `config.json` of the base may lie beside an adapter.
pub fn is_adapter(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    has(ADAPTER_CONFIG) && !(has(MODEL_WEIGHTS) || has(MODEL_INDEX))
}

/// The directory of the model that the adapter in `dir` belongs to.
///
/// # Errors
/// When `adapter_config.json` is malformed or names no directory of a model.
pub fn base(dir: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct File {
        base_model_name_or_path: Option<PathBuf>,
    }
    let path = dir.join(ADAPTER_CONFIG);
    let base = files::read_json::<File>(&path)?.base_model_name_or_path.unwrap_or_default();
    match base_fault(&base) {
        None => Ok(base),
        Some(fault) => Err(Error::file(path, fault)),
    }
}

/// Why `base` cannot be the model of an adapter, if it cannot.
pub(crate) fn base_fault(base: &Path) -> Option<String> {
    if !base.is_dir() {
        Some(format!("base_model_name_or_path = {base:?} is not a directory here; write the base model's path"))
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
    fn the_name_of_a_model_on_a_hub_is_told_to_be_downloaded() {
        let error = |dir: &str| check(Path::new(dir)).unwrap_err().to_string();
        let hub = error("SomeLab/Small-135M");
        assert!(
            hub.starts_with("SomeLab/Small-135M: no such folder") && hub.contains("hf download SomeLab/Small-135M")
        );
        for local in ["./models/x", "/models/x", "a/b/c", "model"] {
            assert!(!error(local).contains("hf download"), "{local}");
        }
        assert!(error("Cargo.toml").contains("is a file"));
        assert!(check(Path::new("src")).is_ok());
    }
}
