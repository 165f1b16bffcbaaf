//! Arithmetic and comparison of matrices of formulae.

use super::equal::Comparer;
use super::tree::{Fault, Node, Result};

type NodeRows = Vec<Vec<Node>>;

/// Maximum number of rows and columns in products and determinants.
const MAX_SIZE: usize = 5;
/// Budget of nodes that products of matrices may write out.
const MAX_WORK: usize = 2000;

/// Expand the determinant into a sum of products.
pub(super) fn determinant(rows: &[Vec<Node>]) -> Result<Node> {
    if rows.is_empty() || rows.iter().any(|row| row.len() != rows.len()) {
        return Err(Fault::Malformed);
    }
    if rows.len() > MAX_SIZE {
        return Err(Fault::Limit);
    }
    let columns: Vec<usize> = (0..rows.len()).collect();
    Ok(minor(rows, &columns))
}

fn minor(rows: &[Vec<Node>], columns: &[usize]) -> Node {
    let Some((row, below)) = rows.split_first() else { return Node::integer(1) };
    let term = |at: usize| {
        let others: Vec<usize> =
            columns.iter().enumerate().filter(|(index, _)| *index != at).map(|(_, c)| *c).collect();
        let product = Node::Product(vec![row[columns[at]].clone(), minor(below, &others)]);
        if at.is_multiple_of(2) { product } else { product.negative() }
    };
    Node::Sum((0..columns.len()).map(term).collect())
}

/// Evaluate a sum, product or transpose of matrices; `None` for any other node.
pub(super) fn evaluated(node: &Node) -> Result<Option<Node>> {
    let holds = |node: &Node| node.any(&|node| matches!(node, Node::Matrix(_)));
    let compound = matches!(node, Node::Sum(_) | Node::Product(_) | Node::Negative(_) | Node::Power(..));
    if !compound || !holds(node) {
        return Ok(None);
    }
    let mut work = MAX_WORK;
    rows(node, &mut work).map(|rows| rows.map(Node::Matrix))
}

fn spend(work: &mut usize, steps: usize) -> Result<()> {
    *work = work.checked_sub(steps).ok_or(Fault::Limit)?;
    Ok(())
}

fn rows(node: &Node, work: &mut usize) -> Result<Option<NodeRows>> {
    match node {
        Node::Matrix(rows) => Ok(Some(rows.clone())),
        Node::Negative(inner) => Ok(rows(inner, work)?.map(|rows| each(&rows, &|entry| entry.clone().negative()))),
        Node::Power(base, exponent) => {
            let Some(base) = rows(base, work)?.filter(|_| is_transpose(exponent)) else { return Ok(None) };
            let width = base.first().map_or(0, Vec::len);
            Ok(Some((0..width).map(|column| base.iter().map(|row| row[column].clone()).collect()).collect()))
        }
        Node::Sum(terms) => {
            let mut sum: Option<NodeRows> = None;
            for term in terms {
                let Some(term) = rows(term, work)? else { return Ok(None) };
                sum = match sum {
                    None => Some(term),
                    Some(before) if shape(&before) == shape(&term) => Some(added(before, term)),
                    Some(_) => return Err(Fault::Undefined),
                };
            }
            Ok(sum)
        }
        Node::Product(factors) => {
            let (mut product, mut scalars): (Option<NodeRows>, Vec<Node>) = (None, Vec::new());
            for factor in factors {
                match (rows(factor, work)?, product.take()) {
                    (None, before) => {
                        scalars.push(factor.clone());
                        product = before;
                    }
                    (Some(next), None) => product = Some(next),
                    (Some(next), Some(before)) => product = Some(multiplied(&before, &next, work)?),
                }
            }
            let scaled = |entry: &Node| Node::Product(scalars.iter().chain([entry]).cloned().collect());
            Ok(product.map(|rows| if scalars.is_empty() { rows } else { each(&rows, &scaled) }))
        }
        _ => Ok(None),
    }
}

/// Whether an exponent denotes the transpose.
pub(super) fn is_transpose(exponent: &Node) -> bool {
    matches!(exponent, Node::Symbol(name) if matches!(name.as_str(), "T" | "top" | "t" | "intercal"))
}

fn shape(rows: &[Vec<Node>]) -> (usize, usize) {
    (rows.len(), rows.first().map_or(0, Vec::len))
}

fn each(rows: &[Vec<Node>], change: &dyn Fn(&Node) -> Node) -> NodeRows {
    rows.iter().map(|row| row.iter().map(change).collect()).collect()
}

fn added(a: NodeRows, b: NodeRows) -> NodeRows {
    let sum = |(a, b): (Node, Node)| Node::Sum(vec![a, b]);
    a.into_iter().zip(b).map(|(a, b)| a.into_iter().zip(b).map(sum).collect()).collect()
}

fn multiplied(a: &[Vec<Node>], b: &[Vec<Node>], work: &mut usize) -> Result<NodeRows> {
    let ((height, inner), (other, width)) = (shape(a), shape(b));
    if inner != other {
        return Err(Fault::Undefined);
    }
    if [height, inner, width].into_iter().any(|size| size > MAX_SIZE) {
        return Err(Fault::Limit);
    }
    // Each entry of the product repeats entries of the operands.
    let size: usize = a.iter().chain(b).flatten().map(size).sum();
    spend(work, size * width.max(height))?;
    let entry = |row: &[Node], column: usize| {
        Node::Sum(row.iter().zip(b).map(|(x, below)| Node::Product(vec![x.clone(), below[column].clone()])).collect())
    };
    Ok(a.iter().map(|row| (0..width).map(|column| entry(row, column)).collect()).collect())
}

fn size(node: &Node) -> usize {
    1 + node.children().into_iter().map(size).sum::<usize>()
}

impl Comparer {
    /// Compare entry by entry; a row or column equals a tuple, and rows may be in brackets.
    pub(super) fn same_matrices(&mut self, gold: &Node, answer: &Node) -> Result<bool> {
        let (Some(a), Some(b)) = (grid(gold), grid(answer)) else { return Ok(false) };
        let vector = |rows: &NodeRows| rows.len() == 1 || rows.iter().all(|row| row.len() == 1);
        let flat = |node: &Node, rows: &NodeRows| !matches!(node, Node::Matrix(_)) && rows.len() == 1;
        let vectors = (flat(gold, &a) || flat(answer, &b)) && vector(&a) && vector(&b);
        let same_shape = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.len() == b.len());
        Ok((vectors || same_shape) && self.same_in_order(&a.concat(), &b.concat())?)
    }
}

/// Return the rows of a matrix or of nested brackets, `[[1, 2], [3, 4]]`; a tuple is one row.
fn grid(node: &Node) -> Option<NodeRows> {
    let items = |node: &Node| match node {
        Node::Tuple(items) => Some(items.clone()),
        Node::Interval { ends, closed: (true, true) } => Some(vec![ends.0.clone(), ends.1.clone()]),
        _ => None,
    };
    match node {
        Node::Matrix(rows) => Some(rows.clone()),
        node => {
            let outer = items(node)?;
            let rows: Option<NodeRows> = outer.iter().map(items).collect();
            Some(rows.unwrap_or_else(|| vec![outer]))
        }
    }
}
