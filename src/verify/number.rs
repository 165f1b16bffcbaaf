//! Literals: decimals, mixed numbers, periods, other bases.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Zero};

use super::parse::Parser;
use super::token::{Spaced, Token};
use super::tree::{Fault, Node, Result};
use super::words;

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
    /// A literal with what may belong to it: a base, a fraction after the whole, a period.
    pub(super) fn number(&mut self, digits: &str) -> Result<Node> {
        if let Some(base) = self.base()? {
            // `4210_5 (base 5)`
            let again = self.base()?.is_none_or(|other| other == base);
            return if again { in_base(digits, &base) } else { Err(Fault::Malformed) };
        }
        if digits.contains('.')
            && let Some(period) = self.period()?
        {
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

    /// The base of a whole number: `_5`, `_{\text{five}}`, `(base 5)`.
    fn base(&mut self) -> Result<Option<BigRational>> {
        let start = self.at;
        let index = self.eat_char('_');
        let (group, bracket) = (index && self.eat(&Token::Open), self.eat_char('('));
        let named = matches!(self.peek(), Some(Token::Letters(word) | Token::Text(word)) if word == "base");
        self.at += usize::from(named);
        if !index && !named {
            self.at = start;
            return Ok(None);
        }
        let value = match self.tokens.get(self.at) {
            Some(Spaced(Token::Digits(digits), _)) => Some(literal(digits)?),
            Some(word) => words::number(std::slice::from_ref(word)),
            None => None,
        };
        let Some(Node::Number { value, .. }) = value else { return Err(Fault::Malformed) };
        self.at += 1;
        if bracket {
            self.expect(&Token::Char(')'))?;
        }
        if group {
            self.expect(&Token::Close)?;
        }
        Ok(Some(value))
    }

    /// The digits that a decimal repeats: `\overline{3}`, `\bar3`, `\dot{1}4\dot{2}` or `(3)`.
    fn period(&mut self) -> Result<Option<String>> {
        let digits = |token: Option<&Spaced>| match token {
            Some(Spaced(Token::Digits(digits), _)) => Some(digits.clone()),
            _ => None,
        };
        let period = match self.peek() {
            Some(Token::Command(name)) if name == "dot" => {
                let mut period = self.marked_digits()?;
                // Dots stand over the first and the last digit.
                let between = digits(self.tokens.get(self.at));
                let second = self.at + usize::from(between.is_some());
                if matches!(self.tokens.get(second), Some(Spaced(Token::Command(name), _)) if name == "dot") {
                    self.at = second;
                    period = period + &between.unwrap_or_default() + &self.marked_digits()?;
                }
                period
            }
            Some(Token::Command(name)) if name == "overline" || name == "bar" => self.marked_digits()?,
            Some(Token::Char('(')) if self.tokens.get(self.at + 2).is_some_and(|token| token.0 == Token::Char(')')) => {
                let Some(period) = digits(self.tokens.get(self.at + 1)) else { return Ok(None) };
                self.at += 3;
                period
            }
            _ => return Ok(None),
        };
        if digits(self.tokens.get(self.at)).is_some() { Err(Fault::Malformed) } else { Ok(Some(period)) }
    }

    /// The digits that a command ahead marks.
    fn marked_digits(&mut self) -> Result<String> {
        self.at += 1;
        let group = self.eat(&Token::Open);
        let Some(Token::Digits(digits)) = self.peek().cloned() else { return Err(Fault::Malformed) };
        self.at += 1;
        if group {
            self.expect(&Token::Close)?;
        }
        Ok(digits)
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
