//! Parsing of quantities: currencies, units, degrees, and words that scale a number.

use super::formula::sum_of;
use super::name::is_function;
use super::number::literal;
use super::parse::{FormulaParser, is_mathematical, is_separator};
use super::token::{Spaced, Token};
use super::tree::{Fault, Node, Result};
use super::unit::{Unit, is_letter, is_unit};
use super::words::{is_number, magnitude, money, part};

impl FormulaParser {
    pub(super) fn currency(&mut self) -> Option<Unit> {
        let name = match self.peek_char()? {
            '＄' => "dollar",
            '€' => "euro",
            '£' => "pound",
            '¥' => "yen",
            '₹' => "rupee",
            _ => return None,
        };
        self.at += 1;
        Unit::parse(name)
    }

    /// Parse the unit of a quantity.
    pub(super) fn measured(&mut self, node: Node) -> Result<Node> {
        let text = self.unit_text()?;
        let mut text = text.trim();
        let mut node = node;
        // `3 million dollars` multiplies, `3 tenths` divides.
        loop {
            let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
            // `k` is a thousand, `K` is kelvin; `mn` is a million, `mN` is a millinewton.
            let symbol = word.len() == 1 || Unit::prefixed(word).is_some();
            let word = if symbol { word.to_string() } else { word.to_lowercase() };
            node = match (magnitude(&word), part(&word)) {
                (Some(factor), _) => Node::Product(vec![node, Node::integer(factor)]),
                (_, Some(divisor)) => node.over(Node::integer(divisor)),
                _ => break,
            };
            text = rest.trim();
        }
        if text.is_empty() {
            return Ok(node);
        }
        match text {
            "percent" | "percentage" | "pct" | "per cent" => Ok(Node::Percent(Box::new(node))),
            "degrees" | "degree" | "deg" | "度" => Ok(Node::Degrees(Box::new(node))),
            text => {
                let text = text.strip_prefix("degrees ").or_else(|| text.strip_prefix("degree ")).unwrap_or(text);
                let mut unit = Unit::parse(text).ok_or(Fault::Malformed)?;
                // With such words the number alone is not the answer.
                unit.mixed |= !is_unit_text(text);
                self.smaller_units(node, unit)
            }
        }
    }

    /// Collect the words, letters and signs of a unit.
    fn unit_text(&mut self) -> Result<String> {
        let mut text = String::new();
        loop {
            match self.peek() {
                Some(Token::Letters(word) | Token::Text(word)) if !is_separator(word) => {
                    text = if text.ends_with('μ') { text + word } else { text + " " + word };
                    self.at += 1;
                }
                Some(Token::Char(c @ ('/' | '*'))) => {
                    text.push(*c);
                    self.at += 1;
                }
                Some(Token::Command(name)) if matches!(name.as_str(), "Omega" | "mu") => {
                    text.push_str(if name == "mu" { " μ" } else { " Ω" });
                    self.at += 1;
                }
                Some(Token::Command(name)) if name == "frac" => {
                    self.at += 1;
                    self.expect(&Token::Open)?;
                    let over = self.deeper(Self::unit_text)?;
                    self.expect(&Token::Close)?;
                    self.expect(&Token::Open)?;
                    text = format!("{text} {over} / ({})", self.deeper(Self::unit_text)?);
                    self.expect(&Token::Close)?;
                }
                Some(Token::Char('^')) => {
                    self.at += 1;
                    let group = self.eat(&Token::Open);
                    let sign = if self.eat_char('-') { "-" } else { "" };
                    let Some(Token::Digits(power)) = self.peek() else { return Err(Fault::Malformed) };
                    text = format!("{}^{sign}{power}", text.trim_end());
                    self.at += 1;
                    if group {
                        self.expect(&Token::Close)?;
                    }
                }
                _ => return Ok(text),
            }
        }
    }

    /// Add what follows in smaller units of the same dimension: `5 feet 6 inches`, `1 hour and 30 minutes`.
    fn smaller_units(&mut self, node: Node, unit: Unit) -> Result<Node> {
        let part = |node: Node, unit: &Unit| {
            Node::Product(vec![node, Node::Number { value: unit.factor.clone(), place: None }])
        };
        let (mut parts, mut last) = (vec![node], unit.clone());
        loop {
            let start = self.at;
            if matches!(self.peek(), Some(Token::Letters(word) | Token::Text(word)) if word == "and")
                || self.peek_char() == Some(',')
            {
                self.at += 1;
            }
            let next = match self.peek() {
                Some(Token::Digits(_)) => self.primary().ok().filter(|_| self.unit_ahead()),
                _ => None,
            };
            let next = next.and_then(|node| Some((node, Unit::parse(&self.unit_text().ok()?)?)));
            let Some((node, smaller)) = next.filter(|(_, u)| u.powers == last.powers && u.factor < last.factor) else {
                self.at = start;
                break;
            };
            if parts.len() == 1 {
                parts = vec![part(parts.swap_remove(0), &unit)];
            }
            parts.push(part(node, &smaller));
            last = smaller;
        }
        let several = parts.len() > 1;
        let unit = if several { unit.of_several(&last) } else { unit };
        Ok(Node::Measured(Box::new(sum_of(parts)), unit))
    }

    /// Whether the next tokens are a unit.
    pub(super) fn unit_ahead(&self) -> bool {
        match self.peek() {
            Some(Token::Text(word) | Token::Letters(word)) if word == "mod" || self.to_ahead() => false,
            // An upright `i` or `e` is the constant.
            Some(Token::Text(word)) => {
                !is_separator(word) && (!is_function(word) || is_unit(word)) && !matches!(word.as_str(), "" | "i" | "e")
            }
            Some(Token::Letters(word)) => {
                (is_unit(word) && !self.letters_of_formula())
                    || (self.spaced() && (word.len() > 2 || word == "of") && !is_mathematical(word))
                    || (self.spaced() && is_letter(word) && self.unit_goes_on())
            }
            // `\frac{\text{km}}{\text{h}}`
            Some(Token::Command(name)) if name == "frac" => match self.tokens.get(self.at + 1..self.at + 3) {
                Some([Spaced(Token::Open, _), Spaced(Token::Text(word), _)]) => is_unit(word) || is_letter(word),
                _ => false,
            },
            Some(Token::Command(name)) => {
                let number = self.at.checked_sub(1).and_then(|before| self.tokens.get(before));
                let number = matches!(number, Some(Spaced(Token::Digits(_) | Token::Close, _)));
                let micro = || match self.tokens.get(self.at + 1) {
                    Some(Spaced(Token::Text(symbol), _)) => Unit::prefixed(&format!("μ{symbol}")).is_some(),
                    _ => false,
                };
                number && (name == "Omega" && self.at + 1 == self.tokens.len() || name == "mu" && micro())
            }
            _ => false,
        }
    }

    /// Whether the letters ahead are symbols of a formula: `\frac{2mg}{k}`, `2km + 1`.
    fn letters_of_formula(&self) -> bool {
        !self.spaced()
            && match self.tokens.get(self.at + 1) {
                Some(Spaced(Token::Char('+' | '-'), _) | Spaced(Token::Char('('), false)) => true,
                next => self.argument && matches!(next, Some(Spaced(Token::Close, _))),
            }
    }

    /// Whether the tokens after a letter show that it is a unit: `m/s`, `h 30 min`.
    fn unit_goes_on(&self) -> bool {
        match self.tokens.get(self.at + 1..self.at + 3) {
            Some([Spaced(Token::Char('/'), _), Spaced(Token::Letters(word), _)]) => is_letter(word) || is_unit(word),
            Some([Spaced(Token::Digits(_), _), Spaced(Token::Letters(word), _)]) => is_unit(word),
            _ => false,
        }
    }

    /// Parse what follows a degree sign: minutes and seconds of an angle, or a temperature scale.
    pub(super) fn degrees(&mut self, node: Node) -> Result<Node> {
        let scale = match self.peek() {
            Some(Token::Letters(word) | Token::Text(word)) => match word.as_str() {
                "C" => "celsius",
                "F" => "fahrenheit",
                _ => "",
            },
            _ => "",
        };
        if let Some(unit) = Unit::parse(scale).filter(|_| !scale.is_empty()) {
            self.at += 1;
            return Ok(Node::Measured(Box::new(node), unit));
        }
        let mut parts = vec![node];
        for (marks, under) in [(1, 60), (2, 3600)] {
            let Some(Token::Digits(digits)) = self.peek() else { break };
            let number = literal(digits)?;
            let start = self.at;
            self.at += 1;
            let group = self.eat_char('^');
            let braced = group && self.eat(&Token::Open);
            let found = (0..marks).all(|_| self.eat_char('\''));
            if !found || (braced && !self.eat(&Token::Close)) {
                self.at = start;
                break;
            }
            parts.push(number.over(Node::integer(under)));
        }
        Ok(Node::Degrees(Box::new(sum_of(parts))))
    }

    pub(super) fn eat_degree(&mut self, group: bool) -> bool {
        let at = self.at + usize::from(group);
        let degree = match self.tokens.get(at).map(|Spaced(token, _)| token) {
            Some(Token::Char(c)) => *c == '°',
            Some(Token::Letters(word) | Token::Text(word)) => word == "o",
            _ => false,
        };
        let closed = !group || matches!(self.tokens.get(at + 1), Some(Spaced(Token::Close, _)));
        if degree && closed {
            self.at = at + 1 + usize::from(group);
        }
        degree && closed
    }
}

/// Whether the words after a number only name what it counts, unlike "or more", "and a half", "squared".
fn is_unit_text(text: &str) -> bool {
    #[rustfmt::skip]
    const CHANGES: &[&str] = &[
        "rejected", "extraneous", "impossible", "invalid", "discarded",
        "or", "than", "above", "below", "minus", "plus", "half", "factorial", "doubled", "tripled", "halved", "tens", "if",
        "unless", "except", "otherwise", "not", "wrong", "incorrect", "when", "maybe", "perhaps", "upwards",
    ];
    // `3/4 of x` and `5 for even n`
    let scales = |pair: &[&str]| match pair {
        ["of" | "times", name] => name.len() == 1 && *name != "a",
        ["for", "even" | "odd"] | ["at", "most" | "least"] => true,
        _ => false,
    };
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let counted = |at: usize| words[at] == "and" && is_number(&words[at + 1..]);
    let changed = matches!(words.as_slice(), ["squared" | "cubed", ..] | ["percent", "of", _, ..])
        || words.iter().any(|word| CHANGES.contains(word))
        || words.windows(2).any(scales)
        || (0..words.len()).any(counted);
    !changed
}

/// Expand an amount of money with a suffix for thousands or millions, `3M` or `3\text{k}`.
pub(super) fn in_full(amount: Node) -> Node {
    let scaled =
        |number: &Node, letter: &str| money(letter).map(|f| Node::Product(vec![number.clone(), Node::integer(f)]));
    let full = match &amount {
        Node::Measured(number, letter) => scaled(number, letter.written()),
        Node::Product(factors) => match factors.as_slice() {
            [number, Node::Symbol(letter)] => scaled(number, letter),
            _ => None,
        },
        _ => None,
    };
    full.unwrap_or(amount)
}
