//! Answers that a text announces in words: `Answer: 34`, `**Final Answer:** $x + 1$`, "the answer is 12", 答案：12, 故选：B.

use super::token::narrow;
use super::tree::Node;
use super::{MAX_ANSWER, parse};

/// Maximum number of announcements examined, from the last.
const MAX_TRIALS: usize = 32;
/// Maximum number of bytes examined before the word "answer".
const MAX_LEAD: usize = 40;

/// An answer announced in words.
pub(super) struct Announced {
    /// Position of the word "answer".
    pub(super) at: usize,
    /// Whether it is a separate line or heading, or contains the word "final".
    pub(super) formal: bool,
    pub(super) answer: String,
}

/// Whether the text parses to something other than words.
pub(super) fn reads(text: &str) -> bool {
    !matches!(parse::parse(text), Ok(Node::Words(_)) | Err(_))
}

/// Find the last announcement with a value.
pub(super) fn announced(text: &str) -> Option<Announced> {
    let lower = text.to_ascii_lowercase();
    let find = |word: &str| {
        // `Ans: 5` and `Ans. 5`, but not the start of "answer".
        let whole = |at: &usize| word != "ans" || lower[at + word.len()..].starts_with([':', '.']);
        let places = lower.rmatch_indices(word).map(|(at, _)| at);
        places.filter(whole).take(MAX_TRIALS).find_map(|at| english(text, &lower, at, word.len()))
    };
    let latin = ["answer", "ans", "option", "choice"].into_iter().filter_map(find).max_by_key(|found| found.at);
    let chinese = text.rmatch_indices('答').take(MAX_TRIALS).find_map(|(at, word)| {
        let rest = text[at + word.len()..].trim_start_matches(['案', 'え']);
        let rest = rest.trim_start_matches('*').strip_prefix(['是', '为', '：', ':', '】'])?;
        Some(Announced { at, formal: true, answer: value(rest.trim_start_matches(['：', ':']))? })
    });
    let choice = text.rmatch_indices('选').take(MAX_TRIALS).find_map(|(at, _)| chosen(text, at));
    latin.into_iter().chain(chinese).chain(choice).max_by_key(|found| found.at)
}

/// Parse the letter at the end of a clause after 选, "choose", or 选项是, "the option is": 故选：B, 因此选 B。
fn chosen(text: &str, at: usize) -> Option<Announced> {
    let (before, rest) = text.split_at(at + '选'.len_utf8());
    let rest = match rest.strip_prefix('项') {
        Some(rest) => rest.strip_prefix(['是', '为', '：', ':'])?,
        None => Some(rest.strip_prefix('择').unwrap_or(rest)).filter(|_| chooses(before))?,
    };
    let rest = rest.trim_start_matches(['：', ':', ' ', '*', '$', '(', '（']);
    let first = rest.chars().next()?;
    let letter = Some(narrow(first)).filter(|letter| ('A'..='H').contains(letter))?;
    let mut after = rest[first.len_utf8()..].trim_start_matches([' ', '*', '$', ')', '）']).chars();
    let ends = match after.next() {
        None | Some('\n' | '\r' | '。' | '.' | '；' | ';' | '！' | '!') => true,
        // 选 A，B 两点 chooses two points.
        Some('，' | ',') => !after.as_str().trim_start().starts_with(|c: char| c.is_ascii_alphabetic()),
        _ => false,
    };
    ends.then(|| Announced { at, formal: true, answer: letter.to_string() })
}

/// Whether Chinese words end with "choose", and neither deny nor suppose it.
pub(super) fn chooses(words: &str) -> bool {
    const DENIALS: [&str; 8] = ["不", "不能", "不可", "不应", "若", "如果", "假如", "是否"];
    let before = words.strip_suffix('择').unwrap_or(words).strip_suffix('选');
    before.is_some_and(|before| !DENIALS.iter().any(|denial| before.ends_with(denial)))
}

fn is_mark(c: char) -> bool {
    matches!(c, '*' | '_' | '#' | '>' | '`')
}

/// Parse an announcement at one occurrence of "answer", "option" or "choice".
fn english(text: &str, lower: &str, at: usize, length: usize) -> Option<Announced> {
    let start = (at.saturating_sub(MAX_LEAD)..=at).find(|start| text.is_char_boundary(*start))?;
    let line = lower[start..at].rsplit('\n').next().unwrap_or_default();
    let lead = line.trim_matches(|c: char| !c.is_alphanumeric());
    let mut words = lead.rsplit(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let last = words.next().unwrap_or_default();
    // "The correct option" states an answer; "option" alone does not.
    let led = match last {
        "final" | "correct" | "right" => true,
        "" => lead.is_empty() && lower[at..].starts_with('a'),
        "the" | "our" | "my" | "numerical" | "required" | "desired" | "exact" => lower[at..].starts_with('a'),
        "an" => lower[at..].starts_with("answer of "),
        _ => false,
    };
    let supposed = words.next().is_some_and(|word| matches!(word, "if" | "whether" | "suppose" | "unless" | "until"));
    if !led || supposed {
        return None;
    }
    let rest = &lower[at + length..];
    let rest = rest.strip_prefix('s').unwrap_or(rest).trim_start_matches(is_mark);
    let rest = rest.trim_start_matches([' ', '\t']);
    let rest = PURPOSES.iter().find_map(|purpose| rest.strip_prefix(purpose)).unwrap_or(rest);
    let verb = ["is", "are", "would be", "must be", "should be", "of"].iter().find_map(|verb| {
        let after = rest.strip_prefix(verb)?;
        (!after.starts_with(|c: char| c.is_alphanumeric())).then_some(after)
    });
    let dash = ["- ", "– ", "— "].iter().find_map(|dash| rest.strip_prefix(dash));
    let point = rest.strip_prefix(". ").filter(|_| length == 3);
    let colon = rest.strip_prefix([':', '：', '=']).or(dash).or(point);
    // `### Answer` above the value.
    let heading = rest.starts_with(['\n', '\r']) && (lead.len() < 10 || line.trim_start().starts_with(is_mark));
    let after = verb.or(colon).or(heading.then_some(rest))?;
    let answer = value(&text[text.len() - after.len()..])?;
    // "The final answer should be an integer" is a remark.
    let stated = last == "final" && rest.starts_with(['i', 'a']);
    Some(Announced { at, formal: verb.is_none() || stated, answer })
}

/// Phrases that may follow "answer".
const PURPOSES: &[&str] = &["to the problem ", "to this problem ", "to the question ", "to this question "];

/// Extract the value after an announcement, from the same line or the next non-blank line.
fn value(rest: &str) -> Option<String> {
    let mark = |c: char| (is_mark(c) && c != '>') || c.is_whitespace();
    let after = rest.trim_start_matches(|c: char| mark(c) || c == ':' || c == '：');
    // On a separate line a dash starts a list item, and `>` a quotation.
    let item = rest[..rest.len() - after.len()].contains('\n');
    let rest = after.strip_prefix("- ").or(after.strip_prefix('>')).filter(|_| item).unwrap_or(after).trim_start();
    let end = (0..=rest.len().min(MAX_ANSWER)).rev().find(|end| rest.is_char_boundary(*end))?;
    let rest = &rest[..end];
    for (open, close) in [("$$", "$$"), ("\\[", "\\]")] {
        if let Some(inside) = rest.strip_prefix(open) {
            return inside.find(close).map(|end| inside[..end].trim().to_string());
        }
    }
    let plain = without_stars(sentence(rest.lines().next()?));
    let plain = plain.trim_start_matches(mark).trim_end_matches(|c: char| mark(c) || c == '>' || c == '.');
    let plain = plain.split(" and we ").next().unwrap_or(plain);
    let adverb = ["therefore ", "thus ", "then ", "hence ", "simply ", "just ", "exactly ", "equal to "];
    let plain = adverb.iter().fold(plain, |plain, adverb| plain.strip_prefix(adverb).unwrap_or(plain));
    if plain.is_empty() || plain.starts_with("not ") || plain.starts_with("不是") || plain.ends_with('?') {
        return None;
    }
    if reads(plain) {
        let one = plain.strip_prefix('$').and_then(|rest| rest.strip_suffix('$'));
        return Some(one.filter(|inside| !inside.contains('$')).unwrap_or(plain).to_string());
    }
    // "The largest n is 34", or a formula with words after it.
    let copulas = [" is ", " are ", " equals ", "equal to ", "为", "是"].iter();
    let tail = copulas.filter_map(|verb| Some(plain.rfind(verb)? + verb.len())).max().map(|at| plain[at..].trim());
    if let Some(formula) = tail.filter(|tail| reads(tail)).or_else(|| first_formula(plain)) {
        return Some(formula.to_string());
    }
    // Many words followed by more text are not the answer: "Answer: let us see."
    let short = plain.split_whitespace().count() <= 4;
    (short || rest.lines().skip(1).all(|line| line.trim().is_empty())).then(|| plain.to_string())
}

/// Return the formula at the start of a sentence.
fn first_formula(sentence: &str) -> Option<&str> {
    [("$", "$"), ("\\(", "\\)")].iter().find_map(|(open, close)| {
        let inside = sentence.strip_prefix(open)?;
        Some(inside[..inside.find(close)?].trim()).filter(|inside| reads(inside))
    })
}

/// Return the first sentence of a line; full stops inside formulae do not end it.
fn sentence(line: &str) -> &str {
    let paired = line.matches('$').count().is_multiple_of(2);
    let mut inside = false;
    for (at, c) in line.char_indices() {
        let next = line[at + c.len_utf8()..].chars().next();
        match c {
            '$' => inside = paired && !inside,
            '.' if !inside && next.is_none_or(char::is_whitespace) => return &line[..at],
            '。' => return &line[..at],
            _ => {}
        }
    }
    line
}

/// Remove Markdown's `**`, but not the operator in `x**2`.
fn without_stars(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("**") {
        let before = rest[..at].ends_with(|c: char| c.is_alphanumeric() || ")]}".contains(c));
        let after = rest[at + 2..].starts_with(|c: char| c.is_alphanumeric() || "({-".contains(c));
        plain.push_str(&rest[..at + if before && after { 2 } else { 0 }]);
        rest = &rest[at + 2..];
    }
    plain + rest
}
