//! Extraction of the answer from a completion, in time linear in its length.

use std::borrow::Cow;

use super::announced::{announced, reads};

/// Extract the gold from a solution: a last line `#### n`, the last `\boxed{}`, the text after the last `####`, an
/// answer announced in words, or else the whole text.
pub fn gold_answer(text: &str) -> Cow<'_, str> {
    let marked = text.rfind("####");
    let found = boxed(text);
    match (marked, found) {
        // The `####` is a heading above or below the box.
        (Some(at), Some(found)) if found.end > at || hashed(&text[at..]).is_none() => found.answer,
        (Some(at), _) => text[at + 4..].trim().into(),
        (None, Some(found)) => found.answer,
        (None, None) => match announced(text) {
            Some(found) if !reads(text) => found.answer.into(),
            _ => text.trim().into(),
        },
    }
}

/// Return the text after the last `</think>`, or `None` if a `<think>` is still open.
pub fn after_thinking(completion: &str) -> Option<&str> {
    let rest = completion.rfind("</think>").map_or(completion, |at| &completion[at + "</think>".len()..]);
    if rest.contains("<think>") { None } else { Some(rest) }
}

/// Extract the stated answer: the last `\boxed{}` unless a later line announces another answer, else the last
/// `<answer>`, else the later of a line `#### n` and an announced answer.
pub fn stated(text: &str) -> Option<Cow<'_, str>> {
    let announced = announced(text);
    if let Some(found) = boxed(text) {
        let Some(later) = announced.filter(|later| later.at > found.end) else { return Some(found.answer) };
        // An announced letter names the choice whose text is in the box.
        let letter = |answer: &str| {
            let letter = answer.trim_matches(|c: char| !c.is_alphanumeric());
            matches!(letter.as_bytes(), [b'A'..=b'H']).then(|| letter.to_string())
        };
        if let Some(choice) = letter(&later.answer) {
            let both = format!("({choice}) {}", found.answer);
            return Some(if letter(&found.answer).is_none() && reads(&both) { both } else { later.answer }.into());
        }
        return Some(if later.formal && reads(&later.answer) { later.answer.into() } else { found.answer });
    }
    if let Some(answer) = tagged(text) {
        let sentence = self::announced(answer).filter(|_| !reads(answer));
        return Some(sentence.map_or_else(|| answer.into(), |inside| inside.answer.into()));
    }
    match (hashed(text), announced) {
        (Some((at, _)), Some(announced)) if announced.at > at => Some(announced.answer.into()),
        (Some((_, answer)), _) => Some(answer.into()),
        (None, announced) => announced.map(|announced| announced.answer.into()),
    }
}

/// An answer and the end of its box.
pub(super) struct BoxedAnswer<'a> {
    pub(super) answer: Cow<'a, str>,
    pub(super) end: usize,
}

/// Byte ranges of a box and of its content.
struct Framed {
    outer: (usize, usize),
    inner: (usize, usize),
}

/// Return the content of the box that begins last, or the list of adjacent boxes as in "\boxed{3} and \boxed{5}". Boxes
/// without a letter or digit are ignored unless there is no other.
pub(super) fn boxed(text: &str) -> Option<BoxedAnswer<'_>> {
    let mut frames = frames(text);
    let content = |frame: &Framed| text[frame.inner.0..frame.inner.1].trim();
    let mention = |frame: &Framed| is_mention(content(frame));
    if !frames.iter().all(mention) {
        frames.retain(|frame| !mention(frame));
    }
    frames.sort_by_key(|frame| frame.outer.0);
    let last = frames.pop()?;
    let (mut members, mut start) = (vec![content(&last)], last.outer.0);
    while let Some(before) = frames.pop() {
        if before.outer.1 > start || !joins(&text[before.outer.1..start]) {
            break;
        }
        start = before.outer.0;
        members.push(content(&before));
    }
    members.reverse();
    let mut seen = std::collections::HashSet::new();
    members.retain(|member| seen.insert(*member));
    let answer = if let [one] = members[..] { one.into() } else { members.join(", ").into() };
    Some(BoxedAnswer { answer, end: last.outer.1 })
}

/// Whether the box is empty or holds only a placeholder such as "answer".
fn is_mention(content: &str) -> bool {
    const LONGEST: usize = 40;
    if content.len() > LONGEST {
        return false;
    }
    let words = content.replace("\\text", "").to_ascii_lowercase();
    let words = words.trim_matches(|c: char| !c.is_alphanumeric());
    !super::usable(content) || matches!(words, "answer" | "your answer" | "final answer" | "the answer")
}

/// Find all closed `\boxed{}`, `\fbox{}` and `\framebox{}`, and `\boxed 5`.
fn frames(text: &str) -> Vec<Framed> {
    let bytes = text.as_bytes();
    let mut open: Vec<Option<(usize, usize)>> = Vec::new();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => {
                // Two backslashes before a box: escaped twice, or the end of a line.
                let command = ["boxed", "fbox", "framebox"].iter().find(|c| bytes[at + 1..].starts_with(c.as_bytes()));
                let Some(command) = command else {
                    // An escaped brace does not group; a brace after the end of a row is not escaped.
                    let row = bytes.get(at + 1) == Some(&b'\\') && matches!(bytes.get(at + 2), Some(b'{' | b'}'));
                    at += if row || matches!(bytes.get(at + 1), Some(b'{' | b'}')) { 2 } else { 1 };
                    continue;
                };
                let begin = at;
                at += 1 + command.len();
                let blank = bytes[at..].iter().take_while(|b| **b == b' ').count();
                let start = at + blank;
                if bytes.get(start) == Some(&b'{') {
                    at = start + 1;
                    open.push(Some((begin, at)));
                } else if blank > 0 {
                    // `\boxed 5` boxes one word; `\boxed as you asked` boxes nothing.
                    let length = bytes[start..].iter().take_while(|b| !b.is_ascii_whitespace() && **b != b'$').count();
                    let word = &text[start..start + length];
                    let letter = word.trim_end_matches(['.', ',', '`']);
                    if word.starts_with(|c: char| c.is_ascii_digit() || "-+.\\".contains(c))
                        || matches!(letter.as_bytes(), [b'A'..=b'H'])
                    {
                        found.push(Framed { outer: (begin, start + length), inner: (start, start + length) });
                    }
                }
            }
            b'{' => {
                open.push(None);
                at += 1;
            }
            b'}' => {
                if let Some(Some((begin, start))) = open.pop() {
                    found.push(Framed { outer: (begin, at + 1), inner: (start, at) });
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    found
}

/// Whether the text between two boxes joins them to one answer: nothing, a comma, or "and" with few other words.
fn joins(between: &str) -> bool {
    const LONGEST: usize = 80;
    if between.len() > LONGEST {
        return false;
    }
    let mut plain = between.to_lowercase();
    for look in ["\\text", "\\mbox", "\\qquad", "\\quad", "\\(", "\\)", "\\[", "\\]", "\\,", "\\;", "\\ "] {
        plain = plain.replace(look, " ");
    }
    // An assignment of the next box: `x = 3, y = 5`.
    let (words, assigned) = match plain.split_once('=') {
        Some((words, rest)) if rest.trim_matches([' ', '$', '\n']).is_empty() => {
            let words = words.trim_end_matches([' ', '$']);
            let name = words.rsplit([' ', ',', '$']).next().unwrap_or_default();
            if name.is_empty() || name.len() > 6 {
                return false;
            }
            (&words[..words.len() - name.len()], true)
        }
        Some(_) => return false,
        None => (plain.as_str(), false),
    };
    if words.contains(|c: char| "+-/<>|^.!?→≤≥\\".contains(c)) {
        return false;
    }
    let comma = words.contains([',', ';', '、', '，', '&']);
    let others: Vec<&str> = words.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let is_and = |word: &&str| matches!(*word, "and" | "or" | "和" | "或" | "及");
    let and = others.iter().any(is_and);
    let corrects = |word: &&str| {
        matches!(*word, "rather" | "not" | "no" | "so" | "thus" | "hence" | "then" | "therefore" | "but" | "actually")
            || matches!(*word, "is" | "gives" | "equals" | "wait" | "finally" | "instead" | "which")
    };
    match others.iter().filter(|word| !is_and(word)).count() {
        0 => and || comma || !assigned,
        count => and && count <= 3 && !others.iter().any(corrects),
    }
}

fn tagged(text: &str) -> Option<&str> {
    let rest = &text[text.rfind("<answer>")? + "<answer>".len()..];
    Some(rest[..rest.find("</answer>")?].trim())
}

/// Find the last line of the form `#### n` and its position; a Markdown heading of that level is not an answer.
fn hashed(text: &str) -> Option<(usize, &str)> {
    let mut end = text.len();
    while let Some(at) = text[..end].rfind("####") {
        let line = text[..at].rfind('\n').map_or(0, |before| before + 1);
        let rest = text[at + 4..].lines().next().unwrap_or_default().trim_matches([' ', '\t', '\r', '*']);
        let digits = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let heading = digits.len() < rest.len() && (digits.starts_with(") ") || digits.starts_with(". "));
        let number = rest.starts_with(|c: char| c.is_ascii_digit() || "-+$.\\−".contains(c));
        if text[line..at].trim().is_empty() && number && !heading {
            return Some((at, rest));
        }
        end = line;
    }
    None
}

/// Return the last number of a text: digits with thousands commas, a decimal point or a fraction bar, and a sign.
pub(super) fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let mut start = end - 1;
    let mut point = false;
    while start > 0 {
        let joins = match bytes[start - 1] {
            b'0'..=b'9' => true,
            // A comma separates thousands only before exactly three digits; the last number of `1,2` is 2.
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
    } else if let Some(before) = ["minus ", "negative "].iter().find_map(|sign| text[..start].strip_suffix(sign)) {
        let binary = before.trim_end().ends_with(|c: char| c.is_ascii_digit() || ")]}$".contains(c));
        if !binary && !before.ends_with(char::is_alphanumeric) {
            start = before.len();
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
            ("\\boxed{8}, as \\boxed asks for", Some("8")),
            ("\\boxed{8} (in \\boxed{})", Some("8")),
            ("\\boxed{8}; the form `\\boxed{answer}` was asked for", Some("8")),
            ("$\\boxed B$", Some("B")),
            ("\\\\boxed{8}", Some("8")),
            // Several that are one answer, and several that are not.
            ("$\\boxed{2}$, $\\boxed{4}$ and $\\boxed{8}$", Some("2, 4, 8")),
            ("p = \\boxed{2}, q = \\boxed{4}", Some("2, 4")),
            ("\\boxed{2}\n\n\\boxed{4}", Some("2, 4")),
            ("\\boxed{2} pens and \\boxed{4} books", Some("2, 4")),
            ("\\boxed{2}, that is, \\boxed{2}", Some("2")),
            ("\\boxed{2}. Checked: \\boxed{4}", Some("4")),
            ("\\boxed{2} + \\boxed{4} = \\boxed{6}", Some("6")),
            ("\\boxed{2}, so \\boxed{4}", Some("4")),
            ("\\boxed{2} or rather \\boxed{4}", Some("4")),
            ("step 1: \\boxed{2}\nstep 2: \\boxed{4}", Some("4")),
            // A line after the box wins if it can be parsed.
            ("so \\boxed{a \\gg b}.\n\n**Answer: C**", Some("(C) a \\gg b")),
            ("so \\boxed{12}.\n\nHence the answer is (C).", Some("(C) 12")),
            ("so \\boxed{A}.\n\nAnswer: C", Some("C")),
            ("so \\boxed{11}.\n\nFinal answer: **12**", Some("12")),
            ("so \\boxed{11}.\n\nAnswer: see above", Some("11")),
            ("so \\boxed{11}. The answer is 12 less than 23.", Some("11")),
            ("Answer: 12\n\nthat is \\boxed{11}", Some("11")),
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
            ("Answer: 58", Some("58")),
            ("ANSWER: $58$.", Some("58")),
            ("**Answer:** $\\frac{5}{8}$", Some("\\frac{5}{8}")),
            ("**Final Answer: 58**", Some("58")),
            ("Final Answer: **58** euros", Some("58 euros")),
            ("Final Answer - 58", Some("58")),
            ("Answer: -58", Some("-58")),
            ("### Answer\n\n58\n\nas shown", Some("58")),
            ("**Final Answer**\n\\[\n\\frac{5}{8}\n\\]", Some("\\frac{5}{8}")),
            ("Answer: 57\nNo.\nAnswer: 58\n", Some("58")),
            ("Hence the answer is $5,800.00.", Some("$5,800.00")),
            ("Hence the answer is $x^2+5$. Done", Some("x^2+5")),
            ("Answer: p+q = 50+8 = 58", Some("p+q = 50+8 = 58")),
            ("Answer: The largest value is 58.", Some("58")),
            ("The correct option is (C).", Some("(C)")),
            ("所以答案是58。", Some("58")),
            ("**答案：** $58$", Some("58")),
            ("故选：B", Some("B")),
            ("综上所述，因此选 B。", Some("B")),
            ("\\boxed{7}，所以选择（Ｃ）。\n", Some("(C) 7")),
            ("正确的选项是 D，验证如下", Some("D")),
            ("我们不选 B。", None),
            ("若选 B，则矛盾。", None),
            ("选 A，B 两点。", None),
            ("选项 B 正确吗？", None),
            ("#### 5. Check\nAnswer: 58", Some("58")),
            ("#### 58\nThis agrees.", Some("58")),
            ("I answer: maybe 58", None),
            ("The answer is not 58", None),
            ("If the answer is 58, then no", None),
            ("So the answer is 58?", None),
            ("Option A: 58", None),
            ("12", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(stated(text).as_deref(), want, "{text:?}");
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
            ("it is minus 4", Some("minus 4")),
            ("8 minus 4", Some("4")),
            ("none", None),
        ];
        for (text, want) in table {
            assert_eq!(last_number(text), want, "{text:?}");
        }
    }

    #[test]
    fn golds_are_found_in_solutions() {
        let table = [
            ("2+3\n#### 5", "5"),
            ("#### Step 2\nso \\boxed{36}", "36"),
            ("\\boxed{36}\n#### Remark\nnothing", "36"),
            ("\\boxed{3} and \\boxed{6}", "3, 6"),
            ("So 12 fit. The answer is 180.", "180"),
            ("no solution", "no solution"),
            (" 36 ", "36"),
        ];
        for (text, want) in table {
            assert_eq!(gold_answer(text), want, "{text:?}");
        }
    }
}
