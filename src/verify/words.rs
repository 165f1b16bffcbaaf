//! Plain words in answers: numbers and dates written out, and remarks that follow the answer proper.

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
/// Parts of a whole, in the singular.
#[rustfmt::skip]
const PARTS: &[(&str, i64)] = &[
    ("half", 2), ("third", 3), ("quarter", 4), ("fourth", 4), ("fifth", 5), ("sixth", 6), ("seventh", 7),
    ("eighth", 8), ("ninth", 9), ("tenth", 10), ("twelfth", 12), ("hundredth", 100), ("thousandth", 1000),
];
const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// What a word multiplies the number before it by.
pub(super) fn magnitude(word: &str) -> Option<i64> {
    Some(match word.strip_suffix('s').unwrap_or(word) {
        "dozen" => 12,
        "hundred" | "百" => 100,
        "thousand" | "千" => 1000,
        "万" => 10_000,
        "million" => 1_000_000,
        "亿" => 100_000_000,
        "billion" => 1_000_000_000,
        "trillion" => 1_000_000_000_000,
        _ => return None,
    })
}

/// The words of tokens that are nothing else, in lower case, hyphens parting them.
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

/// The value of a number in words: `twelve`, `minus two thirds`, `three hundred and five`, `two and a half`.
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
    let (mut total, mut group) = (0i64, None::<i64>);
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
        } else if let Some(factor) = magnitude(word) {
            let scaled = group.unwrap_or(1).checked_mul(factor)?;
            if factor <= 100 {
                group = Some(scaled);
            } else {
                (total, group) = (total.checked_add(scaled)?, None);
            }
        } else if !(*word == "and" && index > 0 && index + 1 < words.len() || matches!(*word, "a" | "an") && index == 0)
        {
            return None;
        }
    }
    let value = total.checked_add(group.unwrap_or(0))?;
    (!words.is_empty() && words != ["a"]).then(|| BigRational::from_integer(BigInt::from(value)))
}

/// A date in one order of its parts: `5 March 2024`, `March 5th, 2024`.
pub(super) fn date(tokens: &[Spaced]) -> Option<String> {
    let (mut month, mut day, mut year) = (None, None, None);
    for Spaced(token, _) in tokens {
        match token {
            Token::Letters(word) | Token::Text(word) => {
                if matches!(word.as_str(), "st" | "nd" | "rd" | "th" | "of" | "the") {
                    continue;
                }
                let stem = word.get(..3).filter(|_| word.starts_with(char::is_uppercase))?.to_lowercase();
                let full = word.len() == 3 || is_month(&word.to_lowercase());
                let found = MONTHS.iter().position(|name| *name == stem).filter(|_| full)?;
                month = Some(found).filter(|_| month.is_none());
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

fn is_month(word: &str) -> bool {
    #[rustfmt::skip]
    const NAMES: &[&str] = &[
        "january", "february", "march", "april", "may", "june", "july", "august", "sept", "september", "october",
        "november", "december",
    ];
    NAMES.contains(&word)
}

/// Whether two texts have the same words, plurals aside.
pub(super) fn same(a: &str, b: &str) -> bool {
    fn stem(word: &str) -> &str {
        word.strip_suffix('s').filter(|stem| stem.len() > 2).unwrap_or(word)
    }
    a == b || a.split(' ').map(stem).eq(b.split(' ').map(stem))
}

/// Takes away what only comments on the answer before it: `(checked)`, `where c is real`, `for all n`, `since 2 + 3 = 5`.
pub(super) fn drop_remarks(tokens: &mut Vec<Spaced>) {
    while let Some(start) = bracketed_remark(tokens) {
        tokens.truncate(start);
        super::parse::drop_stops(tokens);
    }
    let mut depth = 0i32;
    for at in 0..tokens.len() {
        match &tokens[at].0 {
            Token::Open | Token::Char('(' | '[' | '{') => depth += 1,
            Token::Close | Token::Char(')' | ']' | '}') => depth -= 1,
            _ if at > 0 && depth == 0 && is_remark(&tokens[..at], &tokens[at..]) => {
                tokens.truncate(at);
                return super::parse::drop_stops(tokens);
            }
            _ => {}
        }
    }
}

/// Where brackets with words in them begin, after something else and at the end.
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
    let word = |Spaced(token, _): &Spaced| match token {
        Token::Letters(word) | Token::Text(word) => {
            let word = word.split(' ').next().unwrap_or_default().to_lowercase();
            word.len() > 3 && word != "mod" && magnitude(&word).is_none() && super::parse::is_word(&word)
        }
        _ => false,
    };
    (start > 0 && inside.first().is_some_and(word)).then_some(start)
}

/// Whether a comment begins: what it says of the answer does not change it, and no second case follows.
fn is_remark(before: &[Spaced], rest: &[Spaced]) -> bool {
    let words: Vec<Vec<String>> =
        rest.iter().map(|token| plain(std::slice::from_ref(token)).unwrap_or_default()).collect();
    let mut all = words.iter().flatten().map(String::as_str);
    let Some(first) = all.next() else {
        return matches!(&rest[0].0, Token::Command(name) if name == "forall");
    };
    let second = all.next().unwrap_or_default();
    if all.clone().any(|word| matches!(word, "if" | "otherwise" | "for" | "when" | "else")) {
        return false;
    }
    let symbol = |word: &str| word.len() == 1 && rest.len() > 1;
    let related = || {
        let after = rest.iter().position(|Spaced(token, _)| matches!(token, Token::Letters(run) if run.len() == 1));
        after
            .and_then(|at| rest.get(at + 1))
            .is_some_and(|Spaced(token, _)| matches!(token, Token::Char('∈' | '≠' | '<' | '>' | '≤' | '≥')))
    };
    match first {
        "where" | "since" | "because" | "assuming" | "provided" | "which" | "approximately" | "checked" => true,
        "as" => matches!(second, "required" | "desired" | "needed" | "claimed" | "expected"),
        "with" => symbol(second),
        "for" => is_general(second) || (symbol(second) && related()),
        "is" | "are" => {
            let digit = |Spaced(token, _): &Spaced| matches!(token, Token::Digits(_));
            rest.len() > usize::from(matches!(&rest[0].0, Token::Letters(_)))
                && before.iter().any(digit)
                && !rest.iter().any(digit)
        }
        _ => false,
    }
}

/// Words after `for` that leave nothing out.
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
        for text in
            ["", "a", "third", "twenty third", "one two", "ten four", "thirty twenty", "one thirds", "and", "six eggs"]
        {
            assert_eq!(number(&tokenize(text).unwrap()), None, "{text}");
        }
    }
}
