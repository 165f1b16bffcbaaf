//! The decoder: embedding, blocks of attention and SwiGLU, norm, head.
//!
//! Sequences are *packed*: one forward pass takes the tokens of all sequences end to end, `[rows, hidden]`, and a list
//! of lengths. There is no padding, and every product is one large matrix product.

use std::ops::Range;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Int, Tensor};

use super::attention::{Attention, Rows, ids};
use super::delta_net::GatedDeltaNet;
use super::family::{Gate, Multipliers, Norms};
use super::norm::RmsNorm;
use super::rope::Rope;
use super::{KvCache, ModelConfig, Precision, lora, params, shapes};
use crate::ops;

/// Feed-forward network `down(silu(gate(x)) · up(x))` (SwiGLU), or with another gate activation (arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[hidden, intermediate]`; `None` if gate and up are fused.
    pub gate_proj: Option<Linear>,
    /// `[hidden, intermediate]`.
    pub up_proj: Option<Linear>,
    /// Fused gate and up (Phi 3), `[hidden, 2 · intermediate]`.
    pub gate_up_proj: Option<Linear>,
    /// `[intermediate, hidden]`.
    pub down_proj: Linear,
    /// Whether the gate activation is Gemma's (tanh GELU) rather than SiLU.
    gelu: bool,
}

/// One block: attention (or a recurrence) and a feed-forward network, both residual and with norms before or after.
#[derive(Module, Debug)]
pub struct Layer {
    /// Causal self-attention; `None` in a layer with a recurrence.
    pub self_attn: Option<Attention>,
    /// Recurrence in place of attention.
    pub linear_attn: Option<GatedDeltaNet>,
    /// Feed-forward network.
    pub mlp: Mlp,
    /// Norm before attention; `None` in a family with norms after each part only.
    pub input_layernorm: Option<RmsNorm>,
    /// Norm before the feed-forward network; after attention in families with norms after each part.
    pub post_attention_layernorm: RmsNorm,
    /// Norm before the feed-forward network, in families with norms before and after each part.
    pub pre_feedforward_layernorm: Option<RmsNorm>,
    /// Norm after the feed-forward network, in families with norms after each part.
    pub post_feedforward_layernorm: Option<RmsNorm>,
    /// Factor of the outputs of attention and feed-forward network.
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

/// A decoder with a language-model head. Field names are those of the checkpoint.
#[derive(Module, Debug)]
pub struct CausalLm {
    /// Everything but the head.
    pub model: Decoder,
    /// The head, `[hidden, vocab]`; `None` if it is tied to the embedding.
    pub lm_head: Option<Linear>,
    #[module(skip)]
    ropes: Vec<Rope>,
    #[module(skip)]
    precision: Precision,
    #[module(skip)]
    multipliers: Multipliers,
    /// Whether GPU kernels for decoding support the model: one rotation of whole heads, no windows, recurrences, gates.
    #[module(skip)]
    decodes_on_gpu: bool,
}

impl Mlp {
    fn forward(&self, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let precision = rows.precision;
        let [gate, up] = self.gate_and_up(x, rows);
        if self.gelu {
            return precision.linear(&self.down_proj, ops::geglu(gate, up));
        }
        match rows.stored {
            Some(stored) => precision.linear(&self.down_proj, ops::swiglu_as(gate, up, stored)),
            None => precision.swiglu_linear(&self.down_proj, gate, up),
        }
    }

    fn gate_and_up(&self, x: Tensor<2>, rows: &Rows) -> [Tensor<2>; 2] {
        let precision = rows.precision;
        if let Some(layer) = &self.gate_up_proj {
            let x = precision.linear(layer, x);
            let inner = x.dims()[1] / 2;
            return [0, inner].map(|from| x.clone().narrow(1, from, inner));
        }
        let layers = [&self.gate_proj, &self.up_proj].map(|layer| layer.as_ref().expect("one projection or two"));
        let plain = |layer: &&Linear| layer.bias.is_none() && layer.weight.adapter().is_none();
        if rows.stored.is_some() && !x.device().is_autodiff() && layers.iter().all(plain) {
            precision.products(layers, x)
        } else {
            layers.map(|layer| precision.linear(layer, x.clone()))
        }
    }
}

impl Layer {
    fn new(config: &ModelConfig, index: usize, device: &Device) -> Self {
        let bias = config.has_mlp_bias();
        let linear = |input, output| LinearConfig::new(input, output).with_bias(bias).init(device);
        let (hidden, inner, fused) = (config.hidden_size, config.intermediate_size, config.is_fused());
        let norm = || RmsNorm::new(config, hidden, device);
        let norm_of = |others: [Norms; 2]| others.contains(&config.norms()).then(norm);
        Self {
            self_attn: (!config.is_recurrent(index)).then(|| Attention::new(config, index, device)),
            linear_attn: GatedDeltaNet::new(config, index, device),
            mlp: Mlp {
                gate_proj: (!fused).then(|| linear(hidden, inner)),
                up_proj: (!fused).then(|| linear(hidden, inner)),
                gate_up_proj: fused.then(|| linear(hidden, 2 * inner)),
                down_proj: linear(inner, hidden),
                gelu: config.gate() == Gate::Gelu,
            },
            input_layernorm: norm_of([Norms::Before, Norms::Around]),
            post_attention_layernorm: norm(),
            pre_feedforward_layernorm: norm_of([Norms::Around; 2]),
            post_feedforward_layernorm: norm_of([Norms::After, Norms::Around]),
            multiplier: config.multipliers().residual,
        }
    }

    fn forward(&self, stream: ResidualStream, rows: &Rows, cache: Option<(&mut KvCache, usize)>) -> ResidualStream {
        let stored = rows.stored;
        let (x, normed) = stream.normed(self.input_layernorm.as_ref(), stored);
        let attended = match (&self.self_attn, &self.linear_attn) {
            (Some(attention), _) => attention.forward(normed, rows, cache),
            (None, recurrence) => recurrence.as_ref().expect("attention or a recurrence").forward(normed, rows, cache),
        };
        let Some(last) = &self.post_feedforward_layernorm else {
            let (x, normed) = self.post_attention_layernorm.after(x, Some((attended, self.multiplier)), stored);
            return ResidualStream { x, part: Some((self.mlp.forward(normed, rows), self.multiplier)) };
        };
        let attended = self.post_attention_layernorm.forward(attended);
        let stream = ResidualStream { x, part: Some((attended, self.multiplier)) };
        let (x, normed) = stream.normed(self.pre_feedforward_layernorm.as_ref(), stored);
        ResidualStream { x, part: Some((last.forward(self.mlp.forward(normed, rows)), self.multiplier)) }
    }
}

/// The residual stream, and the pending output of the last part with its factor. The next norm adds the two.
struct ResidualStream {
    x: Tensor<2>,
    part: Option<(Tensor<2>, f64)>,
}

impl ResidualStream {
    fn new(x: Tensor<2>) -> Self {
        Self { x, part: None }
    }

    /// Return the sum and its norm; the sum twice if there is no norm.
    fn normed(self, norm: Option<&RmsNorm>, stored: Option<FloatDType>) -> (Tensor<2>, Tensor<2>) {
        match norm {
            Some(norm) => norm.after(self.x, self.part, stored),
            None => {
                let x = self.sum();
                (x.clone(), x)
            }
        }
    }

    fn sum(self) -> Tensor<2> {
        match self.part {
            None => self.x,
            Some((part, factor)) => self.x + times(part, factor),
        }
    }
}

/// Return `x · factor`; no operation for 1.
fn times(x: Tensor<2>, factor: f64) -> Tensor<2> {
    if factor == 1.0 { x } else { x.mul_scalar(factor) }
}

/// Maximum logits (elements) held at a time in a pass over many rows: 128 MiB.
pub(crate) const LOGITS: usize = 32 << 20;
/// Multiple of [`LOGITS`] held on a GPU, whose matrix products need about a thousand rows rather than two hundred.
const GPU_MULTIPLE: usize = 8;

impl CausalLm {
    /// Create the structure only; [`super::load`] and [`CausalLm::random`] set its weights.
    ///
    /// # Panics
    /// When the configuration has [mistakes](ModelConfig::mistakes).
    pub(super) fn new(config: &ModelConfig, precision: Precision, device: &Device) -> Self {
        let ropes = Rope::kinds(config).unwrap_or_else(|problems| panic!("{}", problems.join("; ")));
        let windows = (0..config.num_hidden_layers).any(|layer| config.window(layer).is_some());
        let other = config.delta().is_some() || config.has_output_gate();
        let decodes_on_gpu = !windows && !other && ropes.len() == 1 && ropes[0].rotates_all(config.head_dim());
        Self {
            model: Decoder {
                embed_tokens: EmbeddingConfig::new(config.vocab_size, config.hidden_size).init(device),
                layers: (0..config.num_hidden_layers).map(|index| Layer::new(config, index, device)).collect(),
                norm: RmsNorm::new(config, config.hidden_size, device),
            },
            lm_head: (!config.tie_word_embeddings)
                .then(|| LinearConfig::new(config.hidden_size, config.vocab_size).with_bias(false).init(device)),
            ropes,
            precision,
            multipliers: config.multipliers(),
            decodes_on_gpu,
        }
    }

    /// Return the model for generation: without autodiff (a recorded graph would never be freed), matrices in the
    /// precision of their products, adapters merged. On the `cpu` device adapters stay separate from a 16-bit base: the
    /// base keeps its size, and the products are the same as in training.
    pub fn for_inference(&self) -> Self {
        let model = self.valid();
        let apart = ops::is_host(&model.device()) && lora::has_16_bit_base(&model);
        let model = if apart { model } else { lora::merge(model) };
        if self.precision.is_short() { params::cast(model, self.precision.dtype()) } else { model }
    }

    /// Return the same weights, with products in another precision.
    pub(crate) fn in_precision(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
    }

    /// Compute the hidden states after the final norm, one row per token, for packed sequences.
    ///
    /// Without a cache every sequence starts at position 0. With a cache the sequences are the ones announced with
    /// [`KvCache::read`] or [`KvCache::step`]; call these forms on [`CausalLm::for_inference`].
    ///
    /// # Shapes
    /// - tokens: all sequences end to end, `lengths` their lengths
    /// - output: `[tokens, hidden]`
    ///
    /// # Panics
    /// When `lengths` do not add up to the number of tokens, or other tokens were announced to the cache.
    pub fn forward(&self, tokens: &[u32], lengths: &[usize], cache: Option<&mut KvCache>) -> Tensor<2> {
        self.forward_ids(ids(tokens, &self.device()), lengths, cache)
    }

    /// Same as [`Self::forward`], for tokens that are already on the device.
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
        let mut stream = ResidualStream::new(self.embed_ids(tokens));
        for (index, layer) in self.model.layers.iter().enumerate() {
            stream = layer.forward(stream, &rows, cache.as_deref_mut().map(|cache| (cache, index)));
        }
        self.finish(stream, rows.stored)
    }

    /// Return whether the announced pass is a decoding step whose state is kept on a GPU.
    fn decoding(&self, cache: &mut KvCache) -> bool {
        let device = self.device();
        let there = self.decodes_on_gpu && !device.is_autodiff();
        let Some(stored) = self.stored(&device).filter(|_| there) else { return false };
        let rotations = |positions| {
            let positions: Vec<usize> = (0..positions).collect();
            let [keys, queries] = self.ropes[0].tables(&positions, &[], &device);
            [queries, keys].map(|(cos, sin)| Tensor::cat(vec![cos, sin], 1))
        };
        cache.decoding(stored, rotations).is_some()
    }

    /// Return the format in which norms write operands of products on a GPU; `None` elsewhere: products convert.
    fn stored(&self, device: &Device) -> Option<FloatDType> {
        ops::is_gpu(device).then(|| self.precision.stored())
    }

    /// Apply the final norm to the output of the last block, and the divisor of the logits.
    fn finish(&self, stream: ResidualStream, stored: Option<FloatDType>) -> Tensor<2> {
        let (_, normed) = self.model.norm.after(stream.x, stream.part, stored);
        times(normed, 1.0 / self.multipliers.logits)
    }

    /// Build the inputs shared by all blocks of a pass; `positions` is `None` if the cache has the rotations.
    fn rows(&self, positions: Option<&[usize]>, lengths: &[usize]) -> Rows {
        let device = self.device();
        if !ops::is_host(&device) {
            shapes::note(lengths);
        }
        let tables = |positions| {
            let inner = device.clone().inner();
            self.ropes.iter().map(|rope| rope.tables(positions, lengths, &inner)).collect()
        };
        let rotary = positions.map(tables);
        Rows { lengths: lengths.to_vec(), rotary, precision: self.precision, stored: self.stored(&device) }
    }

    /// Build the inputs shared by all blocks of a pass over packed sequences that start at position 0.
    pub(crate) fn packed(&self, lengths: &[usize]) -> Rows {
        let positions: Vec<usize> = lengths.iter().flat_map(|&length| 0..length).collect();
        self.rows(Some(&positions), lengths)
    }

    /// Return the embedding of `tokens`, `[tokens, hidden]`.
    pub(crate) fn embed(&self, tokens: &[u32]) -> Tensor<2> {
        self.embed_ids(ids(tokens, &self.device()))
    }

    fn embed_ids(&self, tokens: Tensor<1, Int>) -> Tensor<2> {
        // Rounded to the stored precision: generation and training then read the same rows.
        let rows = self.model.embed_tokens.weight.val().select(0, tokens).cast(self.precision.stored());
        times(rows.cast(FloatDType::F32), self.multipliers.embedding)
    }

    /// Apply the blocks in `which`, one after another.
    ///
    /// # Shapes
    /// - x, output: `[tokens, hidden]`
    pub(crate) fn blocks(&self, which: Range<usize>, x: Tensor<2>, rows: &Rows) -> Tensor<2> {
        let stream =
            self.model.layers[which].iter().fold(ResidualStream::new(x), |x, layer| layer.forward(x, rows, None));
        stream.sum()
    }

    /// Apply the final norm and the head to the output of the last block.
    ///
    /// # Shapes
    /// - x: `[rows, hidden]`; output: `[rows, vocab]`
    pub(crate) fn head(&self, x: Tensor<2>) -> Tensor<2> {
        self.logits(self.finish(ResidualStream::new(x), self.stored(&self.device())))
    }

    /// Compute the logits of hidden states.
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

    /// Return the factor of the embedding rows.
    pub(crate) fn embedding_multiplier(&self) -> f64 {
        self.multipliers.embedding
    }

    /// Return the number of blocks.
    pub(crate) fn num_blocks(&self) -> usize {
        self.model.layers.len()
    }

    /// Return the vocabulary size.
    pub(crate) fn vocab_size(&self) -> usize {
        self.model.embed_tokens.weight.lazy_shape()[0]
    }

    /// Return the number of rows whose logits are computed at a time: at most `logits` elements, [`GPU_MULTIPLE`]
    /// times as many on a GPU, and at least one row.
    pub(crate) fn rows_at_once(&self, logits: usize) -> usize {
        let times = if ops::is_gpu(&self.device()) { GPU_MULTIPLE } else { 1 };
        (times * logits / self.vocab_size()).max(1)
    }

    /// Return the format of cached keys and values: on the `cpu` device bf16 if products use it, else f32.
    pub fn cache_format(&self) -> FloatDType {
        let short = self.precision == Precision::Bf16 && ops::is_host(&self.device());
        if short { FloatDType::BF16 } else { FloatDType::F32 }
    }

    /// Return the device of the weights.
    pub fn device(&self) -> Device {
        self.model.norm.weight.val().device()
    }
}
