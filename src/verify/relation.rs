//! Comparison of equations, inequalities and assignments.

use std::collections::HashSet;

use num_rational::BigRational;
use num_traits::Signed;

use super::equal::{Comparer, is_formula, is_set};
use super::poly::Quotient;
use super::rounded::{half_unit, literal, near};
use super::sets::MAX_PIECES;
use super::tree::{Node, Relation, Result};

/// Joint between two members of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Joint {
    Comma,
    Semicolon,
    And,
    Or,
}

/// Combine members joined by "or": inequalities in one symbol become `x ∈ (…) ∪ (…)`; "and" binds closer. Semicolons
/// between solutions in several symbols separate these as "or" does.
pub(super) fn joined(items: Vec<Node>, joints: &[Joint]) -> Vec<Node> {
    if items.len() > MAX_PIECES {
        return items;
    }
    if !joints.contains(&Joint::Or) {
        let apart = joints.contains(&Joint::Semicolon).then(|| systems(&items, joints, Joint::Semicolon));
        return apart.flatten().unwrap_or(items);
    }
    let Some(sets) = items.iter().map(solutions).collect::<Option<Vec<_>>>() else {
        // `x = 1 or y = 2` is not a list of both.
        if let [a @ Node::Relation(left, _), b @ Node::Relation(right, _)] = items.as_slice()
            && matches!((&left[0], &right[0]), (Node::Symbol(x), Node::Symbol(y)) if x != y)
        {
            return vec![Node::Union(Box::new(a.clone()), Box::new(b.clone()))];
        }
        return systems(&items, joints, Joint::Or).unwrap_or(items);
    };
    let mut sets = sets.into_iter();
    let Some((symbol, mut last)) = sets.next() else { return items };
    let mut union = None;
    for ((other, set), joint) in sets.zip(joints) {
        if other != symbol {
            return items;
        }
        last = match joint {
            Joint::And => Node::Intersection(Box::new(last), Box::new(set)),
            _ => {
                union = Some(united(union, last));
                set
            }
        };
    }
    vec![Node::Relation(vec![Node::Symbol(symbol), united(union, last)], vec![Relation::In])]
}

/// Convert solutions in several symbols, `x = 2, y = 3 or x = 3, y = 2`, to tuples ordered by symbol; `apart` separates
/// the solutions.
fn systems(items: &[Node], joints: &[Joint], apart: Joint) -> Option<Vec<Node>> {
    let mut systems = vec![Vec::new()];
    for (at, item) in items.iter().enumerate() {
        let Node::Relation(terms, _) = item else { return None };
        let [name @ Node::Symbol(_), _] = terms.as_slice() else { return None };
        if at > 0 && joints.get(at - 1) == Some(&apart) {
            systems.push(Vec::new());
        }
        systems.last_mut()?.push((name.to_string(), item.clone()));
    }
    let names = |system: &[(String, Node)]| system.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    systems.iter_mut().for_each(|system| system.sort_by(|a, b| a.0.cmp(&b.0)));
    let first = names(&systems[0]);
    let distinct = first.len() > 1 && first.windows(2).all(|pair| pair[0] != pair[1]);
    let alike = systems.iter().all(|system| names(system) == first);
    (distinct && alike).then(|| {
        systems.into_iter().map(|system| Node::Tuple(system.into_iter().map(|(_, item)| item).collect())).collect()
    })
}

fn united(union: Option<Node>, set: Node) -> Node {
    match union {
        Some(union) => Node::Union(Box::new(union), Box::new(set)),
        None => set,
    }
}

impl Comparer {
    /// Compare a relation with another node, by its value or its set of solutions.
    pub(super) fn same_as_side(&mut self, relation: &Node, other: &Node, relation_is_gold: bool) -> Result<bool> {
        let Node::Relation(terms, relations) = relation else { return Ok(false) };
        if relations.iter().all(|relation| *relation == Relation::Equal) {
            let (first, last) = (&terms[0], &terms[terms.len() - 1]);
            if self.contradicts(terms) {
                return Ok(false);
            }
            // `a = b = 1` equals (1, 1).
            if let (Node::Tuple(pair), [names @ .., value]) = (other, terms.as_slice())
                && names.len() > 1
                && names.iter().all(|name| matches!(name, Node::Symbol(_)))
                && !matches!(value, Node::Tuple(_))
            {
                let values = vec![value.clone(); names.len()];
                let (gold, answer) = if relation_is_gold { (&values, pair) } else { (pair, &values) };
                return self.same_in_order(gold, answer);
            }
            // `x^2 - 1 = (x - 1)(x + 1)` holds for every x, so that its value is either side.
            let identity = has_symbol(first)
                && !is_name(first)
                && terms.iter().all(is_formula)
                && terms.windows(2).all(|pair| self.same_formulae(&pair[0], &pair[1]) == Ok(true));
            let dotted = |node: &Node| node.any(&|node| matches!(node, Node::Symbol(name) if name == "…"));
            let mut compare =
                |side: &Node| if relation_is_gold { self.same(side, other) } else { self.same(other, side) };
            // `x = 5`, `2 + 3 = 5` and `5 = x`
            return if is_name(last) && !is_name(first) {
                compare(first)
            } else if is_name(first)
                || !terms[terms.len() - 2..].iter().any(has_symbol)
                || (terms.len() > 2 && is_name(&terms[terms.len() - 2]))
                // In an answer `m + n = 7` states the value of m + n; in a gold it may be an equation.
                || (!relation_is_gold && (is_sum_of_symbols(first) || dotted(first)))
                || identity
            {
                compare(last)
            } else if relation_is_gold || has_symbol(last) || has_symbol(other) {
                Ok(false)
            } else {
                // `a^2 + b^2 = 3 + 4 = 7`: all values must be right.
                let values = terms.iter().filter(|term| !has_symbol(term));
                values.into_iter().try_fold(true, |all, value| Ok(all && compare(value)?))
            };
        }
        match solutions(relation) {
            Some((_, set)) if relation_is_gold => self.same(&set, other),
            Some((_, set)) => self.same(other, &set),
            None => Ok(false),
        }
    }

    /// Whether two numbers in a chain of equations, `x = 5 = 7`, differ by more than the rounding of a decimal.
    ///
    /// The check spends at most half of the steps left.
    fn contradicts(&mut self, terms: &[Node]) -> bool {
        let sign = |node: &Node| matches!(node, Node::Percent(_) | Node::Degrees(_) | Node::Symbol(_));
        let numbers: Vec<&Node> = terms.iter().filter(|term| is_formula(term) && !term.any(&sign)).collect();
        if numbers.len() < 2 {
            return false;
        }
        let half = self.algebra.steps / 2;
        self.algebra.steps -= half;
        let mut value = |term: &Node| {
            let normal = self.algebra.normal(term).ok()?;
            Some((literal(term).filter(|value| !value.is_integer()), self.algebra.float(&normal)?, normal))
        };
        let values: Vec<_> = numbers.into_iter().filter_map(&mut value).collect();
        let rounds = |decimal: &Option<BigRational>, other: f64| {
            decimal.as_ref().and_then(|value| Some(near(other, value, &half_unit(value)?))) == Some(true)
        };
        let differ = values.iter().zip(values.iter().skip(1)).any(|((left, a, x), (right, b, y))| {
            !rounds(left, *b) && !rounds(right, *a) && self.zero_difference(x, y) == Ok(false)
        });
        self.algebra.steps += half;
        differ
    }

    pub(super) fn same_relations(&mut self, gold: &Node, answer: &Node) -> Result<bool> {
        let (Node::Relation(a, left), Node::Relation(b, right)) = (gold, answer) else { return Ok(false) };
        let equations = |relations: &[Relation]| relations.iter().all(|relation| *relation == Relation::Equal);
        match (equations(left), equations(right)) {
            (true, true) if self.contradicts(a) != self.contradicts(b) => Ok(false),
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
                // `-x < -1` and `x > 1`
                if a.len() == 2 && left[0] == right[0].flipped() && a.iter().chain(b).all(is_formula) {
                    return self.same_equations((&a[0], &a[1]), (&b[1], &b[0]), true);
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Whether the differences of the sides are multiples of each other, positive ones for inequalities (`ordered`).
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

    /// Compare lists of inequalities in one symbol as sets; a pair may be an open interval.
    pub(super) fn same_systems(&mut self, gold: &Node, answer: &Node) -> Result<Option<bool>> {
        let may_be_set = |node: &Node| is_set(node) || matches!(node, Node::Tuple(pair) if pair.len() == 2);
        match (self.one_set(gold)?, self.one_set(answer)?) {
            (Some((x, a)), Some((y, b))) => Ok(Some(x == y && self.same(&a, &b)?)),
            (Some((_, set)), None) if may_be_set(answer) => Ok(Some(self.same_sets(&set, answer)?)),
            (None, Some((_, set))) if may_be_set(gold) => Ok(Some(self.same_sets(gold, &set)?)),
            _ => Ok(None),
        }
    }

    /// Return the symbol of the inequalities and their intersection, or their union if they are disjoint.
    fn one_set(&mut self, node: &Node) -> Result<Option<(String, Node)>> {
        let Node::List(members) = node else { return Ok(solutions(node)) };
        let Some(sets) = each_solutions(members).filter(|sets| sets.len() <= MAX_PIECES) else { return Ok(None) };
        let Some((symbol, _)) = sets.first().cloned() else { return Ok(None) };
        if sets.iter().any(|(other, _)| *other != symbol) {
            return Ok(None);
        }
        let sets = || sets.iter().map(|(_, set)| set.clone());
        let common = sets().reduce(|a, b| Node::Intersection(Box::new(a), Box::new(b)));
        let apart = match &common {
            Some(common) => self.is_empty(common)?,
            None => false,
        };
        let union = || sets().reduce(|a, b| Node::Union(Box::new(a), Box::new(b)));
        Ok((if apart { union() } else { common }).map(|set| (symbol, set)))
    }
}

/// Return the solutions of each relation; in `x ≠ 1, 2` the relation applies to both values.
fn each_solutions(members: &[Node]) -> Option<Vec<(String, Node)>> {
    let mut unequal: Option<&Node> = None;
    let sets = members.iter().map(|member| match (member, unequal) {
        (Node::Relation(terms, relations), _) => {
            unequal = (relations == &[Relation::Unequal]).then(|| &terms[0]);
            solutions(member)
        }
        (value, Some(name)) if !has_symbol(value) => {
            solutions(&Node::Relation(vec![name.clone(), value.clone()], vec![Relation::Unequal]))
        }
        _ => None,
    });
    sets.collect()
}

/// Return the symbol of a relation and its set of solutions.
pub(super) fn solutions(node: &Node) -> Option<(String, Node)> {
    let Node::Relation(terms, relations) = node else { return None };
    let name = |node: &Node| match node {
        Node::Symbol(name) => Some(name.clone()),
        Node::Apply(function, _) if function != "abs" && is_name(node) => Some(node.to_string()),
        _ => None,
    };
    let interval = |left: Node, right: Node, closed| Node::Interval { ends: Box::new((left, right)), closed };
    match (terms.as_slice(), relations.as_slice()) {
        ([x, set], [Relation::In]) => {
            let pair = matches!(x, Node::Tuple(_)) && is_name(x);
            Some((if pair { x.to_string() } else { name(x)? }, set.clone()))
        }
        ([x, set], [Relation::NotIn]) => Some((name(x)?, Node::Without(Box::new(Node::Reals), Box::new(set.clone())))),
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

/// Return the last side of a chain of two or more equations, `x = 2 + 3 = 5`, without a decimal that it approximates.
pub(super) fn last_side(node: &Node) -> Option<&Node> {
    let Node::Relation(terms, relations) = node else { return None };
    let chain = relations.len() > 1 && relations.iter().all(|it| matches!(it, Relation::Equal | Relation::Near));
    let last = relations.iter().rposition(|relation| *relation == Relation::Equal)?;
    terms.get(last + 1).filter(|_| chain)
}

/// Whether a node may be assigned to: a symbol, `f(x)`, `(x, y)`, `AB`, `|AB|`, or a quotient or ratio of these.
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

pub(super) fn is_relation(node: &Node) -> bool {
    matches!(node, Node::Relation(..))
}

/// Whether a list assigns values to different quantities, `x = 5, y = 6`; the roots `x_1` and `x_2` are of one.
pub(super) fn assigns(list: &[Node]) -> bool {
    let mut names = HashSet::new();
    list.iter().all(|node| match node {
        Node::Relation(terms, _) if is_name(&terms[0]) => {
            let name = terms[0].to_string();
            names.insert(name.split('_').next().unwrap_or_default().to_string())
        }
        _ => false,
    })
}

fn is_sum_of_symbols(node: &Node) -> bool {
    matches!(node, Node::Sum(terms) if terms.iter().all(|term| matches!(term, Node::Symbol(_))))
}

/// Return the parameters of one function with two parameter names: t and x for `f(x)` and `f(t)`.
fn same_function(gold: &Node, answer: &Node) -> Option<(String, String)> {
    match (gold, answer) {
        (Node::Apply(f, x), Node::Apply(g, y)) if f == g => match (x.as_slice(), y.as_slice()) {
            ([Node::Symbol(x)], [Node::Symbol(y)]) => Some((y.clone(), x.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// Rename a symbol; occurrences of the new name are renamed first, so that the two do not clash.
fn renamed(node: &Node, from: &str, to: &str) -> Node {
    match node {
        Node::Symbol(name) if name == from => Node::Symbol(to.to_string()),
        Node::Symbol(name) if name == to => Node::Symbol(format!("{name} (free)")),
        other => other.map(&|node| renamed(node, from, to)),
    }
}
