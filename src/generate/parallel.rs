//! Several engines for one call, each on a thread of its own, with a share of the groups.
//!
//! The watcher is called on the calling thread. An engine passes it the tokens of several steps at a time and then waits for
//! its decisions, so what an engine computes depends on its own requests alone, not on the speed of the threads. Tokens
//! sampled after a decision are dropped.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::engine::Call;
use super::{Completion, FinishReason, Request, Watch};
use crate::error::Result;
use crate::model::CacheShape;
use crate::threads;

/// Tokens that an engine samples, of all completions and of one, before it asks for the watcher's decisions.
const TOKENS_PER_EXCHANGE: usize = 256;
const STEPS_PER_EXCHANGE: usize = 32;

/// Tokens with their requests, in order for each request.
type Tokens = Vec<(usize, u32)>;

/// Decisions of the watcher.
struct Decisions {
    /// Requests whose completions it has ended.
    ended: Vec<AtomicBool>,
    /// Whether the call ends: by the watcher, or because an engine failed.
    all: AtomicBool,
}

impl Decisions {
    fn of(&self, request: usize) -> Watch {
        if self.all.load(Ordering::Relaxed) {
            Watch::EndAll
        } else if self.ended[request].load(Ordering::Relaxed) {
            Watch::EndCompletion
        } else {
            Watch::Continue
        }
    }
}

/// The side of an engine.
struct Reporter<'a> {
    decisions: &'a Decisions,
    tokens: Tokens,
    /// Of these, tokens of each request.
    counts: HashMap<usize, usize>,
    to_watcher: Sender<(usize, Tokens)>,
    /// Number of the engine, and what it receives when the watcher has seen its tokens.
    engine: usize,
    seen: Receiver<()>,
}

impl Reporter<'_> {
    /// Note a token. Return the watcher's decision so far.
    fn note(&mut self, request: usize, token: u32) -> Watch {
        self.tokens.push((request, token));
        let count = self.counts.entry(request).or_default();
        *count += 1;
        if *count == STEPS_PER_EXCHANGE || self.tokens.len() == TOKENS_PER_EXCHANGE {
            self.counts.clear();
            let sent = self.to_watcher.send((self.engine, std::mem::take(&mut self.tokens)));
            if sent.is_err() || self.seen.recv().is_err() {
                return Watch::EndAll; // The watcher has panicked.
            }
        }
        self.decisions.of(request)
    }
}

impl Drop for Reporter<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.decisions.all.store(true, Ordering::Relaxed);
        }
    }
}

/// The watcher, and the number of tokens of each completion that it has seen.
struct Watcher<'a, W> {
    decisions: &'a Decisions,
    watch: W,
    seen: Vec<usize>,
}

impl<W: FnMut(usize, u32) -> Watch> Watcher<'_, W> {
    /// Show tokens, but none after the end of its completion or of the call.
    fn show(&mut self, tokens: Tokens) {
        for (request, token) in tokens {
            if self.decisions.of(request) != Watch::Continue {
                continue;
            }
            self.seen[request] += 1;
            match (self.watch)(request, token) {
                Watch::Continue => {}
                Watch::EndCompletion => self.decisions.ended[request].store(true, Ordering::Relaxed),
                Watch::EndAll => self.decisions.all.store(true, Ordering::Relaxed),
            }
        }
    }

    /// End the completions where it wanted.
    fn cut(&self, completions: &mut [Completion]) {
        let all = self.decisions.all.load(Ordering::Relaxed);
        for ((completion, ended), &seen) in completions.iter_mut().zip(&self.decisions.ended).zip(&self.seen) {
            if ended.load(Ordering::Relaxed) {
                completion.cut(seen, FinishReason::Watcher);
                if completion.finish_reason == FinishReason::Length {
                    completion.finish_reason = FinishReason::Watcher;
                }
            } else if all {
                completion.cut(seen, FinishReason::Length);
            }
        }
    }
}

/// The requests of an engine, with their numbers in the call.
type Share = (Vec<usize>, Vec<Request>);

/// Deal whole groups to `count` engines in turn.
fn deal(requests: &[Request], count: usize) -> Vec<Share> {
    let mut shares = vec![Share::default(); count];
    let mut number = 0;
    for (turn, group) in requests.chunk_by(|a, b| a.prompt == b.prompt).enumerate() {
        let (numbers, own) = &mut shares[turn % count];
        numbers.extend(number..number + group.len());
        own.extend_from_slice(group);
        number += group.len();
    }
    shares
}

/// Return the shape of the cache for the requests of an engine, one of `count` that share a cache of shape `whole` in a call of
/// `total` requests.
fn part_of(whole: CacheShape, count: usize, own: &[Request], total: usize) -> CacheShape {
    let completions = if whole.completions == total { own.len() } else { whole.completions / count };
    let groups = own.chunk_by(|a, b| a.prompt == b.prompt).count();
    CacheShape { prompts: groups.min(completions), completions, ..whole }
}

/// Sample `requests` by `count` engines, which together have a cache of this shape at most.
///
/// # Errors
/// When logits are NaN.
pub(super) fn run(
    call: &Call,
    requests: &[Request],
    shape: CacheShape,
    count: usize,
    watch: impl FnMut(usize, u32) -> Watch,
) -> Result<Vec<Completion>> {
    let ended = requests.iter().map(|_| AtomicBool::new(false)).collect();
    let decisions = &Decisions { ended, all: AtomicBool::new(false) };
    let mut watcher = Watcher { decisions, watch, seen: vec![0; requests.len()] };
    let (to_watcher, from_engines) = channel();
    let (mut work, mut replies) = (Vec::new(), Vec::new());
    for (engine, share) in deal(requests, count).into_iter().enumerate() {
        let (reply, seen) = channel();
        replies.push(reply);
        let (tokens, counts, to_watcher) = (Vec::new(), HashMap::new(), to_watcher.clone());
        work.push((share, Reporter { decisions, tokens, counts, to_watcher, engine, seen }));
    }
    drop(to_watcher);
    let sample = |((numbers, own), mut reporter): (Share, Reporter)| {
        let shape = part_of(shape, count, &own, requests.len());
        let sampled = call.run(&own, shape, |request, token| reporter.note(numbers[request], token));
        decisions.all.fetch_or(sampled.is_err(), Ordering::Relaxed);
        let _ = reporter.to_watcher.send((reporter.engine, std::mem::take(&mut reporter.tokens)));
        (numbers, sampled)
    };
    let shown = &mut watcher;
    // It owns both channels: if the watcher panics, no engine waits for a reply.
    let done = threads::on_each(work, sample, move || {
        for (engine, tokens) in from_engines {
            shown.show(tokens);
            let _ = replies[engine].send(()); // The last tokens of an engine need no reply.
        }
    });
    let mut completions = vec![Completion::empty(); requests.len()];
    for (numbers, sampled) in done {
        numbers.into_iter().zip(sampled?).for_each(|(number, completion)| completions[number] = completion);
    }
    watcher.cut(&mut completions);
    Ok(completions)
}
