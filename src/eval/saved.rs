//! An evaluation in a folder: its settings, its completions as they come, its figures; an interrupted one goes on.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::record::{Writer, parse};
use super::{EvalConfig, Evaluation, Event, Record, Subject, evaluate};
use crate::data::{DataReport, Problem};
use crate::error::{Error, Result};
use crate::hub::{self, Kind, Part};
use crate::model::lora;
use crate::rollout::Sampler;
use crate::{files, noise};

/// `eval.json`: what the completions in a folder are completions of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Where the model was; of one of the Hub its name with the commit.
    pub model: PathBuf,
    /// Where the problems were, with what was odd about them.
    pub data: Vec<(PathBuf, DataReport)>,
    /// All that decides what is sampled, by name.
    pub settings: Map<String, Value>,
}

impl Manifest {
    /// Describes an evaluation: the settings, the content of the model's files and that of the problems.
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
        let words: Vec<u64> = problems.iter().flat_map(|p| [p.id, noise::mix_text(&p.answer)]).collect();
        let mut settings = match serde_json::to_value(config) {
            Ok(Value::Object(settings)) => settings,
            other => unreachable!("settings are an object: {other:?}"),
        };
        // How many were asked for does not matter where the problems are known.
        settings.remove("num_problems");
        settings.insert("problems".to_string(), json!(problems.len()));
        settings.insert("problems_digest".to_string(), format!("{:016x}", noise::mix(&words)).into());
        settings.insert("model_digest".to_string(), identity(model)?.into());
        let folder = hub::model(model, Part::Settings)?;
        if lora::is_adapter(&folder) {
            settings.insert("base_digest".to_string(), identity(&lora::base_name(&folder)?)?.into());
        }
        settings.insert("device".to_string(), device.into());
        Ok(Self { model: hub::pinned(Kind::Model, model)?, data, settings })
    }

    /// Reads the manifest of a folder, if there is one.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("eval.json");
        if path.is_file() { files::read_json(&path).map(Some) } else { Ok(None) }
    }

    /// How `self` differs from `other`, setting by setting: `name: here, there`.
    pub fn differences(&self, other: &Self) -> Vec<(String, [String; 2])> {
        let shown = |settings: &Map<String, Value>, name: &str| {
            settings.get(name).map_or("not set".to_string(), ToString::to_string)
        };
        let added = other.settings.keys().filter(|name| !self.settings.contains_key(*name));
        let names = self.settings.keys().chain(added);
        names
            .map(|name| (name.clone(), [shown(&self.settings, name), shown(&other.settings, name)]))
            .filter(|(_, [here, there])| here != there)
            .collect()
    }
}

/// What tells a model from others: its commit on the Hub, or a hash of its files.
fn identity(model: &Path) -> Result<String> {
    match hub::commit(Kind::Model, model)? {
        Some(commit) => Ok(commit),
        None => Ok(format!("{:016x}", digest(model)?)),
    }
}

/// A hash of the names and contents of a model's files.
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
            // Whole buffers, so that the hash does not depend on how the system hands the file over.
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

/// Evaluates into the folder `dir`, going on where an earlier call with the same manifest stopped, and writes
/// `eval.json`, `completions.jsonl` and `summary.json`.
///
/// # Errors
/// When the folder holds completions of another model, other problems or other settings, and what [`evaluate`] says.
pub fn evaluate_into(
    dir: &Path,
    manifest: &Manifest,
    sampler: &mut dyn Sampler,
    subject: Subject,
    problems: &[Problem],
    config: &EvalConfig,
    observe: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<Evaluation> {
    check_output(dir)?;
    files::create_dir(dir)?;
    let _lock = files::lock(dir, "eval.lock")?;
    let completions = dir.join("completions.jsonl");
    match Manifest::read(dir)? {
        Some(earlier) => {
            let differences = earlier.differences(manifest);
            if !differences.is_empty() {
                let lines = differences.iter().map(|(name, [was, is])| format!("{name} was {was} and is {is}"));
                let lines = lines.collect::<Vec<_>>().join("; ");
                let message = format!("holds another evaluation: {lines}; choose another --output or delete this one");
                return Err(Error::file(dir, message));
            }
        }
        None if completions.exists() => {
            return Err(Error::file(dir, "has completions.jsonl but no eval.json; choose another --output"));
        }
        None => files::write_json(&dir.join("eval.json"), manifest)?,
    }
    let (at_once, n) = (config.problems_at_once(), config.num_generations);
    let (mut records, bytes) = whole_chunks(&completions, at_once * n, problems.len() * n)?;
    let done = records.len() / n;
    observe(Event::Resumed(done))?;
    let mut writer = Writer::go_on(&completions, bytes)?;
    let mut write = |event: Event| {
        if let Event::Graded(lines) = event {
            writer.append(lines)?;
        }
        observe(event)
    };
    records.extend(evaluate(sampler, subject, problems, done, config, &mut write)?);
    let evaluation = Evaluation::new(records)?;
    files::write_json(&dir.join("summary.json"), &evaluation.summary())?;
    Ok(evaluation)
}

/// Refuses what is no folder, and the folder of a run, which an evaluation in it would hide the run's own behind.
///
/// # Errors
/// Naming it.
pub fn check_output(dir: &Path) -> Result<()> {
    let message = if dir.exists() && !dir.is_dir() {
        "is a file, and --output must be a folder: name another"
    } else if dir.join("run.json").is_file() {
        "is the folder of a run: choose another --output"
    } else {
        return Ok(());
    };
    Err(Error::file(dir, message))
}

/// The records at the beginning of a file that came from whole chunks of `lines` lines, at most `total`, and the bytes
/// they take. An interruption may have left part of a chunk, or of a line, after them; sampling the same problems
/// together again gives the same numbers to the bit.
fn whole_chunks(path: &Path, lines: usize, total: usize) -> Result<(Vec<Record>, u64)> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let mut reader = BufReader::new(file);
    let (mut records, mut bytes, mut whole) = (Vec::new(), 0, (0, 0));
    let mut line = Vec::new();
    while records.len() < total {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(Error::io(path))?;
        if !line.ends_with(b"\n") {
            break;
        }
        let Some(record) = std::str::from_utf8(&line).ok().and_then(|text| parse(text).ok()) else {
            let message = "no graded completion; delete this line and those after it";
            return Err(Error::file(format!("{}:{}", path.display(), records.len() + 1), message));
        };
        records.push(record);
        bytes += line.len() as u64;
        if records.len() % lines == 0 || records.len() == total {
            whole = (records.len(), bytes);
        }
    }
    records.truncate(whole.0);
    Ok((records, whole.1))
}
