//! Finding the answer in a text and comparing it with the right one.
//!
//! Two readings are graded side by side. The strict one wants a finished completion that states its answer after its
//! thinking; the lenient one takes whatever number comes last. Their difference is how much of a gain is mere format.
//!
//! Numbers are compared exactly, as fractions of 128-bit integers; what does not fit is compared as normalised text.
//! All work is linear in the length of the text, and no input panics.

use serde::Serialize;

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
    /// What stands in the answer's place is empty or absurdly long.
    UnparseableAnswer,
    /// The right answer itself is empty or absurdly long: the row cannot be scored.
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
    /// A stated answer or the last number, anywhere, finished or not.
    pub lenient: Verdict,
    /// The answer as found: the strict reading's, or else the lenient one's.
    pub extracted: Option<String>,
}

/// Grades a completion against the right answer, which may still be inside a `#### n` or `\boxed{n}`.
///
/// `finished` says that the model ended its turn itself; one cut off at the length limit has no strict answer.
pub fn grade(problem_answer: &str, completion: &str, finished: bool) -> Graded {
    let gold = gold_answer(problem_answer);
    let strict = if finished { after_thinking(completion).and_then(stated) } else { None };
    let lenient = (strict)
        .or_else(|| after_thinking(completion).and_then(stated))
        .or_else(|| stated(completion))
        .or_else(|| last_number(completion));
    let verdict = |answer: Option<&str>| answer.map_or_else(|| unanswered(gold), |answer| compare(gold, answer));
    Graded { strict: verdict(strict), lenient: verdict(lenient), extracted: lenient.map(str::to_string) }
}

/// The answer within a solution: after the last `####`, or in the last `\boxed{}`, or else the whole text.
pub fn gold_answer(text: &str) -> &str {
    match text.rfind("####") {
        Some(at) => text[at + 4..].trim(),
        None => boxed(text).unwrap_or(text).trim(),
    }
}

/// Whether two answers are the same: equal as numbers, or as text once typography is taken away.
///
/// A percentage equals only a percentage, since `5%` may stand for 5 or for 1/20.
pub fn equal(left: &str, right: &str) -> bool {
    Value::of(left) == Value::of(right)
}

fn unanswered(gold: &str) -> Verdict {
    if usable(gold) { Verdict::NoAnswer } else { Verdict::UnparseableGold }
}

fn compare(gold: &str, answer: &str) -> Verdict {
    match (usable(gold), usable(answer)) {
        (false, _) => Verdict::UnparseableGold,
        (_, false) => Verdict::UnparseableAnswer,
        _ if equal(gold, answer) => Verdict::Right,
        _ => Verdict::Wrong,
    }
}

fn usable(answer: &str) -> bool {
    answer.len() <= MAX_ANSWER && !normalise(answer).is_empty()
}

/// The text after the last `</think>`; none while a `<think>` is still open.
pub fn after_thinking(completion: &str) -> Option<&str> {
    let rest = completion.rfind("</think>").map_or(completion, |at| &completion[at + "</think>".len()..]);
    if rest.contains("<think>") { None } else { Some(rest) }
}

/// A stated answer: the last `\boxed{}`, else the last `<answer>`, else a line `#### n`, else "the final answer is".
pub fn stated(text: &str) -> Option<&str> {
    boxed(text).or_else(|| tagged(text)).or_else(|| hashed(text)).or_else(|| spoken(text))
}

/// The content of the `\boxed{}`, `\fbox{}` or `\framebox{}` that begins last and is closed.
pub fn boxed(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut last: Option<(usize, usize)> = None;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                let command =
                    ["\\boxed", "\\fbox", "\\framebox"].iter().find(|c| bytes[at..].starts_with(c.as_bytes()));
                let Some(command) = command else {
                    // An escaped brace or backslash is a character, not structure.
                    at += if matches!(bytes.get(at + 1), Some(b'{' | b'}' | b'\\')) { 2 } else { 1 };
                    continue;
                };
                at += command.len();
                let blank = bytes[at..].iter().take_while(|b| **b == b' ').count();
                if bytes.get(at + blank) == Some(&b'{') {
                    at += blank + 1;
                    open.push(Some(at));
                } else if blank > 0 {
                    // `\boxed 5` boxes one word.
                    let start = at + blank;
                    let word = bytes[start..].iter().take_while(|b| !b.is_ascii_whitespace() && **b != b'$').count();
                    if word > 0 {
                        last = Some((start, start + word));
                    }
                }
            }
            b'{' => {
                open.push(None);
                at += 1;
            }
            b'}' => {
                if let Some(Some(start)) = open.pop()
                    && last.is_none_or(|(other, _)| other < start)
                {
                    last = Some((start, at));
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    last.map(|(start, end)| text[start..end].trim())
}

fn tagged(text: &str) -> Option<&str> {
    let rest = &text[text.rfind("<answer>")? + "<answer>".len()..];
    Some(rest[..rest.find("</answer>")?].trim())
}

/// The last line of the form `#### n`; a Markdown heading of that level is not an answer.
fn hashed(text: &str) -> Option<&str> {
    let number = |line: &str| line.starts_with(|c: char| c.is_ascii_digit() || "-+$.\\−".contains(c));
    text.lines().rev().filter_map(|line| line.trim().strip_prefix("####")).map(str::trim).find(|rest| number(rest))
}

fn spoken(text: &str) -> Option<&str> {
    const PHRASE: &str = "final answer is";
    let at = text.to_ascii_lowercase().rfind(PHRASE)? + PHRASE.len();
    let rest = text[at..].trim_start_matches(|c: char| c == ':' || c == '*' || c.is_whitespace());
    let line = rest.lines().next()?;
    let sentence = match line.strip_prefix('$') {
        Some(math) if math.contains('$') => &math[..math.find('$')?],
        _ => &line[..line.find(". ").unwrap_or(line.len())],
    };
    let answer = sentence.trim_matches(|c: char| c == '*' || c == '.' || c.is_whitespace());
    if answer.is_empty() { None } else { Some(answer) }
}

/// The last number of a text: digits with thousands commas, a decimal point or a fraction bar, and a sign.
pub fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let mut start = end - 1;
    let mut point = false;
    while start > 0 {
        let joins = match bytes[start - 1] {
            b'0'..=b'9' => true,
            // A comma groups thousands only before three digits, so that `1,2` ends in 2.
            b',' => start > 1 && digit(start - 2) && (start..start + 3).all(digit) && !digit(start + 3),
            b'.' if !point => {
                point = true;
                digit(start)
            }
            b'/' => start > 1 && digit(start - 2) && digit(start),
            _ => false,
        };
        if !joins {
            break;
        }
        start -= 1;
    }
    let before = text[..start].chars().next_back();
    if let Some(sign @ ('-' | '−')) = before {
        let signed = start - sign.len_utf8();
        let binary = text[..signed].chars().next_back().is_some_and(|c| c.is_alphanumeric() || ")]}".contains(c));
        if !binary {
            start = signed;
        }
    }
    Some(&text[start..end])
}

/// An answer in the form in which it is compared.
#[derive(Debug, PartialEq, Eq)]
enum Value {
    /// A fraction in lowest terms with a positive denominator, and whether it is a percentage.
    Number { numerator: i128, denominator: i128, percent: bool },
    /// Anything else.
    Text(String),
}

impl Value {
    fn of(answer: &str) -> Self {
        let text = normalise(answer);
        let (number, percent) = match text.strip_suffix('%') {
            Some(number) => (number, true),
            None => (text.as_str(), false),
        };
        match fraction(number) {
            Some((numerator, denominator)) => Self::Number { numerator, denominator, percent },
            None => match decimal_text(number) {
                Some(digits) if percent => Self::Text(digits + "%"),
                Some(digits) => Self::Text(digits),
                None => Self::Text(text),
            },
        }
    }
}

/// An answer without its typography: dollar signs, spacing, text commands, a trailing full stop.
pub fn normalise(answer: &str) -> String {
    const REMOVED: [&str; 20] = [
        "\\left",
        "\\right",
        "\\text",
        "\\textbf",
        "\\textrm",
        "\\textit",
        "\\mathrm",
        "\\mathbf",
        "\\mbox",
        "\\displaystyle",
        "\\,",
        "\\!",
        "\\;",
        "\\:",
        "\\ ",
        "\\$",
        "\\(",
        "\\)",
        "\\[",
        "\\]",
    ];
    // The braces after these go with them.
    const WRAPPERS: [&str; 7] = ["\\text", "\\textbf", "\\textrm", "\\textit", "\\mathrm", "\\mathbf", "\\mbox"];

    let answer = answer.trim().trim_matches('*');
    let mut out = String::with_capacity(answer.len());
    let mut wrapped: Vec<bool> = Vec::new();
    let mut rest = answer;
    while let Some(c) = rest.chars().next() {
        if c == '\\' {
            let letters = rest[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let length = if letters > 0 { 1 + letters } else { 1 + rest[1..].chars().next().map_or(0, char::len_utf8) };
            let (command, after) = rest.split_at(length);
            rest = after;
            match command {
                "\\dfrac" | "\\tfrac" | "\\cfrac" => out.push_str("\\frac"),
                "\\%" => out.push('%'),
                _ if REMOVED.contains(&command) => {
                    if let (true, Some(inside)) = (WRAPPERS.contains(&command), rest.trim_start().strip_prefix('{')) {
                        wrapped.push(true);
                        rest = inside;
                    }
                }
                _ => out.push_str(command),
            }
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            '$' => {}
            c if c.is_whitespace() => {}
            '−' => out.push('-'),
            '{' => {
                wrapped.push(false);
                out.push(c);
            }
            '}' if wrapped.pop() == Some(true) => {}
            c => out.push(c),
        }
    }
    out.truncate(out.trim_end_matches('.').len());
    out
}

/// Reads `a`, `a/b`, `\frac{a}{b}` or `\frac12` where `a` and `b` are whole numbers or decimals.
fn fraction(text: &str) -> Option<(i128, i128)> {
    let (negative, unsigned) = sign(text);
    let parts = match unsigned.strip_prefix("\\frac") {
        Some(arguments) => {
            let (top, rest) = argument(arguments)?;
            let (bottom, rest) = argument(rest)?;
            rest.is_empty().then_some((top, bottom))?
        }
        None => unsigned.split_once('/').unwrap_or((unsigned, "1")),
    };
    let (top, top_scale) = decimal(parts.0)?;
    let (bottom, bottom_scale) = decimal(parts.1)?;
    let mut numerator = top.checked_mul(bottom_scale)?;
    let mut denominator = bottom.checked_mul(top_scale)?;
    if denominator == 0 {
        return None;
    }
    if (denominator < 0) != negative {
        numerator = numerator.checked_neg()?;
    }
    denominator = denominator.checked_abs()?;
    let divisor = gcd(numerator.unsigned_abs(), denominator.unsigned_abs());
    let divisor = i128::try_from(divisor).ok()?;
    Some((numerator / divisor, denominator / divisor))
}

/// The next argument of a command: what the braces hold, or one digit.
fn argument(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('{') {
        Some(inside) => inside.split_once('}'),
        None => text.starts_with(|c: char| c.is_ascii_digit()).then(|| text.split_at(1)),
    }
}

/// A decimal as (digits, power of ten to divide by).
fn decimal(text: &str) -> Option<(i128, i128)> {
    let digits = decimal_text(text)?;
    let (negative, unsigned) = sign(&digits);
    let (whole, part) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let scale = 10i128.checked_pow(u32::try_from(part.len()).ok()?)?;
    let value: i128 = format!("{whole}{part}").parse().ok()?;
    Some((if negative { -value } else { value }, scale))
}

/// A decimal of any length in one spelling: no plus, commas or needless zeros; none when it is not a decimal.
fn decimal_text(text: &str) -> Option<String> {
    let (negative, unsigned) = sign(text);
    let (whole, part) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let all_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    // LaTeX writes 1{,}000 so that the comma takes no space.
    let whole = whole.replace("{,}", ",");
    let mut groups = whole.split(',');
    let first = groups.next().unwrap_or_default();
    let rest: Vec<&str> = groups.collect();
    let grouped = rest.is_empty() || ((1..=3).contains(&first.len()) && rest.iter().all(|group| group.len() == 3));
    if !grouped || !all_digits(first) || !rest.iter().all(|group| all_digits(group)) || !all_digits(part) {
        return None;
    }
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let whole = first.to_string() + &rest.concat();
    let whole = whole.trim_start_matches('0');
    let part = part.trim_end_matches('0');
    let minus = if negative && !(whole.is_empty() && part.is_empty()) { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(if part.is_empty() { format!("{minus}{whole}") } else { format!("{minus}{whole}.{part}") })
}

fn sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(unsigned) => (true, unsigned),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_answers() {
        let pairs = [
            ("18", "18"),
            ("18", " $18$. "),
            ("18", "18.0"),
            ("18", "+018"),
            ("1234567", "1,234,567"),
            ("1000", "1{,}000"),
            ("1000", "1\\,000"),
            ("5", "\\$5.00"),
            ("0.5", ".5"),
            ("0.5", "1/2"),
            ("1/2", "\\frac{1}{2}"),
            ("1/2", "\\dfrac{2}{4}"),
            ("1/2", "\\frac12"),
            ("-1/2", "-\\frac{1}{2}"),
            ("-1/2", "\\frac{-1}{2}"),
            ("-1/2", "1/-2"),
            ("-3", "−3"),
            ("0", "-0.0"),
            ("1.5", "3 / 2"),
            ("5%", "5\\%"),
            ("50%", "50.0 %"),
            ("123456789012345678901234567890123456789012345", "+0123456789012345678901234567890123456789012345.0"),
            ("340282366920938463463374607431768211456", "340,282,366,920,938,463,463,374,607,431,768,211,456"),
            ("Monday", "\\text{Monday}."),
            ("Evelyn Reed", "\\text{Evelyn  Reed}"),
            ("(1,2)", "\\left( 1, 2 \\right)"),
            ("\\sqrt{2}", "$\\sqrt{2}$"),
            ("\\frac{\\pi}{2}", "\\dfrac{\\pi}{2}"),
            ("42", "**42**"),
            ("42", "\\(42\\)"),
        ];
        for (left, right) in pairs {
            assert!(
                equal(left, right) && equal(right, left),
                "{left:?} {:?}, {right:?} {:?}",
                Value::of(left),
                Value::of(right)
            );
        }
    }

    #[test]
    fn unequal_answers() {
        let pairs = [
            ("18", "19"),
            ("18", "-18"),
            ("18", "1 8.5"),
            ("1/3", "0.3333333333333333"),
            ("5%", "5"),
            ("5%", "0.05"),
            ("12", "1,2"),
            ("1,2", "2,1"),
            ("1/0", "0"),
            ("123456789012345678901234567890123456789012345", "123456789012345678901234567890123456789012346"),
            ("x", "X"),
            ("\\frac{1}{2}", "\\frac{2}{1}"),
            ("2^{10}", "2^10^{}"),
            ("", "0"),
        ];
        for (left, right) in pairs {
            assert!(!equal(left, right) && !equal(right, left), "{left:?} {right:?}");
        }
    }

    #[test]
    fn stated_answers_are_found() {
        let table = [
            ("so \\boxed{5}", Some("5")),
            ("\\boxed{4} no, \\boxed{ 5 }.", Some("5")),
            ("\\boxed{\\frac{1}{2}}", Some("\\frac{1}{2}")),
            ("\\boxed{\\sqrt{\\frac{a}{b}} + \\{1\\}} done", Some("\\sqrt{\\frac{a}{b}} + \\{1\\}")),
            ("\\boxed{\\boxed{7}}", Some("7")),
            ("\\fbox{3}", Some("3")),
            ("\\framebox{204}", Some("204")),
            ("$\\boxed 12$", Some("12")),
            ("{ \\boxed{9}", Some("9")),
            ("\\boxed{4} then \\boxed{5", Some("4")),
            ("x \\\\\\boxed{6}", Some("6")),
            ("<answer> 12 </answer>", Some("12")),
            ("<answer>\\boxed{12}</answer>", Some("12")),
            ("<answer>12", None),
            ("so\n#### 72", Some("72")),
            ("#### Summary\nnothing", None),
            ("The final answer is **12**.", Some("12")),
            ("the final answer is: $\\frac{1}{2}$. I hope", Some("\\frac{1}{2}")),
            ("The Final Answer is 3.5. Good", Some("3.5")),
            ("12", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(stated(text), want, "{text:?}");
        }
    }

    #[test]
    fn last_numbers_are_found() {
        let table = [
            ("a 1 b 23 c", Some("23")),
            ("costs $1,234.50!", Some("1,234.50")),
            ("x = -3.", Some("-3")),
            ("16-3", Some("3")),
            ("pairs 1,2", Some("2")),
            ("half is 1/2", Some("1/2")),
            ("x=−7", Some("−7")),
            ("v1.2.3", Some("2.3")),
            ("none", None),
        ];
        for (text, want) in table {
            assert_eq!(last_number(text), want, "{text:?}");
        }
    }

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
            ("5", "</think>\\boxed{}", true, UnparseableAnswer, UnparseableAnswer),
            ("5", "no idea", true, NoAnswer, NoAnswer),
            ("", "\\boxed{5}", true, UnparseableGold, UnparseableGold),
            ("$$", "no idea", true, UnparseableGold, UnparseableGold),
            ("so 2+3\n#### 5", "#### 5", true, Right, Right),
            ("thus \\boxed{\\frac12}", "\\boxed{0.5}", true, Right, Right),
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
    fn hostile_texts_take_bounded_time_and_do_not_panic() {
        let texts = [
            "\\boxed{".repeat(200_000),
            "}".repeat(1_000_000),
            "\\".repeat(1_000_001),
            "1,".repeat(500_000),
            "1/".repeat(500_000),
            "<answer>".repeat(200_000),
            "final answer is".repeat(100_000),
            "#### ".repeat(200_000),
            "9".repeat(1_000_000),
            "é−日\\é".repeat(100_000),
            "\\text{".repeat(700),
            i128::MIN.to_string(),
            format!("1/{}", i128::MAX),
            "\\frac{1}{}".into(),
            "\\frac".into(),
        ];
        let start = std::time::Instant::now();
        for text in &texts {
            grade(text, text, true);
            grade("5", text, false);
            equal(text, "5");
        }
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
