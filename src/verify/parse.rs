//! Answers as people state them: words, choices, lists, relations, sets; their formulae are in `formula`.

use super::name::{constant, is_function};
use super::token::{Spaced, Token, tokenize};
use super::tree::{Fault, Node, Relation, Result};
use super::unit::is_unit;

/// How deep an answer may nest.
const MAX_DEPTH: usize = 48;

/// Reads an answer.
pub(super) fn parse(answer: &str) -> Result<Node> {
    let answer = answer.trim().trim_matches(|c: char| c == '*' || c == '"' || c == '`' || c.is_whitespace());
    let mut tokens = tokenize(answer)?;
    while matches!(tokens.last(), Some(Spaced(Token::Char('.' | ',' | ';'), _))) {
        tokens.pop();
    }
    drop_prefix(&mut tokens);
    if tokens.is_empty() {
        return Err(Fault::Malformed);
    }
    if let Some(words) = words(&tokens) {
        return Ok(Node::Words(words));
    }
    if let Some((letter, rest)) = choice(&tokens)
        && let Ok(node) = Parser::new(rest).whole()
    {
        return Ok(Node::Choice(letter, Box::new(node)));
    }
    Parser::new(tokens).whole()
}

/// Takes away what announces an answer: `Option B`, `answer: 5`.
fn drop_prefix(tokens: &mut Vec<Spaced>) {
    let first = match tokens.first() {
        Some(Spaced(Token::Letters(word) | Token::Text(word), _)) => word.to_lowercase(),
        _ => return,
    };
    if tokens.len() > 1 && matches!(first.as_str(), "option" | "choice" | "answer") {
        let colon = matches!(tokens.get(1), Some(Spaced(Token::Char(':' | '='), _)));
        tokens.drain(..1 + usize::from(colon));
    }
}

/// The words of an answer that has nothing to compute with: lower case, single blanks, no punctuation.
fn words(tokens: &[Spaced]) -> Option<String> {
    let mut words: Vec<String> = Vec::new();
    let mut text = false;
    for Spaced(token, spaced) in tokens {
        match token {
            Token::Letters(run) | Token::Text(run) => {
                let name = run.trim_matches(|c: char| !c.is_alphanumeric());
                let single = name.chars().count() == 1;
                // `xyz` is a product: a word has a vowel.
                let word =
                    name.chars().count() > 2 && name.contains(|c: char| !c.is_ascii() || "aeiouAEIOU".contains(c));
                text |= !single && (word || words.len() > 1) && !is_mathematical(name);
                if *spaced || words.is_empty() { words.push(run.clone()) } else { words.last_mut()?.push_str(run) }
            }
            Token::Char(c) if c.is_alphabetic() && *c != 'ℝ' => {
                text = true;
                if *spaced || words.is_empty() { words.push(c.to_string()) } else { words.last_mut()?.push(*c) }
            }
            Token::Char('.' | ',' | '\'' | '-' | '!' | '?' | ':' | ';' | '"' | '(' | ')') => {}
            _ => return None,
        }
    }
    let keep = |c: &char| c.is_alphanumeric() || *c == ' ';
    let joined: String = words.join(" ").chars().filter(keep).collect();
    text.then(|| joined.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")).filter(|text| !text.is_empty())
}

/// Words that are part of a formula.
fn is_mathematical(word: &str) -> bool {
    is_separator(word) || is_function(word) || constant(word).is_some()
}

pub(super) fn is_separator(word: &str) -> bool {
    matches!(word.to_ascii_lowercase().as_str(), "and" | "or" | "and/or")
}

/// A letter of multiple choice before its content: `(B) 42`, `B. 42`, `\textbf{(B)}\ 42`.
fn choice(tokens: &[Spaced]) -> Option<(String, Vec<Spaced>)> {
    let letter = |run: &str| (run.len() == 1 && ("A"..="J").contains(&run)).then(|| run.to_string());
    let (letter, used, marked) = match tokens {
        [Spaced(Token::Char('('), _), Spaced(Token::Letters(run), _), Spaced(Token::Char(')'), _), ..] => {
            (letter(run)?, 3, false)
        }
        [Spaced(Token::Text(text), _), ..] => (letter(text.strip_prefix('(')?.strip_suffix(')')?)?, 1, true),
        [Spaced(Token::Letters(run), _), Spaced(Token::Char('.' | ')' | ':'), _), ..] => (letter(run)?, 2, false),
        _ => return None,
    };
    let rest = tokens[used..].to_vec();
    let apart = rest.first().is_some_and(|Spaced(_, spaced)| *spaced || marked);
    apart.then_some((letter, rest))
}

/// A reader of tokens. Its methods for formulae are in `formula`.
pub(super) struct Parser {
    pub(super) tokens: Vec<Spaced>,
    pub(super) at: usize,
    pub(super) depth: usize,
    /// `|` that are open.
    pub(super) bars: usize,
}

impl Parser {
    pub(super) fn new(tokens: Vec<Spaced>) -> Self {
        Self { tokens, at: 0, depth: 0, bars: 0 }
    }

    pub(super) fn whole(&mut self) -> Result<Node> {
        let node = self.list()?;
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

    /// Reads something one level deeper.
    pub(super) fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(Fault::Limit);
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Several answers, or one: relations parted by commas, semicolons, "and", "or".
    pub(super) fn list(&mut self) -> Result<Node> {
        let mut items = self.items()?;
        match items.len() {
            0 => Err(Fault::Malformed),
            1 => Ok(items.swap_remove(0)),
            _ => Ok(Node::List(items)),
        }
    }

    fn items(&mut self) -> Result<Vec<Node>> {
        let mut items = Vec::new();
        loop {
            while self.separator() {}
            let ends = match self.peek() {
                None | Some(Token::Close | Token::Cell | Token::Row) => true,
                Some(Token::Char(c)) => matches!(c, ')' | ']' | '}') && !items.is_empty() || *c == '}',
                _ => false,
            };
            if ends {
                return Ok(items);
            }
            items.push(self.relation()?);
            if !self.separator() {
                return Ok(items);
            }
        }
    }

    fn separator(&mut self) -> bool {
        let found = match self.peek() {
            Some(Token::Char(',' | ';')) => true,
            Some(Token::Letters(word) | Token::Text(word)) => is_separator(word),
            _ => false,
        };
        self.at += usize::from(found);
        found
    }

    /// A formula, or a chain of them such as `0 < x ≤ 1` or `f(x) = 2x`.
    fn relation(&mut self) -> Result<Node> {
        let mut terms = vec![self.ratio()?];
        let mut relations = Vec::new();
        while let Some(relation) = self.peek_char().and_then(Relation::of) {
            self.at += 1;
            relations.push(relation);
            terms.push(self.ratio()?);
        }
        if relations.is_empty() { Ok(terms.swap_remove(0)) } else { Ok(Node::Relation(terms, relations)) }
    }

    fn ratio(&mut self) -> Result<Node> {
        let mut parts = vec![self.union()?];
        while self.peek_char() == Some(':') {
            self.at += 1;
            parts.push(self.union()?);
        }
        if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { Ok(Node::Ratio(parts)) }
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

    /// What follows an opening bracket: a group, a tuple or an interval.
    pub(super) fn bracket(&mut self, open: char) -> Result<Node> {
        let mut items = self.deeper(Self::items)?;
        let close = self.peek_char().filter(|c| matches!(c, ')' | ']' | '['));
        self.at += 1;
        let closed = match (open, close) {
            ('(', Some(')')) => None,
            ('[', Some(']')) => Some((true, true)),
            ('(', Some(']')) => Some((false, true)),
            ('[', Some(')')) => Some((true, false)),
            (']', Some('[')) => Some((false, false)),
            _ => return Err(Fault::Malformed),
        };
        match (items.len(), closed) {
            (0, _) => Err(Fault::Malformed),
            (1, None | Some((true, true))) => Ok(items.swap_remove(0)),
            (2, Some(closed)) => {
                let right = items.swap_remove(1);
                Ok(Node::Interval { ends: Box::new((items.swap_remove(0), right)), closed })
            }
            (_, None | Some((true, true))) => Ok(Node::Tuple(items)),
            _ => Err(Fault::Malformed),
        }
    }

    /// What follows the brace of a set: its members, or `x | condition`.
    pub(super) fn set(&mut self) -> Result<Node> {
        let items = self.deeper(|parser| {
            parser.bars += 1;
            let items = parser.items();
            parser.bars -= 1;
            items
        })?;
        if self.eat_char('|') {
            let condition = self.deeper(Self::items)?;
            self.expect(&Token::Char('}'))?;
            return match <[Node; 1]>::try_from(condition) {
                Ok([condition]) if items.len() == 1 => Ok(condition),
                _ => Err(Fault::Malformed),
            };
        }
        self.expect(&Token::Char('}'))?;
        match items.as_slice() {
            // `{x : x > 2}`
            [Node::Relation(terms, relations)] if matches!(terms.first(), Some(Node::Ratio(_))) => {
                let mut terms = terms.clone();
                if let Node::Ratio(parts) = &mut terms[0] {
                    let last = parts.pop().ok_or(Fault::Malformed)?;
                    terms[0] = last;
                }
                Ok(Node::Relation(terms, relations.clone()))
            }
            _ => Ok(Node::Set(items)),
        }
    }

    /// A `pmatrix` or its like, after its `\begin`.
    pub(super) fn matrix(&mut self) -> Result<Node> {
        let mut rows = vec![Vec::new()];
        loop {
            let item = self.deeper(Self::list)?;
            rows.last_mut().ok_or(Fault::Malformed)?.push(item);
            match self.peek() {
                Some(Token::Cell) => self.at += 1,
                Some(Token::Row) => {
                    self.at += 1;
                    if !matches!(self.peek(), Some(Token::Command(name)) if name == "end") {
                        rows.push(Vec::new());
                    }
                }
                _ => {}
            }
            if matches!(self.peek(), Some(Token::Command(name)) if name == "end") {
                self.at += 1;
                self.environment()?;
                let width = rows[0].len();
                return if rows.iter().all(|row| row.len() == width) {
                    Ok(Node::Matrix(rows))
                } else {
                    Err(Fault::Malformed)
                };
            }
            if !matches!(self.tokens.get(self.at.wrapping_sub(1)), Some(Spaced(Token::Cell | Token::Row, _))) {
                return Err(Fault::Malformed);
            }
        }
    }

    /// The name in the braces of a `\begin` or `\end`.
    pub(super) fn environment(&mut self) -> Result<String> {
        self.expect(&Token::Open)?;
        let name = match self.peek() {
            Some(Token::Letters(name)) => name.clone(),
            _ => return Err(Fault::Malformed),
        };
        self.at += 1;
        self.expect(&Token::Close)?;
        Ok(name)
    }

    /// Whether the run of letters ahead is a unit after a quantity.
    pub(super) fn unit_ahead(&self) -> bool {
        match self.peek() {
            Some(Token::Text(word)) => !is_separator(word) && !word.is_empty(),
            Some(Token::Letters(word)) => is_unit(word) || (self.spaced() && word.len() > 2 && !is_mathematical(word)),
            _ => false,
        }
    }
}
