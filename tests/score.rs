//! `tempering score` against the plain forward pass, and rejected rows.

use serde_json::{Value, json};
use tempering::model;
use tempering::train::token_scores as score;

use crate::cli::{succeed, user_error};
use crate::support::{
    Workshop, assert_close, device, logits, ragged_prompts, read_lines, repository, tokenizer, within,
};

/// Return log-probability of, and entropy before, each token after the first, computed in f64 from the logits.
fn reference_scores(logits: &[f32], tokens: &[u32], temperature: f64) -> Vec<(f64, f64)> {
    let vocab = logits.len() / tokens.len();
    let row = |(logits, &token): (&[f32], &u32)| {
        let weights: Vec<f64> = logits.iter().map(|&z| (f64::from(z) / temperature).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let entropy: f64 = weights.iter().map(|w| -(w / sum) * (w / sum).ln()).sum();
        ((weights[token as usize] / sum).ln(), entropy)
    };
    logits.chunks_exact(vocab).zip(&tokens[1..]).map(row).collect()
}

#[test]
fn scores_are_those_of_the_plain_softmax_whatever_the_batch() {
    let (_, model) = model::load(&repository("assets/base"), &device()).unwrap();
    let sequences = ragged_prompts();
    for temperature in [1.0, 0.6] {
        for (scored, tokens) in score::score(&model, sequences.clone(), temperature).iter().zip(&sequences) {
            assert_eq!((&scored.input_ids, scored.logprobs[0], scored.entropy[0]), (tokens, None, None));
            let plain = reference_scores(&logits(&model, &[tokens]), tokens, f64::from(temperature));
            assert_eq!(scored.logprobs.len(), plain.len() + 1);
            for (i, (log_prob, entropy)) in plain.into_iter().enumerate() {
                let ours = [scored.logprobs[i + 1], scored.entropy[i + 1]].map(|x| f64::from(x.unwrap()));
                let near = |a: f64, b: f64| (a - b).abs() < f64::from(within(1e-4)) * (1.0 + b.abs());
                assert!(near(ours[0], log_prob) && near(ours[1], entropy), "{ours:?} {log_prob} {entropy}");
            }
        }
    }
}

#[test]
fn the_three_kinds_of_rows_give_the_same_scores() {
    let workshop = Workshop::new();
    let tokenizer = tokenizer();
    let messages = json!([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]);
    let parsed: Vec<tempering::text::chat::Message> = serde_json::from_value(messages.clone()).unwrap();
    let text = tokenizer.render(&parsed, false).unwrap();
    let ids = tokenizer.encode(&text).unwrap();
    let rows = [json!({"messages": messages}), json!({"text": text}), json!({"input_ids": ids, "id": 7})];
    let input = workshop.write_lines("rows.jsonl", rows.clone());
    let output = workshop.path("scores.jsonl");
    let base = repository("assets/base");
    succeed(&[&"score", &base, &"--input", &input, &"--output", &output, &"--tokens-per-batch", &"20"]);
    let scores = read_lines(&output);
    assert_eq!(scores.len(), 3);
    for row in &scores {
        assert_eq!(row["input_ids"], json!(ids));
        assert_eq!(row["logprobs"].as_array().unwrap().len(), ids.len());
        let numbers =
            |row: &Value| row.as_array().unwrap()[1..].iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        assert_close(&numbers(&scores[0]["logprobs"]), &numbers(&row["logprobs"]));
    }
    let printed = succeed(&[&"score", &base, &"--input", &input]);
    assert_eq!(printed.lines().count(), 3);
}

#[test]
fn a_row_that_cannot_be_scored_is_named_by_its_line_and_nothing_is_written() {
    let workshop = Workshop::new();
    let base = repository("assets/base");
    let (good, huge) = (json!({"text": "1+1"}), "1+".repeat(1 << 20));
    for (row, needle) in [
        (json!({"prompt": "x"}), "the row has 0"),
        (json!({"text": "x", "input_ids": [1]}), "the row has 2"),
        (json!({"text": 3}), "text: invalid type"),
        (json!({"text": ""}), "text has no tokens"),
        (json!({"input_ids": [1, 512]}), "token 512 is outside the vocabulary"),
        (json!({"input_ids": vec![5; 1025]}), "max_position_embeddings = 1024"),
        (json!({"messages": [{"role": "user"}]}), "messages: missing field `content`"),
        // Regression: the thinking was left out of what was scored.
        (
            json!({"messages": [{"role": "assistant", "content": "4", "reasoning_content": "2+2"}]}),
            "messages[0].reasoning_content: thinking in a separate field is not read",
        ),
        // Regression: a huge text was encoded before its length was looked at.
        (json!({"text": huge}), " tokens are more than the model's max_position_embeddings = 1024"),
        (json!({"messages": [{"role": "user", "content": huge}]}), ": at least "),
    ] {
        let input = workshop.write_lines("rows.jsonl", [good.clone(), row]);
        let output = workshop.path("scores.jsonl");
        let error = user_error(&[&"score", &base, &"--input", &input, &"--output", &output]);
        assert!(error.contains("rows.jsonl:2: ") && error.contains(needle), "{needle}: {error}");
        assert!(!output.exists());
    }
}

/// Regression: the weights were blamed for the temperature, and a file without rows gave an empty output.
#[test]
fn a_temperature_that_is_too_small_and_a_file_without_rows_are_named() {
    let workshop = Workshop::new();
    let base = repository("assets/base");
    let input = workshop.write_lines("rows.jsonl", [json!({"text": "1+1=2"})]);
    let error = user_error(&[&"score", &base, &"--input", &input, &"--temperature", &"1e-38"]);
    assert!(error.contains("rows.jsonl:1: ") && error.contains("--temperature 1e-38 is too small"), "{error}");
    std::fs::write(&input, "\n").unwrap();
    let output = workshop.path("scores.jsonl");
    let error = user_error(&[&"score", &base, &"--input", &input, &"--output", &output]);
    assert!(error.contains("rows.jsonl: the file has no rows") && !output.exists(), "{error}");
}
