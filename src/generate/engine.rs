//! The generation engine: continuous batching over a KV cache in which the completions of a group share their prompt.
//!
//! Requests wait in a queue. When a completion ends, its slot goes to the next request: at once if its prompt is in the cache,
//! else when enough slots are free to prefill several prompts in one pass. A prompt is prefilled once; the first tokens of all
//! completions of its group are sampled from that pass.

use std::collections::VecDeque;
use std::ops::Range;

use burn::module::Module;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};

use super::parallel;
use super::recorder::Recorder;
use super::sampling::{DeviceTokens, draw, draws_on_device, fetch};
use super::{Completion, FinishReason, Request, SampledToken, Sampling, Watch};
use crate::error::{Error, Result};
use crate::model::{CacheShape, CausalLm, KvCache, ModelConfig, ids};
use crate::noise;
use crate::ops::{self, Repeated, is_host};
use crate::threads;

/// Maximum prompt tokens of the prefill passes of all engines at a time.
const READ_TOKENS: usize = 8192;
/// Minimum rows of a decoding pass on a GPU: the tile height of tensor cores.
const TILE: usize = 16;
/// New prompts are prefilled when `1 / READ_SHARE` of the slots are free, or nothing is running.
const READ_SHARE: usize = 8;

/// Sample one completion per request, in the order of `requests`.
///
/// Consecutive requests with equal prompts form a group, whose prompt is prefilled once. `watch` is called with
/// `(request, token)` for each token.
///
/// # Errors
/// When `sampling.cache_tokens` is too small for a single completion of the longest prompt, or when logits are NaN.
///
/// # Panics
/// When a prompt is empty.
pub fn generate(
    model: &CausalLm,
    config: &ModelConfig,
    requests: &[Request],
    sampling: &Sampling,
    watch: impl FnMut(usize, u32) -> Watch,
) -> Result<Vec<Completion>> {
    // Training rollouts use f32 keys and values, like the trainer, unless `sampling.precision` is set.
    let trained = model.device().is_autodiff() && sampling.precision.is_none();
    let model = match sampling.precision {
        Some(precision) => model.in_precision(precision).for_inference(),
        None => model.for_inference(),
    };
    if requests.is_empty() || sampling.max_completion_length == 0 {
        return Ok(vec![Completion::empty(); requests.len()]);
    }
    let mut shape = cache_shape(config, requests, sampling)?;
    if let Some(longest) =
        config.longest_sampled().filter(|longest| shape.prompt_length + shape.completion_length > *longest)
    {
        return Err(Error::Invalid(format!(
            "a prompt of {} tokens and max_completion_length = {} exceed original_max_position_embeddings = {longest}: \
             longer sequences need longrope's long factors, which sampling does not support; lower \
             max_completion_length",
            shape.prompt_length, shape.completion_length
        )));
    }
    let device = model.device();
    let ahead = if draws_on_device(&device, &sampling.distribution) { sampling.tokens_per_read.max(1) } else { 1 };
    // Room for tokens decoded beyond the length limit before the host sees them.
    shape.completion_length += ahead - 1;
    let format = if trained { FloatDType::F32 } else { model.cache_format() };
    let count = engines(&model, shape);
    let call = Call { model: &model, config, sampling, ahead, format, read_tokens: READ_TOKENS / count };
    match count {
        1 => call.run(requests, shape, watch),
        _ => parallel::run(&call, requests, shape, count, watch),
    }
}

/// Minimum completions in progress for each of several engines.
const MIN_ROWS: usize = 8;

/// Return the number of engines among which a call is divided: the operations of a small model are too short to be divided.
fn engines(model: &CausalLm, shape: CacheShape) -> usize {
    if !is_host(&model.device()) || model.num_params() > threads::MAX_PARAMETERS {
        return 1;
    }
    threads::used(shape.prompts.min(shape.completions / MIN_ROWS))
}

/// What the engines of a call of [`generate`] share.
pub(super) struct Call<'a> {
    model: &'a CausalLm,
    config: &'a ModelConfig,
    sampling: &'a Sampling,
    /// Tokens per row and decoding pass, before the host checks which completions have ended.
    ahead: usize,
    /// Number format of the KV cache.
    format: FloatDType,
    /// Maximum prompt tokens of a prefill pass of an engine; a single longer prompt is a pass of its own.
    read_tokens: usize,
}

impl Call<'_> {
    /// Sample `requests` by one engine with a cache of this shape.
    ///
    /// # Errors
    /// When logits are NaN.
    pub(super) fn run(
        &self,
        requests: &[Request],
        shape: CacheShape,
        watch: impl FnMut(usize, u32) -> Watch,
    ) -> Result<Vec<Completion>> {
        let engine = Engine {
            model: self.model,
            requests,
            sampling: self.sampling,
            watch,
            cache: KvCache::new(self.config, shape, self.format, &self.model.device()),
            ahead: self.ahead,
            read_tokens: self.read_tokens,
            recorder: Recorder::new(),
            slots: shape.completions,
            free_prompts: (0..shape.prompts).rev().collect(),
            free_slots: (0..shape.completions).rev().collect(),
            groups: Vec::new(),
            read: 0,
            first: VecDeque::new(),
            waiting: 0,
            running: Vec::new(),
            completions: vec![Completion::empty(); requests.len()],
            broken: None,
        };
        engine.run()
    }
}

/// Shape of the KV cache for `requests`: as many concurrent completions as `rows` and `cache_tokens` allow, and a prompt slot for
/// each group that can be in progress.
///
/// # Errors
/// When `cache_tokens` is too small for a single completion.
pub fn cache_shape(config: &ModelConfig, requests: &[Request], sampling: &Sampling) -> Result<CacheShape> {
    let groups = requests.chunk_by(|a, b| a.prompt == b.prompt).count();
    let prompt_length = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0);
    let shape = |completions: usize| CacheShape {
        prompts: groups.min(completions),
        prompt_length,
        completions,
        completion_length: sampling.max_completion_length,
    };
    let bound = sampling.cache_tokens;
    let fits = |completions: &usize| bound == 0 || shape(*completions).tokens_worth(config) <= bound;
    let most = sampling.rows.clamp(1, requests.len().max(1));
    (1..=most).rev().find(fits).map(shape).ok_or_else(|| {
        Error::Invalid(format!(
            "generation_cache_tokens = {} does not hold one prompt of {prompt_length} tokens and its completion of up \
             to {} (max_completion_length): raise generation_cache_tokens or lower max_completion_length",
            sampling.cache_tokens, sampling.max_completion_length
        ))
    })
}

/// A completion in progress.
#[derive(Debug, Clone, Copy)]
struct RunningCompletion {
    request: usize,
    slot: usize,
    token: u32,
}

/// Consecutive requests with the same prompt, which is in the cache.
#[derive(Debug)]
struct PromptGroup {
    requests: Range<usize>,
    prompt: usize,
    /// Number of completions that have not ended.
    open: usize,
}

struct Engine<'a, W> {
    model: &'a CausalLm,
    requests: &'a [Request],
    sampling: &'a Sampling,
    watch: W,
    cache: KvCache,
    ahead: usize,
    read_tokens: usize,
    recorder: Recorder,
    slots: usize,
    free_prompts: Vec<usize>,
    free_slots: Vec<usize>,
    groups: Vec<PromptGroup>,
    /// First request whose prompt has not been prefilled.
    read: usize,
    /// First tokens of the requests from `waiting` to `read`.
    first: VecDeque<SampledToken>,
    /// First request that has not started.
    waiting: usize,
    running: Vec<RunningCompletion>,
    completions: Vec<Completion>,
    /// Request whose logits were NaN, which ends the call.
    broken: Option<usize>,
}

impl<W: FnMut(usize, u32) -> Watch> Engine<'_, W> {
    fn run(mut self) -> Result<Vec<Completion>> {
        while self.admit() != Watch::EndAll && !self.running.is_empty() {
            if self.step() == Watch::EndAll {
                break;
            }
        }
        match self.broken {
            None => Ok(self.completions),
            Some(request) => Err(Error::NotFinite(format!(
                "the model's logits are not finite numbers after {} tokens of a completion: its weights are damaged, \
                 its activations are too large for their precision (see --dtype), or training has made them so (lower \
                 optim.learning_rate in a new run, or continue from an older checkpoint)",
                self.completions[request].tokens.len()
            ))),
        }
    }

    /// Start waiting requests in free slots.
    fn admit(&mut self) -> Watch {
        loop {
            while let Some(&slot) = self.free_slots.last()
                && let Some(first) = self.first.pop_front()
            {
                let request = self.waiting;
                self.waiting += 1;
                match self.take(request, &first) {
                    Watch::Continue => {
                        self.free_slots.pop();
                        self.cache.start(slot, self.groups[self.group_of(request)].prompt);
                        self.running.push(RunningCompletion { request, slot, token: first.token });
                    }
                    Watch::EndCompletion => self.close(request),
                    Watch::EndAll => return Watch::EndAll,
                }
            }
            let enough = self.running.is_empty() || self.free_slots.len() * READ_SHARE >= self.slots;
            let able = self.first.is_empty() && !self.free_slots.is_empty() && !self.free_prompts.is_empty();
            if self.read == self.requests.len() || !enough || !able {
                return Watch::Continue;
            }
            self.read_prompts();
        }
    }

    /// Prefill the prompts of the next groups in one pass, and sample the first token of each of their completions.
    fn read_prompts(&mut self) {
        let (mut tokens, mut lengths, mut slots, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let start = self.read;
        for group in self.requests[start..].chunk_by(|a, b| a.prompt == b.prompt) {
            let prompt = &group[0].prompt;
            assert!(!prompt.is_empty(), "empty prompt");
            let full = self.read - start >= self.free_slots.len() || tokens.len() + prompt.len() > self.read_tokens;
            let Some(slot) = self.free_prompts.pop_if(|_| lengths.is_empty() || !full) else { break };
            tokens.extend_from_slice(prompt);
            lengths.push(prompt.len());
            slots.push((slot, prompt.len()));
            ends.extend(std::iter::repeat_n(tokens.len() - 1, group.len()));
            let requests = self.read..self.read + group.len();
            self.read = requests.end;
            self.groups.push(PromptGroup { open: requests.len(), requests, prompt: slot });
        }
        self.cache.read(&slots);
        let hidden = self.model.forward(&tokens, &lengths, Some(&mut self.cache));
        let drawn = self.draw(crate::ops::take_rows(hidden, &ends), start..self.read);
        self.first = drawn.into();
    }

    /// Decode the next `ahead` tokens of every running completion.
    fn step(&mut self) -> Watch {
        let drawn = if self.ahead > 1 { self.decode_ahead() } else { self.decode() };
        let mut ended = vec![false; self.running.len()];
        for drawn in drawn.chunks(self.rows()) {
            for (index, sampled) in drawn.iter().take(self.running.len()).enumerate() {
                if ended[index] {
                    continue;
                }
                let RunningCompletion { request, slot, token } = &mut self.running[index];
                *token = sampled.token;
                let (request, slot) = (*request, *slot);
                match self.take(request, sampled) {
                    Watch::Continue => {}
                    Watch::EndCompletion => {
                        ended[index] = true;
                        self.free_slots.push(slot);
                        self.close(request);
                    }
                    Watch::EndAll => return Watch::EndAll,
                }
            }
        }
        let mut ended = ended.into_iter();
        self.running.retain(|_| !ended.next().unwrap_or(false));
        Watch::Continue
    }

    /// Decode one token per row.
    fn decode(&mut self) -> Vec<SampledToken> {
        let tokens = self.running_tokens();
        self.announce();
        let hidden = self.model.forward(&tokens, &vec![1; tokens.len()], Some(&mut self.cache));
        self.draw(hidden, self.running_requests())
    }

    /// Decode `ahead` tokens per row. SampledToken tokens are the input of the next step without leaving the device.
    fn decode_ahead(&mut self) -> Vec<SampledToken> {
        let device = self.model.device();
        let uniforms: Vec<f32> = (self.running_requests().into_iter())
            .flat_map(|request| (0..self.ahead).map(move |later| (request, later)))
            .map(|(request, later)| self.uniform(request, later))
            .collect();
        let uniforms = ops::to_device(TensorData::new(uniforms, [self.rows(), self.ahead]), &device);
        let tokens = ids(&self.running_tokens(), &device);
        self.announce();
        let Some(states) = self.cache.states() else {
            return fetch(self.steps(tokens, &uniforms, |engine| engine.announce()));
        };
        if self.recorder.is_due(self.rows(), self.passes_left()) {
            self.record(tokens.clone(), uniforms.clone());
        }
        let slots = self.running_slots();
        if let Some(numbers) = self.recorder.replay(&tokens, &uniforms, states) {
            (1..self.ahead).for_each(|_| self.cache.step_on_device(&slots));
            return fetch(numbers);
        }
        fetch(self.steps(tokens, &uniforms, |engine| engine.cache.step_on_device(&slots)))
    }

    /// Sample `ahead` tokens per row after the announced step; `advance` moves the cache between two steps. Return the numbers
    /// that [`fetch`] reads.
    fn steps(
        &mut self,
        mut tokens: Tensor<1, Int>,
        uniforms: &Tensor<2>,
        mut advance: impl FnMut(&mut Self),
    ) -> Tensor<2> {
        let rows = uniforms.dims()[0];
        let mut numbers = Vec::with_capacity(self.ahead);
        for later in 0..self.ahead {
            if later > 0 {
                advance(self);
            }
            let hidden = self.model.forward_ids(tokens, &vec![1; rows], Some(&mut self.cache));
            let logits = self.model.logits(hidden);
            let distribution = &self.sampling.distribution;
            let drawn = DeviceTokens::on_device(logits, distribution, uniforms.clone(), later, self.cache.states());
            tokens = drawn.tokens;
            numbers.push(drawn.numbers);
        }
        Tensor::cat(numbers, 0)
    }

    /// Decoding passes until the longest completion in progress reaches the length limit.
    fn passes_left(&self) -> usize {
        let left =
            |row: &RunningCompletion| self.sampling.max_completion_length - self.completions[row.request].tokens.len();
        self.running.iter().map(left).max().unwrap_or(0) / self.ahead
    }

    /// Record the steps of [`Self::decode_ahead`] for the announced number of rows. The recording run decodes padding, which
    /// leaves the cache entries of the completions unchanged.
    fn record(&mut self, tokens: Tensor<1, Int>, uniforms: Tensor<2>) {
        let rows = uniforms.dims()[0];
        let (Some(padding), Some(announced)) = (self.cache.padding_states(rows), self.cache.states()) else { return };
        let recording = Repeated::record(tokens, uniforms, padding, |tokens, uniforms, states| {
            self.cache.set_states(states);
            self.steps(tokens, &uniforms, |_| ())
        });
        self.cache.set_states(announced);
        self.recorder.add(rows, recording);
    }

    /// Rows of a decoding pass: the running completions, padded to a power of two on a GPU.
    fn rows(&self) -> usize {
        let running = self.running.len();
        if is_host(&self.model.device()) { running } else { running.next_power_of_two().max(TILE) }
    }

    /// Prepare the cache for the next token of every running completion.
    fn announce(&mut self) {
        self.cache.step(&self.running_slots(), self.rows());
    }

    fn running_slots(&self) -> Vec<usize> {
        self.running.iter().map(|row| row.slot).collect()
    }

    /// Latest token of each row, padding included.
    fn running_tokens(&self) -> Vec<u32> {
        let mut tokens: Vec<u32> = self.running.iter().map(|row| row.token).collect();
        tokens.resize(self.rows(), 0);
        tokens
    }

    /// Request of each row; padding repeats the last.
    fn running_requests(&self) -> Vec<usize> {
        let mut requests: Vec<usize> = self.running.iter().map(|row| row.request).collect();
        requests.resize(self.rows(), requests.last().copied().unwrap_or(0));
        requests
    }

    /// Uniform random number for the token at `later` positions after the next one.
    fn uniform(&self, request: usize, later: usize) -> f32 {
        let [seed, step, problem, sample] = self.requests[request].key;
        noise::uniform(&[seed, step, problem, sample, (self.completions[request].tokens.len() + later) as u64])
    }

    /// Sample the next token of each of `requests` from `hidden`, `[requests, hidden]`.
    fn draw(&self, hidden: Tensor<2>, requests: impl IntoIterator<Item = usize>) -> Vec<SampledToken> {
        let (uniforms, contexts): (Vec<f32>, Vec<[&[u32]; 2]>) = (requests.into_iter())
            .map(|request| {
                let context = [self.requests[request].prompt.as_slice(), &self.completions[request].tokens];
                (self.uniform(request, 0), context)
            })
            .unzip();
        draw(self.model.logits(hidden), &self.sampling.distribution, &uniforms, &contexts)
    }

    /// Append a token to its completion. Return whether the completion, and the call, continues.
    fn take(&mut self, request: usize, sampled: &SampledToken) -> Watch {
        if sampled.log_prob.is_nan() {
            self.broken = Some(request);
            return Watch::EndAll;
        }
        let completion = &mut self.completions[request];
        completion.push(sampled);
        let watch = (self.watch)(request, sampled.token);
        if self.sampling.stop.contains(&sampled.token) {
            completion.finish_reason = FinishReason::Stop;
        } else if watch == Watch::EndCompletion {
            completion.finish_reason = FinishReason::Watcher;
        }
        let ended = completion.finished() || completion.tokens.len() == self.sampling.max_completion_length;
        if ended && watch == Watch::Continue { Watch::EndCompletion } else { watch }
    }

    fn group_of(&self, request: usize) -> usize {
        let group = self.groups.iter().position(|group| group.requests.contains(&request));
        group.expect("a request that has started belongs to a group that is open")
    }

    /// End a completion. The last of a group frees its prompt slot.
    fn close(&mut self, request: usize) {
        let index = self.group_of(request);
        self.groups[index].open -= 1;
        if self.groups[index].open == 0 {
            self.free_prompts.push(self.groups.swap_remove(index).prompt);
        }
    }
}
