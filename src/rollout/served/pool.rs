//! Requests on their way: each group goes to the least busy server, and again to another when that one stumbles.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::http::Failure;
use super::protocol::{Ask, Told, Weights, completions, request};
use super::server::{GLANCE, Server, has_other, least_busy, lose_unless_last, obituary};
use crate::error::{Error, Result};
use crate::generate::{Request, Sampling};
use crate::rollout::settings::Engine;
use crate::stop::Stop;

/// Failures in a row after which a server is left alone until the next step, where there is another.
const PATIENCE: usize = 2;
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What all requests of a call have in common.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) engine: Engine,
    pub(super) servers: Arc<Vec<Server>>,
    pub(super) sampling: Sampling,
    pub(super) weights: Weights,
    pub(super) vocab_size: usize,
    pub(super) timeout: Duration,
    pub(super) retries: usize,
}

/// A group of requests with the same prompt: its first request, and what is asked.
type Part = (usize, Ask);

/// What the threads of a call share.
#[derive(Debug)]
struct Shared {
    call: Call,
    parts: Mutex<VecDeque<Part>>,
    over: AtomicBool,
    retried: AtomicUsize,
}

/// Completions that were asked for. What was not taken is given up when this is dropped: no further group is asked for.
#[derive(Debug)]
pub(super) struct Pending {
    requests: Vec<Request>,
    shared: Arc<Shared>,
    results: Receiver<(usize, Outcome)>,
    /// By the first request of the group.
    told: Vec<Option<Vec<Told>>>,
    open: usize,
    /// Updates behind the weights of these completions.
    pub(super) version: u64,
}

type Outcome = std::result::Result<Vec<Told>, String>;

impl Drop for Pending {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

/// Groups of consecutive requests that differ in the number of their completion alone.
fn parts(requests: &[Request]) -> VecDeque<Part> {
    let same = |a: &Request, b: &Request| a.prompt == b.prompt && a.key[..3] == b.key[..3] && a.key[3] + 1 == b.key[3];
    let mut first = 0;
    let part = |group: &[Request]| {
        let ask = Ask { prompt: group[0].prompt.clone(), count: group.len(), seed: seed(&group[0]) };
        first += group.len();
        (first - group.len(), ask)
    };
    requests.chunk_by(same).map(part).collect()
}

/// The seed of a group: a hash of its key with room for the numbers of its completions, which are added to it.
fn seed(request: &Request) -> i64 {
    let [a, b, c, sample] = request.key;
    let word = crate::noise::mix(&[a, b, c]) >> 1 & !0xffff;
    word.wrapping_add(sample).cast_signed()
}

impl Pending {
    /// Asks for the completions of `requests`, `concurrency` groups at a time of each server.
    pub(super) fn start(call: Call, requests: &[Request], version: u64, concurrency: usize) -> Self {
        let parts = parts(requests);
        let count = parts.len();
        let threads = count.min(concurrency.saturating_mul(call.servers.len()));
        let shared = Arc::new(Shared {
            call,
            parts: Mutex::new(parts),
            over: AtomicBool::new(false),
            retried: AtomicUsize::new(0),
        });
        let (send, results) = channel();
        for _ in 0..threads {
            let (shared, send) = (shared.clone(), send.clone());
            // A thread may wait for its server when the program wants to end: nobody waits for the thread.
            std::thread::spawn(move || shared.work(&send));
        }
        Self { requests: requests.to_vec(), shared, results, told: vec![None; requests.len()], open: count, version }
    }

    /// Whether these are the completions of `requests`, drawn as `sampling` says.
    pub(super) fn is_of(&self, requests: &[Request], sampling: &Sampling) -> bool {
        let same = |(a, b): (&Request, &Request)| a.key == b.key && a.prompt == b.prompt;
        let Sampling { distribution, max_completion_length, stop, .. } = &self.shared.call.sampling;
        let alike = *distribution == sampling.distribution
            && *max_completion_length == sampling.max_completion_length
            && *stop == sampling.stop;
        alike && self.requests.len() == requests.len() && self.requests.iter().zip(requests).all(same)
    }

    /// Completions asked for.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Tries that were repeated.
    pub(super) fn retried(&self) -> usize {
        self.shared.retried.load(Ordering::SeqCst)
    }

    /// Waits for all groups. `seen` is told of each as it comes, by its first request, and ends the wait by false.
    ///
    /// # Errors
    /// [`Error::Engine`] when a group does not come, [`Error::Stopped`].
    pub(super) fn wait(&mut self, stop: Stop, seen: &mut dyn FnMut(usize, &[Told]) -> bool) -> Result<()> {
        for (first, told) in self.told.iter().enumerate() {
            if let Some(told) = told
                && !seen(first, told)
            {
                return Ok(());
            }
        }
        while self.open > 0 {
            stop.check()?;
            match self.results.recv_timeout(GLANCE) {
                Ok((first, Ok(told))) => {
                    self.open -= 1;
                    let go_on = seen(first, &told);
                    self.told[first] = Some(told);
                    if !go_on {
                        return Ok(());
                    }
                }
                Ok((_, Err(why))) => return Err(Error::Engine(why)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Engine("a request to a server was given up".to_string()));
                }
            }
        }
        Ok(())
    }

    /// What has come, one for each request; none for those of groups that have not.
    pub(super) fn take(mut self) -> Vec<Option<Told>> {
        let mut lists = std::mem::take(&mut self.told);
        let mut all: Vec<Option<Told>> = vec![None; lists.len()];
        for (first, list) in lists.iter_mut().enumerate() {
            for (place, told) in list.take().into_iter().flatten().enumerate() {
                all[first + place] = Some(told);
            }
        }
        all
    }
}

impl Shared {
    fn work(&self, send: &Sender<(usize, Outcome)>) {
        while !self.over.load(Ordering::SeqCst) {
            let part = self.parts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((first, ask)) = part else { return };
            let outcome = self.ask(&ask);
            let failed = outcome.is_err();
            if send.send((first, outcome)).is_err() || failed {
                self.over.store(true, Ordering::SeqCst);
            }
        }
    }

    /// The completions of a group; the reason when there is none.
    fn ask(&self, ask: &Ask) -> Outcome {
        let Call { engine, servers, sampling, weights, vocab_size, timeout, retries } = &self.call;
        let (path, body) = request(*engine, ask, sampling, weights);
        let mut avoid = None;
        for tried in 0.. {
            let Some(index) = least_busy(servers, avoid) else {
                return Err(format!("no server of rollout.urls is left:{}", obituary(servers)));
            };
            let server = &servers[index];
            let occupied = server.occupy();
            let answer = server.client.post(path, &body, *timeout);
            drop(occupied);
            let told = answer.and_then(|answer| completions(*engine, &answer, ask, sampling, *vocab_size));
            let failures = server.note(told.is_ok());
            let others = has_other(servers, index);
            let why = match told {
                Ok(told) => return Ok(told),
                Err(Failure::Passing(why)) => why,
                // It was started again, and has lost what it was given.
                Err(Failure::Missing(why)) if lose_unless_last(servers, index, &why) => why,
                Err(Failure::Missing(why)) => return Err(format!("{why} (model {:?})", weights.model)),
                Err(Failure::Lasting(why)) => return Err(format!("{}: {why}", server.client.url())),
            };
            if tried == *retries {
                return Err(format!("{why} (tried {} times: rollout.retries = {retries})", tried + 1));
            }
            self.retried.fetch_add(1, Ordering::SeqCst);
            avoid = Some(index);
            if failures >= PATIENCE {
                lose_unless_last(servers, index, &why);
            }
            if !others {
                self.rest(tried);
            }
            if self.over.load(Ordering::SeqCst) {
                return Err(why);
            }
        }
        unreachable!("the loop has no end of its own")
    }

    /// Waits 1, 2, 4, … seconds, but for the end of the call.
    fn rest(&self, tried: usize) {
        let time = Duration::from_secs(1 << tried.min(6)).min(LONGEST_WAIT);
        let end = Instant::now() + time;
        while Instant::now() < end && !self.over.load(Ordering::SeqCst) {
            std::thread::sleep(GLANCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_requests_that_differ_in_the_completion_alone_and_their_seeds_do_not_meet() {
        let request = |prompt: u32, draw: u64, sample: u64| Request { prompt: vec![prompt], key: [0, 2, draw, sample] };
        // The same problem drawn twice in a row makes two groups.
        let requests: Vec<Request> =
            [(1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 2, 0)].map(|(p, d, s)| request(p, d, s)).to_vec();
        let parts = parts(&requests);
        let shape: Vec<_> = parts.iter().map(|(first, ask)| (*first, ask.count)).collect();
        assert_eq!(shape, [(0, 2), (2, 2), (4, 1)]);
        // A server gives completion i the seed + i.
        let mut seeds: Vec<i64> = parts.iter().map(|(_, ask)| ask.seed).collect();
        assert!(seeds.iter().all(|seed| *seed >= 0 && seed % 65536 == 0), "{seeds:?}");
        seeds.sort_unstable();
        assert!(seeds.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
