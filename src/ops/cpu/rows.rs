//! Products of a few rows with a matrix, with the widest vector instructions of the machine.

use pulp::Simd;

/// Rows computed together, so that each row of the matrix is loaded once for all of them.
pub(super) const ROWS: usize = 6;

/// `out[r] = Σ_i coefficients[r][i] · matrix[i]`, or added to `out[r]`, for `R` rows: `[R, n] · [n, width]`.
///
/// `out_stride` and `stride` are the row strides of `out` and `matrix`. Every sum runs over `i` in order, whatever the
/// vector width of the machine.
#[inline(always)]
pub(super) fn product<S: Simd, const R: usize>(
    simd: S,
    (out, out_stride): (&mut [f32], usize),
    coefficients: [&[f32]; R],
    (matrix, stride): (&[f32], usize),
    width: usize,
    add: bool,
) {
    let mut at = 0;
    while at + 2 * S::F32_LANES <= width {
        columns::<S, R, 2>(simd, (&mut out[at..], out_stride), coefficients, (&matrix[at..], stride), add);
        at += 2 * S::F32_LANES;
    }
    while at + S::F32_LANES <= width {
        columns::<S, R, 1>(simd, (&mut out[at..], out_stride), coefficients, (&matrix[at..], stride), add);
        at += S::F32_LANES;
    }
    for j in at..width {
        for (r, row) in coefficients.into_iter().enumerate() {
            let sum = row.iter().enumerate().fold(0.0, |sum, (i, c)| c.mul_add(matrix[i * stride + j], sum));
            let out = &mut out[r * out_stride + j];
            *out = if add { *out + sum } else { sum };
        }
    }
}

/// Compute the first `V` vectors of columns; their sums stay in registers.
#[inline(always)]
fn columns<S: Simd, const R: usize, const V: usize>(
    simd: S,
    (out, out_stride): (&mut [f32], usize),
    coefficients: [&[f32]; R],
    (matrix, stride): (&[f32], usize),
    add: bool,
) {
    let n = coefficients[0].len();
    let coefficients = coefficients.map(|row| &row[..n]);
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for i in 0..n {
        let (row, _) = S::as_simd_f32s(&matrix[i * stride..][..V * S::F32_LANES]);
        let row: &[S::f32s; V] = row.first_chunk().expect("whole vectors");
        for r in 0..R {
            let c = simd.splat_f32s(coefficients[r][i]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_f32s(c, row[v], sums[r][v]);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let (out, _) = S::as_mut_simd_f32s(&mut out[r * out_stride..][..V * S::F32_LANES]);
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = if add { simd.add_f32s(*out, sum) } else { sum };
        }
    }
}
