//! Parsing of brackets: tuples, intervals, sets, and environments of LaTeX.

use super::parse::FormulaParser;
use super::relation::joined;
use super::token::{Spaced, Token};
use super::tree::{Fault, Node, Relation, Result};

impl FormulaParser {
    /// Parse what follows an opening bracket: a group, a tuple or an interval.
    pub(super) fn bracket(&mut self, open: char) -> Result<Node> {
        if open == '[' {
            self.separate_columns();
        }
        let grid = if open == '[' { self.grid_ahead() } else { None };
        let outward = std::mem::replace(&mut self.outward, open == ']');
        let items = self.deeper(Self::items);
        self.outward = outward;
        let mut items = items?;
        let close = self.peek_char().filter(|c| matches!(c, ')' | ']' | '['));
        self.at += 1;
        let closed = match (open, close) {
            ('(', Some(')')) => None,
            ('[', Some(']')) => Some((true, true)),
            ('(', Some(']')) => Some((false, true)),
            ('[', Some(')')) => Some((true, false)),
            (']', Some('[')) => Some((false, false)),
            ('[', Some('[')) => Some((true, false)),
            ('(', Some('[')) => Some((false, false)),
            (']', Some(']')) => Some((false, true)),
            _ => return Err(Fault::Malformed),
        };
        if let Some((rows, columns)) = grid.filter(|(rows, columns)| rows * columns == items.len())
            && closed == Some((true, true))
        {
            let row = |row: usize| items[row * columns..(row + 1) * columns].to_vec();
            return Ok(Node::Matrix((0..rows).map(row).collect()));
        }
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

    /// Insert commas between the columns of `[1 2; 3 -4]` after its bracket.
    fn separate_columns(&mut self) {
        let (mut depth, mut columns, mut starts) = (0, vec![1], Vec::new());
        for at in self.at..self.tokens.len() {
            let number = |at: usize| matches!(self.tokens.get(at), Some(Spaced(Token::Digits(_), _)));
            let Spaced(token, spaced) = &self.tokens[at];
            match token {
                Token::Char(']') if depth == 0 => break,
                Token::Char(',') if depth == 0 => return,
                Token::Char(';') if depth == 0 => columns.push(1),
                Token::Open | Token::Char('(' | '[' | '{') => depth += 1,
                Token::Close | Token::Char(')' | ']' | '}') => depth -= 1,
                token if depth == 0 && *spaced && at > self.at && number(at - 1) => {
                    let sign = *token == Token::Char('-') && number(at + 1) && !self.tokens[at + 1].1;
                    if !number(at) && !sign {
                        return;
                    }
                    starts.push(at);
                    let row = columns.len() - 1;
                    columns[row] += 1;
                }
                _ => {}
            }
        }
        if columns.len() > 1 && columns.iter().all(|count| *count == columns[0]) {
            starts.iter().rev().for_each(|at| self.tokens.insert(*at, Spaced(Token::Char(','), false)));
        }
    }

    /// Return the numbers of rows and columns of `[1, 2; 3, 4]` after its bracket; `None` for other content.
    fn grid_ahead(&self) -> Option<(usize, usize)> {
        let (mut depth, mut columns) = (0, vec![1]);
        for Spaced(token, _) in &self.tokens[self.at..] {
            match token {
                Token::Char(']') if depth == 0 => break,
                Token::Open | Token::Char('(' | '[' | '{') => depth += 1,
                Token::Close | Token::Char(')' | ']' | '}') => depth -= 1,
                Token::Char(',') if depth == 0 => *columns.last_mut()? += 1,
                Token::Char(';') if depth == 0 => columns.push(1),
                _ => {}
            }
        }
        let width = columns[0];
        let even = columns.len() > 1 && width > 1 && columns.iter().all(|count| *count == width);
        even.then_some((columns.len(), width))
    }

    /// Parse what follows the brace of a set: its members, or `x | condition`.
    pub(super) fn set(&mut self) -> Result<Node> {
        // `\left\{ \begin{array}{l} x = 1 \\ y = 2 \end{array} \right.`
        if matches!(self.peek(), Some(Token::Command(name)) if name == "begin") {
            let start = self.at;
            self.at += 1;
            let rows = self.deeper(|parser| parser.enclosure(true))?;
            if self.peek_char() != Some('}') {
                return Ok(rows);
            }
            self.at = start;
        }
        let (mut items, joints) = self.deeper(|parser| {
            parser.bars += 1;
            let items = parser.members();
            parser.bars -= 1;
            items
        })?;
        if self.eat_char('|') {
            let mut conditions = self.deeper(Self::items)?;
            self.expect(&Token::Char('}'))?;
            return match (items.len(), conditions.len()) {
                (1, 1) => Ok(conditions.swap_remove(0)),
                (1, 2..) => Ok(Node::List(conditions)),
                _ => Err(Fault::Malformed),
            };
        }
        self.expect(&Token::Char('}'))?;
        let Some(condition) = items.first().and_then(after_colon) else { return Ok(Node::Set(joined(items, &joints))) };
        items[0] = condition;
        let mut conditions = joined(items, &joints);
        Ok(if conditions.len() == 1 { conditions.swap_remove(0) } else { Node::List(conditions) })
    }

    /// Parse the environment after a `\begin`; an `array` after a brace (`braced`) is `cases`.
    pub(super) fn enclosure(&mut self, braced: bool) -> Result<Node> {
        match self.environment()?.as_str() {
            "array" => {
                if self.peek() == Some(&Token::Open) {
                    self.index()?;
                }
                if braced { Ok(cases(self.rows(false)?)) } else { self.rows(true).map(Node::Matrix) }
            }
            "vmatrix" => super::matrix::determinant(&self.rows(true)?),
            "Vmatrix" => Err(Fault::Malformed),
            name if name.ends_with("matrix") => self.rows(true).map(Node::Matrix),
            "cases" => Ok(cases(self.rows(false)?)),
            "aligned" | "gathered" => {
                let rest = self.tokens.split_off(self.at);
                self.tokens.extend(rest.into_iter().filter(|Spaced(token, _)| *token != Token::Cell));
                Ok(cases(self.rows(false)?))
            }
            _ => Err(Fault::Malformed),
        }
    }

    /// Parse the rows of an environment up to its `\end`; those of a matrix must have equal lengths.
    fn rows(&mut self, matrix: bool) -> Result<Vec<Vec<Node>>> {
        let mut rows = vec![Vec::new()];
        loop {
            let item = if matrix { self.deeper(Self::list)? } else { self.deeper(Self::case)? };
            rows.last_mut().ok_or(Fault::Malformed)?.push(item);
            let part = matches!(self.peek(), Some(Token::Cell | Token::Row));
            if self.eat(&Token::Row) {
                if !self.end_ahead() {
                    rows.push(Vec::new());
                }
            } else {
                self.eat(&Token::Cell);
            }
            if self.end_ahead() {
                self.at += 1;
                self.environment()?;
                let width = rows[0].len();
                return if !matrix || rows.iter().all(|row| row.len() == width) {
                    Ok(rows)
                } else {
                    Err(Fault::Malformed)
                };
            }
            if !part {
                return Err(Fault::Malformed);
            }
        }
    }

    /// Parse a cell of `cases`: a formula, or a condition after `if`.
    fn case(&mut self) -> Result<Node> {
        let text = |token: Option<&Token>| match token {
            Some(Token::Text(word) | Token::Letters(word)) => word.trim_matches([',', '.', ' ']).to_lowercase(),
            _ => String::new(),
        };
        if self.peek_char() == Some(',') {
            self.at += 1;
        }
        match text(self.peek()).as_str() {
            "if" | "for" | "when" => self.at += 1,
            word @ ("otherwise" | "else") => {
                self.at += 1;
                return Ok(Node::Words(word.replace("else", "otherwise")));
            }
            _ => {}
        }
        self.list()
    }

    fn end_ahead(&self) -> bool {
        matches!(self.peek(), Some(Token::Command(name)) if name == "end")
    }

    /// Parse the name in the braces of a `\begin` or `\end`.
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
}

/// Return the condition after the colon of `x : x > 2` or `x ∈ ℝ : x > 2`.
fn after_colon(node: &Node) -> Option<Node> {
    let Node::Relation(terms, relations) = node else { return None };
    let at = usize::from(relations.len() > 1 && relations[0] == Relation::In);
    let Node::Ratio(parts) = &terms[at] else { return None };
    let mut terms = terms[at..].to_vec();
    terms[0] = parts.last()?.clone();
    Some(Node::Relation(terms, relations[at..].to_vec()))
}

/// Convert rows of one cell to several answers, rows of two cells to pairs of a value and its condition.
fn cases(rows: Vec<Vec<Node>>) -> Node {
    if rows.iter().all(|row| row.len() == 1) {
        return Node::List(rows.concat());
    }
    Node::Set(rows.into_iter().map(Node::Tuple).collect())
}
