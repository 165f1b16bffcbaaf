//! The weights of a step on the servers: transferred before the first completion is requested, then compared with ours.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::check::{self, CheckOutcome, Measurement};
use super::http::ServerFailure;
use super::probe::{Probe, Probed};
use super::server::{Server, in_parallel, unavailable_summary, until_stopped};
use super::{Served, Upcoming};
use crate::error::{Error, Result};
use crate::generate::read;
use crate::rollout::settings::Sync;

impl Served {
    /// Ensure that the available servers have the current weights, and reinstate excluded servers where possible.
    pub(super) fn refresh(&mut self, at: &Upcoming) -> Result<()> {
        let known = self.current.as_ref().is_some_and(|(version, _)| *version == at.current.version);
        if !known {
            self.publish(at)?;
        }
        self.reinstate_excluded(at)
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
        if let Some(leftovers) = self.leftovers.take() {
            self.publisher.remove_leftovers(&self.servers, &leftovers, stop)?;
        }
        let weights = self.publisher.publish(current.version, &self.servers, &current.write, stop)?;
        self.current = Some((current.version, weights));
        self.stats.sync += start.elapsed();
        self.check_all(at)?;
        self.publisher.retire_old(&self.servers, stop)
    }

    /// Transfer the newest weights to suspended servers that answer again, and to broken ones that were restarted. Those
    /// that pass the check are reinstated.
    fn reinstate_excluded(&mut self, at: &Upcoming) -> Result<()> {
        let servers = self.servers.clone();
        let excluded: Vec<usize> = (0..servers.len()).filter(|&index| !servers[index].is_available()).collect();
        let (timeout, stop) = (Duration::from_secs_f64(self.config.connect_timeout_s), at.stop);
        let health = in_parallel(&excluded, |&index| {
            let client = servers[index].client.clone();
            until_stopped(stop, move || client.get("/health", timeout))
        });
        for (&index, health) in excluded.iter().zip(health) {
            let server = &servers[index];
            match health? {
                Ok(_) | Err(ServerFailure::NotFound(_)) if server.is_suspended() => {}
                Err(ServerFailure::Unavailable(_)) => {
                    server.mark_ended();
                    continue;
                }
                _ => continue,
            }
            if !self.publisher.send_newest(server, at.stop)? {
                continue;
            }
            match self.check(index, at) {
                Ok(true) => server.reinstate(),
                Ok(false) => {}
                Err(Error::Engine(why)) => server.suspend(&why),
                Err(error) => return Err(error),
            }
        }
        if servers.iter().any(Server::is_available) {
            Ok(())
        } else {
            Err(Error::Engine(unavailable_summary(&servers)))
        }
    }

    /// Check that all available servers serve our weights. They sample at the same time.
    fn check_all(&mut self, at: &Upcoming) -> Result<()> {
        let start = Instant::now();
        let servers = self.servers.clone();
        let available: Vec<usize> = (0..servers.len()).filter(|&index| servers[index].is_available()).collect();
        let probe = Probe::new(self, at);
        let probed = in_parallel(&available, |&index| probe.ask(&servers, index));
        for (&index, probed) in available.iter().zip(probed) {
            if let Some(probed) = probed? {
                self.judge(index, &probe, &probed, at)?;
            }
        }
        self.stats.retries += probe.retries.load(Ordering::SeqCst);
        self.stats.check += start.elapsed();
        Ok(())
    }

    /// Check that a server serves our weights. Return false if it cannot be reached and another one is available.
    fn check(&mut self, index: usize, at: &Upcoming) -> Result<bool> {
        let servers = self.servers.clone();
        let probe = Probe::new(self, at);
        match probe.ask(&servers, index)? {
            Some(probed) => self.judge(index, &probe, &probed, at),
            None => Ok(false),
        }
    }

    /// Judge a server by its completions. After a divergence above the limit, its prefix cache is emptied and the probe is
    /// repeated once. Return false if the server is suspended then.
    fn judge(&mut self, index: usize, probe: &Probe, probed: &Probed, at: &Upcoming) -> Result<bool> {
        let servers = self.servers.clone();
        let limit = check::limit(self.config.max_mean_kl, servers[index].is_f32, self.first_divergence[index]);
        let mut measurement = self.measure(probe, probed, at);
        if measurement.divergence > limit {
            self.publisher.reset_cache(&servers[index], at.stop)?;
            let Some(probed) = probe.ask(&servers, index)? else { return Ok(false) };
            measurement = self.measure(probe, &probed, at);
        }
        self.conclude(index, at.current.version, measurement, limit)?;
        Ok(true)
    }

    /// Compare a server's model with ours on its completions.
    fn measure(&self, probe: &Probe, probed: &Probed, at: &Upcoming) -> Measurement {
        let mut measurement = Measurement { reading: self.log_probs, divergence: f64::NAN };
        for (sampling, completions) in probe.samplings.iter().zip(probed) {
            let pairs = probe.queries.iter().zip(completions);
            let sequences: Vec<_> = pairs.map(|(query, sampled)| (&query.prompt[..], &sampled.tokens[..])).collect();
            let scored = read(at.current.model, &sequences, &sampling.distribution, at.current.tokens_per_pass);
            let temperature = sampling.distribution.temperature;
            measurement = Measurement::of(completions, &scored, measurement.reading, temperature);
        }
        measurement
    }

    /// Record the measurement of a server that passes the check; otherwise return the error.
    fn conclude(&mut self, index: usize, version: u64, measurement: Measurement, limit: f64) -> Result<()> {
        let Measurement { reading, divergence } = measurement;
        let url = &self.servers[index].client.url;
        match measurement.verdict(limit, &self.corrected) {
            CheckOutcome::Passed => {
                self.log_probs = reading;
                self.stats.divergence = Some(self.stats.divergence.unwrap_or(0.0).max(divergence));
                self.first_divergence[index].get_or_insert(divergence);
                Ok(())
            }
            CheckOutcome::OtherWeights => {
                let what = match version {
                    0 => "a model or weights other than model.path".to_string(),
                    _ => format!(
                        "weights other than those after {version} updates, although it reported that it loaded them \
                         (known causes: vLLM on a CPU keeps the old output matrix if it is tied to the embedding; a \
                         prefix cache of earlier weights)"
                    ),
                };
                Err(Error::Engine(format!(
                    "{url} serves {what}. On up to {} tokens that it sampled, its log-probabilities and those of the \
                     trainer differ by {divergence:.2e} nats per token (mean of r - 1 - ln r); the limit is \
                     {limit:.1e} (at most rollout.max_mean_kl = {})",
                    check::MAX_PROMPTS * check::MAX_TOKENS,
                    self.config.max_mean_kl
                )))
            }
            CheckOutcome::RawLogProbs => Err(Error::Engine(format!(
                "{url} returns raw log-probabilities (at temperature 1), but rollout.correction needs those of the \
                 sampling distribution: start it with --logprobs-mode processed_logprobs, or set \
                 rollout.correction.mode = \"none\""
            ))),
        }
    }
}
