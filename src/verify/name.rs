//! Symbols, functions and commands of LaTeX.

use super::formula::product_of;
use super::matrix::determinant;
use super::parse::Parser;
use super::token::{Spaced, Token};
use super::tree::{Fault, Node, Result};

const FUNCTIONS: &[&str] = &[
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "arctg", "cis", "ln", "log", "lg", "exp", "sqrt", "cbrt", "abs", "floor", "ceil", "max", "min", "gcd",
    "lcm", "binom",
];

/// Commands that end a formula or are beyond this reader.
#[rustfmt::skip]
pub(super) const FOREIGN: &[&str] = &[
    "sum", "int", "prod", "lim", "iint", "oint", "vdots", "to", "rightarrow", "Rightarrow", "implies", "iff", "begin",
    "end", "pmod", "bmod", "mod", "choose", "over", "forall", "exists", "overline", "cancel", "subset",
    "subseteq", "notin", "nmid", "sim", "cong", "perp", "parallel", "not", "href", "xrightarrow",
    "underbrace", "overbrace", "neg", "propto",
];

pub(super) fn is_function(name: &str) -> bool {
    FUNCTIONS.contains(&name)
}

pub(super) fn constant(name: &str) -> Option<Node> {
    match name {
        "pi" => Some(Node::Pi),
        "inf" | "infinity" | "Infinity" | "infty" => Some(Node::Infinity),
        "alpha" | "beta" | "gamma" | "delta" | "theta" | "lambda" | "sigma" | "omega" | "phi" | "rho" => {
            Some(Node::Symbol(name.to_string()))
        }
        _ => None,
    }
}

impl Parser {
    pub(super) fn letters(&mut self, run: String) -> Result<Node> {
        if is_function(&run) {
            return self.function(&run);
        }
        if let Some(node) = constant(&run) {
            return self.subscripted(node);
        }
        // sympy's and numpy's name of a matrix.
        if matches!(run.as_str(), "Matrix" | "array") && self.peek_char() == Some('(') {
            return self.primary();
        }
        // The library's name in `np.sqrt(2)`.
        if matches!(run.as_str(), "np" | "numpy" | "math" | "sympy") && self.eat_char('.') {
            return self.primary();
        }
        // Letters side by side are a product; all but the first go back.
        let first = run[..1].to_string();
        if run.len() > 1 {
            self.at -= 1;
            self.tokens[self.at] = Spaced(Token::Letters(run[1..].to_string()), false);
            return Ok(symbol(&first));
        }
        self.named(first)
    }

    pub(super) fn named(&mut self, name: String) -> Result<Node> {
        self.subscripted(symbol(&name))
    }

    /// A symbol with its primes, index and, for functions, arguments.
    fn subscripted(&mut self, node: Node) -> Result<Node> {
        let indexed = self.peek_char() == Some('_');
        let mut name = match node {
            Node::Symbol(name) => name,
            Node::Euler if indexed => "e".to_string(),
            Node::Imaginary if indexed => "i".to_string(),
            constant => return Ok(constant),
        };
        loop {
            match self.peek_char() {
                Some('\'') => {
                    name.push('\'');
                    self.at += 1;
                }
                Some('_') => {
                    self.at += 1;
                    name = name + "_" + &self.index()?;
                }
                Some('^') if self.primes() > 0 => {
                    let primes = self.primes();
                    name.push_str(&"'".repeat(primes));
                    self.at += primes + 3;
                }
                _ => break,
            }
        }
        if self.peek_char() != Some('(') || self.spaced() {
            return Ok(Node::Symbol(name));
        }
        let function = matches!(name.trim_end_matches('\'').split('_').next(), Some("f" | "g" | "h" | "F" | "G"));
        // `u(t)` and `I(0)` are values of functions; `n(n+1)` is a product.
        let simple = matches!(
            (self.tokens.get(self.at + 1), self.tokens.get(self.at + 2)),
            (Some(Spaced(Token::Digits(_), _)), Some(Spaced(Token::Char(')'), _)))
        ) || matches!(
            (self.tokens.get(self.at + 1), self.tokens.get(self.at + 2)),
            (Some(Spaced(Token::Letters(run), _)), Some(Spaced(Token::Char(')'), _))) if run.len() == 1
        );
        if !function && !simple && name != "C" {
            return Ok(Node::Symbol(name));
        }
        let start = self.at;
        self.at += 1;
        if name == "C" && !simple {
            return match self.bracket('(') {
                // `C(10, 3)`
                Ok(Node::Tuple(pair)) if pair.len() == 2 => Ok(Node::Apply("binom".to_string(), pair)),
                _ => {
                    self.at = start;
                    Ok(Node::Symbol(name))
                }
            };
        }
        match self.bracket('(')? {
            Node::Tuple(arguments) => Ok(Node::Apply(name, arguments)),
            Node::Interval { .. } => Err(Fault::Malformed),
            argument => Ok(Node::Apply(name, vec![argument])),
        }
    }

    /// How many primes the group after `^` holds, if nothing else.
    fn primes(&self) -> usize {
        let Some(Spaced(Token::Open, _)) = self.tokens.get(self.at + 1) else { return 0 };
        let rest = &self.tokens[self.at + 2..];
        let primes = rest.iter().take_while(|token| token.0 == Token::Char('\'')).count();
        if matches!(rest.get(primes), Some(Spaced(Token::Close, _))) { primes } else { 0 }
    }

    /// The text of an index, which only names.
    pub(super) fn index(&mut self) -> Result<String> {
        let mut name = String::new();
        let mut open = 0;
        loop {
            let Some(token) = self.peek().cloned() else { return Err(Fault::Malformed) };
            self.at += 1;
            match token {
                Token::Open => open += 1,
                Token::Close => open -= 1,
                Token::Digits(text) | Token::Letters(text) | Token::Text(text) | Token::Command(text) => {
                    name.push_str(&text);
                }
                Token::Char(c) => name.push(c),
                Token::Cell | Token::Row => return Err(Fault::Malformed),
            }
            if open == 0 {
                return Ok(name);
            }
        }
    }

    pub(super) fn command(&mut self, name: &str) -> Result<Node> {
        if is_function(name) && name != "binom" && name != "sqrt" {
            return self.function(name);
        }
        match name {
            "frac" => {
                let (over, under) = (self.argument()?, self.argument()?);
                Ok(fraction(over, under))
            }
            "binom" => Ok(Node::apply("binom", vec![self.argument()?, self.argument()?])),
            "sqrt" => {
                let degree = if self.eat_char('[') {
                    let degree = self.deeper(Self::sum)?;
                    self.expect(&Token::Char(']'))?;
                    degree
                } else {
                    Node::integer(2)
                };
                let radicand = match self.peek() {
                    Some(Token::Open) => self.group()?,
                    _ => self.primary()?,
                };
                Ok(radicand.power(Node::integer(1).over(degree)))
            }
            "begin" => self.enclosure(),
            "det" => match self.primary()? {
                Node::Matrix(rows) => determinant(&rows),
                _ => Err(Fault::Malformed),
            },
            "dot" | "ddot" | "tilde" | "hat" | "widehat" | "bar" => {
                let Node::Symbol(inside) = self.argument()? else { return Err(Fault::Malformed) };
                self.subscripted(Node::Symbol(format!("{name} {inside}")))
            }
            "angle" | "triangle" => match self.peek().cloned() {
                Some(Token::Letters(points)) => {
                    self.at += 1;
                    Ok(Node::Symbol(format!("{name} {points}")))
                }
                _ => Ok(Node::Symbol(name.to_string())),
            },
            "infty" => Ok(Node::Infinity),
            "imath" => Ok(Node::Imaginary),
            _ if FOREIGN.contains(&name) => Err(Fault::Malformed),
            _ => match constant(name) {
                Some(node) => self.subscripted(node),
                None => self.subscripted(Node::Symbol(name.to_string())),
            },
        }
    }

    /// A function after its name: power, base, argument.
    pub(super) fn function(&mut self, name: &str) -> Result<Node> {
        let mut name =
            name.strip_prefix("arc").map_or(name.to_string(), |rest| format!("a{}", rest.replace("tg", "tan")));
        let mut power = None;
        let mut base = None;
        loop {
            match self.peek_char() {
                Some('_') if name == "log" => {
                    self.at += 1;
                    base = Some(self.argument_whole()?);
                }
                Some('^') => {
                    self.at += 1;
                    power = Some(match self.peek() {
                        Some(Token::Open) => self.group()?,
                        _ => self.signed_power()?,
                    });
                }
                _ => break,
            }
        }
        if power == Some(Node::integer(1).negative()) && matches!(name.as_str(), "sin" | "cos" | "tan") {
            power = None;
            name = format!("a{name}");
        }
        let mut arguments = match self.peek() {
            Some(Token::Char('(')) => {
                self.at += 1;
                match self.bracket('(')? {
                    Node::Tuple(arguments) => arguments,
                    argument => vec![argument],
                }
            }
            Some(Token::Open) => vec![self.group()?],
            Some(Token::Char('{')) => match self.primary()? {
                Node::Set(members) => members,
                other => vec![other],
            },
            _ => vec![self.bare_argument()?],
        };
        arguments.extend(base);
        let node = match name.as_str() {
            "sqrt" | "cbrt" if arguments.len() == 1 => {
                let degree = Node::integer(if name == "sqrt" { 2 } else { 3 });
                arguments.swap_remove(0).power(Node::integer(1).over(degree))
            }
            "lg" if arguments.len() == 1 => Node::apply("log", vec![arguments.swap_remove(0), Node::integer(10)]),
            _ => Node::Apply(name, arguments),
        };
        Ok(match power {
            Some(power) => node.power(power),
            None => node,
        })
    }

    /// An argument without brackets: the factors up to the next sign or function.
    fn bare_argument(&mut self) -> Result<Node> {
        let mut factors = vec![self.deeper(Self::signed_power)?];
        while self.starts_factor() && !self.unit_ahead() && !self.function_ahead() {
            factors.push(self.deeper(Self::power)?);
        }
        Ok(product_of(factors))
    }

    fn function_ahead(&self) -> bool {
        match self.peek() {
            Some(Token::Letters(name) | Token::Command(name) | Token::Text(name)) => is_function(name),
            Some(Token::Char('(' | '[')) => true,
            _ => false,
        }
    }
}

pub(super) fn symbol(name: &str) -> Node {
    match name {
        "e" => Node::Euler,
        "i" => Node::Imaginary,
        _ => Node::Symbol(name.to_string()),
    }
}

/// A quotient; `\frac{dx}{dt}` is a derivative, in which nothing cancels.
fn fraction(over: Node, under: Node) -> Node {
    let differential = |node: &Node| {
        let first = if let Node::Product(factors) = node { &factors[0] } else { node };
        let first = if let Node::Power(base, _) = first { base } else { first };
        matches!(first, Node::Symbol(name) if name == "d" || name == "partial")
    };
    if differential(&over) && differential(&under) { Node::apply("d/d", vec![over, under]) } else { over.over(under) }
}
