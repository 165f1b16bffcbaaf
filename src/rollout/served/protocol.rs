//! What the two kinds of server are asked and answer: token ids in, token ids and log-probabilities out.
//!
//! vLLM is spoken to by its OpenAI-compatible endpoint `/v1/completions` (token ids in the answer since 0.10.2), SGLang by
//! its own `/generate`.

use serde_json::{Value, json};

use super::http::Failure;
use crate::generate::{Distribution, FinishReason, Sampling};
use crate::rollout::settings::Engine;

/// The completions of one prompt, asked for at once.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// Tokens of the prompt.
    pub(super) prompt: Vec<u32>,
    /// Completions.
    pub(super) count: usize,
    /// Seed of the first; the others have those that follow.
    pub(super) seed: i64,
}

/// A completion as a server tells it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    pub(super) tokens: Vec<u32>,
    pub(super) log_probs: Vec<f32>,
    pub(super) finish_reason: FinishReason,
}

impl Default for Told {
    fn default() -> Self {
        Self { tokens: Vec::new(), log_probs: Vec::new(), finish_reason: FinishReason::Length }
    }
}

/// The weights that a request is answered by.
#[derive(Debug, Clone, Default)]
pub(super) struct Weights {
    /// Name of the served model, or of an adapter on it.
    pub(super) model: String,
    /// Whether that is an adapter.
    pub(super) adapter: bool,
    /// Keeps what a prefix cache remembers of other weights away.
    pub(super) salt: String,
}

/// Path and body of the request for completions. Every setting of the distribution is sent: what is not, a server takes
/// from the model's `generation_config.json`.
pub(super) fn request(engine: Engine, ask: &Ask, sampling: &Sampling, weights: &Weights) -> (&'static str, Value) {
    let Distribution { repetition_penalty, temperature, top_k, top_p, min_p } = sampling.distribution;
    // Servers refuse several greedy completions of a prompt, which are all the same one.
    let count = if temperature == 0.0 { 1 } else { ask.count };
    match engine {
        Engine::Vllm => {
            let body = json!({
                "model": weights.model,
                "prompt": ask.prompt,
                "n": count,
                "seed": ask.seed,
                "max_tokens": sampling.max_completion_length,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "stop_token_ids": sampling.stop,
                // The tokens of `stop` end a completion, and nothing else that the server's files may name.
                "ignore_eos": true,
                "skip_special_tokens": false,
                "logprobs": 0,
                "return_token_ids": true,
                "return_tokens_as_token_ids": true,
                "cache_salt": weights.salt,
            });
            ("/v1/completions", body)
        }
        Engine::Sglang => {
            let top_k = i64::try_from(top_k).ok().filter(|&k| k > 0).unwrap_or(-1);
            let mut body = json!({
                "input_ids": ask.prompt,
                "sampling_params": {
                    "n": count,
                    "sampling_seed": ask.seed,
                    "max_new_tokens": sampling.max_completion_length,
                    "temperature": temperature,
                    "top_p": top_p,
                    "top_k": top_k,
                    "min_p": min_p,
                    "repetition_penalty": repetition_penalty,
                    "presence_penalty": 0.0,
                    "frequency_penalty": 0.0,
                    "stop_token_ids": sampling.stop,
                    "skip_special_tokens": false,
                },
                "return_logprob": true,
                "logprob_start_len": -1,
                "top_logprobs_num": 0,
                "extra_key": weights.salt,
            });
            if weights.adapter {
                body["lora_path"] = json!(weights.model);
            }
            ("/generate", body)
        }
    }
}

/// The completions of an answer, checked: as many as asked for, with tokens of the vocabulary and log-probabilities that
/// are some, ended by a stop token or at the length that was asked for.
pub(super) fn completions(
    engine: Engine,
    answer: &Value,
    ask: &Ask,
    sampling: &Sampling,
    vocab_size: usize,
) -> Result<Vec<Told>, Failure> {
    let lasting = |what: String| Err(Failure::Lasting(what));
    let list = match engine {
        Engine::Vllm => answer["choices"].as_array().map(Vec::as_slice),
        Engine::Sglang if answer.is_array() => answer.as_array().map(Vec::as_slice),
        Engine::Sglang => Some(std::slice::from_ref(answer)),
    };
    let greedy = sampling.distribution.temperature == 0.0;
    let wanted = if greedy { 1 } else { ask.count };
    let list = list.unwrap_or_default();
    if list.len() != wanted {
        return lasting(format!("{wanted} completions were asked for and {} came: {}", list.len(), excerpt(answer)));
    }
    let mut told = Vec::with_capacity(ask.count);
    // vLLM numbers its choices; the order is that of the numbers.
    let mut order: Vec<&Value> = list.iter().collect();
    order.sort_by_key(|choice| choice["index"].as_u64().unwrap_or(0));
    for choice in order {
        told.push(match engine {
            Engine::Vllm => vllm(choice)?,
            Engine::Sglang => sglang(choice)?,
        });
    }
    for told in &told {
        check(told, sampling, vocab_size)?;
    }
    if greedy {
        told = vec![told.remove(0); ask.count];
    }
    Ok(told)
}

fn check(told: &Told, sampling: &Sampling, vocab_size: usize) -> Result<(), Failure> {
    let lasting = |what: String| Err(Failure::Lasting(what));
    let (tokens, log_probs) = (&told.tokens, &told.log_probs);
    if tokens.len() != log_probs.len() {
        return lasting(format!("{} tokens came with {} log-probabilities", tokens.len(), log_probs.len()));
    }
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
        return lasting(format!(
            "token {token} is none of the {vocab_size} of the vocabulary: the server serves another model"
        ));
    }
    // A rounding above 0 is none of the model's.
    if let Some(log_prob) = log_probs.iter().find(|log_prob| !log_prob.is_finite() || **log_prob > 1e-3) {
        return lasting(format!("{log_prob} is no log-probability: the server's weights are damaged"));
    }
    let stopped = tokens.last().is_some_and(|last| sampling.stop.contains(last));
    match told.finish_reason {
        FinishReason::Stop if !stopped => lasting(format!(
            "a completion ended by token {:?}, which is none of the stop tokens {:?} that were sent",
            tokens.last(),
            sampling.stop
        )),
        FinishReason::Length if !stopped && tokens.len() < sampling.max_completion_length => lasting(format!(
            "a completion was cut after {} of {} tokens: start the server with a larger context length",
            tokens.len(),
            sampling.max_completion_length
        )),
        _ => Ok(()),
    }
}

fn vllm(choice: &Value) -> Result<Told, Failure> {
    let Some(tokens) = ids(&choice["token_ids"]) else {
        return Err(Failure::Lasting(format!(
            "the answer has no token ids, and text cannot be turned into the same tokens again: vLLM from 0.10.2 on and \
             SGLang give them: {}",
            excerpt(choice)
        )));
    };
    let log_probs = numbers(&choice["logprobs"]["token_logprobs"]);
    let reason = choice["finish_reason"].as_str().unwrap_or_default();
    Ok(Told { tokens, log_probs, finish_reason: finish_reason(reason, choice)? })
}

fn sglang(choice: &Value) -> Result<Told, Failure> {
    let info = &choice["meta_info"];
    let Some(tokens) = ids(&choice["output_ids"]) else {
        return Err(Failure::Lasting(format!("the answer has no output_ids: {}", excerpt(choice))));
    };
    let pairs = info["output_token_logprobs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let log_probs = pairs.iter().map(|pair| number(&pair[0])).collect();
    let reason = info["finish_reason"]["type"].as_str().unwrap_or_default();
    Ok(Told { tokens, log_probs, finish_reason: finish_reason(reason, &info["finish_reason"])? })
}

fn finish_reason(reason: &str, choice: &Value) -> Result<FinishReason, Failure> {
    match reason {
        "stop" => Ok(FinishReason::Stop),
        "length" => Ok(FinishReason::Length),
        "abort" => Err(Failure::Passing(format!("the server gave up a completion: {}", excerpt(choice)))),
        other => Err(Failure::Lasting(format!("unknown finish reason {other:?}: {}", excerpt(choice)))),
    }
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// NaN where something is no number.
fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().map(|list| list.iter().map(number).collect()).unwrap_or_default()
}

fn number(value: &Value) -> f32 {
    value.as_f64().map_or(f32::NAN, |number| number as f32)
}

/// The beginning of an answer, for a message.
fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(count: usize) -> Ask {
        Ask { prompt: vec![1, 30], count, seed: 65536 }
    }

    fn sampling() -> Sampling {
        Sampling { max_completion_length: 3, stop: vec![2], ..Sampling::default() }
    }

    fn read(engine: Engine, answer: &Value, count: usize) -> Result<Vec<Told>, Failure> {
        completions(engine, answer, &ask(count), &sampling(), 400)
    }

    /// As vLLM 0.32 answered, out of order and shortened.
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
        let told = read(Engine::Vllm, &vllm_answer(), 2).unwrap();
        assert_eq!(told[0].tokens, [399, 22, 15]);
        assert_eq!(
            told[1],
            Told { tokens: vec![22, 2], log_probs: vec![-0.25, -0.5], finish_reason: FinishReason::Stop }
        );
        // As SGLang 0.5.23 answers one completion: an object, no list.
        let answer = json!({ "text": "5", "output_ids": [25, 2], "meta_info": {
            "finish_reason": { "type": "stop", "matched": 2 }, "output_token_logprobs": [[-0.5497, 25, null], [-0.0088, 2, null]] }});
        let told = read(Engine::Sglang, &answer, 1).unwrap();
        assert_eq!((told[0].tokens.as_slice(), told[0].log_probs.as_slice()), (&[25, 2][..], &[-0.5497, -0.0088][..]));
    }

    #[test]
    fn answers_that_cannot_be_trusted_are_refused() {
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut answer = vllm_answer();
            change(&mut answer);
            read(Engine::Vllm, &answer, 2).unwrap_err()
        };
        let choice = |pointer: &'static str, value: Value| {
            move |answer: &mut Value| *answer.pointer_mut(&format!("/choices/0{pointer}")).unwrap() = value.clone()
        };
        // An older server ignores the wish for token ids without a word.
        for (failure, part) in [
            (changed(&choice("/token_ids", Value::Null)), "0.10.2"),
            (changed(&choice("/token_ids", json!([22, 400]))), "400 of the vocabulary"),
            (changed(&choice("/logprobs/token_logprobs", json!([-0.25]))), "2 tokens came with 1"),
            (changed(&choice("/logprobs/token_logprobs", json!([-0.25, null]))), "NaN"),
            (changed(&choice("/logprobs/token_logprobs", json!([-0.25, 0.5]))), "0.5 is no log-probability"),
            (changed(&choice("/token_ids", json!([22, 21]))), "none of the stop tokens"),
            (
                changed(&|answer| drop(answer["choices"].as_array_mut().unwrap().pop())),
                "2 completions were asked for and 1",
            ),
        ] {
            assert!(matches!(&failure, Failure::Lasting(why) if why.contains(part)), "{part}: {failure:?}");
        }
        // A server that makes room gives up completions: that passes.
        assert!(matches!(changed(&choice("/finish_reason", json!("abort"))), Failure::Passing(_)));
        // Cut although there was room, as a server does whose context is full: no error of its own tells it.
        let cut = json!({ "choices": [{ "index": 0, "token_ids": [22], "finish_reason": "length",
            "logprobs": { "token_logprobs": [-0.25] } }] });
        let failure = read(Engine::Vllm, &cut, 1).unwrap_err();
        assert!(failure.words().contains("after 1 of 3 tokens"), "{failure:?}");
    }

    #[test]
    fn greedy_completions_are_asked_for_once() {
        let mut greedy = sampling();
        greedy.distribution.temperature = 0.0;
        let (_, body) = request(Engine::Vllm, &ask(4), &greedy, &Weights::default());
        assert_eq!(body["n"], 1);
        let answer = json!({ "choices": [vllm_answer()["choices"][0]] });
        assert_eq!(completions(Engine::Vllm, &answer, &ask(4), &greedy, 400).unwrap().len(), 4);
    }
}
