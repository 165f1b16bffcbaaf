//! Fake server that speaks the protocol of vLLM or SGLang and samples with the built-in engine, so that its completions
//! equal those of `engine = "own"`. Faults of real servers can be injected.
//!
//! Weights are read from the given folders, so a server that skips an update ([`Fault::Idle`]) serves stale weights.

mod protocol;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tempering::model::{self, CausalLm, ModelConfig};
use tempering::noise::mix;

use self::protocol::error;
use crate::support::device;

/// Kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Vllm,
    Sglang,
}

/// Start options of a server.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Name of the model.
    pub(crate) name: String,
    /// Path that it reports to have loaded; empty for the right one.
    pub(crate) root: String,
    pub(crate) version: String,
    pub(crate) max_model_len: usize,
    pub(crate) dtype: String,
    pub(crate) quantization: Option<String>,
    pub(crate) data_parallel_size: usize,
    /// Whether log-probabilities are those at temperature 1.
    pub(crate) raw: bool,
    /// Whether it was started with `--enable-lora`.
    pub(crate) lora: bool,
    pub(crate) max_lora_rank: usize,
    /// Whether `VLLM_ALLOW_RUNTIME_LORA_UPDATING` is set.
    pub(crate) loads_adapters: bool,
    /// Whether `VLLM_SERVER_DEV_MODE` is set.
    pub(crate) managed: bool,
    pub(crate) api_key: Option<String>,
    /// Whether cached prompts with the same salt get the old weights. SGLang clears its cache on updates.
    pub(crate) prefix_cache: bool,
    /// Whether it heeds the salts of requests.
    pub(crate) salted: bool,
    /// Response time of every group.
    pub(crate) delay: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            name: "policy".to_string(),
            root: String::new(),
            version: "0.32.0".to_string(),
            max_model_len: 1024,
            dtype: "float32".to_string(),
            quantization: None,
            data_parallel_size: 1,
            raw: false,
            lora: true,
            max_lora_rank: 16,
            loads_adapters: true,
            managed: true,
            api_key: None,
            prefix_cache: false,
            salted: true,
            delay: Duration::ZERO,
        }
    }
}

/// Fault of a request.
#[derive(Clone)]
pub(crate) enum Fault {
    /// No fault.
    None,
    /// Responds with this status and a message that has the request. After a 500, vLLM's weights are incomplete.
    Status(u16),
    /// Does not respond until the client gives up.
    Hang,
    /// Closes the connection.
    Reset,
    /// Does what is asked for and closes the connection.
    Lost,
    /// Ends the server with all its connections.
    Die,
    /// Reports success without doing anything.
    Idle,
    /// Changes the response.
    Change(Arc<dyn Fn(&mut Value) + Send + Sync>),
}

impl Fault {
    pub(crate) fn change(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::Change(Arc::new(change))
    }

    /// Return a fault that changes each completion of the response.
    pub(crate) fn choices(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::change(move |answer| match answer {
            Value::Array(list) => list.iter_mut().for_each(&change),
            answer if answer.get("choices").is_some() => {
                answer["choices"].as_array_mut().unwrap().iter_mut().for_each(&change);
            }
            single => change(single),
        })
    }
}

/// Model with its configuration.
type Model = (ModelConfig, CausalLm);

struct Weights {
    base: Model,
    adapters: BTreeMap<String, Model>,
    /// Version label of the weights.
    version: String,
    /// Whether an update failed: the next request ends the server.
    broken: bool,
    /// Models by salt and prompt.
    cache: HashMap<(String, Vec<u32>), Model>,
}

impl Weights {
    /// Load the model in `dir`.
    fn load(dir: &Path) -> Self {
        Self {
            base: model::load(dir, &device()).unwrap(),
            adapters: BTreeMap::new(),
            version: "default".to_string(),
            broken: false,
            cache: HashMap::new(),
        }
    }
}

struct Shared {
    kind: Kind,
    dir: PathBuf,
    url: String,
    setup: Mutex<Setup>,
    weights: Mutex<Weights>,
    faults: Mutex<Vec<Order>>,
    keys: Mutex<HashMap<i64, [u64; 3]>>,
    seen: Mutex<Vec<(String, Value)>>,
    busy: AtomicUsize,
    max_concurrent: AtomicUsize,
    /// Number of requests that were given up.
    aborted: AtomicUsize,
    gone: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

/// Injected fault: `times` requests whose path begins with `path` fail, after the requests `after` were made.
struct Order {
    after: (String, usize),
    path: String,
    times: usize,
    fault: Fault,
}

/// Running server. Dropping it ends the server.
pub(crate) struct Fake(Arc<Shared>);

impl Drop for Fake {
    fn drop(&mut self) {
        self.0.die();
    }
}

impl Fake {
    /// Start a server of the model in `dir`.
    pub(crate) fn start(kind: Kind, dir: &Path, mut setup: Setup) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        if setup.root.is_empty() {
            setup.root = dir.display().to_string();
        }
        let shared = Arc::new(Shared {
            kind,
            dir: dir.to_path_buf(),
            url: format!("http://{}", listener.local_addr().unwrap()),
            setup: Mutex::new(setup),
            weights: Mutex::new(Weights::load(dir)),
            faults: Mutex::default(),
            keys: Mutex::default(),
            seen: Mutex::default(),
            busy: AtomicUsize::new(0),
            max_concurrent: AtomicUsize::new(0),
            aborted: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let server = Self(shared);
        server.accept(listener);
        server
    }

    /// Start a server that has ended again: at the same address, with the weights that it was first started with.
    pub(crate) fn revive(&self) {
        let bind = || TcpListener::bind(self.0.url.trim_start_matches("http://"));
        // The port is free once the thread that accepted connections has ended.
        let wait = |_| std::thread::sleep(Duration::from_millis(10));
        let listener = (0..1000).find_map(|_| bind().map_err(wait).ok()).expect("the port is in use");
        *self.0.weights.lock().unwrap() = Weights::load(&self.0.dir);
        self.0.gone.store(false, Ordering::SeqCst);
        self.accept(listener);
    }

    /// Handle connections on a thread of its own.
    fn accept(&self, listener: TcpListener) {
        let server = self.0.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if server.is_gone() {
                    return; // closes the port
                }
                server.connections.lock().unwrap().push(stream.try_clone().unwrap());
                let server = server.clone();
                std::thread::spawn(move || server.handle_connection(&stream));
            }
        });
    }

    pub(crate) fn url(&self) -> String {
        self.0.url.clone()
    }

    /// Inject `fault` into `times` requests whose path begins with `path`, once the server has seen `after.1` requests whose
    /// path begins with `after.0`. Faults take effect in the order in which they are injected.
    pub(crate) fn inject(&self, after: (&str, usize), path: &str, times: usize, fault: Fault) {
        let after = (after.0.to_string(), after.1);
        self.0.faults.lock().unwrap().push(Order { after, path: path.to_string(), times, fault });
    }

    /// Inject `fault` into the next `times` requests whose path begins with `path`.
    pub(crate) fn fail(&self, path: &str, times: usize, fault: Fault) {
        self.inject(("", 0), path, times, fault);
    }

    /// Exempt the next `times` requests whose path begins with `path` from faults injected after this call.
    pub(crate) fn skip(&self, path: &str, times: usize) {
        self.fail(path, times, Fault::None);
    }

    /// Inject `fault` into every request for `path` after `count` requests for paths that begin with `event`.
    pub(crate) fn fail_after(&self, event: &str, count: usize, path: &str, fault: Fault) {
        self.inject((event, count), path, usize::MAX, fault);
    }

    /// Remove all faults.
    pub(crate) fn clear_faults(&self) {
        self.0.faults.lock().unwrap().clear();
    }

    /// Register the key of a group, so that it gets the completions of the built-in engine. The seed of a group is a
    /// hash of its key (see `seed` in `rollout/served/pool.rs`), so the server cannot derive the key itself.
    pub(crate) fn register_key(&self, key: [u64; 3]) {
        self.0.keys.lock().unwrap().insert(group_of((mix(&key) >> 1).cast_signed()), key);
    }

    /// Return path and body of every request so far whose path begins with `path`.
    pub(crate) fn seen(&self, path: &str) -> Vec<(String, Value)> {
        self.0.seen.lock().unwrap().iter().filter(|(place, _)| place.starts_with(path)).cloned().collect()
    }

    /// Return the largest number of concurrent completion requests.
    pub(crate) fn max_concurrent(&self) -> usize {
        self.0.max_concurrent.load(Ordering::SeqCst)
    }

    /// Return the number of requests that hung until the client gave them up.
    pub(crate) fn aborted(&self) -> usize {
        self.0.aborted.load(Ordering::SeqCst)
    }

    /// Return the names of the loaded adapters.
    pub(crate) fn adapters(&self) -> Vec<String> {
        self.0.weights.lock().unwrap().adapters.keys().cloned().collect()
    }

    /// Return whether the server has ended by a fault.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.is_gone()
    }

    pub(crate) fn die(&self) {
        self.0.die();
    }
}

/// Return the seed without its low 16 bits, which count the completions of a group.
fn group_of(seed: i64) -> i64 {
    seed & !0xffff
}

struct Ask {
    path: String,
    key: Option<String>,
    body: Value,
}

/// Status and body of a response.
type Answer = (u16, Value);

impl Shared {
    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    fn die(&self) {
        self.gone.store(true, Ordering::SeqCst);
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts connections.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }

    /// Handle the requests of a connection.
    fn handle_connection(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some(ask) = read(&mut reader) {
            let fault = self.fault(&ask.path);
            self.seen.lock().unwrap().push((ask.path.clone(), ask.body.clone()));
            let (status, mut value) = match &fault {
                Some(Fault::Status(status)) => {
                    if (*status, ask.path.as_str()) == (500, "/collective_rpc") {
                        self.weights.lock().unwrap().broken = true;
                    }
                    (*status, error(*status, "InternalServerError", &format!("told to fail: {}", ask.body)))
                }
                Some(Fault::Hang) => {
                    self.hang(stream);
                    break;
                }
                Some(Fault::Reset) => break,
                Some(Fault::Lost) => {
                    self.answer(&ask, false);
                    break;
                }
                Some(Fault::Die) => {
                    self.die();
                    break;
                }
                fault => self.answer(&ask, matches!(fault, Some(Fault::Idle))),
            };
            if let Some(Fault::Change(change)) = &fault {
                change(&mut value);
            }
            let text = match value {
                Value::Null => String::new(),
                Value::String(text) => text,
                value => value.to_string(),
            };
            let head =
                format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}", text.len());
            if self.is_gone() || { stream }.write_all(format!("{head}\r\n\r\n{text}").as_bytes()).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Both);
    }

    /// Wait until the client closes a connection or the server ends.
    fn hang(&self, stream: &TcpStream) {
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let waits = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted);
        while stream.peek(&mut [0]).is_err_and(|error| waits(error.kind())) {
            if self.is_gone() {
                return;
            }
        }
        self.aborted.fetch_add(1, Ordering::SeqCst);
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        let seen = self.seen.lock().unwrap();
        let asked = |event: &str| seen.iter().filter(|(place, _)| place.starts_with(event)).count();
        let mut faults = self.faults.lock().unwrap();
        let due = |order: &&mut Order| {
            path.starts_with(&order.path) && order.times > 0 && asked(&order.after.0) >= order.after.1
        };
        let order = faults.iter_mut().find(due)?;
        order.times -= 1;
        Some(order.fault.clone())
    }
}

/// Read the next request of a connection.
fn read(reader: &mut BufReader<&TcpStream>) -> Option<Ask> {
    let mut line = || {
        let mut line = String::new();
        (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_string())
    };
    let path = line()?.split(' ').nth(1)?.to_string();
    let (mut length, mut key) = (0, None);
    loop {
        let header = line()?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ")?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => key = Some(value.to_string()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    Some(Ask { path, key, body })
}
