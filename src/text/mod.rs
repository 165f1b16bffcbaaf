//! Text and tokens: Hugging Face tokenizers, chat templates, prompt settings, and the training of a small tokenizer.

mod added;
pub mod bpe;
pub mod chat;
pub mod directory;
mod folder;
pub mod generation;
mod jinja;
pub mod prompt;
pub mod stop;
pub mod stream;
pub mod tokenizer;
mod turn;
