//! Commands with repository names instead of local folders and files.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempering::config::to_toml;

use super::double::Double;
use crate::support::{Workshop, device_name, final_weights, repository, run_rl};

/// Test double of the Hub with the small model as `lab/small` and its sums as `lab/sums`.
struct Lab {
    workshop: Workshop,
    double: Double,
    model: String,
}

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Lab {
    fn new() -> Self {
        let (workshop, double) = (Workshop::new(), Double::start());
        let model =
            double.publish_folder("models/lab/small", &workshop.path("model"), &[("pytorch_model.bin", vec![0; 9])]);
        let sums = std::fs::read(workshop.path("sums.jsonl")).unwrap();
        double.publish(
            "datasets/lab/sums",
            &[("train.jsonl", sums.clone()), ("test.jsonl", sums), ("README.md", b"# x".to_vec())],
        );
        Self { workshop, double, model }
    }

    fn run(&self, args: &[&dyn AsRef<OsStr>], variables: &[(&str, &str)]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tempering"));
        command.args(args.iter().map(|arg| arg.as_ref())).current_dir(self.workshop.path(""));
        for name in [
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
        ] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.workshop.path("home")).env("HF_ENDPOINT", self.double.url());
        command.env("TEMPERING_DEVICE", device_name()).envs(variables.iter().copied());
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn succeed(&self, args: &[&dyn AsRef<OsStr>], variables: &[(&str, &str)]) -> Ended {
        let ended = self.run(args, variables);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended
    }

    fn refuse(&self, args: &[&dyn AsRef<OsStr>], variables: &[(&str, &str)]) -> String {
        let ended = self.run(args, variables);
        assert_eq!(ended.code, Some(2), "{}", ended.err);
        ended.err
    }
}

const OFFLINE: (&str, &str) = ("HF_HUB_OFFLINE", "1");

#[test]
fn eval_by_names_is_eval_of_the_files_and_works_offline_afterwards() {
    let lab = Lab::new();
    let eval =
        |model: &dyn AsRef<OsStr>, data: &dyn AsRef<OsStr>, variables: &[(&str, &str)], more: &[&dyn AsRef<OsStr>]| {
            let start: [&dyn AsRef<OsStr>; 7] =
                [&"eval", &model, &data, &"--max-completion-length", &"8", &"--temperature", &"0"];
            lab.succeed(&[&start[..], more].concat(), variables).out
        };
    let by_path = eval(&lab.workshop.path("model"), &lab.workshop.path("sums.jsonl"), &[], &[]);
    assert!(lab.double.seen().is_empty(), "nothing is fetched where paths are meant");
    let out = lab.workshop.path("out");
    let by_name = eval(&"lab/small", &"lab/sums:test", &[], &[&"--output", &out]);
    assert_eq!(by_name, by_path);
    let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("eval.json")).unwrap()).unwrap();
    assert_eq!(manifest["model"], format!("hf:lab/small@{}", lab.model));
    assert_eq!(manifest["settings"]["model_digest"], lab.model);
    assert!(manifest["data"][0][0].as_str().unwrap().starts_with("hf:lab/sums:test@"), "{manifest}");
    lab.double.seen();
    assert_eq!(eval(&"lab/small", &"lab/sums:test", &[OFFLINE], &[&"--output", &out]), by_path);
    // Without our list of the files, as Python leaves a cache, there may be more of them.
    std::fs::remove_dir_all(lab.workshop.path("home/hub/datasets--lab--sums/.listings")).unwrap();
    let alone: [&dyn AsRef<OsStr>; 5] = [&"eval", &"lab/small", &"lab/sums:test", &"--output", &out];
    let ended =
        lab.succeed(&[&alone[..], &[&"--max-completion-length", &"8", &"--temperature", &"0"]].concat(), &[OFFLINE]);
    assert!(ended.err.contains("may be a part of the data set: test.jsonl") && ended.out == by_path, "{}", ended.err);
    assert!(lab.double.seen().is_empty());
    let error = lab.refuse(&[&"eval", &"lab/small", &"lab/sums"], &[]);
    assert!(
        error.contains(
            "has several configurations or splits; choose one:\n  lab/sums:default:test\n  lab/sums:default:train"
        ),
        "{error}"
    );
}

#[test]
fn score_by_name_is_score_of_the_file() {
    let lab = Lab::new();
    let rows = b"{\"text\": \"1+1\"}\n{\"text\": \"2+2=4\"}\n".to_vec();
    std::fs::write(lab.workshop.path("texts.jsonl"), &rows).unwrap();
    lab.double.publish("datasets/lab/texts", &[("train.jsonl", rows)]);
    let score = |input: &str| lab.succeed(&[&"score", &"model", &"--input", &input], &[]).out;
    let by_path = score("texts.jsonl");
    assert!(by_path.lines().count() == 2 && by_path == score("lab/texts"), "{by_path}");
}

#[test]
fn paths_that_are_mistyped_and_folders_of_a_name_ask_nothing() {
    let lab = Lab::new();
    let error = lab.refuse(&[&"generate", &"model/non"], &[]);
    assert!(error.contains("model/non: no such folder. The folder model exists"), "{error}");
    let error = lab.refuse(&[&"eval", &"model", &"model/none"], &[]);
    assert!(error.contains("model/none: no such file. The folder model exists"), "{error}");
    for path in ["./lab/small", "a/b/c", "small"] {
        let error = lab.refuse(&[&"generate", &path], &[]);
        assert!(error.contains("no such folder"), "{error}");
    }
    assert!(lab.double.seen().is_empty());
    // If the repository is in the cache, a local folder of the same name causes a warning.
    let generate =
        |name: &str| lab.succeed(&[&"generate", &name, &"--max-completion-length", &"4", &"-p", &"Compute 1+1."], &[]);
    generate("lab/small");
    lab.double.seen();
    std::fs::create_dir(lab.workshop.path("lab")).unwrap();
    std::fs::rename(lab.workshop.path("model"), lab.workshop.path("lab/small")).unwrap();
    let ended = generate("lab/small");
    assert!(
        ended.err.contains(
            "lab/small: the local file or folder of this name is used; write hf:lab/small for the repository"
        ),
        "{}",
        ended.err
    );
    // Otherwise it is told, except of the project's own folders.
    for (folder, told) in [("own", true), ("runs", false)] {
        std::fs::create_dir_all(lab.workshop.path(folder)).unwrap();
        std::fs::rename(lab.workshop.path("lab/small"), lab.workshop.path(folder).join("small")).unwrap();
        let err = generate(&format!("{folder}/small")).err;
        assert_eq!(
            err.contains(&format!("{folder}/small: the local file or folder of this name is used")),
            told,
            "{err}"
        );
        std::fs::rename(lab.workshop.path(folder).join("small"), lab.workshop.path("lab/small")).unwrap();
    }
    assert!(lab.double.seen().is_empty());
    generate("hf:lab/small");
    assert!(!lab.double.seen().is_empty());
}

#[test]
fn a_run_by_names_is_the_run_of_the_files_and_keeps_its_commits() {
    let lab = Lab::new();
    let whole = lab.workshop.rl("whole");
    run_rl(&whole).unwrap();
    let mut config = lab.workshop.rl("named");
    config.model.path = "lab/small".into();
    (config.data.train, config.data.eval) = ("lab/sums:train".into(), "lab/sums:test".into());
    config.train.save_steps = 2;
    let file = lab.workshop.path("named.toml");
    std::fs::write(&file, to_toml(&config)).unwrap();
    lab.succeed(&[&"train", &file, &"--set", &"stages.0.exit.max_steps=3"], &[]);
    let run = lab.workshop.run("named");
    let written = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(written.contains(&format!("path = \"hf:lab/small@{}\"", lab.model)), "{written}");
    assert!(written.contains("train = \"hf:lab/sums:train@"), "{written}");
    let origin: Value = serde_json::from_slice(&std::fs::read(run.join("run.json")).unwrap()).unwrap();
    assert_eq!(origin["reads"][format!("model.path: hf:lab/small@{}", lab.model)], lab.model);

    // The branch moves but the run keeps its commits, with its stored settings and with the file's (no revision).
    let other = lab.double.publish_folder("models/lab/small", &repository("assets/base"), &[]);
    lab.double.publish("datasets/lab/sums", &[("train.jsonl", b"{}".to_vec()), ("test.jsonl", b"{}".to_vec())]);
    lab.double.seen();
    lab.succeed(&[&"train", &"--resume", &run, &"--set", &"stages.0.exit.max_steps=4"], &[OFFLINE]);
    lab.succeed(&[&"train", &file, &"--resume"], &[]);
    assert!(lab.double.seen().is_empty());
    assert!(final_weights(&run) == final_weights(&lab.workshop.run("whole")));
    let set = format!("model.path=lab/small@{other}");
    let error = lab.refuse(&[&"train", &file, &"--resume", &"--set", &set], &[]);
    assert!(
        error.contains(&format!("model.path = \"hf:lab/small@{other}\" (was \"hf:lab/small@{}\")", lab.model)),
        "{error}"
    );
    let error = lab.refuse(&[&"train", &file, &"--resume", &"--set", &"model.path=lab/small@main"], &[]);
    assert!(error.contains(&other), "{error}");
}

#[test]
fn adapters_name_their_base_and_its_revision_and_are_merged_by_name() {
    let lab = Lab::new();
    let mut config = lab.workshop.sft("adapter");
    config.model.path = "lab/small".into();
    config.lora = Some(tempering::model::LoraConfig { r: 4, ..tempering::model::LoraConfig::default() });
    let file = lab.workshop.path("adapter.toml");
    std::fs::write(&file, to_toml(&config)).unwrap();
    lab.succeed(&[&"sft", &file], &[]);
    let adapter = lab.workshop.run("adapter").join("adapter");
    let written: Value = serde_json::from_slice(&std::fs::read(adapter.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(
        (&written["base_model_name_or_path"], &written["revision"]),
        (&"lab/small".into(), &lab.model.as_str().into())
    );
    // On another machine: the adapter is published, the cache is empty, and the base's branch has moved.
    lab.double.publish_folder("models/lab/adapter", &adapter, &[("adapter_model.bin", vec![1; 9])]);
    lab.double.publish_folder("models/lab/small", &repository("assets/base"), &[]);
    std::fs::remove_dir_all(lab.workshop.path("home")).unwrap();
    let merged = lab.workshop.path("merged");
    lab.succeed(&[&"merge", &"lab/adapter", &"-o", &merged], &[]);
    let bytes = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(bytes(&merged) == bytes(&lab.workshop.run("adapter").join("final")));
}

#[test]
fn benchmarks_are_fetched_by_name_and_asked_by_the_protocol_of_papers() {
    let lab = Lab::new();
    let rows = |question: &str, answer: &str| -> Vec<u8> {
        let row = |n: u32| {
            format!("{{\"{question}\": \"Compute {n}+1.\", \"solution\": \"no\", \"answer\": \"{answer}{}\"}}\n", n + 1)
        };
        (0..3).map(row).collect::<String>().into_bytes()
    };
    let math = lab.double.publish("datasets/HuggingFaceH4/MATH-500", &[("test.jsonl", rows("problem", ""))]);
    let card = "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: test\n    path: main/test-*\n---\n";
    let files = [("README.md", card.as_bytes().to_vec()), ("main/test-0.jsonl", rows("question", "#### "))];
    lab.double.publish("datasets/openai/gsm8k", &files);
    let out = lab.workshop.path("out");
    let few: [&dyn AsRef<OsStr>; 6] = [&"-n", &"2", &"--num-problems", &"2", &"--max-completion-length", &"8"];
    let start: [&dyn AsRef<OsStr>; 6] = [&"eval", &"model", &"math500", &"gsm8k", &"--output", &out];
    let ended = lab.succeed(&[&start[..], &few].concat(), &[]);
    assert!(
        ended.out.contains("math500") && ended.out.contains("gsm8k") && ended.out.contains("lenient found"),
        "{}",
        ended.out
    );
    assert!(
        ended.err.contains("protocol paper; options override its values: temperature 0.6, top-p 0.95"),
        "{}",
        ended.err
    );
    assert!(
        ended.err.contains("HuggingFaceH4/MATH-500:test has 3 problems, but the published benchmark has 500"),
        "{}",
        ended.err
    );
    let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("eval.json")).unwrap()).unwrap();
    let settings = &manifest["settings"];
    let number = |key: &str| settings[key].as_f64().unwrap() as f32;
    assert_eq!((number("temperature"), number("top_p"), number("num_generations")), (0.6, 0.95, 2.0));
    assert!(
        settings["prompt"]["suffix"].as_str().unwrap().ends_with("put your final answer within \\boxed{}."),
        "{settings}"
    );
    assert_eq!(manifest["data"][0][0], format!("math500@{math}"));

    // Explicit options override the benchmark's, including the protocol. A local file of the same name has precedence.
    let plain: [&dyn AsRef<OsStr>; 7] =
        [&"eval", &"model", &"math500", &"--protocol", &"plain", &"--num-problems", &"1"];
    assert!(!lab.succeed(&plain, &[]).err.contains("protocol paper"));
    for name in ["aime24", "amc23"] {
        std::fs::write(lab.workshop.path(name), rows("problem", "")).unwrap();
    }
    lab.double.seen();
    let taken = lab.succeed(&[&"eval", &"model", &"aime24", &"amc23"], &[]).err;
    for name in ["aime24", "amc23"] {
        let line =
            format!("{name}: the local file or folder of this name is used; write {name}@main for the benchmark");
        assert_eq!(taken.matches(&line).count(), 1, "{taken}");
    }
    // Regression: with a folder of the name, the benchmark was fetched.
    std::fs::create_dir(lab.workshop.path("gsm8k")).unwrap();
    let error = lab.refuse(&[&"eval", &"model", &"gsm8k"], &[]);
    assert!(
        error.contains("gsm8k: is a folder; give a file in it") && error.contains("gsm8k@main for the benchmark"),
        "{error}"
    );
    let error = lab.refuse(&[&"eval", &"model", &"aime23"], &[]);
    assert!(error.contains("built-in benchmark names are math500, aime24"), "{error}");
    assert!(lab.double.seen().is_empty());

    let told = lab.succeed(&[&"eval", &"--protocol", &"paper"], &[]).out;
    assert!(
        told.contains("at most 32768 tokens") && told.contains("Hothan/OlympiadBench:OE_TO_maths_en_COMP:train"),
        "{told}"
    );
    let error = lab.refuse(&[&"eval", &"model", &"--protocol", &"paper"], &[]);
    assert!(error.contains("no DATA given"), "{error}");
}
