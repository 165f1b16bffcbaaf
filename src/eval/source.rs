//! Saved completions with the settings that they were sampled under, for `compare` and `eval --from`.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::saved::{Manifest, SettingDifference, differences, problems_digest};
use super::{Evaluation, Record, record};
use crate::error::{Error, Result};
use crate::files;

/// A completions file and the file with its settings.
#[derive(Debug)]
pub struct CompletionsSource {
    completions: PathBuf,
    /// `eval.json` of an evaluation, or `config.toml` of a run, if there is one.
    settings: Option<PathBuf>,
    /// Whether the completions are those of a run's final evaluation.
    trained: bool,
    /// Why the completions may not be those of a whole evaluation after the last step: a sentence without its subject.
    unfinished: Option<String>,
}

/// A saved evaluation.
#[derive(Debug)]
pub struct SavedEvaluation {
    /// The completions, graded again.
    pub evaluation: Evaluation,
    /// Settings by name, with the model; `None` if they are not known.
    pub settings: Option<Map<String, Value>>,
    /// Why it is, or may be, incomplete: a sentence without its subject.
    pub unfinished: Option<String>,
}

/// Settings that [`differing`] leaves out, because a comparison pairs the problems.
const PAIRED: [&str; 2] = ["problems", "problems_digest"];

impl CompletionsSource {
    /// Find the completions of a path: a completions file, a folder of `eval --output`, or a run (its final
    /// evaluation).
    ///
    /// # Errors
    /// When there are none, and when those of a run are not of its last step.
    pub fn locate(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::of_file(path);
        }
        let (own, last) = (path.join("completions.jsonl"), path.join("completions/eval_final.jsonl"));
        if own.is_file() {
            return Self::of_file(&own);
        }
        if last.is_file() {
            let source = Self::of_file(&last)?;
            return match source.unfinished {
                Some(why) => {
                    let advice = format!("give {} as the path to use it as it is", last.display());
                    Err(Error::file(path, format!("the final evaluation {why}; {advice}")))
                }
                None => Ok(source),
            };
        }
        let message = "expected a completions file, a folder that `tempering eval --output` wrote, or a finished run";
        Err(Error::file(path, message))
    }

    /// Return the files that it is read from.
    pub fn files(&self) -> Vec<&Path> {
        std::iter::once(&self.completions).chain(&self.settings).map(PathBuf::as_path).collect()
    }

    fn of_file(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default();
        let folder = path.parent().unwrap_or(Path::new(""));
        let run = folder.parent().filter(|_| folder.file_name().is_some_and(|name| name == "completions"));
        let existing = |path: PathBuf| Some(path).filter(|path| path.is_file());
        let (mut settings, mut unfinished, trained) = (None, None, name == "eval_final.jsonl");
        if name == "completions.jsonl" {
            settings = existing(folder.join("eval.json"));
        } else if let Some(run) = run.filter(|_| trained || name == "eval_base.jsonl") {
            settings = existing(run.join("config.toml"));
            unfinished = unfinished_run(run, trained)?;
        }
        Ok(Self { completions: path.to_path_buf(), settings, trained, unfinished })
    }

    /// Read the completions and their settings.
    ///
    /// # Errors
    /// When a file cannot be read, or a line is missing or doubled.
    pub fn read(self) -> Result<SavedEvaluation> {
        let records = record::read(&self.completions)?;
        let settings = self.settings.as_deref().map(|path| self.read_settings(path)).transpose()?;
        let number = |key: &str| settings.as_ref().and_then(|settings| settings.get(key)?.as_u64());
        let expected = number("problems").map(|problems| problems * number("num_generations").unwrap_or(1));
        let (held, mut unfinished) = (records.len() as u64, self.unfinished);
        let refuse = |message: String| Err(Error::file(&self.completions, message));
        match expected {
            Some(expected) if held > expected => {
                return refuse(format!(
                    "holds {held} completions, but its evaluation has {expected}: delete the duplicate lines"
                ));
            }
            Some(expected) if held < expected => {
                unfinished = Some(format!("is unfinished: it holds {held} of {expected} completions"));
            }
            _ => {}
        }
        let greedy = settings.as_ref().is_some_and(|settings| settings.get("temperature") == Some(&Value::from(0.0)));
        if let Some([first, again]) = doubled(&records).filter(|_| expected != Some(held) && !greedy) {
            return refuse(format!("completion {again} is identical to completion {first}: delete the duplicate line"));
        }
        let evaluation = Evaluation::new(records)?;
        let digest = settings.as_ref().and_then(|settings| settings.get("problems_digest")?.as_str());
        if let (Some(digest), Some(own)) = (digest.filter(|_| expected == Some(held)), digest_of(&evaluation))
            && digest != own
        {
            return refuse(
                "does not have the problems recorded in its eval.json: lines are missing, duplicated or changed; \
                 evaluate again"
                    .to_string(),
            );
        }
        Ok(SavedEvaluation { evaluation, settings, unfinished })
    }

    fn read_settings(&self, path: &Path) -> Result<Map<String, Value>> {
        if path.extension().is_some_and(|ending| ending == "json") {
            let Manifest { model, mut settings, .. } = files::read_json(path)?;
            settings.insert("model".to_string(), model.display().to_string().into());
            return Ok(settings);
        }
        let config: toml::Table = toml::from_str(&files::read_text(path)?).map_err(|error| Error::file(path, error))?;
        let config = serde_json::to_value(config).map_err(|error| Error::file(path, error))?;
        Ok(of_run(&config, self.trained))
    }
}

/// Return the settings of a run's evaluation under the names of [`Manifest::settings`].
fn of_run(config: &Value, trained: bool) -> Map<String, Value> {
    let mut settings = config["eval"].as_object().cloned().unwrap_or_default();
    settings.remove("num_problems");
    let served = config["rollout"]["engine"].as_str().filter(|engine| *engine != "own");
    let path = config["model"]["path"].as_str().map(|path| if path.is_empty() { "a new model" } else { path });
    let others = [
        ("device", served.map_or(config["device"].clone(), Value::from)),
        ("dtype", if served.is_some() { Value::Null } else { config["model"]["dtype"].clone() }),
        ("prompt", config["prompt"].clone()),
        ("model", path.map(|path| format!("{path}{}", if trained { " after training" } else { "" })).into()),
    ];
    settings.extend(others.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, v)| (name.to_string(), v)));
    settings
}

/// Return why an evaluation of a run is not, or may not be, that of its last step.
fn unfinished_run(run: &Path, last: bool) -> Result<Option<String>> {
    let text = match std::fs::read(run.join("metrics.jsonl")) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read.map_err(Error::io(run.join("metrics.jsonl")))?,
    };
    let text = String::from_utf8_lossy(&text);
    let step = |line: &str| serde_json::from_str::<Value>(line).ok()?["step"].as_u64();
    let Some(reached) = text.lines().rev().find_map(step) else {
        return Ok((!last).then(|| "may be incomplete: the run has not finished its first evaluation".to_string()));
    };
    if !last {
        return Ok(None);
    }
    let read = |name: &str| -> Result<Value> {
        let path = run.join(name);
        if path.is_file() { files::read_json(&path) } else { Ok(Value::Null) }
    };
    let summary = read("summary.json")?;
    if summary.is_null() {
        return Ok(Some("may be incomplete: the run is unfinished".to_string()));
    }
    // The summary of fine-tuning does not name the step.
    let end = match summary["steps"].as_u64() {
        None => read("run.json")?["finished"].as_u64(),
        end => end,
    };
    let earlier = end.filter(|end| *end < reached);
    Ok(earlier.map(|end| format!("is that of step {end}, but the run has continued to step {reached}")))
}

/// Entropy of a completion, in nats, from which two equal samples of it are not due to chance (below `exp(-50)`).
const NO_CHANCE: f64 = 50.0;

/// Return the numbers, from 1, of two equal completions of the same problem that were not sampled twice. Data may
/// have a problem twice, and short completions of it may be equal.
fn doubled(records: &[Record]) -> Option<[usize; 2]> {
    let mut seen: HashMap<(&str, &str, usize), Vec<usize>> = HashMap::new();
    for (index, record) in records.iter().enumerate() {
        let sample = &record.sample;
        let others = seen.entry((&sample.data_source, &sample.problem, sample.sample)).or_default();
        let unlikely = sample.entropy_sum.is_some_and(|nats| nats > NO_CHANCE);
        if let Some(first) = others.iter().find(|other| unlikely && records[**other] == *record) {
            return Some([first + 1, index + 1]);
        }
        others.push(index);
    }
    None
}

/// Return the digest of the problems; `None` if an id is not a number.
fn digest_of(evaluation: &Evaluation) -> Option<String> {
    let samples = evaluation.groups.iter().map(|group| &group.records[0].sample);
    let ids: Option<Vec<u64>> = samples.clone().map(|sample| sample.problem.parse().ok()).collect();
    Some(problems_digest(ids?.into_iter().zip(samples.map(|sample| sample.answer.as_str()))))
}

/// Return the settings in which two evaluations differ. Digests of models only count under the same name.
pub fn differing(a: &Map<String, Value>, b: &Map<String, Value>) -> Vec<SettingDifference> {
    let mut found = differences(a, b);
    let same_name = a.get("model") == b.get("model");
    found.retain(|(name, values)| match name.as_str() {
        "model_digest" | "base_digest" => same_name && values.iter().all(Option::is_some),
        name => !PAIRED.contains(&name),
    });
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::EvalConfig;
    use super::super::record::tests::record;
    use super::super::record::{CompletionLine, CompletionsWriter};
    use super::*;

    /// Write right completions of problems with these ids.
    fn write(path: &Path, ids: &[&str]) {
        let line = |id: &&str| {
            let record = record("s", id, 0, "\\boxed{5}");
            CompletionLine { record, tokens: Vec::new(), entropy: vec![60.0] }
        };
        CompletionsWriter::create(path).unwrap().append(&ids.iter().map(line).collect::<Vec<_>>()).unwrap();
    }

    fn open(path: &Path) -> Result<SavedEvaluation> {
        CompletionsSource::locate(path)?.read()
    }

    /// Regression: a part of an evaluation counted as a whole one, and a doubled line twice.
    #[test]
    fn lines_that_are_missing_or_doubled_are_said() {
        let dir = tempfile::tempdir().unwrap();
        let completions = dir.path().join("completions.jsonl");
        let digest = problems_digest([(1, "5"), (2, "5"), (3, "5")].into_iter());
        let settings = json!({ "problems": 3, "num_generations": 1, "temperature": 0.0, "problems_digest": digest });
        let settings = settings.as_object().unwrap().clone();
        let manifest = Manifest { model: "m".into(), data: Vec::new(), settings };
        files::write_json(&dir.path().join("eval.json"), &manifest).unwrap();
        write(&completions, &["1", "2", "3"]);
        let whole = open(dir.path()).unwrap();
        assert_eq!((whole.unfinished, &whole.settings.unwrap()["model"]), (None, &json!("m")));
        write(&completions, &["1", "2"]);
        let unfinished = open(&completions).unwrap().unfinished;
        assert_eq!(unfinished.as_deref(), Some("is unfinished: it holds 2 of 3 completions"));
        let error = |ids: &[&str]| {
            write(&completions, ids);
            open(dir.path()).unwrap_err().to_string()
        };
        assert!(error(&["1", "2", "2", "3"]).contains("holds 4 completions, but its evaluation has 3"));
        assert!(error(&["1", "2", "2"]).contains("does not have the problems recorded in its eval.json"));
        // Without settings only completions that are equal in spite of their entropy tell.
        std::fs::remove_file(dir.path().join("eval.json")).unwrap();
        assert!(error(&["1", "2", "2"]).contains("completion 3 is identical to completion 2"));
        write(&completions, &["1", "2"]);
        assert!(open(dir.path()).unwrap().settings.is_none());
        let error = open(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: expected a completions file"), "{error}");
    }

    /// Regression: the completions of a run's earlier end, or a part of its final evaluation, were compared in silence.
    #[test]
    fn a_run_that_has_gone_on_has_no_final_evaluation() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let last = dir.path().join("completions/eval_final.jsonl");
        std::fs::create_dir(dir.path().join("completions")).unwrap();
        write(&last, &["1"]);
        put("config.toml", "device = \"cpu\"\n[model]\npath = \"base\"\n[eval]\nrows = 4\nnum_problems = 9\n");
        put("metrics.jsonl", "{\"step\":0}\n{\"step\":4}\n{\"st");
        let error = || open(dir.path()).unwrap_err().to_string();
        assert!(error().contains("may be incomplete: the run is unfinished; give "), "{}", error());
        assert_eq!(open(&last).unwrap().unfinished.as_deref(), Some("may be incomplete: the run is unfinished"));
        put("summary.json", "{\"steps\":4}");
        let saved = open(dir.path()).unwrap();
        let settings = json!({ "rows": 4, "device": "cpu", "model": "base after training" });
        assert_eq!((saved.unfinished, Value::from(saved.settings.unwrap())), (None, settings));
        put("metrics.jsonl", "{\"step\":4}\n{\"step\":5}\n");
        assert!(error().contains("is that of step 4, but the run has continued to step 5"), "{}", error());
        // The summary of fine-tuning does not name the step; that of an older version may not be known at all.
        put("summary.json", "{}");
        put("run.json", "{\"finished\":4}");
        assert!(error().contains("is that of step 4"), "{}", error());
        put("run.json", "{}");
        assert!(open(dir.path()).is_ok());
    }

    #[test]
    fn settings_of_a_run_and_of_an_evaluation_compare() {
        let eval = EvalConfig { temperature: 0.6, top_p: 0.95, ..EvalConfig::default() };
        let run: toml::Table = crate::config::to_toml(&eval).parse().unwrap();
        let run = of_run(&json!({ "eval": run, "model": { "path": "m", "dtype": "bf16" }, "device": "cpu" }), false);
        let other = EvalConfig { seed: 7, ..eval };
        let mut saved = serde_json::to_value(&other).unwrap().as_object().unwrap().clone();
        saved.remove("num_problems");
        saved.extend([("device", "cpu"), ("model", "m")].map(|(name, value)| (name.to_string(), value.into())));
        let some = |text: &str| Some(text.to_string());
        let expected =
            [("dtype".to_string(), [some("\"bf16\""), None]), ("seed".to_string(), [some("1000003"), some("7")])];
        assert_eq!(differing(&run, &saved), expected);
        let digest = |digest: &str| {
            let mut saved = saved.clone();
            saved.insert("model_digest".to_string(), digest.into());
            saved
        };
        assert!(differing(&saved, &digest("a")).is_empty());
        assert_eq!(differing(&digest("a"), &digest("b")).len(), 1, "another model under the same name");
        let served =
            json!({ "rollout": { "engine": "vllm" }, "model": { "path": "m", "dtype": "f32" }, "device": "cpu" });
        let served = of_run(&served, true);
        assert_eq!((served["device"].as_str(), served.get("dtype")), (Some("vllm"), None));
    }
}
