//! Causal self-attention with grouped queries, with and without a cache.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{KvCache, ModelConfig};
use crate::ops;

/// `softmax(q kᵀ / √d) v` per head, over the sequence's own past.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, `[hidden, heads · head_dim]`, with bias.
    pub q_proj: Linear,
    /// Keys, `[hidden, kv_heads · head_dim]`, with bias.
    pub k_proj: Linear,
    /// Values, `[hidden, kv_heads · head_dim]`, with bias.
    pub v_proj: Linear,
    /// Output, `[heads · head_dim, hidden]`, without bias.
    pub o_proj: Linear,
    head_dim: usize,
}

/// What every layer of one forward pass shares: where each row sits in its sequence.
#[derive(Debug)]
pub(super) struct Rows {
    /// Sequence lengths; their sum is the number of rows.
    pub lengths: Vec<usize>,
    /// Rotary cosines and sines, `[rows, head_dim / 2]`.
    pub rotary: (Tensor<2>, Tensor<2>),
}

impl Rows {
    /// Rows at the given positions. Frequencies are `theta^(-2i/d)`, as in RoFormer (arXiv 2104.09864).
    pub(super) fn new(lengths: Vec<usize>, positions: &[usize], config: &RotaryConfig, device: &Device) -> Self {
        let half = config.head_dim / 2;
        let frequency = |i: usize| 1.0 / (config.theta as f32).powf((2 * i) as f32 / config.head_dim as f32);
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angles = || positions.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f));
        let table = |values: Vec<f32>| Tensor::from_data(TensorData::new(values, [positions.len(), half]), device);
        Self { lengths, rotary: (table(angles().map(f32::cos).collect()), table(angles().map(f32::sin).collect())) }
    }
}

/// The two numbers rotary embeddings need.
#[derive(Debug, Clone, Copy)]
pub(super) struct RotaryConfig {
    pub theta: f64,
    pub head_dim: usize,
}

impl Attention {
    /// Width of one head.
    pub(super) fn head_dim(&self) -> usize {
        self.head_dim
    }

    pub(super) fn new(config: &ModelConfig, device: &Device) -> Self {
        let (hidden, dim) = (config.hidden_size, config.head_dim());
        let projection =
            |input, heads_out: usize, bias| LinearConfig::new(input, heads_out).with_bias(bias).init(device);
        Self {
            q_proj: projection(hidden, config.num_attention_heads * dim, true),
            k_proj: projection(hidden, config.num_key_value_heads * dim, true),
            v_proj: projection(hidden, config.num_key_value_heads * dim, true),
            o_proj: projection(config.num_attention_heads * dim, hidden, false),
            head_dim: dim,
        }
    }

    /// Attends within each sequence of the packed rows; with a cache, also to what was read before.
    ///
    /// # Shapes
    /// - x, output: `[rows, hidden]`
    pub(super) fn forward(&self, x: Tensor<2>, rows: &Rows, cache: Option<(&mut KvCache, usize)>) -> Tensor<2> {
        let [n, _] = x.dims();
        let heads = |x: Tensor<2>| {
            let [_, width] = x.dims();
            x.reshape([n, width / self.head_dim, self.head_dim])
        };
        let (cos, sin) = &rows.rotary;
        // 1. Project, 2. rotate.
        let q = ops::rotary(heads(self.q_proj.forward(x.clone())), cos, sin);
        let k = ops::rotary(heads(self.k_proj.forward(x.clone())), cos, sin);
        let v = heads(self.v_proj.forward(x));
        // 3. Attend: to the own sequence, or to the cache when decoding.
        let mixed = match cache {
            None => ops::attention(q, k, v, &rows.lengths),
            Some((cache, layer)) => {
                cache.write(layer, k.clone(), v.clone());
                cache.attention(layer, q.clone()).unwrap_or_else(|| ops::attention(q, k, v, &rows.lengths))
            }
        };
        // 4. Mix the heads.
        self.o_proj.forward(mixed)
    }
}

/// Token ids as a device tensor.
pub(super) fn ids(tokens: &[u32], device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    Tensor::from_data(TensorData::from(ids.as_slice()), device)
}
