//! The section `rollout` of the settings: the engine that samples completions.

use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config;
use crate::model::Precision;
use crate::objective::Correction;

/// The engine that samples completions: `own` where none is named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "snake_case", deny_unknown_fields, remote = "Self")]
pub enum RolloutConfig {
    /// Built-in engine in the training process. It samples from the trained weights, without servers or weight
    /// transfer.
    Own(OwnConfig),
    /// vLLM servers, version 0.10.2 or later.
    Vllm(ServedConfig),
    /// SGLang servers, version 0.4.1 or later.
    Sglang(ServedConfig),
}

impl Serialize for RolloutConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for RolloutConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut table = toml::Table::deserialize(deserializer)?;
        table.entry("engine").or_insert_with(|| "own".into());
        Self::deserialize(table).map_err(|error| D::Error::custom(error.message()))
    }
}

/// How the engine of this process computes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OwnConfig {
    /// Precision of matrix products during sampling; default `model.dtype`. bf16 halves the data read per token; on the
    /// cpu device it rounds only weights, keys and values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Precision>,
    /// Importance-sampling correction for the difference between the model in this precision and the trained model;
    /// keys as for engine = "vllm".
    #[serde(skip_serializing_if = "is_default")]
    pub correction: Correction,
}

/// Defaults are not written, so that the recorded settings of older runs and studies stay equal.
fn is_default(correction: &Correction) -> bool {
    *correction == Correction::default()
}

impl OwnConfig {
    fn mistakes(&self) -> Vec<String> {
        let mut mistakes: Vec<String> =
            self.correction.mistakes().into_iter().map(|mistake| format!("correction.{mistake}")).collect();
        if self.dtype.is_none() && !is_default(&self.correction) {
            let what = "correction has no effect unless dtype is set to a format other than model.dtype: remove it";
            mistakes.push(what.to_string());
        }
        mistakes
    }
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self::Own(OwnConfig::default())
    }
}

/// How servers are reached, and how they get the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServedConfig {
    /// Base URL of each server, such as `http://10.0.0.5:8000`. Each group of completions is sent to the least busy
    /// server.
    pub urls: Vec<String>,
    /// Name under which the servers serve the model; empty for the first model that they list.
    pub model: String,
    /// Name of the environment variable that contains the API key of the servers; empty for none.
    pub api_key_env: String,
    /// Maximum number of in-flight requests (groups) per server.
    pub concurrency: usize,
    /// Transfer of new weights to the servers: auto (lora if adapters are trained, else disk), lora (adapters, each
    /// version under its own name), disk (all weights, which the servers read from a directory), command (a user
    /// program) or none (for evaluation).
    pub sync: Sync,
    /// Program and arguments for sync = "command". It receives one line of JSON, `{"version", "path", "urls"}`, on
    /// standard input, and must exit with status 0 once the servers have the weights.
    pub command: Vec<String>,
    /// Directory to which weights for the servers are written; empty for `sync` in the directory of the run.
    pub sync_dir: PathBuf,
    /// Path of `sync_dir` on the servers, if it differs; empty for the same path.
    pub server_dir: PathBuf,
    /// Maximum number of steps by which the sampling weights lag behind the trained weights, 0 or 1. With 1 the
    /// completions of the next step are generated while the model is trained on those of the current step.
    pub max_staleness: usize,
    /// Log-probabilities that the servers return: auto (detected by comparison with the trained model), processed (of
    /// the distribution that tokens are sampled from; vLLM: `--logprobs-mode processed_logprobs`; SGLang's default) or
    /// raw (at temperature 1; vLLM's default).
    pub logprobs: LogProbs,
    /// Maximum KL divergence of a server's model from the trained model right after a weight transfer, in nats per
    /// token (mean of r - 1 - ln r, with r the ratio of the two probabilities); the run stops with an error above it.
    /// About 1e-3 is usual for servers in bf16.
    pub max_mean_kl: f64,
    /// Importance-sampling correction for the difference between the servers' model and the trained model. mode is
    /// none, token_truncate, token_mask, sequence_truncate, sequence_mask or geometric_mask; min and max bound the
    /// ratio; old_log_probs is trainer or engine.
    pub correction: Correction,
    /// Timeout for connecting to a server, in seconds.
    pub connect_timeout_s: f64,
    /// Timeout for the completions of a group, in seconds.
    pub request_timeout_s: f64,
    /// Timeout for a server to load new weights, in seconds.
    pub sync_timeout_s: f64,
    /// Timeout for the servers to respond at startup, in seconds.
    pub start_timeout_s: f64,
    /// Maximum number of retries per group after a transient failure. Another server is tried at once; without one, the
    /// delay before the retry is 1 second, doubled with each further one up to 60 seconds.
    pub retries: usize,
}

impl Default for ServedConfig {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            model: String::new(),
            api_key_env: String::new(),
            concurrency: 64,
            sync: Sync::Auto,
            command: Vec::new(),
            sync_dir: PathBuf::new(),
            server_dir: PathBuf::new(),
            max_staleness: 0,
            logprobs: LogProbs::Auto,
            max_mean_kl: 0.01,
            correction: Correction::default(),
            connect_timeout_s: 10.0,
            request_timeout_s: 600.0,
            sync_timeout_s: 600.0,
            start_timeout_s: 240.0,
            retries: 5,
        }
    }
}

/// How servers get new weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sync {
    /// `lora` where adapters are trained, else `disk`.
    #[default]
    Auto,
    /// Adapters, each version under a name of its own.
    Lora,
    /// All weights, which the servers read from a folder.
    Disk,
    /// Transfer by a user program.
    Command,
    /// No transfer: for evaluation.
    None,
}

/// The temperature of the log-probabilities that a server gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogProbs {
    /// Detected by comparison with the trained model.
    #[default]
    Auto,
    /// Of the distribution that tokens are sampled from (vLLM: `--logprobs-mode processed_logprobs`; SGLang's default).
    Processed,
    /// Of the model at temperature 1 (vLLM's default).
    Raw,
}

impl RolloutConfig {
    /// Return the kind and the settings of the servers, or `None` for the engine of this process.
    pub fn served(&self) -> Option<(ServerKind, &ServedConfig)> {
        match self {
            Self::Own(_) => None,
            Self::Vllm(served) => Some((ServerKind::Vllm, served)),
            Self::Sglang(served) => Some((ServerKind::Sglang, served)),
        }
    }

    /// Return the settings of the engine of this process, or `None` for servers.
    pub fn own(&self) -> Option<&OwnConfig> {
        if let Self::Own(own) = self { Some(own) } else { None }
    }

    /// Whether completions are sampled from the trained model in its own number format.
    pub fn is_exact(&self) -> bool {
        matches!(self, Self::Own(OwnConfig { dtype: None, .. }))
    }

    /// Return the correction for the mismatch between the sampling model and the trained model.
    pub fn correction(&self) -> Correction {
        match self {
            Self::Own(_) if self.is_exact() => Correction::NONE,
            Self::Own(own) => own.correction,
            Self::Vllm(served) | Self::Sglang(served) => served.correction,
        }
    }

    /// Return an error message for each setting that cannot work.
    pub fn mistakes(&self) -> Vec<String> {
        let found = match self {
            Self::Own(own) => own.mistakes(),
            Self::Vllm(served) | Self::Sglang(served) => served.mistakes(),
        };
        found.into_iter().map(|mistake| format!("rollout.{mistake}")).collect()
    }
}

/// A kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerKind {
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
}

impl ServerKind {
    /// The name of the engine in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
        }
    }
}

impl ServedConfig {
    /// Return the sync method, where `adapters` says whether adapters are trained instead of all weights.
    pub fn sync_for(&self, adapters: bool) -> Sync {
        match self.sync {
            Sync::Auto if adapters => Sync::Lora,
            Sync::Auto => Sync::Disk,
            sync => sync,
        }
    }

    fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if self.urls.is_empty() {
            mistakes.push("urls is empty: list the servers, such as urls = [\"http://127.0.0.1:8000\"]".to_string());
        }
        for (index, url) in self.urls.iter().enumerate() {
            if !["http://", "https://"].iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme)) {
                mistakes
                    .push(format!("urls.{index} = {url:?} must begin with http:// or https://, followed by a host"));
            }
            if self.urls[..index].contains(url) {
                mistakes.push(format!("urls.{index} = {url:?} is listed twice: remove one"));
            }
        }
        mistakes.extend(config::count("concurrency", self.concurrency, 1, 4096));
        mistakes.extend(self.correction.mistakes().into_iter().map(|mistake| format!("correction.{mistake}")));
        mistakes.extend(config::count("retries", self.retries, 0, 100));
        if self.max_staleness > 1 {
            mistakes.push(format!("max_staleness = {} must be 0 or 1", self.max_staleness));
        }
        let folder = matches!(self.sync, Sync::None | Sync::Command);
        for (key, given, needless) in [
            ("command", !self.command.is_empty(), self.sync != Sync::Command),
            ("sync_dir", !self.sync_dir.as_os_str().is_empty(), self.sync == Sync::None),
            ("server_dir", !self.server_dir.as_os_str().is_empty(), folder),
        ] {
            if given && needless {
                mistakes.push(format!("{key} has no effect with this sync: remove it"));
            }
        }
        if self.sync == Sync::Command && self.command.first().is_none_or(String::is_empty) {
            mistakes
                .push("command is empty: give the program that sync = \"command\" runs, and its arguments".to_string());
        }
        if !(self.max_mean_kl > 0.0 && self.max_mean_kl.is_finite()) {
            mistakes.push(format!("max_mean_kl = {} must be positive", self.max_mean_kl));
        }
        for (key, seconds) in [
            ("connect_timeout_s", self.connect_timeout_s),
            ("request_timeout_s", self.request_timeout_s),
            ("sync_timeout_s", self.sync_timeout_s),
            ("start_timeout_s", self.start_timeout_s),
        ] {
            if !(seconds > 0.0 && seconds <= 1e6) {
                mistakes.push(format!("{key} = {seconds} must be positive and at most 1000000"));
            }
        }
        mistakes
    }
}
