//! Linear equations with a positive integer solution.

use super::steps::{Op, Operand::Given, SolutionPlan, Tail};
use super::{Draft, Stream};

pub(super) fn draw(difficulty: u8, random: &mut Stream) -> Draft {
    let x = random.range(2, [9, 29, 69, 99][usize::from(difficulty) - 1]);
    let slope = random.range(2, 9);
    let mut plan = SolutionPlan::new(Tail::Nothing);
    let (equation, approach) = if difficulty == 1 && random.chance(0.5) {
        let b = random.range(11, 89);
        plan.push(Op::Sub, Given(x + b), Given(b), "the other side");
        (format!("x+{b}={}", x + b), "I subtract the number next to x.")
    } else if difficulty < 3 || (difficulty == 3 && random.chance(0.4)) {
        let b = random.range(2, if difficulty == 1 { 9 } else { 89 });
        let right = plan.push(Op::Sub, Given(slope * x + b), Given(b), "the other side");
        plan.push(Op::Div, right, Given(slope), "the quotient");
        (format!("{slope}x+{b}={}", slope * x + b), "I move the constant and then divide.")
    } else {
        // (slope+other)*x + b = other*x + c, sometimes with the constant on the right split into two.
        let other = random.range(2, 9);
        let b = random.range(2, 89);
        let (total, c) = (slope + other, slope * x + b);
        let part = if difficulty == 4 && random.chance(0.5) { random.range(1, 89.min(c - 1)) } else { 0 };
        let factor = plan.push(Op::Sub, Given(total), Given(other), "the factor of x");
        let (constant, written) = if part > 0 {
            (plan.push(Op::Add, Given(c - part), Given(part), "the constant"), format!("{}+{part}", c - part))
        } else {
            (Given(c), c.to_string())
        };
        let right = plan.push(Op::Sub, constant, Given(b), "the other side");
        plan.push(Op::Div, right, factor, "the quotient");
        (format!("{total}x+{b}={other}x+{written}"), "I bring x to the left, the rest to the right, and then divide.")
    };
    Draft {
        question: if random.chance(0.5) {
            format!("Solve {equation} for x.")
        } else {
            format!("Find x if {equation}.")
        },
        goal: format!("the x with {equation}"),
        approach,
        plan,
    }
}
