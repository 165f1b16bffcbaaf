//! Polynomials with exact coefficients over *atoms*: symbols, roots of primes and of -1, π, exponentials, logarithms.
//!
//! Sums, products, powers, radicals, exponentials, logarithms and trigonometric functions all become polynomials or
//! quotients of two. Equal terms cancel exactly; what is left over is judged in `zero`.

use std::collections::BTreeMap;

use num_bigint::{BigInt, BigUint};
use num_rational::{BigRational, Ratio};
use num_traits::{One, Zero};

use super::tree::{Fault, Result};

pub(super) type Exponent = Ratio<i64>;

/// Budget of steps of one comparison. A term of a product is one step; large coefficients cost more.
const STEPS: u64 = 50_000;
/// Maximum size of a coefficient, in bits.
const MAX_BITS: u64 = 12_000;
const MAX_POWER: i64 = 100_000;

/// Indeterminate of the polynomials. Equal atoms have equal indices.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Atom {
    /// -1 to a power between 0 and 1; `i` has power 1/2.
    MinusOne,
    /// A prime, or an integer without small factors, to a power between 0 and 1.
    Prime(BigUint),
    /// A polynomial with several terms, to a power between 0 and 1.
    Radical(Poly),
    Pi,
    Symbol(String),
    /// e to the power of a product of atoms.
    Exp(Monomial),
    Ln(Poly),
    /// Any other function.
    Apply(String, Vec<Quotient>),
}

/// Product of powers of atoms, ordered by atom.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Monomial(pub(super) Vec<(usize, Exponent)>);

/// Monomials with their nonzero coefficients.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Poly(pub(super) BTreeMap<Monomial, BigRational>);

/// Quotient of polynomials, not in lowest terms.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Quotient {
    pub(super) over: Poly,
    pub(super) under: Poly,
}

impl Poly {
    pub(super) fn constant(value: BigRational) -> Self {
        Self::term(value, Monomial::default())
    }

    pub(super) fn term(value: BigRational, monomial: Monomial) -> Self {
        if value.is_zero() { Self::default() } else { Self(BTreeMap::from([(monomial, value)])) }
    }

    /// Return the value if the polynomial contains no atom.
    pub(super) fn as_constant(&self) -> Option<BigRational> {
        match self.0.len() {
            0 => Some(BigRational::zero()),
            1 => self.single().filter(|(monomial, _)| monomial.0.is_empty()).map(|(_, value)| value.clone()),
            _ => None,
        }
    }

    pub(super) fn single(&self) -> Option<(&Monomial, &BigRational)> {
        if self.0.len() == 1 { self.0.iter().next() } else { None }
    }

    pub(super) fn scaled(mut self, factor: &BigRational) -> Self {
        if factor.is_zero() {
            return Self::default();
        }
        self.0.values_mut().for_each(|value| *value *= factor);
        self
    }

    pub(super) fn negated(mut self) -> Self {
        self.0.values_mut().for_each(|value| *value = -&*value);
        self
    }
}

impl Quotient {
    pub(super) fn whole(over: Poly) -> Self {
        Self { over, under: Poly::constant(BigRational::one()) }
    }

    pub(super) fn constant(value: BigRational) -> Self {
        Self::whole(Poly::constant(value))
    }

    pub(super) fn as_constant(&self) -> Option<BigRational> {
        Some(self.over.as_constant()? / self.under.as_constant()?)
    }

    pub(super) fn as_integer(&self) -> Option<i64> {
        self.as_constant().filter(BigRational::is_integer)?.to_integer().try_into().ok()
    }
}

/// Atoms of one comparison and the steps left.
#[derive(Debug)]
pub(super) struct Algebra {
    pub(super) atoms: Vec<Atom>,
    /// Size of each atom with nested atoms written out; bounds the cost of a traversal.
    weights: Vec<u64>,
    pub(super) steps: u64,
    /// Whether `log` without a base is decimal instead of natural.
    pub(super) decimal_logarithm: bool,
}

impl Algebra {
    pub(super) fn new(decimal_logarithm: bool) -> Self {
        Self { atoms: Vec::new(), weights: Vec::new(), steps: STEPS, decimal_logarithm }
    }

    pub(super) fn spend(&mut self, steps: u64) -> Result<()> {
        self.steps = self.steps.checked_sub(steps).ok_or(Fault::Limit)?;
        Ok(())
    }

    /// Spend the cost of a product of two coefficients.
    pub(super) fn spend_bits(&mut self, bits: u64) -> Result<()> {
        if bits > MAX_BITS {
            return Err(Fault::Limit);
        }
        self.spend(1 + (bits / 64) * (bits / 64) / 8)
    }

    pub(super) fn atom(&mut self, atom: Atom) -> Result<usize> {
        if let Some(index) = self.atoms.iter().position(|other| *other == atom) {
            return Ok(index);
        }
        let weight = match &atom {
            Atom::Radical(inside) | Atom::Ln(inside) => self.weight(inside),
            Atom::Exp(inside) => self.weight(&Poly::term(BigRational::one(), inside.clone())),
            Atom::Apply(_, arguments) => {
                let weights = arguments.iter().map(|x| self.weight(&x.over).saturating_add(self.weight(&x.under)));
                weights.fold(0, u64::saturating_add)
            }
            _ => 0,
        };
        self.spend(weight.saturating_add(1 + self.atoms.len() as u64))?;
        self.atoms.push(atom);
        self.weights.push(weight + 1);
        Ok(self.atoms.len() - 1)
    }

    /// Return the size of a polynomial with its atoms written out.
    pub(super) fn weight(&self, poly: &Poly) -> u64 {
        let atoms = poly.0.keys().flat_map(|monomial| monomial.0.iter().map(|(index, _)| self.weights[*index]));
        atoms.fold(poly.0.len() as u64, u64::saturating_add)
    }

    /// Return an atom raised to a power.
    pub(super) fn atom_power(&mut self, atom: Atom, exponent: Exponent) -> Result<Poly> {
        let index = self.atom(atom)?;
        self.reduce(BigRational::one(), vec![(index, exponent)])
    }

    pub(super) fn add(&mut self, a: &Poly, b: &Poly) -> Result<Poly> {
        let (mut sum, small) = if a.0.len() < b.0.len() { (b.clone(), a) } else { (a.clone(), b) };
        for (monomial, value) in &small.0 {
            self.add_term(&mut sum, monomial.clone(), value.clone())?;
        }
        Ok(sum)
    }

    fn add_term(&mut self, sum: &mut Poly, monomial: Monomial, value: BigRational) -> Result<()> {
        self.spend_bits(bits(&value))?;
        let entry = sum.0.entry(monomial);
        match entry {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(value);
            }
            std::collections::btree_map::Entry::Occupied(mut entry) => {
                *entry.get_mut() += value;
                let bits = bits(entry.get());
                if entry.get().is_zero() {
                    entry.remove();
                }
                self.spend_bits(bits)?;
            }
        }
        Ok(())
    }

    pub(super) fn multiply(&mut self, a: &Poly, b: &Poly) -> Result<Poly> {
        let mut product = Poly::default();
        for (left, a) in &a.0 {
            for (right, b) in &b.0 {
                self.spend_bits(bits(a) + bits(b))?;
                let term = self.reduce(a * b, merged(left, right)?)?;
                for (monomial, value) in term.0 {
                    self.add_term(&mut product, monomial, value)?;
                }
            }
        }
        Ok(product)
    }

    /// Normalise a term with arbitrary exponents: integer powers of numbers and radicals are multiplied out.
    fn reduce(&mut self, mut value: BigRational, powers: Vec<(usize, Exponent)>) -> Result<Poly> {
        let mut kept = Vec::with_capacity(powers.len());
        let mut radicals = Vec::new();
        for (index, exponent) in powers {
            let (whole, part) = (exponent.floor().to_integer(), exponent - exponent.floor());
            let exponent = match &self.atoms[index] {
                Atom::MinusOne => {
                    if whole % 2 != 0 {
                        value = -value;
                    }
                    part
                }
                Atom::Prime(prime) => {
                    if whole != 0 {
                        let power = BigRational::from_integer(BigInt::from(prime.clone()));
                        value *= self.rational_power(&power, whole)?;
                    }
                    part
                }
                Atom::Radical(inside) => {
                    if whole > 0 {
                        radicals.push((inside.clone(), whole));
                        part
                    } else {
                        exponent
                    }
                }
                _ => exponent,
            };
            if !exponent.is_zero() {
                kept.push((index, exponent));
            }
        }
        let mut product = Poly::term(value, Monomial(kept));
        for (radical, power) in radicals {
            let power = self.poly_power(&radical, power)?;
            product = self.multiply(&product, &power)?;
        }
        Ok(product)
    }

    pub(super) fn rational_power(&mut self, value: &BigRational, power: i64) -> Result<BigRational> {
        if value.is_zero() && power < 0 {
            return Err(Fault::Undefined);
        }
        if value.is_zero() || value.is_one() {
            return Ok(if power == 0 { BigRational::one() } else { value.clone() });
        }
        self.spend_bits(bits(value).saturating_mul(power.unsigned_abs()))?;
        Ok(value.pow(i32::try_from(power).map_err(|_| Fault::Limit)?))
    }

    /// Raise a polynomial to a non-negative power, or to any integer power if it has one term.
    pub(super) fn poly_power(&mut self, base: &Poly, power: i64) -> Result<Poly> {
        if power.abs() > MAX_POWER {
            return Err(Fault::Limit);
        }
        if let Some((monomial, value)) = base.single() {
            let value = self.rational_power(&value.clone(), power)?;
            let exponents = monomial.0.iter().map(|(index, e)| Ok((*index, bounded(e * power)?)));
            let exponents = exponents.collect::<Result<Vec<_>>>()?;
            return self.reduce(value, exponents);
        }
        let mut result = Poly::constant(BigRational::one());
        let mut square = base.clone();
        let mut left = u64::try_from(power).map_err(|_| Fault::Undefined)?;
        while left > 0 {
            if left % 2 == 1 {
                result = self.multiply(&result, &square)?;
            }
            left /= 2;
            if left > 0 {
                square = self.multiply(&square.clone(), &square)?;
            }
        }
        Ok(result)
    }

    pub(super) fn sum(&mut self, a: &Quotient, b: &Quotient) -> Result<Quotient> {
        if a.under == b.under {
            return Ok(Quotient { over: self.add(&a.over, &b.over)?, under: a.under.clone() });
        }
        let (left, right) = (self.multiply(&a.over, &b.under)?, self.multiply(&b.over, &a.under)?);
        Ok(Quotient { over: self.add(&left, &right)?, under: self.multiply(&a.under, &b.under)? })
    }

    pub(super) fn difference(&mut self, a: &Quotient, b: &Quotient) -> Result<Quotient> {
        let b = Quotient { over: b.over.clone().negated(), under: b.under.clone() };
        self.sum(a, &b)
    }

    pub(super) fn product(&mut self, a: &Quotient, b: &Quotient) -> Result<Quotient> {
        let over = self.multiply(&a.over, &b.over)?;
        Ok(Quotient { over, under: self.multiply(&a.under, &b.under)? })
    }

    /// Return the reciprocal of a quotient; a denominator of one term moves into the numerator.
    pub(super) fn inverse(&mut self, a: &Quotient) -> Result<Quotient> {
        if self.is_zero(&a.over)? {
            return Err(Fault::Undefined);
        }
        let Some((monomial, value)) = a.over.single() else {
            return Ok(Quotient { over: a.under.clone(), under: a.over.clone() });
        };
        let mut under = Poly::constant(BigRational::one());
        let mut powers = Vec::new();
        for (index, exponent) in monomial.0.clone() {
            match &self.atoms[index] {
                // 1/√p becomes √p/p, so that radicals stay in the numerator.
                Atom::Radical(inside) => {
                    under = self.multiply(&under, &inside.clone())?;
                    powers.push((index, Exponent::one() - exponent));
                }
                _ => powers.push((index, -exponent)),
            }
        }
        let inverse = self.reduce(value.recip(), powers)?;
        Ok(Quotient { over: self.multiply(&inverse, &a.under)?, under })
    }

    /// Raise a quotient to an integer power.
    pub(super) fn power(&mut self, base: &Quotient, power: i64) -> Result<Quotient> {
        let base = if power < 0 { self.inverse(base)? } else { base.clone() };
        let over = self.poly_power(&base.over, power.saturating_abs())?;
        Ok(Quotient { over, under: self.poly_power(&base.under, power.saturating_abs())? })
    }
}

/// Size of a coefficient, in bits.
pub(super) fn bits(value: &BigRational) -> u64 {
    value.numer().bits().max(value.denom().bits())
}

/// Check that an exponent is small enough for machine arithmetic.
pub(super) fn bounded(exponent: Exponent) -> Result<Exponent> {
    let small = exponent.numer().abs() <= MAX_POWER * 100 && *exponent.denom() <= 1000;
    if small { Ok(exponent) } else { Err(Fault::Limit) }
}

/// Multiply two monomials, without reduction.
fn merged(a: &Monomial, b: &Monomial) -> Result<Vec<(usize, Exponent)>> {
    let mut merged = a.0.clone();
    for (index, exponent) in &b.0 {
        match merged.binary_search_by_key(index, |(index, _)| *index) {
            Ok(at) => merged[at].1 = bounded(merged[at].1 + exponent)?,
            Err(at) => merged.insert(at, (*index, *exponent)),
        }
    }
    Ok(merged)
}
