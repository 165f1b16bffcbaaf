//! Decoding: one new token per row, on the cache.
//!
//! What a row is doing is in `states`, `[rows, 4]`: the table row at which its prompt starts, the prompt's length, the table
//! row at which its completion starts, and how many tokens of that are in the table, the new one not counted.

use cubecl::prelude::*;

use super::least;

/// Fields of a row's state.
pub(crate) const STATE: usize = 4;

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
/// head, which serves the `group` query heads that share it: every key and value is read once.
///
/// Keys come in tiles of one per unit. The sums run over tiles with the largest score so far taken out, as in FlashAttention
/// (arXiv 2205.14135).
///
/// # Shapes
/// - q, out: `[rows, kv_heads · group · dim]`; keys, values: `[tokens, kv_heads · dim]`; states: `[rows, 4]`; `dim` a multiple
///   of the vector
#[cube(launch, address_type = "dynamic")]
pub(crate) fn attention<O: Float, N: Size>(
    q: &Tensor<Vector<f32, N>>,
    keys: &Tensor<Vector<f32, N>>,
    values: &Tensor<Vector<f32, N>>,
    states: &Tensor<i32>,
    out: &mut Tensor<Vector<O, N>>,
    scale: f32,
    kv_heads: usize,
    #[comptime] group: usize,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
    #[define(O)] _stored: ElemType,
) {
    let head = CUBE_POS % kv_heads;
    let row = CUBE_POS / kv_heads;
    if row >= states.shape(0) {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let state = row * STATE;
    let (prompt_start, prompt) = (states[state] as usize, states[state + 1] as usize);
    let (own_start, own) = (states[state + 2] as usize, states[state + 3] as usize + 1);
    let count = prompt + own;
    let line = kv_heads * vectors;
    let from = CUBE_POS * comptime!(group * vectors);

    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(group * vectors));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(group * units));
    let mut fades = Shared::<[f32]>::new_slice(group);
    let mut slots = Shared::<[f32]>::new_slice(units);
    let mut i = unit;
    while i < comptime!(group * vectors) {
        queries[i] = q[from + i] * Vector::new(scale);
        i += units;
    }
    // For scores a unit is one of a head's, for values it has one vector of some keys.
    let per_head = comptime!(units / group.next_power_of_two());
    let (own_head, lane) = (unit / per_head, unit % per_head);
    let mut largest = f32::new(-1e30);
    let mut total = 0.0f32;
    let parts = comptime!(units / vectors);
    let (part, vector) = (unit / vectors, unit % vectors);
    let mut sums = Array::<Vector<f32, N>>::new(group);
    #[unroll]
    for g in 0..group {
        sums[g] = Vector::new(0.0f32);
    }
    sync_cube();

    let mut start = 0usize;
    while start < count {
        let here = least(units, count - start);
        // 1. Scores of one key.
        if unit < here {
            let at = token(start + unit, prompt, prompt_start, own_start) * line + head * vectors;
            let mut scores = Array::<Vector<f32, N>>::new(group);
            #[unroll]
            for g in 0..group {
                scores[g] = Vector::new(0.0f32);
            }
            #[unroll]
            for i in 0..vectors {
                let key = keys[at + i];
                #[unroll]
                for g in 0..group {
                    scores[g] += key * queries[comptime!(g * vectors + i)];
                }
            }
            #[unroll]
            for g in 0..group {
                let mut score = 0.0f32;
                #[unroll]
                for i in 0..N::value() {
                    score += scores[g].extract(i);
                }
                weights[comptime!(g * units) + unit] = score;
            }
        }
        sync_cube();
        // 2. Weights, head by head, with the largest score taken out.
        let mut most = largest;
        if own_head < group {
            let mut j = lane;
            while j < here {
                let score = weights[own_head * units + j];
                if score > most {
                    most = score;
                }
                j += per_head;
            }
        }
        slots[unit] = most;
        sync_cube();
        let mut active = comptime!(per_head / 2).runtime();
        while active > 0 {
            if lane < active {
                let other = slots[unit + active];
                if other > slots[unit] {
                    slots[unit] = other;
                }
            }
            sync_cube();
            active /= 2;
        }
        let most = slots[own_head * per_head];
        sync_cube();
        let mut sum = 0.0f32;
        if own_head < group {
            let mut j = lane;
            while j < here {
                let weight = (weights[own_head * units + j] - most).exp();
                weights[own_head * units + j] = weight;
                sum += weight;
                j += per_head;
            }
        }
        slots[unit] = sum;
        let fade = (largest - most).exp();
        if own_head < group && lane == 0 {
            fades[own_head] = fade;
        }
        largest = most;
        sync_cube();
        let mut active = comptime!(per_head / 2).runtime();
        while active > 0 {
            if lane < active {
                let other = slots[unit + active];
                slots[unit] += other;
            }
            sync_cube();
            active /= 2;
        }
        total = total * fade + slots[own_head * per_head];
        // 3. Values.
        #[unroll]
        for g in 0..group {
            sums[g] *= Vector::new(fades[g]);
        }
        if part < parts {
            let column = head * vectors + vector;
            let mut j = part;
            // Several loads are under way at a time.
            while j + 3 * parts < here {
                let mut values_here = Array::<Vector<f32, N>>::new(4usize);
                #[unroll]
                for i in 0..4 {
                    let token = token(start + j + i * parts, prompt, prompt_start, own_start);
                    values_here[i] = values[token * line + column];
                }
                #[unroll]
                for i in 0..4 {
                    #[unroll]
                    for g in 0..group {
                        sums[g] += values_here[i] * Vector::new(weights[comptime!(g * units) + j + i * parts]);
                    }
                }
                j += 4 * parts;
            }
            while j < here {
                let token = token(start + j, prompt, prompt_start, own_start);
                let value = values[token * line + column];
                #[unroll]
                for g in 0..group {
                    sums[g] += value * Vector::new(weights[comptime!(g * units) + j]);
                }
                j += parts;
            }
        }
        sync_cube();
        start += units;
    }

    // The parts of the sums, in order.
    if own_head < group && lane == 0 {
        fades[own_head] = 1.0 / total;
    }
    let mut shares = Shared::<[Vector<f32, N>]>::new_slice(comptime!(parts * vectors));
    #[unroll]
    for g in 0..group {
        if part < parts {
            shares[unit] = sums[g];
        }
        sync_cube();
        if unit < vectors {
            let mut sum = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for other in 0..parts {
                sum += shares[other * vectors + unit];
            }
            out[from + comptime!(g * vectors) + unit] = Vector::cast_from(sum * Vector::new(fades[g]));
        }
        sync_cube();
    }
}

/// The table row of the token at place `at` of a sequence.
#[cube]
fn token(at: usize, prompt: usize, prompt_start: usize, own_start: usize) -> usize {
    if at < prompt { prompt_start + at } else { own_start + (at - prompt) }
}
