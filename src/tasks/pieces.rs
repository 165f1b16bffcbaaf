//! Traces of small pieces, each of which is there or not by a coin of its own.
//!
//! The prose of `prose` is chosen as a whole, by the manner; here nothing about a trace says what comes next, so a shorter
//! manner is not one arm of a bandit: it has to be found piece by piece.

use super::{Manner, Stream};

/// A trace in the making.
pub(super) struct Pieces<'a> {
    manner: Manner,
    random: &'a mut Stream,
    sentences: Vec<String>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(manner: Manner, random: &'a mut Stream) -> Self {
        Self { manner, random, sentences: Vec::new() }
    }

    pub(super) fn is_lean(&self) -> bool {
        self.manner == Manner::Lean
    }

    pub(super) fn random(&mut self) -> &mut Stream {
        self.random
    }

    /// What the solution cannot do without.
    pub(super) fn say(&mut self, sentence: impl Into<String>) {
        self.sentences.push(sentence.into());
    }

    /// Whether a piece that changes nothing is there: never in a terse or lean trace.
    pub(super) fn filler(&mut self, chance: f64) -> bool {
        !matches!(self.manner, Manner::Terse | Manner::Lean) && self.random.chance(chance)
    }

    /// Whether a piece that serves the answer is there: never in a terse trace, always in a lean one.
    pub(super) fn useful(&mut self, chance: f64) -> bool {
        match self.manner {
            Manner::Terse => false,
            Manner::Lean => true,
            _ => self.random.chance(chance),
        }
    }

    /// Whether a dearer way is taken where a cheaper one would do: never in a terse trace.
    pub(super) fn may(&mut self, chance: f64) -> bool {
        self.manner != Manner::Terse && self.random.chance(chance)
    }

    /// One of `phrases`, with a chance of `chance` where the manner has words.
    pub(super) fn remark(&mut self, chance: f64, phrases: &[&str]) {
        if self.filler(chance) {
            let phrase = *self.random.choose(phrases);
            self.say(phrase);
        }
    }

    /// The whole completion.
    pub(super) fn finish(self, answer: &str) -> String {
        format!("<think>{}</think>\\boxed{{{answer}}}", self.sentences.join(" "))
    }
}
