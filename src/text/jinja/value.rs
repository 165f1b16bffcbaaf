//! Values as Python writes them, and the charge for work on what is inside of them.

use std::borrow::Cow;
use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Maximum nesting of lists and dicts: the library recurses over them.
const DEPTH: usize = 100;
/// Values that are visited for one step.
const VISITED_PER_STEP: usize = 4;
/// Bytes of memory of a place in a list.
const PLACE: usize = 32;

/// Return an error of a template.
pub(super) fn invalid(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Return an error if there is no fuel for a text of `bytes`, which the library charges for when it exists.
pub(super) fn afford(state: &State, bytes: usize) -> Result<(), Error> {
    match state.fuel_levels() {
        Some((_, left)) if bytes as u64 / super::BYTES_PER_STEP >= left => state.consume_fuel(left.saturating_add(1)),
        _ => Ok(()),
    }
}

/// Collect values into a list, with a charge.
pub(super) fn collect(
    state: &State,
    values: impl IntoIterator<Item = Result<Value, Error>>,
) -> Result<Vec<Value>, Error> {
    let mut list = Vec::new();
    for value in values {
        if list.len().is_multiple_of(VISITED_PER_STEP) {
            state.consume_fuel(1)?;
            afford(state, list.len() * PLACE)?;
        }
        list.push(value?);
    }
    Ok(list)
}

/// Return the items of a list or a tuple, the keys of a dict or the characters of a text.
pub(super) fn items(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    collect(state, value.try_iter()?.checked())
}

/// Charge for all values inside of `value`, which is to be compared, hashed or put into another container.
///
/// # Errors
/// When the fuel is used up, and when containers are nested too deeply.
pub(super) fn charge(state: &State, value: &Value) -> Result<(), Error> {
    visit(state, value, 0, &mut 0)
}

fn visit(state: &State, value: &Value, depth: usize, visited: &mut usize) -> Result<(), Error> {
    if !is_container(value) {
        return Ok(());
    }
    if depth == DEPTH {
        return Err(too_deep());
    }
    for item in value.try_iter()?.checked() {
        let item = item?;
        *visited += 1;
        if visited.is_multiple_of(VISITED_PER_STEP) {
            state.consume_fuel(1)?;
        }
        visit(state, &item, depth + 1, visited)?;
        if value.kind() == ValueKind::Map {
            visit(state, &value.get_item(&item)?, depth + 1, visited)?;
        }
    }
    Ok(())
}

/// Return whether a value is a list, a tuple, a dict or another iterable, but no text.
pub(super) fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map)
}

fn too_deep() -> Error {
    invalid(format!("lists and dicts are nested more than {DEPTH} deep"))
}

/// Return Python's `str(value)`.
pub(super) fn text<'v>(state: &State, value: &'v Value) -> Result<Cow<'v, str>, Error> {
    match value.as_str() {
        Some(text) => Ok(text.into()),
        None if value.is_undefined() => Ok("".into()),
        None => Layout::python().text(state, value).map(Cow::Owned),
    }
}

/// Layout of the text of a value: Python's `repr`, or JSON as `json.dumps` writes it.
pub(super) struct Layout {
    pub(super) is_json: bool,
    /// Whether JSON escapes all characters that are not ASCII.
    pub(super) ascii: bool,
    pub(super) sort_keys: bool,
    /// Text before each item, once per level, on a line of its own.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
}

impl Layout {
    fn python() -> Self {
        let (item_separator, key_separator) = (", ".to_string(), ": ".to_string());
        Self { is_json: false, ascii: false, sort_keys: false, indent: None, item_separator, key_separator }
    }

    /// Return the text of `value`.
    ///
    /// # Errors
    /// When it is too long or too deep, and for JSON when it has none.
    pub(super) fn text(&self, state: &State, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(state, &mut out, value, 0)?;
        Ok(out)
    }

    fn write(&self, state: &State, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        state.consume_fuel(1)?;
        afford(state, out.len() + value.as_str().map_or(0, str::len))?;
        match value.kind() {
            ValueKind::String => self.quote(out, value.as_str().unwrap_or_default()),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => out.push_str(&self.float(f64::try_from(value.clone())?)),
            ValueKind::None => out.push_str(if self.is_json { "null" } else { "None" }),
            ValueKind::Bool => out.push_str(match (self.is_json, value.is_true()) {
                (true, true) => "true",
                (true, false) => "false",
                (false, true) => "True",
                (false, false) => "False",
            }),
            _ if is_container(value) => return self.write_container(state, out, value, depth),
            kind if self.is_json => return Err(invalid(format!("a value of type {kind} is not JSON serializable"))),
            ValueKind::Undefined => out.push_str("Undefined"),
            _ => out.push_str(&value.to_string()),
        }
        Ok(())
    }

    fn write_container(&self, state: &State, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth == DEPTH {
            return Err(too_deep());
        }
        let is_dict = value.kind() == ValueKind::Map;
        let is_tuple = value.is_tuple() && !self.is_json;
        let (open, close) = match (is_dict, is_tuple) {
            (true, _) => ('{', '}'),
            (_, true) => ('(', ')'),
            _ => ('[', ']'),
        };
        let mut items = items(state, value)?;
        if is_dict && self.sort_keys {
            items.sort();
        }
        out.push(open);
        for (at, item) in items.iter().enumerate() {
            if at > 0 {
                out.push_str(&self.item_separator);
            }
            self.start_line(state, out, depth + 1)?;
            if is_dict {
                self.write_key(state, out, item, depth)?;
                out.push_str(&self.key_separator);
                self.write(state, out, &value.get_item(item)?, depth + 1)?;
            } else {
                self.write(state, out, item, depth + 1)?;
            }
        }
        match items.len() {
            0 => {}
            1 if is_tuple => out.push(','),
            _ => self.start_line(state, out, depth)?,
        }
        out.push(close);
        Ok(())
    }

    /// Write a key; JSON has only strings.
    fn write_key(&self, state: &State, out: &mut String, key: &Value, depth: usize) -> Result<(), Error> {
        let scalar = matches!(key.kind(), ValueKind::Number | ValueKind::Bool | ValueKind::None);
        match (self.is_json, scalar) {
            (true, true) => write!(out, "\"{}\"", self.text(state, key)?).map_err(Error::from),
            (true, false) if key.kind() != ValueKind::String => {
                Err(invalid(format!("a value of type {} cannot be a JSON key", key.kind())))
            }
            _ => self.write(state, out, key, depth + 1),
        }
    }

    fn start_line(&self, state: &State, out: &mut String, level: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            afford(state, out.len() + level * indent.len())?;
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), level));
        }
        Ok(())
    }

    /// Return Python's `repr` of a float, which JSON has too: the shortest digits that give the same number.
    fn float(&self, value: f64) -> String {
        if !value.is_finite() {
            let names = if self.is_json { ["NaN", "Infinity", "-Infinity"] } else { ["nan", "inf", "-inf"] };
            let [nan, infinity, negative] = names.map(str::to_string);
            return if value.is_nan() {
                nan
            } else if value > 0.0 {
                infinity
            } else {
                negative
            };
        }
        let text = format!("{value:?}");
        match text.split_once('e') {
            Some((mantissa, exponent)) => {
                let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
                format!("{mantissa}e{sign}{digits:0>2}")
            }
            None => text,
        }
    }

    fn quote(&self, out: &mut String, text: &str) {
        let single = !self.is_json && (!text.contains('\'') || text.contains('"'));
        let quote = if single { '\'' } else { '"' };
        out.push(quote);
        for c in text.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                _ if c == quote => out.extend(['\\', c]),
                '\u{8}' if self.is_json => out.push_str("\\b"),
                '\u{c}' if self.is_json => out.push_str("\\f"),
                _ if self.is_json && (c < ' ' || self.ascii && !(' '..='~').contains(&c)) => {
                    out.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
                }
                _ if self.is_json || is_printable(c) => out.push(c),
                '\0'..='\u{ff}' => out.push_str(&format!("\\x{:02x}", c as u32)),
                '\u{100}'..='\u{ffff}' => out.push_str(&format!("\\u{:04x}", c as u32)),
                _ => out.push_str(&format!("\\U{:08x}", c as u32)),
            }
        }
        out.push(quote);
    }
}

/// Return whether Python's `repr` writes a character as it is.
fn is_printable(c: char) -> bool {
    // Rust escapes the same categories, and combining characters only where a text begins with one.
    (' '..='~').contains(&c) || !c.is_ascii() && format!("a{c}").escape_debug().count() == 2
}
