//! Products of few rows, as in decoding, on tensor cores: what counts is that the whole card reads the right factor at once.

#![allow(clippy::collapsible_if, reason = "the outer condition is known when the kernel is compiled")]

use cubecl::cmma::{self, Matrix, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;

/// Rows, columns and terms of a fragment.
pub(crate) const TILE: usize = 16;
/// Numbers of a fragment.
const TILE_SIZE: usize = TILE * TILE;

/// One to three products `lhs · rhs` with the same left factor; a cube per 16 columns of a result. Each plane sums every
/// `planes`-th tile of terms for all rows; then the planes' sums are added in order.
///
/// # Shapes
/// - lhs: `[16 · tiles, terms]`, its rows `lhs_stride` apart; out: `[16 · tiles, columns]`, dense
/// - rhs: `[terms, columns]`: its rows `rhs_stride` apart, or its columns where `across`
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
    terms: usize,
    #[comptime] factors: usize,
    #[comptime] tiles: usize,
    #[comptime] planes: usize,
    #[comptime] across: bool,
    #[define(E)] _format: ElemType,
) {
    let first = CUBE_POS * TILE;
    if first < columns_0 {
        columns::<E>(lhs, rhs_0, out_0, lhs_stride, rhs_strides_0, first, columns_0, terms, tiles, planes, across);
    }
    if factors > 1 {
        if first >= columns_0 && first < columns_0 + columns_1 {
            let first = first - columns_0;
            columns::<E>(lhs, rhs_1, out_1, lhs_stride, rhs_strides_1, first, columns_1, terms, tiles, planes, across);
        }
    }
    if factors > 2 {
        if first >= columns_0 + columns_1 && first < columns_0 + columns_1 + columns_2 {
            let first = first - columns_0 - columns_1;
            columns::<E>(lhs, rhs_2, out_2, lhs_stride, rhs_strides_2, first, columns_2, terms, tiles, planes, across);
        }
    }
}

/// The 16 columns from `first` on.
#[cube]
fn columns<E: Float>(
    lhs: &[E],
    rhs: &[E],
    out: &mut [f32],
    lhs_stride: u32,
    rhs_stride: u32,
    first: usize,
    columns: usize,
    terms: usize,
    #[comptime] tiles: usize,
    #[comptime] planes: usize,
    #[comptime] across: bool,
) {
    let plane = UNIT_POS_Y as usize;
    let layout = comptime!(if across { MatrixLayout::ColMajor } else { MatrixLayout::RowMajor });
    let mut sums = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _ in 0..tiles {
        let zeros = Matrix::from_value(MatrixIdent::Accumulator, TILE, TILE, TILE, MatrixLayout::Undefined, 0.0f32);
        sums.push(zeros);
    }
    let count = terms / TILE;
    let mut step = plane;
    while step < count {
        let term = step * TILE;
        let at = if across { first * rhs_stride as usize + term } else { term * rhs_stride as usize + first };
        let b = fragment::<E>(rhs, at, rhs_stride, MatrixIdent::B, layout);
        #[unroll]
        for tile in 0..tiles {
            let at = tile * TILE * lhs_stride as usize + term;
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

/// The fragment of a factor that begins at `at`, its lines `stride` apart.
#[cube]
fn fragment<E: Float>(
    factor: &[E],
    at: usize,
    stride: u32,
    #[comptime] ident: MatrixIdent,
    #[comptime] layout: MatrixLayout,
) -> Matrix<E> {
    let span = (TILE - 1) * stride as usize + TILE;
    Matrix::from_slice(ident, TILE, TILE, TILE, layout, &factor[at..at + span], stride)
}
