//! Incremental decoding of tokens to text, whole characters only.

use super::tokenizer::Tokenizer;

/// Decodes tokens as they arrive, holding back incomplete characters.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    // `ids` are the `old` tokens shown last, whose text is `shown`, and then pending tokens. Some decoders treat the
    // first token of a text differently, so new tokens are decoded after old ones and the old text is cut off.
    ids: Vec<u32>,
    old: usize,
    shown: String,
}

impl<'a> TextStream<'a> {
    /// Maximum tokens held back for the rest of a character before they are shown as they are.
    const MAX_PENDING: usize = 16;

    /// Create a stream at the start of a completion.
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), old: 0, shown: String::new() }
    }

    /// Take the next token and return the text it completes, which may be empty.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        self.show(false)
    }

    /// Return the remaining text when no more tokens come.
    pub fn finish(mut self) -> String {
        self.show(true)
    }

    fn show(&mut self, all: bool) -> String {
        let text = self.tokenizer.decode(&self.ids, self.skip_special);
        if text.ends_with('\u{fffd}') && self.ids.len() - self.old < Self::MAX_PENDING && !all {
            return String::new();
        }
        let same = text.chars().zip(self.shown.chars()).take_while(|(new, old)| new == old);
        let fresh = text[same.map(|(c, _)| c.len_utf8()).sum()..].to_string();
        if !fresh.is_empty() {
            self.ids.drain(..self.old);
            self.old = self.ids.len();
            self.shown = self.tokenizer.decode(&self.ids, self.skip_special);
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::sample;

    #[test]
    fn a_stream_shows_whole_characters_and_loses_nothing() {
        let (_dir, tokenizer) = sample();
        let text = "aé日🦀 b<|im_end|>c\u{fffd}d";
        let mut stream = TextStream::new(&tokenizer, false);
        let parts: Vec<String> = tokenizer.encode(text).unwrap().into_iter().map(|id| stream.push(id)).collect();
        assert_eq!(parts.concat() + &stream.finish(), text);
        assert_eq!(parts[..3], ["a", "", "é"]);
        // Bytes that never become a character do not accumulate.
        let mut stream = TextStream::new(&tokenizer, false);
        let shown: String = (0..100).map(|_| stream.push(0x80)).collect();
        assert!(shown.chars().count() > 50 && stream.ids.len() < 40, "{}", stream.ids.len());
    }
}
