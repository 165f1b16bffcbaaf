//! Products `left · right` whose left factor has few rows, as in decoding: what they cost is the reading of the right one.
//!
//! Each of its numbers is read once, converted once where it has 16 bits, and multiplied with all rows; the library's kernel
//! first copies it into another order. The order in which a number of the result is summed depends neither on the other rows
//! nor on which core computes it: with such products a completion is the same, whatever it is decoded beside.

#![allow(clippy::needless_range_loop, reason = "loops over rows and vectors at once; closures would not be vectorised")]

use std::marker::PhantomData;
use std::ops::Range;

use half::bf16;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows up to which this is faster than the library's kernel (measured: LOG.md).
pub(super) const MOST: usize = 64;
/// The same with a right factor in f32 that lies by columns.
pub(super) const MOST_BY_COLUMNS: usize = 16;
/// Columns that a task takes at most, so that their sums stay in its core's cache.
const WIDEST: usize = 4096;
/// Rows of the right factor that are multiplied in one go, and half as many where there are 16 registers.
const DEPTH: usize = 8;
/// Numbers in two vectors of 512 bits. A task takes a multiple of so many columns.
const GROUP: usize = 32;
/// Multiplications for which a task is worth its start.
const WORTH_SHARING: usize = 1 << 18;

/// A number format of matrices.
pub(super) trait Format: Copy + Default + Send + Sync {
    /// The numbers of two vectors, in the order that [`Self::place`] tells.
    ///
    /// # Panics
    /// When there are fewer numbers.
    fn load<S: Simd>(simd: S, values: &[Self]) -> [S::f32s; 2];

    /// Which of `2 · lanes` numbers is at `at` in the two vectors, the first before the second.
    fn place(at: usize, lanes: usize) -> usize;

    /// The number in f32.
    fn wide(self) -> f32;
}

impl Format for f32 {
    #[inline(always)]
    fn load<S: Simd>(_: S, values: &[Self]) -> [S::f32s; 2] {
        let (vectors, _) = S::as_simd_f32s(&values[..2 * S::F32_LANES]);
        [vectors[0], vectors[1]]
    }

    #[inline(always)]
    fn place(at: usize, _lanes: usize) -> usize {
        at
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Format for bf16 {
    /// Two numbers are one word: the upper half of an f32 each.
    #[inline(always)]
    #[allow(unsafe_code)]
    fn load<S: Simd>(simd: S, values: &[Self]) -> [S::f32s; 2] {
        let values = &values[..2 * S::F32_LANES];
        // SAFETY: the slice has as many bytes as a vector of `F32_LANES` words, which any bytes make; it need not be aligned.
        let words = unsafe { values.as_ptr().cast::<S::u32s>().read_unaligned() };
        let even = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        let odd = simd.and_u32s(words, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(even), simd.transmute_f32s_u32s(odd)]
    }

    #[inline(always)]
    fn place(at: usize, lanes: usize) -> usize {
        if at < lanes { 2 * at } else { 2 * (at - lanes) + 1 }
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        // `to_f32` makes signalling NaNs quiet, which takes a branch.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// The result, of which each task writes other columns.
#[derive(Clone, Copy)]
struct Out {
    values: *mut f32,
    rows: usize,
    columns: usize,
    /// Whether products are added to what is there.
    add: bool,
}

// SAFETY: tasks write to disjoint columns (`multiply` below).
#[allow(unsafe_code)]
unsafe impl Send for Out {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Out {}

impl Out {
    /// Some columns of a row.
    #[inline(always)]
    #[allow(unsafe_code, clippy::mut_from_ref)]
    fn row(&self, row: usize, columns: Range<usize>) -> &mut [f32] {
        assert!(row < self.rows && columns.end <= self.columns, "inside of the product");
        // SAFETY: the columns are those of the product, whose memory `multiply` holds for writing; no other task has them,
        // and a task holds one such slice at a time.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(row * self.columns + columns.start), columns.len()) }
    }

    /// Puts sums in the order of two vectors of `F` into their columns.
    #[inline(always)]
    fn put<F: Format>(&self, row: usize, columns: Range<usize>, sums: &[f32]) {
        let lanes = sums.len() / 2;
        let out = self.row(row, columns);
        // Both with a count that the compiler knows where all columns are there.
        if out.len() == sums.len() {
            for at in 0..sums.len() {
                let out = &mut out[F::place(at, lanes)];
                *out = if self.add { *out + sums[at] } else { sums[at] };
            }
        } else {
            for at in 0..sums.len() {
                if let Some(out) = out.get_mut(F::place(at, lanes)) {
                    *out = if self.add { *out + sums[at] } else { sums[at] };
                }
            }
        }
    }
}

/// `out ← left · right`, or `out + left · right`.
///
/// # Shapes
/// - left: `[rows, inner]`; right: `[inner, columns]`, by rows or, `transposed`, by columns; out: `[rows, columns]`
pub(super) fn multiply<F: Format>(
    left: &[f32],
    right: &[F],
    transposed: bool,
    [rows, inner, columns]: [usize; 3],
    out: &mut [f32],
    add: bool,
) {
    assert_eq!([left.len(), right.len(), out.len()], [rows * inner, inner * columns, rows * columns], "sizes");
    let panels = (rows * inner * columns / WORTH_SHARING).clamp(1, rayon::current_num_threads());
    let width = columns.div_ceil(panels).min(WIDEST).next_multiple_of(GROUP);
    let out = Out { values: out.as_mut_ptr(), rows, columns, add };
    let arch = Arch::new();
    let ordered = if transposed { arch.dispatch(Order::<F> { left, inner, format: PhantomData }) } else { Vec::new() };
    let task = |panel: usize| {
        let range = panel * width..columns.min((panel + 1) * width);
        if transposed {
            arch.dispatch(Dots { left: &ordered, right, range, rows, inner, out });
        } else {
            arch.dispatch(Sums { left, right, range, rows, inner, columns, out });
        }
    };
    match columns.div_ceil(width) {
        1 => task(0),
        panels => (0..panels).into_par_iter().for_each(task),
    }
}

/// Columns of a product with a matrix that lies by rows: multiples of its rows are added up.
struct Sums<'a, F> {
    left: &'a [f32],
    right: &'a [F],
    range: Range<usize>,
    rows: usize,
    inner: usize,
    columns: usize,
    out: Out,
}

impl<F: Format> WithSimd for Sums<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
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
        // The columns that are no whole group, with zeros beside them.
        let rest = range.start + width..range.end;
        if !rest.is_empty() {
            let mut padded = vec![F::default(); inner * group];
            for (padded, row) in padded.chunks_exact_mut(group).zip(right.chunks_exact(columns)) {
                padded[..rest.len()].copy_from_slice(&row[rest.clone()]);
            }
            let mut sums = vec![0.0f32; rows * group];
            let tail = Sums { right: &padded, range: 0..group, columns: group, ..self };
            for depth in 0..inner {
                tail.add::<S, 1>(simd, &mut sums, depth, group);
            }
            for row in 0..rows {
                out.put::<F>(row, rest.clone(), &sums[row * group..][..group]);
            }
        }
    }
}

impl<F: Format> Sums<'_, F> {
    /// Adds the part of `D` rows of the matrix, from `depth` on, to the sums of whole groups.
    #[inline(always)]
    fn add<S: Simd, const D: usize>(&self, simd: S, sums: &mut [f32], depth: usize, width: usize) {
        let group = 2 * S::F32_LANES;
        for first in (0..width).step_by(group) {
            let mut factors = [[simd.splat_f32s(0.0); 2]; D];
            for d in 0..D {
                let at = (depth + d) * self.columns + self.range.start + first;
                // The same columns of a later row: nothing else tells the processor that it will want them.
                prefetch(self.right.as_ptr().wrapping_add(at + D * self.columns), group);
                factors[d] = F::load(simd, &self.right[at..][..group]);
            }
            for row in 0..self.rows {
                let (sums, _) = S::as_mut_simd_f32s(&mut sums[row * width + first..][..group]);
                let (mut a, mut b) = (sums[0], sums[1]);
                let left = &self.left[row * self.inner + depth..][..D];
                for d in 0..D {
                    let x = simd.splat_f32s(left[d]);
                    a = simd.mul_add_f32s(x, factors[d][0], a);
                    b = simd.mul_add_f32s(x, factors[d][1], b);
                }
                (sums[0], sums[1]) = (a, b);
            }
        }
    }
}

/// Asks for the memory of `count` numbers, which may lie outside of everything.
#[inline(always)]
#[allow(unsafe_code, unused_variables)]
fn prefetch<F>(values: *const F, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..count * size_of::<F>()).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint about an address reads nothing, whatever the address.
        unsafe { _mm_prefetch(values.cast::<i8>().wrapping_add(line), _MM_HINT_T0) };
    }
}

/// `left` with each two vectors in the order in which a matrix's numbers are loaded, rows padded with zeros.
struct Order<'a, F> {
    left: &'a [f32],
    inner: usize,
    format: PhantomData<F>,
}

impl<F: Format> WithSimd for Order<'_, F> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
        let group = 2 * S::F32_LANES;
        let mut ordered = Vec::with_capacity(self.left.len() / self.inner * self.inner.next_multiple_of(group));
        for groups in self.left.chunks_exact(self.inner).flat_map(|row| row.chunks(group)) {
            ordered.extend((0..group).map(|at| groups.get(F::place(at, S::F32_LANES)).copied().unwrap_or(0.0)));
        }
        ordered
    }
}

/// Columns of a product with a matrix that lies by columns: products of pairs of rows.
struct Dots<'a, F> {
    /// As [`Order`] gives it.
    left: &'a [f32],
    right: &'a [F],
    range: Range<usize>,
    rows: usize,
    inner: usize,
    out: Out,
}

/// Rows of each side whose products are computed together, and half as many of the right one where there are 16 registers.
const BLOCK: usize = 4;

impl<F: Format> WithSimd for Dots<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Range { start: mut column, end } = self.range;
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

impl<F: Format> Dots<'_, F> {
    /// All rows of `C` columns.
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
            let mut factors = [[simd.splat_f32s(0.0); 2]; C];
            for c in 0..C {
                factors[c] = F::load(simd, &right[c][at..][..group]);
            }
            add(simd, &mut sums, &left, at, &factors);
        }
        if whole < self.inner {
            let mut factors = [[simd.splat_f32s(0.0); 2]; C];
            for c in 0..C {
                let mut last = [F::default(); GROUP];
                last[..self.inner - whole].copy_from_slice(&right[c][whole..]);
                factors[c] = F::load(simd, &last);
            }
            add(simd, &mut sums, &left, whole, &factors);
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

/// Adds the products of two vectors of each pair of rows.
#[inline(always)]
fn add<S: Simd, const C: usize, const R: usize>(
    simd: S,
    sums: &mut [[S::f32s; R]; C],
    left: &[&[f32]; R],
    at: usize,
    factors: &[[S::f32s; 2]; C],
) {
    for r in 0..R {
        let [low, high] = f32::load(simd, &left[r][at..][..2 * S::F32_LANES]);
        for c in 0..C {
            sums[c][r] = simd.mul_add_f32s(low, factors[c][0], sums[c][r]);
            sums[c][r] = simd.mul_add_f32s(high, factors[c][1], sums[c][r]);
        }
    }
}
