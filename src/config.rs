//! Settings: strict, layered, resolved once.
//!
//! Defaults, then one TOML file, then `--set section.key=value`. An unknown key is an error with the nearest valid
//! name, since a mistyped setting that is silently left at its default costs a whole run.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Error, Result};

/// Settings of one command.
///
/// Structs derive `Deserialize` with `#[serde(deny_unknown_fields, default)]`.
pub trait Settings: Serialize + DeserializeOwned + Default {
    /// Every problem with the values, each naming key and value and what to do; empty when there is none.
    fn validate(&self) -> Vec<String>;
}

/// Reads settings from `file`, changes them by `sets` (`section.key=value`, later ones win) and validates them.
///
/// A value is read as TOML; what is not TOML is a text, so that `device=cuda` needs no quotes. Tables in an array are
/// addressed by number: `stages.0.temperature=1.2`.
pub fn load<S: Settings>(file: Option<&Path>, sets: &[String]) -> Result<S> {
    let settings = parse::<S>(file, sets)?;
    let problems = settings.validate();
    if problems.is_empty() {
        return Ok(settings);
    }
    let origin = match file {
        Some(file) => file.display().to_string(),
        None if sets.is_empty() => "defaults".to_string(),
        None => "--set".to_string(),
    };
    Err(Error::Config { origin, problems })
}

/// The settings as TOML that [`load`] reads back.
///
/// # Panics
/// When `settings` is not a struct of values that TOML has, which is a mistake in its type.
pub fn to_toml<S: Serialize>(settings: &S) -> String {
    toml::to_string(settings).expect("settings are tables of TOML values")
}

/// A problem and where it is.
struct Problem {
    origin: String,
    message: String,
}

fn config_error(mut problems: Vec<Problem>) -> Error {
    // The first origin begins the message, every other stands on its own line.
    let first = problems.remove(0);
    let rest = problems.into_iter().map(|problem| format!("{}: {}", problem.origin, problem.message));
    Error::Config { origin: first.origin, problems: std::iter::once(first.message).chain(rest).collect() }
}

fn parse<S: Settings>(file: Option<&Path>, sets: &[String]) -> Result<S> {
    let default_text = to_toml(&S::default());
    let text = match file {
        Some(file) => std::fs::read_to_string(file).map_err(Error::io(file))?,
        None => default_text.clone(),
    };
    let layers = Layers::new(file, &text, sets);
    let syntax = |e: toml::de::Error| {
        let at = e.span().map_or(0, |span| span.start);
        config_error(vec![Problem { origin: layers.origin(at), message: e.message().to_string() }])
    };
    let mut document = DeTable::parse(&text).map_err(syntax)?;
    let defaults = DeTable::parse(&default_text).map_err(syntax)?;
    for layer in &layers.sets {
        layer
            .apply(&mut document, defaults.get_ref())
            .map_err(|message| config_error(vec![Problem { origin: layers.origin(layer.start), message }]))?;
    }

    // The deserialiser stops at the first mistake: note it, take it out and go on to the next.
    let mut problems: Vec<Problem> = Vec::new();
    loop {
        let error = match S::deserialize(toml::de::Deserializer::from(document.clone())) {
            Ok(settings) if problems.is_empty() => return Ok(settings),
            Ok(_) => return Err(config_error(problems)),
            Err(error) => error,
        };
        // A key that we took out may be missed.
        if !problems.is_empty() && error.message().starts_with("missing field") {
            return Err(config_error(problems));
        }
        let span = error.span().unwrap_or(0..0);
        let path = find(document.get_ref(), &span);
        problems.push(Problem {
            origin: layers.origin(span.start),
            message: explain(error.message(), &path, layers.text(&span)),
        });
        if !remove(document.get_mut(), &path) {
            return Err(config_error(problems));
        }
    }
}

/// The file and the `--set`s laid end to end, so that a position tells which of them it is in.
struct Layers<'a> {
    file: String,
    text: &'a str,
    sets: Vec<Layer<'a>>,
}

/// One `--set`.
struct Layer<'a> {
    argument: &'a str,
    start: usize,
    key: &'a str,
    /// `v = value` as TOML, after as many blanks as bring it behind `start` and the key.
    source: Option<String>,
}

impl<'a> Layers<'a> {
    fn new(file: Option<&Path>, text: &'a str, sets: &'a [String]) -> Self {
        let mut start = text.len() + 1;
        let sets = sets
            .iter()
            .map(|argument| {
                let layer = Layer::new(argument, start);
                start = layer.source.as_ref().map_or(start, String::len) + 1;
                layer
            })
            .collect();
        Self { file: file.map_or_else(|| "settings".to_string(), |file| file.display().to_string()), text, sets }
    }

    fn layer(&self, at: usize) -> Option<&Layer<'a>> {
        self.sets.iter().rev().find(|layer| layer.start <= at)
    }

    fn origin(&self, at: usize) -> String {
        match self.layer(at) {
            Some(layer) => format!("--set {}", layer.argument),
            None if self.text.is_empty() => self.file.clone(),
            None => {
                let before = &self.text.as_bytes()[..at.min(self.text.len())];
                format!("{}:{}", self.file, before.iter().filter(|b| **b == b'\n').count() + 1)
            }
        }
    }

    fn text(&self, span: &Range<usize>) -> Option<&str> {
        self.layer(span.start).and_then(|layer| layer.source.as_deref()).unwrap_or(self.text).get(span.clone())
    }
}

impl<'a> Layer<'a> {
    fn new(argument: &'a str, start: usize) -> Self {
        let (key, value) = argument.split_once('=').map_or((argument, None), |(key, value)| (key, Some(value.trim())));
        let source = value.map(|value| {
            let pad = " ".repeat(start + key.len());
            let plain = format!("{pad}v = {value}");
            // More than one entry means that the text had a line break and another key in it.
            match DeTable::parse(&plain) {
                Ok(table) if table.get_ref().len() == 1 => plain,
                _ => format!("{pad}v = {}", toml::Value::from(value)),
            }
        });
        Self { argument, start, key, source }
    }

    fn apply<'i>(
        &'i self,
        document: &mut Spanned<DeTable<'i>>,
        defaults: &DeTable<'i>,
    ) -> std::result::Result<(), String> {
        let Some(source) = &self.source else {
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
        let parsed = DeTable::parse(source).map_err(|e| e.message().to_string())?.into_inner();
        let Some((_, value)) = parsed.into_iter().next() else {
            return Err("expected section.key=value".into());
        };
        put(document.get_mut(), Some(defaults), &path, value)
    }
}

type Key<'i> = Spanned<Cow<'i, str>>;

/// Sets `path` within `table` to `value`. An array that only the defaults have is taken from there first.
fn put<'i>(
    table: &mut DeTable<'i>,
    defaults: Option<&DeTable<'i>>,
    path: &[Key<'i>],
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

/// Takes the key at `path` out; false when there is none or it is an entry of an array.
fn remove(table: &mut DeTable<'_>, path: &[String]) -> bool {
    let Some((name, rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        return table.remove(name.as_str()).is_some();
    }
    match table.get_mut(name.as_str()).map(Spanned::get_mut) {
        Some(DeValue::Table(inner)) => remove(inner, rest),
        Some(DeValue::Array(array)) => {
            let entry = rest[0].parse().ok().and_then(|index: usize| array.get_mut(index));
            match entry.map(Spanned::get_mut) {
                Some(DeValue::Table(entry)) => remove(entry, &rest[1..]),
                _ => false,
            }
        }
        _ => false,
    }
}

/// The path of the key or value at `span`: the one with just this span, or else the smallest around it.
fn find(table: &DeTable<'_>, span: &Range<usize>) -> Vec<String> {
    let mut best: Option<(usize, Vec<String>)> = None;
    let mut offer = |here: Range<usize>, path: &[String]| {
        let size = here.len();
        if here.start <= span.start && span.end <= here.end && best.as_ref().is_none_or(|(other, _)| size < *other) {
            best = Some((size, path.to_vec()));
        }
    };
    if !span.is_empty() {
        visit(table, &mut Vec::new(), &mut offer);
    }
    best.map(|(_, path)| path).unwrap_or_default()
}

fn visit(table: &DeTable<'_>, path: &mut Vec<String>, offer: &mut impl FnMut(Range<usize>, &[String])) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        offer(key.span(), path);
        visit_value(value, path, offer);
        path.pop();
    }
}

fn visit_value(value: &Spanned<DeValue<'_>>, path: &mut Vec<String>, offer: &mut impl FnMut(Range<usize>, &[String])) {
    offer(value.span(), path);
    match value.get_ref() {
        DeValue::Table(inner) => visit(inner, path, offer),
        DeValue::Array(array) => {
            for (index, entry) in array.iter().enumerate() {
                path.push(index.to_string());
                visit_value(entry, path, offer);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Says serde's message in terms of the key and the value as written.
fn explain(message: &str, path: &[String], written: Option<&str>) -> String {
    let key = path.join(".");
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") {
        let name = quoted.next().unwrap_or_default();
        let valid: Vec<&str> = quoted.collect();
        // Where serde has buffered a table, the position is the table's.
        let key = match path.last() {
            Some(last) if last == name => key,
            Some(_) => format!("{key}.{name}"),
            None => name.to_string(),
        };
        return format!("unknown key {key}; {}", advice(name, &valid));
    }
    let written = written.filter(|text| text.len() <= 80 && !text.contains('\n') && !text.is_empty());
    // A table's position is its header, which is no value to show.
    let header = |text: &str| text.starts_with('[') && path.last().is_some_and(|name| text.contains(name.as_str()));
    let subject = match written {
        _ if key.is_empty() => String::new(),
        Some(value) if !header(value) => format!("{key} = {value}: "),
        _ => format!("{key}: "),
    };
    if message.starts_with("unknown variant") {
        let name = quoted.next().unwrap_or_default();
        let valid: Vec<&str> = quoted.collect();
        return format!("{subject}{}", advice(name, &valid));
    }
    let reworded = (message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: ")))
        .and_then(|rest| rest.rsplit_once(", expected "));
    match reworded {
        Some((got, expected)) => format!("{subject}expected {}, got {got}", plain(expected)),
        None => format!("{subject}{message}"),
    }
}

/// The nearest of `valid`, or all of them when none is near.
fn advice(name: &str, valid: &[&str]) -> String {
    let near = valid.iter().map(|valid| (strsim::damerau_levenshtein(name, valid), *valid)).min();
    match near {
        Some((distance, near)) if distance <= 2.max(near.len() / 3) && distance < near.len().min(name.len()) => {
            format!("did you mean {near}?")
        }
        Some(_) => format!("expected one of {}", valid.join(", ")),
        None => "there are no keys here".to_string(),
    }
}

/// A Rust type in words.
fn plain(expected: &str) -> &str {
    match expected {
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        other => other.strip_prefix("struct ").map_or(other, |_| "a table"),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        seed: u64,
        device: String,
        optim: Optim,
        stages: Vec<Stage>,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Optim {
        learning_rate: f64,
        warmup_steps: usize,
        schedule: Schedule,
    }

    impl Default for Optim {
        fn default() -> Self {
            Self { learning_rate: 1e-6, warmup_steps: 10, schedule: Schedule::Constant }
        }
    }

    #[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Schedule {
        Constant,
        Cosine { floor: f64 },
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Stage {
        temperature: f32,
        clip: Option<f32>,
    }

    impl Default for Stage {
        fn default() -> Self {
            Self { temperature: 1.0, clip: None }
        }
    }

    impl Settings for Sample {
        fn validate(&self) -> Vec<String> {
            let mut problems = Vec::new();
            if self.optim.learning_rate <= 0.0 {
                problems.push(format!("optim.learning_rate = {}: must be positive", self.optim.learning_rate));
            }
            if self.seed == 13 {
                problems.push("seed = 13: choose another".into());
            }
            problems
        }
    }

    /// Settings whose default already has stages.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Preset {
        stages: Vec<Stage>,
    }

    impl Default for Preset {
        fn default() -> Self {
            Self { stages: vec![Stage { temperature: 0.7, clip: Some(0.2) }, Stage::default()] }
        }
    }

    impl Settings for Preset {
        fn validate(&self) -> Vec<String> {
            Vec::new()
        }
    }

    const FILE: &str = "seed = 3\n\n[optim]\nlearning_rate = 2e-5\nschedule = { cosine = { floor = 0.1 } }\n\n\
                        [[stages]]\ntemperature = 0.5\n\n[[stages]]\ntemperature = 0.25\n";

    fn read(text: &str, sets: &[&str]) -> std::result::Result<Sample, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.toml");
        std::fs::write(&file, text).unwrap();
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        let folder = format!("{}/", dir.path().display());
        load(Some(&file), &sets).map_err(|e| e.to_string().replace(&folder, ""))
    }

    #[test]
    fn defaults_then_file_then_sets() {
        assert_eq!(load::<Sample>(None, &[]).unwrap(), Sample::default());
        let file = read(FILE, &[]).unwrap();
        assert_eq!((file.seed, file.optim.learning_rate, file.optim.warmup_steps), (3, 2e-5, 10));
        assert_eq!(file.optim.schedule, Schedule::Cosine { floor: 0.1 });
        let sets = [
            "device=cuda",
            "seed = 4",
            "seed=5",
            "optim.learning_rate=1",
            "optim.schedule=constant",
            "stages.1.temperature=1.5",
            "stages.0.clip=0.2",
        ];
        let set = read(FILE, &sets).unwrap();
        assert_eq!((set.seed, set.device.as_str(), set.optim.learning_rate), (5, "cuda", 1.0));
        assert_eq!(set.optim.schedule, Schedule::Constant);
        assert_eq!(set.stages[0], Stage { temperature: 0.5, clip: Some(0.2) });
        assert_eq!(set.stages[1].temperature, 1.5);
        let whole = load::<Sample>(None, &["optim={ warmup_steps = 7 }".into(), "stages=[{}, {}]".into()]).unwrap();
        assert_eq!((whole.optim.warmup_steps, whole.stages.len()), (7, 2));
        let text = load::<Sample>(None, &["device=two words, 1 = \"x\"\ny = 2".into()]).unwrap();
        assert_eq!(text.device, "two words, 1 = \"x\"\ny = 2");
    }

    #[test]
    fn arrays_of_the_defaults_can_be_changed_by_number() {
        let preset: Preset = load(None, &["stages.1.temperature=1.2".into()]).unwrap();
        assert_eq!(preset.stages, [Preset::default().stages[0].clone(), Stage { temperature: 1.2, clip: None }]);
        let error = load::<Preset>(None, &["stages.2.temperature=1.2".into()]).unwrap_err().to_string();
        assert!(error.contains("stages has 2 entries") && error.contains("no stages.2"), "{error}");
    }

    #[test]
    fn unknown_keys_name_place_path_and_the_nearest_name() {
        let table = [
            ("sed = 1", "x.toml:1: unknown key sed; did you mean seed?"),
            (
                "seed = 1\n[optim]\nlearning_rat = 1",
                "x.toml:3: unknown key optim.learning_rat; did you mean learning_rate?",
            ),
            ("optim.learning_rat = 1", "x.toml:1: unknown key optim.learning_rat; did you mean learning_rate?"),
            (
                "[[stages]]\n[[stages]]\ntemprature = 1",
                "x.toml:3: unknown key stages.1.temprature; did you mean temperature?",
            ),
            ("[stage]\nx = 1", "x.toml:1: unknown key stage; did you mean stages?"),
            ("\nzzz = 1", "x.toml:2: unknown key zzz; expected one of seed, device, optim, stages"),
        ];
        for (text, want) in table {
            assert_eq!(read(text, &[]).unwrap_err(), want);
        }
        let want = "--set optim.learning_rat=1: unknown key optim.learning_rat; did you mean learning_rate?";
        assert_eq!(read(FILE, &["seed=4", "optim.learning_rat=1"]).unwrap_err(), want);
        assert_eq!(load::<Sample>(None, &["optim.learning_rat=1".into()]).unwrap_err().to_string(), want);
        let want = "--set stages.0.temp=1: unknown key stages.0.temp; expected one of temperature, clip";
        assert_eq!(read(FILE, &["stages.0.temp=1"]).unwrap_err(), want);
    }

    #[test]
    fn wrong_types_name_key_value_and_what_was_expected() {
        let table = [
            (
                "[optim]\nlearning_rate = \"fast\"",
                "x.toml:2: optim.learning_rate = \"fast\": expected a number, got string \"fast\"",
            ),
            ("seed = -1", "x.toml:1: seed = -1: expected a whole number that is not negative, got integer `-1`"),
            (
                "[[stages]]\ntemperature = true",
                "x.toml:2: stages.0.temperature = true: expected a number, got boolean `true`",
            ),
            ("[optim]\nschedule = \"cosin\"", "x.toml:2: optim.schedule = \"cosin\": did you mean cosine?"),
            ("optim = 3", "x.toml:1: optim = 3: expected a table, got integer `3`"),
        ];
        for (text, want) in table {
            assert_eq!(read(text, &[]).unwrap_err(), want);
        }
        let want = "--set optim.warmup_steps=1.5: optim.warmup_steps = 1.5: expected a whole number that is not negative, \
                    got floating point `1.5`";
        assert_eq!(read(FILE, &["optim.warmup_steps=1.5"]).unwrap_err(), want);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let error =
            read("sed = 1\nseed = 2\n[optim]\nlearning_rate = \"x\"\nwarmup = 3", &["devise=cuda"]).unwrap_err();
        for want in [
            "unknown key sed",
            "x.toml:4: optim.learning_rate",
            "x.toml:5: unknown key optim.warmup",
            "--set devise=cuda: ",
        ] {
            assert!(error.contains(want), "{want}: {error}");
        }
        let error = read("seed = 13\noptim.learning_rate = 0", &[]).unwrap_err();
        assert_eq!(error, "x.toml: optim.learning_rate = 0: must be positive\n  seed = 13: choose another");
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        assert!(read("seed = \n", &[]).unwrap_err().starts_with("x.toml:1: "));
        assert!(read("seed = 1\nseed = 2", &[]).unwrap_err().starts_with("x.toml:2: "));
        let missing = load::<Sample>(Some(Path::new("no/such.toml")), &[]).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }) && missing.to_string().starts_with("no/such.toml: "), "{missing}");
        for (set, want) in [
            ("seed", "--set seed: expected section.key=value"),
            ("=1", "\"\" is not a key"),
            ("optim..x=1", "is not a key"),
            ("seed.x=1", "seed is a single value and has no keys"),
        ] {
            let error = read(FILE, &[set]).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn the_dump_reads_back() {
        let settings = read(FILE, &["device=it's \"new\"", "stages.0.clip=0.2"]).unwrap();
        assert_eq!(read(&to_toml(&settings), &[]).unwrap(), settings);
        assert_eq!(read(&to_toml(&Sample::default()), &[]).unwrap(), Sample::default());
        let large = read("", &["seed=18446744073709551615"]).unwrap();
        assert_eq!(read(&to_toml(&large), &[]).unwrap(), large);
    }
}
