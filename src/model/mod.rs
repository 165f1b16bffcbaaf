//! The decoder of Qwen, Llama, Mistral, SmolLM, Granite, OLMo, Gemma and Phi models: configured by Hugging Face
//! `config.json`, with weights under Hugging Face names, with or without LoRA adapters.

mod attention;
mod cache;
mod config;
mod decoder;
mod delta_net;
mod family;
mod foreign;
pub mod lora;
mod norm;
mod params;
mod precision;
mod pretrained;
mod rope;
mod shapes;
pub(crate) mod share;
mod states;
pub mod tensors;
mod windows;
mod wrapped;

pub use attention::Attention;
pub(crate) use attention::{Rows, ids};
pub use cache::{CacheShape, KvCache};
pub use config::ModelConfig;
pub(crate) use decoder::LOGITS;
pub use decoder::{CausalLm, Decoder, Layer, Mlp};
pub use delta_net::{Convolution, GatedDeltaNet};
pub use lora::LoraConfig;
pub use norm::RmsNorm;
pub(crate) use params::ParamPath;
pub use params::names;
pub use precision::Precision;
pub use pretrained::{config_of, load, load_as, load_masters, save, save_masters, save_sharded};
pub(crate) use pretrained::{is_wrapped, load_base};
pub use shapes::distinct_shapes;
