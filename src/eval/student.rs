//! Student's t distribution, for intervals of means over a few runs.

/// Return the 95% interval around `value`. `parts` are independent parts of its error, each a variance of a mean and
/// its degrees of freedom; the variances add up, the degrees of freedom combine as in Welch (1947).
///
/// Without parts, or if all variances are 0, the interval has no width.
pub fn interval(value: f64, parts: &[(f64, f64)]) -> [f64; 2] {
    let variance: f64 = parts.iter().map(|(variance, _)| variance).sum();
    if variance == 0.0 {
        return [value; 2];
    }
    let degrees = variance.powi(2) / parts.iter().map(|(part, degrees)| part.powi(2) / degrees).sum::<f64>();
    let width = quantile(degrees) * variance.sqrt();
    [value - width, value + width]
}

/// Return the value that a variable of this distribution exceeds with probability 2.5%.
///
/// With `x = √ν tan θ` its density is proportional to `cos^(ν − 1) θ`, so the quantile is where the integral from 0 is
/// 95% of the integral to π/2.
///
/// # Panics
/// When `degrees` is below 1.
pub fn quantile(degrees: f64) -> f64 {
    assert!(degrees >= 1.0 - 1e-9, "{degrees} degrees of freedom");
    if degrees > 1000.0 {
        // The next terms of the expansion about the normal distribution are below 1e-6.
        return 1.959_964 + 2.372_3 / degrees;
    }
    const PARTS: usize = 20_000;
    let width = std::f64::consts::FRAC_PI_2 / PARTS as f64;
    let density = |part: usize| ((part as f64 + 0.5) * width).cos().powf(degrees - 1.0);
    let mut left = 0.95 * (0..PARTS).map(density).sum::<f64>();
    for part in 0..PARTS {
        let here = density(part);
        if left <= here {
            return degrees.sqrt() * ((part as f64 + left / here) * width).tan();
        }
        left -= here;
    }
    unreachable!("the parts add up to more than 95% of themselves")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of SciPy's `t.ppf(0.975, ν)`.
    #[test]
    fn quantiles_are_those_of_scipy() {
        let expected = [(1.0, 12.706_205), (2.0, 4.302_653), (3.0, 3.182_446), (4.0, 2.776_445), (10.0, 2.228_139)];
        for (degrees, value) in expected.into_iter().chain([(2.5, 3.574_655), (100.0, 1.983_972), (5000.0, 1.960_439)])
        {
            assert!((quantile(degrees) / value - 1.0).abs() < 2e-5, "{degrees}: {} {value}", quantile(degrees));
        }
    }

    /// Welch's test of two runs against two: variances of the means 4 and 1 give 25 / (16 + 1) = 1.47 degrees of freedom.
    #[test]
    fn few_runs_of_unlike_spread_have_a_wide_interval() {
        let [low, high] = interval(10.0, &[(4.0, 1.0), (1.0, 1.0)]);
        assert!(
            (high - 10.0 - quantile(25.0 / 17.0) * 5.0_f64.sqrt()).abs() < 1e-12 && (low + high - 20.0).abs() < 1e-12
        );
        assert_eq!(interval(1.0, &[(0.0, 4.0)]), [1.0, 1.0]);
    }
}
