//! Whether a completion gives the right answer.
//!
//! [`grade`] finds the answer in a completion and compares it with the right one, the *gold*. Two readings are graded
//! side by side. The strict one wants a finished completion that states its answer after its thinking; the lenient one
//! takes whatever formula comes last. Their difference is how much of a gain is mere format.
//!
//! Extraction (`extract`, `announced`, `last`) finds a text, reading (`token`, `parse`, `label`, `choice`, `brackets`,
//! `clock`, `formula`, `number`, `quantity`, `name`, `words`, `unit`) makes a tree of it, and comparison (`equal`,
//! `lists`, `rounded`, `relation`, `sets`, `matrix`, `normal` and below) decides.
//!
//! # What states an answer
//!
//! | form | the rule |
//! |---|---|
//! | `\boxed{}` | the last; boxes that follow one another, with commas or "and", are a list; one without a letter or digit is a mention |
//! | `Answer: 34`, `**Final Answer** …`, 答案：34 | the line or the one below; after a box it wins if it is something to compare, else where there is no box |
//! | "the answer is 34", "the correct option is B" | up to the end of the sentence; where there is no box |
//! | `<answer>34</answer>`, `#### 34` | where there is no box |
//! | none of these | lenient only: the last `$…$`, `\(…\)`, `\[…\]` or bare formula; of a derivation its right side |
//!
//! # When two answers are the same
//!
//! Formulae are the same when their difference is zero. It is brought to a normal form with exact coefficients, in which
//! equal terms cancel; roots are decided by a bound on algebraic numbers. Floating-point values only ever show that a
//! difference is *not* zero. What cannot be decided within a budget of steps is [`Verdict::Undecided`].
//!
//! | of | the rule |
//! |---|---|
//! | decimals | a gold of two decimal places or more also takes what rounds to it: 0.33 takes 1/3 and 0.333, but 1/3 does not take 0.33 |
//! | `1/3 ≈ 0.33` | the exact value, or the rounded one if it is that one rounded |
//! | percentages, degrees | 5% equals 0.05, and 5 where the other has no sign; 45° equals π/4 and 45; 12°30' is 12.5° |
//! | units, currency | converted where both have one (50 cm is 0.5 m), else left out; letters outside `\text{}` are symbols; "or more", "squared", "and a half" are none; 5 feet 6 inches needs a unit on both sides |
//! | million, dozen, tenths | multiply: 5 million is not 5 |
//! | times | `3:45` is a time, never a fraction; beside a ratio such as 2:3, or as `3 : 45`, a ratio; without AM or PM either half of the day |
//! | several answers | order and repetition do not matter; in tuples and matrices they do |
//! | `(a, b)` | a pair or an open interval, as the other side needs; `[a, b]` is closed |
//! | matrices | sums, products, `^T` and `[[a, b], [c, d]]` are read; bars make a determinant, which is a number |
//! | `x = 5`, `f(x) = 2x` | equal their right-hand side, as does any expression = 5 in an answer, \text{Area} = 5 too; two equations compare as multiples of each other |
//! | `x ≡ 3 (mod 7)` | the same symbol, modulus and class; 3 alone answers it, 10 does not |
//! | inequalities | compare as sets: `x > 2` equals `(2, ∞)`; several hold together, but with "or", or where none fits all, are a union |
//! | `log` | without a base it is either the natural or the decimal one |
//! | quotients | compare as such: x²/x equals x |
//! | `1,234` | a thousands separator, but two members inside brackets; `3,14` is 3.14 beside a number with a point |
//! | `1, 2, …, n` | the same members; 0.1666… goes on with its last digit |
//! | choices | `C`, `(C)`, `C: its text`, by the letter, or by the text against another text |
//! | comments | `(checked)`, "where c is real", "for all n", "since …" are left out; "if …" and second cases are not |
//! | words | compare without case, punctuation and plurals; numbers and dates in words by their value; "all real numbers" and "no solution" are sets; `abc` beside a formula is a product |
//!
//! The module uses nothing else of the crate, so that it can be fuzzed by itself.

mod algebraic;
mod announced;
mod brackets;
mod check;
mod choice;
mod clock;
mod equal;
mod extract;
mod formula;
mod function;
mod label;
mod last;
mod lists;
mod matrix;
mod name;
mod normal;
mod number;
mod parse;
mod poly;
mod quantity;
mod relation;
mod rounded;
mod sets;
mod token;
mod tree;
mod unit;
mod words;
mod zero;

use std::borrow::Cow;

use serde::Serialize;

pub use check::{check, explain};
pub use extract::{after_thinking, gold_answer, stated};

use announced::reads;
use tree::{Fault, Node};

/// The longest answer that is compared, in bytes.
const MAX_ANSWER: usize = 4096;

/// The outcome of comparing a completion with the right answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The answer equals the right one.
    Right,
    /// There is an answer and it is another one.
    Wrong,
    /// No answer was found.
    NoAnswer,
    /// What stands in the answer's place is empty, absurdly long, or not an answer.
    UnparseableAnswer,
    /// Whether the answer is right could not be decided in the steps allowed.
    Undecided,
    /// The right answer itself is empty, absurdly long or has no value: the row cannot be scored.
    UnparseableGold,
}

impl Verdict {
    /// The name it is counted under.
    pub fn name(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Wrong => "wrong",
            Self::NoAnswer => "no_answer",
            Self::UnparseableAnswer => "unparseable_answer",
            Self::Undecided => "undecided",
            Self::UnparseableGold => "unparseable_gold",
        }
    }

    /// Whether the answer is right.
    pub fn is_right(self) -> bool {
        self == Self::Right
    }
}

/// A completion's grades.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graded {
    /// A stated answer, after the thinking, of a finished completion.
    pub strict: Verdict,
    /// A stated answer or the last formula, anywhere, finished or not.
    pub lenient: Verdict,
    /// The answer as found: what the lenient verdict is of, and the strict one where there is an answer.
    pub extracted: Option<String>,
}

/// Grades a completion against the right answer, which may still be inside a `#### n` or `\boxed{n}`.
///
/// Where the prompt has opened the thinking, `completion` begins with its `<think>`: otherwise thinking that never ends
/// would pass for an answer. `finished` says that the model ended its turn itself; one cut off at the length limit has no strict answer.
pub fn grade(problem_answer: &str, completion: &str, finished: bool) -> Graded {
    let gold = gold_answer(problem_answer);
    let after = after_thinking(completion);
    let stated_after = after.and_then(stated);
    let strict = stated_after.as_deref().filter(|_| finished).map_or_else(|| missing(&gold), |it| compare(&gold, it));
    // Words announced where a formula is wanted are as good as nothing.
    let counts = |answer: &Cow<str>| reads(answer) || !reads(&gold) || extract::boxed(completion).is_some();
    if let Some(answer) = stated_after.or_else(|| stated(completion)).filter(counts) {
        let lenient = compare(&gold, &answer);
        return Graded { strict, lenient, extracted: Some(answer.into_owned()) };
    }
    let Some(formula) = after.and_then(last::last_formula).or_else(|| last::last_formula(completion)) else {
        return Graded { strict, lenient: missing(&gold), extracted: None };
    };
    let whole = compare(&gold, &formula);
    let side = last::last_side(&formula).filter(|_| !whole.is_right());
    let lenient = if side.is_some_and(|side| compare(&gold, side).is_right()) { Verdict::Right } else { whole };
    Graded { strict, lenient, extracted: Some(formula.into_owned()) }
}

/// The verdict where no answer was found.
fn missing(gold: &str) -> Verdict {
    if usable(gold) { Verdict::NoAnswer } else { Verdict::UnparseableGold }
}

/// Compares an answer with the right one, both as extracted.
pub fn compare(gold: &str, answer: &str) -> Verdict {
    if !usable(gold) {
        return Verdict::UnparseableGold;
    }
    if !usable(answer) {
        return Verdict::UnparseableAnswer;
    }
    if alike(gold, answer) {
        return Verdict::Right;
    }
    let verdict = compare_unlike(gold, answer);
    if verdict == Verdict::Wrong && check::same_by_commas(gold, answer) { Verdict::Right } else { verdict }
}

/// Compares answers that are not written alike.
fn compare_unlike(gold_text: &str, answer_text: &str) -> Verdict {
    let gold = match parse::parse(gold_text) {
        Ok(node) => node,
        // A gold beyond this reader takes only what is written like it.
        Err(_) => return Verdict::Undecided,
    };
    let answer = match parse::parse(answer_text) {
        Ok(answer) => answer,
        Err(Fault::Limit) => return Verdict::Undecided,
        Err(_) => match label::values(answer_text) {
            Some(values) if !matches!(gold, Node::Relation(..) | Node::Words(_)) => {
                return every_value(gold_text, &values);
            }
            _ => return Verdict::UnparseableAnswer,
        },
    };
    let (gold, answer) = match (&gold, &answer) {
        (Node::Words(_), Node::Words(_)) => (gold, answer),
        (Node::Words(_), _) => (parse::product(gold_text).unwrap_or(gold), answer),
        (_, Node::Words(_)) => (gold, parse::product(answer_text).unwrap_or(answer)),
        _ => (gold, answer),
    };
    match equal::same(&gold, &answer) {
        Ok(true) => Verdict::Right,
        Ok(false) => Verdict::Wrong,
        Err(Fault::Undefined) if equal::same(&gold, &gold) == Err(Fault::Undefined) => Verdict::UnparseableGold,
        Err(Fault::Undefined) => Verdict::UnparseableAnswer,
        Err(_) => Verdict::Undecided,
    }
}

/// The verdict on an answer that gives its value in these ways, `\text{Area} = 3 + 4 = 7`: all have to be right.
fn every_value(gold: &str, values: &[&str]) -> Verdict {
    let verdicts = values.iter().map(|value| compare(gold, value));
    verdicts.into_iter().find(|verdict| !verdict.is_right()).unwrap_or(Verdict::Right)
}

/// Whether there is something to compare.
fn usable(answer: &str) -> bool {
    answer.len() <= MAX_ANSWER
        && (answer.contains(|c: char| c.is_alphanumeric() || "∞∅ℝ".contains(c)) || answer.contains("\\{"))
}

/// Whether two answers have the same tokens.
fn alike(gold: &str, answer: &str) -> bool {
    if gold == answer {
        return true;
    }
    match (token::tokenize(gold), token::tokenize(answer)) {
        (Ok(a), Ok(b)) => a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.0 == b.0),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
