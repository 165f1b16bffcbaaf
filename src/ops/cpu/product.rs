//! Matrix products into preallocated memory.
//!
//! burn-flex 0.22.1 allocates the output of every product twice, zeroes it and copies it before it computes, because
//! its byte vector never has the alignment it requests. For an LM head of 150,000 tokens that is half a gigabyte,
//! twice, per chunk. This file calls the same kernels (crate `gemm`), or our own for few rows.

use gemm::Parallelism;
use half::bf16;
use rayon::prelude::*;

use super::few_rows::{self, NumberFormat};

/// A row-major or column-major matrix in a slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: MatrixValues<'a>,
    rows: usize,
    columns: usize,
    /// Whether the matrix is column-major.
    transposed: bool,
}

/// Elements of a matrix. Only a right-hand operand may have 16 bits.
#[derive(Debug, Clone, Copy)]
pub(super) enum MatrixValues<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl<'a> From<&'a [f32]> for MatrixValues<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a [bf16]> for MatrixValues<'a> {
    fn from(values: &'a [bf16]) -> Self {
        Self::Bf16(values)
    }
}

impl<'a> Matrix<'a> {
    /// Return a row-major matrix.
    pub(super) fn new(values: impl Into<MatrixValues<'a>>, rows: usize, columns: usize) -> Self {
        let values = values.into();
        let count = match values {
            MatrixValues::F32(values) => values.len(),
            MatrixValues::Bf16(values) => values.len(),
        };
        assert_eq!(count, rows * columns, "a matrix of {rows} x {columns}");
        Self { values, rows, columns, transposed: false }
    }

    pub(super) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }

    /// Row stride and column stride, in elements.
    fn strides(&self) -> (isize, isize) {
        if self.transposed { (1, self.rows as isize) } else { (self.columns as isize, 1) }
    }
}

/// `out ← left · right`, or `out ← out + left · right` if `add`; multi-threaded if large enough.
///
/// # Shapes
/// - out: `[left.rows, right.columns]`, row-major
pub(super) fn multiply(left: Matrix, right: Matrix, out: &mut [f32], add: bool) {
    let (m, k, n) = (left.rows, left.columns, right.columns);
    assert_eq!(k, right.rows, "inner sizes");
    assert_eq!(out.len(), m * n, "size of the product");
    let MatrixValues::F32(values) = left.values else { panic!("a left factor in 16 bits") };
    if m == 0 || n == 0 {
        return;
    }
    let sizes = [m, k, n];
    match right.values {
        MatrixValues::F32(right_values) if !left.transposed && is_fast_with_few_rows(sizes, right.transposed) => {
            few_rows::multiply(values, right_values, right.transposed, sizes, out, add);
        }
        MatrixValues::F32(right_values) => {
            blocked(values, left.strides(), right_values, right.strides(), sizes, (out, n), add);
        }
        MatrixValues::Bf16(right_values) if !left.transposed && m <= few_rows::MAX_ROWS && k > 0 => {
            few_rows::multiply(values, right_values, right.transposed, sizes, out, add);
        }
        MatrixValues::Bf16(right_values) => {
            converted(values, left.strides(), right_values, right.transposed, sizes, out, add);
        }
    }
}

/// Whether the few-rows kernel is faster than the library's for a right-hand operand in f32 (measured: LOG.md).
fn is_fast_with_few_rows([m, k, n]: [usize; 3], transposed: bool) -> bool {
    let max_rows = if transposed { few_rows::max_rows_column_major() } else { few_rows::MAX_ROWS };
    // The library copies the matrix first, which is cheap for a small or thin one because it fits in the cache.
    m <= max_rows && k * n > 1 << 17 && k.min(n) >= 64
}

/// Elements of a 16-bit matrix that are converted at a time: 4 MiB in f32.
const CONVERTED_NUMBERS: usize = 1 << 20;

/// Multiply by a 16-bit matrix, converting a range of its columns at a time.
fn converted(
    left: &[f32],
    left_strides: (isize, isize),
    right: &[bf16],
    transposed: bool,
    [m, k, n]: [usize; 3],
    out: &mut [f32],
    add: bool,
) {
    let width = (CONVERTED_NUMBERS / k.max(1)).next_multiple_of(64).min(n);
    let mut columns = vec![0.0f32; k * width];
    for from in (0..n).step_by(width) {
        let width = width.min(n - from);
        let columns = &mut columns[..k * width];
        let strides = if transposed {
            let pairs = columns.par_chunks_mut(k.max(1)).zip(right[from * k..].par_chunks(k.max(1)));
            pairs.for_each(|(to, from)| convert(to, from));
            (1, k as isize)
        } else {
            let rows = columns.par_chunks_mut(width).zip(right.par_chunks(n));
            rows.for_each(|(to, row)| convert(to, &row[from..from + width]));
            (width as isize, 1)
        };
        blocked(left, left_strides, columns, strides, [m, k, width], (&mut out[from..], n), add);
    }
}

fn convert(to: &mut [f32], from: &[bf16]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
}

/// Multiply with the library's kernel.
///
/// # Shapes
/// - out: `[m, n]`, with row stride `stride`
#[allow(unsafe_code)]
fn blocked(
    left: &[f32],
    (left_rows, left_columns): (isize, isize),
    right: &[f32],
    (right_rows, right_columns): (isize, isize),
    [m, k, n]: [usize; 3],
    (out, stride): (&mut [f32], usize),
    add: bool,
) {
    assert!(left.len() >= m * k && right.len() >= k * n && n <= stride && out.len() >= (m - 1) * stride + n, "sizes");
    // SAFETY: the operands have as many elements as their sizes say, and strides of rows or of columns without gaps
    // (`Matrix::strides`, `converted`), so no access is out of bounds. `out` holds `n` elements from each multiple of
    // `stride` on and is borrowed mutably, so nothing else is read or written through it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            left.as_ptr(),
            left_columns,
            left_rows,
            right.as_ptr(),
            right_columns,
            right_rows,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

/// Return `left · right` in new memory.
pub(super) fn product(left: Matrix, right: Matrix) -> Vec<f32> {
    let mut out = vec![0.0; left.rows * right.columns];
    multiply(left, right, &mut out, false);
    out
}
