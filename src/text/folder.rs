//! Tokenizer files of a folder, and the token-related keys of other files.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::directory;
use crate::error::{Error, Result};
use crate::files;
use crate::hub::Part;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";
pub(super) const SPECIAL: &str = "special_tokens_map.json";
pub(super) const GENERATION: &str = "generation_config.json";

/// The files that belong to a tokenizer.
const FILES: [&str; 9] = [
    TOKENIZER,
    CONFIG,
    TEMPLATE,
    SPECIAL,
    GENERATION,
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// A tokenizer's files.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    /// The requested folder.
    pub(super) dir: PathBuf,
    /// Configuration of the model, which may name tokens as well.
    pub(super) model_file: PathBuf,
    /// Name, folder and content of each file.
    files: Vec<(&'static str, PathBuf, Vec<u8>)>,
}

impl Folder {
    /// Read the files in `dir`, or of the model of that name on the Hub. Files missing in an adapter's folder come
    /// from its base: only the model's `generation_config.json` if the adapter has a `tokenizer.json`; else all.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let dir = &directory::find(dir, Part::Settings)?;
        let base = if directory::is_adapter(dir) { Some(directory::base(dir, Part::Settings)?) } else { None };
        let has_own = dir.join(TOKENIZER).is_file();
        let mut files = Vec::new();
        for name in FILES {
            // A template file of the base would override the template in the adapter's tokenizer_config.json.
            let hides = name == TEMPLATE && dir.join(CONFIG).is_file();
            let base = base.as_deref().filter(|_| (!has_own || name == GENERATION) && !hides);
            for place in [Some(dir.as_path()), base].into_iter().flatten() {
                if let Some(bytes) = read_optional(&place.join(name))? {
                    files.push((name, place.to_path_buf(), bytes));
                    break;
                }
            }
        }
        let model_file = base.as_deref().unwrap_or(dir).join("config.json");
        Ok(Self { dir: dir.to_path_buf(), model_file, files })
    }

    /// Return the content of a file, if there is one.
    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.iter().find(|(file, ..)| *file == name).map(|(_, _, bytes)| bytes.as_slice())
    }

    /// Return the path at which a file was found, or would be.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        let place = self.files.iter().find(|(file, ..)| *file == name).map_or(&self.dir, |(_, place, _)| place);
        place.join(name)
    }

    /// Parse a file as JSON; null if there is none.
    pub(super) fn json(&self, name: &str) -> Result<Value> {
        self.get(name).map_or(Ok(Value::Null), |bytes| files::parse_json(&self.path(name), bytes))
    }

    /// Parse the model's configuration as JSON; null if there is none.
    pub(super) fn model(&self) -> Result<Value> {
        match read_optional(&self.model_file)? {
            Some(bytes) => files::parse_json(&self.model_file, &bytes),
            None => Ok(Value::Null),
        }
    }

    /// Write the files into `dir`, byte for byte.
    pub(super) fn save_to(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        for (name, _, bytes) in &self.files {
            let file = dir.join(name);
            std::fs::write(&file, bytes).map_err(Error::io(&file))?;
        }
        Ok(())
    }

    /// Return the chat template with its file, or why there is none.
    pub(super) fn template(&self) -> Result<std::result::Result<(String, PathBuf), String>> {
        if let Some(bytes) = self.get(TEMPLATE) {
            let file = self.path(TEMPLATE);
            return Ok(Ok((files::text(&file, bytes)?.to_string(), file)));
        }
        let config = self.json(CONFIG)?;
        let value = &config["chat_template"];
        let named = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_string();
        let default = match value {
            Value::Array(list) => list.iter().find(|entry| named(entry) == "default").map(|entry| &entry["template"]),
            value => Some(value),
        };
        if let Some(source) = default.and_then(Value::as_str) {
            return Ok(Ok((source.to_string(), self.path(CONFIG))));
        }
        let dir = self.dir.display();
        let others: Vec<_> = ["chat_template.json", "additional_chat_templates"]
            .into_iter()
            .filter(|name| self.dir.join(name).exists())
            .collect();
        Ok(Err(match value {
            Value::Array(list) if !list.is_empty() => format!(
                "{dir}: {CONFIG} has chat templates named {}, none of them \"default\", and none is used: write the one to \
                 use into {TEMPLATE}",
                list.iter().map(named).collect::<Vec<_>>().join(", ")
            ),
            _ if !others.is_empty() => format!(
                "{dir}: the chat template in {} is not read, and none is used: write it into {TEMPLATE}",
                others.join(" and ")
            ),
            _ => format!(
                "{dir}: there is no chat template: the model is given a prompt's text as it is, which suits a base model \
                 only; a model that answers questions needs its {TEMPLATE}"
            ),
        }))
    }
}

fn read_optional(file: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(file)(e)),
    }
}

/// Return a token as configuration files write it: its text, or an object with the text as `content`.
pub(super) fn token_name(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_string)
}

/// Parse one id, a list of ids or null; returns any other value as the error.
pub(super) fn ids(value: &Value) -> std::result::Result<Vec<u32>, &Value> {
    let one = |value| Value::as_u64(value).and_then(|id| u32::try_from(id).ok()).ok_or(value);
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list.iter().map(one).collect(),
        value => one(value).map(|id| vec![id]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is read but not downloaded would be missing silently.
    #[test]
    fn every_file_is_among_those_that_are_fetched() {
        let missing: Vec<&&str> = FILES.iter().filter(|file| !crate::hub::choose::SMALL.contains(file)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
