//! Products of many of the few rows with 16 vector registers (AVX2): sums of a tile of rows and columns stay in them.
//!
//! Each part of `right` is copied once, converted to f32, into memory that fits the first or second cache. Every sum has
//! the order of summation of the other kernels, so the results are equal to the bit.

use pulp::Simd;

use super::{ColumnMajorTask, GROUP, NumberFormat, RowMajorTask, prefetch};

/// Minimum number of rows for which the copy pays (measured: LOG.md).
pub(super) const MIN_ROWS: usize = 32;
/// Rows and columns of a copied part of a row-major matrix.
const PART: [usize; 2] = [256, 64];
/// Rows of a matrix after which to prefetch.
const AHEAD: usize = 16;
/// Columns of a column-major matrix that are copied and computed together.
const COLUMNS: usize = 4;

/// Whether tiles are faster than the kernels for fewer rows.
#[inline(always)]
pub(super) fn are_faster<S: Simd>(rows: usize) -> bool {
    S::REGISTER_COUNT < 32 && rows >= MIN_ROWS
}

impl<F: NumberFormat> RowMajorTask<'_, F> {
    /// Compute all columns in tiles.
    #[inline(always)]
    pub(super) fn tiles<S: Simd>(&self, simd: S) {
        let [depth, width] = PART;
        let (group, rows) = (2 * S::F32_LANES, self.rows);
        let mut part = vec![0.0f32; depth * width];
        let mut sums = vec![0.0f32; rows * width];
        for first in self.range.clone().step_by(width) {
            let columns = first..self.range.end.min(first + width);
            let groups = columns.len().div_ceil(group);
            sums.fill(0.0);
            for from in (0..self.inner).step_by(depth) {
                let depth = depth.min(self.inner - from);
                for d in 0..depth {
                    let row = (from + d) * self.columns;
                    prefetch(self.right.as_ptr().wrapping_add(row + AHEAD * self.columns + first), width);
                    let values = self.right[row..][columns.clone()].chunks(group);
                    for (to, values) in part.chunks_exact_mut(PART[0] * group).zip(values) {
                        copy(simd, &mut to[d * group..][..group], values);
                    }
                }
                let parts = part.chunks_exact(PART[0] * group).zip(sums.chunks_exact_mut(rows * group));
                for (part, sums) in parts.take(groups) {
                    let part = &part[..depth * group];
                    let mut row = 0;
                    while row < rows {
                        let left = &self.left[row * self.inner + from..];
                        let sums = &mut sums[row * group..];
                        row += match rows - row {
                            1 => add::<S, 1>(simd, left, self.inner, part, sums),
                            2 => add::<S, 2>(simd, left, self.inner, part, sums),
                            3 => add::<S, 3>(simd, left, self.inner, part, sums),
                            4 | 7 | 8 => add::<S, 4>(simd, left, self.inner, part, sums),
                            5 | 9 | 10 => add::<S, 5>(simd, left, self.inner, part, sums),
                            _ => add::<S, 6>(simd, left, self.inner, part, sums),
                        };
                    }
                }
            }
            for (at, sums) in sums.chunks_exact(rows * group).take(groups).enumerate() {
                let from = first + at * group;
                for (row, sums) in sums.chunks_exact(group).enumerate() {
                    self.out.put::<F>(row, from..columns.end.min(from + group), sums);
                }
            }
        }
    }
}

/// Copy at most two vectors of elements in the order of [`NumberFormat::load`]; elements that are not there are zeros.
#[inline(always)]
fn copy<S: Simd, F: NumberFormat>(simd: S, to: &mut [f32], values: &[F]) {
    let vectors = if values.len() == to.len() {
        F::load(simd, values)
    } else {
        let mut padded = [F::default(); GROUP];
        padded[..values.len()].copy_from_slice(values);
        F::load(simd, &padded)
    };
    S::as_mut_simd_f32s(to).0.copy_from_slice(&vectors);
}

/// Add the products of `R` rows, which are `inner` elements apart, with two vectors of each row of a part; return `R`.
#[inline(always)]
fn add<S: Simd, const R: usize>(simd: S, left: &[f32], inner: usize, part: &[f32], sums: &mut [f32]) -> usize {
    let (part, _) = S::as_simd_f32s(part);
    let (sums, _) = S::as_mut_simd_f32s(&mut sums[..R * 2 * S::F32_LANES]);
    let depth = part.len() / 2;
    let mut rows: [&[f32]; R] = [&[]; R];
    let mut tile = [[simd.splat_f32s(0.0); 2]; R];
    for r in 0..R {
        rows[r] = &left[r * inner..][..depth];
        tile[r] = [sums[2 * r], sums[2 * r + 1]];
    }
    for d in 0..depth {
        let [low, high] = [part[2 * d], part[2 * d + 1]];
        for r in 0..R {
            let x = simd.splat_f32s(rows[r][d]);
            tile[r] = [simd.mul_add_f32s(x, low, tile[r][0]), simd.mul_add_f32s(x, high, tile[r][1])];
        }
    }
    for r in 0..R {
        [sums[2 * r], sums[2 * r + 1]] = tile[r];
    }
    R
}

impl<F: NumberFormat> ColumnMajorTask<'_, F> {
    /// Compute columns from the first one on in tiles, as many as are a multiple of [`COLUMNS`]; return the next one.
    #[inline(always)]
    pub(super) fn tiles<S: Simd>(&self, simd: S) -> usize {
        let group = 2 * S::F32_LANES;
        let padded = self.inner.next_multiple_of(group);
        let mut part = vec![0.0f32; COLUMNS * padded];
        let mut column = self.range.start;
        while column + COLUMNS <= self.range.end {
            let values = self.right[column * self.inner..].chunks_exact(self.inner);
            for (to, values) in part.chunks_exact_mut(padded).zip(values) {
                for (to, values) in to.chunks_exact_mut(group).zip(values.chunks(group)) {
                    copy(simd, to, values);
                }
            }
            let mut row = 0;
            while row < self.rows {
                row += match self.rows - row {
                    1 => self.tile::<S, 1>(simd, &part, column, row),
                    2 | 4 => self.tile::<S, 2>(simd, &part, column, row),
                    _ => self.tile::<S, 3>(simd, &part, column, row),
                };
            }
            column += COLUMNS;
        }
        column
    }

    /// Compute the products of `R` rows with the copied columns; return `R`.
    #[inline(always)]
    fn tile<S: Simd, const R: usize>(&self, simd: S, part: &[f32], column: usize, row: usize) -> usize {
        let padded = part.len() / COLUMNS;
        let mut rows: [&[S::f32s]; R] = [&[]; R];
        let mut columns: [&[S::f32s]; COLUMNS] = [&[]; COLUMNS];
        for c in 0..COLUMNS {
            columns[c] = S::as_simd_f32s(&part[c * padded..][..padded]).0;
        }
        let vectors = columns[0].len();
        for r in 0..R {
            rows[r] = &S::as_simd_f32s(&self.left[(row + r) * padded..][..padded]).0[..vectors];
        }
        let mut sums = [[simd.splat_f32s(0.0); R]; COLUMNS];
        for at in 0..vectors {
            for c in 0..COLUMNS {
                let x = columns[c][at];
                for r in 0..R {
                    sums[c][r] = simd.mul_add_f32s(rows[r][at], x, sums[c][r]);
                }
            }
        }
        for r in 0..R {
            let out = self.out.row(row + r, column..column + COLUMNS);
            for c in 0..COLUMNS {
                let sum = simd.reduce_sum_f32s(sums[c][r]);
                out[c] = if self.out.add { out[c] + sum } else { sum };
            }
        }
        R
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::marker::PhantomData;

    use half::bf16;
    use pulp::x86::V3;

    use super::super::{Out, Reorder};
    use super::*;

    /// Compute a product in one task with vectors of 256 bits.
    fn product<F: NumberFormat>(
        v3: V3,
        left: &[f32],
        right: &[F],
        transposed: bool,
        sizes: [usize; 3],
        add: bool,
    ) -> Vec<f32> {
        let [rows, inner, columns] = sizes;
        let mut values: Vec<f32> = (0..rows * columns).map(|at| (at % columns) as f32).collect();
        let out = Out { values: values.as_mut_ptr(), rows, columns, add };
        if transposed {
            let left = &Simd::vectorize(v3, Reorder::<F> { left, inner, format: PhantomData });
            Simd::vectorize(v3, ColumnMajorTask { left, right, range: 0..columns, rows, inner, out });
        } else {
            Simd::vectorize(v3, RowMajorTask { left, right, range: 0..columns, rows, inner, columns, out });
        }
        values
    }

    fn tiles_equal_rows<F: NumberFormat>(v3: V3, number: impl Fn(f32) -> F) {
        for (inner, columns) in [(1, 1), (37, 67), (300, 130), (513, 16)] {
            let left: Vec<f32> = (0..70 * inner).map(|at| ((at * 37) % 101) as f32 / 50.0 - 1.0).collect();
            let right: Vec<F> = (0..inner * columns).map(|at| number(((at * 53) % 97) as f32 / 48.0 - 1.0)).collect();
            for (transposed, add) in [(false, false), (false, true), (true, false), (true, true)] {
                let single: Vec<f32> = left
                    .chunks_exact(inner)
                    .flat_map(|row| product(v3, row, &right, transposed, [1, inner, columns], add))
                    .collect();
                for rows in MIN_ROWS..=70 {
                    let all = product(v3, &left[..rows * inner], &right, transposed, [rows, inner, columns], add);
                    assert_eq!(all, single[..rows * columns], "{rows} x {inner} x {columns}, {transposed}, {add}");
                }
            }
        }
    }

    /// A completion must not depend on how many others are decoded with it. (Processors with vectors of 512 bits do not
    /// use tiles otherwise, so the width is chosen here.)
    #[test]
    fn tiles_equal_products_of_single_rows_to_the_bit() {
        let Some(v3) = V3::try_new() else { return eprintln!("SKIPPED: this processor has no AVX2") };
        assert!(are_faster::<V3>(MIN_ROWS));
        tiles_equal_rows(v3, |x| x);
        tiles_equal_rows(v3, bf16::from_f32);
    }
}
