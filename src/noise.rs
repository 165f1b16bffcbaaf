//! Random numbers as a pure function of their key.
//!
//! Every random number in the project is `mix(key words…)`: there is no generator whose state could be lost, shared or
//! consumed in another order. Sampling noise is a function of (seed, step, problem, sample, position), so a completion
//! does not depend on the rest of the batch; data order and generated tasks are functions of their seed and index. The
//! mixer is the SplitMix64 finaliser (Steele, Lea, Flood 2014), applied once per word.

/// Use of random numbers: a word of their keys, so that two uses do not share numbers. It is the first word, but for
/// completions, whose keys begin with the seed. Evaluations have no such word, but a seed of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Partition of a step into mini-batches.
    MiniBatches = 1,
    /// Tokens dropped by Clip-Cov.
    Covariance,
    /// Training completions, keyed by the draw of their problem.
    Rollouts,
    /// Order of problems and rows.
    Order,
}

impl Purpose {
    /// Return the word of its keys.
    pub fn word(self) -> u64 {
        self as u64
    }
}

/// Hash a list of words into 64 well-mixed bits. The order of the words matters.
pub fn mix(words: &[u64]) -> u64 {
    words.iter().fold(0x243f_6a88_85a3_08d3, |state, &word| {
        finalise(state ^ finalise(word.wrapping_add(0x9e37_79b9_7f4a_7c15)))
    })
}

/// Hash a text, for keys such as a problem's identity.
pub fn mix_text(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |state, byte| finalise(state ^ u64::from(byte)))
}

fn finalise(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Return a uniform number in `[0, 1)` with 24 random bits.
pub fn uniform(words: &[u64]) -> f32 {
    (mix(words) >> 40) as f32 / (1u64 << 24) as f32
}

/// A stream of random numbers under one key, for code that needs many (task generators, shuffles).
#[derive(Debug, Clone)]
pub struct Stream {
    key: u64,
    counter: u64,
}

impl Stream {
    /// Create a stream keyed by `words`; equal keys give equal streams.
    pub fn new(words: &[u64]) -> Self {
        Self { key: mix(words), counter: 0 }
    }

    /// Return the same stream without its next `draws` draws.
    pub fn skip(&self, draws: u64) -> Self {
        Self { key: self.key, counter: self.counter + draws }
    }

    /// Return the next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.counter += 1;
        mix(&[self.key, self.counter])
    }

    /// Return a uniform number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Return true with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Return an integer in `low..=high`.
    ///
    /// # Panics
    /// When `low > high`.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        assert!(low <= high, "empty range {low}..={high}");
        low + (self.next_u64() % (high - low + 1) as u64) as i64
    }

    /// Return one of `items`.
    ///
    /// # Panics
    /// When `items` is empty.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.range(0, items.len() as i64 - 1) as usize]
    }

    /// Shuffle `items` in place (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.range(0, last as i64) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_give_equal_streams_and_order_matters() {
        let draw = |words: &[u64]| Stream::new(words).next_u64();
        assert_eq!(draw(&[1, 2, 3]), draw(&[1, 2, 3]));
        assert_ne!(draw(&[1, 2, 3]), draw(&[1, 3, 2]));
        assert_ne!(draw(&[0]), draw(&[0, 0]));
    }

    #[test]
    fn uniform_fills_the_unit_interval_evenly() {
        let mut bins = [0usize; 10];
        for i in 0..100_000u64 {
            bins[(uniform(&[7, i]) * 10.0) as usize] += 1;
        }
        // The standard deviation of a bin is 95; six standard deviations have a chance of about 1e-8.
        assert!(bins.iter().all(|&n| n.abs_diff(10_000) < 570), "{bins:?}");
    }

    #[test]
    fn shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Stream::new(&[3]).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
