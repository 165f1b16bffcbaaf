//! Loads a checkpoint and prints the most likely next tokens.
//!
//! ```text
//! cargo run --release --example forward [MODEL DIRECTORY]
//! ```
//!
//! The directory has the Hugging Face layout (`config.json`, `model.safetensors`, `tokenizer.json`); default
//! `assets/base`.

use std::path::PathBuf;

use tempering::text::chat::{Message, Prompt};
use tempering::text::tokenizer::Tokenizer;
use tempering::{Result, device, model};

const SHOWN: usize = 8;

fn main() -> Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "assets/base".to_string()));
    let (config, model) = model::load(&dir, &device::parse("cpu")?)?;
    let tokenizer = Tokenizer::load(&dir)?;
    tokenizer.check_vocab(config.vocab_size, &dir)?;

    // The chat template formats the question like the text that the model was trained on.
    let prompt = Prompt::Messages(vec![Message::user("Compute 47*6-(18+5).")]);
    // Every answer starts with `<think>`. The token after it is predicted.
    let text = tokenizer.render_prompt(&prompt)? + "<think>";
    println!("{text}");
    let tokens = tokenizer.encode(&text)?;

    // One sequence (several would be packed end to end). Logits are needed at the last position only.
    let hidden = model.forward(&tokens, &[tokens.len()], None);
    let last = model.logits(hidden.slice([tokens.len() - 1..tokens.len(), 0..config.hidden_size]));
    let logits: Vec<f32> = last.into_data().iter::<f32>().collect();

    // softmax(z) = e^(z − max) / Σ e^(z − max)
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f32 = logits.iter().map(|z| (z - max).exp()).sum();
    let mut ranked: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|z| (z - max).exp() / sum)).collect();
    ranked.sort_by(|left, right| right.1.total_cmp(&left.1));
    for &(token, probability) in &ranked[..SHOWN.min(ranked.len())] {
        println!("{:>6.2}%  {:?}", 100.0 * probability, tokenizer.token_text(token));
    }
    let entropy: f32 = ranked.iter().filter(|(_, p)| *p > 0.0).map(|(_, p)| -p * p.ln()).sum();
    println!("entropy {entropy:.3} nats of at most {:.3}", (logits.len() as f32).ln());
    Ok(())
}
