//! The decoder: embedding, blocks of attention and SwiGLU, norm, head.
//!
//! Sequences are *packed*: one forward pass takes the tokens of all sequences end to end, `[rows, hidden]`, and a list
//! of lengths. No row is padding, and every product is one large matrix product.

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

/// `down(silu(gate(x)) · up(x))`, SwiGLU, or with another activation of the gate (arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[hidden, intermediate]`; none where the two are one.
    pub gate_proj: Option<Linear>,
    /// `[hidden, intermediate]`.
    pub up_proj: Option<Linear>,
    /// Gate and up as one matrix (Phi 3), `[hidden, 2 · intermediate]`.
    pub gate_up_proj: Option<Linear>,
    /// `[intermediate, hidden]`.
    pub down_proj: Linear,
    /// Whether the gate's activation is Gemma's.
    gelu: bool,
}

/// One block: attention (or a recurrence) and a gated feed-forward part, each normalised before or after or both, and added.
#[derive(Module, Debug)]
pub struct Layer {
    /// Causal self-attention; none where the layer has a recurrence.
    pub self_attn: Option<Attention>,
    /// The recurrence in its place.
    pub linear_attn: Option<GatedDeltaNet>,
    /// Feed-forward part.
    pub mlp: Mlp,
    /// Norm before attention.
    pub input_layernorm: Option<RmsNorm>,
    /// Norm before the feed-forward part or, where that has one after it, after attention.
    pub post_attention_layernorm: RmsNorm,
    /// Norm before the feed-forward part where there are norms after both parts, too.
    pub pre_feedforward_layernorm: Option<RmsNorm>,
    /// Norm after the feed-forward part.
    pub post_feedforward_layernorm: Option<RmsNorm>,
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
    ropes: Vec<Rope>,
    #[module(skip)]
    precision: Precision,
    #[module(skip)]
    multipliers: Multipliers,
    /// Whether a GPU has the kernels that keep the state of decoding: not with windows, several rotations or parts of heads.
    #[module(skip)]
    decodes_there: bool,
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

    fn forward(&self, stream: Stream, rows: &Rows, cache: Option<(&mut KvCache, usize)>) -> Stream {
        let stored = rows.stored;
        let (x, normed) = stream.normed(self.input_layernorm.as_ref(), stored);
        let attended = match (&self.self_attn, &self.linear_attn) {
            (Some(attention), _) => attention.forward(normed, rows, cache),
            (None, recurrence) => recurrence.as_ref().expect("attention or a recurrence").forward(normed, rows, cache),
        };
        let Some(last) = &self.post_feedforward_layernorm else {
            let (x, normed) = self.post_attention_layernorm.after(x, Some((attended, self.multiplier)), stored);
            return Stream { x, part: Some((self.mlp.forward(normed, rows), self.multiplier)) };
        };
        let attended = self.post_attention_layernorm.forward(attended);
        let stream = Stream { x, part: Some((attended, self.multiplier)) };
        let (x, normed) = stream.normed(self.pre_feedforward_layernorm.as_ref(), stored);
        Stream { x, part: Some((last.forward(self.mlp.forward(normed, rows)), self.multiplier)) }
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

    /// The sum, and its norm; twice the sum without one.
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
        let ropes = Rope::kinds(config).unwrap_or_else(|problems| panic!("{}", problems.join("; ")));
        let windows = (0..config.num_hidden_layers).any(|layer| config.window(layer).is_some());
        let other = config.delta().is_some() || config.has_output_gate();
        let decodes_there = !windows && !other && ropes.len() == 1 && ropes[0].rotates_all(config.head_dim());
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
            decodes_there,
        }
    }

    /// The model as generation wants it: without autodiff (a recorded graph would never be freed), matrices in the precision
    /// they are multiplied in, adapters merged; but on the `cpu` device they stay beside a base in 16 bits, which so keeps
    /// its size, and its products are those of training.
    pub fn for_inference(&self) -> Self {
        let model = self.valid();
        let apart = ops::is_host(&model.device()) && lora::beside_short_base(&model);
        let model = if apart { model } else { lora::merge(model) };
        if self.precision.is_short() { params::cast(model, self.precision.dtype()) } else { model }
    }

    /// The same weights, with products in another precision.
    pub(crate) fn in_precision(&self, precision: Precision) -> Self {
        Self { precision, ..self.clone() }
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
        let there = self.decodes_there && !device.is_autodiff();
        let Some(stored) = self.stored(&device).filter(|_| there) else { return false };
        let rotations = |positions| {
            let positions: Vec<usize> = (0..positions).collect();
            let [keys, queries] = self.ropes[0].tables(&positions, &[], &device);
            [queries, keys].map(|(cos, sin)| Tensor::cat(vec![cos, sin], 1))
        };
        cache.decoding(stored, rotations).is_some()
    }

    /// The format of what products read, where norms write it themselves: on a GPU.
    fn stored(&self, device: &Device) -> Option<FloatDType> {
        ops::is_gpu(device).then(|| self.precision.stored())
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
        let tables = |positions| {
            let inner = device.clone().inner();
            self.ropes.iter().map(|rope| rope.tables(positions, lengths, &inner)).collect()
        };
        let rotary = positions.map(tables);
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
        // Rounded as the matrix is where it is held in the precision: what samples reads the same rows as what is trained.
        let rows = self.model.embed_tokens.weight.val().select(0, tokens).cast(self.precision.stored());
        times(rows.cast(FloatDType::F32), self.multipliers.embedding)
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

    /// What keys and values may be kept in: on the `cpu` device the format of products, else f32.
    pub fn cache_format(&self) -> FloatDType {
        let short = self.precision == Precision::Bf16 && ops::is_host(&self.device());
        if short { FloatDType::BF16 } else { FloatDType::F32 }
    }

    /// The device the weights are on.
    pub fn device(&self) -> Device {
        self.model.norm.weight.val().device()
    }
}
