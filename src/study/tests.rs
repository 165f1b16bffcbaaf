use std::path::Path;

use super::*;
use crate::config::load;
use crate::error::Result;

fn study(text: &str) -> Result<StudyConfig> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    load(Some(file.path()), &[])
}

fn refused(text: &str) -> String {
    study(text).unwrap_err().to_string()
}

const TWO_ARMS: &str = r#"
choose_seeds = [0, 1]
report_seeds = [2, 3]
set.data.families = ["arithmetic"]

[[arms]]
name = "GRPO"
file = "configs/methods/grpo.toml"
any_length = true
settings = [{ optim.learning_rate = 1e-4 }, { optim.learning_rate = 3e-4 }]

[[arms]]
name = "fixed clip"
file = "configs/methods/grpo.toml"
set.stages.0.sampling.max_completion_length = 96
settings = [{ optim.learning_rate = 3e-4 }, { optim.learning_rate = 1e-4 }]
"#;

fn plan(text: &str) -> Result<Plan> {
    Plan::new(study(text)?, Path::new(env!("CARGO_MANIFEST_DIR")))
}

#[test]
fn a_study_that_would_be_uneven_is_refused() {
    let message = refused(&TWO_ARMS.replace("[2, 3]", "[1, 3]"));
    assert!(message.contains("report_seeds has 1, which is also in choose_seeds"), "{message}");
    let message = refused(&TWO_ARMS.replace("settings = [{ optim.learning_rate = 3e-4 }, ", "settings = ["));
    assert!(message.contains("arms.1.settings has 1 tables, but arms.0 has 2"), "{message}");
    let message =
        refused(&TWO_ARMS.replace("set.stages.0.sampling", "set.train.max_sampled_tokens = 9\nset.stages.0.sampling"));
    assert!(message.contains("arms.1 sets train.max_sampled_tokens, which must be equal in all arms"), "{message}");
    let message =
        refused(&TWO_ARMS.replace("set.stages.0.sampling", "set.eval.num_problems = 9\nset.stages.0.sampling"));
    assert!(message.contains("arms.1 sets eval.num_problems"), "{message}");
    let message = refused(&TWO_ARMS.replace("name = \"fixed clip\"", "name = \"GRPO\""));
    assert!(message.contains("arms.1.name = \"GRPO\" must be a unique name"), "{message}");

    let message = plan(&TWO_ARMS.replace("[{ optim.learning_rate = 3e-4 }, ", "[{ optim.learning_rate = 9e-4 }, "))
        .unwrap_err()
        .to_string();
    assert!(message.contains("\"fixed clip\" has the learning rates [0.0001, 0.0009]"), "{message}");
    // The settings file of an arm has another evaluation; no table of the study sets it.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("arm.toml");
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/methods/grpo.toml");
    std::fs::write(&file, format!("base = {base:?}\neval.temperature = 0.6\n")).unwrap();
    let (first, second) = TWO_ARMS.split_at(TWO_ARMS.find("\"fixed clip\"").unwrap());
    let other = second.replace("\"configs/methods/grpo.toml\"", &format!("{file:?}"));
    let message = plan(&(first.to_string() + &other)).unwrap_err().to_string();
    assert!(message.contains("\"fixed clip\": ") && message.contains("a different section"), "{message}");
    let message = plan(&TWO_ARMS.replace("set.data", "set.optim.lr_scheduler_type = \"cosine\"\nset.data"));
    assert!(message.unwrap_err().to_string().contains("must be \"constant\""));
    let message =
        plan(&TWO_ARMS.replace("set.stages.0.sampling", "set.stages.0.exit.max_steps = 9\nset.stages.0.sampling"));
    assert!(message.unwrap_err().to_string().contains("stages.0.exit.max_steps has no effect"));
    let message = plan(&TWO_ARMS.replace("max_completion_length = 96", "max_completion_lenght = 96"));
    let message = message.unwrap_err().to_string();
    assert!(message.contains("arm \"fixed clip\"") && message.contains("max_completion_lenght"), "{message}");
}

#[test]
fn runs_are_alike_but_for_what_their_arm_and_setting_say() {
    let plan = plan(TWO_ARMS).unwrap();
    let (choosing, reporting) = (plan.choosing(), plan.reporting(&[Some(1), None]));
    assert_eq!((choosing.len(), reporting.len()), (2 * 2 * 2, 2));
    assert_eq!(reporting[0].config.optim.learning_rate, 3e-4);
    let clip = |planned: &Planned| planned.config.stages[0].sampling.max_completion_length;
    assert_eq!((clip(&plan.run(0, 0, 0)), clip(&plan.run(1, 0, 0))), (384, 96));
    assert!(choosing.iter().all(|planned| planned.config.train.max_sampled_tokens == 500_000));
    let mut keys: Vec<&String> = choosing.iter().chain(&reporting).map(|planned| &planned.key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 10);
    // The name of a run is not part of its key, so an arm can be renamed or moved.
    let renamed = self::plan(&TWO_ARMS.replace("\"fixed clip\"", "\"clip\"")).unwrap();
    assert_eq!(renamed.run(1, 0, 5).key, plan.run(1, 0, 5).key);
}

/// Regression: a method that repeats its stages lost all cycles but the first.
#[test]
fn stages_that_are_repeated_are_repeated_until_the_budget_is_spent() {
    let text = TWO_ARMS.replace("methods/grpo.toml", "methods/siri.toml");
    let config = plan(&text).unwrap().run(0, 0, 0).config;
    assert_eq!((config.cycles, config.stages[0].exit.max_steps), (1_000_000, 60));
}

/// Return an outcome with `correct` for the problems of one data source, all completions with `length` tokens.
fn outcome(planned: &Planned, correct: &str, length: usize) -> RunOutcome {
    let source = |correct: &str, length: usize| {
        let source = SourceResults {
            correct: correct.to_string(),
            lengths: vec![length; correct.len()],
            ..SourceResults::default()
        };
        [("s".to_string(), source)].into()
    };
    RunOutcome {
        key: planned.key.clone(),
        run: planned.config.name.clone(),
        steps: 1,
        seconds: 1.0,
        sampled_tokens: 1,
        base: source("1100", 100),
        last: source(correct, length),
        curve: Vec::new(),
    }
}

#[test]
fn a_setting_is_chosen_within_the_length_budget_and_reported_on_other_seeds() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan(TWO_ARMS).unwrap();
    let mut store = Store::open(&folder.path().join("results.jsonl"), &plan).unwrap();
    assert_eq!(Findings::new(&plan, &store).missing.len(), 8);
    // The second setting of the clip is more accurate but exceeds the length budget.
    for seed in [0, 1] {
        for (arm, setting, correct, length) in
            [(0, 0, "1110", 100), (0, 1, "1111", 110), (1, 0, "1110", 30), (1, 1, "1111", 50)]
        {
            store.add(outcome(&plan.run(arm, setting, seed), correct, length)).unwrap();
        }
    }
    let findings = Findings::new(&plan, &store);
    assert_eq!(findings.chosen(), [Some(1), Some(0)]);
    assert!(findings.arms.iter().all(|arm| arm.reported.is_none()) && findings.missing.len() == 4);
    // No comparison while one arm has only some of its seeds.
    store.add(outcome(&plan.run(0, 1, 2), "1111", 100)).unwrap();
    store.add(outcome(&plan.run(1, 0, 2), "1100", 20)).unwrap();
    store.add(outcome(&plan.run(1, 0, 3), "1110", 20)).unwrap();
    let clip = &Findings::new(&plan, &store).arms[1];
    assert!(clip.reported.is_some() && clip.difference.is_none());
    for (seed, correct) in [(2, "1100"), (3, "1110")] {
        store.add(outcome(&plan.run(0, 1, seed), "1111", 100)).unwrap();
        store.add(outcome(&plan.run(1, 0, seed), correct, 20)).unwrap();
    }
    let findings = Findings::new(&plan, &store);
    assert!(findings.missing.is_empty());
    let (grpo, clip) = (&findings.arms[0], &findings.arms[1]);
    let reported = clip.reported.as_ref().unwrap();
    assert_eq!((reported.accuracy.value, reported.length_ratio, reported.runs), (0.625, 0.2, 2));
    assert_eq!(reported.accuracy_of_runs, [0.5, 0.75]);
    assert_eq!((clip.difference.unwrap().value, grpo.difference), (-0.375, None));
    // Variances of means: 1/64 for the runs' means 0.5 and 0.75 (1 degree of freedom), 0 for the other arm's, and
    // 11/192 for the paired differences 0, 0, −0.5, −1 (3). Together 3.973 degrees of freedom; t = 2.7839 by SciPy.
    let [low, high] = clip.difference.unwrap().interval.unwrap();
    // The lower bound, −1.12674, is limited to −1.
    assert!(low == -1.0 && (high - 0.37674).abs() < 1e-4, "{low} {high}");
    assert_eq!(clip.spread.unwrap().length_ratio, [0.3, 0.5]);
    assert_eq!(findings.base.unwrap().accuracy.value, 0.5);
}

/// A process that is killed while it writes leaves an incomplete last line.
#[test]
fn results_outlive_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let plan = plan(TWO_ARMS).unwrap();
    let runs = [0, 1, 2].map(|seed| plan.run(0, 0, seed));
    let mut store = Store::open(&path, &plan).unwrap();
    store.add(outcome(&runs[0], "1110", 7)).unwrap();
    store.add(outcome(&runs[1], "1110", 7)).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let incomplete = &whole[..whole.len() - 9];
    std::fs::write(&path, incomplete).unwrap();
    let mut store = Store::open(&path, &plan).unwrap();
    assert!(store.get(&runs[0]).is_some() && store.get(&runs[1]).is_none());
    assert_eq!(std::fs::read(&path).unwrap(), incomplete, "reading changes nothing");
    store.add(outcome(&runs[1], "1110", 7)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), whole);

    // Regression: a complete last line without a line break was deleted.
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let mut store = Store::open(&path, &plan).unwrap();
    assert!(store.get(&runs[1]).is_some());
    store.add(outcome(&runs[2], "1110", 7)).unwrap();
    assert!(std::fs::read(&path).unwrap().starts_with(&whole));
    assert_eq!(Store::open(&path, &plan).unwrap().len(), 3);
}

/// Regression: a result whose parts did not fit each other was accepted, or the report panicked.
#[test]
fn damaged_results_are_named_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.jsonl");
    let plan = plan(TWO_ARMS).unwrap();
    let line = |seed: u64, change: &dyn Fn(&mut RunOutcome)| {
        let mut outcome = outcome(&plan.run(0, 0, seed), "1110", 7);
        change(&mut outcome);
        serde_json::to_string(&outcome).unwrap() + "\n"
    };
    let good = line(0, &|_| ());
    let damaged = |second: &str| {
        // The blank line is skipped, but counts.
        std::fs::write(&path, format!("{good}\n{second}")).unwrap();
        let error = Store::open(&path, &plan).map(|store| store.len()).unwrap_err().to_string();
        assert!(error.contains("results.jsonl:3: "), "{error}");
        error
    };
    let correct = |text: &'static str| {
        move |outcome: &mut RunOutcome| outcome.last.get_mut("s").unwrap().correct = text.to_string()
    };
    let source =
        |change: &dyn Fn(&mut SourceResults)| line(1, &|o: &mut RunOutcome| change(o.last.get_mut("s").unwrap()));
    let wrong = "correct must be 4 characters, each 0 or 1";
    let moment = CurvePoint { tokens: 9.0, ..CurvePoint::default() };
    let cases = [
        (line(1, &|o| o.last.get_mut("s").unwrap().correct = "11x0".to_string()), wrong),
        (line(1, &correct("1110111")), "do not have the same problems"),
        (line(1, &correct("11")), "do not have the same problems"),
        (source(&|s| s.lengths.push(7)), "correct must be 5 characters, each 0 or 1"),
        (source(&|s| s.lengths[0] = 10_000_000_000_000_000_000), "is more than 1000000000"),
        (source(&|s| s.cut = 5), "above the number of completions"),
        (line(1, &|o| o.last.clear()), "do not have the same problems"),
        (line(1, &|o| o.curve.push(moment)), "sampled_tokens is 1, but the curve ends at 9"),
        (line(0, &|_| ()), "has the same key as line 1"),
        ("{}\n".to_string(), "not the result of a run: missing field `key`"),
        ("{\"key\":\n".to_string(), "not the result of a run"),
    ];
    for (second, expected) in cases {
        let error = damaged(&second);
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let renamed = line(1, &|o| {
        for sources in [&mut o.base, &mut o.last] {
            let source = sources.remove("s").unwrap();
            sources.insert("t".to_string(), source);
        }
    });
    let error = damaged(&renamed);
    assert!(error.contains("is for other problems than line 1"), "{error}");
    // Results of another study may be of other problems.
    std::fs::write(&path, good.clone() + &renamed.replace(&plan.run(0, 0, 1).key, "another")).unwrap();
    assert_eq!(Store::open(&path, &plan).unwrap().len(), 2);
}
