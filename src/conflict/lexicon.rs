//! Lexicon of published connectors: words that open, redirect or retract a step of reasoning.
//!
//! Merged from the lists in papers and their code, each with its source. The last group is the project's own: sequence
//! words and openings of second thoughts in plain step-by-step prose, including the embedded tasks.

/// Position in which a connector counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectorPosition {
    /// Any position.
    Anywhere,
    /// Start of a sentence or line; elsewhere the word is an adjective or adverb ("the next term", "not so large").
    Opening,
}

use ConnectorPosition::{Anywhere, Opening};

/// Connectors in lower case. In a text, spaces or hyphens join the words of a phrase.
pub(super) const LEXICON: [(&str, ConnectorPosition); 41] = [
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
