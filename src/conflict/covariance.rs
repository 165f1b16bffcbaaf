//! Covariance of advantage and log-probability, which drives the decrease of entropy (arXiv 2505.22617).

use super::token::MeasuredToken;

/// Statistics of `c = (A − mean A)(ln π − mean ln π)` over the tokens of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Covariance {
    /// Mean of `c`, for the task part, the length part, and their sum.
    pub parts: [f64; 3],
    /// Mean of the largest 0.2% of `c`, at least one token.
    pub top_two_mille: f64,
    /// Mean of the largest 1% of `c`, at least one token.
    pub top_percent: f64,
}

/// Compute the covariance; `None` without tokens, or if all advantages are 0.
pub(super) fn covariance(tokens: &[MeasuredToken]) -> Option<Covariance> {
    let advantage = |token: &MeasuredToken| [f64::from(token.advantage.task), f64::from(token.advantage.length)];
    if tokens.iter().all(|token| advantage(token) == [0.0; 2]) {
        return None;
    }
    let count = tokens.len() as f64;
    let mut mean = [0.0; 3];
    for token in tokens {
        let [task, length] = advantage(token);
        mean[0] += task / count;
        mean[1] += length / count;
        mean[2] += token.log_prob / count;
    }
    let mut parts = [0.0; 2];
    let mut joint: Vec<f64> = Vec::with_capacity(tokens.len());
    for token in tokens {
        let [task, length] = advantage(token);
        let log_prob = token.log_prob - mean[2];
        let products = [(task - mean[0]) * log_prob, (length - mean[1]) * log_prob];
        parts[0] += products[0] / count;
        parts[1] += products[1] / count;
        joint.push(products[0] + products[1]);
    }
    let mut top = |share: f64| {
        let size = (share * count).ceil() as usize;
        joint.select_nth_unstable_by(size - 1, |a, b| b.total_cmp(a));
        joint[..size].iter().sum::<f64>() / size as f64
    };
    Some(Covariance {
        parts: [parts[0], parts[1], parts[0] + parts[1]],
        top_two_mille: top(0.002),
        top_percent: top(0.01),
    })
}
