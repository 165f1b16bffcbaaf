//! The loss of a step and its gradients against TRL's own (`assets/fixtures/loss_reference.py` says how the numbers were
//! made).

use serde_json::{Map, Value, json};
use tempering::noise::Stream;
use tempering::objective::{Drawn, Objective, Ratio, Statistics, Upstream};
use tempering::train::stage::Stage;

use crate::support::repository;

/// A ragged batch of one group, and what another implementation computed for it.
struct Reference(Value);

impl Reference {
    fn read() -> Self {
        let bytes = std::fs::read(repository("assets/fixtures/loss_reference.json")).unwrap();
        Self(serde_json::from_slice(&bytes).unwrap())
    }

    fn rows(&self, key: &str) -> Vec<Vec<f32>> {
        let mut rest = numbers(&self.0[key]);
        let lengths: Vec<usize> = serde_json::from_value(self.0["lengths"].clone()).unwrap();
        lengths.iter().map(|&length| rest.drain(..length).collect()).collect()
    }

    /// The loss of the batch under the stage of a case, its derivatives, and how many tokens were chosen for their covariance.
    fn evaluate(&self, case: &Value) -> (Statistics, Upstream, usize) {
        let stage = stage(case);
        let objective = objective(&stage, case);
        let [old, log_prob, reference, entropy] =
            ["old_log_prob", "log_prob", "reference_log_prob", "entropy"].map(|key| self.rows(key));
        let lengths: Vec<usize> = old.iter().map(Vec::len).collect();
        let limit = self.0["max_completion_length"].as_u64().unwrap() as usize;
        let weights = stage.loss.loss_type.aggregate().weights(&[lengths], limit).concat();
        let advantages = numbers(&self.0["advantages"]);
        let drawn: Vec<Drawn> = (0..old.len())
            .map(|i| Drawn {
                log_probs: &old[i],
                entropies: &entropy[i],
                advantage: advantages[i],
                weight: weights[i],
                hard: false,
            })
            .collect();
        let (mut terms, counts) = stage.token_rules(stage.entropy_coef()).terms(&drawn, &mut Stream::new(&[0]));
        let (mut statistics, mut upstream) = (Statistics::default(), Upstream::default());
        for (i, terms) in terms.iter_mut().enumerate() {
            terms.iter_mut().zip(&reference[i]).for_each(|(term, &log_prob)| term.reference_log_prob = log_prob);
            objective.evaluate(terms, &log_prob[i], &entropy[i], &mut statistics, &mut upstream);
        }
        (statistics, upstream, counts.covariance)
    }
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// The stage of a case. A type has only its own keys, so that `epsilon` is left out where the loss does not read it.
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

/// The objective of a case: TRL takes the ratio of whole completions with any type, settings only with GSPO's.
fn objective(stage: &Stage, case: &Value) -> Objective {
    let sequence = case["importance_sampling_level"] == "sequence";
    Objective { ratio: if sequence { Ratio::Sequence } else { Ratio::Token }, ..stage.objective() }
}

fn close(ours: &[f32], theirs: &Value, what: &str) {
    for (i, (a, b)) in ours.iter().zip(numbers(theirs)).enumerate() {
        assert!((a - b).abs() < 1e-5, "{what}, token {i}: {a} against {b}");
    }
}

#[test]
fn losses_and_gradients_are_trls() {
    let reference = Reference::read();
    let cases = reference.0["cases"].as_array().unwrap();
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
        let (statistics, upstream, _) = reference.evaluate(case);
        let loss = case["loss"].as_f64().unwrap();
        assert!((statistics.loss - loss).abs() < 1e-5, "{what}: loss {} against {loss}", statistics.loss);
        close(&upstream.log_prob, &case["d_log_prob"], &what);
        close(&upstream.entropy, &case["d_entropy"], &what);
        if let Some(kl) = case["kl"].as_f64() {
            assert!((statistics.kl_sum / statistics.tokens as f64 - kl).abs() < 1e-5, "{what}: divergence");
        }
        // TRL counts completions, we count tokens, where the ratio is that of a completion.
        if case["importance_sampling_level"] == "token"
            && let (Some(low), Some(high)) = (case["clip_low"].as_f64(), case["clip_high"].as_f64())
        {
            let share = |count: usize| count as f64 / statistics.tokens as f64;
            assert!(
                (share(statistics.low) - low).abs() < 1e-6 && (share(statistics.high) - high).abs() < 1e-6,
                "{what}"
            );
        }
    }
    assert_eq!(cases.len(), 112);
}

#[test]
fn clip_cov_and_kl_cov_are_the_papers_formulae() {
    let reference = Reference::read();
    for case in reference.0["covariance_cases"].as_array().unwrap() {
        let (statistics, upstream, chosen) = reference.evaluate(case);
        let what = case["covariance"].to_string();
        assert_eq!(chosen as u64, case["chosen"].as_u64().unwrap(), "{what}");
        assert!((statistics.loss - case["loss"].as_f64().unwrap()).abs() < 1e-5, "{what}: {}", statistics.loss);
        close(&upstream.log_prob, &case["d_log_prob"], &what);
    }
}
