//! A rank that executes the orders of rank 0.

use std::time::{Duration, Instant};

use burn::tensor::Device;

use super::orders::{LearnerOptions, Order, Outline, Reply, decode, encode};
use crate::error::{Error, Result};
use crate::generate::{Request, Sampling, Watch, generate};
use crate::model::{CausalLm, ModelConfig, Precision, lora, share};
use crate::objective::{Correction, Objective};
use crate::optim::{AdamW, Gradients, OptimConfig};
use crate::ranks::Reduce;
use crate::train::update::{self, Lesson};

/// Maximum tokens of one message: few enough for MPI to send them without waiting for rank 0 to receive them.
const MAX_TOKENS: usize = 128;
/// Maximum time between two messages with sampled tokens.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);

/// Opens the device of the given name, and refuses one that computes wrong numbers in the given precision.
pub type Open<'a> = dyn FnMut(&str, Precision) -> Result<Device> + 'a;

/// Execute the orders of rank 0 until the run has ended. `told` is the command line of this rank.
///
/// Errors are sent to rank 0, which ends the run.
pub fn serve(ranks: &dyn Reduce, told: Vec<String>, open: &mut Open) {
    let reply = |reply: &Reply| ranks.send(0, &encode(reply));
    reply(&Reply::Hello(told));
    let mut worker = RankWorker { ranks, outline: None, model: None };
    loop {
        let done = match decode(&ranks.receive(0)) {
            Order::End => return,
            Order::Cancel => continue,
            Order::Apply { scale, learning_rate } => {
                worker.model = worker.model.take().map(|model| model.apply(scale, learning_rate));
                continue;
            }
            Order::Model(outline) => worker.prepare(*outline, open),
            Order::Weights => Ok(worker.take_weights()),
            Order::Reference => Ok(worker.take_reference()),
            Order::Sample { requests, sampling } => worker.sample(&requests, &sampling),
            Order::Learn { manner, objective, correction, lessons } => {
                Ok(worker.model().learn(manner, (&objective, &correction), lessons))
            }
            Order::Sum => Ok(worker.sum()),
            Order::Read { manner, reference, sequences } => {
                let model = worker.model();
                let read = manner.learner().read(if reference { model.reference() } else { &model.policy }, &sequences);
                Ok(Reply::LogProbs(read.into_iter().map(|scores| scores.log_prob).collect()))
            }
            Order::Digest => Ok(Reply::Digest(share::digest(&worker.model().policy))),
        };
        reply(&done.unwrap_or_else(|error| Reply::Failed(error.to_string())));
    }
}

struct RankWorker<'a> {
    ranks: &'a dyn Reduce,
    /// The model without its weights, until these arrive.
    outline: Option<(Outline, ModelConfig, Device)>,
    model: Option<WorkerModel>,
}

/// A model in training.
struct WorkerModel {
    config: ModelConfig,
    precision: Precision,
    adapters: bool,
    policy: CausalLm,
    reference: Option<CausalLm>,
    optim: OptimConfig,
    optimizer: AdamW,
    /// Gradients of the last lessons: those of this rank until they are summed, then those of all ranks.
    gradients: Gradients,
}

impl RankWorker<'_> {
    fn model(&mut self) -> &mut WorkerModel {
        self.model.as_mut().expect("the model comes first")
    }

    fn prepare(&mut self, outline: Outline, open: &mut Open) -> Result<Reply> {
        let device = open(&outline.device, outline.precision)?;
        outline.optim.check(&device)?;
        outline.precision.check(&device.clone().autodiff())?;
        let config = serde_json::from_str(&outline.config);
        let config = config.map_err(|error| {
            Error::Invalid(format!(
                "this rank runs another version of the program ({error}): start all ranks with the same binary"
            ))
        })?;
        self.outline = Some((outline, config, device));
        Ok(Reply::Ready)
    }

    fn take_weights(&mut self) -> Reply {
        let (outline, config, device) = self.outline.take().expect("the outline comes first");
        let Outline { precision, lora, optim, moments, .. } = outline;
        let mut fetch = |values: &mut [f32]| self.ranks.broadcast(values);
        let policy = share::rebuild(&config, precision, lora.as_ref(), &device.clone().autodiff(), &mut fetch);
        let optimizer = AdamW::rebuild(moments, &device, &mut fetch);
        let (adapters, gradients) = (lora.is_some(), Gradients::default());
        let model = WorkerModel { config, precision, adapters, policy, reference: None, optim, optimizer, gradients };
        self.model = Some(model);
        Reply::Ready
    }

    fn take_reference(&mut self) -> Reply {
        let ranks = self.ranks;
        let model = self.model();
        let reference = if model.adapters {
            lora::detach(&model.policy)
        } else {
            let device = model.policy.device().inner();
            share::rebuild(&model.config, model.precision, None, &device, |values| ranks.broadcast(values))
        };
        model.reference = Some(reference);
        Reply::Ready
    }

    fn sample(&mut self, requests: &[Request], sampling: &Sampling) -> Result<Reply> {
        let ranks = self.ranks;
        let model = self.model();
        let (mut tokens, mut reported) = (Vec::new(), Instant::now());
        let report = |tokens: &mut Vec<(u32, u32)>| ranks.send(0, &encode(&Reply::Tokens(std::mem::take(tokens))));
        let mut cancelled = false;
        let completions = generate(&model.policy, &model.config, requests, sampling, |request, token| {
            tokens.push((request as u32, token));
            if tokens.len() == MAX_TOKENS || reported.elapsed() > REPORT_INTERVAL {
                report(&mut tokens);
                reported = Instant::now();
                cancelled = cancelled || ranks.pending(0) && matches!(decode(&ranks.receive(0)), Order::Cancel);
            }
            if cancelled { Watch::EndAll } else { Watch::Continue }
        })?;
        report(&mut tokens);
        Ok(Reply::Completions(completions))
    }

    fn sum(&mut self) -> Reply {
        let ranks = self.ranks;
        let WorkerModel { gradients, policy, .. } = self.model();
        gradients.sum(policy, ranks);
        Reply::Ready
    }
}

impl WorkerModel {
    fn reference(&self) -> &CausalLm {
        self.reference.as_ref().expect("the reference model comes before it is asked for")
    }

    fn learn(
        &mut self,
        manner: LearnerOptions,
        (objective, correction): (&Objective, &Correction),
        mut lessons: Vec<Lesson>,
    ) -> Reply {
        // The memory of the last gradient is freed before the next one is computed.
        self.gradients = Gradients::default();
        let new: Vec<bool> = lessons.iter().map(|lesson| lesson.old.is_empty()).collect();
        let (gradients, statistics, work) =
            update::gradients(&manner.learner(), objective, correction, &self.policy, &mut lessons);
        self.gradients = gradients;
        let old =
            lessons.into_iter().zip(new).map(|(lesson, new)| (new && !lesson.old.is_empty()).then_some(lesson.old));
        Reply::Learned { statistics, work, old: old.collect() }
    }

    fn apply(self, scale: f64, learning_rate: f64) -> Self {
        let Self { mut optimizer, gradients, .. } = self;
        let policy = optimizer.step(&self.optim, self.policy, gradients, scale, learning_rate);
        Self { policy, optimizer, gradients: Gradients::default(), ..self }
    }
}
