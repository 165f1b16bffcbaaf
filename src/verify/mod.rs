//! Verifier of mathematical answers: grades a completion against the correct answer.
//!
//! [`grade`] extracts the answer from a completion and compares it with the correct answer, the *gold*. It returns two
//! grades. The strict grade requires a finished completion that states its answer after the thinking. The lenient grade
//! takes the last formula. The difference between them shows how much of a gain is only format.
//!
//! Three stages: extraction of a text (`extract`, `announced`, `last`), parsing into a tree (`token`, `parse`, `label`,
//! `choice`, `brackets`, `clock`, `formula`, `number`, `quantity`, `name`, `words`, `unit`) and comparison (`equal`,
//! `lists`, `rounded`, `relation`, `sets`, `matrix`, `normal` and the modules below it).
//!
//! # Extraction
//!
//! | form | the rule |
//! |---|---|
//! | `\boxed{}` | the last box; adjacent boxes joined by commas or "and" are a list; a box without a letter or digit is ignored |
//! | `Answer: 34`, `**Final Answer** …`, 答案：34 | the rest of the line, or the next line; overrides an earlier box if it can be parsed, else used if there is no box |
//! | "the answer is 34", "the correct option is B", 故选：B | up to the end of the sentence; used if there is no box |
//! | `<answer>34</answer>`, `#### 34` | used if there is no box |
//! | none of these | lenient only: the last `$…$`, `\(…\)`, `\[…\]` or bare formula; for a derivation also its right-hand side |
//!
//! # Equality
//!
//! Two formulae are equal if their difference is zero. The difference is brought to a normal form with exact
//! coefficients, in which equal terms cancel; roots are decided by a bound on algebraic numbers. Floating-point values
//! only prove that a difference is *not* zero. A budget of steps bounds every comparison. If it runs out, the verdict
//! is [`Verdict::Undecided`].
//!
//! | kind | the rule |
//! |---|---|
//! | decimals | a gold with two or more decimal places also accepts values that round to it: 0.33 accepts 1/3 and 0.333, but 1/3 does not accept 0.33; so does 33.33% |
//! | `1/3 ≈ 0.33` | the exact value, or the decimal if it is the exact value rounded; an answer whose decimal is neither rounded nor cut off is wrong |
//! | percentages, degrees | 5% equals 0.05, and 5 if the other side has no sign; 45° equals π/4 and 45; 12°30' is 12.5° |
//! | units, currency | converted if both sides have one (50 cm is 0.5 m; 5 mW is not 5 MW), else ignored; letters outside `\text{}` are symbols; "or more", "squared", "and a half" are not units; 5 feet 6 inches needs a unit on both sides |
//! | million, dozen, tenths | scale the number: 5 million is not 5; 3 halves may be 3 or 3/2 |
//! | times | `3:45` is a time, never a fraction; compared with a ratio such as 2:3, or written `3 : 45`, it is a ratio; without AM or PM it may be either half of the day |
//! | several answers | order and repetition do not matter; they do in tuples, matrices and labelled parts, `(a) 3, (b) 4`; a gold `x = 5, y = 6` accepts values without names in its order |
//! | `(a, b)` | a pair or an open interval, depending on the other side; `[a, b]` is closed |
//! | matrices | sums, products, `^T`, `[[a, b], [c, d]]`, `[a, b; c, d]` and `[1 2; 3 4]` are evaluated; bars denote a determinant, which is a number |
//! | `x = 1, y = 2; x = 3, y = 4` | the pairs (1, 2) and (3, 4) |
//! | `x = 5`, `f(x) = 2x` | equal their right-hand side; so does any expression = 5 in an answer, also \text{Area} = 5, unless numbers in the chain contradict each other (lenient: the last side); two equations are compared up to a factor |
//! | `x ≡ 3 (mod 7)` | the same symbol, modulus and residue class; 3 alone is accepted, 10 is not |
//! | inequalities | compared as sets: `x > 2` equals `(2, ∞)`; several are an intersection, or a union if joined by "or" or if the intersection is empty |
//! | `log` | without a base either natural or decimal |
//! | `1011_2`, `2A_{16}` | the value; a gold that states its base also accepts the digits alone |
//! | quotients | equal as quotients: x²/x equals x |
//! | `1,234` | a thousands separator, but two members inside brackets; `3,14` is 3.14 if the other side has a decimal point |
//! | `1, 2, …, n` | the same members; 0.1666… repeats its last digit |
//! | choices | `C`, `(C)`, `C: its text` are compared by letter, or by text if the other side has no letter; `ABD` equals A, B, D; `(A) or (B)` is two choices |
//! | comments | `(checked)`, "where c is real", "for all n", "since …" are ignored; "if …" and second cases are not |
//! | words | compared without case, punctuation and plurals; numbers in words and dates, `2024-01-05`, by value; "all real numbers" and "no solution" are sets; `abc` is a product if the other side is a formula |
//!
//! The module does not depend on the rest of the crate, so that it can be fuzzed alone.

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

/// Maximum length of an answer, in bytes.
const MAX_ANSWER: usize = 4096;

/// Outcome of comparing a completion with the gold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The answer equals the gold.
    Right,
    /// The answer differs from the gold.
    Wrong,
    /// No answer was found.
    NoAnswer,
    /// The answer is empty, too long or not parseable.
    UnparseableAnswer,
    /// Equality could not be decided within the budget of steps.
    Undecided,
    /// The gold is empty, too long or has no value: the row cannot be scored.
    UnparseableGold,
}

impl Verdict {
    /// The metric name of the verdict.
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

/// Grades of one completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graded {
    /// Grade of the answer stated after the thinking of a finished completion.
    pub strict: Verdict,
    /// Grade of a stated answer or else of the last formula, anywhere, finished or not.
    pub lenient: Verdict,
    /// The extracted answer that the lenient verdict refers to, and the strict verdict if an answer was stated.
    pub extracted: Option<String>,
}

/// Grade a completion against the gold, which may still be inside a `#### n` or `\boxed{n}`.
///
/// If the prompt opened the thinking, `completion` must begin with `<think>`; otherwise thinking that never ends would
/// count as an answer. `finished` is true if the model ended its turn itself; a completion cut off at the length limit
/// has no strict answer.
pub fn grade(problem_answer: &str, completion: &str, finished: bool) -> Graded {
    let gold = gold_answer(problem_answer);
    let after = after_thinking(completion);
    let stated_after = after.and_then(stated);
    let strict = stated_after.as_deref().filter(|_| finished).map_or_else(|| missing(&gold), |it| compare(&gold, it));
    // Announced words are no answer if the gold is a formula.
    let counts = |answer: &Cow<str>| reads(answer) || !reads(&gold) || extract::boxed(completion).is_some();
    if let Some(answer) = stated_after.or_else(|| stated(completion)).filter(counts) {
        return Graded { strict, lenient: lenient(&gold, &answer), extracted: Some(answer.into_owned()) };
    }
    let Some(formula) = after.and_then(last::last_formula).or_else(|| last::last_formula(completion)) else {
        return Graded { strict, lenient: missing(&gold), extracted: None };
    };
    let whole = lenient(&gold, &formula);
    let side = last::last_side(&formula).filter(|_| !whole.is_right());
    let lenient = if side.is_some_and(|side| compare(&gold, side).is_right()) { Verdict::Right } else { whole };
    Graded { strict, lenient, extracted: Some(formula.into_owned()) }
}

/// Return the verdict for a completion without an answer.
fn missing(gold: &str) -> Verdict {
    if usable(gold) { Verdict::NoAnswer } else { Verdict::UnparseableGold }
}

/// Compare an extracted answer with an extracted gold.
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

/// Compare in the lenient reading: the value of a chain of equations, `x = 4 = 5`, is its last side, even if the sides
/// contradict each other.
fn lenient(gold: &str, answer: &str) -> Verdict {
    let verdict = compare(gold, answer);
    let last_sides = || -> Option<bool> {
        let (gold, answer) = (parse::parse(gold).ok()?, parse::parse(answer).ok()?);
        let (a, b) = (relation::last_side(&gold), relation::last_side(&answer));
        a.or(b)?;
        equal::same(a.unwrap_or(&gold), b.unwrap_or(&answer)).ok()
    };
    if !verdict.is_right() && last_sides() == Some(true) { Verdict::Right } else { verdict }
}

/// Compare answers with different tokens.
fn compare_unlike(gold_text: &str, answer_text: &str) -> Verdict {
    let gold = match parse::parse(gold_text) {
        Ok(node) => node,
        // A gold that cannot be parsed accepts only the same tokens.
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

/// Compare each value of a chain such as `\text{Area} = 3 + 4 = 7`; all must be right.
fn every_value(gold: &str, values: &[&str]) -> Verdict {
    let verdicts = values.iter().map(|value| compare(gold, value));
    verdicts.into_iter().find(|verdict| !verdict.is_right()).unwrap_or(Verdict::Right)
}

/// Whether the text has something to compare and is not too long.
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
