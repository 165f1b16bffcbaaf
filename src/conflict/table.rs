//! Serialised ranking of token types, with the text of each type.

use serde::{Deserialize, Serialize};

use super::{Connectors, RankedType, Ranking};

/// Contents of `token_types.json`: the token types of highest mean entropy, compared with the lexicon of connectors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Types {
    /// Number of tokens counted.
    pub tokens: u64,
    /// Number of types that occurred often enough to be ranked.
    pub ranked: usize,
    /// See [`Ranking::jaccard`].
    pub jaccard: Option<f64>,
    /// See [`Ranking::lexicon_share`].
    pub lexicon_share: f64,
    /// See [`Ranking::base_share`].
    pub base_share: f64,
    /// Top types, highest mean entropy first.
    pub top: Vec<TypeRow>,
}

/// A token type in the ranking.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TypeRow {
    /// Token id.
    pub token: u32,
    /// Text of the token.
    pub text: String,
    /// Number of occurrences.
    pub count: u64,
    /// Mean entropy, in nats.
    pub entropy: f64,
    /// Whether at least half of its occurrences begin a connector.
    pub connector: bool,
}

impl Types {
    /// Convert a ranking over `tokens` tokens and add the text of each type.
    pub(crate) fn new(ranking: &Ranking, tokens: u64, connectors: &Connectors) -> Self {
        let Ranking { top, ranked, jaccard, lexicon_share, base_share } = ranking;
        let row = |kind: &RankedType| TypeRow {
            token: kind.token,
            text: connectors.piece(kind.token).to_string(),
            count: kind.count,
            entropy: kind.entropy,
            connector: kind.connector,
        };
        let (jaccard, lexicon_share, base_share) = (*jaccard, *lexicon_share, *base_share);
        Self { tokens, ranked: *ranked, jaccard, lexicon_share, base_share, top: top.iter().map(row).collect() }
    }
}
