//! Methods of Python's `str` that chat templates use and minijinja's compatible set lacks.

use minijinja::value::{Value, from_args};
use minijinja::{Error, ErrorKind, State};

/// Call a Python method on a value: minijinja's own set first, then the methods here.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match (minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args), value.as_str()) {
        (Err(error), Some(text)) if error.kind() == ErrorKind::UnknownMethod => of_text(text, name, args, error),
        (found, _) => found,
    }
}

fn of_text(text: &str, name: &str, args: &[Value], unknown: Error) -> Result<Value, Error> {
    let one = || from_args::<(&str,)>(args).map(|(argument,)| argument);
    let parts = |before: &str, at: &str, after: &str| Value::from([before, at, after].map(Value::from).to_vec());
    Ok(match name {
        "removeprefix" => text.strip_prefix(one()?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(one()?).unwrap_or(text).into(),
        "partition" => {
            let at = one()?;
            text.split_once(at).map_or(parts(text, "", ""), |(before, after)| parts(before, at, after))
        }
        "rpartition" => {
            let at = one()?;
            text.rsplit_once(at).map_or(parts("", "", text), |(before, after)| parts(before, at, after))
        }
        "rsplit" => {
            let (at, most): (&str, Option<i64>) = from_args(args)?;
            let mut found: Vec<Value> = match most.and_then(|most| usize::try_from(most).ok()) {
                Some(most) => text.rsplitn(most.saturating_add(1), at).map(Value::from).collect(),
                None => text.rsplit(at).map(Value::from).collect(),
            };
            found.reverse();
            found.into()
        }
        "index" => match text.find(one()?) {
            Some(at) => text[..at].chars().count().into(),
            None => return Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
        },
        "swapcase" => {
            let swap =
                |c: char| if c.is_lowercase() { c.to_uppercase().to_string() } else { c.to_lowercase().to_string() };
            text.chars().map(swap).collect::<String>().into()
        }
        _ => return Err(unknown),
    })
}

#[cfg(test)]
mod tests {
    use minijinja::Environment;

    /// Results of Python 3.12.
    #[test]
    fn methods_are_pythons() {
        let table = [
            ("'<think>a'.removeprefix('<think>')", "a"),
            ("'a.b'.removesuffix('x')", "a.b"),
            ("'a</t>b</t>c'.partition('</t>')[2]", "b</t>c"),
            ("'abc'.partition('x') | join('|')", "abc||"),
            ("'a</t>b</t>c'.rpartition('</t>')[2]", "c"),
            ("'abc'.rpartition('x') | join('|')", "||abc"),
            ("'a,b,c'.rsplit(',', 1) | join('|')", "a,b|c"),
            ("'a,b,c'.rsplit(',') | join('|')", "a|b|c"),
            ("'a,b'.rsplit(',', -1) | join('|')", "a|b"),
            ("'éab'.index('b')", "2"),
            ("'aBé'.swapcase()", "AbÉ"),
            // One of minijinja's own.
            ("'ab'.upper()", "AB"),
        ];
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(super::method);
        for (expression, want) in table {
            let got = environment.render_str(&format!("{{{{ {expression} }}}}"), ()).unwrap();
            assert_eq!(got, want, "{expression}");
        }
        for wrong in ["'a'.index('b')", "'a'.frobnicate()", "(1).removeprefix('a')"] {
            assert!(environment.render_str(&format!("{{{{ {wrong} }}}}"), ()).is_err(), "{wrong}");
        }
    }
}
