//! `assets/settings/`: all settings with their defaults and doc comments. The files are generated here from the
//! sources, so that they cannot differ from them.
//!
//! `TEMPERING_RECORD_SETTINGS=1 cargo test --release settings::` rewrites the files.

use std::collections::BTreeMap;
use std::path::Path;

use tempering::config::{Settings, load, to_toml};
use tempering::study::StudyConfig;
use tempering::train::settings::RlConfig;
use tempering::train::sft::SftConfig;
use toml::{Table, Value};

use crate::support::repository;

/// Field of a struct or variant of an enum: doc comment, name in settings, and Rust type.
struct Key {
    doc: Vec<String>,
    name: String,
    of: String,
}

enum Type {
    Struct(Vec<Key>),
    Enum(Vec<Key>),
}

type Types = BTreeMap<String, Type>;

fn snake(name: &str) -> String {
    let lower = |(i, c): (usize, char)| if c.is_uppercase() && i > 0 { format!("_{c}") } else { c.to_string() };
    name.char_indices().map(lower).collect::<String>().to_lowercase()
}

/// Return the innermost type argument: `T` for `Option<Vec<T>>`.
fn innermost(of: &str) -> &str {
    of.split_once('<').map_or(of, |(_, rest)| innermost(rest.trim_end_matches('>')))
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Read the deserialisable structs and enums of a source file. `rewards! { file::Type, … }` is the enum `RewardKind`.
fn read_types(text: &str, types: &mut Types) {
    let mut lines = text.lines();
    let mut is_read = false;
    while let Some(line) = lines.next().map(|line| line.trim_start_matches("pub ")) {
        if line.starts_with("#[derive(") {
            is_read = line.contains("Deserialize");
        }
        let Some((kind, rest)) = line.split_once(' ').filter(|_| line.ends_with('{')) else { continue };
        match kind {
            "struct" | "enum" if is_read => read_keys(&mut lines, &word(rest), kind == "struct", types),
            "rewards!" => read_keys(&mut lines, "RewardKind", false, types),
            _ => {}
        }
    }
}

/// Read an item up to its closing brace. A variant with fields becomes a struct named after item and variant.
fn read_keys<'a>(lines: &mut impl Iterator<Item = &'a str>, item: &str, is_struct: bool, types: &mut Types) {
    let (mut keys, mut doc) = (Vec::new(), Vec::new());
    while let Some(line) = lines.next().map(str::trim).filter(|line| !line.starts_with('}')) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim().to_string());
        } else if let Some((name, of)) = line.trim_start_matches("pub ").split_once(": ").filter(|_| is_struct) {
            let of = innermost(of.trim_end_matches(',')).to_string();
            keys.push(Key { doc: std::mem::take(&mut doc), name: name.trim_start_matches("r#").to_string(), of });
        } else if !is_struct && !line.starts_with("#[") && !line.is_empty() {
            let name = word(line.rsplit("::").next().unwrap_or(line));
            let doc = std::mem::take(&mut doc);
            let of = if line.ends_with('{') {
                let own = format!("{item}{name}");
                read_keys(lines, &own, true, types);
                own
            } else {
                // A unit variant has no type; a line of `rewards!` is the name of a type.
                let alone = if line.contains("::") { name.clone() } else { String::new() };
                line.split_once('(').map_or(alone, |(_, of)| word(of))
            };
            keys.push(Key { doc, name: snake(&name), of });
        }
    }
    types.insert(item.to_string(), if is_struct { Type::Struct(keys) } else { Type::Enum(keys) });
}

fn read_sources(folder: &Path, types: &mut Types) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let stem = path.file_stem().unwrap().to_string_lossy();
        if ["cli", "report", "bench", "tests"].contains(&stem.as_ref()) {
            continue;
        }
        if path.is_dir() {
            read_sources(&path, types);
        } else if path.extension().is_some_and(|end| end == "rs") {
            read_types(&std::fs::read_to_string(path).unwrap(), types);
        }
    }
}

/// Keys of arrays of tables.
const ARRAYS: [&str; 4] = ["stages", "rewards", "max_completion_length_schedule", "arms"];

/// Nests `value` in tables along `path`, and in an array for keys in [`ARRAYS`].
fn within(path: &[&str], value: Value) -> Value {
    let Some((key, rest)) = path.split_first() else { return value };
    let inner = within(rest, value);
    let inner = if ARRAYS.contains(key) { Value::Array(vec![inner]) } else { inner };
    Value::Table(Table::from_iter([((*key).to_string(), inner)]))
}

fn below<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| match value.get(key)? {
        Value::Array(array) if ARRAYS.contains(key) => array.first(),
        value => Some(value),
    })
}

fn merge(table: &mut Table, above: &Table) {
    for (key, value) in above {
        match (table.get_mut(key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            _ => drop(table.insert(key.clone(), value.clone())),
        }
    }
}

struct Writer<'a> {
    types: &'a Types,
    /// Resolves the settings of a command, or returns the error.
    resolve: &'a dyn Fn(&Table) -> Result<Value, String>,
    /// Smallest valid file: the required keys.
    least: Table,
    text: String,
}

impl Writer<'_> {
    /// Resolve `value` at `path` with its defaults; return it and the keys that are required.
    fn default(&self, path: &[&str], value: Value) -> (Option<Value>, Vec<String>) {
        let (mut value, mut required) = (value, Vec::new());
        loop {
            let mut all = self.least.clone();
            merge(&mut all, within(path, value.clone()).as_table().unwrap());
            match (self.resolve)(&all) {
                Ok(settings) => return (below(&settings, path).cloned(), required),
                Err(error) => {
                    let Some(name) = error.split("missing field `").nth(1).and_then(|rest| rest.split('`').next())
                    else {
                        panic!("{path:?}: {error}")
                    };
                    let is_text = name == "name";
                    let one = if is_text { Value::from("NAME") } else { Value::Integer(1) };
                    value.as_table_mut().unwrap().insert(name.to_string(), one);
                    required.push(name.to_string());
                }
            }
        }
    }

    fn line(&mut self, hash: &str, line: &str) {
        self.text += format!("{hash}{line}").trim_end();
        self.text.push('\n');
    }

    fn doc(&mut self, hash: &str, doc: &[String]) {
        doc.iter().for_each(|line| self.line(hash, &format!("# {line}")));
    }

    /// Write the types of a tagged table, each with its keys.
    fn kinds(&mut self, hash: &str, path: &[&str], kinds: &[Key]) {
        let tag = if path == ["rollout"] { "engine" } else { "type" };
        for (index, Key { doc, name, of }) in kinds.iter().enumerate() {
            self.line(hash, &format!("#   {tag} = {name:?}: {}", doc.join(" ")));
            let Some(Type::Struct(keys)) = self.types.get(of) else { continue };
            if let Some(same) = kinds[..index].iter().find(|same| same.of == *of) {
                self.line(hash, &format!("#     the keys of {tag} = {:?}", same.name));
                continue;
            }
            let table = Table::from_iter([(tag.to_string(), Value::from(name.as_str()))]);
            let (found, required) = self.default(path, Value::Table(table));
            for Key { doc, name, .. } in keys {
                let value = match found.as_ref().and_then(|found| found.get(name)) {
                    _ if required.contains(name) => "must be given".to_string(),
                    Some(value) => shown(value),
                    None => "not set".to_string(),
                };
                self.line(hash, &format!("#     {name} ({value}): {}", doc.join(" ")));
            }
        }
    }

    /// Write the keys of a struct at `path`: single values first, then tables. `hash` is the comment prefix for the
    /// lines of a table that is absent by default.
    fn keys(&mut self, of: &str, path: &[&str], hash: &str) {
        let Some(Type::Struct(keys)) = self.types.get(of) else { panic!("{of} is no struct of the sources") };
        let empty = if path.is_empty() { Table::new() } else { self.least_at(path) };
        let (found, required) = self.default(path, Value::Table(empty));
        let found = found.unwrap_or(Value::Table(Table::new()));
        let is_table = |key: &&Key| matches!(self.types.get(table_type(&key.of)), Some(Type::Struct(_)));
        let (tables, single): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(is_table);
        for Key { doc, name, of } in single {
            self.doc(hash, doc);
            let here = [path, &[name.as_str()]].concat();
            if let Some(Type::Enum(kinds)) = self.types.get(of) {
                if kinds.iter().any(|kind| self.types.contains_key(&kind.of)) {
                    self.kinds(hash, &here, kinds);
                } else {
                    for Key { doc, name, .. } in kinds {
                        self.line(hash, &format!("#   {name:?}: {}", doc.join(" ")));
                    }
                }
            }
            match found.get(name) {
                _ if required.contains(name) => self.line("# ", &format!("{name} =   # must be given")),
                Some(value) => self.line(hash, &format!("{name} = {}", shown(value))),
                None => self.line("# ", &format!("{name} =")),
            }
        }
        for Key { doc, name, of } in tables {
            let here = [path, &[name.as_str()]].concat();
            let hash = if found.get(name).is_some() { hash } else { "# " };
            self.text.push('\n');
            self.doc(hash, doc);
            let header = here.join(".");
            let is_array = ARRAYS.contains(&name.as_str());
            self.line(hash, &if is_array { format!("[[{header}]]") } else { format!("[{header}]") });
            self.keys(table_type(of), &here, hash);
        }
    }

    /// Return the table at `path` in the command's smallest file, or an empty one.
    fn least_at(&self, path: &[&str]) -> Table {
        below(&Value::Table(self.least.clone()), path).and_then(Value::as_table).cloned().unwrap_or_default()
    }
}

/// Format a value on one line. TOML's writer would break multi-line strings.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| format!("{text:?}"))
}

/// Return the struct whose fields are the keys of a type. A loss is written with the keys of all losses.
fn table_type(of: &str) -> &str {
    if of == "StageLoss" { "Keys" } else { of }
}

fn list<S: Settings>(of: &str, least: &str) -> String {
    let mut types = Types::new();
    read_sources(&repository("src"), &mut types);
    let resolve = |table: &Table| -> Result<Value, String> {
        let mut all: Table = toml::from_str(S::below()).unwrap();
        merge(&mut all, table);
        let settings: S = all.try_into().map_err(|error: toml::de::Error| error.message().to_string())?;
        // Converts via text: a TOML value would have every f32 with the digits of an f64.
        Ok(toml::from_str(&to_toml(&settings)).unwrap())
    };
    let least = toml::from_str(least).unwrap();
    let mut writer = Writer { types: &types, resolve: &resolve, least, text: String::new() };
    writer.keys(of, &[], "");
    writer.text
}

fn check<S: Settings + PartialEq + std::fmt::Debug>(command: &str, of: &str, least: &str) {
    let text = list::<S>(of, least);
    let written: S = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut all: Table = toml::from_str(S::below()).unwrap();
    merge(&mut all, &toml::from_str(least).unwrap());
    let smallest: S = all.try_into().unwrap();
    assert_eq!(written, smallest, "{command}");
    let file = repository(&format!("assets/settings/{command}.toml"));
    if std::env::var_os("TEMPERING_RECORD_SETTINGS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let recorded = std::fs::read_to_string(&file).unwrap();
    assert!(recorded == text, "{} is not what the sources say: see the head of tests/settings.rs", file.display());
}

#[test]
fn all_settings_of_train_are_listed_with_their_defaults() {
    check::<RlConfig>("train", "RlConfig", "name = \"run\"\nmodel.path = \"MODEL\"\nstages = [{}]\n");
}

#[test]
fn all_settings_of_sft_are_listed_with_their_defaults() {
    check::<SftConfig>("sft", "SftConfig", "");
}

#[test]
fn all_settings_of_study_are_listed_with_their_defaults() {
    check::<StudyConfig>("study", "StudyConfig", "arms = [{}]\n");
}

fn read<S: Settings>(sets: &[&str]) -> Result<S, String> {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    load(None, &sets).map_err(|error| error.to_string())
}

fn assert_refused<S: Settings + std::fmt::Debug>(table: &[(&[&str], &str)]) {
    for (sets, want) in table {
        let error = read::<S>(sets).unwrap_err();
        assert!(error.contains(want), "{sets:?}: {error}");
    }
}

/// Regression: each of these settings was accepted silently.
#[test]
fn settings_of_train_without_effect_are_refused() {
    let files = "data={ train = \"a.jsonl\", eval = \"b.jsonl\" }";
    let layers = "train.conflict_cosine_layers=[\"model.layers.0.\"]";
    let stages = "stages=[{ name = \"compress\" }, { name = \"enhance\" }, { name = \"third\" }]";
    assert_refused::<RlConfig>(&[
        (
            &[files, "data.families=[\"story\"]"],
            "data.families = [\"story\"] is for the embedded tasks and has no effect with data.train = \"a.jsonl\" and \
                data.eval = \"b.jsonl\": leave it at []",
        ),
        (&[files, "data.difficulties=[1, 2]"], "data.difficulties = [1, 2] is for the embedded tasks"),
        (&[files, "data.tasks_seed=3"], "data.tasks_seed = 3 is for the embedded tasks"),
        (
            &["data.train=a.jsonl", "data.tasks_count=5"],
            "data.tasks_count = 5 is for the embedded tasks and has no effect with data.train = \"a.jsonl\": leave it \
             at 0",
        ),
        (
            &["data.prompt_field=q"],
            "data.prompt_field = \"q\" is for files and has no effect with data.train = \"tasks\"",
        ),
        (&["data.families=[\"story\", \"base\", \"story\"]"], "data.families names \"story\" twice"),
        (&["lora.target_modules=[\"q_proj\", \"q_proj\"]"], "lora.target_modules names \"q_proj\" twice"),
        (&["log.report_to=[\"tensorboard\", \"tensorboard\"]"], "log.report_to names \"tensorboard\" twice"),
        (&["eval.temperature=0", "eval.top_p=0.95"], "eval.top_p = 0.95 has no effect with eval.temperature = 0"),
        (&["eval.temperature=0", "eval.top_k=5"], "eval.top_k = 5 has no effect with eval.temperature = 0"),
        (&["eval.temperature=0", "eval.num_generations=4"], "eval.num_generations = 4 repeats the same completion"),
        (&[layers], "has no effect with train.conflict_cosine_steps = 0, which measures no cosine: leave it at []"),
        (&["reward.workers=4"], "reward.workers = 4 has no effect without reward.command: leave it at 1"),
        (
            &["stages.0.learning_rate_scale=0"],
            "stages.0.learning_rate_scale = 0 must be positive, or the stage would learn",
        ),
        (&["stages.0.sampling.top_k=1"], "stages.0.sampling.top_k = 1 keeps only the most probable token"),
        (
            &["stages.0.rewards=[{ type = \"accuracy\" }, { type = \"accuracy\" }]"],
            "stages.0.rewards.1 repeats rewards.0, \"accuracy\": remove one",
        ),
        (
            &["stages.0.difficulty_weighting={ steepness = 0.0 }"],
            "stages.0.difficulty_weighting.steepness = 0 gives all problems the same weight",
        ),
        (
            &["stages.0.tokens.entropy_bonus={ type = \"adaptive\", entropy_coef_max = 0.0 }"],
            "entropy_bonus.entropy_coef_min = 0 with entropy_coef_max = 0 is a constant coefficient",
        ),
        (&["stages.1.name=compress"], "stages.1.name = \"compress\" is also the name of stages.0"),
        (
            &["controller.max_steps=9", stages],
            "controller.compress and enhance do not name stages.2, \"third\", which would not be used: remove it",
        ),
    ]);
    let accepted: [&[&str]; 5] = [
        &[files, "data.difficulties=[1, 3]", "data.tasks_count=0"],
        &["data.train=a.jsonl", "data.families=[\"story\"]"],
        &["eval.temperature=0", "eval.repetition_penalty=1.1"],
        &[layers, "train.conflict_cosine_steps=5"],
        &["optim.warmup_steps=1000"],
    ];
    for sets in accepted {
        read::<RlConfig>(sets).unwrap();
    }
}

#[test]
fn settings_of_sft_without_effect_are_refused() {
    let model = "model.path=m";
    assert_refused::<SftConfig>(&[
        (
            &[model, "model.hidden_size=64"],
            "model.hidden_size = 64 is for a new model and has no effect with model.path = \"m\": leave it at 128",
        ),
        (
            &[model, "data.train=a.jsonl", "train.curriculum_steps=5"],
            "train.curriculum_steps = 5 is for the embedded tasks and has no effect with data.train = \"a.jsonl\"",
        ),
        (&[model, "data.train=a.jsonl", "data.prompt_field=q"], "data.prompt_field = \"q\" is for files of problems"),
    ]);
    read::<SftConfig>(&[model, "data.train=a.jsonl", "data.eval=b.jsonl", "data.prompt_field=q"]).unwrap();
}

/// Regression: the first two aborted when memory was allocated, and the last was said to fit.
#[test]
fn numbers_of_what_is_in_memory_are_bounded() {
    let million = "train.prompts_per_step=1048576";
    assert_refused::<RlConfig>(&[
        (&["eval.num_problems=1000000000"], "eval.num_problems = 1000000000 must be at most 1000000"),
        (&["data.tasks_count=1000000000"], "data.tasks_count = 1000000000 must be at most 1000000"),
        (
            &["eval.num_problems=1000", "eval.num_generations=1048576"],
            "makes 1048576000 completions, more than 10000000",
        ),
        (
            &[million, "train.num_generations=1048576"],
            "makes 1099511627776 completions per step, more than the maximum of 1048576",
        ),
        // These panicked or were said to be a file of an unknown kind.
        (&["train.save_steps=18446744073709551615"], "must be at most 9223372036854775807"),
        (&["data.eval="], "data.eval = \"\" is empty: give a file"),
    ]);
    read::<RlConfig>(&["train.prompts_per_step=65536", "train.num_generations=16", "eval.num_problems=1000000"])
        .unwrap();
}

/// Regression: a dry run showed the shape of a new model, which is not that of the model that is trained.
#[test]
fn a_shape_is_shown_for_new_models_alone() {
    let shown = |set: &str| to_toml(&read::<SftConfig>(&[set]).unwrap()).contains("hidden_size");
    assert!(!shown("model.path=m") && shown("model.tokenizer=t"));
    let error = read::<SftConfig>(&[]).unwrap_err();
    assert!(error.contains("model.path is empty: give the model to fine-tune"), "{error}");
}
