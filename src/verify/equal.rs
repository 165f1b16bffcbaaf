//! Comparison of two parsed answers.

use num_rational::BigRational;
use num_traits::{Signed, ToPrimitive};

use super::poly::{Algebra, Quotient};
use super::relation::{assigns, is_relation};
use super::rounded::{approximated, half_unit, literal, near, rounds, stands_for};
use super::tree::{Fault, Node, Result};
use super::unit::Unit;
use super::{matrix, words};

/// Comparison of one pair of answers, with its budget of steps.
pub(super) struct Comparer {
    pub(super) algebra: Algebra,
}

/// Whether `answer` equals `gold`.
///
/// # Errors
/// [`Fault::Limit`] if equality cannot be decided, [`Fault::Undefined`] if one of them has no value.
pub(super) fn same(gold: &Node, answer: &Node) -> Result<bool> {
    let natural = Comparer { algebra: Algebra::new(false) }.same(gold, answer);
    // `log` without a base may be the natural or the decimal logarithm.
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
        // A gold that states its base also accepts the digits alone.
        if let Node::Based(_, digits) = gold
            && written(answer) == *digits
        {
            return Ok(true);
        }
        match (gold, answer) {
            (Node::Words(a), Node::Words(b)) => {
                return Ok(words::same(a, b) || words::set(a).is_some_and(|set| words::set(b) == Some(set)));
            }
            (Node::Choice(a, _), Node::Choice(b, _)) => return Ok(a == b),
            (Node::Choice(a, rest), other) => {
                return Ok(is_letter(other, a) || (!is_choice(other) && self.same(rest, other)?));
            }
            (other, Node::Choice(a, rest)) => {
                return Ok(is_letter(other, a) || (!is_choice(other) && self.same(other, rest)?));
            }
            (Node::Words(words), other) | (other, Node::Words(words)) => {
                return words::set(words).map_or(Ok(false), |set| self.same(&set, other));
            }
            _ => {}
        }
        if let Some(gold) = rewritten(gold, answer)? {
            return self.same(&gold, answer);
        }
        if let Some(answer) = rewritten(answer, gold)? {
            return self.same(gold, &answer);
        }
        let approximate = approximated(answer);
        if let Some((exact, decimal)) = &approximate
            && gold != answer
            && self.misrounds(exact, decimal.as_ref())
        {
            return Ok(false);
        }
        if let Some(parts) = approximated(gold) {
            let answer = approximate.as_ref().map_or(answer, |(exact, _)| exact);
            return self.same_as_either(parts, |comparer, part| comparer.same(part, answer));
        }
        if let Some(parts) = approximate {
            return self.same_as_either(parts, |comparer, part| comparer.same(gold, part));
        }
        if (matches!(gold, Node::List(_)) || matches!(answer, Node::List(_)))
            && let Some(same) = self.same_systems(gold, answer)?
        {
            return Ok(same);
        }
        match (gold, answer) {
            (Node::Time(..) | Node::Modulo(..), _) | (_, Node::Time(..) | Node::Modulo(..)) => {
                self.same_on_a_circle(gold, answer)
            }
            (Node::Relation(..), Node::Relation(..)) => self.same_relations(gold, answer),
            (Node::List(a), Node::List(b)) if assigns(a) && !b.iter().any(is_relation) => self.same_in_order(a, b),
            (Node::List(a) | Node::Set(a), Node::List(b) | Node::Set(b)) => self.same_members(a, b),
            (Node::List(a), Node::Tuple(b)) | (Node::Tuple(a), Node::List(b)) => self.same_in_order(a, b),
            (Node::Relation(..), _) => self.same_as_side(gold, answer, true),
            (_, Node::Relation(..)) => self.same_as_side(answer, gold, false),
            (Node::List(list), other) if !is_set(other) && !matches!(other, Node::Matrix(_)) => {
                list.iter().try_fold(true, |all, member| Ok(all && self.same(member, other)?))
            }
            (other, Node::List(list)) if !is_set(other) && !matches!(other, Node::Matrix(_)) => {
                list.iter().try_fold(true, |all, member| Ok(all && self.same(other, member)?))
            }
            (Node::Measured(..) | Node::Percent(_) | Node::Degrees(_), _)
            | (_, Node::Measured(..) | Node::Percent(_) | Node::Degrees(_)) => self.same_quantities(gold, answer),
            (Node::Tuple(a), Node::Tuple(b)) => self.same_in_order(a, b),
            (Node::Matrix(_), _) | (_, Node::Matrix(_)) => self.same_matrices(gold, answer),
            (Node::Ratio(a), Node::Ratio(b)) => self.proportional(a, b),
            _ if is_set(gold) || is_set(answer) => self.same_sets(gold, answer),
            _ => self.same_formulae(gold, answer),
        }
    }

    /// Compare times of day and residues.
    fn same_on_a_circle(&mut self, gold: &Node, answer: &Node) -> Result<bool> {
        match (gold, answer) {
            (Node::Time(a, left), Node::Time(b, right)) => {
                // Without AM or PM, a time from 1:00 to 12:59 may be in either half of the day.
                let either = |seconds: i64, half: bool| !half && (3600..46_800).contains(&seconds);
                let half = |seconds: i64| seconds % 43_200;
                let open = left != right && (either(*a, *left) || either(*b, *right));
                Ok(if open { half(*a) == half(*b) } else { a == b })
            }
            (time @ Node::Time(..), Node::Ratio(parts)) | (Node::Ratio(parts), time @ Node::Time(..)) => {
                let mut ratio = time.clone();
                ratio.time_to_ratio();
                Ok(matches!(&ratio, Node::Ratio(own) if self.proportional(parts, own)?))
            }
            (Node::Relation(..), Node::Time(..)) => self.same_as_side(gold, answer, true),
            (Node::Time(..), Node::Relation(..)) => self.same_as_side(answer, gold, false),
            (Node::Modulo(a, m), Node::Modulo(b, n)) => Ok(self.same(m, n)? && self.congruent(a, b, m)?),
            (Node::Modulo(a, m), other) => Ok(self.is_residue(other, m)? && self.congruent(a, other, m)?),
            (other, Node::Modulo(b, m)) => Ok(self.is_residue(other, m)? && self.congruent(other, b, m)?),
            _ => Ok(false),
        }
    }

    /// Whether two numbers, or the right-hand sides of congruences for one symbol, differ by a multiple of `modulus`.
    fn congruent(&mut self, a: &Node, b: &Node, modulus: &Node) -> Result<bool> {
        fn side(node: &Node) -> (Option<&Node>, &Node) {
            match node {
                Node::Relation(terms, relations) if relations.iter().all(|r| *r == super::tree::Relation::Equal) => {
                    (Some(&terms[0]), &terms[terms.len() - 1])
                }
                node => (None, node),
            }
        }
        let ((x, a), (y, b)) = (side(a), side(b));
        if let (Some(x), Some(y)) = (x, y)
            && !self.same(x, y)?
        {
            return Ok(false);
        }
        if !is_formula(a) || !is_formula(b) || !is_formula(modulus) {
            return Ok(false);
        }
        let difference = Node::Sum(vec![a.clone(), b.clone().negative()]).over(modulus.clone());
        Ok(self.algebra.normal(&difference)?.as_constant().is_some_and(|value| value.is_integer()))
    }

    /// Whether a number lies between 0 and `modulus` - 1.
    fn is_residue(&mut self, node: &Node, modulus: &Node) -> Result<bool> {
        if !is_formula(node) || !is_formula(modulus) {
            return Ok(false);
        }
        let (value, modulus) = (self.algebra.normal(node)?.as_constant(), self.algebra.normal(modulus)?.as_constant());
        Ok(value.zip(modulus).is_some_and(|(value, modulus)| !value.is_negative() && value < modulus))
    }

    /// Whether `same` holds for the exact value, or for the decimal if it is the exact value rounded.
    fn same_as_either(
        &mut self,
        (exact, rounded): (Node, Option<Node>),
        mut same: impl FnMut(&mut Self, &Node) -> Result<bool>,
    ) -> Result<bool> {
        if same(self, &exact)? {
            return Ok(true);
        }
        let Some(rounded) = rounded else { return Ok(false) };
        let Some((float, number)) = self.value_beside(&exact, &rounded)? else { return Ok(false) };
        let Some(half) = half_unit(&number) else { return Ok(false) };
        Ok(near(float, &number, &half) && same(self, &rounded)?)
    }

    /// Whether the number beside an exact value is neither that value rounded nor cut off.
    fn misrounds(&mut self, exact: &Node, decimal: Option<&Node>) -> bool {
        let sign = |node: &Node| matches!(node, Node::Percent(_) | Node::Degrees(_));
        let Some(decimal) = decimal.filter(|_| !exact.any(&sign)) else { return false };
        matches!(self.value_beside(exact, decimal), Ok(Some((value, number))) if !stands_for(&number, value))
    }

    /// Return an exact value in floating point and the number beside it; `None` if one of them is no number.
    fn value_beside(&mut self, exact: &Node, decimal: &Node) -> Result<Option<(f64, BigRational)>> {
        let value = match exact {
            Node::Relation(terms, _) => &terms[terms.len() - 1],
            node => node,
        };
        let Some(number) = literal(decimal).filter(|_| is_formula(value)) else { return Ok(None) };
        let normal = self.algebra.normal(value)?;
        Ok(self.algebra.float(&normal).map(|value| (value, number)))
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

    /// Whether two ratios are proportional, by cross products with the first part that is not 0.
    fn proportional(&mut self, a: &[Node], b: &[Node]) -> Result<bool> {
        let (Some(pivot), other) = (self.first_part(a)?, self.first_part(b)?) else {
            return Ok(a.len() == b.len() && self.first_part(b)?.is_none());
        };
        if a.len() != b.len() || other != Some(pivot) {
            return Ok(false);
        }
        for (x, y) in a.iter().zip(b) {
            let cross = |x: &Node, y: &Node| Node::Product(vec![x.clone(), y.clone()]);
            if !self.same_formulae(&cross(&a[pivot], y), &cross(x, &b[pivot]))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Find the first part of a ratio that is not 0.
    fn first_part(&mut self, parts: &[Node]) -> Result<Option<usize>> {
        for (at, part) in parts.iter().enumerate() {
            if !self.same_formulae(&Node::integer(0), part)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// Compare quantities; a unit that only one side has is ignored.
    fn same_quantities(&mut self, gold: &Node, answer: &Node) -> Result<bool> {
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
            (Node::Measured(_, unit), _) | (_, Node::Measured(_, unit)) if unit.mixed => Ok(false),
            (Node::Measured(a, unit), other) | (other, Node::Measured(a, unit)) => {
                // 50 cents equal 50 and 0.5.
                let whole =
                    Node::Product(vec![(**a).clone(), Node::Number { value: unit.factor.clone(), place: None }]);
                if unit.is_part() && self.same(&whole, other)? {
                    return Ok(true);
                }
                // A percentage is not a length, but "5% increase" equals 5%.
                let sign = |node: &Node| matches!(node, Node::Percent(_) | Node::Degrees(_));
                if sign(other) && !sign(a) && !unit.powers.is_empty() {
                    return Ok(false);
                }
                if matches!(gold, Node::Measured(..)) { self.same(a, other) } else { self.same(other, a) }
            }
            // 5% equals 1/20 and 5; 45° equals π/4 and 45.
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

/// Return whether an infinite node is positive, or `None` if the node is not infinite.
pub(super) fn infinite(node: &Node) -> Option<bool> {
    match node {
        Node::Infinity => Some(true),
        Node::Negative(node) => infinite(node).map(|positive| !positive),
        _ => None,
    }
}

/// Convert a product that ends with unit letters, `10 m/s^2`, to a quantity.
fn lettered(factors: &[Node]) -> Option<Node> {
    fn unit(node: &Node, sign: i32) -> Option<Unit> {
        match node {
            Node::Symbol(name) => Unit::letter(name, sign),
            Node::Inverse(inner) => unit(inner, -sign),
            Node::Product(factors) => {
                let mut units = factors.iter().map(|factor| unit(factor, sign));
                units.next()?.and_then(|first| units.try_fold(first, |product, next| product.times(&next?)))
            }
            Node::Power(base, exponent) => match (&**base, literal(exponent)?.to_i32()?) {
                (Node::Symbol(name), power) if power.abs() < 10 => Unit::letter(name, sign * power),
                _ => None,
            },
            _ => None,
        }
    }
    let units: Vec<Unit> = factors.iter().rev().map_while(|factor| unit(factor, 1)).collect();
    let rest = factors[..factors.len() - units.len()].to_vec();
    let mut units = units.into_iter();
    let product = units.next().and_then(|first| units.try_fold(first, |product, next| product.times(&next)))?;
    (!rest.is_empty()).then(|| Node::Measured(Box::new(Node::Product(rest)), product))
}

/// Convert a product that ends with the letters of a unit of the same dimension as `other`, `5 kW`, to a quantity.
fn prefixed(factors: &[Node], other: &Unit) -> Option<Node> {
    let [rest @ .., Node::Symbol(prefix), Node::Symbol(symbol)] = factors else { return None };
    let unit = Unit::prefixed(&format!("{prefix}{symbol}")).filter(|unit| unit.powers == other.powers)?;
    (!rest.is_empty()).then(|| Node::Measured(Box::new(Node::Product(rest.to_vec())), unit))
}

/// Expand `±` and arithmetic of matrices. If `other` is a tuple, drop the name of a point, `P(3, 4)`. If `other` has a
/// unit, read the m of `10 m` as a unit.
fn rewritten(node: &Node, other: &Node) -> Result<Option<Node>> {
    let capital = |name: &str| matches!(name.as_bytes(), [b'A'..=b'Z']);
    let beside = match (node, other) {
        (Node::Apply(name, values), Node::Tuple(_)) if capital(name) => Some(Node::Tuple(values.clone())),
        (Node::Product(factors), Node::Tuple(_)) => match factors.as_slice() {
            [Node::Symbol(name), point @ Node::Tuple(_)] if capital(name) => Some(point.clone()),
            _ => None,
        },
        // `ABD` of several choices
        (Node::Product(factors), Node::List(members)) if factors.iter().chain(members).all(is_choice) => {
            Some(Node::List(factors.clone()))
        }
        (Node::Product(factors), Node::Measured(_, unit)) => prefixed(factors, unit).or_else(|| lettered(factors)),
        _ => None,
    };
    let rewritten = beside.or_else(|| if is_either(node) { Some(both_signs(node)) } else { spread(node) });
    if rewritten.is_some() { Ok(rewritten) } else { matrix::evaluated(node) }
}

/// Return the digits and letters of a number or product in capitals, without operators.
fn written(node: &Node) -> String {
    let text = node.to_string();
    text.chars().filter(|c| !"(·)".contains(*c)).flat_map(char::to_uppercase).collect()
}

fn is_choice(node: &Node) -> bool {
    matches!(node, Node::Symbol(name) if ("A"..="J").contains(&name.as_str()) && name.len() == 1)
}

fn is_letter(node: &Node, letter: &str) -> bool {
    matches!(node, Node::Symbol(name) if name.eq_ignore_ascii_case(letter))
}

/// Whether a node that is not a list contains a `±`.
fn is_either(node: &Node) -> bool {
    !matches!(node, Node::List(_) | Node::Set(_)) && node.any(&|node| matches!(node, Node::PlusMinus(..)))
}

/// Expand each `±` member of a list or set into two members.
fn spread(node: &Node) -> Option<Node> {
    let (Node::List(members) | Node::Set(members)) = node else { return None };
    if !members.iter().any(is_either) {
        return None;
    }
    let signs = |member: &Node| match is_either(member) {
        true => vec![member.signed(true), member.signed(false)],
        false => vec![member.clone()],
    };
    let members = members.iter().flat_map(signs).collect();
    Some(if matches!(node, Node::List(_)) { Node::List(members) } else { Node::Set(members) })
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

/// Whether the node has a numeric or symbolic value: it contains no sets, relations or units.
pub(super) fn is_formula(node: &Node) -> bool {
    !node.any(&|node| {
        is_set(node)
            || matches!(
                node,
                Node::Tuple(_) | Node::List(_) | Node::Matrix(_) | Node::Relation(..) | Node::Measured(..)
            )
            || matches!(node, Node::Words(_) | Node::Choice(..) | Node::PlusMinus(..) | Node::Infinity)
            || matches!(node, Node::Time(..) | Node::Modulo(..))
    })
}
