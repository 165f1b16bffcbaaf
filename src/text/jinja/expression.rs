//! Expressions of a tag: jinja2's grammar, and the text that takes their place.

use super::rewrite::{TemplateToken, TokenKind, literal};

const KEYWORDS: [&str; 9] = ["and", "or", "not", "in", "is", "if", "else", "for", "recursive"];
const COMPARATORS: [&str; 6] = ["==", "!=", "<", ">", "<=", ">="];
const CONSTANTS: [&str; 6] = ["true", "false", "none", "True", "False", "None"];
/// Filters that compare what is inside of their input, or pass it on to tests and filters that do.
const COMPARING: [&str; 11] =
    ["select", "reject", "selectattr", "rejectattr", "map", "sort", "unique", "min", "max", "groupby", "dictsort"];
/// Methods that compare their arguments with what is inside of a container.
const COMPARING_METHODS: [&str; 4] = [".changed", ".get", ".count", ".index"];
/// Filters that make containers of containers.
const NESTING: [&str; 6] = ["map", "batch", "slice", "groupby", "items", "dictsort"];

/// How tightly the text of an expression holds together.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Precedence {
    /// An attribute, a subscript or a call may follow.
    Primary,
    /// A filter may follow.
    Chain,
    Compound,
}

/// A rewritten expression.
struct RewrittenExpression {
    text: String,
    precedence: Precedence,
    /// Whether it consists of literals.
    constant: bool,
}

impl RewrittenExpression {
    fn new(text: String, precedence: Precedence) -> Self {
        Self { text, precedence, constant: false }
    }

    /// Return the text, in parentheses if it holds together less tightly than `precedence`.
    fn with_precedence(&self, precedence: Precedence) -> String {
        if self.precedence <= precedence {
            return self.text.clone();
        }
        let inner = self.text.trim_start();
        format!("{}({inner})", &self.text[..self.text.len() - inner.len()])
    }

    fn primary(&self) -> String {
        self.with_precedence(Precedence::Primary)
    }

    fn filtered(&self, filter: &str) -> Self {
        Self::new(format!("{}|{filter}", self.with_precedence(Precedence::Chain)), Precedence::Chain)
    }

    /// Return the text with the charge for a container, which a constant does not need.
    fn checked(&self) -> String {
        if self.constant { self.text.clone() } else { self.filtered("__checked").text }
    }
}

/// Parser of the tokens of one tag.
pub(super) struct ExpressionParser<'s> {
    tokens: &'s [TemplateToken<'s>],
    at: usize,
    fault: Option<String>,
}

impl<'s> ExpressionParser<'s> {
    pub(super) fn new(tokens: &'s [TemplateToken<'s>]) -> Self {
        Self { tokens, at: 0, fault: None }
    }

    /// Rewrite a whole tag that ends with `close`.
    pub(super) fn tag(mut self, close: &str) -> Result<String, String> {
        let text = self.statement(close);
        self.fault.map_or(Ok(text), Err)
    }

    fn token(&self, ahead: usize) -> Option<&'s TemplateToken<'s>> {
        self.tokens.get(self.at + ahead)
    }

    fn kind(&self, ahead: usize) -> Option<TokenKind> {
        self.token(ahead).map(|token| token.kind)
    }

    /// Return whether the next token is this keyword or operator.
    fn is(&self, text: &str) -> bool {
        self.token(0).is_some_and(|token| token.text == text && token.kind != TokenKind::Text)
    }

    fn is_operator(&self, operators: &[&str]) -> bool {
        self.token(0).is_some_and(|token| token.kind == TokenKind::Operator && operators.contains(&token.text))
    }

    fn is_keyword(&self) -> bool {
        self.token(0).is_some_and(|token| token.kind == TokenKind::Name && KEYWORDS.contains(&token.text))
    }

    /// Return whether an expression ends here.
    fn stops(&self) -> bool {
        self.closes() || self.is_operator(&[",", ":", "=", ";"])
    }

    fn closes(&self) -> bool {
        self.token(0).is_none() || self.is_operator(&[")", "]", "}"])
    }

    fn begins_expression(&self) -> bool {
        !matches!(self.kind(0), None | Some(TokenKind::Operator)) || self.is_operator(&["(", "[", "{", "+", "-"])
    }

    /// Return the next token with the whitespace before it, and move on.
    fn take(&mut self) -> String {
        let Some(token) = self.tokens.get(self.at) else { return String::new() };
        self.at += 1;
        match token.kind {
            TokenKind::Text => format!("{}{}", token.space, literal(token.text)),
            _ => format!("{}{}", token.space, token.text),
        }
    }

    fn statement(&mut self, close: &str) -> String {
        let (mut out, mut sets_attribute) = (String::new(), false);
        if let (Some(first), "%}") = (self.token(0), close) {
            out = match first.text {
                // The markers of a loss mask only trim whitespace here.
                "generation" if self.tokens.len() == 1 => format!("{}if true", first.space),
                "endgeneration" if self.tokens.len() == 1 => format!("{}endif", first.space),
                _ => format!("{}{}", first.space, first.text),
            };
            self.at = 1;
            sets_attribute = first.text == "set" && self.token(1).is_some_and(|token| token.text == ".");
            // What is assigned to is no expression.
            let end: &[&str] = match first.text {
                "for" => &["in"],
                "set" => &["=", "|"],
                "call" if self.is("(") => &[")"],
                _ => &[],
            };
            while !end.is_empty() && self.token(0).is_some_and(|token| !end.contains(&token.text)) {
                out += &self.take();
            }
            if first.text == "for" {
                out += &self.take();
            }
        }
        while self.token(0).is_some() {
            if self.begins_expression() {
                out += &self.expression().text;
            } else if self.is("=") && sets_attribute && self.token(1).is_some() {
                out += &self.take();
                out += &self.expression().checked();
            } else {
                out += &self.take();
            }
        }
        out
    }

    /// Read operands and keywords up to the end of an expression.
    fn expression(&mut self) -> RewrittenExpression {
        let mut parts = Vec::new();
        while !self.stops() {
            parts.push(if self.is_keyword() || !self.begins_expression() {
                RewrittenExpression::new(self.take(), Precedence::Compound)
            } else {
                self.comparison()
            });
        }
        match parts.len() {
            1 => parts.remove(0),
            _ => RewrittenExpression::new(parts.iter().map(|part| part.text.as_str()).collect(), Precedence::Compound),
        }
    }

    fn comparison(&mut self) -> RewrittenExpression {
        let mut operands = vec![self.sum()];
        let (mut operators, mut bare) = (Vec::new(), true);
        loop {
            let mut operator = String::new();
            if self.is("not") && self.token(1).is_some_and(|token| token.text == "in" && token.kind == TokenKind::Name)
            {
                operator = self.take();
            }
            if !self.is("in") && !self.is_operator(&COMPARATORS) {
                break;
            }
            let contains = self.is("in");
            operator += &self.take();
            let (left, right) = (operands[operands.len() - 1].constant, self.sum());
            // Comparing with a constant is no work. A text on the right side of `in` turns the left side into one.
            bare &= left || right.constant && (!contains || right.text.trim_start().starts_with(['(', '[', '{']));
            operators.push(operator);
            operands.push(right);
        }
        if operators.is_empty() {
            return operands.remove(0);
        }
        let text = |piece: &RewrittenExpression| if bare { piece.text.clone() } else { piece.checked() };
        let rest = operators.iter().zip(&operands[1..]).map(|(operator, right)| format!("{operator}{}", text(right)));
        RewrittenExpression::new(text(&operands[0]) + &rest.collect::<String>(), Precedence::Compound)
    }

    /// Read the operands of a chain of one `operator`, each with `operand`, and return them as arguments.
    fn arguments_of(&mut self, operator: &str, operand: fn(&mut Self) -> RewrittenExpression) -> String {
        let mut arguments = Vec::new();
        while self.is_operator(&[operator]) {
            self.at += 1;
            arguments.push(operand(self).text);
        }
        arguments.join(",")
    }

    fn sum(&mut self) -> RewrittenExpression {
        let mut left = self.concatenation();
        while self.is_operator(&["+", "-"]) {
            left = if self.is("+") {
                let arguments = self.arguments_of("+", Self::concatenation);
                left.filtered(&format!("__add({arguments})"))
            } else {
                let operator = self.take();
                RewrittenExpression::new(
                    left.primary() + &operator + &self.concatenation().primary(),
                    Precedence::Compound,
                )
            };
        }
        left
    }

    fn concatenation(&mut self) -> RewrittenExpression {
        let left = self.product();
        match self.arguments_of("~", Self::product) {
            none if none.is_empty() => left,
            arguments => left.filtered(&format!("__concat({arguments})")),
        }
    }

    fn product(&mut self) -> RewrittenExpression {
        let mut left = self.power();
        while self.is_operator(&["*", "/", "//", "%"]) {
            let operator = self.take();
            let right = self.power();
            left = match operator.trim_start() {
                "*" => left.filtered(&format!("__multiply({})", right.text)),
                "%" => left.filtered(&format!("__modulo({})", right.text)),
                _ => RewrittenExpression::new(left.primary() + &operator + &right.primary(), Precedence::Compound),
            };
        }
        left
    }

    fn power(&mut self) -> RewrittenExpression {
        let mut left = self.unary();
        while self.is_operator(&["**"]) {
            let operator = self.take();
            left = RewrittenExpression::new(left.primary() + &operator + &self.unary().primary(), Precedence::Compound);
        }
        left
    }

    /// Read an operand with its signs, tests and filters, which apply to the signed value.
    fn unary(&mut self) -> RewrittenExpression {
        let mut signs = String::new();
        while self.is_operator(&["+", "-"]) {
            signs += &self.take();
        }
        let primary = self.primary();
        let mut piece = self.postfix(primary);
        if !signs.is_empty() {
            piece = RewrittenExpression { text: signs + &piece.primary(), precedence: Precedence::Compound, ..piece };
        }
        self.filters(piece)
    }

    fn primary(&mut self) -> RewrittenExpression {
        match self.kind(0) {
            Some(TokenKind::Text) => {
                let mut text = self.take();
                while self.kind(0) == Some(TokenKind::Text) {
                    text += &self.take();
                }
                RewrittenExpression { text, precedence: Precedence::Primary, constant: true }
            }
            Some(TokenKind::Name | TokenKind::Number) => {
                let text = self.take();
                let constant =
                    self.tokens[self.at - 1].kind == TokenKind::Number || CONSTANTS.contains(&text.trim_start());
                RewrittenExpression { text, precedence: Precedence::Primary, constant }
            }
            Some(TokenKind::Operator) if self.is_operator(&["(", "[", "{"]) => self.bracket(),
            _ => {
                self.expected("an expression");
                RewrittenExpression::new(String::new(), Precedence::Primary)
            }
        }
    }

    fn expected(&mut self, what: &str) {
        let found = self.token(0).map_or("the end of the tag", |token| token.text);
        self.fault.get_or_insert(format!("expected {what} before {found}"));
    }

    /// Read a list, a dict, a tuple or an expression in parentheses.
    fn bracket(&mut self) -> RewrittenExpression {
        let (is_dict, is_list) = (self.is("{"), self.is("["));
        let (mut text, mut constant, mut is_tuple, mut empty) = (self.take(), true, false, true);
        while !self.closes() {
            if self.stops() {
                is_tuple |= self.is(",");
                text += &self.take();
                continue;
            }
            let piece = self.expression();
            (constant, empty) = (constant && piece.constant, false);
            let is_key = is_dict && self.is(":");
            text += &if is_key { piece.checked() } else { piece.text };
        }
        text += &self.take();
        let piece = RewrittenExpression { text, precedence: Precedence::Primary, constant };
        let is_container = is_dict || is_list || is_tuple || empty;
        if constant || !is_container { piece } else { piece.filtered("__checked") }
    }

    /// Read the arguments of a call; those that are `compared` are charged for.
    fn call(&mut self, compared: bool) -> String {
        let mut text = self.take();
        while !self.closes() {
            if self.stops() {
                text += &self.take();
                continue;
            }
            let unpacks = self.is_operator(&["*", "**"]);
            if unpacks {
                text += &self.take();
            }
            let piece = self.expression();
            // The name of a keyword argument is followed by `=`.
            text += &if (compared || unpacks) && !self.is("=") { piece.checked() } else { piece.text };
        }
        text + &self.take()
    }

    fn postfix(&mut self, mut piece: RewrittenExpression) -> RewrittenExpression {
        loop {
            if self.is(".") && matches!(self.kind(1), Some(TokenKind::Name | TokenKind::Number)) {
                let subject = if self.kind(1) == Some(TokenKind::Number) { piece.filtered("__indexed") } else { piece };
                let attribute = self.take() + &self.take();
                piece = RewrittenExpression::new(subject.primary() + &attribute, Precedence::Primary);
            } else if self.is("[") {
                let is_name = self.kind(1) == Some(TokenKind::Text);
                let (subscript, is_slice) = self.subscript();
                let subject = if is_slice || is_name { piece } else { piece.filtered("__indexed") };
                piece = RewrittenExpression::new(subject.primary() + &subscript, Precedence::Primary);
                if is_slice {
                    piece = piece.filtered("__listed");
                }
            } else if self.is("(") {
                let compared = COMPARING_METHODS.iter().any(|name| piece.text.ends_with(name));
                piece = RewrittenExpression::new(piece.primary() + &self.call(compared), Precedence::Primary);
            } else {
                return piece;
            }
        }
    }

    /// Read a subscript. Return it and whether it is a slice.
    fn subscript(&mut self) -> (String, bool) {
        let (open, mut parts, mut is_slice) = (self.take(), Vec::new(), false);
        while !self.closes() {
            is_slice |= self.is(":");
            parts.push(if self.stops() {
                RewrittenExpression::new(self.take(), Precedence::Primary)
            } else {
                self.expression()
            });
        }
        let text = |part: &RewrittenExpression| if is_slice { part.text.clone() } else { part.checked() };
        (open + &parts.iter().map(text).collect::<String>() + &self.take(), is_slice)
    }

    fn filters(&mut self, mut piece: RewrittenExpression) -> RewrittenExpression {
        loop {
            if self.is("|") && self.kind(1) == Some(TokenKind::Name) {
                let (pipe, name) = (self.take(), self.take());
                let filter = name.trim_start();
                let input = if COMPARING.contains(&filter) {
                    piece.checked()
                } else {
                    piece.with_precedence(Precedence::Chain)
                };
                let arguments = if self.is("(") { self.call(true) } else { String::new() };
                piece = RewrittenExpression::new(format!("{input}{pipe}{name}{arguments}"), Precedence::Chain);
                if NESTING.contains(&filter) {
                    piece = piece.filtered("__checked");
                }
            } else if self.is("is") {
                piece = self.test(&piece);
            } else {
                return piece;
            }
        }
    }

    fn test(&mut self, subject: &RewrittenExpression) -> RewrittenExpression {
        let mut text = self.take();
        if self.is("not") {
            text += &self.take();
        }
        if self.kind(0) != Some(TokenKind::Name) {
            self.expected("the name of a test");
            return RewrittenExpression::new(text, Precedence::Compound);
        }
        let name = self.take();
        let has_argument = match self.kind(0) {
            Some(TokenKind::Name) => !self.is_keyword(),
            Some(TokenKind::Operator) => self.is_operator(&["[", "{"]),
            kind => kind.is_some(),
        };
        let argument = if self.is("(") {
            self.call(true)
        } else if has_argument {
            let primary = self.primary();
            format!("({})", self.postfix(primary).checked())
        } else {
            String::new()
        };
        // These look inside of a container.
        let looks = !argument.is_empty() || ["upper", "lower"].contains(&name.trim_start());
        let subject = if looks { subject.checked() } else { subject.with_precedence(Precedence::Chain) };
        RewrittenExpression::new(format!("{subject}{text}{name}{argument}"), Precedence::Compound)
    }
}
