//! The ranking of token types as it is written down: with the text of each type.

use serde::{Deserialize, Serialize};

use super::{Connectors, RankedType, Ranking};

/// `token_types.json`: the token types of highest mean entropy, held against the lexicon of connectors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Types {
    /// Tokens counted.
    pub tokens: u64,
    /// Types that occurred often enough.
    pub ranked: usize,
    /// As in [`Ranking`].
    pub jaccard: Option<f64>,
    /// As in [`Ranking`].
    pub lexicon_share: f64,
    /// As in [`Ranking`].
    pub base_share: f64,
    /// Highest first.
    pub top: Vec<TypeRow>,
}

/// A token type.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TypeRow {
    /// Its id.
    pub token: u32,
    /// Its text.
    pub text: String,
    /// Occurrences.
    pub count: u64,
    /// Mean entropy, in nats.
    pub entropy: f64,
    /// Whether it begins connectors.
    pub connector: bool,
}

impl Types {
    /// A ranking among `tokens` tokens, with texts.
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
