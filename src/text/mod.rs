//! Text and tokens: Hugging Face tokenizers, chat templates, prompt settings, and the training of a small tokenizer.

pub mod bpe;
pub mod chat;
pub mod directory;
mod folder;
pub mod generation;
mod percent;
pub mod prompt;
mod python;
pub mod stop;
pub mod stream;
pub mod tokenizer;
mod turn;
