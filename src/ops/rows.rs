//! Rows of sequences: packed, one sequence after another, or padded to the longest.

use burn::tensor::{Device, Tensor};

use super::cpu;
#[cfg(feature = "gpu")]
use super::gpu;
use super::traffic::index;

/// Packed rows as a padded batch: `[sum of lengths, width_of_row]` to `[sequences · longest, width_of_row]`.
/// What stands in the padding is unspecified; its gradient must be zero.
pub(super) fn unpack(rows: Tensor<2>, lengths: &[usize], longest: usize) -> Tensor<2> {
    if lengths.iter().all(|&length| length == longest) {
        return rows;
    }
    let mut from = Vec::with_capacity(lengths.len() * longest);
    let mut start = 0;
    for &length in lengths {
        from.extend((0..longest).map(|t| (start + t.min(length - 1)) as u32));
        start += length;
    }
    permuted(rows, from, || packed(lengths, longest))
}

/// The inverse of [`unpack`]: drops the padding.
pub(super) fn pack(rows: Tensor<2>, lengths: &[usize], longest: usize) -> Tensor<2> {
    if lengths.iter().all(|&length| length == longest) {
        return rows;
    }
    permuted(rows, packed(lengths, longest), || {
        let mut back = vec![u32::MAX; lengths.len() * longest];
        packed(lengths, longest).into_iter().enumerate().for_each(|(row, at)| back[at as usize] = row as u32);
        back
    })
}

/// Where each packed row stands in the padded batch.
fn packed(lengths: &[usize], longest: usize) -> Vec<u32> {
    let rows = lengths.iter().enumerate();
    rows.flat_map(|(sequence, &length)| (0..length).map(move |t| (sequence * longest + t) as u32)).collect()
}

/// The rows at `from`. `back` says where in the result's gradient that of each row stands, so that a GPU, on which rows that
/// may meet are added one after another, takes them, too.
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
fn permuted(rows: Tensor<2>, from: Vec<u32>, back: impl FnOnce() -> Vec<u32>) -> Tensor<2> {
    let device = rows.device();
    #[cfg(feature = "gpu")]
    if gpu::serves(&device) {
        return gpu::take_rows(rows, from, back());
    }
    let from: Vec<i64> = from.into_iter().map(i64::from).collect();
    rows.select(0, index(&from, &device))
}

/// Tokens of padding that [`attention`] computes beside sequences of these lengths.
pub(crate) fn padding(lengths: &[usize], device: &Device) -> usize {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if cpu::serves(device) { 0 } else { longest * lengths.len() - lengths.iter().sum::<usize>() }
}

/// The given rows of `x`.
pub(crate) fn take_rows(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let device = x.device();
    x.select(0, index(&rows, &device))
}
