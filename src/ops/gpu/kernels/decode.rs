//! Decoding: one new token per row, on the cache.
//!
//! What a row is doing is in `states`, `[rows, 4]`: the table row at which its prompt starts, the prompt's length, the table
//! row at which its completion starts, and how many tokens of that are in the table, the new one not counted.

use cubecl::prelude::*;

/// Fields of a row's state.
pub(crate) const STATE: usize = 4;

/// Keys looked at between two rescalings of the sums of attention.
pub(crate) const TILE: usize = 32;

/// Adds biases, rotates queries and keys, and stores keys and values in the tables; a unit per pair of elements.
///
/// Pairs of a row: those of its queries, of its keys, and of its values (which are not rotated).
///
/// # Shapes
/// - q: `[rows, heads · dim]`; k, v: `[rows, kv_heads · dim]`; biases: as wide as theirs, anything where there is none
/// - angles: `[positions, dim]`, cosines of the pairs before their sines, for keys; `query_angles` for queries
/// - keys, values: `[tokens, kv_heads · dim]`; out: as q
#[cube(launch, address_type = "dynamic")]
pub(crate) fn rotate_and_store(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    q_bias: &Tensor<f32>,
    k_bias: &Tensor<f32>,
    v_bias: &Tensor<f32>,
    query_angles: &Tensor<f32>,
    angles: &Tensor<f32>,
    states: &Tensor<i32>,
    keys: &mut Tensor<f32>,
    values: &mut Tensor<f32>,
    out: &mut Tensor<f32>,
    #[comptime] dim: usize,
    #[comptime] rotates: bool,
    #[comptime] biased: bool,
) {
    let (rows, width, kv_width) = (q.shape(0), q.shape(1), k.shape(1));
    let half = comptime!(dim / 2);
    let pairs = (width + 2 * kv_width) / 2;
    if ABSOLUTE_POS >= rows * pairs {
        terminate!();
    }
    let (row, pair) = (ABSOLUTE_POS / pairs, ABSOLUTE_POS % pairs);
    let (head, i) = (pair / half, pair % half);
    let state = row * STATE;
    let (prompt, own, decoded) = (states[state + 1] as usize, states[state + 2] as usize, states[state + 3] as usize);
    let angle = (prompt + decoded) * dim + i;
    let place = (own + decoded) * kv_width;
    let (q_heads, kv_heads) = (width / dim, kv_width / dim);
    if head < q_heads {
        let at = head * dim + i;
        let mut first = q[row * width + at];
        let mut second = q[row * width + at + half];
        if biased {
            first += q_bias[at];
            second += q_bias[at + half];
        }
        if rotates {
            let (cos, sin) = (query_angles[angle], query_angles[angle + half]);
            let turned = first * cos - second * sin;
            second = second * cos + first * sin;
            first = turned;
        }
        out[row * width + at] = first;
        out[row * width + at + half] = second;
    } else if head < q_heads + kv_heads {
        let at = (head - q_heads) * dim + i;
        let mut first = k[row * kv_width + at];
        let mut second = k[row * kv_width + at + half];
        if biased {
            first += k_bias[at];
            second += k_bias[at + half];
        }
        if rotates {
            let (cos, sin) = (angles[angle], angles[angle + half]);
            let turned = first * cos - second * sin;
            second = second * cos + first * sin;
            first = turned;
        }
        keys[place + at] = first;
        keys[place + at + half] = second;
    } else {
        let at = (head - q_heads - kv_heads) * dim + i;
        let mut first = v[row * kv_width + at];
        let mut second = v[row * kv_width + at + half];
        if biased {
            first += v_bias[at];
            second += v_bias[at + half];
        }
        values[place + at] = first;
        values[place + at + half] = second;
    }
}

/// Puts rows of keys and values where `writes` says; a unit per element.
///
/// # Shapes
/// - rows: `[n, width]`; writes: `[n]`; table: `[tokens, width]`
#[cube(launch, address_type = "dynamic")]
pub(crate) fn write_rows(rows: &Tensor<f32>, writes: &Tensor<i32>, table: &mut Tensor<f32>) {
    let width = rows.shape(1);
    if ABSOLUTE_POS >= rows.shape(0) * width {
        terminate!();
    }
    let (row, column) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
    table[writes[row] as usize * width + column] = rows[ABSOLUTE_POS];
}

/// `softmax(q kᵀ · scale) v` over the prompt and the completion of each row, the new token included; a cube per row and key
/// head, which serves the `group` query heads that share it.
///
/// The sums run over tiles of keys with the largest score so far taken out, as in FlashAttention (arXiv 2205.14135).
///
/// # Shapes
/// - q, out: `[rows, kv_heads · group · dim]`; keys, values: `[tokens, kv_heads · dim]`; states: `[rows, 4]`
#[cube(launch, address_type = "dynamic")]
pub(crate) fn attention<O: Float>(
    q: &Tensor<f32>,
    keys: &Tensor<f32>,
    values: &Tensor<f32>,
    states: &Tensor<i32>,
    out: &mut Tensor<O>,
    scale: f32,
    #[comptime] group: usize,
    #[comptime] dim: usize,
    #[define(O)] _stored: ElemType,
) {
    let kv_width = keys.shape(1);
    let kv_heads = kv_width / dim;
    if CUBE_POS >= q.shape(0) * kv_heads {
        terminate!();
    }
    let (row, head) = (CUBE_POS / kv_heads, CUBE_POS % kv_heads);
    let (unit, units) = (UNIT_POS as usize, CUBE_DIM as usize);
    let state = row * STATE;
    let (prompt_start, prompt) = (states[state] as usize, states[state + 1] as usize);
    let (own_start, own) = (states[state + 2] as usize, states[state + 3] as usize + 1);
    let count = prompt + own;

    // A key has one number more than it needs, so that units of a column meet different banks.
    let padded = comptime!(dim + 1);
    let width = comptime!(group * dim);
    let mut tile = Shared::new_slice(comptime!(TILE * (dim + 1)));
    let mut queries = Shared::new_slice(width);
    let mut sums = Shared::new_slice(width);
    let mut weights = Shared::new_slice(comptime!(group * TILE));
    let mut largest = Shared::new_slice(group);
    let mut total = Shared::new_slice(group);
    let mut fade = Shared::new_slice(group);

    let from = (row * kv_heads + head) * width;
    let mut i = unit;
    while i < width {
        queries[i] = q[from + i] * scale;
        sums[i] = 0.0f32;
        i += units;
    }
    let mut g = unit;
    while g < group {
        largest[g] = f32::new(-1e30);
        total[g] = 0.0f32;
        g += units;
    }

    let mut start = 0usize;
    while start < count {
        let mut here = count - start;
        if here > TILE {
            here = TILE;
        }
        // 1. The keys of the tile.
        let mut i = unit;
        while i < here * dim {
            let (j, d) = (i / dim, i % dim);
            let token = token(start + j, prompt, prompt_start, own_start);
            tile[j * padded + d] = keys[token * kv_width + head * dim + d];
            i += units;
        }
        sync_cube();
        // 2. Scores.
        let mut i = unit;
        while i < here * group {
            let (g, j) = (i / here, i % here);
            let mut score = 0.0f32;
            for d in 0..dim {
                score += queries[g * dim + d] * tile[j * padded + d];
            }
            weights[g * TILE + j] = score;
            i += units;
        }
        sync_cube();
        // 3. What takes the largest out, head by head.
        let mut g = unit;
        while g < group {
            let before = largest[g];
            let mut most = before;
            for j in 0..here {
                let score = weights[g * TILE + j];
                if score > most {
                    most = score;
                }
            }
            let mut sum = 0.0f32;
            for j in 0..here {
                let weight = (weights[g * TILE + j] - most).exp();
                weights[g * TILE + j] = weight;
                sum += weight;
            }
            let factor = (before - most).exp();
            largest[g] = most;
            fade[g] = factor;
            total[g] = total[g] * factor + sum;
            g += units;
        }
        sync_cube();
        // 4. Values.
        let mut i = unit;
        while i < width {
            let (g, d) = (i / dim, i % dim);
            let mut sum = sums[i] * fade[g];
            for j in 0..here {
                let token = token(start + j, prompt, prompt_start, own_start);
                sum += weights[g * TILE + j] * values[token * kv_width + head * dim + d];
            }
            sums[i] = sum;
            i += units;
        }
        sync_cube();
        start += TILE;
    }
    let mut i = unit;
    while i < width {
        out[from + i] = O::cast_from(sums[i] / total[i / dim]);
        i += units;
    }
}

/// The table row of the token at place `at` of a sequence.
#[cube]
fn token(at: usize, prompt: usize, prompt_start: usize, own_start: usize) -> usize {
    if at < prompt { prompt_start + at } else { own_start + (at - prompt) }
}
