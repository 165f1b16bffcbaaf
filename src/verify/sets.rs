//! Comparison of sets of real numbers as ordered intervals.

use std::cmp::Ordering;

use super::equal::{Comparer, infinite, is_set};
use super::poly::Quotient;
use super::tree::{Fault, Node, Result};

/// Maximum number of pieces of a set.
pub(super) const MAX_PIECES: usize = 64;

/// End of a piece; `None` is the infinity of its side.
#[derive(Debug, Clone)]
struct End {
    value: Option<Quotient>,
    approximately: f64,
    closed: bool,
}

/// Interval between two ends; a single number is closed at both.
#[derive(Debug, Clone)]
struct Interval {
    low: End,
    high: End,
}

impl Comparer {
    pub(super) fn same_sets(&mut self, gold: &Node, answer: &Node) -> Result<bool> {
        match (gold, answer) {
            (Node::List(list), set) => return union(list).map_or(Ok(false), |union| self.same_sets(&union, set)),
            (set, Node::List(list)) => return union(list).map_or(Ok(false), |union| self.same_sets(set, &union)),
            (Node::Set(a), Node::Set(b)) => return self.same_members(a, b),
            (Node::Set(a), Node::Tuple(_)) if a.len() != 1 => return Ok(false),
            (Node::Tuple(_), Node::Set(b)) if b.len() != 1 => return Ok(false),
            // A set of one member equals the member.
            (Node::Set(a), other) if !is_set(other) => return self.same_members(a, std::slice::from_ref(other)),
            (other, Node::Set(b)) if !is_set(other) => return self.same_members(std::slice::from_ref(other), b),
            _ => {}
        }
        if let (Some(a), Some(b)) = (self.pieces(gold)?, self.pieces(answer)?) {
            return self.same_pieces(&a, &b);
        }
        match (interval(gold), interval(answer)) {
            (Some((a, left)), Some((b, right))) => {
                Ok(left == right && self.same(&a.0, &b.0)? && self.same(&a.1, &b.1)?)
            }
            _ => match (gold, answer) {
                (Node::Union(a, b), Node::Union(c, d)) | (Node::Intersection(a, b), Node::Intersection(c, d)) => {
                    let straight = self.same(a, c)? && self.same(b, d)?;
                    Ok(straight || (self.same(a, d)? && self.same(b, c)?))
                }
                (Node::Without(a, b), Node::Without(c, d)) => Ok(self.same(a, c)? && self.same(b, d)?),
                _ => Ok(false),
            },
        }
    }

    /// Whether a set is known to be empty.
    pub(super) fn is_empty(&mut self, set: &Node) -> Result<bool> {
        Ok(self.pieces(set)?.is_some_and(|pieces| pieces.is_empty()))
    }

    fn same_pieces(&mut self, a: &[Interval], b: &[Interval]) -> Result<bool> {
        if a.len() != b.len() {
            return Ok(false);
        }
        for (a, b) in a.iter().zip(b) {
            for (a, b) in [(&a.low, &b.low), (&a.high, &b.high)] {
                let equal = match (&a.value, &b.value) {
                    (Some(a), Some(b)) => self.zero_difference(a, b)?,
                    (None, None) => true,
                    _ => false,
                };
                if !equal || a.closed != b.closed {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Return the pieces of a set, ordered and merged; `None` if its ends are not real numbers.
    fn pieces(&mut self, node: &Node) -> Result<Option<Vec<Interval>>> {
        let pieces = match node {
            Node::Reals => {
                let end = |sign: f64| End { value: None, approximately: sign * f64::INFINITY, closed: false };
                vec![Interval { low: end(-1.0), high: end(1.0) }]
            }
            Node::Set(members) => {
                let mut pieces = Vec::new();
                for member in members {
                    let Some(end) = self.end(member, true)? else { return Ok(None) };
                    pieces.push(Interval { low: end.clone(), high: end });
                }
                pieces
            }
            Node::Union(a, b) => {
                let (Some(mut a), Some(b)) = (self.pieces(a)?, self.pieces(b)?) else { return Ok(None) };
                a.extend(b);
                a
            }
            Node::Intersection(a, b) => {
                let (Some(a), Some(b)) = (self.pieces(a)?, self.pieces(b)?) else { return Ok(None) };
                self.common(&a, &b)?
            }
            Node::Without(a, b) => {
                let (Some(a), Some(b)) = (self.pieces(a)?, self.pieces(b)?) else { return Ok(None) };
                let rest = complement(&b);
                self.common(&a, &rest)?
            }
            _ => {
                let Some((ends, closed)) = interval(node) else { return Ok(None) };
                let (Some(low), Some(high)) = (self.end(&ends.0, closed.0)?, self.end(&ends.1, closed.1)?) else {
                    return Ok(None);
                };
                if low.approximately >= high.approximately {
                    return Ok(None);
                }
                vec![Interval { low, high }]
            }
        };
        if pieces.len() > MAX_PIECES {
            return Err(Fault::Limit);
        }
        self.joined(pieces).map(Some)
    }

    fn end(&mut self, node: &Node, closed: bool) -> Result<Option<End>> {
        if let Some(positive) = infinite(node) {
            let approximately = if positive { f64::INFINITY } else { f64::NEG_INFINITY };
            return Ok(Some(End { value: None, approximately, closed: false }));
        }
        if !super::equal::is_formula(node) {
            return Ok(None);
        }
        let value = self.algebra.normal(node)?;
        Ok(self.algebra.float(&value).map(|approximately| End { value: Some(value), approximately, closed }))
    }

    /// Compare two ends; equality is exact.
    fn order(&mut self, a: &End, b: &End) -> Result<Ordering> {
        if let (Some(x), Some(y)) = (&a.value, &b.value) {
            let close = (a.approximately - b.approximately).abs() <= 1e-9 * a.approximately.abs().max(1.0);
            if close && self.zero_difference(x, y)? {
                return Ok(Ordering::Equal);
            }
        }
        Ok(a.approximately.total_cmp(&b.approximately))
    }

    fn joined(&mut self, mut pieces: Vec<Interval>) -> Result<Vec<Interval>> {
        pieces
            .sort_by(|a, b| a.low.approximately.total_cmp(&b.low.approximately).then(b.low.closed.cmp(&a.low.closed)));
        let mut joined: Vec<Interval> = Vec::new();
        for piece in pieces {
            let Some(last) = joined.last_mut() else {
                joined.push(piece);
                continue;
            };
            let touch = match self.order(&piece.low, &last.high)? {
                Ordering::Less => true,
                Ordering::Equal => piece.low.closed || last.high.closed,
                Ordering::Greater => false,
            };
            if !touch {
                joined.push(piece);
                continue;
            }
            if piece.low.closed && self.order(&piece.low, &last.low)? == Ordering::Equal {
                last.low.closed = true;
            }
            match self.order(&piece.high, &last.high)? {
                Ordering::Greater => last.high = piece.high,
                Ordering::Equal => last.high.closed |= piece.high.closed,
                Ordering::Less => {}
            }
        }
        Ok(joined)
    }

    fn common(&mut self, a: &[Interval], b: &[Interval]) -> Result<Vec<Interval>> {
        let mut common = Vec::new();
        for a in a {
            for b in b {
                let low = match self.order(&a.low, &b.low)? {
                    Ordering::Less => b.low.clone(),
                    Ordering::Greater => a.low.clone(),
                    Ordering::Equal => End { closed: a.low.closed && b.low.closed, ..a.low.clone() },
                };
                let high = match self.order(&a.high, &b.high)? {
                    Ordering::Less => a.high.clone(),
                    Ordering::Greater => b.high.clone(),
                    Ordering::Equal => End { closed: a.high.closed && b.high.closed, ..a.high.clone() },
                };
                let some = match self.order(&low, &high)? {
                    Ordering::Less => true,
                    Ordering::Equal => low.closed && high.closed,
                    Ordering::Greater => false,
                };
                if some {
                    common.push(Interval { low, high });
                }
            }
        }
        Ok(common)
    }
}

/// Return the complement of ordered, disjoint pieces.
fn complement(pieces: &[Interval]) -> Vec<Interval> {
    let mut low = End { value: None, approximately: f64::NEG_INFINITY, closed: false };
    let mut rest = Vec::new();
    for piece in pieces {
        if piece.low.value.is_some() {
            let high = End { closed: !piece.low.closed, ..piece.low.clone() };
            rest.push(Interval { low, high });
        }
        low = End { closed: !piece.high.closed, ..piece.high.clone() };
    }
    if low.value.is_some() || pieces.is_empty() {
        rest.push(Interval { low, high: End { value: None, approximately: f64::INFINITY, closed: false } });
    }
    rest
}

/// Return the union of a list of intervals; a list of pairs of numbers is not one.
fn union(list: &[Node]) -> Option<Node> {
    let certain = |node: &Node| match node {
        Node::Tuple(pair) => pair.iter().any(|end| infinite(end).is_some()),
        node => is_set(node),
    };
    let fits = list.len() <= MAX_PIECES && list.iter().all(|node| interval(node).is_some()) && list.iter().any(certain);
    let union = |a, b| Node::Union(Box::new(a), Box::new(b));
    list.iter().cloned().reduce(union).filter(|_| fits)
}

/// Return the ends of an interval and whether each is closed; a pair may be an open interval.
fn interval(node: &Node) -> Option<((Node, Node), (bool, bool))> {
    match node {
        Node::Interval { ends, closed } => Some(((**ends).clone(), *closed)),
        Node::Tuple(pair) => match pair.as_slice() {
            [a, b] => Some(((a.clone(), b.clone()), (false, false))),
            _ => None,
        },
        _ => None,
    }
}
