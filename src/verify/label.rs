//! Labels before or within an answer: `Option B`, `answer: 5`, `\text{Area} = 7`, `\text{The answer is } 7`, `(a) 3`.

use super::announced::chooses;
use super::token::{Spaced, Token, tokenize};
use super::tree::Relation;

/// Remove trailing punctuation, and dots after a word or an integer.
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

/// Remove a label before the answer, `Option B`, `answer: 5`, 故选：B, `≈ 3.14`; `minus 3` becomes -3.
pub(super) fn drop_prefix(tokens: &mut Vec<Spaced>) {
    drop_label(tokens);
    while tokens.len() > 1 {
        let first = match &tokens[0].0 {
            Token::Letters(word) | Token::Text(word) => {
                let word = word.trim_end_matches('.').to_lowercase();
                word.strip_prefix("the ").map_or(word.clone(), str::to_string)
            }
            Token::Char('=' | '≈') => "=".to_string(),
            Token::Command(name) if matches!(name.as_str(), "Rightarrow" | "implies") => "=".to_string(),
            _ => return,
        };
        match first.as_str() {
            word if matches!(word, "option" | "choice" | "answer") || chooses(word) => {
                let colon = matches!(tokens[1].0, Token::Char(':' | '='));
                tokens.drain(..1 + usize::from(colon));
                return;
            }
            "us" | "usd" | "rs" | "inr" | "point" | "year"
                if !matches!(tokens[1].0, Token::Digits(_) | Token::Char('＄' | '(' | '.')) =>
            {
                return;
            }
            "=" | "approximately" | "about" | "roughly" | "approx" | "exactly" | "only" | "约" | "约为" | "大约"
            | "us" | "usd" | "rs" | "inr" | "point" | "year" => {
                let point = tokens[1].0 == Token::Char('.');
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

/// Remove a label in a leading `\text{}`: `\text{Area: }`, `\text{The answer is}`, `\text{Option B}`.
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

/// Split an answer into labelled parts, without the labels: `(a) 3, (b) 4`, `\text{(i)}\ 3 \quad \text{(ii)}\ 4`.
pub(super) fn parts(tokens: &[Spaced]) -> Option<Vec<Vec<Spaced>>> {
    const ROWS: [[&str; 6]; 3] =
        [["a", "b", "c", "d", "e", "f"], ["i", "ii", "iii", "iv", "v", "vi"], ["1", "2", "3", "4", "5", "6"]];
    let row = ROWS.iter().find(|row| label(tokens, row[0]).is_some())?;
    let mut parts: Vec<Vec<Spaced>> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        // A label follows a separator or a space, but not an operator.
        let apart = at.checked_sub(1).is_none_or(|before| match tokens[before].0 {
            Token::Char(c) => ",;".contains(c) || (tokens[at].1 && ")]}°%!".contains(c)),
            Token::Command(_) | Token::Open => false,
            _ => tokens[at].1,
        });
        let next = row.get(parts.len()).filter(|_| apart).and_then(|name| label(&tokens[at..], name));
        match next {
            Some(_) => parts.push(Vec::new()),
            None => parts.last_mut()?.push(tokens[at].clone()),
        }
        at += next.unwrap_or(1);
    }
    parts.iter_mut().for_each(drop_stops);
    (parts.len() > 1 && parts.iter().all(|part| !part.is_empty())).then_some(parts)
}

/// Return the number of tokens of a label with this name: `(a)`, `a)`, `\text{(a)}`, `\text{Part (a):}`.
fn label(tokens: &[Spaced], name: &str) -> Option<usize> {
    let is =
        |token: &Token| matches!(token, Token::Letters(run) | Token::Digits(run) | Token::Text(run) if run == name);
    let length = match tokens {
        [Spaced(Token::Char('('), _), Spaced(run, _), Spaced(Token::Char(')'), _), ..] if is(run) => 3,
        [Spaced(run, _), Spaced(Token::Char(')'), _), ..] if is(run) => 2,
        [Spaced(Token::Text(text), _), ..] => {
            let inside = text.trim_start_matches("Part ").trim_end_matches([':', '.']).strip_suffix(')')?;
            usize::from(inside.trim_start_matches('(') == name)
        }
        _ => 0,
    };
    let colon = matches!(tokens.get(length), Some(Spaced(Token::Char(':'), _)));
    (length > 0).then_some(length + usize::from(colon))
}

const ENDS: &[&str] = &[" is", " are", " equals"];
const STARTS: &[&str] = &["option", "choice", "answer", "the answer is", "the answer is option"];

/// Whether words make the answer ambiguous or negate it.
pub(super) fn denies(words: &str) -> bool {
    #[rustfmt::skip]
    const WORDS: &[&str] = &[
        "or", "and", "not", "no", "if", "unless", "either", "than", "least", "most", "except", "wrong", "incorrect", "false",
        "never",
    ];
    let mut words = words.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
    words.any(|word| WORDS.contains(&word.as_str()) || offers(&word))
}

/// Whether a word offers a second answer.
pub(super) fn offers(word: &str) -> bool {
    matches!(word, "also" | "maybe" | "perhaps" | "possibly" | "alternatively")
}

/// Return the values of a chain whose first side cannot be parsed, `\lim_{n\to\infty} a_n = \frac{6}{2} = 3`; `None` if
/// the first side is a list or a relation.
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

/// Whether tokens may name one quantity: outside brackets there is no separator, relation or negating word.
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
