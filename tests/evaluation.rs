//! Evaluation: figures against figures by hand, and interruptions that change nothing.

use std::path::Path;

use tempering::data::{DataReport, Fields, load_problems};
use tempering::eval::figures::{Percentiles, Scores};
use tempering::eval::saved::{Manifest, evaluate_into};
use tempering::eval::{EvalConfig, Evaluation, Event, Subject, evaluate, record};
use tempering::generate::Count;
use tempering::rollout::Local;
use tempering::{Result, model};

use crate::support::{Workshop, device, device_name, repository, tokenizer};

#[track_caller]
fn assert_scores(scores: &Scores, expected: [(&str, f64); 6]) {
    assert_eq!(scores.0.len(), expected.len());
    for (name, value) in expected {
        let got = scores.get(name).unwrap().value;
        assert!((got - value).abs() < 1e-12, "{name}: {got} against {value}");
    }
}

/// The completions of `assets/fixtures/completions.jsonl`, 4 per problem (r: right, w: wrong, -: no answer):
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
    // pass@2: 1 - C(2,2)/C(4,2) = 5/6 and 1 - C(3,2)/C(4,2) = 1/2. Majorities: 5 (2 of 3 votes), right; 7 (2 of 3), wrong.
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
    // pass@2: 1, since 3 of 4 are right, and 1 - C(2,2)/C(4,2). Majorities: 5 (3 of 4), right; 7 and 12 have 2 each, one of
    // them right.
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
    // Sorted 10 20 30 40 50 60 70 100; the q-quantile stands at 7q, counted from 0.
    let Percentiles { p5, p25, p50, p75, p95, max } = sums.length_percentiles;
    for (got, expected) in [p5, p25, p50, p75, p95, max].into_iter().zip([13.5, 27.5, 45.0, 62.5, 89.5, 100.0]) {
        assert!((got - expected).abs() < 1e-12, "{got} against {expected}");
    }

    let all = evaluation.overall();
    assert_eq!((all.n, all.problems), (12, 3));
    // Of halves 1 any two have a right one; its majority is 1/2, written in three ways.
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

    // Two problems drawn from 1/2 and 1/4: a quarter of all draws has the one twice, a quarter the other.
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
    assert!(error.contains("problem 2 of sums has 3 completions and the first problem 4"), "{error}");
}

fn config() -> EvalConfig {
    // Three problems at a time: 16 problems are five whole chunks and one.
    EvalConfig { num_generations: 2, rows: 6, max_completion_length: 24, ..EvalConfig::default() }
}

/// Evaluates the workshop's model on its sums, into a folder.
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
    // Nothing, half a line, one chunk, a chunk and some, all but the last line's end, all.
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
    assert!(error.contains("out: holds another evaluation: seed was 1000003 and is 7;"), "{error}");
    let weights = workshop.path("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error = run(&workshop, &dir, &config()).unwrap_err().to_string();
    assert!(error.contains("model_digest was"), "{error}");
    workshop.write_lines("sums.jsonl", [serde_json::json!({"prompt": "Compute 1+1.", "answer": "3"})]);
    let error = run(&workshop, &dir, &config()).unwrap_err().to_string();
    assert!(error.contains("problems was 16 and is 1; problems_digest was"), "{error}");
    assert!(files(&dir) == before);
}

/// The base was retrained, and the adapter's folder of old completions was taken for its evaluation.
#[test]
fn an_evaluation_of_an_adapter_is_one_of_its_base_too() {
    let workshop = Workshop::new();
    let adapter = workshop.path("adapter");
    std::fs::create_dir(&adapter).unwrap();
    let named = serde_json::json!({ "base_model_name_or_path": workshop.path("model") });
    std::fs::write(adapter.join("adapter_config.json"), named.to_string()).unwrap();
    let manifest = || Manifest::new(&adapter, "cpu", Vec::new(), &[], &config()).unwrap();
    let before = manifest();
    assert!(before.differences(&manifest()).is_empty());
    let weights = workshop.path("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let changed: Vec<String> = before.differences(&manifest()).into_iter().map(|(name, _)| name).collect();
    assert_eq!(changed, ["base_digest"]);
}

/// A data set may have a problem twice; both count, and neither gets the other's completions.
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
    let observe = &mut |event: Event| {
        match event {
            Event::Graded(new) => lines += new.len(),
            Event::Sampled(count) => sampled = count.clone(),
            Event::Resumed(problems) => unreachable!("{problems} problems resumed"),
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
