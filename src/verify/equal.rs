//! Whether two answers are the same.

use num_rational::BigRational;
use num_traits::{Pow, Signed, ToPrimitive};

use super::poly::{Algebra, Quotient};
use super::tree::{Fault, Node, Result};
use super::unit::Unit;

/// Pairs of members of two lists that are compared at most.
const MAX_PAIRS: usize = 4096;

/// Compares answers; one per pair, since its steps are limited.
pub(super) struct Comparer {
    pub(super) algebra: Algebra,
}

/// Whether `answer` says the same as `gold`.
///
/// # Errors
/// [`Fault::Limit`] when that cannot be decided, [`Fault::Undefined`] when one of them has no value.
pub(super) fn same(gold: &Node, answer: &Node) -> Result<bool> {
    let natural = Comparer { algebra: Algebra::new(false) }.same(gold, answer);
    // `log` without a base means the natural logarithm to some and the decimal one to others.
    let bare = |node: &Node| matches!(node, Node::Apply(name, x) if name == "log" && x.len() == 1);
    if natural != Ok(true) && (gold.any(&bare) || answer.any(&bare)) {
        let decimal = Comparer { algebra: Algebra::new(true) }.same(gold, answer);
        return match decimal {
            Ok(false) => natural,
            decimal => decimal,
        };
    }
    natural
}

impl Comparer {
    pub(super) fn same(&mut self, gold: &Node, answer: &Node) -> Result<bool> {
        self.algebra.spend(1)?;
        match (gold, answer) {
            (Node::Words(a), Node::Words(b)) => return Ok(a == b),
            (Node::Choice(a, _), Node::Choice(b, _)) => return Ok(a == b),
            (Node::Choice(a, rest), other) => return Ok(is_letter(other, a) || self.same(rest, other)?),
            (other, Node::Choice(a, rest)) => return Ok(is_letter(other, a) || self.same(other, rest)?),
            (Node::Words(_), _) | (_, Node::Words(_)) => return Ok(false),
            _ => {}
        }
        let either = |node: &Node| matches!(node, Node::PlusMinus(..));
        let open = |node: &Node| !matches!(node, Node::List(_) | Node::Set(_)) && node.any(&either);
        match (open(gold), open(answer)) {
            (true, _) => return self.same(&both_signs(gold), answer),
            (_, true) => return self.same(gold, &both_signs(answer)),
            _ => {}
        }
        if (matches!(gold, Node::List(_)) || matches!(answer, Node::List(_)))
            && let Some(same) = self.united(gold, answer)?
        {
            return Ok(same);
        }
        match (gold, answer) {
            (Node::Relation(..), Node::Relation(..)) => self.same_relations(gold, answer),
            (Node::List(a) | Node::Set(a), Node::List(b) | Node::Set(b)) => self.same_members(a, b),
            (Node::List(a), Node::Tuple(b)) | (Node::Tuple(a), Node::List(b)) => self.same_in_order(a, b),
            (Node::Relation(..), _) => self.same_as_side(gold, answer, true),
            (_, Node::Relation(..)) => self.same_as_side(answer, gold, false),
            (Node::Measured(..) | Node::Percent(_) | Node::Degrees(_), _)
            | (_, Node::Measured(..) | Node::Percent(_) | Node::Degrees(_)) => self.same_quantities(gold, answer),
            (Node::Tuple(a), Node::Tuple(b)) => self.same_in_order(a, b),
            (Node::Matrix(a), Node::Matrix(b)) => {
                let shape = |rows: &[Vec<Node>]| (rows.len(), rows.first().map_or(0, Vec::len));
                let (left, right): (Vec<Node>, Vec<Node>) = (a.concat(), b.concat());
                Ok(shape(a) == shape(b) && self.same_in_order(&left, &right)?)
            }
            // A row or column of numbers is a vector.
            (Node::Matrix(rows), Node::Tuple(list)) | (Node::Tuple(list), Node::Matrix(rows)) => {
                let vector = rows.len() == 1 || rows.iter().all(|row| row.len() == 1);
                let entries = rows.concat();
                let (a, b) = if matches!(gold, Node::Tuple(_)) { (list, &entries) } else { (&entries, list) };
                Ok(vector && self.same_in_order(a, b)?)
            }
            (Node::Ratio(a), Node::Ratio(b)) => self.proportional(a, b),
            _ if is_set(gold) || is_set(answer) => self.same_sets(gold, answer),
            (Node::List(_), other) | (other, Node::List(_)) if !matches!(other, Node::Tuple(_)) => {
                let list = if let Node::List(list) = gold {
                    list
                } else if let Node::List(list) = answer {
                    list
                } else {
                    return Ok(false);
                };
                for member in list {
                    if !self.same(member, other)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => self.same_formulae(gold, answer),
        }
    }

    /// The same members in any order, repetitions aside.
    pub(super) fn same_members(&mut self, gold: &[Node], answer: &[Node]) -> Result<bool> {
        if gold.len() * answer.len() > MAX_PAIRS {
            return Err(Fault::Limit);
        }
        let mut found = vec![false; answer.len()];
        let mut undecided = false;
        for member in gold {
            let mut matched = false;
            for (other, found) in answer.iter().zip(&mut found) {
                match self.same(member, other) {
                    Ok(true) => (matched, *found) = (true, true),
                    Ok(false) => {}
                    Err(_) => undecided = true,
                }
            }
            if !matched {
                return if undecided { Err(Fault::Limit) } else { Ok(false) };
            }
        }
        match (found.iter().all(|found| *found), undecided) {
            (true, _) => Ok(true),
            (false, true) => Err(Fault::Limit),
            (false, false) => Ok(false),
        }
    }

    pub(super) fn same_in_order(&mut self, gold: &[Node], answer: &[Node]) -> Result<bool> {
        if gold.len() != answer.len() {
            return Ok(false);
        }
        let mut all = Ok(true);
        for (a, b) in gold.iter().zip(answer) {
            match self.same(a, b) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                fault => all = fault,
            }
        }
        all
    }

    fn proportional(&mut self, a: &[Node], b: &[Node]) -> Result<bool> {
        if a.len() != b.len() {
            return Ok(false);
        }
        for i in 1..a.len() {
            let cross = |x: &Node, y: &Node| Node::Product(vec![x.clone(), y.clone()]);
            if !self.same_formulae(&cross(&a[0], &b[i]), &cross(&a[i], &b[0]))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// With units: compared where both have them, left out where one has none.
    fn same_quantities(&mut self, gold: &Node, answer: &Node) -> Result<bool> {
        // Beside a unit, the m of `10 m` is one too.
        match (gold, answer) {
            (Node::Measured(..), Node::Product(factors)) => {
                if let Some(measured) = lettered(factors) {
                    return self.same(gold, &measured);
                }
            }
            (Node::Product(factors), Node::Measured(..)) => {
                if let Some(measured) = lettered(factors) {
                    return self.same(&measured, answer);
                }
            }
            _ => {}
        }
        match (gold, answer) {
            (Node::Measured(a, left), Node::Measured(b, right)) => {
                if left.powers != right.powers {
                    return Ok(false);
                }
                if left.factor == right.factor {
                    return self.same(a, b);
                }
                let scaled = |node: &Node, factor: &BigRational| {
                    Node::Product(vec![node.clone(), Node::Number { value: factor.clone(), place: None }])
                };
                self.same(&scaled(a, &left.factor), &scaled(b, &right.factor))
            }
            (Node::Percent(a), Node::Percent(b)) | (Node::Degrees(a), Node::Degrees(b)) => self.same(a, b),
            (Node::Measured(a, unit), other) | (other, Node::Measured(a, unit)) => {
                // A percentage is no length.
                if matches!(other, Node::Percent(_) | Node::Degrees(_)) && !unit.powers.is_empty() {
                    return Ok(false);
                }
                if matches!(gold, Node::Measured(..)) { self.same(a, other) } else { self.same(other, a) }
            }
            // 5% is 1/20, and where percents are asked for, 5. 45° is π/4, and where degrees are, 45.
            (Node::Percent(a) | Node::Degrees(a), other) => {
                Ok(self.same_formulae(gold, other)? || self.same(a, other)?)
            }
            (other, Node::Percent(a) | Node::Degrees(a)) => {
                Ok(self.same_formulae(other, answer)? || self.same(other, a)?)
            }
            _ => Ok(false),
        }
    }

    pub(super) fn same_formulae(&mut self, gold: &Node, answer: &Node) -> Result<bool> {
        if let (Some(a), Some(b)) = (infinite(gold), infinite(answer)) {
            return Ok(a == b);
        }
        let (left, right) = (is_formula(gold), is_formula(answer));
        if infinite(gold).is_some() || infinite(answer).is_some() || left != right {
            return Ok(false);
        }
        if !left {
            return if gold == answer { Ok(true) } else { Err(Fault::Limit) };
        }
        if let (Some(a), Some(b)) = (literal(gold), literal(answer)) {
            return Ok(a == b || rounds(gold, |value, half| (&b - value).abs() <= *half));
        }
        let (a, b) = (self.algebra.normal(gold)?, self.algebra.normal(answer)?);
        if self.zero_difference(&a, &b)? {
            return Ok(true);
        }
        let algebra = &self.algebra;
        Ok(rounds(gold, |value, half| match b.as_constant() {
            Some(exact) => (exact - value).abs() <= *half,
            None => algebra.float(&b).is_some_and(|float| near(float, value, half)),
        }))
    }

    pub(super) fn zero_difference(&mut self, a: &Quotient, b: &Quotient) -> Result<bool> {
        let difference = self.algebra.difference(a, b)?;
        self.algebra.is_zero(&difference.over)
    }
}

fn near(float: f64, value: &BigRational, half: &BigRational) -> bool {
    let (Some(value), Some(half)) = (value.to_f64(), half.to_f64()) else { return false };
    (float - value).abs() <= half * (1.0 + 1e-9)
}

/// Whether a right answer that is a decimal of two places or more is what another value rounds to, given the test for
/// "no further than half a unit of the last place".
fn rounds(gold: &Node, within: impl Fn(&BigRational, &BigRational) -> bool) -> bool {
    let (negative, node) = match gold {
        Node::Negative(node) => (true, &**node),
        node => (false, node),
    };
    let ten = BigRational::from_integer(10.into());
    let (value, place, power) = match node {
        Node::Number { value, place: Some(place) } => (value, *place, 0),
        // 1.23 · 10^5
        Node::Product(factors) => match factors.as_slice() {
            [Node::Number { value, place: Some(place) }, Node::Power(base, exponent)] => {
                match (literal(base), literal(exponent)) {
                    (Some(base), Some(exponent)) if base == ten && exponent.is_integer() => {
                        match i32::try_from(exponent.to_integer()) {
                            Ok(power) if power.abs() < 1000 => (value, *place, power),
                            _ => return false,
                        }
                    }
                    _ => return false,
                }
            }
            _ => return false,
        },
        _ => return false,
    };
    let half = ten.clone().pow(place + power) / BigRational::from_integer(2.into());
    let value = value * ten.pow(power);
    within(&if negative { -value } else { value }, &half)
}

/// The value of a literal, perhaps negative.
fn literal(node: &Node) -> Option<BigRational> {
    match node {
        Node::Number { value, .. } => Some(value.clone()),
        Node::Negative(node) => literal(node).map(|value| -value),
        _ => None,
    }
}

/// Whether the node is infinity, and then whether it is the positive one.
pub(super) fn infinite(node: &Node) -> Option<bool> {
    match node {
        Node::Infinity => Some(true),
        Node::Negative(node) => infinite(node).map(|positive| !positive),
        _ => None,
    }
}

/// A product that ends with the letter of a unit, as a quantity.
fn lettered(factors: &[Node]) -> Option<Node> {
    let (Node::Symbol(name), rest) = factors.split_last()? else { return None };
    Some(Node::Measured(Box::new(Node::Product(rest.to_vec())), Unit::letter(name)?))
}

fn is_letter(node: &Node, letter: &str) -> bool {
    matches!(node, Node::Symbol(name) if name.eq_ignore_ascii_case(letter))
}

fn both_signs(node: &Node) -> Node {
    Node::List(vec![node.signed(true), node.signed(false)])
}

pub(super) fn is_set(node: &Node) -> bool {
    matches!(
        node,
        Node::Interval { .. }
            | Node::Union(..)
            | Node::Intersection(..)
            | Node::Without(..)
            | Node::Reals
            | Node::Set(_)
    )
}

/// Whether the node has a value of its own: no sets, relations or units in it.
pub(super) fn is_formula(node: &Node) -> bool {
    !node.any(&|node| {
        is_set(node)
            || matches!(
                node,
                Node::Tuple(_) | Node::List(_) | Node::Matrix(_) | Node::Relation(..) | Node::Measured(..)
            )
            || matches!(node, Node::Words(_) | Node::Choice(..) | Node::PlusMinus(..) | Node::Infinity)
    })
}
