//! Sampling from vLLM or SGLang servers instead of the engine of this process.
//!
//! Requests and responses carry token ids, never text. The completions of a group are one request with `n`. It goes to
//! the server with the fewest in-flight requests, and is retried on another one if it fails. A server reports only the
//! log-probability of a token. All else (entropies, collisions) comes from a forward pass of our own model.
//!
//! The servers get the weights of a step before its first completion is requested: adapters, under a new name for each
//! version so that earlier requests are unaffected, or all weights, from a folder. A response of 200 does not prove
//! that a server uses them, so our own model scores a few completions after each update (`weights.rs`, `probe.rs`,
//! `check.rs`).
//! Protocols and observed failures are those of vLLM 0.10.2 to 0.32 and SGLang 0.4.1 to 0.5.23.

mod check;
mod find;
mod http;
mod info;
mod pool;
mod probe;
mod protocol;
mod server;
mod sync;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use self::find::Needs;
use self::find::find;
use self::pool::{CallParameters, Pending};
use self::protocol::{ServedWeights, ServerCompletion};
use self::server::Server;
use self::sync::Publisher;
use super::Sampler;
use super::settings::{LogProbs, ServedConfig, ServerKind, Sync};
use crate::error::{Error, Result};
use crate::generate::{Completion, Distribution, FinishReason, Request, SampledToken, Sampling, Watch, read};
use crate::metrics::Metrics;
use crate::model::{CausalLm, is_wrapped};
use crate::stop::Stop;

/// Servers that sample completions.
#[derive(Debug)]
pub struct Served {
    engine: ServerKind,
    config: ServedConfig,
    servers: Arc<Vec<Server>>,
    publisher: Publisher,
    vocab_size: usize,
    /// Kind of the servers' log-probabilities, as far as it is known.
    log_probs: LogProbs,
    /// Sampling distributions of completions whose log-probabilities the correction reads.
    corrected: Vec<Distribution>,
    /// Path or Hub name that each server loaded its model from.
    sources: Vec<String>,
    /// The name prefix of the run and the adapters of each server, until those of earlier starts are unloaded.
    leftovers: Option<(String, Vec<Vec<String>>)>,
    /// The version of the weights on the servers, and their names.
    current: Option<(u64, ServedWeights)>,
    /// Divergence of each server's model from ours at its first check.
    first_divergence: Vec<Option<f64>>,
    /// Completions of the next step that were requested early.
    prefetched: Option<Pending>,
    stats: Stats,
}

/// Statistics since the last [`Sampler::describe`].
#[derive(Debug, Default)]
struct Stats {
    sync: Duration,
    check: Duration,
    score: Duration,
    /// Largest divergence of a server in the checks.
    divergence: Option<f64>,
    retries: usize,
    /// Completions that were requested early and not used.
    dropped: usize,
    /// Updates that completions lag behind, and their number, for each call.
    staleness: Vec<(u64, usize)>,
}

/// The trained model at its current version.
pub struct Current<'a> {
    /// Number of updates so far: 0 for the weights that the servers were started with.
    pub version: u64,
    /// The model.
    pub model: &'a CausalLm,
    /// Maximum number of tokens in a forward pass.
    pub tokens_per_pass: usize,
    /// Writes the weights into a new folder: the adapters if the servers get adapters, otherwise the whole model.
    pub write: Write<'a>,
}

/// A function that writes weights into a folder.
pub type Write<'a> = Box<dyn Fn(&Path) -> Result<()> + 'a>;

impl std::fmt::Debug for Current<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The requests that are about to be sampled, and the weights to sample them from.
#[derive(Debug, Clone, Copy)]
struct Upcoming<'a> {
    current: &'a Current<'a>,
    requests: &'a [Request],
    sampling: &'a Sampling,
    stop: Stop<'a>,
}

/// A sampler on servers.
#[derive(Debug)]
pub struct Remote<'a> {
    /// The servers.
    pub served: &'a mut Served,
    /// The model to sample from. If `None`, the servers keep their weights and completions have log-probabilities only.
    pub current: Option<Current<'a>>,
    /// The request to end early.
    pub stop: Stop<'a>,
}

impl Served {
    /// Wait for the servers and check that they meet `needs`. `dir` is the folder of the run; nothing is written yet.
    ///
    /// # Errors
    /// [`Error::Engine`], with the command line of a suitable server; [`Error::Stopped`].
    pub fn open(
        (engine, config): (ServerKind, &ServedConfig),
        needs: &Needs,
        dir: &Path,
        stop: Stop,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let found = find(engine, config, needs, stop, note)?;
        let method = if needs.trains { config.sync_for(needs.lora.is_some()) } else { Sync::None };
        if matches!(method, Sync::Lora | Sync::Disk) && is_wrapped(needs.model)? {
            let model = needs.model.display();
            return Err(Error::Engine(format!(
                "{model} is a vision-language model, for which servers use other weight names, so that no trained \
                 weight would be loaded: extract its language model (`tempering merge {model} -o FOLDER`), set \
                 model.path to the folder and serve it"
            )));
        }
        let (run, start) = names(dir);
        let corrects = method != Sync::None && config.correction.reads_sampled();
        let publisher =
            Publisher::new(engine, method, config, (dir.join("sync"), format!("{run}-{start}"), found.model));
        Ok(Self {
            engine,
            config: config.clone(),
            first_divergence: vec![None; found.servers.len()],
            servers: Arc::new(found.servers),
            publisher,
            vocab_size: needs.vocab_size,
            log_probs: found.log_probs,
            corrected: if corrects { needs.distributions.to_vec() } else { Vec::new() },
            sources: found.sources,
            leftovers: Some((run, found.adapters)),
            current: None,
            prefetched: None,
            stats: Stats::default(),
        })
    }

    /// Start to request the completions of `requests` from the weights that the servers have.
    fn start(&self, requests: &[Request], sampling: &Sampling) -> Pending {
        let (version, weights) = self.current.clone().unwrap_or_else(|| (0, self.publisher.base()));
        let call = CallParameters {
            engine: self.engine,
            servers: self.servers.clone(),
            sampling: sampling.clone(),
            weights,
            vocab_size: self.vocab_size,
            timeout: Duration::from_secs_f64(self.config.request_timeout_s),
            retries: self.config.retries,
        };
        Pending::start(call, requests, version, self.config.concurrency)
    }

    /// Scores completions, which were sampled from the weights of `version`, with our own model.
    ///
    /// # Errors
    /// [`Error::Engine`] when completions of the current version diverge by more than `max_mean_kl`.
    fn score(&mut self, at: &Upcoming, completions: &[ServerCompletion], version: u64) -> Result<Vec<Completion>> {
        let start = Instant::now();
        let both = at.requests.iter().zip(completions);
        let sequences: Vec<_> = both.map(|(request, sampled)| (&request.prompt[..], &sampled.tokens[..])).collect();
        let scored = read(at.current.model, &sequences, &at.sampling.distribution, at.current.tokens_per_pass);
        let comparable = self.comparable_log_prob();
        self.stats.score += start.elapsed();
        let pairs = |(scored, completion): (&Vec<SampledToken>, &ServerCompletion)| -> Vec<(f32, f32)> {
            let all = scored.iter().zip(&completion.log_probs).map(|(ours, &theirs)| (comparable(ours), theirs));
            all.filter(|(ours, _)| *ours != f32::NEG_INFINITY).collect()
        };
        let divergence = check::divergence(scored.iter().zip(completions).flat_map(pairs));
        // Completions of earlier weights diverge more.
        if version == at.current.version && (divergence.is_nan() || divergence > self.config.max_mean_kl) {
            return Err(Error::Engine(format!(
                "the log-probabilities of the servers and of the trainer differ by {divergence:.2e} nats per token on \
                 the completions of a step (mean of r - 1 - ln r), more than rollout.max_mean_kl = {}, although they \
                 agreed after the weight transfer: raise rollout.max_mean_kl if the servers compute at lower precision \
                 than the trainer, or restart the servers",
                self.config.max_mean_kl
            )));
        }
        Ok(completions.iter().zip(&scored).map(|(sampled, scored)| join(sampled, scored, comparable)).collect())
    }

    /// Return our figure that the servers' log-probabilities compare with. SGLang's precede top-k, top-p and min-p.
    fn comparable_log_prob(&self) -> fn(&SampledToken) -> f32 {
        match (self.log_probs, self.engine) {
            (LogProbs::Raw, _) => |sampled| sampled.unit_log_prob,
            (_, ServerKind::Vllm) => |sampled| sampled.drawn_log_prob,
            (_, ServerKind::Sglang) => |sampled| sampled.log_prob,
        }
    }

    /// Return the path or Hub name that each server loaded its model from.
    pub fn sources(&self) -> &[String] {
        &self.sources
    }

    /// Whether the servers get adapters instead of all weights.
    pub fn takes_adapters(&self) -> bool {
        self.publisher.method == Sync::Lora
    }

    /// Unload the adapters of this run from the servers and remove the folders of its weights.
    pub fn close(&mut self) {
        self.prefetched = None;
        self.publisher.clear(&self.servers);
    }
}

/// Return a name prefix for the run, and a suffix for this start of the run.
fn names(dir: &Path) -> (String, String) {
    let whole = std::path::absolute(dir).unwrap_or_else(|_| PathBuf::from(dir));
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    let run = format!("{name}-{:08x}", crate::noise::mix_text(&whole.display().to_string()) >> 32);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (run, format!("{:x}", now.as_millis()))
}

/// Convert a completion without scores of our own model.
fn unscored(completion: ServerCompletion) -> Completion {
    let ServerCompletion { tokens, log_probs, finish_reason } = completion;
    Completion { tokens, drawn_log_probs: log_probs.clone(), log_probs, finish_reason, ..Completion::empty() }
}

/// Combine a server's log-probabilities with the other figures of our own model. If the server's are those of another
/// distribution, the difference to ours under that distribution is added to ours.
fn join(completion: &ServerCompletion, scored: &[SampledToken], comparable: fn(&SampledToken) -> f32) -> Completion {
    let with_server = |(sampled, &theirs): (&SampledToken, &f32)| {
        // Our top-k or top-p may exclude a token at the edge. It is compared under the full softmax.
        let same = comparable(sampled);
        let same = if same.is_finite() { same } else { sampled.log_prob };
        // Avoids the rounding of the sum.
        let shifted = |ours: f32| if ours == same { theirs } else { ours + (theirs - same) };
        let (log_prob, drawn_log_prob) = (shifted(sampled.log_prob), shifted(sampled.drawn_log_prob));
        SampledToken { log_prob, drawn_log_prob, ..*sampled }
    };
    let sampled: Vec<SampledToken> = scored.iter().zip(&completion.log_probs).map(with_server).collect();
    Completion::of(&sampled, completion.finish_reason)
}

/// Show the tokens of completions, the first of which has number `first`, to `watch`, and cuts those that it ends.
/// Returns false if it ends the call.
fn show(first: usize, group: &mut [ServerCompletion], watch: &mut dyn FnMut(usize, u32) -> Watch) -> bool {
    for (number, completion) in (first..).zip(group) {
        for end in 1..=completion.tokens.len() {
            match watch(number, completion.tokens[end - 1]) {
                Watch::EndAll => return false,
                Watch::EndCompletion if end < completion.tokens.len() => {
                    completion.tokens.truncate(end);
                    completion.log_probs.truncate(end);
                    completion.finish_reason = FinishReason::Watcher;
                    break;
                }
                Watch::EndCompletion | Watch::Continue => {}
            }
        }
    }
    true
}

impl Sampler for Remote<'_> {
    fn sample(
        &mut self,
        requests: &[Request],
        sampling: &Sampling,
        watch: &mut dyn FnMut(usize, u32) -> Watch,
    ) -> Result<Vec<Completion>> {
        let Self { served, current, stop } = self;
        if requests.is_empty() || sampling.max_completion_length == 0 {
            return Ok(requests.iter().map(|_| unscored(ServerCompletion::default())).collect());
        }
        let upcoming = current.as_ref().map(|current| Upcoming { current, requests, sampling, stop: *stop });
        if let Some(upcoming) = &upcoming {
            served.refresh(upcoming)?;
        }
        let prefetched = served.prefetched.take_if(|prefetched| prefetched.is_of(requests, sampling));
        let mut pending = prefetched.unwrap_or_else(|| served.start(requests, sampling));
        let mut all = true;
        let waited = pending.wait(*stop, &mut |first, group| {
            all = show(first, group, watch);
            all
        });
        served.stats.retries += pending.retries();
        waited?;
        let (now, version) = (upcoming.map_or(0, |upcoming| upcoming.current.version), pending.version);
        served.stats.staleness.push((now.saturating_sub(version), requests.len()));
        let completions = pending.take();
        match upcoming {
            Some(upcoming) if all => served.score(&upcoming, &completions, version),
            // Nobody uses the completions of a call that `watch` ended.
            _ => Ok(completions.into_iter().map(unscored).collect()),
        }
    }

    fn looks_ahead(&self) -> bool {
        self.served.config.max_staleness > 0
    }

    fn prepare(&mut self, requests: &[Request], sampling: &Sampling) {
        if let Some(unused) = self.served.prefetched.take() {
            self.served.stats.dropped += unused.requests.len();
        }
        self.served.prefetched = Some(self.served.start(requests, sampling));
    }

    fn describe(&mut self, metrics: &mut Metrics) {
        let Stats { sync, check, score, divergence, retries, dropped, staleness } =
            std::mem::take(&mut self.served.stats);
        for (name, time) in [("timing_s/weight_sync", sync), ("timing_s/verify", check), ("timing_s/score", score)] {
            metrics.add(name, time.as_secs_f64());
        }
        if let Some(divergence) = divergence {
            metrics.set("rollout/sync_kl", divergence);
        }
        metrics.add("rollout/retries", retries as f64);
        let available = self.served.servers.iter().filter(|server| server.is_available()).count();
        metrics.set("rollout/servers", available as f64);
        let completions: usize = staleness.iter().map(|(_, count)| count).sum();
        let sum: u64 = staleness.iter().map(|(lag, count)| lag * *count as u64).sum();
        metrics.set("rollout/staleness_mean", sum as f64 / completions.max(1) as f64);
        metrics.set("rollout/staleness_max", staleness.iter().map(|(lag, _)| *lag).max().unwrap_or(0) as f64);
        metrics.add("rollout/dropped_stale", dropped as f64);
    }
}
