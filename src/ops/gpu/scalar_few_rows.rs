//! Launch of our own kernel for products of few rows without tensor cores, and the products that it computes.

use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::CubeDim;

use super::kernels::scalar_few_rows::{self as kernel, COLUMNS, ROWS, UNITS, VECTOR};
use super::memory::{cubes, elem, max_address_type};
use super::product::matrix;
use super::tensor_cores::matrix_layout;

/// Maximum rows: beyond them, kernels that keep both operands in shared memory read less.
const MAX_ROWS: usize = 64;
/// Bytes of shared memory of a cube.
const SHARED: usize = 16 << 10;

/// Whether [`scalar_few_rows`] computes `lhs · rhs`.
pub(super) fn serves(lhs: &CubeTensor, rhs: &CubeTensor) -> bool {
    let ([m, k], [_, n]) = (matrix(lhs.meta.shape()), matrix(rhs.meta.shape()));
    let hardware = &lhs.client.properties().hardware;
    let aligned = |operand: &CubeTensor| {
        let bytes = (VECTOR * operand.dtype.size()) as u64;
        operand.handle.offset_start.is_none_or(|start| start.is_multiple_of(bytes))
            && matrix_layout(operand).is_some_and(|(_, stride)| stride.is_multiple_of(VECTOR))
    };
    m <= MAX_ROWS
        && rhs.dtype == lhs.dtype
        && lhs.meta.num_dims() == 2
        && rhs.meta.num_dims() == 2
        && matrix_layout(lhs).is_some_and(|(row_major, _)| row_major)
        && [n, k].iter().all(|size| size.is_multiple_of(VECTOR))
        && [lhs, rhs].into_iter().all(aligned)
        && hardware.max_units_per_cube as usize >= UNITS
        && hardware.max_shared_memory_size >= SHARED
}

/// One to three products of one left-hand side, each of which is [served](serves), in one launch.
pub(super) fn scalar_few_rows(lhs: CubeTensor, rhs: &[CubeTensor], out: &[CubeTensor]) {
    let [m, k] = matrix(lhs.meta.shape());
    let layout = |operand: &CubeTensor| matrix_layout(operand).expect("rows or columns are contiguous");
    let ((_, lhs_stride), (row_major, _)) = (layout(&lhs), layout(&rhs[0]));
    let (client, format) = (lhs.client.clone(), elem(lhs.dtype));
    // A missing operand is not read: the first takes its place.
    let right = |i: usize| rhs.get(i).unwrap_or(&rhs[0]);
    let result = |i: usize| out.get(i).unwrap_or(&out[0]).clone().into_buffer_arg();
    let columns = [0, 1, 2].map(|i| rhs.get(i).map_or(0, |rhs| matrix(rhs.meta.shape())[1]));
    let blocks: usize = columns.iter().map(|columns| columns.div_ceil(COLUMNS)).sum();
    kernel::scalar_few_rows::launch(
        &client,
        cubes(&client, blocks * m.div_ceil(ROWS)),
        CubeDim::new_1d(UNITS as u32),
        max_address_type([&lhs, right(0), right(1), right(2), &out[0]]),
        VECTOR,
        lhs.into_buffer_arg(),
        right(0).clone().into_buffer_arg(),
        right(1).clone().into_buffer_arg(),
        right(2).clone().into_buffer_arg(),
        result(0),
        result(1),
        result(2),
        lhs_stride / VECTOR,
        layout(right(0)).1 / VECTOR,
        layout(right(1)).1 / VECTOR,
        layout(right(2)).1 / VECTOR,
        columns[0] / VECTOR,
        columns[1] / VECTOR,
        columns[2] / VECTOR,
        m,
        k / VECTOR,
        rhs.len(),
        !row_major,
        format,
    );
}
