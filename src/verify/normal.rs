//! Normal form of a formula: a quotient of polynomials over atoms.
//!
//! A power with a symbolic exponent becomes `e^(b ln a)`, sines and cosines become `e^(ix)`, so that power laws and
//! addition theorems need no separate rules. Symbols under an even root are assumed positive unless the root is exact:
//! √(r²s) is r√s, but √(r²) is |r|.

use num_bigint::{BigInt, BigUint, Sign};
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::poly::{Algebra, Atom, Exponent, Monomial, Poly, Quotient, bounded};
use super::tree::{Fault, Node, Result};

/// Bound of trial division.
const TRIALS: u32 = 1000;
/// Largest n for which n! is computed.
const MAX_FACTORIAL: i64 = 1500;

fn ratio(over: i64, under: i64) -> Quotient {
    Quotient::constant(BigRational::new(over.into(), under.into()))
}

impl Algebra {
    /// Return the normal form of a formula; any other node is an error.
    pub(super) fn normal(&mut self, node: &Node) -> Result<Quotient> {
        self.spend(1)?;
        Ok(match node {
            Node::Number { value, .. } | Node::Based(value, _) => Quotient::constant(value.clone()),
            Node::Symbol(name) => Quotient::whole(self.atom_power(Atom::Symbol(name.clone()), Exponent::one())?),
            Node::Pi => Quotient::whole(self.atom_power(Atom::Pi, Exponent::one())?),
            Node::Imaginary => self.imaginary()?,
            Node::Euler => self.exp(&ratio(1, 1))?,
            Node::Sum(terms) => {
                let mut sum = ratio(0, 1);
                for term in terms {
                    let term = self.normal(term)?;
                    sum = self.sum(&sum, &term)?;
                }
                sum
            }
            Node::Product(factors) => {
                let mut product = ratio(1, 1);
                for factor in factors {
                    let factor = self.normal(factor)?;
                    product = self.product(&product, &factor)?;
                }
                product
            }
            Node::Negative(node) => {
                let value = self.normal(node)?;
                Quotient { over: value.over.negated(), under: value.under }
            }
            Node::Inverse(node) => {
                let value = self.normal(node)?;
                self.inverse(&value)?
            }
            Node::Power(base, exponent) => {
                let (base, exponent) = (self.normal(base)?, self.normal(exponent)?);
                self.raise(&base, &exponent)?
            }
            Node::Percent(node) => {
                let value = self.normal(node)?;
                self.product(&value, &ratio(1, 100))?
            }
            Node::Degrees(node) => {
                let value = self.normal(node)?;
                let degree = self.atom_power(Atom::Pi, Exponent::one())?;
                let degree = Quotient::whole(degree.scaled(&BigRational::new(1.into(), 180.into())));
                self.product(&value, &degree)?
            }
            Node::Apply(name, arguments) => {
                let arguments = arguments.iter().map(|node| self.normal(node)).collect::<Result<Vec<_>>>()?;
                self.apply(name, &arguments)?
            }
            Node::Ratio(parts) if parts.len() == 2 => {
                let (over, under) = (self.normal(&parts[0])?, self.normal(&parts[1])?);
                let inverse = self.inverse(&under)?;
                self.product(&over, &inverse)?
            }
            Node::Choice(_, node) => self.normal(node)?,
            _ => return Err(Fault::Malformed),
        })
    }

    fn imaginary(&mut self) -> Result<Quotient> {
        Ok(Quotient::whole(self.atom_power(Atom::MinusOne, Exponent::new(1, 2))?))
    }

    /// Raise `base` to the power of `exponent`.
    pub(super) fn raise(&mut self, base: &Quotient, exponent: &Quotient) -> Result<Quotient> {
        if base.over.0.is_empty() {
            // 0^0 is undefined.
            let positive = exponent.as_constant().is_some_and(|value| value.is_positive());
            return if positive { Ok(ratio(0, 1)) } else { Err(Fault::Undefined) };
        }
        match exponent.as_constant() {
            Some(value) if value.is_integer() => {
                let power = value.to_integer().to_i64().ok_or(Fault::Limit)?;
                if base.as_constant().is_some_and(|base| base == -BigRational::one()) {
                    return Ok(ratio(if power % 2 == 0 { 1 } else { -1 }, 1));
                }
                self.power(base, power)
            }
            Some(value) => {
                let (over, under) = (value.numer().to_i64(), value.denom().to_i64());
                let exponent = Exponent::new(over.ok_or(Fault::Limit)?, under.ok_or(Fault::Limit)?);
                self.root(base, bounded(exponent)?)
            }
            None => {
                let logarithm = self.ln(base)?;
                let exponent = self.product(&logarithm, exponent)?;
                self.exp(&exponent)
            }
        }
    }

    /// Raise to a fractional exponent.
    fn root(&mut self, base: &Quotient, exponent: Exponent) -> Result<Quotient> {
        let mut base = base.clone();
        // √(a/b) is √a/√b only for positive b.
        if self.sign(&base.under) == Some(Sign::Minus) {
            base = Quotient { over: base.over.negated(), under: base.under.negated() };
        }
        if let Some(value) = base.as_constant() {
            base = Quotient::constant(value);
        }
        let over = self.poly_root(&base.over, exponent)?;
        let under = self.poly_root(&base.under, exponent)?;
        let inverse = self.inverse(&under)?;
        self.product(&over, &inverse)
    }

    fn poly_root(&mut self, base: &Poly, exponent: Exponent) -> Result<Quotient> {
        let negative = match base.single() {
            Some((_, value)) => value.is_negative(),
            None => self.sign(base) == Some(Sign::Minus),
        };
        let mut product = ratio(1, 1);
        let base = if negative { base.clone().negated() } else { base.clone() };
        if negative {
            // Odd roots of negative numbers are real.
            let root = if exponent.denom().is_odd() {
                ratio(if exponent.numer().is_even() { 1 } else { -1 }, 1)
            } else {
                Quotient::whole(self.root_of_unity(exponent)?)
            };
            product = self.product(&product, &root)?;
        }
        let content = content(&base);
        let root = self.rational_root(&content, exponent)?;
        product = self.product(&product, &root)?;
        let primitive = base.scaled(&content.recip());
        let Some((monomial, _)) = primitive.single() else {
            let (whole, part) = (exponent.floor().to_integer(), exponent - exponent.floor());
            let radical = Quotient::whole(self.atom_power(Atom::Radical(primitive.clone()), part)?);
            product = self.product(&product, &radical)?;
            let power = self.power(&Quotient::whole(primitive), whole)?;
            return self.product(&product, &power);
        };
        let powers = monomial.0.clone();
        let even = exponent.denom().is_even();
        let perfect = powers.iter().all(|(_, power)| (power * exponent).is_integer());
        for (index, power) in powers {
            let atom = self.atoms[index].clone();
            let rooted = bounded(power * exponent)?;
            let absolute = even && perfect && matches!(atom, Atom::Symbol(_)) && rooted.numer().is_odd();
            let atom = if absolute {
                let symbol = Quotient::whole(self.atom_power(atom, Exponent::one())?);
                Atom::Apply("abs".into(), vec![symbol])
            } else {
                atom
            };
            let factor = match atom {
                Atom::MinusOne => self.root_of_unity(rooted)?,
                Atom::Radical(_) if rooted < Exponent::zero() => return Err(Fault::Limit),
                atom => self.atom_power(atom, rooted)?,
            };
            product = self.product(&product, &Quotient::whole(factor))?;
        }
        Ok(product)
    }

    /// Raise a positive rational to a power, factored into primes.
    fn rational_root(&mut self, value: &BigRational, exponent: Exponent) -> Result<Quotient> {
        let mut product = Poly::constant(BigRational::one());
        for (part, exponent) in [(value.numer(), exponent), (value.denom(), -exponent)] {
            for (prime, count) in self.factors(part.magnitude())? {
                let power = self.atom_power(Atom::Prime(prime), bounded(exponent * count)?)?;
                product = self.multiply(&product, &power)?;
            }
        }
        Ok(Quotient::whole(product))
    }

    /// Return the small prime factors with exponents; the remaining factor is reduced to the root of a perfect power.
    fn factors(&mut self, value: &BigUint) -> Result<Vec<(BigUint, i64)>> {
        let mut left = value.clone();
        let mut factors = Vec::new();
        self.spend(200 + left.bits())?;
        for divisor in std::iter::once(2).chain((3..TRIALS).step_by(2)) {
            if left.is_one() {
                break;
            }
            let mut count = 0;
            while (&left % divisor).is_zero() {
                self.spend_bits(left.bits())?;
                left /= divisor;
                count += 1;
            }
            if count > 0 {
                factors.push((BigUint::from(divisor), count));
            }
        }
        if !left.is_one() {
            let mut count = 1;
            for degree in [2, 2, 2, 3, 3, 5, 7] {
                self.spend_bits(left.bits())?;
                let root = left.nth_root(degree);
                if root.pow(degree) == left {
                    left = root;
                    count *= i64::from(degree);
                }
            }
            factors.push((left, count));
        }
        Ok(factors)
    }

    /// Raise -1 to a power; thirds and quarters become radicals.
    fn root_of_unity(&mut self, exponent: Exponent) -> Result<Poly> {
        let exponent = exponent - (exponent / 2).floor() * 2;
        let (over, under) = (*exponent.numer(), *exponent.denom());
        let two = |n: i64| BigRational::new(n.into(), 2.into());
        let base = match under {
            // (1 + i√3)/2
            3 | 6 | 12 => {
                // a/12 = b/3 + c/4
                let twelfths = over * (12 / under);
                let quarter = (twelfths * 3).rem_euclid(4);
                let third = (twelfths - 3 * quarter).div_euclid(4).rem_euclid(6);
                let i = self.atom_power(Atom::MinusOne, Exponent::new(1, 2))?;
                let root = self.atom_power(Atom::Prime(3u32.into()), Exponent::new(1, 2))?;
                let imaginary = self.multiply(&i, &root)?.scaled(&two(1));
                let sixth = self.add(&Poly::constant(two(1)), &imaginary)?;
                let power = self.poly_power(&sixth, third)?;
                let quarter = self.root_of_unity(Exponent::new(quarter, 4))?;
                return self.multiply(&power, &quarter);
            }
            // (1 + i)/√2
            4 => {
                let i = self.atom_power(Atom::MinusOne, Exponent::new(1, 2))?;
                let sum = self.add(&Poly::constant(BigRational::one()), &i)?;
                let root = self.atom_power(Atom::Prime(2u32.into()), Exponent::new(1, 2))?.scaled(&two(1));
                self.multiply(&sum, &root)?
            }
            _ => return self.atom_power(Atom::MinusOne, exponent),
        };
        self.poly_power(&base, over)
    }

    /// Return e to the power of a quotient.
    pub(super) fn exp(&mut self, exponent: &Quotient) -> Result<Quotient> {
        let Some(under) = exponent.under.as_constant() else {
            return self.opaque("exp", vec![exponent.clone()]);
        };
        let mut product = Quotient::whole(Poly::constant(BigRational::one()));
        let terms: Vec<_> = exponent.over.0.iter().map(|(m, value)| (m.clone(), value / &under)).collect();
        for (monomial, value) in terms {
            let (over, below) =
                (value.numer().to_i64().ok_or(Fault::Limit)?, value.denom().to_i64().ok_or(Fault::Limit)?);
            let power = Exponent::new(over, below);
            let atoms: Vec<(Atom, Exponent)> = monomial.0.iter().map(|(i, e)| (self.atoms[*i].clone(), *e)).collect();
            let factor = match atoms.as_slice() {
                // e^(iπq) is a root of unity and e^(q ln a) is a^q.
                [(Atom::MinusOne, half), (Atom::Pi, one)] | [(Atom::Pi, one), (Atom::MinusOne, half)]
                    if one.is_one() && *half == Exponent::new(1, 2) =>
                {
                    let power = power - (power / 2).floor() * 2;
                    Quotient::whole(self.root_of_unity(bounded(power)?)?)
                }
                [(Atom::Ln(inside), one)] if one.is_one() => {
                    let inside = Quotient::whole(inside.clone());
                    self.raise(&inside, &Quotient::constant(value))?
                }
                _ => Quotient::whole(self.atom_power(Atom::Exp(monomial), bounded(power)?)?),
            };
            product = self.product(&product, &factor)?;
        }
        Ok(product)
    }

    /// Return the natural logarithm.
    pub(super) fn ln(&mut self, value: &Quotient) -> Result<Quotient> {
        let (over, under) = (self.poly_ln(&value.over)?, self.poly_ln(&value.under)?);
        Ok(Quotient::whole(self.add(&over, &under.negated())?))
    }

    fn poly_ln(&mut self, value: &Poly) -> Result<Poly> {
        if value.0.is_empty() {
            return Err(Fault::Undefined);
        }
        let negative = self.sign(value) == Some(Sign::Minus);
        let value = if negative { value.clone().negated() } else { value.clone() };
        let mut sum = if negative {
            let (i, pi) = (self.imaginary()?.over, self.atom_power(Atom::Pi, Exponent::one())?);
            self.multiply(&i, &pi)?
        } else {
            Poly::default()
        };
        let content = content(&value);
        for (part, sign) in [(content.numer(), 1), (content.denom(), -1)] {
            for (prime, count) in self.factors(part.magnitude())? {
                let prime = Poly::constant(BigRational::from_integer(BigInt::from(prime)));
                let term = self.atom_power(Atom::Ln(prime), Exponent::one())?;
                sum = self.add(&sum, &term.scaled(&BigRational::from_integer((sign * count).into())))?;
            }
        }
        let primitive = value.scaled(&content.recip());
        let Some((monomial, _)) = primitive.single() else {
            let term = self.atom_power(Atom::Ln(primitive), Exponent::one())?;
            return self.add(&sum, &term);
        };
        for (index, exponent) in monomial.0.clone() {
            let scale = BigRational::new((*exponent.numer()).into(), (*exponent.denom()).into());
            let term = match self.atoms[index].clone() {
                Atom::Exp(inside) => Poly::term(BigRational::one(), inside),
                Atom::Prime(prime) => {
                    let prime = Poly::constant(BigRational::from_integer(BigInt::from(prime)));
                    self.atom_power(Atom::Ln(prime), Exponent::one())?
                }
                Atom::MinusOne => {
                    let (i, pi) = (self.imaginary()?.over, self.atom_power(Atom::Pi, Exponent::one())?);
                    self.multiply(&i, &pi)?
                }
                Atom::Radical(inside) => self.atom_power(Atom::Ln(inside), Exponent::one())?,
                _ => {
                    let atom = Poly::term(BigRational::one(), Monomial(vec![(index, Exponent::one())]));
                    self.atom_power(Atom::Ln(atom), Exponent::one())?
                }
            };
            sum = self.add(&sum, &term.scaled(&scale))?;
        }
        Ok(sum)
    }

    /// Keep a function as an atom; equal arguments share one atom.
    pub(super) fn opaque(&mut self, name: &str, mut arguments: Vec<Quotient>) -> Result<Quotient> {
        for argument in &mut arguments {
            if let Some(value) = argument.as_constant() {
                *argument = Quotient::constant(value);
            }
        }
        for index in 0..self.atoms.len() {
            let others = match &self.atoms[index] {
                Atom::Apply(other, others) if other == name && others.len() == arguments.len() => others.clone(),
                _ => continue,
            };
            let mut same = true;
            for (a, b) in others.iter().zip(&arguments) {
                same = same && self.difference(a, b)?.over.0.is_empty();
            }
            if same {
                let atom = Monomial(vec![(index, Exponent::one())]);
                return Ok(Quotient::whole(Poly::term(BigRational::one(), atom)));
            }
        }
        Ok(Quotient::whole(self.atom_power(Atom::Apply(name.to_string(), arguments), Exponent::one())?))
    }

    /// Return n!; integer shifts are taken out: (n+1)! is (n+1)·n!.
    pub(super) fn factorial(&mut self, value: &Quotient) -> Result<Quotient> {
        if let Some(constant) = value.as_constant() {
            let n = constant.to_i64().filter(|_| constant.is_integer() && !constant.is_negative());
            let n = n.ok_or(Fault::Undefined)?;
            if n > MAX_FACTORIAL {
                return Err(Fault::Limit);
            }
            let mut product = BigInt::one();
            (2..=n).for_each(|factor| product *= factor);
            self.spend_bits(product.bits())?;
            return Ok(Quotient::constant(BigRational::from_integer(product)));
        }
        let shift = match value.under.as_constant() {
            Some(under) => {
                value.over.0.get(&Monomial::default()).map_or(0, |c| (c / under).floor().to_i64().unwrap_or(0))
            }
            None => 0,
        };
        if shift.abs() > 20 {
            return self.opaque("factorial", vec![value.clone()]);
        }
        let rest = self.difference(value, &ratio(shift, 1))?;
        let mut result = self.opaque("factorial", vec![rest.clone()])?;
        for step in 1..=shift.abs() {
            let factor = self.sum(&rest, &ratio(if shift > 0 { step } else { 1 - step }, 1))?;
            let factor = if shift > 0 { factor } else { self.inverse(&factor)? };
            result = self.product(&result, &factor)?;
        }
        Ok(result)
    }
}

/// Return the positive rational that, divided out, makes the coefficients coprime integers.
fn content(poly: &Poly) -> BigRational {
    let mut over = BigInt::zero();
    let mut under = BigInt::one();
    for value in poly.0.values() {
        over = over.gcd(value.numer());
        under = under.lcm(value.denom());
    }
    BigRational::new(over, under)
}
