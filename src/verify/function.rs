//! Functions of normal forms: trigonometric, logarithmic, integer and opaque functions.

use num_bigint::{BigInt, Sign};
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Signed, ToPrimitive, Zero};

use super::poly::{Algebra, Atom, Exponent, Monomial, Poly, Quotient};
use super::tree::{Fault, Result};

impl Algebra {
    pub(super) fn apply(&mut self, name: &str, arguments: &[Quotient]) -> Result<Quotient> {
        match (name, arguments) {
            ("exp", [x]) => self.exp(x),
            ("cis", [x]) => {
                let i = Quotient::whole(self.atom_power(Atom::MinusOne, Exponent::new(1, 2))?);
                let ix = self.product(&i, x)?;
                self.exp(&ix)
            }
            ("ln", [x]) => self.ln(x),
            ("log", [x]) if self.decimal_logarithm => self.log(x, &whole(10)),
            ("log", [x]) => self.ln(x),
            ("log", [x, base]) => self.log(x, base),
            ("sin" | "cos" | "tan" | "cot" | "sec" | "csc", [x]) => self.trigonometric(name, x),
            ("sinh" | "cosh" | "tanh", [x]) => self.hyperbolic(name, x),
            ("asin" | "acos" | "atan", [x]) => self.arcus(name, x),
            ("abs", [x]) => self.absolute(x),
            ("floor", [x]) => self.floor(x),
            ("ceil", [x]) => {
                let minus = negated(x);
                Ok(negated(&self.floor(&minus)?))
            }
            ("factorial", [x]) => self.factorial(x),
            ("double factorial", [x]) => self.double_factorial(x),
            ("binom", [n, k]) => self.binomial(n, k),
            ("max" | "min" | "gcd" | "lcm", _) => self.extreme(name, arguments),
            _ => self.opaque(name, arguments.to_vec()),
        }
    }

    fn log(&mut self, x: &Quotient, base: &Quotient) -> Result<Quotient> {
        let (over, under) = (self.ln(x)?, self.ln(base)?);
        self.quotient(&over, &under)
    }

    fn quotient(&mut self, over: &Quotient, under: &Quotient) -> Result<Quotient> {
        let inverse = self.inverse(under)?;
        self.product(over, &inverse)
    }

    fn trigonometric(&mut self, name: &str, x: &Quotient) -> Result<Quotient> {
        let i = Quotient::whole(self.atom_power(Atom::MinusOne, Exponent::new(1, 2))?);
        let ix = self.product(&i, x)?;
        let (plus, minus) = (self.exp(&ix)?, self.exp(&negated(&ix))?);
        let cosine = self.sum(&plus, &minus)?;
        let sine = self.difference(&plus, &minus)?;
        let half = Quotient::constant(BigRational::new(1.into(), 2.into()));
        let below = self.product(&whole(2), &i)?;
        let (sine, cosine) = (self.quotient(&sine, &below)?, self.product(&cosine, &half)?);
        match name {
            "sin" => Ok(sine),
            "cos" => Ok(cosine),
            "tan" => self.quotient(&sine, &cosine),
            "cot" => self.quotient(&cosine, &sine),
            "sec" => self.inverse(&cosine),
            _ => self.inverse(&sine),
        }
    }

    fn hyperbolic(&mut self, name: &str, x: &Quotient) -> Result<Quotient> {
        let (plus, minus) = (self.exp(x)?, self.exp(&negated(x))?);
        let half = Quotient::constant(BigRational::new(1.into(), 2.into()));
        let (sum, difference) = (self.sum(&plus, &minus)?, self.difference(&plus, &minus)?);
        match name {
            "sinh" => self.product(&difference, &half),
            "cosh" => self.product(&sum, &half),
            _ => self.quotient(&difference, &sum),
        }
    }

    /// Evaluate an inverse function: a multiple of π/12 if possible, else opaque; a sign is taken out of odd functions.
    fn arcus(&mut self, name: &str, x: &Quotient) -> Result<Quotient> {
        let forward = &name[1..];
        if let Some(value) = self.float(x) {
            let angle = match name {
                "asin" => value.asin(),
                "acos" => value.acos(),
                _ => value.atan(),
            };
            let twelfths = (angle / std::f64::consts::PI * 12.0).round();
            if (angle / std::f64::consts::PI * 12.0 - twelfths).abs() < 1e-9 {
                let pi = self.atom_power(Atom::Pi, Exponent::one())?;
                let angle = BigRational::new(BigInt::from(twelfths as i64), 12.into());
                let angle = Quotient::whole(pi.scaled(&angle));
                let image = self.trigonometric(forward, &angle)?;
                let difference = self.difference(&image, x)?;
                if self.is_zero(&difference.over)? {
                    return Ok(angle);
                }
            }
        }
        let leading = x.over.0.values().next().is_some_and(|value| value.is_negative());
        if name != "acos" && leading {
            return Ok(negated(&self.opaque(name, vec![negated(x)])?));
        }
        self.opaque(name, vec![x.clone()])
    }

    fn absolute(&mut self, x: &Quotient) -> Result<Quotient> {
        if let Some(sign) = self.sign(&x.over).zip(self.sign(&x.under)).map(|(a, b)| a * b) {
            return Ok(if sign == Sign::Minus { negated(x) } else { x.clone() });
        }
        // |-x| is |x|: make the first coefficient positive.
        let leading = x.over.0.values().next().is_some_and(|value| value.is_negative());
        let x = if leading { negated(x) } else { x.clone() };
        self.opaque("abs", vec![x])
    }

    /// Evaluate the floor; integer summands are taken out.
    fn floor(&mut self, x: &Quotient) -> Result<Quotient> {
        if let Some(value) = x.as_constant() {
            return Ok(Quotient::constant(value.floor()));
        }
        if let Some(value) = self.float(x) {
            // A floating-point value decides only if it is not close to an integer.
            return if (value - value.round()).abs() > 1e-6 && value.abs() < 1e9 {
                Ok(whole(value.floor() as i64))
            } else {
                Err(Fault::Limit)
            };
        }
        let Some(under) = x.under.as_constant() else { return self.opaque("floor", vec![x.clone()]) };
        let constant =
            x.over.0.get(&Monomial::default()).map_or_else(BigRational::zero, |value| (value / under).floor());
        let shift = Quotient::constant(constant);
        let rest = self.difference(x, &shift)?;
        let floor = self.opaque("floor", vec![rest])?;
        self.sum(&floor, &shift)
    }

    /// Evaluate n(n - 2)(n - 4)… for a small integer; otherwise keep the function.
    fn double_factorial(&mut self, x: &Quotient) -> Result<Quotient> {
        const MOST: i64 = 300;
        match x.as_integer() {
            Some(n) if (0..=MOST).contains(&n) => {
                let product = (1..=n).rev().step_by(2).fold(BigInt::one(), |product, factor| product * factor);
                self.spend_bits(product.bits())?;
                Ok(Quotient::constant(BigRational::from_integer(product)))
            }
            _ => self.opaque("double factorial", vec![x.clone()]),
        }
    }

    fn binomial(&mut self, n: &Quotient, k: &Quotient) -> Result<Quotient> {
        if let (Some(n), Some(k)) = (n.as_integer(), k.as_integer())
            && n >= 0
        {
            if k < 0 || k > n {
                return Ok(whole(0));
            }
            let k = k.min(n - k);
            if k > 2000 {
                return Err(Fault::Limit);
            }
            let mut value = BigInt::one();
            for step in 1..=k {
                self.spend_bits(value.bits())?;
                value = value * (n - k + step) / step;
            }
            return Ok(Quotient::constant(BigRational::from_integer(value)));
        }
        if let Some(k) = k.as_integer().filter(|k| (0..=20).contains(k)) {
            let mut product = whole(1);
            for step in 0..k {
                let factor = self.difference(n, &whole(step))?;
                let factor = self.quotient(&factor, &whole(step + 1))?;
                product = self.product(&product, &factor)?;
            }
            return Ok(product);
        }
        let rest = self.difference(n, k)?;
        let (n, k, rest) = (self.factorial(n)?, self.factorial(k)?, self.factorial(&rest)?);
        let below = self.product(&k, &rest)?;
        self.quotient(&n, &below)
    }

    fn extreme(&mut self, name: &str, arguments: &[Quotient]) -> Result<Quotient> {
        let values: Option<Vec<BigRational>> = arguments.iter().map(Quotient::as_constant).collect();
        let Some(values) = values.filter(|values| !values.is_empty()) else {
            let mut arguments = arguments.to_vec();
            arguments.sort_by_cached_key(|argument| format!("{argument:?}"));
            return self.opaque(name, arguments);
        };
        let integers =
            || values.iter().all(BigRational::is_integer).then(|| values.iter().map(BigRational::to_integer));
        let value = match name {
            "max" => values.iter().max().cloned(),
            "min" => values.iter().min().cloned(),
            "gcd" => integers().map(|list| list.fold(BigInt::zero(), |a, b| a.gcd(&b)).into()),
            _ => {
                let mut product = BigInt::one();
                for value in integers().into_iter().flatten() {
                    self.spend_bits(product.bits() + value.bits())?;
                    product = product.lcm(&value);
                }
                Some(product.into())
            }
        };
        Ok(Quotient::constant(value.ok_or(Fault::Undefined)?))
    }

    /// Return the value of a real constant in floating point.
    pub(super) fn float(&self, x: &Quotient) -> Option<f64> {
        let over = self.real(&x.over)?;
        let under = self.real(&x.under)?;
        (under != 0.0).then_some(over / under).filter(|value| value.is_finite())
    }

    /// Return the sign of a real constant, unless it is too close to 0 to decide.
    pub(super) fn sign(&self, x: &Poly) -> Option<Sign> {
        if let Some(value) = x.as_constant() {
            return Some(value.numer().sign());
        }
        let value = self.real(x)?;
        let size: f64 = x.0.values().filter_map(|value| value.to_f64()).map(f64::abs).sum();
        (value.abs() > 1e-9 * size).then_some(if value < 0.0 { Sign::Minus } else { Sign::Plus })
    }
}

fn whole(value: i64) -> Quotient {
    Quotient::constant(BigRational::from_integer(value.into()))
}

fn negated(x: &Quotient) -> Quotient {
    Quotient { over: x.over.clone().negated(), under: x.under.clone() }
}
