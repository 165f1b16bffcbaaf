//! The methods of the literature: advantages as others compute them, and every file in `configs/methods`.

use serde::Deserialize;
use tempering::objective::advantage::Group;
use tempering::objective::{Advantage, DifficultyWeighting, Parts, advantages};

use crate::support::repository;

/// `assets/fixtures/advantage_reference.json`: rewards by completion, 4 to a problem.
#[derive(Deserialize)]
struct Reference {
    group: usize,
    lengths: Vec<usize>,
    correct: Vec<bool>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: Advantage,
    weights: Vec<f32>,
    rewards: Vec<Vec<Option<f32>>>,
    difficulty: bool,
    advantages: Vec<f32>,
}

#[test]
fn advantages_are_those_of_trl_and_of_numpy() {
    let text = std::fs::read_to_string(repository("assets/fixtures/advantage_reference.json")).unwrap();
    let reference: Reference = serde_json::from_str(&text).unwrap();
    let weighting = DifficultyWeighting::default();
    for Case { kind, weights, rewards, difficulty, advantages: expected } in &reference.cases {
        let groups: Vec<Group> = (0..rewards.len())
            .step_by(reference.group)
            .map(|start| {
                let members = start..start + reference.group;
                let reward = |k: usize| members.clone().map(|i| rewards[i][k].map(Parts::task)).collect();
                Group {
                    rewards: (0..weights.len()).map(reward).collect(),
                    lengths: reference.lengths[members.clone()].to_vec(),
                    correct: reference.correct[members.clone()].iter().copied().map(Some).collect(),
                }
            })
            .collect();
        let got = advantages(*kind, difficulty.then_some(&weighting), &groups, weights).concat();
        let close = got.iter().zip(expected).all(|(got, expected)| (got.total() - expected).abs() < 1e-5);
        assert!(close && got.len() == expected.len(), "{kind:?} {weights:?} {difficulty}: {got:?} {expected:?}");
    }
    assert_eq!(reference.cases.len(), 24);
}
