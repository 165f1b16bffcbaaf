//! Gated DeltaNet (arXiv 2412.06464): a recurrence whose state is a matrix per head, and the short convolution before it.
//!
//! For a key `k`, a value `v`, a query `q`, a decay `g ≤ 0` and a rate `β`, the state `S` of a head and its output are
//!
//! ```text
//! S ← e^g S;   S ← S + k (β (v − Sᵀ k))ᵀ;   o = Sᵀ q
//! ```
//!
//! On the `cpu` device the recurrence runs as it stands, with a hand-written backward (`ops/cpu/delta.rs`); elsewhere in chunks
//! of tokens as compositions of tensor operations.

use burn::tensor::activation::silu;
use burn::tensor::{Device, IndexingUpdateOp, Tensor, TensorData};

use super::rows::{pack, unpack};
use super::traffic::index;
use super::{cpu, matmul, to_device};

/// Heads of a layer: each key head serves as many value heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeltaHeads {
    /// Heads of queries and keys.
    pub keys: usize,
    /// Heads of values, a multiple of those.
    pub values: usize,
    /// Width of a query or key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
}

impl DeltaHeads {
    /// Value heads of a key head.
    pub(crate) fn group(self) -> usize {
        self.values / self.keys
    }

    /// Numbers of the state of a sequence.
    pub(crate) fn state(self) -> usize {
        self.values * self.key_dim * self.value_dim
    }

    /// Widths of queries, keys and values of all heads.
    pub(crate) fn widths(self) -> [usize; 3] {
        [self.keys * self.key_dim, self.keys * self.key_dim, self.values * self.value_dim]
    }
}

/// What the recurrence reads, for packed sequences: queries and keys, `[rows, keys · key_dim]`, values,
/// `[rows, values · value_dim]`, logarithms of decays and rates, `[rows, values]`.
#[derive(Debug, Clone)]
pub(crate) struct DeltaInputs {
    pub q: Tensor<2>,
    pub k: Tensor<2>,
    pub v: Tensor<2>,
    pub decay: Tensor<2>,
    pub beta: Tensor<2>,
}

impl DeltaInputs {
    pub(super) fn into_array(self) -> [Tensor<2>; 5] {
        [self.q, self.k, self.v, self.decay, self.beta]
    }
}

/// Rows of a table of states: where a sequence begins, zeros for none, and where its state is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub from: Option<usize>,
    pub to: usize,
}

/// The outputs of every sequence from a state of zeros.
///
/// # Shapes
/// - inputs: see [`DeltaInputs`]; output: `[rows, values · value_dim]`
pub(crate) fn delta_rule(inputs: DeltaInputs, lengths: &[usize], heads: DeltaHeads) -> Tensor<2> {
    if cpu::serves(&inputs.q.device()) {
        cpu::delta_rule(inputs, lengths, heads)
    } else {
        in_chunks(inputs, lengths, heads, None).0
    }
}

/// [`delta_rule`] from states of a table, one for each sequence, and the table with the states after them. Without gradients.
///
/// # Shapes
/// - table: `[sequences, values · key_dim · value_dim]`; outputs: as [`delta_rule`] and as the table
pub(crate) fn delta_rule_cached(
    inputs: DeltaInputs,
    table: Tensor<2>,
    lengths: &[usize],
    moves: &[Move],
    heads: DeltaHeads,
) -> (Tensor<2>, Tensor<2>) {
    assert_eq!(lengths.len(), moves.len(), "sequences and their states");
    if cpu::serves(&table.device()) {
        return cpu::delta_rule_cached(inputs, table, lengths, moves, heads);
    }
    let device = table.device();
    let size = [moves.len() * heads.values, heads.key_dim, heads.value_dim];
    let states = states_of(&table, moves).map(|states| states.reshape(size));
    let (out, states) = in_chunks(inputs, lengths, heads, states);
    (out, put_rows(table, moves, states.reshape([moves.len(), heads.state()]), &device))
}

/// The rows that sequences begin with; none where all begin with zeros.
///
/// # Panics
/// When only some do.
pub(crate) fn states_of(table: &Tensor<2>, moves: &[Move]) -> Option<Tensor<2>> {
    let from: Vec<i64> = moves.iter().filter_map(|step| Some(step.from? as i64)).collect();
    assert!(from.is_empty() || from.len() == moves.len(), "all sequences of a pass begin, or none does");
    (!from.is_empty()).then(|| table.clone().select(0, index(&from, &table.device())))
}

/// The table with a row where each sequence's state is put.
pub(crate) fn put_rows(table: Tensor<2>, moves: &[Move], rows: Tensor<2>, device: &Device) -> Tensor<2> {
    let to: Vec<i64> = moves.iter().map(|step| step.to as i64).collect();
    table.select_assign(0, index(&to, device), rows, IndexingUpdateOp::Assign)
}

/// `silu` of a causal convolution within each of the packed sequences, each column with taps of its own, the last of which is
/// that of the token itself.
///
/// # Shapes
/// - x, output: `[rows, width]`; weight: `[width, taps]`
pub(crate) fn causal_conv(x: Tensor<2>, weight: Tensor<2>, lengths: &[usize]) -> Tensor<2> {
    if cpu::serves(&x.device()) { cpu::causal_conv(x, weight, lengths) } else { conv_plain(x, weight, lengths) }
}

pub(super) fn conv_plain(x: Tensor<2>, weight: Tensor<2>, lengths: &[usize]) -> Tensor<2> {
    let [width, taps] = weight.dims();
    let tap = |tap: usize| {
        let weight = weight.clone().narrow(1, tap, 1).reshape([1, width]);
        shifted(x.clone(), lengths, taps - 1 - tap) * weight
    };
    silu((1..taps).fold(tap(0), |sum, next| sum + tap(next)))
}

/// Each row's predecessor, `back` rows before it in its sequence; zeros where there is none.
fn shifted(x: Tensor<2>, lengths: &[usize], back: usize) -> Tensor<2> {
    if back == 0 {
        return x;
    }
    let ([rows, _], device) = (x.dims(), x.device());
    let places = lengths.iter().flat_map(|&length| 0..length);
    let (from, there): (Vec<i64>, Vec<f32>) = (places.enumerate())
        .map(|(row, place)| if place < back { (row as i64, 0.0) } else { ((row - back) as i64, 1.0) })
        .unzip();
    x.select(0, index(&from, &device)) * constant(there, [rows, 1], &device)
}

/// Tokens of a chunk at most: a power of two.
const CHUNK: usize = 16;

/// Outputs, and the states after each sequence, `[sequences · values, key_dim, value_dim]`, by the chunkwise form: what the
/// tokens of a chunk do to each other is one triangular system (arXiv 2406.06484).
pub(super) fn in_chunks(
    inputs: DeltaInputs,
    lengths: &[usize],
    heads: DeltaHeads,
    states: Option<Tensor<3>>,
) -> (Tensor<2>, Tensor<3>) {
    let device = inputs.q.device();
    let most = lengths.iter().copied().max().unwrap_or(1).max(1);
    let chunk = most.next_power_of_two().min(CHUNK);
    let longest = most.next_multiple_of(chunk);
    let (sequences, chunks) = (lengths.len(), longest / chunk);
    let batch = sequences * heads.values;
    let [q, k, v, decay, beta] = inputs.into_array();
    // [rows, heads · dim] -> [sequences · values, chunks, chunk, dim]
    let spread = |x: Tensor<2>, count: usize| -> Tensor<4> {
        let dim = x.dims()[1] / count;
        let x = unpack(x, lengths, longest).reshape([sequences, longest, count, dim]).swap_dims(1, 2);
        let x = if count == heads.values {
            x
        } else {
            let x: Tensor<5> = x.unsqueeze_dim(2);
            x.expand([sequences, count, heads.group(), longest, dim]).reshape([sequences, heads.values, longest, dim])
        };
        x.reshape([batch, chunks, chunk, dim])
    };
    // Padding has neither rate nor decay: the state passes through it.
    let there: Vec<f32> =
        lengths.iter().flat_map(|&length| (0..longest).map(move |t| f32::from(u8::from(t < length)))).collect();
    let there = constant(there, [sequences * longest, 1], &device);
    let whole = |x: Tensor<2>| unpack(x, lengths, longest) * there.clone();
    let scalar = |x: Tensor<2>| {
        whole(x).reshape([sequences, longest, heads.values]).swap_dims(1, 2).reshape([batch, chunks, chunk, 1])
    };
    let (q, k, v) = (spread(q, heads.keys), spread(k, heads.keys), spread(v, heads.values));
    let (decay, beta) = (scalar(decay).cumsum(2), scalar(beta));

    let causal = Tensor::<2>::ones([chunk, chunk], &device).tril(0).reshape([1, 1, chunk, chunk]);
    let strict = Tensor::<2>::ones([chunk, chunk], &device).tril(-1).reshape([1, 1, chunk, chunk]);
    // Masked before the exponential, whose argument is positive above the diagonal.
    let between = (decay.clone() - decay.clone().swap_dims(2, 3)) * causal.clone();
    let between = between.exp() * causal;
    let system = product(k.clone() * beta.clone(), k.clone().swap_dims(2, 3)) * between.clone() * strict;
    let inverse = inverse(system, chunk);
    let grown = decay.clone().exp();
    let values = product(inverse.clone(), v * beta.clone());
    let keys = product(inverse, k.clone() * (beta * grown.clone()));
    let within = product(q.clone(), k.clone().swap_dims(2, 3)) * between;
    let queries = q * grown;
    let last = decay.clone().narrow(2, chunk - 1, 1);
    let remaining = k * (last.clone() - decay).exp();

    let (key_dim, value_dim) = (heads.key_dim, heads.value_dim);
    let mut state = states.unwrap_or_else(|| Tensor::zeros([batch, key_dim, value_dim], &device));
    let part = |x: &Tensor<4>, n: usize, width: usize| -> Tensor<3> {
        let [_, _, rows, _] = x.dims();
        x.clone().narrow(1, n, 1).reshape([batch, rows, width])
    };
    let outputs: Vec<Tensor<3>> = (0..chunks)
        .map(|n| {
            let news = part(&values, n, value_dim) - product(part(&keys, n, key_dim), state.clone());
            let out =
                product(part(&queries, n, key_dim), state.clone()) + product(part(&within, n, chunk), news.clone());
            let faded = state.clone() * part(&last, n, 1).exp();
            state = faded + product(part(&remaining, n, key_dim).swap_dims(1, 2), news);
            out
        })
        .collect();
    let out = Tensor::cat(outputs, 1).reshape([sequences, heads.values, longest, value_dim]).swap_dims(1, 2);
    (pack(out.reshape([sequences * longest, heads.values * value_dim]), lengths, longest), state)
}

/// `(I + A)⁻¹` of strictly lower triangular matrices, by blocks: from the inverses of two neighbouring blocks of the diagonal
/// follows that of both, `−Q⁻¹ C P⁻¹` below them. (Powers of `A` would do it in as many products, and cancel.)
fn inverse(system: Tensor<4>, size: usize) -> Tensor<4> {
    let device = system.device();
    let mut result = Tensor::<2>::eye(size, &device).reshape([1, 1, size, size]).expand(system.dims());
    let mut block = 1;
    while block < size {
        // The lower left corner of each pair of blocks.
        let (odd, pair) = (|at: usize| !(at / block).is_multiple_of(2), |at: usize| at / (2 * block));
        let below = |row: usize, column: usize| pair(row) == pair(column) && odd(row) && !odd(column);
        let mask = (0..size * size).map(|at| f32::from(u8::from(below(at / size, at % size)))).collect();
        let corner = system.clone() * constant(mask, [1, 1, size, size], &device);
        result = result.clone() - product(product(result.clone(), corner), result);
        block *= 2;
    }
    result
}

/// Numbers without gradients, on the device.
fn constant<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    let inner = to_device(TensorData::new(values, shape), &device.clone().inner());
    if device.is_autodiff() { Tensor::from_inner(inner) } else { inner }
}

/// A product with gradients where they are wanted; then it is Burn's own, whose factors CUDA rounds to TF32.
fn product<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    if a.device().is_autodiff() { a.matmul(b) } else { matmul(a, b) }
}
