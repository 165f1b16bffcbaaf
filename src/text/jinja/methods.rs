//! Methods of Python's texts, lists and dicts. As in the sandbox of `transformers`, none changes its value.

use std::collections::HashSet;

use minijinja::value::{ArgType, Kwargs, StringInput, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::value::{afford, charge, collect, invalid, items};

/// Call a method.
///
/// # Errors
/// When there is no such method, and when Python would raise one.
pub(super) fn call(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => of_text(state, value.as_str().unwrap_or_default(), name, arguments)?,
        ValueKind::Map => of_dict(state, value, name, arguments)?,
        ValueKind::Seq | ValueKind::Iterable => of_list(state, value, name, arguments)?,
        _ => None,
    };
    match (found, name) {
        (Some(result), _) => Ok(result),
        (None, "format") => {
            afford(state, value.as_str().map_or(0, widths))?;
            arguments.iter().try_for_each(|argument| charge(state, argument))?;
            pycompat::unknown_method_callback(state, value, name, arguments)
        }
        // The library's, as long as they are tests: Rust's properties of characters that are not ASCII.
        (None, test) if test.starts_with("is") => pycompat::unknown_method_callback(state, value, name, arguments),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// Return the sum of all numbers in the fields of a format, of which some are widths.
fn widths(format: &str) -> usize {
    let fields = format.split('{').skip(1).filter_map(|field| field.split('}').next());
    let numbers =
        fields.flat_map(|field| field.split(|c: char| !c.is_ascii_digit())).filter(|digits| !digits.is_empty());
    numbers.fold(0, |sum, digits| sum.saturating_add(digits.parse().unwrap_or(usize::MAX)))
}

/// Call a method of a text; `None` if it is not one of these.
pub(super) fn of_text(state: &State, text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let one = || from_args::<(&str,)>(arguments).map(|(argument,)| argument);
    let none = || from_args::<()>(arguments);
    Ok(Some(match name {
        "removeprefix" => text.strip_prefix(one()?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(one()?).unwrap_or(text).into(),
        "partition" => {
            let at = separator(one()?)?;
            text.split_once(at).map_or(parts(text, "", ""), |(before, after)| parts(before, at, after))
        }
        "rpartition" => {
            let at = separator(one()?)?;
            text.rsplit_once(at).map_or(parts("", "", text), |(before, after)| parts(before, at, after))
        }
        "split" | "rsplit" => {
            let (at, most, named): (Option<&str>, Option<i64>, Kwargs) = from_args(arguments)?;
            let at = or_named(at, &named, "sep")?;
            let most = or_named(most, &named, "maxsplit")?.and_then(|most| usize::try_from(most).ok());
            named.assert_all_used()?;
            let at = at.map(separator).transpose()?;
            let pieces: Box<dyn Iterator<Item = &str>> = match (at, most.unwrap_or(usize::MAX), name) {
                (None, most, "split") => Box::new(words(text, most)),
                (None, most, _) => Box::new(last_words(text, most)),
                (Some(at), most, "split") => Box::new(text.splitn(most.saturating_add(1), at)),
                (Some(at), most, _) => Box::new(text.rsplitn(most.saturating_add(1), at)),
            };
            let mut pieces = collect(state, pieces.map(|piece| Ok(piece.into())))?;
            if name == "rsplit" {
                pieces.reverse();
            }
            pieces.into()
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(arguments)?;
            let keep = or_named(keep, &named, "keepends")?.unwrap_or(false);
            named.assert_all_used()?;
            let lines = lines(text).map(|(line, end)| if keep { line } else { &line[..end] });
            collect(state, lines.map(|line| Ok(line.into())))?.into()
        }
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(arguments)?;
            let chars: Option<HashSet<char>> = chars.map(|chars| chars.chars().collect());
            let is_stripped = |c: char| chars.as_ref().map_or(is_space(c), |chars| chars.contains(&c));
            let left = if name == "rstrip" { text } else { text.trim_start_matches(is_stripped) };
            let both = if name == "lstrip" { left } else { left.trim_end_matches(is_stripped) };
            both.into()
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
            let found = window(text, start, end).and_then(|(before, text)| {
                let at = if name.starts_with('r') { text.rfind(part) } else { text.find(part) };
                at.map(|at| before + text[..at].chars().count())
            });
            match found {
                Some(at) => at.into(),
                None if name.ends_with("find") => (-1).into(),
                None => return Err(invalid("substring not found")),
            }
        }
        "count" => {
            let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
            window(text, start, end).map_or(0, |(_, text)| text.matches(part).count()).into()
        }
        "startswith" | "endswith" => {
            let (part, start, end): (&Value, Option<i64>, Option<i64>) = from_args(arguments)?;
            let parts = if part.as_str().is_some() { vec![part.clone()] } else { items(state, part)? };
            let parts = parts
                .iter()
                .map(|part| part.as_str().ok_or_else(|| invalid("expected a string or a tuple of strings")));
            let parts = parts.collect::<Result<Vec<_>, _>>()?;
            let fits =
                |text: &str, part: &str| if name == "endswith" { text.ends_with(part) } else { text.starts_with(part) };
            window(text, start, end).is_some_and(|(_, text)| parts.iter().any(|part| fits(text, part))).into()
        }
        "replace" => {
            let (old, new, count, named): (&str, &str, Option<i64>, Kwargs) = from_args(arguments)?;
            let count = or_named(count, &named, "count")?.and_then(|count| usize::try_from(count).ok());
            named.assert_all_used()?;
            let matches = text.matches(old).take(count.unwrap_or(usize::MAX)).count();
            afford(state, text.len().saturating_add(matches.saturating_mul(new.len())))?;
            text.replacen(old, new, matches).into()
        }
        "join" => {
            let (list,): (&Value,) = from_args(arguments)?;
            let list = items(state, list)?;
            let texts = list.iter().map(|item| {
                item.as_str()
                    .ok_or_else(|| invalid(format!("join: expected strings, found a value of type {}", item.kind())))
            });
            let texts = texts.collect::<Result<Vec<_>, _>>()?;
            let length = texts.iter().fold(0, |sum: usize, item| sum.saturating_add(item.len() + text.len()));
            afford(state, length)?;
            texts.join(text).into()
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<&str>) = from_args(arguments)?;
            let mut fill = fill.unwrap_or(" ").chars();
            let (Some(fill), None) = (fill.next(), fill.next()) else {
                return Err(invalid(format!("{name}: the fill must be one character")));
            };
            let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
            // As in CPython, the odd character is on the left in an odd width.
            let left = match name {
                "center" => missing / 2 + (missing & width as usize & 1),
                "ljust" => 0,
                _ => missing,
            };
            pad(state, "", left, text, missing - left, fill)?
        }
        "zfill" => {
            let (width,): (i64,) = from_args(arguments)?;
            let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
            let sign = usize::from(text.starts_with(['+', '-']));
            pad(state, &text[..sign], missing, &text[sign..], 0, '0')?
        }
        "expandtabs" => {
            let (size, named): (Option<i64>, Kwargs) = from_args(arguments)?;
            let size = usize::try_from(or_named(size, &named, "tabsize")?.unwrap_or(8)).unwrap_or(0);
            named.assert_all_used()?;
            afford(state, text.matches('\t').count().saturating_mul(size).saturating_add(text.len()))?;
            expand_tabs(text, size).into()
        }
        "upper" => none().map(|()| text.to_uppercase().into())?,
        "lower" => none().map(|()| text.to_lowercase().into())?,
        "casefold" => none().map(|()| text.chars().flat_map(casefold).collect::<String>().into())?,
        "capitalize" => {
            none()?;
            minijinja::filters::capitalize(StringInput::new(state, &text.into())?)
        }
        "title" => none().and_then(|()| title(state, text))?,
        "swapcase" => {
            none()?;
            let swap =
                |c: char| if c.is_lowercase() { c.to_uppercase().to_string() } else { c.to_lowercase().to_string() };
            text.chars().map(swap).collect::<String>().into()
        }
        "isspace" => none().map(|()| (!text.is_empty() && text.chars().all(is_space)).into())?,
        "isdecimal" => none().map(|()| (!text.is_empty() && text.chars().all(char::is_numeric)).into())?,
        _ => return Ok(None),
    }))
}

fn of_dict(state: &State, dict: &Value, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let pairs = || {
        from_args::<()>(arguments)?;
        items(state, dict)?
            .into_iter()
            .map(|key| Ok((key.clone(), dict.get_item(&key)?)))
            .collect::<Result<Vec<_>, Error>>()
    };
    Ok(Some(match name {
        "keys" => pairs()?.into_iter().map(|(key, _)| key).collect::<Vec<_>>().into(),
        "values" => pairs()?.into_iter().map(|(_, value)| value).collect::<Vec<_>>().into(),
        "items" => {
            pairs()?.into_iter().map(|(key, value)| Tuple::from([key, value]).into()).collect::<Vec<Value>>().into()
        }
        "copy" => from_args::<()>(arguments).map(|()| dict.clone())?,
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(arguments)?;
            charge(state, key)?;
            let found = dict.as_object().and_then(|dict| dict.get_value(key));
            found.unwrap_or_else(|| default.unwrap_or_else(|| ().into()))
        }
        _ => return Ok(None),
    }))
}

fn of_list(state: &State, list: &Value, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "count" | "index" => {
            let (item,): (&Value,) = from_args(arguments)?;
            charge(state, list)?;
            charge(state, item)?;
            let list = items(state, list)?;
            match name {
                "count" => list.iter().filter(|other| *other == item).count().into(),
                _ => match list.iter().position(|other| other == item) {
                    Some(at) => at.into(),
                    None => return Err(invalid("the list has no such item")),
                },
            }
        }
        "copy" => from_args::<()>(arguments).map(|()| list.clone())?,
        _ => return Ok(None),
    }))
}

/// Return an argument by position or by name.
pub(super) fn or_named<'a, T>(given: Option<T>, named: &'a Kwargs, name: &'a str) -> Result<Option<T>, Error>
where
    Option<T>: ArgType<'a, Output = Option<T>>,
{
    match given {
        Some(given) => Ok(Some(given)),
        None => named.get(name),
    }
}

fn parts(before: &str, at: &str, after: &str) -> Value {
    Tuple::from([before, at, after].map(Value::from)).into()
}

fn separator(at: &str) -> Result<&str, Error> {
    if at.is_empty() { Err(invalid("empty separator")) } else { Ok(at) }
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Return the words of a text; after `most` of them, the rest is one.
fn words(text: &str, most: usize) -> impl Iterator<Item = &str> {
    let (mut rest, mut found) = (text.trim_start_matches(is_space), 0);
    std::iter::from_fn(move || {
        let end = if found < most { rest.find(is_space).unwrap_or(rest.len()) } else { rest.len() };
        let (word, after) = rest.split_at(end);
        rest = after.trim_start_matches(is_space);
        found += 1;
        (!word.is_empty()).then_some(word)
    })
}

/// Return the words of a text from the last one on; before `most` of them, the rest is one.
fn last_words(text: &str, most: usize) -> impl Iterator<Item = &str> {
    let (mut rest, mut found) = (text.trim_end_matches(is_space), 0);
    std::iter::from_fn(move || {
        let last_space = rest.char_indices().rev().find(|&(_, c)| is_space(c)).map(|(at, c)| at + c.len_utf8());
        let start = if found < most { last_space.unwrap_or(0) } else { 0 };
        let (before, word) = rest.split_at(start);
        rest = before.trim_end_matches(is_space);
        found += 1;
        (!word.is_empty()).then_some(word)
    })
}

/// Return the lines of a text, each with its line end and the length without it.
fn lines(text: &str) -> impl Iterator<Item = (&str, usize)> {
    const ENDS: [char; 10] =
        ['\n', '\u{b}', '\u{c}', '\r', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = rest.find(ENDS).unwrap_or(rest.len());
        let after = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            first => first.map_or(0, char::len_utf8),
        };
        let (line, following) = rest.split_at(end + after);
        rest = following;
        (!line.is_empty()).then_some((line, end))
    })
}

/// Return the part of a text between two positions, which count from its end if negative, and where it begins.
fn window(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(usize, &str)> {
    if start.is_none() && end.is_none() {
        return Some((0, text));
    }
    let length = text.chars().count();
    let position = |at: i64| {
        let distance = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
        if at < 0 { length.saturating_sub(distance) } else { distance }
    };
    let (start, end) = (start.map_or(0, position), end.map_or(length, position).min(length));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    (start <= end).then(|| (start, &text[byte(start)..byte(end)]))
}

fn pad(state: &State, sign: &str, left: usize, text: &str, right: usize, fill: char) -> Result<Value, Error> {
    let added = left.saturating_add(right).saturating_mul(fill.len_utf8());
    afford(state, added.saturating_add(text.len()))?;
    let fills = |count: usize| std::iter::repeat_n(fill, count);
    let mut out = sign.to_string();
    out.extend(fills(left));
    out.push_str(text);
    out.extend(fills(right));
    Ok(out.into())
}

fn expand_tabs(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                column += spaces;
                out.extend(std::iter::repeat_n(' ', spaces));
            }
            '\t' => {}
            _ => {
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                out.push(c);
            }
        }
    }
    out
}

/// Return the full case folding of a character: that of its capital, but for the dotless i and for Cherokee.
fn casefold(c: char) -> Vec<char> {
    match c {
        'ı' => vec![c],
        '\u{13a0}'..='\u{13fd}' | '\u{ab70}'..='\u{abbf}' => c.to_uppercase().collect(),
        _ => c.to_lowercase().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect(),
    }
}

/// Return a text with a capital at the start of each run of letters that have a case, and all others small.
fn title(state: &State, text: &str) -> Result<Value, Error> {
    let is_cased = |c: char| c.is_lowercase() || c.is_uppercase();
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find(is_cased) {
        let word = &rest[start..];
        let (word, after) = word.split_at(word.find(|c| !is_cased(c)).unwrap_or(word.len()));
        out.push_str(&rest[..start]);
        let word = minijinja::filters::capitalize(StringInput::new(state, &word.into())?);
        out.push_str(word.as_str().unwrap_or_default());
        rest = after;
    }
    out.push_str(rest);
    Ok(out.into())
}
