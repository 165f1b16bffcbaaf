//! Tokenizer files of a folder, and the token-related keys of other files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::directory;
use crate::error::{Error, Result};
use crate::files;
use crate::hub::ModelFiles;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
/// Folder of templates with names other than `default`, one per file.
const NAMED: &str = "additional_chat_templates/";
/// Name of the template that is used if none is chosen.
const DEFAULT: &str = "default";
pub(super) const SPECIAL: &str = "special_tokens_map.json";
pub(super) const ADDED: &str = "added_tokens.json";
pub(super) const GENERATION: &str = "generation_config.json";

/// The files that belong to a tokenizer.
const FILES: [&str; 10] = [
    TOKENIZER,
    CONFIG,
    TEMPLATE,
    TEMPLATE_JSON,
    SPECIAL,
    GENERATION,
    ADDED,
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// Name, folder and content of a file.
type TokenizerFile = (String, PathBuf, Vec<u8>);

/// A tokenizer's files.
#[derive(Debug, Clone)]
pub(super) struct TokenizerFiles {
    /// The requested folder.
    pub(super) dir: PathBuf,
    /// Configuration of the model, which may name tokens as well.
    pub(super) model_file: PathBuf,
    files: Vec<TokenizerFile>,
}

impl TokenizerFiles {
    /// Read the files in `dir`, or of the model of that name on the Hub. Files missing in an adapter's folder come
    /// from its base: only the model's `generation_config.json` if the adapter has a `tokenizer.json`; else all.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let dir = &directory::find(dir, ModelFiles::Settings)?;
        let base = if directory::is_adapter(dir) { Some(directory::base(dir, ModelFiles::Settings)?) } else { None };
        let has_own = dir.join(TOKENIZER).is_file();
        let mut files: Vec<TokenizerFile> = Vec::new();
        let named = [Some(dir.as_path()), base.as_deref()].into_iter().flatten().map(named_templates);
        let named = named.collect::<Result<Vec<_>>>()?.concat();
        for name in FILES.map(str::to_string).into_iter().chain(named) {
            // A template file of the base would override the template in the adapter's tokenizer_config.json.
            let is_template = [TEMPLATE, TEMPLATE_JSON].contains(&name.as_str()) || name.starts_with(NAMED);
            let hides = is_template && dir.join(CONFIG).is_file();
            let base = base.as_deref().filter(|_| (!has_own || name == GENERATION) && !hides);
            let is_read = files.iter().any(|(other, ..)| *other == name);
            for place in [Some(dir.as_path()), base].into_iter().flatten().filter(|_| !is_read) {
                if let Some(bytes) = read_optional(&place.join(&name))? {
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
        self.files.iter().find(|(file, ..)| file == name).map(|(_, _, bytes)| bytes.as_slice())
    }

    /// Return the path at which a file was found, or would be.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        let place = self.files.iter().find(|(file, ..)| file == name).map_or(&self.dir, |(_, place, _)| place);
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

    /// Return the ids under `key` in `generation_config.json`, or else in the model's configuration.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let read = |file: &Path, value: &Value| {
            let wrong = |value: &Value| format!("{key} = {value} is neither a token id nor a list of them");
            ids(value).map_err(|value| Error::file(file, wrong(value)))
        };
        let own = read(&self.path(GENERATION), &self.json(GENERATION)?[key])?;
        let model = self.model()?;
        // A multimodal wrapper may have the key in its language model's part.
        let value = if model[key].is_null() { &model["text_config"][key] } else { &model[key] };
        let models = read(&self.model_file, value)?;
        Ok(if own.is_empty() { models } else { own })
    }

    /// Write the files into `dir`, byte for byte.
    pub(super) fn save_to(&self, dir: &Path) -> Result<()> {
        for (name, _, bytes) in &self.files {
            let file = dir.join(name);
            std::fs::create_dir_all(file.parent().unwrap_or(dir)).map_err(Error::io(dir))?;
            std::fs::write(&file, bytes).map_err(Error::io(&file))?;
        }
        Ok(())
    }

    /// Return the chat template of this name (`None` for the default one) with its file, or why there is none.
    pub(super) fn template(&self, name: Option<&str>) -> Result<std::result::Result<(String, PathBuf), String>> {
        let templates = self.templates()?;
        let wanted = name.unwrap_or(DEFAULT);
        if let Some((_, source, file)) = templates.iter().find(|(other, ..)| other == wanted) {
            return Ok(Ok((source.clone(), file.clone())));
        }
        let names = templates.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>().join(", ");
        let dir = self.dir.display();
        Ok(Err(match name {
            Some(name) if names.is_empty() => format!("prompt.template = {name:?}: {dir} has no chat template"),
            Some(name) => format!("prompt.template = {name:?} is none of the chat templates in {dir}: {names}"),
            None if !names.is_empty() => format!(
                "{dir}: has chat templates named {names} but none named {DEFAULT:?}, so no chat template is used: \
                 choose one with prompt.template"
            ),
            None => format!(
                "{dir}: has no chat template, so prompts are given to the model as plain text, which suits base models \
                 only; an instruct or reasoning model needs its {TEMPLATE}"
            ),
        }))
    }

    /// Return name, source and file of each chat template. Of several with a name, the first is used, as in
    /// `transformers`: files with one template go before the lists of others.
    fn templates(&self) -> Result<Vec<(String, String, PathBuf)>> {
        let mut found = Vec::new();
        for (file, place, bytes) in &self.files {
            let named = file.strip_prefix(NAMED).and_then(|file| file.strip_suffix(".jinja"));
            if let Some(name) = named.or((file == TEMPLATE).then_some(DEFAULT)) {
                let path = place.join(file);
                found.push((name.to_string(), files::text(&path, bytes)?.to_string(), path));
            }
        }
        for file in [CONFIG, TEMPLATE_JSON] {
            let (path, config) = (self.path(file), self.json(file)?);
            let value = &config["chat_template"];
            let pairs: Option<Vec<(&str, &str)>> = match value {
                Value::Null => Some(Vec::new()),
                Value::String(source) => Some(vec![(DEFAULT, source)]),
                Value::Object(named) => {
                    named.iter().map(|(name, value)| Some((name.as_str(), value.as_str()?))).collect()
                }
                Value::Array(list) => {
                    list.iter().map(|one| Some((one["name"].as_str()?, one["template"].as_str()?))).collect()
                }
                _ => None,
            };
            let pairs = pairs.ok_or_else(|| {
                Error::file(&path, format!("chat_template = {value} must be a string or a list of named strings"))
            })?;
            found.extend(pairs.into_iter().map(|(name, source)| (name.to_string(), source.to_string(), path.clone())));
        }
        let mut names = HashSet::new();
        found.retain(|(name, ..)| names.insert(name.clone()));
        Ok(found)
    }
}

/// Return the names of the files with named templates in a folder.
fn named_templates(dir: &Path) -> Result<Vec<String>> {
    let dir = dir.join(NAMED);
    let entries = if dir.is_dir() { files::entries(&dir)? } else { Vec::new() };
    let names = entries.into_iter().map(|(name, _)| name).filter(|name| name.ends_with(".jinja"));
    Ok(names.map(|name| format!("{NAMED}{name}")).collect())
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
fn ids(value: &Value) -> std::result::Result<Vec<u32>, &Value> {
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
