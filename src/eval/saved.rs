//! An evaluation in a folder: settings, completions as they are sampled, and figures. It can be resumed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::record::{CompletionsWriter, parse};
use super::{EvalConfig, Evaluation, EvaluationEvent, Record, Sample, Subject, evaluate};
use crate::data::{DataReport, Problem};
use crate::error::{Error, Result};
use crate::hub::{self, ModelFiles, RepoKind};
use crate::model::lora;
use crate::rollout::Sampler;
use crate::{files, noise};

/// Contents of `eval.json`: the origin of the completions in a folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Path of the model; for a model of the Hub, its name with the commit.
    pub model: PathBuf,
    /// Paths of the data, with a report of irregularities.
    pub data: Vec<(PathBuf, DataReport)>,
    /// All settings that affect sampling, by name.
    pub settings: Map<String, Value>,
}

impl Manifest {
    /// Describe an evaluation by its settings and by digests of the model's files and of the problems.
    ///
    /// # Errors
    /// When a file of the model cannot be read.
    pub fn new(
        model: &Path,
        device: &str,
        data: Vec<(PathBuf, DataReport)>,
        problems: &[Problem],
        config: &EvalConfig,
    ) -> Result<Self> {
        let mut settings = match serde_json::to_value(config) {
            Ok(Value::Object(settings)) => settings,
            other => unreachable!("settings are an object: {other:?}"),
        };
        // The number that was asked for does not matter once the problems are known.
        settings.remove("num_problems");
        settings.insert("problems".to_string(), json!(problems.len()));
        let digest = problems_digest(problems.iter().map(|p| (p.id, p.answer.as_str())));
        settings.insert("problems_digest".to_string(), digest.into());
        settings.insert("model_digest".to_string(), identity(model)?.into());
        let folder = hub::model(model, ModelFiles::Settings)?;
        if lora::is_adapter(&folder) {
            settings.insert("base_digest".to_string(), identity(&lora::base_name(&folder)?)?.into());
        }
        settings.insert("device".to_string(), device.into());
        Ok(Self { model: hub::pinned(RepoKind::Model, model)?, data, settings })
    }

    /// Read the manifest of a folder, if there is one.
    ///
    /// # Errors
    /// When the manifest exists but cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("eval.json");
        if path.is_file() { files::read_json(&path).map(Some) } else { Ok(None) }
    }
}

/// A setting that differs: its name and its two values; `None` where it is not known.
pub type SettingDifference = (String, [Option<String>; 2]);

/// Return the settings that differ between `a` and `b`. Keys of a table in them are settings of their own.
pub fn differences(a: &Map<String, Value>, b: &Map<String, Value>) -> Vec<SettingDifference> {
    let (a, b) = (texts(a), texts(b));
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let values = |name: &String| [&a, &b].map(|side| side.get(name).cloned());
    names.into_iter().map(|name| (name.clone(), values(name))).filter(|(_, [a, b])| a != b).collect()
}

/// Return settings as text, those of a table as `table.key`.
fn texts(settings: &Map<String, Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        // Settings are 32-bit floats: 0.6 is not to be shown as 0.6000000238418579.
        Value::Number(number) if number.is_f64() => format!("{:?}", number.as_f64().unwrap_or_default() as f32),
        other => other.to_string(),
    };
    let mut found = BTreeMap::new();
    for (name, value) in settings {
        match value {
            Value::Object(table) => {
                found.extend(table.iter().map(|(key, value)| (format!("{name}.{key}"), text(value))))
            }
            value => drop(found.insert(name.clone(), text(value))),
        }
    }
    found
}

/// Return a digest of ids and answers of problems.
pub(super) fn problems_digest<'a>(problems: impl Iterator<Item = (u64, &'a str)>) -> String {
    let words: Vec<u64> = problems.flat_map(|(id, answer)| [id, noise::mix_text(answer)]).collect();
    format!("{:016x}", noise::mix(&words))
}

/// Return the identity of a model: its commit on the Hub, or a hash of its files.
fn identity(model: &Path) -> Result<String> {
    match hub::commit(RepoKind::Model, model)? {
        Some(commit) => Ok(commit),
        None => Ok(format!("{:016x}", digest(model)?)),
    }
}

/// Compute a hash of the names and contents of a model's files.
fn digest(model: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(model).map_err(Error::io(model))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>();
    let mut paths = paths.map_err(Error::io(model))?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "safetensors" || end == "json" || end == "jinja"));
    paths.sort();
    let mut state = 0;
    let mut buffer = vec![0; 1 << 20];
    for path in paths {
        state = noise::mix(&[state, noise::mix_text(&path.file_name().unwrap_or_default().to_string_lossy())]);
        let mut file = File::open(&path).map_err(Error::io(&path))?;
        loop {
            // Fill the buffer, so that the hash does not depend on the sizes of the system's reads.
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read(&mut buffer[filled..]).map_err(Error::io(&path))? {
                    0 => break,
                    read => filled += read,
                }
            }
            if filled == 0 {
                break;
            }
            let words = buffer[..filled]
                .chunks(8)
                .map(|chunk| chunk.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte)));
            state = words.fold(noise::mix(&[state, filled as u64]), |state, word| noise::mix(&[state, word]));
        }
    }
    Ok(state)
}

/// Evaluate into the folder `dir`, resumes an earlier call with the same manifest, and write `eval.json`,
/// `completions.jsonl` and `summary.json`.
///
/// # Errors
/// When the folder holds completions of another model, other problems or other settings; errors of [`evaluate`].
pub fn evaluate_into(
    dir: &Path,
    manifest: &Manifest,
    sampler: &mut dyn Sampler,
    subject: Subject,
    problems: &[Problem],
    config: &EvalConfig,
    observe: &mut dyn FnMut(EvaluationEvent) -> Result<()>,
) -> Result<Evaluation> {
    check_output(dir)?;
    files::create_dir(dir)?;
    let _lock = files::lock(dir, "eval.lock")?;
    let completions = dir.join("completions.jsonl");
    match Manifest::read(dir)? {
        Some(earlier) => {
            // A folder of an older version does not know all settings.
            let known = |(name, [was, is]): SettingDifference| Some(format!("{name} was {} and is now {}", was?, is?));
            let differences = differences(&earlier.settings, &manifest.settings).into_iter().filter_map(known);
            let lines = differences.collect::<Vec<_>>().join("; ");
            if !lines.is_empty() {
                let message = format!(
                    "holds an evaluation with other settings: {lines}; choose another --output or delete this folder"
                );
                return Err(Error::file(dir, message));
            }
        }
        None if completions.exists() => {
            return Err(Error::file(
                dir,
                "has completions.jsonl but no eval.json, so its settings are unknown; choose another --output",
            ));
        }
        None => files::write_json(&dir.join("eval.json"), manifest)?,
    }
    let (at_once, n) = (config.problems_at_once(), config.num_generations);
    let (mut records, bytes) = whole_chunks(&completions, at_once * n, problems, n)?;
    let done = records.len() / n;
    observe(EvaluationEvent::Resumed(done))?;
    let mut writer = CompletionsWriter::resume(&completions, bytes)?;
    let mut write = |event: EvaluationEvent| {
        if let EvaluationEvent::Graded(lines) = event {
            writer.append(lines)?;
        }
        observe(event)
    };
    records.extend(evaluate(sampler, subject, problems, done, config, &mut write)?);
    let evaluation = Evaluation::new(records)?;
    files::write_json(&dir.join("summary.json"), &evaluation.summary())?;
    Ok(evaluation)
}

/// Reject a path that is not a folder, and a run's folder, where an evaluation would hide the run's own.
///
/// # Errors
/// An error that names the path.
pub fn check_output(dir: &Path) -> Result<()> {
    let message = if dir.exists() && !dir.is_dir() {
        "is a file, but --output must be a folder: choose another --output"
    } else if dir.join("run.json").is_file() {
        "is the folder of a run: choose another --output"
    } else {
        return Ok(());
    };
    Err(Error::file(dir, message))
}

/// Return the records at the start of a file that form whole chunks of `lines` lines, and their size in bytes. An
/// interruption may have left part of a chunk, or of a line, after them; sampling the same problems together again
/// gives bit-identical numbers.
///
/// # Errors
/// When the lines are not those of `n` completions of each of `problems`, in order.
fn whole_chunks(path: &Path, lines: usize, problems: &[Problem], n: usize) -> Result<(Vec<Record>, u64)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let mut reader = BufReader::new(file);
    let (mut records, mut bytes, mut whole) = (Vec::new(), 0, (0, 0));
    let mut line = Vec::new();
    let total = problems.len() * n;
    while records.len() < total {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(Error::io(path))?;
        if !line.ends_with(b"\n") {
            break;
        }
        let refuse = |message: &str| {
            let message = format!("{message}; delete this line and those after it");
            Error::file(format!("{}:{}", path.display(), records.len() + 1), message)
        };
        let record = std::str::from_utf8(&line).ok().and_then(|text| parse(text).ok());
        let Some(record) = record else { return Err(refuse("not a graded completion")) };
        let (problem, Sample { problem: id, sample, data_source, .. }) = (&problems[records.len() / n], &record.sample);
        if *id != problem.id.to_string() || *data_source != problem.data_source || *sample != records.len() % n {
            return Err(refuse("unexpected completion: an earlier line is missing, duplicated or out of order"));
        }
        records.push(record);
        bytes += line.len() as u64;
        if records.len() % lines == 0 || records.len() == total {
            whole = (records.len(), bytes);
        }
    }
    records.truncate(whole.0);
    Ok((records, whole.1))
}
