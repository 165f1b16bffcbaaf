//! The published connectors: words that open, turn or take back a step of reasoning.
//!
//! Merged from the lists that papers and their code name, each with where it is from; the last group is our own, for the
//! sequence words and starts of second thoughts of plain step-by-step prose, the embedded tasks' included.

/// Where a connector may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Anywhere.
    Anywhere,
    /// At the start of a sentence or line: elsewhere the word is an adjective or adverb ("the next term", "not so large").
    Opening,
}

use Place::{Anywhere, Opening};

/// Connectors in lower case; words of a phrase are joined by blanks or hyphens in a text.
pub(super) const LEXICON: [(&str, Place); 41] = [
    // arXiv 2511.14258, as summarised
    ("therefore", Anywhere),
    ("thus", Anywhere),
    ("as a result", Anywhere),
    // arXiv 2506.14758
    ("first", Opening),
    ("because", Anywhere),
    ("however", Anywhere),
    // arXiv 2506.13585 (CISPO)
    ("recheck", Anywhere),
    ("wait", Anywhere),
    ("aha", Anywhere),
    // arXiv 2604.05355 (ETR)
    ("but", Anywhere),
    ("hmm", Anywhere),
    // arXiv 2506.18237 (AdapThink)
    ("alternatively", Anywhere),
    ("another", Opening),
    ("instead", Anywhere),
    // the reflection words counted in sail-sg/understand-r1-zero
    ("rethink", Anywhere),
    ("think again", Anywhere),
    ("re check", Anywhere),
    ("re evaluate", Anywhere),
    ("reevaluate", Anywhere),
    ("re examine", Anywhere),
    ("reexamine", Anywhere),
    ("reassess", Anywhere),
    ("reconsider", Anywhere),
    ("double check", Anywhere),
    ("check again", Anywhere),
    ("verify again", Anywhere),
    // ours
    ("let me", Anywhere),
    ("so", Opening),
    ("then", Opening),
    ("next", Opening),
    ("now", Opening),
    ("after that", Opening),
    ("finally", Anywhere),
    ("hence", Anywhere),
    ("to be sure", Anywhere),
    ("one more time", Anywhere),
    ("actually", Anywhere),
    ("okay", Opening),
    ("ok", Opening),
    ("alright", Opening),
    ("on the other hand", Anywhere),
];
