//! Parsing of answers: words, choices, lists, relations and sets. Formulae are parsed in `formula`.

use super::choice::choice;
use super::label::{drop_prefix, drop_stops, parts};
use super::name::{constant, glued_function, is_function};
use super::relation::{Joint, joined};
use super::token::{Spaced, Token, tokenize};
use super::tree::{Fault, Node, Relation, Result};
use super::words;

/// Maximum nesting depth of an answer.
const MAX_DEPTH: usize = 48;

/// Parse an answer.
pub(super) fn parse(answer: &str) -> Result<Node> {
    // Markdown's `**` around the first words.
    let unstarred = answer.trim().strip_prefix("**").map(|rest| rest.replacen("**", "", 1));
    let answer = unstarred.as_deref().unwrap_or(answer).trim();
    let answer = answer.trim_matches(|c: char| c == '*' || c == '"' || c == '`' || c.is_whitespace());
    let mut tokens = tokenize(answer)?;
    drop_stops(&mut tokens);
    drop_prefix(&mut tokens);
    if tokens.is_empty() {
        return Err(Fault::Malformed);
    }
    if let Some((letter, rest)) = choice(&tokens) {
        let text = plain_words(&rest).or_else(|| words::sentence(&rest));
        if let Ok(node) = read(rest).or_else(|fault| text.map(Node::Words).ok_or(fault)) {
            return Ok(Node::Choice(letter, Box::new(node)));
        }
    }
    read(tokens)
}

/// Parse tokens after their label.
fn read(mut tokens: Vec<Spaced>) -> Result<Node> {
    if let Some(number) = words::number(&tokens) {
        return Ok(number);
    }
    if let Some(words) = plain_words(&tokens).or_else(|| words::date(&tokens)) {
        return Ok(Node::Words(words));
    }
    if let Some(Ok(parts)) = parts(&tokens).map(|parts| parts.into_iter().map(read).collect()) {
        return Ok(Node::Tuple(parts));
    }
    words::drop_remarks(&mut tokens);
    words::open_exception(&mut tokens);
    match plain_words(&tokens) {
        Some(words) => Ok(Node::Words(words)),
        None => Ok(without_domain(FormulaParser::new(tokens).whole()?)),
    }
}

/// Remove a last member that only states the domain of a symbol of the others: `x = 2k, k ∈ ℤ`.
fn without_domain(mut node: Node) -> Node {
    if let Node::List(items) = &mut node
        && let Some((Node::Relation(terms, relations), others)) = items.split_last()
        && relations == &[Relation::In]
        && matches!(terms[0], Node::Symbol(_))
        && others.iter().any(|other| other.any(&|node| *node == terms[0]))
    {
        items.pop();
        if items.len() == 1 {
            return items.swap_remove(0);
        }
    }
    node
}

/// Return the words of an answer without mathematics: lower case, single spaces, no punctuation.
pub(super) fn plain_words(tokens: &[Spaced]) -> Option<String> {
    let mut words: Vec<String> = Vec::new();
    let mut text = false;
    let product = tokens.iter().all(|Spaced(token, _)| may_be_product(token, 3));
    let long = tokens.iter().any(|Spaced(token, _)| !may_be_product(token, 4));
    for (at, Spaced(token, spaced)) in tokens.iter().enumerate() {
        match token {
            Token::Letters(run) | Token::Text(run) => {
                let name = run.trim_matches(|c: char| !c.is_alphanumeric());
                let single = name.chars().count() == 1;
                text |= !single && (is_word(name) || (words.len() > 1 && !product)) && !is_mathematical(name);
                if *spaced || words.is_empty() { words.push(run.clone()) } else { words.last_mut()?.push_str(run) }
            }
            Token::Char(c) if c.is_alphabetic() && *c != 'ℝ' => {
                text = true;
                if *spaced || words.is_empty() { words.push(c.to_string()) } else { words.last_mut()?.push(*c) }
            }
            // Punctuation matters in a product of letters, and a minus before any word.
            Token::Char('-') if at == 0 || (!long && *spaced) => return None,
            Token::Char('!') if at > 0 && may_be_product(&tokens[at - 1].0, 4) => return None,
            Token::Char('-' | ',' | ';' | ':' | '\'') if product => return None,
            Token::Char('.' | ',' | '\'' | '-' | '!' | '?' | ':' | ';' | '"' | '(' | ')') => {}
            _ => return None,
        }
    }
    let keep = |c: &char| c.is_alphanumeric() || *c == ' ';
    let joined: String = words.join(" ").chars().filter(keep).collect();
    text.then(|| joined.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
}

/// Whether a token may belong to a product of at most `most` adjacent symbols. Names, yes and no are words.
fn may_be_product(token: &Token, most: usize) -> bool {
    match token {
        Token::Letters(run) => {
            let name = run.len() > 2
                && run.starts_with(|c: char| c.is_ascii_uppercase())
                && run[1..].bytes().all(|b| b.is_ascii_lowercase());
            run.len() <= most && !name && !is_one_of(run, &["yes", "no", "and", "or"])
        }
        Token::Text(text) => text.chars().count() == 1,
        Token::Char(c) => !c.is_alphabetic(),
        _ => false,
    }
}

/// Parse a word as the product of its letters if it may be one.
pub(super) fn product(text: &str) -> Option<Node> {
    let tokens = tokenize(text).ok()?;
    let letters = |Spaced(token, _): &Spaced| matches!(token, Token::Letters(_)) && may_be_product(token, 4);
    if tokens.iter().all(letters) { FormulaParser::new(tokens).whole().ok() } else { None }
}

/// Whether letters are a word, which has a vowel; `xyz` is a product.
pub(super) fn is_word(name: &str) -> bool {
    name.eq_ignore_ascii_case("no")
        || name.chars().count() > 2
            && name.contains(|c: char| !c.is_ascii() || "aeiouAEIOU".contains(c))
            && !is_mathematical(name)
}

/// Whether a word belongs to a formula.
pub(super) fn is_mathematical(word: &str) -> bool {
    is_separator(word) || is_function(word) || constant(word).is_some() || glued_function(word).is_some()
}

pub(super) fn is_separator(word: &str) -> bool {
    is_and(word) || is_one_of(word, &["or", "and/or", "i.e.", "ou", "或", "或者"])
}

fn is_and(word: &str) -> bool {
    is_one_of(word, &["and", "&", "和", "且"])
}

fn is_one_of(word: &str, words: &[&str]) -> bool {
    words.iter().any(|other| word.eq_ignore_ascii_case(other))
}

/// Recursive-descent parser of tokens.
pub(super) struct FormulaParser {
    pub(super) tokens: Vec<Spaced>,
    pub(super) at: usize,
    pub(super) depth: usize,
    /// Number of open `|`.
    pub(super) bars: usize,
    /// Whether the innermost bracket is the `]` of `]0, 1[`.
    pub(super) outward: bool,
    /// Whether the innermost braces are the argument of a command.
    pub(super) argument: bool,
}

impl FormulaParser {
    pub(super) fn new(tokens: Vec<Spaced>) -> Self {
        Self { tokens, at: 0, depth: 0, bars: 0, outward: false, argument: false }
    }

    pub(super) fn whole(&mut self) -> Result<Node> {
        let mut node = self.list()?;
        if matches!(self.peek(), Some(Token::Command(name)) if name == "over") {
            self.at += 1;
            node = node.over(self.list()?);
        }
        if self.at == self.tokens.len() { Ok(node) } else { Err(Fault::Malformed) }
    }

    pub(super) fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|Spaced(token, _)| token)
    }

    /// Whether a space stands before the next token.
    pub(super) fn spaced(&self) -> bool {
        self.tokens.get(self.at).is_some_and(|Spaced(_, spaced)| *spaced)
    }

    pub(super) fn peek_char(&self) -> Option<char> {
        match self.peek() {
            Some(Token::Char(c)) => Some(*c),
            _ => None,
        }
    }

    pub(super) fn eat(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    pub(super) fn eat_char(&mut self, c: char) -> bool {
        self.eat(&Token::Char(c))
    }

    pub(super) fn expect(&mut self, token: &Token) -> Result<()> {
        if self.eat(token) { Ok(()) } else { Err(Fault::Malformed) }
    }

    /// Run `read`; if it returns `None`, go back to the current token.
    pub(super) fn attempt<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let start = self.at;
        let result = read(self);
        if result.is_none() {
            self.at = start;
        }
        result
    }

    /// Run `read` one nesting level deeper.
    pub(super) fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(Fault::Limit);
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Parse one or several answers: relations separated by commas, semicolons, "and", "or".
    pub(super) fn list(&mut self) -> Result<Node> {
        let mut items = self.items()?;
        match items.len() {
            0 => Err(Fault::Malformed),
            1 => Ok(items.swap_remove(0)),
            _ => Ok(Node::List(items)),
        }
    }

    /// Parse members; inequalities joined by "or" become one member.
    pub(super) fn items(&mut self) -> Result<Vec<Node>> {
        let (items, joints) = self.members()?;
        Ok(joined(items, &joints))
    }

    /// Parse members and the joints between them.
    pub(super) fn members(&mut self) -> Result<(Vec<Node>, Vec<Joint>)> {
        let (mut items, mut joints) = (Vec::new(), Vec::new());
        loop {
            let mut joint = joints.pop();
            while let Some(next) = self.separator() {
                joint = joint.max(Some(next));
            }
            joints.extend(joint.filter(|_| !items.is_empty()));
            let ends = match self.peek() {
                None | Some(Token::Close | Token::Cell | Token::Row) => true,
                Some(Token::Char(c)) => matches!(c, ')' | ']' | '}') && !items.is_empty() || *c == '}',
                _ => false,
            };
            if ends {
                return Ok((items, joints));
            }
            items.push(self.relation()?);
            self.spread_modulus(&mut items);
            match self.separator() {
                Some(joint) => joints.push(joint),
                None => return Ok((items, joints)),
            }
        }
    }

    /// Apply the modulus of the last member to the members before it: `x ≡ 1, 3 (mod 8)`.
    fn spread_modulus(&self, items: &mut [Node]) {
        let Some((Node::Modulo(_, modulus), before)) = items.split_last() else { return };
        let modulus = modulus.clone();
        let count = before.iter().rev().take_while(|item| !matches!(item, Node::Modulo(..))).count();
        let end = before.len();
        for item in &mut items[end - count..end] {
            *item = Node::Modulo(Box::new(item.clone()), modulus.clone());
        }
    }

    fn separator(&mut self) -> Option<Joint> {
        let joint = match self.peek()? {
            Token::Char(',') => Joint::Comma,
            Token::Char(';') => Joint::Semicolon,
            Token::Char('∨') => Joint::Or,
            Token::Letters(word) | Token::Text(word) if is_separator(word) => {
                if is_and(word) {
                    Joint::And
                } else {
                    Joint::Or
                }
            }
            _ => return None,
        };
        self.at += 1;
        Some(joint)
    }

    /// Parse a formula, or a chain such as `0 < x ≤ 1` or `f(x) = 2x`.
    fn relation(&mut self) -> Result<Node> {
        let mut terms = vec![self.ratio()?];
        let mut relations = Vec::new();
        let mut modulus = self.modulus()?;
        while let Some(relation) = self.peek_char().and_then(Relation::of) {
            // `17 mod 5 = 2`: the modulus belongs to one term.
            if let Some(modulus) = modulus.take() {
                let term = terms.pop().ok_or(Fault::Malformed)?;
                terms.push(Node::Modulo(Box::new(term), Box::new(modulus)));
            }
            self.at += 1;
            relations.push(relation);
            terms.push(self.ratio()?);
            modulus = self.modulus()?;
        }
        if terms.iter().any(|term| matches!(term, Node::Ratio(_))) {
            terms.iter_mut().for_each(Node::time_to_ratio);
        }
        let node = if relations.is_empty() { terms.swap_remove(0) } else { Node::Relation(terms, relations) };
        match modulus {
            Some(modulus) => Ok(Node::Modulo(Box::new(node), Box::new(modulus))),
            None => Ok(node),
        }
    }

    /// Parse the modulus of `\pmod{7}`, `(mod 7)` or `mod 7`.
    fn modulus(&mut self) -> Result<Option<Node>> {
        if !self.modulus_ahead() {
            return Ok(None);
        }
        let bracket = self.eat_char('(');
        let braced = matches!(self.peek(), Some(Token::Command(name)) if name == "pmod");
        self.at += 1;
        let modulus = if braced { self.argument_whole()? } else { self.deeper(Self::sum)? };
        if bracket {
            self.expect(&Token::Char(')'))?;
        }
        Ok(Some(modulus))
    }

    pub(super) fn modulus_ahead(&self) -> bool {
        let at = self.at + usize::from(self.peek_char() == Some('('));
        match self.tokens.get(at).map(|Spaced(token, _)| token) {
            Some(Token::Letters(name) | Token::Text(name)) => name == "mod",
            Some(Token::Command(name)) => matches!(name.as_str(), "mod" | "bmod" | "pmod"),
            _ => false,
        }
    }

    fn ratio(&mut self) -> Result<Node> {
        if let Some(time) = self.time() {
            return Ok(time);
        }
        let mut parts = vec![self.union()?];
        while self.peek_char() == Some(':') || self.to_ahead() {
            self.at += 1;
            parts.push(self.union()?);
        }
        if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { Ok(Node::Ratio(parts)) }
    }

    /// Whether the "to" of `3 to 5` or the "out of" of `3 out of 5` comes next.
    pub(super) fn to_ahead(&self) -> bool {
        let around = self.at.checked_sub(1).and_then(|before| self.tokens.get(before..before + 3));
        match around {
            Some(
                [
                    Spaced(Token::Digits(_), _),
                    Spaced(Token::Text(word) | Token::Letters(word), _),
                    Spaced(Token::Digits(_), _),
                ],
            ) => word == "to" || word == "out of",
            _ => false,
        }
    }

    fn union(&mut self) -> Result<Node> {
        let mut left = self.sum()?;
        let mut length = 0;
        while let Some(sign @ ('∪' | '∩' | '∖')) = self.peek_char() {
            self.at += 1;
            length += 1;
            if length > MAX_DEPTH {
                return Err(Fault::Limit);
            }
            let (a, b) = (Box::new(left), Box::new(self.sum()?));
            left = match sign {
                '∪' => Node::Union(a, b),
                '∩' => Node::Intersection(a, b),
                _ => Node::Without(a, b),
            };
        }
        Ok(left)
    }
}
