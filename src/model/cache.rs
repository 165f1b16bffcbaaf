//! KV cache: one pre-allocated pair of tables per layer. A layer with a recurrence keeps its state instead.
//!
//! A table has one row per token. Its first part is divided into *prompt slots*, the rest into *completion slots*. A
//! prompt is stored once and shared by the completions of its group. Each completion has a slot of its own, which is
//! reused when it ends. A new token therefore attends to two contiguous runs of rows, nothing is ever moved, and the
//! memory is known in advance.

use std::ops::Range;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};

use super::ModelConfig;
use super::states::{self, States};
use crate::ops::delta::{DeltaHeads, DeltaInputs, StateMove};
use crate::ops::{self, CacheCall, Decoding, Span};

/// Number of sequences in a cache and their maximum lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Number of prompts held at a time.
    pub prompts: usize,
    /// Maximum prompt length, in tokens.
    pub prompt_length: usize,
    /// Number of completions decoded at a time.
    pub completions: usize,
    /// Maximum completion length, in tokens.
    pub completion_length: usize,
}

impl CacheShape {
    /// Return the number of rows of each table, without the row for padding.
    pub fn tokens(&self) -> usize {
        self.prompts * self.prompt_length + self.completions * self.completion_length
    }

    /// Return the number of tokens whose f32 keys and values take as much memory as the cache with its states.
    pub fn tokens_worth(&self, config: &ModelConfig) -> usize {
        self.tokens() + self.state_bytes(config).div_ceil(token_bytes(config, 4).max(1))
    }

    /// Return the memory of the whole cache in bytes: keys and values of every attention layer with `number` bytes per
    /// element, and the f32 recurrent states of every sequence.
    pub fn bytes(&self, config: &ModelConfig, number: usize) -> usize {
        token_bytes(config, number) * self.tokens() + self.state_bytes(config)
    }

    fn state_bytes(&self, config: &ModelConfig) -> usize {
        4 * recurrent(config) * self.slots() * states::numbers(config).iter().sum::<usize>()
    }

    /// Return the number of rows of a state table: one per slot, and one for padding.
    fn slots(&self) -> usize {
        self.prompts + self.completions + 1
    }

    fn prompt(&self, slot: usize) -> usize {
        slot * self.prompt_length
    }

    fn completion(&self, slot: usize) -> usize {
        self.prompts * self.prompt_length + slot * self.completion_length
    }
}

/// Return the number of layers with a recurrence.
fn recurrent(config: &ModelConfig) -> usize {
    (0..config.num_hidden_layers).filter(|&layer| config.is_recurrent(layer)).count()
}

/// Return the bytes of a token's keys and values, with `number` bytes per element.
fn token_bytes(config: &ModelConfig, number: usize) -> usize {
    let attending = config.num_hidden_layers - recurrent(config);
    2 * number * attending * config.num_key_value_heads * config.head_dim()
}

/// A completion slot in use.
#[derive(Debug, Clone, Copy, Default)]
struct CompletionSlot {
    prompt: usize,
    decoded: usize,
}

/// The cache of one layer.
#[derive(Debug)]
enum LayerCache {
    /// Keys and values, `[tokens, kv_heads · head_dim]` each.
    Attention(Tensor<2>, Tensor<2>),
    Recurrence(States),
}

/// The KV cache of a batch of sequences; layers with a recurrence have their state in it instead.
///
/// Announce the tokens of each forward pass with [`KvCache::read`] or [`KvCache::step`].
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    shape: CacheShape,
    /// Length of the prompt in each prompt slot.
    prompts: Vec<usize>,
    completions: Vec<CompletionSlot>,
    /// Positions of the announced tokens in their sequences.
    positions: Vec<usize>,
    call: CacheCall,
    /// Source and target row of each sequence of the announced pass, in the state tables.
    moves: Vec<StateMove>,
    /// Attention window of each layer, and the rows that the new tokens of a step attend to for each distinct window.
    windows: Vec<Option<usize>>,
    within: Vec<(usize, CacheCall)>,
    /// The announced step as prepared for a GPU; `None` until the model asks for it.
    decoding: Option<Decoding>,
}

impl KvCache {
    /// Create an empty cache without autodiff, in f32 or [`cache_format`](super::CausalLm::cache_format).
    pub fn new(config: &ModelConfig, shape: CacheShape, format: FloatDType, device: &Device) -> Self {
        // The last row is for padding tokens.
        let size = [shape.tokens() + 1, config.num_key_value_heads * config.head_dim()];
        let table = || ops::zeros(size[0] * size[1], format, device).reshape(size);
        let layer = |layer| match config.is_recurrent(layer) {
            true => LayerCache::Recurrence(States::new(config, shape.slots(), device)),
            false => LayerCache::Attention(table(), table()),
        };
        let layers = (0..config.num_hidden_layers).map(layer).collect();
        Self {
            layers,
            shape,
            prompts: vec![0; shape.prompts],
            completions: vec![CompletionSlot::default(); shape.completions],
            positions: Vec::new(),
            call: CacheCall::default(),
            moves: Vec::new(),
            windows: (0..config.num_hidden_layers).map(|layer| config.window(layer)).collect(),
            within: Vec::new(),
            decoding: None,
        }
    }

    /// Announce a pass over whole prompts, `(slot, length)` each.
    ///
    /// # Panics
    /// When a prompt is longer than its slot.
    pub fn read(&mut self, prompts: &[(usize, usize)]) {
        let mut writes = Vec::new();
        self.positions.clear();
        self.moves.clear();
        for &(slot, length) in prompts {
            assert!(length <= self.shape.prompt_length, "{length} tokens in a slot of {}", self.shape.prompt_length);
            self.prompts[slot] = length;
            self.moves.push(StateMove { from: None, to: slot });
            self.positions.extend(0..length);
            writes.extend(self.shape.prompt(slot)..self.shape.prompt(slot) + length);
        }
        self.call = CacheCall::new(writes, Vec::new());
    }

    /// Assign a completion slot to a new completion of the prompt in slot `prompt`.
    pub fn start(&mut self, slot: usize, prompt: usize) {
        self.completions[slot] = CompletionSlot { prompt, decoded: 0 };
    }

    /// Announce a pass over one token per completion slot in `slots`, padded to `rows` tokens with unused results.
    ///
    /// # Panics
    /// When a completion has filled its slot, or there are more slots than rows.
    pub fn step(&mut self, slots: &[usize], rows: usize) {
        assert!(slots.len() <= rows, "{} slots in {rows} rows", slots.len());
        let (mut writes, mut spans) = (Vec::with_capacity(slots.len()), Vec::with_capacity(slots.len()));
        self.positions.clear();
        self.moves.clear();
        for &slot in slots {
            let CompletionSlot { prompt, decoded } = &mut self.completions[slot];
            assert!(*decoded < self.shape.completion_length, "a slot of {decoded} tokens is full");
            let (first, length) = (self.shape.prompt(*prompt), self.prompts[*prompt]);
            let own = self.shape.completion(slot);
            self.positions.push(length + *decoded);
            let row = self.shape.prompts + slot;
            self.moves.push(StateMove { from: Some(if *decoded == 0 { *prompt } else { row }), to: row });
            writes.push(own + *decoded);
            *decoded += 1;
            spans.push([first..first + length, own..own + *decoded]);
        }
        let spare = self.shape.tokens();
        self.positions.resize(rows, 0);
        writes.resize(rows, spare);
        spans.resize(rows, [spare..spare, spare..spare + 1]);
        let row = self.shape.prompts + self.shape.completions;
        self.moves.resize(rows, StateMove { from: Some(row), to: row });
        self.within = distinct(&self.windows)
            .map(|window| (window, CacheCall::new(Vec::new(), spans.iter().map(|span| last(span, window)).collect())))
            .collect();
        self.call = CacheCall::new(writes, spans);
        self.upload_states();
    }

    /// Announce the same step again, for tokens sampled and counted on the device: only the host's counts advance.
    pub(crate) fn step_on_device(&mut self, slots: &[usize]) {
        assert!(self.decoding.is_some(), "a step that was announced by `step` and taken");
        for &slot in slots {
            let CompletionSlot { decoded, .. } = &mut self.completions[slot];
            assert!(*decoded < self.shape.completion_length, "a slot of {decoded} tokens is full");
            *decoded += 1;
        }
    }

    /// Upload the states of the announced step; the rotation tables stay.
    fn upload_states(&mut self) {
        if let Some(decoding) = &mut self.decoding {
            decoding.states = states(self.call.spans(), &decoding.states.device());
        }
    }

    /// Return the announced step on a GPU; `None` for a pass over prompts. `rotations` takes the number of positions.
    pub(super) fn decoding(
        &mut self,
        stored: FloatDType,
        rotations: impl FnOnce(usize) -> [Tensor<2>; 2],
    ) -> Option<&Decoding> {
        if self.call.spans().is_empty() {
            return None;
        }
        if self.decoding.is_none() {
            let angles = rotations(self.shape.prompt_length + self.shape.completion_length);
            let states = states(self.call.spans(), &angles[0].device());
            self.decoding = Some(Decoding { states, angles, stored });
        }
        self.decoding.as_ref()
    }

    /// Return the state of each row of the announced step, if it is on a GPU.
    pub(crate) fn states(&self) -> Option<Tensor<2, Int>> {
        self.decoding.as_ref().map(|decoding| decoding.states.clone())
    }

    /// Return the states of `rows` padding rows, as set by [`Self::step`].
    pub(crate) fn padding_states(&self, rows: usize) -> Option<Tensor<2, Int>> {
        let (decoding, spare) = (self.decoding.as_ref()?, self.shape.tokens());
        Some(states(&vec![[spare..spare, spare..spare + 1]; rows], &decoding.states.device()))
    }

    /// Make the announced step read its states from `states`, until the next step is announced.
    pub(crate) fn set_states(&mut self, states: Tensor<2, Int>) {
        if let Some(decoding) = &mut self.decoding {
            decoding.states = states;
        }
    }

    /// Apply [`ops::attend`] to the announced tokens.
    pub(super) fn attend(
        &self,
        layer: usize,
        projections: [Tensor<2>; 3],
        biases: Option<[Tensor<1>; 3]>,
        rotates: bool,
        dim: usize,
    ) -> Tensor<2> {
        let [keys, values] = self.tables(layer);
        let decoding = self.decoding.as_ref().expect("a step that the model has prepared");
        ops::attend(projections, biases, rotates, [keys, values], dim, decoding)
    }

    /// Return the keys and values of a layer.
    fn tables(&self, layer: usize) -> [&Tensor<2>; 2] {
        match &self.layers[layer] {
            LayerCache::Attention(keys, values) => [keys, values],
            LayerCache::Recurrence(_) => panic!("layer {layer} has no attention"),
        }
    }

    /// Return the state tables of a layer, and the moves between their rows in the announced pass.
    fn recurrence(&mut self, layer: usize) -> (&mut States, &[StateMove]) {
        match &mut self.layers[layer] {
            LayerCache::Recurrence(states) => (states, &self.moves),
            LayerCache::Attention(..) => panic!("layer {layer} has attention"),
        }
    }

    /// Apply [`ops::delta::causal_conv`] to the announced tokens.
    pub(super) fn convolve(&mut self, layer: usize, x: Tensor<2>, taps: Tensor<2>, lengths: &[usize]) -> Tensor<2> {
        let (states, moves) = self.recurrence(layer);
        states.convolve(x, taps, lengths, moves)
    }

    /// Apply [`ops::delta::delta_rule`] to the announced tokens.
    pub(super) fn recur(
        &mut self,
        layer: usize,
        inputs: DeltaInputs,
        lengths: &[usize],
        heads: DeltaHeads,
    ) -> Tensor<2> {
        let (states, moves) = self.recurrence(layer);
        states.recur(inputs, lengths, moves, heads)
    }

    /// Return the positions of the announced tokens.
    pub(super) fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Store the keys and values of the announced tokens.
    ///
    /// # Shapes
    /// - keys, values: `[tokens, kv_heads, head_dim]`
    pub(super) fn write(&mut self, layer: usize, keys: Tensor<3>, values: Tensor<3>) {
        let call = &self.call;
        let [tokens, heads, dim] = keys.dims();
        let flat = |x: Tensor<3>| x.reshape([tokens, heads * dim]);
        let LayerCache::Attention(stored_keys, stored_values) = &mut self.layers[layer] else {
            panic!("layer {layer} has no attention")
        };
        stored_keys.inplace(|table| ops::write_rows(table, flat(keys), call));
        stored_values.inplace(|table| ops::write_rows(table, flat(values), call));
    }

    /// Return the attention output of the announced tokens; `None` for a pass over prompts, which needs no cache.
    pub(super) fn attention(&self, layer: usize, q: Tensor<3>) -> Option<Tensor<2>> {
        if self.call.spans().is_empty() {
            return None;
        }
        let [keys, values] = self.tables(layer);
        let own = |window| self.within.iter().find(|(other, _)| *other == window).map(|(_, call)| call);
        Some(ops::attention_cached(q, keys, values, self.windows[layer].and_then(own).unwrap_or(&self.call)))
    }
}

/// Iterate over the distinct windows.
fn distinct(windows: &[Option<usize>]) -> impl Iterator<Item = usize> {
    let new = |(layer, window): (usize, &Option<usize>)| window.filter(|_| !windows[..layer].contains(window));
    windows.iter().enumerate().filter_map(new)
}

/// Return the last `window` rows of a span.
fn last([prompt, own]: &Span, window: usize) -> Span {
    let cut = |run: &Range<usize>, count: usize| run.end - run.len().min(count)..run.end;
    let own = cut(own, window);
    [cut(prompt, window - own.len()), own]
}

/// Build [`Decoding::states`].
fn states(spans: &[Span], device: &Device) -> Tensor<2, Int> {
    let state = |[prompt, own]: &Span| [prompt.start, prompt.len(), own.start, own.len() - 1].map(|field| field as i32);
    let states: Vec<i32> = spans.iter().flat_map(state).collect();
    // Uploaded in one dimension: a two-dimensional tensor may have gaps between rows.
    ops::to_device::<1, Int>(TensorData::from(states.as_slice()), device).reshape([spans.len(), 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit in tokens once counted keys and values only; recurrent states are large.
    #[test]
    fn states_count_as_the_tokens_that_take_as_much_memory() {
        let shape = CacheShape { prompts: 2, prompt_length: 5, completions: 3, completion_length: 7 };
        let mut config = ModelConfig::qwen2(64, 32, 48, 4, 4, 2);
        assert_eq!((shape.tokens_worth(&config), shape.tokens()), (31, 31));
        config.model_type = "qwen3_5_text".to_string();
        config.head_dim = Some(8);
        config.rest.insert("linear_key_head_dim".to_string(), 16.into());
        config.rest.insert("linear_value_head_dim".to_string(), 16.into());
        // Three of four layers: 3 inputs of 2 x 16 x 16 + 32 x 16 columns, 32 states of 16 x 16; a token: 2 x 2 x 8.
        let numbers = 3 * 6 * (3 * 1024 + 32 * 256);
        assert_eq!(shape.tokens_worth(&config), 31 + numbers / 32);
        assert_eq!(shape.bytes(&config, 4), 4 * (31 * 32 + numbers));
    }
}
