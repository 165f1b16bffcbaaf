use super::*;
use crate::objective::{LossType, Ratio, Surrogate};

fn read(text: &str) -> Result<Stage, String> {
    toml::from_str(text).map_err(|error| error.message().to_string())
}

fn mistakes(text: &str) -> Vec<String> {
    read(text).unwrap().mistakes(0)
}

#[test]
fn the_length_clip_follows_its_schedule() {
    let clips = [(10, 300), (20, 200)].map(|(step, value)| LengthClip { step, value });
    let mut stage = Stage::default();
    stage.sampling.max_completion_length = 400;
    stage.sampling.max_completion_length_schedule = clips.to_vec();
    assert_eq!(
        [0, 9, 10, 19, 20].map(|steps| stage.at(steps).sampling.max_completion_length),
        [400, 400, 300, 300, 200]
    );
    assert!(stage.mistakes(0).is_empty());
    stage.sampling.max_completion_length_schedule = vec![clips[1], clips[0]];
    let mistake = "stages.0.sampling.max_completion_length_schedule.1.step = 10 must be above 20";
    assert_eq!(stage.mistakes(0), [mistake]);
}

#[test]
fn every_mistake_of_a_stage_is_named_with_its_section() {
    let text = "reward_weights = [1, 2]\nexit.max_steps = 0\nsampling.temperature = 0\nloss.kl.beta = 0";
    let found = mistakes(text);
    assert_eq!(found.len(), 4, "{found:?}");
    for start in ["reward_weights has 2", "sampling.temperature = 0", "loss.kl.beta = 0", "exit.max_steps = 0"] {
        assert!(found.iter().any(|mistake| mistake.starts_with(&format!("stages.0.{start}"))), "{start}: {found:?}");
    }
}

/// Regression: weights whose sums overflow made the reward infinite, and the run went on.
#[test]
fn weights_that_would_overflow_are_refused() {
    let found = mistakes("reward_weights = [3e38]");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("stages.0.reward_weights.0 = ") && found[0].contains("1000000"), "{found:?}");
    assert!(mistakes("reward_weights = [-1e6]").is_empty());
    // The logits divided by such a temperature are infinite; the weights were said to be damaged.
    let found = mistakes("sampling.temperature = 1e-40");
    assert!(found.len() == 1 && found[0].ends_with("must be 0 (greedy) or at least 1e-20"), "{found:?}");
}

/// 2^63 completions, or steps whose sum overflows, ended in an allocation failure or a wrapped number.
#[test]
fn numbers_without_sense_are_refused_by_key() {
    let found = mistakes("sampling.max_completion_length = 1000000000000\nexit.max_steps = 9223372036854775807");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("stages.0.sampling.max_completion_length = 1000000000000 must be at most"),
        "{found:?}"
    );
    assert!(found[1].starts_with("stages.0.exit.max_steps = 9223372036854775807 must be at most"), "{found:?}");
}

#[test]
fn partial_sections_have_published_values() {
    let text = "advantage.type = \"group\"\nloss = { type = \"gspo\", kl = {} }\nexit.plateau = {}\n\
                tokens = { covariance.type = \"clip_cov\", entropy_advantage = {}, entropy_bonus.type = \"adaptive\" }";
    let stage = read(text).unwrap();
    assert!(stage.mistakes(0).is_empty(), "{:?}", stage.mistakes(0));
    assert_eq!(stage.advantage, Advantage::default());
    assert_eq!(stage.loss.surrogate, Surrogate::Clip { low: 3e-4, high: 4e-4, delta: None });
    assert_eq!((stage.loss.beta(), stage.objective().ratio), (1e-3, Ratio::Sequence));
    let target = stage.entropy_target().unwrap();
    assert_eq!((target.target, target.delta, target.min, target.max), (0.2, 0.005, 0.0, 1.0));
}

/// `delta` with CISPO, `epsilon` with SAPO and the like were read and did nothing.
#[test]
fn a_loss_has_only_its_own_keys() {
    let error = read("loss = { type = \"cispo\", delta = 4 }").unwrap_err();
    assert_eq!(error, "key `delta` has no effect with type = \"cispo\", whose keys are epsilon_high: remove it");
    for (loss_type, key) in [("sapo", "epsilon"), ("cispo", "epsilon"), ("dapo", "sapo_temperature_pos")] {
        assert!(read(&format!("loss = {{ type = \"{loss_type}\", {key} = 1 }}")).is_err(), "{loss_type} {key}");
    }
    assert!(read("loss.importance_sampling_level = \"sequence\"").is_err());
    assert!(read("tokens.entropy_bonus = { type = \"fixed\", entropy_target = 0.1 }").is_err());
}

/// Only `ceeh_length` records which problems are hard.
#[test]
fn what_acts_on_hard_problems_needs_the_reward_that_tells_them() {
    for tokens in
        ["entropy_advantage.hard_only = true", "entropy_bonus = { type = \"fixed\", entropy_hard_factor = 5 }"]
    {
        let with = |reward: &str| mistakes(&format!("rewards = [{{ type = \"{reward}\" }}]\ntokens.{tokens}"));
        assert!(with("ceeh_length").is_empty(), "{:?}", with("ceeh_length"));
        assert!(with("accuracy").len() == 1 && with("accuracy")[0].contains("has no effect"), "{:?}", with("accuracy"));
    }
}

#[test]
fn a_written_stage_reads_back() {
    for loss_type in [LossType::Dapo, LossType::Gspo, LossType::Cispo, LossType::Sapo] {
        let mut stage = Stage { loss: StageLoss::of(loss_type), ..Stage::default() };
        stage.loss.kl = Some(Kl::default());
        stage.loss.num_iterations = 3;
        assert_eq!(read(&toml::to_string(&stage).unwrap()).unwrap(), stage);
    }
}
