//! Traces of small pieces, each drawn independently.
//!
//! In `prose` the manner determines the whole text. Here no part of a trace predicts the next, so a shorter manner is
//! not a single arm of a bandit: a model has to find it piece by piece.

use super::{Manner, Stream};

/// A trace under construction.
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

    /// Add a piece that the solution needs.
    pub(super) fn say(&mut self, sentence: impl Into<String>) {
        self.sentences.push(sentence.into());
    }

    /// Draw whether to add a piece without effect on the answer: never in a terse or lean trace.
    pub(super) fn filler(&mut self, chance: f64) -> bool {
        !matches!(self.manner, Manner::Terse | Manner::Lean) && self.random.chance(chance)
    }

    /// Draw whether to add a piece that helps the answer: never in a terse trace, always in a lean one.
    pub(super) fn useful(&mut self, chance: f64) -> bool {
        match self.manner {
            Manner::Terse => false,
            Manner::Lean => true,
            _ => self.random.chance(chance),
        }
    }

    /// Draw whether to use a more expensive method than necessary: never in a terse trace.
    pub(super) fn may(&mut self, chance: f64) -> bool {
        self.manner != Manner::Terse && self.random.chance(chance)
    }

    /// Add one of `phrases` with probability `chance`, if the manner has filler.
    pub(super) fn remark(&mut self, chance: f64, phrases: &[&str]) {
        if self.filler(chance) {
            let phrase = *self.random.choose(phrases);
            self.say(phrase);
        }
    }

    /// Return the whole completion.
    pub(super) fn finish(self, answer: &str) -> String {
        format!("<think>{}</think>\\boxed{{{answer}}}", self.sentences.join(" "))
    }
}
