//! Completions from servers of vLLM or SGLang, instead of the engine of this process.
//!
//! Token ids go out and come back, never text. The completions of a group are one request with `n`; requests go to the
//! least busy server, and again, to another one, where a server stumbles. A server says one thing about a token, its
//! log-probability; all else (entropies, collisions) comes from a pass of our own model over the completions.
//!
//! The weights of a step are brought to the servers before the first completion of that step is asked for: adapters under a
//! name for each version, which leaves earlier requests alone, or all weights from a folder. After that a few completions
//! are scored by our own model (`weights.rs`, `check.rs`): an answer of 200 is no proof. Protocols, versions and the failures seen in
//! practice are those of vLLM 0.10.2 to 0.32 and SGLang 0.4.1 to 0.5.23.

mod check;
mod http;
mod pool;
mod protocol;
mod server;
mod sync;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use self::pool::{Call, Pending};
use self::protocol::{Told, Weights};
pub use self::server::Needs;
use self::server::{Server, find};
use self::sync::Publisher;
use super::Sampler;
use super::settings::{Engine, LogProbs, ServedConfig, Sync};
use crate::error::{Error, Result};
use crate::generate::{Completion, Distribution, FinishReason, Request, Sampled, Sampling, Watch, read};
use crate::metrics::Metrics;
use crate::model::{CausalLm, is_wrapped};
use crate::stop::Stop;

/// Servers that sample completions.
#[derive(Debug)]
pub struct Served {
    engine: Engine,
    config: ServedConfig,
    servers: Arc<Vec<Server>>,
    publisher: Publisher,
    vocab_size: usize,
    log_probs: LogProbs,
    /// Where the correction reads log-probabilities: what completions to learn from are drawn from.
    corrected: Vec<Distribution>,
    /// The beginning of the run's names, and adapters that servers hold: until what an earlier start left is removed.
    left: Option<(String, Vec<Vec<String>>)>,
    /// The version that the servers have, with its names.
    current: Option<(u64, Weights)>,
    /// Divergence of each server's model from ours at the first check of this start.
    before: Vec<Option<f64>>,
    /// The completions of the next step, asked for early.
    ahead: Option<Pending>,
    figures: Figures,
}

/// What happened since the figures were last taken.
#[derive(Debug, Default)]
struct Figures {
    sync: Duration,
    check: Duration,
    score: Duration,
    /// Largest divergence of a server right after new weights.
    divergence: Option<f64>,
    retried: usize,
    dropped: usize,
    /// Updates that completions lagged behind, with the number of completions.
    staleness: Vec<(u64, usize)>,
}

/// The trained model at a point of its run.
pub struct Current<'a> {
    /// Updates so far: 0 for the weights that the servers were started with.
    pub version: u64,
    /// Weights.
    pub model: &'a CausalLm,
    /// Tokens of one pass of the model at most.
    pub tokens_per_pass: usize,
    /// Writes the weights into a new folder: adapters where these are what the servers get, else a whole model.
    pub write: Write<'a>,
}

/// Writes weights into a folder.
pub type Write<'a> = Box<dyn Fn(&Path) -> Result<()> + 'a>;

impl std::fmt::Debug for Current<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("version", &self.version).finish_non_exhaustive()
    }
}

/// What is about to be sampled, and from which weights.
#[derive(Debug, Clone, Copy)]
struct Moment<'a> {
    current: &'a Current<'a>,
    requests: &'a [Request],
    sampling: &'a Sampling,
    stop: Stop<'a>,
}

/// Samples from servers for a model at a point of its run, or, without one, from what they serve.
#[derive(Debug)]
pub struct Remote<'a> {
    /// The servers.
    pub served: &'a mut Served,
    /// The model whose completions are wanted; completions have log-probabilities alone where there is none.
    pub current: Option<Current<'a>>,
    /// The request to end early.
    pub stop: Stop<'a>,
}

impl Served {
    /// Finds the servers and sees that they can do what a run needs. `dir` is the run's folder, nothing is written yet.
    ///
    /// # Errors
    /// [`Error::Engine`], with the line that starts a fitting server; [`Error::Stopped`].
    pub fn open(
        (engine, config): (Engine, &ServedConfig),
        needs: &Needs,
        dir: &Path,
        stop: Stop,
        note: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let found = find(engine, config, needs, stop, note)?;
        let how = if needs.trains { config.sync_for(needs.lora.is_some()) } else { Sync::None };
        if matches!(how, Sync::Lora | Sync::Disk) && is_wrapped(needs.model)? {
            let model = needs.model.display();
            return Err(Error::Engine(format!(
                "{model} is a language model inside one that also sees, whose server has other names for its weights and would \
                 apply none of those that are trained: take it out (`tempering merge {model} -o FOLDER`), set model.path to the \
                 folder and serve that"
            )));
        }
        let (run, start) = names(dir);
        let reads = how != Sync::None && config.correction.reads_sampled();
        let publisher = Publisher::new(engine, how, config, (dir.join("sync"), format!("{run}-{start}"), found.model));
        Ok(Self {
            engine,
            config: config.clone(),
            before: vec![None; found.servers.len()],
            servers: Arc::new(found.servers),
            publisher,
            vocab_size: needs.vocab_size,
            log_probs: found.log_probs,
            corrected: if reads { needs.distributions.to_vec() } else { Vec::new() },
            left: Some((run, found.adapters)),
            current: None,
            ahead: None,
            figures: Figures::default(),
        })
    }

    fn call(&self, sampling: &Sampling, weights: &Weights) -> Call {
        Call {
            engine: self.engine,
            servers: self.servers.clone(),
            sampling: sampling.clone(),
            weights: weights.clone(),
            vocab_size: self.vocab_size,
            timeout: Duration::from_secs_f64(self.config.request_timeout_s),
            retries: self.config.retries,
        }
    }

    /// Asks for the completions of `requests` from the weights that the servers have.
    fn ask(&self, requests: &[Request], sampling: &Sampling) -> Pending {
        let base = || (0, self.publisher.base());
        let (version, weights) = self.current.clone().unwrap_or_else(base);
        Pending::start(self.call(sampling, &weights), requests, version, self.config.concurrency)
    }

    /// Completions as our own engine gives them.
    fn complete(
        &mut self,
        requests: &[Request],
        told: Vec<Told>,
        sampling: &Sampling,
        current: Option<&Current>,
        version: u64,
    ) -> Result<Vec<Completion>> {
        let Some(current) = current else {
            return Ok(told.into_iter().map(bare).collect());
        };
        let start = Instant::now();
        let sequences: Vec<(&[u32], &[u32])> =
            requests.iter().zip(&told).map(|(request, told)| (&request.prompt[..], &told.tokens[..])).collect();
        let scored = read(current.model, &sequences, &sampling.distribution, current.tokens_per_pass);
        let same = self.same();
        self.figures.score += start.elapsed();
        let pairs = |(scored, told): (&Vec<Sampled>, &Told)| -> Vec<(f32, f32)> {
            let all = scored.iter().zip(&told.log_probs).map(|(ours, &theirs)| (same(ours), theirs));
            all.filter(|(ours, _)| *ours != f32::NEG_INFINITY).collect()
        };
        let divergence = check::divergence(scored.iter().zip(&told).flat_map(pairs));
        // Of earlier weights more is expected.
        if version == current.version && (divergence.is_nan() || divergence > self.config.max_mean_kl) {
            return Err(Error::Engine(format!(
                "the servers' model and ours differ by {divergence:.2e} nats a token on the completions of a step (mean of r - 1 \
                 - ln r), more than rollout.max_mean_kl = {}, although they were alike when the weights came: raise it if the \
                 servers compute in fewer bits than the trainer, or start them again",
                self.config.max_mean_kl
            )));
        }
        Ok(told.iter().zip(&scored).map(|(told, scored)| join(told, scored, same)).collect())
    }

    /// Our log-probability of the distribution that the servers' are of: SGLang's are taken before top-k, top-p and min-p.
    fn same(&self) -> fn(&Sampled) -> f32 {
        match (self.log_probs, self.engine) {
            (LogProbs::Raw, _) => |sampled| sampled.unit_log_prob,
            (_, Engine::Vllm) => |sampled| sampled.drawn_log_prob,
            (_, Engine::Sglang) => |sampled| sampled.log_prob,
        }
    }

    /// Whether the servers get adapters, not all weights.
    pub fn takes_adapters(&self) -> bool {
        self.publisher.how() == Sync::Lora
    }

    /// Unloads what this run has loaded, and removes the folders of its weights.
    pub fn close(&mut self) {
        self.ahead = None;
        self.publisher.clear(&self.servers);
    }
}

/// A beginning of names that is the run's, and one more for this start of it.
fn names(dir: &Path) -> (String, String) {
    let whole = std::path::absolute(dir).unwrap_or_else(|_| PathBuf::from(dir));
    let name = whole.file_name().unwrap_or_default().to_string_lossy();
    let run = format!("{name}-{:08x}", crate::noise::mix_text(&whole.display().to_string()) >> 32);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (run, format!("{:x}", now.as_millis()))
}

/// A completion with what the server said of it.
fn bare(told: Told) -> Completion {
    Completion {
        tokens: told.tokens,
        drawn_log_probs: told.log_probs.clone(),
        log_probs: told.log_probs,
        finish_reason: told.finish_reason,
        ..Completion::empty()
    }
}

/// A completion with the server's log-probabilities, and all else by our own model. Where the server's are of another
/// distribution than the full softmax at the sampling temperature, theirs differ from ours as much as under that one.
fn join(told: &Told, scored: &[Sampled], same: fn(&Sampled) -> f32) -> Completion {
    let of_server = |(sampled, &theirs): (&Sampled, &f32)| {
        // A token at the edge of top-k or top-p, which ours leave out: compared under the whole softmax.
        let same = same(sampled);
        let same = if same.is_finite() { same } else { sampled.log_prob };
        // Equal numbers take the server's as it is.
        let shifted = |ours: f32| if ours == same { theirs } else { ours + (theirs - same) };
        let (log_prob, drawn_log_prob) = (shifted(sampled.log_prob), shifted(sampled.drawn_log_prob));
        Sampled { log_prob, drawn_log_prob, ..*sampled }
    };
    let sampled: Vec<Sampled> = scored.iter().zip(&told.log_probs).map(of_server).collect();
    Completion::of(&sampled, told.finish_reason)
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
            return Ok(requests.iter().map(|_| bare(Told::default())).collect());
        }
        if let Some(current) = current {
            served.refresh(&Moment { current, requests, sampling, stop: *stop })?;
        }
        let early = served.ahead.take_if(|ahead| ahead.is_of(requests, sampling));
        let mut pending = early.unwrap_or_else(|| served.ask(requests, sampling));
        let mut cuts = vec![None; requests.len()];
        let mut all = true;
        let waited = pending.wait(*stop, &mut |first, told| {
            for (place, told) in told.iter().enumerate() {
                for (index, &token) in told.tokens.iter().enumerate() {
                    match watch(first + place, token) {
                        Watch::Continue => {}
                        Watch::EndCompletion => {
                            cuts[first + place] = Some(index + 1).filter(|&end| end < told.tokens.len());
                            break;
                        }
                        Watch::EndAll => {
                            all = false;
                            return false;
                        }
                    }
                }
            }
            true
        });
        served.figures.retried += pending.retried();
        waited?;
        let (now, version) = (current.as_ref().map_or(0, |current| current.version), pending.version);
        served.figures.staleness.push((now.saturating_sub(version), pending.len()));
        let told = pending.take().into_iter().zip(cuts).map(|(told, cut)| {
            let mut told = told.unwrap_or_default();
            if let Some(end) = cut {
                told.tokens.truncate(end);
                told.log_probs.truncate(end);
                told.finish_reason = FinishReason::Watcher;
            }
            told
        });
        let told: Vec<Told> = told.collect();
        // What was not waited for is empty, and of no use to anyone.
        served.complete(requests, told, sampling, current.as_ref().filter(|_| all), version)
    }

    fn looks_ahead(&self) -> bool {
        self.served.config.max_staleness > 0
    }

    fn prepare(&mut self, requests: &[Request], sampling: &Sampling) {
        let served = &mut *self.served;
        if let Some(unused) = served.ahead.take() {
            served.figures.dropped += unused.len();
        }
        served.ahead = Some(served.ask(requests, sampling));
    }

    fn describe(&mut self, metrics: &mut Metrics) {
        let served = &mut *self.served;
        let figures = std::mem::take(&mut served.figures);
        for (name, time) in [
            ("timing_s/weight_sync", figures.sync),
            ("timing_s/verify", figures.check),
            ("timing_s/score", figures.score),
        ] {
            metrics.add(name, time.as_secs_f64());
        }
        if let Some(divergence) = figures.divergence {
            metrics.set("rollout/sync_kl", divergence);
        }
        metrics.add("rollout/retries", figures.retried as f64);
        metrics.set("rollout/servers", served.servers.iter().filter(|server| server.is_good()).count() as f64);
        let completions: usize = figures.staleness.iter().map(|(_, count)| count).sum();
        let sum: u64 = figures.staleness.iter().map(|(lag, count)| lag * *count as u64).sum();
        metrics.set("rollout/staleness_mean", sum as f64 / completions.max(1) as f64);
        metrics.set("rollout/staleness_max", figures.staleness.iter().map(|(lag, _)| *lag).max().unwrap_or(0) as f64);
        metrics.add("rollout/dropped_stale", figures.dropped as f64);
    }
}
