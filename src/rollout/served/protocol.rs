//! Completion requests and responses of vLLM and SGLang: token ids out, token ids and log-probabilities back.
//!
//! vLLM is used through its OpenAI-compatible endpoint `/v1/completions` (with token ids since 0.10.2), SGLang through
//! its native endpoint `/generate`.

use serde_json::{Value, json};

use super::http::ServerFailure;
use crate::generate::{Distribution, FinishReason, Sampling};
use crate::rollout::settings::ServerKind;

/// A request for several completions of one prompt.
#[derive(Debug, Clone)]
pub(super) struct Query {
    /// Token ids of the prompt.
    pub(super) prompt: Vec<u32>,
    /// Number of completions.
    pub(super) count: usize,
    /// Seed of the first completion. Completion `i` has the seed `seed + i`.
    pub(super) seed: i64,
}

/// A completion as a server returns it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ServerCompletion {
    pub(super) tokens: Vec<u32>,
    pub(super) log_probs: Vec<f32>,
    pub(super) finish_reason: FinishReason,
}

impl Default for ServerCompletion {
    fn default() -> Self {
        Self { tokens: Vec::new(), log_probs: Vec::new(), finish_reason: FinishReason::Length }
    }
}

/// The weights that a request is sampled from.
#[derive(Debug, Clone, Default)]
pub(super) struct ServedWeights {
    /// Name of the served model or of an adapter.
    pub(super) model: String,
    /// Whether `model` names an adapter.
    pub(super) adapter: bool,
    /// Salt of the prefix cache, so that no entry computed from other weights is used.
    pub(super) salt: String,
}

/// Return the path and the body of a completion request. All parameters of the distribution are sent, because a server
/// takes missing ones from the model's `generation_config.json`.
pub(super) fn request(
    engine: ServerKind,
    query: &Query,
    sampling: &Sampling,
    weights: &ServedWeights,
) -> (&'static str, Value) {
    let Distribution { repetition_penalty, temperature, top_k, top_p, min_p } = sampling.distribution;
    // Servers refuse `n` > 1 for greedy sampling, whose completions are all equal.
    let count = if temperature == 0.0 { 1 } else { query.count };
    match engine {
        ServerKind::Vllm => {
            let body = json!({
                "model": weights.model, "prompt": query.prompt, "n": count, "seed": query.seed,
                "max_tokens": sampling.max_completion_length,
                "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
                "repetition_penalty": repetition_penalty, "presence_penalty": 0.0, "frequency_penalty": 0.0,
                "stop_token_ids": sampling.stop,
                // Only the tokens of `stop` end a completion, not the EOS tokens of the server's files.
                "ignore_eos": true, "skip_special_tokens": false,
                "logprobs": 0, "return_token_ids": true, "return_tokens_as_token_ids": true,
                "cache_salt": weights.salt,
            });
            ("/v1/completions", body)
        }
        ServerKind::Sglang => {
            let top_k = i64::try_from(top_k).ok().filter(|&k| k > 0).unwrap_or(-1);
            let mut body = json!({
                "input_ids": query.prompt,
                "sampling_params": {
                    "n": count, "sampling_seed": query.seed, "max_new_tokens": sampling.max_completion_length,
                    "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
                    "repetition_penalty": repetition_penalty, "presence_penalty": 0.0, "frequency_penalty": 0.0,
                    "stop_token_ids": sampling.stop, "skip_special_tokens": false,
                },
                "return_logprob": true, "logprob_start_len": -1, "top_logprobs_num": 0,
                "extra_key": weights.salt,
            });
            if weights.adapter {
                body["lora_path"] = json!(weights.model);
            }
            ("/generate", body)
        }
    }
}

/// Parse and validate the completions of a response. Their number must be the requested one, tokens must be in the
/// vocabulary, log-probabilities finite, and each completion must end with a stop token or at the maximum length.
pub(super) fn completions(
    engine: ServerKind,
    answer: &Value,
    query: &Query,
    sampling: &Sampling,
    vocab_size: usize,
) -> Result<Vec<ServerCompletion>, ServerFailure> {
    let list = match engine {
        ServerKind::Vllm => answer["choices"].as_array().map(Vec::as_slice),
        ServerKind::Sglang if answer.is_array() => answer.as_array().map(Vec::as_slice),
        ServerKind::Sglang => Some(std::slice::from_ref(answer)),
    };
    let greedy = sampling.distribution.temperature == 0.0;
    let expected = if greedy { 1 } else { query.count };
    let list = list.unwrap_or_default();
    if list.len() != expected {
        let message = format!("requested {expected} completions, received {}: {}", list.len(), excerpt(answer));
        return Err(ServerFailure::Permanent(message));
    }
    // vLLM numbers its choices and may return them in any order.
    let mut choices: Vec<&Value> = list.iter().collect();
    choices.sort_by_key(|choice| choice["index"].as_u64().unwrap_or(0));
    let mut completions = Vec::with_capacity(query.count);
    for choice in choices {
        completions.push(match engine {
            ServerKind::Vllm => parse_vllm(choice)?,
            ServerKind::Sglang => parse_sglang(choice)?,
        });
    }
    for completion in &completions {
        validate(completion, sampling, vocab_size)?;
    }
    if greedy {
        completions = vec![completions.remove(0); query.count];
    }
    Ok(completions)
}

fn validate(completion: &ServerCompletion, sampling: &Sampling, vocab_size: usize) -> Result<(), ServerFailure> {
    let permanent = |message: String| Err(ServerFailure::Permanent(message));
    let (tokens, log_probs) = (&completion.tokens, &completion.log_probs);
    if tokens.len() != log_probs.len() {
        return permanent(format!("received {} tokens with {} log-probabilities", tokens.len(), log_probs.len()));
    }
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return permanent(format!(
            "token {token} is outside the vocabulary of {vocab_size} tokens: the server serves another model"
        ));
    }
    // Rounding may put a log-probability slightly above 0.
    if let Some(log_prob) = log_probs.iter().find(|log_prob| !log_prob.is_finite() || **log_prob > 1e-3) {
        return permanent(format!("{log_prob} is not a valid log-probability: the server's weights are damaged"));
    }
    let stopped = tokens.last().is_some_and(|last| sampling.stop.contains(last));
    match completion.finish_reason {
        FinishReason::Stop if !stopped => permanent(format!(
            "a completion ended with token {:?}, which is not one of the requested stop tokens {:?}",
            tokens.last(),
            sampling.stop
        )),
        FinishReason::Length if !stopped && tokens.len() < sampling.max_completion_length => permanent(format!(
            "a completion was truncated after {} of {} tokens: start the server with a larger context length",
            tokens.len(),
            sampling.max_completion_length
        )),
        _ => Ok(()),
    }
}

fn parse_vllm(choice: &Value) -> Result<ServerCompletion, ServerFailure> {
    let Some(tokens) = token_ids(&choice["token_ids"]) else {
        return Err(ServerFailure::Permanent(format!(
            "the response has no token ids, which text alone does not determine; use SGLang, or vLLM 0.10.2 or later: \
             {}",
            excerpt(choice)
        )));
    };
    let log_probs = numbers(&choice["logprobs"]["token_logprobs"]);
    let reason = choice["finish_reason"].as_str().unwrap_or_default();
    Ok(ServerCompletion { tokens, log_probs, finish_reason: finish_reason(reason, choice)? })
}

fn parse_sglang(choice: &Value) -> Result<ServerCompletion, ServerFailure> {
    let info = &choice["meta_info"];
    let Some(tokens) = token_ids(&choice["output_ids"]) else {
        return Err(ServerFailure::Permanent(format!("the response has no output_ids: {}", excerpt(choice))));
    };
    let pairs = info["output_token_logprobs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let log_probs = pairs.iter().map(|pair| number(&pair[0])).collect();
    let reason = info["finish_reason"]["type"].as_str().unwrap_or_default();
    Ok(ServerCompletion { tokens, log_probs, finish_reason: finish_reason(reason, &info["finish_reason"])? })
}

fn finish_reason(reason: &str, choice: &Value) -> Result<FinishReason, ServerFailure> {
    match reason {
        "stop" => Ok(FinishReason::Stop),
        "length" => Ok(FinishReason::Length),
        "abort" => Err(ServerFailure::Transient(format!("the server aborted a completion: {}", excerpt(choice)))),
        other => Err(ServerFailure::Permanent(format!("unknown finish reason {other:?}: {}", excerpt(choice)))),
    }
}

fn token_ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// Return NaN for elements that are not numbers.
fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().map(|list| list.iter().map(number).collect()).unwrap_or_default()
}

fn number(value: &Value) -> f32 {
    value.as_f64().map_or(f32::NAN, |number| number as f32)
}

/// Return the beginning of a response, for an error message.
fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(count: usize) -> Query {
        Query { prompt: vec![1, 30], count, seed: 65536 }
    }

    fn sampling() -> Sampling {
        Sampling { max_completion_length: 3, stop: vec![2], ..Sampling::default() }
    }

    fn read(engine: ServerKind, answer: &Value, count: usize) -> Result<Vec<ServerCompletion>, ServerFailure> {
        completions(engine, answer, &query(count), &sampling(), 400)
    }

    /// A shortened response of vLLM 0.32 with its choices out of order.
    fn vllm_answer() -> Value {
        json!({ "choices": [
            { "index": 1, "token_ids": [22, 2], "finish_reason": "stop", "stop_reason": 2,
              "logprobs": { "token_logprobs": [-0.25, -0.5] } },
            { "index": 0, "token_ids": [399, 22, 15], "finish_reason": "length", "stop_reason": null,
              "logprobs": { "token_logprobs": [-0.5352, -0.3623, -2.3e-6] } },
        ]})
    }

    #[test]
    fn completions_come_in_the_order_of_their_numbers() {
        let parsed = read(ServerKind::Vllm, &vllm_answer(), 2).unwrap();
        assert_eq!(parsed[0].tokens, [399, 22, 15]);
        let (log_probs, finish_reason) = (vec![-0.25, -0.5], FinishReason::Stop);
        assert_eq!(parsed[1], ServerCompletion { tokens: vec![22, 2], log_probs, finish_reason });
        // SGLang 0.5.23 returns a single completion as an object, not a list.
        let answer = json!({ "text": "5", "output_ids": [25, 2], "meta_info": {
            "finish_reason": { "type": "stop", "matched": 2 }, "output_token_logprobs": [[-0.5497, 25, null], [-0.0088, 2, null]] }});
        let parsed = read(ServerKind::Sglang, &answer, 1).unwrap();
        assert_eq!(
            (parsed[0].tokens.as_slice(), parsed[0].log_probs.as_slice()),
            (&[25, 2][..], &[-0.5497, -0.0088][..])
        );
    }

    #[test]
    fn answers_that_cannot_be_trusted_are_refused() {
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut answer = vllm_answer();
            change(&mut answer);
            read(ServerKind::Vllm, &answer, 2).unwrap_err()
        };
        let choice = |pointer: &'static str, value: Value| {
            move |answer: &mut Value| *answer.pointer_mut(&format!("/choices/0{pointer}")).unwrap() = value.clone()
        };
        let missing = changed(&|answer| drop(answer["choices"].as_array_mut().unwrap().pop()));
        // An older server silently ignores `return_token_ids`.
        for (failure, part) in [
            (changed(&choice("/token_ids", Value::Null)), "0.10.2"),
            (changed(&choice("/token_ids", json!([22, 400]))), "vocabulary of 400 tokens"),
            (changed(&choice("/logprobs/token_logprobs", json!([-0.25]))), "received 2 tokens with 1"),
            (changed(&choice("/logprobs/token_logprobs", json!([-0.25, null]))), "NaN"),
            (changed(&choice("/logprobs/token_logprobs", json!([-0.25, 0.5]))), "0.5 is not a valid log-probability"),
            (changed(&choice("/token_ids", json!([22, 21]))), "not one of the requested stop tokens"),
            (missing, "requested 2 completions, received 1"),
        ] {
            assert!(matches!(&failure, ServerFailure::Permanent(why) if why.contains(part)), "{part}: {failure:?}");
        }
        // A server that frees memory aborts completions; a retry may succeed.
        assert!(matches!(changed(&choice("/finish_reason", json!("abort"))), ServerFailure::Transient(_)));
        // A server whose context is full cuts a completion without an error.
        let cut = json!({ "choices": [{ "index": 0, "token_ids": [22], "finish_reason": "length",
            "logprobs": { "token_logprobs": [-0.25] } }] });
        let failure = read(ServerKind::Vllm, &cut, 1).unwrap_err();
        assert!(failure.message().contains("after 1 of 3 tokens"), "{failure:?}");
    }

    #[test]
    fn greedy_completions_are_asked_for_once() {
        let mut greedy = sampling();
        greedy.distribution.temperature = 0.0;
        let (_, body) = request(ServerKind::Vllm, &query(4), &greedy, &ServedWeights::default());
        assert_eq!(body["n"], 1);
        let answer = json!({ "choices": [vllm_answer()["choices"][0]] });
        assert_eq!(completions(ServerKind::Vllm, &answer, &query(4), &greedy, 400).unwrap().len(), 4);
    }
}
