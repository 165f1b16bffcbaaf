//! Each model family against transformers, PyTorch and PEFT, by the fixtures in `assets/fixtures/models` (`models.py`).

use std::collections::{BTreeMap, BTreeSet};
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

const FAMILIES: [&str; 15] = [
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
    "olmo2",
    "olmo3",
    "gemma3_text",
    "phi3",
    "qwen3_5_text",
];

/// Families published as the language model of a vision-language model.
const WRAPPERS: [&str; 3] = ["gemma3", "mistral3", "qwen3_5"];

fn fixture(name: &str) -> PathBuf {
    repository("assets/fixtures/models").join(name)
}

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("reference.json")).unwrap()).unwrap()
}

fn sequences() -> Vec<Vec<u32>> {
    serde_json::from_value(reference()["sequences"].clone()).unwrap()
}

/// Return the tensors of `expected.safetensors`.
fn expected(name: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

/// Assert agreement within 1e-4 of the largest value (on the CPU).
#[track_caller]
fn assert_agree(ours: &[f32], theirs: &[f32], what: &str) {
    let largest = theirs.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let difference = distance(ours, theirs);
    assert!(difference <= within(1e-4) * largest, "{what}: {difference} of {largest}");
}

/// Return the values of all parameters by checkpoint name, in the checkpoint's memory layout.
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
            let value = param.val().cast(burn::tensor::FloatDType::F32);
            self.1.insert(self.0.join("."), values(value));
        }
    }
    let mut visit = Visit(Vec::new(), BTreeMap::new());
    model.visit(&mut visit);
    stored(model, visit.1)
}

/// Convert the matrices of a model to the checkpoint's memory layout.
fn stored(model: &CausalLm, mut tensors: BTreeMap<String, Vec<f32>>) -> BTreeMap<String, Vec<f32>> {
    let shapes = names(model);
    for (name, values) in &mut tensors {
        if (name.contains("_proj") && name.ends_with(".weight")) || name.starts_with("lm_head") {
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

/// The README table lists exactly the families that are tested, and no others can be loaded.
#[test]
fn the_table_of_families_is_what_is_tested() {
    let text = std::fs::read_to_string(repository("README.md")).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("| `model_type`")).skip(2);
    let table: BTreeSet<String> =
        rows.map_while(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_string())).collect();
    let kind = |name: &str| read_json(&fixture(name).join("config.json"))["model_type"].as_str().unwrap().to_string();
    // `mimo` has no class in transformers: a test below makes one of a Qwen 2 model.
    let tested: BTreeSet<String> = FAMILIES.into_iter().chain(WRAPPERS).map(kind).chain(["mimo".to_string()]).collect();
    assert_eq!(table, tested);
    let dir = tempfile::tempdir().unwrap();
    let mut unknown = read_json(&fixture("qwen2").join("config.json"));
    unknown["model_type"] = "unknown".into();
    std::fs::write(dir.path().join("config.json"), unknown.to_string()).unwrap();
    let error = model::config_of(dir.path()).unwrap_err().to_string();
    let known = error.split_once("not supported (supported: ").unwrap().1.split_once(')').unwrap().0;
    assert_eq!(known.split(", ").map(str::to_string).collect::<BTreeSet<String>>(), tested);
    unknown["model_type"] = "gemma3".into();
    std::fs::write(dir.path().join("config.json"), unknown.to_string()).unwrap();
    let error = model::config_of(dir.path()).unwrap_err().to_string();
    assert!(error.contains("model_type = \"gemma3\" needs the key text_config"), "{error}");
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

/// Compare the learner's log-probabilities and entropies with those of transformers' logits in f64.
#[test]
fn log_probabilities_and_entropies_are_those_of_transformers() {
    for family in FAMILIES {
        let (config, model) = model::load(&fixture(family), &device()).unwrap();
        let (expected, mut farthest) = (expected(family), [0f64; 2]);
        let read = Learner::default().read(&model, &whole_sequences());
        for (index, (tokens, read)) in sequences().iter().zip(read).enumerate() {
            let logits = &expected[&format!("logits.{index}")];
            for (t, row) in logits.chunks_exact(config.vocab_size).take(tokens.len() - 1).enumerate() {
                let normaliser = row.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
                let log_prob = |token: usize| f64::from(row[token]) - normaliser;
                let entropy: f64 = (0..row.len()).map(|token| -log_prob(token).exp() * log_prob(token)).sum();
                let found = [read.log_prob[t], read.entropy[t]].map(f64::from);
                for (far, (found, theirs)) in
                    farthest.iter_mut().zip(found.into_iter().zip([log_prob(tokens[t + 1] as usize), entropy]))
                {
                    *far = far.max((found - theirs).abs());
                }
            }
        }
        println!("{family}: log-probabilities to {:.1e}, entropies to {:.1e} nats", farthest[0], farthest[1]);
        assert!(farthest.iter().all(|far| *far <= f64::from(within(1e-5))), "{family}: {farthest:?}");
    }
}

/// Other sequences in the same pass must not affect a sequence.
#[test]
fn packed_sequences_are_each_alone() {
    for family in FAMILIES {
        let (_, model) = model::load(&fixture(family), &device()).unwrap();
        let sequences = sequences();
        let [first, second] = &sequences[..] else { panic!("two sequences") };
        let apart = [logits(&model, &[second]), logits(&model, &[first])].concat();
        assert_agree(&logits(&model, &[second, first]), &apart, family);
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
            // The gradient of a key bias is a cancellation remainder. So relative to the largest gradient.
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
        let mut apart = Vec::new();
        for (name, ours) in parameters(&model) {
            // Ten steps of 5e-3 move a weight by at most 0.05; the tolerance is 1/500 of that. AdamW normalises
            // gradients, so the key bias, whose gradient is the remainder of a cancellation, moves by rounding: the
            // difference is 1.1e-4 with AVX-512 products and 0.75e-4 without.
            let tolerance = if name.ends_with("k_proj.bias") { 5e-4 } else { 1e-4 };
            let difference = distance(&ours, &expected[&format!("trained.{name}")]);
            if difference > within(tolerance) {
                apart.push(format!("{name}: {difference}"));
            }
        }
        assert!(apart.is_empty(), "{family}: {}", apart.join(", "));
    }
}

#[test]
fn cached_and_batched_is_uncached_and_single() {
    for family in FAMILIES {
        let (config, model) = model::load(&fixture(family), &device()).unwrap();
        // Stay within the original context of Phi's LongRoPE.
        let most = if family == "phi3" { 12 } else { usize::MAX };
        let prompts = sequences().into_iter().map(|tokens| tokens[..tokens.len().min(most)].to_vec());
        let requests: Vec<Request> =
            (prompts.enumerate()).map(|(index, prompt)| Request { prompt, key: [1, 2, 3, index as u64] }).collect();
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
    for (adapter, base) in [
        ("adapter", "llama"),
        ("adapter_layers", "llama"),
        ("adapter_gemma3", "gemma3_text"),
        ("adapter_phi3", "phi3"),
        ("adapter_qwen3_5", "qwen3_5_text"),
    ] {
        let expected = expected(adapter);
        let (_, merged) = model::load(&fixture(adapter), &device()).unwrap();
        let (_, attached, lora) = model::lora::load(&fixture(adapter), &device(), Precision::F32).unwrap();
        let (_, unadapted) = model::load(&fixture(base), &device()).unwrap();
        let again = tempfile::tempdir().unwrap();
        model::lora::save(again.path(), &attached, &lora, &fixture(base)).unwrap();
        let (_, again) = model::load(again.path(), &device()).unwrap();
        for (index, tokens) in sequences().iter().enumerate() {
            let expected = &expected[&format!("logits.{index}")];
            assert_agree(&logits(&merged, &[tokens]), expected, "merged");
            assert_agree(&logits(&attached, &[tokens]), expected, "attached");
            assert_agree(&logits(&again, &[tokens]), expected, "saved and loaded");
            assert!(distance(&logits(&unadapted, &[tokens]), expected) > 0.1);
            assert_agree(&logits(&model::lora::detach(&attached), &[tokens]), &logits(&unadapted, &[tokens]), "below");
        }
    }
}

/// PEFT looks for `target_modules` in its base, so projections are saved under the names of the fused ones.
#[test]
fn adapters_of_fused_projections_carry_their_names() {
    let (_, model) = model::load(&fixture("phi3"), &device()).unwrap();
    let lora = model::LoraConfig { r: 2, ..model::LoraConfig::default() };
    let model = lora.attach(model, 0);
    let adapters = names(&model).into_keys().filter(|name| name.ends_with("lora_A.weight"));
    assert_eq!(adapters.count(), 3 * 4);
    let dir = tempfile::tempdir().unwrap();
    model::lora::save(dir.path(), &model, &lora, &fixture("phi3")).unwrap();
    let written = read_json(&dir.path().join("adapter_config.json"));
    assert_eq!(written["target_modules"], serde_json::json!(["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]));
    let (_, _, again) = model::lora::load(dir.path(), &device(), Precision::F32).unwrap();
    assert_eq!(again.target_modules.len(), 4);
}

/// Gemma 3, Ministral 3 and Qwen 3.5 are published as vision-language models. Only the language model is loaded and
/// saved.
#[test]
fn a_language_model_inside_a_wrapper_is_read_alone() {
    let alone = [
        ("gemma3_text", "Gemma3ForCausalLM", 3),
        ("ministral3", "Ministral3ForCausalLM", 2),
        ("qwen3_5_text", "Qwen3_5ForCausalLM", 3),
    ];
    for (wrapper, (family, class, layers)) in WRAPPERS.into_iter().zip(alone) {
        let expected = expected(wrapper);
        let (config, model) = model::load(&fixture(wrapper), &device()).unwrap();
        assert_eq!((config.model_type.as_str(), config.num_hidden_layers), (family, layers));
        assert_eq!(config.eos_token_id, Some(serde_json::json!([1, 2])));
        let dir = tempfile::tempdir().unwrap();
        model::save(dir.path(), &config, &model).unwrap();
        let written = read_json(&dir.path().join("config.json"));
        assert_eq!(written["architectures"], serde_json::json!([class]));
        let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            // The decay parameters and the norm stay in the precision they were trained in.
            let exact = name.ends_with("A_log") || name.ends_with("linear_attn.norm.weight");
            assert_eq!(view.dtype() == safetensors::Dtype::F32, exact, "{name}");
        }
        let (again, saved) = model::load(dir.path(), &device()).unwrap();
        assert_eq!(again, config);
        for (index, tokens) in sequences().iter().enumerate() {
            let expected = &expected[&format!("logits.{index}")];
            assert_agree(&logits(&model, &[tokens]), expected, "inside");
            assert_agree(&logits(&saved, &[tokens]), expected, "alone");
        }
    }
}

/// MiMo is Qwen 2 plus multi-token-prediction layers. It is saved as a Qwen 2 model, which needs no custom code.
#[test]
fn mimo_is_qwen2_without_the_layers_that_predict_further_tokens() {
    let (dir, expected) = (tempfile::tempdir().unwrap(), expected("qwen2"));
    let (from, to) = (fixture("qwen2"), dir.path().join("mimo"));
    std::fs::create_dir(&to).unwrap();
    let mut config = read_json(&from.join("config.json"));
    let code = serde_json::json!({"AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM"});
    for (key, value) in [("model_type", "mimo".into()), ("auto_map", code), ("num_nextn_predict_layers", 1.into())] {
        config[key] = value;
    }
    config["architectures"] = serde_json::json!(["MiMoForCausalLM"]);
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let further = read.tensors()[0].1.clone();
    let tensors = read.tensors().into_iter().chain([("model.mtp_layers.0.input_proj.weight".to_string(), further)]);
    safetensors::serialize_to_file(tensors, None, &to.join("model.safetensors")).unwrap();

    let (config, model) = model::load(&to, &device()).unwrap();
    let saved = dir.path().join("saved");
    std::fs::create_dir(&saved).unwrap();
    model::save(&saved, &config, &model).unwrap();
    let written = read_json(&saved.join("config.json"));
    assert_eq!((&written["model_type"], &written["architectures"][0]), (&"qwen2".into(), &"Qwen2ForCausalLM".into()));
    assert!(written.get("auto_map").is_none() && written.get("num_nextn_predict_layers").is_none());
    for (index, tokens) in sequences().iter().enumerate() {
        assert_agree(&logits(&model, &[tokens]), &expected[&format!("logits.{index}")], "mimo");
    }
}

/// Beyond the original context, LongRoPE rotates all tokens of a sequence differently, from the first one on.
#[test]
fn sampling_beyond_the_original_context_of_longrope_is_refused() {
    let (config, model) = model::load(&fixture("phi3"), &device()).unwrap();
    let sample = |max_completion_length| {
        let requests = [Request { prompt: sequences()[1].clone(), key: [1; 4] }];
        let sampling = Sampling { max_completion_length, ..Sampling::default() };
        generate(&model, &config, &requests, &sampling, |_, _| Watch::Continue)
    };
    assert!(sample(23).is_ok());
    let error = sample(24).unwrap_err().to_string();
    assert!(error.contains("original_max_position_embeddings = 32") && error.contains("9 tokens"), "{error}");
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
    #[cfg(feature = "ndarray")]
    {
        let ndarray = tempering::device::parse("ndarray").unwrap();
        let error = model::load_as(&fixture("qwen3"), &ndarray, Precision::Bf16).unwrap_err().to_string();
        assert!(error.contains("--dtype bf16"), "{error}");
    }
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
