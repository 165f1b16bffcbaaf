//! Grading of pasted text: an answer that may be bare or part of a whole completion.

use super::name::{constant, is_function};
use super::parse::{is_separator, parse};
use super::tree::{Fault, Node};
use super::{Graded, Verdict, compare, compare_unlike, gold_answer, grade, lenient, stated};

/// Grade an answer that may be bare or a whole, finished completion.
pub fn check(gold: &str, answer: &str) -> Graded {
    let found = gold_answer(gold);
    let strict = compare(&found, answer);
    if is_bare(answer) || (strict.is_right() && !is_sentence(answer)) {
        let lenient = if strict.is_right() { strict } else { lenient(&found, answer) };
        return Graded { strict, lenient, extracted: Some(answer.trim().to_string()) };
    }
    grade(gold, answer, true)
}

/// Whether the text is a bare answer: it states no answer, and is a formula or a few words on one line.
fn is_bare(text: &str) -> bool {
    let marked = text.contains("<think>") || text.contains("</think>");
    if marked || stated(text).is_some() || text.trim().contains('\n') || is_sentence(text) {
        return false;
    }
    let few = text.split_whitespace().count() <= 4 && !text.contains(['$', '\\']);
    match parse(text) {
        Ok(Node::Words(_)) => few,
        Ok(_) => !begins_with_prose(text),
        Err(_) => few && !begins_with_prose(text),
    }
}

/// Whether words precede a formula in delimiters: `Hence $x = 3$`.
fn is_sentence(text: &str) -> bool {
    let marked = ["$", "\\(", "\\["].iter().filter_map(|mark| text.find(mark)).min();
    let mut words = text[..marked.unwrap_or(0)].split(|c: char| !c.is_ascii_alphabetic() && c != '\\');
    words.any(|word| is_prose(word) && !matches!(word.to_lowercase().as_str(), "option" | "choice" | "answer"))
}

/// Whether the text begins with two words, or one longer word, that do not belong to a formula.
fn begins_with_prose(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().take(2).take_while(|word| is_prose(word)).collect();
    words.len() == 2 || words.first().is_some_and(|word| word.len() > 2 || matches!(*word, "so" | "So"))
}

fn is_prose(word: &str) -> bool {
    word.len() > 1
        && word.bytes().all(|b| b.is_ascii_alphabetic())
        && !is_function(word)
        && constant(word).is_none()
        && !is_separator(word)
}

/// Whether two answers are equal with the comma of one as a decimal point, `3,14` and 3.14, or as an Indian group
/// separator, `1,00,000`.
pub(super) fn same_by_commas(gold: &str, answer: &str) -> bool {
    let same = |changed: Option<String>, other: &str, gold_changed: bool| {
        changed.is_some_and(|changed| {
            let verdict = if gold_changed { compare_unlike(&changed, other) } else { compare_unlike(other, &changed) };
            verdict.is_right()
        })
    };
    same(with_points(answer, gold), gold, false) || same(with_points(gold, answer), answer, true)
}

/// Replace decimal commas by points if the other text has decimal points and this one has none.
fn with_points(text: &str, other: &str) -> Option<String> {
    let digit = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let between = |at: usize| at > 0 && digit(at - 1) && digit(at + 1);
    let commas: Vec<usize> = text.match_indices(',').map(|(at, _)| at).filter(|at| between(*at)).collect();
    let bare = text.trim_matches(|c: char| c.is_whitespace() || "$+-−".contains(c));
    if commas.is_empty() || text.contains('.') {
        return None;
    }
    let point = |text: &str| text.as_bytes().windows(2).any(|pair| pair[0] == b'.' && pair[1].is_ascii_digit());
    let number = bare.bytes().all(|b| b.is_ascii_digit() || b == b',');
    let thousands = bare.split(',').skip(1).all(|group| group.len() == 3) && bare.find(',') < Some(4);
    if number && thousands && !bare.starts_with('0') {
        return None;
    }
    if number && commas.len() > 1 {
        let groups: Vec<&str> = bare.split(',').collect();
        let (last, others) = groups.split_last()?;
        let indian = last.len() == 3 && others[0].len() <= 2 && others[1..].iter().all(|group| group.len() == 2);
        let whole = other.trim_matches(|c: char| c.is_whitespace() || "$+-−".contains(c));
        return (indian && whole.bytes().all(|b| b.is_ascii_digit())).then(|| text.replace(',', ""));
    }
    // `(4,5; 0)`: semicolons separate the members.
    ((number || text.contains(';')) && point(other)).then(|| {
        let mut bytes = text.to_string().into_bytes();
        commas.iter().for_each(|at| bytes[*at] = b'.');
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Describe how a gold and an answer, each bare or a whole completion, are parsed and graded.
pub fn explain(gold: &str, answer: &str) -> String {
    let found = &*gold_answer(gold);
    let graded = check(gold, answer);
    let why = match graded.strict {
        Verdict::Right => "they are the same",
        Verdict::Wrong => "they differ",
        Verdict::NoAnswer => "no answer is stated after the thinking",
        Verdict::UnparseableAnswer => "the answer cannot be read, or has no value",
        Verdict::Undecided => "equality could not be decided within the step limit",
        Verdict::UnparseableGold => "the gold cannot be read, or has no value",
    };
    let extracted = graded.extracted.unwrap_or_default();
    let mut text = format!("gold    {found}\n  read  {}\n", reading(found));
    if extracted.is_empty() {
        text.push_str("answer  none found\n");
    } else {
        text.push_str(&format!("answer  {extracted}\n  read  {}\n", reading(&extracted)));
    }
    text.push_str(&format!("strict  {}: {why}\nlenient {}", graded.strict.name(), graded.lenient.name()));
    text
}

fn reading(text: &str) -> String {
    match parse(text) {
        Ok(node) => format!("{} {node}", node.kind()),
        Err(Fault::Limit) => "nothing: it is too large or too deeply nested".to_string(),
        Err(_) => "nothing: not in the notation of an answer, so that only an identical string is equal".to_string(),
    }
}
