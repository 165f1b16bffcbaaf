//! Models and data sets by name, from a test double of the Hub: downloads, cache, requests and errors.

mod commands;
mod double;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempering::hub::{Hub, ModelFiles, Name, RepoKind};

use self::double::{Double, Fault};

/// Return a client of the test double with its cache below `home`.
fn client(double: &Double, home: &Path) -> Hub {
    Hub {
        endpoint: double.url(),
        cache: home.join("hub"),
        token: None,
        offline: false,
        patience: Duration::from_secs(10),
    }
}

fn model(text: &str) -> Name {
    Name::of(RepoKind::Model, Path::new(text)).unwrap().unwrap()
}

fn data(text: &str) -> Name {
    Name::of(RepoKind::Data, Path::new(text)).unwrap().unwrap()
}

/// Return 256 KiB of non-repeating bytes.
fn weights(seed: u32) -> Vec<u8> {
    (0..65_536u32).flat_map(|number| (number.wrapping_mul(2_654_435_761) ^ seed).to_le_bytes()).collect()
}

/// Return the files of a model with two shards and many files that are not needed.
fn shards() -> Vec<(&'static str, Vec<u8>)> {
    let index =
        br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    vec![
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"x\": 1}".to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("model-00001-of-00002.safetensors", weights(1)),
        ("model-00002-of-00002.safetensors", weights(2)),
        ("consolidated.safetensors", weights(3)),
        ("pytorch_model.bin", weights(4)),
        ("optimizer.pt", weights(5)),
        ("README.md", b"# x".to_vec()),
        ("../outside.json", b"{}".to_vec()),
    ]
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Return the sizes of unfinished downloads.
fn unfinished(hub: &Hub) -> Vec<u64> {
    let blobs = hub.cache.join("models--lab--two/blobs");
    let left = names(&blobs).into_iter().filter(|name| name.ends_with(".incomplete"));
    left.map(|name| blobs.join(name).metadata().unwrap().len()).collect()
}

#[test]
fn a_model_lies_where_python_looks_for_it_and_only_what_is_used_is_fetched() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    let commit = double.publish("models/lab/two", &shards());
    let hub = Hub { token: Some("secret".to_string()), ..client(&double, home.path()) };
    let small = hub.model(&model("lab/two"), ModelFiles::Settings).unwrap();
    assert_eq!(names(&small), ["config.json", "tokenizer.json"]);
    let folder = hub.model(&model("lab/two"), ModelFiles::Whole).unwrap();
    let cache = hub.cache.join("models--lab--two");
    assert_eq!(folder, cache.join("snapshots").join(&commit));
    let wanted = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names(&folder), wanted);
    assert_eq!(std::fs::read(folder.join(wanted[2])).unwrap(), weights(2));
    assert_eq!(std::fs::read_to_string(cache.join("refs/main")).unwrap(), commit);
    if cfg!(unix) {
        let link = std::fs::read_link(folder.join("config.json")).unwrap();
        assert!(link.starts_with("../../blobs"), "{link:?}");
    }
    assert_eq!((names(&cache.join("blobs")).len(), unfinished(&hub)), (5, vec![]));
    // The list and each file were requested once, and the token was not sent to the storage.
    let seen = double.seen();
    assert_eq!(seen.iter().filter(|seen| seen.path.starts_with("/api/")).count(), 1);
    assert_eq!(seen.iter().filter(|seen| seen.method == "GET").count(), 1 + 3 + 2);
    assert!(seen.iter().all(|seen| seen.token.as_deref() == (!seen.storage).then_some("Bearer secret")), "{seen:?}");
}

/// A commit in the cache needs no network requests. A moved cache has no entry in the process-wide table of names.
#[test]
fn what_is_in_the_cache_is_not_asked_for_again() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    let commit = double.publish("models/lab/two", &shards());
    let hub = client(&double, home.path());
    let folder = hub.model(&model("lab/two"), ModelFiles::Whole).unwrap();
    double.seen();
    assert_eq!(hub.model(&model(&format!("lab/two@{commit}")), ModelFiles::Whole).unwrap(), folder);
    assert!(double.seen().is_empty());
    // Offline, as in another process.
    let copy = home.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::rename(hub.cache.join("models--lab--two"), copy.join("models--lab--two")).unwrap();
    let offline = Hub { cache: copy.clone(), offline: true, ..hub.clone() };
    assert!(offline.model(&model("lab/two"), ModelFiles::Whole).unwrap().ends_with(&commit));
    assert!(double.seen().is_empty());
    // An incomplete snapshot is not accepted as complete.
    let shard = copy.join("models--lab--two/snapshots").join(&commit).join("model-00002-of-00002.safetensors");
    std::fs::remove_file(shard).unwrap();
    let error = offline.model(&model("lab/two"), ModelFiles::Whole).unwrap_err().to_string();
    assert!(error.contains("are not in the cache") && error.contains(": model-00002-of-00002.safetensors;"), "{error}");
    let error = offline.model(&model("lab/two@v9"), ModelFiles::Whole).unwrap_err().to_string();
    assert!(error.contains("HF_HUB_OFFLINE is set") && error.contains("\"v9\" is not in the cache"), "{error}");
}

/// A cache filled by Python has no listing file.
#[test]
fn a_cache_that_python_has_filled_is_used_offline() {
    let home = tempfile::tempdir().unwrap();
    let commit = "00112233445566778899aabbccddeeff00112233";
    let repository = home.path().join("hub/models--lab--two");
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    std::fs::write(snapshot.join("config.json"), "{}").unwrap();
    let hub = Hub {
        endpoint: "http://127.0.0.1:9".to_string(),
        cache: home.path().join("hub"),
        token: None,
        offline: true,
        patience: Duration::from_secs(1),
    };
    assert_eq!(hub.model(&model("lab/two"), ModelFiles::Settings).unwrap(), snapshot);
    let error = hub.model(&model(&format!("lab/two@{commit}")), ModelFiles::Whole).unwrap_err().to_string();
    assert!(error.contains("has no weights") && error.contains("which may be incomplete"), "{error}");
    // One shard of several is not taken for the whole split.
    let repository = hub.cache.join("datasets--lab--sums");
    let shard = repository.join("snapshots").join(commit).join("data/train-00000-of-00003-9f2b.jsonl");
    std::fs::create_dir_all(shard.parent().unwrap()).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    std::fs::write(&shard, "{}").unwrap();
    let error = hub.data(&data("lab/sums")).unwrap_err().to_string();
    assert!(error.contains("only 1 of the 3 files of default:train are available"), "{error}");
    assert!(error.contains("which may be incomplete"), "{error}");
    std::fs::rename(&shard, shard.with_file_name("train.jsonl")).unwrap();
    let sums = data(&format!("lab/sums@{commit}"));
    assert_eq!(hub.data(&sums).unwrap(), [shard.with_file_name("train.jsonl")]);
}

/// The HTTP library reports only "invalid format" for both.
#[test]
fn an_address_and_a_token_that_cannot_be_sent_are_named() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    let hub = client(&double, home.path());
    let refused = |hub: Hub| hub.model(&model("lab/two"), ModelFiles::Settings).unwrap_err().to_string();
    let error = refused(Hub { endpoint: "huggingface.co".to_string(), ..hub.clone() });
    assert!(error.contains("HF_ENDPOINT") && error.contains("https://huggingface.co"), "{error}");
    let error = refused(Hub { token: Some("hf_secret\nline".to_string()), ..hub });
    assert!(error.contains("HF_TOKEN") && error.contains("line break") && !error.contains("secret"), "{error}");
}

#[test]
fn a_connection_that_is_cut_is_gone_on_with_where_it_was() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    double.publish("models/lab/two", &shards());
    let hub = client(&double, home.path());
    double.fail("model-00001", 3, Fault::Cut(70_000));
    double.fail("tokenizer.json", 1, Fault::Cut(3));
    // One response ignores the range and sends the whole file.
    double.fail("model-00002", 1, Fault::Cut(70_000));
    double.fail("model-00002", 1, Fault::Whole);
    let folder = hub.model(&model("lab/two"), ModelFiles::Whole).unwrap();
    assert_eq!(std::fs::read(folder.join("model-00001-of-00002.safetensors")).unwrap(), weights(1));
    assert_eq!(std::fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), weights(2));
    assert_eq!(std::fs::read(folder.join("tokenizer.json")).unwrap(), b"{\"x\": 1}");
    let seen = double.seen();
    let ranges = |part: &str| -> Vec<Option<String>> {
        let seen = seen.iter().filter(|seen| seen.storage && seen.path.contains(part));
        seen.map(|seen| seen.range.clone()).collect()
    };
    let from = |bytes: u64| Some(format!("bytes={bytes}-"));
    assert_eq!(ranges("model-00001"), [None, from(70_000), from(140_000), from(210_000)]);
    assert_eq!(ranges("model-00002"), [None, from(70_000)]);
}

#[test]
fn a_fetch_that_ends_half_way_is_never_taken_for_whole_and_goes_on_another_time() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    let commit = double.publish("models/lab/two", &shards());
    let hub = client(&double, home.path());
    double.fail("model-00001", 1, Fault::Cut(70_000));
    // From then on, the storage fails.
    double.fail(&format!("two/{commit}/model-00001"), usize::MAX, Fault::Status(503, ""));
    let error = hub.model(&model("lab/two"), ModelFiles::Whole).unwrap_err().to_string();
    assert!(
        error.contains("model-00001-of-00002.safetensors could not be downloaded") && error.contains("503"),
        "{error}"
    );
    assert!(error.contains("The partial file is kept"), "{error}");
    assert_eq!(unfinished(&hub), [70_000]);
    assert!(!hub.cache.join("models--lab--two/refs/main").exists(), "the cache does not say that the branch is there");
    let offline = Hub { offline: true, ..hub.clone() };
    assert!(offline.model(&model("lab/two"), ModelFiles::Whole).is_err());
    double.clear_faults();
    double.seen();
    hub.model(&model("lab/two"), ModelFiles::Whole).unwrap();
    let first = double.seen().into_iter().find(|seen| seen.storage).unwrap();
    assert_eq!(first.range.as_deref(), Some("bytes=70000-"));
    assert!(unfinished(&hub).is_empty());
}

#[test]
fn a_file_with_another_content_than_its_hash_is_thrown_away() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    double.publish("models/lab/two", &shards());
    let hub = client(&double, home.path());
    // Small files have git's id as their ETag.
    double.fail("tokenizer.json", 1, Fault::Damage);
    let error = hub.model(&model("lab/two"), ModelFiles::Whole).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json was damaged in the download: its git id is"), "{error}");
    double.fail("model-00002", 1, Fault::Damage);
    let error = hub.model(&model("lab/two"), ModelFiles::Whole).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors was damaged in the download: its SHA-256 is"), "{error}");
    assert_eq!(unfinished(&hub), [0]);
    let folder = hub.model(&model("lab/two"), ModelFiles::Whole).unwrap();
    assert_eq!(std::fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), weights(2));
}

#[test]
fn refusals_say_what_to_do() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    double.publish("models/lab/two", &shards());
    /// Name, token, status and error code of the response, and parts of the message.
    type Row = (&'static str, Option<&'static str>, u16, &'static str, &'static [&'static str]);
    let table: [Row; 7] = [
        ("lab/none", None, 0, "", &["lab/none: the Hub has no such repository", "set HF_TOKEN"]),
        ("lab/two@v9", None, 0, "", &["lab/two@v9: has no revision \"v9\""]),
        ("lab/two@a", None, 401, "RepoNotFound", &["401", "not public", "set HF_TOKEN to a token"]),
        ("lab/two@b", Some("old"), 401, "", &["401", "the token (HF_TOKEN", "has expired"]),
        ("lab/two@c", None, 401, "GatedRepo", &["gated: accept its terms at", "/lab/two, and set HF_TOKEN"]),
        ("lab/two@d", Some("mine"), 403, "GatedRepo", &["gated: accept its terms at"]),
        ("lab/two@e", Some("mine"), 403, "", &["403", "has no access to it"]),
    ];
    for (name, token, status, code, wanted) in table {
        if status > 0 {
            double.fail(
                name.split('@').nth(1).map(|revision| format!("/revision/{revision}")).unwrap().as_str(),
                1,
                Fault::Status(status, code),
            );
        }
        let hub = Hub { token: token.map(str::to_string), ..client(&double, home.path()) };
        let error = hub.model(&model(name), ModelFiles::Whole).unwrap_err().to_string();
        assert!(error.starts_with(name) && wanted.iter().all(|part| error.contains(part)), "{name}: {error}");
    }
    // A gated repository is also reported when a file is requested.
    double.fail("/resolve/", 1, Fault::Status(403, "GatedRepo"));
    let error = client(&double, home.path()).model(&model("lab/two"), ModelFiles::Whole).unwrap_err().to_string();
    assert!(error.contains("accept its terms") && error.contains("told so"), "{error}");
}

#[test]
fn a_hub_that_cannot_be_reached_is_told_and_what_passes_is_waited_for() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    let commit = double.publish("models/lab/two", &shards());
    let hub = client(&double, home.path());
    double.fail("/api/", 2, Fault::Status(429, ""));
    hub.model(&model("lab/two"), ModelFiles::Settings).unwrap();
    let away = Hub { endpoint: "http://127.0.0.1:9".to_string(), ..hub };
    let error = away.model(&model("lab/two"), ModelFiles::Settings).unwrap_err().to_string();
    assert!(error.contains("cannot reach the Hub"), "{error}");
    assert!(error.contains(&format!("The cache has commit {commit}: set HF_HUB_OFFLINE=1 to use it")), "{error}");
}

#[test]
fn pickled_weights_are_not_fetched() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    double.publish("models/lab/old", &[("config.json", b"{}".to_vec()), ("pytorch_model.bin", weights(1))]);
    let error = client(&double, home.path()).model(&model("lab/old"), ModelFiles::Whole).unwrap_err().to_string();
    assert!(error.contains("lab/old: has pytorch_model.bin but not model.safetensors"), "{error}");
    assert!(error.contains("refs/pr/1") && error.contains("save_pretrained"), "{error}");
    assert!(double.seen().iter().all(|seen| !seen.path.contains("pytorch_model")));
}

#[test]
fn data_sets_are_chosen_by_configuration_split_and_revision() {
    let (double, home) = (Double::start(), tempfile::tempdir().unwrap());
    let row = |answer: u32| format!("{{\"question\": \"q\", \"answer\": \"{answer}\"}}\n").into_bytes();
    let card = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n  - split: test\n    path: \
                main/test-*\n---\n";
    let files = [
        ("README.md", card.as_bytes().to_vec()),
        ("main/train-00000-of-00002.jsonl", row(1)),
        ("main/train-00001-of-00002.jsonl", row(2)),
        ("main/test-00000-of-00001.jsonl", row(3)),
        ("loader.py", b"import os".to_vec()),
    ];
    let old = double.publish("datasets/lab/sums", &files);
    double.publish("datasets/lab/sums", &[("test.jsonl", row(4))]);
    double.tag("datasets/lab/sums", "refs/convert/parquet", &old);
    let hub = client(&double, home.path());
    let texts = |name: &str| -> String {
        let files: Vec<PathBuf> = hub.data(&data(name)).unwrap();
        files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect()
    };
    let row = |answer| String::from_utf8(row(answer)).unwrap();
    assert_eq!(texts("lab/sums"), row(4));
    assert_eq!(texts(&format!("lab/sums:main:train@{old}")), row(1) + &row(2));
    assert_eq!(texts("lab/sums:test@refs/convert/parquet"), row(3));
    let error = hub.data(&data(&format!("lab/sums@{old}"))).unwrap_err().to_string();
    assert!(
        error
            .contains("has several configurations or splits; choose one:\n  lab/sums:main:train\n  lab/sums:main:test"),
        "{error}"
    );
    let place = hub.cache.join("datasets--lab--sums/snapshots").join(&old).join("main/test-00000-of-00001.jsonl");
    assert!(place.is_file() && !place.with_file_name("loader.py").exists());
    if cfg!(unix) {
        assert!(std::fs::read_link(&place).unwrap().starts_with("../../../blobs"));
    }
}
