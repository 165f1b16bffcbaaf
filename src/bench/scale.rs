//! Benchmark of a GRPO step on several ranks, with a performance model for other numbers of ranks.

use std::time::Instant;

use burn::tensor::Device;
use serde::Serialize;

use super::growth::{MeasuredStep, Modelled, PartTimes, Servers};
use super::step::{completions, sequence};
use super::{StepShape, median};
use crate::error::Result;
use crate::generate::{Request, Watch, read};
use crate::model::{CausalLm, ModelConfig};
use crate::objective::Correction;
use crate::optim::{AdamW, OptimConfig};
use crate::rollout::Sampler;
use crate::stage::Stage;
use crate::train::policy::Policy;
use crate::train::team::Team;

/// Measured and predicted times.
#[derive(Debug, Clone, Serialize)]
pub struct ScaleTimes {
    /// Number of ranks measured.
    pub ranks: usize,
    /// Number of trained parameters.
    pub trained_parameters: usize,
    /// Bytes per all-reduce: 4 for each trained parameter. As many are written for servers and read by each, except that
    /// whole weights of a checkpoint in 16 bits take half.
    pub all_reduce_bytes: usize,
    /// Medians over the timed steps.
    pub measured: PartTimes,
    /// Name of the longest measured part.
    pub bound: &'static str,
    /// Number of timed steps, after a warm-up.
    pub steps: usize,
    /// Ring bandwidth of each rank in bytes per second, given or measured; `None` if neither.
    pub bytes_per_s: Option<f64>,
    /// Servers that sample in the performance model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers: Option<Servers>,
    /// Description of the performance model.
    pub model: &'static str,
    /// Predictions by number of ranks.
    pub modelled: Vec<Modelled>,
}

/// Assumptions of the performance model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Assumed {
    /// Ring bandwidth of each rank in bytes per second; `None` for the measured one.
    pub bytes_per_s: Option<f64>,
    /// Servers that sample; `None` if the ranks do.
    pub servers: Option<Servers>,
}

/// Time GRPO steps of a random model with completions and lessons distributed over `team` (`None` for a single rank).
///
/// With servers, sampling is not timed: synthetic completions are scored by rank 0, as those of servers are, and learned
/// from. Sampling and the transfer of weights are only modelled.
///
/// # Errors
/// Errors of other ranks.
pub fn scale(
    config: &ModelConfig,
    shape: &StepShape,
    steps: usize,
    (name, device): (&str, &Device),
    team: Option<&Team>,
    assumed: &Assumed,
) -> Result<ScaleTimes> {
    let shape = &StepShape { sampled: assumed.servers.is_none(), ..shape.clone() };
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
    let [completing, learning_s, all_reduce_s, update_s] = parts;
    let (sampling_s, score_s) = if shape.sampled { (Some(completing), None) } else { (None, Some(completing)) };
    let parts = PartTimes { sampling_s, score_s, learning_s, all_reduce_s, update_s, ..PartTimes::default() }.summed();
    let completions = shape.prompts * shape.group;
    let measured = MeasuredStep {
        ranks: team.map_or(1, Team::size),
        prompts: shape.prompts,
        completions,
        tokens: completions * shape.tokens,
        parts,
        bytes: 4 * trained_parameters,
        bytes_per_s: assumed.bytes_per_s,
        servers: assumed.servers,
    };
    Ok(ScaleTimes {
        ranks: measured.ranks,
        trained_parameters,
        all_reduce_bytes: measured.bytes,
        measured: parts,
        bound: parts.bound(),
        steps,
        bytes_per_s: measured.bandwidth(),
        servers: assumed.servers,
        model: measured.formula(),
        modelled: measured.predict(),
    })
}

/// Run a step; return the seconds of sampling (or, without it, of scoring), learning, all-reduce and update, and the
/// number of trained parameters.
fn round(
    shape: &StepShape,
    requests: &[Request],
    policy: &mut Policy,
    optim: &OptimConfig,
    device: &Device,
    team: Option<&Team>,
) -> Result<([f64; 4], usize)> {
    let start = Instant::now();
    let completions = complete(shape, requests, policy)?;
    let completed = start.elapsed().as_secs_f64();

    let sequences = requests.iter().zip(&completions).map(|(request, completion)| sequence(request, completion));
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
    Ok(([completed, learned - summed, summed, start.elapsed().as_secs_f64()], trained))
}

/// Return the tokens of each completion: sampled on all ranks, or synthetic ones, which this rank scores.
fn complete(shape: &StepShape, requests: &[Request], policy: &Policy) -> Result<Vec<Vec<u32>>> {
    if shape.sampled {
        let sampled = policy.sampler().sample(requests, &shape.sampling(), &mut |_, _| Watch::Continue)?;
        return Ok(sampled.into_iter().map(|completion| completion.tokens).collect());
    }
    let made = completions(&policy.config, shape, policy.model(), requests);
    let pairs: Vec<_> = requests.iter().zip(&made).map(|(request, made)| (&request.prompt[..], &made[..])).collect();
    read(policy.model(), &pairs, &shape.sampling().distribution, shape.tokens_per_microbatch);
    Ok(made)
}
