//! Weight sync: adapters under a name for each version, all weights from a folder, or a command of the user.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Write;
use super::http::ServerFailure;
use super::protocol::ServedWeights;
use super::server::{POLL_INTERVAL, Server, in_parallel, pause, unavailable_summary};
use crate::error::{Error, Result};
use crate::files;
use crate::rollout::settings::{ServedConfig, ServerKind, Sync};
use crate::stop::Stop;

/// Maximum number of attempts to load an adapter whose folder a server does not see yet (network file systems).
const MAX_NOT_FOUND_TRIES: usize = 3;

/// Success, or the failure of the server.
type SyncResult = std::result::Result<(), ServerFailure>;

/// A version of the weights that was written for the servers.
#[derive(Debug, Clone)]
struct Published {
    weights: ServedWeights,
    /// The folder of the weights; `None` once it is removed.
    folder: Option<PathBuf>,
    /// Whether the servers still have it loaded.
    loaded: bool,
}

/// Writes new versions of the weights and transfers them to the servers.
#[derive(Debug)]
pub(super) struct Publisher {
    engine: ServerKind,
    pub(super) method: Sync,
    config: ServedConfig,
    folder: PathBuf,
    /// Prefix of the name of each version, unique to this start of the run.
    prefix: String,
    /// Name of the served model.
    model: String,
    /// From the oldest version to the newest.
    published: Vec<Published>,
}

impl Publisher {
    /// Create a publisher that syncs by `method`. `folder` is used if the settings name no `sync_dir`.
    pub(super) fn new(
        engine: ServerKind,
        method: Sync,
        config: &ServedConfig,
        (folder, prefix, model): (PathBuf, String, String),
    ) -> Self {
        let folder = if config.sync_dir.as_os_str().is_empty() { folder } else { config.sync_dir.clone() };
        Self { engine, method, config: config.clone(), folder, prefix, model, published: Vec::new() }
    }

    /// The weights that the servers were started with.
    pub(super) fn base(&self) -> ServedWeights {
        ServedWeights { model: self.model.clone(), adapter: false, salt: format!("{}-base", self.prefix) }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.config.sync_timeout_s)
    }

    /// Write a version with `write`, which gets the folder, and transfer it to all available servers at the same time.
    /// Servers that fail to load it are excluded.
    ///
    /// # Errors
    /// Errors of `write`, and [`Error::Engine`] when no server loads the version.
    pub(super) fn publish(
        &mut self,
        version: u64,
        servers: &[Server],
        write: &Write,
        stop: Stop,
    ) -> Result<ServedWeights> {
        let name = format!("{}-v{version}", self.prefix);
        files::create_dir(&self.folder)?;
        // Absolute, since the servers have another working directory.
        let folder = self.folder.canonicalize().map_err(Error::io(&self.folder))?.join(&name);
        write(&folder)?;
        let adapter = self.method == Sync::Lora;
        let model = if adapter { name.clone() } else { self.model.clone() };
        let weights = ServedWeights { model, adapter, salt: name };
        self.published.push(Published { weights: weights.clone(), folder: Some(folder), loaded: true });
        if self.method == Sync::Command {
            self.run_command(version, stop)?;
            return Ok(weights);
        }
        let available = servers.iter().filter(|server| server.is_available());
        for sent in in_parallel(available, |server| self.send_newest(server, stop)) {
            sent?;
        }
        if servers.iter().any(Server::is_available) {
            Ok(weights)
        } else {
            Err(Error::Engine(unavailable_summary(servers)))
        }
    }

    /// Transfer the newest version to a server, with retries, and return whether the server took it. Otherwise it is
    /// excluded: until it is restarted if it may have replaced some of its weights only, else until the next step.
    pub(super) fn send_newest(&self, server: &Server, stop: Stop) -> Result<bool> {
        let Some(Published { weights, .. }) = self.published.last() else { return Ok(true) };
        let path = self.server_path(&weights.salt)?;
        let mut tried = 0;
        let failure = loop {
            let outcome = match self.method {
                Sync::Lora => self.load_adapter(server, &weights.model, &path, stop)?,
                Sync::Disk => self.reload(server, &weights.salt, &path, stop)?,
                Sync::Command | Sync::None | Sync::Auto => Ok(()),
            };
            let Err(failure) = outcome else { return Ok(true) };
            // An update of all weights that may have begun is not repeated: it may end the server.
            let may_pass = failure.may_pass() && (self.method == Sync::Lora || !has_begun(&failure));
            if !may_pass || tried == self.config.retries {
                break failure;
            }
            pause(Duration::from_secs(1 << tried.min(6)), stop)?;
            tried += 1;
        };
        if self.method == Sync::Disk && has_begun(&failure) {
            server.mark_broken(failure.message());
        } else {
            server.suspend(failure.message());
        }
        Ok(false)
    }

    /// Return the folder of a version as a path on the servers.
    fn server_path(&self, name: &str) -> Result<String> {
        let mut dir = self.config.server_dir.clone();
        if dir.as_os_str().is_empty() {
            dir = self.folder.canonicalize().map_err(Error::io(&self.folder))?;
        }
        Ok(dir.join(name).display().to_string())
    }

    fn load_adapter(&self, server: &Server, name: &str, path: &str, stop: Stop) -> Result<SyncResult> {
        let mut body = json!({ "lora_name": name, "lora_path": path });
        let endpoint = match self.engine {
            ServerKind::Vllm => "/v1/load_lora_adapter",
            ServerKind::Sglang => {
                body["pinned"] = json!(false);
                "/load_lora_adapter"
            }
        };
        let (mut tried, mut unloaded) = (1, false);
        loop {
            let answer = server.client.post_until(stop, endpoint, body.clone(), self.timeout())?;
            match answer.and_then(|answer| success(server, &answer)) {
                Err(ServerFailure::NotFound(_)) if tried < MAX_NOT_FOUND_TRIES => {
                    tried += 1;
                    pause(Duration::from_secs(1), stop)?;
                }
                // The server refuses a name that it has already loaded, in an attempt whose response was lost. It says so in
                // free text, so the reason of the refusal is found out by unloading the name.
                Err(ServerFailure::Permanent(_))
                    if !unloaded && unload(self.engine, server, name, self.timeout(), stop)? =>
                {
                    unloaded = true;
                }
                outcome => return Ok(outcome),
            }
        }
    }

    fn reload(&self, server: &Server, name: &str, path: &str, stop: Stop) -> Result<SyncResult> {
        let post = |endpoint, body| server.client.post_until(stop, endpoint, body, self.timeout());
        match self.engine {
            ServerKind::Vllm => {
                let kwargs = json!({ "weights_path": path });
                let body =
                    json!({ "method": "reload_weights", "kwargs": kwargs, "timeout": self.config.sync_timeout_s });
                let outcome = post("/collective_rpc", body)?.map(drop);
                if outcome.is_ok() {
                    // A label only, which older servers do not support: the check verifies the weights themselves.
                    let _ = post("/update_weight_version", json!({ "new_version": name }))?;
                }
                Ok(outcome)
            }
            ServerKind::Sglang => {
                let body = json!({ "model_path": path, "weight_version": name,
                                   "flush_cache": true, "abort_all_requests": false });
                Ok(post("/update_weights_from_disk", body)?.and_then(|answer| success(server, &answer)))
            }
        }
    }

    /// Empties the prefix cache of a server.
    pub(super) fn reset_cache(&self, server: &Server, stop: Stop) -> Result<()> {
        let endpoint = match self.engine {
            ServerKind::Vllm => "/reset_prefix_cache",
            ServerKind::Sglang => "/flush_cache",
        };
        // Without the endpoint, the check that follows reports the mismatch.
        let _ = server.client.post_until(stop, endpoint, json!({}), self.timeout())?;
        Ok(())
    }

    /// Unloads versions that no request uses any more. Their folders are removed one version later, because a server
    /// may read the files of a loaded adapter again.
    pub(super) fn retire_old(&mut self, servers: &[Server], stop: Stop) -> Result<()> {
        let keep = 1 + self.config.max_staleness;
        let count = self.published.len();
        let (engine, timeout, method) = (self.engine, self.timeout(), self.method);
        for (age, version) in self.published.iter_mut().rev().enumerate() {
            if age > keep
                && let Some(folder) = version.folder.take()
            {
                files::remove_dir(&folder)?;
            }
            if age >= keep && version.loaded && method == Sync::Lora {
                unload_from_all(engine, servers, &version.weights.model, timeout, stop)?;
                version.loaded = false;
            }
        }
        self.published.drain(..count.saturating_sub(keep + 1));
        Ok(())
    }

    /// Unload all adapters of this start and remove the folders.
    pub(super) fn clear(&mut self, servers: &[Server]) {
        let timeout = Duration::from_secs(2).min(self.timeout());
        for version in self.published.drain(..) {
            if version.loaded && self.method == Sync::Lora {
                // An adapter that stays loaded takes little memory, and the next start of the run unloads it.
                let _ = unload_from_all(self.engine, servers, &version.weights.model, timeout, Stop::NEVER);
            }
            // The next start of the run removes a folder that is left over.
            let _ = version.folder.map(|folder| files::remove_dir(&folder));
        }
    }

    /// Unloads adapters that earlier starts of the run left, and removes their folders. Their names start with `run`.
    pub(super) fn remove_leftovers(
        &self,
        servers: &[Server],
        (run, adapters): &(String, Vec<Vec<String>>),
        stop: Stop,
    ) -> Result<()> {
        for (server, names) in servers.iter().zip(adapters) {
            for name in names.iter().filter(|name| name.starts_with(run) && !name.starts_with(&self.prefix)) {
                unload(self.engine, server, name, self.timeout(), stop)?;
            }
        }
        if self.folder.is_dir() {
            for (name, path) in files::entries(&self.folder)? {
                if name.starts_with(run) && path.is_dir() {
                    files::remove_dir(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Run the user's command for the newest version.
    fn run_command(&self, version: u64, stop: Stop) -> Result<()> {
        let Some(newest) = self.published.last() else { return Ok(()) };
        let (program, arguments) = self.config.command.split_first().expect("a command is validated to name a program");
        let wrong = |why: String| Error::Engine(format!("rollout.command {:?}: {why}", self.config.command));
        let path = self.server_path(&newest.weights.salt)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| wrong(format!("cannot be started: {error}")))?;
        let line = json!({ "version": version, "path": path, "urls": self.config.urls }).to_string() + "\n";
        if let Some(mut stdin) = child.stdin.take() {
            // A program need not read its input. Its exit status says whether it succeeded.
            let _ = stdin.write_all(line.as_bytes());
        }
        let limit = self.config.sync_timeout_s;
        match wait_for_exit(&mut child, self.timeout(), stop)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(wrong(format!("ended with {status} for version {version}"))),
            None => Err(wrong(format!("did not exit within rollout.sync_timeout_s = {limit} s"))),
        }
    }
}

/// Wait for a child process. Kill it and return `None` after `timeout`; also kills it on a request to end early.
fn wait_for_exit(child: &mut Child, timeout: Duration, stop: Stop) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().map_err(Error::io("rollout.command"))? {
            return Ok(Some(status));
        }
        if stop.requested() || Instant::now() > end {
            // Fails if the child has ended in the meantime.
            let _ = child.kill();
            let _ = child.wait();
            stop.check()?;
            return Ok(None);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn unload_from_all(engine: ServerKind, servers: &[Server], name: &str, timeout: Duration, stop: Stop) -> Result<()> {
    let available = servers.iter().filter(|server| server.is_available());
    for unloaded in in_parallel(available, |server| unload(engine, server, name, timeout, stop)) {
        unloaded?;
    }
    Ok(())
}

/// Unload an adapter, and return whether the server had it.
fn unload(engine: ServerKind, server: &Server, name: &str, timeout: Duration, stop: Stop) -> Result<bool> {
    let endpoint = match engine {
        ServerKind::Vllm => "/v1/unload_lora_adapter",
        ServerKind::Sglang => "/unload_lora_adapter",
    };
    let answer = server.client.post_until(stop, endpoint, json!({ "lora_name": name }), timeout)?;
    Ok(answer.and_then(|answer| success(server, &answer)).is_ok())
}

/// Whether a failed request may have begun to take effect.
fn has_begun(failure: &ServerFailure) -> bool {
    matches!(failure, ServerFailure::Transient(_))
}

/// Check the `success` field by which SGLang reports in the body whether a request succeeded.
fn success(server: &Server, answer: &Value) -> SyncResult {
    if answer["success"] != json!(false) {
        return Ok(());
    }
    Err(ServerFailure::Permanent(format!("{}: {answer}", server.client.url)))
}
