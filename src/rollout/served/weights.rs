//! The weights of a step on the servers: brought before the first completion is asked for, and compared with our own model's.

use std::time::{Duration, Instant};

use super::http::Failure;
use super::protocol::{self, Told};
use super::server::{Server, has_other, obituary, pause};
use super::{Moment, Served, check};
use crate::error::{Error, Result};
use crate::generate::{Distribution, Sampling, read};
use crate::rollout::settings::{LogProbs, Sync};

/// A temperature at which raw log-probabilities are far from those of the distribution that is drawn from.
const TELLING: f32 = 1.5;

impl Served {
    /// Sees to it that the servers have the weights of `current`, those that were away included.
    pub(super) fn refresh(&mut self, at: &Moment) -> Result<()> {
        let known = self.current.as_ref().is_some_and(|(version, _)| *version == at.current.version);
        if !known {
            self.publish(at)?;
        }
        self.take_back(at)
    }

    fn publish(&mut self, at: &Moment) -> Result<()> {
        let (current, stop) = (at.current, at.stop);
        let first = current.version == 0 && self.current.is_none();
        if first || self.publisher.how() == Sync::None {
            // The weights that they were started with, as far as one can know.
            self.current = Some((current.version, self.publisher.base()));
            match self.check_all(at) {
                Ok(()) => return Ok(()),
                // A server may have the weights of an earlier run.
                Err(Error::Engine(_)) if matches!(self.publisher.how(), Sync::Disk | Sync::Command) => {}
                Err(error) => return Err(error),
            }
        }
        if matches!(self.publisher.how(), Sync::Disk | Sync::Command)
            && let Some(ahead) = &mut self.ahead
        {
            // A reload would change the weights under them.
            ahead.wait(stop, &mut |_, _| true)?;
        }
        let start = Instant::now();
        if let Some((run, adapters)) = self.left.take() {
            self.publisher.clean(&self.servers, &adapters, &run)?;
        }
        let weights = self.publisher.publish(current.version, &self.servers, &*current.write, stop)?;
        self.current = Some((current.version, weights));
        self.figures.sync += start.elapsed();
        self.check_all(at)?;
        self.publisher.forget(&self.servers)
    }

    /// Gives servers that were left out the newest weights and takes them back, where they can be reached again.
    fn take_back(&mut self, at: &Moment) -> Result<()> {
        let servers = self.servers.clone();
        for (index, server) in servers.iter().enumerate().filter(|(_, server)| server.is_lost()) {
            if server.client.get("/health", Duration::from_secs_f64(self.config.connect_timeout_s)).is_err() {
                continue;
            }
            if self.publisher.bring(server, at.stop)?.is_ok() {
                server.rejoin();
                if let Err(Error::Engine(why)) = self.check(index, at) {
                    server.lose(&why);
                }
            }
        }
        if servers.iter().any(Server::is_good) {
            return Ok(());
        }
        Err(Error::Engine(format!("no server of rollout.urls is left:{}", obituary(&servers))))
    }

    fn check_all(&mut self, at: &Moment) -> Result<()> {
        let start = Instant::now();
        for index in 0..self.servers.len() {
            if self.servers[index].is_good() {
                self.check(index, at)?;
            }
        }
        self.figures.check += start.elapsed();
        Ok(())
    }

    /// Compares the model of a server with ours, once more with an empty prefix cache where they differ.
    fn check(&mut self, index: usize, at: &Moment) -> Result<()> {
        let servers = self.servers.clone();
        let (server, version) = (&servers[index], at.current.version);
        let limit = check::limit(self.config.max_mean_kl, server.is_f32, self.before[index]);
        let known = self.told_reading(server, at)?;
        let (mut emptied, mut tried) = (false, 0);
        let (reading, divergence) = loop {
            let failure = match self.compare(server, at, &tested(at.sampling), known)? {
                Ok((_, divergence)) if divergence > limit && !emptied => {
                    self.publisher.reset_cache(server);
                    emptied = true;
                    continue;
                }
                Ok(found) => break found,
                Err(failure) => failure,
            };
            if has_other(&servers, index) && !matches!(failure, Failure::Lasting(_)) {
                server.lose(failure.words());
                return Ok(());
            }
            if !matches!(failure, Failure::Passing(_)) || tried == self.config.retries {
                let (url, why, retries) = (server.client.url(), failure.words(), self.config.retries);
                return Err(Error::Engine(format!(
                    "{url}: {why} (tried {} times: rollout.retries = {retries})",
                    tried + 1
                )));
            }
            pause(Duration::from_secs(1 << tried.min(6)), at.stop)?;
            tried += 1;
            self.figures.retried += 1;
        };
        if divergence.is_nan() || divergence > limit {
            let what = match (&self.current, version) {
                (Some((0, _)), 0) => "another model than model.path, or other weights of it".to_string(),
                (_, version) => format!(
                    "other weights than those after {version} updates, which it said to have taken: vLLM on a CPU keeps an \
                     old output matrix where that is the embedding; a prefix cache of earlier weights would do it, too"
                ),
            };
            return Err(Error::Engine(format!(
                "{} serves {what}. On {} tokens that it sampled, its model and ours differ by {divergence:.2e} nats a token \
                 (mean of r - 1 - ln r), and {limit:.1e} is the limit (rollout.max_mean_kl = {} at most)",
                server.client.url(),
                check::PROMPTS * check::TOKENS,
                self.config.max_mean_kl
            )));
        }
        if reading == LogProbs::Raw && self.corrected.iter().any(|drawn| *drawn != Distribution::default()) {
            return Err(Error::Engine(format!(
                "{} gives raw log-probabilities, those at temperature 1, and rollout.correction needs those of the \
                 distribution that tokens are drawn from: start it with --logprobs-mode processed_logprobs, or set \
                 rollout.correction.mode = \"none\"",
                server.client.url()
            )));
        }
        self.log_probs = reading;
        self.figures.divergence = Some(self.figures.divergence.unwrap_or(0.0).max(divergence));
        self.before[index].get_or_insert(divergence);
        Ok(())
    }

    /// What a server's log-probabilities are. At temperature 1, where both readings are the same, it is asked at another one.
    fn told_reading(&self, server: &Server, at: &Moment) -> Result<LogProbs> {
        if self.log_probs != LogProbs::Auto || tested(at.sampling).temperature != 1.0 {
            return Ok(self.log_probs);
        }
        let found = self.compare(server, at, &Distribution::at(TELLING), LogProbs::Auto)?;
        // A server that fails says so again in the check that follows.
        Ok(found.map_or(LogProbs::Auto, |(reading, _)| reading))
    }

    /// What a server's log-probabilities are, and how far its model is from ours, on a few short completions.
    fn compare(
        &self,
        server: &Server,
        at: &Moment,
        distribution: &Distribution,
        known: LogProbs,
    ) -> Result<std::result::Result<(LogProbs, f64), Failure>> {
        let Moment { current, requests, sampling, stop } = *at;
        let weights = self.current.as_ref().map_or_else(|| self.publisher.base(), |(_, weights)| weights.clone());
        let max_completion_length = check::TOKENS.min(sampling.max_completion_length);
        let short = Sampling { distribution: *distribution, max_completion_length, ..sampling.clone() };
        let mut asks: Vec<protocol::Ask> = Vec::new();
        for request in requests {
            if asks.len() < check::PROMPTS && asks.iter().all(|ask| ask.prompt != request.prompt) {
                let seed = asks.len() as i64 + 1;
                asks.push(protocol::Ask { prompt: request.prompt.clone(), count: 1, seed });
            }
        }
        let mut told: Vec<Told> = Vec::new();
        let timeout = Duration::from_secs_f64(self.config.request_timeout_s);
        for ask in &asks {
            stop.check()?;
            let (path, body) = protocol::request(self.engine, ask, &short, &weights);
            let answer = server.client.post(path, &body, timeout);
            let found = answer.and_then(|answer| {
                // A short completion ends at its length, whatever the context is.
                protocol::completions(self.engine, &answer, ask, &short, self.vocab_size)
            });
            match found {
                Ok(found) => told.extend(found),
                Err(failure) => return Ok(Err(failure)),
            }
        }
        let sequences: Vec<(&[u32], &[u32])> =
            asks.iter().zip(&told).map(|(ask, told)| (&ask.prompt[..], &told.tokens[..])).collect();
        let scored = read(current.model, &sequences, distribution, current.tokens_per_pass);
        Ok(Ok(check::reading(known, check::divergences(&told, &scored), distribution.temperature)))
    }
}

/// The full softmax at the sampling temperature: what our model and a server's are compared under.
fn tested(sampling: &Sampling) -> Distribution {
    let temperature = sampling.distribution.temperature;
    Distribution::at(if temperature == 0.0 { 1.0 } else { temperature })
}
