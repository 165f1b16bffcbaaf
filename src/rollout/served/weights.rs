//! The weights of a step on the servers: transferred before the first completion is requested, then compared with ours.

use std::time::{Duration, Instant};

use super::check::{self, Measurement, Verdict};
use super::http::Failure;
use super::protocol::{self, Query};
use super::server::{Server, has_other, pause, unavailable_summary};
use super::{Served, Upcoming};
use crate::error::{Error, Result};
use crate::generate::{Distribution, Sampling, read};
use crate::rollout::settings::{LogProbs, Sync};

/// A temperature at which raw log-probabilities differ clearly from processed ones.
const PROBE_TEMPERATURE: f32 = 1.5;

/// A measurement, or the failure of the server.
type Measured = std::result::Result<Measurement, Failure>;

impl Served {
    /// Ensure that the available servers have the current weights, and reinstates suspended servers where possible.
    pub(super) fn refresh(&mut self, at: &Upcoming) -> Result<()> {
        let known = self.current.as_ref().is_some_and(|(version, _)| *version == at.current.version);
        if !known {
            self.publish(at)?;
        }
        self.reinstate_suspended(at)
    }

    fn publish(&mut self, at: &Upcoming) -> Result<()> {
        let (current, stop) = (at.current, at.stop);
        let replaces_weights = matches!(self.publisher.method, Sync::Disk | Sync::Command);
        let first = current.version == 0 && self.current.is_none();
        if first || self.publisher.method == Sync::None {
            // Presumably the weights that the servers were started with.
            self.current = Some((current.version, self.publisher.base()));
            match self.check_all(at) {
                Ok(()) => return Ok(()),
                // A server may have kept the weights of an earlier run.
                Err(Error::Engine(_)) if replaces_weights => {}
                Err(error) => return Err(error),
            }
        }
        if replaces_weights && let Some(prefetched) = &mut self.prefetched {
            // An update would change the weights of in-flight requests.
            prefetched.wait(stop, &mut |_, _| true)?;
        }
        let start = Instant::now();
        if let Some((run, adapters)) = self.leftovers.take() {
            self.publisher.remove_leftovers(&self.servers, &adapters, &run)?;
        }
        let weights = self.publisher.publish(current.version, &self.servers, &current.write, stop)?;
        self.current = Some((current.version, weights));
        self.stats.sync += start.elapsed();
        self.check_all(at)?;
        self.publisher.retire_old(&self.servers)
    }

    /// Transfers the newest weights to suspended servers that answer again, and reinstates those that pass the check.
    fn reinstate_suspended(&mut self, at: &Upcoming) -> Result<()> {
        let servers = self.servers.clone();
        for (index, server) in servers.iter().enumerate().filter(|(_, server)| server.is_suspended()) {
            if server.client.get("/health", Duration::from_secs_f64(self.config.connect_timeout_s)).is_err() {
                continue;
            }
            if self.publisher.send_newest(server, at.stop)?.is_ok() {
                server.reinstate();
                match self.check(index, at) {
                    Err(Error::Engine(why)) => server.suspend(&why),
                    checked => checked?,
                }
            }
        }
        if servers.iter().any(Server::is_available) {
            Ok(())
        } else {
            Err(Error::Engine(unavailable_summary(&servers)))
        }
    }

    fn check_all(&mut self, at: &Upcoming) -> Result<()> {
        let start = Instant::now();
        for index in 0..self.servers.len() {
            if self.servers[index].is_available() {
                self.check(index, at)?;
            }
        }
        self.stats.check += start.elapsed();
        Ok(())
    }

    /// Check that a server serves our weights. If it cannot be reached and another one is available, it is suspended.
    fn check(&mut self, index: usize, at: &Upcoming) -> Result<()> {
        let limit = check::limit(self.config.max_mean_kl, self.servers[index].is_f32, self.first_divergence[index]);
        let measured = self.measure_with_retries(index, at, limit)?;
        measured.map_or(Ok(()), |measurement| self.conclude(index, at.current.version, measurement, limit))
    }

    /// Measure a server, with retries. After a divergence above `limit`, its prefix cache is emptied and the
    /// measurement is repeated once. Return `None` if the server was suspended.
    fn measure_with_retries(&mut self, index: usize, at: &Upcoming, limit: f64) -> Result<Option<Measurement>> {
        let servers = self.servers.clone();
        let server = &servers[index];
        let temperature = at.sampling.distribution.temperature;
        let temperature = if temperature == 0.0 { 1.0 } else { temperature };
        let known = self.probe_reading(server, at, temperature)?;
        let (mut cache_reset, mut tried) = (false, 0);
        loop {
            let failure = match self.measure(server, at, temperature, known)? {
                Ok(measurement) if measurement.divergence > limit && !cache_reset => {
                    self.publisher.reset_cache(server);
                    cache_reset = true;
                    continue;
                }
                Ok(measurement) => return Ok(Some(measurement)),
                Err(failure) => failure,
            };
            if has_other(&servers, index) && !matches!(failure, Failure::Permanent(_)) {
                server.suspend(failure.message());
                return Ok(None);
            }
            let retries = self.config.retries;
            if !matches!(failure, Failure::Transient(_)) || tried == retries {
                let (url, why, tries) = (&server.client.url, failure.message(), tried + 1);
                return Err(Error::Engine(format!("{url}: {why} (tried {tries} times: rollout.retries = {retries})")));
            }
            pause(Duration::from_secs(1 << tried.min(6)), at.stop)?;
            tried += 1;
            self.stats.retries += 1;
        }
    }

    /// Return the kind of a server's log-probabilities. At temperature 1, where it cannot be found out, this measures
    /// at another temperature.
    fn probe_reading(&self, server: &Server, at: &Upcoming, temperature: f32) -> Result<LogProbs> {
        if self.log_probs != LogProbs::Auto || temperature != 1.0 {
            return Ok(self.log_probs);
        }
        let found = self.measure(server, at, PROBE_TEMPERATURE, LogProbs::Auto)?;
        // The measurement that follows reports the failure of a server.
        Ok(found.map_or(LogProbs::Auto, |measurement| measurement.reading))
    }

    /// Compare a server's model with ours under the full softmax, on a few short completions that the server samples.
    fn measure(&self, server: &Server, at: &Upcoming, temperature: f32, known: LogProbs) -> Result<Measured> {
        let Upcoming { current, requests, sampling, stop } = *at;
        let weights = self.current.as_ref().map_or_else(|| self.publisher.base(), |(_, weights)| weights.clone());
        let max_completion_length = check::MAX_TOKENS.min(sampling.max_completion_length);
        let distribution = Distribution::at(temperature);
        let short = Sampling { distribution, max_completion_length, ..sampling.clone() };
        let mut probes: Vec<Query> = Vec::new();
        for request in requests {
            if probes.len() < check::MAX_PROMPTS && probes.iter().all(|probe| probe.prompt != request.prompt) {
                let seed = probes.len() as i64 + 1;
                probes.push(Query { prompt: request.prompt.clone(), count: 1, seed });
            }
        }
        let mut completions = Vec::new();
        let timeout = Duration::from_secs_f64(self.config.request_timeout_s);
        for probe in &probes {
            stop.check()?;
            let (path, body) = protocol::request(self.engine, probe, &short, &weights);
            let answer = server.client.post(path, &body, timeout);
            let parse = |answer| protocol::completions(self.engine, &answer, probe, &short, self.vocab_size);
            match answer.and_then(parse) {
                Ok(sampled) => completions.extend(sampled),
                Err(failure) => return Ok(Err(failure)),
            }
        }
        let pairs = probes.iter().zip(&completions);
        let sequences: Vec<_> = pairs.map(|(probe, sampled)| (&probe.prompt[..], &sampled.tokens[..])).collect();
        let scored = read(current.model, &sequences, &distribution, current.tokens_per_pass);
        Ok(Ok(Measurement::of(&completions, &scored, known, temperature)))
    }

    /// Record the measurement of a server that passes the check; otherwise returns the error.
    fn conclude(&mut self, index: usize, version: u64, measurement: Measurement, limit: f64) -> Result<()> {
        let Measurement { reading, divergence } = measurement;
        let url = &self.servers[index].client.url;
        match measurement.verdict(limit, &self.corrected) {
            Verdict::Passed => {
                self.log_probs = reading;
                self.stats.divergence = Some(self.stats.divergence.unwrap_or(0.0).max(divergence));
                self.first_divergence[index].get_or_insert(divergence);
                Ok(())
            }
            Verdict::OtherWeights => {
                let what = match version {
                    0 => "another model than model.path, or other weights of it".to_string(),
                    _ => format!(
                        "other weights than those after {version} updates, which it said to have taken: vLLM on a CPU keeps \
                         an old output matrix where that is the embedding; a prefix cache of earlier weights would do it, too"
                    ),
                };
                Err(Error::Engine(format!(
                    "{url} serves {what}. On up to {} tokens that it sampled, its model and ours differ by {divergence:.2e} nats a \
                     token (mean of r - 1 - ln r), and {limit:.1e} is the limit (rollout.max_mean_kl = {} at most)",
                    check::MAX_PROMPTS * check::MAX_TOKENS,
                    self.config.max_mean_kl
                )))
            }
            Verdict::RawLogProbs => Err(Error::Engine(format!(
                "{url} gives raw log-probabilities, those at temperature 1, and rollout.correction needs those of the \
                 distribution that tokens are drawn from: start it with --logprobs-mode processed_logprobs, or set \
                 rollout.correction.mode = \"none\""
            ))),
        }
    }
}
