use super::*;

/// Sampler's record of one completion. Each distribution is a softmax over two tokens, the drawn token first.
struct SampledCompletion {
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    entropies: Vec<f32>,
    collisions: Vec<f32>,
    collision_logs: Vec<f32>,
}

impl SampledCompletion {
    /// Build a record from tokens and their probabilities; the other token has the rest.
    fn new(tokens: &[(u32, f32)]) -> Self {
        let two = |f: &dyn Fn(f32) -> f32| tokens.iter().map(|&(_, p)| f(p) + f(1.0 - p)).collect();
        Self {
            tokens: tokens.iter().map(|&(token, _)| token).collect(),
            log_probs: tokens.iter().map(|&(_, p)| p.ln()).collect(),
            entropies: two(&|p| -p * p.ln()),
            collisions: two(&|p| p * p),
            collision_logs: two(&|p| p * p * p.ln()),
        }
    }

    fn sample(&self, task: f32, length: f32, correct: bool) -> MeasuredCompletion<'_> {
        MeasuredCompletion {
            tokens: &self.tokens,
            log_probs: &self.log_probs,
            entropies: &self.entropies,
            sampling_entropies: &self.entropies,
            collisions: &self.collisions,
            collision_logs: &self.collision_logs,
            advantage: Parts { task, length },
            correct: Some(correct),
            weight: 0.125,
        }
    }
}

const WAIT: u32 = 0;
const DIGIT: u32 = 1;
const STOP: u32 = 2;

fn connectors() -> Connectors {
    Connectors::of(["Wait", "7", "."].map(str::to_string).to_vec())
}

fn metrics(samples: &[MeasuredCompletion], temperature: f32) -> Metrics {
    measure(samples, temperature, &connectors(), &mut TokenTypes::default()).metrics()
}

fn close(metrics: &Metrics, name: &str, expected: f64) {
    let got = metrics.get(name).unwrap_or_else(|| panic!("{name} is missing: {metrics:?}"));
    assert!((got - expected).abs() < 1e-5 * expected.abs().max(1.0), "{name} = {got}, expected {expected}");
}

/// Two completions: a long right one that begins with a connector of probability 0.5 (task +1, length −0.5) and a short
/// wrong one with a single token of probability 0.9 (task −1, length +0.5). For two tokens g = (1 − p) √2.
#[test]
fn figures_are_those_by_hand() {
    let long = SampledCompletion::new(&[(WAIT, 0.5), (DIGIT, 0.9), (STOP, 0.9)]);
    let short = SampledCompletion::new(&[(DIGIT, 0.9)]);
    let found = metrics(&[long.sample(1.0, -0.5, true), short.sample(-1.0, 0.5, false)], 2.0);
    let g = |p: f64| (1.0 - p) * 2f64.sqrt() / 2.0;
    close(&found, "connectors/push_task", g(0.5));
    close(&found, "connectors/push_length", -0.5 * g(0.5));
    close(&found, "connectors/opposition", 1.0 - 0.5 / 1.5);
    close(&found, "push_task", (g(0.5) + g(0.9)) / 4.0);
    close(&found, "cancellation", 1.0 - 0.5 / 1.5);
    close(&found, "opposed_share", 0.75);
    close(&found, "connectors/opposed_share", 1.0);
    close(&found, "connectors/grad_share_task", g(0.5).powi(2) / (g(0.5).powi(2) + 3.0 * g(0.9).powi(2)));
    // δ is 0 for p = 0.5; for p = 0.9 it is −p (ln p + H) + Σ π² (ln π + H) = 2 p q² ln(q/p), over T².
    let drift = 2.0 * 0.9 * 0.01 * (0.1f64 / 0.9).ln() / 4.0;
    close(&found, "connectors/entropy_change_task", 0.0);
    close(&found, "entropy_change_task", (2.0 - 1.0) * drift / 4.0);
    close(&found, "entropy_change_length", (-1.0 + 0.5) * drift / 4.0);
    close(&found, "entropy_change", 0.5 * drift / 4.0);
    // A = 0.5, 0.5, 0.5, −0.5, mean 0.25; ln π: ln 0.5 and three times ln 0.9.
    let mean = (0.5f64.ln() + 3.0 * 0.9f64.ln()) / 4.0;
    let c = [0.25 * (0.5f64.ln() - mean), 0.25 * (0.9f64.ln() - mean), -0.75 * (0.9f64.ln() - mean)];
    close(&found, "covariance/mean", (c[0] + 2.0 * c[1] + c[2]) / 4.0);
    close(&found, "covariance/top_1_percent", c[1]);
    close(&found, "negative_given_correct", 0.0);
    close(&found, "connectors/per_1000", 250.0);
    close(&found, "connectors/decile", 8.7);
    close(&found, "connectors/opens_step", 1.0);
    close(&found, "connectors/tokens_to_step_end", 2.0);
    close(&found, "steps/opened_share", 0.5);
}

#[test]
fn deciles_and_sets_are_parts_of_the_whole() {
    let tokens: Vec<(u32, f32)> = (0..37).map(|i| (i % 3, 0.02 + 0.026 * i as f32)).collect();
    let drawn = SampledCompletion::new(&tokens);
    let samples = [drawn.sample(0.7, -0.2, true), drawn.sample(-0.7, -0.1, false)];
    let figures = measure(&samples, 1.0, &connectors(), &mut TokenTypes::default());
    let sum = |f: &dyn Fn(&TokenSums) -> Option<f64>| figures.deciles.iter().filter_map(f).sum::<f64>();
    for part in [Part::Task, Part::Length] {
        assert!((sum(&|decile| decile.grad_share(&figures.all, part)) - 1.0).abs() < 1e-9);
        let mean = |sums: &TokenSums| Some(sums.push(part)? * sums.tokens() / 74.0);
        assert!((sum(&mean) - figures.all.push(part).unwrap()).abs() < 1e-9);
        assert!((mean(&figures.connectors).unwrap() + mean(&figures.others).unwrap() - sum(&mean)).abs() < 1e-9);
    }
    assert!(figures.deciles.windows(2).all(|pair| pair[0].entropy() <= pair[1].entropy()));
}

/// A step without advantages has no conflict figures, rather than zeros or NaNs.
#[test]
fn what_does_not_exist_is_left_out() {
    let drawn = SampledCompletion::new(&[(DIGIT, 0.5), (STOP, 0.5)]);
    let absent = |metrics: &Metrics, names: &[&str]| {
        names.iter().for_each(|name| {
            assert!(metrics.get(name).is_none() && metrics.list(name).is_none(), "{name}: {metrics:?}")
        });
    };
    let flat = metrics(&[drawn.sample(0.0, 0.0, false)], 1.0);
    absent(&flat, &["push_task", "opposition", "cancellation", "entropy_change", "covariance/mean", "advantage_task"]);
    absent(&flat, &["deciles/grad_share", "deciles/advantage_task", "negative_given_correct"]);
    absent(&flat, &["connectors/entropy", "connectors/opens_step", "connectors/decile"]);
    close(&flat, "connectors/per_1000", 0.0);
    close(&flat, "others/entropy", 2f64.ln());

    let task_only = metrics(&[drawn.sample(1.0, 0.0, true)], 1.0);
    close(&task_only, "push_task", 0.5f64.sqrt());
    absent(
        &task_only,
        &[
            "push_length",
            "opposition",
            "opposed_share",
            "deciles/opposition",
            "entropy_change_length",
            "covariance/length",
        ],
    );

    let none = metrics(&[], 1.0);
    absent(&none, &["connectors/per_1000", "entropy_p80", "push_task", "deciles/entropy"]);
}
