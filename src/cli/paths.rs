//! Checks of files and folders named on the command line.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Refuse the folder of a run where a model is expected. The error names the model in it: the first existing one of
/// `kept`.
pub(super) fn not_a_run(dir: &Path, kept: &[&str]) -> Result<()> {
    if !dir.join("run.json").is_file() {
        return Ok(());
    }
    let found = kept.iter().map(|name| dir.join(name)).find(|model| model.is_dir());
    let advice = match found {
        Some(model) => format!("give the path of its model, {}", model.display()),
        None => format!("it has no {} yet; give the path of one of its checkpoints", kept.join(" or ")),
    };
    Err(Error::file(dir, format!("is the folder of a run, not a model: {advice}")))
}

/// Refuse an output, given with its option, that is an input of the command or another output.
pub(super) fn keep_apart(outputs: &[(&str, Option<&PathBuf>)], inputs: &[&Path]) -> Result<()> {
    let mut taken: Vec<PathBuf> = inputs.iter().map(|input| whole(input)).collect();
    let given = outputs.iter().filter_map(|(option, path)| Some((option, (*path)?)));
    // A pipe, or a device such as /dev/null, may be named several times.
    for (option, path) in given.filter(|(_, path)| !path.exists() || path.is_file()) {
        let output = whole(path);
        if taken.contains(&output) {
            let message = "is an input or another output of this command: choose another file";
            return Err(Error::Invalid(format!("{option} {}: {message}", path.display())));
        }
        taken.push(output);
    }
    Ok(())
}

/// Return the canonical path of a file if it exists, else the path itself.
pub(super) fn whole(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

/// Return `loaded`, the settings in `file`. If they are invalid because the file is a study, the error says so.
pub(super) fn no_study<S>(file: &Path, loaded: Result<S>) -> Result<S> {
    let is_study = || {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("arms"))
    };
    match loaded {
        Err(Error::Config { .. }) if is_study() => Err(Error::file(
            file,
            "is a study (it has arms), but the settings of a run are required; run it with `tempering study`",
        )),
        other => other,
    }
}
