//! Products of few rows without tensor cores, as in decoding in f32: the right-hand side is read from memory once per
//! 16 rows, in whole vectors, by all units of the device.

#![allow(clippy::collapsible_if, reason = "the outer condition is known when the kernel is compiled")]

use cubecl::prelude::*;

use super::least;

/// Elements of a vector: columns of a unit, and terms that it reads at a time.
pub(crate) const VECTOR: usize = 4;
/// Column vectors of a cube.
const COLUMN_VECTORS: usize = 8;
/// Columns of a cube.
pub(crate) const COLUMNS: usize = COLUMN_VECTORS * VECTOR;
/// Units that divide the terms of a column.
const PARTS: usize = 32;
/// Units of a cube.
pub(crate) const UNITS: usize = COLUMN_VECTORS * PARTS;
/// Rows of a cube: a unit keeps `ROWS` x `VECTOR` sums in registers.
pub(crate) const ROWS: usize = 16;
/// Rows whose parts are in shared memory (16 KiB) at a time.
const ROWS_AT_ONCE: usize = 4;

/// One to three products `lhs · rhs` with the same left-hand side. A cube computes [`ROWS`] x [`COLUMNS`] elements of
/// one product; cubes of the same columns follow one another, so that the cache serves all but the first. Each unit
/// sums every [`PARTS`]-th vector of terms for four columns; then the sums of the units are added in order.
///
/// # Shapes
/// - lhs: `[m, k]`, its rows `lhs_stride` vectors apart; out: `[m, columns]`, contiguous
/// - rhs: `[k, columns]`: its rows `rhs_stride` vectors apart, or its columns where `column_major`
/// - `k`, `columns`: in vectors
#[cube(launch, address_type = "dynamic")]
pub(crate) fn scalar_few_rows<E: Float, N: Size>(
    lhs: &[Vector<E, N>],
    rhs_0: &[Vector<E, N>],
    rhs_1: &[Vector<E, N>],
    rhs_2: &[Vector<E, N>],
    out_0: &mut [Vector<f32, N>],
    out_1: &mut [Vector<f32, N>],
    out_2: &mut [Vector<f32, N>],
    lhs_stride: usize,
    rhs_stride_0: usize,
    rhs_stride_1: usize,
    rhs_stride_2: usize,
    columns_0: usize,
    columns_1: usize,
    columns_2: usize,
    m: usize,
    k: usize,
    #[comptime] products: usize,
    #[comptime] column_major: bool,
    #[define(E)] _format: ElemType,
) {
    let mut parts = Shared::<[Vector<f32, N>]>::new_slice(comptime!(ROWS_AT_ONCE * UNITS));
    let row_blocks = (m + comptime!(ROWS - 1)) / ROWS;
    let block = CUBE_POS / row_blocks;
    let rows = CubeRows { first: CUBE_POS % row_blocks * ROWS, m, stride: lhs_stride, k };
    let blocks_0 = (columns_0 + comptime!(COLUMN_VECTORS - 1)) / COLUMN_VECTORS;
    if block < blocks_0 {
        part::<E, N>(lhs, rhs_0, out_0, &mut parts, &rows, rhs_stride_0, block, columns_0, column_major);
    }
    if products > 1 {
        let blocks_1 = (columns_1 + comptime!(COLUMN_VECTORS - 1)) / COLUMN_VECTORS;
        if block >= blocks_0 && block < blocks_0 + blocks_1 {
            let block = block - blocks_0;
            part::<E, N>(lhs, rhs_1, out_1, &mut parts, &rows, rhs_stride_1, block, columns_1, column_major);
        }
        if products > 2 {
            let blocks_2 = (columns_2 + comptime!(COLUMN_VECTORS - 1)) / COLUMN_VECTORS;
            let before = blocks_0 + blocks_1;
            if block >= before && block < before + blocks_2 {
                let block = block - before;
                part::<E, N>(lhs, rhs_2, out_2, &mut parts, &rows, rhs_stride_2, block, columns_2, column_major);
            }
        }
    }
}

/// Rows of the left-hand side that a cube computes: from `first` on, of `m`, `stride` vectors apart, of `k` vectors.
#[derive(CubeType)]
struct CubeRows {
    first: usize,
    m: usize,
    stride: usize,
    k: usize,
}

/// Columns of number `block` of a product.
#[cube]
fn part<E: Float, N: Size>(
    lhs: &[Vector<E, N>],
    rhs: &[Vector<E, N>],
    out: &mut [Vector<f32, N>],
    parts: &mut Shared<[Vector<f32, N>]>,
    rows: &CubeRows,
    rhs_stride: usize,
    block: usize,
    columns: usize,
    #[comptime] column_major: bool,
) {
    let unit = UNIT_POS as usize;
    // Neighbouring units read neighbouring vectors of the right-hand side.
    let (column, first) = if comptime!(column_major) {
        (unit / PARTS, unit % PARTS)
    } else {
        (unit % COLUMN_VECTORS, unit / COLUMN_VECTORS)
    };
    // Beyond the last column and row the last is computed once more, and not stored.
    let from = least(block * COLUMN_VECTORS + column, columns - 1);
    let mut sums = Array::<Vector<f32, N>>::new(ROWS);
    #[unroll]
    for r in 0..ROWS {
        sums[r] = Vector::new(0.0f32);
    }
    let mut term = first;
    while term < rows.k {
        // Four terms of four columns: `terms[i]` has the columns of one term.
        let mut terms = Array::<Vector<f32, N>>::new(VECTOR);
        if comptime!(column_major) {
            #[unroll]
            for i in 0..VECTOR {
                terms[i] = Vector::new(0.0f32);
            }
            #[unroll]
            for j in 0..VECTOR {
                let loaded = Vector::<f32, N>::cast_from(rhs[(from * VECTOR + j) * rhs_stride + term]);
                #[unroll]
                for i in 0..VECTOR {
                    let mut columns = terms[i];
                    columns.insert(j, loaded.extract(i));
                    terms[i] = columns;
                }
            }
        } else {
            #[unroll]
            for i in 0..VECTOR {
                terms[i] = Vector::cast_from(rhs[(term * VECTOR + i) * rhs_stride + from]);
            }
        }
        #[unroll]
        for r in 0..ROWS {
            let left = Vector::<f32, N>::cast_from(lhs[least(rows.first + r, rows.m - 1) * rows.stride + term]);
            #[unroll]
            for i in 0..VECTOR {
                sums[r] += terms[i] * Vector::new(left.extract(i));
            }
        }
        term += PARTS;
    }

    #[unroll]
    for round in 0..comptime!(ROWS / ROWS_AT_ONCE) {
        #[unroll]
        for r in 0..ROWS_AT_ONCE {
            parts[comptime!(r * UNITS) + first * COLUMN_VECTORS + column] = sums[comptime!(round * ROWS_AT_ONCE + r)];
        }
        sync_cube();
        if unit < comptime!(ROWS_AT_ONCE * COLUMN_VECTORS) {
            let (r, column) = (unit / COLUMN_VECTORS, unit % COLUMN_VECTORS);
            let mut sum = Vector::<f32, N>::new(0.0f32);
            for part in 0..PARTS {
                sum += parts[r * UNITS + part * COLUMN_VECTORS + column];
            }
            let (row, column) = (rows.first + comptime!(round * ROWS_AT_ONCE) + r, block * COLUMN_VECTORS + column);
            if row < rows.m && column < columns {
                out[row * columns + column] = sum;
            }
        }
        sync_cube();
    }
}
