//! jinja2's filters, tests and global functions where minijinja's differ, do not exist or are not bounded.

use std::fmt;
use std::num::IntErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, functions};

use super::methods::{of_text, or_named};
use super::operators::{add, format, from_integer, integer};
use super::value::{Layout, afford, charge, invalid, is_container, items, text};

/// What jinja2 does not have, or has with another meaning.
const REMOVED: [&str; 7] = ["attr", "bool", "chain", "lines", "pprint", "split", "zip"];

/// Work of making an object that the charge for containers does not look into.
const OBJECT: u64 = 1000;

pub(super) fn register(environment: &mut Environment<'static>) {
    REMOVED.iter().for_each(|name| environment.remove_filter(name));
    environment.remove_global("debug");
    environment.add_filter("string", string);
    environment.add_filter("safe", string);
    for name in ["upper", "lower", "capitalize", "trim", "center"] {
        environment.add_filter(name, move |state: &State, value: &Value, arguments: Rest<Value>| {
            let (method, default) = match name {
                "trim" => ("strip", None),
                "center" => (name, Some(Value::from(80)).filter(|_| arguments.is_empty())),
                _ => (name, None),
            };
            method_of(state, value, method, &[&arguments[..], default.as_slice()].concat())
        });
    }
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, escape);
    }
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("title", title);
    environment.add_filter("replace", replace);
    environment.add_filter("format", |state: &mut State, value: &Value, arguments: Rest<ValueOrKwargs>| {
        format(state, value, arguments.into_values())
    });
    environment.add_filter("join", join);
    environment.add_filter("tojson", to_json);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("sum", sum);
    environment.add_filter("indent", indent);
    environment.add_filter("wordcount", word_count);
    environment.add_filter("urlencode", url_encode);
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_function("cycler", cycler);
    environment.add_function("joiner", joiner);
    environment.add_function("dict", dict);
    environment.add_function("namespace", namespace);
}

fn string(state: &State, value: &Value) -> Result<Value, Error> {
    Ok(text(state, value)?.as_ref().into())
}

/// Call a method of the text of a value.
fn method_of(state: &State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    of_text(state, &text(state, value)?, name, arguments)?.ok_or_else(|| Error::from(ErrorKind::UnknownMethod))
}

fn escape(state: &State, value: &Value) -> Result<Value, Error> {
    let text = text(state, value)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            _ => out.push(c),
        }
    }
    Ok(out.into())
}

fn default(value: Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let (given, named): (&[Value], Kwargs) = from_args(&arguments)?;
    let (default, boolean) = match given {
        [] => (named.has("default_value").then(|| named.get("default_value")).transpose()?, None),
        [default] => (Some(default.clone()), None),
        [default, boolean] => (Some(default.clone()), Some(boolean.clone())),
        _ => return Err(Error::from(ErrorKind::TooManyArguments)),
    };
    let boolean = or_named(boolean, &named, "boolean")?.is_some_and(|boolean| boolean.is_true());
    named.assert_all_used()?;
    let is_missing = value.is_undefined() || boolean && !value.is_true();
    Ok(if is_missing { default.unwrap_or_else(|| "".into()) } else { value })
}

/// jinja2's own rule for words, not that of Python's `str.title`.
fn title(state: &State, value: &Value) -> Result<Value, Error> {
    Ok(minijinja::filters::title(text(state, value)?).into())
}

fn replace(state: &State, value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut arguments = arguments.into_values();
    for argument in arguments.iter_mut().take(2).filter(|argument| !argument.is_kwargs()) {
        *argument = text(state, argument)?.as_ref().into();
    }
    method_of(state, value, "replace", &arguments)
}

fn join(
    state: &State,
    value: &Value,
    between: Option<Value>,
    attribute: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let between = or_named(between, &named, "d")?.unwrap_or_else(|| "".into());
    let attribute = or_named(attribute, &named, "attribute")?;
    named.assert_all_used()?;
    let (between, mut out) = (text(state, &between)?, String::new());
    for (at, item) in items(state, value)?.into_iter().enumerate() {
        let item = attribute.as_ref().map_or(Ok(item.clone()), |attribute| look_up(item, attribute))?;
        let item = text(state, &item)?;
        afford(state, out.len() + between.len() + item.len())?;
        out.push_str(if at > 0 { &between } else { "" });
        out.push_str(&item);
    }
    Ok(out.into())
}

/// Return the attribute of a value, a name or a path such as `function.name`.
fn look_up(value: Value, attribute: &Value) -> Result<Value, Error> {
    let Some(path) = attribute.as_str() else { return value.get_item(attribute) };
    path.split('.').try_fold(value, |value, name| match name.parse::<usize>() {
        Ok(at) => value.get_item_by_index(at),
        Err(_) => value.get_attr(name),
    })
}

/// `transformers`' filter: `json.dumps`, with Unicode as it is.
fn to_json(
    state: &State,
    value: &Value,
    ascii: Option<bool>,
    indent: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let ascii = or_named(ascii, &named, "ensure_ascii")?.unwrap_or(false);
    let indent = or_named(indent, &named, "indent")?;
    let separators: Option<Value> = named.get("separators")?;
    let sort_keys = named.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    named.assert_all_used()?;
    let indent = match indent {
        Some(indent) if indent.as_str().is_none() => {
            let width = integer(&indent).ok_or_else(|| invalid("tojson: indent must be a number or a string"))?;
            let width = usize::try_from(width).unwrap_or(0);
            afford(state, width)?;
            Some(" ".repeat(width))
        }
        indent => indent.and_then(|indent| indent.as_str().map(str::to_string)),
    };
    let separators = match separators {
        Some(separators) => items(state, &separators)?,
        None => vec![Value::from(if indent.is_some() { "," } else { ", " }), ": ".into()],
    };
    let [item_separator, key_separator] = &separators[..] else {
        return Err(invalid("tojson: separators must be two strings"));
    };
    let [item_separator, key_separator] =
        [text(state, item_separator)?.into_owned(), text(state, key_separator)?.into_owned()];
    let layout = Layout { is_json: true, ascii, sort_keys, indent, item_separator, key_separator };
    Ok(layout.text(state, value)?.into())
}

/// Python's `int`, and the default for what it does not read.
fn int(value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs) -> Result<Value, Error> {
    let default = or_named(default, &named, "default")?;
    let base = or_named(base, &named, "base")?.unwrap_or(10);
    named.assert_all_used()?;
    if !(2..=36).contains(&base) {
        return Err(invalid(format!("int: base {base} is not between 2 and 36")));
    }
    let too_large = || invalid("int: the number is beyond 128 bits");
    if let Some(digits) = value.as_str().and_then(|text| digits(text, base)) {
        match i128::from_str_radix(&digits, base) {
            Ok(number) => return Ok(from_integer(number)),
            Err(error) if *error.kind() != IntErrorKind::InvalidDigit && *error.kind() != IntErrorKind::Empty => {
                return Err(too_large());
            }
            Err(_) => {}
        }
    }
    if let Some(number) = integer(value) {
        return Ok(from_integer(number));
    }
    match number(value)? {
        Some(number) if number.is_finite() && number.abs() < 1e38 => Ok(from_integer(number as i128)),
        Some(number) if number.is_finite() || number.is_infinite() && value.as_str().is_none() => Err(too_large()),
        _ => Ok(default.unwrap_or_else(|| 0.into())),
    }
}

/// Python's `float`, and the default for what it does not read.
fn float(value: &Value, default: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let default = or_named(default, &named, "default")?;
    named.assert_all_used()?;
    Ok(number(value)?.map_or_else(|| default.unwrap_or_else(|| 0.0.into()), Value::from))
}

/// Return a value as a float; `None` if Python's `float` would not read it.
fn number(value: &Value) -> Result<Option<f64>, Error> {
    match (value.as_str(), integer(value)) {
        _ if value.is_undefined() => Err(Error::from(ErrorKind::UndefinedError)),
        (Some(text), _) => Ok(digits(text, 10).and_then(|digits| digits.parse().ok())),
        (_, Some(number)) => Ok(Some(number as f64)),
        _ => Ok(f64::try_from(value.clone()).ok()),
    }
}

/// Return the digits of a number without the underscores that Python allows between them, and without its prefix.
fn digits(text: &str, base: u32) -> Option<String> {
    let text = text.trim();
    let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let has_prefix = !prefix.is_empty() && digits.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let digits = if has_prefix { digits[2..].strip_prefix('_').unwrap_or(&digits[2..]) } else { digits };
    let misplaced = digits.starts_with(['_', '+', '-']) || digits.ends_with('_') || digits.contains("__");
    (!misplaced).then(|| format!("{sign}{}", digits.replace('_', "")))
}

fn sum(
    state: &State,
    values: &Value,
    attribute: Option<Value>,
    start: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let attribute = or_named(attribute, &named, "attribute")?;
    let start = or_named(start, &named, "start")?;
    named.assert_all_used()?;
    items(state, values)?.into_iter().try_fold(start.unwrap_or_else(|| 0.into()), |sum, item| {
        let item = attribute.as_ref().map_or(Ok(item.clone()), |attribute| look_up(item, attribute))?;
        add(state, sum, Rest(vec![item]))
    })
}

fn indent(state: &State, value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let arguments = arguments.into_values();
    let (width, first, blank, named): (Option<Value>, Option<bool>, Option<bool>, Kwargs) = from_args(&arguments)?;
    let width = or_named(width, &named, "width")?.unwrap_or_else(|| 4.into());
    let first = or_named(first, &named, "first")?.unwrap_or(false);
    let blank = or_named(blank, &named, "blank")?.unwrap_or(false);
    named.assert_all_used()?;
    // The text gets a line end before it is split into lines.
    let text = format!("{}\n", text(state, value)?);
    let lines = items(state, &method_of(state, &text.as_str().into(), "splitlines", &[])?)?;
    let (unit, times) = match (width.as_str(), integer(&width)) {
        (Some(unit), _) => (unit, 1),
        (None, Some(width)) => (" ", usize::try_from(width.max(0)).unwrap_or(usize::MAX)),
        _ => return Err(invalid("indent: the width must be a number or a string")),
    };
    afford(state, unit.len().saturating_mul(times).saturating_mul(lines.len()).saturating_add(text.len()))?;
    let indent = unit.repeat(times);
    let lines = lines.iter().enumerate().map(|(at, line)| {
        let line = line.as_str().unwrap_or_default();
        let indented = if at == 0 { first } else { blank || !line.is_empty() };
        format!("{}{line}", if indented { &indent } else { "" })
    });
    Ok(lines.collect::<Vec<_>>().join("\n").into())
}

fn word_count(state: &State, value: &Value) -> Result<usize, Error> {
    let text = text(state, value)?;
    Ok(text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).count())
}

fn url_encode(state: &State, value: &Value) -> Result<String, Error> {
    if !is_container(value) {
        return Ok(percent_encoded(&text(state, value)?, true));
    }
    let pairs = items(state, value)?.into_iter().map(|item| {
        let pair = if value.kind() == ValueKind::Map {
            vec![item.clone(), value.get_item(&item)?]
        } else {
            items(state, &item)?
        };
        let [name, value] = &pair[..] else { return Err(invalid("urlencode: expected pairs")) };
        let parts = [percent_encoded(&text(state, name)?, false), percent_encoded(&text(state, value)?, false)];
        Ok(parts.join("=").replace("%20", "+"))
    });
    Ok(pairs.collect::<Result<Vec<_>, Error>>()?.join("&"))
}

fn percent_encoded(text: &str, keeps_slash: bool) -> String {
    let encode = |byte: u8| match byte {
        b'_' | b'.' | b'-' | b'~' => char::from(byte).to_string(),
        b'/' if keeps_slash => "/".to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Values in turn, from the first again after the last.
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl fmt::Debug for Cycler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cycler")
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current"))
            .then(|| self.items[self.at.load(Ordering::Relaxed) % self.items.len()].clone())
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, name: &str, arguments: &[Value]) -> Result<Value, Error> {
        from_args::<()>(arguments)?;
        match name {
            "next" => Ok(self.items[self.at.fetch_add(1, Ordering::Relaxed) % self.items.len()].clone()),
            "reset" => {
                self.at.store(0, Ordering::Relaxed);
                Ok(().into())
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

fn joiner(state: &State, separator: Option<Value>) -> Result<Value, Error> {
    state.consume_fuel(OBJECT)?;
    Ok(minijinja_contrib::globals::joiner(separator))
}

fn dict(state: &State, base: Option<Value>, items: Kwargs) -> Result<Value, Error> {
    let dict = functions::dict(base, items)?;
    charge(state, &dict)?;
    Ok(dict)
}

fn namespace(state: &State, items: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let namespace = functions::namespace(items)?;
    charge(state, &namespace)?;
    Ok(namespace)
}

fn cycler(state: &State, items: Rest<Value>) -> Result<Value, Error> {
    state.consume_fuel(OBJECT)?;
    if items.is_empty() {
        return Err(invalid("cycler: no items are given"));
    }
    Ok(Value::from_object(Cycler { items: items.0, at: AtomicUsize::new(0) }))
}
