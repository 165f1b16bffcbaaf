//! Row-wise operations on slices: one pass over memory, rows distributed over all cores, loops the compiler vectorises.

use rayon::prelude::*;

use crate::ops::plain;

/// Minimum number of elements per task, so that scheduling costs little.
pub(super) const GRAIN: usize = 16 * 1024;

/// Rows per task for rows of `width` elements.
pub(super) fn rows_per_task(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// `e^x` to within 2 units in the last place on `[-87, 88]`, clamped outside; branch-free, so that loops vectorise.
///
/// Range reduction by powers of two and a degree-6 polynomial (the classic Cephes scheme).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to a whole number
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the reduced argument keeps its low bits.
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = 1.987_569_2e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_66);
    let p = p.mul_add(r, 0.5);
    let value = (p * r).mul_add(r, r) + 1.0;
    let power = f32::from_bits(
        ((shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32).wrapping_add(127) << 23) as u32,
    );
    value * power
}

pub(super) const LANES: usize = 16;

/// Sum of `f(x)` in a fixed order that vectorises: sixteen running sums, then the tail.
#[inline(always)]
pub(super) fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail: f32 = chunks.remainder().iter().map(|&x| f(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// Sum of `a · b · c`, in the same order as [`sum_by`].
#[inline(always)]
fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let whole = a.len() / LANES * LANES;
    for ((a, b), c) in
        a[..whole].chunks_exact(LANES).zip(b[..whole].chunks_exact(LANES)).zip(c[..whole].chunks_exact(LANES))
    {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i] * c[i];
        }
    }
    let tail: f32 = (whole..a.len()).map(|i| a[i] * b[i] * c[i]).sum();
    lanes.iter().sum::<f32>() + tail
}

#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().copied().fold(tail, f32::max)
}

/// Return `len` zeros.
fn buffer(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

/// Repeat `row` `rows` times; returns zeros of the given width if it is empty.
pub(super) fn repeat(row: &[f32], rows: usize, width: usize) -> Vec<f32> {
    let mut out = buffer(rows * width);
    if !row.is_empty() {
        out.par_chunks_mut(rows_per_task(width) * width)
            .for_each(|out| out.chunks_exact_mut(width).for_each(|out| out.copy_from_slice(row)));
    }
    out
}

/// Sum over all rows.
pub(super) fn sum_rows(x: &[f32], width: usize) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = (x.par_chunks(rows_per_task(width) * width))
        .map(|x| {
            let mut sum = vec![0.0; width];
            x.chunks_exact(width).for_each(|row| sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x));
            sum
        })
        .collect();
    let mut sum = vec![0.0; width];
    for part in partial {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sum
}

pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let width = weight.len();
    let mut out = buffer(x.len());
    let task = rows_per_task(width) * width;
    out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let inverse = inverse_rms(x, epsilon);
            for i in 0..width {
                out[i] = x[i] * inverse * weight[i];
            }
        }
    });
    out
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum_by(x, |x| x * x) / x.len() as f32 + epsilon).sqrt()
}

/// Gradients of [`rms_norm`] with respect to `x` and `weight`:
/// `dx = s·(g·w) − x·s³/n·Σ(g·w·x)` and `dw = Σ_rows g·x·s`, with `s` the inverse root mean square.
pub(super) fn rms_norm_backward(x: &[f32], weight: &[f32], upstream: &[f32], epsilon: f32) -> (Vec<f32>, Vec<f32>) {
    let width = weight.len();
    let mut dx = buffer(x.len());
    let task = rows_per_task(width) * width;
    let partial: Vec<Vec<f32>> = (dx.par_chunks_mut(task).zip(x.par_chunks(task)).zip(upstream.par_chunks(task)))
        .map(|((dx, x), g)| {
            let mut dweight = vec![0.0; width];
            for ((dx, x), g) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(g.chunks_exact(width)) {
                let s = inverse_rms(x, epsilon);
                let pull = s * s * s / width as f32 * dot3(g, weight, x);
                for i in 0..width {
                    dx[i] = s * g[i] * weight[i] - x[i] * pull;
                    dweight[i] += g[i] * x[i] * s;
                }
            }
            dweight
        })
        .collect();
    // Summed in row order, so that the result does not depend on scheduling.
    let mut dweight = vec![0.0; width];
    for part in partial {
        dweight.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    (dx, dweight)
}

#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// An activation of the form `x · σ(v(x))`.
pub(super) trait Activation {
    /// `v(x)` and its derivative.
    fn inner(x: f32) -> (f32, f32);
}

/// `x · σ(x)`.
#[derive(Debug)]
pub(super) struct Silu;

impl Activation for Silu {
    #[inline(always)]
    fn inner(x: f32) -> (f32, f32) {
        (x, 1.0)
    }
}

/// GELU with the tanh approximation: `(1 + tanh u) / 2 = σ(2u)`.
#[derive(Debug)]
pub(super) struct Gelu;

impl Activation for Gelu {
    #[inline(always)]
    fn inner(x: f32) -> (f32, f32) {
        const SLOPE: f32 = 2.0 * plain::SLOPE as f32;
        const CUBIC: f32 = plain::CUBIC as f32;
        (SLOPE * (x + CUBIC * x * x * x), SLOPE * (1.0 + 3.0 * CUBIC * x * x))
    }
}

/// `activation(gate) · up`.
pub(super) fn gated<A: Activation>(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = buffer(gate.len());
    out.par_chunks_mut(GRAIN).zip(gate.par_chunks(GRAIN)).zip(up.par_chunks(GRAIN)).for_each(|((out, gate), up)| {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(A::inner(gate).0) * up;
        }
    });
    out
}

/// Gradients of [`gated`] with respect to `gate` and `up`.
pub(super) fn gated_backward<A: Activation>(gate: &[f32], up: &[f32], upstream: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (buffer(gate.len()), buffer(gate.len()));
    let outputs = dgate.par_chunks_mut(GRAIN).zip(dup.par_chunks_mut(GRAIN));
    let inputs = gate.par_chunks(GRAIN).zip(up.par_chunks(GRAIN)).zip(upstream.par_chunks(GRAIN));
    outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), g))| {
        for i in 0..gate.len() {
            let (inner, slope) = A::inner(gate[i]);
            let s = sigmoid(inner);
            let activated = gate[i] * s;
            dgate[i] = g[i] * up[i] * (s + activated * (1.0 - s) * slope);
            dup[i] = g[i] * activated;
        }
    });
    (dgate, dup)
}

/// Rotate every head of every row by `direction` times the row's angles.
///
/// `x` is `[rows, heads, 2 · half]`, the tables `[rows, half]`.
pub(super) fn rotary(x: &[f32], [cos, sin]: [&[f32]; 2], heads: usize, half: usize, direction: f32) -> Vec<f32> {
    let mut out = buffer(x.len());
    let width = heads * 2 * half;
    let task_rows = rows_per_task(width);
    out.par_chunks_mut(task_rows * width)
        .zip(x.par_chunks(task_rows * width))
        .zip(cos.par_chunks(task_rows * half).zip(sin.par_chunks(task_rows * half)))
        .for_each(|((out, x), (cos, sin))| {
            let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
            for ((out, x), (cos, sin)) in rows.zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
                for (out, x) in out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                    let (first, second) = x.split_at(half);
                    let (out_first, out_second) = out.split_at_mut(half);
                    for i in 0..half {
                        let sin = sin[i] * direction;
                        out_first[i] = first[i] * cos[i] - second[i] * sin;
                        out_second[i] = second[i] * cos[i] + first[i] * sin;
                    }
                }
            }
        });
    out
}

/// Statistics of `softmax(logits / T)` of one row, computed in one pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softmax {
    /// The largest logit.
    pub max: f32,
    /// `Z = Σ e^((z − max) / T)`.
    pub normaliser: f32,
    /// `ln Z − Σ p·(z − max)/T`, in nats.
    pub entropy: f32,
    /// `Σ p²`: the probability that two samples are equal.
    pub collision: f32,
    /// `Σ p² ln p`.
    pub collision_log: f32,
}

pub(crate) fn softmax(row: &[f32], inverse_temperature: f32) -> Softmax {
    let max = max(row);
    // Σ e, Σ e·z, Σ e², Σ e²·z with e = e^z.
    let mut lanes = [[0.0f32; LANES]; 4];
    let (whole, tail) = row.as_chunks::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            let z = (chunk[i] - max) * inverse_temperature;
            let e = exp(z);
            lanes[0][i] += e;
            lanes[1][i] += e * z;
            lanes[2][i] += e * e;
            lanes[3][i] += e * e * z;
        }
    }
    let mut sums = lanes.map(|lanes| lanes.iter().sum::<f32>());
    for z in tail.iter().map(|z| (z - max) * inverse_temperature) {
        let e = exp(z);
        for (sum, term) in sums.iter_mut().zip([e, e * z, e * e, e * e * z]) {
            *sum += term;
        }
    }
    let [normaliser, weighted, squares, weighted_squares] = sums;
    let collision = squares / (normaliser * normaliser);
    Softmax {
        max,
        normaliser,
        entropy: normaliser.ln() - weighted / normaliser,
        collision,
        collision_log: weighted_squares / (normaliser * normaliser) - normaliser.ln() * collision,
    }
}
