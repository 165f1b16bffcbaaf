//! Computes gradients from sequences and the derivatives of a loss. All kinds of training share it.
//!
//! The blocks process a micro-batch in one packed forward pass. The head never materialises the logits of the whole
//! micro-batch. It processes the completion rows in runs of whole sequences with at most [`Learner::logits`] logits.
//! Each run does its forward pass, the copy of its scores to the host and its backward pass before the next run starts.
//! Then the blocks do their backward pass from the gradient of the last block's output.

mod head;

use std::ops::Range;
use std::sync::Mutex;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use self::head::LmHead;
use super::batch::{Packed, Sequence, micro_batches};
use crate::metrics::Metrics;
use crate::model::{CausalLm, LOGITS, Rows};
use crate::objective::Upstream;
use crate::ops;
use crate::optim::Gradients;
use crate::stop::Stop;
use crate::threads;

/// Maximum tokens of a part of a micro-batch, unless it is one longer sequence (measured: LOG.md).
const PART_TOKENS: usize = 512;

/// The part of a micro-batch that is kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationCheckpointing {
    /// Keep all activations.
    #[default]
    None,
    /// Keep only the input of each block and recompute the block in the backward pass: a third more time and a fraction
    /// of the memory.
    Block,
}

/// How a step is computed. Apart from `temperature`, nothing changes its result beyond rounding.
#[derive(Debug, Clone, Copy)]
pub struct Learner<'a> {
    /// Temperature of the log-probabilities that are learned.
    pub temperature: f32,
    /// Maximum tokens of one forward and backward pass.
    pub tokens_per_microbatch: usize,
    /// The part of a micro-batch that is kept for the backward pass.
    pub activation_checkpointing: ActivationCheckpointing,
    /// Maximum number of logits in memory at a time, eight times as many on a GPU; of a small model, for each thread. A row of
    /// a larger vocabulary is computed alone.
    pub logits: usize,
    /// A stop request: the remaining micro-batches are not computed, and the result is not usable.
    pub stop: Stop<'a>,
}

impl Default for Learner<'_> {
    /// Temperature 1, 8192 tokens, nothing recomputed, 128 MiB of logits.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            tokens_per_microbatch: 8192,
            activation_checkpointing: ActivationCheckpointing::None,
            logits: LOGITS,
            stop: Stop::NEVER,
        }
    }
}

/// Scores of the completion tokens of sequences under a model, concatenated, in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScores {
    /// Log-probability at the learner's temperature.
    pub log_prob: Vec<f32>,
    /// Entropy at temperature 1.
    pub entropy: Vec<f32>,
    /// Entropy at the learner's temperature.
    pub sampling_entropy: Vec<f32>,
}

/// The amount of work of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Tokens of the sequences without the last token of each, from which nothing is predicted.
    pub tokens: usize,
    /// Padding tokens that attention computed in addition.
    pub padding: usize,
    /// Sequences that were skipped because their scores or their loss were not finite.
    pub skipped: usize,
}

impl Work {
    /// Add the work of another pass.
    pub fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.padding += other.padding;
        self.skipped += other.skipped;
    }

    /// Write the share of padding among the computed tokens, and the number of skipped sequences.
    pub(super) fn describe(&self, metrics: &mut Metrics) {
        metrics.set("perf/padding_share", self.padding as f64 / (self.tokens + self.padding).max(1) as f64);
        metrics.set("skipped_sequences", self.skipped as f64);
    }
}

/// Sort sequences by length on devices that pad a micro-batch to its longest sequence.
pub(super) fn arrange<T>(items: &mut [T], device: &Device, sequence: impl Fn(&T) -> &Sequence) {
    if !ops::is_host(device) {
        items.sort_by_key(|item| sequence(item).tokens.len());
    }
}

impl Learner<'_> {
    /// Add the gradient of a loss over `sequences` to `gradients`.
    ///
    /// `loss` is called with a range of whole sequences and the scores of their completion tokens; ranges come in any order. It
    /// returns the derivatives of the loss, or `None` to skip these sequences. They are also skipped if any of these numbers is
    /// not finite. A micro-batch whose hidden states are not finite is skipped.
    pub fn backward(
        &self,
        model: &CausalLm,
        sequences: &[Sequence],
        gradients: &mut Gradients,
        mut loss: impl FnMut(Range<usize>, &TokenScores) -> Option<Upstream> + Send,
    ) -> Work {
        let mut work = Work::default();
        let plain = &model.valid();
        if !is_divided(model) {
            for range in micro_batches(sequences, self.tokens_per_microbatch) {
                work.add(self.micro_batch((model, plain), sequences, range, gradients, &mut loss));
            }
            return work;
        }
        let (ranges, loss) = (self.parts(sequences), Mutex::new(loss));
        let part = |index: usize| {
            let mut part = Gradients::default();
            // Burn locks a recording, and recordings that share a leaf are one.
            let model = &with_own_leaves(model);
            let mut loss = |range, scores: &_| (loss.lock().expect("no part has panicked"))(range, scores);
            let work = self.micro_batch((model, plain), sequences, ranges[index].clone(), &mut part, &mut loss);
            (part, work)
        };
        threads::in_order(self.threads(sequences, &ranges), ranges.len(), part, |(part, done)| {
            gradients.merge(part);
            work.add(done);
        });
        work
    }

    /// Add the gradient of the loss over `sequences[range]` to `gradients`. Do nothing after a stop request.
    fn micro_batch(
        &self,
        (model, plain): (&CausalLm, &CausalLm),
        sequences: &[Sequence],
        range: Range<usize>,
        gradients: &mut Gradients,
        loss: &mut impl FnMut(Range<usize>, &TokenScores) -> Option<Upstream>,
    ) -> Work {
        let mut work = Work::default();
        if self.stop.requested() {
            return work;
        }
        let packed = Packed::of(&sequences[range.clone()]);
        work.tokens += packed.tokens.len();
        work.padding += ops::padding(&packed.lengths, &model.device());
        let blocks = Blocks::forward(self, model, plain, &packed);
        let hidden = ops::take_rows(blocks.output.clone(), &packed.rows);
        let head = LmHead::new(self, model, plain, &packed, hidden);
        let mut upstream = Vec::new();
        let mut learns = false;
        for run in head.runs() {
            let sequences = range.start + run.start..range.start + run.end;
            let count = sequences.len();
            let (part, taken) = head.backward(run, gradients, |scores| loss(sequences, scores));
            upstream.push(part);
            work.skipped += if taken { 0 } else { count };
            learns |= taken;
        }
        if learns {
            blocks.backward(model, &packed, Tensor::cat(upstream, 0), gradients);
        } else {
            blocks.discard();
        }
        work
    }

    /// Return the scores of the completion tokens of each sequence under `model`, without gradients; none after a stop
    /// request.
    pub fn read(&self, model: &CausalLm, sequences: &[Sequence]) -> Vec<TokenScores> {
        let mut lists = Vec::with_capacity(sequences.len());
        let plain = &model.valid();
        let (ranges, threads) = if is_divided(model) {
            let ranges = self.parts(sequences);
            let threads = self.threads(sequences, &ranges);
            (ranges, threads)
        } else {
            (micro_batches(sequences, self.tokens_per_microbatch), 1)
        };
        let part = |index: usize| -> Vec<TokenScores> {
            if self.stop.requested() {
                return Vec::new();
            }
            let packed = Packed::of(&sequences[ranges[index].clone()]);
            let rows = plain.packed(&packed.lengths);
            let hidden = plain.blocks(0..plain.num_blocks(), plain.embed(&packed.tokens), &rows);
            let hidden = ops::take_rows(hidden, &packed.rows);
            let head = LmHead::new(self, model, plain, &packed, hidden);
            let (scores, _) = head.values(&head.pieces(0..packed.targets.len()));
            packed.completions.iter().map(|completion| scores.slice(completion.clone())).collect()
        };
        threads::in_order(threads, ranges.len(), part, |part| lists.extend(part));
        if self.stop.requested() {
            lists.clear(); // Some in the middle may be missing.
        }
        lists
    }

    /// Divide `sequences` of a small model into parts, each for one thread. The parts, and so the sums of gradients, do not
    /// depend on the number of threads.
    fn parts(&self, sequences: &[Sequence]) -> Vec<Range<usize>> {
        micro_batches(sequences, self.tokens_per_microbatch.min(PART_TOKENS))
    }

    /// Return the number of threads, each of which computes a part at a time: together at most [`Self::tokens_per_microbatch`]
    /// tokens, unless a sequence has more.
    fn threads(&self, sequences: &[Sequence], parts: &[Range<usize>]) -> usize {
        let longest = sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
        let (_, at_once) = self.largest_part(longest);
        threads::used(at_once.min(parts.len()))
    }

    /// Return the maximum tokens of a part of a small model, and the maximum number of parts at a time, if no sequence has more
    /// than `longest` tokens.
    pub(crate) fn largest_part(&self, longest: usize) -> (usize, usize) {
        let tokens = self.tokens_per_microbatch.min(PART_TOKENS).max(longest);
        (tokens, (self.tokens_per_microbatch / tokens).max(1))
    }
}

/// Return whether a micro-batch is divided among threads: the operations of a small model are too short to be divided.
fn is_divided(model: &CausalLm) -> bool {
    ops::is_host(&model.device()) && model.num_params() <= threads::MAX_PARAMETERS
}

/// Return the model with the same weights, as leaves of recordings of their own.
fn with_own_leaves(model: &CausalLm) -> CausalLm {
    struct OwnLeaves;
    impl ModuleMapper for OwnLeaves {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let leaf = |value: Tensor<D>| match value.is_require_grad() {
                true => Tensor::from_inner(value.inner()).require_grad(),
                false => value,
            };
            param.map(leaf)
        }
    }
    model.clone().map(&mut OwnLeaves)
}

/// A recorded part of the computation: a leaf tensor and the output computed from it.
struct Tracked {
    leaf: Tensor<2>,
    output: Tensor<2>,
}

impl Tracked {
    fn new(input: Tensor<2>, compute: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        let leaf = Tensor::from_inner(input).require_grad();
        Self { output: compute(leaf.clone()), leaf }
    }

    /// Add the gradients of the parameters and return the gradient of the input.
    fn backward(self, model: &CausalLm, upstream: Tensor<2>, gradients: &mut Gradients) -> Tensor<2> {
        let mut found = ops::seed(self.output, upstream).backward();
        gradients.add(model, &mut found);
        self.leaf.grad_remove(&mut found).expect("the output depends on its input")
    }
}

/// The data kept of a block for the backward pass: its recording, or its input from which it is recomputed.
#[allow(clippy::large_enum_variant, reason = "one per block")]
enum Kept {
    Record(Tracked),
    Input(Tensor<2>),
}

/// The forward pass of all blocks for a micro-batch. Each block is recorded on its own: its gradients are added to the
/// sums and its memory is freed before the backward pass of the next block.
struct Blocks {
    rows: Rows,
    kept: Vec<Kept>,
    output: Tensor<2>,
}

impl Blocks {
    fn forward(learner: &Learner, model: &CausalLm, plain: &CausalLm, packed: &Packed) -> Self {
        let rows = plain.packed(&packed.lengths);
        let count = model.num_blocks();
        let mut x = plain.embed(&packed.tokens);
        let mut kept = Vec::with_capacity(count);
        for block in 0..count {
            // The backward pass starts with the last block: recomputing it would save nothing.
            if learner.activation_checkpointing == ActivationCheckpointing::Block && block + 1 < count {
                let output = plain.blocks(block..block + 1, x.clone(), &rows);
                kept.push(Kept::Input(std::mem::replace(&mut x, output)));
            } else {
                let tracked = Tracked::new(x, |x| model.blocks(block..block + 1, x, &rows));
                x = tracked.output.clone().inner();
                kept.push(Kept::Record(tracked));
            }
        }
        Self { rows, kept, output: x }
    }

    /// Free the memory of the recordings, which Burn only does in a backward pass.
    fn discard(self) {
        for kept in self.kept {
            if let Kept::Record(tracked) = kept {
                tracked.output.sum().backward();
            }
        }
    }

    /// Run the backward pass. `upstream` is the gradient of the rows that predict a completion token.
    fn backward(self, model: &CausalLm, packed: &Packed, upstream: Tensor<2>, gradients: &mut Gradients) {
        let zeros = Tensor::zeros(self.output.dims(), &upstream.device());
        drop(self.output);
        let at: Vec<u32> = packed.rows.iter().map(|&row| row as u32).collect();
        let mut upstream = ops::update::add_rows(zeros, upstream, &at);
        for (block, kept) in self.kept.into_iter().enumerate().rev() {
            let tracked = match kept {
                Kept::Record(tracked) => tracked,
                Kept::Input(input) => Tracked::new(input, |x| model.blocks(block..block + 1, x, &self.rows)),
            };
            upstream = tracked.backward(model, upstream, gradients);
        }
        gradients.add_embedding(model, &packed.tokens, upstream);
    }
}

impl TokenScores {
    fn slice(&self, tokens: Range<usize>) -> Self {
        let of = |values: &[f32]| values[tokens.clone()].to_vec();
        Self { log_prob: of(&self.log_prob), entropy: of(&self.entropy), sampling_entropy: of(&self.sampling_entropy) }
    }

    fn is_finite(&self) -> bool {
        self.log_prob.iter().chain(&self.sampling_entropy).all(|x| x.is_finite())
    }
}

#[cfg(test)]
mod tests;
