use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use burn::module::{ModuleMapper, Param};

use burn::tensor::{DType, TensorData};

use super::*;
use crate::model::{LoraConfig, ModelConfig, ParamPath};
use crate::objective::{Parts, Statistics, TokenTerm};
use crate::ops::{RowScores, both};
use crate::stage::Stage;
use crate::train::cosine::gradient_cosines;

const VOCAB: usize = 37;

fn config(tied: bool) -> ModelConfig {
    let mut config = ModelConfig::qwen2(VOCAB, 16, 24, 3, 4, 2);
    (config.tie_word_embeddings, config.initializer_range) = (tied, 0.3);
    config
}

fn model(tied: bool, device: &Device) -> CausalLm {
    CausalLm::random(&config(tied), 3, device)
}

fn sequences() -> Vec<Sequence> {
    let sequence = |(length, prompt): (u32, usize)| Sequence {
        tokens: (0..length).map(|i| (i * 11 + length * 5) % VOCAB as u32).collect(),
        prompt,
    };
    [(9, 3), (4, 1), (17, 2), (2, 1), (6, 5)].map(sequence).to_vec()
}

/// Derivatives that differ from token to token, some of them 0.
fn derivatives(scores: &TokenScores, first: usize) -> Upstream {
    let of = |scale: f32| {
        let at = |i: usize| ((first + i) % 4) as f32 * scale - 0.1;
        (0..scores.log_prob.len()).map(at).collect()
    };
    Upstream { log_prob: of(0.2), entropy: of(-0.07) }
}

fn first_token(sequence: usize) -> usize {
    sequences()[..sequence].iter().map(|sequence| sequence.completion().len()).sum()
}

fn values(gradients: Gradients) -> BTreeMap<String, Vec<f32>> {
    gradients.to_host()
}

fn learned(learner: &Learner, model: &CausalLm) -> BTreeMap<String, Vec<f32>> {
    let mut gradients = Gradients::default();
    let work = learner.backward(model, &sequences(), &mut gradients, |range, scores| {
        Some(derivatives(scores, first_token(range.start)))
    });
    assert_eq!((work.tokens, work.skipped), (33, 0));
    values(gradients)
}

/// Scores of every completion token from one recorded pass with all logits at once.
fn completion_scores(model: &CausalLm, sequences: &[Sequence], temperature: f32) -> RowScores {
    let packed = Packed::of(sequences);
    let hidden = model.forward(&packed.tokens, &packed.lengths, None);
    ops::scores(model.logits(ops::take_rows(hidden, &packed.rows)), &packed.targets, temperature)
}

fn on_host(scores: &RowScores) -> TokenScores {
    let of = |values: &Tensor<1>| ops::to_host(values.clone().inner());
    let RowScores { log_prob, entropy, entropy_sampling, .. } = scores;
    TokenScores { log_prob: of(log_prob), entropy: of(entropy), sampling_entropy: of(entropy_sampling) }
}

/// The gradient through [`completion_scores`].
fn plain(model: &CausalLm, temperature: f32) -> BTreeMap<String, Vec<f32>> {
    let scores = completion_scores(model, &sequences(), temperature);
    let upstream = derivatives(&on_host(&scores), 0);
    let device = scores.log_prob.device();
    let pull = |x: Tensor<1>, by: &[f32]| (x * Tensor::from_data(TensorData::from(by), &device)).sum();
    let loss = pull(scores.log_prob, &upstream.log_prob) + pull(scores.entropy_sampling, &upstream.entropy);
    let mut gradients = Gradients::default();
    gradients.add(model, &mut loss.backward());
    values(gradients)
}

#[track_caller]
fn assert_equal(left: &BTreeMap<String, Vec<f32>>, right: &BTreeMap<String, Vec<f32>>, tolerance: f32) {
    assert!(left.keys().eq(right.keys()), "{:?} {:?}", left.keys(), right.keys());
    for (name, right) in right {
        let largest = right.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (a, b) in left[name].iter().zip(right) {
            assert!((a - b).abs() <= tolerance * (1.0 + largest), "{name}: {a} against {b}");
        }
    }
}

/// Chunks of one row, of a few, of all; blocks kept and run again; micro-batches of one sequence and of all; head and
/// embedding apart and in one. Sequences of more rows than a chunk has go twice through the head.
#[test]
fn no_way_of_cutting_the_work_changes_the_gradient() {
    let device = Device::flex().autodiff();
    both(|| {
        for tied in [true, false] {
            let model = model(tied, &device);
            let expected = plain(&model, 0.8);
            for activation_checkpointing in [ActivationCheckpointing::None, ActivationCheckpointing::Block] {
                for (logits, tokens_per_microbatch) in [(1, 1), (5 * VOCAB, 100), (10 * VOCAB, 20), (LOGITS, 100)] {
                    let learner = Learner {
                        temperature: 0.8,
                        tokens_per_microbatch,
                        activation_checkpointing,
                        logits,
                        ..Learner::default()
                    };
                    assert_equal(&learned(&learner, &model), &expected, 1e-5);
                }
            }
        }
    });
}

/// Tolerance of a gradient that was split into micro-batches, relative to the gradient: 1e-6.
#[test]
fn micro_batches_add_up_to_the_whole() {
    let model = model(true, &Device::flex().autodiff());
    let [whole, split] = [100, 1].map(|tokens_per_microbatch| {
        learned(&Learner { temperature: 0.8, tokens_per_microbatch, ..Learner::default() }, &model)
    });
    let [mut error, mut square] = [0.0; 2];
    for (a, b) in whole.values().flatten().zip(split.values().flatten()) {
        error += f64::from(a - b).powi(2);
        square += f64::from(*a).powi(2);
    }
    assert!(error.sqrt() <= 1e-6 * square.sqrt(), "{} of {}", error.sqrt(), square.sqrt());
}

/// The loss of two updates on the same tokens (ratios away from 1, some of them clipped, a reference, an entropy bonus)
/// along a direction: central differences against the gradient.
#[test]
fn the_gradient_is_that_of_finite_differences() {
    let model = model(true, &Device::flex().autodiff());
    let stage = Stage::default();
    let loss = |model: &CausalLm, gradients: &mut Gradients| {
        let mut statistics = Statistics::default();
        Learner::default().backward(model, &sequences(), gradients, |range, scores| {
            let mut upstream = Upstream::default();
            let term = |i: usize| TokenTerm {
                old_log_prob: -3.6 + (i % 5) as f32 * 0.08,
                reference_log_prob: -3.5,
                advantage: if i.is_multiple_of(3) { -1.0 } else { 0.7 },
                weight: 0.03,
                kl: 0.003,
                entropy: 0.001,
                ..TokenTerm::default()
            };
            let first = first_token(range.start);
            let terms: Vec<TokenTerm> = (first..first + scores.log_prob.len()).map(term).collect();
            let (log_prob, entropy) = (&scores.log_prob, &scores.sampling_entropy);
            stage.objective().evaluate(&terms, log_prob, entropy, &mut statistics, &mut upstream);
            Some(upstream)
        });
        statistics
    };
    let mut gradients = Gradients::default();
    let statistics = loss(&model, &mut gradients);
    assert!(statistics.low + statistics.high > 0 && statistics.low + statistics.high < statistics.tokens);
    let norm = gradients.norm();
    let direction = values(gradients);
    for (name, values) in &direction {
        assert!(values.iter().any(|x| *x != 0.0), "{name}");
    }
    let at = |distance: f64| {
        let moved = moved(&model, &direction, (distance / norm) as f32);
        loss(&moved, &mut Gradients::default()).loss
    };
    let slope = (at(2e-3) - at(-2e-3)) / 4e-3;
    assert!((slope - norm).abs() < 2e-3 * norm, "{slope} along a gradient of length {norm}");
}

/// Return the model with every parameter moved by `scale` times its entry in `direction`, if it has one.
fn moved(model: &CausalLm, direction: &BTreeMap<String, Vec<f32>>, scale: f32) -> CausalLm {
    struct Move<'a>(ParamPath, &'a BTreeMap<String, Vec<f32>>, f32);
    impl ModuleMapper for Move<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(by) = self.1.get(&self.0.name()) else { return param };
            let by = TensorData::from(by.as_slice());
            param.map(|x| {
                let by = Tensor::<1>::from_data(by, &x.device().inner()).reshape(x.dims()).mul_scalar(self.2);
                Tensor::from_inner(x.inner() + by).require_grad()
            })
        }
    }
    model.clone().map(&mut Move(ParamPath::default(), direction, scale))
}

#[test]
fn adapters_have_the_same_gradient_and_the_model_below_them_none() {
    let device = Device::flex().autodiff();
    let lora = LoraConfig { r: 2, ..LoraConfig::default() };
    let model = lora.attach(model(true, &device), 0);
    let expected = plain(&model, 1.0);
    assert!(expected.keys().all(|name| name.contains("lora")), "{:?}", expected.keys());
    for activation_checkpointing in [ActivationCheckpointing::None, ActivationCheckpointing::Block] {
        let learner = Learner { activation_checkpointing, logits: 5 * VOCAB, ..Learner::default() };
        assert_equal(&learned(&learner, &model), &expected, 1e-5);
    }
}

/// A checkpoint in bf16, as most are, takes two bytes a number below adapters and where nothing is trained. No result
/// changes.
#[test]
fn a_checkpoint_in_bf16_is_held_so_and_computed_as_in_f32() {
    use crate::generate::{Request, Sampling, Watch, generate};
    use crate::model::{Precision, load_as, load_base, save};

    let (dir, device) = (tempfile::tempdir().unwrap(), Device::flex());
    let config = ModelConfig { torch_dtype: Some("bfloat16".to_string()), ..config(false) };
    save(dir.path(), &config, &CausalLm::random(&config, 5, &device)).unwrap();
    let training = device.clone().autodiff();
    let lora = LoraConfig { r: 2, ..LoraConfig::default() };
    let held = load_base(dir.path(), &training, Precision::F32).unwrap().1;
    let masters = load_as(dir.path(), &training, Precision::F32).unwrap().1;
    let format = |model: &CausalLm| model.model.embed_tokens.weight.base().dtype();
    assert_eq!([format(&held), format(&masters)], [DType::BF16, DType::F32]);
    assert_eq!(format(&load_as(dir.path(), &device, Precision::F32).unwrap().1), DType::BF16);
    let [held, masters] = [held, masters].map(|model| lora.attach(model, 1));
    let learner = Learner::default();
    let [held_gradients, expected] = [&held, &masters].map(|model| learned(&learner, model));
    assert_equal(&held_gradients, &expected, 1e-5);
    // Adapters with other weights, which sampling does not merge into the base.
    let gradients = held_gradients;
    let [held, masters] = [held, masters].map(|model| moved(&model, &gradients, 0.01));
    let requests: Vec<Request> =
        (0..6).map(|i| Request { prompt: vec![1, 2 + i / 3, 3], key: [0, 0, 0, i.into()] }).collect();
    let sampling = Sampling { max_completion_length: 12, ..Sampling::default() };
    let [held, merged] =
        [held, masters].map(|model| generate(&model, &config, &requests, &sampling, |_, _| Watch::Continue).unwrap());
    for (held, merged) in held.iter().zip(&merged) {
        assert_eq!(held.tokens, merged.tokens);
        let apart = held.log_probs.iter().zip(&merged.log_probs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-5, "{apart}");
    }
}

/// Recomputing a block is the same sequence of operations on the same numbers.
#[test]
fn recomputed_blocks_give_the_same_bits() {
    let model = model(true, &Device::flex().autodiff());
    let [kept, again] = [ActivationCheckpointing::None, ActivationCheckpointing::Block]
        .map(|activation_checkpointing| learned(&Learner { activation_checkpointing, ..Learner::default() }, &model));
    assert!(kept == again);
}

#[test]
fn what_is_not_finite_is_left_out_and_counted_and_the_rest_learns() {
    let model = model(true, &Device::flex().autodiff());
    let learner = Learner { tokens_per_microbatch: 1, ..Learner::default() };
    let gradient = |bad: usize, sequences: &[Sequence]| {
        let mut gradients = Gradients::default();
        let work = learner.backward(&model, sequences, &mut gradients, |range, scores| {
            let mut upstream = derivatives(scores, 0);
            if range.start == bad {
                upstream.log_prob[0] = f32::NAN;
            }
            Some(upstream)
        });
        (work.skipped, values(gradients))
    };
    let all = sequences();
    let (skipped, with_a_bad_one) = gradient(2, &all);
    let rest: Vec<Sequence> = [&all[..2], &all[3..]].concat();
    assert_eq!(skipped, 1);
    assert_equal(&with_a_bad_one, &gradient(usize::MAX, &rest).1, 1e-6);
}

#[test]
fn scores_without_gradients_are_those_with_them() {
    let model = model(false, &Device::flex().autodiff());
    let learner = Learner { temperature: 0.8, logits: 4 * VOCAB, ..Learner::default() };
    let lists = learner.read(&model, &sequences());
    let lengths: Vec<usize> = sequences().iter().map(|sequence| sequence.completion().len()).collect();
    assert!(lists.iter().map(|scores| scores.log_prob.len()).eq(lengths));
    let mut read = TokenScores::default();
    for scores in &lists {
        read.log_prob.extend(&scores.log_prob);
        read.entropy.extend(&scores.entropy);
        read.sampling_entropy.extend(&scores.sampling_entropy);
    }
    let recorded = on_host(&completion_scores(&model, &sequences(), 0.8));
    for (read, recorded) in [
        (read.log_prob, recorded.log_prob),
        (read.entropy, recorded.entropy),
        (read.sampling_entropy, recorded.sampling_entropy),
    ] {
        assert!(read.iter().zip(&recorded).all(|(a, b)| (a - b).abs() < 1e-6), "{read:?} {recorded:?}");
    }
}

/// The parts of a micro-batch, and the order in which their gradients are added, do not depend on the number of threads.
#[test]
fn gradients_and_scores_do_not_depend_on_the_number_of_threads() {
    let full = model(true, &Device::flex().autodiff());
    let adapted = LoraConfig { r: 2, ..LoraConfig::default() }.attach(full.clone(), 1);
    let many: Vec<Sequence> = (0..80).flat_map(|_| sequences()).collect();
    for model in [full, adapted] {
        let on = |threads: usize| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let (mut gradients, learner) = (Gradients::default(), Learner::default());
                let work = learner.backward(&model, &many, &mut gradients, |range, scores| {
                    Some(derivatives(scores, 7 * range.start))
                });
                assert_eq!(work.tokens, 80 * 33);
                (values(gradients), learner.read(&model, &many))
            })
        };
        let (one, four) = (on(1), on(4));
        assert!(one.1.len() == many.len() && one.0.values().flatten().any(|&value| value != 0.0));
        assert_eq!(one, four);
    }
}

/// Regression: a request to stop waited for the log-probabilities of a whole step, and for the cosine of its gradients.
#[test]
fn a_request_to_stop_is_seen_before_each_micro_batch() {
    let model = model(false, &Device::flex().autodiff());
    let (sequences, flag) = (sequences(), AtomicBool::new(true));
    let learner = Learner { stop: Stop::new(&flag), ..Learner::default() };
    assert!(learner.read(&model, &sequences).is_empty());
    let parts = vec![Parts { task: 1.0, length: -1.0 }; sequences.len()];
    let cosines = gradient_cosines(&model, &learner, &sequences, &parts, &vec![1.0; sequences.len()], &[]);
    assert!(matches!(cosines, Err(crate::error::Error::Stopped)), "{cosines:?}");
}
