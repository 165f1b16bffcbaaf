//! Products of many rows on tensor cores, by the registers of each unit (`mma`, 16 x 8 x 16) and with the loads of the next
//! terms under way while these are multiplied.

use cubecl::cmma::{MatrixIdent, MmaDefinition};
use cubecl::prelude::*;

use super::least;

/// Numbers of a vector: 16 bytes.
pub(crate) const VECTOR: usize = 8;
/// Units of a plane.
pub(crate) const UNITS: usize = 32;
/// Terms of a plane that are in shared memory at a time, twice: one lot is filled while the other is multiplied.
const TERMS: usize = 32;
/// Tiles of rows that are next to each other in the order of cubes: what they read of the right factor is still in the cache.
const GROUP: usize = 8;

/// How a cube divides its tile of the result: planes by rows, columns and terms, and rows and columns of a plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Division {
    pub planes: [usize; 3],
    pub part: [usize; 2],
}

impl Division {
    /// Rows and columns of a cube.
    pub(crate) fn tile(&self) -> [usize; 2] {
        let ([m, n, _], [rows, columns]) = (self.planes, self.part);
        [m * rows, n * columns]
    }

    /// Terms in shared memory at a time.
    pub(crate) fn at_once(&self) -> usize {
        self.planes[2] * TERMS
    }

    /// Units of a cube.
    pub(crate) fn units(&self) -> usize {
        self.alike() * self.planes[2]
    }

    /// Units of the planes that have the same terms.
    fn alike(&self) -> usize {
        self.planes[0] * self.planes[1] * UNITS
    }

    /// Tiles of the instruction, 16 rows by 8 columns, in a plane's part.
    fn instructions(&self) -> [usize; 2] {
        [self.part[0] / 16, self.part[1] / 8]
    }

    /// Pairs of sums that a unit keeps: two rows of each instruction's tile.
    fn sums(&self) -> usize {
        let [m, n] = self.instructions();
        m * n * 2
    }

    /// Shared memory of a cube, bytes.
    pub(crate) fn shared(&self) -> usize {
        let [rows, columns] = self.tile();
        let sums = if self.planes[2] > 1 { 4 * rows * columns } else { 0 };
        2 * 2 * (rows + columns) * self.at_once() + sums
    }
}

/// What is known of a product when its kernel is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub division: Division,
    /// Whether the terms of each factor are next to each other in memory.
    pub along: [bool; 2],
    /// Whether the terms are no multiple of those in shared memory at a time.
    pub ragged: bool,
}

impl Form {
    fn lhs(&self) -> Stage {
        // Zeros in one factor are enough.
        self.stage(0, self.ragged)
    }

    fn rhs(&self) -> Stage {
        self.stage(1, false)
    }

    fn stage(&self, factor: usize, zeros: bool) -> Stage {
        Stage {
            lines: self.division.tile()[factor],
            terms: self.division.at_once(),
            along: self.along[factor],
            zeros,
            units: self.division.units(),
        }
    }
}

/// A factor's tile in shared memory: rows of the left factor or columns of the right one, by terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stage {
    lines: usize,
    terms: usize,
    /// Whether a line of memory has terms.
    along: bool,
    /// Whether terms beyond the last are zeros.
    zeros: bool,
    /// Units that fill it.
    units: usize,
}

impl Stage {
    fn vectors(&self) -> usize {
        self.lines * self.terms / VECTOR
    }

    /// Vectors of a line of memory.
    fn width(&self) -> usize {
        if self.along { self.terms / VECTOR } else { self.lines / VECTOR }
    }

    /// Vectors of a unit.
    fn share(&self) -> usize {
        self.vectors() / self.units
    }
}

/// Sizes of a product: `inner` are the batches of the second of two dimensions, `parts` those of the terms.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Sizes {
    pub m: usize,
    pub n: usize,
    pub terms: usize,
    pub inner: usize,
    pub batches: usize,
    pub parts: usize,
}

/// From one line of a factor to the next, and from one batch to the next by the two dimensions of batches, in vectors.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Strides {
    pub line: usize,
    pub outer: usize,
    pub inner: usize,
}

/// The rows of the left factor, or columns of the right one, that a cube reads.
#[derive(CubeType)]
struct Lines {
    /// Where the batch begins.
    from: usize,
    stride: usize,
    first: usize,
    /// Those of the factor.
    size: usize,
}

/// A plane's part of the tile, and which of the planes with other terms it is.
#[derive(CubeType)]
struct Plane {
    row: usize,
    column: usize,
    slice: usize,
}

/// `lhs · rhs` for each batch; a cube per tile of the result and part of the terms. A plane has its part of the tile in
/// registers, and every `planes[2]`-th run of [`TERMS`]; the sums of planes that share a part are added in order. Parts of the
/// terms are results of their own.
///
/// # Shapes
/// - lhs: `[batches, m, terms]`; rhs: `[batches, terms, n]`; a factor whose terms are next to each other in memory has them
///   *along*, the other has its rows or columns so
/// - out: `[parts, batches, m, n]`, dense
/// - `terms` is a multiple of a vector where a factor has them along, and of those at once unless `ragged`; `m` and `n` are of
///   a vector where a factor has not
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
    let (which, place) = (CUBE_POS / tiles, CUBE_POS % tiles);
    if which >= sizes.parts * sizes.batches {
        terminate!();
    }
    let (part, batch) = (which / sizes.batches, which % sizes.batches);
    let (first_row, first_column) = corner(place, tiles_m, tiles_n, division);
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
    let at_once = comptime!(division.at_once());
    let share = sizes.terms.div_ceil(at_once).div_ceil(sizes.parts) * at_once;
    let end = least(sizes.terms, (part + 1) * share);
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

    let mut term = part * share;
    let left = fetch::<E, V>(lhs, &rows, term, end, lhs_stage);
    let right = fetch::<E, V>(rhs, &columns, term, end, rhs_stage);
    put::<E, V>(&mut stages, 0usize, &left, lhs_stage);
    put::<E, V>(&mut stages, lhs_size, &right, rhs_stage);
    sync_cube();
    let mut from = 0usize;
    while term < end {
        term += at_once;
        // The loads of the last time are for nothing, of terms that are there.
        let left = fetch::<E, V>(lhs, &rows, term, end, lhs_stage);
        let right = fetch::<E, V>(rhs, &columns, term, end, rhs_stage);
        multiply::<E, V, P>(&stages, from, &plane, &mut sums, form);
        from = size - from;
        put::<E, V>(&mut stages, from, &left, lhs_stage);
        put::<E, V>(&mut stages, from + lhs_size, &right, rhs_stage);
        sync_cube();
    }

    if comptime!(division.planes[2] > 1) {
        add_slices::<P>(&mut sums, plane.slice, division);
    }
    if plane.slice == 0 {
        let from = which * sizes.m * sizes.n;
        write::<P>(out, from, first_row + plane.row, first_column + plane.column, &sums, sizes.m, sizes.n, division);
    }
}

/// First row and column of the tile at a place in the order of cubes.
#[cube]
fn corner(place: usize, tiles_m: usize, tiles_n: usize, #[comptime] division: Division) -> (usize, usize) {
    let group = place / (GROUP * tiles_n);
    let height = least(GROUP, tiles_m - group * GROUP);
    let within = place % (GROUP * tiles_n);
    let first_row = (group * GROUP + within % height) * comptime!(division.tile()[0]);
    let first_column = within / height * comptime!(division.tile()[1]);
    (first_row, first_column)
}

/// Where this unit's plane is.
#[cube]
fn plane_of(#[comptime] division: Division) -> Plane {
    let plane = UNIT_POS as usize / UNITS;
    Plane {
        row: plane / comptime!(division.planes[1]) % comptime!(division.planes[0]) * comptime!(division.part[0]),
        column: plane % comptime!(division.planes[1]) * comptime!(division.part[1]),
        slice: plane / comptime!(division.planes[0] * division.planes[1]),
    }
}

/// Adds the products of the terms in the stages that begin at `from` to a plane's sums.
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
    for step in 0..comptime!(TERMS / 16) {
        let step = plane.slice * comptime!(TERMS / 16) + step;
        let mut factors = Sequence::<Array<Vector<E, P>>>::new();
        // A load is of two instructions' columns.
        #[unroll]
        for j in 0..comptime!(n / 2) {
            let at = from + comptime!(lhs_stage.vectors()) + place_of(plane.column + j * 16, step, rhs_stage, true);
            let across = comptime!(!rhs_stage.along);
            let four = definition.load_matrix::<Vector<E, V>, P>(&stages[at..at + 1], MatrixIdent::B, 4usize, across);
            factors.push(four);
        }
        #[unroll]
        for i in 0..m {
            let at = from + place_of(plane.row + i * 16, step, lhs_stage, false);
            let across = comptime!(!lhs_stage.along);
            let a = definition.load_matrix::<Vector<E, V>, P>(&stages[at..at + 1], MatrixIdent::A, 4usize, across);
            #[unroll]
            for j in 0..n {
                let four = factors.index(comptime!(j / 2));
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

/// Adds the sums of the planes with other terms, one slice after the other, to those of the first.
#[cube]
fn add_slices<P: Size>(sums: &mut Array<Vector<f32, P>>, slice: usize, #[comptime] division: Division) {
    let (count, alike) = comptime!((division.sums(), division.alike()));
    let mut others = Shared::<[Vector<f32, P>]>::new_slice(comptime!(count * alike));
    let unit = UNIT_POS as usize % alike;
    #[unroll]
    for other in 1..comptime!(division.planes[2]) {
        if slice == other {
            #[unroll]
            for i in 0..count {
                others[i * alike + unit] = sums[i];
            }
        }
        sync_cube();
        if slice == 0 {
            #[unroll]
            for i in 0..count {
                sums[i] += others[i * alike + unit];
            }
        }
        sync_cube();
    }
}

/// Writes a plane's sums to its rows and columns of the result that begins at `from`.
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

/// Where in a stage a vector of a line is. Vectors of a line are exchanged by the number of the line, so that eight lines'
/// vectors at one place are in different banks, and so are eight that follow each other.
#[cube]
fn place(line: usize, vector: usize, #[comptime] width: usize) -> usize {
    let lines = comptime!(if width < 8 { 8 / width } else { 1 });
    let exchanged = comptime!(if width < 8 { width } else { 8 });
    line * width + (vector ^ (line / lines % exchanged))
}

/// This unit's share of a factor's tile; beyond the factor's end what is there, or zeros for terms beyond the last.
#[cube]
fn fetch<E: Float, V: Size>(
    source: &[Vector<E, V>],
    lines: &Lines,
    term: usize,
    end: usize,
    #[comptime] stage: Stage,
) -> Array<Vector<E, V>> {
    let width = comptime!(stage.width());
    let mut share = Array::<Vector<E, V>>::new(comptime!(stage.share()));
    #[unroll]
    for i in 0..comptime!(stage.share()) {
        let at = UNIT_POS as usize + i * comptime!(stage.units);
        let (line, vector) = (at / width, at % width);
        let value = if comptime!(stage.along) {
            let term = term + vector * VECTOR;
            let row = least(lines.first + line, lines.size - 1);
            let value = source[lines.from + row * lines.stride + least(term, end - VECTOR) / VECTOR];
            zero_unless::<E, V>(value, term < end, comptime!(stage.zeros))
        } else {
            let term = term + line;
            let row = least(lines.first / VECTOR + vector, lines.size / VECTOR - 1);
            let value = source[lines.from + least(term, end - 1) * lines.stride + row];
            zero_unless::<E, V>(value, term < end, comptime!(stage.zeros))
        };
        share[i] = value;
    }
    share
}

#[cube]
fn zero_unless<E: Float, V: Size>(value: Vector<E, V>, valid: bool, #[comptime] zeros: bool) -> Vector<E, V> {
    if comptime!(zeros) { select(valid, value, Vector::new(E::new(0.0))) } else { value }
}

/// Puts what [`fetch`] got into the stage that begins at `from`.
#[cube]
fn put<E: Float, V: Size>(
    stages: &mut Shared<[Vector<E, V>]>,
    from: usize,
    share: &Array<Vector<E, V>>,
    #[comptime] stage: Stage,
) {
    let width = comptime!(stage.width());
    #[unroll]
    for i in 0..comptime!(stage.share()) {
        let at = UNIT_POS as usize + i * comptime!(stage.units);
        stages[from + place(at / width, at % width, width)] = share[i];
    }
}

/// Where in a stage this unit's line is of the four matrices of 8 x 8 that make 16 rows by 16 terms, rows first where
/// `right` is false, terms first where it is true: the order of the instruction's registers.
#[cube]
fn place_of(row: usize, step: usize, #[comptime] stage: Stage, #[comptime] right: bool) -> usize {
    let unit = UNIT_POS as usize % UNITS;
    let width = comptime!(stage.width());
    // Of the four matrices the second is 8 lines below the first, or 8 numbers beside it.
    let below = comptime!(stage.along != right);
    let (line, vector) =
        if comptime!(below) { (unit % 16, unit / 16) } else { (unit % 8 + unit / 16 * 8, unit / 8 % 2) };
    if comptime!(stage.along) {
        place(row + line, step * 2 + vector, width)
    } else {
        place(step * 16 + line, row / VECTOR + vector, width)
    }
}
