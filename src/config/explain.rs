//! Where a mistake is, and how it is said: from the deserialiser's message and position to key, value and advice.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Keys that say which other keys a table has.
const TAGS: [&str; 2] = ["type", "engine"];

/// Takes the key at `path` out; false when there is none or it is an entry of an array.
pub(super) fn remove(table: &mut DeTable<'_>, path: &[String]) -> bool {
    let Some((name, rest)) = path.split_first() else { return false };
    if rest.is_empty() {
        return table.remove(name.as_str()).is_some();
    }
    match table.get_mut(name.as_str()).map(Spanned::get_mut) {
        Some(DeValue::Table(inner)) => remove(inner, rest),
        Some(DeValue::Array(array)) => {
            let entry = rest[0].parse().ok().and_then(|index: usize| array.get_mut(index));
            match entry.map(Spanned::get_mut) {
                Some(DeValue::Table(entry)) => remove(entry, &rest[1..]),
                _ => false,
            }
        }
        _ => false,
    }
}

/// The path of the key or value at `span`: the one with just this span, or else the smallest around it.
pub(super) fn find(table: &DeTable<'_>, span: &Range<usize>) -> Vec<String> {
    let mut best: Option<(usize, Vec<String>)> = None;
    let mut offer = |here: Range<usize>, path: &[String]| {
        let size = here.len();
        if here.start <= span.start && span.end <= here.end && best.as_ref().is_none_or(|(other, _)| size <= *other) {
            best = Some((size, path.to_vec()));
        }
    };
    if !span.is_empty() {
        visit(table, &mut Vec::new(), &mut offer);
    }
    best.map(|(_, path)| path).unwrap_or_default()
}

fn visit(table: &DeTable<'_>, path: &mut Vec<String>, offer: &mut impl FnMut(Range<usize>, &[String])) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        offer(key.span(), path);
        visit_value(value, path, offer);
        path.pop();
    }
}

fn visit_value(value: &Spanned<DeValue<'_>>, path: &mut Vec<String>, offer: &mut impl FnMut(Range<usize>, &[String])) {
    offer(value.span(), path);
    match value.get_ref() {
        DeValue::Table(inner) => visit(inner, path, offer),
        DeValue::Array(array) => {
            for (index, entry) in array.iter().enumerate() {
                path.push(index.to_string());
                visit_value(entry, path, offer);
                path.pop();
            }
        }
        _ => {}
    }
}

/// The value at `path`.
fn at<'a, 'i>(table: &'a DeTable<'i>, path: &[String]) -> Option<&'a Spanned<DeValue<'i>>> {
    let (name, rest) = path.split_first()?;
    let mut value = table.get(name.as_str())?;
    for name in rest {
        value = match value.get_ref() {
            DeValue::Table(inner) => inner.get(name.as_str())?,
            DeValue::Array(array) => array.get(name.parse::<usize>().ok()?)?,
            _ => return None,
        };
    }
    Some(value)
}

/// The path and the position of the key at fault, where the deserialiser only knows the table that it is in: it buffers a
/// table with one of [`TAGS`]. That is the key that the message names, or the one without which the message changes.
pub(super) fn narrow(
    document: &Spanned<DeTable<'_>>,
    mut path: Vec<String>,
    span: Range<usize>,
    message: &str,
    read: &dyn Fn(&Spanned<DeTable>) -> Option<String>,
) -> (Vec<String>, Range<usize>) {
    // An array of tables can have the position of an entry.
    let names_it = message.split('`').nth(1).is_some_and(|name| path.last().is_some_and(|last| last == name));
    if let Some(DeValue::Array(array)) = at(document.get_ref(), &path).map(Spanned::get_ref)
        && let Some(entry) = array.iter().position(|entry| entry.span() == span).filter(|_| !names_it)
    {
        path.push(entry.to_string());
    }
    let Some(DeValue::Table(table)) = at(document.get_ref(), &path).map(Spanned::get_ref) else { return (path, span) };
    if ["unknown field", "key"].iter().any(|start| message.starts_with(&format!("{start} `"))) {
        let name = message.split('`').nth(1).unwrap_or_default();
        let key = table.get_key_value(name).map(|(key, value)| match message.starts_with("key") {
            true => value.span(),
            false => key.span(),
        });
        return match key {
            Some(span) => {
                path.push(name.to_string());
                (path, span)
            }
            None => (path, span),
        };
    }
    let tag = TAGS.into_iter().find(|tag| table.contains_key(*tag));
    let Some(tag) = tag.filter(|_| message.starts_with("invalid")) else { return (path, span) };
    let without = |name: &str| {
        let (mut document, path) = (document.clone(), [&path[..], &[name.to_string()]].concat());
        remove(document.get_mut(), &path);
        read(&document)
    };
    let changes = |name: &str| without(name).is_none_or(|other| other != message);
    let culprit = table.iter().find(|(key, _)| *key.get_ref() != tag && changes(key.get_ref()));
    let Some((key, value)) = culprit else { return (path, span) };
    path.push(key.get_ref().to_string());
    narrow(document, path, value.span(), message, read)
}

/// Says serde's message in terms of the key and the value as written.
pub(super) fn explain(message: &str, path: &[String], written: Option<&str>) -> String {
    let key = path.join(".");
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") {
        let name = quoted.next().unwrap_or_default();
        let valid: Vec<&str> = quoted.collect();
        // Where serde has buffered a table, the position is the table's.
        let key = match path.last() {
            Some(last) if last == name => key,
            Some(_) => format!("{key}.{name}"),
            None => name.to_string(),
        };
        return format!("unknown key {key}; {}", advice(name, &valid));
    }
    let written = written.filter(|text| text.len() <= 80 && !text.contains('\n') && !text.is_empty());
    // A table's position is its header, which is no value to show.
    let header = |text: &str| text.starts_with('[') && path.last().is_some_and(|name| text.contains(name.as_str()));
    let subject = match written {
        _ if key.is_empty() => String::new(),
        Some(value) if !header(value) => format!("{key} = {value}: "),
        _ => format!("{key}: "),
    };
    if message.starts_with("unknown variant") {
        let name = quoted.next().unwrap_or_default();
        let valid: Vec<&str> = quoted.collect();
        return format!("{subject}{}", advice(name, &valid));
    }
    let reworded = (message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: ")))
        .and_then(|rest| rest.rsplit_once(", expected "));
    match reworded {
        Some((got, expected)) => format!("{subject}expected {}, got {got}", plain(expected)),
        None => format!("{subject}{message}"),
    }
}

/// The nearest of `valid`, or all of them when none is near.
fn advice(name: &str, valid: &[&str]) -> String {
    let near = valid.iter().map(|valid| (strsim::damerau_levenshtein(name, valid), *valid)).min();
    match near {
        Some((distance, near)) if distance <= 2.max(near.len() / 3) && distance < near.len().min(name.len()) => {
            format!("did you mean {near}?")
        }
        Some(_) => format!("expected one of {}", valid.join(", ")),
        None => "there are no keys here".to_string(),
    }
}

/// A Rust type in words.
fn plain(expected: &str) -> &str {
    match expected {
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        other => other.strip_prefix("struct ").map_or(other, |_| "a table"),
    }
}
