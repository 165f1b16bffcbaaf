//! JSON rows as other programs write them: whole numbers of any length, and Python's `NaN` and `Infinity`.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Maximum significant digits of a number that is read as a 64-bit float.
const DIGITS: usize = 17;

/// Parse a row.
///
/// A number that neither a 64-bit integer nor a 64-bit float holds as written becomes a string, so an answer of 40
/// digits is kept exactly. `NaN` and infinities, which Python writes outside the JSON standard, become null: missing.
///
/// # Errors
/// When the text is not JSON.
pub(crate) fn row<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(&exact(text))
}

/// Convert a JSON object to its type.
///
/// # Errors
/// The reason, with the key whose value does not fit: the one without which the reason is another.
pub(crate) fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    let read = |value: &Value| T::deserialize(value).map_err(|error| error.to_string());
    let Some(table) = value.as_object() else { return Err("expected an object".to_string()) };
    read(value).map_err(|reason| {
        let without = |key: &str| {
            let mut rest = table.clone();
            rest.remove(key);
            Value::Object(rest)
        };
        let is_cause = |key: &&String| read(&without(key)).err().is_none_or(|other| other != reason);
        let cause = table.keys().find(is_cause).filter(|_| reason.starts_with("invalid "));
        cause.map_or(reason.clone(), |key| format!("{key}: {reason}"))
    })
}

/// Rewrite the numbers that a JSON reader would round or reject.
fn exact(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut written = String::new();
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        let word = match bytes[at] {
            b'"' => {
                at = end_of_string(bytes, at);
                continue;
            }
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let end = |byte: &u8| !(byte.is_ascii_alphanumeric() || b"+-.".contains(byte));
                let length = bytes[at..].iter().position(end).unwrap_or(bytes.len() - at);
                &text[at..at + length]
            }
            _ => {
                at += 1;
                continue;
            }
        };
        let other = match word {
            "NaN" | "Infinity" | "-Infinity" => Some("null".to_string()),
            number if !holds(number) => Some(format!("\"{number}\"")),
            _ => None,
        };
        if let Some(other) = other {
            written.push_str(&text[copied..at]);
            written.push_str(&other);
            copied = at + word.len();
        }
        at += word.len();
    }
    if copied == 0 { text.into() } else { (written + &text[copied..]).into() }
}

/// Return the position after a string that begins at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Return whether a JSON reader keeps a number as written; true for words that are not numbers, which it rejects.
fn holds(word: &str) -> bool {
    if word.parse::<i64>().is_ok() || word.parse::<u64>().is_ok() {
        return true;
    }
    let Ok(value) = word.parse::<f64>() else { return true };
    let mantissa = word.split(['e', 'E']).next().unwrap_or(word);
    let whole = mantissa.len() == word.len() && !word.contains('.');
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).skip_while(|digit| *digit == b'0').count();
    value.is_finite() && !whole && digits <= DIGITS
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_of_the_wrong_type_is_named_by_its_key() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Row {
            count: usize,
            #[serde(flatten)]
            rest: Value,
        }
        let read = |value: Value| typed::<Row>(&value).unwrap_err();
        let want = "count: invalid type: string \"3\", expected usize";
        assert_eq!(read(json!({"a": 1, "count": "3", "z": [2]})), want);
        assert_eq!(read(json!({"a": 1})), "missing field `count`");
        assert_eq!(read(json!([3])), "expected an object");
        assert_eq!(typed::<Row>(&json!({"count": 3, "a": 1})).unwrap(), Row { count: 3, rest: json!({"a": 1}) });
    }

    #[test]
    fn numbers_stay_what_is_written_or_become_a_text() {
        let table = [
            ("[12345678901234567890123]", json!(["12345678901234567890123"])),
            ("[-9223372036854775809, 18446744073709551615]", json!(["-9223372036854775809", u64::MAX])),
            ("[3.14159265358979323846, 0.1, 1e21, 1e999]", json!(["3.14159265358979323846", 0.1, 1e21, "1e999"])),
            ("[NaN, -Infinity,Infinity ]", json!([null, null, null])),
            (r#"{"NaN": "Infinity 12345678901234567890123", "\"": NaN}"#, {
                json!({"NaN": "Infinity 12345678901234567890123", "\"": null})
            }),
        ];
        for (text, want) in table {
            assert_eq!(row::<Value>(text).unwrap(), want, "{text}");
        }
        for broken in ["[NaNo]", "[01]", "[1-2]", "{\"a\": 1", "\"", "\"\\", "Infinity1"] {
            assert!(row::<Value>(broken).is_err(), "{broken}");
        }
    }
}
