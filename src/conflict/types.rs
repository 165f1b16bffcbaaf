//! Token types ranked by mean entropy, to compare connectors found in the data with the lexicon (the procedure of arXiv
//! 2506.01939).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::metrics::Metrics;

/// Maximum number of top types; at most a quarter of the ranked types, as half of a small vocabulary is not selective.
const TOP: usize = 50;
/// Minimum number of occurrences to be ranked; a type must also occur at least once per [`RAREST`] tokens.
const LEAST: u64 = 20;
const RAREST: u64 = 10_000;

/// Occurrences of each token type, the summed entropy at them, and those that begin a connector; over all measurements.
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
    /// Token id.
    pub token: u32,
    /// Number of occurrences.
    pub count: u64,
    /// Mean entropy at temperature 1 of the distributions it was drawn from, in nats.
    pub entropy: f64,
    /// Whether at least half of its occurrences begin a connector of the lexicon.
    pub connector: bool,
}

/// The types with the highest mean entropy, compared with the lexicon.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Top types, highest mean entropy first.
    pub top: Vec<RankedType>,
    /// Number of types that occurred often enough to be ranked.
    pub ranked: usize,
    /// Jaccard index of the top types and the ranked types that are connectors.
    pub jaccard: Option<f64>,
    /// Share of the top types that are connectors.
    pub lexicon_share: f64,
    /// Share of all ranked types that are connectors: the value expected if entropy were unrelated.
    pub base_share: f64,
}

impl TokenTypes {
    /// Count the tokens of a completion.
    pub(super) fn add(&mut self, tokens: &[u32], entropies: &[f32], connector: &[bool]) {
        for ((&token, &entropy), &connector) in tokens.iter().zip(entropies).zip(connector) {
            let entry = self.0.entry(token).or_default();
            entry.count += 1;
            entry.entropy += f64::from(entropy);
            entry.connectors += u64::from(connector);
        }
    }

    /// Return the number of tokens counted.
    pub fn tokens(&self) -> u64 {
        self.0.values().map(|entry| entry.count).sum()
    }

    /// Return the types with the highest mean entropy; `None` while no type has occurred often enough.
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
        // The sort is stable: equal means keep the order of the ids.
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
    /// Return the overlaps as metrics, without the prefix `conflict/types/`.
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

    /// Eight types, so the top quarter is two: the connector 3 with entropy 2 and the digit 4 with 1.5. Connector 5 has
    /// entropy 0; type 9 is too rare.
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
