use std::fs;
use std::path::Path;

use super::run::{MetricsByStep, StageSpan};
use super::*;

const METRICS: &str = r#"{"step":0,"eval/accuracy":0.79,"eval/accuracy_lenient":0.81,"eval/mean_length":160.1,"eval/entropy":0.31,"eval/families/sort/accuracy":0.7,"eval/families/sort/mean_length":120.0}
{"step":1,"stage":"compress","loss":-0.1,"grad_norm":0.3,"rewards/accuracy/mean":0.78,"entropy":0.31,"entropy/sampling":0.29,"completions/mean_length":151.2,"completions/clipped_ratio":0.01,"completions/mean_length_correct":140.0,"completions/mean_length_wrong":190.0,"timing_s/step":1.5,"timing_s/gen":1.0}
{"step":2,"stage":"compress","grad_norm":0.2,"rewards/accuracy/mean":0.8,"entropy":0.2,"completions/mean_length":80.0,"completions/mean_length_wrong":null,"unknown":"x","timing_s/step":1.5,"timing_s/gen":1.0}
{"step":3,"stage":"enhance","rewards/accuracy/mean":0.82,"entropy":0.25,"completions/mean_length":40.0,"eval/accuracy":0.82,"eval/mean_length":35.2,"eval/entropy":0.25,"eval/families/sort/accuracy":0.75,"eval/families/sort/mean_length":30.0}
"#;

const SUMMARY: &str = r#"{"name":"tiny","seed":7,"model":"tiny-1m","device":"flex","steps":3,"seconds":3725.0,
"base":{"n":400,"accuracy":0.79,"accuracy_lenient":0.81,"mean_length":160.1,"entropy":0.31},
"final":{"accuracy":0.82,"accuracy_lenient":0.84,"mean_length":35.2,"entropy":0.25},
"length_ratio":0.22,"accuracy_delta":0.03,
"families":{"sort":{"floor":20.0,"base":{"accuracy":0.7,"mean_length":120.0},"final":{"accuracy":0.75,"mean_length":30.0}}},
"stages":[{"name":"compress","first_step":1,"last_step":2,"exit":"steps"},{"name":"enhance","first_step":3,"last_step":3,"exit":"entropy"}],
"peak_rss_gb":1.25,"note":"Stage 2 is a reconstruction."}"#;

const BASE: &str = r#"{"problem":"9","prompt":"47 + 14 < ?","answer":"61","data_source":"sort","correct":true,"finished":true,"length":120,"tokens":["<think>","\n","<script>alert(1)</script>","  61"],"entropy":[0.01,0.3,2.0,0.1]}"#;
const FINAL: &str = r#"{"problem":9,"prompt":"47 + 14 < ?","answer":"61","data_source":"sort","correct":true,"finished":true,"length":30,"tokens":["61"],"entropy":[0.02]}"#;

fn unfinished_run() -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    fs::write(run.path().join("metrics.jsonl"), METRICS).unwrap();
    let config = "name = \"<b>\"\n[[stages]]\nname = \"compress\"\nrewards = [{ type = \"format\" }]\n";
    fs::write(run.path().join("config.toml"), config).unwrap();
    run
}

fn finished_run() -> tempfile::TempDir {
    let run = unfinished_run();
    fs::write(run.path().join("summary.json"), SUMMARY).unwrap();
    fs::create_dir(run.path().join("completions")).unwrap();
    fs::write(run.path().join("completions/eval_base.jsonl"), BASE).unwrap();
    fs::write(run.path().join("completions/eval_final.jsonl"), FINAL).unwrap();
    run
}

fn report(run: &Path) -> String {
    fs::read_to_string(write(run).unwrap()).unwrap()
}

fn assert_has(html: &str, parts: &[&str]) {
    for part in parts {
        assert!(html.contains(part), "the page lacks {part:?}");
    }
}

#[test]
fn a_finished_run_shows_its_figures() {
    let run = finished_run();
    let html = report(run.path());
    assert_has(&html, &["79.0% → 82.0%", "160.1 → 35.2", ">0.22<", "rose by 3.0 points", "fell by 78.0%"]);
    assert_has(&html, &["rose by 3.0 points (only 1 problem, so no interval)", "Stage 2 is a reconstruction."]);
    assert_has(&html, &["<td>6.00×</td><td>1.50×</td>", "<td>+5.0</td>", "<td>−75%</td>"]);
    assert_has(&html, &["1 h 2 min", "1.25 GB", "66.7%", "<td>compress</td><td>1–2</td><td>steps</td><td>format</td>"]);
    assert!(!html.contains("unfinished"));
}

/// A measured run of two stages: the first has both parts, the second has no length part.
#[test]
fn a_measured_run_says_what_it_shows_stage_by_stage() {
    let run = finished_run();
    let step = |step: usize, stage: &str, length: &str| {
        let lists = r#""conflict/deciles/grad_share_task":[0,0,0,0,0,0,0,0,0.1,0.9],"conflict/deciles/advantage_task":[null,0.1,0.2,0,0,0,0,0,0,0.5]"#;
        let near = 0.001 * (step % 2) as f64;
        format!(
            r#"{{"step":{step},"stage":"{stage}","entropy/sampling":{},"conflict/tokens":9,"conflict/connectors/per_1000":40.0,"conflict/entropy_change":{near},"conflict/entropy_change_task":{}{length},{lists}}}"#,
            0.2 + near,
            0.5 + near
        ) + "\n"
    };
    let both =
        r#","conflict/entropy_change_length":-0.5,"conflict/connectors/cancellation":0.4,"conflict/cancellation":0.3"#;
    let rows = (1..=4).map(|k| step(k, "compress", both)).chain((5..=8).map(|k| step(k, "enhance", "")));
    fs::write(run.path().join("metrics.jsonl"), rows.collect::<String>()).unwrap();
    let types = r#"{"tokens":900,"ranked":8,"jaccard":0.5,"lexicon_share":0.5,"base_share":0.25,
        "top":[{"token":4,"text":" <wait","count":20,"entropy":2.0,"connector":true},{"token":5,"text":"7","count":30,"entropy":1.0}]}"#;
    fs::write(run.path().join("token_types.json"), types).unwrap();
    let html = report(run.path());
    assert_has(
        &html,
        &["compress: Conflict in entropy: accuracy raises it", "enhance: The length part is zero everywhere"],
    );
    assert_has(&html, &["Gradient by entropy, compress", "Gradient by entropy, enhance", "predicted and realised"]);
    assert_has(&html, &["<code> &lt;wait</code>", "50.0% begin connectors", "against 25.0% of all 8", "--part: 50.0%"]);
}

#[test]
fn every_plot_is_inline_and_follows_the_theme() {
    let run = finished_run();
    let html = report(run.path());
    assert_eq!(html.matches("<svg").count(), 6);
    assert_has(&html, &["prefers-color-scheme: dark", "var(--plot-text)", "\ncompress</text>", "\nenhance</text>"]);
    let svgs = html.split("<svg").skip(1).map(|rest| rest.split("</svg>").next().unwrap());
    for svg in svgs {
        assert!(!svg.contains("=\"#") && !svg.contains("black"), "{svg}");
    }
    assert!(!html.contains("<script") && !html.contains("http-equiv") && !html.contains("src="));
    let links: Vec<_> = html.match_indices("http").collect();
    assert_eq!(links.len(), html.matches("http://www.w3.org/2000/svg").count());
}

#[test]
fn what_a_model_writes_is_escaped() {
    let run = finished_run();
    let html = report(run.path());
    assert_has(&html, &["&lt;script&gt;alert(1)&lt;&#x2f;script&gt;", "47 + 14 &lt; ?", "↵\n", ">  61</span>"]);
    assert_has(&html, &["name = &quot;&lt;b&gt;&quot;", "class=\"s5\" title=\"2.00\""]);
}

#[test]
fn an_unfinished_run_says_so() {
    let run = unfinished_run();
    assert_has(&report(run.path()), &["3 steps so far", "at step 3", "79.0% → 82.0%", "so no interval", "sort"]);

    fs::write(run.path().join("metrics.jsonl"), METRICS.lines().next().unwrap()).unwrap();
    assert_has(&report(run.path()), &["0 steps so far", "79.0% → –", "No data yet."]);
    fs::write(run.path().join("metrics.jsonl"), "").unwrap();
    fs::remove_file(run.path().join("config.toml")).unwrap();
    assert_has(&report(run.path()), &["0 steps so far", "The run has no config.toml"]);
}

/// Regression: the final evaluation of a killed run, and the summary of an extended one, are not those of the last step.
/// The page paired the point of one evaluation with the interval of another.
#[test]
fn an_extended_run_has_no_final_evaluation_until_its_new_end() {
    let run = finished_run();
    let longer = format!("{METRICS}{{\"step\":4,\"stage\":\"enhance\",\"entropy\":0.2}}\n");
    fs::write(run.path().join("metrics.jsonl"), longer).unwrap();
    let html = report(run.path());
    assert_has(&html, &["4 steps so far, summary.json is from its earlier end, after step 3", "at step 3"]);
    assert_has(&html, &["so no interval", "There is no problem yet with completions both"]);
    // An unfinished run is shown without a final evaluation that is being written.
    fs::remove_file(run.path().join("summary.json")).unwrap();
    assert_has(&report(run.path()), &["4 steps so far, no summary.json", "so no interval"]);
    // The summary of fine-tuning does not name its step; run.json does.
    for (finished, said) in [(4, false), (3, true)] {
        fs::write(run.path().join("summary.json"), "{}").unwrap();
        fs::write(run.path().join("run.json"), format!("{{\"finished\":{finished}}}")).unwrap();
        assert_eq!(report(run.path()).contains("unfinished"), said);
    }
}

#[test]
fn a_folder_without_a_log_is_said_to_be_what_it_is() {
    let run = tempfile::tempdir().unwrap();
    let error = |path: &Path| write(path).unwrap_err().to_string();
    assert!(error(&run.path().join("absent")).contains("absent: is not a run (no such folder)"));
    assert!(error(run.path()).contains("is not a run (it has no run.json)"));
    fs::write(run.path().join("run.json"), "{}").unwrap();
    assert!(error(run.path()).contains("no metrics yet"));
}

/// Regression: four of 100 problems were called a change, though the exact test does not tell them from chance.
#[test]
fn an_interval_that_the_exact_test_denies_is_no_verdict() {
    let at = |accuracy| run::EvaluationFigures { accuracy: Some(accuracy), ..run::EvaluationFigures::default() };
    let said = |p, interval| sentence(&at(0.5), &at(0.54), Some(&completions::Change { problems: 100, interval, p }));
    let chance = said(Some(0.125), Some([0.01, 0.08]));
    assert!(chance.contains("+1.0 to +8.0, but p = 0.125 by the exact sign test: this may be chance"), "{chance}");
    assert!(said(Some(0.0004), Some([0.01, 0.08])).contains("excludes zero; p < 0.001 by the exact sign test"));
    assert!(said(None, Some([0.01, 0.08])).contains("which excludes zero; 100 problems"));
    assert!(said(Some(0.5), Some([-0.01, 0.08])).contains("which includes zero; 100 problems"));
    assert!(said(Some(0.0), None).contains("(unchanged on each of 100 problems, so no interval)"));
}

/// Regression: with cycles the legend named each stage once a cycle, and a stage changed its colour.
#[test]
fn a_stage_that_is_repeated_keeps_its_colour_and_is_named_once() {
    let run = tempfile::tempdir().unwrap();
    let path = run.path().join("metrics.jsonl");
    let stages = ["compress", "enhance", "compress", "enhance", "compress", "rest"];
    let row = |(k, stage): (usize, &&str)| {
        format!("{{\"step\":{k},\"stage\":\"{stage}\",\"entropy\":0.{k},\"completions/mean_length\":9{k}}}\n")
    };
    fs::write(&path, stages.iter().enumerate().map(row).collect::<String>()).unwrap();
    let metrics = MetricsByStep::read(&path).unwrap();
    let legend = figure(plots::portrait(&metrics, &metrics.stages())).unwrap().legend;
    let named: Vec<(&str, &str)> = legend.iter().map(|(_, ink, label)| (*ink, label.as_str())).collect();
    assert_eq!(named, [("--blue", "compress"), ("--orange", "enhance"), ("--green", "rest")]);
}

#[test]
fn malformed_lines_are_named() {
    let run = finished_run();
    let cases = [
        ("metrics.jsonl", format!("{METRICS}{{\"step\":4,\n"), 5),
        ("metrics.jsonl", "{\"loss\":1}".into(), 1),
        ("completions/eval_final.jsonl", format!("{FINAL}\n[]"), 2),
    ];
    for (name, text, line) in cases {
        let path = run.path().join(name);
        let good = fs::read(&path).unwrap();
        fs::write(&path, text).unwrap();
        let error = write(run.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}:{line}: ")), "{error}");
        fs::write(&path, good).unwrap();
    }
    fs::write(run.path().join("summary.json"), "{").unwrap();
    assert!(write(run.path()).unwrap_err().to_string().contains("summary.json: "));
}

/// Regression: a run that was killed while it wrote a line had neither a report nor curves.
#[test]
fn an_incomplete_last_line_is_skipped() {
    let run = unfinished_run();
    fs::write(run.path().join("metrics.jsonl"), format!("{METRICS}{{\"step\":4,\"stage\":\"\u{fc}")).unwrap();
    assert_has(&report(run.path()), &["3 steps so far"]);
    assert!(screen(run.path(), &[], 80).unwrap().text.contains("step 3"));
}

#[test]
fn a_resumed_step_counts_once() {
    let run = unfinished_run();
    let again = format!("{METRICS}{{\"step\":2,\"stage\":\"compress\",\"entropy\":0.9}}\n");
    fs::write(run.path().join("metrics.jsonl"), again).unwrap();
    let metrics = MetricsByStep::read(&run.path().join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.points("entropy"), [(1.0, 0.31), (2.0, 0.9), (3.0, 0.25)]);
    let stage = |name: &str, first, last| StageSpan { name: name.into(), first, last };
    assert_eq!(metrics.stages(), [stage("compress", 1, 2), stage("enhance", 3, 3)]);
}
