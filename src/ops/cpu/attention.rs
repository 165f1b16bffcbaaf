//! Causal attention on slices, a few rows of scores at a time: no `T x T` matrix is stored.
//!
//! One task is one query head of one sequence. Keys and values are copied once into the layout that each product needs.
//! The backward pass recomputes the scores. With a window only the columns that the current rows see are computed.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::few_rows::NumberFormat;
use super::kernels::{exp, max};
use super::rows::{ROWS, product};
use crate::ops::Span;

/// Head counts, head width, and the maximum number of keys a query attends to, its own included.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    window: usize,
}

impl AttentionShape {
    pub(super) fn of([_, heads, dim]: [usize; 3], kv_heads: usize, window: Option<usize>) -> Self {
        Self { heads, kv_heads, dim, window: window.unwrap_or(usize::MAX) }
    }

    /// First key that the query of a row attends to.
    fn seen_from(self, row: usize) -> usize {
        (row + 1).saturating_sub(self.window)
    }

    /// First column computed for rows from `row` on: [`Self::seen_from`] rounded down to whole vectors.
    fn columns_from(self, row: usize) -> usize {
        self.seen_from(row) / COLUMNS * COLUMNS
    }

    fn q_width(self) -> usize {
        self.heads * self.dim
    }

    fn kv_width(self) -> usize {
        self.kv_heads * self.dim
    }

    fn group(self) -> usize {
        self.heads / self.kv_heads
    }

    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// Copy one head of one sequence: `[T, dim]` out of `[T, width]`.
fn head(x: &[f32], width: usize, index: usize, dim: usize) -> Vec<f32> {
    x.chunks_exact(width).flat_map(|row| &row[index * dim..][..dim]).copied().collect()
}

/// Column counts are multiples of this, so that products use whole vectors of any width.
const COLUMNS: usize = 32;

/// Columns of a transposed head: `length` rounded up to [`COLUMNS`].
fn padded(length: usize) -> usize {
    length.next_multiple_of(COLUMNS)
}

/// Transpose `[T, dim]` to `[dim, padded(T)]`, with zeros in the padding.
fn transposed(x: &[f32], dim: usize) -> Vec<f32> {
    let stride = padded(x.len() / dim);
    let mut out = vec![0.0; dim * stride];
    for (t, row) in x.chunks_exact(dim).enumerate() {
        for (d, &value) in row.iter().enumerate() {
            out[d * stride + t] = value;
        }
    }
    out
}

/// `out[j] = Σ_i coefficients[i] · matrix[i · stride + j]`: a row vector times a matrix.
///
/// Columns are computed in blocks whose sums stay in registers over all coefficients.
#[inline(always)]
fn combine<F: NumberFormat>(out: &mut [f32], coefficients: &[f32], matrix: &[F], stride: usize) {
    let mut done = combine_blocks::<64, F>(out, coefficients, matrix, stride, 0);
    done = combine_blocks::<32, F>(out, coefficients, matrix, stride, done);
    done = combine_blocks::<16, F>(out, coefficients, matrix, stride, done);
    combine_blocks::<1, F>(out, coefficients, matrix, stride, done);
}

#[inline(always)]
fn combine_blocks<const WIDTH: usize, F: NumberFormat>(
    out: &mut [f32],
    coefficients: &[f32],
    matrix: &[F],
    stride: usize,
    done: usize,
) -> usize {
    let (blocks, _) = out[done..].as_chunks_mut::<WIDTH>();
    let count = blocks.len();
    for (index, block) in blocks.iter_mut().enumerate() {
        let at = done + index * WIDTH;
        let mut sums = [0.0f32; WIDTH];
        for (i, &c) in coefficients.iter().enumerate() {
            add_scaled(&mut sums, c, &matrix[i * stride + at..][..WIDTH]);
        }
        *block = sums;
    }
    done + count * WIDTH
}

#[inline(always)]
fn add_scaled<F: NumberFormat>(sums: &mut [f32], c: f32, row: &[F]) {
    for (sum, &value) in sums.iter_mut().zip(row) {
        *sum = c.mul_add(value.widen(), *sum);
    }
}

/// Turn scaled scores into softmax weights in place.
#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) {
    let max = max(scores);
    let mut lanes = [0.0f32; 8];
    let (whole, tail) = scores.as_chunks_mut::<8>();
    for chunk in whole {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *score = exp((*score - max) * scale);
            *lane += *score;
        }
    }
    let mut sum = 0.0;
    for score in tail {
        *score = exp((*score - max) * scale);
        sum += *score;
    }
    let inverse = 1.0 / (lanes.iter().sum::<f32>() + sum);
    scores.iter_mut().for_each(|score| *score *= inverse);
}

/// One query head of one packed sequence.
#[derive(Debug, Clone, Copy)]
struct QueryHead {
    first: usize,
    length: usize,
    head: usize,
}

/// All heads of all sequences, sequences outermost: the parallel tasks.
fn query_heads(lengths: &[usize], heads: usize) -> Vec<QueryHead> {
    let mut first = 0;
    let mut query_heads = Vec::with_capacity(lengths.len() * heads);
    for &length in lengths {
        query_heads.extend((0..heads).map(|head| QueryHead { first, length, head }));
        first += length;
    }
    query_heads
}

impl QueryHead {
    /// Copy column block `index`, `[length, dim]`, out of packed rows.
    fn take(self, x: &[f32], width: usize, index: usize, dim: usize) -> Vec<f32> {
        head(&x[self.first * width..][..self.length * width], width, index, dim)
    }
}

/// Concatenate the heads of each sequence: `[rows, blocks · dim]`, each block the sum of `group` heads.
fn assemble(heads: &[Vec<f32>], lengths: &[usize], shape: AttentionShape, group: usize) -> Vec<f32> {
    let (dim, width) = (shape.dim, shape.heads / group * shape.dim);
    let mut out = vec![0.0; lengths.iter().sum::<usize>() * width];
    let mut rest = &mut out[..];
    let mut tasks = Vec::with_capacity(lengths.len());
    for (&length, heads) in lengths.iter().zip(heads.chunks_exact(shape.heads)) {
        tasks.push((rest.split_off_mut(..length * width).unwrap_or_default(), heads));
    }
    tasks.into_par_iter().for_each(|(out, heads)| {
        for (index, group) in heads.chunks_exact(group).enumerate() {
            for (t, row) in out.chunks_exact_mut(width).enumerate() {
                let block = &mut row[index * dim..][..dim];
                block.copy_from_slice(&group[0][t * dim..][..dim]);
                for other in &group[1..] {
                    block.iter_mut().zip(&other[t * dim..][..dim]).for_each(|(sum, x)| *sum += x);
                }
            }
        }
    });
    out
}

/// Attention output of packed sequences, `[rows, heads · dim]`.
pub(super) fn forward(q: &[f32], k: &[f32], v: &[f32], lengths: &[usize], shape: AttentionShape) -> Vec<f32> {
    let heads = query_heads(lengths, shape.heads)
        .into_par_iter()
        .map(|query| Arch::new().dispatch(Forward { query, q, k, v, shape }));
    assemble(&heads.collect::<Vec<_>>(), lengths, shape, 1)
}

/// Forward pass of a query head.
struct Forward<'a> {
    query: QueryHead,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    shape: AttentionShape,
}

impl WithSimd for Forward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { query, q, k, v, shape } = self;
        let (dim, length, kv) = (shape.dim, query.length, query.head / shape.group());
        let q = query.take(q, shape.q_width(), query.head, dim);
        let keys = transposed(&query.take(k, shape.kv_width(), kv, dim), dim);
        let values = query.take(v, shape.kv_width(), kv, dim);
        let stride = padded(length);
        let mut scores = vec![0.0; ROWS * stride];
        let mut out = vec![0.0; length * dim];
        let whole = length / ROWS * ROWS;
        for first in (0..whole).step_by(ROWS) {
            softmax_rows::<S, ROWS>(simd, &mut scores, &q, &keys, stride, first, shape);
            weighted_sum_rows::<S, ROWS>(simd, &mut out, &scores, &values, stride, first, shape);
        }
        for first in whole..length {
            softmax_rows::<S, 1>(simd, &mut scores, &q, &keys, stride, first, shape);
            weighted_sum_rows::<S, 1>(simd, &mut out, &scores, &values, stride, first, shape);
        }
        out
    }
}

/// Softmax weights of `R` query rows from `first` on; hidden keys from [`AttentionShape::columns_from`] on get zero.
#[inline(always)]
fn softmax_rows<S: Simd, const R: usize>(
    simd: S,
    scores: &mut [f32],
    q: &[f32],
    keys: &[f32],
    stride: usize,
    first: usize,
    shape: AttentionShape,
) {
    let rows: [&[f32]; R] = std::array::from_fn(|r| &q[(first + r) * shape.dim..][..shape.dim]);
    let from = shape.columns_from(first);
    product(simd, (&mut scores[from..], stride), rows, (&keys[from..], stride), padded(first + R) - from, false);
    for r in 0..R {
        let row = &mut scores[r * stride..][..first + R];
        let seen = shape.seen_from(first + r);
        softmax(&mut row[seen..first + r + 1], shape.scale());
        row[from..seen].fill(0.0);
        row[first + r + 1..].fill(0.0);
    }
}

/// `out[first..first + R] = weights · matrix`.
#[inline(always)]
fn weighted_sum_rows<S: Simd, const R: usize>(
    simd: S,
    out: &mut [f32],
    weights: &[f32],
    matrix: &[f32],
    stride: usize,
    first: usize,
    shape: AttentionShape,
) {
    let (dim, from) = (shape.dim, shape.columns_from(first));
    let rows: [&[f32]; R] = std::array::from_fn(|r| &weights[r * stride + from..][..first + R - from]);
    product(simd, (&mut out[first * dim..], dim), rows, (&matrix[from * dim..], dim), dim, false);
}

/// Gradients of q, k and v.
pub(super) fn backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    upstream: &[f32],
    lengths: &[usize],
    shape: AttentionShape,
) -> [Vec<f32>; 3] {
    let heads: Vec<[Vec<f32>; 3]> = (query_heads(lengths, shape.heads).into_par_iter())
        .map(|query| Arch::new().dispatch(Backward { query, inputs: [q, k, v, upstream], shape }))
        .collect();
    let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
    for [q, k, v] in heads {
        dq.push(q);
        dk.push(k);
        dv.push(v);
    }
    let groups = [(dq, 1), (dk, shape.group()), (dv, shape.group())];
    groups.map(|(heads, group)| assemble(&heads, lengths, shape, group))
}

/// Query rows whose contributions to dK and dV are added together; a multiple of [`ROWS`].
const BLOCK: usize = 48;

/// Weights and score gradients of a block of query rows, with one line per key: `[length, BLOCK]` each.
struct BlockGradients {
    weights: Vec<f32>,
    dscores: Vec<f32>,
    /// First key in use, a multiple of [`ROWS`]; earlier lines are left over from a previous block.
    from: usize,
}

/// Backward pass of a query head. `inputs` are q, k, v and the gradient of the output.
struct Backward<'a> {
    query: QueryHead,
    inputs: [&'a [f32]; 4],
    shape: AttentionShape,
}

impl WithSimd for Backward<'_> {
    type Output = [Vec<f32>; 3];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [Vec<f32>; 3] {
        let Self { query, inputs: [q, k, v, upstream], shape } = self;
        let (dim, length, kv) = (shape.dim, query.length, query.head / shape.group());
        let [q, upstream] = [q, upstream].map(|x| query.take(x, shape.q_width(), query.head, dim));
        let [keys, values] = [k, v].map(|x| query.take(x, shape.kv_width(), kv, dim));
        let [keys_t, values_t] = [&keys, &values].map(|x| transposed(x, dim));
        let stride = padded(length);
        let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0.0; length * dim]);
        let [mut weights, mut dscores] = [(); 2].map(|()| vec![0.0; ROWS * stride]);
        let [block_weights, block_dscores] = [(); 2].map(|()| vec![0.0; length * BLOCK]);
        let mut block = BlockGradients { weights: block_weights, dscores: block_dscores, from: 0 };
        let inputs = [&q[..], &upstream, &keys, &keys_t, &values_t];
        for start in (0..length).step_by(BLOCK) {
            let end = (start + BLOCK).min(length);
            let whole = start + (end - start) / ROWS * ROWS;
            block.from = shape.seen_from(start) / ROWS * ROWS;
            for first in (start..whole).step_by(ROWS) {
                backward_rows::<S, ROWS>(simd, &mut dq, [&mut weights, &mut dscores], &mut block, inputs, first, shape);
            }
            for first in whole..end {
                backward_rows::<S, 1>(simd, &mut dq, [&mut weights, &mut dscores], &mut block, inputs, first, shape);
            }
            // dK += dSᵀ q and dV += Pᵀ upstream, over the keys in use by the block.
            for (sum, coefficients, x) in [(&mut dk, &block.dscores, &q), (&mut dv, &block.weights, &upstream)] {
                let x = &x[start * dim..end * dim];
                let whole = end / ROWS * ROWS;
                let line = |key: usize| &coefficients[key * BLOCK..][..end - start];
                for key in (block.from..whole).step_by(ROWS) {
                    let lines: [&[f32]; ROWS] = std::array::from_fn(|r| line(key + r));
                    product(simd, (&mut sum[key * dim..], dim), lines, (x, dim), dim, true);
                }
                for key in block.from.max(whole)..end {
                    product(simd, (&mut sum[key * dim..], dim), [line(key)], (x, dim), dim, true);
                }
            }
        }
        [dq, dk, dv]
    }
}

/// Compute `P = softmax(q kᵀ)`, `dP = upstream vᵀ`, `dS = P (dP − Σ P dP)` and `dq = dS k` of `R` query rows from
/// `first` on, and store P and dS in the lines of the block.
#[inline(always)]
fn backward_rows<S: Simd, const R: usize>(
    simd: S,
    dq: &mut [f32],
    [weights, dscores]: [&mut [f32]; 2],
    block: &mut BlockGradients,
    [q, upstream, keys, keys_t, values_t]: [&[f32]; 5],
    first: usize,
    shape: AttentionShape,
) {
    let dim = shape.dim;
    let stride = weights.len() / ROWS;
    softmax_rows::<S, R>(simd, weights, q, keys_t, stride, first, shape);
    let rows: [&[f32]; R] = std::array::from_fn(|r| &upstream[(first + r) * dim..][..dim]);
    let from = shape.columns_from(first);
    product(simd, (&mut dscores[from..], stride), rows, (&values_t[from..], stride), padded(first + R) - from, false);
    let scale = shape.scale();
    for r in 0..R {
        let columns = r * stride + from..r * stride + first + R;
        let (weights, dscores) = (&weights[columns.clone()], &mut dscores[columns]);
        let [mean] = dot_rows(weights, [dscores]);
        for (dscore, &weight) in dscores.iter_mut().zip(weights) {
            *dscore = weight * (*dscore - mean) * scale;
        }
    }
    weighted_sum_rows::<S, R>(simd, dq, dscores, keys, stride, first, shape);
    for (rows, lines) in [(&*weights, &mut block.weights), (&*dscores, &mut block.dscores)] {
        for line in lines.chunks_exact_mut(BLOCK).take(from).skip(block.from) {
            line[first % BLOCK..][..R].fill(0.0);
        }
        for (key, line) in lines.chunks_exact_mut(BLOCK).enumerate().take(first + R).skip(from.max(block.from)) {
            for r in 0..R {
                line[first % BLOCK + r] = rows[r * stride + key];
            }
        }
    }
}

/// Key-table elements read by all queries together, from which on a task may be a single key head.
const MIN_SHARED_NUMBERS: usize = 1 << 16;

/// Attention of one query row per sequence over the tables, `[tokens, kv_heads · dim]`; `spans` are the rows each sees.
pub(super) fn cached<F: NumberFormat>(
    q: &[f32],
    keys: &[F],
    values: &[F],
    spans: &[Span],
    shape: AttentionShape,
) -> Vec<f32> {
    let (dim, stride) = (shape.dim, shape.kv_width());
    let mut out = vec![0.0; q.len()];
    // A task is a sequence or, for few sequences with long spans, one key head of a sequence.
    let seen: usize = spans.iter().flatten().map(Range::len).sum();
    let apart = spans.len() < 2 * rayon::current_num_threads() && seen * stride >= MIN_SHARED_NUMBERS;
    let at_least = if apart { 1 } else { shape.kv_heads };
    let width = shape.group() * dim;
    let heads = out.par_chunks_exact_mut(width).zip(q.par_chunks_exact(width)).enumerate().with_min_len(at_least);
    heads.for_each_init(
        || (Vec::new(), vec![0.0; dim]),
        |(scores, part), (index, (out, q))| {
            let ([prompt, own], kv) = (&spans[index / shape.kv_heads], index % shape.kv_heads);
            scores.resize(prompt.len() + own.len(), 0.0);
            // The range of one head in a run of table rows; the other heads lie between its rows.
            let head = |run: &Range<usize>| match run.is_empty() {
                true => 0..0,
                false => run.start * stride + kv * dim..(run.end - 1) * stride + (kv + 1) * dim,
            };
            let [prompt_keys, own_keys] = [prompt, own].map(|run| &keys[head(run)]);
            let [prompt_values, own_values] = [prompt, own].map(|run| &values[head(run)]);
            for (out, q) in out.chunks_exact_mut(dim).zip(q.chunks_exact(dim)) {
                let (prompt_scores, own_scores) = scores.split_at_mut(prompt.len());
                dots(prompt_scores, q, prompt_keys, stride);
                dots(own_scores, q, own_keys, stride);
                softmax(scores, shape.scale());
                combine(out, &scores[..prompt.len()], prompt_values, stride);
                combine(part, &scores[prompt.len()..], own_values, stride);
                out.iter_mut().zip(part.iter()).for_each(|(out, part)| *out += part);
            }
        },
    );
    out
}

/// `out[t] = q · keys[t · stride..]`, four rows at a time, so that their additions are independent.
fn dots<F: NumberFormat>(out: &mut [f32], q: &[f32], keys: &[F], stride: usize) {
    let dim = q.len();
    let row = |t: usize| &keys[t * stride..][..dim];
    let (blocks, rest) = out.as_chunks_mut::<4>();
    let done = 4 * blocks.len();
    for (index, block) in blocks.iter_mut().enumerate() {
        let t = 4 * index;
        *block = dot_rows(q, [row(t), row(t + 1), row(t + 2), row(t + 3)]);
    }
    for (t, out) in rest.iter_mut().enumerate() {
        [*out] = dot_rows(q, [row(done + t)]);
    }
}

/// Dot products of one row with `N` others.
#[inline(always)]
fn dot_rows<const N: usize, F: NumberFormat>(q: &[f32], rows: [&[F]; N]) -> [f32; N] {
    let mut sums = [[0.0f32; 8]; N];
    let (whole, tail) = q.as_chunks::<8>();
    for (at, q) in whole.iter().enumerate() {
        for n in 0..N {
            let row = &rows[n][8 * at..][..8];
            for i in 0..8 {
                sums[n][i] = q[i].mul_add(row[i].widen(), sums[n][i]);
            }
        }
    }
    let first = 8 * whole.len();
    std::array::from_fn(|n| {
        let s = sums[n];
        let sum = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
        tail.iter().zip(&rows[n][first..]).fold(sum, |sum, (q, k)| q.mul_add(k.widen(), sum))
    })
}
