//! From sequences and the derivatives of a loss to gradients: the work of every kind of training on the device.
//!
//! A micro-batch goes through the blocks in one packed pass. The head never has the logits of the whole micro-batch: it
//! takes the completion rows in runs of whole sequences of at most [`Learner::logits`] numbers, and each run goes forward, to the
//! host, and backward before the next. Then the blocks go backward, from the gradient of their last output.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::batch::{Packed, Sequence, micro_batches};
use crate::metrics::Metrics;
use crate::model::{CausalLm, LOGITS, Rows};
use crate::objective::Upstream;
use crate::ops::{self, Scores, to_host_together};
use crate::optim::Gradients;
use crate::stop::Stop;

/// The part of a micro-batch that is kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationCheckpointing {
    /// Everything that it needs.
    #[default]
    None,
    /// The input of each block; the block is run again when its turn comes, which takes a third more time.
    Block,
}

/// How a step is computed; nothing here changes its result beyond rounding.
#[derive(Debug, Clone, Copy)]
pub struct Learner<'a> {
    /// Temperature of the distribution whose log-probabilities are learned.
    pub temperature: f32,
    /// Tokens of one forward and backward pass at most.
    pub tokens_per_microbatch: usize,
    /// The part of a micro-batch that is kept for the backward pass.
    pub activation_checkpointing: ActivationCheckpointing,
    /// Logits that exist at a time, in numbers, eight times as many on a GPU; a row of a larger vocabulary is taken alone.
    pub logits: usize,
    /// A request to end early: the micro-batches that are left are not computed, and the gradient is of no use.
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

/// Scores of the completion tokens of sequences under a model, end to end, in nats.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenScores {
    /// Log-probability at the learner's temperature.
    pub log_prob: Vec<f32>,
    /// Entropy at temperature 1.
    pub entropy: Vec<f32>,
    /// Entropy at the learner's temperature.
    pub sampling_entropy: Vec<f32>,
}

/// Amount of work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Tokens of the sequences, the last of each left out: nothing is predicted from it.
    pub tokens: usize,
    /// Tokens of padding that attention computed beside them.
    pub padding: usize,
    /// Sequences left out, since their scores or their loss were not finite.
    pub skipped: usize,
}

impl Work {
    /// Adds the work of another pass.
    pub fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.padding += other.padding;
        self.skipped += other.skipped;
    }

    /// Notes the share of padding among the tokens computed, and the sequences left out.
    pub(super) fn describe(&self, metrics: &mut Metrics) {
        metrics.set("perf/padding_share", self.padding as f64 / (self.tokens + self.padding).max(1) as f64);
        metrics.set("skipped_sequences", self.skipped as f64);
    }
}

/// Puts sequences of like length together where the device pads a micro-batch to its longest.
pub(super) fn arrange<T>(items: &mut [T], device: &Device, sequence: impl Fn(&T) -> &Sequence) {
    if !ops::is_host(device) {
        items.sort_by_key(|item| sequence(item).tokens.len());
    }
}

impl Learner<'_> {
    /// Adds the gradient of a loss over `sequences` to `gradients`.
    ///
    /// `loss` is told of runs of whole sequences and the scores of their completion tokens, and answers with the
    /// derivatives of the loss, or with nothing when the run must be left out. A run is left out, too, when any of these
    /// numbers is not finite, and so is a micro-batch whose hidden states are not.
    pub fn backward(
        &self,
        model: &CausalLm,
        sequences: &[Sequence],
        gradients: &mut Gradients,
        mut loss: impl FnMut(Range<usize>, &TokenScores) -> Option<Upstream>,
    ) -> Work {
        let mut work = Work::default();
        let plain = model.valid();
        for range in micro_batches(sequences, self.tokens_per_microbatch) {
            if self.stop.requested() {
                break;
            }
            let packed = Packed::of(&sequences[range.clone()]);
            work.tokens += packed.tokens.len();
            work.padding += ops::padding(&packed.lengths, &model.device());
            let blocks = Blocks::forward(self, model, &plain, &packed);
            let hidden = ops::take_rows(blocks.output.clone(), &packed.rows);
            let head = Head::new(self, model, &plain, &packed, hidden);
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
            if !learns {
                blocks.discard();
                continue;
            }
            blocks.backward(model, &packed, Tensor::cat(upstream, 0), gradients);
        }
        work
    }

    /// Scores of the completion tokens of each sequence under `model`, without gradients: the only such path.
    pub fn read(&self, model: &CausalLm, sequences: &[Sequence]) -> Vec<TokenScores> {
        let mut lists = Vec::with_capacity(sequences.len());
        let plain = model.valid();
        for range in micro_batches(sequences, self.tokens_per_microbatch) {
            let packed = Packed::of(&sequences[range]);
            let rows = plain.packed(&packed.lengths);
            let hidden = plain.blocks(0..plain.num_blocks(), plain.embed(&packed.tokens), &rows);
            let hidden = ops::take_rows(hidden, &packed.rows);
            let head = Head::new(self, model, &plain, &packed, hidden);
            let (scores, _) = head.values(&head.pieces(0..packed.targets.len()));
            lists.extend(packed.completions.iter().map(|completion| scores.slice(completion.clone())));
        }
        lists
    }
}

/// A part of the computation that can be gone through backward: a leaf and what was computed from it.
struct Tracked {
    leaf: Tensor<2>,
    output: Tensor<2>,
}

impl Tracked {
    fn new(input: Tensor<2>, compute: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        let leaf = Tensor::from_inner(input).require_grad();
        Self { output: compute(leaf.clone()), leaf }
    }

    /// Adds the gradients of the parameters and gives that of the input.
    fn backward(self, model: &CausalLm, upstream: Tensor<2>, gradients: &mut Gradients) -> Tensor<2> {
        let mut found = ops::seed(self.output, upstream).backward();
        gradients.add(model, &mut found);
        self.leaf.grad_remove(&mut found).expect("the output depends on its input")
    }
}

/// A block on its way: recorded, or with its input alone, to be run again.
#[allow(clippy::large_enum_variant, reason = "one per block")]
enum Kept {
    Record(Tracked),
    Input(Tensor<2>),
}

/// The blocks' part of a micro-batch. Each block is recorded on its own, so that its gradients are added to the sums, and
/// what it kept is freed, before the next goes backward.
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
            // The last block goes backward first: nothing is gained by running it again.
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

    /// Frees what a recorded pass holds: Burn does that in a backward pass only.
    fn discard(self) {
        for kept in self.kept {
            if let Kept::Record(tracked) = kept {
                tracked.output.sum().backward();
            }
        }
    }

    /// `upstream` is that of the rows which predict a completion token.
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

/// The head's part of a micro-batch, for the rows that predict a completion token.
struct Head<'a> {
    learner: &'a Learner<'a>,
    model: &'a CausalLm,
    /// The model without autodiff.
    plain: &'a CausalLm,
    packed: &'a Packed,
    hidden: Tensor<2>,
    /// Zero, or no finite number where the hidden rows have one that is none. Read with the scores: a read waits for the
    /// device.
    flaw: Tensor<1>,
}

impl<'a> Head<'a> {
    fn new(
        learner: &'a Learner<'a>,
        model: &'a CausalLm,
        plain: &'a CausalLm,
        packed: &'a Packed,
        hidden: Tensor<2>,
    ) -> Self {
        let flaw = hidden.clone().mul_scalar(0.0).sum();
        Self { learner, model, plain, packed, hidden, flaw }
    }

    /// Rows whose logits exist at a time.
    fn most(&self) -> usize {
        self.model.rows_at_once(self.learner.logits)
    }

    /// Runs of whole sequences of at most [`Self::most`] rows; one longer sequence makes a run of its own.
    fn runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut held = 0;
        for (index, rows) in self.packed.completions.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if held + rows.len() <= self.most() => run.end = index + 1,
                _ => {
                    runs.push(index..index + 1);
                    held = 0;
                }
            }
            held += rows.len();
        }
        runs
    }

    /// Equal pieces of a run of rows, of at most [`Self::most`] rows.
    fn pieces(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let count = rows.len().div_ceil(self.most()).max(1);
        let size = rows.len().div_ceil(count).max(1);
        rows.clone().step_by(size).map(|first| first..(first + size).min(rows.end)).collect()
    }

    /// The gradient of the hidden rows of a run, and whether it was taken: zero where it was not.
    fn backward(
        &self,
        run: Range<usize>,
        gradients: &mut Gradients,
        loss: impl FnOnce(&TokenScores) -> Option<Upstream>,
    ) -> (Tensor<2>, bool) {
        let rows = self.packed.completions[run.start].start..self.packed.completions[run.end - 1].end;
        let pieces = self.pieces(rows.clone());
        // A loss may need all of a sequence. So where that is more than one piece, it is read first and computed again.
        let mut kept = (pieces.len() == 1).then(|| self.piece(rows.clone()));
        let (seen, sound) = match &kept {
            Some(piece) => self.read(vec![piece.scores.clone()]),
            None => self.values(&pieces),
        };
        let upstream = if sound && seen.is_finite() { loss(&seen) } else { None }.filter(|upstream| {
            assert!(upstream.log_prob.len() == rows.len(), "one derivative per completion token");
            upstream.log_prob.iter().chain(&upstream.entropy).all(|x| x.is_finite())
        });
        let Some(upstream) = upstream else {
            if let Some(piece) = kept {
                piece.scores.log_prob.sum().backward(); // frees it
            }
            let [_, width] = self.hidden.dims();
            return (Tensor::zeros([rows.len(), width], &self.hidden.device()), false);
        };
        let parts = pieces.into_iter().map(|piece| {
            let own = piece.start - rows.start..piece.end - rows.start;
            let recorded = kept.take().unwrap_or_else(|| self.piece(piece));
            recorded.backward(self.model, &upstream.log_prob[own.clone()], &upstream.entropy[own], gradients)
        });
        (Tensor::cat(parts.collect(), 0), true)
    }

    fn rows(&self, rows: Range<usize>) -> Tensor<2> {
        let [_, width] = self.hidden.dims();
        self.hidden.clone().slice([rows, 0..width])
    }

    fn piece(&self, rows: Range<usize>) -> Piece {
        let leaf = Tensor::from_inner(self.rows(rows.clone())).require_grad();
        let logits = self.model.head(leaf.clone());
        Piece { leaf, scores: ops::scores(logits, &self.packed.targets[rows], self.learner.temperature) }
    }

    /// Scores of rows, without anything kept, and whether all hidden rows are finite.
    fn values(&self, pieces: &[Range<usize>]) -> (TokenScores, bool) {
        let scores = |piece: &Range<usize>| {
            let logits = self.plain.head(self.rows(piece.clone()));
            ops::scores(logits, &self.packed.targets[piece.clone()], self.learner.temperature)
        };
        self.read(pieces.iter().map(scores).collect())
    }

    /// Scores end to end, and whether all hidden rows are finite, in one read.
    fn read(&self, scores: Vec<Scores>) -> (TokenScores, bool) {
        let lists = scores.into_iter().flat_map(|scores| [scores.log_prob, scores.entropy, scores.entropy_sampling]);
        let read = to_host_together(lists.map(Tensor::inner).chain([self.flaw.clone()]).collect());
        let (flaw, lists) = read.split_last().expect("the flaw is one");
        let mut seen = TokenScores::default();
        for [log_prob, entropy, sampling_entropy] in lists.as_chunks::<3>().0 {
            seen.log_prob.extend(log_prob);
            seen.entropy.extend(entropy);
            seen.sampling_entropy.extend(sampling_entropy);
        }
        (seen, flaw[0] == 0.0)
    }
}

/// Recorded logits of some rows, and their scores.
struct Piece {
    leaf: Tensor<2>,
    scores: Scores,
}

impl Piece {
    fn backward(self, model: &CausalLm, log_prob: &[f32], entropy: &[f32], gradients: &mut Gradients) -> Tensor<2> {
        let device = self.leaf.device();
        let pull = |x: Tensor<1>, by: &[f32]| (x * ops::to_device(TensorData::from(by), &device)).sum();
        let mut product = pull(self.scores.log_prob, log_prob);
        if entropy.iter().any(|&derivative| derivative != 0.0) {
            product = product + pull(self.scores.entropy_sampling, entropy);
        }
        let mut found = product.backward();
        gradients.add(model, &mut found);
        self.leaf.grad_remove(&mut found).expect("log-probabilities depend on hidden states")
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
