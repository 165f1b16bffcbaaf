//! The decoder: embedding, blocks of attention and SwiGLU, norm, head.
//!
//! Sequences are *packed*: one forward pass takes the tokens of all sequences end to end, `[rows, hidden]`, and a list
//! of lengths. No row is padding, and every product is one large matrix product.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::attention::{Attention, RotaryConfig, Rows, ids};
use super::{KvCache, ModelConfig};
use crate::ops;

/// Root-mean-square normalisation with a learned scale (arXiv 1910.07467).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// Scale, `[hidden]`.
    pub weight: Param<Tensor<1>>,
    epsilon: f64,
}

/// SwiGLU: `down(silu(gate(x)) · up(x))` (arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[hidden, intermediate]`.
    pub gate_proj: Linear,
    /// `[hidden, intermediate]`.
    pub up_proj: Linear,
    /// `[intermediate, hidden]`.
    pub down_proj: Linear,
}

/// One block: attention and SwiGLU, each normalised before and added after.
#[derive(Module, Debug)]
pub struct Layer {
    /// Causal self-attention.
    pub self_attn: Attention,
    /// Feed-forward part.
    pub mlp: Mlp,
    /// Norm before attention.
    pub input_layernorm: RmsNorm,
    /// Norm before the feed-forward part.
    pub post_attention_layernorm: RmsNorm,
}

/// Embedding, blocks and final norm.
#[derive(Module, Debug)]
pub struct Decoder {
    /// `[vocab, hidden]`.
    pub embed_tokens: Embedding,
    /// The blocks.
    pub layers: Vec<Layer>,
    /// Final norm.
    pub norm: RmsNorm,
}

/// A decoder with a language-model head. Field names are the checkpoint's.
#[derive(Module, Debug)]
pub struct CausalLm {
    /// Everything but the head.
    pub model: Decoder,
    /// The head, `[hidden, vocab]`; `None` when it is the transposed embedding.
    pub lm_head: Option<Linear>,
    theta: f64,
}

impl RmsNorm {
    fn new(config: &ModelConfig, device: &Device) -> Self {
        Self { weight: Initializer::Ones.init([config.hidden_size], device), epsilon: config.rms_norm_eps }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        ops::rms_norm(x, self.weight.val(), self.epsilon)
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down_proj.forward(ops::swiglu(self.gate_proj.forward(x.clone()), self.up_proj.forward(x)))
    }
}

impl Layer {
    fn new(config: &ModelConfig, device: &Device) -> Self {
        let linear = |input, output| LinearConfig::new(input, output).with_bias(false).init(device);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            self_attn: Attention::new(config, device),
            mlp: Mlp {
                gate_proj: linear(hidden, inner),
                up_proj: linear(hidden, inner),
                down_proj: linear(inner, hidden),
            },
            input_layernorm: RmsNorm::new(config, device),
            post_attention_layernorm: RmsNorm::new(config, device),
        }
    }

    fn forward(&self, x: Tensor<2>, rows: &Rows, cache: Option<(&mut KvCache, usize)>) -> Tensor<2> {
        let x = x.clone() + self.self_attn.forward(self.input_layernorm.forward(x), rows, cache);
        x.clone() + self.mlp.forward(self.post_attention_layernorm.forward(x))
    }
}

impl CausalLm {
    /// The structure alone: [`super::load`] and [`CausalLm::random`] give it its weights.
    pub(super) fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            model: Decoder {
                embed_tokens: EmbeddingConfig::new(config.vocab_size, config.hidden_size).init(device),
                layers: (0..config.num_hidden_layers).map(|_| Layer::new(config, device)).collect(),
                norm: RmsNorm::new(config, device),
            },
            lm_head: (!config.tie_word_embeddings)
                .then(|| LinearConfig::new(config.hidden_size, config.vocab_size).with_bias(false).init(device)),
            theta: config.rope_theta,
        }
    }

    /// Hidden states after the final norm, one row per token, for packed sequences.
    ///
    /// Without a cache every sequence starts at position 0. With a cache the sequences are those announced to it by
    /// [`KvCache::read`] or [`KvCache::step`]; call these forms on `model.valid()`.
    ///
    /// # Shapes
    /// - tokens: all sequences end to end, `lengths` their lengths
    /// - output: `[tokens, hidden]`
    ///
    /// # Panics
    /// When `lengths` do not add up to the number of tokens, or the cache expects others.
    pub fn forward(&self, tokens: &[u32], lengths: &[usize], mut cache: Option<&mut KvCache>) -> Tensor<2> {
        assert_eq!(lengths.iter().sum::<usize>(), tokens.len(), "sequence lengths and tokens");
        let device = self.device();
        let positions: Vec<usize> = match &cache {
            Some(cache) => cache.positions().to_vec(),
            None => lengths.iter().flat_map(|&length| 0..length).collect(),
        };
        assert_eq!(positions.len(), tokens.len(), "tokens announced to the cache and tokens");
        let head_dim = self.model.layers[0].self_attn.head_dim();
        let rows = Rows::new(lengths.to_vec(), &positions, &RotaryConfig { theta: self.theta, head_dim }, &device);
        let mut x = self.model.embed_tokens.weight.val().select(0, ids(tokens, &device));
        for (index, layer) in self.model.layers.iter().enumerate() {
            x = layer.forward(x, &rows, cache.as_deref_mut().map(|cache| (cache, index)));
        }
        self.model.norm.forward(x)
    }

    /// Logits of hidden states.
    ///
    /// # Shapes
    /// - hidden: `[rows, hidden]`
    /// - output: `[rows, vocab]`
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => hidden.matmul(self.model.embed_tokens.weight.val().transpose()),
        }
    }

    /// The device the weights are on.
    pub fn device(&self) -> Device {
        self.model.norm.weight.val().device()
    }
}
