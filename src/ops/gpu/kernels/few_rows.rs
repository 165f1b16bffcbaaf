//! Products of few rows, as in decoding, on tensor cores: their speed depends on the whole GPU reading `rhs` at once.

#![allow(clippy::collapsible_if, reason = "the outer condition is known when the kernel is compiled")]

use cubecl::cmma::{self, Matrix, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

/// Rows, columns and depth of a fragment.
pub(crate) const TILE: usize = 16;
/// Elements of a fragment.
const TILE_SIZE: usize = TILE * TILE;

/// Compute one to three products `lhs · rhs` with the same `lhs`. A block computes 16 columns of one result, for all
/// rows. Warp `p` sums every `planes`-th run of 16 positions of `k` from the `p`-th on, in one accumulator fragment per
/// 16 rows. Then the sums of the warps are added in order through shared memory.
///
/// # Shapes
/// - lhs: `[16 · tiles, k]`, row stride `lhs_stride`; out: `[16 · tiles, columns]`, contiguous
/// - rhs: `[k, columns]`, its row stride (its column stride if `transposed`) in `rhs_strides`
#[cube(launch, address_type = "dynamic")]
pub(crate) fn few_rows<E: Float>(
    lhs: &[E],
    rhs_0: &[E],
    rhs_1: &[E],
    rhs_2: &[E],
    out_0: &mut [f32],
    out_1: &mut [f32],
    out_2: &mut [f32],
    lhs_stride: u32,
    rhs_strides_0: u32,
    rhs_strides_1: u32,
    rhs_strides_2: u32,
    columns_0: usize,
    columns_1: usize,
    columns_2: usize,
    k: usize,
    #[comptime] products: usize,
    #[comptime] tiles: usize,
    #[comptime] planes: usize,
    #[comptime] transposed: bool,
    #[define(E)] _format: ElemType,
) {
    let first = CUBE_POS * TILE;
    if first < columns_0 {
        columns::<E>(lhs, rhs_0, out_0, lhs_stride, rhs_strides_0, first, columns_0, k, tiles, planes, transposed);
    }
    if products > 1 {
        if first >= columns_0 && first < columns_0 + columns_1 {
            let first = first - columns_0;
            columns::<E>(lhs, rhs_1, out_1, lhs_stride, rhs_strides_1, first, columns_1, k, tiles, planes, transposed);
        }
    }
    if products > 2 {
        if first >= columns_0 + columns_1 && first < columns_0 + columns_1 + columns_2 {
            let first = first - columns_0 - columns_1;
            columns::<E>(lhs, rhs_2, out_2, lhs_stride, rhs_strides_2, first, columns_2, k, tiles, planes, transposed);
        }
    }
}

/// Compute the 16 columns from `first` on. Shared memory: one fragment of sums per warp.
#[cube]
fn columns<E: Float>(
    lhs: &[E],
    rhs: &[E],
    out: &mut [f32],
    lhs_stride: u32,
    rhs_stride: u32,
    first: usize,
    columns: usize,
    k: usize,
    #[comptime] tiles: usize,
    #[comptime] planes: usize,
    #[comptime] transposed: bool,
) {
    let plane = UNIT_POS_Y as usize;
    let layout = comptime!(if transposed { MatrixLayout::ColMajor } else { MatrixLayout::RowMajor });
    let mut sums = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _ in 0..tiles {
        let zeros = Matrix::from_value(MatrixIdent::Accumulator, TILE, TILE, TILE, MatrixLayout::Undefined, 0.0f32);
        sums.push(zeros);
    }
    let count = k / TILE;
    let mut step = plane;
    while step < count {
        let k_start = step * TILE;
        let at = if transposed { first * rhs_stride as usize + k_start } else { k_start * rhs_stride as usize + first };
        let b = fragment::<E>(rhs, at, rhs_stride, MatrixIdent::B, layout);
        #[unroll]
        for tile in 0..tiles {
            let at = tile * TILE * lhs_stride as usize + k_start;
            let a = fragment::<E>(lhs, at, lhs_stride, MatrixIdent::A, MatrixLayout::RowMajor);
            let sum = sums.index(tile);
            cmma::execute(&a, &b, sum, sum);
        }
        step += planes;
    }

    let mut parts = Shared::<[f32]>::new_slice(comptime!(planes * TILE_SIZE));
    #[unroll]
    for tile in 0..tiles {
        let part = &mut parts[plane * TILE_SIZE..(plane + 1) * TILE_SIZE];
        cmma::store(part, sums.index(tile), TILE as u32, MatrixLayout::RowMajor);
        sync_cube();
        let mut i = UNIT_POS as usize;
        while i < TILE_SIZE {
            let mut sum = 0.0f32;
            for part in 0..planes {
                sum += parts[part * TILE_SIZE + i];
            }
            out[(tile * TILE + i / TILE) * columns + first + i % TILE] = sum;
            i += CUBE_DIM as usize;
        }
        sync_cube();
    }
}

/// Load the fragment of an operand that begins at `at`, its lines `stride` apart.
#[cube]
fn fragment<E: Float>(
    operand: &[E],
    at: usize,
    stride: u32,
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
) -> Matrix<E> {
    let span = (TILE - 1) * stride as usize + TILE;
    Matrix::from_slice(ident, TILE, TILE, TILE, layout, &operand[at..at + span], stride)
}
