//! The loss of a step and its gradients against TRL's own (`assets/fixtures/loss_reference.py` says how the numbers were
//! made).

use serde_json::{Map, Value, json};
use tempering::noise::Stream;
use tempering::objective::{Drawn, Statistics, Upstream};
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

    /// The loss of the batch under a stage, its derivatives, and how many tokens were chosen for their covariance.
    fn evaluate(&self, stage: &Stage) -> (Statistics, Upstream, usize) {
        let [old, log_prob, reference, entropy] =
            ["old_log_prob", "log_prob", "reference_log_prob", "entropy"].map(|key| self.rows(key));
        let lengths: Vec<usize> = old.iter().map(Vec::len).collect();
        let limit = self.0["max_completion_length"].as_u64().unwrap() as usize;
        let weights = stage.loss_type.aggregate().weights(&[lengths], limit).concat();
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
        let (mut terms, counts) = stage.token_rules(stage.entropy_coef).terms(&drawn, &mut Stream::new(&[0]));
        let (mut statistics, mut upstream) = (Statistics::default(), Upstream::default());
        for (i, terms) in terms.iter_mut().enumerate() {
            terms.iter_mut().zip(&reference[i]).for_each(|(term, &log_prob)| term.reference_log_prob = log_prob);
            stage.objective().evaluate(terms, &log_prob[i], &entropy[i], &mut statistics, &mut upstream);
        }
        (statistics, upstream, counts.covariance)
    }
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// A stage with some keys of a case.
fn stage(case: &Value, keys: &[&str]) -> Stage {
    let set = keys.iter().filter(|key| !case[**key].is_null()).map(|key| ((*key).to_string(), case[*key].clone()));
    serde_json::from_value(Value::Object(set.collect::<Map<_, _>>())).unwrap()
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
        let (statistics, upstream, _) = reference.evaluate(&stage(case, &keys));
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
        let (statistics, upstream, chosen) =
            reference.evaluate(&stage(case, &["epsilon", "epsilon_high", "covariance"]));
        let what = case["covariance"].to_string();
        assert_eq!(chosen as u64, case["chosen"].as_u64().unwrap(), "{what}");
        assert!((statistics.loss - case["loss"].as_f64().unwrap()).abs() < 1e-5, "{what}: {}", statistics.loss);
        close(&upstream.log_prob, &case["d_log_prob"], &what);
    }
}
