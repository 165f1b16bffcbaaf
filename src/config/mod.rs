//! Settings: strict, layered, resolved once.
//!
//! Defaults, then a TOML file over the files that its `base` names, then `--set section.key=value`. An unknown key is an
//! error with the nearest valid name, since a mistyped setting that is silently left at its default costs a whole run.

mod explain;
mod layers;

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::DeTable;

use self::layers::Layers;
use crate::error::{Error, Result};

/// Settings of one command.
///
/// Structs derive `Deserialize` with `#[serde(deny_unknown_fields, default)]`.
pub trait Settings: Serialize + DeserializeOwned + Default {
    /// Every problem with the values, each beginning with its key and saying what to do; empty when there is none.
    fn validate(&self) -> Vec<String>;

    /// Defaults that the command has and the parts of its settings have not, as TOML: they lie below every file.
    fn below() -> &'static str {
        ""
    }
}

/// Reads settings from `file`, changes them by `sets` (`section.key=value`, later ones win) and validates them.
///
/// A file with `base = "other.toml"` (relative to its folder) is laid over that one: its keys win, and an array of the
/// base is replaced as a whole. A value of `sets` is read as TOML; one that is not TOML is a text, and so is any value of
/// a setting that is a text, so that `device=cuda` and `name=2024` need no quotes. Tables in an array are addressed by
/// number: `stages.0.exit.max_steps=20`.
///
/// # Errors
/// Files that cannot be read, and every mistake in keys and values, each with the file and line or the `--set` it is from.
pub fn load<S: Settings>(file: Option<&Path>, sets: &[String]) -> Result<S> {
    let defaults = to_toml(&S::default());
    let mut layers = Layers::read(file, S::below(), &defaults, sets)?;
    loop {
        match resolve(&layers)? {
            Resolved::Settings(settings) => return Ok(settings),
            Resolved::Text(set) => layers.quote(set),
        }
    }
}

/// The settings as TOML that [`load`] reads back.
///
/// # Panics
/// When `settings` is not a struct of values that TOML has, which is a mistake in its type.
pub fn to_toml<S: Serialize>(settings: &S) -> String {
    toml::to_string(settings).expect("settings are tables of TOML values")
}

/// The largest number of tokens in a sequence that a setting may name.
pub const LENGTHS: usize = 1 << 24;
/// The largest number of sequences or problems in a step that a setting may name.
pub const ROWS: usize = 1 << 20;
/// The largest number of steps that a setting may name.
pub const STEPS: usize = 1_000_000_000;
/// The largest number of problems that a setting may name.
pub const COUNTS: usize = 1_000_000_000;

/// The mistake in a whole number that must be within `least` and `most`, if there is one.
pub fn count(key: &str, value: usize, least: usize, most: usize) -> Option<String> {
    match value {
        0 if least == 1 => Some(format!("{key} = 0 must be positive")),
        _ if value < least => Some(format!("{key} = {value} must be at least {least}")),
        _ => (value > most).then(|| format!("{key} = {value} must be at most {most}")),
    }
}

/// A mistake and where it is.
struct Mistake {
    origin: String,
    message: String,
}

fn config_error(mut mistakes: Vec<Mistake>) -> Error {
    // The first origin begins the message, every other stands on its own line.
    let first = mistakes.remove(0);
    let rest = mistakes.into_iter().map(|mistake| format!("{}: {}", mistake.origin, mistake.message));
    Error::Config { origin: first.origin, problems: std::iter::once(first.message).chain(rest).collect() }
}

/// The outcome of reading all layers.
enum Resolved<S> {
    Settings(S),
    /// The value of this `--set` is a text, and was read as something else.
    Text(usize),
}

fn resolve<S: Settings>(layers: &Layers) -> Result<Resolved<S>> {
    let read = |document: &Spanned<DeTable>| S::deserialize(toml::de::Deserializer::from(document.clone()));
    let mut document = layers.document()?;
    // The deserialiser stops at the first mistake: note it, take it out and go on to the next.
    let mut mistakes: Vec<Mistake> = Vec::new();
    loop {
        let error = match read(&document) {
            Ok(settings) if mistakes.is_empty() => {
                let found = settings.validate().into_iter();
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
        // A key that was taken out may be missed.
        if !mistakes.is_empty() && error.message().starts_with("missing field") {
            return Err(config_error(mistakes));
        }
        let span = error.span().unwrap_or(0..0);
        let path = explain::find(document.get_ref(), &span);
        let message_of = |document: &Spanned<DeTable>| read(document).err().map(|error| error.message().to_string());
        let found = explain::Found { path, span, message: error.message().to_string() };
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
