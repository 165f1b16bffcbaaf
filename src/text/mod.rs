//! Text and tokens: tokenizers as Hugging Face stores them, chat templates, and the training of a small tokenizer.

pub mod bpe;
pub mod chat;
pub mod stop;
pub mod stream;
pub mod tokenizer;
