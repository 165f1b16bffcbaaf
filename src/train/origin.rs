//! The origin of a run, in `run.json` and `config.toml`, and the differences from it that a resumed run may have.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::run::{Common, RunSettings};
use crate::config::{self, to_toml};
use crate::data::Problem;
use crate::data::benchmarks;
use crate::data::problems::TASKS;
use crate::error::{Error, Result};
use crate::files;
use crate::hub::{self, ModelFiles, Name, RepoKind};
use crate::model::lora;

const FILE: &str = "run.json";
const SETTINGS: &str = "config.toml";

/// Settings that a resumed run may change: its length, its cadence of reports and checkpoints, its use of memory, and
/// its timeouts. None of them changes a step that would be done anyway, except for scores for which a reward program
/// was too slow. `*` stands for the index of a table.
const FREE: [&str; 32] = [
    "log.report_to",
    "log.command",
    "output_dir",
    "name",
    "device",
    "cycles",
    "controller.max_steps",
    "stages.*.exit.max_steps",
    "train.max_steps",
    "train.max_sampled_tokens",
    "train.save_steps",
    "train.save_total_limit",
    "train.eval_steps",
    "train.log_completions_steps",
    "train.tokens_per_microbatch",
    "train.activation_checkpointing",
    "train.generation_rows",
    "train.generation_cache_tokens",
    "train.generation_tokens_per_read",
    "eval.rows",
    "reward.timeout_s",
    "rollout.urls",
    "rollout.model",
    "rollout.api_key_env",
    "rollout.concurrency",
    "rollout.sync_dir",
    "rollout.server_dir",
    "rollout.connect_timeout_s",
    "rollout.request_timeout_s",
    "rollout.sync_timeout_s",
    "rollout.start_timeout_s",
    "rollout.retries",
];

/// Return the digest of each list of problems that a program gave, by its name in messages.
pub(super) fn digests_of_given(lists: [(&str, Option<&[Problem]>); 2]) -> BTreeMap<String, String> {
    let digest = |problems: &[Problem]| {
        let lines = problems.iter().map(|problem| format!("{:016x} {:?}\n", problem.id, problem.answer));
        files::sha256_of(lines.collect::<String>().as_bytes())
    };
    let given = lists.into_iter().filter_map(|(name, problems)| Some((name, problems?)));
    given.map(|(name, problems)| (format!("the program's list of {name}"), digest(problems))).collect()
}

/// `run.json`, which marks a folder as a run and has its identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Version of the program that started the run.
    pub(super) tempering: String,
    /// `train` or `sft`.
    pub(super) command: String,
    /// Random identity, also stored in each of the run's checkpoints.
    pub(super) id: String,
    /// Time of the start, in seconds since 1970.
    pub(super) started: u64,
    /// SHA-256 of each file that affects training, by the setting that names it; for weights the digest of a sample.
    /// For data and models of the Hub, the commit. Also the digests of problems that a program gives.
    pub(super) reads: BTreeMap<String, String>,
    /// All settings. Runs of earlier versions only have those in `config.toml`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    settings: Value,
    /// Name of the sibling folder with the run that this one replaces, until the first step is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) replaces: Option<PathBuf>,
    /// Last step, once the final model and the summary are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) finished: Option<usize>,
}

impl Origin {
    /// Return the origin of a run that starts now. `given` has the digests of problems that are of no file.
    pub(super) fn new<C: RunSettings>(config: &C, given: BTreeMap<String, String>) -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            tempering: env!("CARGO_PKG_VERSION").to_string(),
            command: C::COMMAND.to_string(),
            id: random_id(now.as_nanos()),
            started: now.as_secs(),
            reads: digests(&config.common())?.into_iter().chain(given).collect(),
            settings: Value::Null,
            replaces: None,
            finished: None,
        })
    }

    /// Whether a folder is marked as a run.
    pub(super) fn marks(dir: &Path) -> bool {
        dir.join(FILE).is_file()
    }

    pub(super) fn read(dir: &Path) -> Result<Self> {
        files::read_json(&dir.join(FILE))
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        files::write_json(&dir.join(FILE), self)
    }

    /// Write the settings of a run twice: to `config.toml`, which users may edit, and to `run.json`, with which a
    /// resumed run is compared.
    pub(super) fn write_settings<C: RunSettings>(&mut self, dir: &Path, config: &C) -> Result<()> {
        files::write(&dir.join(SETTINGS), to_toml(config).as_bytes())?;
        self.settings = serde_json::to_value(config).unwrap_or_else(|error| unreachable!("{error}"));
        self.write(dir)
    }

    /// Compare the settings and files of a resumed run, and the `given` problems, with those it was started with.
    /// Return the allowed differences as `key = new (was old)`.
    ///
    /// # Errors
    /// All other differences.
    pub(super) fn compare<C: RunSettings>(
        &self,
        dir: &Path,
        config: &C,
        given: BTreeMap<String, String>,
    ) -> Result<Vec<String>> {
        if self.command != C::COMMAND {
            let message = format!("was started by `tempering {}`, not by `tempering {}`", self.command, C::COMMAND);
            return Err(Error::file(dir, message));
        }
        let stored: C = match &self.settings {
            Value::Null => settings(dir)?,
            stored => serde_json::from_value(stored.clone()).map_err(|error| Error::file(dir.join(FILE), error))?,
        };
        // Settings without effect are refused. A run of an earlier version that has one must be able to drop it.
        let idle = stored.idle();
        let (mut allowed, mut refused) = (Vec::new(), Vec::new());
        for (key, was, is) in differences(&stored, config) {
            // Earlier versions did not store the date of the prompts.
            let undated = key == "prompt.date" && was == "\"\"";
            let may_change = is_free(&key) || undated || idle.iter().any(|idle| idle.key == key);
            let list = if may_change { &mut allowed } else { &mut refused };
            list.push(format!("{key} = {is} (was {was})"));
        }
        let now: BTreeMap<_, _> = digests(&config.common())?.into_iter().chain(given).collect();
        for name in self.reads.keys().chain(now.keys().filter(|name| !self.reads.contains_key(*name))) {
            // If the setting itself differs, its files are not reported as well.
            let same_setting = refused.iter().all(|line| !line.starts_with(name.split(": ").next().unwrap_or(name)));
            match (self.reads.get(name), now.get(name)) {
                (Some(was), Some(is)) if was == is => {}
                _ if !same_setting => {}
                (Some(_), Some(_)) => refused.push(format!("{name} has changed since the run started")),
                (Some(_), None) => refused.push(format!("{name} is missing")),
                (None, _) => refused.push(format!("{name} was not used when the run started")),
            }
        }
        if refused.is_empty() {
            return Ok(allowed);
        }
        refused.push(format!(
            "a resumed run keeps its settings, except for its length, how often it evaluates and saves, and its use of \
             memory: do not change the settings above (`--resume {}` alone uses those of the run, and {SETTINGS} in \
             its folder must be unchanged), or start another run with --set name=…",
            dir.display()
        ));
        Err(Error::Config { origin: format!("{} was started with other settings", dir.display()), problems: refused })
    }
}

/// Read the settings of a run from its `config.toml`.
pub(super) fn settings<C: RunSettings>(dir: &Path) -> Result<C> {
    config::load_stored(&dir.join(SETTINGS))
}

/// Return 128 random bits that identify a run. They depend on random keys of the system, the process id and the time.
fn random_id(now: u128) -> String {
    let word = || {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.write_u128(now);
        hasher.finish()
    };
    format!("{:016x}{:016x}", word(), word())
}

/// Return the SHA-256 of the files that affect the training of a run, by `setting: file`.
pub(crate) fn digests_of<C: RunSettings>(config: &C) -> Result<BTreeMap<String, String>> {
    digests(&config.common())
}

/// Return the SHA-256 of files, or the commits of Hub names, that affect training, by `setting: file`.
fn digests(common: &Common) -> Result<BTreeMap<String, String>> {
    const NAMES: [&str; 11] = [
        "config.json",
        "adapter_config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
    ];
    let mut found = BTreeMap::new();
    for (key, path) in data_names(common) {
        let content = match benchmarks::hub_name(path)? {
            Some(name) => hub::commit_of(&name)?,
            None => files::sha256(path)?,
        };
        found.insert(format!("{key}: {}", path.display()), content);
    }
    for (key, dir) in models(common)? {
        if let Some(commit) = hub::commit(RepoKind::Model, &dir)? {
            found.insert(format!("{key}: {}", dir.display()), commit);
            continue;
        }
        for (name, path) in files::entries(&dir)? {
            if name.ends_with(".safetensors") {
                found.insert(format!("{key}: {name}"), files::sampled_sha256(&path)?);
            } else if NAMES.contains(&name.as_str()) || name.ends_with(".safetensors.index.json") {
                found.insert(format!("{key}: {name}"), files::sha256(&path)?);
            }
        }
    }
    Ok(found)
}

/// Return the files or Hub names of problems, by setting.
fn data_names<'a>(common: &Common<'a>) -> impl Iterator<Item = (&'static str, &'a PathBuf)> + use<'a> {
    let data = common.data;
    let both = [("data.train", &data.train), ("data.eval", &data.eval)];
    both.into_iter().filter(|(_, path)| path.as_os_str() != TASKS)
}

/// Return the folders or Hub names of the model, of the tokenizer and of an adapter's base model, by setting.
fn models(common: &Common) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut dirs = Vec::new();
    for (key, dir) in [("model.path", common.model), ("model.tokenizer", common.tokenizer)] {
        if dir.as_os_str().is_empty() || dirs.iter().any(|(_, other): &(_, PathBuf)| other == dir) {
            continue;
        }
        dirs.push((key, dir.to_path_buf()));
        let folder = hub::model(dir, ModelFiles::Settings)?;
        if lora::is_adapter(&folder) {
            dirs.push(("base model of model.path", lora::base_name(&folder)?));
        }
    }
    Ok(dirs)
}

/// Return all local paths that a run reads, by setting. `--overwrite` must not replace them.
pub(super) fn reads(common: &Common) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut paths = models(common)?;
    paths.extend(data_names(common).map(|(key, path)| (key, path.clone())));
    paths.retain(|(_, path)| path.exists());
    Ok(paths)
}

fn is_free(key: &str) -> bool {
    let numbered: Vec<&str> =
        key.split('.').map(|part| if part.bytes().all(|byte| byte.is_ascii_digit()) { "*" } else { part }).collect();
    FREE.contains(&numbered.join(".").as_str())
}

/// Return the settings that differ, each as key, old value and new value.
fn differences<C: Serialize>(was: &C, is: &C) -> Vec<(String, String, String)> {
    let leaves = |config: &C| {
        let mut found = Vec::new();
        flatten(
            &serde_json::to_value(config).unwrap_or_else(|error| unreachable!("{error}")),
            String::new(),
            &mut found,
        );
        found
    };
    let (was, is) = (leaves(was), leaves(is));
    let value = |list: &[(String, String)], key: &str| {
        list.iter().find(|(other, _)| other == key).map_or("not set".to_string(), |(_, value)| value.clone())
    };
    let added = is.iter().filter(|(key, _)| was.iter().all(|(other, _)| other != key));
    let keys = was.iter().chain(added).map(|(key, _)| key);
    let rows = keys.map(|key| (key.clone(), value(&was, key), value(&is, key)));
    rows.filter(|(_, was, is)| was != is).collect()
}

/// Collect the values of a tree by dotted key. A list of single values is one value.
fn flatten(value: &Value, key: String, found: &mut Vec<(String, String)>) {
    let inner = |name: &str| if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
    match value {
        Value::Object(table) => table.iter().for_each(|(name, value)| flatten(value, inner(name), found)),
        Value::Array(list) if list.iter().any(Value::is_object) => {
            list.iter().enumerate().for_each(|(index, value)| flatten(value, inner(&index.to_string()), found));
        }
        Value::Number(number) => found.push((key, short(number))),
        other => found.push((key, other.to_string())),
    }
}

/// Format a number as it was written. A single-precision setting would otherwise show the extra digits of its double.
fn short(number: &serde_json::Number) -> String {
    match number.as_f64() {
        Some(double) if number.is_f64() && f64::from(double as f32) == double => (double as f32).to_string(),
        _ => number.to_string(),
    }
}

/// Return `config` with its open settings filled in. An empty date of chat templates becomes that of the resumed run;
/// for a new run it stays empty here, and [`Tokenizer::prompt`](crate::text::tokenizer::Tokenizer::prompt) has the date
/// of the start if the template reads one. A Hub name without a revision gets the commit of the resumed run; for a new
/// run, the current commit.
///
/// # Errors
/// Settings of the resumed run that cannot be read; errors of the Hub.
pub(crate) fn settled<C: RunSettings>(config: &C, resumed: Option<&Path>) -> Result<C> {
    let mut config = config.clone();
    // A folder that is no run, or a run of another command, is reported when the folder is opened.
    let ours = |dir: &&Path| Origin::read(dir).is_ok_and(|origin| origin.command == C::COMMAND);
    let open = config.date().is_some_and(|date| date.is_empty()) || !named(&mut config)?.is_empty();
    let mut stored = resumed.filter(|dir| open && ours(dir)).map(settings::<C>).transpose()?;
    if let (Some(date), Some(stored)) =
        (config.date().filter(|date| date.is_empty()), stored.as_mut().and_then(C::date))
    {
        date.clone_from(stored);
    }
    let known = stored.as_mut().map_or(Ok(Vec::new()), named)?;
    for (kind, path) in config.names() {
        let Some(name) = name_of(kind, path)? else { continue };
        let same = |other: &&Name| {
            (other.kind, &other.repository, &other.parts) == (kind, &name.repository, &name.parts)
                && name.revision.is_none()
        };
        let commit = match known.iter().find(same).and_then(Name::commit) {
            Some(commit) => commit.to_string(),
            None => hub::commit_of(&name)?,
        };
        *path = if kind == RepoKind::Data { benchmarks::at(path, &name, &commit) } else { name.at(&commit).into() };
    }
    Ok(config)
}

/// Return the repository of the Hub that a setting names, if it does.
fn name_of(kind: RepoKind, path: &Path) -> Result<Option<Name>> {
    if kind == RepoKind::Data { benchmarks::hub_name(path) } else { Name::of(kind, path) }
}

/// Return the Hub names in the settings.
fn named<C: RunSettings>(config: &mut C) -> Result<Vec<Name>> {
    let names = config.names().into_iter().map(|(kind, path)| name_of(kind, path));
    Ok(names.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_told_by_key_as_written() {
        let was = json!({ "seed": 1, "a": { "rate": f64::from(0.3f32) }, "stages": [{ "max_steps": 3, "r": [1, 2] }] });
        let is = json!({ "seed": 1, "a": { "rate": f64::from(0.4f32) }, "stages": [{ "max_steps": 4, "r": [1, 3] }], "x": null });
        let rows: Vec<String> =
            differences(&was, &is).into_iter().map(|(key, was, is)| format!("{key} {was} {is}")).collect();
        assert_eq!(rows, ["a.rate 0.3 0.4", "stages.0.max_steps 3 4", "stages.0.r [1,2] [1,3]", "x not set null"]);
        assert!(is_free("stages.0.exit.max_steps") && is_free("train.save_steps") && !is_free("stages.0.r"));
    }
}
