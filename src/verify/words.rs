//! Words in answers: numbers and dates in words, and remarks after the answer.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::Zero;

use super::token::{Spaced, Token};
use super::tree::Node;

#[rustfmt::skip]
const SMALL: &[&str] = &[
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
];
const TENS: &[&str] = &["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
/// Fractions, in the singular.
#[rustfmt::skip]
const PARTS: &[(&str, i64)] = &[
    ("half", 2), ("third", 3), ("quarter", 4), ("fourth", 4), ("fifth", 5), ("sixth", 6), ("seventh", 7),
    ("eighth", 8), ("ninth", 9), ("tenth", 10), ("twelfth", 12), ("hundredth", 100), ("thousandth", 1000),
];
#[rustfmt::skip]
const MONTHS: &[&str] = &[
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
];

/// Return the factor of a word after a number.
pub(super) fn magnitude(word: &str) -> Option<i64> {
    Some(match word.strip_suffix('s').unwrap_or(word) {
        "十" => 10,
        "dozen" => 12,
        "hundred" | "百" => 100,
        "thousand" | "千" => 1000,
        "k" => 1000,
        "万" => 10_000,
        "lakh" => 100_000,
        "million" | "mln" | "mn" => 1_000_000,
        "crore" => 10_000_000,
        "亿" => 100_000_000,
        "billion" | "bn" => 1_000_000_000,
        "trillion" => 1_000_000_000_000,
        _ => return None,
    })
}

/// Return the factor of a letter after an amount of money.
pub(super) fn money(letter: &str) -> Option<i64> {
    match letter {
        "k" | "K" => Some(1000),
        "m" | "M" => Some(1_000_000),
        "b" | "B" => Some(1_000_000_000),
        _ => None,
    }
}

/// Return the divisor of a plural after a number, `3 tenths`; halves and quarters are units.
pub(super) fn part(word: &str) -> Option<i64> {
    let singular = word.strip_suffix('s').filter(|word| !matches!(*word, "half" | "quarter"))?;
    PARTS.iter().find(|(name, _)| *name == singular).map(|(_, under)| *under)
}

/// Return the words of tokens in lower case, split at hyphens; `None` if there is any other token.
fn plain(tokens: &[Spaced]) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for Spaced(token, _) in tokens {
        match token {
            Token::Letters(run) | Token::Text(run) => {
                words.extend(run.to_lowercase().split([' ', '-']).filter(|word| !word.is_empty()).map(str::to_string));
            }
            Token::Char('-') => {}
            _ => return None,
        }
    }
    Some(words)
}

/// Parse a number in words: `twelve`, `minus two thirds`, `three hundred and five`, `two and a half`.
pub(super) fn number(tokens: &[Spaced]) -> Option<Node> {
    if tokens.len() > 16 {
        return None;
    }
    let words = plain(tokens)?;
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    let percent = words.pop_if(|word| *word == "percent").is_some();
    let negative = matches!(words.first(), Some(&("minus" | "negative")));
    let value = rational(&words[usize::from(negative)..])?;
    let node = Node::Number { value, place: None };
    let node = if percent { Node::Percent(Box::new(node)) } else { node };
    Some(if negative { node.negative() } else { node })
}

/// Whether words are a number.
pub(super) fn is_number(words: &[&str]) -> bool {
    rational(words).is_some()
}

fn rational(words: &[&str]) -> Option<BigRational> {
    let part = |word: &str| {
        let singular = if word == "halves" { "half" } else { word.strip_suffix('s').unwrap_or(word) };
        PARTS.iter().find(|(name, _)| *name == singular).map(|(name, under)| (*under, *name == word))
    };
    let Some((under, singular)) = words.last().copied().and_then(part) else { return whole(words) };
    let above = &words[..words.len() - 1];
    if above.is_empty() {
        return (words == ["half"]).then(|| BigRational::new(1.into(), 2.into()));
    }
    // `two and a half`, or else `two thirds`
    let (before, over) = match above.iter().rposition(|word| *word == "and") {
        Some(at) => (whole(&above[..at])?, &above[at + 1..]),
        None => (BigRational::zero(), above),
    };
    let over = if over == ["a"] || over == ["an"] { BigRational::from_integer(1.into()) } else { whole(over)? };
    // `twenty third` is an ordinal.
    let one = over == BigRational::from_integer(1.into());
    (one == singular).then(|| before + over / BigRational::from_integer(under.into()))
}

fn whole(words: &[&str]) -> Option<BigRational> {
    let (mut total, mut group, mut limit) = (0i64, None::<i64>, i64::MAX);
    for (index, word) in words.iter().enumerate() {
        let place = |row: &[&str]| row.iter().position(|other| other == word).and_then(|at| i64::try_from(at).ok());
        let known = group.unwrap_or(0);
        if let Some(value) = place(SMALL) {
            let fits = group.is_none() || known % 100 == 0 && known > 0 || (known % 10 == 0 && value < 10 && value > 0);
            group = Some(known + value).filter(|_| fits && (known % 100 == 0 || known % 100 >= 20));
            group?;
        } else if let Some(tens) = place(TENS) {
            group = Some(known + 10 * (tens + 2)).filter(|_| known % 100 == 0);
            group?;
        } else if let Some(factor) = magnitude(word).filter(|_| word.is_ascii() && word.len() > 2) {
            let scaled = group.unwrap_or(1).checked_mul(factor)?;
            if factor <= 100 {
                group = Some(scaled);
            } else if factor < limit {
                (total, group, limit) = (total.checked_add(scaled)?, None, factor);
            } else {
                return None;
            }
        } else if !(*word == "and" && index > 0 && index + 1 < words.len() || matches!(*word, "a" | "an") && index == 0)
        {
            return None;
        }
    }
    let value = total.checked_add(group.unwrap_or(0))?;
    (!words.is_empty() && words != ["a"]).then(|| BigRational::from_integer(BigInt::from(value)))
}

/// Normalise a date: `5 March 2024`, `March 5th, 2024`, `2024-03-05`.
pub(super) fn date(tokens: &[Spaced]) -> Option<String> {
    if let Some(date) = digits_of_date(tokens) {
        return Some(date);
    }
    let (mut month, mut day, mut year) = (None, None, None);
    for Spaced(token, _) in tokens {
        match token {
            Token::Letters(word) | Token::Text(word) => {
                if matches!(word.as_str(), "st" | "nd" | "rd" | "th" | "of" | "the") {
                    continue;
                }
                let name = word.to_lowercase();
                let is = |month: &&str| *month == name || (name.len() == 3 && month.starts_with(&name));
                let found = MONTHS.iter().position(is)?;
                month = Some(found).filter(|_| month.is_none() && word.starts_with(char::is_uppercase));
                month?;
            }
            Token::Digits(digits) => {
                let slot = if digits.len() <= 2 { &mut day } else { &mut year };
                let value: u32 = digits.parse().ok()?;
                *slot = Some(value).filter(|_| slot.is_none());
                (*slot)?;
            }
            Token::Char(',' | '.') => {}
            _ => return None,
        }
    }
    let day = day.filter(|day| (1..=31).contains(day))?;
    Some(format!("month {} day {day} year {}", month? + 1, year.unwrap_or(0)))
}

/// Normalise a date in digits, year first: `2024-03-05`, `2024/03/05`.
fn digits_of_date(tokens: &[Spaced]) -> Option<String> {
    let [
        Spaced(Token::Digits(year), _),
        Spaced(Token::Char(first @ ('-' | '/')), false),
        Spaced(Token::Digits(month), false),
        Spaced(Token::Char(second), false),
        Spaced(Token::Digits(day), false),
    ] = tokens
    else {
        return None;
    };
    let part = |digits: &str, length: usize, range: std::ops::RangeInclusive<u32>| {
        digits.parse::<u32>().ok().filter(|value| digits.len() == length && range.contains(value))
    };
    let (year, month, day) = (part(year, 4, 1500..=2200)?, part(month, 2, 1..=12)?, part(day, 2, 1..=31)?);
    (first == second).then(|| format!("month {month} day {day} year {year}"))
}

/// Whether two texts have the same words, ignoring plurals, "and" and a leading article.
pub(super) fn same(a: &str, b: &str) -> bool {
    fn core(text: &str) -> &str {
        if text == "dne" || text.ends_with(" does not exist") {
            return "does not exist";
        }
        let text = ["a ", "an ", "the "].iter().find_map(|article| text.strip_prefix(article)).unwrap_or(text);
        if text.starts_with("infinitely many ") { "infinitely many" } else { text }
    }
    fn words(text: &str) -> impl Iterator<Item = &str> {
        let stem = |word| str::strip_suffix(word, 's').filter(|stem| stem.len() > 2).unwrap_or(word);
        text.split(' ').filter(|word| *word != "and").map(stem)
    }
    words(core(a)).eq(words(core(b)))
}

/// Return the set that words denote: the real numbers, or the empty set for "no solution".
pub(super) fn set(text: &str) -> Option<Node> {
    const FILL: &[&str] = &["the", "set", "of", "all", "any", "there", "is", "are", "exists", "exist"];
    let rest: Vec<&str> = text.split(' ').filter(|word| !FILL.contains(word)).collect();
    match (rest.as_slice(), text) {
        (["real", "number" | "numbers"] | ["reals"], _) => Some(Node::Reals),
        (["positive", "real", "numbers"], _) => Some(Node::Tuple(vec![Node::integer(0), Node::Infinity])),
        (["no", "solution" | "solutions"], _) | (["empty"], "empty set" | "the empty set") => {
            Some(Node::Set(Vec::new()))
        }
        _ => None,
    }
}

/// Remove remarks on the answer: `(checked)`, `where c is real`, `for all n`, `since 2 + 3 = 5`.
pub(super) fn drop_remarks(tokens: &mut Vec<Spaced>) {
    open_alternative(tokens);
    while let Some(start) = bracketed_remark(tokens) {
        tokens.truncate(start);
        super::label::drop_stops(tokens);
    }
    let mut words: Vec<Vec<String>> =
        tokens.iter().map(|token| plain(std::slice::from_ref(token)).unwrap_or_default()).collect();
    let (mut at, mut depth) = (0, 0i32);
    while at < tokens.len() {
        depth += change_of_depth(&tokens[at].0);
        let length = if at > 0 && depth == 0 { remark(tokens, &words, at) } else { 0 };
        tokens.drain(at..at + length);
        words.drain(at..at + length);
        at += usize::from(length == 0);
    }
    super::label::drop_stops(tokens);
}

/// Remove the brackets of `1/2 (or 0.5)` and `√2 (≈ 1.41)`.
fn open_alternative(tokens: &mut Vec<Spaced>) {
    let start = tokens.iter().rposition(|token| token.0 == Token::Char('('));
    let Some(start) = start.filter(|start| *start > 0) else { return };
    let inside = &tokens[start + 1..];
    let last = inside.iter().position(|token| token.0 == Token::Char(')')) == inside.len().checked_sub(1);
    let other = match inside.first() {
        Some(Spaced(Token::Char('≈'), _)) => true,
        Some(Spaced(Token::Letters(word) | Token::Text(word), _)) => word == "or",
        _ => false,
    };
    if last && other {
        tokens.pop();
        tokens.remove(start);
    }
}

/// Replace `all real numbers except 2` by `ℝ ∖ {2}`.
pub(super) fn open_exception(tokens: &mut Vec<Spaced>) {
    let excepts =
        |token: &Spaced| matches!(&token.0, Token::Letters(run) | Token::Text(run) if run.ends_with("except"));
    let Some(at) = tokens.iter().position(excepts) else { return };
    let before = plain(&tokens[..=at]).unwrap_or_default().join(" ");
    if before.strip_suffix(" except").and_then(set) != Some(Node::Reals) {
        return;
    }
    let named = matches!(tokens.get(at + 2), Some(Spaced(Token::Char('='), _)));
    let sign = |c| Spaced(Token::Char(c), false);
    tokens.splice(..at + if named { 3 } else { 1 }, ['ℝ', '∖', '{'].map(sign));
    tokens.push(sign('}'));
}

fn change_of_depth(token: &Token) -> i32 {
    match token {
        Token::Open | Token::Char('(' | '[' | '{') => 1,
        Token::Close | Token::Char(')' | ']' | '}') => -1,
        // Conditions of cases are not remarks.
        Token::Command(name) => i32::from(name == "begin") - i32::from(name == "end"),
        _ => 0,
    }
}

/// Find the start of trailing brackets with words in them.
fn bracketed_remark(tokens: &[Spaced]) -> Option<usize> {
    let mut depth = 0;
    let start = tokens.iter().rposition(|Spaced(token, _)| {
        depth += match token {
            Token::Char(')') => 1,
            Token::Char('(') => -1,
            _ => 0,
        };
        depth <= 0
    })?;
    let inside = tokens.get(start + 1..tokens.len() - 1)?;
    let words: Vec<String> = inside.iter().filter_map(|token| plain(std::slice::from_ref(token))).flatten().collect();
    let first = plain(inside.get(..1)?).and_then(|words| words.into_iter().next());
    let spoken = first.is_some_and(|word| {
        word.len() > 1
            && !matches!(word.as_str(), "mod" | "not" | "or" | "and" | "base" | "if" | "when" | "unless")
            && !super::label::offers(&word)
            && magnitude(&word).is_none()
    });
    let remark = spoken && words.iter().any(|word| word.len() > 3 && super::parse::is_word(word));
    let domain = inside.iter().any(|Spaced(token, _)| *token == Token::Char('∈'))
        || words.iter().any(|word| matches!(word.as_str(), "integer" | "integers"));
    (start > 0 && (remark || domain)).then_some(start)
}

/// Whether tokens begin with a word that introduces a reason or an apposition.
pub(super) fn is_reason(tokens: &[Spaced]) -> bool {
    let first = tokens.get(..1).and_then(plain).and_then(|words| words.into_iter().next());
    first.is_some_and(|word| matches!(word.as_str(), "because" | "since" | "as" | "the" | "which" | "namely" | "not"))
}

/// Return the text of tokens that begin with a word, for display.
pub(super) fn sentence(tokens: &[Spaced]) -> Option<String> {
    let first = plain(tokens.get(..1)?)?;
    super::parse::is_word(first.first()?).then(|| {
        let words = tokens.iter().map(|Spaced(token, _)| match token {
            Token::Digits(text) | Token::Letters(text) | Token::Text(text) | Token::Command(text) => {
                text.to_lowercase()
            }
            Token::Char(c) => c.to_string(),
            _ => String::new(),
        });
        words.collect::<Vec<_>>().join(" ")
    })
}

/// Return the number of tokens of a remark that begins at token `at` and does not change the answer; 0 if none does.
fn remark(tokens: &[Spaced], words: &[Vec<String>], at: usize) -> usize {
    let (rest, mut all) = (&tokens[at..], words[at..].iter().flatten().map(String::as_str));
    let first = words[at].first().map_or("", String::as_str);
    let forall = matches!(&rest[0].0, Token::Command(name) if name == "forall");
    if !forall && !STARTS.contains(&first) {
        return 0;
    }
    let second = all.nth(1).unwrap_or_default();
    let length = end_of_remark(rest);
    let symbol = second.len() == 1 && rest.len() > 1;
    let related = || {
        let symbol = rest.iter().position(|Spaced(token, _)| matches!(token, Token::Letters(run) if run.len() == 1));
        let after = symbol.and_then(|symbol| rest.get(symbol + 1));
        after.is_some_and(|Spaced(token, _)| matches!(token, Token::Char('∈' | '≠' | '<' | '>' | '≤' | '≥')))
    };
    // A second condition makes it a case distinction.
    let mut cases = all.filter(|word| matches!(*word, "if" | "otherwise" | "for" | "when" | "else" | "where"));
    let digit = |Spaced(token, _): &Spaced| matches!(token, Token::Digits(_));
    let dropped = match first {
        _ if forall => true,
        "since" | "because" | "which" | "approximately" | "checked" | "regardless" => return rest.len(),
        "respectively" => true,
        "as" if matches!(second, "required" | "desired" | "needed" | "claimed" | "expected") => return rest.len(),
        "for" if is_general(second) => true,
        "for" => symbol && related() && cases.next().is_none(),
        "where" | "assuming" | "provided" => cases.next().is_none(),
        "with" => symbol && cases.next().is_none(),
        "is" | "are" => {
            let alone = length == 1 && matches!(&rest[0].0, Token::Letters(_));
            let denied = words[at..]
                .iter()
                .flatten()
                .any(|word| matches!(word.as_str(), "not" | "wrong" | "incorrect" | "false"));
            !denied && !alone && tokens[..at].iter().any(digit) && !rest[..length].iter().any(digit)
        }
        _ => false,
    };
    if dropped { length } else { 0 }
}

/// First words of remarks.
#[rustfmt::skip]
const STARTS: &[&str] = &[
    "where", "since", "because", "assuming", "provided", "which", "approximately", "checked", "regardless", "as", "with",
    "for", "is", "are", "respectively",
];

/// Find the start of the next answer, or else the end.
fn end_of_remark(rest: &[Spaced]) -> usize {
    let separates = |token: &Token| match token {
        Token::Char(',' | ';') => true,
        Token::Letters(word) | Token::Text(word) => super::parse::is_separator(word),
        _ => false,
    };
    let mut answer = false;
    let mut end = rest.len();
    for (at, Spaced(token, _)) in rest.iter().enumerate().skip(1).rev() {
        answer |= *token == Token::Char('=');
        if separates(token) && (answer || matches!(rest.get(at + 1), Some(Spaced(Token::Digits(_), _)))) {
            end = at;
        }
    }
    end
}

/// Whether a word after `for` does not restrict the answer.
fn is_general(word: &str) -> bool {
    #[rustfmt::skip]
    const WORDS: &[&str] = &[
        "any", "all", "every", "each", "some", "arbitrary", "constant", "constants", "integer", "integers", "real",
        "natural",
    ];
    WORDS.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::super::token::tokenize;
    use super::*;

    #[test]
    fn numbers_in_words_have_their_value() {
        let table = [
            ("seventeen", "17"),
            ("forty-two", "42"),
            ("six hundred and one", "601"),
            ("a hundred", "100"),
            ("nine thousand eleven", "9011"),
            ("two million three hundred thousand", "2300000"),
            ("minus eight", "-8"),
            ("three quarters", "3/4"),
            ("one sixth", "1/6"),
            ("half", "1/2"),
            ("four and a half", "9/2"),
            ("a dozen", "12"),
            ("ninety percent", "90%"),
        ];
        for (text, value) in table {
            assert_eq!(number(&tokenize(text).unwrap()).map(|node| node.to_string()).as_deref(), Some(value), "{text}");
        }
        #[rustfmt::skip]
        let others = [
            "", "a", "third", "twenty third", "one two", "ten four", "thirty twenty", "one thirds", "and", "six eggs",
            "two thousand million",
        ];
        for text in others {
            assert_eq!(number(&tokenize(text).unwrap()), None, "{text}");
        }
    }
}
