//! Finding the answer in a completion. All work is linear in its length.

/// The answer within a solution: after the last `####`, or in the last `\boxed{}`, or else the whole text.
pub fn gold_answer(text: &str) -> &str {
    match text.rfind("####") {
        Some(at) => text[at + 4..].trim(),
        None => boxed(text).unwrap_or(text).trim(),
    }
}

/// The text after the last `</think>`; none while a `<think>` is still open.
pub fn after_thinking(completion: &str) -> Option<&str> {
    let rest = completion.rfind("</think>").map_or(completion, |at| &completion[at + "</think>".len()..]);
    if rest.contains("<think>") { None } else { Some(rest) }
}

/// A stated answer: the last `\boxed{}`, else the last `<answer>`, else a line `#### n`, else "the final answer is".
pub fn stated(text: &str) -> Option<&str> {
    boxed(text).or_else(|| tagged(text)).or_else(|| hashed(text)).or_else(|| spoken(text))
}

/// The content of the `\boxed{}`, `\fbox{}` or `\framebox{}` that begins last and is closed.
pub(super) fn boxed(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut last: Option<(usize, usize)> = None;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                let command =
                    ["\\boxed", "\\fbox", "\\framebox"].iter().find(|c| bytes[at..].starts_with(c.as_bytes()));
                let Some(command) = command else {
                    // An escaped brace or backslash is a character, not structure.
                    at += if matches!(bytes.get(at + 1), Some(b'{' | b'}' | b'\\')) { 2 } else { 1 };
                    continue;
                };
                at += command.len();
                let blank = bytes[at..].iter().take_while(|b| **b == b' ').count();
                if bytes.get(at + blank) == Some(&b'{') {
                    at += blank + 1;
                    open.push(Some(at));
                } else if blank > 0 {
                    // `\boxed 5` boxes one word.
                    let start = at + blank;
                    let word = bytes[start..].iter().take_while(|b| !b.is_ascii_whitespace() && **b != b'$').count();
                    if word > 0 {
                        last = Some((start, start + word));
                    }
                }
            }
            b'{' => {
                open.push(None);
                at += 1;
            }
            b'}' => {
                if let Some(Some(start)) = open.pop()
                    && last.is_none_or(|(other, _)| other < start)
                {
                    last = Some((start, at));
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    last.map(|(start, end)| text[start..end].trim())
}

fn tagged(text: &str) -> Option<&str> {
    let rest = &text[text.rfind("<answer>")? + "<answer>".len()..];
    Some(rest[..rest.find("</answer>")?].trim())
}

/// The last line of the form `#### n`; a Markdown heading of that level is not an answer.
fn hashed(text: &str) -> Option<&str> {
    let number = |line: &str| line.starts_with(|c: char| c.is_ascii_digit() || "-+$.\\−".contains(c));
    text.lines().rev().filter_map(|line| line.trim().strip_prefix("####")).map(str::trim).find(|rest| number(rest))
}

fn spoken(text: &str) -> Option<&str> {
    const PHRASE: &str = "final answer is";
    let at = text.to_ascii_lowercase().rfind(PHRASE)? + PHRASE.len();
    let rest = text[at..].trim_start_matches(|c: char| c == ':' || c == '*' || c.is_whitespace());
    let line = rest.lines().next()?;
    let sentence = match line.strip_prefix('$') {
        Some(math) if math.contains('$') => &math[..math.find('$')?],
        _ => &line[..line.find(". ").unwrap_or(line.len())],
    };
    let answer = sentence.trim_matches(|c: char| c == '*' || c == '.' || c.is_whitespace());
    if answer.is_empty() { None } else { Some(answer) }
}

/// The last number of a text: digits with thousands commas, a decimal point or a fraction bar, and a sign.
pub(super) fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let mut start = end - 1;
    let mut point = false;
    while start > 0 {
        let joins = match bytes[start - 1] {
            b'0'..=b'9' => true,
            // A comma groups thousands only before three digits, so that `1,2` ends in 2.
            b',' => start > 1 && digit(start - 2) && (start..start + 3).all(digit) && !digit(start + 3),
            b'.' if !point => {
                point = true;
                digit(start)
            }
            b'/' => start > 1 && digit(start - 2) && digit(start),
            _ => false,
        };
        if !joins {
            break;
        }
        start -= 1;
    }
    let before = text[..start].chars().next_back();
    if let Some(sign @ ('-' | '−')) = before {
        let signed = start - sign.len_utf8();
        let binary = text[..signed].chars().next_back().is_some_and(|c| c.is_alphanumeric() || ")]}".contains(c));
        if !binary {
            start = signed;
        }
    }
    Some(&text[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stated_answers_are_found() {
        let table = [
            ("so \\boxed{5}", Some("5")),
            ("\\boxed{4} no, \\boxed{ 5 }.", Some("5")),
            ("\\boxed{\\frac{1}{2}}", Some("\\frac{1}{2}")),
            ("\\boxed{\\sqrt{\\frac{a}{b}} + \\{1\\}} done", Some("\\sqrt{\\frac{a}{b}} + \\{1\\}")),
            ("\\boxed{\\boxed{7}}", Some("7")),
            ("\\fbox{3}", Some("3")),
            ("\\framebox{204}", Some("204")),
            ("$\\boxed 12$", Some("12")),
            ("{ \\boxed{9}", Some("9")),
            ("\\boxed{4} then \\boxed{5", Some("4")),
            ("x \\\\\\boxed{6}", Some("6")),
            ("<answer> 12 </answer>", Some("12")),
            ("<answer>\\boxed{12}</answer>", Some("12")),
            ("<answer>12", None),
            ("so\n#### 72", Some("72")),
            ("#### Summary\nnothing", None),
            ("The final answer is **12**.", Some("12")),
            ("the final answer is: $\\frac{1}{2}$. I hope", Some("\\frac{1}{2}")),
            ("The Final Answer is 3.5. Good", Some("3.5")),
            ("12", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(stated(text), want, "{text:?}");
        }
    }

    #[test]
    fn last_numbers_are_found() {
        let table = [
            ("a 1 b 23 c", Some("23")),
            ("costs $1,234.50!", Some("1,234.50")),
            ("x = -3.", Some("-3")),
            ("16-3", Some("3")),
            ("pairs 1,2", Some("2")),
            ("half is 1/2", Some("1/2")),
            ("x=−7", Some("−7")),
            ("v1.2.3", Some("2.3")),
            ("none", None),
        ];
        for (text, want) in table {
            assert_eq!(last_number(text), want, "{text:?}");
        }
    }
}
