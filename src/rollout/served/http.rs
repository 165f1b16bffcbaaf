//! The HTTP client of one server, and the classification of failed requests.

use std::io::ErrorKind;
use std::time::Duration;

use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body, Error, Timeout};

use super::server::until_stopped;
use crate::stop::Stop;

/// Maximum bytes of a response: three times those of 64 completions of 32,768 tokens with their log-probabilities.
const MAX_RESPONSE_BYTES: u64 = 1 << 30;

/// Maximum number of characters of a response that an error message quotes.
const MAX_QUOTE_CHARS: usize = 600;

/// Maximum idle time of a pooled connection. Servers close theirs after 5 idle seconds, and no request may meet that.
const MAX_IDLE: Duration = Duration::from_secs(3);

/// A failed request, with its error message.
#[derive(Debug, Clone)]
pub(super) enum ServerFailure {
    /// The server was not reached or is overloaded: the request had no effect. May succeed when retried.
    Unavailable(String),
    /// A lost connection, a timeout or an error of the server: the effect is unknown. May succeed when retried.
    Transient(String),
    /// The server has no such endpoint or object (status 404).
    NotFound(String),
    /// Would fail again when retried.
    Permanent(String),
}

impl ServerFailure {
    /// The error message.
    pub(super) fn message(&self) -> &str {
        let (Self::Unavailable(message)
        | Self::Transient(message)
        | Self::NotFound(message)
        | Self::Permanent(message)) = self;
        message
    }

    /// Whether the request may succeed when it is retried.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Transient(_))
    }
}

/// An HTTP client of one server. Clones share a connection pool.
#[derive(Debug, Clone)]
pub(super) struct ServerClient {
    agent: Agent,
    connect_timeout: Duration,
    /// The URL of the server, without a trailing slash.
    pub(super) url: String,
    key: Option<String>,
}

impl ServerClient {
    /// Create a client of the server at `url`. `key` is the API key, if the server needs one.
    pub(super) fn new(url: &str, key: Option<String>, connect_timeout: Duration) -> Self {
        Self { agent: agent(connect_timeout), connect_timeout, url: url.trim_end_matches('/').to_string(), key }
    }

    /// Create a client of the same server with connections of its own, which [`Self::abort`] closes.
    pub(super) fn separate(&self) -> Self {
        Self { agent: agent(self.connect_timeout), ..self.clone() }
    }

    /// Close the connections of this client and its clones, so that the server aborts their in-flight requests. Later
    /// requests fail.
    pub(super) fn abort(&self) {
        self.agent.clone().shutdown();
    }

    /// Send a GET request and return the response body: null if it is empty, a string if it is not JSON.
    pub(super) fn get(&self, path: &str, timeout: Duration) -> Result<Value, ServerFailure> {
        let mut request = self.agent.get(self.endpoint(path)).config().timeout_global(Some(timeout)).build();
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        self.read(path, request.call(), timeout)
    }

    /// Send a POST request with a JSON body and return the response body as [`Self::get`] does.
    pub(super) fn post(&self, path: &str, body: &Value, timeout: Duration) -> Result<Value, ServerFailure> {
        let mut request = self.agent.post(self.endpoint(path)).config().timeout_global(Some(timeout)).build();
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let bytes = body.to_string().into_bytes();
        self.read(path, request.header("Content-Type", "application/json").send(&bytes[..]), timeout)
    }

    /// Send a POST request as [`Self::post`] does, but fail as soon as an early end is requested.
    pub(super) fn post_until(
        &self,
        stop: Stop,
        path: &'static str,
        body: Value,
        timeout: Duration,
    ) -> crate::error::Result<Result<Value, ServerFailure>> {
        let client = self.clone();
        until_stopped(stop, move || client.post(path, &body, timeout))
    }

    fn endpoint(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn read(
        &self,
        path: &str,
        response: Result<Response<Body>, Error>,
        timeout: Duration,
    ) -> Result<Value, ServerFailure> {
        let failed = |error: Error| self.failure(path, &error, timeout);
        let mut response = response.map_err(failed)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(MAX_RESPONSE_BYTES).read_to_vec().map_err(failed)?;
        let message = || {
            let quote: String = String::from_utf8_lossy(&body).trim().chars().take(MAX_QUOTE_CHARS).collect();
            format!(
                "{}{path} responds with status {status}{}{quote}",
                self.url,
                if quote.is_empty() { "" } else { ": " }
            )
        };
        match status {
            200..=299 if body.is_empty() => Ok(Value::Null),
            200..=299 => Ok(serde_json::from_slice(&body)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()))),
            404 => Err(ServerFailure::NotFound(message())),
            401 | 403 => Err(ServerFailure::Permanent(format!(
                "{}; set rollout.api_key_env to the name of the environment variable with the server's API key",
                message()
            ))),
            429 | 503 => Err(ServerFailure::Unavailable(message())),
            408 | 425 | 500..=599 => Err(ServerFailure::Transient(message())),
            _ => Err(ServerFailure::Permanent(message())),
        }
    }

    fn failure(&self, path: &str, error: &Error, timeout: Duration) -> ServerFailure {
        let (endpoint, limit) = (self.endpoint(path), timeout.as_secs_f64());
        match error {
            Error::Timeout(Timeout::Connect | Timeout::Resolve) | Error::HostNotFound | Error::ConnectionFailed => {
                ServerFailure::Unavailable(format!("{endpoint}: {error}"))
            }
            Error::Io(io) if is_unreachable(io.kind()) => ServerFailure::Unavailable(format!("{endpoint}: {error}")),
            Error::Timeout(_) => ServerFailure::Transient(format!("{endpoint} did not answer within {limit} s")),
            Error::BadUri(_) | Error::Http(_) | Error::Tls(_) | Error::BodyExceedsLimit(_) => {
                ServerFailure::Permanent(format!("{endpoint}: {error}"))
            }
            error => ServerFailure::Transient(format!("{endpoint}: {error}")),
        }
    }
}

fn agent(connect_timeout: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(connect_timeout))
        .max_idle_age(MAX_IDLE)
        .max_idle_connections(256)
        .max_idle_connections_per_host(256)
        .proxy(None)
        .build()
        .new_agent()
}

fn is_unreachable(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::NetworkDown
            | ErrorKind::AddrNotAvailable
    )
}
