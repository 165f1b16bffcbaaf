//! What announces an answer within it: `Option B`, `answer: 5`, `\text{Area} = 7`, `\text{The answer is } 7`.

use super::token::{Spaced, Token, tokenize};
use super::tree::Relation;

/// Takes away the stops at the end, and dots after a word or a whole number.
pub(super) fn drop_stops(tokens: &mut Vec<Spaced>) {
    loop {
        match tokens.as_slice() {
            [.., Spaced(Token::Char('.' | ',' | ';') | Token::Row, _)] => {}
            [Spaced(Token::Letters(letter), _), Spaced(Token::Char(')'), _)] if letter.len() == 1 => {}
            [.., Spaced(Token::Letters(_) | Token::Text(_), _), Spaced(Token::Char('…'), _)] => {}
            [.., Spaced(Token::Digits(digits), _), Spaced(Token::Char('…'), _)] if !digits.contains('.') => {}
            _ => return,
        }
        tokens.pop();
    }
}

/// Takes away what announces an answer, `Option B`, `answer: 5`, `≈ 3.14`; `minus 3` becomes -3.
pub(super) fn drop_prefix(tokens: &mut Vec<Spaced>) {
    drop_label(tokens);
    while tokens.len() > 1 {
        let first = match &tokens[0].0 {
            Token::Letters(word) | Token::Text(word) => word.trim_end_matches('.').to_lowercase(),
            Token::Char('=' | '≈') => "=".to_string(),
            Token::Command(name) if matches!(name.as_str(), "Rightarrow" | "implies") => "=".to_string(),
            _ => return,
        };
        match first.as_str() {
            "option" | "choice" | "answer" => {
                let colon = matches!(tokens[1].0, Token::Char(':' | '='));
                tokens.drain(..1 + usize::from(colon));
                return;
            }
            "us" | "usd" | "rs" if !matches!(tokens[1].0, Token::Digits(_) | Token::Char('＄')) => return,
            "=" | "approximately" | "about" | "roughly" | "approx" | "约" | "约为" | "大约" | "us" | "usd" | "rs" =>
            {
                let point = first == "approx" && tokens[1].0 == Token::Char('.');
                tokens.drain(..1 + usize::from(point));
            }
            "minus" | "negative" if matches!(tokens[1].0, Token::Digits(_) | Token::Command(_)) => {
                tokens[0].0 = Token::Char('-');
                return;
            }
            _ => return,
        }
    }
}

/// Takes away the words of a first `\text{}` that announce what follows: `\text{Area: }`, `\text{The answer is}`,
/// `\text{Option B}`.
fn drop_label(tokens: &mut Vec<Spaced>) {
    let Some(Spaced(Token::Text(text), _)) = tokens.first_mut() else { return };
    let announces = text.ends_with(':') || ENDS.iter().any(|end| text.ends_with(end));
    if announces && text.len() > 2 && !denies(text) {
        tokens.drain(..usize::from(tokens.len() > 1));
        return;
    }
    let rest = STARTS.iter().find_map(|start| {
        let (first, rest) = text.split_at_checked(start.len())?;
        rest.strip_prefix([' ', ':']).filter(|_| first.eq_ignore_ascii_case(start))
    });
    if let Some(rest) = rest.map(str::trim).filter(|rest| !rest.is_empty()) {
        *text = rest.to_string();
    }
}

const ENDS: &[&str] = &[" is", " are", " equals"];
const STARTS: &[&str] = &["option", "choice", "answer", "the answer is", "the answer is option"];

/// Whether words leave open what the answer is, or say what it is not.
pub(super) fn denies(words: &str) -> bool {
    #[rustfmt::skip]
    const WORDS: &[&str] = &[
        "or", "and", "not", "no", "if", "unless", "either", "than", "least", "most", "except", "wrong", "incorrect", "false",
        "never",
    ];
    words.split(|c: char| !c.is_alphanumeric()).any(|word| WORDS.contains(&word.to_lowercase().as_str()))
}

/// The values of an answer whose first side cannot be read, `\lim_{n\to\infty} a_n = \frac{6}{2} = 3`; none if it lists or
/// relates anything else.
pub(super) fn values(answer: &str) -> Option<Vec<&str>> {
    const LONGEST: usize = 120;
    let mut depth = 0;
    let mut equals = answer.char_indices().filter(|(_, c)| {
        depth += i32::from("([{".contains(*c)) - i32::from(")]}".contains(*c));
        *c == '=' && depth == 0
    });
    let (first, _) = equals.next()?;
    let name = answer[..first].trim();
    if name.len() > LONGEST || name.ends_with([':', '!']) || !names_one(&tokenize(name).ok()?) {
        return None;
    }
    let mut starts = vec![first + 1];
    starts.extend(equals.map(|(at, _)| at + 1));
    let ends = starts[1..].iter().map(|start| start - 1).chain([answer.len()]);
    Some(starts.iter().zip(ends).map(|(start, end)| &answer[*start..end]).collect())
}

/// Whether tokens may name one thing: outside brackets they neither list nor relate, and no word denies.
fn names_one(tokens: &[Spaced]) -> bool {
    let mut depth = 0;
    tokens.iter().all(|Spaced(token, _)| {
        match token {
            Token::Open | Token::Char('(' | '[' | '{') => depth += 1,
            Token::Close | Token::Char(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        match token {
            _ if depth > 0 => true,
            Token::Char(c) => !",.;:?∨…".contains(*c) && Relation::of(*c).is_none(),
            Token::Text(words) | Token::Letters(words) => !denies(words),
            Token::Command(name) => !ARROWS.contains(&name.as_str()),
            Token::Row | Token::Cell => false,
            _ => true,
        }
    })
}

const ARROWS: &[&str] =
    &["to", "rightarrow", "Rightarrow", "implies", "iff", "neg", "not", "xrightarrow", "Longrightarrow"];
