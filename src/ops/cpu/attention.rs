//! Causal attention on slices, a row of scores at a time: nothing of size `T x T` is ever kept.
//!
//! One task is one sequence. Within it, keys and values of a head are laid out once in the orientation each product
//! wants, and the query heads that share them follow one another. The backward pass recomputes the scores.

use std::ops::Range;

use rayon::prelude::*;

use super::kernels::{exp, max};
use crate::ops::Span;

/// Head counts and width.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
}

impl Heads {
    pub(super) fn of([_, heads, dim]: [usize; 3], [_, kv_heads, _]: [usize; 3]) -> Self {
        Self { heads, kv_heads, dim }
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

/// Splits `x` into one slice per sequence.
fn per_sequence<'a>(mut x: &'a [f32], lengths: &[usize], width: usize) -> Vec<&'a [f32]> {
    lengths.iter().map(|length| x.split_off(..length * width).unwrap_or_default()).collect()
}

fn per_sequence_mut<'a>(mut x: &'a mut [f32], lengths: &[usize], width: usize) -> Vec<&'a mut [f32]> {
    lengths.iter().map(|length| x.split_off_mut(..length * width).unwrap_or_default()).collect()
}

/// One head of one sequence: `[T, dim]` out of `[T, width]`.
fn head(x: &[f32], width: usize, index: usize, dim: usize) -> Vec<f32> {
    x.chunks_exact(width).flat_map(|row| &row[index * dim..][..dim]).copied().collect()
}

/// Columns of a transposed head: its length rounded up, so that products work in whole blocks.
fn padded(length: usize) -> usize {
    length.next_multiple_of(16)
}

/// `[T, dim]` to `[dim, padded(T)]`, zeros in the padding.
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
/// Columns go in blocks whose sums stay in registers over all coefficients.
#[inline(always)]
fn combine(out: &mut [f32], coefficients: &[f32], matrix: &[f32], stride: usize) {
    let mut done = combine_blocks::<64>(out, coefficients, matrix, stride, 0);
    done = combine_blocks::<32>(out, coefficients, matrix, stride, done);
    done = combine_blocks::<16>(out, coefficients, matrix, stride, done);
    combine_blocks::<1>(out, coefficients, matrix, stride, done);
}

#[inline(always)]
fn combine_blocks<const WIDTH: usize>(
    out: &mut [f32],
    coefficients: &[f32],
    matrix: &[f32],
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
fn add_scaled(sums: &mut [f32], c: f32, row: &[f32]) {
    for (sum, &value) in sums.iter_mut().zip(row) {
        *sum = c.mul_add(value, *sum);
    }
}

/// Turns scaled scores into softmax weights in place.
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

/// `[rows, heads · dim]` of packed sequences.
pub(super) fn forward(q: &[f32], k: &[f32], v: &[f32], lengths: &[usize], shape: Heads) -> Vec<f32> {
    let mut out = vec![0.0; q.len()];
    let tasks: Vec<_> = per_sequence_mut(&mut out, lengths, shape.q_width())
        .into_iter()
        .zip(per_sequence(q, lengths, shape.q_width()))
        .zip(per_sequence(k, lengths, shape.kv_width()).into_iter().zip(per_sequence(v, lengths, shape.kv_width())))
        .collect();
    tasks.into_par_iter().for_each(|((out, q), (k, v))| forward_one(out, q, k, v, shape));
    out
}

fn forward_one(out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], shape: Heads) {
    let (dim, width) = (shape.dim, shape.q_width());
    let length = q.len() / width;
    let stride = padded(length);
    let mut scores = vec![0.0; stride];
    for kv in 0..shape.kv_heads {
        let keys = transposed(&head(k, shape.kv_width(), kv, dim), dim);
        let values = head(v, shape.kv_width(), kv, dim);
        for h in kv * shape.group()..(kv + 1) * shape.group() {
            for t in 0..length {
                let at = t * width + h * dim;
                combine(&mut scores[..padded(t + 1)], &q[at..at + dim], &keys, stride);
                let row = &mut scores[..t + 1];
                softmax(row, shape.scale());
                combine(&mut out[at..at + dim], row, &values, dim);
            }
        }
    }
}

/// Gradients with respect to q, k and v.
pub(super) fn backward(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    upstream: &[f32],
    lengths: &[usize],
    shape: Heads,
) -> [Vec<f32>; 3] {
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let (qw, kw) = (shape.q_width(), shape.kv_width());
    let gradients = per_sequence_mut(&mut dq, lengths, qw)
        .into_iter()
        .zip(per_sequence_mut(&mut dk, lengths, kw))
        .zip(per_sequence_mut(&mut dv, lengths, kw));
    let inputs = per_sequence(q, lengths, qw)
        .into_iter()
        .zip(per_sequence(upstream, lengths, qw))
        .zip(per_sequence(k, lengths, kw).into_iter().zip(per_sequence(v, lengths, kw)));
    let tasks: Vec<_> = gradients.zip(inputs).collect();
    tasks.into_par_iter().for_each(|(((dq, dk), dv), ((q, upstream), (k, v)))| {
        backward_one([dq, dk, dv], [q, k, v, upstream], shape);
    });
    [dq, dk, dv]
}

/// Query rows handled together in the backward pass, so that each gradient row of k and v is loaded once for all.
const BLOCK: usize = 32;

fn backward_one([dq, dk, dv]: [&mut [f32]; 3], [q, k, v, upstream]: [&[f32]; 4], shape: Heads) {
    let (dim, width, scale) = (shape.dim, shape.q_width(), shape.scale());
    let length = q.len() / width;
    let stride = padded(length);
    let (mut weights, mut slopes) = (vec![0.0; stride], vec![0.0; stride]);
    // The same of a block of query rows, one line per key: `[length, BLOCK]`.
    let (mut block_weights, mut block_slopes) = (vec![0.0; length * BLOCK], vec![0.0; length * BLOCK]);
    for kv in 0..shape.kv_heads {
        let keys = head(k, shape.kv_width(), kv, dim);
        let values = head(v, shape.kv_width(), kv, dim);
        let (keys_t, values_t) = (transposed(&keys, dim), transposed(&values, dim));
        let (mut dkeys, mut dvalues) = (vec![0.0; keys.len()], vec![0.0; values.len()]);
        for h in kv * shape.group()..(kv + 1) * shape.group() {
            let at = |t: usize| t * width + h * dim;
            for first in (0..length).step_by(BLOCK) {
                let rows = first..(first + BLOCK).min(length);
                for (i, t) in rows.clone().enumerate() {
                    let at = at(t)..at(t) + dim;
                    // P = softmax(q k), dP = upstream v, dS = P (dP - sum P dP)
                    combine(&mut weights[..padded(t + 1)], &q[at.clone()], &keys_t, stride);
                    softmax(&mut weights[..t + 1], scale);
                    combine(&mut slopes[..padded(t + 1)], &upstream[at.clone()], &values_t, stride);
                    let (weights, slopes) = (&weights[..t + 1], &mut slopes[..t + 1]);
                    let [mean] = dot_rows(weights, [slopes]);
                    for (slope, &weight) in slopes.iter_mut().zip(weights) {
                        *slope = weight * (*slope - mean) * scale;
                    }
                    combine(&mut dq[at], slopes, &keys, dim);
                    for (j, (&weight, &slope)) in weights.iter().zip(slopes.iter()).enumerate() {
                        block_weights[j * BLOCK + i] = weight;
                        block_slopes[j * BLOCK + i] = slope;
                    }
                }
                gather(&mut dkeys, &block_slopes, q, rows.clone(), at, dim);
                gather(&mut dvalues, &block_weights, upstream, rows, at, dim);
            }
        }
        for (gradient, part) in [(&mut *dk, dkeys), (&mut *dv, dvalues)] {
            for (row, part) in gradient.chunks_exact_mut(shape.kv_width()).zip(part.chunks_exact(dim)) {
                row[kv * dim..][..dim].copy_from_slice(part);
            }
        }
    }
}

/// `out[j] += Σ_t coefficients[j][t] · x[t]` over a block of query rows `t`, each of which sees the keys `j <= t`.
#[inline(always)]
fn gather(
    out: &mut [f32],
    coefficients: &[f32],
    x: &[f32],
    rows: std::ops::Range<usize>,
    at: impl Fn(usize) -> usize,
    dim: usize,
) {
    for (j, out) in out.chunks_exact_mut(dim).enumerate().take(rows.end) {
        let first = j.max(rows.start);
        let coefficients = &coefficients[j * BLOCK + first - rows.start..][..rows.end - first];
        let (blocks, tail) = out.as_chunks_mut::<32>();
        for (index, block) in blocks.iter_mut().enumerate() {
            let mut sums = *block;
            for (t, &c) in (first..rows.end).zip(coefficients) {
                add_scaled(&mut sums, c, &x[at(t) + index * 32..][..32]);
            }
            *block = sums;
        }
        let done = dim - tail.len();
        for (t, &c) in (first..rows.end).zip(coefficients) {
            add_scaled(tail, c, &x[at(t) + done..][..dim - done]);
        }
    }
}

/// One query row per sequence over the tables, `[tokens, kv_heads · dim]`: the two runs of rows that each may see.
pub(super) fn cached(q: &[f32], keys: &[f32], values: &[f32], spans: &[Span], shape: Heads) -> Vec<f32> {
    let (dim, stride) = (shape.dim, shape.kv_width());
    let mut out = vec![0.0; q.len()];
    let rows = out.par_chunks_exact_mut(shape.q_width()).zip(q.par_chunks_exact(shape.q_width())).zip(spans);
    rows.for_each(|((out, q), [prompt, own])| {
        let mut scores = vec![0.0; prompt.len() + own.len()];
        let mut part = vec![0.0; dim];
        for kv in 0..shape.kv_heads {
            // One head of a run of table rows: what lies between its rows belongs to the other heads.
            let head = |run: &Range<usize>| run.start * stride + kv * dim..(run.end - 1) * stride + (kv + 1) * dim;
            let [prompt_keys, own_keys] = [prompt, own].map(|run| &keys[head(run)]);
            let [prompt_values, own_values] = [prompt, own].map(|run| &values[head(run)]);
            for h in kv * shape.group()..(kv + 1) * shape.group() {
                let q = &q[h * dim..][..dim];
                let (prompt_scores, own_scores) = scores.split_at_mut(prompt.len());
                dots(prompt_scores, q, prompt_keys, stride);
                dots(own_scores, q, own_keys, stride);
                softmax(&mut scores, shape.scale());
                let out = &mut out[h * dim..][..dim];
                combine(out, &scores[..prompt.len()], prompt_values, stride);
                combine(&mut part, &scores[prompt.len()..], own_values, stride);
                out.iter_mut().zip(&part).for_each(|(out, part)| *out += part);
            }
        }
    });
    out
}

/// `out[t] = q · keys[t · stride..]`, four rows at a time, so that their sums do not wait for each other.
fn dots(out: &mut [f32], q: &[f32], keys: &[f32], stride: usize) {
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

/// The products of one row with `N` others.
#[inline(always)]
fn dot_rows<const N: usize>(q: &[f32], rows: [&[f32]; N]) -> [f32; N] {
    let mut sums = [[0.0f32; 8]; N];
    let (whole, tail) = q.as_chunks::<8>();
    for (at, q) in whole.iter().enumerate() {
        for n in 0..N {
            let row = &rows[n][8 * at..][..8];
            for i in 0..8 {
                sums[n][i] = q[i].mul_add(row[i], sums[n][i]);
            }
        }
    }
    let first = 8 * whole.len();
    std::array::from_fn(|n| {
        let s = sums[n];
        let sum = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
        tail.iter().zip(&rows[n][first..]).fold(sum, |sum, (q, k)| q.mul_add(*k, sum))
    })
}
