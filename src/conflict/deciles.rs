//! Deciles of a step's tokens by entropy.

/// Number of deciles.
pub const DECILES: usize = 10;

/// Call `each(index, decile, share)` with the share of each value in each decile (0 the lowest).
///
/// Each decile holds exactly a tenth of the values. A value on a border is split. Equal values are spread evenly over
/// the ranks that they occupy together, so the order of the input does not matter.
pub(super) fn spread(values: &[f64], mut each: impl FnMut(usize, usize, f64)) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]).then(a.cmp(&b)));
    let width = values.len() as f64 / DECILES as f64;
    let mut rank = 0;
    for equal in order.chunk_by(|&a, &b| values[a].total_cmp(&values[b]).is_eq()) {
        let (from, to) = (rank as f64, (rank + equal.len()) as f64);
        for decile in (from / width) as usize..DECILES {
            let (low, high) = (decile as f64 * width, (decile + 1) as f64 * width);
            if low >= to {
                break;
            }
            let share = (to.min(high) - from.max(low)).max(0.0) / (to - from);
            if share > 0.0 {
                equal.iter().for_each(|&index| each(index, decile, share));
            }
        }
        rank += equal.len();
    }
}

/// Return the value that a share `q` of `values` does not exceed; `None` if `values` is empty.
pub(super) fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let mut values = values.to_vec();
    let (_, &mut value, _) = values.select_nth_unstable_by((q * last as f64).round() as usize, f64::total_cmp);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(values: &[f64]) -> Vec<[f64; DECILES]> {
        let mut shares = vec![[0.0; DECILES]; values.len()];
        spread(values, |index, decile, share| shares[index][decile] += share);
        shares
    }

    #[test]
    fn each_decile_holds_a_tenth_and_each_value_counts_once() {
        for values in
            [vec![0.3], vec![0.0; 7], (0..23).map(|i| f64::from(i * 7 % 23)).collect(), vec![0.0, 0.0, 0.0, 1.0, 2.0]]
        {
            let shares = shares(&values);
            for share in &shares {
                assert!((share.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{share:?}");
            }
            for decile in 0..DECILES {
                let held: f64 = shares.iter().map(|share| share[decile]).sum();
                assert!((held - values.len() as f64 / 10.0).abs() < 1e-9, "{decile}: {held} of {values:?}");
            }
        }
    }

    /// Six of ten tokens have entropy 0; their order in the batch must not matter.
    #[test]
    fn equal_values_share_their_ranks() {
        let shares = shares(&[0.0, 0.9, 0.0, 0.0, 0.1, 0.0, 0.0, 0.5, 0.0, 0.2]);
        assert!((0..6).all(|decile| (shares[0][decile] - 1.0 / 6.0).abs() < 1e-12 && shares[0] == shares[8]));
        assert_eq!((shares[4][6], shares[9][7], shares[7][8], shares[1][9]), (1.0, 1.0, 1.0, 1.0));
    }

    #[test]
    fn no_values_no_deciles() {
        spread(&[], |_, _, _| panic!("nothing to spread"));
        assert_eq!(quantile(&[], 0.8), None);
        assert_eq!(quantile(&[3.0, 1.0, 2.0, 5.0, 4.0, 0.0], 0.8), Some(4.0));
    }
}
