//! The order of the rows of a file: a different one in each epoch, as a function of a seed.

use crate::noise::{Purpose, mix};

/// Rounds of the network. From four on, a balanced network with independent rounds is a pseudo-random permutation (Luby
/// and Rackoff 1988).
const ROUNDS: u64 = 6;

/// A permutation of the rows of a file for each epoch, by index. No list is built, so the cost of a row does not depend
/// on the length of the file.
///
/// A Feistel network permutes the numbers below a power of four that is at least the number of rows. A number that is
/// no row is permuted again until it is one (cycle walking; Black and Rogaway 2002), less than four times on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shuffle {
    seed: u64,
    rows: u64,
}

impl Shuffle {
    /// Create the order of `rows` rows under `seed`.
    ///
    /// # Panics
    /// When `rows` is 0.
    pub fn new(seed: u64, rows: usize) -> Self {
        assert!(rows > 0, "no rows to shuffle");
        Self { seed, rows: rows as u64 }
    }

    /// Return the row at `index`, counted over all epochs.
    pub fn row(&self, index: u64) -> usize {
        let (epoch, mut place) = (index / self.rows, index % self.rows);
        // Bits of each half: the smallest h with 4^h at least the number of rows.
        let half = (u64::BITS - (self.rows - 1).leading_zeros()).div_ceil(2);
        let mask = (1u64 << half) - 1;
        loop {
            let (mut left, mut right) = (place >> half, place & mask);
            for round in 0..ROUNDS {
                let word = mix(&[Purpose::Order.word(), self.seed, epoch, round, right]);
                (left, right) = (right, left ^ (word & mask));
            }
            place = left << half | right;
            if place < self.rows {
                return place as usize;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(shuffle: Shuffle, epoch: u64) -> Vec<usize> {
        (epoch * shuffle.rows..(epoch + 1) * shuffle.rows).map(|index| shuffle.row(index)).collect()
    }

    #[test]
    fn every_epoch_has_every_row_once_in_an_order_of_its_own() {
        for rows in [1usize, 2, 3, 7, 64, 65, 1000] {
            let shuffle = Shuffle::new(5, rows);
            for number in 0..3 {
                let mut order = epoch(shuffle, number);
                order.sort_unstable();
                assert_eq!(order, (0..rows).collect::<Vec<_>>());
            }
        }
        let (first, second) = (epoch(Shuffle::new(5, 100), 0), epoch(Shuffle::new(5, 100), 1));
        assert!(first != second && first != epoch(Shuffle::new(6, 100), 0));
        assert!(first != epoch(Shuffle::new(5 + (1 << 32), 100), 0), "all bits of the seed count");
    }

    /// Over many seeds, each of seven rows lands in every place equally often.
    #[test]
    fn every_row_lands_everywhere() {
        let mut counts = [[0u32; 7]; 7];
        for seed in 0..7000 {
            epoch(Shuffle::new(seed, 7), 0).into_iter().enumerate().for_each(|(place, row)| counts[place][row] += 1);
        }
        // Expected 1000, with a standard deviation of 29; the bound is six standard deviations.
        assert!(counts.iter().flatten().all(|count| count.abs_diff(1000) < 175), "{counts:?}");
    }

    #[test]
    fn a_large_file_is_shuffled_row_by_row() {
        let shuffle = Shuffle::new(1, 1_000_000_007);
        let rows: std::collections::BTreeSet<usize> = (0..1000).map(|index| shuffle.row(index)).collect();
        assert!(rows.len() == 1000 && rows.last() > Some(&900_000_000) && rows.first() < Some(&100_000_000));
    }
}
