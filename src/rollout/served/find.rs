//! The start of a run on servers: waits for each server and checks that it meets the requirements.

use std::path::Path;
use std::time::{Duration, Instant};

use super::http::{ServerClient, ServerFailure};
use super::info::{INFO_TIMEOUT, ServerInfo, requirements};
use super::server::{Server, pause, until_stopped};
use crate::error::{Error, Result};
use crate::generate::Distribution;
use crate::model::{LoraConfig, Precision};
use crate::rollout::settings::{LogProbs, ServedConfig, ServerKind, Sync};
use crate::stop::Stop;

/// Interval between health checks of a server that is not up yet.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Requirements of a run on its servers.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// Folder of the model that the servers are started with.
    pub model: &'a Path,
    /// Number of tokens in the vocabulary of the model.
    pub vocab_size: usize,
    /// Precision in which our own model computes.
    pub precision: Precision,
    /// Length of the longest prompt and the longest completion together, in tokens.
    pub longest: usize,
    /// The adapters that are trained, if any.
    pub lora: Option<&'a LoraConfig>,
    /// Whether the weights change. False for an evaluation.
    pub trains: bool,
    /// Sampling distributions of the training completions, by stage.
    pub distributions: &'a [Distribution],
}

/// The servers of a run and the model that they serve.
#[derive(Debug)]
pub(super) struct Deployment {
    pub(super) servers: Vec<Server>,
    /// Name of the served model.
    pub(super) model: String,
    /// Kind of log-probabilities, where the settings or the servers state it.
    pub(super) log_probs: LogProbs,
    /// Names of the loaded adapters, by server.
    pub(super) adapters: Vec<Vec<String>>,
    /// Path or Hub name that each server loaded the model from.
    pub(super) sources: Vec<String>,
}

/// Wait for the servers and check the information that they report.
///
/// # Errors
/// [`Error::Engine`] when a server does not answer in time, is another engine or too old, lacks the model, has too small
/// a context, or cannot take new weights in the configured way. The message says how to start the server.
pub(super) fn find(
    engine: ServerKind,
    config: &ServedConfig,
    needs: &Needs,
    stop: Stop,
    note: &mut dyn FnMut(&str),
) -> Result<Deployment> {
    let key = api_key(config)?;
    let sync = config.sync_for(needs.lora.is_some());
    let hint = format!("Start it with\n  {}", start_command(engine, config, needs));
    let probes_adapters = engine == ServerKind::Vllm && sync == Sync::Lora && needs.trains;
    let mut found = Deployment {
        servers: Vec::new(),
        model: config.model.clone(),
        log_probs: config.logprobs,
        adapters: Vec::new(),
        sources: Vec::new(),
    };
    for url in &config.urls {
        let client = ServerClient::new(url, key.clone(), Duration::from_secs_f64(config.connect_timeout_s));
        wait_for(&client, config, &hint, stop, note)?;
        let asked = client.clone();
        let info = until_stopped(stop, move || ServerInfo::ask(engine, &asked, probes_adapters))?
            .map_err(|why| Error::Engine(format!("{why}. {hint}")))?;
        let refuse = |reason: String| Error::Engine(format!("{url}: {reason}. {hint}"));
        let model = info.model(&found.model).map_err(refuse)?;
        requirements(&info, model, (needs, sync), found.log_probs).map_err(refuse)?;
        found.model.clone_from(&model.id);
        found.log_probs = info.log_probs.unwrap_or(found.log_probs);
        note(&format!("{url}: {} {}, {} of {}", engine.name(), info.version, model.id, info.dtype));
        let names = info.models.iter().map(|listed| &listed.id);
        found.adapters.push(names.filter(|&name| *name != model.id).cloned().collect());
        found.sources.push(info.source(model).to_string());
        let is_f32 = info.dtype.ends_with("float32") && needs.precision == Precision::F32;
        found.servers.push(Server::new(client, is_f32));
    }
    Ok(found)
}

fn api_key(config: &ServedConfig) -> Result<Option<String>> {
    let name = &config.api_key_env;
    match std::env::var(name) {
        _ if name.is_empty() => Ok(None),
        Ok(key) if !key.is_empty() => Ok(Some(key)),
        _ => Err(Error::Engine(format!(
            "rollout.api_key_env = {name:?}: this environment variable is not set; set it to the API key"
        ))),
    }
}

/// Wait until a server answers, and call `note` once if it does not answer at first.
fn wait_for(
    client: &ServerClient,
    config: &ServedConfig,
    hint: &str,
    stop: Stop,
    note: &mut dyn FnMut(&str),
) -> Result<()> {
    let (start, limit) = (Instant::now(), config.start_timeout_s);
    let mut told = false;
    loop {
        let asked = client.clone();
        let last = match until_stopped(stop, move || asked.get("/health", INFO_TIMEOUT))? {
            Ok(_) | Err(ServerFailure::NotFound(_)) => return Ok(()),
            Err(ServerFailure::Permanent(why)) => return Err(Error::Engine(why)),
            Err(ServerFailure::Unavailable(why) | ServerFailure::Transient(why)) => why,
        };
        if start.elapsed().as_secs_f64() > limit {
            return Err(Error::Engine(format!(
                "the server did not answer within rollout.start_timeout_s = {limit} s: {last}. {hint}"
            )));
        }
        if !told {
            note(&format!("waiting for {}, up to {limit} s", client.url));
            told = true;
        }
        pause(HEALTH_INTERVAL, stop)?;
    }
}

/// Return the command line that starts a server which meets `needs`.
fn start_command(engine: ServerKind, config: &ServedConfig, needs: &Needs) -> String {
    let sync = config.sync_for(needs.lora.is_some());
    let lora = needs.lora.filter(|_| sync == Sync::Lora && needs.trains);
    let (model, longest) = (needs.model.display(), needs.longest);
    let name = if config.model.is_empty() { String::new() } else { format!(" --served-model-name {}", config.model) };
    // An evaluation is of the model as it is stored, which is the servers' default. Training compares it with ours.
    let dtype = match needs.precision {
        _ if !needs.trains => "",
        Precision::F32 | Precision::Tf32 => " --dtype float32",
        Precision::Bf16 => " --dtype bfloat16",
        Precision::F16 => " --dtype float16",
    };
    let adapters = |r: usize| format!("--enable-lora --max-lora-rank {r} --max-loras {}", config.max_staleness + 2);
    match engine {
        ServerKind::Vllm => {
            let variables = match (sync, needs.trains) {
                (Sync::Lora, true) => "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ",
                (Sync::Disk, true) => "VLLM_SERVER_DEV_MODE=1 ",
                _ => "",
            };
            // vLLM supports these maximum ranks only.
            let rank = |r: usize| [8, 16, 32, 64, 128, 256, 320, 512].into_iter().find(|&max| max >= r).unwrap_or(r);
            let lora = lora.map_or(String::new(), |lora| format!(" {}", adapters(rank(lora.r))));
            format!(
                "{variables}vllm serve {model}{name}{dtype} --max-model-len {longest} --generation-config vllm \
                 --logprobs-mode processed_logprobs{lora}"
            )
        }
        ServerKind::Sglang => {
            let lora = lora.map_or(String::new(), |lora| {
                let adapters = adapters(lora.r).replace("--max-loras", "--max-loras-per-batch");
                format!(" {adapters} --lora-target-modules all")
            });
            format!("python -m sglang.launch_server --model-path {model}{name}{dtype} --context-length {longest}{lora}")
        }
    }
}
