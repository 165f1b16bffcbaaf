//! Launches of our own kernels for products on tensor cores, [`few_rows`] and [`tiles`], and their requirements.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::CubeDim;

use super::kernels::few_rows::{self as few, TILE};
use super::kernels::tiles::{self as tiled, Division, Form, SizesLaunch, StridesLaunch, UNITS, VECTOR};
use super::launch::sum_each;
use super::memory::{cubes, elem, empty, max_address_type, reshape};
use super::product::matrix;

/// Maximum number of rows of [`few_rows`]: a warp keeps their sums in registers.
const MAX_ROWS: usize = 128;
/// Warps per block of [`few_rows`].
const PLANES: u32 = 16;

/// Whether warps have the 32 threads that both kernels are written for, and a block may have `units` threads.
fn planes_fit(client: &Client, units: u32) -> bool {
    let hardware = &client.properties().hardware;
    [hardware.plane_size_min, hardware.plane_size_max] == [UNITS as u32; 2] && hardware.max_units_per_cube >= units
}

/// Whether a matrix is row-major (or column-major), and its leading stride; `None` if it is neither.
pub(super) fn matrix_layout(operand: &CubeTensor) -> Option<(bool, usize)> {
    let strides = operand.meta.strides();
    let dims = strides.len();
    match (strides[dims - 2], strides[dims - 1]) {
        (stride, 1) => Some((true, stride)),
        (1, stride) => Some((false, stride)),
        _ => None,
    }
}

/// Whether [`few_rows`] can compute `lhs · rhs`, given that the device has fragments of the operands' format.
pub(super) fn few_rows_serves(lhs: &CubeTensor, rhs: &CubeTensor) -> bool {
    let ([m, k], [_, n]) = (matrix(lhs.meta.shape()), matrix(rhs.meta.shape()));
    // Fragments begin at multiples of 32 bytes, and their strides are multiples of 16.
    let fits = [m, n, k].iter().all(|size| size.is_multiple_of(TILE))
        && [lhs, rhs].iter().all(|x| matrix_layout(x).is_some_and(|(_, stride)| stride.is_multiple_of(TILE)));
    let halves = lhs.dtype.size() == 2 && rhs.dtype == lhs.dtype;
    let matrices = lhs.meta.num_dims() == 2
        && rhs.meta.num_dims() == 2
        && matrix_layout(lhs).is_some_and(|(row_major, _)| row_major);
    m <= MAX_ROWS && planes_fit(&lhs.client, PLANES * UNITS as u32) && fits && halves && matrices
}

/// Whether right-hand operands that [`few_rows`] serves one by one can share a launch: all have the same layout.
pub(super) fn same_layout(operands: &[CubeTensor]) -> bool {
    let row_major = |operand: &CubeTensor| matrix_layout(operand).map(|(row_major, _)| row_major);
    operands.iter().all(|operand| row_major(operand) == row_major(&operands[0]))
}

/// Compute one to three products of one left-hand operand, each of which [`few_rows_serves`].
pub(super) fn few_rows(lhs: CubeTensor, rhs: &[CubeTensor], out: &[CubeTensor]) {
    let [m, k] = matrix(lhs.meta.shape());
    let layout = |x: &CubeTensor| matrix_layout(x).expect("a factor whose rows or columns are without gaps");
    let (_, lhs_stride) = layout(&lhs);
    let (row_major, _) = layout(&rhs[0]);
    let client = lhs.client.clone();
    let format = elem(lhs.dtype);
    // Absent operands are not read; the first is passed in their place.
    let right = |i: usize| rhs.get(i).unwrap_or(&rhs[0]);
    let buffer = |i: usize| right(i).clone().into_buffer_arg();
    let result = |i: usize| out.get(i).unwrap_or(&out[0]).clone().into_buffer_arg();
    let stride = |i: usize| layout(right(i)).1 as u32;
    let columns = [0, 1, 2].map(|i| rhs.get(i).map_or(0, |rhs| matrix(rhs.meta.shape())[1]));
    few::few_rows::launch(
        &client,
        cubes(&client, columns.iter().sum::<usize>() / TILE),
        CubeDim::new_2d(UNITS as u32, PLANES),
        max_address_type([&lhs, right(0), right(1), right(2), &out[0]]),
        lhs.into_buffer_arg(),
        buffer(0),
        buffer(1),
        buffer(2),
        result(0),
        result(1),
        result(2),
        lhs_stride as u32,
        stride(0),
        stride(1),
        stride(2),
        columns[0],
        columns[1],
        columns[2],
        k,
        rhs.len(),
        m / TILE,
        PLANES as usize,
        !row_major,
        format,
    );
}

/// Memory layout of an operand of [`tiles`], in vectors of [`VECTOR`] elements.
struct VectorLayout {
    /// Whether the inner dimension `k` is contiguous.
    k_contiguous: bool,
    /// Stride between lines, which are the rows or columns that are contiguous.
    line: usize,
    /// Strides of the two batch dimensions.
    batches: [usize; 2],
}

/// Return `None` if lines, batches or the start of the memory are not aligned to vectors.
fn vector_layout(operand: &CubeTensor, right: bool) -> Option<VectorLayout> {
    let (row_major, stride) = matrix_layout(operand)?;
    let (k_contiguous, dims) = (row_major != right, operand.meta.num_dims());
    let batch = |back: usize| dims.checked_sub(back).map_or(0, |dim| operand.meta.strides()[dim]);
    let (batches, [rows, columns]) = ([batch(4), batch(3)], matrix(operand.meta.shape()));
    let width = if row_major { columns } else { rows };
    let whole = |count: &usize| count.is_multiple_of(VECTOR);
    let begins = operand.handle.offset_start.is_none_or(|bytes| bytes.is_multiple_of(16));
    let fits = dims <= 4 && begins && whole(&stride) && whole(&width) && batches.iter().all(whole);
    fits.then(|| VectorLayout { k_contiguous, line: stride / VECTOR, batches: batches.map(|stride| stride / VECTOR) })
}

/// Tile shape of a block of [`tiles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tiling {
    /// 128 x 128 per block.
    Square,
    /// 128 x 256 per block: less is read, and there are fewer blocks.
    Wide,
    /// 256 x 64 per block, for results as wide as an attention head.
    Narrow,
    /// All of up to 64 rows and 64 columns per block, whose warps divide `k`.
    Few,
    /// The same with twice the warps, if there is enough shared memory: half as many loads that wait for each other.
    Deep,
}

/// Maximum number of split-K parts.
const MAX_PARTS: usize = 32;
/// Cost of a launch, in bytes of memory traffic: 5 µs.
const LAUNCH_BYTES: usize = 12_500_000;

impl Tiling {
    pub(crate) const ALL: [Self; 5] = [Self::Square, Self::Wide, Self::Narrow, Self::Few, Self::Deep];

    fn of(self, m: usize) -> Division {
        match self {
            Self::Square => Division { planes: [2, 2, 1], part: [64, 64] },
            Self::Wide => Division { planes: [2, 4, 1], part: [64, 64] },
            Self::Narrow => Division { planes: [4, 1, 1], part: [64, 64] },
            Self::Few => Division { planes: [1, 2, 2], part: [m.next_power_of_two().clamp(16, 64), 32] },
            Self::Deep => Division { planes: [1, 2, 4], part: [m.next_power_of_two().clamp(16, 64), 32] },
        }
    }
}

/// Number of split-K parts with which a product of `tiles` tiles takes the least time. The cost is the arithmetic of
/// all waves of blocks, two per multiprocessor, and the bytes of writing and adding the parts: 100 operations take as
/// long as a byte (H100: 250 TFLOP/s, 2.5 TB/s).
fn parts(division: &Division, tiles: usize, k: usize, results: usize, processors: Option<u32>) -> usize {
    let places = 2 * processors.unwrap_or(1) as usize;
    let ([rows, columns], steps) = (division.tile(), k.div_ceil(division.k_per_step()));
    let cost = |parts: usize| {
        let wave = 2 * rows * columns * division.k_per_step() * places * steps.div_ceil(parts);
        let added = if parts == 1 { 0 } else { 8 * parts * results + LAUNCH_BYTES };
        (tiles * parts).div_ceil(places) * wave + 100 * added
    };
    (1..=MAX_PARTS.min(steps / 4).max(1)).min_by_key(|&parts| cost(parts)).expect("one part at least")
}

/// Tilings with which [`tiles`] can compute `lhs · rhs`; empty if the device or the operands' layout does not allow it.
pub(super) fn tilings(lhs: &CubeTensor, rhs: &CubeTensor) -> Vec<Tiling> {
    let ([m, _], [_, n], format) = (matrix(lhs.meta.shape()), matrix(rhs.meta.shape()), elem(lhs.dtype));
    let [batches, rhs_batches] = [lhs, rhs].map(|operand| &operand.meta.shape()[..operand.meta.num_dims() - 2]);
    let (matmul, hardware) = (&lhs.client.features().matmul, &lhs.client.properties().hardware);
    let f32 = ElemType::Float(FloatKind::F32);
    let instruction = MmaConfig { a_type: format, b_type: format, cd_type: f32, m: 16, n: 8, k: 16 };
    let supported = rhs.dtype == lhs.dtype
        && n.is_multiple_of(2)
        && batches == rhs_batches
        && matmul.mma.contains(&instruction)
        && matmul.ldmatrix.contains(&format);
    if !supported || vector_layout(lhs, false).is_none() || vector_layout(rhs, true).is_none() {
        return Vec::new();
    }
    let fits = |tiling: &Tiling| {
        let division = tiling.of(m);
        division.shared() <= hardware.max_shared_memory_size && planes_fit(&lhs.client, division.units() as u32)
    };
    Tiling::ALL.into_iter().filter(fits).collect()
}

/// Compute `lhs · rhs` in f32, with one of its [`tilings`].
pub(super) fn tiles(lhs: CubeTensor, rhs: CubeTensor, out: CubeTensor, tiling: Tiling) {
    let ([m, k], [_, n]) = (matrix(lhs.meta.shape()), matrix(rhs.meta.shape()));
    let layouts = [vector_layout(&lhs, false), vector_layout(&rhs, true)];
    let [left, right] = layouts.map(|layout| layout.expect("a product that is served"));
    let (client, format, dims) = (lhs.client.clone(), elem(lhs.dtype), lhs.meta.num_dims());
    let inner = if dims < 3 { 1 } else { lhs.meta.shape()[dims - 3] };
    let batches: usize = lhs.meta.shape()[..dims - 2].iter().product();
    let division = tiling.of(m);
    let processors = client.properties().hardware.num_streaming_multiprocessors;
    let [rows, columns] = division.tile();
    let tiles = m.div_ceil(rows) * n.div_ceil(columns) * batches;
    let parts = parts(&division, tiles, k, batches * m * n, processors);
    let sums = if parts == 1 { out.clone() } else { empty(&lhs, [parts, batches * m * n], DType::F32) };
    let k_contiguous = [left.k_contiguous, right.k_contiguous];
    let form = Form { division, k_contiguous, ragged: !k.is_multiple_of(division.k_per_step()) };
    tiled::tiles::launch(
        &client,
        cubes(&client, tiles * parts),
        CubeDim::new_1d(division.units() as u32),
        max_address_type([&lhs, &rhs, &sums]),
        VECTOR,
        2,
        lhs.into_buffer_arg(),
        rhs.into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        StridesLaunch::new(left.line, left.batches[0], left.batches[1]),
        StridesLaunch::new(right.line, right.batches[0], right.batches[1]),
        SizesLaunch::new(m, n, k, inner, batches, parts),
        form,
        format,
    );
    if parts > 1 {
        sum_each(sums, parts, reshape(out, [1, batches * m * n]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A weight's gradient has few tiles and a large `k`; 266 blocks in 264 places would take two waves.
    #[test]
    fn terms_are_divided_where_tiles_are_few() {
        let parts = |[m, n, k]: [usize; 3], tiling: Tiling, processors| {
            let [rows, columns] = tiling.of(m).tile();
            super::parts(&tiling.of(m), m.div_ceil(rows) * n.div_ceil(columns), k, m * n, processors)
        };
        let square = |mnk| parts(mnk, Tiling::Square, Some(132));
        assert_eq!(square([8192, 896, 896]), 1);
        assert_eq!(square([896, 896, 8192]), 5);
        assert!((3..=5).contains(&square([896, 4864, 8192])));
        assert!(square([896, 128, 8192]) > 16);
        assert_eq!(square([64, 64, 64]), 1);
        assert_eq!(parts([64, 4864, 896], Tiling::Few, Some(132)), 1);
        assert!(parts([64, 896, 4864], Tiling::Few, Some(132)) > 4);
    }

    /// A block has 48 KiB of shared memory on every GPU, 99 KiB on most.
    #[test]
    fn stages_fit() {
        for tiling in Tiling::ALL {
            let most = if tiling == Tiling::Deep { 99 } else { 48 };
            assert!(tiling.of(64).shared() <= most << 10, "{tiling:?}");
        }
    }

    /// Every thread of a block fetches the same number of whole vectors.
    #[test]
    fn units_share_what_is_fetched() {
        for tiling in Tiling::ALL {
            for m in [1, 16, 17, 32, 64, 8192] {
                let division = tiling.of(m);
                for lines in division.tile() {
                    assert_eq!(lines * division.k_per_step() % (VECTOR * division.units()), 0, "{tiling:?}, {m} rows");
                }
            }
        }
    }
}
