//! Causal self-attention with grouped queries (GQA), with and without a cache.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};

use super::norm::RmsNorm;
use super::rope::Tables;
use super::{KvCache, ModelConfig, Precision};
use crate::ops;

/// `softmax(q kᵀ / √d) v` per head, over the past of the same sequence.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, `[hidden, heads · head_dim]`, or each head's query followed by an output gate (Qwen 3.5); `None` if
    /// fused.
    pub q_proj: Option<Linear>,
    /// Keys, `[hidden, kv_heads · head_dim]`.
    pub k_proj: Option<Linear>,
    /// Values, `[hidden, kv_heads · head_dim]`.
    pub v_proj: Option<Linear>,
    /// Fused queries, keys and values (Phi 3), `[hidden, (heads + 2 · kv_heads) · head_dim]`.
    pub qkv_proj: Option<Linear>,
    /// Output, `[heads · head_dim, hidden]`.
    pub o_proj: Linear,
    /// Norm of each query head (Qwen3, Gemma 3), or of all heads together (OLMo 2).
    pub q_norm: Option<RmsNorm>,
    /// Norm of each key head, or of all heads together.
    pub k_norm: Option<RmsNorm>,
    head_dim: usize,
    kv_heads: usize,
    gated: bool,
    /// Index of the rotation of queries and keys; `None` without rotary positions.
    rope: Option<usize>,
    /// Maximum number of tokens a query attends to.
    window: Option<usize>,
}

/// Inputs shared by all layers of a forward pass.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Sequence lengths; their sum is the number of rows.
    pub lengths: Vec<usize>,
    /// Rotary tables of keys and of queries, for each rotation of the model; `None` if the cache has them.
    pub rotary: Option<Vec<[Tables; 2]>>,
    /// Precision of matrix products.
    pub precision: Precision,
    /// Format in which norms and activations write the operands of products; `None` if products convert them.
    pub(super) stored: Option<FloatDType>,
}

impl Attention {
    pub(super) fn new(config: &ModelConfig, layer: usize, device: &Device) -> Self {
        let (hidden, dim) = (config.hidden_size, config.head_dim());
        let (bias, output_bias) = config.attention_biases();
        let projection = |input, output: usize, bias| LinearConfig::new(input, output).with_bias(bias).init(device);
        let (q, kv, fused) = (config.num_attention_heads * dim, config.num_key_value_heads * dim, config.is_fused());
        let separate = |output| (!fused).then(|| projection(hidden, output, bias));
        let norms = config.qk_norm_widths().map(|widths| widths.map(|width| RmsNorm::new(config, width, device)));
        let [q_norm, k_norm] = norms.map_or([None, None], |norms| norms.map(Some));
        Self {
            q_proj: separate(if config.has_output_gate() { 2 * q } else { q }),
            k_proj: separate(kv),
            v_proj: separate(kv),
            qkv_proj: fused.then(|| projection(hidden, q + 2 * kv, bias)),
            o_proj: projection(q, hidden, output_bias),
            q_norm,
            k_norm,
            head_dim: dim,
            kv_heads: config.num_key_value_heads,
            gated: config.has_output_gate(),
            rope: config.rope_of(layer),
            window: config.window(layer),
        }
    }

    /// Attend within each packed sequence; with a cache, also to the tokens read before.
    ///
    /// # Shapes
    /// - x, output: `[rows, hidden]`
    pub(super) fn forward(&self, x: Tensor<2>, rows: &Rows, cache: Option<(&mut KvCache, usize)>) -> Tensor<2> {
        let [n, _] = x.dims();
        let Some(rotations) = &rows.rotary else {
            return self.decode(x, rows, cache.expect("a cache that has the rotations"));
        };
        let heads = |x: Tensor<2>, norm: &Option<RmsNorm>| -> Tensor<3> {
            let x = norm.iter().fold(x, |x, norm| norm.parts(x));
            let [_, width] = x.dims();
            x.reshape([n, width / self.head_dim, self.head_dim])
        };
        let rotate = |x, which: usize| match self.rope.map(|rope| &rotations[rope][which]) {
            Some((cos, sin)) => ops::rotary(x, cos, sin),
            None => x,
        };
        // 1. Project (and normalise), 2. rotate.
        let [q, k, v] = match self.separate() {
            Some(layers) => layers.map(|layer| rows.precision.linear(layer, x.clone())),
            None => self.together(x, rows),
        };
        let (q, gate) = if self.gated { self.with_gate(q) } else { (q, None) };
        let (q, k) = (rotate(heads(q, &self.q_norm), 1), rotate(heads(k, &self.k_norm), 0));
        let v = heads(v, &None);
        let attend = |q, k, v| ops::attention(q, k, v, &rows.lengths, self.window, rows.precision.dtype());
        // 3. Attend: to the same sequence, or to the cache when decoding.
        let mixed = match cache {
            None => attend(q, k, v),
            Some((cache, layer)) => {
                cache.write(layer, k.clone(), v.clone());
                cache.attention(layer, q.clone()).unwrap_or_else(|| attend(q, k, v))
            }
        };
        // 4. Gate (Qwen 3.5) and project the output.
        let mixed = gate.into_iter().fold(mixed, |mixed, gate| mixed * sigmoid(gate));
        rows.precision.linear(&self.o_proj, mixed)
    }

    /// Split queries from the gates that follow them head by head.
    fn with_gate(&self, q: Tensor<2>) -> (Tensor<2>, Option<Tensor<2>>) {
        let ([rows, width], dim) = (q.dims(), self.head_dim);
        let both = q.reshape([rows, width / (2 * dim), 2 * dim]);
        let [q, gate] = [0, dim].map(|from| both.clone().narrow(2, from, dim).reshape([rows, width / 2]));
        (q, Some(gate))
    }

    /// Return the projections of queries, keys and values; `None` if they are fused.
    fn separate(&self) -> Option<[&Linear; 3]> {
        Some([self.q_proj.as_ref()?, self.k_proj.as_ref()?, self.v_proj.as_ref()?])
    }

    /// Compute queries, keys and values with the fused projection.
    fn together(&self, x: Tensor<2>, rows: &Rows) -> [Tensor<2>; 3] {
        let layer = self.qkv_proj.as_ref().expect("one projection or three");
        let x = rows.precision.linear(layer, x);
        let ([_, width], kv) = (x.dims(), self.kv_heads * self.head_dim);
        let q = width - 2 * kv;
        [(0, q), (q, kv), (q + kv, kv)].map(|(from, width)| x.clone().narrow(1, from, width))
    }

    /// Same as [`Self::forward`] for one new token per sequence on a GPU. Steps 2 and 3 are one operation of the cache,
    /// which also adds the biases unless a norm comes in between.
    fn decode(&self, x: Tensor<2>, rows: &Rows, (cache, layer): (&mut KvCache, usize)) -> Tensor<2> {
        let (projections, biases) = match self.separate() {
            None => (self.together(x, rows), None),
            Some(layers) => {
                let biased = layers.iter().filter(|layer| layer.bias.is_some()).count();
                let later = biased == layers.len() && self.q_norm.is_none();
                let projections = if later || biased == 0 {
                    rows.precision.products(layers, x)
                } else {
                    layers.map(|layer| rows.precision.linear(layer, x.clone()))
                };
                (projections, later.then(|| layers.map(|layer| layer.bias.as_ref().expect("all have one").val())))
            }
        };
        let [q, k, v] = projections;
        let normed = |x, norm: &Option<RmsNorm>| norm.iter().fold(x, |x, norm| norm.parts(x));
        let projections = [normed(q, &self.q_norm), normed(k, &self.k_norm), v];
        let mixed = cache.attend(layer, projections, biases, self.rope.is_some(), self.head_dim);
        rows.precision.linear(&self.o_proj, mixed)
    }
}

/// Copy token ids to `device`.
pub(crate) fn ids(tokens: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    ops::to_device(TensorData::from(ids.as_slice()), device)
}
