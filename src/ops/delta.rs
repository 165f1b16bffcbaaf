//! Gated DeltaNet (arXiv 2412.06464): a recurrence whose state is a matrix per head, and the short convolution before
//! it.
//!
//! For a key `k`, a value `v`, a query `q`, a decay `g ≤ 0` and a rate `β`, the state `S` of a head and its output are
//!
//! ```text
//! S ← e^g S;   S ← S + k (β (v − Sᵀ k))ᵀ;   o = Sᵀ q
//! ```
//!
//! On the `cpu` device the recurrence runs token by token, with a hand-written backward (`ops/cpu/delta.rs`); elsewhere
//! in chunks of tokens as compositions of tensor operations.

use burn::tensor::activation::silu;
use burn::tensor::{Device, IndexingUpdateOp, Tensor, TensorData};

use super::rows::{pack, unpack};
use super::traffic::index;
use super::{cpu, matmul, to_device};

/// Head counts and widths of a layer. Every key head serves the same number of value heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeltaHeads {
    /// Number of query heads and of key heads.
    pub keys: usize,
    /// Number of value heads, a multiple of `keys`.
    pub values: usize,
    /// Width of a query or key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
}

impl DeltaHeads {
    /// Value heads per key head.
    pub(crate) fn group(self) -> usize {
        self.values / self.keys
    }

    /// Number of elements in the state of a sequence.
    pub(crate) fn state(self) -> usize {
        self.values * self.key_dim * self.value_dim
    }

    /// Widths of queries, keys and values of all heads.
    pub(crate) fn widths(self) -> [usize; 3] {
        [self.keys * self.key_dim, self.keys * self.key_dim, self.values * self.value_dim]
    }
}

/// Inputs of the recurrence for packed sequences: queries and keys, `[rows, keys · key_dim]`, values,
/// `[rows, values · value_dim]`, log-decays and rates, `[rows, values]`.
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

/// State-table rows of a sequence: of its initial state (`None` for zeros), and of its final state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateMove {
    pub from: Option<usize>,
    pub to: usize,
}

/// Run the recurrence over each sequence from a zero state.
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

/// [`delta_rule`] from states in `table`, one per sequence. Also return the table with the final states. No autodiff.
///
/// # Shapes
/// - table: `[sequences, values · key_dim · value_dim]`; outputs: as [`delta_rule`] and as the table
pub(crate) fn delta_rule_cached(
    inputs: DeltaInputs,
    table: Tensor<2>,
    lengths: &[usize],
    moves: &[StateMove],
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

/// Return the initial states of the sequences; `None` if all start from zeros.
///
/// # Panics
/// If only some of them start from zeros.
pub(crate) fn states_of(table: &Tensor<2>, moves: &[StateMove]) -> Option<Tensor<2>> {
    let from: Vec<i64> = moves.iter().filter_map(|step| Some(step.from? as i64)).collect();
    assert!(from.is_empty() || from.len() == moves.len(), "all sequences of a pass begin, or none does");
    (!from.is_empty()).then(|| table.clone().select(0, index(&from, &table.device())))
}

/// Return `table` with each sequence's row of `rows` written to its `to`.
pub(crate) fn put_rows(table: Tensor<2>, moves: &[StateMove], rows: Tensor<2>, device: &Device) -> Tensor<2> {
    let to: Vec<i64> = moves.iter().map(|step| step.to as i64).collect();
    table.select_assign(0, index(&to, device), rows, IndexingUpdateOp::Assign)
}

/// `silu` of a depthwise causal convolution within each packed sequence. The last tap is that of the token itself.
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

/// Replace each row by the row `back` positions before it in its sequence, or by zeros if there is none.
fn shifted(x: Tensor<2>, lengths: &[usize], back: usize) -> Tensor<2> {
    if back == 0 {
        return x;
    }
    let ([rows, _], device) = (x.dims(), x.device());
    let places = lengths.iter().flat_map(|&length| 0..length);
    let (from, valid): (Vec<i64>, Vec<f32>) = (places.enumerate())
        .map(|(row, place)| if place < back { (row as i64, 0.0) } else { ((row - back) as i64, 1.0) })
        .unzip();
    x.select(0, index(&from, &device)) * constant(valid, [rows, 1], &device)
}

/// Maximum number of tokens per chunk; a power of two.
const CHUNK: usize = 16;

/// Return the outputs, and the final states, `[sequences · values, key_dim, value_dim]`, by the chunkwise form: the
/// interaction of a chunk's tokens is one triangular system (arXiv 2406.06484).
pub(super) fn in_chunks(
    inputs: DeltaInputs,
    lengths: &[usize],
    heads: DeltaHeads,
    states: Option<Tensor<3>>,
) -> (Tensor<2>, Tensor<3>) {
    let device = inputs.q.device();
    let max_length = lengths.iter().copied().max().unwrap_or(1).max(1);
    let chunk = max_length.next_power_of_two().min(CHUNK);
    let longest = max_length.next_multiple_of(chunk);
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
    // Padding has a rate of 0 and a log-decay of 0, so the state passes through it unchanged.
    let valid: Vec<f32> =
        lengths.iter().flat_map(|&length| (0..longest).map(move |t| f32::from(u8::from(t < length)))).collect();
    let valid = constant(valid, [sequences * longest, 1], &device);
    let whole = |x: Tensor<2>| unpack(x, lengths, longest) * valid.clone();
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

/// `(I + A)⁻¹` for strictly lower triangular `A`, by doubling the block size: the inverse of `[[P, 0], [C, Q]]` has
/// `P⁻¹` and `Q⁻¹` on its diagonal and `−Q⁻¹ C P⁻¹` below. (Powers of `A` need as many products, and cancel.)
fn inverse(system: Tensor<4>, size: usize) -> Tensor<4> {
    let device = system.device();
    let mut result = Tensor::<2>::eye(size, &device).reshape([1, 1, size, size]).expand(system.dims());
    let mut block = 1;
    while block < size {
        // The lower left block of each pair of diagonal blocks.
        let (odd, pair) = (|at: usize| !(at / block).is_multiple_of(2), |at: usize| at / (2 * block));
        let below = |row: usize, column: usize| pair(row) == pair(column) && odd(row) && !odd(column);
        let mask = (0..size * size).map(|at| f32::from(u8::from(below(at / size, at % size)))).collect();
        let corner = system.clone() * constant(mask, [1, 1, size, size], &device);
        result = result.clone() - product(product(result.clone(), corner), result);
        block *= 2;
    }
    result
}

/// Return a constant tensor on `device`, without gradients.
fn constant<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    let inner = to_device(TensorData::new(values, shape), &device.clone().inner());
    if device.is_autodiff() { Tensor::from_inner(inner) } else { inner }
}

/// A product. Under autodiff it is Burn's own, which rounds operands to TF32 on CUDA; otherwise it is [`matmul`].
fn product<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    if a.device().is_autodiff() { a.matmul(b) } else { matmul(a, b) }
}
