//! Syntax tree of an answer.

use std::fmt;

use num_rational::BigRational;

use super::unit::Unit;

/// Reason why an answer cannot be parsed or evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Not the notation of an answer.
    Malformed,
    /// It has no value, such as 1/0.
    Undefined,
    /// It nests too deeply, is too large, or would take too many steps.
    Limit,
}

pub(super) type Result<T> = std::result::Result<T, Fault>;

/// Relation between two neighbours in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
    /// `≈`: the right-hand side is the left-hand side rounded.
    Near,
}

impl Relation {
    pub(super) fn of(symbol: char) -> Option<Self> {
        Some(match symbol {
            '=' | '≡' => Self::Equal,
            '≈' => Self::Near,
            '≠' => Self::Unequal,
            '<' => Self::Less,
            '≤' => Self::LessOrEqual,
            '>' => Self::Greater,
            '≥' => Self::GreaterOrEqual,
            '∈' => Self::In,
            '∉' => Self::NotIn,
            _ => return None,
        })
    }

    /// Return the relation with its sides swapped.
    pub(super) fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            other => other,
        }
    }

    fn symbol(self) -> char {
        match self {
            Self::Equal => '=',
            Self::Unequal => '≠',
            Self::Less => '<',
            Self::LessOrEqual => '≤',
            Self::Greater => '>',
            Self::GreaterOrEqual => '≥',
            Self::In => '∈',
            Self::NotIn => '∉',
            Self::Near => '≈',
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// A literal. `place` is the power of ten of the last digit if two or more decimal places are written. A gold with
    /// a `place` is a rounded number.
    Number {
        value: BigRational,
        place: Option<i32>,
    },
    /// Value of an integer in a stated base, and its digits as written.
    Based(BigRational, String),
    Symbol(String),
    Pi,
    Euler,
    Imaginary,
    Infinity,
    /// The real numbers.
    Reals,
    Sum(Vec<Node>),
    Product(Vec<Node>),
    Negative(Box<Node>),
    Inverse(Box<Node>),
    Power(Box<Node>, Box<Node>),
    /// `±` (true) or `∓`.
    PlusMinus(bool, Box<Node>),
    /// A function by its short name, and its arguments.
    Apply(String, Vec<Node>),
    Percent(Box<Node>),
    Degrees(Box<Node>),
    Measured(Box<Node>, Unit),
    /// `(a, b)`, which may be an open interval, or more components.
    Tuple(Vec<Node>),
    /// Several answers in any order.
    List(Vec<Node>),
    Set(Vec<Node>),
    /// Ends of an interval, and whether each is closed.
    Interval {
        ends: Box<(Node, Node)>,
        closed: (bool, bool),
    },
    Union(Box<Node>, Box<Node>),
    Intersection(Box<Node>, Box<Node>),
    Without(Box<Node>, Box<Node>),
    Matrix(Vec<Vec<Node>>),
    Ratio(Vec<Node>),
    /// A time of day in seconds since midnight, and whether AM or PM is stated.
    Time(i64, bool),
    /// A number or an equation, and its modulus.
    Modulo(Box<Node>, Box<Node>),
    /// A chain such as `0 < x ≤ 1`, with one relation fewer than terms.
    Relation(Vec<Node>, Vec<Relation>),
    Words(String),
    /// A letter of multiple choice and its content.
    Choice(String, Box<Node>),
}

impl Node {
    pub(super) fn integer(value: i64) -> Self {
        Self::Number { value: BigRational::from_integer(value.into()), place: None }
    }

    pub(super) fn negative(self) -> Self {
        Self::Negative(Box::new(self))
    }

    pub(super) fn over(self, divisor: Self) -> Self {
        Self::Product(vec![self, Self::Inverse(Box::new(divisor))])
    }

    pub(super) fn power(self, exponent: Self) -> Self {
        Self::Power(Box::new(self), Box::new(exponent))
    }

    pub(super) fn apply(name: &str, arguments: Vec<Self>) -> Self {
        Self::Apply(name.to_string(), arguments)
    }

    /// Convert a time that may be a ratio: `11:20`, but not `11:05`.
    pub(super) fn time_to_ratio(&mut self) {
        if let Self::Time(seconds, false) = self
            && *seconds % 60 == 0
            && *seconds / 60 % 60 >= 10
        {
            *self = Self::Ratio(vec![Self::integer(*seconds / 3600), Self::integer(*seconds / 60 % 60)]);
        }
    }

    /// Describe the kind of answer.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Number { .. } | Self::Based(..) => "the number",
            Self::Tuple(_) => "the tuple or open interval",
            Self::List(_) => "the answers",
            Self::Set(_) | Self::Reals => "the set",
            Self::Interval { .. } | Self::Union(..) | Self::Intersection(..) | Self::Without(..) => "the set",
            Self::Matrix(_) => "the",
            Self::Relation(..) => "the relation",
            Self::Words(_) => "the words",
            Self::Choice(..) => "the",
            Self::Ratio(_) => "the ratio",
            Self::Time(..) => "the time",
            Self::Modulo(..) => "the congruence",
            Self::Percent(_) | Self::Degrees(_) | Self::Measured(..) => "the quantity",
            _ => "the formula",
        }
    }

    /// Return the direct children.
    pub(super) fn children(&self) -> Vec<&Node> {
        match self {
            Self::Sum(list) | Self::Product(list) | Self::Apply(_, list) | Self::Tuple(list) => list.iter().collect(),
            Self::List(list) | Self::Set(list) | Self::Ratio(list) | Self::Relation(list, _) => list.iter().collect(),
            Self::Negative(a) | Self::Inverse(a) | Self::PlusMinus(_, a) | Self::Percent(a) => vec![a],
            Self::Degrees(a) | Self::Measured(a, _) | Self::Choice(_, a) => vec![a],
            Self::Power(a, b) | Self::Union(a, b) | Self::Intersection(a, b) | Self::Without(a, b) => vec![a, b],
            Self::Modulo(a, b) => vec![a, b],
            Self::Interval { ends, .. } => vec![&ends.0, &ends.1],
            Self::Matrix(rows) => rows.iter().flatten().collect(),
            _ => Vec::new(),
        }
    }

    /// Whether `such` holds for the node or a descendant.
    pub(super) fn any(&self, such: &dyn Fn(&Node) -> bool) -> bool {
        such(self) || self.children().into_iter().any(|child| child.any(such))
    }

    /// Return the node with `change` applied to its children.
    pub(super) fn map(&self, change: &dyn Fn(&Node) -> Node) -> Node {
        let all = |list: &[Node]| list.iter().map(change).collect::<Vec<_>>();
        let one = |node: &Node| Box::new(change(node));
        match self {
            Self::Sum(list) => Self::Sum(all(list)),
            Self::Product(list) => Self::Product(all(list)),
            Self::Apply(name, list) => Self::Apply(name.clone(), all(list)),
            Self::Tuple(list) => Self::Tuple(all(list)),
            Self::List(list) => Self::List(all(list)),
            Self::Set(list) => Self::Set(all(list)),
            Self::Ratio(list) => Self::Ratio(all(list)),
            Self::Relation(list, relations) => Self::Relation(all(list), relations.clone()),
            Self::Negative(node) => Self::Negative(one(node)),
            Self::Inverse(node) => Self::Inverse(one(node)),
            Self::PlusMinus(upper, node) => Self::PlusMinus(*upper, one(node)),
            Self::Percent(node) => Self::Percent(one(node)),
            Self::Degrees(node) => Self::Degrees(one(node)),
            Self::Measured(node, unit) => Self::Measured(one(node), unit.clone()),
            Self::Choice(letter, node) => Self::Choice(letter.clone(), one(node)),
            Self::Power(a, b) => Self::Power(one(a), one(b)),
            Self::Union(a, b) => Self::Union(one(a), one(b)),
            Self::Intersection(a, b) => Self::Intersection(one(a), one(b)),
            Self::Without(a, b) => Self::Without(one(a), one(b)),
            Self::Modulo(a, b) => Self::Modulo(one(a), one(b)),
            Self::Interval { ends, closed } => {
                Self::Interval { ends: Box::new((change(&ends.0), change(&ends.1))), closed: *closed }
            }
            Self::Matrix(rows) => Self::Matrix(rows.iter().map(|row| all(row)).collect()),
            leaf => leaf.clone(),
        }
    }

    /// Replace every `±` by plus and `∓` by minus, or vice versa.
    pub(super) fn signed(&self, plus: bool) -> Node {
        match self {
            Self::PlusMinus(upper, node) if *upper == plus => node.signed(plus),
            Self::PlusMinus(_, node) => node.signed(plus).negative(),
            other => other.map(&|node| node.signed(plus)),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let list = |list: &[Node], by: &str| list.iter().map(Node::to_string).collect::<Vec<_>>().join(by);
        match self {
            Self::Number { value, .. } | Self::Based(value, _) => write!(f, "{value}"),
            Self::Symbol(name) | Self::Words(name) => write!(f, "{name}"),
            Self::Pi => write!(f, "π"),
            Self::Euler => write!(f, "e"),
            Self::Imaginary => write!(f, "i"),
            Self::Infinity => write!(f, "∞"),
            Self::Reals => write!(f, "ℝ"),
            Self::Sum(terms) => write!(f, "({})", list(terms, " + ")),
            Self::Product(factors) => write!(f, "({})", list(factors, "·")),
            Self::Negative(node) => write!(f, "-{node}"),
            Self::Inverse(node) => write!(f, "(1/{node})"),
            Self::Power(base, exponent) => write!(f, "{base}^{exponent}"),
            Self::PlusMinus(upper, node) => write!(f, "{}{node}", if *upper { '±' } else { '∓' }),
            Self::Apply(name, arguments) => write!(f, "{name}({})", list(arguments, ", ")),
            Self::Percent(node) => write!(f, "{node}%"),
            Self::Degrees(node) => write!(f, "{node}°"),
            Self::Measured(node, unit) => write!(f, "{node} {unit}"),
            Self::Tuple(nodes) => write!(f, "({})", list(nodes, ", ")),
            Self::List(nodes) => write!(f, "{}", list(nodes, " and ")),
            Self::Set(nodes) => write!(f, "{{{}}}", list(nodes, ", ")),
            Self::Interval { ends, closed } => {
                let (open, close) = (if closed.0 { '[' } else { '(' }, if closed.1 { ']' } else { ')' });
                write!(f, "{open}{}, {}{close}", ends.0, ends.1)
            }
            Self::Union(a, b) => write!(f, "{a} ∪ {b}"),
            Self::Intersection(a, b) => write!(f, "{a} ∩ {b}"),
            Self::Without(a, b) => write!(f, "{a} without {b}"),
            Self::Matrix(rows) => {
                let rows: Vec<String> = rows.iter().map(|row| list(row, ", ")).collect();
                write!(f, "matrix [{}]", rows.join("; "))
            }
            Self::Time(seconds, _) => {
                write!(f, "{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
            }
            Self::Modulo(value, modulus) => write!(f, "{value} mod {modulus}"),
            Self::Ratio(parts) => write!(f, "{}", list(parts, ":")),
            Self::Relation(terms, relations) => {
                write!(f, "{}", terms[0])?;
                (relations.iter().zip(&terms[1..])).try_for_each(|(r, term)| write!(f, " {} {term}", r.symbol()))
            }
            Self::Choice(letter, rest) => write!(f, "choice {letter}, {rest}"),
        }
    }
}
