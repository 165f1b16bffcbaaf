//! Extraction of the last formula of a text that states no answer: in `$…$`, `\(…\)`, `\[…\]`, or bare.

use std::borrow::Cow;

use super::announced::reads;
use super::extract::last_number;
use super::name::is_function;
use super::unit::{is_letter, is_unit};
use super::{MAX_ANSWER, parse, tree::Node};

/// Maximum number of formulae tried, from the last.
const MAX_TRIALS: usize = 8;

/// Return the right-hand side of the last equation of a derivation.
pub(super) fn last_side(formula: &str) -> Option<&str> {
    let equals = formula.match_indices('=').map(|(at, _)| (at, at + 1));
    let near = formula.match_indices("\\approx").map(|(at, sign)| (at, at + sign.len()));
    let last = equals.chain(near).max()?;
    let relation = formula[..last.0].ends_with(['<', '>', '!']);
    Some(formula[last.1..].trim()).filter(|side| !relation && !side.is_empty())
}

/// A formula within a text: byte range including its delimiters, and content.
struct FormulaSpan<'a> {
    start: usize,
    end: usize,
    content: &'a str,
}

/// Return the last formula that can be an answer, or else the last number.
pub(super) fn last_formula(text: &str) -> Option<Cow<'_, str>> {
    let spans = spans(text);
    let mut end = text.len();
    for (index, span) in spans.iter().enumerate().rev().take(MAX_TRIALS) {
        if let Some(bare) = bare(&text[span.end..end]) {
            return Some(bare);
        }
        if let Some(formula) = within(text, &spans, index) {
            return Some(formula);
        }
        end = span.start;
    }
    if spans.len() <= MAX_TRIALS
        && let Some(bare) = bare(&text[..end])
    {
        return Some(bare);
    }
    last_number(text).map(Cow::Borrowed)
}

/// Return a span as an answer, together with the spans before it that form a list and a percent sign after it.
fn within<'a>(text: &'a str, spans: &[FormulaSpan<'a>], index: usize) -> Option<Cow<'a, str>> {
    let last = settled(spans[index].content);
    if !is_answer(last) {
        return None;
    }
    let after = percent(&text[spans[index].end..]);
    if after > 0 {
        return Some(format!("{last}\\%").into());
    }
    let mut members = vec![last];
    for pair in spans[..=index].windows(2).rev().take(MAX_TRIALS) {
        let content = settled(pair[0].content);
        let between = text[pair[0].end..pair[1].start].trim();
        let and = matches!(between.trim_start_matches([',', ' ']), "and" | "or");
        // `$x = 2$ or $x = 3$`, but not `$a = 2$ and $b = 3$`.
        let name = |content: &'a str| content.split_once('=').map(|(name, _)| name.trim());
        let listed = and || (between == "," && members.len() > 1);
        if !listed || name(content) != name(last) || !is_answer(content) {
            break;
        }
        members.push(content);
    }
    members.reverse();
    Some(if let [one] = members[..] { one.into() } else { members.join(", ").into() })
}

/// Return the last step of a derivation: the text after the last arrow in the last row.
fn settled(content: &str) -> &str {
    let mut content = content.trim_matches(|c: char| c.is_whitespace() || ".,;".contains(c));
    let rows = ["aligned", "align*", "align", "gathered", "split"].iter().find_map(|name| {
        let body = content.strip_suffix('}')?.strip_suffix(name)?.strip_suffix("\\end{")?;
        Some(body.rsplit_once(&format!("\\begin{{{name}}}")).map_or(body, |(_, rows)| rows))
    });
    content = rows.unwrap_or(content);
    if !content.contains("\\begin{") {
        content = content.trim_end().trim_end_matches("\\\\");
        content = content.rsplit("\\\\").next().unwrap_or(content);
    }
    for arrow in ["\\Rightarrow", "\\implies", "\\Longrightarrow", "\\iff", "\\to ", "⇒", "→"] {
        content = content.rsplit(arrow).next().unwrap_or(content);
    }
    content.trim_matches(|c: char| c.is_whitespace() || "&.,;".contains(c)).trim_start_matches(['=', '&', ' '])
}

/// Whether the formula is more than a name.
fn is_answer(content: &str) -> bool {
    fn is_name(node: &Node) -> bool {
        match node {
            Node::Symbol(_) => true,
            Node::Product(list) | Node::Apply(_, list) | Node::Tuple(list) => list.iter().all(is_name),
            _ => false,
        }
    }
    match parse::parse(content) {
        Ok(Node::Words(_)) | Err(_) => false,
        Ok(node) => !is_name(&node) || content.contains(|c: char| c.is_ascii_digit() || c == '\\'),
    }
}

/// Find the delimited formulae of a text in order.
fn spans(text: &str) -> Vec<FormulaSpan<'_>> {
    const MARKS: [(&str, &str); 5] =
        [("\\[", "\\]"), ("\\(", "\\)"), ("$$", "$$"), ("$", "$"), ("\\begin{align", "\\end{align")];
    let mut found = Vec::new();
    // A closing delimiter that was not found once is not searched for again.
    let mut missing = [false; MARKS.len()];
    let mut at = 0;
    while let Some(next) = text[at..].find(['\\', '$']) {
        at += next;
        let rest = &text[at..];
        let mark = MARKS.iter().position(|(open, _)| rest.starts_with(open)).filter(|mark| !missing[*mark]);
        let Some(mark) = mark else {
            at += if rest.starts_with("\\\\") || rest.starts_with("\\$") { 2 } else { 1 };
            continue;
        };
        let (open, close) = MARKS[mark];
        let Some(length) = closing(&rest[open.len()..], close) else {
            missing[mark] = true;
            continue;
        };
        let mut end = at + open.len() + length + close.len();
        let mut content = &rest[open.len()..open.len() + length];
        if open.starts_with("\\begin") {
            content = content.trim_start_matches(['*', '}']);
            end += text[end..].find('}').map_or(0, |brace| brace + 1);
        }
        // `$5 and then $7` is money.
        if open == "$" && is_prose(content) {
            at += 1;
            continue;
        }
        if content.len() <= MAX_ANSWER {
            found.push(FormulaSpan { start: at, end, content });
        }
        at = end;
    }
    found
}

/// Find a closing delimiter; an escaped dollar sign is not one.
fn closing(rest: &str, close: &str) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + rest[from..].find(close)?;
        if !close.starts_with('$') || !rest[..at].ends_with('\\') {
            return Some(at);
        }
        from = at + 1;
    }
}

/// Whether the text is prose or spans several lines.
fn is_prose(content: &str) -> bool {
    let words = content.split(' ').filter(|word| word.len() > 1 && word.bytes().all(|b| b.is_ascii_lowercase()));
    content.trim().contains('\n') || (!content.contains('\\') && words.filter(|word| !is_function(word)).count() > 1)
}

/// Length in bytes of a percent sign or word at the start of a text.
fn percent(after: &str) -> usize {
    let trimmed = after.trim_start_matches([' ', '\\', '*']);
    let word = ["%", "percent", "per cent", "pct"].iter().find(|word| trimmed.starts_with(**word));
    word.map_or(0, |word| after.len() - trimmed.len() + word.len())
}

/// Return the formula around the last digit of a text without delimiters: words joined by operators or brackets.
fn bare(text: &str) -> Option<Cow<'_, str>> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || matches!(c, 'π' | '∞'))?;
    let from = (last.saturating_sub(MAX_ANSWER / 8)..=last).find(|at| text.is_char_boundary(*at))?;
    let from = text[from..last].rfind('\n').map_or(from, |at| from + at + 1);
    let (line, last) = (text[from..].lines().next()?, last - from);
    let words: Vec<(usize, &str)> = line
        .split(' ')
        .scan(0, |at, word| {
            let start = *at;
            *at += word.len() + 1;
            Some((start, word))
        })
        .filter(|(_, word)| !word.is_empty())
        .collect();
    let anchor = words.iter().rposition(|(start, _)| *start <= last)?;
    // The 2 of `25 cm^2` belongs to the unit.
    let base = words[anchor].1.split_once('^').map_or("", |(base, _)| base);
    if (is_unit(base) || is_letter(base)) && anchor > 0 && words[anchor - 1].1.ends_with(|c: char| c.is_ascii_digit()) {
        return last_number(&line[..words[anchor].0]).map(Cow::Borrowed);
    }
    let (mut low, mut high) = (anchor, anchor);
    let held = |left: &str, right: &str| {
        const OPERATORS: &str = "+*/^=<>≤≥≠≈±∈∪∩×÷·!";
        is_formula(left)
            && is_formula(right)
            && (left.ends_with(|c: char| OPERATORS.contains(c) || c == '-')
                || right.starts_with(|c: char| OPERATORS.contains(c))
                || right == "-")
    };
    let open = |low: usize, high: usize| -> i32 {
        let count =
            |word: &str| word.chars().map(|c| i32::from("([{".contains(c)) - i32::from(")]}".contains(c))).sum::<i32>();
        words[low..=high].iter().map(|(_, word)| count(word)).sum()
    };
    while low > 0 && is_formula(words[low - 1].1) && (held(words[low - 1].1, words[low].1) || open(low, high) < 0) {
        low -= 1;
    }
    while high + 1 < words.len() && held(words[high].1, words[high + 1].1) {
        high += 1;
    }
    let (start, end) = (words[low].0, words[high].0 + words[high].1.len());
    let formula = line[start..end].trim_matches(|c: char| ".,;:!?*`\"'".contains(c));
    let after = percent(&line[end..]);
    if !is_formula(words[anchor].1)
        || low == high
            && !formula.contains(['=', '<', '>', '≤', '≥', '(', '[', '^', '%', '√', ':', '\\', '+', 'π', '∞'])
    {
        let number = last_number(line)?;
        return Some(if after > 0 { format!("{number}%").into() } else { number.into() });
    }
    reads(formula).then(|| if after > 0 { format!("{formula}%").into() } else { formula.into() })
}

/// Whether a word belongs to a formula: numbers, operators, single letters and functions.
fn is_formula(word: &str) -> bool {
    let mut runs = word.split(|c: char| !c.is_ascii_alphabetic()).filter(|run| run.len() > 1);
    let command = word.contains('\\');
    let article = matches!(word, "a" | "A" | "I");
    word.chars().all(|c| !c.is_alphabetic() || c.is_ascii() || ('α'..='ω').contains(&c))
        && !article
        && (command || runs.all(|run| is_function(run) || run == "pi"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_formulae_are_found() {
        let table = [
            ("so $x = 3$ and then $y^2 = 7x$.", "y^2 = 7x"),
            ("we get \\(\\frac{3}{8}\\) of it", "\\frac{3}{8}"),
            ("\\[ a = b \\Rightarrow a = \\sqrt{7} \\]", "a = \\sqrt{7}"),
            ("\\begin{align*} a &= 2 + 5 \\\\ &= 7. \\end{align*}", "7"),
            ("$$\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}$$", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
            ("$$\\begin{aligned} a &= 2 + 5 \\\\ &= 7 \\end{aligned}.$$", "7"),
            ("so $(2, 9)$ is the $(p, q)$", "(2, 9)"),
            ("the roots are $3$, $5$ and $7$.", "3, 5, 7"),
            ("first $3$, then $5$", "5"),
            ("a loss of $30$ percent", "30\\%"),
            ("a loss of 30 % each", "30%"),
            ("there are 12 values of $n$", "12"),
            ("it costs $5 and then $7 more", "7"),
            ("so x >= 4 is needed", "x >= 4"),
            ("the interval is [2, 5).", "[2, 5)"),
            ("P(A) = 3/8 at last", "P(A) = 3/8"),
            ("it measures 25 cm^2 there", "25"),
            ("so $a = 2$ and $b = 3$", "b = 3"),
            ("it is π.", "π"),
            ("about 3/8 of it", "3/8"),
            ("it is minus 4 here", "minus 4"),
            ("16-3", "3"),
        ];
        for (text, want) in table {
            assert_eq!(last_formula(text).as_deref(), Some(want), "{text:?}");
        }
        assert_eq!(last_formula("nothing at all"), None);
        assert_eq!(last_side("a = b = \\frac{1}{2}"), Some("\\frac{1}{2}"));
        assert_eq!(last_side("x <= 2"), None);
    }
}
