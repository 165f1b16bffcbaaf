//! Causal self-attention with grouped queries, with and without a cache.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};

use super::norm::RmsNorm;
use super::{KvCache, ModelConfig, Precision};
use crate::ops;

/// `softmax(q kᵀ / √d) v` per head, over the sequence's own past.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, `[hidden, heads · head_dim]`.
    pub q_proj: Linear,
    /// Keys, `[hidden, kv_heads · head_dim]`.
    pub k_proj: Linear,
    /// Values, `[hidden, kv_heads · head_dim]`.
    pub v_proj: Linear,
    /// Output, `[heads · head_dim, hidden]`.
    pub o_proj: Linear,
    /// Norm of each head's query (Qwen3).
    pub q_norm: Option<RmsNorm>,
    /// Norm of each head's key (Qwen3).
    pub k_norm: Option<RmsNorm>,
    head_dim: usize,
    /// Whether queries and keys are rotated by their positions.
    rotates: bool,
    /// How many tokens a query sees at most.
    window: Option<usize>,
}

/// What every layer of one forward pass shares.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Sequence lengths; their sum is the number of rows.
    pub lengths: Vec<usize>,
    /// Rotary cosines and sines, `[rows, head_dim / 2]`, of keys and of queries; none where the cache has them.
    pub rotary: Option<[(Tensor<2>, Tensor<2>); 2]>,
    /// What matrix products are computed in.
    pub precision: Precision,
    /// What [`Rows::stored`] gives while nothing is recorded.
    pub(super) stored: Option<FloatDType>,
}

impl Rows {
    /// The format in which norms and activations hand their results to products; none where those convert them, as they do
    /// where gradients are recorded.
    pub(super) fn stored(&self, x: &Tensor<2>) -> Option<FloatDType> {
        self.stored.filter(|_| !x.device().is_autodiff())
    }
}

impl Attention {
    pub(super) fn new(config: &ModelConfig, layer: usize, device: &Device) -> Self {
        let (hidden, dim) = (config.hidden_size, config.head_dim());
        let (bias, output_bias) = config.attention_biases();
        let projection = |input, output: usize, bias| LinearConfig::new(input, output).with_bias(bias).init(device);
        let head_norm = || config.has_qk_norm().then(|| RmsNorm::new(dim, config.rms_norm_eps, device));
        Self {
            q_proj: projection(hidden, config.num_attention_heads * dim, bias),
            k_proj: projection(hidden, config.num_key_value_heads * dim, bias),
            v_proj: projection(hidden, config.num_key_value_heads * dim, bias),
            o_proj: projection(config.num_attention_heads * dim, hidden, output_bias),
            q_norm: head_norm(),
            k_norm: head_norm(),
            head_dim: dim,
            rotates: config.rotates(layer),
            window: config.window(layer),
        }
    }

    /// Attends within each sequence of the packed rows; with a cache, also to what was read before.
    ///
    /// # Shapes
    /// - x, output: `[rows, hidden]`
    pub(super) fn forward(&self, x: Tensor<2>, rows: &Rows, cache: Option<(&mut KvCache, usize)>) -> Tensor<2> {
        let [n, _] = x.dims();
        let dim = self.head_dim;
        let project = |layer: &Linear, norm: &Option<RmsNorm>, x: Tensor<2>| -> Tensor<3> {
            let x = rows.precision.linear(layer, x);
            let heads = x.dims()[1] / dim;
            match norm {
                Some(norm) => norm.forward(x.reshape([n * heads, dim])).reshape([n, heads, dim]),
                None => x.reshape([n, heads, dim]),
            }
        };
        let Some([of_keys, of_queries]) = &rows.rotary else {
            return self.decode(x, rows, cache.expect("a cache that has the rotations"));
        };
        let rotate = |x, (cos, sin): &(Tensor<2>, Tensor<2>)| if self.rotates { ops::rotary(x, cos, sin) } else { x };
        // 1. Project (and normalise), 2. rotate.
        let q = rotate(project(&self.q_proj, &self.q_norm, x.clone()), of_queries);
        let k = rotate(project(&self.k_proj, &self.k_norm, x.clone()), of_keys);
        let v = project(&self.v_proj, &None, x);
        // 3. Attend: to the own sequence, or to the cache when decoding.
        let mixed = match cache {
            None => ops::attention(q, k, v, &rows.lengths, self.window),
            Some((cache, layer)) => {
                cache.write(layer, k.clone(), v.clone());
                let whole = |q| ops::attention(q, k, v, &rows.lengths, self.window);
                cache.attention(layer, q).unwrap_or_else(whole)
            }
        };
        // 4. Mix the heads.
        rows.precision.linear(&self.o_proj, mixed)
    }

    /// [`Self::forward`] of one new token per sequence, on a GPU: 2 and 3 are one step of the cache, which adds biases, too,
    /// unless a norm comes between.
    fn decode(&self, x: Tensor<2>, rows: &Rows, (cache, layer): (&mut KvCache, usize)) -> Tensor<2> {
        let norms = [&self.q_norm, &self.k_norm, &None];
        let layers = [&self.q_proj, &self.k_proj, &self.v_proj];
        let biased = layers.iter().filter(|layer| layer.bias.is_some()).count();
        let later = biased == layers.len() && self.q_norm.is_none();
        let projections = if later || biased == 0 {
            rows.precision.products(layers, x)
        } else {
            layers.map(|layer| rows.precision.linear(layer, x.clone()))
        };
        let mut norms = norms.into_iter();
        let projections = projections.map(|x| {
            let [n, width] = x.dims();
            let head = |norm: &RmsNorm| norm.forward(x.clone().reshape([n * width / self.head_dim, self.head_dim]));
            let norm = norms.next().and_then(Option::as_ref);
            norm.map_or(x.clone(), |norm| head(norm).reshape([n, width]))
        });
        let biases = later.then(|| layers.map(|layer| layer.bias.as_ref().expect("all have one").val()));
        let mixed = cache.attend(layer, projections, biases, self.rotates, self.head_dim);
        rows.precision.linear(&self.o_proj, mixed)
    }
}

/// Token ids as a device tensor.
pub(crate) fn ids(tokens: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    ops::to_device(TensorData::from(ids.as_slice()), device)
}
