//! The head of a micro-batch: logits of a few rows at a time, their scores, and their backward pass.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};

use super::super::batch::Packed;
use super::{Learner, TokenScores};
use crate::model::CausalLm;
use crate::objective::Upstream;
use crate::ops::{self, RowScores, to_host_together};
use crate::optim::Gradients;

/// The head's computation for a micro-batch, for the rows that predict a completion token.
pub(super) struct LmHead<'a> {
    learner: &'a Learner<'a>,
    model: &'a CausalLm,
    /// The model without autodiff.
    plain: &'a CausalLm,
    packed: &'a Packed,
    hidden: Tensor<2>,
    /// `[1]`: zero if all hidden rows are finite, else not finite. It is read together with the scores, since every
    /// read waits for the device.
    finite_check: Tensor<1>,
}

impl<'a> LmHead<'a> {
    pub(super) fn new(
        learner: &'a Learner<'a>,
        model: &'a CausalLm,
        plain: &'a CausalLm,
        packed: &'a Packed,
        hidden: Tensor<2>,
    ) -> Self {
        let finite_check = hidden.clone().mul_scalar(0.0).sum();
        Self { learner, model, plain, packed, hidden, finite_check }
    }

    /// Return the maximum number of rows whose logits are in memory at a time.
    fn max_rows(&self) -> usize {
        self.model.rows_at_once(self.learner.logits)
    }

    /// Return runs of whole sequences of at most [`Self::max_rows`] rows. A longer sequence is a run of its own.
    pub(super) fn runs(&self) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut held = 0;
        for (index, rows) in self.packed.completions.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if held + rows.len() <= self.max_rows() => run.end = index + 1,
                _ => {
                    runs.push(index..index + 1);
                    held = 0;
                }
            }
            held += rows.len();
        }
        runs
    }

    /// Split rows into equal pieces of at most [`Self::max_rows`] rows.
    pub(super) fn pieces(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let count = rows.len().div_ceil(self.max_rows()).max(1);
        let size = rows.len().div_ceil(count).max(1);
        rows.clone().step_by(size).map(|first| first..(first + size).min(rows.end)).collect()
    }

    /// Return the gradient of the hidden rows of a run, and whether the run learns. The gradient is zero if it does
    /// not.
    pub(super) fn backward(
        &self,
        run: Range<usize>,
        gradients: &mut Gradients,
        loss: impl FnOnce(&TokenScores) -> Option<Upstream>,
    ) -> (Tensor<2>, bool) {
        let rows = self.packed.completions[run.start].start..self.packed.completions[run.end - 1].end;
        let pieces = self.pieces(rows.clone());
        // A loss may need the scores of a whole sequence. If the rows are several pieces, their scores are read first
        // and each piece is then recomputed with a recording.
        let mut kept = (pieces.len() == 1).then(|| self.piece(rows.clone()));
        let (seen, is_finite) = match &kept {
            Some(piece) => self.read(vec![piece.scores.clone()]),
            None => self.values(&pieces),
        };
        let upstream = if is_finite && seen.is_finite() { loss(&seen) } else { None }.filter(|upstream| {
            assert!(upstream.log_prob.len() == rows.len(), "one derivative per completion token");
            upstream.log_prob.iter().chain(&upstream.entropy).all(|x| x.is_finite())
        });
        let Some(upstream) = upstream else {
            if let Some(piece) = kept {
                piece.scores.log_prob.sum().backward(); // frees its recording
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

    fn piece(&self, rows: Range<usize>) -> ScoredRows {
        let leaf = Tensor::from_inner(self.rows(rows.clone())).require_grad();
        let logits = self.model.head(leaf.clone());
        ScoredRows { leaf, scores: ops::scores(logits, &self.packed.targets[rows], self.learner.temperature) }
    }

    /// Return scores of rows without a recording, and whether all hidden rows are finite.
    pub(super) fn values(&self, pieces: &[Range<usize>]) -> (TokenScores, bool) {
        let scores = |piece: &Range<usize>| {
            let logits = self.plain.head(self.rows(piece.clone()));
            ops::scores(logits, &self.packed.targets[piece.clone()], self.learner.temperature)
        };
        self.read(pieces.iter().map(scores).collect())
    }

    /// Read scores, concatenated, and whether all hidden rows are finite, in one transfer.
    fn read(&self, scores: Vec<RowScores>) -> (TokenScores, bool) {
        let lists = scores.into_iter().flat_map(|scores| [scores.log_prob, scores.entropy, scores.entropy_sampling]);
        let read = to_host_together(lists.map(Tensor::inner).chain([self.finite_check.clone()]).collect());
        let (finite_check, lists) = read.split_last().expect("the check is one of them");
        let mut seen = TokenScores::default();
        for [log_prob, entropy, sampling_entropy] in lists.as_chunks::<3>().0 {
            seen.log_prob.extend(log_prob);
            seen.entropy.extend(entropy);
            seen.sampling_entropy.extend(sampling_entropy);
        }
        (seen, finite_check[0] == 0.0)
    }
}

/// Some hidden rows, as a leaf of the recording, and their scores.
struct ScoredRows {
    leaf: Tensor<2>,
    scores: RowScores,
}

impl ScoredRows {
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
