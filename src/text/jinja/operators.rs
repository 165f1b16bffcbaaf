//! Python's `+`, `~`, `*` and `%`, and the charge for containers: the filters that `rewrite` puts into a template.

use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State};

use super::value::{afford, charge, collect, invalid, is_container, items, text};

pub(super) fn register(environment: &mut Environment<'static>) {
    environment.add_filter("__add", add);
    environment.add_filter("__concat", concat);
    environment.add_filter("__multiply", multiply);
    environment.add_filter("__modulo", modulo);
    environment.add_filter("__checked", checked);
    environment.add_filter("__listed", listed);
    environment.add_filter("__indexed", indexed);
}

/// Charge for everything inside of a container.
fn checked(state: &State, value: Value) -> Result<Value, Error> {
    charge(state, &value)?;
    Ok(value)
}

/// Return a value of which an item is taken. The library charges for a text that is passed to a filter, but not for the
/// search for one of its characters.
fn indexed(value: Value) -> Value {
    value
}

/// Copy the items of a view of a list.
fn listed(state: &State, value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Iterable => Ok(items(state, &value)?.into()),
        _ => Ok(value),
    }
}

/// Return `first + terms[0] + …`.
pub(super) fn add(state: &State, first: Value, terms: Rest<Value>) -> Result<Value, Error> {
    let all = || std::iter::once(&first).chain(terms.iter());
    if first.as_str().is_some() {
        let texts = all().map(|term| term.as_str().ok_or_else(|| unsupported("+", &first, term)));
        return join(state, texts.collect::<Result<Vec<_>, _>>()?);
    }
    if is_list(&first) {
        if let Some(other) = terms.iter().find(|term| !is_list(term) || term.is_tuple() != first.is_tuple()) {
            return Err(unsupported("+", &first, other));
        }
        let iterators = all().map(Value::try_iter).collect::<Result<Vec<_>, _>>()?;
        return Ok(like(&first, collect(state, iterators.into_iter().flat_map(|items| items.checked()))?));
    }
    let plus = |sum: Value, term: &Value| arithmetic("+", &sum, term, i128::checked_add, |a, b| Some(a + b));
    terms.iter().try_fold(first.clone(), plus)
}

/// Return the texts of all values as one.
fn concat(state: &State, first: Value, rest: Rest<Value>) -> Result<Value, Error> {
    let texts = std::iter::once(&first).chain(rest.iter()).map(|value| text(state, value));
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    join(state, texts.iter().map(AsRef::as_ref).collect())
}

fn join(state: &State, texts: Vec<&str>) -> Result<Value, Error> {
    afford(state, texts.iter().map(|text| text.len()).sum())?;
    Ok(texts.concat().into())
}

fn multiply(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    let is_repeated = |value: &Value| value.as_str().is_some() || is_list(value);
    let (repeated, count) = if is_repeated(left) { (left, right) } else { (right, left) };
    if !is_repeated(repeated) {
        return arithmetic("*", left, right, i128::checked_mul, |a, b| Some(a * b));
    }
    let count = integer(count).ok_or_else(|| unsupported("*", left, right))?;
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = repeated.as_str() {
        afford(state, text.len().saturating_mul(count))?;
        return Ok(text.repeat(if text.is_empty() { 0 } else { count }).into());
    }
    let once = items(state, repeated)?;
    let count = if once.is_empty() { 0 } else { count };
    let all = std::iter::repeat_n(&once, count).flatten();
    Ok(like(repeated, collect(state, all.map(|item| Ok(item.clone())))?))
}

/// Return the remainder with the sign of `right`, or the text `left` with the values `right`.
fn modulo(state: &mut State, left: &Value, right: Value) -> Result<Value, Error> {
    if left.as_str().is_some() {
        let values = if right.is_tuple() { items(state, &right)? } else { vec![right] };
        return format(state, left, values);
    }
    let integers = |a: i128, b: i128| a.checked_rem(b).map(|rest| if rest * b.signum() < 0 { rest + b } else { rest });
    let floats = |a: f64, b: f64| {
        let rest = a % b;
        (b != 0.0).then_some(if rest == 0.0 {
            rest.copysign(b)
        } else if (rest < 0.0) != (b < 0.0) {
            rest + b
        } else {
            rest
        })
    };
    arithmetic("%", left, &right, integers, floats)
}

/// Return the text `format % values`: the only value may be a dict, whose values have names.
pub(super) fn format(state: &mut State, format: &Value, values: Vec<Value>) -> Result<Value, Error> {
    let named = match values.as_slice() {
        [dict] if dict.kind() == ValueKind::Map => Some(dict),
        _ => None,
    };
    let mut arguments = Vec::new();
    if let Some(dict) = named.filter(|_| format.as_str().is_some_and(|text| text.contains("%("))) {
        let pairs = items(state, dict)?.into_iter().map(|key| {
            let value = printable(state, &dict.get_item(&key)?)?;
            Ok((text(state, &key)?.into_owned(), value))
        });
        arguments.push(Value::from(pairs.collect::<Result<Kwargs, Error>>()?).into());
    } else {
        for value in &values {
            arguments.push(ValueOrKwargs::from(printable(state, value)?));
        }
    }
    minijinja::filters::format(state, format, Rest(arguments))
}

/// Return the text of a container and any other value as it is.
fn printable(state: &State, value: &Value) -> Result<Value, Error> {
    if is_container(value) { Ok(text(state, value)?.as_ref().into()) } else { Ok(value.clone()) }
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// Return `items` as a tuple if `value` is one, and else as a list.
fn like(value: &Value, items: Vec<Value>) -> Value {
    if value.is_tuple() { Tuple::from(items).into() } else { items.into() }
}

/// Return a whole number or a truth value as a number.
pub(super) fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(value.is_true().into()),
        _ if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Return a value of the smaller type if it fits, as the library has it for constants.
pub(super) fn from_integer(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| number.into(), Value::from)
}

fn arithmetic(
    operator: &str,
    left: &Value,
    right: &Value,
    integers: impl Fn(i128, i128) -> Option<i128>,
    floats: impl Fn(f64, f64) -> Option<f64>,
) -> Result<Value, Error> {
    let float = |value: &Value| match integer(value) {
        Some(number) => Some(number as f64),
        None if value.is_number() && !value.is_integer() => f64::try_from(value.clone()).ok(),
        None => None,
    };
    let result = match (integer(left), integer(right)) {
        (Some(a), Some(b)) => integers(a, b).map(from_integer),
        _ => match (float(left), float(right)) {
            (Some(a), Some(b)) => floats(a, b).map(Value::from),
            _ => return Err(unsupported(operator, left, right)),
        },
    };
    result.ok_or_else(|| invalid(format!("unable to calculate {left} {operator} {right}")))
}

fn unsupported(operator: &str, left: &Value, right: &Value) -> Error {
    invalid(format!("unsupported operand types for {operator}: {} and {}", left.kind(), right.kind()))
}
