//! Distribution of completion requests over the servers, with retries.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::http::{ServerClient, ServerFailure};
use super::protocol::{Query, ServedWeights, ServerCompletion, completions, request};
use super::server::{POLL_INTERVAL, Server, has_other, reserve_least_busy, suspend_unless_last, unavailable_summary};
use crate::error::{Error, Result};
use crate::generate::{Request, Sampling};
use crate::rollout::settings::ServerKind;
use crate::stop::Stop;

/// Number of consecutive failures after which a server is suspended, if another one is available.
const MAX_CONSECUTIVE_FAILURES: usize = 2;
/// Maximum delay before a retry.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Parameters that all requests of a call share.
#[derive(Debug)]
pub(super) struct CallParameters {
    pub(super) engine: ServerKind,
    pub(super) servers: Arc<Vec<Server>>,
    pub(super) sampling: Sampling,
    pub(super) weights: ServedWeights,
    pub(super) vocab_size: usize,
    pub(super) timeout: Duration,
    pub(super) retries: usize,
}

/// State shared by the worker threads of a call.
#[derive(Debug)]
struct Shared {
    call: CallParameters,
    /// A client of each server, with connections for this call alone.
    clients: Vec<ServerClient>,
    /// Groups that no thread has taken yet, each with the index of its first request.
    queue: Mutex<VecDeque<(usize, Query)>>,
    /// Set when no further group must be requested.
    cancelled: AtomicBool,
    /// Number of retries.
    retries: AtomicUsize,
}

/// Requested completions, which arrive group by group. Dropping this cancels the groups that have not been received; the
/// servers abort them.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) requests: Vec<Request>,
    shared: Arc<Shared>,
    results: Receiver<(usize, GroupResult)>,
    /// The completions of a group, at the index of its first request.
    received: Vec<Option<Vec<ServerCompletion>>>,
    /// Number of groups that have not been received.
    remaining: usize,
    /// Version of the weights of these completions.
    pub(super) version: u64,
}

/// The completions of a group, or the error message.
type GroupResult = std::result::Result<Vec<ServerCompletion>, String>;

/// A function that sees, and may cut, the completions of a group. It returns false to stop waiting for more.
pub(super) type Seen<'a> = dyn FnMut(usize, &mut [ServerCompletion]) -> bool + 'a;

impl Drop for Pending {
    fn drop(&mut self) {
        self.shared.cancelled.store(true, Ordering::SeqCst);
        self.shared.clients.iter().for_each(ServerClient::abort);
    }
}

/// Splits requests into groups. A group has the same prompt and draw, and consecutive completion numbers.
fn groups(requests: &[Request]) -> VecDeque<(usize, Query)> {
    let same = |a: &Request, b: &Request| a.prompt == b.prompt && a.key[..3] == b.key[..3] && a.key[3] + 1 == b.key[3];
    let mut next = 0;
    let group = |requests: &[Request]| {
        let (prompt, count) = (requests[0].prompt.clone(), requests.len());
        next += count;
        (next - count, Query { prompt, count, seed: seed(&requests[0]) })
    };
    requests.chunk_by(same).map(group).collect()
}

/// Return the seed of a group: a hash of its key, whose low 16 bits are zero, plus the number of its first completion.
fn seed(request: &Request) -> i64 {
    let [a, b, c, sample] = request.key;
    let word = crate::noise::mix(&[a, b, c]) >> 1 & !0xffff;
    word.wrapping_add(sample).cast_signed()
}

impl Pending {
    /// Start to request the completions of `requests`, `concurrency` groups at a time for each server of the call.
    pub(super) fn start(call: CallParameters, requests: &[Request], version: u64, concurrency: usize) -> Self {
        let queue = groups(requests);
        let remaining = queue.len();
        let threads = remaining.min(concurrency.saturating_mul(call.servers.len()));
        let (queue, cancelled, retries) = (Mutex::new(queue), AtomicBool::new(false), AtomicUsize::new(0));
        let clients = call.servers.iter().map(|server| server.client.separate()).collect();
        let shared = Arc::new(Shared { call, clients, queue, cancelled, retries });
        let (send, results) = channel();
        for _ in 0..threads {
            let (shared, send) = (shared.clone(), send.clone());
            // Not joined: a thread may still wait for a response when the program wants to end.
            std::thread::spawn(move || shared.work(&send));
        }
        let (requests, received) = (requests.to_vec(), vec![None; requests.len()]);
        Self { requests, shared, results, received, remaining, version }
    }

    /// Whether these are completions of the same requests with the same sampling parameters.
    pub(super) fn is_of(&self, requests: &[Request], sampling: &Sampling) -> bool {
        let same = |(a, b): (&Request, &Request)| a.key == b.key && a.prompt == b.prompt;
        let Sampling { distribution, max_completion_length, stop, .. } = &self.shared.call.sampling;
        let alike = *distribution == sampling.distribution
            && *max_completion_length == sampling.max_completion_length
            && *stop == sampling.stop;
        alike && self.requests.len() == requests.len() && self.requests.iter().zip(requests).all(same)
    }

    /// Number of retries so far.
    pub(super) fn retries(&self) -> usize {
        self.shared.retries.load(Ordering::SeqCst)
    }

    /// Wait for all groups. Call `seen` for each group, with the index of its first request, until it returns false.
    ///
    /// # Errors
    /// [`Error::Engine`] when a group fails, [`Error::Stopped`].
    pub(super) fn wait(&mut self, stop: Stop, seen: &mut Seen) -> Result<()> {
        for (first, group) in self.received.iter_mut().enumerate() {
            if group.as_mut().is_some_and(|group| !seen(first, group)) {
                return Ok(());
            }
        }
        while self.remaining > 0 {
            stop.check()?;
            match self.results.recv_timeout(POLL_INTERVAL) {
                Ok((first, Ok(mut completions))) => {
                    self.remaining -= 1;
                    let go_on = seen(first, &mut completions);
                    self.received[first] = Some(completions);
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

    /// Return one completion per request, an empty one where none was received.
    pub(super) fn take(mut self) -> Vec<ServerCompletion> {
        let mut all = vec![ServerCompletion::default(); self.received.len()];
        for (first, group) in std::mem::take(&mut self.received).into_iter().enumerate() {
            for (place, completion) in group.into_iter().flatten().enumerate() {
                all[first + place] = completion;
            }
        }
        all
    }
}

impl Shared {
    /// Requests group after group until none is left, one fails, or the call is cancelled.
    fn work(&self, send: &Sender<(usize, GroupResult)>) {
        while !self.cancelled.load(Ordering::SeqCst) {
            let query = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((first, query)) = query else { return };
            let outcome = self.request(&query);
            let failed = outcome.is_err();
            if send.send((first, outcome)).is_err() || failed {
                self.cancelled.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Requests the completions of a group, with retries.
    fn request(&self, query: &Query) -> GroupResult {
        let CallParameters { engine, servers, sampling, weights, vocab_size, timeout, retries } = &self.call;
        let (path, body) = request(*engine, query, sampling, weights);
        let mut avoid = None;
        for tried in 0.. {
            let Some((index, in_flight)) = reserve_least_busy(servers, avoid) else {
                return Err(unavailable_summary(servers));
            };
            let server = &servers[index];
            let answer = self.clients[index].post(path, &body, *timeout);
            drop(in_flight);
            let parsed = answer.and_then(|answer| completions(*engine, &answer, query, sampling, *vocab_size));
            if let (Err(failure), true) = (&parsed, self.cancelled.load(Ordering::SeqCst)) {
                // Perhaps aborted by us: no fault of the server.
                return Err(failure.message().to_string());
            }
            let failures = server.record_outcome(parsed.is_ok());
            let others = has_other(servers, index);
            let why = match parsed {
                Ok(completions) => return Ok(completions),
                Err(ServerFailure::Unavailable(why) | ServerFailure::Transient(why)) => why,
                // The server was restarted and has lost the adapter.
                Err(ServerFailure::NotFound(why)) if suspend_unless_last(servers, index, &why) => why,
                Err(ServerFailure::NotFound(why)) => return Err(format!("{why} (model {:?})", weights.model)),
                Err(ServerFailure::Permanent(why)) => return Err(format!("{}: {why}", server.client.url)),
            };
            if tried == *retries {
                return Err(format!("{why} (tried {} times: rollout.retries = {retries})", tried + 1));
            }
            self.retries.fetch_add(1, Ordering::SeqCst);
            avoid = Some(index);
            if failures >= MAX_CONSECUTIVE_FAILURES {
                suspend_unless_last(servers, index, &why);
            }
            // Another server is tried at once.
            if !others {
                self.back_off(tried);
            }
            if self.cancelled.load(Ordering::SeqCst) {
                return Err(why);
            }
        }
        unreachable!("the loop has no end of its own")
    }

    /// Sleeps 1, 2, 4, … seconds before a retry, or until the call is cancelled.
    fn back_off(&self, tried: usize) {
        let end = Instant::now() + Duration::from_secs(1 << tried.min(6)).min(MAX_BACKOFF);
        while Instant::now() < end && !self.cancelled.load(Ordering::SeqCst) {
            std::thread::sleep(POLL_INTERVAL);
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
        let groups = groups(&requests);
        let shape: Vec<_> = groups.iter().map(|(first, query)| (*first, query.count)).collect();
        assert_eq!(shape, [(0, 2), (2, 2), (4, 1)]);
        // A server gives completion i the seed + i.
        let mut seeds: Vec<i64> = groups.iter().map(|(_, query)| query.seed).collect();
        assert!(seeds.iter().all(|seed| *seed >= 0 && seed % 65536 == 0), "{seeds:?}");
        seeds.sort_unstable();
        assert!(seeds.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
