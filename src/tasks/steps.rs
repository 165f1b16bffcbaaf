//! Operations: their results and their text, in one go (only the result) or decomposed (with intermediate results).
//!
//! Every operation has one decomposed form, a chain of equalities whose links are table facts or change a single place.
//! All families share it, so what is learnt in one family serves the others:
//!
//! ```text
//! 347+285=547+85=627+5=632          sum, place by place (differences alike)
//! 47*6=240+42=282                   product, place by place
//! 15*3+2=30+15+2=45+2=47            Horner step
//! 378/7=50+28/7=50+4=54             quotient by partial quotients (47/3=10+17/3=10+5r2=15r2)
//! 378%15=378-300=78-75=3            remainder, multiple by multiple
//! ```

use crate::noise::Stream;

/// Operation of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Add,
    Sub,
    Mul,
    /// `left*right+addend`.
    MulAdd,
    /// The integer quotient.
    Div,
    /// Quotient and remainder.
    DivMod,
    /// The remainder.
    Mod,
}

/// The result of a calculation; `rest` is the remainder of a [`Op::DivMod`] and 0 otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CalculationResult {
    pub(super) value: i64,
    pub(super) rest: i64,
}

/// An operation with its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Calculation {
    pub(super) op: Op,
    pub(super) left: i64,
    pub(super) right: i64,
    pub(super) addend: i64,
}

/// Source of the intermediate results of a decomposition; it can falsify one of them.
struct Facts<'a> {
    taken: usize,
    wrong: Option<(usize, &'a mut Stream)>,
}

impl Facts<'_> {
    /// Return `value`, or a plausible wrong one below `limit`.
    fn take(&mut self, value: i64, near: i64, limit: i64) -> i64 {
        self.taken += 1;
        match &mut self.wrong {
            Some((at, random)) if *at == self.taken => perturb(value, near, limit, random),
            _ => value,
        }
    }
}

/// Return a plausible wrong result in `0..limit`: off by one, off by ten (a forgotten carry), or the neighbour in the
/// times table. Return `value` itself if no other is plausible.
fn perturb(value: i64, near: i64, limit: i64, random: &mut Stream) -> i64 {
    let mut wrong = vec![value - 1, value + 1];
    if value >= 10 {
        wrong.extend([value - 10, value + 10]);
    }
    if near > 1 {
        wrong.extend([value - near, value + near]);
    }
    wrong.retain(|&other| (0..limit).contains(&other) && other != value);
    if wrong.is_empty() { value } else { *random.choose(&wrong) }
}

/// Return the nonzero place values of a number: 305 gives 300 and 5.
fn places(number: i64) -> Vec<i64> {
    [1000, 100, 10, 1].iter().map(|place| number / place % 10 * place).filter(|&part| part > 0).collect()
}

const NO_LIMIT: i64 = 10_000;

impl Calculation {
    /// Whether the operands allow the operation: nothing negative, nothing divided by zero.
    pub(super) fn is_valid(&self) -> bool {
        match self.op {
            Op::Sub => self.left >= self.right,
            Op::Div | Op::DivMod | Op::Mod => self.right > 0,
            Op::Add | Op::Mul | Op::MulAdd => true,
        }
    }

    /// Return the right result.
    pub(super) fn exact(&self) -> CalculationResult {
        let Self { op, left, right, addend } = *self;
        let value = match op {
            Op::Add => left + right,
            Op::Sub => left - right,
            Op::Mul => left * right,
            Op::MulAdd => left * right + addend,
            Op::Div | Op::DivMod => left / right,
            Op::Mod => left % right,
        };
        CalculationResult { value, rest: if op == Op::DivMod { left % right } else { 0 } }
    }

    /// Whether the step is worth decomposing: it is not a table fact and changes more than one place.
    pub(super) fn is_hard(&self) -> bool {
        let Self { op, left, right, addend } = *self;
        match op {
            Op::Add => places(left).len() > 1 && places(right).len() > 1,
            Op::Sub => places(right).len() > 1,
            Op::Mul => places(left).len() > 1 && right > 1 || places(right).len() > 1 && left > 1,
            Op::MulAdd => left >= 10 || (left > 1 && left * right % 10 + addend >= 10),
            Op::Div => left >= 10 * right && places(left / right).len() > 1,
            Op::DivMod => left >= 10 * right,
            Op::Mod => left >= right && (right >= 10 || left >= 10 * right),
        }
    }

    /// Return the left-hand side, such as `47*6`.
    pub(super) fn expression(&self) -> String {
        let Self { op, left, right, addend } = self;
        match op {
            Op::Add => format!("{left}+{right}"),
            Op::Sub => format!("{left}-{right}"),
            Op::Mul => format!("{left}*{right}"),
            Op::MulAdd => format!("{left}*{right}+{addend}"),
            Op::Div | Op::DivMod => format!("{left}/{right}"),
            Op::Mod => format!("{left}%{right}"),
        }
    }

    /// Return a result as written after `=`.
    pub(super) fn result(&self, outcome: CalculationResult) -> String {
        if self.op == Op::DivMod { format!("{}r{}", outcome.value, outcome.rest) } else { outcome.value.to_string() }
    }

    /// Return the step in one go with the given result.
    pub(super) fn one_go(&self, outcome: CalculationResult) -> String {
        format!("{}={}", self.expression(), self.result(outcome))
    }

    /// Return a plausible wrong result for a step done in one go.
    pub(super) fn slip(&self, random: &mut Stream) -> CalculationResult {
        let CalculationResult { value, rest } = self.exact();
        match self.op {
            Op::DivMod if value == 0 || random.chance(0.5) => {
                CalculationResult { value, rest: perturb(rest, 0, self.right, random) }
            }
            Op::DivMod => CalculationResult { value: perturb(value, 0, self.left.min(value + 2), random), rest },
            Op::Mod => CalculationResult { value: perturb(value, 0, self.right, random), rest },
            Op::Mul => CalculationResult { value: perturb(value, self.left.min(self.right), NO_LIMIT, random), rest },
            _ => CalculationResult { value: perturb(value, 0, NO_LIMIT, random), rest },
        }
    }

    /// Return the decomposed form.
    pub(super) fn decomposed(&self) -> String {
        self.chain(&mut Facts { taken: 0, wrong: None }).0
    }

    /// Return the decomposed form with one wrong intermediate result, and the result that follows from it.
    pub(super) fn decomposed_slip(&self, random: &mut Stream) -> (String, CalculationResult) {
        let mut facts = Facts { taken: 0, wrong: None };
        self.chain(&mut facts);
        let at = random.range(1, facts.taken as i64) as usize;
        self.chain(&mut Facts { taken: 0, wrong: Some((at, random)) })
    }

    fn chain(&self, facts: &mut Facts<'_>) -> (String, CalculationResult) {
        let mut text = self.expression();
        let mut outcome = CalculationResult { value: 0, rest: 0 };
        match self.op {
            Op::Add | Op::Sub => {
                let (sign, symbol) = if self.op == Op::Add { (1, '+') } else { (-1, '-') };
                let mut rest = self.right;
                outcome.value = self.left;
                for part in places(self.right) {
                    outcome.value = facts.take(outcome.value + sign * part, 0, NO_LIMIT);
                    rest -= part;
                    text += &format!("={}", outcome.value);
                    if rest > 0 {
                        text += &format!("{symbol}{rest}");
                    }
                }
            }
            Op::Mul | Op::MulAdd => {
                let swap = places(self.left).len() < places(self.right).len();
                let (split, factor) = if swap { (self.right, self.left) } else { (self.left, self.right) };
                let mut parts: Vec<i64> = Vec::new();
                for part in places(split) {
                    parts.push(facts.take(part * factor, part, NO_LIMIT));
                }
                if self.addend > 0 {
                    parts.push(self.addend);
                }
                text += &format!("={}", join(&parts));
                while parts.len() > 1 {
                    let sum = facts.take(parts[0] + parts[1], 0, NO_LIMIT);
                    parts.splice(..2, [sum]);
                    text += &format!("={}", join(&parts));
                }
                outcome.value = parts.first().copied().unwrap_or(0);
            }
            Op::Div | Op::DivMod => {
                let mut parts = Vec::new();
                let mut left = self.left;
                for place in [1000, 100, 10] {
                    let unit = self.right * place;
                    if left >= unit {
                        let part = left / unit * place;
                        parts.push(part);
                        left = facts.take(left - part * self.right, 0, unit);
                        text += &format!("={}+{left}/{}", join(&parts), self.right);
                    }
                }
                parts.push(facts.take(left / self.right, 0, (left / self.right + 2).min(10)));
                outcome.rest = if self.op == Op::DivMod { facts.take(left % self.right, 0, self.right) } else { 0 };
                let rest = if self.op == Op::DivMod { format!("r{}", outcome.rest) } else { String::new() };
                outcome.value = parts.iter().sum();
                text += &format!("={}{rest}", join(&parts));
                if parts.len() > 1 {
                    text += &format!("={}{rest}", outcome.value);
                }
            }
            Op::Mod => {
                let mut left = self.left;
                for place in [1000, 100, 10, 1] {
                    let unit = self.right * place;
                    let multiple = left / unit * unit;
                    if multiple > 0 {
                        // The chain of differences writes the left side once: ...=78-75=3.
                        text += &format!("={left}-{multiple}");
                        left = facts.take(left - multiple, 0, unit);
                    }
                }
                text += &format!("={left}");
                outcome.value = left;
            }
        }
        (text, outcome)
    }
}

fn join(parts: &[i64]) -> String {
    parts.iter().map(i64::to_string).collect::<Vec<_>>().join("+")
}

/// An operand of a planned step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operand {
    /// A number of the question.
    Given(i64),
    /// The result of an earlier step, by index.
    Result(usize),
}

/// A planned step.
#[derive(Debug, Clone)]
pub(super) struct PlannedStep {
    op: Op,
    left: Operand,
    right: Operand,
    addend: i64,
    label: &'static str,
}

/// Continuation of a solution after its fixed steps.
#[derive(Debug, Clone)]
pub(super) enum Tail {
    /// None: the last result is the answer.
    Nothing,
    /// Euclid's algorithm; the last divisor is the answer.
    Euclid(i64, i64),
    /// Repeated division by a base; the last quotient and the remainders read backwards are the answer.
    Digits(Operand, i64),
}

/// A solution as abstract steps. In Euclid's algorithm and in repeated division, the next step depends on the results
/// so far, right or wrong.
#[derive(Debug, Clone)]
pub(super) struct SolutionPlan {
    steps: Vec<PlannedStep>,
    tail: Tail,
}

/// A completed step.
#[derive(Debug, Clone)]
pub(super) struct CompletedStep {
    pub(super) calculation: Calculation,
    pub(super) label: &'static str,
    pub(super) outcome: CalculationResult,
}

impl SolutionPlan {
    pub(super) fn new(tail: Tail) -> Self {
        Self { steps: Vec::new(), tail }
    }

    /// Add a step and return the operand for its result.
    pub(super) fn push(&mut self, op: Op, left: Operand, right: Operand, label: &'static str) -> Operand {
        self.steps.push(PlannedStep { op, left, right, addend: 0, label });
        Operand::Result(self.steps.len() - 1)
    }

    /// Add the Horner step `left*base+digit`.
    pub(super) fn push_horner(&mut self, left: Operand, base: i64, digit: i64) -> Operand {
        let label = "the next digit";
        self.steps.push(PlannedStep { op: Op::MulAdd, left, right: Operand::Given(base), addend: digit, label });
        Operand::Result(self.steps.len() - 1)
    }

    /// Return the step after those done, with its label.
    pub(super) fn next(&self, done: &[CompletedStep]) -> Option<(Calculation, &'static str)> {
        let number = |operand: Operand| match operand {
            Operand::Given(number) => number,
            Operand::Result(index) => done[index].outcome.value,
        };
        if let Some(PlannedStep { op, left, right, addend, label }) = self.steps.get(done.len()) {
            return Some((Calculation { op: *op, left: number(*left), right: number(*right), addend: *addend }, label));
        }
        let previous = if done.len() > self.steps.len() { done.last() } else { None };
        let calculation = |op, left, right| Calculation { op, left, right, addend: 0 };
        match (&self.tail, previous) {
            (Tail::Nothing, _) => None,
            (Tail::Euclid(a, b), None) => Some((calculation(Op::Mod, *a, *b), "the first remainder")),
            (Tail::Euclid(..), Some(CompletedStep { calculation: last, outcome, .. })) => {
                (outcome.value > 0).then(|| (calculation(Op::Mod, last.right, outcome.value), "the next remainder"))
            }
            (Tail::Digits(value, base), None) => {
                Some((calculation(Op::DivMod, number(*value), *base), "the last digit"))
            }
            (Tail::Digits(_, base), Some(CompletedStep { outcome, .. })) => {
                (outcome.value >= *base).then(|| (calculation(Op::DivMod, outcome.value, *base), "the digit before"))
            }
        }
    }

    /// Return the answer that the completed steps lead to.
    pub(super) fn answer(&self, done: &[CompletedStep]) -> String {
        match (&self.tail, done.last()) {
            (_, None) => String::new(),
            (Tail::Nothing, Some(last)) => last.outcome.value.to_string(),
            (Tail::Euclid(..), Some(last)) => last.calculation.right.to_string(),
            (Tail::Digits(..), Some(last)) => {
                let rests = done[self.steps.len()..].iter().rev().map(|step| step.outcome.rest);
                std::iter::once(last.outcome.value).chain(rests).map(|digit| digit.to_string()).collect()
            }
        }
    }

    /// Complete the steps without a mistake. `None` if the results so far lead to a negative number, a division by
    /// zero, a number of four digits or an endless chain.
    pub(super) fn finish(&self, done: &[CompletedStep]) -> Option<Vec<CompletedStep>> {
        let mut done = done.to_vec();
        while let Some((calculation, label)) = self.next(&done) {
            if !calculation.is_valid() || done.len() > 12 {
                return None;
            }
            done.push(CompletedStep { calculation, label, outcome: calculation.exact() });
        }
        done.iter().all(|step| (0..1000).contains(&step.outcome.value)).then_some(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calculation(op: Op, left: i64, right: i64, addend: i64) -> Calculation {
        Calculation { op, left, right, addend }
    }

    #[test]
    fn decomposed_forms_are_those_of_the_module_text() {
        let cases = [
            (calculation(Op::Add, 347, 285, 0), "347+285=547+85=627+5=632"),
            (calculation(Op::Sub, 632, 285, 0), "632-285=432-85=352-5=347"),
            (calculation(Op::Mul, 47, 6, 0), "47*6=240+42=282"),
            (calculation(Op::Mul, 6, 47, 0), "6*47=240+42=282"),
            (calculation(Op::MulAdd, 15, 3, 2), "15*3+2=30+15+2=45+2=47"),
            (calculation(Op::Div, 378, 7, 0), "378/7=50+28/7=50+4=54"),
            (calculation(Op::DivMod, 47, 3, 0), "47/3=10+17/3=10+5r2=15r2"),
            (calculation(Op::Mod, 378, 7, 0), "378%7=378-350=28-28=0"),
            (calculation(Op::Mod, 378, 15, 0), "378%15=378-300=78-75=3"),
        ];
        for (calculation, text) in cases {
            assert_eq!(calculation.decomposed(), text);
        }
    }

    #[test]
    fn decomposed_and_one_go_agree_and_every_link_of_a_sum_holds() {
        let mut random = Stream::new(&[11]);
        for _ in 0..20_000 {
            let op = *random.choose(&[Op::Add, Op::Sub, Op::Mul, Op::MulAdd, Op::Div, Op::DivMod, Op::Mod]);
            let (right, addend) = match op {
                Op::Add | Op::Sub => (random.range(0, 400), 0),
                Op::MulAdd => (random.range(2, 9), random.range(0, 8)),
                Op::Mod => (random.range(3, 40), 0),
                _ => (random.range(2, 9), 0),
            };
            let calculation =
                calculation(op, random.range(1, 99).max(if op == Op::Sub { right } else { 0 }), right, addend);
            if !calculation.is_hard() {
                continue;
            }
            let (text, outcome) = calculation.chain(&mut Facts { taken: 0, wrong: None });
            assert_eq!(outcome, calculation.exact(), "{text}");
            let result = format!("={}", calculation.result(outcome));
            assert!(text.starts_with(&calculation.expression()) && text.ends_with(&result), "{text}");
            let (text, outcome) = calculation.decomposed_slip(&mut random);
            assert!(text.ends_with(&format!("={}", calculation.result(outcome))), "{text}");
        }
    }
}
