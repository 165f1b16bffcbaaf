//! Parsing of literals: decimals, mixed numbers, repeating decimals, other bases.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, Pow, Zero};

use super::parse::FormulaParser;
use super::token::{Spaced, Token};
use super::tree::{Fault, Node, Result};
use super::words;

/// Largest exponent of ten in scientific notation.
const MAX_TEN: i32 = 5000;

/// Parse the digits of a literal.
pub(super) fn literal(digits: &str) -> Result<Node> {
    let (mantissa, exponent) = digits.split_once(['e', 'E']).unwrap_or((digits, "0"));
    let exponent: i32 = exponent.parse().ok().filter(|e: &i32| e.abs() <= MAX_TEN).ok_or(Fault::Limit)?;
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let places = i32::try_from(part.len()).map_err(|_| Fault::Limit)?;
    let value: BigInt = format!("0{whole}{part}").parse().map_err(|_| Fault::Malformed)?;
    let value = BigRational::from_integer(value) * BigRational::from_integer(10.into()).pow(exponent - places);
    Ok(Node::Number { value, place: (places >= 2).then_some(exponent - places) })
}

impl FormulaParser {
    /// Parse a literal with an optional fraction or repeating part.
    pub(super) fn number(&mut self, digits: &str) -> Result<Node> {
        if self.peek_char() == Some('_') {
            return Err(Fault::Malformed);
        }
        if digits.contains('.')
            && let Some(period) = self.period()?
        {
            return recurring(digits, &period);
        }
        if let Some(count) = self.attempt(|parser| parser.choices_after(digits)) {
            return Ok(count);
        }
        let whole = literal(digits)?;
        if self.peek_char() == Some('…') && !self.spaced() && digits.contains('.') {
            self.at += 1;
            // 0.1666… repeats its last digit if that is written twice.
            let last = &digits[digits.len() - 1..];
            let repeats = digits.ends_with(&last.repeat(2));
            return if repeats { recurring(digits, last) } else { Ok(whole) };
        }
        if digits.bytes().all(|b| b.is_ascii_digit())
            && let Some(fraction) = self.attempt(Self::small_fraction)
        {
            return Ok(Node::Sum(vec![whole, fraction]));
        }
        Ok(whole)
    }

    /// Parse an integer with its base: `1011_2`, `(101)_2`, `101 (base 2)`, `2A_{16}`, `\text{FF}_{16}`.
    ///
    /// Letters are digits only in capitals and next to another digit: `2a_{16}` is twice `a_{16}`.
    pub(super) fn based(&mut self) -> Option<Node> {
        let bracket = self.eat_char('(') || self.eat_char('[');
        let mut digits = String::new();
        while let Some(Spaced(Token::Digits(run) | Token::Letters(run) | Token::Text(run), spaced)) =
            self.tokens.get(self.at)
            && (digits.is_empty() || !*spaced)
            && run != "base"
        {
            digits.push_str(run);
            self.at += 1;
        }
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        let letters = digits.len() > 1 && !digits.contains(|c: char| c.is_ascii_lowercase());
        if !(plain || letters) || (bracket && !self.eat_char(')') && !self.eat_char(']')) {
            return None;
        }
        let base = self.base()?;
        // `4210_5 (base 5)`
        let again = self.attempt(Self::base);
        in_base(digits, &base).filter(|_| again.is_none_or(|other| other == base))
    }

    /// Parse the base of an integer: `_5`, `_{\text{five}}`, `(base 5)`.
    fn base(&mut self) -> Option<BigRational> {
        let index = self.eat_char('_');
        let (group, bracket) = (index && self.eat(&Token::Open), self.eat_char('('));
        let named = matches!(self.peek(), Some(Token::Letters(word) | Token::Text(word)) if word == "base");
        self.at += usize::from(named);
        let value = match self.tokens.get(self.at)? {
            Spaced(Token::Digits(digits), _) => literal(digits).ok(),
            word => words::number(std::slice::from_ref(word)),
        };
        let Some(Node::Number { value, .. }) = value.filter(|_| index || named) else { return None };
        self.at += 1;
        ((!bracket || self.eat_char(')')) && (!group || self.eat(&Token::Close))).then_some(value)
    }

    /// Parse the repeating digits of a decimal: `\overline{3}`, `\bar3`, `\dot{1}4\dot{2}` or `(3)`.
    fn period(&mut self) -> Result<Option<String>> {
        let digits = |token: Option<&Spaced>| match token {
            Some(Spaced(Token::Digits(digits), _)) => Some(digits.clone()),
            _ => None,
        };
        let period = match self.peek() {
            Some(Token::Command(name)) if name == "dot" => {
                let mut period = self.marked_digits()?;
                // Dots mark the first and the last digit.
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

    /// Parse the digits that the command ahead marks.
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

    /// Parse the proper fraction of a mixed number: `\frac12` or ` 1/2`.
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

/// Return the integer with these digits in a base.
fn in_base(digits: String, base: &BigRational) -> Option<Node> {
    let base: u32 = base.to_integer().try_into().ok().filter(|base| (2..=36).contains(base) && digits.len() <= 1000)?;
    let value = BigInt::parse_bytes(digits.as_bytes(), base)?;
    Some(Node::Based(BigRational::from_integer(value), digits))
}

/// Return the value of a repeating decimal.
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
