//! Zero test of algebraic numbers by a lower bound on the size of nonzero ones.
//!
//! A sum of products of roots, times its common denominator, is an algebraic integer α. If α is not 0, the product of
//! its conjugates is a nonzero integer, so that |α| ≥ H^(1-d), where d bounds the degree and H the size of every
//! conjugate. Computing α to that precision decides.

use std::collections::BTreeMap;

use num_bigint::BigInt;
use num_integer::Integer;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::poly::{Algebra, Atom, Exponent, Poly};
use super::tree::{Fault, Result};

/// Maximum degree and precision in bits.
const MAX_DEGREE: i64 = 64;
const MAX_BITS: f64 = 3000.0;

/// Complex number in fixed point.
#[derive(Clone)]
struct Fixed {
    re: BigInt,
    im: BigInt,
}

impl Algebra {
    /// Whether a sum of products of roots is zero.
    pub(super) fn algebraic_is_zero(&mut self, sum: &Poly) -> Result<bool> {
        if sum.0.len() <= 1 {
            return Ok(sum.0.is_empty());
        }
        let mut denominators = BTreeMap::new();
        self.degrees(sum, &mut denominators)?;
        let mut degree = 1i64;
        for denominator in denominators.values() {
            degree = degree.checked_mul(*denominator).filter(|d| *d <= MAX_DEGREE).ok_or(Fault::Limit)?;
        }
        let common = sum.0.values().fold(BigInt::one(), |lcm, value| lcm.lcm(value.denom()));
        let whole = sum.clone().scaled(&common.into());
        let size = self.log_house(&whole).max(1.0);
        let needed = (degree - 1) as f64 * size + 8.0;
        if needed > MAX_BITS {
            return Err(Fault::Limit);
        }
        let precision = (needed + size) as usize * 2 + 128;
        let work = (precision as u64 / 64).pow(2) * 10;
        self.spend(work.saturating_mul(degree as u64 + self.weight(&whole)))?;
        let value = self.fixed(&whole, precision)?;
        let threshold = BigInt::one() << (precision - needed as usize);
        Ok(value.re.abs() < threshold && value.im.abs() < threshold)
    }

    /// Collect the common denominator of the exponents of each atom, including atoms inside radicals.
    fn degrees(&self, sum: &Poly, denominators: &mut BTreeMap<usize, i64>) -> Result<()> {
        for (index, exponent) in sum.0.keys().flat_map(|monomial| &monomial.0) {
            let first = !denominators.contains_key(index);
            let denominator = denominators.entry(*index).or_insert(1);
            *denominator = denominator.lcm(exponent.denom());
            match &self.atoms[*index] {
                Atom::MinusOne | Atom::Prime(_) => {}
                Atom::Radical(inside) if first => self.degrees(inside, denominators)?,
                Atom::Radical(_) => {}
                _ => return Err(Fault::Limit),
            }
        }
        Ok(())
    }

    /// Return the binary logarithm of a bound on the size of every conjugate.
    fn log_house(&self, sum: &Poly) -> f64 {
        let terms = sum.0.iter().map(|(monomial, value)| {
            let atoms = monomial.0.iter().map(|(index, exponent)| {
                let atom = match &self.atoms[*index] {
                    Atom::Prime(prime) => prime.bits() as f64,
                    Atom::Radical(inside) => self.log_house(inside),
                    _ => 0.0,
                };
                atom * exponent.to_f64().unwrap_or(1.0)
            });
            value.numer().bits() as f64 + atoms.sum::<f64>()
        });
        let largest = terms.fold(0.0, f64::max);
        largest + (sum.0.len() as f64).log2().ceil()
    }

    /// Evaluate a sum with integer coefficients in fixed point.
    fn fixed(&self, sum: &Poly, precision: usize) -> Result<Fixed> {
        let mut total = Fixed { re: BigInt::zero(), im: BigInt::zero() };
        for (monomial, value) in &sum.0 {
            let mut term = Fixed { re: value.to_integer() << precision, im: BigInt::zero() };
            for (index, exponent) in &monomial.0 {
                let factor = match &self.atoms[*index] {
                    Atom::MinusOne => unit(exponent, precision),
                    Atom::Prime(prime) => real(root(BigInt::from(prime.clone()) << precision, exponent, precision)),
                    Atom::Radical(inside) => {
                        let inside = self.fixed(inside, precision)?;
                        // Roots of complex and negative numbers are ambiguous.
                        if !inside.im.is_zero() || !inside.re.is_positive() {
                            return Err(Fault::Limit);
                        }
                        real(root(inside.re, exponent, precision))
                    }
                    _ => return Err(Fault::Limit),
                };
                term = Fixed {
                    re: (&term.re * &factor.re - &term.im * &factor.im) >> precision,
                    im: (&term.re * &factor.im + &term.im * &factor.re) >> precision,
                };
            }
            total.re += term.re;
            total.im += term.im;
        }
        Ok(total)
    }
}

fn real(re: BigInt) -> Fixed {
    Fixed { re, im: BigInt::zero() }
}

/// Raise a positive number to a power between 0 and 1.
fn root(value: BigInt, exponent: &Exponent, precision: usize) -> BigInt {
    let (over, under) = (*exponent.numer() as u32, *exponent.denom() as u32);
    let power = value.pow(over);
    // `power` is x^a·2^(pa); the result x^(a/b)·2^p is the b-th root of x^a·2^(pb).
    let scaled = if under >= over { power << (precision * (under - over) as usize) } else { power };
    scaled.nth_root(under)
}

/// Return -1 to a power x between 0 and 1: cos πx + i sin πx.
fn unit(exponent: &Exponent, precision: usize) -> Fixed {
    if *exponent == Exponent::new(1, 2) {
        return Fixed { re: BigInt::zero(), im: BigInt::one() << precision };
    }
    let arc_tangent = |n: i64| {
        let mut power = (BigInt::one() << precision) / n;
        let (mut sum, mut k) = (power.clone(), 1i64);
        while !power.is_zero() {
            power /= n * n;
            k += 2;
            let term = &power / k;
            if k % 4 == 3 { sum -= term } else { sum += term }
        }
        sum
    };
    // Machin's formula.
    let pi = (arc_tangent(5) * 4 - arc_tangent(239)) * 4;
    let angle = pi * *exponent.numer() / *exponent.denom();
    let (mut re, mut im) = (BigInt::zero(), BigInt::zero());
    let mut term = BigInt::one() << precision;
    let mut k = 0i64;
    while !term.is_zero() {
        match k % 4 {
            0 => re += &term,
            1 => im += &term,
            2 => re -= &term,
            _ => im -= &term,
        }
        k += 1;
        term = ((term * &angle) >> precision) / k;
    }
    Fixed { re, im }
}
