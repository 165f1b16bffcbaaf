//! Launches of our own kernels for products on tensor cores: [`few_rows`] and [`tiles`], and what they serve.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::CubeDim;

use super::kernels::few_rows::{self as few, TILE};
use super::kernels::tiles::{self as tiled, Division, Form, SizesLaunch, StridesLaunch, UNITS, VECTOR};
use super::launch::sum_each;
use super::memory::{addresses, cubes, elem, empty, reshape};
use super::product::matrix;

/// Rows that [`few_rows`] serves at most: a plane keeps their sums in registers.
const FEW_ROWS: usize = 128;
/// Planes of a cube of [`few_rows`].
const PLANES: u32 = 16;

/// Whether the device's planes are the 32 units that both kernels are written for, and a cube may have `units`.
fn planes(client: &Client, units: u32) -> bool {
    let hardware = &client.properties().hardware;
    [hardware.plane_size_min, hardware.plane_size_max] == [UNITS as u32; 2] && hardware.max_units_per_cube >= units
}

/// How a matrix lies: whether its rows are without gaps, or its columns, and how far apart they are.
fn line(factor: &CubeTensor) -> Option<(bool, usize)> {
    let strides = factor.meta.strides();
    let dims = strides.len();
    match (strides[dims - 2], strides[dims - 1]) {
        (stride, 1) => Some((true, stride)),
        (1, stride) => Some((false, stride)),
        _ => None,
    }
}

/// Whether [`few_rows`] computes `lhs · rhs`, where the device has fragments of the factors' format.
pub(super) fn few_rows_serves(lhs: &CubeTensor, rhs: &CubeTensor) -> bool {
    let ([m, k], [_, n]) = (matrix(lhs.meta.shape()), matrix(rhs.meta.shape()));
    // Fragments begin at multiples of 32 bytes, and their lines are multiples of 16.
    let fits = [m, n, k].iter().all(|size| size.is_multiple_of(TILE))
        && [lhs, rhs].iter().all(|factor| line(factor).is_some_and(|(_, stride)| stride.is_multiple_of(TILE)));
    let halves = lhs.dtype.size() == 2 && rhs.dtype == lhs.dtype;
    let matrices =
        lhs.meta.num_dims() == 2 && rhs.meta.num_dims() == 2 && line(lhs).is_some_and(|(by_rows, _)| by_rows);
    m <= FEW_ROWS && planes(&lhs.client, PLANES * UNITS as u32) && fits && halves && matrices
}

/// Whether the right factors of products that [`few_rows`] serves one by one can be served in one launch.
pub(super) fn alike(factors: &[CubeTensor]) -> bool {
    let by_rows = |factor: &CubeTensor| line(factor).map(|(by_rows, _)| by_rows);
    factors.iter().all(|factor| by_rows(factor) == by_rows(&factors[0]))
}

/// One to three products of one left factor, each of which [`few_rows_serves`].
pub(super) fn few_rows(lhs: CubeTensor, rhs: &[CubeTensor], out: &[CubeTensor]) {
    let [m, k] = matrix(lhs.meta.shape());
    let line = |factor: &CubeTensor| line(factor).expect("a factor whose rows or columns are without gaps");
    let (_, lhs_stride) = line(&lhs);
    let (by_rows, _) = line(&rhs[0]);
    let client = lhs.client.clone();
    let format = elem(lhs.dtype);
    // What is not there is not read: the first stands for it.
    let right = |i: usize| rhs.get(i).unwrap_or(&rhs[0]);
    let buffer = |i: usize| right(i).clone().into_buffer_arg();
    let result = |i: usize| out.get(i).unwrap_or(&out[0]).clone().into_buffer_arg();
    let stride = |i: usize| line(right(i)).1 as u32;
    let columns = [0, 1, 2].map(|i| rhs.get(i).map_or(0, |rhs| matrix(rhs.meta.shape())[1]));
    few::few_rows::launch(
        &client,
        cubes(&client, columns.iter().sum::<usize>() / TILE),
        CubeDim::new_2d(UNITS as u32, PLANES),
        addresses([&lhs, right(0), right(1), right(2), &out[0]]),
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
        !by_rows,
        format,
    );
}

/// How a factor of [`tiles`] lies in memory, in vectors.
struct Lie {
    /// Whether its terms are next to each other.
    along: bool,
    /// From one line to the next.
    line: usize,
    /// From one batch to the next, of the two dimensions of batches.
    batches: [usize; 2],
}

/// None where lines, batches or the beginning are not at multiples of a vector.
fn lie(factor: &CubeTensor, right: bool) -> Option<Lie> {
    let (by_rows, stride) = line(factor)?;
    let (along, dims) = (by_rows != right, factor.meta.num_dims());
    let batch = |back: usize| dims.checked_sub(back).map_or(0, |dim| factor.meta.strides()[dim]);
    let (batches, [rows, columns]) = ([batch(4), batch(3)], matrix(factor.meta.shape()));
    let width = if by_rows { columns } else { rows };
    let whole = |count: &usize| count.is_multiple_of(VECTOR);
    let begins = factor.handle.offset_start.is_none_or(|bytes| bytes.is_multiple_of(16));
    let fits = dims <= 4 && begins && whole(&stride) && whole(&width) && batches.iter().all(whole);
    fits.then(|| Lie { along, line: stride / VECTOR, batches: batches.map(|stride| stride / VECTOR) })
}

/// How [`tiles`] divides a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Tiling {
    /// 128 x 128 a cube.
    Square,
    /// 128 x 256 a cube: less is read, and there are fewer cubes.
    Wide,
    /// 256 x 64 a cube, for results as wide as a head.
    Narrow,
    /// All of up to 64 rows and 64 columns a cube, whose planes divide the terms.
    Few,
    /// The same with twice the planes, where the shared memory is there: half as many loads that wait for each other.
    Deep,
}

/// Parts of the terms at most.
const MOST_PARTS: usize = 32;
/// What a launch costs, as bytes: 5 µs.
const LAUNCH: usize = 12_500_000;

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

/// Parts of the terms with which a product of `tiles` tiles takes the least time, by the arithmetic of the last wave of cubes,
/// two on each processor, and the bytes of writing and adding the parts: 100 operations take as long as a byte (H100:
/// 250 TFLOP/s, 2.5 TB/s).
fn parts(division: &Division, tiles: usize, terms: usize, results: usize, processors: Option<u32>) -> usize {
    let places = 2 * processors.unwrap_or(1) as usize;
    let ([rows, columns], steps) = (division.tile(), terms.div_ceil(division.at_once()));
    let cost = |parts: usize| {
        let wave = 2 * rows * columns * division.at_once() * places * steps.div_ceil(parts);
        let added = if parts == 1 { 0 } else { 8 * parts * results + LAUNCH };
        (tiles * parts).div_ceil(places) * wave + 100 * added
    };
    (1..=MOST_PARTS.min(steps / 4).max(1)).min_by_key(|&parts| cost(parts)).expect("one part at least")
}

/// The ways in which [`tiles`] computes `lhs · rhs`; none where the device or how the factors lie does not allow it.
pub(super) fn tilings(lhs: &CubeTensor, rhs: &CubeTensor) -> Vec<Tiling> {
    let ([m, _], [_, n], format) = (matrix(lhs.meta.shape()), matrix(rhs.meta.shape()), elem(lhs.dtype));
    let [batches, others] = [lhs, rhs].map(|factor| &factor.meta.shape()[..factor.meta.num_dims() - 2]);
    let (matmul, hardware) = (&lhs.client.features().matmul, &lhs.client.properties().hardware);
    let f32 = ElemType::Float(FloatKind::F32);
    let instruction = MmaConfig { a_type: format, b_type: format, cd_type: f32, m: 16, n: 8, k: 16 };
    let able = rhs.dtype == lhs.dtype
        && n.is_multiple_of(2)
        && batches == others
        && matmul.mma.contains(&instruction)
        && matmul.ldmatrix.contains(&format);
    if !able || lie(lhs, false).is_none() || lie(rhs, true).is_none() {
        return Vec::new();
    }
    let fits = |tiling: &Tiling| {
        let division = tiling.of(m);
        division.shared() <= hardware.max_shared_memory_size && planes(&lhs.client, division.units() as u32)
    };
    Tiling::ALL.into_iter().filter(fits).collect()
}

/// `lhs · rhs` in f32, in a way that is one of its [`tilings`].
pub(super) fn tiles(lhs: CubeTensor, rhs: CubeTensor, out: CubeTensor, tiling: Tiling) {
    let ([m, terms], [_, n]) = (matrix(lhs.meta.shape()), matrix(rhs.meta.shape()));
    let [left, right] = [lie(&lhs, false), lie(&rhs, true)].map(|lie| lie.expect("a product that is served"));
    let (client, format, dims) = (lhs.client.clone(), elem(lhs.dtype), lhs.meta.num_dims());
    let inner = if dims < 3 { 1 } else { lhs.meta.shape()[dims - 3] };
    let batches: usize = lhs.meta.shape()[..dims - 2].iter().product();
    let division = tiling.of(m);
    let processors = client.properties().hardware.num_streaming_multiprocessors;
    let [rows, columns] = division.tile();
    let tiles = m.div_ceil(rows) * n.div_ceil(columns) * batches;
    let parts = parts(&division, tiles, terms, batches * m * n, processors);
    let sums = if parts == 1 { out.clone() } else { empty(&lhs, [parts, batches * m * n], DType::F32) };
    let form = Form { division, along: [left.along, right.along], ragged: !terms.is_multiple_of(division.at_once()) };
    tiled::tiles::launch(
        &client,
        cubes(&client, tiles * parts),
        CubeDim::new_1d(division.units() as u32),
        addresses([&lhs, &rhs, &sums]),
        VECTOR,
        2,
        lhs.into_buffer_arg(),
        rhs.into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        StridesLaunch::new(left.line, left.batches[0], left.batches[1]),
        StridesLaunch::new(right.line, right.batches[0], right.batches[1]),
        SizesLaunch::new(m, n, terms, inner, batches, parts),
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

    /// A weight's gradient has few tiles and many terms; 266 tiles on 264 places would be two waves.
    #[test]
    fn terms_are_divided_where_tiles_are_few() {
        let parts = |[m, n, terms]: [usize; 3], tiling: Tiling, processors| {
            let [rows, columns] = tiling.of(m).tile();
            super::parts(&tiling.of(m), m.div_ceil(rows) * n.div_ceil(columns), terms, m * n, processors)
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

    /// A cube has 48 KiB on every card, 99 on most.
    #[test]
    fn stages_fit() {
        for tiling in Tiling::ALL {
            let most = if tiling == Tiling::Deep { 99 } else { 48 };
            assert!(tiling.of(64).shared() <= most << 10, "{tiling:?}");
        }
    }

    /// The units of a cube fetch whole vectors, as many each.
    #[test]
    fn units_share_what_is_fetched() {
        for tiling in Tiling::ALL {
            for m in [1, 16, 17, 32, 64, 8192] {
                let division = tiling.of(m);
                for lines in division.tile() {
                    assert_eq!(lines * division.at_once() % (VECTOR * division.units()), 0, "{tiling:?}, {m} rows");
                }
            }
        }
    }
}
