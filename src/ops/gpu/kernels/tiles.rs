//! Products of many rows on tensor cores, by the registers of each unit (`mma`, 16 x 8 x 16) and with the loads of the next
//! terms under way while these are multiplied.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use super::least;

/// Numbers of a vector: 16 bytes.
pub(crate) const VECTOR: usize = 8;
/// Terms of a plane that are in shared memory at a time, twice: one lot is filled while the other is multiplied.
pub(crate) const TERMS: usize = 32;
/// Tiles of rows that are next to each other in the order of cubes: what they read of the right factor is still in the cache.
const GROUP: usize = 8;
/// Units of a plane.
const UNITS: usize = 32;

/// `lhs · rhs` for each batch; a cube per tile of the result and part of the terms. A plane has `part_m` rows and `part_n`
/// columns of the result in registers, and every `planes_k`-th run of [`TERMS`]; the sums of those planes are added in order.
/// Parts of the terms are results of their own.
///
/// # Shapes
/// - lhs: `[batches, m, terms]`; rhs: `[batches, terms, n]`; a factor whose terms are next to each other in memory has them
///   *along*, the other has its rows or columns so. Strides are in vectors, of lines and of the two dimensions of batches.
/// - out: `[parts, batches, m, n]`, dense
/// - `terms` is a multiple of a vector where a factor has them along, and of `TERMS · planes_k` unless `ragged`; `m` and `n`
///   are of a vector where a factor has not
#[cube(launch, address_type = "dynamic")]
pub(crate) fn tiles<E: Float, V: Size, P: Size>(
    lhs: &[Vector<E, V>],
    rhs: &[Vector<E, V>],
    out: &mut [Vector<f32, P>],
    m: usize,
    n: usize,
    terms: usize,
    lhs_line: usize,
    lhs_outer: usize,
    lhs_inner: usize,
    rhs_line: usize,
    rhs_outer: usize,
    rhs_inner: usize,
    inner: usize,
    batches: usize,
    parts: usize,
    #[comptime] planes_m: usize,
    #[comptime] planes_n: usize,
    #[comptime] planes_k: usize,
    #[comptime] part_m: usize,
    #[comptime] part_n: usize,
    #[comptime] lhs_along: bool,
    #[comptime] rhs_along: bool,
    #[comptime] ragged: bool,
    #[define(E)] _format: ElemType,
) {
    let rows = comptime!(planes_m * part_m);
    let columns = comptime!(planes_n * part_n);
    let at_once = comptime!(TERMS * planes_k);
    let units = comptime!(planes_m * planes_n * planes_k * UNITS);
    let (tiles_m, tiles_n) = (m.div_ceil(rows), n.div_ceil(columns));
    let tiles = tiles_m * tiles_n;
    let (which, place) = (CUBE_POS / tiles, CUBE_POS % tiles);
    if which >= parts * batches {
        terminate!();
    }
    let (part, batch) = (which / batches, which % batches);
    let group = place / (GROUP * tiles_n);
    let height = least(GROUP, tiles_m - group * GROUP);
    let within = place % (GROUP * tiles_n);
    let first_row = (group * GROUP + within % height) * rows;
    let first_column = within / height * columns;
    let share = terms.div_ceil(at_once).div_ceil(parts) * at_once;
    let end = least(terms, (part + 1) * share);
    let lhs_from = batch / inner * lhs_outer + batch % inner * lhs_inner;
    let rhs_from = batch / inner * rhs_outer + batch % inner * rhs_inner;

    let lhs_size = comptime!(stage(rows, at_once));
    let size = comptime!(lhs_size + stage(columns, at_once));
    let mut stages = Shared::<[Vector<E, V>]>::new_aligned_slice(comptime!(2 * size), 16usize);
    let plane = UNIT_POS as usize / UNITS;
    let slice = plane / comptime!(planes_m * planes_n);
    let plane_row = plane / planes_n % planes_m * part_m;
    let plane_column = plane % planes_n * part_n;
    let first_step = slice * comptime!(TERMS / 16);

    let definition = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    let count = comptime!(part_m / 16 * (part_n / 8) * 2);
    let mut sums = Array::<Vector<f32, P>>::new(count);
    #[unroll]
    for i in 0..count {
        sums[i] = Vector::new(0.0f32);
    }

    let mut term = part * share;
    let left = fetch::<E, V>(lhs, lhs_from, lhs_line, first_row, m, term, end, rows, at_once, lhs_along, ragged, units);
    let right =
        fetch::<E, V>(rhs, rhs_from, rhs_line, first_column, n, term, end, columns, at_once, rhs_along, false, units);
    put::<E, V>(&mut stages, 0usize, &left, rows, at_once, lhs_along, units);
    put::<E, V>(&mut stages, lhs_size, &right, columns, at_once, rhs_along, units);
    sync_cube();
    let mut from = 0usize;
    while term < end {
        term += at_once;
        // The loads of the last time are for nothing, of terms that are there.
        let left =
            fetch::<E, V>(lhs, lhs_from, lhs_line, first_row, m, term, end, rows, at_once, lhs_along, ragged, units);
        let right = fetch::<E, V>(
            rhs,
            rhs_from,
            rhs_line,
            first_column,
            n,
            term,
            end,
            columns,
            at_once,
            rhs_along,
            false,
            units,
        );
        #[unroll]
        for step in 0..comptime!(TERMS / 16) {
            let step = first_step + step;
            let mut factors = Sequence::<Array<Vector<E, P>>>::new();
            #[unroll]
            for j in 0..comptime!(part_n / 16) {
                let at = from + lhs_size + place_of(plane_column + j * 16, step, columns, at_once, rhs_along, true);
                let four = definition.load_matrix::<Vector<E, V>, P>(
                    &stages[at..at + 1],
                    MatrixIdent::B,
                    4usize,
                    comptime!(!rhs_along),
                );
                factors.push(four);
            }
            #[unroll]
            for i in 0..comptime!(part_m / 16) {
                let at = from + place_of(plane_row + i * 16, step, rows, at_once, lhs_along, false);
                let a = definition.load_matrix::<Vector<E, V>, P>(
                    &stages[at..at + 1],
                    MatrixIdent::A,
                    4usize,
                    comptime!(!lhs_along),
                );
                #[unroll]
                for j in 0..comptime!(part_n / 8) {
                    let four = factors.index(comptime!(j / 2));
                    let mut b = Array::<Vector<E, P>>::new(2usize);
                    b[0] = four[comptime!(j % 2 * 2)];
                    b[1] = four[comptime!(j % 2 * 2 + 1)];
                    let at = comptime!((i * (part_n / 8) + j) * 2);
                    let mut sum = Array::<Vector<f32, P>>::new(2usize);
                    sum[0] = sums[at];
                    sum[1] = sums[at + 1];
                    let sum = definition.execute(&a, &b, &sum);
                    sums[at] = sum[0];
                    sums[at + 1] = sum[1];
                }
            }
        }
        from = size - from;
        put::<E, V>(&mut stages, from, &left, rows, at_once, lhs_along, units);
        put::<E, V>(&mut stages, from + lhs_size, &right, columns, at_once, rhs_along, units);
        sync_cube();
    }

    let alike = comptime!(planes_m * planes_n * UNITS);
    if planes_k > 1 {
        // A slice of terms after the other is added to the first, whose planes have the result.
        let mut others = Shared::<[Vector<f32, P>]>::new_slice(comptime!(count * alike));
        let unit = UNIT_POS as usize % alike;
        #[unroll]
        for other in 1..planes_k {
            if slice == other {
                #[unroll]
                for i in 0..count {
                    others[i * alike + unit] = sums[i];
                }
            }
            sync_cube();
            if slice == 0 {
                #[unroll]
                for i in 0..count {
                    sums[i] += others[i * alike + unit];
                }
            }
            sync_cube();
        }
    }
    if slice == 0 {
        let unit = UNIT_POS as usize % UNITS;
        let result = which * m * n;
        #[unroll]
        for i in 0..comptime!(part_m / 16) {
            #[unroll]
            for half in 0..2 {
                let row = first_row + plane_row + i * 16 + half * 8 + unit / 4;
                if row < m {
                    #[unroll]
                    for j in 0..comptime!(part_n / 8) {
                        let column = first_column + plane_column + j * 8 + unit % 4 * 2;
                        if column < n {
                            out[(result + row * n + column) / 2] = sums[comptime!((i * (part_n / 8) + j) * 2 + half)];
                        }
                    }
                }
            }
        }
    }
}

/// Vectors of the stage of a factor.
pub(crate) const fn stage(rows: usize, terms: usize) -> usize {
    rows * terms / VECTOR
}

/// Where in a stage a vector of a line is. Vectors of a line are exchanged by the number of the line, so that eight lines'
/// vectors at one place are in different banks, and so are eight that follow each other.
#[cube]
fn place(line: usize, vector: usize, #[comptime] width: usize) -> usize {
    let lines = comptime!(if width < 8 { 8 / width } else { 1 });
    let exchanged = comptime!(if width < 8 { width } else { 8 });
    line * width + (vector ^ (line / lines % exchanged))
}

/// This unit's share of a tile of a factor; beyond its end what is there, or zeros for terms beyond the last where one of
/// the factors has to have them.
#[cube]
fn fetch<E: Float, V: Size>(
    source: &[Vector<E, V>],
    from: usize,
    stride: usize,
    first: usize,
    size: usize,
    term: usize,
    end: usize,
    #[comptime] rows: usize,
    #[comptime] at_once: usize,
    #[comptime] along: bool,
    #[comptime] zeros: bool,
    #[comptime] units: usize,
) -> Array<Vector<E, V>> {
    let count = comptime!(rows * at_once / VECTOR / units);
    let width = comptime!(if along { at_once / VECTOR } else { rows / VECTOR });
    let mut share = Array::<Vector<E, V>>::new(count);
    #[unroll]
    for i in 0..count {
        let at = UNIT_POS as usize + i * units;
        let (line, vector) = (at / width, at % width);
        let value = if comptime!(along) {
            let term = term + vector * VECTOR;
            let row = least(first + line, size - 1);
            let value = source[from + row * stride + least(term, end - VECTOR) / VECTOR];
            zero_unless::<E, V>(value, term < end, zeros)
        } else {
            let term = term + line;
            let row = least(first / VECTOR + vector, size / VECTOR - 1);
            let value = source[from + least(term, end - 1) * stride + row];
            zero_unless::<E, V>(value, term < end, zeros)
        };
        share[i] = value;
    }
    share
}

#[cube]
fn zero_unless<E: Float, V: Size>(value: Vector<E, V>, valid: bool, #[comptime] zeros: bool) -> Vector<E, V> {
    if comptime!(zeros) { select(valid, value, Vector::new(E::new(0.0))) } else { value }
}

/// Puts what [`fetch`] got into the stage that begins at `from`.
#[cube]
fn put<E: Float, V: Size>(
    stages: &mut Shared<[Vector<E, V>]>,
    from: usize,
    share: &Array<Vector<E, V>>,
    #[comptime] rows: usize,
    #[comptime] at_once: usize,
    #[comptime] along: bool,
    #[comptime] units: usize,
) {
    let width = comptime!(if along { at_once / VECTOR } else { rows / VECTOR });
    #[unroll]
    for i in 0..comptime!(rows * at_once / VECTOR / units) {
        let at = UNIT_POS as usize + i * units;
        stages[from + place(at / width, at % width, width)] = share[i];
    }
}

/// Where in a stage this unit's line is of the four matrices of 8 x 8 that make 16 rows by 16 terms, rows first where
/// `right` is false, terms first where it is true: the order of the instruction's registers.
#[cube]
fn place_of(
    row: usize,
    step: usize,
    #[comptime] rows: usize,
    #[comptime] at_once: usize,
    #[comptime] along: bool,
    #[comptime] right: bool,
) -> usize {
    let unit = UNIT_POS as usize % UNITS;
    let width = comptime!(if along { at_once / VECTOR } else { rows / VECTOR });
    // Of the four matrices the second is 8 lines below the first, or 8 numbers beside it.
    let below = comptime!(along != right);
    let (line, vector) =
        if comptime!(below) { (unit % 16, unit / 16) } else { (unit % 8 + unit / 16 * 8, unit / 8 % 2) };
    if comptime!(along) {
        place(row + line, step * 2 + vector, width)
    } else {
        place(step * 16 + line, row / VECTOR + vector, width)
    }
}
