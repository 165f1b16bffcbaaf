//! Parsing of symbols, functions and commands of LaTeX.

use num_rational::BigRational;
use num_traits::Signed;

use super::formula::product_of;
use super::matrix::determinant;
use super::parse::FormulaParser;
use super::rounded::literal;
use super::token::{Spaced, Token};
use super::tree::{Fault, Node, Result};

const FUNCTIONS: &[&str] = &[
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "asin", "acos", "atan", "sinh", "cosh",
    "tanh", "arctg", "cis", "ln", "log", "lg", "exp", "sqrt", "cbrt", "abs", "floor", "ceil", "max", "min", "gcd",
    "lcm", "binom", "cosec",
];

/// Commands that end a formula or are not supported.
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

/// Return the length of the function name at the start of `sinx` or `sinxcosx`, of at most 32 letters.
pub(super) fn glued_function(run: &str) -> Option<usize> {
    const NAMES: &[&str] = &["sin", "cos", "tan", "cot", "sec", "csc", "ln", "log"];
    let name = NAMES.iter().find(|name| run.starts_with(**name) && run.len() <= 32)?;
    let rest = run[name.len()..].strip_prefix(['x', 'y', 'z', 'A', 'B', 'C'])?;
    (rest.is_empty() || glued_function(rest).is_some()).then_some(name.len())
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

impl FormulaParser {
    pub(super) fn letters(&mut self, run: String) -> Result<Node> {
        if is_function(&run) {
            return self.function(&run);
        }
        if let Some(node) = constant(&run) {
            return self.subscripted(node);
        }
        // `Matrix(…)` of sympy and `array(…)` of numpy.
        if matches!(run.as_str(), "Matrix" | "array") && self.peek_char() == Some('(') {
            return self.primary();
        }
        // Library prefix as in `np.sqrt(2)`.
        if matches!(run.as_str(), "np" | "numpy" | "math" | "sympy") && self.eat_char('.') {
            return self.primary();
        }
        // Adjacent letters are a product.
        let function = glued_function(&run);
        self.at -= 1;
        self.split_run(function.unwrap_or(1));
        self.at += 1;
        if let Some(length) = function { self.function(&run[..length]) } else { self.named(run[..1].to_string()) }
    }

    pub(super) fn named(&mut self, name: String) -> Result<Node> {
        self.subscripted(symbol(&name))
    }

    /// Parse the indices after the C of a binomial coefficient, `C_{10}^3`, `C^3_{10}`, or after the letter of a number
    /// of permutations, `A_{10}^3`.
    fn choices(&mut self, letter: &str) -> Option<Node> {
        let mut index = |sign| if self.eat_char(sign) { self.argument_whole().ok() } else { None };
        let (upper, n) = (index('^'), index('_')?);
        let k = upper.or_else(|| index('^'))?;
        let symbols = letter != "C" && (literal(&n).is_none() || literal(&k).is_none());
        if symbols || !is_count(&n, &k) { None } else { count(letter, n, k) }
    }

    /// Parse the rest of `10C3` or `10P3` after its first number.
    pub(super) fn choices_after(&mut self, n: &str) -> Option<Node> {
        let [Spaced(Token::Letters(letter), false), Spaced(Token::Digits(k), false)] =
            self.tokens.get(self.at..self.at + 2)?
        else {
            return None;
        };
        let count = count(letter, super::number::literal(n).ok()?, super::number::literal(k).ok()?)?;
        self.at += 2;
        Some(count)
    }

    /// Parse `_{10}C_3`, `^{10}C_3` or the number of permutations `_{10}P_3` after the first sign.
    pub(super) fn prefixed_choices(&mut self) -> Result<Node> {
        let n = self.argument_whole()?;
        let Some(Token::Letters(letter) | Token::Text(letter)) = self.peek().cloned() else {
            return Err(Fault::Malformed);
        };
        self.at += 1;
        self.expect(&Token::Char('_'))?;
        let k = self.argument_whole()?;
        count(&letter, n, k).ok_or(Fault::Malformed)
    }

    /// Parse the primes, index and arguments of a symbol.
    fn subscripted(&mut self, node: Node) -> Result<Node> {
        if let Node::Symbol(letter) = &node
            && let Some(choices) = self.attempt(|parser| parser.choices(letter))
        {
            return Ok(choices);
        }
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
        // `u(t)` and `I(0)` are function values; `n(n+1)` is a product.
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
        if name == "C" && !simple {
            // `C(10, 3)`
            let binomial = self.attempt(|parser| match parser.primary() {
                Ok(Node::Tuple(pair)) if pair.len() == 2 => Some(Node::Apply("binom".to_string(), pair)),
                _ => None,
            });
            return Ok(binomial.unwrap_or(Node::Symbol(name)));
        }
        self.at += 1;
        match self.bracket('(')? {
            Node::Tuple(arguments) => Ok(Node::Apply(name, arguments)),
            Node::Interval { .. } => Err(Fault::Malformed),
            argument => Ok(Node::Apply(name, vec![argument])),
        }
    }

    /// Return the number of primes in the group after `^` if it contains nothing else.
    fn primes(&self) -> usize {
        let Some(Spaced(Token::Open, _)) = self.tokens.get(self.at + 1) else { return 0 };
        let rest = &self.tokens[self.at + 2..];
        let primes = rest.iter().take_while(|token| token.0 == Token::Char('\'')).count();
        if matches!(rest.get(primes), Some(Spaced(Token::Close, _))) { primes } else { 0 }
    }

    /// Return the text of an index.
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
            "begin" => self.enclosure(false),
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

    /// Parse the power, base and argument after the name of a function.
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
            "cosec" => Node::Apply("csc".to_string(), arguments),
            "lg" if arguments.len() == 1 => Node::apply("log", vec![arguments.swap_remove(0), Node::integer(10)]),
            _ => Node::Apply(name, arguments),
        };
        Ok(match power {
            Some(power) => node.power(power),
            None => node,
        })
    }

    /// Parse an argument without brackets: the factors up to the next operator or function.
    fn bare_argument(&mut self) -> Result<Node> {
        let mut factors = vec![self.deeper(Self::signed_power)?];
        while self.starts_factor() && !self.unit_ahead() && !self.function_ahead() {
            factors.push(self.deeper(Self::power)?);
        }
        Ok(product_of(factors))
    }

    fn function_ahead(&self) -> bool {
        match self.peek() {
            Some(Token::Letters(name) | Token::Command(name) | Token::Text(name)) => {
                is_function(name) || glued_function(name).is_some()
            }
            Some(Token::Char('(' | '[')) => true,
            _ => false,
        }
    }
}

/// Return the number of combinations, C, or of permutations, P or A, of `k` among `n`.
fn count(letter: &str, n: Node, k: Node) -> Option<Node> {
    let choices = Node::apply("binom", vec![n, k.clone()]);
    match letter {
        "C" => Some(choices),
        "P" | "A" => Some(Node::Product(vec![choices, Node::apply("factorial", vec![k])])),
        _ => None,
    }
}

/// Whether C with these indices is a binomial coefficient, `C_5^2` or `C_{2n}^n`, and not a power, `C_1^2`.
fn is_count(n: &Node, k: &Node) -> bool {
    let other = |node: &Node| match node {
        Node::Symbol(name) => !"nmkrNM".contains(name.as_str()),
        node => !matches!(node, Node::Number { .. } | Node::Sum(_) | Node::Product(_) | Node::Negative(_)),
    };
    match (literal(n), literal(k)) {
        (Some(n), Some(k)) => !k.is_negative() && k <= n && (k < n || n > BigRational::from_integer(2.into())),
        (number, _) => number.is_none() && !n.any(&other) && !k.any(&other),
    }
}

pub(super) fn symbol(name: &str) -> Node {
    match name {
        "e" => Node::Euler,
        "i" => Node::Imaginary,
        _ => Node::Symbol(name.to_string()),
    }
}

/// Build a quotient, or a derivative from `\frac{dx}{dt}`, in which nothing cancels.
fn fraction(over: Node, under: Node) -> Node {
    let differential = |node: &Node| {
        let first = if let Node::Product(factors) = node { &factors[0] } else { node };
        let first = if let Node::Power(base, _) = first { base } else { first };
        matches!(first, Node::Symbol(name) if name == "d" || name == "partial")
    };
    if differential(&over) && differential(&under) { Node::apply("d/d", vec![over, under]) } else { over.over(under) }
}
