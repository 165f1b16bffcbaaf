//! Comparison of answers with several members, in any order.

use std::collections::HashSet;

use super::equal::{Comparer, is_formula};
use super::rounded::{is_rounded, literal};
use super::tree::{Fault, Node, Result};

/// Maximum number of pairs of members that are compared.
const MAX_PAIRS: usize = 4096;
/// Lists with more members are first matched by their normal forms.
const MANY: usize = 8;

impl Comparer {
    /// Whether two lists have the same members in any order, ignoring repetitions.
    pub(super) fn same_members(&mut self, gold: &[Node], answer: &[Node]) -> Result<bool> {
        let mut unmatched = unmatched((gold, spellings(gold)), (answer, spellings(answer)));
        if unmatched.0.len().max(unmatched.1.len()) > MANY {
            unmatched = self::unmatched((gold, self.normals(gold)), (answer, self.normals(answer)));
        }
        let (missed, added) = unmatched;
        // Only a rounded gold accepts a different literal.
        let plain = |node: &Node| literal(node).is_some() && !is_rounded(node);
        if missed.iter().any(plain) && gold.iter().chain(answer).all(|node| literal(node).is_some()) {
            return Ok(false);
        }
        if missed.len() * answer.len() + added.len() * gold.len() > MAX_PAIRS {
            return Err(Fault::Limit);
        }
        let mut undecided = false;
        for (members, others, forward) in [(&missed, answer, true), (&added, gold, false)] {
            for member in members {
                let mut found = false;
                for other in others {
                    let same = if forward { self.same(member, other) } else { self.same(other, member) };
                    match same {
                        Ok(same) => found |= same,
                        Err(_) => undecided = true,
                    }
                    if found {
                        break;
                    }
                }
                if !found {
                    return if undecided { Err(Fault::Limit) } else { Ok(false) };
                }
            }
        }
        Ok(true)
    }

    /// Return the text of each member, of its normal form if it has one.
    fn normals(&mut self, members: &[Node]) -> Vec<String> {
        let mut text = |node: &Node| {
            let normal = is_formula(node).then(|| self.algebra.normal(node).ok()).flatten()?;
            Some(normal.as_constant().map_or_else(|| format!("{normal:?}"), |value| value.to_string()))
        };
        members.iter().map(|node| text(node).unwrap_or_else(|| node.to_string())).collect()
    }
}

/// Return the text of each member, numbers by value.
fn spellings(members: &[Node]) -> Vec<String> {
    members.iter().map(|node| literal(node).map_or_else(|| node.to_string(), |value| value.to_string())).collect()
}

/// Return the members of each list whose texts are not in the other list.
fn unmatched(gold: (&[Node], Vec<String>), answer: (&[Node], Vec<String>)) -> (Vec<Node>, Vec<Node>) {
    let missing = |(members, texts): &(&[Node], Vec<String>), others: &[String]| -> Vec<Node> {
        let others: HashSet<&String> = others.iter().collect();
        members.iter().zip(texts).filter(|(_, text)| !others.contains(text)).map(|(node, _)| node.clone()).collect()
    };
    (missing(&gold, &answer.1), missing(&answer, &gold.1))
}
