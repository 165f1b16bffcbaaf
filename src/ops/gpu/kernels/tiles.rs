//! Products of many rows on tensor cores, with `mma` instructions (16 x 8 x 16) on registers. Shared memory is
//! double-buffered: the global loads of the next step are in flight while the current step is multiplied.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use super::least;

/// Elements per vector: 16 bytes.
pub(crate) const VECTOR: usize = 8;
/// Threads per warp.
pub(crate) const UNITS: usize = 32;
/// Inner (`k`) positions per warp and step. Shared memory holds two steps: one is filled while the other is multiplied.
const K_PER_PLANE: usize = 32;
/// Rows of tiles that consecutive blocks cover together, so that what they read of `rhs` is still in the cache.
const GROUP: usize = 8;

/// Division of a block's result tile: warps along rows, columns and `k`; and rows and columns of a warp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Division {
    pub planes: [usize; 3],
    pub part: [usize; 2],
}

impl Division {
    /// Rows and columns of a block's tile.
    pub(crate) fn tile(&self) -> [usize; 2] {
        let ([m, n, _], [rows, columns]) = (self.planes, self.part);
        [m * rows, n * columns]
    }

    /// Inner positions in shared memory per step.
    pub(crate) fn k_per_step(&self) -> usize {
        self.planes[2] * K_PER_PLANE
    }

    /// Threads per block.
    pub(crate) fn units(&self) -> usize {
        self.units_per_slice() * self.planes[2]
    }

    /// Threads of the warps that have the same slice of `k`.
    fn units_per_slice(&self) -> usize {
        self.planes[0] * self.planes[1] * UNITS
    }

    /// Rows and columns of instruction tiles (16 x 8) in a warp's part.
    fn instructions(&self) -> [usize; 2] {
        [self.part[0] / 16, self.part[1] / 8]
    }

    /// Pairs of sums per thread: two in each instruction tile, 8 rows apart.
    fn sums(&self) -> usize {
        let [m, n] = self.instructions();
        m * n * 2
    }

    /// Shared memory of a block, in bytes.
    pub(crate) fn shared(&self) -> usize {
        let [rows, columns] = self.tile();
        let sums = if self.planes[2] > 1 { 4 * rows * columns } else { 0 };
        2 * 2 * (rows + columns) * self.k_per_step() + sums
    }
}

/// Compile-time parameters of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub division: Division,
    /// Whether `k` is the contiguous dimension of `lhs` and of `rhs`.
    pub k_contiguous: [bool; 2],
    /// Whether `k` is not a multiple of a step, so that the last step needs zeros.
    pub ragged: bool,
}

impl Form {
    fn lhs(&self) -> SharedTile {
        // Zeros in one operand are enough.
        self.stage(0, self.ragged)
    }

    fn rhs(&self) -> SharedTile {
        self.stage(1, false)
    }

    fn stage(&self, operand: usize, zeros: bool) -> SharedTile {
        SharedTile {
            lines: self.division.tile()[operand],
            k: self.division.k_per_step(),
            k_contiguous: self.k_contiguous[operand],
            zeros,
            units: self.division.units(),
        }
    }
}

/// An operand's tile in shared memory: `lines` (rows of `lhs` or columns of `rhs`) by `k` positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SharedTile {
    lines: usize,
    k: usize,
    /// Whether `k` is contiguous in memory.
    k_contiguous: bool,
    /// Whether positions beyond the last are filled with zeros.
    zeros: bool,
    /// Threads that fill it.
    units: usize,
}

impl SharedTile {
    fn vectors(&self) -> usize {
        self.lines * self.k / VECTOR
    }

    /// Vectors per row of the stage; rows run along the contiguous dimension.
    fn width(&self) -> usize {
        if self.k_contiguous { self.k / VECTOR } else { self.lines / VECTOR }
    }

    /// Vectors per thread.
    fn share(&self) -> usize {
        self.vectors() / self.units
    }
}

/// Sizes of a product. `inner` is the second of two batch dimensions, `parts` the number of split-K parts.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub inner: usize,
    pub batches: usize,
    pub parts: usize,
}

/// Strides of an operand, in vectors: between its contiguous lines, and of the two batch dimensions.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Strides {
    pub line: usize,
    pub outer: usize,
    pub inner: usize,
}

/// The rows of `lhs`, or columns of `rhs`, that a block reads.
#[derive(CubeType)]
struct Lines {
    /// First vector of the batch.
    from: usize,
    stride: usize,
    first: usize,
    /// Rows or columns of the operand.
    size: usize,
}

/// First row and column of a warp's part of the tile, and the warp's slice of `k`.
#[derive(CubeType)]
struct Plane {
    row: usize,
    column: usize,
    slice: usize,
}

/// Compute `lhs · rhs` for each batch. A block computes one tile of the result over one split-K part, in steps of
/// `k_per_step` positions. In a step its threads load the next step's vectors of both operands from global memory to
/// registers, multiply the current stage, and store the registers to the other stage. A warp keeps the sums of its part
/// of the tile in registers and processes every `planes[2]`-th run of [`K_PER_PLANE`] positions; at the end the sums of
/// warps with the same part are added in order through shared memory. The caller adds the split-K parts.
///
/// Shared memory: two stages, each the vectors of `lhs` followed by those of `rhs`, with the layout of [`swizzle`].
///
/// # Shapes
/// - lhs: `[batches, m, k]`; rhs: `[batches, k, n]`; `k_contiguous` says which dimension of each is contiguous
/// - out: `[parts, batches, m, n]`, contiguous
/// - contiguous dimensions are multiples of a vector, and `k` is a multiple of a step unless `ragged`
#[cube(launch, address_type = "dynamic")]
pub(crate) fn tiles<E: Float, V: Size, P: Size>(
    lhs: &[Vector<E, V>],
    rhs: &[Vector<E, V>],
    out: &mut [Vector<f32, P>],
    lhs_strides: Strides,
    rhs_strides: Strides,
    sizes: Sizes,
    #[comptime] form: Form,
    #[define(E)] _format: ElemType,
) {
    let division = comptime!(form.division);
    let (tiles_m, tiles_n) =
        (sizes.m.div_ceil(comptime!(division.tile()[0])), sizes.n.div_ceil(comptime!(division.tile()[1])));
    let tiles = tiles_m * tiles_n;
    let (matrix, tile) = (CUBE_POS / tiles, CUBE_POS % tiles);
    if matrix >= sizes.parts * sizes.batches {
        terminate!();
    }
    let (part, batch) = (matrix / sizes.batches, matrix % sizes.batches);
    let (first_row, first_column) = corner(tile, tiles_m, tiles_n, division);
    let (outer, inner) = (batch / sizes.inner, batch % sizes.inner);
    let rows = Lines {
        from: outer * lhs_strides.outer + inner * lhs_strides.inner,
        stride: lhs_strides.line,
        first: first_row,
        size: sizes.m,
    };
    let columns = Lines {
        from: outer * rhs_strides.outer + inner * rhs_strides.inner,
        stride: rhs_strides.line,
        first: first_column,
        size: sizes.n,
    };
    let k_per_step = comptime!(division.k_per_step());
    let share = sizes.k.div_ceil(k_per_step).div_ceil(sizes.parts) * k_per_step;
    let end = least(sizes.k, (part + 1) * share);
    let plane = plane_of(division);

    let (lhs_stage, rhs_stage) = comptime!((form.lhs(), form.rhs()));
    let lhs_size = comptime!(lhs_stage.vectors());
    let size = comptime!(lhs_size + rhs_stage.vectors());
    let mut stages = Shared::<[Vector<E, V>]>::new_aligned_slice(comptime!(2 * size), 16usize);
    let count = comptime!(division.sums());
    let mut sums = Array::<Vector<f32, P>>::new(count);
    #[unroll]
    for i in 0..count {
        sums[i] = Vector::new(0.0f32);
    }

    let mut k = part * share;
    let left = fetch::<E, V>(lhs, &rows, k, end, lhs_stage);
    let right = fetch::<E, V>(rhs, &columns, k, end, rhs_stage);
    store::<E, V>(&mut stages, 0usize, &left, lhs_stage);
    store::<E, V>(&mut stages, lhs_size, &right, rhs_stage);
    sync_cube();
    let mut from = 0usize;
    while k < end {
        k += k_per_step;
        // The loads of the last step are not used; their addresses are clamped.
        let left = fetch::<E, V>(lhs, &rows, k, end, lhs_stage);
        let right = fetch::<E, V>(rhs, &columns, k, end, rhs_stage);
        multiply::<E, V, P>(&stages, from, &plane, &mut sums, form);
        from = size - from;
        store::<E, V>(&mut stages, from, &left, lhs_stage);
        store::<E, V>(&mut stages, from + lhs_size, &right, rhs_stage);
        sync_cube();
    }

    if comptime!(division.planes[2] > 1) {
        add_slices::<P>(&mut sums, plane.slice, division);
    }
    if plane.slice == 0 {
        let from = matrix * sizes.m * sizes.n;
        write::<P>(out, from, first_row + plane.row, first_column + plane.column, &sums, sizes.m, sizes.n, division);
    }
}

/// First row and column of a tile. Tiles are ordered in groups of [`GROUP`] rows of tiles, column by column.
#[cube]
fn corner(tile: usize, tiles_m: usize, tiles_n: usize, #[comptime] division: Division) -> (usize, usize) {
    let group = tile / (GROUP * tiles_n);
    let height = least(GROUP, tiles_m - group * GROUP);
    let within = tile % (GROUP * tiles_n);
    let first_row = (group * GROUP + within % height) * comptime!(division.tile()[0]);
    let first_column = within / height * comptime!(division.tile()[1]);
    (first_row, first_column)
}

/// The part of this thread's warp.
#[cube]
fn plane_of(#[comptime] division: Division) -> Plane {
    let plane = UNIT_POS as usize / UNITS;
    Plane {
        row: plane / comptime!(division.planes[1]) % comptime!(division.planes[0]) * comptime!(division.part[0]),
        column: plane % comptime!(division.planes[1]) * comptime!(division.part[1]),
        slice: plane / comptime!(division.planes[0] * division.planes[1]),
    }
}

/// Multiply the stage that begins at `from` into a warp's sums. `ldmatrix` loads the operands to registers.
#[cube]
fn multiply<E: Float, V: Size, P: Size>(
    stages: &Shared<[Vector<E, V>]>,
    from: usize,
    plane: &Plane,
    sums: &mut Array<Vector<f32, P>>,
    #[comptime] form: Form,
) {
    let (lhs_stage, rhs_stage) = comptime!((form.lhs(), form.rhs()));
    let [m, n] = comptime!(form.division.instructions());
    let definition = MmaDefinition::<E, E, f32>::new(16usize, 8usize, 16usize);
    #[unroll]
    for step in 0..comptime!(K_PER_PLANE / 16) {
        let step = plane.slice * comptime!(K_PER_PLANE / 16) + step;
        let mut b_pairs = Sequence::<Array<Vector<E, P>>>::new();
        // One load covers the columns of two instructions.
        #[unroll]
        for j in 0..comptime!(n / 2) {
            let at = from + comptime!(lhs_stage.vectors()) + ldmatrix_row(plane.column + j * 16, step, rhs_stage, true);
            let transpose = comptime!(!rhs_stage.k_contiguous);
            let four =
                definition.load_matrix::<Vector<E, V>, P>(&stages[at..at + 1], MatrixIdent::B, 4usize, transpose);
            b_pairs.push(four);
        }
        #[unroll]
        for i in 0..m {
            let at = from + ldmatrix_row(plane.row + i * 16, step, lhs_stage, false);
            let transpose = comptime!(!lhs_stage.k_contiguous);
            let a = definition.load_matrix::<Vector<E, V>, P>(&stages[at..at + 1], MatrixIdent::A, 4usize, transpose);
            #[unroll]
            for j in 0..n {
                let four = b_pairs.index(comptime!(j / 2));
                let mut b = Array::<Vector<E, P>>::new(2usize);
                b[0] = four[comptime!(j % 2 * 2)];
                b[1] = four[comptime!(j % 2 * 2 + 1)];
                let at = comptime!((i * n + j) * 2);
                let mut sum = Array::<Vector<f32, P>>::new(2usize);
                sum[0] = sums[at];
                sum[1] = sums[at + 1];
                let sum = definition.execute(&a, &b, &sum);
                sums[at] = sum[0];
                sums[at + 1] = sum[1];
            }
        }
    }
}

/// Add the sums of warps with other slices of `k`, slice by slice, to those of slice 0, through shared memory.
#[cube]
fn add_slices<P: Size>(sums: &mut Array<Vector<f32, P>>, slice: usize, #[comptime] division: Division) {
    let (count, units_per_slice) = comptime!((division.sums(), division.units_per_slice()));
    let mut others = Shared::<[Vector<f32, P>]>::new_slice(comptime!(count * units_per_slice));
    let unit = UNIT_POS as usize % units_per_slice;
    #[unroll]
    for other in 1..comptime!(division.planes[2]) {
        if slice == other {
            #[unroll]
            for i in 0..count {
                others[i * units_per_slice + unit] = sums[i];
            }
        }
        sync_cube();
        if slice == 0 {
            #[unroll]
            for i in 0..count {
                sums[i] += others[i * units_per_slice + unit];
            }
        }
        sync_cube();
    }
}

/// Write a warp's sums to the result that begins at `from`. Thread `t` has, of each instruction tile, rows `t / 4` and
/// `t / 4 + 8` of the columns `2 (t mod 4)` and `2 (t mod 4) + 1`.
#[cube]
fn write<P: Size>(
    out: &mut [Vector<f32, P>],
    from: usize,
    first_row: usize,
    first_column: usize,
    sums: &Array<Vector<f32, P>>,
    rows: usize,
    columns: usize,
    #[comptime] division: Division,
) {
    let [m, n] = comptime!(division.instructions());
    let unit = UNIT_POS as usize % UNITS;
    #[unroll]
    for i in 0..m {
        #[unroll]
        for half in 0..2 {
            let row = first_row + i * 16 + half * 8 + unit / 4;
            if row < rows {
                #[unroll]
                for j in 0..n {
                    let column = first_column + j * 8 + unit % 4 * 2;
                    if column < columns {
                        out[(from + row * columns + column) / 2] = sums[comptime!((i * n + j) * 2 + half)];
                    }
                }
            }
        }
    }
}

/// Index of a vector in a stage. Vectors of a row are swizzled (XOR with the row), so that the same vector of eight
/// rows is in eight different groups of banks, and so are eight consecutive vectors.
#[cube]
fn swizzle(line: usize, vector: usize, #[comptime] width: usize) -> usize {
    let lines = comptime!(if width < 8 { 8 / width } else { 1 });
    let modulus = comptime!(if width < 8 { width } else { 8 });
    line * width + (vector ^ (line / lines % modulus))
}

/// Load this thread's share of an operand's tile: vectors `thread + i · units` of the stage. Addresses beyond the end
/// of the operand are clamped; positions of `k` beyond `end` are zeros if `stage.zeros`.
#[cube]
fn fetch<E: Float, V: Size>(
    source: &[Vector<E, V>],
    lines: &Lines,
    k: usize,
    end: usize,
    #[comptime] stage: SharedTile,
) -> Array<Vector<E, V>> {
    let width = comptime!(stage.width());
    let mut share = Array::<Vector<E, V>>::new(comptime!(stage.share()));
    #[unroll]
    for i in 0..comptime!(stage.share()) {
        let at = UNIT_POS as usize + i * comptime!(stage.units);
        let (line, vector) = (at / width, at % width);
        let value = if comptime!(stage.k_contiguous) {
            let k = k + vector * VECTOR;
            let row = least(lines.first + line, lines.size - 1);
            let value = source[lines.from + row * lines.stride + least(k, end - VECTOR) / VECTOR];
            zero_unless::<E, V>(value, k < end, comptime!(stage.zeros))
        } else {
            let k = k + line;
            let row = least(lines.first / VECTOR + vector, lines.size / VECTOR - 1);
            let value = source[lines.from + least(k, end - 1) * lines.stride + row];
            zero_unless::<E, V>(value, k < end, comptime!(stage.zeros))
        };
        share[i] = value;
    }
    share
}

#[cube]
fn zero_unless<E: Float, V: Size>(value: Vector<E, V>, valid: bool, #[comptime] zeros: bool) -> Vector<E, V> {
    if comptime!(zeros) { select(valid, value, Vector::new(E::new(0.0))) } else { value }
}

/// Store the vectors of [`fetch`] to the stage that begins at `from`.
#[cube]
fn store<E: Float, V: Size>(
    stages: &mut Shared<[Vector<E, V>]>,
    from: usize,
    share: &Array<Vector<E, V>>,
    #[comptime] stage: SharedTile,
) {
    let width = comptime!(stage.width());
    #[unroll]
    for i in 0..comptime!(stage.share()) {
        let at = UNIT_POS as usize + i * comptime!(stage.units);
        stages[from + swizzle(at / width, at % width, width)] = share[i];
    }
}

/// Index in a stage of the vector whose address this thread gives to `ldmatrix`. The four 8 x 8 matrices make 16 rows
/// by 16 positions in the order of the instruction's registers: rows first, or positions first if `right`.
#[cube]
fn ldmatrix_row(row: usize, step: usize, #[comptime] stage: SharedTile, #[comptime] right: bool) -> usize {
    let unit = UNIT_POS as usize % UNITS;
    let width = comptime!(stage.width());
    // The second of the four matrices is 8 rows of the stage below the first, or 8 elements beside it.
    let below = comptime!(stage.k_contiguous != right);
    let (line, vector) =
        if comptime!(below) { (unit % 16, unit / 16) } else { (unit % 8 + unit / 16 * 8, unit / 8 % 2) };
    if comptime!(stage.k_contiguous) {
        swizzle(row + line, step * 2 + vector, width)
    } else {
        swizzle(step * 16 + line, row / VECTOR + vector, width)
    }
}
