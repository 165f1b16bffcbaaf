//! Sequences to learn from, and how they are packed into micro-batches.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// A prompt and its completion, as tokens; only the completion is learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sequence {
    /// Prompt and completion.
    pub tokens: Vec<u32>,
    /// Length of the prompt; at least 1 and below the number of tokens.
    pub prompt: usize,
}

impl Sequence {
    /// Completion tokens.
    pub fn completion(&self) -> &[u32] {
        &self.tokens[self.prompt..]
    }
}

/// Cuts `sequences` into consecutive runs of at most `tokens` tokens (one longer sequence makes a run of its own).
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

/// The tokens of some sequences end to end, the last of each left out: nothing is predicted from it.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    /// Tokens of the forward pass.
    pub tokens: Vec<u32>,
    /// How many of each sequence.
    pub lengths: Vec<usize>,
    /// Rows that predict a completion token.
    pub rows: Vec<usize>,
    /// The completion tokens.
    pub targets: Vec<u32>,
    /// Where the completion of each sequence is among `targets`.
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
