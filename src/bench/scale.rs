//! Benchmark of a GRPO step on several ranks, with a performance model for other numbers of ranks.

use std::time::Instant;

use burn::tensor::Device;
use serde::Serialize;

use super::step::sequence;
use super::{StepShape, median};
use crate::error::Result;
use crate::generate::{Request, Watch};
use crate::model::{CausalLm, ModelConfig};
use crate::objective::Correction;
use crate::optim::{AdamW, OptimConfig};
use crate::rollout::Sampler;
use crate::stage::Stage;
use crate::train::policy::Policy;
use crate::train::team::Team;

/// Time of each part of a step in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Parts {
    /// Sampling; every completion has full length.
    pub sampling_s: f64,
    /// Forward and backward passes.
    pub learning_s: f64,
    /// All-reduce of the gradients over ranks.
    pub all_reduce_s: f64,
    /// Gradient norm and AdamW, on every rank.
    pub update_s: f64,
    /// Sum of the parts.
    pub step_s: f64,
}

impl Parts {
    fn of([sampling_s, learning_s, all_reduce_s, update_s]: [f64; 4]) -> Self {
        let step_s = sampling_s + learning_s + all_reduce_s + update_s;
        Self { sampling_s, learning_s, all_reduce_s, update_s, step_s }
    }

    /// Return the name of the longest part.
    fn bound(&self) -> &'static str {
        let parts = [
            ("sampling", self.sampling_s),
            ("learning", self.learning_s),
            ("all_reduce", self.all_reduce_s),
            ("update", self.update_s),
        ];
        parts.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map_or("", |(name, _)| name)
    }
}

/// Predicted step on a number of ranks that was not measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Modelled {
    /// Number of ranks.
    pub ranks: usize,
    /// Predicted time of each part.
    #[serde(flatten)]
    pub parts: Parts,
    /// Name of the longest part.
    pub bound: &'static str,
}

/// Measured and predicted times.
#[derive(Debug, Clone, Serialize)]
pub struct ScaleTimes {
    /// Number of ranks measured.
    pub ranks: usize,
    /// Number of trained parameters.
    pub trained_parameters: usize,
    /// Bytes per all-reduce: 4 for each trained parameter.
    pub all_reduce_bytes: usize,
    /// Medians over the timed steps.
    pub measured: Parts,
    /// Name of the longest measured part.
    pub bound: &'static str,
    /// Number of timed steps, after a warm-up.
    pub steps: usize,
    /// Ring bandwidth of each rank in bytes per second, given or measured; `None` if neither.
    pub bytes_per_s: Option<f64>,
    /// Description of the performance model.
    pub model: &'static str,
    /// Predictions for other numbers of ranks.
    pub modelled: Vec<Modelled>,
}

const MODEL: &str = "not measured: t(n) = (t_sampling + t_learning) r / n + 2 (n - 1) / n bytes / bandwidth + t_update, r the ranks \
                     that were measured: work that divides evenly among equal ranks, a ring, each rank with a device of its own";

/// Times GRPO steps of a random model with completions and lessons distributed over `team` (`None` for a single rank).
/// `bandwidth` in bytes per second replaces the measured one in the performance model.
///
/// # Errors
/// Errors of other ranks.
pub fn scale(
    config: &ModelConfig,
    shape: &StepShape,
    steps: usize,
    (name, device): (&str, &Device),
    team: Option<&Team>,
    bandwidth: Option<f64>,
) -> Result<ScaleTimes> {
    let mut model = CausalLm::random_as(config, 0, &device.clone().autodiff(), shape.precision);
    if let Some(lora) = &shape.lora {
        model = lora.attach(model, 0);
    }
    let optim = OptimConfig { learning_rate: 1e-4, ..OptimConfig::default() };
    let mut policy = Policy::new(config.clone(), model, AdamW::default()).on(team);
    if let Some(team) = team {
        let shared = (config, policy.model(), &policy.optimizer);
        team.share(shared, (shape.precision, shape.lora.as_ref()), &optim, name)?;
    }
    let (mut times, mut trained_parameters): (Vec<[f64; 4]>, usize) = (Vec::new(), 0);
    for number in 0..steps as u64 + 1 {
        let requests = shape.requests(config, number);
        let (seconds, trained) = round(shape, &requests, &mut policy, &optim, device, team)?;
        trained_parameters = trained;
        if number > 0 {
            times.push(seconds);
        }
    }
    let parts = [0, 1, 2, 3].map(|part| median(times.iter().map(|times| times[part])));
    let [sampling_s, learning_s, all_reduce_s, update_s] = parts;
    let (ranks, all_reduce_bytes) = (team.map_or(1, Team::size), 4 * trained_parameters);
    let sent = |ranks: usize| 2.0 * (ranks - 1) as f64 / ranks as f64 * all_reduce_bytes as f64;
    let bytes_per_s = bandwidth.or((ranks > 1).then(|| sent(ranks) / all_reduce_s));
    let modelled = |n: usize| {
        let divided = ranks as f64 / n as f64;
        let summing = if n == 1 { Some(0.0) } else { bytes_per_s.map(|bytes_per_s| sent(n) / bytes_per_s) }?;
        let parts = Parts::of([sampling_s * divided, learning_s * divided, summing, update_s]);
        Some(Modelled { ranks: n, parts, bound: parts.bound() })
    };
    let measured = Parts::of(parts);
    Ok(ScaleTimes {
        ranks,
        trained_parameters,
        all_reduce_bytes,
        measured,
        bound: measured.bound(),
        steps,
        bytes_per_s,
        model: MODEL,
        modelled: [1, 2, 4, 8, 16, 32].into_iter().filter(|&n| n != ranks).filter_map(modelled).collect(),
    })
}

/// Run a step; return the seconds of sampling, learning, all-reduce and update, and the number of trained parameters.
fn round(
    shape: &StepShape,
    requests: &[Request],
    policy: &mut Policy,
    optim: &OptimConfig,
    device: &Device,
    team: Option<&Team>,
) -> Result<([f64; 4], usize)> {
    let start = Instant::now();
    let completions = policy.sampler().sample(requests, &shape.sampling(), &mut |_, _| Watch::Continue)?;
    let sampled = start.elapsed().as_secs_f64();

    let sequences =
        requests.iter().zip(&completions).map(|(request, completion)| sequence(request, &completion.tokens));
    let mut lessons = shape.lessons(sequences.collect());
    let (learner, objective) = (shape.learner(), Stage::default().objective());
    let start = Instant::now();
    let (gradients, _, _) = policy.gradients(&learner, &objective, &Correction::NONE, &mut lessons)?;
    device.sync().expect("every operation of the step succeeds");
    let learned = start.elapsed().as_secs_f64();
    let summed = team.map_or(0.0, Team::summing);

    let trained = gradients.0.values().map(|gradient| gradient.dims()[0]).sum();
    let start = Instant::now();
    let scale = optim.clip(gradients.norm());
    policy.apply(optim, gradients, scale, optim.learning_rate);
    device.sync().expect("every operation of the step succeeds");
    Ok(([sampled, learned - summed, summed, start.elapsed().as_secs_f64()], trained))
}
