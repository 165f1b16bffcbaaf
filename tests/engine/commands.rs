//! The commands `eval` and `generate` on servers.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;
use tempering::data::{Fields, load_problems};
use tempering::eval::EvalConfig;
use tempering::noise::mix_text;

use super::fake::{Fake, Kind, Setup};
use crate::cli::{both, succeed, user_error};
use crate::support::{Workshop, read_lines};

/// Return the value of `--rollout urls=…` for a server.
fn urls(fake: &Fake) -> String {
    format!("urls=[{:?}]", fake.url())
}

/// Return the completions in the folder of an evaluation.
fn completions(out: &Path) -> Vec<Value> {
    read_lines(&out.join("completions.jsonl")).into_iter().map(|line| line["completion"].clone()).collect()
}

#[test]
fn an_evaluation_on_a_server_is_that_of_our_own_engine_and_names_the_model_of_the_server() {
    let workshop = Workshop::new();
    let (model, sums) = (workshop.path("model"), workshop.path("sums.jsonl"));
    let eval = |out: &Path, more: &[&dyn AsRef<OsStr>]| {
        let common: [&dyn AsRef<OsStr>; 7] =
            [&"eval", &model, &sums, &"--max-completion-length", &"8", &"--output", &out];
        both(&[&common[..], more].concat())
    };
    let own = workshop.path("own");
    eval(&own, &[]);
    let path = model.display().to_string();
    // The last server has another model, by its own report.
    for (kind, engine, root) in
        [(Kind::Vllm, "vllm", ""), (Kind::Sglang, "sglang", ""), (Kind::Vllm, "vllm", "/models/another")]
    {
        let fake = Fake::start(kind, &model, Setup { root: root.into(), ..Setup::default() });
        for problem in load_problems(&sums, &Fields::default()).unwrap() {
            fake.register_key([EvalConfig::default().seed, 0, problem.id]);
        }
        let out = workshop.path(&format!("{engine}{}", root.len()));
        let (engine_is, urls) = (format!("engine={engine}"), urls(&fake));
        let (_, said) = eval(&out, &[&"--rollout", &engine_is, &"--rollout", &urls]);
        assert_eq!(completions(&out), completions(&own));
        assert_eq!(said.contains("/models/another, which may be another model than"), !root.is_empty(), "{said}");
        let manifest: Value = serde_json::from_slice(&std::fs::read(out.join("eval.json")).unwrap()).unwrap();
        let settings = &manifest["settings"];
        assert_eq!(settings["device"], engine);
        assert_eq!(settings["served_model"], if root.is_empty() { path.as_str() } else { root });
        assert!(settings["dtype"].is_null());
    }
}

/// Regression: only the completion was counted, and the server cut it later.
#[test]
fn a_server_whose_context_does_not_hold_prompt_and_completion_is_refused() {
    let workshop = Workshop::new();
    let (model, sums) = (workshop.path("model"), workshop.path("sums.jsonl"));
    let fake = Fake::start(Kind::Vllm, &model, Setup { max_model_len: 9, ..Setup::default() });
    let urls = urls(&fake);
    let rollout: [&dyn AsRef<OsStr>; 6] =
        [&"--rollout", &"engine=vllm", &"--rollout", &urls, &"--max-completion-length", &"8"];
    let commands: [&[&dyn AsRef<OsStr>]; 2] = [&[&"eval", &model, &sums], &[&"generate", &model]];
    for command in commands {
        let error = user_error(&[command, &rollout].concat());
        assert!(error.contains("context of 9 tokens is too small") && error.contains("--max-model-len"), "{error}");
    }
    assert!(fake.seen("/v1/completions").is_empty());
}

#[test]
fn generate_on_a_server_gives_the_text_of_our_own_engine() {
    let workshop = Workshop::new();
    let (model, prompt) = (workshop.path("model"), "Compute 1+2.");
    let common: [&dyn AsRef<OsStr>; 6] = [&"generate", &model, &"-p", &prompt, &"--max-completion-length", &"8"];
    let fake = Fake::start(Kind::Vllm, &model, Setup::default());
    fake.register_key([0, 0, mix_text(prompt)]);
    let urls = urls(&fake);
    let rollout: [&dyn AsRef<OsStr>; 4] = [&"--rollout", &"engine=vllm", &"--rollout", &urls];
    assert_eq!(succeed(&[&common[..], &rollout].concat()), succeed(&common));
    assert_eq!(fake.seen("/v1/completions").len(), 1);
}
