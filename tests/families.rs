//! Each model family against transformers, PyTorch and PEFT: `assets/fixtures/models`, written by `models.py` there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use safetensors::tensor::SafeTensors;
use serde_json::Value;
use tempering::generate::{Request, Sampling, Watch, generate};
use tempering::model::{self, CausalLm, Precision, names};
use tempering::optim::{AdamW, OptimConfig};
use tempering::text::chat::{ChatTemplate, Message, SpecialTokens};
use tempering::train::batch::Sequence;
use tempering::train::learner::Learner;

use crate::support::{device, distance, likelihood, logits, repository, values, within};

const FAMILIES: [&str; 10] = [
    "qwen2",
    "qwen2_window",
    "qwen3",
    "llama",
    "llama_old",
    "mistral",
    "mistral_window",
    "ministral3",
    "smollm3",
    "granite",
];

fn fixture(name: &str) -> PathBuf {
    repository("assets/fixtures/models").join(name)
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("reference.json")).unwrap()).unwrap()
}

fn sequences() -> Vec<Vec<u32>> {
    serde_json::from_value(reference()["sequences"].clone()).unwrap()
}

/// The tensors of `expected.safetensors`.
fn expected(name: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

/// Agreement to 1e-4 of the largest value (on the CPU).
#[track_caller]
fn assert_agree(ours: &[f32], theirs: &[f32], what: &str) {
    let largest = theirs.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let difference = distance(ours, theirs);
    assert!(difference <= within(1e-4) * largest, "{what}: {difference} of {largest}");
}

/// Values of all parameters under checkpoint names, in the checkpoint's orientation.
fn parameters(model: &CausalLm) -> BTreeMap<String, Vec<f32>> {
    struct Visit(Vec<String>, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Visit {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.join("."), values(param.val()));
        }
    }
    let mut visit = Visit(Vec::new(), BTreeMap::new());
    model.visit(&mut visit);
    stored(model, visit.1)
}

/// Matrices of a model in the checkpoint's orientation.
fn stored(model: &CausalLm, mut tensors: BTreeMap<String, Vec<f32>>) -> BTreeMap<String, Vec<f32>> {
    let shapes = names(model);
    for (name, values) in &mut tensors {
        if name.ends_with("_proj.weight") || name.starts_with("lm_head") {
            let (outputs, inputs) = (shapes[name][0], shapes[name][1]);
            let places = (0..outputs).flat_map(|o| (0..inputs).map(move |i| i * outputs + o));
            *values = places.map(|place| values[place]).collect();
        }
    }
    tensors
}

fn whole_sequences() -> Vec<Sequence> {
    sequences().into_iter().map(|tokens| Sequence { tokens, prompt: 1 }).collect()
}

#[test]
fn logits_are_those_of_transformers() {
    for family in FAMILIES {
        let (_, model) = model::load(&fixture(family), &device()).unwrap();
        let expected = expected(family);
        for (index, tokens) in sequences().iter().enumerate() {
            assert_agree(&logits(&model, &[tokens]), &expected[&format!("logits.{index}")], family);
        }
    }
}

#[test]
fn loss_and_every_gradient_are_those_of_pytorch() {
    for family in FAMILIES {
        let (_, model) = model::load(&fixture(family), &device().autodiff()).unwrap();
        let expected = expected(family);
        let (loss, gradients) = likelihood(&model, &whole_sequences());
        assert_agree(&[loss], &expected["loss"], family);
        let ours = stored(&model, gradients.to_host());
        assert_eq!(ours.len(), expected.keys().filter(|name| name.starts_with("grad.")).count());
        let largest = expected.iter().filter(|(name, _)| name.starts_with("grad.")).flat_map(|(_, g)| g);
        let largest = largest.fold(0f32, |largest, x| largest.max(x.abs()));
        for (name, gradient) in &ours {
            // A key's bias hardly moves attention: its gradient is the rest of a cancellation. So relative to all.
            let difference = distance(gradient, &expected[&format!("grad.{name}")]);
            assert!(difference <= within(1e-4) * largest, "{family} {name}: {difference} of {largest}");
        }
    }
}

#[test]
fn ten_steps_of_adamw_end_where_pytorch_ends() {
    let config = OptimConfig {
        learning_rate: 5e-3,
        weight_decay: 0.1,
        adam_beta2: 0.95,
        adam_epsilon: 1e-6,
        ..OptimConfig::default()
    };
    for family in FAMILIES {
        let (_, mut model) = model::load(&fixture(family), &device().autodiff()).unwrap();
        let mut optimizer = AdamW::default();
        for _ in 0..10 {
            let (_, gradients) = likelihood(&model, &whole_sequences());
            model = optimizer.step(&config, model, gradients, 1.0, config.learning_rate);
        }
        let expected = expected(family);
        for (name, ours) in parameters(&model) {
            // Ten steps of 5e-3 move a weight by 0.05 at most; this is 1/500 of it. AdamW divides a gradient by its size,
            // so the bias of a key, whose gradient is the rest of a cancellation, moves by rounding: 1.1e-4 apart with
            // AVX-512 products, 0.75e-4 without.
            let tolerance = if name.ends_with("k_proj.bias") { 5e-4 } else { 1e-4 };
            let difference = distance(&ours, &expected[&format!("trained.{name}")]);
            assert!(difference <= within(tolerance), "{family} {name}: {difference}");
        }
    }
}

#[test]
fn cached_and_batched_is_uncached_and_single() {
    for family in FAMILIES {
        let (config, model) = model::load(&fixture(family), &device()).unwrap();
        let requests: Vec<Request> = (sequences().into_iter().enumerate())
            .map(|(index, prompt)| Request { prompt, key: [1, 2, 3, index as u64] })
            .collect();
        let sampling = Sampling { max_completion_length: 20, rows: 8, ..Sampling::default() };
        let completions = generate(&model, &config, &requests, &sampling, |_, _| Watch::Continue).unwrap();
        for (request, completion) in requests.iter().zip(completions) {
            let tokens = [request.prompt.as_slice(), &completion.tokens].concat();
            let sequence = Sequence { tokens, prompt: request.prompt.len() };
            let alone = Learner::default().read(&model, &[sequence]).remove(0);
            assert_agree(&completion.log_probs, &alone.log_prob, family);
        }
    }
}

#[test]
fn an_adapter_of_peft_computes_what_it_computes_there() {
    let expected = expected("adapter");
    let (_, merged) = model::load(&fixture("adapter"), &device()).unwrap();
    let (_, attached, _) = model::lora::load(&fixture("adapter"), &device(), Precision::F32).unwrap();
    let (_, base) = model::load(&fixture("llama"), &device()).unwrap();
    for (index, tokens) in sequences().iter().enumerate() {
        let expected = &expected[&format!("logits.{index}")];
        assert_agree(&logits(&merged, &[tokens]), expected, "merged");
        assert_agree(&logits(&attached, &[tokens]), expected, "attached");
        assert!(distance(&logits(&base, &[tokens]), expected) > 0.1);
    }
}

#[test]
fn half_precision_stays_near_and_is_refused_where_it_cannot_be() {
    let expected = expected("qwen3");
    let cpu = tempering::device::parse("cpu").unwrap();
    for (precision, tolerance) in [(Precision::Bf16, 0.05), (Precision::F16, 0.01)] {
        let (_, model) = model::load_as(&fixture("qwen3"), &cpu, precision).unwrap();
        let tokens = &sequences()[1];
        let theirs = &expected["logits.1"];
        let largest = theirs.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let difference = distance(&logits(&model, &[tokens]), theirs);
        assert!(difference > 0.0 && difference < tolerance * largest, "{precision:?}: {difference} of {largest}");
    }
    let ndarray = tempering::device::parse("ndarray").unwrap();
    let error = model::load_as(&fixture("qwen3"), &ndarray, Precision::Bf16).unwrap_err().to_string();
    assert!(error.contains("--dtype bf16"), "{error}");
    let error = model::load_as(&fixture("qwen3"), &cpu.autodiff(), Precision::F16).unwrap_err().to_string();
    assert!(error.contains("train in bf16"), "{error}");
}

#[test]
fn what_is_saved_is_what_was_loaded_in_its_precision_and_in_shards() {
    for family in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let (config, model) = model::load(&fixture(family), &device()).unwrap();
        model::save_sharded(dir.path(), &config, &model, 10_000).unwrap();
        assert!(dir.path().join("model.safetensors.index.json").is_file());
        let (again, loaded) = model::load(dir.path(), &device()).unwrap();
        assert_eq!((again, parameters(&loaded)), (config.clone(), parameters(&model)));
        let whole = tempfile::tempdir().unwrap();
        model::save(whole.path(), &config, &model).unwrap();
        let written: Value = read_json(&whole.path().join("config.json"));
        for (key, value) in read_json(&fixture(family).join("config.json")).as_object().unwrap() {
            assert!(written[key] == *value, "{family}: {key} = {value} became {}", written[key]);
        }
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn chat_templates_render_as_in_transformers() {
    let reference = reference();
    let tokens = || SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), pad: None };
    for row in reference["rendered"].as_array().unwrap() {
        let name = row["template"].as_str().unwrap();
        let source = reference["templates"][name].as_str().unwrap();
        let template = ChatTemplate::new(source, Path::new(name), tokens()).unwrap();
        let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
        let rendered = template.render(&messages, row["add_generation_prompt"] == true);
        match row["error"].as_str() {
            Some(message) => assert!(rendered.unwrap_err().to_string().contains(message), "{name}"),
            None => assert_eq!(rendered.unwrap(), row["text"].as_str().unwrap(), "{name}"),
        }
    }
}
