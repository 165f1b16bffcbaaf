//! Whether a completion gives the right answer.
//!
//! [`grade`] finds the answer in a completion and compares it with the right one, the *gold*. Two readings are graded
//! side by side. The strict one wants a finished completion that states its answer after its thinking; the lenient one
//! takes whatever formula comes last. Their difference is how much of a gain is mere format.
//!
//! Extraction (`extract`, `announced`, `last`) finds a text, reading (`token`, `parse`, `brackets`, `clock`, `formula`, `quantity`, `name`, `words`, `unit`)
//! makes a tree of it, and comparison (`equal`, `lists`, `rounded`, `relation`, `sets`, `matrix`, `normal` and below) decides.
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
//! | units, currency | converted where both have one (50 cm is 0.5 m), else left out; letters outside `\text{}` are symbols; 5 feet 6 inches needs a unit on both sides |
//! | million, dozen, tenths | multiply: 5 million is not 5 |
//! | times | `3:45` is a time, never a fraction; beside a ratio such as 2:3, or as `3 : 45`, a ratio; without AM or PM either half of the day |
//! | several answers | order and repetition do not matter; in tuples and matrices they do |
//! | `(a, b)` | a pair or an open interval, as the other side needs; `[a, b]` is closed |
//! | matrices | sums, products, `^T` and `[[a, b], [c, d]]` are read; bars make a determinant, which is a number |
//! | `x = 5`, `f(x) = 2x` | equal their right-hand side, as does m + n = 5 in an answer; two equations compare as multiples of each other |
//! | `x ≡ 3 (mod 7)` | the same symbol, modulus and class; 3 alone answers it, 10 does not |
//! | inequalities | compare as sets: `x > 2` equals `(2, ∞)` |
//! | `log` | without a base it is either the natural or the decimal one |
//! | quotients | compare as such: x²/x equals x |
//! | `1,234` | a thousands separator, but two members inside brackets; `3,14` is 3.14 beside a number with a point |
//! | `1, 2, …, n` | the same members; 0.1666… goes on with its last digit |
//! | choices | `C`, `(C)`, `C: its text`, by the letter, or by the text against another text |
//! | comments | `(checked)`, "where c is real", "for all n", "since …" are left out; "if …" and second cases are not |
//! | words | compare without case, punctuation and plurals; numbers and dates in words by their value |
//!
//! The module uses nothing else of the crate, so that it can be fuzzed by itself.

mod algebraic;
mod announced;
mod brackets;
mod check;
mod clock;
mod equal;
mod extract;
mod formula;
mod function;
mod last;
mod lists;
mod matrix;
mod name;
mod normal;
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
use tree::Fault;

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
fn compare_unlike(gold: &str, answer: &str) -> Verdict {
    let gold = match parse::parse(gold) {
        Ok(node) => node,
        // A gold beyond this reader takes only what is written like it.
        Err(_) => return Verdict::Undecided,
    };
    let answer = match parse::parse(answer) {
        Ok(answer) => answer,
        Err(Fault::Limit) => return Verdict::Undecided,
        Err(_) => return Verdict::UnparseableAnswer,
    };
    match equal::same(&gold, &answer) {
        Ok(true) => Verdict::Right,
        Ok(false) => Verdict::Wrong,
        Err(Fault::Undefined) if equal::same(&gold, &gold) == Err(Fault::Undefined) => Verdict::UnparseableGold,
        Err(Fault::Undefined) => Verdict::UnparseableAnswer,
        Err(_) => Verdict::Undecided,
    }
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
mod tests {
    use super::*;

    #[test]
    fn strict_and_lenient_readings_differ_where_format_does() {
        use Verdict::{NoAnswer, Right, UnparseableAnswer, UnparseableGold, Wrong};
        let table = [
            ("5", "<think>2+3</think>\\boxed{5}", true, Right, Right),
            ("5", "2+3</think>\\boxed{5}", true, Right, Right),
            ("5", "<think>2+3</think>It is 5.", true, NoAnswer, Right),
            ("5", "<think>2+3 = \\boxed{5}", true, NoAnswer, Right),
            ("5", "<think>2+3 = \\boxed{5}</think> done", true, NoAnswer, Right),
            ("5", "<think>2+3</think>\\boxed{5}", false, NoAnswer, Right),
            // UniRL#360: an intermediate value of a cut trace must not count.
            ("5", "<think>first 5", false, NoAnswer, Right),
            ("5", "<think>\\boxed{5}</think>\\boxed{6}", true, Wrong, Wrong),
            ("5", "<think>a</think><think>b \\boxed{5}", true, NoAnswer, Right),
            // A prompt that opened the thinking, before a completion that never closes it or a model that does not think.
            ("5", "<think>\n2+3=5, so \\boxed{5}", true, NoAnswer, Right),
            ("5", "<think>\n\n</think>\n\n2+3=5, so \\boxed{5}", true, Right, Right),
            ("5", "2+3=5, so \\boxed{5}", true, Right, Right),
            ("5", "</think>\\boxed{}", true, UnparseableAnswer, UnparseableAnswer),
            ("5", "\\boxed{1/0}", true, UnparseableAnswer, UnparseableAnswer),
            ("5", "no idea", true, NoAnswer, NoAnswer),
            ("", "\\boxed{5}", true, UnparseableGold, UnparseableGold),
            ("$$", "no idea", true, UnparseableGold, UnparseableGold),
            ("1/0", "\\boxed{5}", true, UnparseableGold, UnparseableGold),
            ("so 2+3\n#### 5", "#### 5", true, Right, Right),
            ("thus \\boxed{\\frac12}", "\\boxed{0.5}", true, Right, Right),
            // The lenient reading takes the last formula whole, or the right side of a derivation.
            ("12", "</think>so $\\frac{7}{12}$ of them", true, NoAnswer, Wrong),
            ("\\frac{7}{12}", "</think>so $\\frac{7}{12}$ of them", true, NoAnswer, Right),
            ("\\frac{7}{12}", "</think>so $\\sin t = \\frac{14}{24} = \\frac{7}{12}$.", true, NoAnswer, Right),
            ("x > 4", "</think>Hence x > 4 for all of them.", true, NoAnswer, Right),
            ("x > 4", "</think>Hence x < 4 for all of them.", true, NoAnswer, Wrong),
            ("(2,3]", "</think>it is the interval (2, 3].", true, NoAnswer, Right),
            ("-4", "</think>it is minus 4 outside", true, NoAnswer, Right),
            ("4", "</think>it is minus 4 outside", true, NoAnswer, Wrong),
            ("7", "Answer: let us see how far we get.\nFirst 3, then 4 more: 7", true, NoAnswer, Right),
            ("4", "Answer: Ann waits 4 hours there", true, UnparseableAnswer, Right),
            ("5", "Answer: Let me see. It is 2 + 3 = 5", true, Wrong, Right),
            ("0.5", "The answer is .5.", true, Right, Right),
            ("all of them are odd", "Answer: All of them are odd.", true, Right, Right),
            // A sum of symbols that the question asks for.
            ("9", "\\boxed{m+n = 9}", true, Right, Right),
            ("m+n = 9", "\\boxed{9}", true, Wrong, Wrong),
            ("5", "\\boxed{m+n = 5+4 = 9}", true, Wrong, Wrong),
        ];
        for (gold, completion, finished, strict, lenient) in table {
            let graded = grade(gold, completion, finished);
            assert_eq!((graded.strict, graded.lenient), (strict, lenient), "{completion:?}: {graded:?}");
        }
        assert_eq!(grade("5", "x \\boxed{6}", true).extracted.as_deref(), Some("6"));
        let long = format!("\\boxed{{{}}}", "1".repeat(MAX_ANSWER + 1));
        assert_eq!(grade("5", &long, true).strict, UnparseableAnswer);
    }

    #[test]
    fn long_lists_compare_in_any_order() {
        let list = |range: std::ops::Range<i32>, show: &dyn Fn(i32) -> String| range.map(show).collect::<Vec<_>>();
        let plain = |n: i32| n.to_string();
        let half = |n: i32| format!("\\frac{{{n}}}{{2}}");
        for (gold, mut answer) in [
            (list(1..400, &plain), list(1..400, &|n| format!("{n}.0"))),
            (list(1..150, &half), list(1..150, &|n| format!("{n}/2"))),
            (list(1..150, &|n| format!("({n},{})", n * n)), list(1..150, &|n| format!("({n}, {})", n * n))),
        ] {
            answer.reverse();
            assert_eq!(compare(&gold.join(", "), &answer.join(", ")), Verdict::Right, "{}", gold[1]);
            answer[7] = "7000".to_string();
            assert_eq!(compare(&gold.join(", "), &answer.join(", ")), Verdict::Wrong, "{}", gold[1]);
        }
    }

    #[test]
    fn what_is_too_large_or_too_deep_is_undecided() {
        let nested = |open: &str, close: &str| format!("{}2{}", open.repeat(400), close.repeat(400));
        // Each level holds the one before twice: written out, 2^40 roots.
        let doubled = (0..40).fold("2".to_string(), |inner, _| format!("\\sqrt{{{inner}+\\pi}}"));
        let texts = [
            "2^{2^{100}}".to_string(),
            "10^{10^{10}}".into(),
            "1e999999999".into(),
            "100000!".into(),
            "((9!)!)!".into(),
            "(a+b+c+d+e+f)^{60}".into(),
            "\\binom{10^9}{10^8}".into(),
            nested("(", ")"),
            nested("\\sqrt{", "}"),
            nested("\\frac{1}{", "}"),
            nested("-(", ")"),
            nested("x^{", "}"),
            doubled,
        ];
        for text in &texts {
            let verdict = compare("\\sqrt{3}", text);
            assert!(matches!(verdict, Verdict::Undecided | Verdict::Wrong), "{text:.40}: {verdict:?}");
            assert_eq!(compare(text, text), Verdict::Right, "{text:.40}");
        }
        assert_eq!(compare("7", "2^{2^{100}}"), Verdict::Undecided);
        assert_eq!(compare("7", &texts[7]), Verdict::Undecided);
    }

    #[test]
    fn hostile_texts_come_to_an_end() {
        let texts = [
            "\\boxed{".repeat(200_000),
            "}".repeat(1_000_000),
            "\\".repeat(1_000_001),
            "1,".repeat(500_000),
            "<answer>".repeat(200_000),
            "final answer is".repeat(100_000),
            "#### ".repeat(200_000),
            "9".repeat(1_000_000),
            "é−日\\é".repeat(100_000),
            "\\text{".repeat(500),
            "1/".repeat(2000),
            "\\$".repeat(2000),
            "-".repeat(4000),
            "5!".repeat(2000),
            "|".repeat(4000),
            "\\begin{pmatrix}".repeat(200),
            "1^".repeat(2000),
            "\\sin ".repeat(800),
            "\\frac".into(),
            "_".into(),
            "answer:".repeat(100_000),
            "the answer is ".repeat(100_000),
            "the answer is\n".repeat(100_000),
            "答案是".repeat(100_000),
            "$".repeat(1_000_000),
            "$x$ and ".repeat(100_000),
            "$ a b $".repeat(100_000),
            "\\(".repeat(300_000),
            "\\[ 1 \\]".repeat(100_000),
            "\\boxed{1} and ".repeat(100_000),
            format!("{}{}", "\\boxed{".repeat(50_000), "}".repeat(50_000)),
            "1 for all x, ".repeat(300),
            "(checked)".repeat(400),
            "[".repeat(4000),
            "3:45:".repeat(700),
            "x mod ".repeat(600),
            "5 feet ".repeat(500),
            "\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}".repeat(90),
            "twenty ".repeat(500),
        ];
        for text in &texts {
            grade(text, text, true);
            grade("5", text, false);
            explain("x", text);
        }
    }

    /// Found by fuzzing.
    #[test]
    fn signs_in_sets_and_choices_do_not_expand_for_ever() {
        // `±` inside these was not replaced, and the pair was compared again and again.
        for text in ["[\\pm 1, 2)", "B. \\pm 2", "\\{\\pm 1\\} \\cup (2, 3)", "\\pm 1 : 2"] {
            assert_eq!(compare(text, &format!("{text} ")), Verdict::Right);
            assert_ne!(compare(text, "17"), Verdict::Right);
        }
        // The first letter went back to the reader, which then looked at the token before it.
        assert_eq!(compare("yn0", "y*n*0"), Verdict::Right);
    }
}
