//! Keys and values of what has been read, one pre-allocated pair of tensors per layer.
//!
//! Slots `0..width` hold the prompts, right-padded to the longest; decoded tokens of all rows share the slots after
//! them. So every write is one contiguous slice for the whole batch, and what separates a short prompt from its first
//! decoded token is a gap that attention never looks at.

use burn::tensor::{Device, Int, Tensor, TensorData};

use super::ModelConfig;

/// The keys and values of a batch of sequences.
#[derive(Debug, Clone)]
pub struct KvCache {
    /// Per layer, keys and values of shape `[batch, kv_heads, capacity, head_dim]`.
    pub(super) layers: Vec<(Tensor<4>, Tensor<4>)>,
    /// Prompt length of each row; until [`Self::start_decoding`] all equal to what was written.
    prompts: Vec<usize>,
    /// Slots set aside for prompts.
    width: usize,
    /// Slots written so far, prompt padding included.
    written: usize,
    capacity: usize,
}

impl KvCache {
    /// Room for `batch` sequences of `capacity` tokens each, on a device without autodiff.
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        let shape = [batch, config.num_key_value_heads, capacity, config.head_dim()];
        let layers = (0..config.num_hidden_layers)
            .map(|_| (Tensor::zeros(shape, device), Tensor::zeros(shape, device)))
            .collect();
        Self { layers, prompts: vec![0; batch], width: 0, written: 0, capacity }
    }

    /// Bytes held for `batch` sequences of `capacity` tokens in f32.
    pub fn bytes(config: &ModelConfig, batch: usize, capacity: usize) -> usize {
        2 * 4 * config.num_hidden_layers * batch * config.num_key_value_heads * capacity * config.head_dim()
    }

    /// Ends the reading of prompts: row `r` holds `lengths[r]` tokens, the rest of what was written is padding.
    pub fn start_decoding(&mut self, lengths: &[usize]) {
        assert_eq!(lengths.len(), self.prompts.len(), "one length per row");
        self.prompts = lengths.to_vec();
        self.width = self.written;
    }

    /// Keeps the given rows, in the given order; a row may be taken several times (a group sharing its prompt).
    pub fn select(&mut self, rows: &[usize], device: &Device) {
        let indices: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let indices = Tensor::<1, Int>::from_data(TensorData::from(indices.as_slice()), device);
        for (k, v) in &mut self.layers {
            k.inplace(|k| k.select(0, indices.clone()));
            v.inplace(|v| v.select(0, indices.clone()));
        }
        self.prompts = rows.iter().map(|&row| self.prompts[row]).collect();
    }

    /// Makes room for `extra` more tokens per row.
    pub fn reserve(&mut self, extra: usize) {
        let capacity = self.written + extra;
        if capacity <= self.capacity {
            return;
        }
        let written = self.written;
        for side in self.layers.iter_mut().flat_map(|(k, v)| [k, v]) {
            side.inplace(|old| {
                let [batch, heads, _, dim] = old.dims();
                let grown = Tensor::zeros([batch, heads, capacity, dim], &old.device());
                grown.slice_assign(
                    [0..batch, 0..heads, 0..written, 0..dim],
                    old.slice([0..batch, 0..heads, 0..written, 0..dim]),
                )
            });
        }
        self.capacity = capacity;
    }

    /// Slots in use once `new` more tokens are written.
    ///
    /// # Panics
    /// When the cache is too small: the caller reserves enough.
    pub(super) fn advance(&mut self, new: usize) -> std::ops::Range<usize> {
        let range = self.written..self.written + new;
        assert!(range.end <= self.capacity, "cache of {} slots asked for {}", self.capacity, range.end);
        self.written = range.end;
        range
    }

    /// Position of the next token of every row.
    pub(super) fn positions(&self) -> Vec<usize> {
        self.prompts.iter().map(|&prompt| prompt + self.written - self.width).collect()
    }

    /// Whether prompts are still being read.
    pub(super) fn is_reading(&self) -> bool {
        self.width == 0
    }

    /// Slots written so far, prompt padding included.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.prompts.len()
    }

    /// Prompt length of every row and the number of slots set aside for prompts.
    pub(super) fn layout(&self) -> (&[usize], usize) {
        (&self.prompts, self.width)
    }
}
