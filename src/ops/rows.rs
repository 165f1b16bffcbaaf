//! Conversion between packed rows (sequences one after another) and batches padded to the longest sequence.

use burn::tensor::{Device, Tensor};

use super::cpu;
#[cfg(feature = "gpu")]
use super::gpu;
use super::traffic::index;

/// Convert packed rows to a padded batch: `[sum of lengths, width]` to `[sequences · longest, width]`.
/// The values of the padding are unspecified; its gradient must be zero.
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
    gather_rows(rows, from, || padded_index(lengths, longest))
}

/// The inverse of [`unpack`]: drops the padding.
pub(super) fn pack(rows: Tensor<2>, lengths: &[usize], longest: usize) -> Tensor<2> {
    if lengths.iter().all(|&length| length == longest) {
        return rows;
    }
    gather_rows(rows, padded_index(lengths, longest), || {
        let mut back = vec![u32::MAX; lengths.len() * longest];
        padded_index(lengths, longest).into_iter().enumerate().for_each(|(row, at)| back[at as usize] = row as u32);
        back
    })
}

/// Index of each packed row in the padded batch.
fn padded_index(lengths: &[usize], longest: usize) -> Vec<u32> {
    let rows = lengths.iter().enumerate();
    rows.flat_map(|(sequence, &length)| (0..length).map(move |t| (sequence * longest + t) as u32)).collect()
}

/// Gather the rows at `from`. `back` is the row of the result for each input row: a GPU, which adds rows with
/// duplicate indices one after another, uses it to gather the gradient instead.
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
fn gather_rows(rows: Tensor<2>, from: Vec<u32>, back: impl FnOnce() -> Vec<u32>) -> Tensor<2> {
    let device = rows.device();
    #[cfg(feature = "gpu")]
    if gpu::serves(&device) {
        return gpu::take_rows(rows, from, back());
    }
    let from: Vec<i64> = from.into_iter().map(i64::from).collect();
    rows.select(0, index(&from, &device))
}

/// Number of padding tokens that [`attention`](super::attention) computes for sequences of these lengths.
pub(crate) fn padding(lengths: &[usize], device: &Device) -> usize {
    let longest = lengths.iter().copied().max().unwrap_or(0);
    if cpu::serves(device) { 0 } else { longest * lengths.len() - lengths.iter().sum::<usize>() }
}

/// Gather the given rows of `x`.
pub(crate) fn take_rows(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let device = x.device();
    x.select(0, index(&rows, &device))
}
