//! The rollout engine: continuous batching over a cache in which the completions of a group share their prompt.
//!
//! Requests wait in order. As completions end, waiting requests take their slots: one whose prompt is in the cache at
//! once, one with a new prompt when enough slots are free to read several prompts in one pass. A prompt is read once, and
//! the first tokens of its whole group are drawn from that reading.

use std::collections::VecDeque;
use std::ops::Range;

use burn::tensor::{FloatDType, Int, Tensor, TensorData};

use super::sampling::{Drawn, draw, draws_on_device, fetch};
use super::{Completion, FinishReason, Request, Sampled, Sampling, Watch};
use crate::error::{Error, Result};
use crate::model::{CacheShape, CausalLm, KvCache, ModelConfig, ids};
use crate::noise;
use crate::ops::{self, Repeated, is_host};

/// Prompt tokens read in one pass at most, but for a single longer prompt.
const READ_TOKENS: usize = 8192;
/// Rows of a decoding pass off the CPU at least: tensor cores take so many at a time.
const TILE: usize = 16;
/// New prompts are read when one in so many slots is free, or nothing runs.
const READ_SHARE: usize = 8;
/// Reads that must be possible yet for steps to be recorded: that takes three of them.
const WORTH: usize = 8;

/// Samples one completion per request, in the order of the requests.
///
/// Consecutive requests with equal prompts form a group and share the reading of the prompt. `watch` sees
/// `(request, token)` as they come.
///
/// # Errors
/// When `sampling.cache_tokens` does not hold a single completion of the longest prompt, or when the model gives logits that
/// are not numbers.
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
    // What is learned from is sampled with keys and values as the trainer has them, unless another format is asked for.
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
            "a prompt of {} tokens and max_completion_length = {} are more than original_max_position_embeddings = {longest}: \
             beyond it longrope rotates the whole sequence in another way, which sampling does not do; lower \
             max_completion_length",
            shape.prompt_length, shape.completion_length
        )));
    }
    let device = model.device();
    let ahead = if draws_on_device(&device, &sampling.distribution) { sampling.tokens_per_read.max(1) } else { 1 };
    // Room for what is decoded past the length limit before it is seen.
    shape.completion_length += ahead - 1;
    let cache = KvCache::new(config, shape, if trained { FloatDType::F32 } else { model.cache_format() }, &device);
    let engine = Engine {
        model: &model,
        requests,
        sampling,
        watch,
        cache,
        ahead,
        records: true,
        alike: (0, 0),
        repeated: Vec::new(),
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

/// The cache for `requests`: as many completions at a time as `rows` and `cache_tokens` allow, and prompt slots for as
/// many groups as can then be under way.
///
/// # Errors
/// When `cache_tokens` does not hold a single completion.
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
            "generation_cache_tokens = {} does not hold one prompt of {prompt_length} tokens and its completion of up to {} \
             (max_completion_length): raise the one or lower the other",
            sampling.cache_tokens, sampling.max_completion_length
        ))
    })
}

/// A completion on its way.
#[derive(Debug, Clone, Copy)]
struct Running {
    request: usize,
    slot: usize,
    token: u32,
}

/// Requests with the same prompt, once that is in the cache.
#[derive(Debug)]
struct Group {
    requests: Range<usize>,
    prompt: usize,
    /// Completions that have not ended.
    open: usize,
}

struct Engine<'a, W> {
    model: &'a CausalLm,
    requests: &'a [Request],
    sampling: &'a Sampling,
    watch: W,
    cache: KvCache,
    /// Tokens decoded between two looks at what has ended.
    ahead: usize,
    /// Whether the device records what it computes, so far as is known.
    records: bool,
    /// Rows of the newest steps, and how many in a row had as many.
    alike: (usize, usize),
    /// The recorded steps for a number of rows.
    repeated: Vec<(usize, Repeated)>,
    slots: usize,
    free_prompts: Vec<usize>,
    free_slots: Vec<usize>,
    groups: Vec<Group>,
    /// Prompts of the requests before this one are in the cache, or were.
    read: usize,
    /// First tokens of requests whose prompt has been read and who have not started.
    first: VecDeque<Sampled>,
    /// Requests from this one on have not started.
    waiting: usize,
    running: Vec<Running>,
    completions: Vec<Completion>,
    /// The first request whose logits were not numbers, which ends the call.
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
                "the model's logits are not finite numbers after {} tokens of a completion: its weights are damaged, its \
                 activations are too large for their precision (see --dtype), or training has made them so (lower \
                 optim.learning_rate in a new run, or go on from an older checkpoint)",
                self.completions[request].tokens.len()
            ))),
        }
    }

    /// Gives free slots to waiting requests.
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
                        self.running.push(Running { request, slot, token: first.token });
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

    /// Reads the prompts of the next groups in one pass and draws the first token of each of their completions.
    fn read_prompts(&mut self) {
        let (mut tokens, mut lengths, mut slots, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let start = self.read;
        for group in self.requests[start..].chunk_by(|a, b| a.prompt == b.prompt) {
            let prompt = &group[0].prompt;
            assert!(!prompt.is_empty(), "empty prompt");
            let full = self.read - start >= self.free_slots.len() || tokens.len() + prompt.len() > READ_TOKENS;
            let Some(slot) = self.free_prompts.pop_if(|_| lengths.is_empty() || !full) else { break };
            tokens.extend_from_slice(prompt);
            lengths.push(prompt.len());
            slots.push((slot, prompt.len()));
            ends.extend(std::iter::repeat_n(tokens.len() - 1, group.len()));
            let requests = self.read..self.read + group.len();
            self.read = requests.end;
            self.groups.push(Group { open: requests.len(), requests, prompt: slot });
        }
        self.cache.read(&slots);
        let hidden = self.model.forward(&tokens, &lengths, Some(&mut self.cache));
        let drawn = self.draw(crate::ops::take_rows(hidden, &ends), start..self.read);
        self.first = drawn.into();
    }

    /// The next tokens of every running completion, as many as are decoded between two looks.
    fn step(&mut self) -> Watch {
        let drawn = if self.ahead > 1 { self.decode_ahead() } else { self.decode() };
        let mut ended = vec![false; self.running.len()];
        for drawn in drawn.chunks(self.rows()) {
            for (index, sampled) in drawn.iter().take(self.running.len()).enumerate() {
                if ended[index] {
                    continue;
                }
                let Running { request, slot, token } = &mut self.running[index];
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

    /// One token each, seen at once.
    fn decode(&mut self) -> Vec<Sampled> {
        let tokens = self.running_tokens();
        self.announce();
        let hidden = self.model.forward(&tokens, &vec![1; tokens.len()], Some(&mut self.cache));
        self.draw(hidden, self.running_requests())
    }

    /// Several tokens each: those of a step are the input of the next one without leaving the device.
    fn decode_ahead(&mut self) -> Vec<Sampled> {
        let device = self.model.device();
        let (rows, ahead) = (self.rows(), self.ahead);
        let uniforms: Vec<f32> = (self.running_requests().into_iter())
            .flat_map(|request| (0..ahead).map(move |later| (request, later)))
            .map(|(request, later)| self.uniform(request, later))
            .collect();
        let uniforms: Tensor<2> = ops::to_device(TensorData::new(uniforms, [rows, ahead]), &device);
        let mut tokens = ids(&self.running_tokens(), &device);
        self.announce();
        if let Some(numbers) = self.replay(&tokens, &uniforms) {
            (1..ahead).for_each(|_| self.cache.step_on_device(&self.running_slots()));
            return fetch(numbers);
        }
        let mut numbers = Vec::with_capacity(ahead);
        for later in 0..ahead {
            if later > 0 && self.cache.states().is_none() {
                self.announce();
            } else if later > 0 {
                self.cache.step_on_device(&self.running_slots());
            }
            let drawn = self.draw_on_device(tokens, &uniforms, later);
            tokens = drawn.tokens;
            numbers.push(drawn.numbers);
        }
        fetch(Tensor::cat(numbers, 0))
    }

    /// The next token of each row, which stays on the device.
    fn draw_on_device(&mut self, tokens: Tensor<1, Int>, uniforms: &Tensor<2>, later: usize) -> Drawn {
        let [rows, _] = uniforms.dims();
        let hidden = self.model.forward_ids(tokens, &vec![1; rows], Some(&mut self.cache));
        let logits = self.model.logits(hidden);
        Drawn::on_device(logits, &self.sampling.distribution, uniforms.clone(), later, self.cache.states())
    }

    /// What [`Self::decode_ahead`] draws after an announced step, by a replay where it has been recorded. It is recorded the
    /// third time as many rows are decoded, where enough may follow.
    fn replay(&mut self, tokens: &Tensor<1, Int>, uniforms: &Tensor<2>) -> Option<Tensor<2>> {
        let [rows, ahead] = uniforms.dims();
        let states = self.cache.states()?;
        if !self.repeated.iter().any(|(count, _)| *count == rows) {
            self.alike = if self.alike.0 == rows { (rows, self.alike.1 + 1) } else { (rows, 1) };
            let left = |row: &Running| self.sampling.max_completion_length - self.completions[row.request].tokens.len();
            let left = self.running.iter().map(left).max().unwrap_or(0);
            if self.records && self.alike.1 > 2 && left >= WORTH * ahead {
                self.record(tokens.clone(), uniforms.clone());
            }
        }
        let (_, repeated) = self.repeated.iter().find(|(count, _)| *count == rows)?;
        match repeated.replay(tokens.clone(), uniforms.clone(), states) {
            Ok(numbers) => Some(numbers),
            Err(reason) => panic!("a recorded step of decoding cannot be replayed: {reason}"),
        }
    }

    /// Records the steps of [`Self::decode_ahead`] for as many rows as are announced. Meanwhile padding is decoded, which
    /// leaves the cache of the sequences as it is.
    fn record(&mut self, tokens: Tensor<1, Int>, uniforms: Tensor<2>) {
        let [rows, ahead] = uniforms.dims();
        let (Some(padding), Some(announced)) = (self.cache.padding_states(rows), self.cache.states()) else { return };
        let recorded = Repeated::record(tokens, uniforms, padding, |mut tokens, uniforms, states| {
            self.cache.set_states(states);
            let mut numbers = Vec::with_capacity(ahead);
            for later in 0..ahead {
                let drawn = self.draw_on_device(tokens, &uniforms, later);
                tokens = drawn.tokens;
                numbers.push(drawn.numbers);
            }
            Tensor::cat(numbers, 0)
        });
        self.cache.set_states(announced);
        match recorded {
            Ok(repeated) => self.repeated.push((rows, repeated)),
            Err(reason) => {
                tracing::debug!("decoding is not recorded: {reason}");
                self.records = false;
            }
        }
    }

    /// Rows of a decoding pass. Off the CPU few numbers of rows: powers of two.
    fn rows(&self) -> usize {
        let running = self.running.len();
        if is_host(&self.model.device()) { running } else { running.next_power_of_two().max(TILE) }
    }

    /// Tells the cache of the next token of every running completion.
    fn announce(&mut self) {
        self.cache.step(&self.running_slots(), self.rows());
    }

    fn running_slots(&self) -> Vec<usize> {
        self.running.iter().map(|row| row.slot).collect()
    }

    /// The newest token of each row, padding included.
    fn running_tokens(&self) -> Vec<u32> {
        let mut tokens: Vec<u32> = self.running.iter().map(|row| row.token).collect();
        tokens.resize(self.rows(), 0);
        tokens
    }

    /// The request of each row; padding draws as the last one does.
    fn running_requests(&self) -> Vec<usize> {
        let mut requests: Vec<usize> = self.running.iter().map(|row| row.request).collect();
        requests.resize(self.rows(), requests.last().copied().unwrap_or(0));
        requests
    }

    /// The noise that the token `later` places after the next one is drawn with.
    fn uniform(&self, request: usize, later: usize) -> f32 {
        let [seed, step, problem, sample] = self.requests[request].key;
        noise::uniform(&[seed, step, problem, sample, (self.completions[request].tokens.len() + later) as u64])
    }

    /// Draws the next token of each of `requests` from its hidden state.
    fn draw(&self, hidden: Tensor<2>, requests: impl IntoIterator<Item = usize>) -> Vec<Sampled> {
        let (uniforms, contexts): (Vec<f32>, Vec<[&[u32]; 2]>) = (requests.into_iter())
            .map(|request| {
                let context = [self.requests[request].prompt.as_slice(), &self.completions[request].tokens];
                (self.uniform(request, 0), context)
            })
            .unzip();
        draw(self.model.logits(hidden), &self.sampling.distribution, &uniforms, &contexts)
    }

    /// Appends a token to its completion and says whether that goes on.
    fn take(&mut self, request: usize, sampled: &Sampled) -> Watch {
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

    /// Notes that a completion has ended; the last of its group frees the prompt.
    fn close(&mut self, request: usize) {
        let index = self.group_of(request);
        self.groups[index].open -= 1;
        if self.groups[index].open == 0 {
            self.free_prompts.push(self.groups.swap_remove(index).prompt);
        }
    }
}
