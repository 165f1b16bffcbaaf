//! Parsing of formulae: sums, products, powers and their units.

use super::equal::is_set;
use super::matrix::{determinant, is_transpose};
use super::name::{FOREIGN, is_function, symbol};
use super::number::literal;
use super::parse::{FormulaParser, is_mathematical, is_separator};
use super::quantity::in_full;
use super::token::{Spaced, Token};
use super::tree::{Fault, Node, Result};
use super::unit::{Unit, is_unit};

impl FormulaParser {
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
        // `ℝ - {1}`
        if let [set, Node::Negative(removed)] = terms.as_slice()
            && is_set(set)
            && is_set(removed)
        {
            return Ok(Node::Without(Box::new(set.clone()), removed.clone()));
        }
        // A unit at the end of a sum belongs to the whole sum.
        let (last, unit) = without_unit(terms.pop().ok_or(Fault::Malformed)?);
        terms.push(last);
        let sum = sum_of(terms);
        Ok(if let Some(unit) = unit { Node::Measured(Box::new(sum), unit) } else { sum })
    }

    fn product(&mut self) -> Result<Node> {
        if let Some(unit) = self.currency() {
            // `$18/hr`
            if let Some([Spaced(Token::Digits(_), _), Spaced(Token::Char('/'), _), Spaced(word, _)]) =
                self.tokens.get_mut(self.at..self.at + 3)
                && let Token::Letters(run) = word
                && is_rate(run)
            {
                *word = Token::Text(std::mem::take(run));
            }
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
                // `$18/\text{day}`
                Some('/') if self.rate_ahead() => {
                    return self.measured(product_of(factors));
                }
                Some('/') => {
                    self.at += 1;
                    Node::Inverse(Box::new(self.signed_power()?))
                }
                _ if self.unit_ahead() => return self.measured(product_of(factors)),
                Some('＄' | '€' | '£' | '¥' | '₹')
                    if matches!(self.tokens.get(self.at + 1), None | Some(Spaced(Token::Close, _))) =>
                {
                    let unit = self.currency().ok_or(Fault::Malformed)?;
                    return Ok(Node::Measured(Box::new(in_full(product_of(factors))), unit));
                }
                _ if self.starts_factor() => {
                    // Two adjacent numbers are malformed, except `1 1/2`, which `number` parses.
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

    fn rate_ahead(&self) -> bool {
        matches!(self.tokens.get(self.at + 1), Some(Spaced(Token::Text(word), _)) if is_rate(word))
    }

    /// Parse a factor after `*` or `/`, which may have a sign.
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
        if self.modulus_ahead() || self.to_ahead() {
            return false;
        }
        match self.peek() {
            Some(Token::Digits(_) | Token::Open) => true,
            Some(Token::Letters(word) | Token::Text(word)) => !is_separator(word),
            Some(Token::Command(name)) => !FOREIGN.contains(&name.as_str()) || name == "begin",
            Some(Token::Char('[')) => !self.outward && !self.ends_outward(),
            Some(Token::Char(c)) => matches!(c, '(' | '⌊' | '⌈' | '∞' | '…') || (*c == '|' && self.bars == 0),
            _ => false,
        }
    }

    pub(super) fn power(&mut self) -> Result<Node> {
        let mut node = self.primary()?;
        let mut marks = 0;
        loop {
            match self.peek_char() {
                Some('!') => node = self.factorial(node)?,
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
            // The transpose of a tuple is the same vector.
            let vector = matches!(node, Node::Tuple(_) | Node::Interval { .. }) && is_transpose(&exponent);
            node = if vector { node } else { node.power(exponent) };
            if self.peek_char() == Some('!') {
                node = self.factorial(node)?;
                self.at += 1;
            }
            if self.eat_char('%') {
                node = Node::Percent(Box::new(node));
            }
        }
        Ok(node)
    }

    /// Apply the factorial marks ahead, one or two, and stay at the last.
    fn factorial(&mut self, node: Node) -> Result<Node> {
        let marks = self.tokens[self.at..].iter().take_while(|token| token.0 == Token::Char('!')).count();
        self.at += marks - 1;
        match marks {
            1 => Ok(Node::apply("factorial", vec![node])),
            2 => Ok(Node::apply("double factorial", vec![node])),
            _ => Err(Fault::Malformed),
        }
    }

    /// Parse the content of a pair of braces.
    pub(super) fn group(&mut self) -> Result<Node> {
        self.expect(&Token::Open)?;
        let bars = std::mem::take(&mut self.bars);
        let node = self.deeper(Self::list);
        self.bars = bars;
        let mut node = node?;
        match self.peek() {
            Some(Token::Command(name)) if name == "choose" => {
                self.at += 1;
                node = Node::apply("binom", vec![node, self.deeper(Self::sum)?]);
            }
            Some(Token::Command(name)) if name == "over" => {
                self.at += 1;
                node = node.over(self.deeper(Self::sum)?);
            }
            _ => {}
        }
        self.expect(&Token::Close)?;
        Ok(node)
    }

    /// Parse an argument of a command: a group, one digit, one letter or one command.
    pub(super) fn argument(&mut self) -> Result<Node> {
        if let Some(Token::Digits(run) | Token::Letters(run)) = self.peek() {
            let first = run[..1].to_string();
            self.split_run(1);
            self.at += 1;
            return if first.starts_with(|c: char| c.is_ascii_digit()) { literal(&first) } else { Ok(symbol(&first)) };
        }
        match self.peek() {
            Some(Token::Open) => {
                let outer = std::mem::replace(&mut self.argument, true);
                let node = self.group();
                self.argument = outer;
                node
            }
            _ => self.deeper(Self::primary),
        }
    }

    /// Split the run of digits or letters ahead into two tokens after `length` characters.
    pub(super) fn split_run(&mut self, length: usize) {
        let rest = match &mut self.tokens[self.at].0 {
            Token::Digits(run) if run.len() > length => Token::Digits(run.split_off(length)),
            Token::Letters(run) if run.len() > length => Token::Letters(run.split_off(length)),
            _ => return,
        };
        self.tokens.insert(self.at + 1, Spaced(rest, false));
    }

    pub(super) fn primary(&mut self) -> Result<Node> {
        self.deeper(Self::primary_here)
    }

    fn primary_here(&mut self) -> Result<Node> {
        let token = self.peek().cloned().ok_or(Fault::Malformed)?;
        if let Some(number) = self.attempt(Self::based) {
            return Ok(number);
        }
        if token == Token::Open && self.tokens.get(self.at + 1).is_none_or(|next| next.0 != Token::Close) {
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
                    1 if !is_separator(word) => self.named(word.to_string()),
                    _ if is_function(word) => self.function(word),
                    _ if word.eq_ignore_ascii_case("infinity") => Ok(Node::Infinity),
                    _ => Err(Fault::Malformed),
                }
            }
            Token::Char(c @ ('(' | '[' | ']')) => {
                let bars = std::mem::take(&mut self.bars);
                let node = self.bracket(c);
                self.bars = bars;
                node
            }
            // `{}_{10}C_3`
            Token::Open => {
                self.at += 1;
                self.primary()
            }
            Token::Char('_' | '^') => self.prefixed_choices(),
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

    /// Whether the `[` ahead closes an interval, as in `[0, 1[`.
    fn ends_outward(&self) -> bool {
        match self.tokens.get(self.at + 1).map(|Spaced(token, _)| token) {
            Some(Token::Char(c)) => "∪∩∖,;)}".contains(*c),
            next => matches!(next, None | Some(Token::Close | Token::Text(_))),
        }
    }

    fn enclosed(&mut self, name: &str, close: char) -> Result<Node> {
        let inside = self.sum()?;
        self.expect(&Token::Char(close))?;
        Ok(Node::apply(name, vec![inside]))
    }

    /// Parse an index: a group, or a whole run of digits.
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

/// Whether a word after `/` is what an amount is counted by.
fn is_rate(word: &str) -> bool {
    is_unit(word) || (word.len() > 1 && !is_mathematical(word))
}

fn without_unit(node: Node) -> (Node, Option<Unit>) {
    match node {
        Node::Measured(node, unit) => (*node, Some(unit)),
        Node::Negative(inner) => {
            let (node, unit) = without_unit(*inner);
            (node.negative(), unit)
        }
        node => (node, None),
    }
}

pub(super) fn sum_of(mut terms: Vec<Node>) -> Node {
    if terms.len() == 1 { terms.swap_remove(0) } else { Node::Sum(terms) }
}

pub(super) fn product_of(mut factors: Vec<Node>) -> Node {
    if factors.len() == 1 { factors.swap_remove(0) } else { Node::Product(factors) }
}
