//! The base model against Hugging Face transformers. `assets/fixtures/base_reference.json`, written by
//! `base_reference.py`, contains the reference results and the versions used.

use serde_json::Value;
use tempering::model;
use tempering::text::chat::Message;

use crate::support::{device, repository, tokenizer, within};

fn reference() -> Value {
    serde_json::from_slice(&std::fs::read(repository("assets/fixtures/base_reference.json")).unwrap()).unwrap()
}

#[test]
fn chat_prompts_render_as_in_transformers() {
    let tokenizer = tokenizer();
    for entry in reference()["rendered"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(entry["messages"].clone()).unwrap();
        assert_eq!(tokenizer.render(&messages, true).unwrap(), entry["text"].as_str().unwrap());
    }
}

#[test]
fn tokens_and_logits_of_the_base_model_are_those_of_transformers() {
    let tokenizer = tokenizer();
    let (_, model) = model::load(&repository("assets/base"), &device()).unwrap();
    let reference = reference();
    let rendered = reference["rendered"].as_array().unwrap();
    for (entry, rendered) in reference["logits"].as_array().unwrap().iter().zip(rendered) {
        let ids: Vec<u32> = serde_json::from_value(entry["input_ids"].clone()).unwrap();
        let text = format!("{}<think>47*6=240+42=", rendered["text"].as_str().unwrap());
        assert_eq!(tokenizer.encode(&text).unwrap(), ids);
        let logits = model.logits(model.forward(&ids, &[ids.len()], None));
        let [_, vocab] = logits.dims();
        let logits: Vec<f32> = logits.into_data().try_into_vec().unwrap();
        for (position, expected) in entry["logits"].as_object().unwrap() {
            let row = &logits[position.parse::<usize>().unwrap() * vocab..][..vocab];
            let expected: Vec<f32> = serde_json::from_value(expected.clone()).unwrap();
            for (ours, theirs) in row.iter().zip(expected) {
                assert!((ours - theirs).abs() < within(1e-4), "position {position}: {ours} against {theirs}");
            }
        }
    }
}
