//! Arithmetic sequences, and sequences whose differences grow.

use super::steps::{Op, Operand::Given, SolutionPlan, Tail};
use super::{Draft, Stream};

pub(super) fn draw(difficulty: u8, random: &mut Stream) -> Draft {
    let mut plan = SolutionPlan::new(Tail::Nothing);
    let first = random.range(2, 29);
    let step = random.range(2, [6, 9, 9, 9][usize::from(difficulty) - 1]);
    let list = |terms: &[i64]| terms.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let start = list(&[first, first + step, first + 2 * step]);
    let (question, goal, approach) = match (difficulty, random.range(0, 2)) {
        (1, _) => {
            let (a, b) = (first + step, first + 2 * step);
            let step = plan.push(Op::Sub, Given(b), Given(a), "the difference");
            plan.push(Op::Add, Given(b), step, "the next term");
            (
                format!("What comes next: {start}?"),
                format!("the next term of {start}"),
                "The difference stays the same.",
            )
        }
        (2, _) | (3, 0 | 1) => {
            let n = random.range(6, if difficulty == 2 { 20 } else { 70 });
            let count = plan.push(Op::Sub, Given(n), Given(1), "the number of gaps");
            let gap = plan.push(Op::Sub, Given(first + step), Given(first), "the difference");
            let rise = plan.push(Op::Mul, count, gap, "the rise");
            plan.push(Op::Add, rise, Given(first), "the term");
            let start = format!("{first},{},...", first + step);
            (format!("What is term {n} of {start}?"), format!("term {n} of {start}"), "The difference stays the same.")
        }
        (4, 0) => {
            let growth = random.range(2, 9);
            let terms = [first, first + step, first + 2 * step + growth, first + 3 * (step + growth)];
            let late = plan.push(Op::Sub, Given(terms[3]), Given(terms[2]), "the last difference");
            let early = plan.push(Op::Sub, Given(terms[2]), Given(terms[1]), "the one before");
            let growth = plan.push(Op::Sub, late, early, "the growth");
            let next = plan.push(Op::Add, late, growth, "the next difference");
            plan.push(Op::Add, Given(terms[3]), next, "the next term");
            let start = list(&terms);
            (format!("What comes next: {start}?"), format!("the next term of {start}"), "The differences grow evenly.")
        }
        (_, _) => {
            let n = random.range(5, 9);
            let last = first + (n - 1) * step;
            let pair = plan.push(Op::Add, Given(first), Given(last), "first and last");
            let twice = plan.push(Op::Mul, pair, Given(n), "twice the sum");
            plan.push(Op::Div, twice, Given(2), "the sum");
            let goal = format!("the sum of the {n} terms from {first} to {last}");
            (
                format!("What is the sum of the {n} terms {start},...,{last}?"),
                goal,
                "The sum is the mean times the number of terms.",
            )
        }
    };
    Draft { question, goal, approach, plan }
}
