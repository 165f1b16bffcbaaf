//! Text and tokens: tokenizers as Hugging Face stores them, chat templates, how a model is asked, and the training of a
//! small tokenizer.

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
