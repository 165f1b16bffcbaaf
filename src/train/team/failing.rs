//! A rank that computes nothing and fails at an update, for tests.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::orders::{Order, Reply, decode, encode};
use crate::objective::Statistics;
use crate::ranks::Reduce;
use crate::train::learner::Work;

/// The transport of two ranks, as rank 0 sees it. Rank 1 fails at the update with number `at`, from 1.
#[derive(Debug)]
pub(in crate::train) struct Failing {
    at: usize,
    updates: Cell<usize>,
    replies: RefCell<VecDeque<Reply>>,
}

impl Failing {
    pub(in crate::train) fn at_update(at: usize) -> Self {
        Self { at, updates: Cell::new(0), replies: RefCell::new([Reply::Hello(Vec::new())].into()) }
    }
}

impl Reduce for Failing {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        2
    }

    fn sum(&self, _values: &mut [f32]) {}

    fn broadcast(&self, _values: &mut [f32]) {}

    fn send(&self, _to: usize, message: &[u8]) {
        let reply = match decode(message) {
            Order::Learn { lessons, .. } => {
                self.updates.set(self.updates.get() + 1);
                if self.updates.get() == self.at {
                    Reply::Failed("out of memory".to_string())
                } else {
                    let (statistics, work) = (Statistics::default(), Work::default());
                    Reply::Learned { statistics, work, old: vec![None; lessons.len()] }
                }
            }
            Order::Read { sequences, .. } => {
                Reply::LogProbs(sequences.iter().map(|sequence| vec![-1.0; sequence.completion().len()]).collect())
            }
            Order::Sum => Reply::Ready,
            _ => return,
        };
        self.replies.borrow_mut().push_back(reply);
    }

    fn pending(&self, _from: usize) -> bool {
        !self.replies.borrow().is_empty()
    }

    fn receive(&self, _from: usize) -> Vec<u8> {
        encode(&self.replies.borrow_mut().pop_front().expect("every order has its reply"))
    }
}
