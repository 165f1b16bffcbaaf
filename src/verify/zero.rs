//! Zero test of normal forms.
//!
//! No terms: proven zero. A floating-point value clearly different from 0 at some point: not zero. Otherwise,
//! coefficients that are algebraic numbers are decided in `algebraic`; an undecided case is `Fault::Limit`.

use std::collections::BTreeMap;
use std::ops::{Add, Mul};

use num_traits::{One, ToPrimitive};

use super::poly::{Algebra, Atom, Exponent, Monomial, Poly, Quotient};
use super::tree::{Fault, Result};

/// Relative size below which a floating-point value does not decide.
const TOLERANCE: f64 = 1e-9;
/// Points at which symbols are evaluated: one of fractions, two of integers (for floors and factorials), one negative.
const POINTS: u64 = 4;
const NEGATIVE: u64 = 3;

#[derive(Debug, Clone, Copy)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    fn real(re: f64) -> Self {
        Self { re, im: 0.0 }
    }

    fn size(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn ln(self) -> Self {
        Self { re: self.size().ln(), im: self.im.atan2(self.re) }
    }

    fn exp(self) -> Self {
        let size = self.re.exp();
        Self { re: size * self.im.cos(), im: size * self.im.sin() }
    }

    fn power(self, exponent: f64) -> Self {
        if self.im == 0.0 && (self.re >= 0.0 || exponent.fract() == 0.0) {
            return Self::real(self.re.powf(exponent));
        }
        (self.ln() * Self::real(exponent)).exp()
    }
}

impl Add for Complex {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }
}

impl Mul for Complex {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }
}

/// Cached values of atoms at one point.
struct PointValues {
    /// `None` for constants.
    number: Option<u64>,
    atoms: Vec<Option<Option<Complex>>>,
}

/// Return a deterministic pseudo-random value between 0 and 1 for a name.
fn scatter(name: &str, seed: u64) -> f64 {
    let hash = name.bytes().fold(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
    });
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11) as f64 / (1u64 << 53) as f64
}

impl Algebra {
    fn point(&self, number: Option<u64>) -> PointValues {
        PointValues { number, atoms: vec![None; self.atoms.len()] }
    }

    /// Return the value and the total size of its terms.
    fn value(&self, poly: &Poly, point: &mut PointValues) -> Option<(Complex, f64)> {
        let (mut sum, mut size) = (Complex::real(0.0), 0.0);
        for (monomial, coefficient) in &poly.0 {
            let mut term = Complex::real(coefficient.to_f64()?);
            for (index, exponent) in &monomial.0 {
                let base = self.atom_value(*index, point)?;
                // Symbols under a root are positive.
                if point.number == Some(NEGATIVE) && base.re < 0.0 && !exponent.is_integer() {
                    return None;
                }
                term = term * base.power(exponent_value(exponent));
            }
            size += term.size();
            sum = sum + term;
        }
        (size.is_finite() && sum.size().is_finite()).then_some((sum, size))
    }

    fn quotient_value(&self, quotient: &Quotient, point: &mut PointValues) -> Option<Complex> {
        let (over, _) = self.value(&quotient.over, point)?;
        let (under, size) = self.value(&quotient.under, point)?;
        (under.size() > TOLERANCE * size).then(|| over * under.power(-1.0))
    }

    fn atom_value(&self, index: usize, point: &mut PointValues) -> Option<Complex> {
        if let Some(value) = point.atoms[index] {
            return value;
        }
        let value = match &self.atoms[index] {
            Atom::MinusOne => Some(Complex::real(-1.0)),
            Atom::Prime(prime) => prime.to_f64().map(Complex::real),
            Atom::Pi => Some(Complex::real(std::f64::consts::PI)),
            Atom::Symbol(name) => point.number.map(|number| {
                let value = scatter(name, number);
                Complex::real(match number {
                    0 => 0.5 + value,
                    NEGATIVE => -0.5 - value,
                    _ => (value * 9.0).floor() + 2.0,
                })
            }),
            Atom::Radical(inside) => self.value(inside, point).map(|(value, _)| value),
            Atom::Ln(inside) => self.value(inside, point).map(|(value, _)| value.ln()),
            Atom::Exp(inside) => {
                self.value(&Poly::term(One::one(), inside.clone()), point).map(|(value, _)| value.exp())
            }
            Atom::Apply(name, arguments) => {
                let values: Option<Vec<Complex>> = arguments.iter().map(|x| self.quotient_value(x, point)).collect();
                values.and_then(|values| function_value(name, &values, point.number))
            }
        };
        let value = value.filter(|value| value.size().is_finite());
        point.atoms[index] = Some(value);
        value
    }

    /// Return the value of a real constant.
    pub(super) fn real(&self, poly: &Poly) -> Option<f64> {
        let (value, size) = self.value(poly, &mut self.point(None))?;
        (value.im.abs() <= TOLERANCE * size).then_some(value.re)
    }

    /// Whether a polynomial is zero.
    ///
    /// # Errors
    /// [`Fault::Limit`] if it cannot be decided.
    pub(super) fn is_zero(&mut self, poly: &Poly) -> Result<bool> {
        if poly.0.is_empty() {
            return Ok(true);
        }
        if poly.single().is_some_and(|(monomial, _)| monomial.0.iter().all(|(i, _)| self.never_zero(*i))) {
            return Ok(false);
        }
        self.spend(poly.0.len() as u64 * 4 + self.atoms.len() as u64)?;
        let constant = self.value(poly, &mut self.point(None));
        if let Some((value, size)) = constant {
            if value.size() > TOLERANCE * size {
                return Ok(false);
            }
        } else {
            for number in 0..POINTS {
                if let Some((value, size)) = self.value(poly, &mut self.point(Some(number)))
                    && value.size() > TOLERANCE * size
                {
                    return Ok(false);
                }
            }
        }
        self.decide_by_coefficients(poly)
    }

    fn never_zero(&self, index: usize) -> bool {
        !matches!(self.atoms[index], Atom::Apply(..) | Atom::Radical(_) | Atom::Ln(_))
    }

    /// Whether the atom is an algebraic number.
    fn is_algebraic(&self, index: usize) -> bool {
        match &self.atoms[index] {
            Atom::MinusOne | Atom::Prime(_) => true,
            Atom::Radical(inside) => inside.0.keys().all(|m| m.0.iter().all(|(index, _)| self.is_algebraic(*index))),
            _ => false,
        }
    }

    /// Whether all coefficients are zero, for a polynomial over the atoms that are not algebraic.
    fn decide_by_coefficients(&mut self, poly: &Poly) -> Result<bool> {
        let mut groups: BTreeMap<Monomial, Poly> = BTreeMap::new();
        for (monomial, value) in &poly.0 {
            let (inner, outer) = monomial.0.iter().copied().partition(|(index, _)| self.is_algebraic(*index));
            groups.entry(Monomial(outer)).or_default().0.insert(Monomial(inner), value.clone());
        }
        let mut all_zero = true;
        for coefficient in groups.values() {
            all_zero &= self.algebraic_is_zero(coefficient)?;
        }
        // A nonzero coefficient proves the polynomial nonzero only if the other atoms are independent: symbols, and one
        // transcendental number.
        let mut transcendental: Vec<usize> = groups.keys().flat_map(|m| m.0.iter().map(|(index, _)| *index)).collect();
        transcendental.sort_unstable();
        transcendental.dedup();
        transcendental.retain(|index| !matches!(self.atoms[*index], Atom::Symbol(_)));
        let independent = match transcendental.as_slice() {
            [] => true,
            // Lindemann: π, and e^a and ln a for algebraic a.
            [one] => match &self.atoms[*one] {
                Atom::Pi => true,
                Atom::Exp(power) => power.0.iter().all(|(index, _)| self.is_algebraic(*index)),
                Atom::Ln(inside) => inside.as_constant().is_some(),
                _ => false,
            },
            _ => false,
        };
        if all_zero || independent { Ok(all_zero) } else { Err(Fault::Limit) }
    }
}

fn exponent_value(exponent: &Exponent) -> f64 {
    *exponent.numer() as f64 / *exponent.denom() as f64
}

/// Evaluate a function; an unknown one gets pseudo-random values that depend only on its arguments.
fn function_value(name: &str, arguments: &[Complex], point: Option<u64>) -> Option<Complex> {
    let real = |x: &Complex| (x.im.abs() < TOLERANCE).then_some(x.re);
    let value = match (name, arguments) {
        ("exp", [x]) => return Some(x.exp()),
        ("abs", [x]) => x.size(),
        ("asin", [x]) => real(x)?.asin(),
        ("acos", [x]) => real(x)?.acos(),
        ("atan", [x]) => real(x)?.atan(),
        ("floor", [x]) => {
            let value = real(x)?;
            let near = value.round();
            if (value - near).abs() < 1e-6 { near } else { value.floor() }
        }
        ("factorial", [x]) => {
            let n = real(x).filter(|n| n.fract() == 0.0 && (0.0..=100.0).contains(n))?;
            (2..=n as u64).map(|factor| factor as f64).product()
        }
        ("max", _) => {
            arguments.iter().map(real).collect::<Option<Vec<_>>>()?.into_iter().fold(f64::NEG_INFINITY, f64::max)
        }
        ("min", _) => arguments.iter().map(real).collect::<Option<Vec<_>>>()?.into_iter().fold(f64::INFINITY, f64::min),
        ("gcd" | "lcm", _) => return None,
        _ => {
            point?;
            let key: String = arguments.iter().map(|x| format!("{:.6},{:.6};", x.re, x.im)).collect();
            0.5 + scatter(&format!("{name}({key})"), 7)
        }
    };
    value.is_finite().then(|| Complex::real(value))
}
