//! Tests of properties that all rewards share, and the small groups that the rewards' tests score.

use std::sync::Arc;

use super::*;
use crate::data::{Problem, Prompt};
use crate::error::Error;
use crate::verify::{Graded, Verdict};

/// Return a finished answer of the right form with repeated 4-grams; in the lenient reading it is always right.
pub(super) fn answer(correct: bool, length: usize) -> Answer {
    let strict = if correct { Verdict::Right } else { Verdict::Wrong };
    Answer {
        text: "<think>a b c d e a b c d e</think> \\boxed{5}".to_string(),
        tokens: vec![7; length],
        pieces: Vec::new(),
        entropies: Vec::new(),
        finished: true,
        verdicts: Graded { strict, lenient: Verdict::Right, extracted: Some("5".to_string()) },
        correct: Some(correct),
        correct_lenient: Some(true),
        correct_cut: Some(correct),
    }
}

/// Return an answer with the text and the entropy of each token.
pub(crate) fn traced(correct: bool, pieces: &[(&str, f32)]) -> Answer {
    let (pieces, entropies) = pieces.iter().map(|(piece, entropy)| (piece.to_string(), *entropy)).unzip();
    Answer { pieces, entropies, ..answer(correct, 3) }
}

pub(super) fn problem(id: u64) -> Problem {
    Problem { id, ..Problem::new(Prompt::Text("2+3?".to_string()), "5") }
}

/// Return the rewards of the answers to problem 1, for L = 100, in the first step.
pub(super) fn parts(reward: &dyn Reward, answers: &[Answer], memory: &Memory) -> Vec<Option<Parts>> {
    let problem = problem(1);
    reward.score(&AnswerGroup { problem: &problem, answers, limit: 100, step: 0 }, memory).unwrap()
}

/// Return the totals of the rewards with an empty memory.
pub(super) fn scores(reward: &dyn Reward, answers: &[Answer]) -> Vec<Option<f32>> {
    parts(reward, answers, &Memory::default()).into_iter().map(|reward| reward.map(Parts::total)).collect()
}

/// Let a reward remember a step of groups, given by problem id.
pub(super) fn remember(reward: &dyn Reward, memory: &mut Memory, step: &[(u64, &[Answer])]) {
    let problems: Vec<Problem> = step.iter().map(|(id, _)| problem(*id)).collect();
    let groups =
        problems.iter().zip(step).map(|(problem, (_, answers))| AnswerGroup { problem, answers, limit: 100, step: 0 });
    reward.remember(&groups.collect::<Vec<_>>(), memory);
}

#[track_caller]
pub(super) fn assert_near(got: &[Option<f32>], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let near = got.iter().zip(expected).all(|(got, expected)| (got.unwrap() - expected).abs() < 1e-5);
    assert!(near, "{got:?} {expected:?}");
}

/// Return every length reward for right answers, with published settings or settings that fit lengths near 100.
fn length_rewards() -> Vec<RewardKind> {
    let text = r#"[
        { "type": "shaped_accuracy" }, { "type": "length" }, { "type": "cosine" },
        { "type": "kimi_length" }, { "type": "arora_zanette" }, { "type": "grpo_lead", "min_length": 0 },
        { "type": "l1_max", "target_length": 50, "alpha": 0.005 }, { "type": "shorter_better" },
        { "type": "laser", "target_length": 40 }, { "type": "deep_compress" },
        { "type": "soft_overlong", "soft_punish_cache": 90 }, { "type": "lazy_length", "length_tolerance": 20 }, { "type": "l1_exact", "target_length": 20 }
    ]"#;
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_reward_is_named_by_its_type() {
    let mut kinds = length_rewards();
    for name in ["accuracy", "accuracy_lenient", "format", "repetition", "command", "stop_properly"] {
        kinds.push(serde_json::from_value(serde_json::json!({ "type": name })).unwrap());
    }
    for name in ["soft_overlong", "laser_d", "laser_de", "pear", "etr", "ceeh_length", "lazy_length"] {
        kinds.push(serde_json::from_value(serde_json::json!({ "type": name })).unwrap());
    }
    for kind in &kinds {
        let written = serde_json::to_value(kind).unwrap();
        assert_eq!(written["type"], kind.name());
        assert_eq!(serde_json::from_value::<RewardKind>(written).unwrap(), *kind);
        assert_eq!(kind.mistakes(10_000), Vec::<String>::new());
    }
    let custom: RewardKind = toml::from_str("type = 'custom'\nname = 'mine'").unwrap();
    assert_eq!(custom.name(), "mine");
    for (text, want) in [
        ("type = 'accuracy'\nr = 1", "unknown field `r`"),
        ("type = 'laser_d'\nrepetition_limit = 0.2", "unknown field `repetition_limit`"),
        ("type = 'accurcy'", "unknown variant `accurcy`, expected one of `accuracy`, `accuracy_lenient`"),
    ] {
        let error = toml::from_str::<RewardKind>(text).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn rows_without_a_usable_answer_are_not_scored() {
    let known = answer(false, 5);
    let unknown = Answer { correct: None, correct_lenient: None, correct_cut: None, ..known.clone() };
    let group = [known, unknown];
    assert_eq!(scores(&AccuracyLenient {}, &group), [Some(1.0), None]);
    assert_eq!(scores(&Format {}, &group), [Some(1.0), None]);
    assert_eq!(scores(&Repetition {}, &group)[1], None);
    assert_eq!(scores(&Accuracy {}, &group), [Some(0.0), None]);
    for kind in length_rewards() {
        assert_eq!(scores(kind.reward(), &group)[1], None, "{kind:?}");
    }
}

/// Sign of every length reward: the shorter of two right answers is worth more, because of the length part.
#[test]
fn a_shorter_right_answer_is_worth_more() {
    for kind in length_rewards() {
        // DeepCompress rewards brevity where the group is better than usual.
        let memory = Memory { pass_rate: Some(0.5), ..Memory::default() };
        let group = [answer(true, 20), answer(true, 60), answer(true, 70), answer(false, 90)];
        let parts: Vec<Parts> =
            parts(kind.reward(), &group, &memory).into_iter().map(Option::unwrap_or_default).collect();
        assert!(parts[0].total() > parts[1].total(), "{kind:?}: {parts:?}");
        assert!(parts[0].length > parts[1].length, "{kind:?}: {parts:?}");
        assert!((parts[0].task - parts[1].task).abs() < 1e-7, "{kind:?}: {parts:?}");
    }
}

/// A user-defined reward that returns given values.
#[derive(Debug)]
struct FixedReward(Vec<Option<Parts>>);

impl Reward for FixedReward {
    fn name(&self) -> &str {
        "given"
    }

    fn score(&self, _group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(self.0.clone())
    }
}

fn given(scores: Vec<Option<Parts>>) -> Result<Vec<Vec<Vec<Option<Parts>>>>> {
    let kinds = [RewardKind::from(Custom { name: "given".to_string() }), Accuracy {}.into()];
    let (problem, own): (_, Arc<dyn Reward>) = (problem(1), Arc::new(FixedReward(scores)));
    let rewards = Rewards::open([kinds.as_slice()], &RewardCommand::default(), &[own], &problem)?;
    let answers = [answer(true, 5), answer(false, 9)];
    let group = AnswerGroup { problem: &problem, answers: &answers, limit: 100, step: 0 };
    rewards.score(&kinds, &[group], &Memory::default(), Stop::NEVER)
}

#[test]
fn values_of_the_users_type_are_kept_by_reward_and_checked_by_name() {
    let parts = Parts { task: 0.5, length: -0.25 };
    let scores = given(vec![Some(parts), None]).unwrap();
    assert_eq!(scores, [[vec![Some(parts), None], vec![Some(Parts::task(1.0)), Some(Parts::task(0.0))]]]);
    let refused = |scores| given(scores).unwrap_err().to_string();
    for bad in [Parts::task(f32::NAN), Parts::length(f32::INFINITY), Parts { task: -1e10, length: 1e10 }] {
        let error = refused(vec![None, Some(bad)]);
        assert!(error.contains("the reward \"given\" returned") && error.contains("not finite"), "{error}");
    }
    assert!(refused(vec![None]).contains("the reward \"given\" returned 1 scores for a group of 2"));
}

#[test]
fn a_stage_cannot_name_a_reward_that_nobody_offers() {
    let open = |kind: RewardKind| -> Error {
        let kinds = [kind];
        Rewards::open([kinds.as_slice()], &RewardCommand::default(), &[], &problem(1)).unwrap_err()
    };
    let error = open(Custom { name: "mine".to_string() }.into()).to_string();
    assert!(error.contains("name = \"mine\", but the training program registers []"), "{error}");
    assert!(open(Command {}.into()).to_string().contains("reward.command is empty"));
}
