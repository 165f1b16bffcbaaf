//! Studies run from the command line.

use serde_json::Value;

use crate::cli::{both, user_error};
use crate::support::{Workshop, read_lines, repository};

/// Write a study with two arms, two settings, one selection seed and one report seed: six runs of one or two steps.
fn tiny(workshop: &Workshop) -> std::path::PathBuf {
    let method = repository("configs/methods/grpo.toml");
    let file = workshop.path("tiny.toml");
    let text = format!(
        r#"
name = "tiny"
output_dir = {:?}
sampled_tokens = 400
choose_seeds = [0]
report_seeds = [1]
length_budget = 1.0
processes = 2

[set]
model.path = {:?}
train.prompts_per_step = 2
train.num_generations = 4
eval.num_problems = 6
eval.max_completion_length = 64
stages.0.sampling.max_completion_length = 64
optim.lr_scheduler_type = "constant"

[[arms]]
name = "one"
file = {method:?}
any_length = true
settings = [{{ optim.learning_rate = 1e-4 }}, {{ optim.learning_rate = 3e-4 }}]

[[arms]]
name = "<two>"
file = {method:?}
any_length = true
settings = [{{ optim.learning_rate = 1e-4 }}, {{ optim.learning_rate = 3e-4 }}]
set.stages.0.sampling.temperature = 1.2
"#,
        workshop.path("runs"),
        workshop.path("model"),
    );
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn a_study_goes_on_where_it_was_left_and_keeps_one_line_of_each_run() {
    let workshop = Workshop::new();
    let file = tiny(&workshop);
    let folder = workshop.path("runs/tiny");
    let results = folder.join("results.jsonl");
    let (table, said) = both(&[&"study", &file]);
    assert!(table.contains("the base model") && table.contains("<two>") && said.contains("4 of 4"), "{table}{said}");
    let lines = read_lines(&results);
    assert_eq!(lines.len(), 6);
    assert!(lines.iter().all(|line| line["sampled_tokens"].as_u64().unwrap() >= 400));
    // No other files of a run are kept.
    let left: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["results.jsonl", "study.html", "study.json", "study.csv"].contains(&name.as_str()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let page = std::fs::read_to_string(folder.join("study.html")).unwrap();
    assert!(page.contains("&lt;two&gt;") && !page.contains("<two>") && page.contains("<svg"), "{page}");
    let findings: Value = serde_json::from_slice(&std::fs::read(folder.join("study.json")).unwrap()).unwrap();
    assert_eq!(findings["arms"].as_array().unwrap().len(), 2);

    // After two lines are lost, only those runs are repeated, with the same outcome.
    let text = std::fs::read_to_string(&results).unwrap();
    let kept: Vec<&str> = text.lines().skip(2).collect();
    std::fs::write(&results, kept.join("\n") + "\n").unwrap();
    let (again, said) = both(&[&"study", &file]);
    assert!(said.contains("2 of 2") && !said.contains("3 of"), "{said}");
    assert_eq!(again, table);
    let (report, _) = both(&[&"study", &file, &"--report"]);
    assert_eq!(report, table);

    // Regression: `--report` with a changed setting replaced the page by an empty one, and a last line without a line
    // break was deleted even by `--dry-run`.
    let page = std::fs::read(folder.join("study.html")).unwrap();
    let message = user_error(&[&"study", &file, &"--report", &"--set", &"sampled_tokens=399"]);
    assert!(
        message.contains("has no result of this study") && message.contains("and 6 with other settings"),
        "{message}"
    );
    let unended = kept.join("\n");
    std::fs::write(&results, &unended).unwrap();
    both(&[&"study", &file, &"--dry-run"]);
    user_error(&[&"study", &file, &"--report", &"--set", &"sampled_tokens=399"]);
    assert_eq!(std::fs::read_to_string(&results).unwrap(), unended);
    assert_eq!(std::fs::read(folder.join("study.html")).unwrap(), page);
}

#[test]
fn a_run_that_dies_is_tried_again_and_then_reported_as_missing() {
    let workshop = Workshop::new();
    let file = tiny(&workshop);
    let text = std::fs::read_to_string(&file).unwrap();
    // That no prompt is this short is detected only during the run.
    let text = text.replace("[set]\n", "[set]\ndata.max_prompt_length = 3\n");
    std::fs::write(&file, text).unwrap();
    let message = user_error(&[&"study", &file]);
    assert_eq!(message.matches("failed and is started again").count(), 4, "{message}");
    assert!(message.contains("4 runs failed twice and are missing") && message.contains("max_prompt_length"));
}
