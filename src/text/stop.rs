//! Stop strings: texts that end a completion, independent of token boundaries.

use std::collections::HashMap;

use super::stream::TextStream;
use super::tokenizer::Tokenizer;

/// Detects stop strings in completions. The text that completes a stop string stays part of its completion.
pub struct StopStrings<'a> {
    tokenizer: &'a Tokenizer,
    strings: Vec<String>,
    /// Per completion: its text stream, and the end of its text, as long as the longest stop string.
    streams: HashMap<usize, (TextStream<'a>, String)>,
}

impl<'a> StopStrings<'a> {
    /// Detects any of `strings`; empty ones are ignored.
    pub fn new(tokenizer: &'a Tokenizer, strings: &[String]) -> Self {
        let strings = strings.iter().filter(|string| !string.is_empty()).cloned().collect();
        Self { tokenizer, strings, streams: HashMap::new() }
    }

    /// Return whether the next token of a completion completes a stop string.
    pub fn push(&mut self, completion: usize, token: u32) -> bool {
        if self.strings.is_empty() {
            return false;
        }
        let start = || (TextStream::new(self.tokenizer, true), String::new());
        let (stream, end) = self.streams.entry(completion).or_insert_with(start);
        end.push_str(&stream.push(token));
        let found = self.strings.iter().any(|string| end.contains(string));
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let mut cut = end.len().saturating_sub(longest);
        while !end.is_char_boundary(cut) {
            cut -= 1;
        }
        end.drain(..cut);
        if found {
            self.streams.remove(&completion);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_stop_string_is_found_across_tokens_and_completions_do_not_mix() {
        let tokenizer = Tokenizer::load(Path::new("assets/base")).unwrap();
        let mut stop = StopStrings::new(&tokenizer, &["the answer".into(), "é!".into(), String::new()]);
        let tokens = |text: &str| tokenizer.encode(text).unwrap();
        let ends_at = |stop: &mut StopStrings, completion: usize, text: &str| {
            let tokens = tokens(text);
            let at = tokens.iter().position(|&token| stop.push(completion, token));
            at.map(|at| tokenizer.decode(&tokens[..=at], true))
        };
        assert_eq!(ends_at(&mut stop, 0, "So the ans").as_deref(), None);
        // Another completion does not continue the first one.
        assert_eq!(ends_at(&mut stop, 1, "wer is 5").as_deref(), None);
        let end = ends_at(&mut stop, 0, "wer is 5").unwrap();
        assert!(end.starts_with("wer") && !end.contains('5'), "{end}");
        assert!(ends_at(&mut stop, 2, "caf\u{e9}! and more").unwrap().starts_with("caf\u{e9}!"));
    }
}
