//! Sequences to learn from, and their packing into micro-batches.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The tokens of a prompt and its completion. Only the completion is learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// Prompt tokens followed by completion tokens.
    pub tokens: Vec<u32>,
    /// Length of the prompt in tokens; at least 1 and below the length of `tokens`.
    pub prompt: usize,
}

impl Sequence {
    /// Return the completion tokens.
    pub fn completion(&self) -> &[u32] {
        &self.tokens[self.prompt..]
    }
}

/// Split `sequences` into consecutive ranges of at most `tokens` tokens. A longer sequence is a range of its own.
pub fn micro_batches(sequences: &[Sequence], tokens: usize) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let (mut first, mut held) = (0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        let length = sequence.tokens.len();
        if held > 0 && held + length > tokens {
            runs.push(first..index);
            (first, held) = (index, 0);
        }
        held += length;
    }
    if held > 0 {
        runs.push(first..sequences.len());
    }
    runs
}

/// Packed sequences: their tokens concatenated, without the last token of each, from which nothing is predicted.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    /// Input tokens of the forward pass.
    pub tokens: Vec<u32>,
    /// Input tokens of each sequence.
    pub lengths: Vec<usize>,
    /// Indices of the rows that predict a completion token.
    pub rows: Vec<usize>,
    /// The completion tokens.
    pub targets: Vec<u32>,
    /// The range of each sequence's completion within `targets`.
    pub completions: Vec<Range<usize>>,
}

impl Packed {
    pub(super) fn of(sequences: &[Sequence]) -> Self {
        let (mut tokens, mut lengths, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        let (mut targets, mut completions) = (Vec::new(), Vec::new());
        for sequence in sequences {
            let first = tokens.len();
            let inputs = sequence.tokens.len() - 1;
            tokens.extend_from_slice(&sequence.tokens[..inputs]);
            lengths.push(inputs);
            rows.extend(first + sequence.prompt - 1..first + inputs);
            completions.push(targets.len()..targets.len() + sequence.completion().len());
            targets.extend_from_slice(sequence.completion());
        }
        Self { tokens, lengths, rows, targets, completions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_is_in_exactly_one_micro_batch() {
        let lengths = [3usize, 5, 2, 9, 1, 1, 4];
        let sequences: Vec<Sequence> = lengths.iter().map(|&n| Sequence { tokens: vec![0; n], prompt: 1 }).collect();
        assert_eq!(micro_batches(&sequences, 8), [0..2, 2..3, 3..4, 4..7]);
        assert_eq!(micro_batches(&sequences, 1).len(), lengths.len());
        assert_eq!(micro_batches(&sequences, 100).first(), Some(&(0..7)));
        assert!(micro_batches(&[], 8).is_empty());
    }
}
