//! Saving and loading of model directories and checkpoints; damaged ones are rejected.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempering::model::{self, CausalLm};
use tempering::train::{Start, checkpoint};

use crate::support::{
    StopAt, Workshop, device, figures, final_weights, interrupt_rl, logits, resume_rl, run_rl, run_sft, session_rl,
    tiny, tiny_config, tokenizer,
};

/// Return the error of loading the workshop's model.
fn failure(workshop: &Workshop) -> String {
    model::load(&workshop.path("model"), &device()).unwrap_err().to_string()
}

/// Apply `change` to the tensors of a safetensors file: shape and bytes by name.
fn edit(path: &Path, change: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<u8>)>)) {
    let bytes = std::fs::read(path).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (String, TensorView)| (name, (view.shape().to_vec(), view.data().to_vec()));
    let mut tensors: BTreeMap<_, _> = read.tensors().into_iter().map(entry).collect();
    change(&mut tensors);
    let views =
        tensors.iter().map(|(name, (shape, data))| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_saved_model_computes_the_same_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (config, model) = tiny(1, &device());
    let path = dir.path().join("model");
    checkpoint::export(&path, &config, &model, &tokenizer()).unwrap();
    let (loaded_config, loaded) = model::load(&path, &device()).unwrap();
    assert_eq!(loaded_config, config);
    let tokens: Vec<u32> = (0..40).map(|i| i * 11 % 512).collect();
    assert_eq!(logits(&loaded, &[&tokens]), logits(&model, &[&tokens]));
    let again = dir.path().join("again");
    checkpoint::export(&again, &loaded_config, &loaded, &tokenizer()).unwrap();
    for entry in std::fs::read_dir(&path).unwrap() {
        let name = entry.unwrap().file_name();
        assert_eq!(std::fs::read(path.join(&name)).unwrap(), std::fs::read(again.join(&name)).unwrap(), "{name:?}");
    }
}

#[test]
fn tensors_that_are_missing_left_over_or_of_another_shape_are_all_listed() {
    let workshop = Workshop::new();
    edit(&workshop.path("model/model.safetensors"), |tensors| {
        tensors.remove("model.layers.1.mlp.up_proj.weight");
        tensors.insert("model.rotary.inv_freq".to_string(), (vec![1], vec![0; 4]));
        tensors.get_mut("model.layers.0.self_attn.k_proj.weight").unwrap().0.reverse();
    });
    let error = failure(&workshop);
    for line in [
        "missing model.layers.1.mlp.up_proj.weight [64, 32]",
        "unexpected model.rotary.inv_freq",
        "model.layers.0.self_attn.k_proj.weight has shape [32, 16], expected [16, 32]",
    ] {
        assert!(error.contains(line), "{line}: {error}");
    }
    assert!(error.contains("model.safetensors"), "{error}");
}

/// Regression: such a model generated the same token forever, at accuracy 0 and exit code 0.
#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let workshop = Workshop::new();
    edit(&workshop.path("model/model.safetensors"), |tensors| {
        let (_, bytes) = tensors.get_mut("model.layers.1.mlp.up_proj.weight").unwrap();
        bytes[28..32].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes[40..44].copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
    let error = failure(&workshop);
    let want = "2 of the 2048 values of model.layers.1.mlp.up_proj.weight are not finite (NaN or infinite): the model \
        is damaged";
    assert!(error.contains("model.safetensors") && error.contains(want), "{error}");
}

#[test]
fn a_weights_file_cut_short_is_refused_by_name() {
    let workshop = Workshop::new();
    let path = workshop.path("model/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = failure(&workshop);
        assert!(error.contains("model.safetensors: incomplete or damaged safetensors file"), "{length} bytes: {error}");
    }
}

#[test]
fn shards_that_are_missing_elsewhere_cut_or_mixed_up_are_refused_by_name() {
    let workshop = Workshop::new();
    let (config, model) = model::load(&workshop.path("model"), &device()).unwrap();
    std::fs::remove_file(workshop.path("model/model.safetensors")).unwrap();
    let error = failure(&workshop);
    assert!(error.contains("neither model.safetensors nor model.safetensors.index.json"), "{error}");
    model::save_sharded(&workshop.path("model"), &config, &model, 50_000).unwrap();
    let (_, whole) = model::load(&workshop.path("model"), &device()).unwrap();
    assert_eq!(logits(&whole, &[&[5, 6, 7]]), logits(&model, &[&[5, 6, 7]]));

    let index = workshop.path("model/model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("model-00002", "../model-00002")).unwrap();
    assert!(failure(&workshop).contains("\"../model-00002-of-00003.safetensors\" is not a file name"));
    std::fs::write(&index, text.replace("model.norm.weight", "model.norm2.weight")).unwrap();
    let error = failure(&workshop);
    assert!(error.contains("contains model.norm.weight, but the index does not list it there"), "{error}");
    assert!(error.contains("model.norm2.weight is not in model-0000"), "{error}");
    std::fs::write(&index, &text).unwrap();

    let shard = workshop.path("model/model-00002-of-00003.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 4]).unwrap();
    let error = failure(&workshop);
    assert!(error.contains("model-00002-of-00003.safetensors: incomplete or damaged safetensors file"), "{error}");
    std::fs::remove_file(&shard).unwrap();
    let error = failure(&workshop);
    assert!(error.contains("lists shards that are missing: model-00002-of-00003.safetensors"), "{error}");
}

#[test]
fn a_stored_head_that_is_not_the_embedding_contradicts_a_tied_one() {
    let workshop = Workshop::new();
    let path = workshop.path("model/model.safetensors");
    edit(&path, |tensors| {
        let embedding = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_string(), embedding);
    });
    model::load(&workshop.path("model"), &device()).unwrap();
    edit(&path, |tensors| tensors.get_mut("lm_head.weight").unwrap().1[0] ^= 1);
    assert!(failure(&workshop).contains("lm_head.weight differs from model.embed_tokens.weight"));
}

#[test]
fn sizes_that_contradict_the_tensors_are_refused_before_memory_is_taken() {
    let workshop = Workshop::new();
    let path = workshop.path("model/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 2000000000")).unwrap();
    assert!(failure(&workshop).contains("are too few for num_hidden_layers = 2000000000"));
    std::fs::write(&path, text.replace("\"vocab_size\": 512", "\"vocab_size\": 2000000000")).unwrap();
    let error = failure(&workshop);
    assert!(error.contains("embed_tokens.weight has shape [512, 32], expected [2000000000, 32]"), "{error}");
}

#[test]
fn a_configuration_that_this_decoder_does_not_compute_is_refused_with_the_reason() {
    let workshop = Workshop::new();
    let path = workshop.path("model/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"qwen2\"", "\"falcon\"").replace("\"silu\"", "\"gelu\"")).unwrap();
    let error = failure(&workshop);
    assert!(error.contains("model_type = \"falcon\"") && error.contains("hidden_act = \"gelu\""), "{error}");
}

/// Regression: for an unsupported wrapper, the error listed missing top-level keys instead of the wrapper.
#[test]
fn a_family_inside_a_wrapper_that_is_not_read_is_named() {
    let workshop = Workshop::new();
    let config = r#"{"model_type": "qwen3_5_moe", "text_config": {"vocab_size": 512}}"#;
    std::fs::write(workshop.path("model/config.json"), config).unwrap();
    let error = failure(&workshop);
    assert!(error.contains("model_type = \"qwen3_5_moe\"") && error.contains("mixtures of experts"), "{error}");
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused() {
    let workshop = Workshop::new();
    let mut config = tiny_config();
    config.vocab_size -= 12;
    let model = CausalLm::random(&config, 0, &device());
    checkpoint::export(&workshop.path("model"), &config, &model, &tokenizer()).unwrap();
    let errors = [run_rl(&workshop.rl("rl")).unwrap_err(), run_sft(&workshop.sft("sft")).unwrap_err()];
    for error in errors.map(|error| error.to_string()) {
        assert!(error.contains("ids up to 511, but vocab_size in config.json is 500"), "{error}");
    }
}

/// Regression: a run resumed from corrupted weights; for a truncated file, the older checkpoint was not named.
#[test]
fn a_damaged_checkpoint_is_named_with_the_older_one_that_is_whole() {
    let workshop = Workshop::new();
    run_rl(&workshop.rl("whole")).unwrap();
    let mut config = workshop.rl("run");
    config.train.save_steps = 1;
    config.train.save_total_limit = 3;
    interrupt_rl(&config, 4).unwrap_err();
    let newest = workshop.run("run/checkpoint-4");
    for file in ["model.safetensors", "optimizer.safetensors", "trainer_state.json", "tokenizer.json"] {
        let path = newest.join(file);
        let bytes = std::fs::read(&path).unwrap();
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        for damaged in [&flipped[..], &bytes[..bytes.len() / 2], &[]] {
            std::fs::write(&path, damaged).unwrap();
            let error = resume_rl(&config).unwrap_err().to_string();
            assert!(error.contains(&format!("checkpoint-4/{file}: is damaged")), "{error}");
            assert!(error.contains("checkpoint-3 is intact") && error.contains("--from-checkpoint 3"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(resume_rl(&config).unwrap_err().to_string().contains("checkpoint-3 is intact"));
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::write(newest.join("checkpoint.json"), "{").unwrap();
    assert!(resume_rl(&config).unwrap_err().to_string().contains("checkpoint.json"));
    let error = session_rl(&config, Start::ResumeFrom(9), StopAt::Never).0.unwrap_err().to_string();
    assert!(error.contains("no checkpoint-9; there are checkpoints of steps 2, 3, 4"), "{error}");
    let (ended, notes) = session_rl(&config, Start::ResumeFrom(3), StopAt::Never);
    ended.unwrap();
    assert!(notes.contains("checkpoint-4 removed"), "{notes}");
    assert_eq!(figures(&workshop.run("run")), figures(&workshop.run("whole")));
    assert!(final_weights(&workshop.run("run")) == final_weights(&workshop.run("whole")));
}
