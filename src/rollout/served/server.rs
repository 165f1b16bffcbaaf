//! The servers: found, asked what they are, and refused where they cannot do what a run needs.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::{Client, Failure};
use crate::error::{Error, Result};
use crate::generate::Distribution;
use crate::model::LoraConfig;
use crate::rollout::settings::{Engine, LogProbs, ServedConfig, Sync};
use crate::stop::Stop;

/// Seconds that a question about the server itself may take; SGLang's `/health` generates a token.
const QUESTION: Duration = Duration::from_secs(30);
/// Between two looks at a server that is not there yet.
const KNOCK: Duration = Duration::from_millis(500);
/// How often a request to end early is looked at.
pub(super) const GLANCE: Duration = Duration::from_millis(100);
/// The first version of vLLM that gives token ids.
const VLLM_SINCE: [u64; 3] = [0, 10, 2];

/// What a run needs of its servers.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// Folder of the model, which the servers are started with.
    pub model: &'a Path,
    /// Its tokens.
    pub vocab_size: usize,
    /// Tokens of the longest prompt and completion together.
    pub longest: usize,
    /// The adapters that are trained.
    pub lora: Option<&'a LoraConfig>,
    /// Whether the weights change: not for an evaluation.
    pub trains: bool,
    /// What completions to learn from are drawn from, by stage.
    pub distributions: &'a [Distribution],
}

/// A server, and how it is.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) client: Client,
    /// Requests that it works on.
    busy: AtomicUsize,
    /// Failures in a row.
    failures: AtomicUsize,
    state: Mutex<State>,
    /// Whether it computes in single precision, as far as it says.
    pub(super) is_f32: bool,
}

/// Whether a server is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Good,
    /// Left out until the next step, for this reason.
    Lost(String),
    /// Left out for good: it must be started again.
    Broken(String),
}

impl Server {
    fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn become_(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Whether it is asked for completions.
    pub(super) fn is_good(&self) -> bool {
        self.state() == State::Good
    }

    /// Whether it is worth another try.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.state(), State::Lost(_))
    }

    /// Takes it back.
    pub(super) fn rejoin(&self) {
        self.failures.store(0, Ordering::SeqCst);
        self.become_(State::Good);
    }

    /// Leaves it out until the next step.
    pub(super) fn lose(&self, why: &str) {
        self.become_(State::Lost(why.to_string()));
    }

    /// Leaves it out for good.
    pub(super) fn give_up(&self, why: &str) {
        self.become_(State::Broken(why.to_string()));
    }

    /// Notes how a request ended; gives the failures in a row.
    pub(super) fn note(&self, good: bool) -> usize {
        if good {
            self.failures.store(0, Ordering::SeqCst);
            return 0;
        }
        self.failures.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// One more request is on its way while the result lives.
    pub(super) fn occupy(&self) -> Occupied<'_> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        Occupied(self)
    }
}

/// A request that a server works on.
pub(super) struct Occupied<'a>(&'a Server);

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The good server with the fewest requests, `avoid` only where it is the last.
pub(super) fn least_busy(servers: &[Server], avoid: Option<usize>) -> Option<usize> {
    let good = |index: &usize| servers[*index].is_good();
    (0..servers.len())
        .filter(good)
        .min_by_key(|&index| (Some(index) == avoid, servers[index].busy.load(Ordering::SeqCst)))
}

/// Whether another server than number `index` is good.
pub(super) fn has_other(servers: &[Server], index: usize) -> bool {
    servers.iter().enumerate().any(|(other, server)| other != index && server.is_good())
}

/// Leaves out server number `index` if another one is good; says whether it did. Two servers that fail at the same moment do
/// not leave each other out.
pub(super) fn lose_unless_last(servers: &[Server], index: usize, why: &str) -> bool {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let others = has_other(servers, index);
    if others {
        servers[index].lose(why);
    }
    others
}

/// Why there is no good server, a line for each.
pub(super) fn obituary(servers: &[Server]) -> String {
    let line = |server: &Server| match server.state() {
        State::Good => format!("\n  {}: well", server.client.url()),
        State::Lost(why) => format!("\n  {why}"),
        State::Broken(why) => format!("\n  {why}; start it again"),
    };
    servers.iter().map(line).collect()
}

/// The model of the servers.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) servers: Vec<Server>,
    /// Name of the served model.
    pub(super) model: String,
    /// What their log-probabilities are, where they or the settings say it.
    pub(super) log_probs: LogProbs,
    /// Adapters that are loaded, by server.
    pub(super) adapters: Vec<Vec<String>>,
}

/// Finds the servers and looks at what they say of themselves.
///
/// # Errors
/// [`Error::Engine`] when one is not there in time, is another engine or too old, serves no such model, has too little
/// context, or cannot take new weights in the way that is asked for; each says how to start it.
pub(super) fn find(
    engine: Engine,
    config: &ServedConfig,
    needs: &Needs,
    stop: Stop,
    note: &mut dyn FnMut(&str),
) -> Result<Found> {
    let key = api_key(config)?;
    let sync = config.sync_for(needs.lora.is_some());
    let hint = format!("Start it with\n  {}", start_command(engine, config, needs));
    let mut found =
        Found { servers: Vec::new(), model: config.model.clone(), log_probs: config.logprobs, adapters: Vec::new() };
    for url in &config.urls {
        let client = Client::new(url, key.clone(), Duration::from_secs_f64(config.connect_timeout_s));
        wait_for(&client, config, &hint, stop, note)?;
        let says = Says::of(engine, &client).map_err(|why| Error::Engine(format!("{why}. {hint}")))?;
        let refuse = |why: String| Err(Error::Engine(format!("{url}: {why}. {hint}")));
        let names: Vec<&str> = says.models.iter().map(|model| model.id.as_str()).collect();
        let wanted =
            |model: &&Model| if found.model.is_empty() { model.parent.is_none() } else { model.id == found.model };
        let Some(model) = says.models.iter().find(wanted) else {
            return refuse(format!(
                "there is no model {:?} (rollout.model), it serves {}",
                found.model,
                if names.is_empty() { "none".to_string() } else { names.join(", ") }
            ));
        };
        found.model.clone_from(&model.id);
        if let Some(context) = model.max_model_len.filter(|&context| context < needs.longest) {
            return refuse(format!(
                "its context of {context} tokens is too small for the {} of the longest prompt and completion",
                needs.longest
            ));
        }
        if needs.trains
            && let Some(method) = &says.quantization
        {
            return refuse(format!("it serves quantised weights ({method}), not those that are trained"));
        }
        if needs.trains && sync == Sync::Lora && says.data_parallel > 1 {
            return refuse(format!(
                "it has {} replicas, and only the one that answers would load an adapter: start as many servers, and name \
                 each in rollout.urls",
                says.data_parallel
            ));
        }
        if let Some(why) = cannot_sync(engine, &client, sync, needs.trains, &says) {
            return refuse(why);
        }
        if let Some(mode) = says.log_probs {
            if found.log_probs != LogProbs::Auto && found.log_probs != mode {
                return refuse(format!("rollout.logprobs is {:?} and the server gives {mode:?} ones", found.log_probs));
            }
            found.log_probs = mode;
        }
        note(&format!("{url}: {} {}, {} of {}", engine.name(), says.version, model.id, says.dtype));
        found.adapters.push(names.iter().filter(|name| **name != model.id).map(ToString::to_string).collect());
        found.servers.push(Server {
            client,
            busy: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            state: Mutex::new(State::Good),
            is_f32: says.dtype.ends_with("float32"),
        });
    }
    Ok(found)
}

fn api_key(config: &ServedConfig) -> Result<Option<String>> {
    if config.api_key_env.is_empty() {
        return Ok(None);
    }
    let name = &config.api_key_env;
    std::env::var(name).ok().filter(|key| !key.is_empty()).map(Some).ok_or_else(|| {
        Error::Engine(format!(
            "rollout.api_key_env = {name:?}: there is no such environment variable; set it to the key"
        ))
    })
}

fn wait_for(client: &Client, config: &ServedConfig, hint: &str, stop: Stop, note: &mut dyn FnMut(&str)) -> Result<()> {
    let start = Instant::now();
    let mut told = false;
    loop {
        stop.check()?;
        let last = match client.get("/health", QUESTION) {
            Ok(_) | Err(Failure::Missing(_)) => return Ok(()),
            Err(Failure::Lasting(why)) => return Err(Error::Engine(why)),
            Err(Failure::Passing(why)) => why,
        };
        if start.elapsed().as_secs_f64() > config.start_timeout_s {
            return Err(Error::Engine(format!(
                "no server after rollout.start_timeout_s = {} s: {last}. {hint}",
                config.start_timeout_s
            )));
        }
        if !told {
            note(&format!("waiting for {}, up to {} s", client.url(), config.start_timeout_s));
            told = true;
        }
        pause(KNOCK, stop)?;
    }
}

/// Sleeps, but for a request to end early.
pub(super) fn pause(time: Duration, stop: Stop) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        stop.check()?;
        std::thread::sleep(GLANCE.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// A model or an adapter that a server lists.
#[derive(Debug)]
struct Model {
    id: String,
    parent: Option<String>,
    max_model_len: Option<usize>,
}

/// What a server says of itself; empty where it does not.
#[derive(Debug, Default)]
struct Says {
    version: String,
    models: Vec<Model>,
    dtype: String,
    quantization: Option<String>,
    data_parallel: u64,
    log_probs: Option<LogProbs>,
    lora: Option<bool>,
    /// Whether vLLM's endpoints for development are there, SGLang's always.
    managed: bool,
}

impl Says {
    fn of(engine: Engine, client: &Client) -> std::result::Result<Self, String> {
        let ask = |path: &str| client.get(path, QUESTION);
        let words = |failure: Failure| failure.words().to_string();
        // Older names of the same come last.
        let first = |paths: &[&str]| -> std::result::Result<Option<Value>, String> {
            for path in paths {
                match ask(path) {
                    Ok(value) => return Ok(Some(value)),
                    Err(Failure::Missing(_)) => {}
                    Err(failure) => return Err(words(failure)),
                }
            }
            Ok(None)
        };
        let sglang = first(&["/model_info", "/get_model_info"])?;
        let url = client.url();
        let mut says = Self { data_parallel: 1, dtype: "an unknown format".to_string(), ..Self::default() };
        match engine {
            Engine::Vllm => {
                let Some(version) = first(&["/version"])? else {
                    return Err(match sglang {
                        Some(_) => format!("{url} is SGLang: set rollout.engine = \"sglang\""),
                        None => format!(
                            "{url} does not answer as vLLM does (no /version), and other servers give no token ids"
                        ),
                    });
                };
                says.version = version["version"].as_str().unwrap_or_default().to_string();
                if is_before(&says.version, VLLM_SINCE) {
                    return Err(format!("{url}: vLLM {} gives no token ids: 0.10.2 or later is needed", says.version));
                }
                // vLLM 0.32.0 answers 500 where its Python environment has no pip, which it lists packages by.
                let info = match ask("/server_info?config_format=json") {
                    Err(Failure::Missing(_)) => None,
                    told => Some(told.unwrap_or_default()),
                };
                says.managed = info.is_some();
                says.vllm(&info.unwrap_or_default()["vllm_config"]);
            }
            Engine::Sglang => {
                if sglang.is_none() {
                    return Err(format!("{url} does not answer as SGLang does (no /model_info): is it vLLM?"));
                }
                let info = first(&["/server_info", "/get_server_info"])?.unwrap_or_default();
                says.version = info["version"].as_str().unwrap_or_default().to_string();
                says.managed = true;
                says.sglang(&info);
            }
        }
        let models = ask("/v1/models").map_err(words)?;
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(ToString::to_string);
        says.models = (models["data"].as_array().into_iter().flatten())
            .filter_map(|model| {
                let id = text(&model["id"])?;
                let max_model_len = model["max_model_len"].as_u64().map(|length| length as usize);
                Some(Model { id, parent: text(&model["parent"]), max_model_len })
            })
            .collect();
        Ok(says)
    }

    fn vllm(&mut self, info: &Value) {
        let model = &info["model_config"];
        if let Some(dtype) = model["dtype"].as_str() {
            self.dtype = dtype.trim_start_matches("torch.").to_string();
        }
        self.quantization = model["quantization"].as_str().map(ToString::to_string);
        self.data_parallel = info["parallel_config"]["data_parallel_size"].as_u64().unwrap_or(1);
        self.log_probs = match model["logprobs_mode"].as_str() {
            Some("processed_logprobs") => Some(LogProbs::Processed),
            Some("raw_logprobs") => Some(LogProbs::Raw),
            _ => None,
        };
        if let Some(info) = info.as_object() {
            self.lora = info.get("lora_config").map(|lora| !lora.is_null());
        }
    }

    fn sglang(&mut self, info: &Value) {
        if let Some(dtype) = info["dtype"].as_str() {
            self.dtype = dtype.to_string();
        }
        self.quantization = info["quantization"].as_str().map(ToString::to_string);
        self.data_parallel = info["dp_size"].as_u64().unwrap_or(1);
        self.lora = info["enable_lora"].as_bool();
    }
}

/// Why a server cannot take weights in the way `sync`.
fn cannot_sync(engine: Engine, client: &Client, sync: Sync, trains: bool, says: &Says) -> Option<String> {
    match (engine, sync) {
        _ if !trains => None,
        (_, Sync::None) => Some("rollout.sync = \"none\" brings no new weights, which training needs".to_string()),
        (_, Sync::Lora) if says.lora == Some(false) => Some("it was started without --enable-lora".to_string()),
        (Engine::Vllm, Sync::Lora) => {
            // There is no such adapter; whether the endpoint is there is in the manner of the refusal.
            let answer = client.post("/v1/unload_lora_adapter", &json!({ "lora_name": "tempering-none" }), QUESTION);
            let closed = matches!(&answer, Err(Failure::Missing(why)) if why.contains("\"detail\""));
            closed.then(|| {
                "it loads no adapters while it runs: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 is missing".to_string()
            })
        }
        (Engine::Vllm, Sync::Disk) if !says.managed => Some(
            "it takes no new weights: VLLM_SERVER_DEV_MODE=1 is missing (keep such a server on a private address)"
                .to_string(),
        ),
        _ => None,
    }
}

/// Whether a version is before `since`; one without numbers is not.
fn is_before(version: &str, since: [u64; 3]) -> bool {
    let numbers: Vec<u64> = version.split(['.', '+']).map_while(|part| part.parse().ok()).collect();
    // Builds from a checkout call themselves 0.1.dev.
    let release = numbers.len() >= 3;
    release && numbers[..3] < since[..]
}

/// A line that starts a fitting server.
pub(super) fn start_command(engine: Engine, config: &ServedConfig, needs: &Needs) -> String {
    let sync = config.sync_for(needs.lora.is_some());
    let lora = needs.lora.filter(|_| sync == Sync::Lora && needs.trains);
    let (model, longest) = (needs.model.display(), needs.longest);
    let name = if config.model.is_empty() { String::new() } else { format!(" --served-model-name {}", config.model) };
    let adapters = |r: usize| format!("--enable-lora --max-lora-rank {r} --max-loras {}", config.max_staleness + 2);
    match engine {
        Engine::Vllm => {
            let variables = match (sync, needs.trains) {
                (Sync::Lora, true) => "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ",
                (Sync::Disk, true) => "VLLM_SERVER_DEV_MODE=1 ",
                _ => "",
            };
            // vLLM knows a few ranks only.
            let rank =
                |r: usize| [8, 16, 32, 64, 128, 256, 320, 512].into_iter().find(|&known| known >= r).unwrap_or(r);
            let lora = lora.map_or(String::new(), |lora| format!(" {}", adapters(rank(lora.r))));
            format!(
                "{variables}vllm serve {model}{name} --max-model-len {longest} --generation-config vllm --logprobs-mode \
                 processed_logprobs{lora}"
            )
        }
        Engine::Sglang => {
            let lora = lora.map_or(String::new(), |lora| {
                format!(
                    " {} --lora-target-modules all",
                    adapters(lora.r).replace("--max-loras", "--max-loras-per-batch")
                )
            });
            format!("python -m sglang.launch_server --model-path {model}{name} --context-length {longest}{lora}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (version, before) in [
            ("0.9.2", true),
            ("0.10.1.1", true),
            ("0.10.2", false),
            ("0.32.0+cpu", false),
            ("1.0.0", false),
            ("0.1.dev1", false),
            ("", false),
        ] {
            assert_eq!(is_before(version, VLLM_SINCE), before, "{version}");
        }
    }
}
