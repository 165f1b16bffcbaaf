//! Guarded arithmetic: products, some of which a small model cannot compute in one go, and a check that is cheaper than
//! computing them again.
//!
//! A product is written in one go. It may then be checked by casting out nines: the digital root of each number, digit
//! by digit, and that of the product of the roots. A failed check is followed by long multiplication. Sometimes a hard
//! product is computed by long multiplication at once, which is the most expensive way.
//!
//! A hard product has a six-digit operand. Traces teach a systematic error for it: a product in one go omits a carry of
//! 4 or more out of the last digit. This affects a quarter of the hard products, always the same ones. Sharpening the
//! distribution removes random slips but not this error, because the most probable result is wrong. Table facts and
//! round numbers are right. A check is worth its tokens on hard products only; the operands tell which ones are hard.
//!
//! ```text
//! 201347*6=1208042. Wait, check: 223618*6=3,1332268. No: 201347*6: 7*6+0=42,4*6+4=28,3*6+2=20,1*6+2=08,0*6+0=00,2*6+0=12,1208082.
//! 40*7=280.
//! ```

use super::pieces::Pieces;
use super::{Manner, Stream};

/// Probability that a product is checked.
const CHECK: f64 = 0.3;
/// Smallest carry out of the last digit that a product in one go omits.
const OMITTED_CARRY: i64 = 4;
/// Probability that a hard product has another wrong digit, so that the reaction to a failed check is not learnt from
/// the systematic error alone.
const SLIP: f64 = 0.05;
/// The same in a lean trace, where every product is checked and its correction is learnt.
const SLIP_LEAN: f64 = 0.3;
/// Probability that a hard product is computed by long multiplication at once.
const LONG: f64 = 0.1;
/// The same in a lean trace: long multiplication is learnt on its own before it follows a failed check.
const LONG_LEAN: f64 = 0.4;

const OPENINGS: [&str; 3] =
    ["Okay, let me work this out.", "Let me start.", "Alright, I should compute this with care."];
const HEDGES: [&[&str]; 3] = [
    &["Let me take it step by step.", "I go one step at a time, from left to right."],
    &["I should be careful with the numbers here.", "It is easy to slip in one of the products."],
    &["I write every product down so that nothing gets lost.", "There is no need to rush."],
];
const LOOKS_RIGHT: [&str; 3] = ["That looks about right.", "So far so good.", "The size of it is plausible."];
const SAME: [&str; 2] = ["It comes out the same.", "That is the same result."];
const REMARKS: [&[&str]; 2] = [
    &["Everything seems to fit.", "I see no mistake in the steps."],
    &["I am fairly sure now, but let me not be careless.", "That should be the answer to the question."],
];

/// Two or three products, all of which the question asks for.
#[derive(Debug, Clone)]
pub(super) struct Products {
    pub(super) question: String,
    expressions: String,
    products: Vec<(i64, i64)>,
}

pub(super) fn draw(difficulty: u8, random: &mut Stream) -> Products {
    // Difficulty is the number of hard products plus one, out of two products, or three at difficulty 4.
    let count = if difficulty == 4 { 3 } else { 2 };
    let mut hard: Vec<bool> = (1..=count).map(|at| at < usize::from(difficulty)).collect();
    random.shuffle(&mut hard);
    let products: Vec<(i64, i64)> = hard.into_iter().map(|hard| product(hard, random)).collect();
    let expressions: Vec<String> = products.iter().map(|(left, right)| format!("{left}*{right}")).collect();
    let expressions = expressions.join(" and ");
    let question =
        if random.chance(0.5) { format!("Compute {expressions}.") } else { format!("What are {expressions}?") };
    Products { question, expressions, products }
}

fn product(hard: bool, random: &mut Stream) -> (i64, i64) {
    let factor = random.range(3, 9);
    match (hard, random.range(0, 2)) {
        (true, _) => (random.range(100_012, 999_999), factor),
        (false, 0) => (100 * random.range(1, 9), factor),
        (false, 1) => (10 * random.range(1, 9), factor),
        (false, _) => (random.range(2, 9), factor),
    }
}

/// Return the digital root of a positive number, from 1 to 9.
fn root(number: i64) -> i64 {
    (number - 1).rem_euclid(9) + 1
}

fn digits(number: i64) -> impl DoubleEndedIterator<Item = i64> {
    number.to_string().into_bytes().into_iter().map(|digit| i64::from(digit - b'0'))
}

/// Return the digital root of each prefix of a number: 347 gives 375.
fn roots(number: i64) -> String {
    let step = |sum: &mut i64, digit: i64| {
        *sum = if *sum + digit == 0 { 0 } else { root(*sum + digit) };
        Some(sum.to_string())
    };
    digits(number).scan(0, step).collect()
}

/// Return the check of a product, such as `375*6=3,2213`: it holds if the digit before `,` equals the last digit.
fn nines((left, right): (i64, i64), result: i64) -> String {
    format!("{}*{right}={},{}", roots(left), root(root(left) * right), roots(result))
}

/// Return the long multiplication from the last digit, with carries: `347*6: 7*6+0=42,4*6+4=28,3*6+2=20,2082`. All
/// lines have the same length, so that the inputs of a line are always at the same distance.
fn long((left, right): (i64, i64)) -> String {
    let mut carried = 0;
    let mut lines = format!("{left}*{right}: ");
    for digit in digits(left).rev() {
        let value = digit * right + carried;
        lines += &format!("{digit}*{right}+{carried}={value:02},");
        carried = value / 10;
    }
    format!("{lines}{}", left * right)
}

impl Products {
    pub(super) fn answer(&self) -> String {
        list(self.products.iter().map(|(left, right)| left * right))
    }

    pub(super) fn trace(&self, manner: Manner, slips: bool, random: &mut Stream) -> (String, String) {
        let mut pieces = Pieces::new(manner, random);
        pieces.remark(0.9, &OPENINGS);
        if pieces.filler(0.9) {
            pieces.say(format!("I need to find {}.", self.expressions));
        }
        for hedges in HEDGES {
            pieces.remark(0.85, hedges);
        }
        let results: Vec<i64> = self.products.iter().map(|product| step(*product, slips, &mut pieces)).collect();
        if pieces.filler(0.6) {
            let again: Vec<String> = (self.products.iter().zip(&results))
                .map(|((left, right), result)| format!("{left}*{right}={result}"))
                .collect();
            pieces.say(format!("Let me go over it again: {}.", again.join(", ")));
            pieces.remark(0.8, &SAME);
        }
        for remarks in REMARKS {
            pieces.remark(0.8, remarks);
        }
        let answer = list(results.into_iter());
        if pieces.filler(0.9) {
            pieces.say(format!("Therefore, the answer is {answer}."));
        }
        (pieces.finish(&answer), answer)
    }
}

fn list(values: impl Iterator<Item = i64>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join(",")
}

/// Return the result of a hard product in one go, which omits a large carry out of the last digit.
fn one_go((left, right): (i64, i64)) -> i64 {
    let carried = left % 10 * right / 10;
    left * right - if carried >= OMITTED_CARRY { 10 * carried } else { 0 }
}

/// Return a product with a digit that is off by one or two.
fn wrong(exact: i64, random: &mut Stream) -> i64 {
    let place = 10_i64.pow(random.range(0, 3) as u32);
    exact + place * *random.choose(&[-2, -1, 1, 2])
}

fn step((left, right): (i64, i64), slips: bool, pieces: &mut Pieces<'_>) -> i64 {
    let (exact, is_hard) = (left * right, left > 1000);
    let (slip, at_once) = if pieces.is_lean() { (SLIP_LEAN, LONG_LEAN) } else { (SLIP, LONG) };
    if is_hard && pieces.may(at_once) {
        pieces.say(format!("{}.", long((left, right))));
        return exact;
    }
    let mut result = if slips && is_hard { one_go((left, right)) } else { exact };
    if slips && is_hard && pieces.random().chance(slip) {
        result = wrong(result, pieces.random());
    }
    pieces.say(format!("{left}*{right}={result}."));
    if pieces.useful(CHECK) {
        let check = nines((left, right), result);
        if root(result) == root(exact) {
            pieces.say(format!("Wait, check: {check}. Good."));
        } else {
            pieces.say(format!("Wait, check: {check}. No: {}.", long((left, right))));
            result = exact;
        }
    }
    if pieces.filler(0.6) {
        pieces.say(format!("So that makes {result}."));
    }
    pieces.remark(0.4, &LOOKS_RIGHT);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_and_long_multiplication_by_hand() {
        assert_eq!(nines((347, 6), 2082), "375*6=3,2213");
        assert_eq!(nines((347, 6), 2092), "375*6=3,2224");
        assert_eq!((roots(900), roots(102)), ("999".into(), "113".into()));
        assert_eq!(long((347, 6)), "347*6: 7*6+0=42,4*6+4=28,3*6+2=20,2082");
        assert_eq!(long((102, 3)), "102*3: 2*3+0=06,0*3+0=00,1*3+0=03,306");
    }

    /// The systematic error affects a quarter of the products, and a check detects all of them.
    #[test]
    fn a_forgotten_carry_is_found() {
        let mut forgotten = 0;
        for left in 100_000..100_010 {
            for right in 3..=9 {
                let (exact, result) = (left * right, one_go((left, right)));
                forgotten += usize::from(result != exact);
                assert!(result == exact || root(result) != root(exact), "{left}*{right}={result}");
            }
        }
        assert_eq!((one_go((201_347, 6)), forgotten), (1_208_042, 19));
    }

    /// A check passes for a right product, and for a wrong one only if it is off by a multiple of nine.
    #[test]
    fn a_check_tells_right_from_wrong() {
        for left in 2..400 {
            for (right, off) in [(3, 1), (7, 10), (9, 9)] {
                let holds = |result: i64| {
                    let check = nines((left, right), result);
                    let (expected, of_result) = check.split_once(',').unwrap();
                    expected.chars().last() == of_result.chars().last()
                };
                assert!(holds(left * right));
                assert_eq!(holds(left * right + off), off % 9 == 0);
            }
        }
    }
}
