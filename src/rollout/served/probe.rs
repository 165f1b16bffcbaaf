//! Short completions that servers sample for a check of their weights.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::check;
use super::http::ServerFailure;
use super::protocol::{Query, ServedWeights, ServerCompletion, completions, request};
use super::server::{Server, pause, suspend_unless_last};
use super::{Served, Upcoming};
use crate::error::{Error, Result};
use crate::generate::{Distribution, Sampling};
use crate::rollout::settings::{LogProbs, ServerKind};
use crate::stop::Stop;

/// A temperature at which raw log-probabilities differ clearly from processed ones.
const PROBE_TEMPERATURE: f32 = 1.5;

/// The requests of a check, the same for all servers.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    engine: ServerKind,
    weights: ServedWeights,
    vocab_size: usize,
    timeout: Duration,
    max_retries: usize,
    pub(super) queries: Vec<Query>,
    /// The sampling parameters, one of them for each temperature.
    pub(super) samplings: Vec<Sampling>,
    stop: Stop<'a>,
    /// Number of retries so far.
    pub(super) retries: AtomicUsize,
}

/// The completions of a server for each element of [`Probe::samplings`], in the order of the queries.
pub(super) type Probed = Vec<Vec<ServerCompletion>>;

impl<'a> Probe<'a> {
    /// Create the requests of a check of the weights that `served` has published, for the first prompts of `at`. They sample
    /// under the full softmax. The kind of log-probabilities cannot be found out at temperature 1: if it has to be, the
    /// probe begins at another temperature.
    pub(super) fn new(served: &Served, at: &Upcoming<'a>) -> Self {
        let mut queries: Vec<Query> = Vec::new();
        for request in at.requests {
            if queries.len() < check::MAX_PROMPTS && queries.iter().all(|query| query.prompt != request.prompt) {
                let seed = queries.len() as i64 + 1;
                queries.push(Query { prompt: request.prompt.clone(), count: 1, seed });
            }
        }
        let temperature = at.sampling.distribution.temperature;
        let temperature = if temperature == 0.0 { 1.0 } else { temperature };
        let unknown = served.log_probs == LogProbs::Auto && temperature == 1.0;
        let max_completion_length = check::MAX_TOKENS.min(at.sampling.max_completion_length);
        let sampling = |temperature| {
            let distribution = Distribution::at(temperature);
            Sampling { distribution, max_completion_length, ..at.sampling.clone() }
        };
        Self {
            engine: served.engine,
            weights: served.current.as_ref().map_or_else(|| served.publisher.base(), |(_, weights)| weights.clone()),
            vocab_size: served.vocab_size,
            timeout: Duration::from_secs_f64(served.config.request_timeout_s),
            max_retries: served.config.retries,
            queries,
            samplings: unknown.then_some(PROBE_TEMPERATURE).into_iter().chain([temperature]).map(sampling).collect(),
            stop: at.stop,
            retries: AtomicUsize::new(0),
        }
    }

    /// Request the completions of server `index`. If it fails and another one is available, it is suspended and this returns
    /// `None`; otherwise transient failures are retried.
    pub(super) fn ask(&self, servers: &[Server], index: usize) -> Result<Option<Probed>> {
        let server = &servers[index];
        let mut tried = 0;
        loop {
            let failure = match self.ask_once(server)? {
                Ok(probed) => return Ok(Some(probed)),
                Err(failure) => failure,
            };
            let (url, why) = (&server.client.url, failure.message());
            if !matches!(failure, ServerFailure::Permanent(_)) && suspend_unless_last(servers, index, why) {
                return Ok(None);
            }
            if !failure.may_pass() {
                return Err(Error::Engine(format!("{url}: {why}")));
            }
            if tried == self.max_retries {
                let tries = format!("(tried {} times: rollout.retries = {tried})", tried + 1);
                return Err(Error::Engine(format!("{url}: {why} {tries}")));
            }
            pause(Duration::from_secs(1 << tried.min(6)), self.stop)?;
            tried += 1;
            self.retries.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn ask_once(&self, server: &Server) -> Result<std::result::Result<Probed, ServerFailure>> {
        let mut probed = Probed::new();
        for sampling in &self.samplings {
            let mut sampled = Vec::new();
            for query in &self.queries {
                let (path, body) = request(self.engine, query, sampling, &self.weights);
                let answer = server.client.post_until(self.stop, path, body, self.timeout)?;
                let parse = |answer| completions(self.engine, &answer, query, sampling, self.vocab_size);
                match answer.and_then(parse) {
                    Ok(completions) => sampled.extend(completions),
                    Err(failure) => return Ok(Err(failure)),
                }
            }
            probed.push(sampled);
        }
        Ok(Ok(probed))
    }
}
