//! Equations, inequalities and assignments.

use num_rational::BigRational;
use num_traits::Signed;

use super::equal::{Comparer, is_formula, is_set};
use super::poly::Quotient;
use super::tree::{Node, Relation, Result};

impl Comparer {
    /// A relation against something else: the side that answers, or the set of solutions.
    pub(super) fn same_as_side(&mut self, relation: &Node, other: &Node, relation_is_gold: bool) -> Result<bool> {
        let mut compare = |side: &Node| if relation_is_gold { self.same(side, other) } else { self.same(other, side) };
        let Node::Relation(terms, relations) = relation else { return Ok(false) };
        if relations.iter().all(|relation| *relation == Relation::Equal) {
            let (first, last) = (&terms[0], &terms[terms.len() - 1]);
            // `x = 5`, `2 + 3 = 5` and `5 = x`
            return if is_name(last) && !is_name(first) {
                compare(first)
            } else if is_name(first)
                || !terms[terms.len() - 2..].iter().any(has_symbol)
                || (terms.len() > 2 && is_name(&terms[terms.len() - 2]))
                // `m + n = 7` answers a question for m + n; as a right answer it may be an equation.
                || (!relation_is_gold && is_sum_of_symbols(first))
            {
                compare(last)
            } else {
                Ok(false)
            };
        }
        match solutions(relation) {
            Some((_, set)) => compare(&set),
            None => Ok(false),
        }
    }

    pub(super) fn same_relations(&mut self, gold: &Node, answer: &Node) -> Result<bool> {
        let (Node::Relation(a, left), Node::Relation(b, right)) = (gold, answer) else { return Ok(false) };
        let equations = |relations: &[Relation]| relations.iter().all(|relation| *relation == Relation::Equal);
        match (equations(left), equations(right)) {
            (true, true) => {
                let (last, other) = (&a[a.len() - 1], &b[b.len() - 1]);
                if is_name(&a[0]) && is_name(&b[0]) {
                    let renamed = same_function(&a[0], &b[0]).map(|(from, to)| renamed(other, &from, &to));
                    let other = renamed.as_ref().unwrap_or(other);
                    if (renamed.is_some() || self.same(&a[0], &b[0])?) && self.same(last, other)? {
                        return Ok(true);
                    }
                }
                match (a.as_slice(), b.as_slice()) {
                    ([a, c], [b, d]) => self.same_equations((a, c), (b, d), false),
                    _ => self.same_in_order(a, b),
                }
            }
            (false, false) => {
                if let (Some((x, a)), Some((y, b))) = (solutions(gold), solutions(answer)) {
                    return Ok(x == y && self.same(&a, &b)?);
                }
                if a.len() != b.len() {
                    return Ok(false);
                }
                let flipped: Vec<Relation> = right.iter().rev().map(|relation| relation.flipped()).collect();
                let reversed: Vec<Node> = b.iter().rev().cloned().collect();
                for (terms, relations) in [(b, right), (&reversed, &flipped)] {
                    if left != relations {
                        continue;
                    }
                    let same = if a.len() == 2 && a.iter().chain(terms).all(is_formula) {
                        self.same_equations((&a[0], &a[1]), (&terms[0], &terms[1]), true)?
                    } else {
                        self.same_in_order(a, terms)?
                    };
                    if same {
                        return Ok(true);
                    }
                }
                // `-x < -1` against `x > 1`
                if a.len() == 2 && left[0] == right[0].flipped() && a.iter().chain(b).all(is_formula) {
                    return self.same_equations((&a[0], &a[1]), (&b[1], &b[0]), true);
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Whether the differences of the sides are multiples of each other, positive ones for inequalities.
    fn same_equations(&mut self, a: (&Node, &Node), b: (&Node, &Node), ordered: bool) -> Result<bool> {
        if ![a.0, a.1, b.0, b.1].into_iter().all(is_formula) {
            let straight = self.same(a.0, b.0)? && self.same(a.1, b.1)?;
            return Ok(straight || (!ordered && self.same(a.0, b.1)? && self.same(a.1, b.0)?));
        }
        let mut difference = |sides: (&Node, &Node)| -> Result<Quotient> {
            let (left, right) = (self.algebra.normal(sides.0)?, self.algebra.normal(sides.1)?);
            self.algebra.difference(&left, &right)
        };
        let (a, b) = (difference(a)?, difference(b)?);
        let Some((monomial, first)) = a.over.0.iter().next_back() else { return Ok(b.over.0.is_empty()) };
        let Some(second) = b.over.0.get(monomial) else { return Ok(false) };
        let factor: BigRational = second / first;
        if ordered && (factor.is_negative() || a.under.as_constant().is_none() || b.under.as_constant().is_none()) {
            return Ok(false);
        }
        let scaled = Quotient::whole(a.over.clone().scaled(&factor));
        self.zero_difference(&scaled, &Quotient::whole(b.over.clone()))
    }

    /// Lists of inequalities in one symbol as one set: united where they lie apart, else what is common to them.
    pub(super) fn united(&mut self, gold: &Node, answer: &Node) -> Result<Option<bool>> {
        match (one_set(gold), one_set(answer)) {
            (Some((x, a)), Some((y, b))) => Ok(Some(x == y && self.same(&a, &b)?)),
            (Some((_, set)), None) if is_set(answer) => Ok(Some(self.same_sets(&set, answer)?)),
            (None, Some((_, set))) if is_set(gold) => Ok(Some(self.same_sets(gold, &set)?)),
            _ => Ok(None),
        }
    }
}

/// A list of inequalities in one symbol as that symbol and a union.
fn one_set(node: &Node) -> Option<(String, Node)> {
    let Node::List(members) = node else { return None };
    let mut sets = members.iter().map(solutions);
    let (symbol, mut union) = sets.next()??;
    for set in sets {
        let (other, set) = set?;
        if other != symbol {
            return None;
        }
        union = Node::Union(Box::new(union), Box::new(set));
    }
    Some((symbol, union))
}

/// What a relation in one symbol leaves for it.
pub(super) fn solutions(node: &Node) -> Option<(String, Node)> {
    let Node::Relation(terms, relations) = node else { return None };
    let name = |node: &Node| match node {
        Node::Symbol(name) => Some(name.clone()),
        Node::Apply(function, _) if function != "abs" && is_name(node) => Some(node.to_string()),
        _ => None,
    };
    let interval = |left: Node, right: Node, closed| Node::Interval { ends: Box::new((left, right)), closed };
    match (terms.as_slice(), relations.as_slice()) {
        ([x, set], [Relation::In]) => Some((name(x)?, set.clone())),
        ([x, value], [Relation::Unequal]) => {
            let point = Node::Set(vec![value.clone()]);
            Some((name(x)?, Node::Without(Box::new(Node::Reals), Box::new(point))))
        }
        ([a, b], [relation]) => {
            let (x, bound, relation) = match (name(a), name(b)) {
                (Some(x), None) => (x, b, *relation),
                (None, Some(x)) => (x, a, relation.flipped()),
                _ => return None,
            };
            if has_symbol(bound) {
                return None;
            }
            let (low, high) = (Node::Infinity.negative(), Node::Infinity);
            Some((
                x,
                match relation {
                    Relation::Less => interval(low, bound.clone(), (false, false)),
                    Relation::LessOrEqual => interval(low, bound.clone(), (false, true)),
                    Relation::Greater => interval(bound.clone(), high, (false, false)),
                    Relation::GreaterOrEqual => interval(bound.clone(), high, (true, false)),
                    _ => return None,
                },
            ))
        }
        ([a, x, b], [left, right]) if !has_symbol(a) && !has_symbol(b) => {
            let closed = |relation: Relation| matches!(relation, Relation::LessOrEqual | Relation::GreaterOrEqual);
            let less = |relation: Relation| matches!(relation, Relation::Less | Relation::LessOrEqual);
            let greater = |relation: Relation| matches!(relation, Relation::Greater | Relation::GreaterOrEqual);
            let x = name(x)?;
            if less(*left) && less(*right) {
                Some((x, interval(a.clone(), b.clone(), (closed(*left), closed(*right)))))
            } else if greater(*left) && greater(*right) {
                Some((x, interval(b.clone(), a.clone(), (closed(*right), closed(*left)))))
            } else {
                None
            }
        }
        _ => None,
    }
}

fn has_symbol(node: &Node) -> bool {
    node.any(&|node| matches!(node, Node::Symbol(_)))
}

/// What an assignment may have on its left: a symbol, `f(x)`, `(x, y)`, `AB`, `|AB|`, or a quotient or ratio of such.
pub(super) fn is_name(node: &Node) -> bool {
    let names = |list: &[Node]| list.iter().all(is_name);
    match node {
        Node::Symbol(_) => true,
        Node::Apply(name, list) if name == "abs" => names(list),
        Node::Apply(name, _) => name.trim_end_matches('\'').split('_').next().is_some_and(|name| name.len() == 1),
        Node::Product(list) | Node::Tuple(list) | Node::Ratio(list) => names(list),
        Node::Inverse(node) => is_name(node),
        _ => false,
    }
}

fn is_sum_of_symbols(node: &Node) -> bool {
    matches!(node, Node::Sum(terms) if terms.iter().all(|term| matches!(term, Node::Symbol(_))))
}

/// The parameters of one function by two names: `f(x)` and `f(t)` give t and x.
fn same_function(gold: &Node, answer: &Node) -> Option<(String, String)> {
    match (gold, answer) {
        (Node::Apply(f, x), Node::Apply(g, y)) if f == g => match (x.as_slice(), y.as_slice()) {
            ([Node::Symbol(x)], [Node::Symbol(y)]) => Some((y.clone(), x.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// A formula with one symbol for another; the other's own occurrences get out of the way.
fn renamed(node: &Node, from: &str, to: &str) -> Node {
    match node {
        Node::Symbol(name) if name == from => Node::Symbol(to.to_string()),
        Node::Symbol(name) if name == to => Node::Symbol(format!("{name} (free)")),
        other => other.map(&|node| renamed(node, from, to)),
    }
}
