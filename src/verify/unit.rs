//! Units of measurement, converted to base units so that 50 cm equals 0.5 m.

use std::collections::BTreeMap;
use std::fmt;

use num_rational::BigRational;
use num_traits::{One, Pow};

/// A product of powers of base units, times a factor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    written: String,
    /// Whether the number alone is not the answer, as with feet and inches.
    pub(super) mixed: bool,
    pub(super) factor: BigRational,
    pub(super) powers: BTreeMap<String, i32>,
}

/// Names, powers of base units, and the factor as numerator and denominator.
type Definition = (&'static [&'static str], &'static [(&'static str, i32)], i64, i64);

const UNITS: &[Definition] = &[
    (&["m", "meter", "metre", "米"], &[("m", 1)], 1, 1),
    (&["km", "kilometer", "kilometre", "千米", "公里"], &[("m", 1)], 1000, 1),
    (&["dm", "decimeter", "分米"], &[("m", 1)], 1, 10),
    (&["cm", "centimeter", "centimetre", "厘米"], &[("m", 1)], 1, 100),
    (&["mm", "millimeter", "millimetre", "毫米"], &[("m", 1)], 1, 1000),
    (&["μm", "micron", "micrometer"], &[("m", 1)], 1, 1_000_000),
    (&["nm", "nanometer"], &[("m", 1)], 1, 1_000_000_000),
    (&["in", "inch", "inche"], &[("m", 1)], 254, 10_000),
    (&["ft", "foot", "feet"], &[("m", 1)], 3048, 10_000),
    (&["yd", "yard"], &[("m", 1)], 9144, 10_000),
    (&["mi", "mile"], &[("m", 1)], 1_609_344, 1000),
    (&["s", "sec", "second", "秒"], &[("s", 1)], 1, 1),
    (&["ms", "millisecond"], &[("s", 1)], 1, 1000),
    (&["min", "minute", "分钟"], &[("s", 1)], 60, 1),
    (&["h", "hr", "hour", "小时"], &[("s", 1)], 3600, 1),
    (&["day", "天"], &[("s", 1)], 86_400, 1),
    (&["week", "周"], &[("s", 1)], 604_800, 1),
    (&["kg", "kilogram", "千克", "公斤"], &[("g", 1)], 1000, 1),
    (&["g", "gram", "克"], &[("g", 1)], 1, 1),
    (&["mg", "milligram"], &[("g", 1)], 1, 1000),
    (&["l", "liter", "litre", "升"], &[("m", 3)], 1, 1000),
    (&["ml", "milliliter", "毫升"], &[("m", 3)], 1, 1_000_000),
    (&["mph"], &[("m", 1), ("s", -1)], 1_609_344, 3_600_000),
    (&["kmh", "kph"], &[("m", 1), ("s", -1)], 1000, 3600),
    (&["n", "newton"], &[("g", 1), ("m", 1), ("s", -2)], 1000, 1),
    (&["j", "joule"], &[("g", 1), ("m", 2), ("s", -2)], 1000, 1),
    (&["erg"], &[("g", 1), ("m", 2), ("s", -2)], 1, 10_000),
    (&["w", "watt"], &[("g", 1), ("m", 2), ("s", -3)], 1000, 1),
    (&["hz", "hertz"], &[("s", -1)], 1, 1),
    (&["pa", "pascal"], &[("g", 1), ("m", -1), ("s", -2)], 1000, 1),
    (&["ev"], &[("eV", 1)], 1, 1),
    (&["mol", "mole"], &[("mol", 1)], 1, 1),
    (&["k", "kelvin"], &[("K", 1)], 1, 1),
    (&["celsius", "摄氏度"], &[("celsius", 1)], 1, 1),
    (&["yuan", "元"], &[("yuan", 1)], 1, 1),
    (&["dollar", "usd"], &[("dollar", 1)], 1, 1),
    (&["cent"], &[("dollar", 1)], 1, 100),
    (&["euro", "eur"], &[("euro", 1)], 1, 1),
    (&["pound", "lb", "gbp"], &[("pound", 1)], 1, 1),
    (&["ounce", "oz"], &[("pound", 1)], 1, 16),
    (&["gallon", "gal"], &[("gallon", 1)], 1, 1),
    (&["quart"], &[("gallon", 1)], 1, 4),
    (&["pint"], &[("gallon", 1)], 1, 8),
    (&["year"], &[("year", 1)], 1, 1),
    (&["month"], &[("year", 1)], 1, 12),
    (&["volt"], &[("v", 1)], 1, 1),
    (&["ampere", "amp"], &[("a", 1)], 1, 1),
    (&["coulomb"], &[("c", 1)], 1, 1),
    (&["ohm"], &[("ω", 1)], 1, 1),
    (&["tesla"], &[("t", 1)], 1, 1),
    (&["farad"], &[("f", 1)], 1, 1),
    (&["atmosphere"], &[("atm", 1)], 1, 1),
    (&["kwh"], &[("g", 1), ("m", 2), ("s", -2)], 3_600_000_000, 1),
    (&["hectare"], &[("m", 2)], 10_000, 1),
    (&["halve"], &[("part", 1)], 1, 2),
    (&["quarter"], &[("part", 1)], 1, 4),
    (&["rad", "radian"], &[], 1, 1),
    (&["unit"], &[], 1, 1),
];

/// Prefixes of SI symbols and their powers of ten.
#[rustfmt::skip]
const PREFIXES: &[(char, i32)] = &[
    ('G', 9), ('M', 6), ('k', 3), ('K', 3), ('d', -1), ('c', -2), ('m', -3), ('μ', -6), ('µ', -6), ('n', -9), ('p', -12),
];
/// Symbols with these prefixes; upper and lower case differ, except after `k`, which has one meaning.
const SYMBOLS: &[&str] =
    &["m", "s", "g", "W", "J", "N", "V", "A", "L", "l", "K", "Pa", "Hz", "eV", "mol", "Ω", "F", "C", "T"];

/// Maximum size of the factor of a unit, in bits.
const MAX_BITS: u64 = 4096;

/// Split `mW` into the power of ten of its prefix and the symbol.
fn split(word: &str) -> Option<(i32, &str)> {
    let (prefix, power) = PREFIXES.iter().find(|(prefix, _)| word.starts_with(*prefix))?;
    let symbol = &word[prefix.len_utf8()..];
    let same = |known: &&str| *known == symbol || (*power == 3 && known.eq_ignore_ascii_case(symbol));
    SYMBOLS.iter().any(same).then_some((*power, symbol))
}

fn known(name: &str) -> Option<&'static Definition> {
    UNITS.iter().find(|(names, ..)| names.contains(&name))
}

/// Convert to lower case and remove a plural s, unless the word is a unit with it.
fn singular(word: &str) -> String {
    let word = word.to_lowercase();
    match word.strip_suffix('s') {
        Some(stem) if known(&word).is_none() && stem.len() > 1 => stem.to_string(),
        _ => word,
    }
}

/// Whether a single letter is a unit of the table.
pub(super) fn is_letter(name: &str) -> bool {
    name.len() == 1 && known(&name.to_lowercase()).is_some()
}

/// Whether two or more letters are a unit of the table.
pub(super) fn is_unit(word: &str) -> bool {
    word.len() > 1 && (known(&singular(word)).is_some() || matches!(word, "percent" | "pct"))
}

impl Unit {
    /// Return the unit of a single letter, for comparison with a quantity in units.
    pub(super) fn letter(name: &str, power: i32) -> Option<Self> {
        let letter = is_letter(name) && power.abs() <= 9;
        letter.then(|| Self::parse(&format!("{name}^{power}"))).flatten()
    }

    /// Return the unit of a symbol with a prefix, `kW`.
    pub(super) fn prefixed(word: &str) -> Option<Self> {
        split(word).and_then(|_| Self::parse(word))
    }

    pub(super) fn written(&self) -> &str {
        &self.written
    }

    /// Multiply two units; `None` if the factor is too large.
    pub(super) fn times(mut self, other: &Self) -> Option<Self> {
        self.scale(&other.factor)?;
        for (base, exponent) in &other.powers {
            *self.powers.entry(base.clone()).or_default() += exponent;
        }
        self.powers.retain(|_, power| *power != 0);
        Some(Self { written: format!("{} {}", self.written, other.written), ..self })
    }

    fn scale(&mut self, factor: &BigRational) -> Option<()> {
        self.factor *= factor;
        (self.factor.numer().bits() + self.factor.denom().bits() <= MAX_BITS).then_some(())
    }

    /// Return the unit of a quantity in this unit and smaller ones.
    pub(super) fn of_several(&self, smallest: &Self) -> Self {
        let written = format!("{} and {}", self.written, smallest.written);
        Self { written, mixed: true, factor: BigRational::one(), ..self.clone() }
    }

    /// Whether a number without a unit may count parts or wholes: 50 cents are 0.5, three halves are 3/2.
    pub(super) fn is_part(&self) -> bool {
        matches!(self.powers.keys().next().map(String::as_str), Some("dollar" | "part"))
            && self.powers.len() == 1
            && !self.factor.is_one()
    }

    /// Parse `km/h`, `cm^2`, `square meters`, `dollars per hour`, `ergs s^-1`; an unknown word is its own base unit.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let written = text.trim().to_string();
        let mut unit = Self { written, mixed: false, factor: BigRational::one(), powers: BTreeMap::new() };
        let (mut sign, mut next_power) = (1, 1);
        // Sign of the exponents inside brackets, and the unit that "squared" applies to.
        let (mut inside, mut last) = (1, None::<(String, i32)>);
        let spaced =
            text.replace('/', " / ").replace('(', " ( ").replace(')', " ) ").replace(['*', '·', '~', '.', '}'], " ");
        let spaced = spaced.replace('{', "");
        for word in spaced.split_whitespace() {
            match word.to_lowercase().as_str() {
                "/" | "per" => sign = -1,
                "(" => inside = sign,
                ")" => (inside, sign) = (1, 1),
                "squared" | "cubed" if last.is_some() => {
                    if let Some((name, sign)) = last.take() {
                        unit.multiply(&name, if word.eq_ignore_ascii_case("squared") { sign } else { 2 * sign })?;
                    }
                }
                "square" | "sq" => next_power = 2,
                "cubic" | "cu" => next_power = 3,
                "of" | "an" | "the" => {}
                // Not the ampere.
                "a" if word == "a" => {}
                _ => {
                    let word = match word.strip_prefix(['平', '立']).and_then(|rest| rest.strip_prefix('方')) {
                        Some(length) => {
                            next_power = if word.starts_with('平') { 2 } else { 3 };
                            length
                        }
                        None => word,
                    };
                    let (name, power) = match word.split_once('^') {
                        Some((name, power)) => (name, power.parse().ok().filter(|p: &i32| p.abs() <= 9)?),
                        None => (word, next_power),
                    };
                    if !name.chars().all(|c| c.is_alphabetic() || c == '-' || c == '\'') {
                        return None;
                    }
                    unit.multiply(name, sign * power)?;
                    last = Some((name.to_string(), sign));
                    (sign, next_power) = (inside, 1);
                }
            }
        }
        Some(unit)
    }

    /// Multiply by a power of the unit that a word names; `None` if the factor is too large.
    fn multiply(&mut self, word: &str, power: i32) -> Option<()> {
        let (ten, symbol) = split(word).unwrap_or((0, word));
        let name = singular(symbol);
        let own = [(name.as_str(), 1)];
        let (parts, over, under) =
            known(&name).map_or((&own[..], 1, 1), |(_, parts, over, under)| (*parts, *over, *under));
        let factor = BigRational::from_integer(10.into()).pow(ten) * BigRational::new(over.into(), under.into());
        self.scale(&factor.pow(power))?;
        for (base, exponent) in parts {
            *self.powers.entry((*base).to_string()).or_default() += exponent * power;
        }
        self.powers.retain(|_, power| *power != 0);
        Some(())
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_one_dimension_differ_by_a_factor() {
        let read = |text: &str| Unit::parse(text).unwrap();
        for (left, right, over, under) in [
            ("km/h", "m/s", 5, 18),
            ("square cm", "m^2", 1, 10_000),
            ("meters per second", "m s^-1", 1, 1),
            ("mL", "cubic centimeters", 1, 1),
            ("apples", "apple", 1, 1),
            ("MW", "mW", 1_000_000_000, 1),
            ("kA", "mA", 1_000_000, 1),
            ("Mg", "kg", 1000, 1),
            ("mg", "g", 1, 1000),
            ("kw", "KW", 1, 1),
            ("μm^2", "mm^2", 1, 1_000_000),
        ] {
            let (left, right) = (read(left), read(right));
            assert_eq!(left.powers, right.powers);
            assert_eq!(left.factor / right.factor, BigRational::new(over.into(), under.into()));
        }
        assert_ne!(read("apples").powers, read("oranges").powers);
        assert_eq!(Unit::parse("m^999"), None);
        assert_eq!(Unit::parse(&"GW^9 ".repeat(700)), None);
    }
}
