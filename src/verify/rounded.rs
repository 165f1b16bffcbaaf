//! Rounded decimals.

use num_rational::BigRational;
use num_traits::{Pow, ToPrimitive};

use super::tree::{Node, Relation};

/// Whether a floating-point value is within `half` of `value`.
pub(super) fn near(float: f64, value: &BigRational, half: &BigRational) -> bool {
    let (Some(value), Some(half)) = (value.to_f64(), half.to_f64()) else { return false };
    (float - value).abs() <= half * (1.0 + 1e-9)
}

/// Whether another value rounds to a gold with two or more decimal places. `within` tests whether it is within half a
/// unit of the last place.
pub(super) fn rounds(gold: &Node, within: impl Fn(&BigRational, &BigRational) -> bool) -> bool {
    let (negative, node) = match gold {
        Node::Negative(node) => (true, &**node),
        node => (false, node),
    };
    let ten = BigRational::from_integer(10.into());
    let (node, hundredth) = match node {
        Node::Percent(node) => (&**node, -2),
        node => (node, 0),
    };
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
    let power = power + hundredth;
    let half = ten.clone().pow(place + power) / BigRational::from_integer(2.into());
    let value = value * ten.pow(power);
    within(&if negative { -value } else { value }, &half)
}

/// Return the value of a literal, which may be negative.
pub(super) fn literal(node: &Node) -> Option<BigRational> {
    match node {
        Node::Number { value, .. } => Some(value.clone()),
        Node::Negative(node) => literal(node).map(|value| -value),
        _ => None,
    }
}

/// Return half a unit of the last decimal place that a number needs.
pub(super) fn half_unit(number: &BigRational) -> Option<BigRational> {
    let ten = BigRational::from_integer(10.into());
    let places = (0..12i32).find(|places| (number * ten.clone().pow(*places)).is_integer())?;
    Some(ten.pow(-places) / BigRational::from_integer(2.into()))
}

/// Whether a decimal is a value rounded, or cut off, at its last digit other than 0; true if it has too many digits.
pub(super) fn stands_for(decimal: &BigRational, value: f64) -> bool {
    let ten = BigRational::from_integer(10.into());
    let places = (0..12i32).find(|places| (decimal * ten.clone().pow(*places)).is_integer());
    let Some(places) = places else { return true };
    let digits = decimal.to_integer().to_string();
    let zeros = i32::try_from(digits.len() - digits.trim_end_matches('0').len()).unwrap_or_default();
    let unit = ten.pow(if places > 0 { -places } else { zeros });
    let cut = || {
        let (decimal, unit) = (decimal.to_f64()?, unit.to_f64()?);
        Some(decimal * value >= 0.0 && (0.0..unit).contains(&(value.abs() - decimal.abs())))
    };
    near(value, decimal, &(&unit / BigRational::from_integer(2.into()))) || cut() == Some(true)
}

/// Return the exact part of an approximation, `x = 1/3 ≈ 0.33` or `0.33 ≈ 1/3`, and the number beside it.
pub(super) fn approximated(node: &Node) -> Option<(Node, Option<Node>)> {
    use Relation::{Equal, Near};
    let Node::Relation(terms, relations) = node else { return None };
    let at = relations.iter().position(|relation| *relation == Near)?;
    if at == 0 && super::relation::is_name(&terms[0]) {
        let relations = [&[Equal], &relations[1..]].concat();
        return Some((Node::Relation(terms.clone(), relations), None));
    }
    let (mut value, mut rounded) = (&terms[at], terms.last()?);
    if terms.len() == at + 2
        && literal(value).is_some()
        && literal(rounded).is_none()
        && !super::relation::is_name(rounded)
    {
        std::mem::swap(&mut value, &mut rounded);
    }
    let exact = match at {
        0 => value.clone(),
        _ => Node::Relation([&terms[..at], std::slice::from_ref(value)].concat(), relations[..at].to_vec()),
    };
    Some((exact, Some(rounded.clone())))
}

/// Whether a literal also accepts values that round to it.
pub(super) fn is_rounded(node: &Node) -> bool {
    match node {
        Node::Negative(node) => is_rounded(node),
        node => matches!(node, Node::Number { place: Some(_), .. }),
    }
}
