//! The information that a server reports about itself, and whether it meets the requirements of a run.

use std::time::Duration;

use serde_json::{Value, json};

use super::find::Needs;
use super::http::{ServerClient, ServerFailure};
use crate::model::LoraConfig;
use crate::rollout::settings::{LogProbs, ServerKind, Sync};

/// Timeout of requests about the server itself. SGLang's `/health` generates a token.
pub(super) const INFO_TIMEOUT: Duration = Duration::from_secs(30);
/// The first version of vLLM that returns token ids.
const VLLM_MIN_VERSION: [u64; 3] = [0, 10, 2];

/// A model or an adapter that a server lists.
#[derive(Debug)]
pub(super) struct ListedModel {
    pub(super) id: String,
    /// Path or Hub name of its files. For SGLang, its name.
    root: Option<String>,
    /// The base model of an adapter.
    parent: Option<String>,
    max_model_len: Option<usize>,
}

/// Information that a server reports about itself. An `Option` is `None` where the server does not report it.
#[derive(Debug, Default)]
pub(super) struct ServerInfo {
    pub(super) version: String,
    /// Number format of the weights.
    pub(super) dtype: String,
    pub(super) models: Vec<ListedModel>,
    pub(super) log_probs: Option<LogProbs>,
    /// Path or Hub name of the base model, which SGLang reports.
    model_path: Option<String>,
    quantization: Option<String>,
    data_parallel_size: Option<u64>,
    enable_lora: Option<bool>,
    max_lora_rank: Option<u64>,
    /// Whether vLLM's endpoints that load adapters are missing.
    cannot_load_adapters: bool,
    /// Whether vLLM's development endpoints, which replace the weights, are missing.
    cannot_load_weights: bool,
}

impl ListedModel {
    fn from_json(value: &Value) -> Option<Self> {
        let max_model_len = value["max_model_len"].as_u64().map(|length| length as usize);
        let [root, parent] = ["root", "parent"].map(|key| text(&value[key]));
        Some(Self { id: text(&value["id"])?, root, parent, max_model_len })
    }
}

impl ServerInfo {
    /// Request the information from a server. `probes_adapters` also finds out whether vLLM's endpoints that load adapters
    /// are missing. The error says why the server cannot be used with `engine`.
    pub(super) fn ask(engine: ServerKind, client: &ServerClient, probes_adapters: bool) -> Result<Self, String> {
        let sglang = get_first(client, &["/model_info", "/get_model_info"])?;
        let mut info = match (engine, sglang) {
            (ServerKind::Vllm, sglang) => Self::ask_vllm(client, sglang.is_some())?,
            (ServerKind::Sglang, Some(model)) => {
                let info = get_first(client, &["/server_info", "/get_server_info"])?.unwrap_or_default();
                Self { model_path: text(&model["model_path"]), ..Self::from_sglang(&info) }
            }
            (ServerKind::Sglang, None) => {
                let url = &client.url;
                return Err(format!(
                    "{url} is not an SGLang server (it has no /model_info): for vLLM set rollout.engine = \"vllm\""
                ));
            }
        };
        let models = client.get("/v1/models", INFO_TIMEOUT).map_err(|failure| failure.message().to_string())?;
        info.models = models["data"].as_array().into_iter().flatten().filter_map(ListedModel::from_json).collect();
        if probes_adapters {
            // There is no such adapter. The body of the 404 distinguishes a missing endpoint from a missing adapter.
            let answer =
                client.post("/v1/unload_lora_adapter", &json!({ "lora_name": "tempering-none" }), INFO_TIMEOUT);
            info.cannot_load_adapters =
                matches!(&answer, Err(ServerFailure::NotFound(why)) if why.contains("\"detail\""));
        }
        Ok(info)
    }

    fn ask_vllm(client: &ServerClient, is_sglang: bool) -> Result<Self, String> {
        let url = &client.url;
        let Some(version) = get_first(client, &["/version"])? else {
            return Err(if is_sglang {
                format!("{url} is SGLang: set rollout.engine = \"sglang\"")
            } else {
                format!(
                    "{url} is not a vLLM server (it has no /version); other servers are not supported, because they \
                     return no token ids"
                )
            });
        };
        let version = version["version"].as_str().unwrap_or_default();
        if is_before(version, VLLM_MIN_VERSION) {
            return Err(format!("{url}: vLLM {version} returns no token ids: use vLLM 0.10.2 or later"));
        }
        // vLLM 0.32.0 answers 500 if its Python environment has no pip, which it uses to list packages.
        let info = client.get("/server_info?config_format=json", INFO_TIMEOUT);
        let cannot_load_weights = matches!(info, Err(ServerFailure::NotFound(_)));
        Ok(Self { cannot_load_weights, ..Self::from_vllm(version, &info.unwrap_or_default()["vllm_config"]) })
    }

    fn from_vllm(version: &str, config: &Value) -> Self {
        let model = &config["model_config"];
        Self {
            version: version.to_string(),
            dtype: dtype(model).trim_start_matches("torch.").to_string(),
            log_probs: match model["logprobs_mode"].as_str() {
                Some("processed_logprobs") => Some(LogProbs::Processed),
                Some("raw_logprobs") => Some(LogProbs::Raw),
                _ => None,
            },
            quantization: model["quantization"].as_str().map(ToString::to_string),
            data_parallel_size: config["parallel_config"]["data_parallel_size"].as_u64(),
            enable_lora: config.get("lora_config").map(|lora| !lora.is_null()),
            max_lora_rank: config["lora_config"]["max_lora_rank"].as_u64(),
            ..Self::default()
        }
    }

    fn from_sglang(info: &Value) -> Self {
        Self {
            version: info["version"].as_str().unwrap_or_default().to_string(),
            dtype: dtype(info).to_string(),
            quantization: info["quantization"].as_str().map(ToString::to_string),
            data_parallel_size: info["dp_size"].as_u64(),
            enable_lora: info["enable_lora"].as_bool(),
            max_lora_rank: info["max_lora_rank"].as_u64(),
            ..Self::default()
        }
    }

    /// Return the path or Hub name that a server loaded `model` from, or its name if the server does not report it.
    pub(super) fn source<'a>(&'a self, model: &'a ListedModel) -> &'a str {
        let base = self.model_path.as_deref().filter(|_| model.parent.is_none());
        base.or(model.root.as_deref()).unwrap_or(&model.id)
    }

    /// Return the model called `name`, or the first base model if `name` is empty.
    pub(super) fn model(&self, name: &str) -> Result<&ListedModel, String> {
        let is_wanted = |model: &&ListedModel| if name.is_empty() { model.parent.is_none() } else { model.id == name };
        self.models.iter().find(is_wanted).ok_or_else(|| {
            let names: Vec<&str> = self.models.iter().map(|model| model.id.as_str()).collect();
            let names = if names.is_empty() { "none".to_string() } else { names.join(", ") };
            format!("it does not serve rollout.model = {name:?}, but {names}")
        })
    }
}

/// Check that a server meets the requirements of a run, whose sync method is `sync`. `log_probs` is the kind of
/// log-probabilities that the settings or the other servers state. The error is the reason why the server is refused.
pub(super) fn requirements(
    info: &ServerInfo,
    model: &ListedModel,
    (needs, sync): (&Needs, Sync),
    log_probs: LogProbs,
) -> Result<(), String> {
    if let Some(context) = model.max_model_len.filter(|&context| context < needs.longest) {
        return Err(format!(
            "its context of {context} tokens is too small: the longest prompt and completion together have {} tokens",
            needs.longest
        ));
    }
    if needs.trains {
        training_requirements(info, sync, needs.lora)?;
    }
    match info.log_probs {
        Some(given) if log_probs != LogProbs::Auto && log_probs != given => {
            Err(format!("rollout.logprobs is {log_probs:?}, but the server returns {given:?} log-probabilities"))
        }
        _ => Ok(()),
    }
}

/// Check that a server serves trainable weights and can take new ones, or the adapters `lora`, by `sync`.
fn training_requirements(info: &ServerInfo, sync: Sync, lora: Option<&LoraConfig>) -> Result<(), String> {
    if let Some(method) = &info.quantization {
        return Err(format!(
            "it serves quantised weights ({method}), which cannot be updated: serve the unquantised model"
        ));
    }
    if let (Sync::Lora, Some(LoraConfig { r, .. }), Some(most)) = (sync, lora, info.max_lora_rank)
        && *r as u64 > most
    {
        return Err(format!("it was started with --max-lora-rank {most}, which is below lora.r = {r}"));
    }
    let replicas = info.data_parallel_size.unwrap_or(1);
    let reason = match sync {
        Sync::Lora if replicas > 1 => {
            return Err(format!(
                "it has {replicas} data-parallel replicas, and only the one that receives a request would load an \
                 adapter: start one server per replica and list each in rollout.urls"
            ));
        }
        Sync::Lora if info.enable_lora == Some(false) => "it was started without --enable-lora",
        Sync::Lora if info.cannot_load_adapters => {
            "it cannot load adapters at runtime: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 is missing in its environment"
        }
        Sync::Disk if info.cannot_load_weights => {
            "it cannot load new weights: VLLM_SERVER_DEV_MODE=1 is missing in its environment (such a server must not \
             be publicly reachable)"
        }
        Sync::None => "rollout.sync = \"none\" sends no new weights to the servers, which training needs",
        _ => return Ok(()),
    };
    Err(reason.to_string())
}

/// Return the answer of the first of `paths` that exists. Older names of an endpoint come last.
fn get_first(client: &ServerClient, paths: &[&str]) -> Result<Option<Value>, String> {
    for path in paths {
        match client.get(path, INFO_TIMEOUT) {
            Ok(value) => return Ok(Some(value)),
            Err(ServerFailure::NotFound(_)) => {}
            Err(failure) => return Err(failure.message().to_string()),
        }
    }
    Ok(None)
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(ToString::to_string)
}

fn dtype(info: &Value) -> &str {
    info["dtype"].as_str().unwrap_or("an unknown format")
}

/// Whether the release `version` is older than `since`. False for builds from a checkout, whose version is 0.1.dev.
fn is_before(version: &str, since: [u64; 3]) -> bool {
    let numbers: Vec<u64> = version.split(['.', '+']).map_while(|part| part.parse().ok()).collect();
    numbers.len() >= 3 && numbers[..3] < since[..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Precision;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for version in ["0.9.2", "0.10.1.1"] {
            assert!(is_before(version, VLLM_MIN_VERSION), "{version}");
        }
        for version in ["0.10.2", "0.32.0+cpu", "1.0.0", "0.1.dev1", ""] {
            assert!(!is_before(version, VLLM_MIN_VERSION), "{version}");
        }
    }

    #[test]
    fn a_server_is_refused_only_for_what_the_run_needs() {
        let config = json!({ "lora_config": null, "model_config": { "logprobs_mode": "raw_logprobs" } });
        let info = ServerInfo { cannot_load_weights: true, ..ServerInfo::from_vllm("0.32.0", &config) };
        let served = ListedModel::from_json(&json!({ "id": "policy", "max_model_len": 40 })).unwrap();
        let check = |longest, trains, sync, log_probs| {
            let (model, precision, distributions) = ("".as_ref(), Precision::F32, &[][..]);
            let needs = Needs { model, vocab_size: 4, precision, longest, lora: None, trains, distributions };
            requirements(&info, &served, (&needs, sync), log_probs).err().unwrap_or_default()
        };
        assert!(check(41, false, Sync::None, LogProbs::Auto).contains("context of 40 tokens"));
        assert!(check(40, true, Sync::Disk, LogProbs::Auto).contains("VLLM_SERVER_DEV_MODE"));
        assert!(check(40, true, Sync::Lora, LogProbs::Auto).contains("--enable-lora"));
        assert!(check(40, true, Sync::Command, LogProbs::Processed).contains("returns Raw log-probabilities"));
        assert_eq!(check(40, true, Sync::Command, LogProbs::Raw), "");
        assert_eq!(check(40, false, Sync::Disk, LogProbs::Auto), "");
    }
}
