//! Matrix products into memory of our own.
//!
//! burn-flex 0.22.1 allocates the output of every product twice, zeroes it and copies it over before it computes: its
//! byte vector never has the alignment that it asks for. For a head of 150,000 tokens that is half a gigabyte, twice, for
//! each chunk. This calls the same kernels.

use gemm::Parallelism;

/// A matrix in a slice, by rows or by columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` rows one after another.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(super) fn transposed(self) -> Self {
        Self {
            values: self.values,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }
}

/// `out ← left · right`, or `out ← out + left · right`, on all cores where it is large enough.
///
/// # Shapes
/// - out: `left.rows · right.columns` numbers, by rows
#[allow(unsafe_code)]
pub(super) fn multiply(left: Matrix, right: Matrix, out: &mut [f32], add: bool) {
    let (m, k, n) = (left.rows, left.columns, right.columns);
    assert_eq!(k, right.rows, "inner sizes");
    assert_eq!(out.len(), m * n, "size of the product");
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: a matrix's values are as many as its sizes say, and its strides are those of rows or of columns without
    // gaps, which `Matrix::new` and `transposed` alone make: no element is out of bounds. `out` is as large as the product,
    // by rows, and borrowed for writing, so nothing else is read or written through it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            add,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

/// `left · right` in new memory.
pub(super) fn product(left: Matrix, right: Matrix) -> Vec<f32> {
    let mut out = vec![0.0; left.rows * right.columns];
    multiply(left, right, &mut out, false);
    out
}
