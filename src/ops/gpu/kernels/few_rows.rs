//! Products of few rows, as in decoding, on tensor cores: what counts is that the whole card reads the right factor at once.

#![allow(clippy::collapsible_if, reason = "the outer condition is known when the kernel is compiled")]

use cubecl::cmma;
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
    // What a fragment spans.
    let lhs_span = (TILE - 1) * lhs_stride as usize + TILE;
    let rhs_span = (TILE - 1) * rhs_stride as usize + TILE;

    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..tiles {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            TILE,
            TILE,
            TILE,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }
    let count = terms / TILE;
    let mut step = plane;
    while step < count {
        let term = step * TILE;
        let b = if across {
            let at = first * rhs_stride as usize + term;
            cmma::Matrix::<E>::from_slice(
                cmma::MatrixIdent::B,
                TILE,
                TILE,
                TILE,
                cmma::MatrixLayout::ColMajor,
                &rhs[at..at + rhs_span],
                rhs_stride,
            )
        } else {
            let at = term * rhs_stride as usize + first;
            cmma::Matrix::<E>::from_slice(
                cmma::MatrixIdent::B,
                TILE,
                TILE,
                TILE,
                cmma::MatrixLayout::RowMajor,
                &rhs[at..at + rhs_span],
                rhs_stride,
            )
        };
        #[unroll]
        for tile in 0..tiles {
            let at = tile * TILE * lhs_stride as usize + term;
            let a = cmma::Matrix::<E>::from_slice(
                cmma::MatrixIdent::A,
                TILE,
                TILE,
                TILE,
                cmma::MatrixLayout::RowMajor,
                &lhs[at..at + lhs_span],
                lhs_stride,
            );
            let sum = sums.index(tile);
            cmma::execute(&a, &b, sum, sum);
        }
        step += planes;
    }

    let mut parts = Shared::<[f32]>::new_slice(comptime!(planes * TILE_SIZE));
    let unit = UNIT_POS as usize;
    #[unroll]
    for tile in 0..tiles {
        cmma::store(
            &mut parts[plane * TILE_SIZE..(plane + 1) * TILE_SIZE],
            sums.index(tile),
            TILE as u32,
            cmma::MatrixLayout::RowMajor,
        );
        sync_cube();
        let mut i = unit;
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
