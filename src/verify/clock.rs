//! Times of day.

use super::parse::FormulaParser;
use super::token::{Spaced, Token};
use super::tree::Node;

impl FormulaParser {
    /// Parse a time of day, `3:45`, `15:45:10`, `3:45 PM`; with spaces around the colon it is a ratio.
    pub(super) fn time(&mut self) -> Option<Node> {
        let mut numbers = Vec::new();
        let mut at = self.at;
        loop {
            let Spaced(Token::Digits(digits), spaced) = self.tokens.get(at)? else { return None };
            let first = numbers.is_empty();
            let written = if first { digits.len() <= 2 } else { digits.len() == 2 && !*spaced };
            numbers.push(digits.parse::<i64>().ok().filter(|n| written && *n < if first { 25 } else { 60 })?);
            at += 1;
            if !matches!(self.tokens.get(at), Some(Spaced(Token::Char(':'), false))) {
                break;
            }
            at += 1;
        }
        let (half, used) = self.half_of_day(at);
        // `3 PM` is a time, 3 is not. Three numbers are a ratio unless minutes or seconds are below 10.
        let clock = match numbers.as_slice() {
            [_] => half.is_some(),
            [_, _] => true,
            [_, minutes, seconds] => minutes.min(seconds) < &10,
            _ => false,
        };
        let ends = match self.tokens.get(at + used).map(|Spaced(token, _)| token) {
            Some(Token::Char(c)) => !"*/^!%:°…'_".contains(*c),
            Some(Token::Digits(_) | Token::Command(_) | Token::Open) => false,
            _ => true,
        };
        if !clock || !ends {
            return None;
        }
        self.at = at + used;
        let hour = match half {
            Some(afternoon) if (1..=12).contains(&numbers[0]) => numbers[0] % 12 + if afternoon { 12 } else { 0 },
            Some(_) => return None,
            None => numbers[0],
        };
        let part = |index: usize| numbers.get(index).copied().unwrap_or(0);
        Some(Node::Time(hour * 3600 + part(1) * 60 + part(2), half.is_some()))
    }

    /// Return whether PM (true) or AM (false) is at a token, and its number of tokens: `p.m.` has four.
    fn half_of_day(&self, at: usize) -> (Option<bool>, usize) {
        let letter = |at: usize| match self.tokens.get(at) {
            Some(Spaced(Token::Letters(word) | Token::Text(word), _)) => word.replace(['.', ' '], "").to_lowercase(),
            Some(Spaced(Token::Char('.'), _)) => ".".to_string(),
            _ => String::new(),
        };
        let (half, used) = match (letter(at).as_str(), letter(at + 1).as_str(), letter(at + 2).as_str()) {
            (word @ ("am" | "pm"), ..) => (word == "pm", 1),
            (word @ ("a" | "p"), ".", "m") => (word == "p", if letter(at + 3) == "." { 4 } else { 3 }),
            _ => return (None, 0),
        };
        (Some(half), used)
    }
}
