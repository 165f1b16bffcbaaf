//! Confidence intervals by the bootstrap: what a statistic would have been on other problems of the same kind.

use rayon::prelude::*;

use crate::noise::Stream;

/// Draws with replacement that an interval is made of.
pub const RESAMPLES: u64 = 1000;

/// The same draws for every statistic, and every time.
const SEED: u64 = 0xb007;

/// The 95% percentile interval of a statistic over `count` problems (Efron 1979): it is computed of [`RESAMPLES`] draws
/// of `count` problems with replacement, and the interval runs from the 2.5% to the 97.5% quantile.
///
/// Problems are drawn, not completions: completions of one problem are not independent. There is no interval for fewer
/// than two problems, nor where a bound is not finite (a share of nothing). Where all problems agree it has no width,
/// which with few problems says little.
pub fn interval(count: usize, statistic: impl Fn(&[usize]) -> f64 + Sync) -> Option<[f64; 2]> {
    if count < 2 {
        return None;
    }
    let value = |draw: u64| {
        let mut random = Stream::new(&[SEED, draw]);
        let drawn: Vec<usize> = (0..count).map(|_| random.range(0, count as i64 - 1) as usize).collect();
        statistic(&drawn)
    };
    bounds((0..RESAMPLES).into_par_iter().map(value).collect())
}

fn bounds(mut values: Vec<f64>) -> Option<[f64; 2]> {
    values.sort_unstable_by(f64::total_cmp);
    let bounds = [quantile(&values, 0.025), quantile(&values, 0.975)];
    bounds.iter().all(|bound| bound.is_finite()).then_some(bounds)
}

/// The `q`-quantile of sorted values, linear between neighbours (NumPy's default).
///
/// # Panics
/// When there are none.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    if low == high { low } else { low + (high - low) * place.fract() }
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
        assert_eq!(interval(5, |_| f64::NAN), None);
        assert_eq!(interval(5, |drawn| drawn.len() as f64), Some([5.0, 5.0]));
    }
}
