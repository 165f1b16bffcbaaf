//! The endpoints of both kinds of server. Responses have the format of vLLM 0.32.0 (observed) and of SGLang 0.5.23.

use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use tempering::generate::{Completion, Distribution, FinishReason, Request, Sampling, generate};
use tempering::model;

use super::{Answer, Ask, Kind, Model, Setup, Shared, group_of};
use crate::support::device;

impl Shared {
    /// Answer a request. An `idle` server reports success of an update without doing anything.
    pub(super) fn answer(&self, ask: &Ask, idle: bool) -> Answer {
        let setup = self.setup.lock().unwrap().clone();
        let guarded = self.kind == Kind::Sglang || ask.path.starts_with("/v1/");
        if guarded && setup.api_key.as_ref().is_some_and(|key| ask.key.as_ref() != Some(&format!("Bearer {key}"))) {
            return (401, json!({ "error": "Unauthorized" }));
        }
        let path = ask.path.split('?').next().unwrap();
        match (self.kind, path) {
            (_, "/health") => (200, Value::Null),
            (_, "/v1/models") => (200, self.models(&setup)),
            (Kind::Vllm, "/version") => (200, json!({ "version": setup.version })),
            (Kind::Vllm, "/v1/completions") => self.completions(&ask.body, &setup),
            (Kind::Vllm, "/v1/load_lora_adapter") if setup.lora && setup.loads_adapters => {
                self.load_adapter(&ask.body, idle)
            }
            (Kind::Vllm, "/v1/unload_lora_adapter") if setup.lora && setup.loads_adapters => {
                self.unload_adapter(&ask.body)
            }
            (Kind::Vllm, "/server_info") if setup.managed => (200, vllm_info(&setup)),
            (Kind::Vllm, "/collective_rpc") if setup.managed => self.reload(&ask.body["kwargs"]["weights_path"], idle),
            (Kind::Vllm, "/update_weight_version") if setup.managed => {
                self.label(&ask.body["new_version"]);
                (200, json!({ "success": true, "new_version": ask.body["new_version"] }))
            }
            (Kind::Vllm, "/reset_prefix_cache") if setup.managed => {
                self.weights.lock().unwrap().cache.clear();
                (200, json!({ "success": true }))
            }
            (Kind::Sglang, "/model_info") => {
                let version = &self.weights.lock().unwrap().version;
                (200, json!({ "model_path": setup.root, "is_generation": true, "weight_version": version }))
            }
            (Kind::Sglang, "/server_info") => (200, sglang_info(&setup)),
            (Kind::Sglang, "/generate") => self.generate(&ask.body, &setup),
            (Kind::Sglang, "/update_weights_from_disk") => self.update(&ask.body, idle),
            (Kind::Sglang, "/flush_cache") => {
                self.weights.lock().unwrap().cache.clear();
                (200, json!("Cache flushed."))
            }
            (Kind::Sglang, "/load_lora_adapter" | "/unload_lora_adapter") if !setup.lora => (
                400,
                json!({ "error": { "message": "LoRA is not enabled. Please set `--enable-lora` to enable LoRA." } }),
            ),
            (Kind::Sglang, "/load_lora_adapter") => adapter_response(self.load_adapter(&ask.body, idle)),
            (Kind::Sglang, "/unload_lora_adapter") => adapter_response(self.unload_adapter(&ask.body)),
            _ => (404, json!({ "detail": "Not Found" })),
        }
    }

    fn models(&self, setup: &Setup) -> Value {
        let weights = self.weights.lock().unwrap();
        // SGLang repeats the name.
        let root = if self.kind == Kind::Vllm { &setup.root } else { &setup.name };
        let max = setup.max_model_len;
        let base = json!({ "id": setup.name, "object": "model", "root": root, "parent": null, "max_model_len": max });
        let adapter =
            |name: &String| json!({ "id": name, "object": "model", "root": "/adapter", "parent": setup.name });
        let data: Vec<Value> = std::iter::once(base).chain(weights.adapters.keys().map(adapter)).collect();
        json!({ "object": "list", "data": data })
    }

    fn label(&self, version: &Value) {
        self.weights.lock().unwrap().version = version.as_str().unwrap_or_default().to_string();
    }

    /// Handles vLLM's full weight update. A failed one leaves incomplete weights, which only the next request shows.
    fn reload(&self, path: &Value, idle: bool) -> Answer {
        if idle {
            return (200, json!({ "results": [null] }));
        }
        let loaded = model::load(Path::new(path.as_str().unwrap_or_default()), &device());
        let mut weights = self.weights.lock().unwrap();
        match loaded {
            Ok(loaded) => {
                weights.base = loaded;
                (200, json!({ "results": [null] }))
            }
            Err(why) => {
                weights.broken = true;
                (500, error(500, "InternalServerError", &why.to_string()))
            }
        }
    }

    /// Handles SGLang's full weight update. A failed update changes nothing.
    fn update(&self, body: &Value, idle: bool) -> Answer {
        let version = &body["weight_version"];
        if !idle {
            match model::load(Path::new(body["model_path"].as_str().unwrap_or_default()), &device()) {
                Ok(loaded) => self.weights.lock().unwrap().base = loaded,
                Err(why) => {
                    let message = format!("Failed to get weights iterator: {why}");
                    return (400, json!({ "success": false, "message": message }));
                }
            }
        }
        if body["flush_cache"] != json!(false) {
            self.weights.lock().unwrap().cache.clear();
        }
        self.label(version);
        let message = format!("Succeeded to update model weights. Weight version updated to {version}.");
        (200, json!({ "success": true, "message": message, "num_paused_requests": 0 }))
    }

    fn load_adapter(&self, body: &Value, idle: bool) -> Answer {
        let name = body["lora_name"].as_str().unwrap_or_default().to_string();
        let path = Path::new(body["lora_path"].as_str().unwrap_or_default());
        if self.weights.lock().unwrap().adapters.contains_key(&name) {
            let words = format!("The lora adapter '{name}' has already been loaded.");
            return (400, error(400, "InvalidUserInput", &words));
        }
        let loaded = if idle { Ok(self.weights.lock().unwrap().base.clone()) } else { model::load(path, &device()) };
        match loaded {
            Ok(loaded) => {
                self.weights.lock().unwrap().adapters.insert(name.clone(), loaded);
                (200, json!(format!("Success: LoRA adapter '{name}' added successfully.")))
            }
            Err(why) if path.is_dir() => (500, error(500, "InternalServerError", &why.to_string())),
            Err(_) => {
                let words = format!("Loading lora {name} failed: No adapter found for {}", path.display());
                (404, error(404, "NotFoundError", &words))
            }
        }
    }

    fn unload_adapter(&self, body: &Value) -> Answer {
        let name = body["lora_name"].as_str().unwrap_or_default();
        match self.weights.lock().unwrap().adapters.remove(name) {
            Some(_) => (200, json!(format!("Success: LoRA adapter '{name}' removed successfully."))),
            None => (404, error(404, "NotFoundError", &format!("The lora adapter '{name}' cannot be found."))),
        }
    }

    /// Handles vLLM's completion requests.
    fn completions(&self, body: &Value, setup: &Setup) -> Answer {
        let bad = |words: &str| (400, error(400, "BadRequestError", words));
        let name = body["model"].as_str().unwrap_or_default();
        let n = body["n"].as_u64().unwrap_or(1);
        let distribution = distribution(body);
        if n > 1 && distribution.temperature == 0.0 {
            return bad(&format!("n must be 1 when using greedy sampling, got {n}."));
        }
        let length = body["max_tokens"].as_u64().unwrap_or(16) as usize;
        if length > setup.max_model_len {
            let most = setup.max_model_len;
            return bad(&format!("max_tokens={length} cannot be greater than max_model_len={most}."));
        }
        let adapter = (name != setup.name).then_some(name);
        let group = GroupSpec { prompt: &body["prompt"], n, seed: &body["seed"], length, distribution, adapter };
        let drawn = match self.draw(&group, &body["stop_token_ids"], &body["cache_salt"], setup) {
            Ok(drawn) => drawn,
            Err(answer) => return answer,
        };
        let choice = |(index, completion): (usize, &Completion)| {
            let tokens = &completion.tokens;
            let names: Vec<String> = tokens.iter().map(|token| format!("token_id:{token}")).collect();
            let log_probs = if setup.raw { &completion.unit_log_probs } else { &completion.drawn_log_probs };
            let stopped = completion.finish_reason == FinishReason::Stop;
            json!({
                "index": index,
                "text": "",
                "logprobs": { "token_logprobs": log_probs, "tokens": names },
                "finish_reason": if stopped { "stop" } else { "length" },
                "stop_reason": if stopped { json!(tokens.last()) } else { Value::Null },
                "token_ids": tokens,
                "prompt_token_ids": body["prompt"],
            })
        };
        let choices: Vec<Value> = drawn.iter().enumerate().map(choice).collect();
        (200, json!({ "id": "cmpl-1", "object": "text_completion", "model": name, "choices": choices }))
    }

    /// Handles SGLang's completion requests. Its log-probabilities are those before top-k and top-p truncation.
    fn generate(&self, body: &Value, setup: &Setup) -> Answer {
        let sampling = &body["sampling_params"];
        let n = sampling["n"].as_u64().unwrap_or(1);
        let length = sampling["max_new_tokens"].as_u64().unwrap_or(128) as usize;
        let adapter = body["lora_path"].as_str();
        let (prompt, seed, distribution) = (&body["input_ids"], &sampling["sampling_seed"], distribution(sampling));
        let group = GroupSpec { prompt, n, seed, length, distribution, adapter };
        let drawn = match self.draw(&group, &sampling["stop_token_ids"], &body["extra_key"], setup) {
            Ok(drawn) => drawn,
            Err(answer) => return answer,
        };
        let version = self.weights.lock().unwrap().version.clone();
        let one = |completion: &Completion| {
            let tokens = &completion.tokens;
            let log_probs = if setup.raw { &completion.unit_log_probs } else { &completion.log_probs };
            let pairs: Vec<Value> =
                log_probs.iter().zip(tokens).map(|(log_prob, token)| json!([log_prob, token, null])).collect();
            let reason = match completion.finish_reason {
                FinishReason::Stop => json!({ "type": "stop", "matched": tokens.last() }),
                _ => json!({ "type": "length", "length": tokens.len() }),
            };
            json!({
                "text": "",
                "output_ids": tokens,
                "meta_info": {
                    "id": "1",
                    "finish_reason": reason,
                    "completion_tokens": tokens.len(),
                    "weight_version": version,
                    "output_token_logprobs": pairs,
                },
            })
        };
        let mut answers: Vec<Value> = drawn.iter().map(one).collect();
        (200, if n == 1 { answers.remove(0) } else { Value::Array(answers) })
    }

    fn draw(&self, group: &GroupSpec, stop: &Value, salt: &Value, setup: &Setup) -> Result<Vec<Completion>, Answer> {
        let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
        self.max_concurrent.fetch_max(busy, Ordering::SeqCst);
        std::thread::sleep(setup.delay);
        let drawn = self.sample(group, &ids(stop), salt.as_str().unwrap_or_default(), setup);
        self.busy.fetch_sub(1, Ordering::SeqCst);
        drawn
    }

    fn sample(&self, group: &GroupSpec, stop: &[u32], salt: &str, setup: &Setup) -> Result<Vec<Completion>, Answer> {
        let prompt = ids(group.prompt);
        let salt = if setup.salted { salt } else { "" };
        let (config, model) = self.model(group.adapter, (salt.to_string(), prompt.clone()), setup)?;
        let bad = |words: String| Err((400, error(400, "BadRequestError", &words)));
        if let Some(token) = prompt.iter().find(|&&token| token as usize >= config.vocab_size) {
            return bad(format!("Token id {token} is out of vocabulary"));
        }
        if prompt.is_empty() || prompt.len() >= setup.max_model_len {
            return bad(format!("a prompt of {} tokens", prompt.len()));
        }
        let seed = group.seed.as_i64().unwrap_or(0);
        let key = self.keys.lock().unwrap().get(&group_of(seed)).copied();
        let request = |index: u64| {
            let seed = seed.cast_unsigned() + index;
            let key = key.map_or([0, 0, 0, seed], |[a, b, c]| [a, b, c, seed & 0xffff]);
            Request { prompt: prompt.clone(), key }
        };
        let requests: Vec<Request> = (0..group.n).map(request).collect();
        let sampling = Sampling {
            distribution: group.distribution,
            // Both servers limit the length silently.
            max_completion_length: group.length.min(setup.max_model_len - prompt.len()),
            stop: stop.to_vec(),
            ..Sampling::default()
        };
        let drawn = generate(&model, &config, &requests, &sampling, |_, _| tempering::generate::Watch::Continue);
        Ok(drawn.unwrap())
    }

    /// Return the model that a request is for.
    fn model(&self, adapter: Option<&str>, place: (String, Vec<u32>), setup: &Setup) -> Result<Model, Answer> {
        let mut weights = self.weights.lock().unwrap();
        if weights.broken {
            drop(weights);
            self.die();
            return Err((500, error(500, "EngineDeadError", "EngineCore encountered an issue.")));
        }
        let model = match adapter {
            None => weights.base.clone(),
            Some(name) => weights.adapters.get(name).cloned().ok_or_else(|| {
                let words = format!("The model `{name}` does not exist. Valid aliases: {}.", setup.name);
                (404, error(404, "NotFoundError", &words))
            })?,
        };
        Ok(if setup.prefix_cache { weights.cache.entry(place).or_insert(model).clone() } else { model })
    }
}

/// Request parameters common to both protocols.
struct GroupSpec<'a> {
    prompt: &'a Value,
    n: u64,
    seed: &'a Value,
    length: usize,
    distribution: Distribution,
    adapter: Option<&'a str>,
}

fn distribution(body: &Value) -> Distribution {
    let number = |key: &str, default: f64| body[key].as_f64().unwrap_or(default) as f32;
    Distribution {
        repetition_penalty: number("repetition_penalty", 1.0),
        temperature: number("temperature", 1.0),
        top_k: body["top_k"].as_u64().unwrap_or(0) as usize,
        top_p: number("top_p", 1.0),
        min_p: number("min_p", 0.0),
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().map(|id| id.as_u64().unwrap() as u32).collect()
}

pub(super) fn error(status: u16, kind: &str, message: &str) -> Value {
    json!({ "error": { "message": message, "type": kind, "param": null, "code": status } })
}

/// Convert a response to SGLang's format for adapter requests.
fn adapter_response((status, body): Answer) -> Answer {
    match status {
        200 => (200, json!({ "success": true, "loaded_adapters": {} })),
        _ => (400, json!({ "success": false, "error_message": body["error"]["message"] })),
    }
}

fn vllm_info(setup: &Setup) -> Value {
    json!({
        "vllm_config": {
            "model_config": {
                "dtype": format!("torch.{}", setup.dtype),
                "logprobs_mode": if setup.raw { "raw_logprobs" } else { "processed_logprobs" },
                "max_model_len": setup.max_model_len,
                "quantization": setup.quantization,
            },
            "lora_config": if setup.lora { json!({ "max_lora_rank": setup.max_lora_rank, "max_loras": 4 }) } else { Value::Null },
            "weight_transfer_config": null,
            "parallel_config": { "data_parallel_size": setup.data_parallel_size, "tensor_parallel_size": 1 },
            "cache_config": { "enable_prefix_caching": setup.prefix_cache },
        },
        "vllm_env": {},
        "system_env": {},
    })
}

fn sglang_info(setup: &Setup) -> Value {
    json!({
        "version": setup.version,
        "dtype": setup.dtype,
        "quantization": setup.quantization,
        "dp_size": setup.data_parallel_size,
        "enable_lora": setup.lora,
        "max_lora_rank": setup.max_lora_rank,
        "context_length": setup.max_model_len,
    })
}
