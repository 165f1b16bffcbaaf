//! Evaluation: figures against values computed by hand, and interruptions.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;
use tempering::data::{DataReport, Fields, load_problems};
use tempering::eval::figures::{Percentiles, Scores};
use tempering::eval::saved::{Manifest, differences, evaluate_into};
use tempering::eval::{EvalConfig, Evaluation, EvaluationEvent, Subject, evaluate, record};
use tempering::generate::Count;
use tempering::rollout::Local;
use tempering::{Result, model};

use crate::cli::{succeed, user_error};
use crate::support::{Workshop, device, device_name, figures, repository, resume_rl, run_rl, tokenizer};

#[track_caller]
fn assert_scores(scores: &Scores, expected: [(&str, f64); 6]) {
    assert_eq!(scores.0.len(), expected.len());
    for (name, value) in expected {
        let got = scores.get(name).unwrap().value;
        assert!((got - value).abs() < 1e-12, "{name}: {got} against {value}");
    }
}

/// The completions in `assets/fixtures/completions.jsonl`, 4 per problem (r: correct, w: wrong, -: no answer):
///
/// | problem | strict | c | lenient | c | tokens |
/// |---|---|---|---|---|---|
/// | sums 1 | r r w - | 2 | r r w r | 3 | 10 20 30 40 |
/// | sums 2 | w - w r | 1 | w r w r | 2 | 50 100 (cut) 60 70 |
/// | halves 1 | - r r r | 3 | - r r r | 3 | 8 12 16 20 |
#[test]
fn every_figure_of_the_saved_completions_is_the_one_by_hand() {
    let records = record::read(&repository("assets/fixtures/completions.jsonl")).unwrap();
    let evaluation = Evaluation::new(records).unwrap();
    let sums = &evaluation.families()["sums"];
    assert_eq!((sums.n, sums.problems, sums.samples), (8, 2, 4));
    // pass@2: 1 - C(2,2)/C(4,2) = 5/6, 1 - C(3,2)/C(4,2) = 1/2. Majority: 5 (2 of 3 votes), correct; 7 (2 of 3), wrong.
    assert_scores(
        &sums.strict,
        [
            ("mean@4", (2.0 + 1.0) / 8.0),
            ("pass@1", (2.0 + 1.0) / 8.0),
            ("pass@2", (5.0 / 6.0 + 1.0 / 2.0) / 2.0),
            ("pass@4", 1.0),
            ("maj@4", 0.5),
            ("best@4", 1.0),
        ],
    );
    // pass@2: 1, since 3 of 4 are correct, and 1 - C(2,2)/C(4,2). Majority: 5 (3 of 4), correct; a tie of 7 and 12 with
    // two votes each, one of them correct.
    assert_scores(
        &sums.lenient,
        [
            ("mean@4", (3.0 + 2.0) / 8.0),
            ("pass@1", (3.0 + 2.0) / 8.0),
            ("pass@2", (1.0 + 5.0 / 6.0) / 2.0),
            ("pass@4", 1.0),
            ("maj@4", 0.75),
            ("best@4", 1.0),
        ],
    );
    assert_eq!((sums.accuracy, sums.accuracy_lenient), (3.0 / 8.0, 5.0 / 8.0));
    assert_eq!(sums.mean_length, 380.0 / 8.0);
    assert_eq!(sums.mean_length_correct, Some((10.0 + 20.0 + 70.0) / 3.0));
    assert_eq!(sums.mean_length_wrong, Some((30.0 + 40.0 + 50.0 + 100.0 + 60.0) / 5.0));
    assert_eq!(sums.clipped_ratio, 1.0 / 8.0);
    assert_eq!(sums.tokens_per_correct, Some(380.0 / 3.0));
    assert_eq!((sums.entropy, sums.floor), (None, None));
    // Sorted: 10 20 30 40 50 60 70 100. The q-quantile is at index 7q, counted from 0.
    let Percentiles { p5, p25, p50, p75, p95, max } = sums.length_percentiles;
    for (got, expected) in [p5, p25, p50, p75, p95, max].into_iter().zip([13.5, 27.5, 45.0, 62.5, 89.5, 100.0]) {
        assert!((got - expected).abs() < 1e-12, "{got} against {expected}");
    }

    let all = evaluation.overall();
    assert_eq!((all.n, all.problems), (12, 3));
    // Any two completions of halves 1 contain a correct one. Its majority is 1/2, in three spellings.
    assert_scores(
        &all.strict,
        [
            ("mean@4", 6.0 / 12.0),
            ("pass@1", 6.0 / 12.0),
            ("pass@2", (5.0 / 6.0 + 1.0 / 2.0 + 1.0) / 3.0),
            ("pass@4", 1.0),
            ("maj@4", 2.0 / 3.0),
            ("best@4", 1.0),
        ],
    );
    assert_eq!(all.tokens_per_correct, Some(436.0 / 6.0));
    let verdicts: Vec<_> = evaluation.verdicts().into_iter().collect();
    assert_eq!(verdicts, [("no_answer", 3), ("right", 6), ("wrong", 3)].map(|(name, n)| (name.to_string(), n)));

    // Bootstrap of accuracies 1/2 and 1/4: a quarter of the resamples has the first twice, a quarter the second.
    let summary = evaluation.summary();
    let interval = |path: &str| summary.pointer(path).unwrap().clone();
    assert_eq!(interval("/families/sums/strict/mean@4/interval"), serde_json::json!([0.25, 0.5]));
    assert_eq!(interval("/families/sums/mean_length_interval"), serde_json::json!([25.0, 70.0]));
    assert_eq!(interval("/families/halves/strict/mean@4/interval"), serde_json::Value::Null);
    let table = evaluation.table();
    assert!(table.contains("37.5 (25.0..50.0)") && table.contains("126.7"), "{table}");
}

#[test]
fn completions_that_are_not_equally_many_are_refused() {
    let mut records = record::read(&repository("assets/fixtures/completions.jsonl")).unwrap();
    records.remove(6);
    let error = Evaluation::new(records).unwrap_err().to_string();
    assert!(error.contains("problem 2 of sums has 3 completions, but the first problem has 4"), "{error}");
}

fn config() -> EvalConfig {
    // Three problems per chunk: 16 problems make five full chunks and a chunk of one.
    EvalConfig { num_generations: 2, rows: 6, max_completion_length: 24, ..EvalConfig::default() }
}

/// Evaluate the workshop's model on its sums; write the results into `dir`.
fn run(workshop: &Workshop, dir: &Path, config: &EvalConfig) -> Result<Evaluation> {
    let path = workshop.path("model");
    let (model_config, model) = model::load(&path, &device()).unwrap();
    let problems = load_problems(&workshop.path("sums.jsonl"), &Fields::default()).unwrap();
    let data = vec![("sums.jsonl".into(), DataReport::of(&problems))];
    let manifest = Manifest::new(&path, &device_name(), data, &problems, config)?;
    let subject = Subject { model_config: &model_config, tokenizer: &tokenizer() };
    let mut sampler = Local { model: &model, config: &model_config };
    evaluate_into(dir, &manifest, &mut sampler, subject, &problems, config, &mut |_| Ok(()))
}

fn files(dir: &Path) -> [Vec<u8>; 2] {
    ["completions.jsonl", "summary.json"].map(|name| std::fs::read(dir.join(name)).unwrap())
}

#[test]
fn an_interrupted_evaluation_goes_on_and_ends_as_one_that_was_not() {
    let workshop = Workshop::new();
    let whole = workshop.path("whole");
    let figures = run(&workshop, &whole, &config()).unwrap().overall();
    assert!((figures.problems, figures.samples) == (16, 2) && figures.accuracy > 0.0, "{figures:?}");
    let [completions, _] = files(&whole);
    let ends: Vec<usize> = (0..completions.len()).filter(|&at| completions[at] == b'\n').map(|at| at + 1).collect();
    assert_eq!(ends.len(), 32);
    // Nothing, half a line, one chunk, a chunk and a part, everything but the last line break, everything.
    for cut in [0, ends[0] / 2, ends[5], ends[7] + 9, ends[31] - 1, ends[31]] {
        let dir = workshop.path(&format!("cut-{cut}"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::copy(whole.join("eval.json"), dir.join("eval.json")).unwrap();
        std::fs::write(dir.join("completions.jsonl"), &completions[..cut]).unwrap();
        run(&workshop, &dir, &config()).unwrap();
        assert!(files(&dir) == files(&whole), "cut at {cut} of {}", completions.len());
    }
}

#[test]
fn a_folder_with_another_evaluation_is_refused_and_the_differences_named() {
    let workshop = Workshop::new();
    let dir = workshop.path("out");
    run(&workshop, &dir, &config()).unwrap();
    let before = files(&dir);
    let error = run(&workshop, &dir, &EvalConfig { seed: 7, ..config() }).unwrap_err().to_string();
    assert!(error.contains("out: holds an evaluation with other settings: seed was 1000003 and is now 7;"), "{error}");
    let weights = workshop.path("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error = run(&workshop, &dir, &config()).unwrap_err().to_string();
    assert!(error.contains("model_digest was"), "{error}");
    workshop.write_lines("sums.jsonl", [serde_json::json!({"prompt": "Compute 1+1.", "answer": "3"})]);
    let error = run(&workshop, &dir, &config()).unwrap_err().to_string();
    assert!(error.contains("problems was 16 and is now 1; problems_digest was"), "{error}");
    assert!(files(&dir) == before);
}

/// Regression: after the base model was retrained, old completions of the adapter were accepted as its evaluation.
#[test]
fn an_evaluation_of_an_adapter_is_one_of_its_base_too() {
    let workshop = Workshop::new();
    let adapter = workshop.path("adapter");
    std::fs::create_dir(&adapter).unwrap();
    let named = serde_json::json!({ "base_model_name_or_path": workshop.path("model") });
    std::fs::write(adapter.join("adapter_config.json"), named.to_string()).unwrap();
    let manifest = || Manifest::new(&adapter, "cpu", Vec::new(), &[], &config()).unwrap();
    let before = manifest();
    assert!(differences(&before.settings, &manifest().settings).is_empty());
    let weights = workshop.path("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let changed = differences(&before.settings, &manifest().settings);
    let changed: Vec<String> = changed.into_iter().map(|(name, _)| name).collect();
    assert_eq!(changed, ["base_digest"]);
}

/// A data set may contain a problem twice. Both count, each with its own completions.
#[test]
fn a_problem_that_occurs_twice_is_two_problems() {
    let workshop = Workshop::new();
    let (model_config, model) = model::load(&workshop.path("model"), &device()).unwrap();
    let mut problems = load_problems(&workshop.path("sums.jsonl"), &Fields::default()).unwrap();
    problems.truncate(2);
    problems.push(problems[0].clone());
    let subject = Subject { model_config: &model_config, tokenizer: &tokenizer() };
    let mut sampler = Local { model: &model, config: &model_config };
    let mut lines = 0;
    let mut sampled = Count::default();
    let observe = &mut |event: EvaluationEvent| {
        match event {
            EvaluationEvent::Graded(new) => lines += new.len(),
            EvaluationEvent::Sampled(count) => sampled = count.clone(),
            EvaluationEvent::Resumed(problems) => unreachable!("{problems} problems resumed"),
        }
        Ok(())
    };
    let evaluation =
        Evaluation::new(evaluate(&mut sampler, subject, &problems, 0, &config(), observe).unwrap()).unwrap();
    assert_eq!((lines, evaluation.overall().problems, evaluation.overall().samples), (6, 3, 2));
    let tokens = (6.0 * evaluation.overall().mean_length).round() as usize;
    assert_eq!((sampled.total, sampled.ended, sampled.tokens, sampled.ended_tokens), (6, 6, tokens, tokens));
    assert_eq!(evaluation.groups.iter().map(|group| group.key.repeat).collect::<Vec<_>>(), [0, 0, 1]);
}

/// Regression: after the advice to delete a line, a problem was missing and another one counted twice.
#[test]
fn lines_of_other_problems_are_refused() {
    let workshop = Workshop::new();
    let dir = workshop.path("out");
    run(&workshop, &dir, &config()).unwrap();
    let text = std::fs::read_to_string(dir.join("completions.jsonl")).unwrap();
    let whole = files(&dir);
    let lines: Vec<&str> = text.lines().collect();
    let (deleted, doubled) = ([&lines[..2], &lines[3..]].concat(), [&lines[..3], &lines[2..]].concat());
    for (lines, at) in [(deleted, 3), (doubled, 4)] {
        std::fs::write(dir.join("completions.jsonl"), lines.join("\n") + "\n").unwrap();
        let error = run(&workshop, &dir, &config()).unwrap_err().to_string();
        assert!(error.contains(&format!("completions.jsonl:{at}: unexpected completion")), "{error}");
        // The advice works.
        std::fs::write(dir.join("completions.jsonl"), lines[..at - 1].join("\n") + "\n").unwrap();
        run(&workshop, &dir, &config()).unwrap();
        assert!(files(&dir) == whole);
    }
}

/// Regression: figures of one number format were printed as those of another. A folder of an older version, which does
/// not know the format, is still read.
#[test]
fn an_evaluation_belongs_to_its_number_format() {
    let workshop = Workshop::new();
    let (model, sums, out) = (workshop.path("model"), workshop.path("sums.jsonl"), workshop.path("out"));
    let common: [&dyn AsRef<OsStr>; 7] = [&"eval", &model, &sums, &"--max-completion-length", &"8", &"--output", &out];
    let table = succeed(&common);
    let path = out.join("eval.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let settings = manifest["settings"].as_object_mut().unwrap();
    // Changed in the file, because not every device computes in bf16.
    assert_eq!(settings.insert("dtype".into(), "bf16".into()), Some("f32".into()));
    std::fs::write(&path, manifest.to_string()).unwrap();
    let error = user_error(&common);
    assert!(
        error.contains("holds an evaluation with other settings: dtype was \"bf16\" and is now \"f32\";"),
        "{error}"
    );
    manifest["settings"].as_object_mut().unwrap().remove("dtype").unwrap();
    std::fs::write(&path, manifest.to_string()).unwrap();
    assert_eq!(succeed(&common), table);
}

/// Regression: an evaluation whose template reads the date did not go on after midnight.
#[test]
fn an_evaluation_goes_on_with_its_own_date() {
    let workshop = Workshop::new();
    let (model, sums, out) = (workshop.path("model"), workshop.path("sums.jsonl"), workshop.path("out"));
    let path = model.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let template = config["chat_template"].as_str().unwrap();
    config["chat_template"] = format!("{{{{ strftime_now('%d') }}}}{template}").into();
    std::fs::write(&path, config.to_string()).unwrap();
    let common: [&dyn AsRef<OsStr>; 7] = [&"eval", &model, &sums, &"--max-completion-length", &"8", &"--output", &out];
    let table = succeed(&[&common[..], &[&"--date", &"2026-01-31"]].concat());
    assert_eq!(succeed(&common), table);
    let error = user_error(&[&common[..], &[&"--date", &"2026-02-01"]].concat());
    assert!(error.contains("prompt.date was \"2026-01-31\" and is now \"2026-02-01\";"), "{error}");
}

/// Regression: a part of an evaluation was shown as a whole one, and settings that differ or are not known went unsaid.
#[test]
fn what_is_unfinished_or_not_known_is_said() {
    let workshop = Workshop::new();
    let (model, sums) = (workshop.path("model"), workshop.path("sums.jsonl"));
    let [a, b] = ["a", "b"].map(|name| workshop.path(name));
    for (out, seed) in [(&a, "1"), (&b, "2")] {
        succeed(&[&"eval", &model, &sums, &"--max-completion-length", &"8", &"--seed", &seed, &"--output", out]);
    }
    let (bare, figures) = (workshop.path("bare.jsonl"), workshop.path("figures.json"));
    let json = || -> Value { serde_json::from_slice(&std::fs::read(&figures).unwrap()).unwrap() };
    let text = succeed(&[&"compare", &a.join("completions.jsonl"), &b, &"--json", &figures]);
    assert!(
        text.contains("The evaluations differ in the setting seed: 1 and 2.")
            && !text.contains("differ in the setting rows"),
        "{text}"
    );
    assert_eq!(json()["settings"], serde_json::json!({ "seed": [1, 2] }));
    std::fs::copy(a.join("completions.jsonl"), &bare).unwrap();
    let text = succeed(&[&"compare", &bare, &b, &"--json", &figures]);
    assert!(text.contains("The settings of") && text.contains("bare.jsonl are unknown."), "{text}");
    assert_eq!(json()["settings"], Value::Null);

    let text = std::fs::read_to_string(&bare).unwrap();
    let part: Vec<&str> = text.lines().take(10).collect();
    std::fs::write(a.join("completions.jsonl"), part.join("\n")).unwrap();
    assert!(succeed(&[&"eval", &"--from", &a]).contains("is unfinished: it holds 10 of 16 completions."));
    assert!(succeed(&[&"compare", &a, &b]).contains("is unfinished: it holds 10 of 16 completions."));
    let error = user_error(&[&"eval", &model, &sums, &"-n", &"0"]);
    assert!(error.contains("--num-generations 0 must be positive"), "{error}");
}

/// Regression: a run that was extended lost the evaluation at its former end.
#[test]
fn an_extended_run_keeps_the_evaluation_at_its_former_end() {
    let workshop = Workshop::new();
    run_rl(&workshop.rl("whole")).unwrap();
    let mut config = workshop.rl("run");
    config.stages[0].exit.max_steps = 4;
    run_rl(&config).unwrap();
    config.stages[0].exit.max_steps = 6;
    resume_rl(&config).unwrap();
    assert_eq!(figures(&workshop.run("run")), figures(&workshop.run("whole")));
}
