//! Selection of the files of a repository to download.

use std::collections::BTreeMap;

use super::card;
use super::name::{ENDINGS, Name};

/// Small files of a model: configuration and tokenizer.
pub(crate) const SMALL: [&str; 12] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    ADAPTER,
];

const ADAPTER: &str = "adapter_config.json";
const WEIGHTS: &str = "model.safetensors";
/// Index of sharded weights: maps each tensor to its file.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

fn has(listing: &[String], file: &str) -> bool {
    listing.iter().any(|other| other == file)
}

/// Return the small files that a model has. The adapter configuration is ignored if the repository has full weights.
pub(super) fn small(listing: &[String]) -> Vec<String> {
    let whole = has(listing, WEIGHTS) || has(listing, INDEX);
    let wanted = SMALL.into_iter().filter(|file| has(listing, file) && !(whole && *file == ADAPTER));
    let is_template = |file: &&String| file.starts_with("additional_chat_templates/") && file.ends_with(".jinja");
    wanted.map(str::to_string).chain(listing.iter().filter(is_template).cloned()).collect()
}

/// Return the weights file of a model: a single file, the index of several, or adapter weights.
///
/// # Errors
/// There are no weights in a supported format.
pub(super) fn weights(listing: &[String]) -> Result<&'static str, String> {
    if let Some(file) = [WEIGHTS, INDEX].into_iter().find(|file| has(listing, file)) {
        return Ok(file);
    }
    if has(listing, ADAPTER) && has(listing, ADAPTER_WEIGHTS) {
        return Ok(ADAPTER_WEIGHTS);
    }
    let pickled = |file: &&String| [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|ending| file.ends_with(ending));
    let others = |file: &&String| file.ends_with(".safetensors") || file.ends_with(".gguf");
    let (wanted, found): (_, Vec<&String>) = if has(listing, ADAPTER) {
        (ADAPTER_WEIGHTS.to_string(), listing.iter().filter(pickled).collect())
    } else {
        (format!("{WEIGHTS} or {INDEX}"), listing.iter().filter(|file| pickled(file) || others(file)).collect())
    };
    let found = found.iter().take(5).map(|file| file.as_str()).collect::<Vec<_>>().join(", ");
    Err(if found.is_empty() {
        format!("has no weights (expected {wanted})")
    } else {
        format!(
            "has {found} but not {wanted}. Pickled weights are not downloaded, because reading them can run code: look \
             for a pull request of the repository that has safetensors (…@refs/pr/1), or convert the model with \
             transformers or PEFT (`save_pretrained(…, safe_serialization=True)`) and give the path of the folder"
        )
    })
}

/// Split of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DataSplit {
    config: String,
    split: String,
    files: Vec<String>,
    /// Whether its configuration is the default one.
    default: bool,
    /// Whether the card declares its files.
    declared: bool,
}

/// Return the files of the data set that `name` refers to, in order. `readme` is the data set card.
///
/// # Errors
/// The name matches no split, or several; the error lists them.
pub(super) fn data(name: &Name, listing: &[String], readme: Option<&str>) -> Result<Vec<String>, String> {
    if let [file] = &name.parts[..]
        && is_data(file)
    {
        let found = has(listing, file).then(|| vec![file.clone()]);
        return found.ok_or_else(|| {
            format!("has no data file {file}; it has {}", some(listing.iter().filter(|file| is_data(file))))
        });
    }
    let splits = splits(listing, readme)?;
    if splits.is_empty() {
        return Err(format!(
            "has no .parquet, .jsonl or .json file (it has {}); the Hub offers a Parquet conversion of many data sets: \
             {}@refs/convert/parquet",
            some(listing.iter()),
            name.repository
        ));
    }
    let all = |splits: &[&DataSplit]| -> String {
        let lines = splits.iter().map(|split| format!("\n  {}:{}:{}", name.repository, split.config, split.split));
        lines.collect()
    };
    let every: Vec<&DataSplit> = splits.iter().collect();
    let mut found: Vec<&DataSplit> = match &name.parts[..] {
        [] => every.clone(),
        [one] => {
            let by =
                |is: &dyn Fn(&DataSplit) -> bool| every.iter().copied().filter(|split| is(split)).collect::<Vec<_>>();
            let configs = by(&|split| split.config == *one);
            if configs.is_empty() { by(&|split| split.split == *one) } else { configs }
        }
        [config, split, ..] => {
            let is = |other: &&DataSplit| (config.is_empty() || other.config == *config) && other.split == *split;
            every.iter().copied().filter(is).collect()
        }
    };
    let configs = |found: &[&DataSplit]| found.iter().any(|split| split.config != found[0].config);
    if found.len() > 1 && configs(&found) && found.iter().any(|split| split.default) {
        found.retain(|split| split.default);
    }
    match &found[..] {
        [] => Err(format!("has no {:?}; it has{}", name.parts.join(":"), all(&every))),
        [one] => whole(name, one),
        several => Err(format!("has several configurations or splits; choose one:{}", all(several))),
    }
}

/// Return the files of a split after checking that they belong together and are complete.
fn whole(name: &Name, split: &DataSplit) -> Result<Vec<String>, String> {
    let files = &split.files;
    let mut series: BTreeMap<(&str, usize), Vec<&String>> = BTreeMap::new();
    for file in files {
        if let Some(shard) = shard_of(file) {
            series.entry(shard).or_default().push(file);
        }
    }
    if let Some(((_, count), here)) = series.into_iter().find(|((_, count), here)| here.len() != *count) {
        let (config, split, found) = (&split.config, &split.split, here.len());
        return Err(format!(
            "only {found} of the {count} files of {config}:{split} are available: {}",
            some(here.into_iter())
        ));
    }
    // The names of files that belong together differ only in digits, or they are of one series of shards.
    let bare = |file: &String| match shard_of(file) {
        Some((series, _)) => series.to_string(),
        None => file.chars().filter(|c| !c.is_ascii_digit()).collect(),
    };
    if split.declared || files.iter().all(|file| bare(file) == bare(&files[0])) {
        return Ok(files.clone());
    }
    let lines: String = files.iter().map(|file| format!("\n  {}:{file}", name.repository)).collect();
    Err(format!("has several unrelated files for {}:{}; choose one:{lines}", split.config, split.split))
}

/// Return the series of a shard and the number of its files: `train-` and 2 for `train-00000-of-00002.parquet`, also with
/// a digest before the ending.
fn shard_of(file: &str) -> Option<(&str, usize)> {
    let (start, rest) = file.rsplit_once("-of-")?;
    let series = start.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let count = rest[..digits].parse().ok()?;
    (series.len() < start.len()).then_some((series, count))
}

/// Return the splits declared in the card or, if there are none, derived from file names.
fn splits(listing: &[String], readme: Option<&str>) -> Result<Vec<DataSplit>, String> {
    let declared = match readme.map_or(Ok(Vec::new()), card::configs) {
        Ok(declared) => declared,
        Err(why) => {
            tracing::warn!("README.md of the data set: {why}; its splits are derived from the file names");
            Vec::new()
        }
    };
    if declared.is_empty() {
        return Ok(by_names(listing));
    }
    let single = declared.len() == 1;
    let mut found = Vec::new();
    for config in declared {
        let default = single || config.default || config.name == "default";
        for (split, patterns) in config.splits {
            let mut files = Vec::new();
            for pattern in &patterns {
                if pattern.contains(['[', '{', '?']) || pattern.contains("://") {
                    return Err(format!(
                        "the files of {}:{split} are given by {pattern:?}, an unsupported pattern; give the name of a \
                         file",
                        config.name
                    ));
                }
                files.extend(listing.iter().filter(|file| matches(pattern, file)).cloned());
            }
            files.sort();
            files.dedup();
            if let Some(file) = files.iter().find(|file| !is_data(file)) {
                return Err(format!(
                    "{}:{split} is in {file}, an unsupported format (supported: .parquet, .jsonl, .json); the Hub \
                     offers a Parquet conversion of many data sets: …@refs/convert/parquet",
                    config.name
                ));
            }
            // No files: offline with a partial cache, or the card is wrong.
            if !files.is_empty() {
                found.push(DataSplit { config: config.name.clone(), split, files, default, declared: true });
            }
        }
    }
    Ok(found)
}

/// Derives splits from names: `main/train-00000-of-00001.parquet`, `data/test.jsonl`, `default/train/0000.parquet`.
fn by_names(listing: &[String]) -> Vec<DataSplit> {
    let mut found: Vec<DataSplit> = Vec::new();
    for file in listing.iter().filter(|file| is_data(file)) {
        let parts: Vec<&str> = file.split('/').collect();
        let split = parts.iter().rev().find_map(|part| split_in(part)).unwrap_or("train");
        let folders = &parts[..parts.len() - 1];
        let config = folders.iter().find(|folder| **folder != "data" && split_in(folder).is_none());
        let config = config.map_or("default", |folder| *folder);
        match found.iter_mut().find(|known| known.config == config && known.split == split) {
            Some(known) => known.files.push(file.clone()),
            None => found.push(DataSplit {
                config: config.to_string(),
                split: split.to_string(),
                files: vec![file.clone()],
                default: config == "default",
                declared: false,
            }),
        }
    }
    found.iter_mut().for_each(|split| split.files.sort());
    found
}

/// Return the split that a path component contains as a separate word.
fn split_in(part: &str) -> Option<&'static str> {
    const WORDS: [(&str, &[&str]); 3] = [
        ("train", &["train", "training"]),
        ("validation", &["validation", "valid", "val", "dev"]),
        ("test", &["test", "testing", "eval", "evaluation"]),
    ];
    let lower = part.to_ascii_lowercase();
    let mut words = lower.split(|c: char| !c.is_ascii_alphabetic());
    words.find_map(|word| WORDS.iter().find(|(_, words)| words.contains(&word)).map(|(split, _)| *split))
}

/// Return whether a file contains data rows.
fn is_data(file: &str) -> bool {
    const FACTS: [&str; 5] =
        ["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json"];
    let name = file.rsplit('/').next().unwrap_or(file);
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    ENDINGS.contains(&ending) && !FACTS.contains(&name) && !file.starts_with('.')
}

/// Return whether a path matches a pattern. `*` matches within a path component, `**` across components.
fn matches(pattern: &str, path: &str) -> bool {
    match pattern.find('*') {
        None => pattern == path,
        Some(at) => {
            let Some(rest) = path.strip_prefix(&pattern[..at]) else { return false };
            let (after, crosses) = match pattern[at..].strip_prefix("**") {
                Some(after) => (after, true),
                None => (&pattern[at + 1..], false),
            };
            // `**/x` also matches `x`.
            if let Some(bare) = after.strip_prefix('/').filter(|_| crosses)
                && matches(bare, rest)
            {
                return true;
            }
            let reach = if crosses { rest.len() } else { rest.find('/').unwrap_or(rest.len()) };
            (0..=reach).filter(|&end| rest.is_char_boundary(end)).any(|end| matches(after, &rest[end..]))
        }
    }
}

/// Join the first names, with the number of omitted ones.
fn some<'a>(names: impl Iterator<Item = &'a String>) -> String {
    const MOST: usize = 8;
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names.len() {
        0 => "none".to_string(),
        count if count > MOST => format!("{}, and {} more", names[..MOST].join(", "), count - MOST),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::name::RepoKind;
    use super::*;

    fn files(list: &[&str]) -> Vec<String> {
        list.iter().map(|file| file.to_string()).collect()
    }

    fn chosen(name: &str, listing: &[&str], readme: Option<&str>) -> Result<Vec<String>, String> {
        data(&Name::of(RepoKind::Data, Path::new(name)).unwrap().unwrap(), &files(listing), readme)
    }

    const GSM8K: [&str; 6] = [
        ".gitattributes",
        "README.md",
        "main/test-00000-of-00001.parquet",
        "main/train-00000-of-00001.parquet",
        "socratic/test-00000-of-00001.parquet",
        "socratic/train-00000-of-00001.parquet",
    ];

    #[test]
    fn parts_are_told_by_names_of_files() {
        for (name, listing, want) in [
            ("o/g:main:test", &GSM8K[..], &["main/test-00000-of-00001.parquet"][..]),
            ("o/m", &["test.jsonl", "README.md"], &["test.jsonl"]),
            ("o/m:test", &["data/train-0.parquet", "data/test-0.parquet"], &["data/test-0.parquet"]),
            (
                "o/m:train",
                &["train-00001-of-00002.jsonl", "train-00000-of-00002.jsonl", "test.jsonl"],
                &["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
            ),
            (
                "o/m:default:train",
                &["default/train/0000.parquet", "default/test/0000.parquet"],
                &["default/train/0000.parquet"],
            ),
            (
                "o/m::train",
                &["default/train/0001.parquet", "default/train/0000.parquet", "x/train/0000.parquet"],
                &["default/train/0000.parquet", "default/train/0001.parquet"],
            ),
            ("o/m", &["problems.jsonl", "dataset_infos.json"], &["problems.jsonl"]),
            ("o/m:a/two.jsonl", &["one.jsonl", "a/two.jsonl"], &["a/two.jsonl"]),
            ("o/m:validation", &["contest.jsonl", "dev.jsonl"], &["dev.jsonl"]),
        ] {
            assert_eq!(chosen(name, listing, None).unwrap(), want, "{name}");
        }
    }

    #[test]
    fn the_card_goes_before_the_names() {
        let card = "---\nconfigs:\n- config_name: 2025-I\n  data_files:\n  - split: test\n    path: a-I.jsonl\n- config_name: 2025-II\n  \
                    data_files:\n  - split: test\n    path: \"a-II.jsonl\"\n---\n";
        let listing = ["a-I.jsonl", "a-II.jsonl", "README.md"];
        assert_eq!(chosen("o/m:2025-II:test", &listing, Some(card)).unwrap(), ["a-II.jsonl"]);
        assert_eq!(chosen("o/m:2025-I", &listing, Some(card)).unwrap(), ["a-I.jsonl"]);
        let error = chosen("o/m:test", &listing, Some(card)).unwrap_err();
        assert_eq!(error, "has several configurations or splits; choose one:\n  o/m:2025-I:test\n  o/m:2025-II:test");
        // A split may have several series of files.
        let series = ["a-0-of-2.jsonl", "a-1-of-2.jsonl", "b-0-of-1.jsonl"];
        let all = "---\nconfigs:\n- config_name: default\n  data_files: \"*.jsonl\"\n---\n";
        assert_eq!(chosen("o/m", &series, Some(all)).unwrap(), series);
        assert!(chosen("o/m", &series[1..], Some(all)).unwrap_err().contains("1 of the 2 files of default:train"));
        // Several files form one split if the card declares it.
        assert_eq!(chosen("o/m", &listing, Some(all)).unwrap(), ["a-I.jsonl", "a-II.jsonl"]);
        let csv = "---\nconfigs:\n- config_name: default\n  data_files: x.csv\n---\n";
        assert!(chosen("o/m", &["x.csv", "x.jsonl"], Some(csv)).unwrap_err().contains("default:train is in x.csv"));
    }

    #[test]
    fn what_is_not_one_thing_is_refused_with_the_list() {
        let error = chosen("o/g", &GSM8K, None).unwrap_err();
        assert!(error.contains("choose one:\n  o/g:main:test\n  o/g:main:train\n  o/g:socratic:test"), "{error}");
        let error = chosen("o/g:test", &GSM8K, None).unwrap_err();
        assert_eq!(error, "has several configurations or splits; choose one:\n  o/g:main:test\n  o/g:socratic:test");
        let error = chosen("o/g:mian", &GSM8K, None).unwrap_err();
        assert!(error.starts_with("has no \"mian\"; it has\n  o/g:main:test"), "{error}");
        let error = chosen("o/m", &["a.jsonl", "b.jsonl"], None).unwrap_err();
        assert_eq!(error, "has several unrelated files for default:train; choose one:\n  o/m:a.jsonl\n  o/m:b.jsonl");
        let error = chosen("o/m:c.jsonl", &["a.jsonl"], None).unwrap_err();
        assert_eq!(error, "has no data file c.jsonl; it has a.jsonl");
        let error = chosen("o/m", &["data.csv"], None).unwrap_err();
        assert!(error.contains("it has data.csv") && error.contains("o/m@refs/convert/parquet"), "{error}");
        // Offline, after a download that was interrupted between two files.
        let error = chosen("o/m", &["train-00000-of-00002.parquet"], None).unwrap_err();
        assert!(error.contains("only 1 of the 2 files of default:train are available"), "{error}");
        // Regression: the digest in the names of older data sets hid the number of files.
        let listing = ["train-00000-of-00002-9f2b7c.parquet", "train-00001-of-00002-0a1d44.parquet"];
        assert_eq!(chosen("o/m", &listing, None).unwrap(), listing);
        let error = chosen("o/m", &listing[1..], None).unwrap_err();
        assert!(error.contains("only 1 of the 2 files of default:train are available"), "{error}");
    }

    #[test]
    fn patterns_are_those_of_the_hub() {
        for (pattern, yes, no) in [
            ("main/train-*", "main/train-0.parquet", "main/sub/train-0.parquet"),
            ("**/*.jsonl", "a.jsonl", "a.json"),
            ("data/**", "data/a/b.parquet", "b.parquet"),
            ("*.jsonl", "a.jsonl", "b/a.jsonl"),
            ("a*b*c", "a1b2c", "a1c"),
        ] {
            assert!(matches(pattern, yes) && !matches(pattern, no), "{pattern}");
        }
    }

    #[test]
    fn weights_are_safetensors_or_refused() {
        let of = |list: &[&str]| weights(&files(list));
        assert_eq!(
            of(&["model.safetensors", "pytorch_model.bin", "consolidated.safetensors"]),
            Ok("model.safetensors")
        );
        assert_eq!(of(&["model.safetensors.index.json", "model-00001-of-00002.safetensors"]), Ok(INDEX));
        assert_eq!(of(&[ADAPTER, ADAPTER_WEIGHTS]), Ok(ADAPTER_WEIGHTS));
        let error = of(&["config.json", "pytorch_model.bin"]).unwrap_err();
        assert!(
            error.starts_with("has pytorch_model.bin but not model.safetensors") && error.contains("run code"),
            "{error}"
        );
        let error = of(&[ADAPTER, "adapter_model.bin"]).unwrap_err();
        assert!(error.starts_with("has adapter_model.bin but not adapter_model.safetensors"), "{error}");
        assert!(of(&["config.json"]).unwrap_err().contains("has no weights"));
        let both = files(&["config.json", ADAPTER, "model.safetensors", "optimizer.pt", "onnx/model.onnx"]);
        assert_eq!(small(&both), ["config.json"]);
        assert_eq!(small(&files(&[ADAPTER, ADAPTER_WEIGHTS])), [ADAPTER]);
        let templates = files(&["additional_chat_templates/rag.jinja", "other/x.jinja", "config.json"]);
        assert_eq!(small(&templates), ["config.json", "additional_chat_templates/rag.jinja"]);
    }
}
