//! Letters of multiple choice.

use super::label::{denies, offers};
use super::parse::{is_separator, is_word, plain_words};
use super::token::{Spaced, Token};
use super::words;

/// Punctuation around the letter of a choice.
const MARKS: [char; 4] = ['(', ')', '.', ':'];

/// Split a multiple-choice letter from its content: `(B) 42`, `B. 42`, `B: the second`, `\textbf{(B)}\ 42`.
pub(super) fn choice(tokens: &[Spaced]) -> Option<(String, Vec<Spaced>)> {
    let letter = |run: &str| (run.len() == 1 && ("A"..="J").contains(&run)).then(|| run.to_string());
    let bare = without_braces(tokens);
    let tokens = bare.as_deref().unwrap_or(tokens);
    let (letter, used, marked) = match tokens {
        [
            Spaced(Token::Char('('), _),
            Spaced(Token::Letters(run) | Token::Text(run), _),
            Spaced(Token::Char(')'), _),
            ..,
        ] => {
            let colon = match tokens.get(3) {
                Some(Spaced(Token::Char(':' | '.'), _)) => true,
                Some(Spaced(Token::Char(','), _)) => words::is_reason(&tokens[4..]),
                _ => false,
            };
            (letter(run)?, 3 + usize::from(colon), false)
        }
        [Spaced(Token::Text(text), _), ..] if text.len() > 1 && letter(text.trim_matches(MARKS)).is_some() => {
            (text.trim_matches(MARKS).to_string(), 1, true)
        }
        [Spaced(Token::Letters(run) | Token::Text(run), _), Spaced(Token::Char('.' | ')' | ':'), _), ..] => {
            (letter(run)?, 2, false)
        }
        [Spaced(Token::Letters(run) | Token::Text(run), _), Spaced(Token::Char(','), _), rest @ ..]
            if words::is_reason(rest) =>
        {
            (letter(run)?, 2, false)
        }
        // `B because the force doubles`
        [Spaced(Token::Letters(run), _), Spaced(Token::Letters(word), true), _, ..]
            if matches!(word.as_str(), "because" | "since") =>
        {
            (letter(run)?, 1, false)
        }
        // `B (the second)`
        [Spaced(Token::Letters(run) | Token::Text(run), _), Spaced(Token::Char('('), true), rest @ ..]
            if matches!(rest.last(), Some(Spaced(Token::Char(')'), _))) =>
        {
            tells(rest).then_some(())?;
            (letter(run)?, 1, true)
        }
        [Spaced(Token::Letters(run) | Token::Text(run), _), Spaced(Token::Text(text), true)]
            if text.starts_with('(') && !denies(text) =>
        {
            (letter(run)?, 1, true)
        }
        // `B - the second` needs words after the dash; otherwise it is a difference.
        [Spaced(Token::Letters(run) | Token::Text(run), _), Spaced(Token::Char('-'), true), rest @ ..] => {
            tells(rest).then_some(())?;
            (letter(run)?, 2, false)
        }
        [Spaced(Token::Text(text), _), rest @ ..] => {
            // Letter and content within one `\text{}`.
            let (run, words) = text.split_once([':', '.', ')']).filter(|(_, words)| words.starts_with(' '))?;
            let mut rest = rest.to_vec();
            rest.insert(0, Spaced(Token::Text(words.trim().to_string()), true));
            let letter = letter(run.trim_start_matches('('))?;
            return (!names_another(&rest)).then_some((letter, rest));
        }
        _ => return None,
    };
    let rest = tokens[used..].to_vec();
    let apart = rest.first().is_some_and(|Spaced(_, spaced)| *spaced || marked);
    (apart && !names_another(&rest)).then_some((letter, rest))
}

/// Whether the text after a choice names a second one: `(A) or (B)`, `(A) 5 (B) 6`, `A: 5, B: 6`, `A (5) or B (6)`. The
/// text of a choice may begin with "both (A) and (B)".
fn names_another(rest: &[Spaced]) -> bool {
    let mut text = String::new();
    for Spaced(token, spaced) in rest {
        if *spaced || matches!(token, Token::Text(_)) {
            text.push(' ');
        }
        match token {
            Token::Letters(run) | Token::Digits(run) | Token::Text(run) => text.push_str(run),
            Token::Char(c) => text.push(*c),
            Token::Open | Token::Close | Token::Command(_) | Token::Cell | Token::Row => {}
        }
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.first().map(|word| word.trim_start_matches('(').to_lowercase()).as_deref() {
        Some("both" | "neither" | "either" | "all" | "none" | "not") => return false,
        Some(word) if is_separator(word) || offers(word) || word.starts_with([',', ';', '/']) => return true,
        _ => {}
    }
    let letter = |word: &str| matches!(word.as_bytes(), [b'A'..=b'H']);
    words.iter().enumerate().any(|(at, word)| {
        let word = word.trim_end_matches([',', ';']);
        let joined = at > 0 && (words[at - 1].ends_with([',', ';']) || is_separator(words[at - 1]));
        let next = words.get(at + 1).copied().unwrap_or_default();
        let marked = match &word[word.trim_end_matches(MARKS).len()..] {
            "" => joined && (next == "-" || next.starts_with('(')),
            // Not `E. coli`.
            "." => joined || next.starts_with(|c: char| c.is_ascii_digit()),
            ":" => true,
            // Not `(p + A)`.
            _ => word.starts_with('(') || !text.contains('('),
        };
        marked && letter(word.trim_matches(MARKS))
    })
}

/// Remove the braces that `\mathbf{(B)}` leaves around the first tokens.
fn without_braces(tokens: &[Spaced]) -> Option<Vec<Spaced>> {
    const LONGEST: usize = 5;
    tokens.first().filter(|token| token.0 == Token::Open)?;
    let close = tokens.iter().take(LONGEST).position(|token| token.0 == Token::Close)?;
    Some([&tokens[1..close], &tokens[close + 1..]].concat())
}

/// Whether the tokens after a letter contain words, so that the letter is a choice and not a symbol.
fn tells(rest: &[Spaced]) -> bool {
    let word = |Spaced(token, _): &Spaced| match token {
        Token::Letters(run) | Token::Text(run) => run.len() > 3 && is_word(run),
        _ => false,
    };
    let open = |Spaced(token, _): &Spaced| matches!(token, Token::Letters(run) | Token::Text(run) if denies(run));
    plain_words(rest).is_some() || (rest.iter().any(word) && !rest.iter().any(open))
}
