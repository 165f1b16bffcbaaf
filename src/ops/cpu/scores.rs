//! Log-probability, entropies and collision probability of rows of logits, and their gradient.

use rayon::prelude::*;

use super::kernels::{LANES, exp, max, rows_per_task};

/// Values of one row that the forward pass saves for the backward pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Normaliser {
    max: f32,
    /// `ln Σ e^((z − max) / T)`.
    log: f32,
    /// Entropy at temperature T.
    entropy: f32,
}

/// Statistics per row: log-probability of the target at T, entropy at 1, entropy at T, `Σ p²` at T.
pub(super) const STATISTICS: usize = 4;

/// Return the statistics of every row, `[STATISTICS, rows]`, and the normalisers.
pub(super) fn forward(logits: &[f32], targets: &[u32], temperature: f32) -> (Vec<f32>, Vec<Normaliser>) {
    let width = (logits.len() / targets.len().max(1)).max(1);
    let rows = logits.par_chunks_exact(width).zip(targets).with_min_len(rows_per_task(width));
    let (statistics, normalisers): (Vec<_>, Vec<_>) =
        rows.map(|(row, &target)| forward_row(row, target, 1.0 / temperature)).unzip();
    let stacked = (0..STATISTICS).flat_map(|k| statistics.iter().map(move |row: &[f32; STATISTICS]| row[k])).collect();
    (stacked, normalisers)
}

fn forward_row(row: &[f32], target: u32, inverse: f32) -> ([f32; STATISTICS], Normaliser) {
    let max = max(row);
    let sums = RowSums::over(row, max, inverse);
    let unit = if inverse == 1.0 { sums } else { RowSums::over(row, max, 1.0) };
    let log = sums.weight.ln();
    let log_prob = (row[target as usize] - max) * inverse - log;
    let entropy = sums.entropy();
    let collision = sums.square / (sums.weight * sums.weight);
    ([log_prob, unit.entropy(), entropy, collision], Normaliser { max, log, entropy })
}

/// Sums over a row of `e = exp((z − max) / T)`.
#[derive(Debug, Clone, Copy)]
struct RowSums {
    /// `Σ e`.
    weight: f32,
    /// `Σ e·(z − max)/T`.
    weighted: f32,
    /// `Σ e²`.
    square: f32,
}

impl RowSums {
    #[inline(always)]
    fn over(row: &[f32], max: f32, inverse: f32) -> Self {
        let (mut weight, mut weighted, mut square) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
        let (whole, tail) = row.as_chunks::<LANES>();
        for chunk in whole {
            for i in 0..LANES {
                let z = (chunk[i] - max) * inverse;
                let e = exp(z);
                weight[i] += e;
                weighted[i] = e.mul_add(z, weighted[i]);
                square[i] = e.mul_add(e, square[i]);
            }
        }
        let [mut weight, mut weighted, mut square] = [weight, weighted, square].map(|lanes| lanes.iter().sum::<f32>());
        for z in tail.iter().map(|z| (z - max) * inverse) {
            let e = exp(z);
            weight += e;
            weighted += e * z;
            square += e * e;
        }
        Self { weight, weighted, square }
    }

    fn entropy(&self) -> f32 {
        self.weight.ln() - self.weighted / self.weight
    }
}

/// Replace logits by their gradient: `(a·(onehot − p) − b·p·(ln p + H)) / T`, with `a` and `b` the upstream gradients
/// of the log-probability and of the entropy at T, and `p` and `H` the probabilities and the entropy at T.
pub(super) fn backward(
    logits: &mut [f32],
    targets: &[u32],
    temperature: f32,
    normalisers: &[Normaliser],
    [log_prob, entropy]: [&[f32]; 2],
) {
    let width = (logits.len() / targets.len().max(1)).max(1);
    let inverse = 1.0 / temperature;
    let rows = logits.par_chunks_exact_mut(width).zip(targets).zip(normalisers).zip(log_prob).zip(entropy);
    rows.with_min_len(rows_per_task(width)).for_each(|((((row, &target), normaliser), &a), &b)| {
        if a == 0.0 && b == 0.0 {
            return row.fill(0.0); // no gradient for this token
        }
        let shift = b.mul_add(normaliser.entropy, a);
        for z in row.iter_mut() {
            let log = (*z - normaliser.max).mul_add(inverse, -normaliser.log);
            *z = -inverse * exp(log) * b.mul_add(log, shift);
        }
        row[target as usize] += a * inverse;
    });
}
