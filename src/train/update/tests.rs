use burn::tensor::Device;

use super::*;
use crate::config;
use crate::model::ModelConfig;
use crate::objective::Surrogate;
use crate::objective::correction::Mode;
use crate::objective::terms::CovarianceRule;
use crate::ops::to_host;
use crate::optim::AdamW;
use crate::rollout::settings::{RolloutConfig, ServedConfig};
use crate::train::team::Team;
use crate::train::team::failing::Failing;

const VOCAB: usize = 37;

fn shape() -> ModelConfig {
    let mut config = ModelConfig::qwen2(VOCAB, 16, 24, 2, 4, 2);
    config.initializer_range = 0.3;
    config
}

fn model() -> CausalLm {
    CausalLm::random(&shape(), 3, &Device::flex().autodiff())
}

/// Completions of a step, with what a sampler recorded of them.
struct SampledStep {
    sequences: Vec<Sequence>,
    sampled: Vec<Vec<f32>>,
    entropies: Vec<Vec<f32>>,
}

impl SampledStep {
    /// Six completions in three groups, scored by the model, each log-probability off by `noise` one way or the other.
    fn new(model: &CausalLm, noise: f32) -> Self {
        let sequence = |(length, prompt): (u32, usize)| Sequence {
            tokens: (0..length).map(|i| (i * 11 + length * 5) % VOCAB as u32).collect(),
            prompt,
        };
        let sequences = [(9, 3), (14, 2), (17, 2), (6, 1), (8, 5), (12, 5)].map(sequence).to_vec();
        let read = Learner::default().read(model, &sequences);
        let shifted = |(i, p): (usize, &f32)| p + if i.is_multiple_of(2) { noise } else { -noise };
        Self {
            sampled: read.iter().map(|scores| scores.log_prob.iter().enumerate().map(shifted).collect()).collect(),
            entropies: read.iter().map(|scores| scores.sampling_entropy.clone()).collect(),
            sequences,
        }
    }

    fn examples(&self, advantages: [f32; 6]) -> Vec<Example<'_>> {
        let example = |place: usize| Example {
            group: place / 2,
            sequence: self.sequences[place].clone(),
            sampled: &self.sampled[place],
            entropies: &self.entropies[place],
            advantage: advantages[place],
            silent: Vec::new(),
            hard: false,
            takes_part: true,
        };
        (0..6).map(example).collect()
    }
}

const ADVANTAGES: [f32; 6] = [1.0, -1.0, 0.7, -0.7, -0.5, 0.5];

fn policy(model: &CausalLm) -> Policy<'static> {
    Policy::new(shape(), model.clone(), AdamW::default())
}

fn updated(stage: &Stage, lr: f64, model: &CausalLm, examples: &[Example]) -> (Policy<'static>, Metrics) {
    updated_after(Correction::NONE, stage, lr, model, examples)
}

/// The same for completions that a server sampled.
fn updated_after(
    correction: Correction,
    stage: &Stage,
    lr: f64,
    model: &CausalLm,
    examples: &[Example],
) -> (Policy<'static>, Metrics) {
    let rollout = RolloutConfig::Vllm(ServedConfig { correction, ..ServedConfig::default() });
    let config = RlConfig { rollout, ..RlConfig::default() };
    let reference = stage.loss.kl.is_some().then_some(model);
    let update = UpdateSettings { config: &config, stage, step: 1, lr, reference, stop: Stop::NEVER };
    let (mut policy, mut metrics) = (policy(model), Metrics::of_step(1));
    let skipped = update.run(&mut policy, examples, &mut EntropyControl::new(stage.entropy_coef()), &mut metrics);
    assert_eq!(skipped.unwrap(), 0);
    (policy, metrics)
}

fn weights_of(model: &CausalLm) -> Vec<f32> {
    to_host(model.model.embed_tokens.weight.val().inner())
}

fn kl_cov(ppo_kl_coef: f32) -> Stage {
    let mut stage = Stage::default();
    stage.tokens.covariance = Some(CovarianceRule::KlCov { kl_cov_ratio: 0.5, ppo_kl_coef });
    stage.loss.num_iterations = 2;
    stage
}

/// The sampler is off by 1e-6 at every token. While nothing has moved the ratio is 1 exactly, and KL-Cov pays nothing: with
/// a penalty of 1000 there is the same gradient as with none. Once the policy has moved it is paid.
#[test]
fn kl_cov_pays_nothing_before_the_policy_has_moved() {
    let model = model();
    let drawn = SampledStep::new(&model, 1e-6);
    // Nothing moves the model at a rate of 0.
    let norm = |factor: f32, lr: f64| {
        updated(&kl_cov(factor), lr, &model, &drawn.examples(ADVANTAGES)).1.get("grad_norm").unwrap()
    };
    assert!(norm(0.0, 0.0) > 0.0);
    assert_eq!(norm(0.0, 0.0).to_bits(), norm(1000.0, 0.0).to_bits());
    assert!(norm(1000.0, 1e-3) > 2.0 * norm(0.0, 1e-3));
}

/// What the sampler recorded is compared over all completions, with a gradient or without.
#[test]
fn the_mismatch_metrics_count_every_completion() {
    let model = model();
    let mut drawn = SampledStep::new(&model, 0.0);
    drawn.sampled[3][2] -= 0.5;
    for steps_per_generation in [1, 2] {
        let mut stage = Stage::default();
        stage.loss.steps_per_generation = steps_per_generation;
        let (_, metrics) = updated(&stage, 1e-3, &model, &drawn.examples([1.0, -1.0, 0.0, 0.0, 0.0, 0.0]));
        let get = |name: &str| metrics.get(&format!("sampling/{name}")).unwrap();
        let tokens: usize = drawn.sampled.iter().map(Vec::len).sum();
        assert!((get("sampling_logp_difference/max") - 0.5).abs() < 1e-5);
        assert!((get("sampling_logp_difference/mean") - 0.5 / tokens as f64).abs() < 1e-5);
        assert!((get("importance_sampling_ratio/max") - 0.5f64.exp()).abs() < 1e-4);
        assert!((get("importance_sampling_ratio/min") - 1.0).abs() < 1e-5);
    }
}

/// Completions whose ratios to the engine are 1.5, 0.5, 4, 1, 1 and 0.8.
fn from_another_engine(model: &CausalLm) -> (SampledStep, [f32; 6]) {
    let ratios = [1.5f32, 0.5, 4.0, 1.0, 1.0, 0.8];
    let mut drawn = SampledStep::new(model, 0.0);
    for (sampled, ratio) in drawn.sampled.iter_mut().zip(ratios) {
        sampled[0] -= ratio.ln();
    }
    (drawn, ratios)
}

fn of(mode: Mode, max: f64) -> Correction {
    Correction { mode, max: Some(max), ..Correction::NONE }
}

/// A factor of a whole completion is as good as one of its advantage, in the first update of a step and in later ones, where
/// the policy has moved: the factor is that of the old one.
#[test]
fn a_correction_multiplies_what_a_completion_has_to_say() {
    let model = model();
    let (drawn, ratios) = from_another_engine(&model);
    let mut stage = Stage::default();
    (stage.loss.steps_per_generation, stage.loss.num_iterations) = (2, 2);
    let weights = |correction: Correction, advantages: [f32; 6]| {
        weights_of(updated_after(correction, &stage, 1e-2, &model, &drawn.examples(advantages)).0.model())
    };
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let plain = weights(Correction::NONE, ADVANTAGES);
    for (mode, above) in [(Mode::SequenceTruncate, 3.0), (Mode::SequenceMask, 0.0)] {
        let scaled: [f32; 6] = std::array::from_fn(|i| ADVANTAGES[i] * if ratios[i] > 3.0 { above } else { ratios[i] });
        let (ours, expected) = (weights(of(mode, 3.0), ADVANTAGES), weights(Correction::NONE, scaled));
        assert!(far(&ours, &expected) < 1e-4, "{mode:?}: {}", far(&ours, &expected));
        assert!(far(&ours, &plain) > 2e-3, "{mode:?}: {}", far(&ours, &plain));
    }
}

#[test]
fn the_metrics_of_a_correction_are_those_of_its_factors() {
    let model = model();
    let (drawn, ratios) = from_another_engine(&model);
    let tokens = drawn.sampled.iter().map(Vec::len).sum::<usize>() as f64;
    // A completion without gradient counts, too.
    let advantages = [1.0, -1.0, 0.7, -0.7, 0.0, 0.0];
    let metrics =
        |correction| updated_after(correction, &Stage::default(), 1e-3, &model, &drawn.examples(advantages)).1;
    let near = |metrics: &Metrics, name: &str, expected: f64| {
        let ours = metrics.get(&format!("sampling/{name}")).unwrap();
        assert!((ours - expected).abs() < 1e-4, "{name}: {ours}, not {expected}");
    };
    let sum = |of: fn(f64) -> f64| ratios.iter().map(|&ratio| of(f64::from(ratio))).sum::<f64>();
    let of_sequences = metrics(of(Mode::SequenceMask, 3.0));
    near(&of_sequences, "importance_sampling_ratio/min", 0.0);
    near(&of_sequences, "importance_sampling_ratio/mean", 4.8 / 6.0);
    near(&of_sequences, "importance_sampling_ratio/max", 1.5);
    near(&of_sequences, "masked_share", 1.0 / 6.0);
    near(&of_sequences, "effective_sample_size", 4.8f64.powi(2) / (6.0 * 5.14));
    let of_tokens = metrics(of(Mode::TokenTruncate, 3.0));
    near(&of_tokens, "importance_sampling_ratio/mean", (tokens - 6.0 + 7.8) / tokens);
    near(&of_tokens, "importance_sampling_ratio/max", 3.0);
    near(&of_tokens, "masked_share", 0.0);
    let none = metrics(Correction::NONE);
    near(&none, "importance_sampling_ratio/max", 4.0);
    assert!(none.get("sampling/masked_share").is_none());
    for metrics in [of_sequences, of_tokens, none] {
        near(&metrics, "kl", sum(|ratio| ratio - 1.0 - ratio.ln()) / tokens);
        near(&metrics, "mult_prob_error", (tokens - 6.0 + sum(|ratio| ratio.max(1.0 / ratio))) / tokens);
        near(&metrics, "sampling_logp_difference/max", 4f64.ln());
    }
}

/// With the engine's log-probabilities as the old ones the first update meets the clip already, and no pass is made for the
/// trainer's own.
#[test]
fn the_ratio_may_be_against_the_engine() {
    let model = model();
    let (drawn, _) = from_another_engine(&model);
    let engine = Correction { old_log_probs: OldLogProbs::Engine, ..Correction::NONE };
    let mut stage = Stage::default();
    stage.loss.steps_per_generation = 2;
    let run = |correction| updated_after(correction, &stage, 0.0, &model, &drawn.examples(ADVANTAGES)).1;
    let clipped = |metrics: &Metrics| metrics.get("clip_ratio/region_mean").unwrap();
    let (against_engine, against_trainer) = (run(engine), run(Correction::NONE));
    assert!(clipped(&against_engine) > 0.0 && clipped(&against_trainer) == 0.0);
    assert!(against_engine.get("timing_s/old_log_prob").is_none());
    assert!(against_engine.get("sampling/sampling_logp_difference/max").unwrap() > 0.1);
}

/// The same two updates put together by hand: gradients of the first three completions in the step's order with the old
/// policy's log-probabilities, an optimiser step, and the same with the other three.
#[test]
fn two_mini_batches_are_two_updates_against_the_policy_before_them() {
    let model = model();
    let drawn = SampledStep::new(&model, 0.0);
    let examples = drawn.examples(ADVANTAGES);
    let mut stage = Stage::default();
    stage.loss.steps_per_generation = 2;
    stage.loss.surrogate = Surrogate::Clip { low: 0.01, high: 0.01, delta: None };
    let (ours, metrics) = updated(&stage, 1e-2, &model, &examples);
    assert!(!ours.within_step);

    let config = RlConfig::default();
    let update =
        UpdateSettings { config: &config, stage: &stage, step: 1, lr: 1e-2, reference: None, stop: Stop::NEVER };
    let batches = update.mini_batches(6);
    assert!(batches.len() == 2 && batches.iter().all(|batch| batch.len() == 3), "{batches:?}");
    let (mut by_hand, mut clipped) = (policy(&model), Vec::new());
    for batch in batches {
        let tokens: usize = batch.iter().map(|&place| drawn.sampled[place].len()).sum();
        let term = |place: usize, &old_log_prob: &f32| TokenTerm {
            old_log_prob,
            advantage: ADVANTAGES[place],
            weight: 1.0 / tokens as f32,
            ..TokenTerm::default()
        };
        let terms: Vec<TokenTerm> =
            batch.iter().flat_map(|&place| drawn.sampled[place].iter().map(move |old| term(place, old))).collect();
        let sequences: Vec<Sequence> = batch.iter().map(|&place| drawn.sequences[place].clone()).collect();
        let (mut gradients, mut seen) = (Gradients::default(), Statistics::default());
        Learner::default().backward(by_hand.model(), &sequences, &mut gradients, |_, scores| {
            let mut upstream = Upstream::default();
            stage.objective().evaluate(&terms, &scores.log_prob, &scores.sampling_entropy, &mut seen, &mut upstream);
            Some(upstream)
        });
        clipped.push((seen.low + seen.high) as f64 / tokens as f64);
        let scale = config.optim.clip(gradients.norm());
        by_hand.apply(&config.optim, gradients, scale, 1e-2);
    }
    assert!(clipped[0] == 0.0 && clipped[1] > 0.0, "the second update must meet the clip: {clipped:?}");
    let share = metrics.get("clip_ratio/region_mean").unwrap();
    assert!((share - clipped[1] / 2.0).abs() < 1e-12, "{share} {clipped:?}");
    let (ours, by_hand, before) = (weights_of(ours.model()), weights_of(by_hand.model()), weights_of(&model));
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(distance(&ours, &by_hand) < 1e-5 && distance(&ours, &before) > 5e-3, "{}", distance(&ours, &by_hand));
}

/// One step of every stage of every method, on completions with a positive and a negative advantage each: the ones become
/// more probable and the others less. A flipped sign anywhere between advantage and weights fails this.
#[test]
fn every_method_raises_what_has_a_positive_advantage() {
    let model = model();
    let drawn = SampledStep::new(&model, 0.0);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/methods");
    let mut stages = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "toml") || path.ends_with("base.toml") {
            continue;
        }
        let config: RlConfig = config::load(Some(&path), &[]).unwrap();
        for stage in &config.stages {
            let (after, metrics) = updated(stage, 1e-3, &model, &drawn.examples(ADVANTAGES));
            let after = Learner::default().read(after.model(), &drawn.sequences);
            let moved: Vec<f32> = (after.iter().zip(&drawn.sampled))
                .map(|(after, before)| after.log_prob.iter().sum::<f32>() - before.iter().sum::<f32>())
                .collect();
            let gain: f32 = moved.iter().zip(ADVANTAGES).map(|(moved, advantage)| moved * advantage).sum();
            assert!(gain > 0.0, "{}: {moved:?}", path.display());
            assert!(metrics.get("grad_norm").unwrap() > 0.0);
            stages += 1;
        }
    }
    assert!(stages > 30, "{stages}");
}

#[test]
fn an_advantage_that_is_not_finite_is_a_reward_s_fault() {
    let model = model();
    let drawn = SampledStep::new(&model, 0.0);
    let (config, stage) = (RlConfig::default(), Stage::default());
    let update =
        UpdateSettings { config: &config, stage: &stage, step: 1, lr: 1e-3, reference: None, stop: Stop::NEVER };
    let examples = drawn.examples([1.0, f32::NAN, 0.0, 0.0, 0.0, 0.0]);
    let mut control = EntropyControl::new(0.0);
    let run = update.run(&mut policy(&model), &examples, &mut control, &mut Metrics::of_step(1));
    let error = run.unwrap_err().to_string();
    assert!(error.contains("1 of 6 completions") && error.contains("reward"), "{error}");
}

/// Regression: when another rank failed after the first update of a step, the state before the step was saved with
/// weights that the update had changed.
#[test]
fn a_failure_between_two_updates_leaves_the_policy_within_a_step() {
    let model = model();
    let drawn = SampledStep::new(&model, 0.0);
    let (config, mut stage) = (RlConfig::default(), Stage::default());
    stage.loss.steps_per_generation = 2;
    for (fails_at, within_step) in [(1, false), (2, true)] {
        let rank = Failing::at_update(fails_at);
        let team = Team::gather(&rank, &[]).unwrap();
        let mut policy = policy(&model).on(Some(&team));
        let update =
            UpdateSettings { config: &config, stage: &stage, step: 1, lr: 1e-2, reference: None, stop: Stop::NEVER };
        let mut control = EntropyControl::new(0.0);
        let run = update.run(&mut policy, &drawn.examples(ADVANTAGES), &mut control, &mut Metrics::of_step(1));
        let error = run.unwrap_err().to_string();
        assert!(error.contains("rank 1: out of memory"), "{error}");
        assert_eq!(policy.within_step, within_step);
        assert_eq!(weights_of(policy.model()) == weights_of(&model), !within_step);
    }
}
