//! Python's `"text" % values` in a template, which minijinja lacks: rewritten to its filter `format`.

/// Return the template with `"text" | format(values)` for every `"text" % values` whose left side is a literal. Any
/// other `%` on texts remains an error of minijinja.
pub(super) fn as_filter(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        let block = match rest.as_bytes().get(1) {
            Some(b'#') => rest.find("#}").map(|at| at + 2),
            Some(b'{') => end(rest, "}}"),
            Some(b'%') if is_raw(rest) => rest.find("endraw"),
            Some(b'%') => end(rest, "%}"),
            _ => Some(1),
        };
        let (block, after) = rest.split_at(block.unwrap_or(rest.len()));
        let code = block.starts_with("{{") || block.starts_with("{%") && !is_raw(block);
        if code {
            out.push_str(&expression(block))
        } else {
            out.push_str(block)
        }
        rest = after;
    }
    out + rest
}

fn is_raw(block: &str) -> bool {
    block[2..].trim_start_matches(['-', '+']).trim_start().starts_with("raw")
}

/// Return the end of a block, ignoring end marks in string literals.
fn end(block: &str, mark: &str) -> Option<usize> {
    let mut at = 2;
    while at < block.len() {
        match text(&block[at..]) {
            Some(length) => at += length,
            None if block[at..].starts_with(mark) => return Some(at + mark.len()),
            None => at += first(&block[at..]),
        }
    }
    None
}

/// Return the length in bytes of the string literal that `code` begins with, quotes included.
fn text(code: &str) -> Option<usize> {
    let quote = code.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut escaped = false;
    for (at, c) in code.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    Some(code.len())
}

fn first(code: &str) -> usize {
    code.chars().next().map_or(0, char::len_utf8)
}

fn expression(code: &str) -> String {
    let (mut out, mut at) = (String::with_capacity(code.len()), 0);
    while at < code.len() {
        let Some(length) = text(&code[at..]) else {
            let length = first(&code[at..]);
            out.push_str(&code[at..at + length]);
            at += length;
            continue;
        };
        out.push_str(&code[at..at + length]);
        at += length;
        while let Some((values, length)) = values(&code[at..]) {
            out.push_str(&values);
            at += length;
        }
    }
    out
}

/// Return the filter for a `%` and an operand that follow a text, and how many bytes it replaces.
fn values(code: &str) -> Option<(String, usize)> {
    let after = code.trim_start().strip_prefix('%').filter(|after| !after.starts_with('}'))?;
    let operand = after.trim_start();
    let length = operand_length(operand).filter(|&length| length > 0)?;
    let skipped = code.len() - operand.len();
    let operand = &operand[..length];
    let tuple = (operand.starts_with('(') && group(operand) == Some(length)).then(|| &operand[1..length - 1]);
    let arguments = match tuple.filter(|inner| has_comma(inner)) {
        Some(inner) => expression(inner.trim().trim_end_matches(',')),
        None if operand.starts_with('{') => format!("**{}", expression(operand)),
        None => expression(operand),
    };
    Some((format!("|format({arguments})"), skipped + length))
}

/// Return the length of an operand: a literal, a name or a group, and any `.name`, `[…]`, `(…)` or filters after it.
fn operand_length(code: &str) -> Option<usize> {
    let word = |code: &str| code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    let mut at = usize::from(code.starts_with('-'));
    at += group(&code[at..]).or_else(|| text(&code[at..])).unwrap_or_else(|| word(&code[at..]));
    loop {
        let rest = &code[at..];
        let filter = rest.trim_start().strip_prefix('|').map(str::trim_start);
        at += match rest.chars().next() {
            Some('(' | '[') => group(rest)?,
            Some('.') => 1 + word(&rest[1..]),
            _ => match filter {
                Some(name) => rest.len() - name.len() + word(name),
                None => return Some(at),
            },
        };
    }
}

/// Return the length of the bracket group that `code` begins with.
fn group(code: &str) -> Option<usize> {
    let (mut open, mut at) = (Vec::new(), 0);
    while at < code.len() {
        match (text(&code[at..]), code.as_bytes()[at]) {
            (Some(length), _) if !open.is_empty() => {
                at += length;
                continue;
            }
            (_, b'(') => open.push(b')'),
            (_, b'[') => open.push(b']'),
            (_, b'{') => open.push(b'}'),
            (_, close @ (b')' | b']' | b'}')) if open.pop() != Some(close) => return None,
            _ => {}
        }
        if open.is_empty() && at == 0 {
            return None;
        }
        at += first(&code[at..]);
        if open.is_empty() {
            return Some(at);
        }
    }
    None
}

/// Return whether there is a comma outside all brackets and string literals.
fn has_comma(code: &str) -> bool {
    let mut at = 0;
    while at < code.len() {
        if code[at..].starts_with(',') {
            return true;
        }
        at += group(&code[at..]).or_else(|| text(&code[at..])).unwrap_or_else(|| first(&code[at..]));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_before_a_percent_sign_becomes_a_filter() {
        for (template, expected) in [
            ("{{ '%s-%s' % (role, 3) }}", "{{ '%s-%s'|format(role, 3) }}"),
            ("{{ '%s' % x + 'y' }}", "{{ '%s'|format(x) + 'y' }}"),
            ("{{ \"%d%%\" % m[0].n(1, ')') | upper ~ 'z' }}", "{{ \"%d%%\"|format(m[0].n(1, ')') | upper) ~ 'z' }}"),
            ("{{ '%s' % (x) }} {{ '%s' % (x,) }}", "{{ '%s'|format((x)) }} {{ '%s'|format(x) }}"),
            ("{{ '%(a)s' % {'a': '%s' % 1} }}", "{{ '%(a)s'|format(**{'a': '%s'|format(1)}) }}"),
            ("{%- set a = '%s }}' % 'é' -%}", "{%- set a = '%s }}'|format('é') -%}"),
            ("{% if x == '%' %}{{ 7 % 2 }}{% endif %}", "{% if x == '%' %}{{ 7 % 2 }}{% endif %}"),
        ] {
            assert_eq!(as_filter(template), expected);
        }
        for untouched in [
            "'%s' % x {# '%s' % x #} {% raw %}{{ '%s' % x }}{% endraw %} { '%s' % x }",
            "{{ x % 'y' }}",
            "{{ '%s' % }}",
            "{{ 'never ends % x",
            "{% if '%s' %",
            "{",
            "{{ 'é' % (x }}",
        ] {
            assert_eq!(as_filter(untouched), untouched);
        }
    }
}
