//! A run on several ranks. Rank 0 is the run: it alone has the folder, and deals completions to sample and lessons to learn
//! from. The others do that work ([`serve`]). Gradients are summed, and every rank takes the same step of the optimiser with
//! the same sum, so that the weights of all ranks stay equal to the bit.

mod orders;
mod worker;

use std::cell::Cell;
use std::time::{Duration, Instant};

pub use worker::{Open, serve};

use self::orders::{Manner, Order, Outline, Reply, decode, encode};
use super::batch::Sequence;
use super::learner::{Learner, Work};
use super::update::{self, Lesson};
use crate::error::{Error, Result};
use crate::generate::{Completion, Request, Sampling, Watch};
use crate::model::{CausalLm, LoraConfig, ModelConfig, Precision, share};
use crate::objective::{Correction, Objective, Statistics};
use crate::optim::{AdamW, Gradients, OptimConfig};
use crate::ranks::Reduce;
use crate::rollout::{Local, Sampler};

/// Between two looks for answers.
const LOOK: Duration = Duration::from_micros(200);

/// The ranks of a run, as rank 0 sees them. Dropped, it tells the others that the run has ended.
#[derive(Debug)]
pub struct Team<'a> {
    ranks: &'a dyn Reduce,
    /// Seconds that the last sum of gradients took, from the time that all ranks had theirs.
    summing: Cell<f64>,
}

impl<'a> Team<'a> {
    /// Waits until every rank has said what it was `told` on its command line.
    ///
    /// # Errors
    /// Naming the ranks that were told something else than this one.
    pub fn gather(ranks: &'a dyn Reduce, told: &[String]) -> Result<Self> {
        assert_eq!(ranks.rank(), 0, "the rank that the others work for");
        let team = Self { ranks, summing: Cell::new(0.0) };
        let mut problems = Vec::new();
        for (reply, rank) in team.replies()?.into_iter().zip(1..) {
            let Reply::Hello(other) = reply else { unreachable!("a rank begins with its name: {reply:?}") };
            if other != told {
                let only = |these: &[String], those: &[String]| {
                    let missing: Vec<&str> =
                        these.iter().filter(|line| !those.contains(line)).map(String::as_str).collect();
                    if missing.is_empty() { "nothing more".to_string() } else { missing.join(" ") }
                };
                problems.push(format!("rank {rank} has {}, rank 0 has {}", only(&other, told), only(told, &other)));
            }
        }
        if problems.is_empty() {
            return Ok(team);
        }
        problems.push("start all ranks with the same program and the same arguments, but for --device".to_string());
        Err(Error::Config { origin: "ranks were started with other settings".to_string(), problems })
    }

    /// Ranks, this one included.
    pub fn size(&self) -> usize {
        self.ranks.size()
    }

    /// Seconds that the last sum of gradients took.
    pub(crate) fn summing(&self) -> f64 {
        self.summing.get()
    }

    /// A sentence on who they are.
    pub(super) fn describe(&self) -> String {
        format!(
            "{} ranks, {} threads in this one; completions and lessons are dealt, gradients summed",
            self.size(),
            rayon::current_num_threads()
        )
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

    /// The answers of all other ranks.
    ///
    /// # Errors
    /// What ranks could not do, once all have answered.
    fn replies(&self) -> Result<Vec<Reply>> {
        sound(self.others().map(|rank| decode(&self.ranks.receive(rank))))
    }

    /// Gives all ranks the model and the state of its optimiser.
    ///
    /// # Errors
    /// What ranks say of their devices.
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

    /// Gives all ranks the reference model, unless it is the one below adapters, which they have.
    pub(super) fn share_reference(&self, reference: &CausalLm, below_adapters: bool) -> Result<()> {
        self.order_all(&Order::Reference);
        if !below_adapters {
            share::weights(reference).for_each(|entry| self.ranks.broadcast(&mut share::values(&entry)));
        }
        self.replies().map(drop)
    }

    /// Compares the weights of all ranks.
    ///
    /// # Errors
    /// Naming the ranks whose weights are not those of rank 0.
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
            "{when} the weights of rank {} are not those of rank 0: what was learned since the last checkpoint is not to be \
             trusted, and the run ends. Is the memory of that machine sound, and are all processors of one kind? Go on with \
             --resume, without it",
            different.join(", ")
        )))
    }

    /// The gradient of a loss over `lessons`, summed over all ranks, its statistics and the amount of work. Of no use once
    /// `learner.stop` is requested.
    ///
    /// # Errors
    /// What other ranks say.
    pub(super) fn gradients(
        &self,
        learner: &Learner,
        (objective, correction): (&Objective, &Correction),
        model: &CausalLm,
        lessons: &mut [Lesson],
    ) -> Result<(Gradients, Statistics, Work)> {
        let shares = deal(lessons.iter().map(|lesson| lesson.sequence.tokens.len()), self.size());
        let share = |rank: usize| shares[rank].iter().map(|&i| lessons[i].clone()).collect::<Vec<Lesson>>();
        for rank in self.others() {
            let (manner, objective, correction) = (Manner::of(learner), *objective, *correction);
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
            self.summing.set(start.elapsed().as_secs_f64());
        }
        Ok((gradients, statistics, work))
    }

    /// Has the other ranks take a step of the optimiser with the gradient that was summed last.
    pub(super) fn apply(&self, scale: f64, learning_rate: f64) {
        self.order_all(&Order::Apply { scale, learning_rate });
    }

    /// Log-probabilities of the completion tokens of each sequence under `model`, which is the reference model or the policy,
    /// in nats.
    ///
    /// # Errors
    /// What other ranks say.
    pub(super) fn read(
        &self,
        learner: &Learner,
        (model, reference): (&CausalLm, bool),
        sequences: &[Sequence],
    ) -> Result<Vec<Vec<f32>>> {
        let shares = deal(sequences.iter().map(|sequence| sequence.tokens.len()), self.size());
        let share = |rank: usize| shares[rank].iter().map(|&i| sequences[i].clone()).collect::<Vec<Sequence>>();
        for rank in self.others() {
            self.order(rank, &Order::Read { manner: Manner::of(learner), reference, sequences: share(rank) });
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
        // One that panics ends all others by itself.
        if !std::thread::panicking() {
            self.order_all(&Order::End);
        }
    }
}

/// Answers of ranks from 1 on.
///
/// # Errors
/// Naming the ranks that failed, and why.
fn sound(replies: impl Iterator<Item = Reply>) -> Result<Vec<Reply>> {
    let (mut sound, mut failed) = (Vec::new(), Vec::new());
    for (reply, rank) in replies.zip(1..) {
        match reply {
            Reply::Failed(why) => failed.push(format!("rank {rank}: {why}")),
            reply => sound.push(reply),
        }
    }
    if failed.is_empty() { Ok(sound) } else { Err(Error::Invalid(failed.join("\n"))) }
}

/// Deals what costs so much to ranks, the largest first, each to the rank that has least; gives the places that each rank
/// has, in order.
fn deal(costs: impl Iterator<Item = usize>, ranks: usize) -> Vec<Vec<usize>> {
    let mut costs: Vec<(usize, usize)> = costs.enumerate().collect();
    costs.sort_by_key(|&(place, cost)| (std::cmp::Reverse(cost), place));
    let mut shares = vec![(0, Vec::new()); ranks];
    for (place, cost) in costs {
        let (load, places) =
            shares.iter_mut().min_by_key(|(load, places)| (*load, places.len())).expect("there is a rank");
        *load += cost;
        places.push(place);
    }
    shares.iter_mut().for_each(|(_, places)| places.sort_unstable());
    shares.into_iter().map(|(_, places)| places).collect()
}

/// The engines of all ranks: whole groups, which share the reading of their prompt, are dealt in turn. What is sampled does
/// not depend on the rank, since its noise is a function of the request.
#[derive(Debug)]
pub(crate) struct Dealt<'a> {
    pub(crate) team: Option<&'a Team<'a>>,
    pub(crate) local: Local<'a>,
}

impl Sampler for Dealt<'_> {
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
            others.told(watch(shares[0][request], token));
            others.look(watch);
            if others.cancelled { Watch::EndAll } else { Watch::Continue }
        });
        if own.is_err() {
            others.cancel();
        }
        while others.ended[1..].iter().any(Option::is_none) {
            std::thread::sleep(LOOK);
            others.look(watch);
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
    /// By rank, once it has ended.
    ended: Vec<Option<std::result::Result<Vec<Completion>, String>>>,
    cancelled: bool,
}

impl Others<'_> {
    /// Takes what has come from the other ranks, and shows it to `watch`.
    fn look(&mut self, watch: &mut dyn FnMut(usize, u32) -> Watch) {
        for rank in self.team.others() {
            while self.ended[rank].is_none() && self.team.ranks.pending(rank) {
                match decode(&self.team.ranks.receive(rank)) {
                    Reply::Tokens(tokens) => {
                        for (request, token) in tokens {
                            self.told(watch(self.shares[rank][request as usize], token));
                        }
                    }
                    Reply::Completions(found) => self.ended[rank] = Some(Ok(found)),
                    Reply::Failed(why) => self.ended[rank] = Some(Err(why)),
                    other => unreachable!("not a completion: {other:?}"),
                }
            }
        }
    }

    /// Does what a watcher has answered.
    ///
    /// # Panics
    /// When it ends a single completion: on another rank that may have gone on.
    fn told(&mut self, watch: Watch) {
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
mod tests {
    use super::*;

    #[test]
    fn the_largest_goes_first_to_the_rank_that_has_least() {
        let shares = deal([3, 9, 4, 5, 1].into_iter(), 2);
        assert_eq!(shares, [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(deal([2].into_iter(), 3), [vec![0], vec![], vec![]]);
        assert_eq!(deal([0, 0, 0].into_iter(), 3), [vec![0], vec![1], vec![2]]);
    }
}
