//! The loss of a mini-batch and its derivatives against TRL's code (`assets/fixtures/loss_reference.py`) and against
//! formulae of TRL, verl and papers (`update_reference.py`); importance-sampling corrections of another engine's
//! completions against TRL's (`correction_reference.py`).

use serde_json::{Map, Value, json};
use tempering::noise::Stream;
use tempering::objective::correction::differences;
use tempering::objective::entropy::{EntropyControl, EntropyTarget};
use tempering::objective::{Aggregate, Correction, Objective, Ratio, Statistics, TokenRuleInput, Upstream};
use tempering::stage::Stage;

use crate::support::repository;

/// Mini-batch of completions of different lengths, with the results of another implementation.
struct Reference {
    value: Value,
    /// Lengths of the completions of each group.
    groups: Vec<Vec<usize>>,
}

impl Reference {
    fn read(name: &str) -> Self {
        let bytes = std::fs::read(repository("assets/fixtures").join(name)).unwrap();
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        let groups = match value.get("groups") {
            Some(groups) => serde_json::from_value(groups.clone()).unwrap(),
            None => vec![serde_json::from_value(value["lengths"].clone()).unwrap()],
        };
        Self { value, groups }
    }

    fn rows(&self, key: &str) -> Vec<Vec<f32>> {
        let mut rest = numbers(&self.value[key]);
        self.groups.iter().flatten().map(|&length| rest.drain(..length).collect()).collect()
    }

    /// Evaluate the loss of a case without the completions `masked`. Returns statistics, derivatives, and the number
    /// of tokens selected by their covariance.
    fn evaluate(&self, case: &Value, masked: &[usize]) -> (Statistics, Upstream, usize) {
        let stage = stage(case);
        let objective = objective(&stage, case);
        let [old, log_prob, reference, entropy] =
            ["old_log_prob", "log_prob", "reference_log_prob", "entropy"].map(|key| self.rows(key));
        let (correction, sampled) = match case.get("correction") {
            Some(settings) => (correction(settings), self.rows("sampled_log_prob")),
            None => (Correction::NONE, vec![Vec::new(); old.len()]),
        };
        let limit = self.value["max_completion_length"].as_u64().unwrap() as usize;
        let mut places = 0..old.len();
        let mut length = |length: usize| if masked.contains(&places.next().unwrap()) { 0 } else { length };
        let lengths: Vec<Vec<usize>> =
            self.groups.iter().map(|group| group.iter().map(|&tokens| length(tokens)).collect()).collect();
        let weights = stage.loss.loss_type.aggregate().weights(&lengths, limit).concat();
        let advantages = numbers(&self.value["advantages"]);
        let drawn: Vec<TokenRuleInput> = (0..old.len())
            .map(|i| TokenRuleInput {
                log_probs: &old[i],
                entropies: &entropy[i],
                advantage: advantages[i],
                silent: &[],
                weight: weights[i],
                hard: false,
            })
            .collect();
        let (mut terms, counts) = stage.token_rules(stage.entropy_coef()).terms(&drawn, &mut Stream::new(&[0]));
        let (mut statistics, mut upstream) = (Statistics::default(), Upstream::default());
        for (i, terms) in terms.iter_mut().enumerate() {
            terms.iter_mut().zip(&reference[i]).for_each(|(term, &log_prob)| term.reference_log_prob = log_prob);
            correction.apply(terms, &old[i], &sampled[i]);
            objective.evaluate(terms, &log_prob[i], &entropy[i], &mut statistics, &mut upstream);
        }
        (statistics, upstream, counts.covariance)
    }
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// Return the stage of a case. A loss type has only its own keys: `epsilon` is omitted if it is not used.
fn stage(case: &Value) -> Stage {
    let loss_type = case["loss_type"].as_str().unwrap_or("dapo");
    let keys: &[&str] = match loss_type {
        "sapo" => &[],
        "cispo" => &["epsilon_high"],
        _ => &["epsilon", "epsilon_high", "delta"],
    };
    let section = |keys: &[&str]| -> Map<String, Value> {
        let written = keys.iter().filter(|key| !case[**key].is_null());
        written.map(|key| ((*key).to_string(), case[*key].clone())).collect()
    };
    let (mut loss, mut tokens) = (section(keys), section(&["top_entropy_quantile", "covariance"]));
    loss.insert("type".to_string(), json!(loss_type));
    if case["beta"].as_f64().is_some_and(|beta| beta > 0.0) {
        loss.insert("kl".to_string(), json!({ "beta": case["beta"] }));
    }
    if case["entropy_coef"].as_f64().is_some_and(|coef| coef != 0.0) {
        tokens.insert("entropy_bonus".to_string(), json!({ "type": "fixed", "entropy_coef": case["entropy_coef"] }));
    }
    serde_json::from_value(json!({ "loss": loss, "tokens": tokens })).unwrap()
}

/// Return the correction with TRL's bounds. If TRL has no upper bound, uses one above all ratios.
fn correction(settings: &Value) -> Correction {
    let mut settings = settings.clone();
    if settings["max"].is_null() {
        settings["max"] = json!(1e9);
    }
    let correction: Correction = serde_json::from_value(settings).unwrap();
    assert!(correction.mistakes().is_empty(), "{:?}", correction.mistakes());
    correction
}

/// Return the objective of a case. TRL allows sequence-level ratios with any loss type, our settings only with GSPO.
fn objective(stage: &Stage, case: &Value) -> Objective {
    let sequence = case["importance_sampling_level"] == "sequence";
    Objective { ratio: if sequence { Ratio::Sequence } else { Ratio::Token }, ..stage.objective() }
}

#[track_caller]
fn close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!((a - b).abs() < 1e-5, "{what}, token {i}: {a} against {b}");
    }
}

#[test]
fn losses_and_gradients_are_trls() {
    let reference = Reference::read("loss_reference.json");
    let cases = reference.value["cases"].as_array().unwrap();
    let keys = [
        "loss_type",
        "importance_sampling_level",
        "epsilon",
        "epsilon_high",
        "delta",
        "beta",
        "top_entropy_quantile",
        "entropy_coef",
    ];
    for case in cases {
        let what = json!(keys.map(|key| &case[key])).to_string();
        let (statistics, upstream, _) = reference.evaluate(case, &[]);
        let loss = case["loss"].as_f64().unwrap();
        assert!((statistics.loss - loss).abs() < 1e-5, "{what}: loss {} against {loss}", statistics.loss);
        close(&upstream.log_prob, &numbers(&case["d_log_prob"]), &what);
        close(&upstream.entropy, &numbers(&case["d_entropy"]), &what);
        if let Some(kl) = case["kl"].as_f64() {
            assert!((statistics.kl_sum / statistics.tokens as f64 - kl).abs() < 1e-5, "{what}: divergence");
        }
        if let (Some(low), Some(high)) = (case["clip_low"].as_f64(), case["clip_high"].as_f64()) {
            let ratios = match objective(&stage(case), case).ratio {
                Ratio::Token => statistics.tokens,
                Ratio::Sequence => reference.groups.concat().len(),
            };
            let share = |count: usize| count as f64 / ratios as f64;
            assert!(
                (share(statistics.low) - low).abs() < 1e-6 && (share(statistics.high) - high).abs() < 1e-6,
                "{what}"
            );
        }
    }
    assert_eq!(cases.len(), 112);
}

#[test]
fn corrections_are_trls() {
    let reference = Reference::read("correction_reference.json");
    let cases = reference.value["cases"].as_array().unwrap();
    let [old, sampled] = ["old_log_prob", "sampled_log_prob"].map(|key| reference.rows(key));
    for case in cases {
        let what = json!([case["loss_type"], case["importance_sampling_level"], case["correction"]]).to_string();
        let correction = correction(&case["correction"]);
        let factors =
            old.iter().zip(&sampled).flat_map(|(old, sampled)| correction.factors(&differences(old, sampled)));
        close(&factors.collect::<Vec<f32>>(), &numbers(&case["factors"]), &what);
        let (statistics, upstream, _) = reference.evaluate(case, &[]);
        let loss = case["loss"].as_f64().unwrap();
        assert!((statistics.loss - loss).abs() < 1e-5, "{what}: loss {} against {loss}", statistics.loss);
        close(&upstream.log_prob, &numbers(&case["d_log_prob"]), &what);
    }
    assert_eq!(cases.len(), 72);
    // Missing and large differences, and a completion without tokens.
    let odd: Vec<Vec<Option<f32>>> = serde_json::from_value(reference.value["odd"].clone()).unwrap();
    for case in reference.value["odd_cases"].as_array().unwrap() {
        let factors = odd.iter().flat_map(|row| {
            let settings = json!({ "mode": case["mode"], "min": case["min"], "max": case["max"] });
            correction(&settings)
                .factors(&row.iter().map(|difference| difference.unwrap_or(f32::NAN)).collect::<Vec<f32>>())
        });
        close(&factors.collect::<Vec<f32>>(), &numbers(&case["factors"]), &case.to_string());
    }
}

/// Two groups of different sizes, with all completions and with some masked out of the loss. TRL counts masked
/// completions in the denominator; verl and this project do not.
#[test]
fn groups_and_masked_completions_weigh_as_the_formulae_say() {
    let reference = Reference::read("update_reference.json");
    let count = reference.groups.concat().len();
    let mut losses: Vec<(usize, f64)> = Vec::new();
    for case in reference.value["cases"].as_array().unwrap() {
        let loss_type = stage(case).loss.loss_type;
        let masked: Vec<usize> = serde_json::from_value(case["masked"].clone()).unwrap();
        let what = json!([case["loss_type"], case["epsilon_high"], case["beta"], masked]).to_string();
        let (statistics, upstream, _) = reference.evaluate(case, &masked);
        let factor = match loss_type.aggregate() {
            Aggregate::SequenceMean | Aggregate::ConstantLength => count as f32 / (count - masked.len()) as f32,
            Aggregate::TokenMean | Aggregate::GroupTokenMean => 1.0,
        };
        let loss = f64::from(factor) * case["loss"].as_f64().unwrap();
        assert!((statistics.loss - loss).abs() < 1e-5, "{what}: loss {} against {loss}", statistics.loss);
        let theirs: Vec<f32> = numbers(&case["d_log_prob"]).iter().map(|derivative| factor * derivative).collect();
        close(&upstream.log_prob, &theirs, &what);
        if masked.is_empty() {
            losses.push((loss_type as usize, loss));
        }
    }
    // The four weightings differ on this batch, so that none can be mistaken for another.
    let apart = |a: &(usize, f64), b: &(usize, f64)| a.0 == b.0 || (a.1 - b.1).abs() > 1e-3;
    assert!(losses.len() == 16 && losses.iter().all(|a| losses.iter().all(|b| apart(a, b))), "{losses:?}");
}

#[test]
fn clip_cov_and_kl_cov_are_those_of_verl() {
    let reference = Reference::read("update_reference.json");
    for case in reference.value["covariance_cases"].as_array().unwrap() {
        let (statistics, upstream, chosen) = reference.evaluate(case, &[]);
        let what = case["covariance"].to_string();
        assert_eq!(chosen as u64, case["chosen"].as_u64().unwrap(), "{what}");
        assert!((statistics.loss - case["loss"].as_f64().unwrap()).abs() < 1e-5, "{what}: {}", statistics.loss);
        close(&upstream.log_prob, &numbers(&case["d_log_prob"]), &what);
    }
}

#[test]
fn adaptive_entropy_is_trls_controller() {
    let reference = Reference::read("update_reference.json");
    let case = &reference.value["adaptive_entropy"];
    let number = |key: &str| case[key].as_f64().unwrap();
    let rule = Some(EntropyTarget {
        target: number("entropy_target"),
        delta: number("entropy_coef_delta") as f32,
        min: number("entropy_coef_min") as f32,
        max: number("entropy_coef_max") as f32,
    });
    let mut control = EntropyControl::new(number("entropy_coef") as f32);
    let (mut applied, mut logged) = (Vec::new(), Vec::new());
    for entropy in case["entropies"].as_array().unwrap() {
        applied.push(control.coefficient(rule));
        logged.push(control.observe(entropy.as_f64().unwrap(), rule));
    }
    close(&applied, &numbers(&case["applied"]), "applied");
    close(&logged, &numbers(&case["logged"]), "logged");
    assert!(applied.contains(&0.0) && applied.iter().any(|&factor| factor > 0.02), "{applied:?}");
}
