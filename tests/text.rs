//! Prompts and published generation settings, from the command line to the files of a run.

use std::ffi::OsStr;
use std::fs;

use serde_json::json;

use crate::cli::{both, succeed, user_error};
use crate::support::{Workshop, read_lines, run_rl, run_sft};

/// `generation_config.json` as published for a reasoning model, with its irregular spacing and order of stop tokens.
const PUBLISHED: &str = "{\"do_sample\":true, \"temperature\": 0.6,\"top_p\":0.95,\n \"bos_token_id\": 1, \
                         \"eos_token_id\": [2, 0], \"pad_token_id\": 0}";

#[test]
fn the_published_settings_go_through_training_as_they_are() {
    let workshop = Workshop::new();
    fs::write(workshop.path("model/generation_config.json"), PUBLISHED).unwrap();
    let tuned = run_sft(&workshop.sft("sft")).unwrap();
    assert_eq!(fs::read_to_string(tuned.join("generation_config.json")).unwrap(), PUBLISHED);
    let mut config = workshop.rl("rl");
    config.stages[0].exit.max_steps = 1;
    let run = run_rl(&config).unwrap().dir;
    assert_eq!(fs::read_to_string(run.join("final/generation_config.json")).unwrap(), PUBLISHED);
}

#[test]
fn generate_samples_as_the_model_was_published_to() {
    let workshop = Workshop::new();
    let model = workshop.path("model");
    let answer = |more: &[&dyn AsRef<OsStr>]| {
        let common: [&dyn AsRef<OsStr>; 6] =
            [&"generate", &model, &"-p", &"Compute 2+2.", &"--max-completion-length", &"12"];
        both(&[&common[..], more].concat())
    };
    fs::write(workshop.path("model/generation_config.json"), PUBLISHED).unwrap();
    let (published, said) = answer(&[]);
    assert!(said.contains("from generation_config.json") && said.contains("temperature 0.6, top_p 0.95"), "{said}");
    assert_eq!(published, answer(&[&"--temperature", &"0.6", &"--top-p", &"0.95"]).0);
    assert_ne!(answer(&[&"--temperature", &"3"]).0, published);
    fs::write(workshop.path("model/generation_config.json"), r#"{"do_sample": false, "temperature": 0.6}"#).unwrap();
    let (greedy, said) = answer(&[]);
    assert!(said.contains("do_sample false"), "{said}");
    assert_eq!(greedy, answer(&[&"--temperature", &"0"]).0);
}

#[test]
fn prompt_and_completion_must_fit_the_model() {
    let workshop = Workshop::new();
    let (model, sums) = (workshop.path("model"), workshop.path("sums.jsonl"));
    let error = user_error(&[&"eval", &model, &sums, &"--max-completion-length", &"1000000"]);
    for part in
        ["eval.max_completion_length = 1000000", "max_position_embeddings = ", "set eval.max_completion_length to "]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = user_error(&[&"analyze", &model, &sums, &"--set", &"sampling.max_completion_length=1000000"]);
    assert!(error.contains("the stage's sampling.max_completion_length = 1000000"), "{error}");
    let mut config = workshop.rl("rl");
    config.stages[0].sampling.max_completion_length = 1_000_000;
    let error = run_rl(&config).unwrap_err().to_string();
    assert!(error.contains("max_completion_length = 1000000: together more than"), "{error}");
    // `generate` limits the completion length to the context instead.
    let long: [&dyn AsRef<OsStr>; 6] =
        [&"generate", &model, &"--max-completion-length", &"1000000", &"--stop", &"\\boxed"];
    succeed(&long);
}

#[test]
fn files_of_formulae_are_asked_for_in_a_box() {
    let workshop = Workshop::new();
    let (model, sums, out) = (workshop.path("model"), workshop.path("sums.jsonl"), workshop.path("out"));
    let common: [&dyn AsRef<OsStr>; 9] =
        [&"eval", &model, &sums, &"--num-problems", &"2", &"--max-completion-length", &"8", &"--output", &out];
    succeed(&common);
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(out.join("eval.json")).unwrap()).unwrap();
    assert_eq!(manifest["settings"]["prompt"]["suffix"], "auto");
    // Records contain the problem without the suffix.
    assert_eq!(read_lines(&out.join("completions.jsonl"))[0]["prompt"], "Compute 1+1.");
    let error = user_error(&[&common[..], &[&"--suffix", &""]].concat());
    assert!(
        error.contains("holds an evaluation with other settings: prompt.suffix was \"auto\" and is now \"\";"),
        "{error}"
    );

    let mut config = workshop.rl("asked");
    config.stages[0].exit.max_steps = 1;
    config.prompt.suffix = "auto".into();
    let run = run_rl(&config).unwrap().dir;
    let settings = fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(settings.contains("[prompt]") && settings.contains("suffix = \"auto\""), "{settings}");
}

#[test]
fn settings_of_the_prompt_that_do_nothing_are_refused() {
    let workshop = Workshop::new();
    let generate = |flag: &str, value: &str| user_error(&[&"generate", &workshop.path("model"), &flag, &value]);
    let error = generate("--template-kwarg", "enable_thinking=false");
    assert!(error.contains("enable_thinking is not used by the chat template"), "{error}");
    assert!(generate("--template-kwarg", "thinking").contains("expected KEY=VALUE"));
    let error = generate("--chat-template", "rag");
    assert!(error.contains("prompt.template = \"rag\" is none of the chat templates in "), "{error}");
    assert!(generate("--date", "2026-11-26").contains("is not used by the chat template"));
    let mut config = workshop.rl("rl");
    config.prompt.chat_template_kwargs.insert("messages".into(), "x".into());
    assert!(run_rl(&config).unwrap_err().to_string().contains("messages is set by tempering itself"));
}

/// Regression: the error was `m: entity not found: entity not found`, without saying what was expected.
#[test]
fn what_is_missing_is_said_once() {
    let workshop = Workshop::new();
    let error = user_error(&[&"eval", &"./Small-1B", &"tasks"]);
    assert!(error.contains("./Small-1B: no such folder") && error.contains("(owner/name)"), "{error}");
    let error = user_error(&[&"eval", &workshop.path("model"), &workshop.path("none.jsonl")]);
    assert_eq!(error.matches("No such file or directory").count(), 1, "{error}");
    let error = user_error(&[&"eval", &workshop.path("model"), &"./sums"]);
    assert!(
        error.contains("./sums: unknown data format (file extension \"\")")
            && error.contains("owner/name:config:split"),
        "{error}"
    );
    let rows = workshop.write_lines("rows.jsonl", [json!({"messages": [{"role": "user", "content": "q"}]})]);
    let mut config = workshop.sft("x");
    config.data.train = rows;
    assert!(run_sft(&config).unwrap_err().to_string().contains("rows.jsonl:1"));
}
