//! What an answer says, as a tree.

use std::fmt;

use num_rational::BigRational;

use super::unit::Unit;

/// Why an answer cannot be read or worked out.
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

/// How two neighbours in a chain of relations stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    /// `≈`: what stands after it is the value before it, rounded.
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
            _ => return None,
        })
    }

    /// The relation read from right to left.
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
            Self::Near => '≈',
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// A literal. `place` is the power of ten of the last digit when two decimals or more are written: what the number
    /// is rounded to, should it be the right answer.
    Number {
        value: BigRational,
        place: Option<i32>,
    },
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
    /// A function, by its usual short name, of its arguments.
    Apply(String, Vec<Node>),
    Percent(Box<Node>),
    Degrees(Box<Node>),
    Measured(Box<Node>, Unit),
    /// `(a, b)`, which may mean an open interval, or more components.
    Tuple(Vec<Node>),
    /// Several answers, in no order.
    List(Vec<Node>),
    Set(Vec<Node>),
    /// Ends, and whether each belongs to it.
    Interval {
        ends: Box<(Node, Node)>,
        closed: (bool, bool),
    },
    Union(Box<Node>, Box<Node>),
    Intersection(Box<Node>, Box<Node>),
    Without(Box<Node>, Box<Node>),
    Matrix(Vec<Vec<Node>>),
    Ratio(Vec<Node>),
    /// A time of day in seconds since midnight, and whether AM or PM says which half of the day.
    Time(i64, bool),
    /// A number or an equation to a modulus.
    Modulo(Box<Node>, Box<Node>),
    /// A chain such as `0 < x ≤ 1`: one relation fewer than terms.
    Relation(Vec<Node>, Vec<Relation>),
    Words(String),
    /// A letter of multiple choice with what stands after it.
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

    /// A time that may as well be a ratio becomes one: `11:20`, but not `11:05`.
    pub(super) fn time_to_ratio(&mut self) {
        if let Self::Time(seconds, false) = self
            && *seconds % 60 == 0
            && *seconds / 60 % 60 >= 10
        {
            *self = Self::Ratio(vec![Self::integer(*seconds / 3600), Self::integer(*seconds / 60 % 60)]);
        }
    }

    /// What kind of answer it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Number { .. } => "the number",
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

    /// The nodes directly below.
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

    /// Whether the node or one below it is such.
    pub(super) fn any(&self, such: &dyn Fn(&Node) -> bool) -> bool {
        such(self) || self.children().into_iter().any(|child| child.any(such))
    }

    /// The same kind of node over changed children.
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

    /// The node with every `±` read as plus (and `∓` as minus) or the other way about.
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
            Self::Number { value, .. } => write!(f, "{value}"),
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
