//! The decoder: embedding, blocks of attention and SwiGLU, norm, head.
//!
//! Sequences are *packed*: one forward pass takes the tokens of all sequences end to end, `[rows, hidden]`, and a list
//! of lengths. No row is padding, and every product is one large matrix product.

use std::ops::Range;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Int, Tensor};

use super::attention::{Attention, Rows, ids};
use super::family::Multipliers;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::{KvCache, ModelConfig, Precision, params, shapes};
use crate::ops;

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
    /// Of what both parts add.
    multiplier: f64,
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
    #[module(skip)]
    rope: Rope,
    #[module(skip)]
    precision: Precision,
    #[module(skip)]
    multipliers: Multipliers,
    /// Whether a GPU has the kernels that keep the state of decoding: not with windows.
    #[module(skip)]
    decodes_there: bool,
}

impl Mlp {
    fn forward(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let precision = rows.precision;
        let layers = [&self.gate_proj, &self.up_proj];
        let stored = rows.stored(&x);
        let plain = |layer: &&Linear| layer.bias.is_none() && layer.weight.adapter().is_none();
        let [gate, up] = if stored.is_some() && layers.iter().all(plain) {
            precision.products(layers, x)
        } else {
            layers.map(|layer| precision.linear(layer, x.clone()))
        };
        match stored {
            Some(stored) => precision.linear(&self.down_proj, ops::swiglu_as(gate, up, stored)),
            None => precision.swiglu_linear(&self.down_proj, gate, up),
        }
    }
}

impl Layer {
    fn new(config: &ModelConfig, index: usize, device: &Device) -> Self {
        let bias = config.has_mlp_bias();
        let linear = |input, output| LinearConfig::new(input, output).with_bias(bias).init(device);
        let norm = || RmsNorm::new(config.hidden_size, config.rms_norm_eps, device);
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            self_attn: Attention::new(config, index, device),
            mlp: Mlp {
                gate_proj: linear(hidden, inner),
                up_proj: linear(hidden, inner),
                down_proj: linear(inner, hidden),
            },
            input_layernorm: norm(),
            post_attention_layernorm: norm(),
            multiplier: config.multipliers().residual,
        }
    }

    fn forward(&self, stream: Stream, rows: &Rows, cache: Option<(&mut KvCache, usize)>) -> Stream {
        let stored = rows.stored(&stream.x);
        let (x, normed) = self.input_layernorm.after(stream.x, stream.part, stored);
        let attended = self.self_attn.forward(normed, rows, cache);
        let (x, normed) = self.post_attention_layernorm.after(x, Some((attended, self.multiplier)), stored);
        Stream { x, part: Some((self.mlp.forward(normed, rows), self.multiplier)) }
    }
}

/// The residual stream, and what the last part adds to it, times a factor: the next norm adds the two as it reads them.
struct Stream {
    x: Tensor<2>,
    part: Option<(Tensor<2>, f64)>,
}

impl Stream {
    fn new(x: Tensor<2>) -> Self {
        Self { x, part: None }
    }

    fn sum(self) -> Tensor<2> {
        match self.part {
            None => self.x,
            Some((part, factor)) => self.x + times(part, factor),
        }
    }
}

/// `x · factor`, and nothing at all for 1.
fn times(x: Tensor<2>, factor: f64) -> Tensor<2> {
    if factor == 1.0 { x } else { x.mul_scalar(factor) }
}

/// Logits that exist at a time where a pass needs those of many rows: 128 MiB.
pub(crate) const LOGITS: usize = 32 << 20;
/// How many times as many a GPU takes at once: its products want a thousand rows, not two hundred.
const ON_GPUS: usize = 8;

impl CausalLm {
    /// The structure alone: [`super::load`] and [`CausalLm::random`] give it its weights.
    ///
    /// # Panics
    /// When the configuration has [problems](ModelConfig::problems).
    pub(super) fn new(config: &ModelConfig, precision: Precision, device: &Device) -> Self {
        let rope = Rope::read(config).unwrap_or_else(|problems| panic!("{}", problems.join("; ")));
        Self {
            model: Decoder {
                embed_tokens: EmbeddingConfig::new(config.vocab_size, config.hidden_size).init(device),
                layers: (0..config.num_hidden_layers).map(|index| Layer::new(config, index, device)).collect(),
                norm: RmsNorm::new(config.hidden_size, config.rms_norm_eps, device),
            },
            lm_head: (!config.tie_word_embeddings)
                .then(|| LinearConfig::new(config.hidden_size, config.vocab_size).with_bias(false).init(device)),
            rope,
            precision,
            multipliers: config.multipliers(),
            decodes_there: (0..config.num_hidden_layers).all(|layer| config.window(layer).is_none()),
        }
    }

    /// The model as generation wants it: without autodiff (a recorded graph would never be freed), adapters merged,
    /// matrices in the precision they are multiplied in.
    pub fn for_inference(&self) -> Self {
        let model = self.valid().materialize();
        if self.precision == Precision::F32 { model } else { params::cast(model, self.precision.dtype()) }
    }

    /// Hidden states after the final norm, one row per token, for packed sequences.
    ///
    /// Without a cache every sequence starts at position 0. With a cache the sequences are those announced to it by
    /// [`KvCache::read`] or [`KvCache::step`]; call these forms on [`CausalLm::for_inference`].
    ///
    /// # Shapes
    /// - tokens: all sequences end to end, `lengths` their lengths
    /// - output: `[tokens, hidden]`
    ///
    /// # Panics
    /// When `lengths` do not add up to the number of tokens, or the cache expects others.
    pub fn forward(&self, tokens: &[u32], lengths: &[usize], cache: Option<&mut KvCache>) -> Tensor<2> {
        self.forward_ids(ids(tokens, &self.device()), lengths, cache)
    }

    /// [`Self::forward`] of tokens that are on the device already.
    pub(crate) fn forward_ids(
        &self,
        tokens: Tensor<1, Int>,
        lengths: &[usize],
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<2> {
        let [count] = tokens.dims();
        assert_eq!(lengths.iter().sum::<usize>(), count, "sequence lengths and tokens");
        let rows = match &mut cache {
            Some(cache) => {
                assert_eq!(cache.positions().len(), count, "tokens announced to the cache and tokens");
                let own = self.decoding(cache);
                self.rows((!own).then(|| cache.positions()), lengths)
            }
            None => self.packed(lengths),
        };
        let mut stream = Stream::new(self.embed_ids(tokens));
        for (index, layer) in self.model.layers.iter().enumerate() {
            stream = layer.forward(stream, &rows, cache.as_deref_mut().map(|cache| (cache, index)));
        }
        self.finish(stream, rows.stored)
    }

    /// Whether the pass announced to the cache is one of decoding that a GPU keeps the state of.
    fn decoding(&self, cache: &mut KvCache) -> bool {
        let device = self.device();
        let Some(stored) = self.stored(&device).filter(|_| self.decodes_there) else { return false };
        let rotations = |positions| {
            let positions: Vec<usize> = (0..positions).collect();
            let [keys, queries] = self.rope.tables(&positions, &device);
            [queries, keys].map(|(cos, sin)| Tensor::cat(vec![cos, sin], 1))
        };
        cache.decoding(stored, rotations).is_some()
    }

    /// The format of what products read, where norms write it themselves: on a GPU, without autodiff.
    fn stored(&self, device: &Device) -> Option<FloatDType> {
        (ops::is_gpu(device) && !device.is_autodiff()).then(|| self.precision.dtype())
    }

    /// The final norm, of what the last block gave; divided as the logits are to be.
    fn finish(&self, stream: Stream, stored: Option<FloatDType>) -> Tensor<2> {
        let (_, normed) = self.model.norm.after(stream.x, stream.part, stored);
        times(normed, 1.0 / self.multipliers.logits)
    }

    /// What the blocks share in a pass; without positions where the cache has the rotations.
    fn rows(&self, positions: Option<&[usize]>, lengths: &[usize]) -> Rows {
        let device = self.device();
        if !ops::is_host(&device) {
            shapes::note(lengths);
        }
        let rotary = positions.map(|positions| self.rope.tables(positions, &device.clone().inner()));
        Rows { lengths: lengths.to_vec(), rotary, precision: self.precision, stored: self.stored(&device) }
    }

    /// What the blocks share in a pass over packed sequences that all start at position 0.
    pub(crate) fn packed(&self, lengths: &[usize]) -> Rows {
        let positions: Vec<usize> = lengths.iter().flat_map(|&length| 0..length).collect();
        self.rows(Some(&positions), lengths)
    }

    /// The rows of the embedding, `[tokens, hidden]`.
    pub(crate) fn embed(&self, tokens: &[u32]) -> Tensor<2> {
        self.embed_ids(ids(tokens, &self.device()))
    }

    fn embed_ids(&self, tokens: Tensor<1, Int>) -> Tensor<2> {
        times(self.model.embed_tokens.weight.val().select(0, tokens).cast(FloatDType::F32), self.multipliers.embedding)
    }

    /// Some of the blocks, one after another.
    ///
    /// # Shapes
    /// - x, output: `[tokens, hidden]`
    pub(crate) fn blocks(&self, which: Range<usize>, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let stream = self.model.layers[which].iter().fold(Stream::new(x), |x, layer| layer.forward(x, rows, None));
        stream.sum()
    }

    /// Final norm and logits of what the last block gave.
    ///
    /// # Shapes
    /// - x: `[rows, hidden]`; output: `[rows, vocab]`
    pub(crate) fn head(&self, x: Tensor<2>) -> Tensor<2> {
        self.logits(self.finish(Stream::new(x), self.stored(&self.device())))
    }

    /// Logits of hidden states.
    ///
    /// # Shapes
    /// - hidden: `[rows, hidden]`
    /// - output: `[rows, vocab]`
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => self.precision.linear(head, hidden),
            None => self.precision.matmul_transposed(hidden, self.model.embed_tokens.weight.val()),
        }
    }

    /// What the rows of the embedding are multiplied by.
    pub(crate) fn embedding_multiplier(&self) -> f64 {
        self.multipliers.embedding
    }

    /// Number of blocks.
    pub(crate) fn num_blocks(&self) -> usize {
        self.model.layers.len()
    }

    /// Number of tokens.
    pub(crate) fn vocab_size(&self) -> usize {
        self.model.embed_tokens.weight.lazy_shape()[0]
    }

    /// Rows whose logits exist at a time where these are at most `logits` numbers, [`ON_GPUS`] times as many on a GPU; one row
    /// of a larger vocabulary.
    pub(crate) fn rows_at_once(&self, logits: usize) -> usize {
        let times = if ops::is_gpu(&self.device()) { ON_GPUS } else { 1 };
        (times * logits / self.vocab_size()).max(1)
    }

    /// The device the weights are on.
    pub fn device(&self) -> Device {
        self.model.norm.weight.val().device()
    }
}
