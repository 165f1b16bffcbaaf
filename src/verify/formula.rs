//! Formulae: sums, products, powers, functions, and the quantities they measure.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Zero};

use super::matrix::determinant;
use super::name::{FOREIGN, is_function, symbol};
use super::parse::{Parser, is_separator};
use super::quantity::in_full;
use super::token::{Spaced, Token};
use super::tree::{Fault, Node, Result};

/// The largest power of ten in a number in scientific notation.
const MAX_TEN: i32 = 5000;

/// Reads the digits of a literal.
pub(super) fn literal(digits: &str) -> Result<Node> {
    let (mantissa, exponent) = digits.split_once(['e', 'E']).unwrap_or((digits, "0"));
    let exponent: i32 = exponent.parse().ok().filter(|e: &i32| e.abs() <= MAX_TEN).ok_or(Fault::Limit)?;
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let places = i32::try_from(part.len()).map_err(|_| Fault::Limit)?;
    let value: BigInt = format!("0{whole}{part}").parse().map_err(|_| Fault::Malformed)?;
    let value = BigRational::from_integer(value) * BigRational::from_integer(10.into()).pow(exponent - places);
    Ok(Node::Number { value, place: (places >= 2).then_some(exponent - places) })
}

impl Parser {
    pub(super) fn sum(&mut self) -> Result<Node> {
        let mut terms = Vec::new();
        loop {
            let mut negative = false;
            let mut either = None;
            while let Some(sign @ ('+' | '-' | '±' | '∓')) = self.peek_char() {
                self.at += 1;
                match sign {
                    '-' => negative = !negative,
                    '±' | '∓' => either = Some(sign == '±'),
                    _ => {}
                }
            }
            let term = self.product()?;
            let term = if negative { term.negative() } else { term };
            terms.push(match either {
                Some(upper) => Node::PlusMinus(upper, Box::new(term)),
                None => term,
            });
            if !matches!(self.peek_char(), Some('+' | '-' | '±' | '∓')) {
                break;
            }
        }
        // The unit at the end of a sum is the whole sum's.
        let unit = match terms.last_mut() {
            Some(Node::Measured(node, unit)) => {
                let (node, unit) = (std::mem::replace(&mut **node, Node::Pi), unit.clone());
                Some((node, unit))
            }
            Some(Node::Negative(inner)) => match &mut **inner {
                Node::Measured(node, unit) => Some((std::mem::replace(&mut **node, Node::Pi).negative(), unit.clone())),
                _ => None,
            },
            _ => None,
        };
        if let Some((node, unit)) = unit {
            terms.pop();
            terms.push(node);
            return Ok(Node::Measured(Box::new(sum_of(terms)), unit));
        }
        Ok(sum_of(terms))
    }

    fn product(&mut self) -> Result<Node> {
        if let Some(unit) = self.currency() {
            let amount = in_full(self.deeper(Self::sum)?);
            return Ok(Node::Measured(Box::new(amount), unit));
        }
        let mut factors = vec![self.power()?];
        loop {
            let next = match self.peek_char() {
                Some('*') => {
                    self.at += 1;
                    self.signed_power()?
                }
                Some('/') => {
                    self.at += 1;
                    Node::Inverse(Box::new(self.signed_power()?))
                }
                _ if self.unit_ahead() => {
                    let node = product_of(factors);
                    return self.measured(node);
                }
                _ if self.starts_factor() => {
                    // Two numbers in a row are a typing error, but for `1 1/2`.
                    let digits = matches!(self.peek(), Some(Token::Digits(_)));
                    let before = self.at.checked_sub(1).and_then(|before| self.tokens.get(before));
                    let after = matches!(before, Some(Spaced(Token::Digits(_), _)));
                    if digits && after {
                        return Err(Fault::Malformed);
                    }
                    self.power()?
                }
                _ => return Ok(product_of(factors)),
            };
            factors.push(next);
        }
    }

    /// A factor after `*` or `/`, which may have a sign.
    pub(super) fn signed_power(&mut self) -> Result<Node> {
        let mut negative = false;
        while let Some(sign @ ('+' | '-')) = self.peek_char() {
            self.at += 1;
            negative ^= sign == '-';
        }
        let node = self.power()?;
        Ok(if negative { node.negative() } else { node })
    }

    pub(super) fn starts_factor(&self) -> bool {
        if self.modulus_ahead() {
            return false;
        }
        match self.peek() {
            Some(Token::Digits(_) | Token::Open) => true,
            Some(Token::Letters(word) | Token::Text(word)) => !is_separator(word),
            Some(Token::Command(name)) => !FOREIGN.contains(&name.as_str()) || name == "begin",
            Some(Token::Char(c)) => matches!(c, '(' | '[' | '⌊' | '⌈' | '∞' | '…') || (*c == '|' && self.bars == 0),
            _ => false,
        }
    }

    pub(super) fn power(&mut self) -> Result<Node> {
        let mut node = self.primary()?;
        let mut marks = 0;
        loop {
            match self.peek_char() {
                Some('!') => node = Node::apply("factorial", vec![node]),
                Some('%') => node = Node::Percent(Box::new(node)),
                Some('°') => {
                    self.at += 1;
                    return self.degrees(node);
                }
                _ => break,
            }
            self.at += 1;
            marks += 1;
            if marks > 8 {
                return Err(Fault::Limit);
            }
        }
        if self.peek_char() == Some('^') {
            self.at += 1;
            let group = self.peek() == Some(&Token::Open);
            if self.eat_degree(group) {
                return self.degrees(node);
            }
            let exponent = self.deeper(|parser| if group { parser.group() } else { parser.signed_power() })?;
            node = node.power(exponent);
            if self.eat_char('!') {
                node = Node::apply("factorial", vec![node]);
            }
            if self.eat_char('%') {
                node = Node::Percent(Box::new(node));
            }
        }
        Ok(node)
    }

    /// The content of a pair of braces.
    pub(super) fn group(&mut self) -> Result<Node> {
        self.expect(&Token::Open)?;
        let bars = std::mem::take(&mut self.bars);
        let node = self.deeper(Self::list);
        self.bars = bars;
        let mut node = node?;
        if matches!(self.peek(), Some(Token::Command(name)) if name == "choose") {
            self.at += 1;
            node = Node::apply("binom", vec![node, self.deeper(Self::sum)?]);
        }
        self.expect(&Token::Close)?;
        Ok(node)
    }

    /// An argument of a command: a group, one digit, one letter or one command.
    pub(super) fn argument(&mut self) -> Result<Node> {
        if let Some(Spaced(Token::Digits(digits) | Token::Letters(digits), spaced)) = self.tokens.get_mut(self.at)
            && digits.len() > 1
        {
            *spaced = false;
            let first = digits.remove(0).to_string();
            return if first.starts_with(|c: char| c.is_ascii_digit()) { literal(&first) } else { Ok(symbol(&first)) };
        }
        match self.peek() {
            Some(Token::Open) => self.group(),
            _ => self.deeper(Self::primary),
        }
    }

    pub(super) fn primary(&mut self) -> Result<Node> {
        self.deeper(Self::primary_here)
    }

    fn primary_here(&mut self) -> Result<Node> {
        let token = self.peek().cloned().ok_or(Fault::Malformed)?;
        if token == Token::Open {
            return self.group();
        }
        self.at += 1;
        match token {
            Token::Digits(digits) => self.number(&digits),
            Token::Letters(run) => self.letters(run),
            Token::Command(name) => self.command(&name),
            Token::Text(word) => {
                let word = word.trim_matches(['(', ')']);
                match word.chars().count() {
                    1 => self.named(word.to_string()),
                    _ if is_function(word) => self.function(word),
                    _ => Err(Fault::Malformed),
                }
            }
            Token::Char(c @ ('(' | '[' | ']')) => {
                let bars = std::mem::take(&mut self.bars);
                let node = self.bracket(c);
                self.bars = bars;
                node
            }
            Token::Char('{') => self.set(),
            Token::Char('∅') => Ok(Node::Set(Vec::new())),
            Token::Char('ℝ') => Ok(Node::Reals),
            Token::Char('∞') => Ok(Node::Infinity),
            Token::Char('…') => Ok(Node::Symbol("…".to_string())),
            Token::Char('|') => {
                self.bars += 1;
                let inside = self.sum();
                self.bars -= 1;
                self.expect(&Token::Char('|'))?;
                match inside? {
                    Node::Matrix(rows) => determinant(&rows),
                    inside => Ok(Node::apply("abs", vec![inside])),
                }
            }
            Token::Char('⌊') => self.enclosed("floor", '⌋'),
            Token::Char('⌈') => self.enclosed("ceil", '⌉'),
            _ => Err(Fault::Malformed),
        }
    }

    fn enclosed(&mut self, name: &str, close: char) -> Result<Node> {
        let inside = self.sum()?;
        self.expect(&Token::Char(close))?;
        Ok(Node::apply(name, vec![inside]))
    }

    /// A literal with what may belong to it: a base, a fraction after the whole, a period.
    fn number(&mut self, digits: &str) -> Result<Node> {
        if self.peek_char() == Some('_') {
            self.at += 1;
            let Node::Number { value: base, .. } = self.argument_whole()? else { return Err(Fault::Malformed) };
            return in_base(digits, &base);
        }
        if matches!(self.peek(), Some(Token::Command(name)) if name == "overline") && digits.contains('.') {
            self.at += 1;
            self.expect(&Token::Open)?;
            let Some(Token::Digits(period)) = self.peek().cloned() else { return Err(Fault::Malformed) };
            self.at += 1;
            self.expect(&Token::Close)?;
            return recurring(digits, &period);
        }
        let whole = literal(digits)?;
        if self.peek_char() == Some('…') && !self.spaced() && digits.contains('.') {
            self.at += 1;
            // 0.1666… goes on with its last digit where that is there twice.
            let last = &digits[digits.len() - 1..];
            let repeats = digits.ends_with(&last.repeat(2));
            return if repeats { recurring(digits, last) } else { Ok(whole) };
        }
        let start = self.at;
        if digits.bytes().all(|b| b.is_ascii_digit())
            && let Some(fraction) = self.small_fraction()
        {
            return Ok(Node::Sum(vec![whole, fraction]));
        }
        self.at = start;
        Ok(whole)
    }

    /// The proper fraction of a mixed number: `\frac12` or ` 1/2`.
    fn small_fraction(&mut self) -> Option<Node> {
        let command = matches!(self.peek(), Some(Token::Command(name)) if name == "frac");
        let (over, under) = if command {
            self.at += 1;
            (self.argument().ok()?, self.argument().ok()?)
        } else {
            let Some(Token::Digits(over)) = self.peek().filter(|_| self.spaced()).cloned() else { return None };
            self.at += 1;
            if !self.eat_char('/') {
                return None;
            }
            let Some(Token::Digits(under)) = self.peek().cloned() else { return None };
            self.at += 1;
            (literal(&over).ok()?, literal(&under).ok()?)
        };
        match (&over, &under) {
            (Node::Number { value: a, .. }, Node::Number { value: b, .. })
                if a < b && a.is_integer() && b.is_integer() =>
            {
                Some(over.over(under))
            }
            _ => None,
        }
    }

    /// An index: a group, or a whole run of digits.
    pub(super) fn argument_whole(&mut self) -> Result<Node> {
        match self.peek().cloned() {
            Some(Token::Digits(digits)) => {
                self.at += 1;
                literal(&digits)
            }
            _ => self.argument(),
        }
    }
}

pub(super) fn sum_of(mut terms: Vec<Node>) -> Node {
    if terms.len() == 1 { terms.swap_remove(0) } else { Node::Sum(terms) }
}

pub(super) fn product_of(mut factors: Vec<Node>) -> Node {
    if factors.len() == 1 { factors.swap_remove(0) } else { Node::Product(factors) }
}

/// A whole number whose digits are of another base.
fn in_base(digits: &str, base: &BigRational) -> Result<Node> {
    let base: u32 = base.to_integer().try_into().map_err(|_| Fault::Malformed)?;
    if !(2..=36).contains(&base) || digits.len() > 1000 {
        return Err(Fault::Malformed);
    }
    let value = BigInt::parse_bytes(digits.as_bytes(), base).ok_or(Fault::Malformed)?;
    Ok(Node::Number { value: BigRational::from_integer(value), place: None })
}

/// A decimal whose last digits repeat for ever.
fn recurring(digits: &str, period: &str) -> Result<Node> {
    let Node::Number { value, .. } = literal(digits)? else { return Err(Fault::Malformed) };
    let places = digits.len() - 1 - digits.find('.').ok_or(Fault::Malformed)?;
    let power = |n: usize| Ok(BigRational::from_integer(10.into()).pow(i32::try_from(n).map_err(|_| Fault::Limit)?));
    let Node::Number { value: repeated, .. } = literal(period)? else { return Err(Fault::Malformed) };
    let nines: BigRational = power(period.len())? - BigRational::one();
    if nines.is_zero() || !repeated.is_integer() {
        return Err(Fault::Malformed);
    }
    Ok(Node::Number { value: value + repeated / nines / power(places)?, place: None })
}
