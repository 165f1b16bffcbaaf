//! Bootstrap confidence intervals: how a statistic would vary over other problems of the same kind.

use rayon::prelude::*;

use crate::noise::Stream;

/// Number of resamples for an interval.
pub const RESAMPLES: u64 = 1000;

/// Fixed seed, so that every statistic uses the same resamples.
const SEED: u64 = 0xb007;

/// Return the 95% percentile interval of a statistic over `count` problems (Efron 1979): from the 2.5% to the 97.5%
/// quantile of its values for [`RESAMPLES`] draws of `count` problems with replacement.
///
/// Problems are resampled, not completions, because completions of one problem are not independent. `None` for fewer
/// than two problems. A bound is infinite if the statistic is (a ratio with denominator 0); where it is not a number it
/// counts as unbounded on both sides. If all problems agree the interval has no width, which means little with few
/// problems.
pub fn interval(count: usize, statistic: impl Fn(&[usize]) -> f64 + Sync) -> Option<[f64; 2]> {
    if count < 2 {
        return None;
    }
    let value = |draw: u64| {
        let mut random = Stream::new(&[SEED, draw]);
        let drawn: Vec<usize> = (0..count).map(|_| random.range(0, count as i64 - 1) as usize).collect();
        statistic(&drawn)
    };
    Some(bounds(&(0..RESAMPLES).into_par_iter().map(value).collect::<Vec<_>>()))
}

fn bounds(values: &[f64]) -> [f64; 2] {
    [(0.025, f64::NEG_INFINITY), (0.975, f64::INFINITY)].map(|(q, unknown)| {
        let mut values: Vec<f64> = values.iter().map(|&value| if value.is_nan() { unknown } else { value }).collect();
        values.sort_unstable_by(f64::total_cmp);
        quantile(&values, q)
    })
}

/// Return the `q`-quantile of sorted values, interpolated linearly (NumPy's default).
///
/// # Panics
/// When `sorted` is empty.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    // From minus infinity there is no interpolation.
    if low == high || low.is_infinite() { low } else { low + (high - low) * place.fract() }
}

/// Return the two-sided p-value of the exact paired sign test (McNemar) for `gained` pairs that changed one way and
/// `lost` pairs that changed the other way: twice the smaller tail of the binomial distribution with probability 1/2,
/// at most 1.
pub fn sign_test(gained: usize, lost: usize) -> f64 {
    let pairs = gained + lost;
    // Logarithms: 2^-pairs underflows from 1075 pairs on.
    let mut log_term = -(pairs as f64) * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for k in 1..=gained.min(lost) {
        log_term += ((pairs - k + 1) as f64 / k as f64).ln();
        tail += log_term.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::mean;

    #[test]
    fn quantiles_are_those_of_numpy() {
        let values = [1.0, 2.0, 4.0, 8.0];
        // numpy.quantile([1, 2, 4, 8], [0, 0.1, 0.5, 0.95, 1])
        let expected = [(0.0, 1.0), (0.1, 1.3), (0.5, 3.0), (0.95, 7.4), (1.0, 8.0)];
        assert!(expected.iter().all(|&(q, value)| (quantile(&values, q) - value).abs() < 1e-12));
        assert_eq!(quantile(&[3.0], 0.975), 3.0);
    }

    /// For a mean the interval is about 1.96 standard errors to either side: here `0.5 ± 1.96 · 0.5 / √400`.
    #[test]
    fn the_interval_of_a_mean_is_that_of_the_normal_distribution() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let [low, high] = interval(400, |drawn| mean(&drawn.iter().map(|&i| values[i]).collect::<Vec<_>>())).unwrap();
        assert!((low - 0.451).abs() < 0.006 && (high - 0.549).abs() < 0.006, "{low} {high}");
    }

    #[test]
    fn there_is_no_interval_where_there_is_nothing_to_draw() {
        assert_eq!(interval(1, |_| 1.0), None);
        assert_eq!(interval(5, |drawn| drawn.len() as f64), Some([5.0, 5.0]));
    }

    /// Regression: an interval with an infinite bound was left out, as if the figure were exact.
    #[test]
    fn what_has_no_bound_says_so() {
        let all = [f64::NEG_INFINITY, f64::INFINITY];
        assert_eq!(interval(5, |_| f64::NAN), Some(all));
        // One of five problems is right: about a third of the draws have none.
        let [low, high] = interval(5, |drawn| 5.0 / drawn.iter().filter(|&&i| i == 0).count() as f64).unwrap();
        assert!(low.is_finite() && high == f64::INFINITY, "{low} {high}");
        let mut values = vec![1.0; 1000];
        values[..26].fill(f64::NEG_INFINITY);
        assert_eq!(bounds(&values), [f64::NEG_INFINITY, 1.0]);
        values[..24].fill(f64::NAN);
        assert_eq!(bounds(&values), [f64::NEG_INFINITY, 1.0]);
    }

    /// Values of SciPy's `binomtest(gained, gained + lost).pvalue`; 2000 pairs underflow without logarithms.
    #[test]
    fn the_sign_test_is_exact() {
        let expected = [((4, 0), 0.125), ((0, 2), 0.5), ((0, 0), 1.0), ((3, 3), 1.0), ((9, 1), 0.021_484_375)];
        for ((gained, lost), p) in expected {
            assert!((sign_test(gained, lost) - p).abs() < 1e-12, "{gained} {lost}");
        }
        assert!((sign_test(950, 1050) - 0.026_824_146_240_280_7).abs() < 1e-6, "{}", sign_test(950, 1050));
    }
}
