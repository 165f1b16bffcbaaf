//! Small models with all parts of a real one, for the self-check.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};

use crate::model::{CacheShape, CausalLm, KvCache, ModelConfig, ParamPath};
use crate::noise::{Stream, mix_text};
use crate::ops::{self, to_host};
use crate::optim::{AdamW, Gradients, OptimConfig};

const VOCAB: usize = 48;

fn model(device: &Device) -> CausalLm {
    let mut config = ModelConfig::qwen2(VOCAB, 32, 64, 2, 4, 2);
    config.initializer_range = 0.2;
    CausalLm::random(&config, 3, device)
}

/// Return the log-probabilities of given targets after each token of two packed sequences.
fn scores(model: &CausalLm) -> Tensor<1> {
    let tokens: Vec<u32> = (0..30).map(|i| i * 31 % VOCAB as u32).collect();
    let targets: Vec<u32> = (0..30).map(|i| (i * 17 + 5) % VOCAB as u32).collect();
    let hidden = model.forward(&tokens, &[19, 11], None);
    ops::scores(model.logits(hidden), &targets, 1.0).log_prob
}

pub(super) fn log_probs(device: &Device) -> Vec<f32> {
    to_host(scores(&model(device)))
}

/// Return the gradient of a weighted sum of log-probabilities, one result per parameter.
pub(super) fn gradient(device: &Device) -> Vec<Vec<f32>> {
    let model = model(&device.clone().autodiff());
    let weights: Vec<f32> = (0..30).map(|i| if i % 3 == 0 { -0.7 } else { 1.0 }).collect();
    let weights: Tensor<1> = Tensor::from_data(TensorData::from(weights.as_slice()), device);
    let loss = (scores(&model) * Tensor::from_inner(weights)).sum();
    let mut gradients = Gradients::default();
    gradients.add(&model, &mut loss.backward());
    gradients.0.into_values().map(to_host).collect()
}

/// Query heads, key-value heads and head size of the models that [`decoded`] uses.
const HEADS: [[usize; 3]; 5] = [[4, 2, 8], [2, 1, 24], [8, 1, 8], [1, 1, 128], [2, 2, 80]];

/// Return the logits of two decoding steps after two cached prompts, for several head sizes and a recurrence.
pub(super) fn decoded(device: &Device) -> Vec<Vec<f32>> {
    let attending = HEADS.map(|[heads, kv_heads, dim]| ModelConfig::qwen2(VOCAB, heads * dim, 40, 2, heads, kv_heads));
    let recurrent = recurrent();
    attending.iter().chain([&recurrent]).flat_map(|config| decoded_by(config, device)).collect()
}

/// Return the configuration of a model with a recurrent first layer and gated attention in the second.
fn recurrent() -> ModelConfig {
    let sizes = serde_json::json!({"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
        "linear_value_head_dim": 12, "full_attention_interval": 2});
    let mut config = ModelConfig::qwen2(VOCAB, 32, 40, 2, 4, 2);
    config.model_type = "qwen3_5_text".to_string();
    config.head_dim = Some(8);
    config.rest.extend(sizes.as_object().cloned().unwrap_or_default());
    config
}

fn decoded_by(config: &ModelConfig, device: &Device) -> Vec<Vec<f32>> {
    let config = ModelConfig { initializer_range: 0.2, ..config.clone() };
    let model = CausalLm::random(&config, 3, device).for_inference();
    let (lengths, slots) = ([37, 3], [1, 0, 3]);
    let shape = CacheShape { prompts: 2, prompt_length: 40, completions: 4, completion_length: 3 };
    let mut cache = KvCache::new(&config, shape, FloatDType::F32, device);
    cache.read(&[(0, lengths[0]), (1, lengths[1])]);
    let tokens: Vec<u32> = (0..40).map(|i| i * 31 % VOCAB as u32).collect();
    model.forward(&tokens, &lengths, Some(&mut cache));
    // Two completions of the first prompt and one of the second.
    slots.into_iter().zip([0, 1, 0]).for_each(|(slot, prompt)| cache.start(slot, prompt));
    let step = |round: u32| {
        cache.step(&slots, 3);
        let tokens = [5 + round, 9 + round, 9];
        to_host(model.logits(model.forward(&tokens, &[1; 3], Some(&mut cache))))
    };
    (0..2).map(step).collect()
}

/// Return the weights after two AdamW steps with fixed gradients, one result per parameter. Computed gradients that
/// cancel to zero would have an arbitrary sign.
pub(super) fn step(device: &Device) -> Vec<Vec<f32>> {
    let mut model = model(&device.clone().autodiff());
    let mut optimizer = AdamW::default();
    let config = OptimConfig { weight_decay: 0.1, ..OptimConfig::default() };
    for round in 0..2 {
        let gradient = |(name, value): (String, Vec<f32>)| {
            let mut stream = Stream::new(&[mix_text(&name), round]);
            let values: Vec<f32> = value.iter().map(|_| (stream.unit() - 0.3) as f32).collect();
            (name, Tensor::from_data(TensorData::from(values.as_slice()), device))
        };
        let gradients = Gradients(parameters(&model).into_iter().map(gradient).collect());
        model = optimizer.step(&config, model, gradients, 0.5, 0.05);
    }
    parameters(&model).into_values().collect()
}

fn parameters(model: &CausalLm) -> BTreeMap<String, Vec<f32>> {
    struct Values(ParamPath, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Values {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.name(), to_host(param.val().inner()));
        }
    }
    let mut values = Values(ParamPath::default(), BTreeMap::new());
    model.visit(&mut values);
    values.1
}
