//! Products `left · right` whose left-hand operand has few rows, as in decoding: reading `right` dominates their cost.
//!
//! Each element of `right` is read once, converted once if it has 16 bits, and multiplied with all rows; the library's
//! kernel first copies it into another order. The summation order of a result depends neither on the other rows nor on
//! the core that computes it, so a completion does not depend on the other rows of its batch.

#![allow(clippy::needless_range_loop, reason = "loops over rows and vectors at once; closures would not be vectorised")]

mod tiles;

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Maximum number of rows for which this is faster than the library's kernel (measured: LOG.md).
pub(super) const MAX_ROWS: usize = 64;
/// The same for a column-major right-hand operand in f32 with at least 32 vector registers.
const MAX_ROWS_COLUMN_MAJOR: usize = 16;
/// Maximum number of columns per task, so that their sums stay in the cache of the core.
const MAX_TASK_COLUMNS: usize = 4096;
/// Rows of `right` multiplied per step; half as many on machines with fewer than 32 vector registers.
const DEPTH: usize = 8;
/// Elements in two 512-bit vectors. The columns of a task are a multiple of this.
const GROUP: usize = 32;
/// Multiplications per task that justify starting it.
const TASK_MULTIPLICATIONS: usize = 1 << 18;

/// Number format of a matrix.
pub(super) trait NumberFormat: Copy + Default + Send + Sync {
    /// Load the elements of two vectors, in the order of [`Self::position`].
    ///
    /// # Panics
    /// If `values` has fewer elements.
    fn load<S: Simd>(simd: S, values: &[Self]) -> [S::f32s; 2];

    /// Index, among `2 · lanes` elements, of the one that [`Self::load`] puts at `at` in the two vectors.
    fn position(at: usize, lanes: usize) -> usize;

    /// Convert to f32.
    fn widen(self) -> f32;
}

impl NumberFormat for f32 {
    #[inline(always)]
    fn load<S: Simd>(_: S, values: &[Self]) -> [S::f32s; 2] {
        let (vectors, _) = S::as_simd_f32s(&values[..2 * S::F32_LANES]);
        [vectors[0], vectors[1]]
    }

    #[inline(always)]
    fn position(at: usize, _lanes: usize) -> usize {
        at
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl NumberFormat for bf16 {
    /// Split each 32-bit word into two elements; a bf16 is the upper half of an f32.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn load<S: Simd>(simd: S, values: &[Self]) -> [S::f32s; 2] {
        let values = &values[..2 * S::F32_LANES];
        // SAFETY: the slice is as long as a vector of `F32_LANES` words, any bytes are valid; it need not be aligned.
        let words = unsafe { values.as_ptr().cast::<S::u32s>().read_unaligned() };
        let even = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        let odd = simd.and_u32s(words, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(even), simd.transmute_f32s_u32s(odd)]
    }

    #[inline(always)]
    fn position(at: usize, lanes: usize) -> usize {
        if at < lanes { 2 * at } else { 2 * (at - lanes) + 1 }
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        // `to_f32` makes signalling NaNs quiet, which takes a branch.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Maximum number of rows for which this is faster than the library's kernel for a column-major f32 matrix.
pub(super) fn max_rows_column_major() -> usize {
    struct MaxRows;
    impl WithSimd for MaxRows {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            if tiles::are_faster::<S>(MAX_ROWS) { MAX_ROWS } else { MAX_ROWS_COLUMN_MAJOR }
        }
    }
    Arch::new().dispatch(MaxRows)
}

/// The result; each task writes its own columns.
#[derive(Clone, Copy)]
struct Out {
    values: *mut f32,
    rows: usize,
    columns: usize,
    /// Whether to add to the existing values.
    add: bool,
}

// SAFETY: tasks write to disjoint columns (`multiply` below).
#[allow(unsafe_code)]
unsafe impl Send for Out {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Out {}

impl Out {
    /// Return some columns of a row.
    #[inline(always)]
    #[allow(unsafe_code, clippy::mut_from_ref)]
    fn row(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.end <= self.columns, "inside of the product");
        // SAFETY: the columns lie in the product, whose memory `multiply` borrows mutably; no other task has them, and
        // a task holds one such slice at a time.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.columns + columns.start), columns.len()) }
    }

    /// Write `sums`, which are in the lane order of `F`, to their columns.
    #[inline(always)]
    fn put<F: NumberFormat>(&self, row: usize, columns: Range<usize>, sums: &[f32]) {
        let lanes = sums.len() / 2;
        let out = self.row(row, columns);
        // The loop over a full group has a length that the compiler knows.
        if out.len() == sums.len() {
            for at in 0..sums.len() {
                let out = &mut out[F::position(at, lanes)];
                *out = if self.add { *out + sums[at] } else { sums[at] };
            }
        } else {
            for at in 0..sums.len() {
                if let Some(out) = out.get_mut(F::position(at, lanes)) {
                    *out = if self.add { *out + sums[at] } else { sums[at] };
                }
            }
        }
    }
}

/// `out ← left · right`, or `out + left · right` if `add`.
///
/// # Shapes
/// - left: `[rows, inner]`; right: `[inner, columns]`, column-major if `transposed`; out: `[rows, columns]`
pub(super) fn multiply<F: NumberFormat>(
    left: &[f32],
    right: &[F],
    transposed: bool,
    [rows, inner, columns]: [usize; 3],
    out: &mut [f32],
    add: bool,
) {
    assert_eq!([left.len(), right.len(), out.len()], [rows * inner, inner * columns, rows * columns], "sizes");
    let panels = (rows * inner * columns / TASK_MULTIPLICATIONS).clamp(1, rayon::current_num_threads());
    let width = columns.div_ceil(panels).min(MAX_TASK_COLUMNS).next_multiple_of(GROUP);
    let out = Out { values: out.as_mut_ptr(), rows, columns, add };
    let arch = Arch::new();
    let ordered =
        if transposed { arch.dispatch(Reorder::<F> { left, inner, format: PhantomData }) } else { Vec::new() };
    let task = |panel: usize| {
        let range = panel * width..columns.min((panel + 1) * width);
        if transposed {
            arch.dispatch(ColumnMajorTask { left: &ordered, right, range, rows, inner, out });
        } else {
            arch.dispatch(RowMajorTask { left, right, range, rows, inner, columns, out });
        }
    };
    match columns.div_ceil(width) {
        1 => task(0),
        panels => (0..panels).into_par_iter().for_each(task),
    }
}

/// Columns of a product with a row-major matrix: multiples of its rows are added up.
struct RowMajorTask<'a, F> {
    left: &'a [f32],
    right: &'a [F],
    range: Range<usize>,
    rows: usize,
    inner: usize,
    columns: usize,
    out: Out,
}

impl<F: NumberFormat> WithSimd for RowMajorTask<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if tiles::are_faster::<S>(self.rows) {
            return self.tiles(simd);
        }
        let Self { right, ref range, rows, inner, columns, out, .. } = self;
        let group = 2 * S::F32_LANES;
        let width = range.len() / group * group;
        let mut sums = vec![0.0f32; rows * width];
        let mut depth = 0;
        while S::REGISTER_COUNT >= 32 && depth + DEPTH <= inner {
            self.add::<S, DEPTH>(simd, &mut sums, depth, width);
            depth += DEPTH;
        }
        while depth + DEPTH / 2 <= inner {
            self.add::<S, { DEPTH / 2 }>(simd, &mut sums, depth, width);
            depth += DEPTH / 2;
        }
        while depth < inner {
            self.add::<S, 1>(simd, &mut sums, depth, width);
            depth += 1;
        }
        for row in 0..rows {
            for first in (0..width).step_by(group) {
                let column = range.start + first;
                out.put::<F>(row, column..column + group, &sums[row * width + first..][..group]);
            }
        }
        // The remaining columns, padded with zeros to a whole group.
        let rest = range.start + width..range.end;
        if !rest.is_empty() {
            let mut padded = vec![F::default(); inner * group];
            for (padded, row) in padded.chunks_exact_mut(group).zip(right.chunks_exact(columns)) {
                padded[..rest.len()].copy_from_slice(&row[rest.clone()]);
            }
            let mut sums = vec![0.0f32; rows * group];
            let tail = RowMajorTask { right: &padded, range: 0..group, columns: group, ..self };
            for depth in 0..inner {
                tail.add::<S, 1>(simd, &mut sums, depth, group);
            }
            for row in 0..rows {
                out.put::<F>(row, rest.clone(), &sums[row * group..][..group]);
            }
        }
    }
}

impl<F: NumberFormat> RowMajorTask<'_, F> {
    /// Add the contribution of `D` rows of the matrix, from `depth` on, to the sums of whole groups.
    #[inline(always)]
    fn add<S: Simd, const D: usize>(&self, simd: S, sums: &mut [f32], depth: usize, width: usize) {
        let group = 2 * S::F32_LANES;
        for first in (0..width).step_by(group) {
            let mut vectors = [[simd.splat_f32s(0.0); 2]; D];
            for d in 0..D {
                let at = (depth + d) * self.columns + self.range.start + first;
                // The same columns `D` rows later; nothing else tells the processor that they will be needed.
                prefetch(self.right.as_ptr().wrapping_add(at + D * self.columns), group);
                vectors[d] = F::load(simd, &self.right[at..][..group]);
            }
            for row in 0..self.rows {
                let (sums, _) = S::as_mut_simd_f32s(&mut sums[row * width + first..][..group]);
                let (mut a, mut b) = (sums[0], sums[1]);
                let left = &self.left[row * self.inner + depth..][..D];
                for d in 0..D {
                    let x = simd.splat_f32s(left[d]);
                    a = simd.mul_add_f32s(x, vectors[d][0], a);
                    b = simd.mul_add_f32s(x, vectors[d][1], b);
                }
                (sums[0], sums[1]) = (a, b);
            }
        }
    }
}

/// Prefetch the memory of `count` elements, which may be out of bounds.
#[inline(always)]
#[allow(unsafe_code, unused_variables)]
fn prefetch<F>(values: *const F, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count * size_of::<F>()).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint and accesses nothing, whatever the address.
        unsafe { _mm_prefetch(values.cast::<i8>().wrapping_add(line), _MM_HINT_T0) };
    }
}

/// Reorders `left` so that each pair of vectors has the lane order of [`NumberFormat::load`]; rows are padded with zeros.
struct Reorder<'a, F> {
    left: &'a [f32],
    inner: usize,
    format: PhantomData<F>,
}

impl<F: NumberFormat> WithSimd for Reorder<'_, F> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
        let group = 2 * S::F32_LANES;
        let mut ordered = Vec::with_capacity(self.left.len() / self.inner * self.inner.next_multiple_of(group));
        for groups in self.left.chunks_exact(self.inner).flat_map(|row| row.chunks(group)) {
            ordered.extend((0..group).map(|at| groups.get(F::position(at, S::F32_LANES)).copied().unwrap_or(0.0)));
        }
        ordered
    }
}

/// Columns of a product with a column-major matrix: dot products with the rows of `left`.
struct ColumnMajorTask<'a, F> {
    /// As returned by [`Reorder`].
    left: &'a [f32],
    right: &'a [F],
    range: Range<usize>,
    rows: usize,
    inner: usize,
    out: Out,
}

/// Rows and columns computed together; half as many columns on machines with fewer than 32 vector registers.
const BLOCK: usize = 4;

impl<F: NumberFormat> WithSimd for ColumnMajorTask<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let end = self.range.end;
        let mut column = if tiles::are_faster::<S>(self.rows) { self.tiles(simd) } else { self.range.start };
        while S::REGISTER_COUNT >= 32 && column + BLOCK <= end {
            self.columns::<S, BLOCK>(simd, column);
            column += BLOCK;
        }
        while column + BLOCK / 2 <= end {
            self.columns::<S, { BLOCK / 2 }>(simd, column);
            column += BLOCK / 2;
        }
        if column < end {
            self.columns::<S, 1>(simd, column);
        }
    }
}

impl<F: NumberFormat> ColumnMajorTask<'_, F> {
    /// Compute all rows of `C` columns.
    #[inline(always)]
    fn columns<S: Simd, const C: usize>(&self, simd: S, column: usize) {
        let whole = self.rows / BLOCK * BLOCK;
        for row in (0..whole).step_by(BLOCK) {
            self.block::<S, C, BLOCK>(simd, column, row);
        }
        let pairs = self.rows - (self.rows - whole) % 2;
        if whole < pairs {
            self.block::<S, C, 2>(simd, column, whole);
        }
        if pairs < self.rows {
            self.block::<S, C, 1>(simd, column, pairs);
        }
    }

    #[inline(always)]
    fn block<S: Simd, const C: usize, const R: usize>(&self, simd: S, column: usize, row: usize) {
        let group = 2 * S::F32_LANES;
        let padded = self.inner.next_multiple_of(group);
        let mut left: [&[f32]; R] = [&[]; R];
        for r in 0..R {
            left[r] = &self.left[(row + r) * padded..][..padded];
        }
        let mut right: [&[F]; C] = [&[]; C];
        for c in 0..C {
            right[c] = &self.right[(column + c) * self.inner..][..self.inner];
        }
        let mut sums = [[simd.splat_f32s(0.0); R]; C];
        let whole = self.inner / group * group;
        for at in (0..whole).step_by(group) {
            let mut vectors = [[simd.splat_f32s(0.0); 2]; C];
            for c in 0..C {
                vectors[c] = F::load(simd, &right[c][at..][..group]);
            }
            add(simd, &mut sums, &left, at, &vectors);
        }
        if whole < self.inner {
            let mut vectors = [[simd.splat_f32s(0.0); 2]; C];
            for c in 0..C {
                let mut last = [F::default(); GROUP];
                last[..self.inner - whole].copy_from_slice(&right[c][whole..]);
                vectors[c] = F::load(simd, &last);
            }
            add(simd, &mut sums, &left, whole, &vectors);
        }
        for r in 0..R {
            let out = self.out.row(row + r, column..column + C);
            for c in 0..C {
                let sum = simd.reduce_sum_f32s(sums[c][r]);
                out[c] = if self.out.add { out[c] + sum } else { sum };
            }
        }
    }
}

/// Add the products of two vectors for each pair of a row and a column.
#[inline(always)]
fn add<S: Simd, const C: usize, const R: usize>(
    simd: S,
    sums: &mut [[S::f32s; R]; C],
    left: &[&[f32]; R],
    at: usize,
    vectors: &[[S::f32s; 2]; C],
) {
    for r in 0..R {
        let [low, high] = f32::load(simd, &left[r][at..][..2 * S::F32_LANES]);
        for c in 0..C {
            sums[c][r] = simd.mul_add_f32s(low, vectors[c][0], sums[c][r]);
            sums[c][r] = simd.mul_add_f32s(high, vectors[c][1], sums[c][r]);
        }
    }
}
