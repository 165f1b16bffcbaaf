//! Remainders and greatest common divisors.

use super::steps::{Op, Operand::Given, SolutionPlan, Tail};
use super::{Draft, Stream};

pub(super) fn draw(difficulty: u8, random: &mut Stream) -> Draft {
    if difficulty > 2 && random.chance(0.6) {
        common_divisor(difficulty, random)
    } else {
        remainder(difficulty, random)
    }
}

fn remainder(difficulty: u8, random: &mut Stream) -> Draft {
    let (value, divisor) = match difficulty {
        1 => (random.range(12, 99), random.range(3, 9)),
        2 => (random.range(100, 999), random.range(3, 9)),
        3 => (random.range(100, 499), random.range(11, 19)),
        _ => (random.range(500, 999), random.range(11, 19)),
    };
    let mut plan = SolutionPlan::new(Tail::Nothing);
    plan.push(Op::Mod, Given(value), Given(divisor), "the remainder");
    Draft {
        question: if random.chance(0.5) {
            format!("What is the remainder of {value} divided by {divisor}?")
        } else {
            format!("Find the remainder when {value} is divided by {divisor}.")
        },
        goal: format!("the remainder of {value} divided by {divisor}"),
        approach: "I take away multiples until less is left.",
        plan,
    }
}

fn common_divisor(difficulty: u8, random: &mut Stream) -> Draft {
    let (a, b) = loop {
        let factor = random.range(2, 12);
        let most = if difficulty == 3 { 96 } else { 240 } / factor;
        let (a, b) = (factor * random.range(3, most), factor * random.range(2, most / 2));
        let steps = euclid_steps(a, b);
        if a > b && b >= 10 && (if difficulty == 3 { 2..=3 } else { 3..=4 }).contains(&steps) {
            break (a, b);
        }
    };
    Draft {
        question: if random.chance(0.5) {
            format!("Find the greatest common divisor of {a} and {b}.")
        } else {
            format!("What is gcd({a},{b})?")
        },
        goal: format!("the greatest common divisor of {a} and {b}"),
        approach: "I take remainders until nothing is left.",
        plan: SolutionPlan::new(Tail::Euclid(a, b)),
    }
}

fn euclid_steps(a: i64, b: i64) -> usize {
    if b == 0 { 0 } else { 1 + euclid_steps(b, a % b) }
}
