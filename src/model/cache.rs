//! Keys and values of what has been read, or what a recurrence keeps of it: one pre-allocated pair of tables per layer.
//!
//! A table has a row per token. Its first part is cut into *prompt slots*, the rest into *completion slots*: a prompt is
//! stored once and shared by the completions of its group, and every completion has a slot of its own that the next one
//! takes over when it ends. So what a new token may see is two runs of rows, nothing is ever moved, and memory is known
//! beforehand.

use std::ops::Range;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};

use super::ModelConfig;
use super::states::{self, States};
use crate::ops::delta::{DeltaHeads, DeltaInputs, Move};
use crate::ops::{self, CacheCall, Decoding, Span};

/// How many sequences a cache holds, and how long they may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Prompts held at a time.
    pub prompts: usize,
    /// Longest prompt, in tokens.
    pub prompt_length: usize,
    /// Completions decoded at a time.
    pub completions: usize,
    /// Longest completion, in tokens.
    pub completion_length: usize,
}

impl CacheShape {
    /// Rows of each table.
    pub fn tokens(&self) -> usize {
        self.prompts * self.prompt_length + self.completions * self.completion_length
    }

    /// Tokens whose keys and values, in f32, take as much memory as the whole cache: what recurrences keep is counted so.
    pub fn tokens_worth(&self, config: &ModelConfig) -> usize {
        self.tokens() + self.state_bytes(config).div_ceil(token_bytes(config, 4).max(1))
    }

    /// Memory of the whole cache: keys and values of every layer with attention, in numbers of so many bytes, and what
    /// recurrences keep of every sequence, in f32.
    pub fn bytes(&self, config: &ModelConfig, number: usize) -> usize {
        token_bytes(config, number) * self.tokens() + self.state_bytes(config)
    }

    fn state_bytes(&self, config: &ModelConfig) -> usize {
        4 * recurrent(config) * self.slots() * states::numbers(config).iter().sum::<usize>()
    }

    /// Rows of a table of states: a slot each, and one for what pads a pass.
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

/// Layers with a recurrence.
fn recurrent(config: &ModelConfig) -> usize {
    (0..config.num_hidden_layers).filter(|&layer| config.is_recurrent(layer)).count()
}

/// Memory of the keys and values of a token, in numbers of so many bytes.
fn token_bytes(config: &ModelConfig, number: usize) -> usize {
    let attending = config.num_hidden_layers - recurrent(config);
    2 * number * attending * config.num_key_value_heads * config.head_dim()
}

/// A completion slot in use.
#[derive(Debug, Clone, Copy, Default)]
struct Completion {
    prompt: usize,
    decoded: usize,
}

/// What a layer keeps.
#[derive(Debug)]
enum Kept {
    /// Keys and values, `[tokens, kv_heads · head_dim]` each.
    Attention(Tensor<2>, Tensor<2>),
    Recurrence(States),
}

/// The keys and values of a batch of sequences, or the states of recurrences.
///
/// Announce what the next forward pass reads with [`KvCache::read`] or [`KvCache::step`].
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<Kept>,
    shape: CacheShape,
    /// Length of the prompt in each prompt slot.
    prompts: Vec<usize>,
    completions: Vec<Completion>,
    /// Positions of the tokens of the announced pass, in their sequences.
    positions: Vec<usize>,
    call: CacheCall,
    /// Between which rows of tables of states the announced pass goes.
    moves: Vec<Move>,
    /// The window of each layer, and what the new tokens of a step see within each.
    windows: Vec<Option<usize>>,
    within: Vec<(usize, CacheCall)>,
    /// The announced step on a GPU, once the model has asked for it.
    decoding: Option<Decoding>,
}

impl KvCache {
    /// An empty cache on a device without autodiff; in f32, or another format that [`cache_format`](super::CausalLm::cache_format) gives.
    pub fn new(config: &ModelConfig, shape: CacheShape, format: FloatDType, device: &Device) -> Self {
        // The last row is for what pads a pass.
        let size = [shape.tokens() + 1, config.num_key_value_heads * config.head_dim()];
        let table = || ops::zeros(size[0] * size[1], format, device).reshape(size);
        let layer = |layer| match config.is_recurrent(layer) {
            true => Kept::Recurrence(States::new(config, shape.slots(), device)),
            false => Kept::Attention(table(), table()),
        };
        let layers = (0..config.num_hidden_layers).map(layer).collect();
        Self {
            layers,
            shape,
            prompts: vec![0; shape.prompts],
            completions: vec![Completion::default(); shape.completions],
            positions: Vec::new(),
            call: CacheCall::default(),
            moves: Vec::new(),
            windows: (0..config.num_hidden_layers).map(|layer| config.window(layer)).collect(),
            within: Vec::new(),
            decoding: None,
        }
    }

    /// The next pass reads whole prompts: `(slot, length)` each.
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
            self.moves.push(Move { from: None, to: slot });
            self.positions.extend(0..length);
            writes.extend(self.shape.prompt(slot)..self.shape.prompt(slot) + length);
        }
        self.call = CacheCall::new(writes, Vec::new());
    }

    /// Gives a completion slot to a new completion of the prompt in `prompt`.
    pub fn start(&mut self, slot: usize, prompt: usize) {
        self.completions[slot] = Completion { prompt, decoded: 0 };
    }

    /// The next pass reads one token for each of these completion slots, padded to `rows` tokens whose results mean
    /// nothing.
    ///
    /// # Panics
    /// When a completion has filled its slot, or there are more slots than rows.
    pub fn step(&mut self, slots: &[usize], rows: usize) {
        assert!(slots.len() <= rows, "{} slots in {rows} rows", slots.len());
        let (mut writes, mut spans) = (Vec::with_capacity(slots.len()), Vec::with_capacity(slots.len()));
        self.positions.clear();
        self.moves.clear();
        for &slot in slots {
            let Completion { prompt, decoded } = &mut self.completions[slot];
            assert!(*decoded < self.shape.completion_length, "a slot of {decoded} tokens is full");
            let (first, length) = (self.shape.prompt(*prompt), self.prompts[*prompt]);
            let own = self.shape.completion(slot);
            self.positions.push(length + *decoded);
            let row = self.shape.prompts + slot;
            self.moves.push(Move { from: Some(if *decoded == 0 { *prompt } else { row }), to: row });
            writes.push(own + *decoded);
            *decoded += 1;
            spans.push([first..first + length, own..own + *decoded]);
        }
        let spare = self.shape.tokens();
        self.positions.resize(rows, 0);
        writes.resize(rows, spare);
        spans.resize(rows, [spare..spare, spare..spare + 1]);
        let row = self.shape.prompts + self.shape.completions;
        self.moves.resize(rows, Move { from: Some(row), to: row });
        self.within = distinct(&self.windows)
            .map(|window| (window, CacheCall::new(Vec::new(), spans.iter().map(|span| last(span, window)).collect())))
            .collect();
        self.call = CacheCall::new(writes, spans);
        self.stepped();
    }

    /// As [`Self::step`] for the same slots again, after tokens that were drawn and counted on the device.
    pub(crate) fn step_on_device(&mut self, slots: &[usize]) {
        assert!(self.decoding.is_some(), "a step that was announced by `step` and taken");
        for &slot in slots {
            let Completion { decoded, .. } = &mut self.completions[slot];
            assert!(*decoded < self.shape.completion_length, "a slot of {decoded} tokens is full");
            *decoded += 1;
        }
    }

    /// Has the next step upload its state; what does not depend on it stays.
    fn stepped(&mut self) {
        if let Some(decoding) = &mut self.decoding {
            decoding.states = states(self.call.spans(), &decoding.states.device());
        }
    }

    /// The announced step as a GPU has it; none while prompts are read. `rotations` gives those of so many positions.
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

    /// The state of each row of the announced step, where it is on a GPU.
    pub(crate) fn states(&self) -> Option<Tensor<2, Int>> {
        self.decoding.as_ref().map(|decoding| decoding.states.clone())
    }

    /// States of `rows` rows of padding, as [`Self::step`] has them.
    pub(crate) fn padding_states(&self, rows: usize) -> Option<Tensor<2, Int>> {
        let (decoding, spare) = (self.decoding.as_ref()?, self.shape.tokens());
        Some(states(&vec![[spare..spare, spare..spare + 1]; rows], &decoding.states.device()))
    }

    /// Has the announced step read its state from other memory, until the next is announced.
    pub(crate) fn set_states(&mut self, states: Tensor<2, Int>) {
        if let Some(decoding) = &mut self.decoding {
            decoding.states = states;
        }
    }

    /// [`ops::attend`] of the announced step's tokens.
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

    /// Keys and values of a layer.
    fn tables(&self, layer: usize) -> [&Tensor<2>; 2] {
        match &self.layers[layer] {
            Kept::Attention(keys, values) => [keys, values],
            Kept::Recurrence(_) => panic!("layer {layer} has no attention"),
        }
    }

    /// The tables of a recurrence, and between which of their rows the announced pass goes.
    fn recurrence(&mut self, layer: usize) -> (&mut States, &[Move]) {
        match &mut self.layers[layer] {
            Kept::Recurrence(states) => (states, &self.moves),
            Kept::Attention(..) => panic!("layer {layer} has attention"),
        }
    }

    /// [`ops::delta::causal_conv`] of the announced tokens.
    pub(super) fn convolve(&mut self, layer: usize, x: Tensor<2>, taps: Tensor<2>, lengths: &[usize]) -> Tensor<2> {
        let (states, moves) = self.recurrence(layer);
        states.convolve(x, taps, lengths, moves)
    }

    /// [`ops::delta::delta_rule`] of the announced tokens.
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

    /// Positions of the announced tokens.
    pub(super) fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Stores the keys and values of the announced tokens.
    ///
    /// # Shapes
    /// - keys, values: `[tokens, kv_heads, head_dim]`
    pub(super) fn write(&mut self, layer: usize, keys: Tensor<3>, values: Tensor<3>) {
        let call = &self.call;
        let [tokens, heads, dim] = keys.dims();
        let flat = |x: Tensor<3>| x.reshape([tokens, heads * dim]);
        let Kept::Attention(stored_keys, stored_values) = &mut self.layers[layer] else {
            panic!("layer {layer} has no attention")
        };
        stored_keys.inplace(|table| ops::write_rows(table, flat(keys), call));
        stored_values.inplace(|table| ops::write_rows(table, flat(values), call));
    }

    /// Attention of the announced tokens, or `None` while prompts are read: those see only themselves.
    pub(super) fn attention(&self, layer: usize, q: Tensor<3>) -> Option<Tensor<2>> {
        if self.call.spans().is_empty() {
            return None;
        }
        let [keys, values] = self.tables(layer);
        let own = |window| self.within.iter().find(|(other, _)| *other == window).map(|(_, call)| call);
        Some(ops::attention_cached(q, keys, values, self.windows[layer].and_then(own).unwrap_or(&self.call)))
    }
}

/// Each window once.
fn distinct(windows: &[Option<usize>]) -> impl Iterator<Item = usize> {
    let new = |(layer, window): (usize, &Option<usize>)| window.filter(|_| !windows[..layer].contains(window));
    windows.iter().enumerate().filter_map(new)
}

/// The last rows of a span, as many as a window shows.
fn last([prompt, own]: &Span, window: usize) -> Span {
    let cut = |run: &Range<usize>, count: usize| run.end - run.len().min(count)..run.end;
    let own = cut(own, window);
    [cut(prompt, window - own.len()), own]
}

/// See [`Decoding::states`].
fn states(spans: &[Span], device: &Device) -> Tensor<2, Int> {
    let state = |[prompt, own]: &Span| [prompt.start, prompt.len(), own.start, own.len() - 1].map(|field| field as i32);
    let states: Vec<i32> = spans.iter().flat_map(state).collect();
    // Without gaps between rows, which two dimensions may have.
    ops::to_device::<1, Int>(TensorData::from(states.as_slice()), device).reshape([spans.len(), 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bound of tokens held for keys and values alone, beside which states are large.
    #[test]
    fn states_count_as_the_tokens_that_take_as_much_memory() {
        let shape = CacheShape { prompts: 2, prompt_length: 5, completions: 3, completion_length: 7 };
        let mut config = ModelConfig::qwen2(64, 32, 48, 4, 4, 2);
        assert_eq!((shape.tokens_worth(&config), shape.tokens()), (31, 31));
        config.model_type = "qwen3_5_text".to_string();
        config.head_dim = Some(8);
        config.rest.insert("linear_key_head_dim".to_string(), 16.into());
        config.rest.insert("linear_value_head_dim".to_string(), 16.into());
        // Three of four layers: 3 inputs of 2 x 16 x 16 + 32 x 16 columns, 32 states of 16 x 16; a token has 2 x 2 x 8 numbers.
        let numbers = 3 * 6 * (3 * 1024 + 32 * 256);
        assert_eq!(shape.tokens_worth(&config), 31 + numbers / 32);
        assert_eq!(shape.bytes(&config, 4), 4 * (31 * 32 + numbers));
    }
}
