//! Conversion of numbers between decimal and bases 3 to 9.

use super::steps::{Operand, SolutionPlan, Tail};
use super::{Draft, Stream};

pub(super) fn draw(difficulty: u8, random: &mut Stream) -> Draft {
    let (base, digits) = match difficulty {
        1 => (random.range(4, 9), 2),
        2 => (random.range(5, 9), 2 + random.range(0, 1) as usize),
        3 => (random.range(4, 9), 3),
        _ => (random.range(3, 6), 4),
    };
    let number: Vec<i64> = (0..digits).map(|at| random.range(i64::from(at == 0), base - 1)).collect();
    let written: String = number.iter().map(i64::to_string).collect();
    if random.chance(0.5) {
        let mut plan = SolutionPlan::new(Tail::Nothing);
        number[1..].iter().fold(Operand::Given(number[0]), |value, &digit| plan.push_horner(value, base, digit));
        Draft {
            question: if random.chance(0.5) {
                format!("Convert {written} from base {base} to decimal.")
            } else {
                format!("What is base {base} number {written} in decimal?")
            },
            goal: format!("{written} from base {base} in decimal"),
            approach: "I go from left to right and multiply by the base.",
            plan,
        }
    } else {
        let value = number.iter().fold(0, |value, digit| value * base + digit);
        Draft {
            question: if random.chance(0.5) {
                format!("Write {value} in base {base}.")
            } else {
                format!("Convert {value} to base {base}.")
            },
            goal: format!("{value} in base {base}"),
            approach: "I divide by the base and read the digits backwards.",
            plan: SolutionPlan::new(Tail::Digits(Operand::Given(value), base)),
        }
    }
}
