//! Drawing one token from a row of logits.

use crate::ops::host;

/// A drawn token and what is known of the distribution it came from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log-probability under the distribution it was drawn from.
    pub log_prob: f32,
    /// Entropy at temperature 1, in nats.
    pub entropy: f32,
    /// Entropy at the sampling temperature, in nats.
    pub sampling_entropy: f32,
}

/// Draws from `softmax(logits / temperature)` by inverting its distribution function at `uniform`; temperature 0 takes
/// the most probable token (the first of equals) and reports it at temperature 1.
pub fn sample(logits: &[f32], temperature: f32, uniform: f32) -> Sampled {
    let (greedy, temperature) = (temperature == 0.0, if temperature == 0.0 { 1.0 } else { temperature });
    let inverse = 1.0 / temperature;
    let (max, normaliser) = host::normaliser(logits, inverse);
    let token = if greedy {
        logits.iter().position(|&z| z == max).unwrap_or(0)
    } else {
        invert(logits, max, inverse, uniform * normaliser)
    };
    let entropy = host::entropy(logits, 1.0);
    Sampled {
        token: token as u32,
        log_prob: (logits[token] - max) * inverse - normaliser.ln(),
        entropy,
        sampling_entropy: if temperature == 1.0 { entropy } else { host::entropy(logits, inverse) },
    }
}

/// First index at which the running sum of `e^((z − max)/T)` exceeds `threshold`.
fn invert(logits: &[f32], max: f32, inverse: f32, threshold: f32) -> usize {
    let mut sum = 0.0f32;
    let mut likeliest = 0;
    for (index, &z) in logits.iter().enumerate() {
        let weight = host::exp((z - max) * inverse);
        sum += weight;
        if sum > threshold && weight > 0.0 {
            return index;
        }
        if z == max {
            likeliest = index;
        }
    }
    // Rounding can leave the sum a hair below the threshold.
    likeliest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::uniform;

    #[test]
    fn frequencies_follow_the_tempered_softmax() {
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let draws = 40_000u64;
        for temperature in [0.5f32, 1.0, 2.0] {
            let mut counts = [0f64; 4];
            for i in 0..draws {
                counts[sample(&logits, temperature, uniform(&[9, i])).token as usize] += 1.0 / draws as f64;
            }
            let weights = logits.map(|z| f64::from(z / temperature).exp());
            let sum: f64 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                // Six standard deviations of a frequency over 40,000 draws.
                assert!((count - weight / sum).abs() < 0.015, "T {temperature}: {counts:?}");
            }
        }
    }

    #[test]
    fn reports_log_probability_and_entropy_of_the_distribution_drawn_from() {
        let logits: Vec<f32> = (0..37).map(|i| ((i * 7) % 13) as f32 * 0.3).collect();
        let drawn = sample(&logits, 0.7, 0.4);
        let weights: Vec<f64> = logits.iter().map(|&z| f64::from(z / 0.7).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let entropy: f64 = weights.iter().map(|w| -(w / sum) * (w / sum).ln()).sum();
        assert!((f64::from(drawn.log_prob) - (weights[drawn.token as usize] / sum).ln()).abs() < 1e-5);
        assert!((f64::from(drawn.sampling_entropy) - entropy).abs() < 1e-5);
    }

    #[test]
    fn temperature_zero_is_greedy() {
        assert_eq!(sample(&[0.1, 3.0, 3.0, -2.0], 0.0, 0.999).token, 1);
    }
}
