//! Positions of connectors in a completion, and the steps around them.

use std::collections::{HashMap, HashSet};
use std::ops::{AddAssign, Range};

use super::lexicon::{ConnectorPosition, LEXICON};
use super::sums::quotient;
use crate::text::tokenizer::Tokenizer;

/// Finder of connectors in completions of one tokenizer.
#[derive(Debug, Clone)]
pub struct Connectors {
    /// Text of each token id.
    pieces: Vec<String>,
    /// Phrases by their first word, longest first: the words after the first, and the allowed place.
    phrases: HashMap<&'static str, Vec<(Vec<&'static str>, ConnectorPosition)>>,
}

/// Connectors and steps found in a completion.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConnectorMarks {
    /// Whether a connector begins in each token. For a connector of several tokens or words this is the first token,
    /// where the model decides for it.
    pub connector: Vec<bool>,
    /// Counts of connectors and steps.
    pub steps: ConnectorCounts,
}

/// Counts of connectors and steps. A step is a sentence, a line, or a section between semicolons. Its result is its
/// last number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectorCounts {
    /// Number of connectors.
    pub connectors: usize,
    /// Connectors that begin a step.
    pub opening: usize,
    /// Tokens from each connector to the end of its step, summed.
    pub tokens_to_end: usize,
    /// Number of steps that begin with a connector, of those with a result, and of those that repeat an earlier result.
    pub opened: [usize; 3],
    /// The same counts for all other steps.
    pub plain: [usize; 3],
}

impl AddAssign for ConnectorCounts {
    fn add_assign(&mut self, other: Self) {
        self.connectors += other.connectors;
        self.opening += other.opening;
        self.tokens_to_end += other.tokens_to_end;
        for k in 0..3 {
            self.opened[k] += other.opened[k];
            self.plain[k] += other.plain[k];
        }
    }
}

impl ConnectorCounts {
    /// Return `P(a new step starts | connector)`: the share of the connectors that begin a step.
    pub fn opens_step(&self) -> Option<f64> {
        quotient(self.opening as f64, self.connectors as f64)
    }

    /// Return the mean number of tokens after a connector to the end of its step, including the separator.
    pub fn tokens_to_step_end(&self) -> Option<f64> {
        quotient(self.tokens_to_end as f64, self.connectors as f64)
    }

    /// Return the share of the steps that begin with a connector.
    pub fn opened_share(&self) -> Option<f64> {
        quotient(self.opened[0] as f64, (self.opened[0] + self.plain[0]) as f64)
    }

    /// Return the share of repeated results among the steps that a connector begins, and among the others.
    pub fn restated(&self) -> [Option<f64>; 2] {
        [self.opened, self.plain].map(|[_, results, restated]| quotient(restated as f64, results as f64))
    }
}

impl Connectors {
    /// Build the finder for the tokens of `tokenizer`.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        // Some decoders drop the space before the first token of a text, so each token is decoded after another one.
        let before = tokenizer.encode("a").unwrap_or_default();
        let start = tokenizer.decode(&before, false).len();
        let piece = |id: usize| {
            let ids: Vec<u32> = before.iter().copied().chain([id as u32]).collect();
            tokenizer.decode(&ids, false).get(start..).map(str::to_string).unwrap_or_default()
        };
        Self::of((0..tokenizer.vocab_size()).map(piece).collect())
    }

    pub(super) fn of(pieces: Vec<String>) -> Self {
        let mut phrases: HashMap<_, Vec<(Vec<_>, ConnectorPosition)>> = HashMap::new();
        for (phrase, place) in LEXICON {
            let mut words = phrase.split(' ');
            let first = words.next().unwrap_or_default();
            phrases.entry(first).or_default().push((words.collect(), place));
        }
        phrases.values_mut().for_each(|list| list.sort_by_key(|(rest, _)| std::cmp::Reverse(rest.len())));
        Self { pieces, phrases }
    }

    /// Return the text of a token; empty for an id outside the vocabulary.
    pub fn piece(&self, token: u32) -> &str {
        self.pieces.get(token as usize).map_or("", String::as_str)
    }

    /// Find the connectors and steps of a completion.
    pub fn read(&self, tokens: &[u32]) -> ConnectorMarks {
        let mut text = String::new();
        let mut starts = Vec::with_capacity(tokens.len());
        for &token in tokens {
            starts.push(text.len());
            text.push_str(self.piece(token));
        }
        let at = |byte: usize| starts.partition_point(|&start| start <= byte) - 1;
        let steps = steps(&text);
        let mut reading = ConnectorMarks { connector: vec![false; tokens.len()], steps: ConnectorCounts::default() };
        let mut openings = HashSet::new();
        for byte in self.find(&text) {
            let token = at(byte);
            let step = &steps[steps.partition_point(|step| step.end <= byte)];
            reading.connector[token] = true;
            reading.steps.connectors += 1;
            reading.steps.tokens_to_end += at(step.end - 1) - token;
            if text[step.start..byte].trim().is_empty() {
                reading.steps.opening += 1;
                openings.insert(step.start);
            }
        }
        let mut results = HashSet::new();
        for step in steps {
            let counts =
                if openings.contains(&step.start) { &mut reading.steps.opened } else { &mut reading.steps.plain };
            counts[0] += 1;
            if let Some(result) = last_number(&text[step]) {
                counts[1] += 1;
                counts[2] += usize::from(!results.insert(result));
            }
        }
        reading
    }

    /// Return the byte offsets of the connectors of `text`.
    fn find(&self, text: &str) -> Vec<usize> {
        let words = words(text);
        let mut found = Vec::new();
        let mut i = 0;
        while let Some(word) = words.get(i) {
            let list = self.phrases.get(text[word.clone()].to_lowercase().as_str());
            let fits = |(rest, place): &&(Vec<&str>, ConnectorPosition)| {
                let follows = |(k, want): (usize, &&str)| {
                    words.get(i + k + 1).is_some_and(|next| {
                        let gap = &text[words[i + k].end..next.start];
                        matches!(gap, " " | "-") && text[next.clone()].eq_ignore_ascii_case(want)
                    })
                };
                let opening = || opens(&text[..word.start]);
                rest.iter().enumerate().all(follows) && (*place == ConnectorPosition::Anywhere || opening())
            };
            match list.and_then(|list| list.iter().find(fits)) {
                Some((rest, _)) => {
                    found.push(word.start);
                    i += 1 + rest.len();
                }
                None => i += 1,
            }
        }
        found
    }
}

/// Return the runs of letters. U+FFFD, from a character split over tokens, counts as a letter of an unreadable word.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    for (at, c) in text.char_indices().filter(|(_, c)| c.is_alphabetic() || *c == '\u{fffd}') {
        let end = at + c.len_utf8();
        match words.last_mut() {
            Some(word) if word.end == at => word.end = end,
            _ => words.push(at..end),
        }
    }
    words
}

/// Whether a sentence or line could begin after `before`.
fn opens(before: &str) -> bool {
    let blanks = before.trim_end_matches(' ');
    blanks.chars().next_back().is_none_or(|c| matches!(c, '.' | '!' | '?' | ';' | ':' | '>' | '*' | '#' | '"' | '\n'))
}

/// Return the steps of a text. A step ends at a line break, a semicolon, or a full stop, exclamation or question mark
/// that is not followed by a letter or digit.
fn steps(text: &str) -> Vec<Range<usize>> {
    let mut steps = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let inside = chars.peek().is_some_and(|(_, next)| next.is_alphanumeric());
        let ends = matches!(c, '\n' | ';') || (matches!(c, '.' | '!' | '?') && !inside);
        if ends {
            let end = at + c.len_utf8();
            // Punctuation on its own ("...", an empty line) belongs to the step before.
            match steps.last_mut() {
                Some(Range { end: last, .. }) if !text[start..end].contains(char::is_alphanumeric) => *last = end,
                _ => steps.push(start..end),
            }
            start = end;
        }
    }
    if start < text.len() {
        steps.push(start..text.len());
    }
    steps
}

/// Return the last number in `text`, as written.
fn last_number(text: &str) -> Option<&str> {
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let inside = |c: char| c.is_ascii_digit() || c == '.' || c == ',' || c == '/';
    let start = text[..end].rfind(|c: char| !inside(c)).map_or(0, |at| at + 1);
    // A character before the number may have several bytes.
    let start = (start..end).find(|&at| text.is_char_boundary(at))?;
    Some(text[start..end].trim_start_matches(['.', ',', '/']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Generator, Split, TaskFamily};

    /// Build a finder for the tokens `pieces`, and a completion of these tokens in order.
    fn connectors(pieces: &[&str]) -> (Connectors, Vec<u32>) {
        (Connectors::of(pieces.iter().map(|s| (*s).to_string()).collect()), (0..pieces.len() as u32).collect())
    }

    fn flagged<'a>(pieces: &[&'a str]) -> Vec<&'a str> {
        let (connectors, tokens) = connectors(pieces);
        let reading = connectors.read(&tokens);
        pieces.iter().zip(reading.connector).filter(|(_, flag)| *flag).map(|(piece, _)| *piece).collect()
    }

    #[test]
    fn the_first_token_of_a_connector_is_flagged() {
        assert_eq!(flagged(&["5", ".", " Wa", "it", ",", " no"]), [" Wa"]);
        assert_eq!(flagged(&["I", " double", "-", "check", " it"]), [" double"]);
        assert_eq!(flagged(&["As", " a", " re", "sult", ", 5"]), ["As"]);
        assert_eq!(flagged(&["As", " a", " child"]), [""; 0]);
        assert_eq!(flagged(&["awaiting", " WAIT", " butter", " But"]), [" WAIT", " But"]);
    }

    /// "next" and "so" are no connectors in "the next term" and "not so large".
    #[test]
    fn sequence_words_count_only_where_a_sentence_may_begin() {
        assert_eq!(flagged(&["the", " next", " term", ".", " Next", ", the", " first"]), [" Next"]);
        assert_eq!(flagged(&["<think>", "So", " 5", " so", " 6", "\n", "So", " 7"]), ["So", "So"]);
    }

    /// Part of a character that spans tokens is not a word boundary: "éso" does not contain "so".
    #[test]
    fn a_broken_character_is_part_of_its_word() {
        assert_eq!(flagged(&["\n", "\u{fffd}", "\u{fffd}", "so"]), [""; 0]);
    }

    #[test]
    fn steps_and_what_follows_a_connector_are_counted() {
        // Step 1 ends in 12. Step 2 opens with a connector, 2 tokens from its end, and repeats 12. Step 3 has one.
        let (connectors, tokens) =
            connectors(&["3*4", "=", "12", ".", " Wait", ", 12", ".", " That is 1.5", " but", " not", " 13", "."]);
        let steps = connectors.read(&tokens).steps;
        let expected =
            ConnectorCounts { connectors: 2, opening: 1, tokens_to_end: 2 + 3, opened: [1, 1, 1], plain: [2, 2, 0] };
        assert_eq!(steps, expected);
        assert_eq!((steps.opens_step(), steps.tokens_to_step_end()), (Some(0.5), Some(2.5)));
        assert_eq!((steps.opened_share(), steps.restated()), (Some(1.0 / 3.0), [Some(1.0), Some(0.0)]));
        assert_eq!(ConnectorCounts::default().opens_step(), None);
    }

    #[test]
    fn numbers_are_read_as_written() {
        assert_eq!(last_number("é1,200.5 is x"), Some("1,200.5"));
        assert_eq!(last_number("…, 7"), Some("7"));
        assert_eq!(last_number("none"), None);
    }

    /// The connectors in the traces of the embedded tasks are found, also those of several tokens ("A", "l", "ter…").
    #[test]
    fn the_embedded_traces_have_connectors() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/base");
        let tokenizer = Tokenizer::load(&directory).unwrap();
        let connectors = Connectors::new(&tokenizer);
        let generator = Generator { families: TaskFamily::USUAL.to_vec(), difficulties: 1..=3, seed: 0 };
        let mut seen = HashMap::<String, usize>::new();
        for index in 0..400 {
            let trace = &generator.row(Split::Train, index).messages[1].content;
            let tokens = tokenizer.encode(trace).unwrap();
            assert_eq!(tokens.iter().map(|&token| connectors.piece(token)).collect::<String>(), *trace);
            for (token, flag) in tokens.iter().zip(connectors.read(&tokens).connector) {
                if flag {
                    *seen.entry(connectors.piece(*token).trim().to_string()).or_default() += 1;
                }
            }
        }
        for word in ["Wait", "Therefore", "First", "Then", "Next", "Now", "After", "So", "Hmm", "A", "Let", "To"] {
            assert!(seen.get(word).is_some_and(|&count| count > 3), "{word}: {seen:?}");
        }
    }
}
