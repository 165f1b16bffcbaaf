//! Decoding: one new token per row, on the KV cache.
//!
//! `states`, `[rows, 4]`, has for each row: the table row at which its prompt starts, the prompt length, the table row
//! at which its completion starts, and the completion tokens that are in the table, without the new one.

use cubecl::prelude::*;

use super::least;

/// Fields per row of `states`.
pub(crate) const STATE: usize = 4;

/// Add biases, apply rotary embedding to queries and keys, and store keys and values in the tables. One thread per
/// pair of elements, `i` and `i + dim / 2` of a head.
///
/// The pairs of a row are those of its queries, of its keys, and of its values (which are not rotated).
///
/// # Shapes
/// - q: `[rows, heads · dim]`; k, v: `[rows, kv_heads · dim]`; biases: of the same widths, not read unless `biased`
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
        let pair = biased_pair(q, row * width, q_bias, at, half, biased);
        let (first, second) = rotate(pair, query_angles, angle, half, rotates);
        out[row * width + at] = first;
        out[row * width + at + half] = second;
    } else if head < q_heads + kv_heads {
        let at = (head - q_heads) * dim + i;
        let pair = biased_pair(k, row * kv_width, k_bias, at, half, biased);
        let (first, second) = rotate(pair, angles, angle, half, rotates);
        keys[place + at] = first;
        keys[place + at + half] = second;
    } else {
        let at = (head - q_heads - kv_heads) * dim + i;
        let (first, second) = biased_pair(v, row * kv_width, v_bias, at, half, biased);
        values[place + at] = first;
        values[place + at + half] = second;
    }
}

/// Return elements `at` and `at + half` of the row that begins at `from`, with their biases if `biased`.
#[cube]
fn biased_pair(
    x: &Tensor<f32>,
    from: usize,
    bias: &Tensor<f32>,
    at: usize,
    half: usize,
    #[comptime] biased: bool,
) -> (f32, f32) {
    let mut first = x[from + at];
    let mut second = x[from + at + half];
    if biased {
        first += bias[at];
        second += bias[at + half];
    }
    (first, second)
}

/// Rotate a pair by the angle whose cosine is at `angle` and whose sine is at `angle + half`.
#[cube]
fn rotate(pair: (f32, f32), angles: &Tensor<f32>, angle: usize, half: usize, #[comptime] rotates: bool) -> (f32, f32) {
    let (first, second) = pair;
    if rotates {
        let (cos, sin) = (angles[angle], angles[angle + half]);
        (first * cos - second * sin, second * cos + first * sin)
    } else {
        pair
    }
}

/// Copy rows of keys or values to the table rows in `writes`; one thread per element.
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

/// Compile-time parameters of attention: query heads per key head, vectors per head, threads per block.
///
/// A thread scores one key; then threads are divided among query heads (softmax), and vectors and keys (values).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct DecodeShape {
    pub group: usize,
    pub vectors: usize,
    pub units: usize,
}

impl DecodeShape {
    /// Threads per query head, a power of two.
    fn per_head(&self) -> usize {
        self.units / self.group.next_power_of_two()
    }

    /// Threads with the same vector of values: the number of shares of the keys.
    fn parts(&self) -> usize {
        self.units / self.vectors
    }
}

/// Locations of a row's keys and values: its prompt in one run of the table, its completion in another.
#[derive(CubeType)]
struct Past {
    prompt: usize,
    prompt_start: usize,
    own_start: usize,
    /// Vectors per row of the table.
    line: usize,
    /// First vector of the key head in a table row.
    head: usize,
}

/// Compute `softmax(q kᵀ · scale) v` over the prompt and the completion of each row, the new token included. A block
/// computes one row and key head, for the `group` query heads that share it: every key and value is read once.
///
/// Keys are processed in tiles of one per thread. Sums are relative to the running maximum of the scores and rescaled
/// when it grows, as in FlashAttention (arXiv 2205.14135). Shared memory: scaled queries, `[group, vectors]`; weights
/// of the tile, `[group, units]`; a factor per query head; a slot per thread for reductions.
///
/// # Shapes
/// - q, out: `[rows, kv_heads · group · dim]`; keys, values: `[tokens, kv_heads · dim]`; states: `[rows, 4]`
/// - `dim` is a multiple of the vector
#[cube(launch, address_type = "dynamic")]
pub(crate) fn attention<O: Float, N: Size>(
    q: &Tensor<Vector<f32, N>>,
    keys: &Tensor<Vector<f32, N>>,
    values: &Tensor<Vector<f32, N>>,
    states: &Tensor<i32>,
    out: &mut Tensor<Vector<O, N>>,
    scale: f32,
    kv_heads: usize,
    #[comptime] heads: DecodeShape,
    #[define(O)] _stored: ElemType,
) {
    let (group, vectors, units) = comptime!((heads.group, heads.vectors, heads.units));
    let row = CUBE_POS / kv_heads;
    if row >= states.shape(0) {
        terminate!();
    }
    let unit = UNIT_POS as usize;
    let state = row * STATE;
    let past = Past {
        prompt: states[state + 1] as usize,
        prompt_start: states[state] as usize,
        own_start: states[state + 2] as usize,
        line: kv_heads * vectors,
        head: CUBE_POS % kv_heads * vectors,
    };
    let count = past.prompt + states[state + 3] as usize + 1;
    let from = CUBE_POS * comptime!(group * vectors);

    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(group * vectors));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(group * units));
    let mut factors = Shared::<[f32]>::new_slice(group);
    let mut slots = Shared::<[f32]>::new_slice(units);
    let mut i = unit;
    while i < comptime!(group * vectors) {
        queries[i] = q[from + i] * Vector::new(scale);
        i += units;
    }
    let per_head = comptime!(heads.per_head());
    let (own_head, lane) = (unit / per_head, unit % per_head);
    let own_weights = own_head * units;
    let first = own_head < group && lane == 0;
    let mut running_max = f32::new(-1e30);
    let mut total = 0.0f32;
    let mut sums = Array::<Vector<f32, N>>::new(group);
    #[unroll]
    for g in 0..group {
        sums[g] = Vector::new(0.0f32);
    }
    sync_cube();

    let mut start = 0usize;
    while start < count {
        let tile_keys = least(units, count - start);
        if unit < tile_keys {
            score::<N>(keys, table_index(start + unit, &past), &queries, &mut weights, heads);
        }
        sync_cube();
        // Weights relative to the running maximum; those of a query head are computed by its threads.
        let mut new_max = running_max;
        if own_head < group {
            let mut j = lane;
            while j < tile_keys {
                let score = weights[own_weights + j];
                if score > new_max {
                    new_max = score;
                }
                j += per_head;
            }
        }
        let new_max = max_of_head(&mut slots, new_max, per_head);
        let mut sum = 0.0f32;
        if own_head < group {
            let mut j = lane;
            while j < tile_keys {
                let weight = (weights[own_weights + j] - new_max).exp();
                weights[own_weights + j] = weight;
                sum += weight;
                j += per_head;
            }
        }
        let factor = (running_max - new_max).exp();
        if first {
            factors[own_head] = factor;
        }
        running_max = new_max;
        total = total * factor + sum_of_head(&mut slots, sum, per_head);
        #[unroll]
        for g in 0..group {
            sums[g] *= Vector::new(factors[g]);
        }
        add_values::<N>(values, start, tile_keys, &past, &weights, &mut sums, heads);
        sync_cube();
        start += units;
    }

    if first {
        factors[own_head] = 1.0 / total;
    }
    gather::<O, N>(&sums, &factors, out, from, heads);
}

/// Store the scores of this thread's key, which begins at `at`, for all query heads.
#[cube]
fn score<N: Size>(
    keys: &Tensor<Vector<f32, N>>,
    at: usize,
    queries: &Shared<[Vector<f32, N>]>,
    weights: &mut Shared<[f32]>,
    #[comptime] heads: DecodeShape,
) {
    let (group, vectors, units) = comptime!((heads.group, heads.vectors, heads.units));
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
        weights[comptime!(g * units) + UNIT_POS as usize] = score;
    }
}

/// Maximum of `value` over the `units` neighbouring threads of a query head, returned to each.
#[cube]
fn max_of_head(slots: &mut Shared<[f32]>, value: f32, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let lane = unit % units;
    slots[unit] = value;
    sync_cube();
    let mut active = comptime!(units / 2).runtime();
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
    let largest = slots[unit - lane];
    sync_cube(); // before the slots are reused
    largest
}

/// Sum of `value` over the `units` neighbouring threads of a query head, returned to each.
#[cube]
fn sum_of_head(slots: &mut Shared<[f32]>, value: f32, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let lane = unit % units;
    slots[unit] = value;
    sync_cube();
    let mut active = comptime!(units / 2).runtime();
    while active > 0 {
        if lane < active {
            let other = slots[unit + active];
            slots[unit] += other;
        }
        sync_cube();
        active /= 2;
    }
    slots[unit - lane]
}

/// Add the weighted values of the tile's keys, which begin at `start`, to the sums. A thread adds one vector of its
/// share of the keys, for all query heads.
#[cube]
fn add_values<N: Size>(
    values: &Tensor<Vector<f32, N>>,
    start: usize,
    tile_keys: usize,
    past: &Past,
    weights: &Shared<[f32]>,
    sums: &mut Array<Vector<f32, N>>,
    #[comptime] heads: DecodeShape,
) {
    let (group, units, parts) = comptime!((heads.group, heads.units, heads.parts()));
    let (part, vector) = (UNIT_POS as usize / comptime!(heads.vectors), UNIT_POS as usize % comptime!(heads.vectors));
    if part < parts {
        let mut j = part;
        // Four loads are in flight at a time.
        while j + 3 * parts < tile_keys {
            let mut loaded = Array::<Vector<f32, N>>::new(4usize);
            #[unroll]
            for i in 0..4 {
                loaded[i] = values[table_index(start + j + i * parts, past) + vector];
            }
            #[unroll]
            for i in 0..4 {
                #[unroll]
                for g in 0..group {
                    sums[g] += loaded[i] * Vector::new(weights[comptime!(g * units) + j + i * parts]);
                }
            }
            j += 4 * parts;
        }
        while j < tile_keys {
            let value = values[table_index(start + j, past) + vector];
            #[unroll]
            for g in 0..group {
                sums[g] += value * Vector::new(weights[comptime!(g * units) + j]);
            }
            j += parts;
        }
    }
}

/// Add the threads' sums in order, through shared memory, `[parts, vectors]`. Write them, times the factor of each
/// query head, to the row that begins at `from`.
#[cube]
fn gather<O: Float, N: Size>(
    sums: &Array<Vector<f32, N>>,
    factors: &Shared<[f32]>,
    out: &mut Tensor<Vector<O, N>>,
    from: usize,
    #[comptime] heads: DecodeShape,
) {
    let (group, vectors, parts) = comptime!((heads.group, heads.vectors, heads.parts()));
    let unit = UNIT_POS as usize;
    let mut shares = Shared::<[Vector<f32, N>]>::new_slice(comptime!(parts * vectors));
    #[unroll]
    for g in 0..group {
        if unit < comptime!(parts * vectors) {
            shares[unit] = sums[g];
        }
        sync_cube();
        if unit < vectors {
            let mut sum = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for other in 0..parts {
                sum += shares[other * vectors + unit];
            }
            out[from + comptime!(g * vectors) + unit] = Vector::cast_from(sum * Vector::new(factors[g]));
        }
        sync_cube();
    }
}

/// Index of the first vector of the key head at position `at` of a sequence.
#[cube]
fn table_index(at: usize, past: &Past) -> usize {
    let token = if at < past.prompt { past.prompt_start + at } else { past.own_start + (at - past.prompt) };
    token * past.line + past.head
}
