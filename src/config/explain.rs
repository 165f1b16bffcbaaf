//! Turns the deserialiser's message and position into a message with key, value and advice.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Keys whose value decides which other keys a table has.
const TAGS: [&str; 2] = ["type", "engine"];

/// Start of serde's description of a table whose `type` decides which other keys it has.
const TAGGED: &str = "internally tagged enum ";

/// Remove the key at `path`; return false if there is no such key or it is an array entry.
pub(super) fn remove(table: &mut DeTable<'_>, path: &[String]) -> bool {
    let Some((name, above)) = path.split_last() else { return false };
    let table = match above {
        [] => Some(table),
        _ => at_mut(table, above)
            .and_then(|value| if let DeValue::Table(inner) = value.get_mut() { Some(inner) } else { None }),
    };
    table.is_some_and(|table| table.remove(name.as_str()).is_some())
}

/// Return the path of the smallest key or value that contains `span`.
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

/// Return the value at `path`, mutably.
fn at_mut<'a, 'i>(table: &'a mut DeTable<'i>, path: &[String]) -> Option<&'a mut Spanned<DeValue<'i>>> {
    let (name, rest) = path.split_first()?;
    rest.iter().try_fold(table.get_mut(name.as_str())?, |value, name| match value.get_mut() {
        DeValue::Table(inner) => inner.get_mut(name.as_str()),
        DeValue::Array(array) => array.get_mut(name.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Return the value at `path`.
fn at<'a, 'i>(table: &'a DeTable<'i>, path: &[String]) -> Option<&'a Spanned<DeValue<'i>>> {
    let (name, rest) = path.split_first()?;
    rest.iter().try_fold(table.get(name.as_str())?, |value, name| match value.get_ref() {
        DeValue::Table(inner) => inner.get(name.as_str()),
        DeValue::Array(array) => array.get(name.parse::<usize>().ok()?),
        _ => None,
    })
}

/// The position of a mistake and the deserialiser's message.
pub(super) struct LocatedMessage {
    pub(super) path: Vec<String>,
    pub(super) span: Range<usize>,
    pub(super) message: String,
}

/// Find the wrong key within the table or array that the deserialiser reports: it buffers a table that has one of
/// [`TAGS`] and loses the positions within. The wrong key is the one that the message names, or the one whose removal
/// changes the message.
pub(super) fn narrow(
    document: &Spanned<DeTable<'_>>,
    mut found: LocatedMessage,
    read: &dyn Fn(&Spanned<DeTable>) -> Option<String>,
) -> LocatedMessage {
    let name = found.message.split('`').nth(1).unwrap_or_default().to_string();
    let starts = |word: &str| found.message.starts_with(word);
    let last = |path: &[String]| path.last().cloned().unwrap_or_default();
    // An array of tables can have the position of one of its entries.
    if let Some(DeValue::Array(array)) = at(document.get_ref(), &found.path).map(Spanned::get_ref)
        && let Some(entry) = array.iter().position(|entry| entry.span() == found.span)
        && last(&found.path) != name
    {
        found.path.push(entry.to_string());
    }
    let Some(value) = at(document.get_ref(), &found.path) else { return found };
    let mut places: Vec<(Range<usize>, Vec<String>)> = Vec::new();
    visit_value(value, &mut found.path.clone(), &mut |span, path| places.push((span, path.to_vec())));
    if starts("missing field") {
        return missing(document, found, &places, &name, read);
    }
    let named = starts("unknown field") || starts("key `");
    let is_tag = |path: &[String]| TAGS.contains(&last(path).as_str());
    let text = |path: &[String]| at(document.get_ref(), path).and_then(|value| value.get_ref().as_str());
    let changes = |path: &[String]| {
        let mut document = document.clone();
        remove(document.get_mut(), path) && read(&document).is_none_or(|other| other != found.message)
    };
    let below = || places.iter().filter(|(_, path)| *path != found.path);
    let culprit = if named {
        let mut those = below().filter(|(_, path)| last(path) == name);
        // If several entries have this key, removing one of them does not change the message.
        those.clone().find(|(_, path)| changes(path)).or_else(|| those.next().filter(|_| last(&found.path) != name))
    } else if starts("invalid") || starts("unknown variant") {
        // For a tag that is not a string the message quotes no name.
        let wanted = if starts("unknown variant") { Some(name.as_str()) } else { None };
        let is_wrong = wanted.is_some() || found.message.ends_with("expected variant identifier");
        let tag = |path: &[String]| is_wrong && is_tag(path) && text(path) == wanted;
        let other = below().find(|(_, path)| !is_tag(path) && changes(path));
        other.or_else(|| below().find(|(_, path)| tag(path)))
    } else {
        None
    };
    let Some((key, path)) = culprit.cloned() else { return found };
    let value = at(document.get_ref(), &path).map_or(key.clone(), Spanned::span);
    let span = if starts("unknown field") { key } else { value };
    let found = LocatedMessage { path, span, message: found.message };
    if named { found } else { narrow(document, found, read) }
}

/// Find the table that lacks the key `name`. If the key is a tag, add its valid values to the message.
fn missing(
    document: &Spanned<DeTable<'_>>,
    mut found: LocatedMessage,
    places: &[(Range<usize>, Vec<String>)],
    name: &str,
    read: &dyn Fn(&Spanned<DeTable>) -> Option<String>,
) -> LocatedMessage {
    for (span, path) in places {
        let mut with = document.clone();
        let Some(DeValue::Table(table)) = at_mut(with.get_mut(), path).map(Spanned::get_mut) else { continue };
        let tag = Spanned::new(0..0, DeValue::String("".into()));
        if table.insert(Spanned::new(0..0, name.to_string().into()), tag).is_some() {
            continue;
        }
        let message = read(&with).unwrap_or_default();
        if message == found.message {
            continue;
        }
        (found.path, found.span) = (path.clone(), span.clone());
        found.message = format!("missing field `{name}`");
        if message.starts_with("unknown variant") {
            let known: Vec<&str> = message.split('`').skip(3).step_by(2).collect();
            found.message += &format!("; give one of {}", known.join(", "));
        }
        break;
    }
    found
}

/// Reword serde's message with the key and the value as written.
pub(super) fn explain(found: &LocatedMessage, document: &DeTable<'_>, written: Option<&str>) -> String {
    let LocatedMessage { path, message, .. } = found;
    let key = path.join(".");
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") {
        let name = quoted.next().unwrap_or_default();
        let valid: Vec<&str> = quoted.collect();
        // For a table that serde has buffered, the position is that of the whole table.
        let key = match path.last() {
            Some(last) if last == name => key,
            Some(_) => format!("{key}.{name}"),
            None => name.to_string(),
        };
        return format!("unknown key {key}; {}", advice(name, &valid));
    }
    let is_table = at(document, path).is_some_and(|value| value.get_ref().is_table());
    // The position of a table that is not inline is that of its header or key, which is not worth showing.
    let shows = |text: &&str| text.len() <= 80 && !text.contains('\n') && (text.starts_with('{') || !is_table);
    let subject = match written.map(str::trim).filter(shows) {
        _ if key.is_empty() => String::new(),
        Some(value) if !value.is_empty() => format!("{key} = {value}: "),
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
        Some((_, "a sequence")) if is_table => {
            let names: Vec<&str> =
                path.iter().map(String::as_str).filter(|part| part.parse::<usize>().is_err()).collect();
            format!("{subject}expected an array, got a table; an array of tables is written [[{}]]", names.join("."))
        }
        Some((got, expected)) => {
            // A tagged table whose tag alone is given: `rewards = ["accuracy"]`.
            let tag = got.strip_prefix("string ").filter(|_| expected.starts_with(TAGGED));
            let hint = tag.map_or(String::new(), |tag| format!("; write {{ type = {tag} }}"));
            format!("{subject}expected {}, got {got}{hint}", plain(expected))
        }
        None if message == "u64 value was too large" => format!("{subject}must be at most {}", i64::MAX),
        None => format!("{subject}{message}"),
    }
}

/// Suggest the entry of `valid` nearest to `name`, or list all entries if none is near.
fn advice(name: &str, valid: &[&str]) -> String {
    let near = valid.iter().map(|valid| (strsim::damerau_levenshtein(name, valid), *valid)).min();
    match near {
        Some((distance, near)) if distance <= 2.max(near.len() / 3) && distance < near.len().min(name.len()) => {
            format!("did you mean {near}?")
        }
        Some(_) => format!("expected one of {}", valid.join(", ")),
        None => "this table has no keys".to_string(),
    }
}

/// Describe a Rust type in words.
fn plain(expected: &str) -> &str {
    match expected {
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a non-negative integer",
        "i8" | "i16" | "i32" | "i64" | "isize" => "an integer",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "any valid TOML value" => "a smaller integer",
        other if other.starts_with("struct ") || other.starts_with(TAGGED) => "a table",
        other => other,
    }
}
