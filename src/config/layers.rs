//! The sources of settings at consecutive offsets: a byte position identifies the source it belongs to.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Mistake, config_error};
use crate::error::{Error, Result};
use crate::files;

/// The sources in the order of their offsets: files (highest precedence first), `--set` arguments, the command's own
/// defaults that lie below files, and all defaults.
pub(super) struct Layers<'a> {
    files: Vec<TomlSource>,
    sets: Vec<Set<'a>>,
    below: TomlSource,
    defaults: TomlSource,
}

/// A TOML text that is padded with blanks up to its offset.
struct TomlSource {
    /// Path of the file; `None` for the defaults.
    file: Option<PathBuf>,
    start: usize,
    text: String,
}

/// One `--set` argument.
struct Set<'a> {
    argument: &'a str,
    key: &'a str,
    start: usize,
    /// `v = value` as TOML, padded with blanks up to `start` plus the length of the key.
    text: Option<String>,
}

impl TomlSource {
    fn new(file: Option<PathBuf>, start: usize, text: &str) -> Self {
        Self { file, start, text: " ".repeat(start) + text }
    }

    fn parse(&self) -> Result<Spanned<DeTable<'_>>> {
        DeTable::parse(&self.text).map_err(|error| {
            let at = error.span().map_or(self.start, |span| span.start);
            config_error(vec![Mistake { origin: self.origin(at), message: error.message().to_string() }])
        })
    }

    fn origin(&self, at: usize) -> String {
        let Some(file) = &self.file else { return "defaults".to_string() };
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        format!("{}:{}", file.display(), before.iter().filter(|byte| **byte == b'\n').count() + 1)
    }
}

impl<'a> Layers<'a> {
    /// Read `file` and the files named by `base`.
    ///
    /// # Errors
    /// A file that cannot be read or is not TOML; a `base` that is not a string or forms a cycle.
    pub(super) fn read(file: Option<&Path>, below: &str, defaults: &str, sets: &'a [String]) -> Result<Self> {
        let mut files = Vec::<TomlSource>::new();
        let mut next = file.map(Path::to_path_buf);
        let mut end = 0;
        while let Some(file) = next.take() {
            check_regular(&file)?;
            let text = files::read_text(&file)?;
            let source = TomlSource::new(Some(file), end, &text);
            end = source.text.len() + 1;
            files.push(source);
            next = base(&files)?;
        }
        let sets = sets.iter().map(|argument| {
            let set = Set::new(argument, end);
            end = set.text.as_ref().map_or(end + argument.len(), String::len) + 1;
            set
        });
        let sets = sets.collect();
        let below = TomlSource::new(None, end, below);
        let defaults = TomlSource::new(None, below.text.len() + 1, defaults);
        Ok(Self { files, sets, below, defaults })
    }

    /// Merge all sources into one table.
    pub(super) fn document(&self) -> Result<Spanned<DeTable<'_>>> {
        let defaults = self.defaults.parse()?;
        let mut document = if self.files.is_empty() { defaults.clone() } else { self.below.parse()? };
        for file in self.files.iter().rev() {
            let mut table = file.parse()?.into_inner();
            table.remove("base");
            overlay(document.get_mut(), table);
        }
        for set in &self.sets {
            set.apply(document.get_mut(), defaults.get_ref()).map_err(|message| {
                config_error(vec![Mistake { origin: format!("--set {}", set.argument), message }])
            })?;
        }
        Ok(document)
    }

    /// Return the file and line, or the `--set`, of a position.
    pub(super) fn origin(&self, at: usize) -> String {
        if at >= self.below.start {
            return "defaults".to_string();
        }
        match self.sets.iter().rev().find(|set| set.start <= at) {
            Some(set) => format!("--set {}", set.argument),
            None => self.files.iter().rev().find(|file| file.start <= at).unwrap_or(&self.defaults).origin(at),
        }
    }

    /// Return the origin of the key that `message` starts with. If the key is not written anywhere, its longest prefix
    /// that is written counts.
    pub(super) fn origin_of(&self, document: &DeTable<'_>, message: &str) -> String {
        let key = message.split([' ', ':']).next().unwrap_or_default();
        let (mut at, mut table, mut array) = (None, Some(document), None);
        for part in key.split('.') {
            let value = if let Some((key, value)) = table.and_then(|table| table.get_key_value(part)) {
                // The position of the value: the key keeps its position in the file when a `--set` replaces the value.
                at = Some(if value.get_ref().is_table() { key.span().start } else { value.span().start });
                value
            } else if let Some(entry) =
                array.and_then(|array: &[Spanned<DeValue>]| array.get(part.parse::<usize>().ok()?))
            {
                at = Some(entry.span().start);
                entry
            } else {
                break;
            };
            (table, array) = (value.get_ref().as_table(), value.get_ref().as_array().map(|array| &array[..]));
        }
        match (at, self.files.first()) {
            (Some(at), _) => self.origin(at),
            (None, Some(TomlSource { file: Some(file), .. })) => file.display().to_string(),
            (None, _) => "defaults".to_string(),
        }
    }

    /// Return the text of a file or a `--set` at `span`.
    pub(super) fn written(&self, span: &Range<usize>) -> Option<&str> {
        let files = self.files.iter().map(|file| (file.start, Some(file.text.as_str())));
        let sets = self.sets.iter().map(|set| (set.start, set.text.as_deref()));
        let (_, text) = files.chain(sets).rfind(|(start, _)| *start <= span.start)?;
        text?.get(span.clone())
    }

    /// Return the index of the `--set` whose whole value is at `span`, if the deserialiser expected a string there.
    pub(super) fn text_expected(&self, span: &Range<usize>, message: &str) -> Option<usize> {
        let text = ["expected a string", "expected path string", "expected string"].map(|end| message.ends_with(end));
        let whole = |set: &Set| {
            let value = set.start + set.key.len() + VALUE.len();
            set.text.as_ref().is_some_and(|text| *span == (value..text.len()) && !text[value..].starts_with('"'))
        };
        self.sets.iter().position(|set| text.contains(&true) && whole(set))
    }

    /// Treat the value of a `--set` as a string.
    pub(super) fn quote(&mut self, set: usize) {
        let set = &mut self.sets[set];
        let value = set.argument.split_once('=').map_or("", |(_, value)| value.trim());
        set.text = Some(set.line(&toml::Value::from(value).to_string()));
    }
}

/// Refuse anything but a regular file: reading a pipe or a device might never end.
fn check_regular(file: &Path) -> Result<()> {
    let kind = std::fs::metadata(file).map_err(Error::io(file))?.file_type();
    let what = match kind.is_dir() {
        _ if kind.is_file() => return Ok(()),
        true => "a folder",
        false => "a pipe or a device",
    };
    Err(Error::file(file, format!("is {what}; settings are read from a regular file: give the path of a TOML file")))
}

/// Return the path named by `base` in the last file, if there is one.
fn base(files: &[TomlSource]) -> Result<Option<PathBuf>> {
    let Some(source @ TomlSource { file: Some(file), .. }) = files.last() else { return Ok(None) };
    let document = source.parse()?;
    let Some(base) = document.get_ref().get("base") else { return Ok(None) };
    let refuse =
        |message: String| Err(config_error(vec![Mistake { origin: source.origin(base.span().start), message }]));
    let Some(name) = base.get_ref().as_str().filter(|name| !name.is_empty()) else {
        return refuse("base: expected the name of a settings file".to_string());
    };
    let path = file.parent().unwrap_or(Path::new("")).join(name);
    let Ok(found) = path.canonicalize() else {
        return refuse(format!("base = {name:?}: there is no file {}", path.display()));
    };
    let is_same =
        |source: &TomlSource| source.file.as_ref().and_then(|file| file.canonicalize().ok()) == Some(found.clone());
    match files.iter().any(is_same) {
        true => refuse(format!("base = {name:?} is circular: {} is itself based on this file", path.display())),
        false => Ok(Some(path)),
    }
}

/// Merge table `above` into `below`; the keys of `above` win. A table with a `type` replaces the old one as a whole.
fn overlay<'i>(below: &mut DeTable<'i>, above: DeTable<'i>) {
    for (key, value) in above {
        let old = below.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut);
        let merged = value.get_ref().as_table().is_some_and(|table| !table.contains_key("type"));
        match old {
            Some(DeValue::Table(old)) if merged => {
                if let DeValue::Table(table) = value.into_inner() {
                    overlay(old, table);
                }
            }
            _ => {
                below.remove(key.get_ref().as_ref());
                below.insert(key, value);
            }
        }
    }
}

/// The text before the value in [`Set::text`].
const VALUE: &str = "v = ";

impl<'a> Set<'a> {
    fn new(argument: &'a str, start: usize) -> Self {
        let (key, value) = argument.split_once('=').map_or((argument, None), |(key, value)| (key, Some(value.trim())));
        let mut set = Self { argument, key, start, text: None };
        set.text = value.map(|value| {
            let plain = set.line(value);
            // More than one entry: the text contains a line break followed by another key.
            match DeTable::parse(&plain) {
                Ok(table) if table.get_ref().len() == 1 => plain,
                _ => set.line(&toml::Value::from(value).to_string()),
            }
        });
        set
    }

    fn line(&self, value: &str) -> String {
        format!("{}{VALUE}{value}", " ".repeat(self.start + self.key.len()))
    }

    fn apply<'i>(&'i self, document: &mut DeTable<'i>, defaults: &DeTable<'i>) -> std::result::Result<(), String> {
        let Some(text) = &self.text else {
            return Err("expected section.key=value".into());
        };
        let mut at = self.start;
        let mut path = Vec::new();
        for part in self.key.split('.') {
            path.push(Spanned::new(at..at + part.len(), Cow::Borrowed(part.trim())));
            at += part.len() + 1;
        }
        if path.iter().any(|part| part.get_ref().is_empty()) {
            return Err(format!("{:?} is not a key; expected section.key=value", self.key));
        }
        let parsed = DeTable::parse(text).map_err(|e| e.message().to_string())?.into_inner();
        let Some((_, value)) = parsed.into_iter().next() else {
            return Err("expected section.key=value".into());
        };
        put(document, Some(defaults), &path, value)
    }
}

type SpannedKey<'i> = Spanned<Cow<'i, str>>;

/// Set `path` within `table` to `value`. An array that is only in the defaults is copied from there first.
fn put<'i>(
    table: &mut DeTable<'i>,
    defaults: Option<&DeTable<'i>>,
    path: &[SpannedKey<'i>],
    value: Spanned<DeValue<'i>>,
) -> std::result::Result<(), String> {
    let (key, rest) = path.split_first().ok_or_else(|| "expected section.key=value".to_string())?;
    let name = key.get_ref().as_ref();
    if rest.is_empty() {
        match table.get_mut(name) {
            Some(old) => *old = value,
            None => drop(table.insert(key.clone(), value)),
        }
        return Ok(());
    }
    let default = defaults.and_then(|defaults| defaults.get(name)).map(Spanned::get_ref);
    if !table.contains_key(name) {
        let empty = match default {
            Some(array @ DeValue::Array(_)) => array.clone(),
            _ => DeValue::Table(DeTable::new()),
        };
        table.insert(key.clone(), Spanned::new(key.span(), empty));
    }
    let inner = table.get_mut(name).map(Spanned::get_mut);
    match inner {
        Some(DeValue::Table(inner)) => put(inner, default.and_then(DeValue::as_table), rest, value),
        Some(DeValue::Array(array)) => {
            let (index, rest) = (rest[0].get_ref(), &rest[1..]);
            let count = array.len();
            let entry = index.parse().ok().and_then(|index: usize| array.get_mut(index));
            match entry {
                Some(old) if rest.is_empty() => {
                    *old = value;
                    Ok(())
                }
                Some(entry) => match entry.get_mut() {
                    DeValue::Table(entry) => put(entry, None, rest, value),
                    _ => Err(format!("{name}.{index} is a single value and has no keys")),
                },
                None => Err(format!("{name} has {count} entries, numbered from 0; there is no {name}.{index}")),
            }
        }
        _ => Err(format!("{name} is a single value and has no keys")),
    }
}
