//! Counts the distinct shapes of forward passes of a process: a device may compile kernels for new ones.

use std::collections::HashSet;
use std::sync::Mutex;

/// Number of tokens, number of sequences, tokens of the longest sequence.
type PassShape = [usize; 3];

static SEEN: Mutex<Option<HashSet<PassShape>>> = Mutex::new(None);

pub(super) fn note(lengths: &[usize]) {
    let shape = [lengths.iter().sum(), lengths.len(), lengths.iter().copied().max().unwrap_or(0)];
    let mut seen = SEEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    seen.get_or_insert_default().insert(shape);
}

/// Return the number of distinct shapes of forward passes so far, on devices other than `cpu`, which compiles nothing.
pub fn distinct_shapes() -> usize {
    let seen = SEEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    seen.as_ref().map_or(0, HashSet::len)
}
