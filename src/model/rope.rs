//! Rotary positions: the frequencies of each scaling type, and the tables of cosines and sines.
//!
//! The types are those of transformers: `default` (RoFormer, arXiv 2104.09864), `linear`, `yarn` (arXiv 2309.00071) and
//! `llama3` (Llama 3.1). Computed in f32, as there.

use std::f64::consts::{PI, TAU};

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Map, Value};

use super::ModelConfig;
use crate::ops;

/// Cosines and sines, `[rows, head_dim / 2]` each.
pub(super) type Tables = (Tensor<2>, Tensor<2>);

/// How queries grow with their position (Ministral 3).
const BETA: &str = "llama_4_scaling_beta";
/// The context the model was first trained on.
const ORIGINAL: &str = "original_max_position_embeddings";

/// Frequencies of the pairs of one head, and what cosines and sines are multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    frequencies: Vec<f32>,
    attention_factor: f32,
    queries: QueryScale,
}

/// What queries are multiplied by beside `1 / √head_dim`, which operations bring.
#[derive(Debug, Clone, Copy, PartialEq)]
struct QueryScale {
    constant: f64,
    /// Ministral 3's `β` and `L`: a query at position p is multiplied by `1 + β ln(1 + ⌊p / L⌋)`.
    by_position: Option<(f64, f64)>,
}

impl Rope {
    /// What `rope_theta`, `rope_scaling` and `rope_parameters` say; problems name the key.
    pub(super) fn read(config: &ModelConfig) -> Result<Self, Vec<String>> {
        let (key, value) = match (&config.rope_parameters, &config.rope_scaling) {
            (Some(_), Some(_)) => {
                return Err(vec!["both rope_parameters and rope_scaling are given; leave one of them".to_string()]);
            }
            (Some(value), None) => ("rope_parameters", value),
            (None, Some(value)) => ("rope_scaling", value),
            (None, None) => ("rope_parameters", &Value::Null),
        };
        let mut table = match value {
            Value::Null => Map::new(),
            Value::Object(table) => table.clone(),
            other => return Err(vec![format!("{key} = {other} must be an object")]),
        };
        // As in transformers, a length outside the table wins over the one within.
        if let Some(length) = config.rest.get(ORIGINAL).filter(|length| !length.is_null()) {
            table.insert(ORIGINAL.to_string(), length.clone());
        }
        let mut settings = Settings { key, table: &table, problems: Vec::new() };
        if let Some((name, _)) = table.iter().find(|(_, value)| value.is_object()) {
            settings.refuse(name, "is an object: rotary settings per kind of layer are not supported");
        }
        let partial = settings.number("partial_rotary_factor", config.rest.get("partial_rotary_factor"), Some(1.0));
        if partial != 1.0 {
            settings.refuse("partial_rotary_factor", "is not 1: rotating a part of a head is not supported");
        }
        let theta = settings.number("rope_theta", None, config.rope_base());
        if settings.problems.is_empty() && theta <= 1.0 {
            settings.refuse("rope_theta", "must be above 1");
        }
        // Sizes are checked elsewhere; a broken one must not be computed with.
        let dim = if config.num_attention_heads == 0 { 2 } else { config.head_dim() };
        let plain: Vec<f32> =
            (0..dim.min(1 << 16) / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / dim as f32)).collect();
        let mut scaled = settings.scale(plain, theta, dim, config.max_position_embeddings);
        if let Some(product) = config.multipliers().attention {
            scaled.queries.constant = product * (dim as f64).sqrt();
        }
        if config.scales_by_position() && settings.table.get(BETA).is_some_and(|beta| !beta.is_null()) {
            let length = settings.number(ORIGINAL, None, None);
            scaled.queries.by_position = Some((settings.number(BETA, None, None), length));
        }
        if settings.problems.is_empty() { Ok(scaled) } else { Err(settings.problems) }
    }

    /// Cosines and sines of the given positions for keys, and for queries.
    pub(super) fn tables(&self, positions: &[usize], device: &Device) -> [Tables; 2] {
        let keys = self.table(positions, |_| 1.0, device);
        let queries = match self.queries {
            QueryScale { constant: 1.0, by_position: None } => keys.clone(),
            QueryScale { constant, by_position } => {
                let grown =
                    |(beta, length): (f64, f64), p: usize| 1.0 + beta * (1.0 + (p as f64 / length).floor()).ln();
                let scale = |p| (constant * by_position.map_or(1.0, |by| grown(by, p))) as f32;
                self.table(positions, scale, device)
            }
        };
        [keys, queries]
    }

    /// Tables whose rotation also multiplies by `scale` of the position.
    fn table(&self, positions: &[usize], scale: impl Fn(usize) -> f32, device: &Device) -> Tables {
        let shape = [positions.len(), self.frequencies.len()];
        let table = |values: Vec<f32>| ops::to_device(TensorData::new(values, shape), device);
        let fill = |of: fn(f32) -> f32| {
            let row = |&p: &usize| {
                let factor = self.attention_factor * scale(p);
                self.frequencies.iter().map(move |f| of(p as f32 * f) * factor)
            };
            table(positions.iter().flat_map(row).collect())
        };
        (fill(f32::cos), fill(f32::sin))
    }
}

/// The table being read, and what was wrong with it so far.
struct Settings<'a> {
    key: &'a str,
    table: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl Settings<'_> {
    fn refuse(&mut self, name: &str, reason: &str) {
        let value = self.table.get(name).map_or("missing".to_string(), Value::to_string);
        self.problems.push(format!("{}.{name} = {value} {reason}", self.key));
    }

    /// A positive number; `other` stands in where the table has none, then `default`.
    fn number(&mut self, name: &str, other: Option<&Value>, default: Option<f64>) -> f64 {
        let value = self.table.get(name).filter(|value| !value.is_null()).or(other);
        let number = match value {
            None => default,
            Some(value) => value.as_f64().filter(|number| *number > 0.0 && number.is_finite()),
        };
        number.unwrap_or_else(|| {
            self.refuse(name, "must be a positive number");
            1.0
        })
    }

    /// Applies the scaling that `rope_type` names.
    fn scale(&mut self, plain: Vec<f32>, theta: f64, dim: usize, max_positions: usize) -> Rope {
        let kind = self.table.get("rope_type").or_else(|| self.table.get("type")).unwrap_or(&Value::Null).clone();
        let (frequencies, attention_factor) = match kind.as_str() {
            Some("default") => (plain, 1.0),
            None if kind.is_null() => (plain, 1.0),
            Some("linear") => {
                let factor = self.number("factor", None, None) as f32;
                (plain.into_iter().map(|f| f / factor).collect(), 1.0)
            }
            Some("llama3") => (self.llama3(plain, max_positions), 1.0),
            Some("yarn") => self.yarn(plain, theta, dim, max_positions),
            _ => {
                let problem =
                    format!("{}.rope_type = {kind} is not supported (default, linear, llama3, yarn are)", self.key);
                self.problems.push(problem);
                (plain, 1.0)
            }
        };
        let queries = QueryScale { constant: 1.0, by_position: None };
        Rope { frequencies, attention_factor, queries }
    }

    /// Long waves are stretched, short ones stay, those between are blended.
    fn llama3(&mut self, plain: Vec<f32>, max_positions: usize) -> Vec<f32> {
        let factor = self.number("factor", None, None) as f32;
        let low = self.number("low_freq_factor", None, None) as f32;
        let high = self.number("high_freq_factor", None, None) as f32;
        let original = self.number(ORIGINAL, None, Some(max_positions as f64)) as f32;
        if self.problems.is_empty() && low >= high {
            self.refuse("low_freq_factor", "must be below high_freq_factor");
        }
        let scale = |f: f32| {
            let wave = TAU as f32 / f;
            if wave < original / high {
                return f;
            }
            if wave > original / low {
                return f / factor;
            }
            let smooth = (original / wave - low) / (high - low);
            (1.0 - smooth) * f / factor + smooth * f
        };
        plain.into_iter().map(scale).collect()
    }

    /// Interpolated for slow pairs, as trained for fast ones, a ramp between; and a temperature on attention.
    fn yarn(&mut self, plain: Vec<f32>, theta: f64, dim: usize, max_positions: usize) -> (Vec<f32>, f32) {
        let original = self.number(ORIGINAL, None, Some(max_positions as f64));
        let factor = self.number("factor", None, Some(max_positions as f64 / original));
        let fast = self.number("beta_fast", None, Some(32.0));
        let slow = self.number("beta_slow", None, Some(1.0));
        let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        // As in transformers, a magnitude of 0 counts as not given.
        let given = |name: &str| self.table.get(name).and_then(Value::as_f64).filter(|&number| number != 0.0);
        let inferred = match (given("mscale"), given("mscale_all_dim")) {
            (Some(own), Some(all)) => magnitude(own) / magnitude(all),
            _ => magnitude(1.0),
        };
        let attention_factor = self.number("attention_factor", None, Some(inferred));
        // The pair that turns `rotations` times within the original context.
        let pair = |rotations: f64| dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let truncate = self.table.get("truncate").and_then(Value::as_bool).unwrap_or(true);
        let (low, high) = (pair(fast), pair(slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let blend = |(i, f): (usize, f32)| {
            let interpolated = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            f / factor as f32 * interpolated + f * (1.0 - interpolated)
        };
        (plain.into_iter().enumerate().map(blend).collect(), attention_factor as f32)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(rope_scaling: Value) -> Result<Rope, Vec<String>> {
        let mut config = ModelConfig::qwen2(512, 64, 128, 2, 4, 2);
        config.rope_scaling = Some(rope_scaling);
        Rope::read(&config)
    }

    /// Read as if it were not there, it moved log-probabilities by 0.85 nats on average.
    #[test]
    fn an_original_length_at_the_top_level_wins() {
        let mut config = ModelConfig::qwen2(512, 64, 128, 2, 4, 2);
        let mut read = |rope_scaling: Value, top: Value| {
            config.rope_scaling = Some(rope_scaling);
            config.rest.insert(ORIGINAL.to_string(), top);
            Rope::read(&config)
        };
        let inside = |length: u64| json!({"type": "yarn", "factor": 4.0, ORIGINAL: length});
        let want = read(inside(64), Value::Null).unwrap();
        assert_eq!(read(json!({"type": "yarn", "factor": 4.0}), json!(64)).unwrap(), want);
        assert_eq!(read(inside(256), json!(64)).unwrap(), want);
        assert_ne!(read(inside(256), Value::Null).unwrap(), want);
        assert!(read(inside(64), json!("64")).unwrap_err()[0].contains("must be a positive number"));
    }

    #[test]
    fn yarn_takes_the_magnitude_that_is_given_and_infers_it_otherwise() {
        // The published Qwen2.5 setting: 0.1 ln 4 + 1 (arXiv 2309.00071, section 3.4).
        let setting = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256});
        let with = |key: &str, value: Value| {
            let mut setting = setting.clone();
            setting[key] = value;
            setting
        };
        let magnitude = |setting: Value| read(setting).unwrap().attention_factor;
        assert!((magnitude(setting.clone()) - 1.138_629_4).abs() < 1e-6);
        assert!((magnitude(with("attention_factor", json!(0.75))) - 0.75).abs() < 1e-6);
        let mut equal = with("mscale", json!(1.0));
        equal["mscale_all_dim"] = json!(1.0);
        assert!((magnitude(equal) - 1.0).abs() < 1e-6);
        assert!((magnitude(with("factor", json!(0.5))) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn every_missing_or_senseless_number_is_named() {
        let found = read(json!({"rope_type": "llama3", "factor": -8, "low_freq_factor": "1"})).unwrap_err();
        for text in ["factor = -8 must be", "low_freq_factor = \"1\" must", "high_freq_factor = missing must"] {
            assert!(
                found.iter().any(|problem| problem.starts_with("rope_scaling.") && problem.contains(text)),
                "{found:?}"
            );
        }
        let found = read(json!({"full_attention": {"rope_type": "default"}})).unwrap_err();
        assert!(found[0].contains("per kind of layer"), "{found:?}");
        let mut config = ModelConfig::qwen2(512, 64, 128, 2, 4, 2);
        (config.rope_scaling, config.rope_parameters) = (Some(json!({})), Some(json!({})));
        assert!(Rope::read(&config).unwrap_err()[0].contains("leave one"));
    }
}
