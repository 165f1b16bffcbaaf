//! Strict, layered settings that are resolved once.
//!
//! The layers, from lowest to highest precedence: defaults, the files named by `base`, the TOML file itself, and
//! `--set section.key=value`. An unknown key is an error that suggests the nearest valid name: a mistyped setting that
//! silently keeps its default would waste a whole run.

mod explain;
mod layers;

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::DeTable;

use self::layers::Layers;
use crate::error::{Error, Result};

/// The settings of one command.
///
/// Implementing structs derive `Deserialize` with `#[serde(deny_unknown_fields, default)]`.
pub trait Settings: Serialize + DeserializeOwned + Default {
    /// Return all mistakes in the values. Each message starts with the key and says what to do.
    fn validate(&self) -> Vec<String>;

    /// Return, as TOML, defaults of the command that differ from those of its sections. They lie below every file.
    fn below() -> &'static str {
        ""
    }
}

/// Read settings from `file`, apply `sets` (`section.key=value`, later ones win) and validate the result.
///
/// A file with `base = "other.toml"` (relative to its folder) overrides the keys of that file; an array replaces the
/// array of the base as a whole. A value in `sets` is parsed as TOML. It is a string if it is not valid TOML or if the
/// setting is a string, so `device=cuda` and `name=2024` need no quotes. Tables in an array are addressed by index:
/// `stages.0.exit.max_steps=20`.
///
/// # Errors
/// An unreadable file; every mistake in keys and values, each with its file and line or its `--set`.
pub fn load<S: Settings>(file: Option<&Path>, sets: &[String]) -> Result<S> {
    read(file, sets, S::validate)
}

/// Read the settings of an existing run from `file`, without validating values: an earlier version of the program may
/// have accepted values that are refused now.
///
/// # Errors
/// See [`load`].
pub(crate) fn load_stored<S: Settings>(file: &Path) -> Result<S> {
    read(Some(file), &[], |_| Vec::new())
}

fn read<S: Settings>(file: Option<&Path>, sets: &[String], validate: fn(&S) -> Vec<String>) -> Result<S> {
    let defaults = to_toml(&S::default());
    let mut layers = Layers::read(file, S::below(), &defaults, sets)?;
    loop {
        match resolve(&layers, validate)? {
            Resolved::Settings(settings) => return Ok(settings),
            Resolved::Text(set) => layers.quote(set),
        }
    }
}

/// Return the settings as TOML that [`load`] can read.
///
/// # Panics
/// If `settings` is not a struct of values that TOML can represent, which is a mistake in its type.
pub fn to_toml<S: Serialize>(settings: &S) -> String {
    toml::to_string(settings).expect("settings are tables of TOML values")
}

/// The largest accepted number of tokens in a sequence.
pub const LENGTHS: usize = 1 << 24;
/// The largest accepted number of sequences or problems in a step.
pub const ROWS: usize = 1 << 20;
/// The largest accepted number of problems, all of which are in memory.
pub const PROBLEMS: usize = 1_000_000;
/// The largest accepted number of completions of an evaluation, whose texts are all in memory.
pub const COMPLETIONS: usize = 10_000_000;
/// The largest accepted number of steps.
pub const STEPS: usize = 1_000_000_000;
/// The largest accepted number of tokens.
pub const COUNTS: usize = 1_000_000_000;

/// Return the mistake in an integer that must be within `least..=most`, if there is one.
pub fn count(key: &str, value: usize, least: usize, most: usize) -> Option<String> {
    match value {
        0 if least == 1 => Some(format!("{key} = 0 must be positive")),
        _ if value < least => Some(format!("{key} = {value} must be at least {least}")),
        _ => (value > most).then(|| format!("{key} = {value} must be at most {most}")),
    }
}

/// Return the mistake in a list that has an entry twice, if there is one.
pub fn twice<T: PartialEq + Serialize>(key: &str, list: &[T]) -> Option<String> {
    let at = (1..list.len()).find(|&at| list[..at].contains(&list[at]))?;
    let name = serde_json::to_string(&list[at]).unwrap_or_else(|error| unreachable!("{error}"));
    Some(format!("{key} names {name} twice: remove one"))
}

/// A mistake and its origin: `file:line`, a `--set` or the defaults.
struct Mistake {
    origin: String,
    message: String,
}

fn config_error(mut mistakes: Vec<Mistake>) -> Error {
    // The first origin starts the message; each other one starts a line of its own.
    let first = mistakes.remove(0);
    let rest = mistakes.into_iter().map(|mistake| format!("{}: {}", mistake.origin, mistake.message));
    Error::Config { origin: first.origin, problems: std::iter::once(first.message).chain(rest).collect() }
}

/// The result of reading all layers.
enum Resolved<S> {
    Settings(S),
    /// The value of the `--set` with this index was parsed as TOML, but the setting is a string.
    Text(usize),
}

fn resolve<S: Settings>(layers: &Layers, validate: fn(&S) -> Vec<String>) -> Result<Resolved<S>> {
    // TOML's integers are signed. An unsigned setting takes a larger one, but the run's settings, once written, could
    // not be read as TOML.
    let read = |document: &Spanned<DeTable>| {
        let source = || toml::de::Deserializer::from(document.clone());
        toml::Table::deserialize(source()).and_then(|_| S::deserialize(source()))
    };
    let mut document = layers.document()?;
    // The deserialiser stops at the first mistake: record it, remove the key and continue.
    let mut mistakes: Vec<Mistake> = Vec::new();
    loop {
        let error = match read(&document) {
            Ok(settings) if mistakes.is_empty() => {
                let found = validate(&settings).into_iter();
                let origin = |message: &str| layers.origin_of(document.get_ref(), message);
                mistakes.extend(found.map(|message| Mistake { origin: origin(&message), message }));
                return if mistakes.is_empty() {
                    Ok(Resolved::Settings(settings))
                } else {
                    Err(config_error(mistakes))
                };
            }
            Ok(_) => return Err(config_error(mistakes)),
            Err(error) => error,
        };
        // The missing field may be a key that was removed above.
        if !mistakes.is_empty() && error.message().starts_with("missing field") {
            return Err(config_error(mistakes));
        }
        let span = error.span().unwrap_or(0..0);
        let path = explain::find(document.get_ref(), &span);
        let message_of = |document: &Spanned<DeTable>| read(document).err().map(|error| error.message().to_string());
        let found = explain::LocatedMessage { path, span, message: error.message().to_string() };
        let found = explain::narrow(&document, found, &message_of);
        if let Some(set) = layers.text_expected(&found.span, &found.message) {
            return Ok(Resolved::Text(set));
        }
        mistakes.push(Mistake {
            origin: layers.origin(found.span.start),
            message: explain::explain(&found, document.get_ref(), layers.written(&found.span)),
        });
        if !explain::remove(document.get_mut(), &found.path) {
            return Err(config_error(mistakes));
        }
    }
}

#[cfg(test)]
mod tests;
