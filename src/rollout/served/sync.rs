//! New weights for the servers: adapters under a name for each version, all weights from a folder, or a program of the user.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::Failure;
use super::protocol::Weights;
use super::server::{GLANCE, Server, has_other, pause};
use crate::error::{Error, Result};
use crate::files;
use crate::rollout::settings::{Engine, ServedConfig, Sync};
use crate::stop::Stop;

/// Tries to load an adapter whose folder a server does not see yet: network file systems take their time.
const LOOKS: usize = 3;

/// A version that the servers have, or had.
#[derive(Debug, Clone)]
struct Published {
    weights: Weights,
    /// Its folder, unless that is removed.
    folder: Option<PathBuf>,
    /// Whether servers still hold it.
    held: bool,
}

/// Brings weights to servers.
#[derive(Debug)]
pub(super) struct Publisher {
    engine: Engine,
    how: Sync,
    config: ServedConfig,
    folder: PathBuf,
    /// Begins the name of every version; no other start of a run has it.
    prefix: String,
    /// Name of the served model.
    model: String,
    published: Vec<Published>,
}

impl Publisher {
    pub(super) fn new(
        engine: Engine,
        how: Sync,
        config: &ServedConfig,
        (folder, prefix, model): (PathBuf, String, String),
    ) -> Self {
        let folder = if config.sync_dir.as_os_str().is_empty() { folder } else { config.sync_dir.clone() };
        Self { engine, how, config: config.clone(), folder, prefix, model, published: Vec::new() }
    }

    pub(super) fn how(&self) -> Sync {
        self.how
    }

    /// The weights that the servers were started with.
    pub(super) fn base(&self) -> Weights {
        Weights { model: self.model.clone(), adapter: false, salt: format!("{}-base", self.prefix) }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.config.sync_timeout_s)
    }

    /// Writes a version by `write`, which is given the folder, and brings it to every server that is good. A server that
    /// does not take it is left out while there is another.
    ///
    /// # Errors
    /// What `write` says, and [`Error::Engine`] when no server takes it.
    pub(super) fn publish(
        &mut self,
        version: u64,
        servers: &[Server],
        write: &dyn Fn(&Path) -> Result<()>,
        stop: Stop,
    ) -> Result<Weights> {
        let name = format!("{}-v{version}", self.prefix);
        files::create_dir(&self.folder)?;
        // Servers have another working directory.
        let folder = self.folder.canonicalize().map_err(Error::io(&self.folder))?.join(&name);
        write(&folder)?;
        let adapter = self.how == Sync::Lora;
        let weights =
            Weights { model: if adapter { name.clone() } else { self.model.clone() }, adapter, salt: name.clone() };
        self.published.push(Published { weights: weights.clone(), folder: Some(folder), held: true });
        if self.how == Sync::Command {
            self.run(version, stop)?;
            return Ok(weights);
        }
        for (index, server) in servers.iter().enumerate().filter(|(_, server)| server.is_good()) {
            if let Err(why) = self.bring(server, stop)? {
                // Nothing else is known to hold these weights: the last server's failure is the run's.
                if !has_other(servers, index) {
                    return Err(Error::Engine(why));
                }
            }
        }
        Ok(weights)
    }

    /// Brings the newest version to a server; the inner error says why it does not take it, and the server is left out.
    pub(super) fn bring(&self, server: &Server, stop: Stop) -> Result<std::result::Result<(), String>> {
        let Some(newest) = self.published.last() else { return Ok(Ok(())) };
        let path = self.seen_by_servers(&newest.weights.salt)?;
        let outcome = match self.how {
            Sync::Lora => self.load_adapter(server, &newest.weights.model, &path, stop)?,
            Sync::Disk => self.reload(server, &newest.weights.salt, &path),
            Sync::Command | Sync::None | Sync::Auto => Ok(()),
        };
        Ok(outcome.map_err(|failure| {
            let why = failure.words().to_string();
            match (self.how, &failure) {
                // The engine may have dropped half of its weights.
                (Sync::Disk, _) => server.give_up(&why),
                _ => server.lose(&why),
            }
            match self.how {
                Sync::Disk => format!("{why}\nA server whose weights could not be read must be started again."),
                _ => why,
            }
        }))
    }

    /// The folder of a version as servers see it.
    fn seen_by_servers(&self, name: &str) -> Result<String> {
        let dir = &self.config.server_dir;
        let dir = if dir.as_os_str().is_empty() {
            self.folder.canonicalize().map_err(Error::io(&self.folder))?
        } else {
            dir.clone()
        };
        Ok(dir.join(name).display().to_string())
    }

    fn load_adapter(
        &self,
        server: &Server,
        name: &str,
        path: &str,
        stop: Stop,
    ) -> Result<std::result::Result<(), Failure>> {
        let mut body = json!({ "lora_name": name, "lora_path": path });
        let place = match self.engine {
            Engine::Vllm => "/v1/load_lora_adapter",
            Engine::Sglang => {
                body["pinned"] = json!(false);
                "/load_lora_adapter"
            }
        };
        let (mut looks, mut tried) = (1, 0);
        loop {
            match server.client.post(place, &body, self.timeout()) {
                Ok(answer) => return Ok(success(&answer)),
                Err(Failure::Missing(_)) if looks < LOOKS => {
                    looks += 1;
                    pause(Duration::from_secs(1), stop)?;
                }
                // It answered late, or was left out meanwhile: no other version of any run has the name.
                Err(Failure::Lasting(why)) if why.contains("already") => return Ok(Ok(())),
                Err(Failure::Passing(_)) if tried < self.config.retries => {
                    pause(Duration::from_secs(1 << tried.min(6)), stop)?;
                    tried += 1;
                }
                Err(failure) => return Ok(Err(failure)),
            }
        }
    }

    fn reload(&self, server: &Server, name: &str, path: &str) -> std::result::Result<(), Failure> {
        let timeout = self.timeout();
        match self.engine {
            Engine::Vllm => {
                let body = json!({
                    "method": "reload_weights",
                    "kwargs": { "weights_path": path },
                    "timeout": self.config.sync_timeout_s,
                });
                server.client.post("/collective_rpc", &body, timeout)?;
                // A label, which older servers do not have. That the weights are there is for the check to say.
                let _ = server.client.post("/update_weight_version", &json!({ "new_version": name }), timeout);
                Ok(())
            }
            Engine::Sglang => {
                let body = json!({
                    "model_path": path,
                    "weight_version": name,
                    "flush_cache": true,
                    "abort_all_requests": false,
                });
                success(&server.client.post("/update_weights_from_disk", &body, timeout)?)
            }
        }
    }

    /// Makes a server forget what its prefix cache holds.
    pub(super) fn reset_cache(&self, server: &Server) {
        let (place, body) = match self.engine {
            Engine::Vllm => ("/reset_prefix_cache", json!({})),
            Engine::Sglang => ("/flush_cache", json!({})),
        };
        // Where there is no such endpoint, the check that follows says what is wrong.
        let _ = server.client.post(place, &body, self.timeout());
    }

    /// Unloads what no request needs any more, and removes its folder one version later: a server may read an adapter
    /// again while it is loaded.
    pub(super) fn forget(&mut self, servers: &[Server]) -> Result<()> {
        let keep = 1 + self.config.max_staleness;
        let count = self.published.len();
        let (engine, timeout, how) = (self.engine, self.timeout(), self.how);
        for (age, version) in self.published.iter_mut().rev().enumerate() {
            if age > keep
                && let Some(folder) = version.folder.take()
            {
                files::remove_dir(&folder)?;
            }
            if age >= keep && std::mem::take(&mut version.held) && how == Sync::Lora {
                servers.iter().filter(|s| s.is_good()).for_each(|s| unload(engine, s, &version.weights.model, timeout));
            }
        }
        self.published.drain(..count.saturating_sub(keep + 1));
        Ok(())
    }

    /// Unloads the adapters of this run and removes what was written.
    pub(super) fn clear(&mut self, servers: &[Server]) {
        let timeout = Duration::from_secs(2).min(self.timeout());
        for version in self.published.drain(..) {
            if version.held && self.how == Sync::Lora {
                let good = servers.iter().filter(|server| server.is_good());
                good.for_each(|server| unload(self.engine, server, &version.weights.model, timeout));
            }
            // What stays is found by the next start of the run.
            let _ = version.folder.map(|folder| files::remove_dir(&folder));
        }
    }

    /// Unloads adapters that an earlier start of the run left, and removes its folders.
    pub(super) fn clean(&self, servers: &[Server], adapters: &[Vec<String>], run: &str) -> Result<()> {
        for (server, names) in servers.iter().zip(adapters) {
            let left = names.iter().filter(|name| name.starts_with(run) && !name.starts_with(&self.prefix));
            left.for_each(|name| unload(self.engine, server, name, self.timeout()));
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

    fn run(&self, version: u64, stop: Stop) -> Result<()> {
        let Some(newest) = self.published.last() else { return Ok(()) };
        let (program, arguments) = self.config.command.split_first().expect("a command is validated to name a program");
        let wrong = |why: String| Error::Engine(format!("rollout.command {:?}: {why}", self.config.command));
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| wrong(format!("cannot be started: {error}")))?;
        let path = self.seen_by_servers(&newest.weights.salt)?;
        let line = json!({ "version": version, "path": path, "urls": self.config.urls }).to_string() + "\n";
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read it says by its end whether it did its work.
            let _ = stdin.write_all(line.as_bytes());
        }
        let status = end_of(&mut child, self.timeout(), stop)?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(wrong(format!("ended with {status} for version {version}"))),
            None => {
                Err(wrong(format!("has not ended within rollout.sync_timeout_s = {} s", self.config.sync_timeout_s)))
            }
        }
    }
}

/// How a child ends; none when it takes too long, and is killed.
fn end_of(child: &mut Child, timeout: Duration, stop: Stop) -> Result<Option<std::process::ExitStatus>> {
    let end = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().map_err(Error::io("rollout.command"))? {
            return Ok(Some(status));
        }
        if stop.requested() || Instant::now() > end {
            // It may have ended just now.
            let _ = child.kill();
            let _ = child.wait();
            stop.check()?;
            return Ok(None);
        }
        std::thread::sleep(GLANCE);
    }
}

fn unload(engine: Engine, server: &Server, name: &str, timeout: Duration) {
    let place = match engine {
        Engine::Vllm => "/v1/unload_lora_adapter",
        Engine::Sglang => "/unload_lora_adapter",
    };
    // One that stays takes a little memory, and the next start of the run unloads it.
    let _ = server.client.post(place, &json!({ "lora_name": name }), timeout);
}

/// SGLang says in the body whether it worked.
fn success(answer: &Value) -> std::result::Result<(), Failure> {
    if answer["success"] == json!(false) { Err(Failure::Lasting(answer.to_string())) } else { Ok(()) }
}
