//! Expressions with `+`, `-`, `*` and brackets.

use super::steps::{Op, Operand, SolutionPlan, Tail};
use super::{Draft, Stream};

enum Expression {
    Number(i64),
    Node(Op, Box<Expression>, Box<Expression>),
}

use Expression::{Node, Number};

fn node(op: Op, left: Expression, right: Expression) -> Expression {
    Node(op, Box::new(left), Box::new(right))
}

impl Expression {
    fn write(&self) -> String {
        match self {
            Number(number) => number.to_string(),
            Node(op, left, right) => {
                let symbol = match op {
                    Op::Add => '+',
                    Op::Sub => '-',
                    _ => '*',
                };
                let is_sum = |side: &Expression| matches!(side, Node(Op::Add | Op::Sub, ..));
                let bracket = |side: &Expression, needed: bool| {
                    if needed { format!("({})", side.write()) } else { side.write() }
                };
                let left = bracket(left, *op == Op::Mul && is_sum(left));
                format!("{left}{symbol}{}", bracket(right, is_sum(right)))
            }
        }
    }

    fn plan(&self, plan: &mut SolutionPlan) -> Operand {
        match self {
            Number(number) => Operand::Given(*number),
            Node(op, left, right) => {
                let (left, right) = (left.plan(plan), right.plan(plan));
                let label = match op {
                    Op::Add => "the sum",
                    Op::Sub => "the difference",
                    _ => "the product",
                };
                plan.push(*op, left, right, label)
            }
        }
    }
}

pub(super) fn draw(difficulty: u8, random: &mut Stream) -> Draft {
    let expression = expression(difficulty, random);
    let mut plan = SolutionPlan::new(Tail::Nothing);
    expression.plan(&mut plan);
    let text = expression.write();
    Draft {
        question: if random.chance(0.5) { format!("Compute {text}.") } else { format!("What is {text}?") },
        goal: format!("the value of {text}"),
        approach: if text.contains('(') {
            "Brackets come first, then products, then sums."
        } else if text.contains('*') {
            "Products come first, then sums."
        } else {
            "I go from left to right."
        },
        plan,
    }
}

fn expression(difficulty: u8, random: &mut Stream) -> Expression {
    use Op::{Add, Mul, Sub};
    let two = Number(random.range(12, 89));
    let more = Number(random.range(11, 79));
    let some = Number(random.range(11, 49));
    let few = Number(random.range(3, 19));
    let digit = Number(random.range(3, 9));
    let other = Number(random.range(3, 9));
    let sign = *random.choose(&[Add, Sub]);
    let product = |left, right| node(Mul, left, right);
    match (difficulty, random.range(0, 2)) {
        (1, 0) => product(two, digit),
        (1, 1) => node(sign, two, more),
        (1, _) => product(digit, other),
        (2, 0) => node(sign, product(two, digit), few),
        (2, 1) => product(node(sign, more, few), digit),
        (2, _) => node(Sub, node(Add, two, more), some),
        (3, 0) => node(sign, product(two, digit), some),
        (3, 1) => node(Sub, product(two, digit), node(Add, few, other)),
        (3, _) => node(sign, product(node(Add, few, some), digit), more),
        (_, 0) => node(Sub, node(Add, product(two, digit), product(few, other)), more),
        (_, 1) => node(Sub, product(two, digit), node(sign, product(few, other), some)),
        (_, _) => node(sign, product(node(Add, some, few), digit), product(two, other)),
    }
}
