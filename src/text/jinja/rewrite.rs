//! Rewriting of the expressions of a template, so that operators do what Python's do and their work is bounded.
//!
//! In minijinja, operators cannot be replaced, but filters can: `a + b` becomes `a|__add(b)`, and so `~`, `*` and `%`.
//! `|__listed` copies a slice, which is a view otherwise, `|__indexed` charges for a text whose characters are counted,
//! and `|__checked` charges for a container that is made, compared or used as a key. The grammar is the one of jinja2's
//! parser; text outside of tags is not changed.

use std::borrow::Cow;

use super::expression::ExpressionParser;

/// Maximum nesting of brackets in a tag.
const BRACKETS: usize = 100;
/// Maximum number of tokens of a tag, and of `elif` tags: the library recurses over them.
const TOKENS: usize = 2000;
const ELIFS: usize = 500;

/// Return the template with its expressions rewritten, or why a tag cannot be read.
pub(super) fn rewrite(source: &str) -> Result<String, String> {
    let (mut out, mut rest, mut elifs) = (String::with_capacity(source.len() * 2), source, 0);
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let length = match rest.as_bytes().get(1) {
            Some(b'#') => rest[2..].find("#}").map_or(rest.len(), |at| at + 4),
            Some(b'%') if word(rest) == "raw" => raw_length(rest),
            Some(b'{' | b'%') => {
                elifs += usize::from(word(rest) == "elif");
                let tag = if elifs > ELIFS { Err(format!("more than {ELIFS} elif")) } else { tag(rest) };
                let (text, length) = tag.map_err(|fault| {
                    let line = source[..source.len() - rest.len()].matches('\n').count() + 1;
                    format!("syntax error: {fault} (template line {line})")
                })?;
                out.push_str(&text);
                rest = &rest[length..];
                continue;
            }
            _ => 1,
        };
        out.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    Ok(out + rest)
}

/// Return the first word of a tag.
fn word(tag: &str) -> &str {
    let inner = tag[2..].trim_start_matches(['-', '+']).trim_start();
    &inner[..word_length(inner)]
}

fn word_length(code: &str) -> usize {
    code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len())
}

/// Return the length of a raw block up to the tag that ends it.
fn raw_length(block: &str) -> usize {
    let mut tags = block.match_indices("{%").map(|(at, _)| at);
    tags.find(|&at| word(&block[at..]) == "endraw").unwrap_or(block.len())
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum TokenKind {
    Name,
    Number,
    Text,
    Operator,
}

/// A token with the whitespace before it.
#[derive(Clone, Copy)]
pub(super) struct TemplateToken<'s> {
    pub(super) space: &'s str,
    pub(super) text: &'s str,
    pub(super) kind: TokenKind,
}

/// Rewrite the tag that `code` begins with. Return its text and the length of the original.
fn tag(code: &str) -> Result<(String, usize), String> {
    let close = if code.starts_with("{{") { "}}" } else { "%}" };
    let head = 2 + usize::from(code[2..].starts_with(['-', '+']));
    let (mut at, mut tokens, mut open) = (head, Vec::<TemplateToken>::new(), Vec::new());
    loop {
        let rest = code[at..].trim_start();
        let space = &code[at..code.len() - rest.len()];
        at = code.len() - rest.len();
        let Some(first) = rest.chars().next() else { return Err(format!("a tag is not closed by {close}")) };
        let end = ["", "-", "+"].into_iter().find(|sign| rest.strip_prefix(sign).is_some_and(|r| r.starts_with(close)));
        if let (Some(sign), true) = (end, open.is_empty()) {
            let body = ExpressionParser::new(&tokens).tag(close)?;
            let end = at + sign.len() + close.len();
            return Ok((format!("{}{body}{space}{}", &code[..head], &code[at..end]), end));
        }
        if tokens.len() == TOKENS {
            return Err(format!("a tag has more than {TOKENS} tokens"));
        }
        let (length, kind) = match first {
            '"' | '\'' => (text_length(rest)?, TokenKind::Text),
            '0'..='9' => (number_length(rest, tokens.last().is_some_and(|token| token.text == ".")), TokenKind::Number),
            _ if first.is_alphanumeric() || first == '_' => (word_length(rest), TokenKind::Name),
            _ => (operator_length(rest)?, TokenKind::Operator),
        };
        match first {
            '(' => open.push(')'),
            '[' => open.push(']'),
            '{' => open.push('}'),
            ')' | ']' | '}' if open.pop() != Some(first) => return Err(format!("unexpected {first}")),
            _ => {}
        }
        if open.len() > BRACKETS {
            return Err(format!("brackets are nested more than {BRACKETS} deep"));
        }
        tokens.push(TemplateToken { space, text: &rest[..length], kind });
        at += length;
    }
}

fn operator_length(code: &str) -> Result<usize, String> {
    if ["**", "//", "==", "!=", "<=", ">="].iter().any(|operator| code.starts_with(operator)) {
        return Ok(2);
    }
    let unexpected = code.chars().next().filter(|&c| !"+-*/%~|.,:=<>()[]{};".contains(c));
    unexpected.map_or(Ok(1), |c| Err(format!("unexpected {c}")))
}

/// Return the length in bytes of the string literal that `code` begins with, quotes included.
fn text_length(code: &str) -> Result<usize, String> {
    let quote = code.chars().next();
    let mut escaped = false;
    for (at, c) in code.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if Some(c) == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err("a string is not closed".to_string())
}

/// Return the length of a number; one that is an attribute, as in `pair.0.name`, has no fraction.
fn number_length(code: &str, is_attribute: bool) -> usize {
    let bytes = code.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let (mut at, mut fraction) = (0, is_attribute);
    while let Some(&byte) = bytes.get(at) {
        let exponent = at > 0 && matches!(bytes[at - 1], b'e' | b'E') && !code.starts_with("0x");
        match byte {
            b'.' if !fraction && is_digit(at + 1) => fraction = true,
            b'+' | b'-' if exponent && is_digit(at + 1) => {}
            _ if byte.is_ascii_alphanumeric() || byte == b'_' => {}
            _ => break,
        }
        at += 1;
    }
    at
}

/// Return a string literal whose escapes minijinja reads as Python would.
pub(super) fn literal(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return text.into();
    }
    let (mut out, mut chars) = (String::with_capacity(text.len()), text.chars());
    while let Some(c) = chars.next() {
        let next = if c == '\\' { chars.next() } else { None };
        let code = chars.as_str().get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        match (next, code.and_then(char::from_u32)) {
            (None, _) => out.push(c),
            (Some('\n'), _) => {}
            (Some('a'), _) => out.push_str("\\x07"),
            (Some('v'), _) => out.push_str("\\x0b"),
            (Some('/'), _) => out.push_str("\\\\/"),
            (Some('U'), Some(code)) => {
                out.extend(code.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
                chars.nth(7);
            }
            (Some(other), _) => out.extend(['\\', other]),
        }
    }
    out.into()
}
