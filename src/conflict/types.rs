//! Token types by their mean entropy: the connectors that the data name, to hold against the lexicon (the procedure of
//! arXiv 2506.01939).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::metrics::Metrics;

/// Types ranked at most; of fewer, the top quarter, since the top half of a small vocabulary distinguishes nothing.
const TOP: usize = 50;
/// A type is ranked from this many occurrences on, and from one occurrence in [`RAREST`] tokens on.
const LEAST: u64 = 20;
const RAREST: u64 = 10_000;

/// How often each token type occurred, in how uncertain places, and how often as a connector; over all that was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenTypes(BTreeMap<u32, TypeCount>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct TypeCount {
    count: u64,
    entropy: f64,
    connectors: u64,
}

/// A token type in the ranking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankedType {
    /// The token.
    pub token: u32,
    /// Occurrences.
    pub count: u64,
    /// Mean entropy at temperature 1 of the distributions it was drawn from, in nats.
    pub entropy: f64,
    /// Whether at least half of its occurrences begin a connector of the lexicon.
    pub connector: bool,
}

/// The types with the highest mean entropy, held against the lexicon.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Highest first.
    pub top: Vec<RankedType>,
    /// Types that occurred often enough to be ranked.
    pub ranked: usize,
    /// Jaccard index of the top types and the ranked types that are connectors.
    pub jaccard: Option<f64>,
    /// Share of the top types that are connectors.
    pub lexicon_share: f64,
    /// The same of all ranked types: what the share would be if entropy had nothing to do with it.
    pub base_share: f64,
}

impl TokenTypes {
    /// Counts the tokens of a completion.
    pub(super) fn add(&mut self, tokens: &[u32], entropies: &[f32], connector: &[bool]) {
        for ((&token, &entropy), &connector) in tokens.iter().zip(entropies).zip(connector) {
            let entry = self.0.entry(token).or_default();
            entry.count += 1;
            entry.entropy += f64::from(entropy);
            entry.connectors += u64::from(connector);
        }
    }

    /// Tokens counted.
    pub fn tokens(&self) -> u64 {
        self.0.values().map(|entry| entry.count).sum()
    }

    /// The types with the highest mean entropy; none while no type occurred often enough.
    pub fn ranking(&self) -> Option<Ranking> {
        let tokens = self.tokens();
        let enough = |entry: &TypeCount| entry.count >= LEAST && entry.count * RAREST >= tokens;
        let ranked_type = |(&token, entry): (&u32, &TypeCount)| RankedType {
            token,
            count: entry.count,
            entropy: entry.entropy / entry.count as f64,
            connector: 2 * entry.connectors >= entry.count,
        };
        let mut types: Vec<RankedType> = self.0.iter().filter(|(_, entry)| enough(entry)).map(ranked_type).collect();
        // Stable: equal means keep the order of the ids.
        types.sort_by(|a, b| b.entropy.total_cmp(&a.entropy));
        let ranked = types.len();
        let connectors = types.iter().filter(|kind| kind.connector).count();
        types.truncate(TOP.min(ranked.div_ceil(4)));
        let common = types.iter().filter(|kind| kind.connector).count();
        if types.is_empty() {
            return None;
        }
        Some(Ranking {
            ranked,
            jaccard: super::sums::quotient(common as f64, (types.len() + connectors - common) as f64),
            lexicon_share: common as f64 / types.len() as f64,
            base_share: connectors as f64 / ranked as f64,
            top: types,
        })
    }
}

impl Ranking {
    /// The overlaps, without `conflict/types/` before their names.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        if let Some(jaccard) = self.jaccard {
            metrics.set("jaccard", jaccard);
        }
        metrics.set("lexicon_share", self.lexicon_share);
        metrics.set("base_share", self.base_share);
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight types, of which the top quarter is two: the connector 3 with entropy 2 and the digit 4 with 1.5; the connector 5
    /// is certain; type 9 is too rare.
    #[test]
    fn the_ranking_is_held_against_the_lexicon() {
        let mut types = TokenTypes::default();
        assert_eq!(types.ranking(), None);
        let connector: Vec<bool> = (0..8).map(|token| token == 3 || token == 5).collect();
        for _ in 0..20 {
            types.add(&[0, 1, 2, 3, 4, 5, 6, 7], &[0.1, 0.2, 0.3, 2.0, 1.5, 0.0, 0.4, 0.5], &connector);
        }
        types.add(&[9], &[9.0], &[true]);
        let ranking = types.ranking().unwrap();
        assert_eq!(
            ranking.top.iter().map(|t| (t.token, t.count, t.connector)).collect::<Vec<_>>(),
            [(3, 20, true), (4, 20, false)]
        );
        assert!((ranking.top[0].entropy - 2.0).abs() < 1e-9);
        assert_eq!((ranking.ranked, ranking.jaccard), (8, Some(1.0 / 3.0)));
        assert_eq!((ranking.lexicon_share, ranking.base_share), (0.5, 0.25));
    }

    #[test]
    fn counts_survive_a_checkpoint_to_the_bit() {
        let mut types = TokenTypes::default();
        types.add(&[7, 7, 500], &[0.1, 0.7, 1e-9], &[true, false, false]);
        let read: TokenTypes = serde_json::from_str(&serde_json::to_string(&types).unwrap()).unwrap();
        assert_eq!(read, types);
    }
}
