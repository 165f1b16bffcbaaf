//! Tokenizer of LaTeX, Unicode and plain text; formatting is dropped.

use super::tree::{Fault, Result};

/// Maximum number of tokens.
const MAX_TOKENS: usize = 2000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    /// A decimal without separators, with an optional exponent of ten: `1234`, `.5`, `4.5e33`.
    Digits(String),
    /// A run of ASCII letters.
    Letters(String),
    /// A LaTeX command with a meaning, without the backslash.
    Command(String),
    /// The words of a `\text{}` or similar command.
    Text(String),
    /// The grouping braces `{` and `}` of LaTeX.
    Open,
    Close,
    /// An operator, bracket or mark; `{` and `}` are the braces of a set.
    Char(char),
    /// The `&` between cells and the end of a row.
    Cell,
    Row,
}

/// A token and whether a space precedes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spaced(pub(super) Token, pub(super) bool);

/// Commands that equal one character.
#[rustfmt::skip]
const CHARS: &[(&str, char)] = &[
    ("cdot", '*'), ("times", '*'), ("ast", '*'), ("div", '/'), ("pm", '±'), ("mp", '∓'), ("le", '≤'), ("leq", '≤'),
    ("leqslant", '≤'), ("ge", '≥'), ("geq", '≥'), ("geqslant", '≥'), ("lt", '<'), ("gt", '>'), ("ne", '≠'),
    ("neq", '≠'), ("approx", '≈'), ("simeq", '≈'), ("equiv", '≡'), ("in", '∈'), ("cup", '∪'), ("cap", '∩'),
    ("notin", '∉'), ("setminus", '∖'), ("backslash", '∖'), ("circ", '°'), ("degree", '°'), ("degrees", '°'),
    ("deg", '°'), ("textdegree", '°'), ("bigcup", '∪'), ("bigcap", '∩'), ("prime", '\''), ("infty", '∞'),
    ("lfloor", '⌊'), ("rfloor", '⌋'), ("lceil", '⌈'), ("rceil", '⌉'), ("mid", '|'), ("vert", '|'), ("lvert", '|'),
    ("rvert", '|'), ("emptyset", '∅'), ("varnothing", '∅'), ("colon", ':'), ("lbrace", '{'), ("rbrace", '}'),
    ("lbrack", '['), ("rbrack", ']'), ("land", ','), ("wedge", ','), ("lor", '∨'), ("vee", '∨'), ("langle", '('),
    ("rangle", ')'), ("pounds", '£'), ("euro", '€'), ("dots", '…'), ("ldots", '…'),
    ("cdots", '…'), ("dotsc", '…'), ("dotsb", '…'),
];

/// Replacements of Unicode characters.
#[rustfmt::skip]
const UNICODE: &[(char, &str)] = &[
    ('−', "-"), ('–', "-"), ('—', "-"), ('×', "*"), ('·', "*"), ('⋅', "*"), ('∙', "*"), ('÷', "/"), ('∕', "/"), ('⁄', "/"),
    ('º', "°"), ('˚', "°"), ('•', "*"), ('✕', "*"), ('⨯', "*"), ('∶', ":"), ('﹣', "-"), ('≦', "≤"), ('≧', "≥"),
    ('⅜', "\\frac38"), ('⅝', "\\frac58"), ('⅞', "\\frac78"), ('⅖', "\\frac25"), ('⅗', "\\frac35"), ('⅘', "\\frac45"),
    ('⅙', "\\frac16"), ('⅚', "\\frac56"), ('ⁿ', "^n "), ('∜', "\\sqrt[4]"), ('△', "\\triangle "), ('𝜋', "\\pi "),
    ('′', "'"), ('’', "'"), ('⩽', "≤"), ('⩾', "≥"),
    ('π', "\\pi "), ('√', "\\sqrt "), ('∛', "\\sqrt[3]"), ('½', "\\frac12"), ('⅓', "\\frac13"), ('⅔', "\\frac23"),
    ('¼', "\\frac14"), ('¾', "\\frac34"), ('⅕', "\\frac15"), ('⅛', "\\frac18"), ('α', "\\alpha "), ('β', "\\beta "),
    ('γ', "\\gamma "), ('δ', "\\delta "), ('ε', "\\epsilon "), ('θ', "\\theta "), ('λ', "\\lambda "), ('μ', "\\mu "),
    ('ρ', "\\rho "), ('σ', "\\sigma "), ('τ', "\\tau "), ('φ', "\\phi "), ('ω', "\\omega "), ('Δ', "\\Delta "),
    ('⋯', "…"), ('\u{a0}', " "), ('\u{2009}', " "), ('\u{202f}', " "), ('“', "\""), ('”', "\""), ('。', "."),
    ('、', ","), ('￥', "¥"), ('¢', " cents "), ('℃', "°C"), ('℉', "°F"), ('✓', " "), ('✔', " "), ('✅', " "),
    ('☑', " "), ('\u{fe0f}', " "), ('⟨', "("), ('⟩', ")"),
];

/// Commands that only change position or size.
#[rustfmt::skip]
const LOOKS: &[&str] = &[
    "left", "right", "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr",
    "Biggl", "Biggr", "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "quad", "qquad", "rm", "bf",
    "it", "boxed", "fbox", "tiny", "large", "Large", "qed", "blacksquare",
    "checkmark", "therefore", "underline", "mathbin", "mathrel", "mathstrut", "thinspace", "huge", "Huge", "LARGE",
    "small", "footnotesize", "normalsize", "enspace", "hfill", "square", "Box", "smash", "mathord", "mathinner",
    "mathopen", "mathclose", "ensuremath",
];
/// Commands whose first argument is only formatting.
#[rustfmt::skip]
const COLOURS: &[&str] = &[
    "color", "textcolor", "colorbox", "bbox", "hspace", "vspace", "tag", "label", "phantom", "hphantom", "vphantom",
];

/// Commands around words, and font commands around a formula.
#[rustfmt::skip]
const WORDS: &[&str] = &[
    "text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "textup", "textsl", "mbox", "hbox",
    "mathrm", "mathup", "operatorname", "emph",
];
const FONTS: &[&str] =
    &["mathbf", "mathit", "mathsf", "mathtt", "mathnormal", "mathcal", "boldsymbol", "bm", "pmb", "vec"];

/// Replacements in the unit of a `\text{}`.
const UNIT_SIGNS: &[(&str, &str)] =
    &[("~", " "), ("\\,", " "), ("\\cdot", "·"), ("\\Omega", "Ω"), ("\\mu ", "μ"), ("\\mu{}", "μ")];

/// Whether a `\text{}` contains more than words and units such as `m/s^2`.
fn is_formula(content: &str) -> bool {
    let mut power = false;
    content.chars().any(|c| {
        power = c == '^' || (power && (c == '{' || c == '-' || c.is_ascii_digit() || c == '}'));
        !power && (c.is_ascii_digit() || "\\${}=+<>,°€£¥₹".contains(c))
    }) || content.trim() == ":"
}

/// Whether a character belongs to a script without spaces between words.
fn is_ideograph(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}')
}

/// Split a text into tokens.
pub(super) fn tokenize(text: &str) -> Result<Vec<Spaced>> {
    if text.len() > super::MAX_ANSWER {
        return Err(Fault::Limit);
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            plain.push(c);
            continue;
        }
        match UNICODE.iter().find(|(from, _)| *from == c) {
            Some((_, to)) => plain.push_str(to),
            None => plain.push(narrow(c)),
        }
    }
    if !plain.contains("\\begin") {
        plain = single_backslashes(&plain);
    }
    let mut lexer = Lexer { rest: &plain, tokens: Vec::new(), spaced: false, brackets: 0, not_thousands: 0 };
    while !lexer.rest.is_empty() {
        lexer.next(0)?;
        if lexer.tokens.len() > MAX_TOKENS {
            return Err(Fault::Limit);
        }
    }
    Ok(lexer.tokens)
}

/// Return the ASCII character for a full-width or mathematical one, or for a digit of another script.
pub(super) fn narrow(c: char) -> char {
    // The zeros of the Arabic, Persian, Devanagari, Bengali, Telugu and Thai digits.
    const ZEROS: [u32; 6] = [0x660, 0x6f0, 0x966, 0x9e6, 0xc66, 0xe50];
    if let Some(zero) = ZEROS.iter().find(|zero| (**zero..**zero + 10).contains(&u32::from(c))) {
        return char::from_u32(48 + u32::from(c) - zero).unwrap_or(c);
    }
    match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        '\u{3000}' => ' ',
        // Mathematical alphabets: each has 26 capitals, then 26 small letters.
        '\u{1d400}'..='\u{1d6a3}' => {
            let index = (u32::from(c) - 0x1d400) % 52;
            char::from_u32(if index < 26 { 65 + index } else { 71 + index }).unwrap_or(c)
        }
        '\u{1d7ce}'..='\u{1d7ff}' => char::from_u32(48 + (u32::from(c) - 0x1d7ce) % 10).unwrap_or(c),
        _ => c,
    }
}

/// Undo double escaping, `\\frac` for `\frac`.
fn single_backslashes(text: &str) -> String {
    let mut single = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\\\\") {
        let letter = rest[at + 2..].starts_with(|c: char| c.is_ascii_alphabetic());
        single.push_str(&rest[..at + if letter { 1 } else { 2 }]);
        rest = &rest[at + 2..];
    }
    single + rest
}

/// Skip the star and the length that may follow the end of a row: `[4pt]`.
fn without_length(text: &str) -> &str {
    let text = text.strip_prefix('*').unwrap_or(text);
    let after = text.trim_start().strip_prefix('[').and_then(|rest| {
        let unit = rest.trim_start_matches(|c: char| c.is_ascii_digit() || "-. ".contains(c));
        let end =
            unit.strip_prefix(|c: char| c.is_ascii_lowercase())?.strip_prefix(|c: char| c.is_ascii_lowercase())?;
        end.strip_prefix(']').filter(|_| unit.len() < rest.len())
    });
    after.unwrap_or(text)
}

/// Find the brace that closes the group at the start of a text.
fn closing(inside: &str) -> Result<usize> {
    let mut open = 1;
    let end = inside.find(|c| {
        open += i32::from(c == '{') - i32::from(c == '}');
        open == 0
    });
    end.ok_or(Fault::Malformed)
}

/// Separators of thousands.
#[rustfmt::skip]
const SEPARATORS: &[&str] =
    &["{,}", " {,}", "{, }", " {, }", ",\\!", ",\\! ", "\\,", "\\;", "\\:", ",", " ", "\\ ", "\\!"];

const RAISED: &str = "⁰¹²³⁴⁵⁶⁷⁸⁹";

struct Lexer<'a> {
    rest: &'a str,
    tokens: Vec<Spaced>,
    spaced: bool,
    /// Number of open brackets, in which commas separate components.
    brackets: usize,
    /// How many of the next numbers belong to a list.
    not_thousands: usize,
}

impl<'a> Lexer<'a> {
    fn push(&mut self, token: Token) {
        self.tokens.push(Spaced(token, std::mem::take(&mut self.spaced)));
    }

    fn take(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    fn next(&mut self, depth: usize) -> Result<()> {
        let Some(c) = self.rest.chars().next() else { return Ok(()) };
        let after = &self.rest[c.len_utf8()..];
        let digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        match c {
            '\\' => return self.command(depth),
            '0'..='9' => self.number(),
            '.' if after.starts_with("..") => {
                self.rest = self.rest.trim_start_matches('.');
                self.push(Token::Char('…'));
            }
            '.' if digit(after) => self.number(),
            _ if c.is_ascii_alphabetic() => {
                let length = self.rest.bytes().take_while(u8::is_ascii_alphabetic).count();
                let letters = self.take(length);
                self.letters(letters);
            }
            _ if is_ideograph(c) => {
                let length = self.rest.find(|c| !is_ideograph(c)).unwrap_or(self.rest.len());
                let words = self.take(length).to_string();
                self.push(Token::Text(words));
            }
            _ => {
                self.rest = after;
                match c {
                    // A delimiter, or a currency that is ignored.
                    '$' => {}
                    _ if c.is_whitespace() => self.spaced = true,
                    '~' | '\u{200b}' | '\u{feff}' => self.spaced = true,
                    '{' if after.starts_with(":}") => {
                        self.rest = &after[2..];
                        self.mark(':');
                    }
                    // `x == 5`
                    '=' if after.starts_with('=') => {}
                    '{' => self.push(Token::Open),
                    '}' => self.push(Token::Close),
                    '&' => self.push(Token::Cell),
                    '*' if after.starts_with('*') => {
                        self.rest = &after[1..];
                        self.push(Token::Char('^'));
                    }
                    // `5!=120` has a factorial.
                    '!' if self.after_number() => self.mark(c),
                    '<' | '>' | '!' | ':' if after.starts_with('=') => {
                        self.rest = &after[1..];
                        self.push(Token::Char(match c {
                            '<' => '≤',
                            '>' => '≥',
                            '!' => '≠',
                            _ => '=',
                        }));
                    }
                    _ => self.mark(c),
                }
            }
        }
        Ok(())
    }

    /// Push letters, or the operator they mean in plain text: `3 x 10^8`, `(0, 1) U (2, 3)`, `x in [0, 1]`.
    fn letters(&mut self, run: &str) {
        let rest = self.rest.trim_start().trim_start_matches("\\left").trim_start();
        let bracket = rest.starts_with(['(', '[', '{', ']']);
        let ten = rest
            .strip_prefix("10")
            .is_some_and(|rest| rest.starts_with(|c| c == '^' || c == '⁻' || RAISED.contains(c)));
        let sign = match (run, self.tokens.last().map(|Spaced(token, _)| token)) {
            ("x" | "X", Some(Token::Digits(_))) if self.spaced && ten => '*',
            ("U", Some(Token::Char(')' | ']' | '[' | '}'))) if bracket => '∪',
            ("in", Some(Token::Letters(_))) if bracket && self.spaced => '∈',
            _ => return self.push(Token::Letters(run.to_string())),
        };
        self.push(Token::Char(sign));
    }

    fn after_number(&self) -> bool {
        !self.spaced && matches!(self.tokens.last(), Some(Spaced(Token::Digits(_) | Token::Char(')'), _)))
    }

    /// Push a character; superscript and subscript digits become `^{}` and `_{}`.
    fn mark(&mut self, c: char) {
        const LOWERED: &str = "₀₁₂₃₄₅₆₇₈₉";
        let place = |row: &str, c: char| row.chars().position(|other| other == c);
        for (row, sign) in [(RAISED, '^'), (LOWERED, '_')] {
            if row.contains(c) || (sign == '^' && c == '⁻') {
                self.push(Token::Char(sign));
                self.push(Token::Open);
                if c == '⁻' {
                    self.push(Token::Char('-'));
                }
                let mut digits: String = place(row, c).map(|d| d.to_string()).unwrap_or_default();
                while let Some((next, d)) = self.rest.chars().next().and_then(|next| Some((next, place(row, next)?))) {
                    digits.push_str(&d.to_string());
                    self.rest = &self.rest[next.len_utf8()..];
                }
                self.push(Token::Digits(digits));
                self.push(Token::Close);
                return;
            }
        }
        match c {
            '(' | '[' => self.brackets += 1,
            ')' | ']' => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.push(Token::Char(c));
    }

    fn command(&mut self, depth: usize) -> Result<()> {
        let letters = self.rest[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
        if letters == 0 {
            let c = self.rest[1..].chars().next().unwrap_or(' ');
            self.take((1 + c.len_utf8()).min(self.rest.len()));
            match c {
                '\\' => {
                    self.rest = without_length(self.rest);
                    self.push(Token::Row);
                }
                '{' => {
                    self.brackets += 1;
                    self.push(Token::Char('{'));
                }
                '}' => {
                    self.brackets = self.brackets.saturating_sub(1);
                    self.push(Token::Char('}'));
                }
                '%' | '|' => self.push(Token::Char(c)),
                '$' => self.push(Token::Char('＄')),
                '&' => self.push(Token::Text("and".to_string())),
                _ => self.spaced = true,
            }
            return Ok(());
        }
        let name = &self.take(1 + letters)[1..];
        if LOOKS.contains(&name) {
            // `\left.` is no bracket.
            if matches!(name, "left" | "right") {
                self.rest = self.rest.strip_prefix('.').unwrap_or(self.rest);
                // `\left< 1, 2 \right>`
                if let Some(rest) = self.rest.strip_prefix(['<', '>']) {
                    self.mark(if self.rest.starts_with('<') { '(' } else { ')' });
                    self.rest = rest;
                }
            }
            self.spaced |= name.contains("quad");
        } else if COLOURS.contains(&name) {
            self.rest = self.rest.trim_start_matches([' ', '*']);
            if let Some(inside) = self.rest.strip_prefix('{') {
                self.rest = &inside[closing(inside)? + 1..];
                self.spaced |= name.contains("space");
            } else if name == "bbox" {
                self.rest = self.rest.split_once(']').map_or(self.rest, |(_, rest)| rest);
            }
        } else if WORDS.contains(&name) {
            return self.words(depth);
        } else if FONTS.contains(&name) {
            // The braces that follow only group.
        } else if let Some((_, c)) = CHARS.iter().find(|(command, _)| *command == name) {
            self.mark(*c);
        } else if name == "cr" {
            self.push(Token::Row);
        } else if name == "textdollar" {
            self.mark('＄');
        } else if name == "mathbb" {
            let set = self.rest.trim_start_matches(['{', ' ']);
            let c = set.chars().next().filter(char::is_ascii_alphabetic).ok_or(Fault::Malformed)?;
            self.rest = set[1..].trim_start_matches(['}', ' ']);
            let positive = ["^+", "^{+}", "_+", "_{+}", "_{>0}"].iter().find_map(|sign| self.rest.strip_prefix(sign));
            if let Some(rest) = positive.filter(|_| c == 'R') {
                self.rest = rest;
                self.push(Token::Char('('));
                self.push(Token::Digits("0".to_string()));
                [',', '∞', ')'].into_iter().for_each(|c| self.push(Token::Char(c)));
                return Ok(());
            }
            self.push(if c == 'R' { Token::Char('ℝ') } else { Token::Command(format!("mathbb{c}")) });
        } else {
            let name = match name {
                "dfrac" | "tfrac" | "cfrac" | "nicefrac" | "sfrac" => "frac",
                "dbinom" | "tbinom" => "binom",
                "varphi" => "phi",
                "varepsilon" => "epsilon",
                other => other,
            };
            self.push(Token::Command(name.to_string()));
        }
        Ok(())
    }

    /// Tokenize the content of a `\text{}`: words, or a formula if it has digits or commands.
    fn words(&mut self, depth: usize) -> Result<()> {
        let Some(inside) = self.rest.trim_start().strip_prefix('{') else { return Ok(()) };
        let (content, rest) = inside.split_at(closing(inside)?);
        let mut plain = content.to_string();
        if plain.contains(['\\', '~']) {
            plain = UNIT_SIGNS.iter().fold(plain, |text, (sign, plain)| text.replace(sign, plain));
        }
        if !is_formula(&plain) {
            self.spaced |= plain.starts_with(' ');
            let mut words = plain.trim();
            if let Some(rest) = words.strip_prefix('(').filter(|rest| !rest.contains(')')) {
                self.mark('(');
                words = rest;
            }
            match words.strip_suffix(" and") {
                None if words.is_empty() => self.spaced = true,
                Some(before) => {
                    self.push(Token::Text(before.trim_end().to_string()));
                    self.spaced = true;
                    self.push(Token::Text("and".to_string()));
                }
                None => self.push(Token::Text(words.to_string())),
            }
        } else {
            if depth >= 8 {
                return Err(Fault::Limit);
            }
            self.rest = content;
            while !self.rest.is_empty() && self.tokens.len() <= MAX_TOKENS {
                self.next(depth + 1)?;
            }
        }
        self.rest = &rest[1..];
        self.spaced |= content.ends_with([' ', '~']);
        Ok(())
    }

    /// Push a number without thousands separators; commas between components or members stay.
    fn number(&mut self) {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let first = digits(self.rest);
        let mut number = self.take(first).to_string();
        // The index of `\log_5 625` and the exponent of `2^3 125` end with the digits.
        let raised = matches!(self.tokens.last(), Some(Spaced(Token::Char('_' | '^'), _)));
        if (1..=3).contains(&first) && number != "0" && !raised {
            for separator in SEPARATORS {
                let mut groups = Vec::new();
                let mut rest = self.rest;
                while let Some(next) = rest.strip_prefix(*separator).filter(|next| digits(next) > 0) {
                    let (group, after) = next.split_at(digits(next));
                    groups.push(group);
                    rest = after;
                }
                if groups.is_empty() {
                    continue;
                }
                let comma = *separator == ",";
                if comma && self.not_thousands == 0 && !groups.iter().all(|group| group.len() == 3) {
                    self.not_thousands = groups.len() + 1;
                }
                // A space may also be part of a mixed number: `1 100/3`.
                let mixed = matches!(*separator, " " | "\\;" | "\\:") && rest.starts_with('/');
                let list = comma && (self.brackets > 0 || self.not_thousands > 0);
                if groups.iter().all(|group| group.len() == 3) && !list && !mixed {
                    number.extend(groups);
                    self.rest = rest;
                }
                break;
            }
        }
        self.not_thousands = self.not_thousands.saturating_sub(1);
        if let Some(part) = self.rest.strip_prefix('.').filter(|part| !part.starts_with('.')) {
            let length = digits(part);
            // A full stop at the end is not a decimal point.
            if length > 0 || (!number.is_empty() && !part.trim_matches([' ', '\n', '$']).is_empty()) {
                number.push_str(self.take(1 + length));
            }
        }
        if let Some(exponent) = self.rest.strip_prefix(['e', 'E']) {
            let unsigned = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            let length = digits(unsigned);
            if length > 0 && !unsigned[length..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '^') {
                number.push_str(self.take(1 + exponent.len() - unsigned.len() + length));
            }
        }
        self.push(Token::Digits(number));
    }
}
