//! A run on several ranks. Rank 0 controls the run: it alone has the folder, and it distributes requests and lessons
//! over all ranks. The other ranks execute its orders ([`serve`]). Gradients are summed, and every rank applies the
//! same optimiser step with the same sum, so that the weights of all ranks stay bit-identical.

mod deal;
mod orders;
mod worker;

use std::cell::Cell;
use std::time::{Duration, Instant};

pub use worker::{Open, serve};

use self::deal::distribute;
use self::orders::{LearnerOptions, Order, Outline, Reply, decode, encode};
use super::batch::Sequence;
use super::learner::{Learner, Work};
use super::settings::RlConfig;
use super::update::{self, Lesson};
use crate::error::{Error, Result};
use crate::generate::{Completion, Request, Sampling, Watch};
use crate::model::{CausalLm, LoraConfig, ModelConfig, Precision, share};
use crate::objective::{Correction, Objective, Statistics};
use crate::optim::{AdamW, Gradients, OptimConfig};
use crate::ranks::Reduce;
use crate::rollout::{Local, Sampler};

/// Interval at which rank 0 polls for replies.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// The ranks of a run, as rank 0 sees them. Dropping it ends the other ranks.
#[derive(Debug)]
pub struct Team<'a> {
    ranks: &'a dyn Reduce,
    /// Seconds that the last sum of gradients took, from the time at which all ranks had theirs.
    sum_seconds: Cell<f64>,
}

impl<'a> Team<'a> {
    /// Wait until every rank has sent its command line, and compare it with `told`, that of rank 0.
    ///
    /// # Errors
    /// The ranks whose command line differs.
    pub fn gather(ranks: &'a dyn Reduce, told: &[String]) -> Result<Self> {
        assert_eq!(ranks.rank(), 0, "the rank that the others work for");
        let team = Self { ranks, sum_seconds: Cell::new(0.0) };
        let mut problems = Vec::new();
        for (reply, rank) in team.replies()?.into_iter().zip(1..) {
            let Reply::Hello(other) = reply else { unreachable!("a rank begins with its name: {reply:?}") };
            if other != told {
                let only = |these: &[String], those: &[String]| {
                    let missing: Vec<&str> =
                        these.iter().filter(|line| !those.contains(line)).map(String::as_str).collect();
                    if missing.is_empty() { "no such argument".to_string() } else { missing.join(" ") }
                };
                problems.push(format!("rank {rank} has {}, but rank 0 has {}", only(&other, told), only(told, &other)));
            }
        }
        if problems.is_empty() {
            return Ok(team);
        }
        problems.push("start all ranks with the same program and the same arguments, except for --device".to_string());
        Err(Error::Config { origin: "ranks were started with other settings".to_string(), problems })
    }

    /// Return the number of ranks, including this one.
    pub fn size(&self) -> usize {
        self.ranks.size()
    }

    /// Return the seconds that the last sum of gradients took.
    pub(crate) fn summing(&self) -> f64 {
        self.sum_seconds.get()
    }

    /// Describe the ranks of a run, and in which parts of a step some of them wait; a line each.
    ///
    /// # Errors
    /// More ranks than a step has completions.
    pub(super) fn describe(&self, config: &RlConfig) -> Result<Vec<String>> {
        let divided = if config.rollout.served().is_none() { "sampling and training are" } else { "training is" };
        let (size, threads) = (self.size(), rayon::current_num_threads());
        let line = format!("{size} ranks, {threads} threads in this one; {divided} divided among the ranks");
        Ok([vec![line], deal::check(size, config)?].concat())
    }

    fn others(&self) -> std::ops::Range<usize> {
        1..self.size()
    }

    fn order(&self, rank: usize, order: &Order) {
        self.ranks.send(rank, &encode(order));
    }

    fn order_all(&self, order: &Order) {
        let message = encode(order);
        self.others().for_each(|rank| self.ranks.send(rank, &message));
    }

    /// Receive the replies of all other ranks.
    ///
    /// # Errors
    /// The failures of ranks, once all have replied.
    fn replies(&self) -> Result<Vec<Reply>> {
        check_replies(self.others().map(|rank| decode(&self.ranks.receive(rank))))
    }

    /// Send the model and the state of its optimiser to all ranks.
    ///
    /// # Errors
    /// Failures of ranks to open their devices.
    pub(crate) fn share(
        &self,
        (config, model, optimizer): (&ModelConfig, &CausalLm, &AdamW),
        (precision, lora): (Precision, Option<&LoraConfig>),
        optim: &OptimConfig,
        device: &str,
    ) -> Result<()> {
        let config = serde_json::to_string(config).expect("a configuration is JSON");
        let (lora, device, optim) = (lora.cloned(), device.to_string(), optim.clone());
        self.order_all(&Order::Model(Box::new(Outline {
            config,
            precision,
            lora,
            device,
            optim,
            moments: optimizer.outline(),
        })));
        self.replies()?;
        self.order_all(&Order::Weights);
        share::weights(model).for_each(|entry| self.ranks.broadcast(&mut share::values(&entry)));
        optimizer.moments().for_each(|mut values| self.ranks.broadcast(&mut values));
        self.replies()?;
        self.compare(model, "before the first step")
    }

    /// Send the reference model to all ranks, unless it is the base model of adapters, which they have.
    pub(super) fn share_reference(&self, reference: &CausalLm, below_adapters: bool) -> Result<()> {
        self.order_all(&Order::Reference);
        if !below_adapters {
            share::weights(reference).for_each(|entry| self.ranks.broadcast(&mut share::values(&entry)));
        }
        self.replies().map(drop)
    }

    /// Compare the weights of all ranks by their digests.
    ///
    /// # Errors
    /// The ranks whose weights differ from those of rank 0.
    pub(super) fn compare(&self, model: &CausalLm, when: &str) -> Result<()> {
        self.order_all(&Order::Digest);
        let own = share::digest(model);
        let others = self.replies()?.into_iter().zip(1..);
        let differs = |(reply, rank): (Reply, usize)| match reply {
            Reply::Digest(digest) => (digest != own).then(|| rank.to_string()),
            other => unreachable!("not a digest: {other:?}"),
        };
        let different: Vec<String> = others.filter_map(differs).collect();
        if different.is_empty() {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{when} the weights of rank {} differ from those of rank 0: the updates since the last checkpoint cannot \
             be trusted, and the run ends. Check the memory of the machine of that rank, and that all ranks have \
             processors of the same type; then continue with --resume, or without that machine",
            different.join(", ")
        )))
    }

    /// Return the gradient of a loss over `lessons`, summed over all ranks, its statistics and the amount of work. The
    /// gradient is not usable once `learner.stop` is requested.
    ///
    /// # Errors
    /// Failures of other ranks.
    pub(super) fn gradients(
        &self,
        learner: &Learner,
        (objective, correction): (&Objective, &Correction),
        model: &CausalLm,
        lessons: &mut [Lesson],
    ) -> Result<(Gradients, Statistics, Work)> {
        let shares = distribute(lessons.iter().map(|lesson| lesson.sequence.tokens.len()), self.size());
        let share = |rank: usize| shares[rank].iter().map(|&i| lessons[i].clone()).collect::<Vec<Lesson>>();
        for rank in self.others() {
            let (manner, objective, correction) = (LearnerOptions::of(learner), *objective, *correction);
            self.order(rank, &Order::Learn { manner, objective, correction, lessons: share(rank) });
        }
        let mut own = share(0);
        let (mut gradients, mut statistics, mut work) =
            update::gradients(learner, objective, correction, model, &mut own);
        shares[0].iter().zip(own).for_each(|(&i, lesson)| lessons[i] = lesson);
        for (reply, share) in self.replies()?.into_iter().zip(&shares[1..]) {
            let Reply::Learned { statistics: seen, work: done, old } = reply else {
                unreachable!("not what was learned: {reply:?}")
            };
            statistics.add(&seen);
            work.add(done);
            for (&i, old) in share.iter().zip(old) {
                let Some(old) = old else { continue };
                lessons[i].set_old(&old, correction);
            }
        }
        if !learner.stop.requested() {
            let start = Instant::now();
            self.order_all(&Order::Sum);
            gradients.sum(model, self.ranks);
            self.replies()?;
            self.sum_seconds.set(start.elapsed().as_secs_f64());
        }
        Ok((gradients, statistics, work))
    }

    /// Make the other ranks take an optimiser step with the last summed gradient.
    pub(super) fn apply(&self, scale: f64, learning_rate: f64) {
        self.order_all(&Order::Apply { scale, learning_rate });
    }

    /// Return the log-probabilities of the completion tokens of each sequence under `model`, in nats. `reference` tells
    /// whether it is the reference model or the policy. Lists may be empty once `learner.stop` is requested.
    ///
    /// # Errors
    /// Failures of other ranks.
    pub(super) fn read(
        &self,
        learner: &Learner,
        (model, reference): (&CausalLm, bool),
        sequences: &[Sequence],
    ) -> Result<Vec<Vec<f32>>> {
        let shares = distribute(sequences.iter().map(|sequence| sequence.tokens.len()), self.size());
        let share = |rank: usize| shares[rank].iter().map(|&i| sequences[i].clone()).collect::<Vec<Sequence>>();
        for rank in self.others() {
            self.order(rank, &Order::Read { manner: LearnerOptions::of(learner), reference, sequences: share(rank) });
        }
        let own = learner.read(model, &share(0)).into_iter().map(|scores| scores.log_prob).collect();
        let mut lists = vec![Vec::new(); sequences.len()];
        let read = self.replies()?.into_iter().map(|reply| match reply {
            Reply::LogProbs(read) => read,
            other => unreachable!("not log-probabilities: {other:?}"),
        });
        for (share, read) in shares.iter().zip(std::iter::once(own).chain(read)) {
            share.iter().zip(read).for_each(|(&i, list)| lists[i] = list);
        }
        Ok(lists)
    }
}

impl Drop for Team<'_> {
    fn drop(&mut self) {
        // A panic of this rank ends all others anyway.
        if !std::thread::panicking() {
            self.order_all(&Order::End);
        }
    }
}

/// Return the replies of ranks 1, 2, …
///
/// # Errors
/// The ranks that failed, and why.
fn check_replies(replies: impl Iterator<Item = Reply>) -> Result<Vec<Reply>> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for (reply, rank) in replies.zip(1..) {
        match reply {
            Reply::Failed(why) => failed.push(format!("rank {rank}: {why}")),
            reply => found.push(reply),
        }
    }
    if failed.is_empty() { Ok(found) } else { Err(Error::Invalid(failed.join("\n"))) }
}

/// Samples on the engines of all ranks. Groups, whose requests share the prefill of their prompt, are assigned to ranks
/// in turn as a whole. Completions do not depend on the rank, since their noise is a function of the request.
#[derive(Debug)]
pub(crate) struct TeamSampler<'a> {
    pub(crate) team: Option<&'a Team<'a>>,
    pub(crate) local: Local<'a>,
}

impl Sampler for TeamSampler<'_> {
    fn sample(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        watch: &mut dyn FnMut(usize, u32) -> Watch,
    ) -> Result<Vec<Completion>> {
        let Some(team) = self.team else { return self.local.sample(requests, sampling, watch) };
        let mut shares = vec![Vec::new(); team.size()];
        let mut first = 0;
        for (number, group) in requests.chunk_by(|a, b| a.prompt == b.prompt).enumerate() {
            shares[number % team.size()].extend(first..first + group.len());
            first += group.len();
        }
        let share = |rank: usize| shares[rank].iter().map(|&i| requests[i].clone()).collect::<Vec<Request>>();
        for rank in team.others() {
            team.order(rank, &Order::Sample { requests: share(rank), sampling: sampling.clone() });
        }
        let mut others = Others { team, shares: &shares, ended: vec![None; team.size()], cancelled: false };
        let own = self.local.sample(&share(0), sampling, &mut |request, token| {
            others.apply(watch(shares[0][request], token));
            others.poll(watch);
            if others.cancelled { Watch::EndAll } else { Watch::Continue }
        });
        if own.is_err() {
            others.cancel();
        }
        while others.ended[1..].iter().any(Option::is_none) {
            std::thread::sleep(POLL_INTERVAL);
            others.poll(watch);
        }
        let ended = others.ended;
        let mut completions: Vec<Option<Completion>> = vec![None; requests.len()];
        let mut place = |share: &[usize], found: Vec<Completion>| {
            share.iter().zip(found).for_each(|(&i, completion)| completions[i] = Some(completion));
        };
        place(&shares[0], own?);
        let failed = |(rank, ended): (usize, &Option<std::result::Result<_, String>>)| match ended {
            Some(Err(why)) => Some(format!("rank {rank}: {why}")),
            _ => None,
        };
        let problems: Vec<String> = ended.iter().enumerate().filter_map(failed).collect();
        if !problems.is_empty() {
            return Err(Error::Invalid(problems.join("\n")));
        }
        for (share, found) in shares.iter().zip(ended) {
            if let Some(Ok(found)) = found {
                place(share, found);
            }
        }
        Ok(completions.into_iter().map(|completion| completion.expect("every request is some rank's")).collect())
    }
}

/// The sampling of the other ranks.
struct Others<'a> {
    team: &'a Team<'a>,
    shares: &'a [Vec<usize>],
    /// The result of each rank; `None` until it has ended.
    ended: Vec<Option<std::result::Result<Vec<Completion>, String>>>,
    cancelled: bool,
}

impl Others<'_> {
    /// Receive pending messages of the other ranks, and pass their tokens to `watch`.
    fn poll(&mut self, watch: &mut dyn FnMut(usize, u32) -> Watch) {
        for rank in self.team.others() {
            while self.ended[rank].is_none() && self.team.ranks.pending(rank) {
                match decode(&self.team.ranks.receive(rank)) {
                    Reply::Tokens(tokens) => {
                        for (request, token) in tokens {
                            self.apply(watch(self.shares[rank][request as usize], token));
                        }
                    }
                    Reply::Completions(found) => self.ended[rank] = Some(Ok(found)),
                    Reply::Failed(why) => self.ended[rank] = Some(Err(why)),
                    other => unreachable!("not a completion: {other:?}"),
                }
            }
        }
    }

    /// Apply the decision of a watcher.
    ///
    /// # Panics
    /// If it ends a single completion, which may have continued on another rank.
    fn apply(&mut self, watch: Watch) {
        match watch {
            Watch::Continue => {}
            Watch::EndAll => self.cancel(),
            Watch::EndCompletion => panic!("completions of several ranks end together or by themselves"),
        }
    }

    fn cancel(&mut self) {
        if !self.cancelled {
            self.cancelled = true;
            self.team.order_all(&Order::Cancel);
        }
    }
}

#[cfg(test)]
pub(super) mod failing;
