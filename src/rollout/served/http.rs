//! Requests to a server, and what their failures mean.

use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

/// Bytes of an answer at most: a group of 64 completions of 32,768 tokens with their log-probabilities is a third of it.
const LARGEST_ANSWER: u64 = 1 << 30;

/// Characters of a server's own words in a message.
const WORDS: usize = 600;

/// Servers close connections that were idle for 5 seconds; ours are given up before, so that none is found closed.
const IDLE: Duration = Duration::from_secs(3);

/// Why there is no good answer.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// It may pass: no connection, a time-out, a server that is overloaded or stumbles.
    Passing(String),
    /// The server has no such endpoint or object (status 404).
    Missing(String),
    /// It will not pass.
    Lasting(String),
}

impl Failure {
    /// What happened.
    pub(super) fn words(&self) -> &str {
        let (Self::Passing(words) | Self::Missing(words) | Self::Lasting(words)) = self;
        words
    }
}

/// A connection to a server; clones share their connections.
#[derive(Debug, Clone)]
pub(super) struct Client {
    agent: Agent,
    base: String,
    key: Option<String>,
}

impl Client {
    /// A client of the server at `url`, which shows the API key `key`.
    pub(super) fn new(url: &str, key: Option<String>, connect_timeout: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(connect_timeout))
            .max_idle_age(IDLE)
            .max_idle_connections(256)
            .max_idle_connections_per_host(256)
            .proxy(None)
            .build()
            .new_agent();
        Self { agent, base: url.trim_end_matches('/').to_string(), key }
    }

    /// The server's address.
    pub(super) fn url(&self) -> &str {
        &self.base
    }

    /// The answer to a GET; an empty one is null, one that is no JSON a text.
    pub(super) fn get(&self, path: &str, timeout: Duration) -> Result<Value, Failure> {
        let mut request = self.agent.get(self.place(path)).config().timeout_global(Some(timeout)).build();
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        self.read(path, request.call(), timeout)
    }

    /// The answer to a POST of JSON, read as that of [`Self::get`].
    pub(super) fn post(&self, path: &str, body: &Value, timeout: Duration) -> Result<Value, Failure> {
        let mut request = self.agent.post(self.place(path)).config().timeout_global(Some(timeout)).build();
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let bytes = body.to_string().into_bytes();
        self.read(path, request.header("Content-Type", "application/json").send(&bytes[..]), timeout)
    }

    fn place(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn read(
        &self,
        path: &str,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        timeout: Duration,
    ) -> Result<Value, Failure> {
        let failed = |error: ureq::Error| self.failure(path, &error, timeout);
        let mut answer = answer.map_err(failed)?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(LARGEST_ANSWER).read_to_vec().map_err(failed)?;
        let value = || match serde_json::from_slice(&body) {
            Ok(value) => value,
            Err(_) if body.is_empty() => Value::Null,
            Err(_) => Value::String(String::from_utf8_lossy(&body).into_owned()),
        };
        let said = || {
            let words: String = String::from_utf8_lossy(&body).trim().chars().take(WORDS).collect();
            format!("{}{path} answers {status}{}{words}", self.base, if words.is_empty() { "" } else { ": " })
        };
        match status {
            200..=299 => Ok(value()),
            404 => Err(Failure::Missing(said())),
            401 | 403 => Err(Failure::Lasting(format!(
                "{}; name the variable that holds the server's key by rollout.api_key_env",
                said()
            ))),
            408 | 425 | 429 | 500..=599 => Err(Failure::Passing(said())),
            _ => Err(Failure::Lasting(said())),
        }
    }

    fn failure(&self, path: &str, error: &ureq::Error, timeout: Duration) -> Failure {
        let place = self.place(path);
        match error {
            ureq::Error::Timeout(_) => {
                Failure::Passing(format!("{place} has not answered within {} s", timeout.as_secs_f64()))
            }
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Tls(_) | ureq::Error::BodyExceedsLimit(_) => {
                Failure::Lasting(format!("{place}: {error}"))
            }
            error => Failure::Passing(format!("{place}: {error}")),
        }
    }
}
