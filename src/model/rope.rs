//! Rotary position embeddings: the frequencies of each scaling type, and the tables of cosines and sines.
//!
//! The types are those of transformers: `default` (RoFormer, arXiv 2104.09864), `linear`, `yarn` (arXiv 2309.00071),
//! `llama3` (Llama 3.1) and `longrope` (arXiv 2402.13753). All are computed in f32, as in transformers.

use std::f64::consts::{PI, TAU};

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::{Map, Value};

use super::ModelConfig;
use crate::ops;

/// Cosines and sines of the rotated part of a head, `[rows, width / 2]` each.
pub(super) type Tables = (Tensor<2>, Tensor<2>);

/// Key of the growth of queries with their position (Ministral 3).
const BETA: &str = "llama_4_scaling_beta";
/// Key of the context length of the original training.
const ORIGINAL: &str = "original_max_position_embeddings";

/// Key of `rope_theta` for layers with a window (Gemma 3), and the keys of the two kinds of layers in tables.
const LOCAL: &str = "rope_local_base_freq";
const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];

/// Rotary frequencies of the pairs of a head, and the factors of cosines and sines.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    frequencies: Vec<f32>,
    /// LongRoPE: a length, and the frequencies of longer sequences.
    long: Option<(usize, Vec<f32>)>,
    attention_factor: f32,
    queries: QueryScale,
}

/// Factor of queries in addition to `1 / √head_dim`, which the attention operations apply.
#[derive(Debug, Clone, Copy, PartialEq)]
struct QueryScale {
    constant: f64,
    /// Ministral 3's `β` and `L`: a query at position p is multiplied by `1 + β ln(1 + ⌊p / L⌋)`.
    by_position: Option<(f64, f64)>,
}

impl ModelConfig {
    /// Return the maximum length of sequences sampled token by token: beyond it LongRoPE also changes the rotation of
    /// cached tokens. `None` for no limit.
    pub(crate) fn longest_sampled(&self) -> Option<usize> {
        Rope::kinds(self).ok()?.iter().filter_map(|rope| rope.long.as_ref().map(|(longest, _)| *longest)).min()
    }
}

impl Rope {
    /// Return the model's rotations: one, or one for layers without and one with a window. Errors name the key.
    pub(super) fn kinds(config: &ModelConfig) -> Result<Vec<Self>, Vec<String>> {
        let Some(local) = config.family().and_then(|family| family.local_theta) else {
            return Ok(vec![Self::read(config)?]);
        };
        let mut one = config.clone();
        let kind = |kind: &str| config.rope_parameters.as_ref()?.get(kind).filter(|table| !table.is_null()).cloned();
        let is_flat = |table: &&Value| {
            table
                .as_object()
                .is_some_and(|table| !table.is_empty() && KINDS.iter().all(|kind| !table.contains_key(*kind)))
        };
        if let Some(flat) = config.rope_parameters.as_ref().filter(is_flat) {
            return Err(vec![format!(
                "rope_parameters = {flat} must have one table per layer type: {}",
                KINDS.join(" and ")
            )]);
        }
        one.rope_parameters = kind(KINDS[0]);
        let full = Self::read(&one)?;
        // `rope_scaling` of older files applies to layers without a window only.
        (one.rope_parameters, one.rope_scaling) = (kind(KINDS[1]), None);
        one.rope_theta = match config.rest.get(LOCAL).filter(|base| !base.is_null()) {
            None => Some(local),
            Some(base) => match base.as_f64().filter(|base| *base > 1.0 && base.is_finite()) {
                Some(base) => Some(base),
                None => return Err(vec![format!("{LOCAL} = {base} must be a number above 1")]),
            },
        };
        Ok(vec![full, Self::read(&one)?])
    }

    /// Read `rope_theta`, `rope_scaling` and `rope_parameters`.
    fn read(config: &ModelConfig) -> Result<Self, Vec<String>> {
        let (key, value) = match (&config.rope_parameters, &config.rope_scaling) {
            (Some(_), Some(_)) => {
                return Err(vec!["both rope_parameters and rope_scaling are given; remove one".to_string()]);
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
        // As in transformers, a length outside the table overrides the one inside.
        if let Some(length) = config.rest.get(ORIGINAL).filter(|length| !length.is_null()) {
            table.insert(ORIGINAL.to_string(), length.clone());
        }
        let mut reader = RopeTableReader { key, table: &table, problems: Vec::new() };
        if let Some((name, _)) = table.iter().find(|(_, value)| value.is_object()) {
            reader.refuse(name, "is an object: rotary settings per layer type are not supported for this model family");
        }
        let partial = reader.number("partial_rotary_factor", config.rest.get("partial_rotary_factor"), Some(1.0));
        let parts = config.family().is_some_and(|family| family.partial);
        if partial != 1.0 && !(parts && partial < 1.0) {
            reader.refuse(
                "partial_rotary_factor",
                "must be 1: partial rotary embeddings are not supported for this model family",
            );
        }
        let base = config.rope_theta.or(config.family().map_or(Some(10_000.0), |family| family.theta));
        let theta = reader.number("rope_theta", None, base);
        if reader.problems.is_empty() && theta <= 1.0 {
            reader.problems.push(format!("rope_theta = {theta} must be above 1"));
        }
        // Sizes are checked elsewhere; do not compute with an invalid one.
        let dim = if config.num_attention_heads == 0 { 2 } else { config.head_dim() };
        if !reader.problems.is_empty() {
            return Err(reader.problems);
        }
        let rotated = (dim.min(1 << 16) as f64 * partial) as usize;
        if rotated == 0 || !rotated.is_multiple_of(2) {
            reader.refuse(
                "partial_rotary_factor",
                &format!("rotates {rotated} of {dim} dimensions of a head; the number must be even and positive"),
            );
        }
        let plain: Vec<f32> =
            (0..rotated / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / rotated as f32)).collect();
        let long = config.family().is_some_and(|family| family.long_rope);
        let mut scaled = if long && reader.is_long() {
            reader.long(plain, config.max_position_embeddings)
        } else {
            reader.scale(plain, theta, rotated, config.max_position_embeddings)
        };
        if let Some(product) = config.multipliers().attention {
            scaled.queries.constant = product * (dim as f64).sqrt();
        }
        if config.scales_by_position() && reader.table.get(BETA).is_some_and(|beta| !beta.is_null()) {
            let length = reader.number(ORIGINAL, None, None);
            scaled.queries.by_position = Some((reader.number(BETA, None, None), length));
        }
        if reader.problems.is_empty() { Ok(scaled) } else { Err(reader.problems) }
    }

    /// Return whether heads of this width rotate as a whole, and equally for sequences of all lengths.
    pub(super) fn rotates_all(&self, head_dim: usize) -> bool {
        self.long.is_none() && 2 * self.frequencies.len() == head_dim
    }

    /// Compute the tables of `positions` for keys, and for queries; `lengths` are those of their sequences.
    pub(super) fn tables(&self, positions: &[usize], lengths: &[usize], device: &Device) -> [Tables; 2] {
        let keys = self.table(positions, lengths, |_| 1.0, device);
        let queries = match self.queries {
            QueryScale { constant: 1.0, by_position: None } => keys.clone(),
            QueryScale { constant, by_position } => {
                let grown =
                    |(beta, length): (f64, f64), p: usize| 1.0 + beta * (1.0 + (p as f64 / length).floor()).ln();
                let scale = |p| (constant * by_position.map_or(1.0, |by| grown(by, p))) as f32;
                self.table(positions, lengths, scale, device)
            }
        };
        [keys, queries]
    }

    /// Compute the tables, multiplied by `scale` of the position.
    fn table(&self, positions: &[usize], lengths: &[usize], scale: impl Fn(usize) -> f32, device: &Device) -> Tables {
        let long: Vec<bool> = self.long.as_ref().map_or(Vec::new(), |(longest, _)| {
            lengths.iter().flat_map(|&length| std::iter::repeat_n(length > *longest, length)).collect()
        });
        let frequencies = |row: usize| match &self.long {
            Some((_, frequencies)) if long.get(row) == Some(&true) => frequencies,
            _ => &self.frequencies,
        };
        let shape = [positions.len(), self.frequencies.len()];
        let table = |values: Vec<f32>| ops::to_device(TensorData::new(values, shape), device);
        let fill = |of: fn(f32) -> f32| {
            let row = |(row, &p): (usize, &usize)| {
                let factor = self.attention_factor * scale(p);
                frequencies(row).iter().map(move |f| of(p as f32 * f) * factor)
            };
            table(positions.iter().enumerate().flat_map(row).collect())
        };
        (fill(f32::cos), fill(f32::sin))
    }
}

/// The table being read, and the problems found so far.
struct RopeTableReader<'a> {
    key: &'a str,
    table: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl RopeTableReader<'_> {
    fn refuse(&mut self, name: &str, reason: &str) {
        let value = self.table.get(name).map_or("missing".to_string(), Value::to_string);
        self.problems.push(format!("{}.{name} = {value} {reason}", self.key));
    }

    /// Return a positive number of the table; if absent, `other`, then `default`.
    fn number(&mut self, name: &str, other: Option<&Value>, default: Option<f64>) -> f64 {
        let own = self.table.get(name).filter(|value| !value.is_null());
        let number = match own.or(other) {
            None => default,
            Some(value) => value.as_f64().filter(|number| *number > 0.0 && number.is_finite()),
        };
        number.unwrap_or_else(|| {
            match (own, other) {
                // The value is outside the table.
                (None, Some(value)) => self.problems.push(format!("{name} = {value} must be a positive number")),
                _ => self.refuse(name, "must be a positive number"),
            }
            1.0
        })
    }

    /// Return `rope_type`, or `type`, its name in older files; null if neither is given.
    fn kind(&self) -> Value {
        let given = |name: &&str| self.table.get(*name).filter(|value| !value.is_null());
        ["rope_type", "type"].iter().find_map(given).cloned().unwrap_or_default()
    }

    /// Return whether `rope_type` is `longrope` or its name in Phi's older files.
    fn is_long(&self) -> bool {
        self.kind().as_str().is_some_and(|kind| ["longrope", "su", "yarn"].contains(&kind))
    }

    /// Divide each frequency by a factor of its own; sequences beyond the original context have other factors.
    fn long(&mut self, plain: Vec<f32>, max_positions: usize) -> Rope {
        let original = self.number(ORIGINAL, None, Some(max_positions as f64));
        let factor = self.number("factor", None, Some(max_positions as f64 / original));
        let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        let attention_factor = self.number("attention_factor", None, Some(inferred)) as f32;
        let [frequencies, far] = ["short_factor", "long_factor"].map(|name| self.slowed(&plain, name));
        let queries = QueryScale { constant: 1.0, by_position: None };
        Rope { frequencies, long: Some((original as usize, far)), attention_factor, queries }
    }

    fn slowed(&mut self, plain: &[f32], name: &str) -> Vec<f32> {
        let list = self.table.get(name).and_then(Value::as_array);
        let factors: Option<Vec<f64>> = list.and_then(|list| list.iter().map(Value::as_f64).collect());
        match factors.filter(|list| list.len() == plain.len() && list.iter().all(|factor| *factor > 0.0)) {
            Some(factors) => plain.iter().zip(factors).map(|(f, factor)| f / factor as f32).collect(),
            None => {
                let count = plain.len();
                self.problems.push(format!("{}.{name} must be a list of {count} positive numbers", self.key));
                plain.to_vec()
            }
        }
    }

    /// Apply the scaling named by `rope_type`.
    fn scale(&mut self, plain: Vec<f32>, theta: f64, dim: usize, max_positions: usize) -> Rope {
        let kind = self.kind();
        let (frequencies, attention_factor) = match kind.as_str() {
            Some("default") => (plain, 1.0),
            None if kind.is_null() => {
                if self.table.contains_key("factor") {
                    self.refuse("rope_type", "must name the scaling that has this factor: linear, llama3 or yarn");
                }
                (plain, 1.0)
            }
            Some("linear") => {
                let factor = self.number("factor", None, None) as f32;
                (plain.into_iter().map(|f| f / factor).collect(), 1.0)
            }
            Some("llama3") => (self.llama3(plain, max_positions), 1.0),
            Some("yarn") => self.yarn(plain, theta, dim, max_positions),
            _ => {
                let problem = format!(
                    "{}.rope_type = {kind} is not supported (supported: default, linear, llama3, yarn)",
                    self.key
                );
                self.problems.push(problem);
                (plain, 1.0)
            }
        };
        let queries = QueryScale { constant: 1.0, by_position: None };
        Rope { frequencies, long: None, attention_factor, queries }
    }

    /// Divide the frequencies of long waves by `factor`, keep those of short waves, and blend those in between.
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

    /// Divide slow frequencies by `factor`, keeps fast ones, with a ramp between; also returns the attention factor.
    fn yarn(&mut self, plain: Vec<f32>, theta: f64, dim: usize, max_positions: usize) -> (Vec<f32>, f32) {
        let original = self.number(ORIGINAL, None, Some(max_positions as f64));
        // As in transformers, a factor of null is inferred, but one must be given.
        let inferred = self.table.contains_key("factor").then_some(max_positions as f64 / original);
        let factor = self.number("factor", None, inferred);
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
        // Index of the pair that rotates `rotations` times within the original context.
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

    /// When the key was ignored, log-probabilities changed by 0.85 nats on average.
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
        // Regression: with a `rope_type` of null beside `type`, there was no scaling.
        assert_eq!(read(json!({"rope_type": null, "type": "yarn", "factor": 4.0}), json!(64)).unwrap(), want);
        assert_eq!(read(inside(256), json!(64)).unwrap(), want);
        assert_ne!(read(inside(256), Value::Null).unwrap(), want);
        assert!(read(inside(64), json!("64")).unwrap_err()[0].contains("must be a positive number"));
    }

    /// YaRN's ramp covers the rotated part of a head. `yarn` was also mistaken for Phi's old name of LongRoPE.
    #[test]
    fn a_part_of_a_head_is_stretched_like_a_head_of_its_size() {
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64, "mrope_section": [1, 1, 0]});
        let rope = |model_type: &str, head_dim: usize, part: f64| {
            let mut config = ModelConfig::qwen2(512, 64, 128, 2, 4, 2);
            (config.model_type, config.head_dim) = (model_type.to_string(), Some(head_dim));
            config.rope_scaling = Some(yarn.clone());
            config.rest.insert("partial_rotary_factor".to_string(), json!(part));
            Rope::read(&config).unwrap()
        };
        assert_eq!(rope("qwen3_5_text", 64, 0.25), rope("qwen3", 16, 1.0));
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

    /// Tables per kind of layer, in older and in newer files, as transformers reads them.
    #[test]
    fn layers_with_a_window_have_a_base_of_their_own() {
        let read = |edit: Value| {
            let mut config = serde_json::to_value(ModelConfig::qwen2(512, 64, 128, 2, 4, 2)).unwrap();
            config["rope_theta"] = Value::Null;
            config["model_type"] = json!("gemma3_text");
            config.as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
            Rope::kinds(&serde_json::from_value(config).unwrap())
        };
        let old = read(
            json!({"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8}}),
        );
        let new = read(json!({"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            "full_attention": {"rope_type": "linear", "factor": 8, "rope_theta": 5e5}}}));
        assert!(old == new && old.as_ref().unwrap()[0] != old.as_ref().unwrap()[1]);
        let plain = read(json!({})).unwrap();
        let given = read(json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}})).unwrap();
        assert!(plain == given && plain[1] == read(json!({"rope_local_base_freq": 1e4})).unwrap()[1]);
        assert!(read(json!({"rope_parameters": {"rope_theta": 1e6}})).unwrap_err()[0].contains("per layer type"));
        // OLMo 3 has one default base for both kinds; `rope_theta` applies to layers without a window only.
        let olmo = |theta: Value| read(json!({"model_type": "olmo3", "rope_theta": theta})).unwrap();
        let (own, other) = (olmo(Value::Null), olmo(json!(1e4)));
        assert!(own[0] == own[1] && other[1] == own[1] && other[0] != own[0]);
    }

    #[test]
    fn longrope_needs_a_factor_for_each_pair() {
        let read = |edit: Value| {
            let mut config = ModelConfig::qwen2(512, 64, 128, 2, 4, 2);
            config.model_type = "phi3".to_string();
            config.rest.insert(ORIGINAL.to_string(), json!(256));
            let mut table = json!({"type": "su", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2], "partial_rotary_factor": 0.5});
            table.as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
            config.rope_scaling = Some(table);
            Rope::kinds(&config)
        };
        let rope = read(json!({})).unwrap().remove(0);
        // √(1 + ln 4 / ln 256).
        assert!((rope.attention_factor - 1.25f32.sqrt()).abs() < 1e-6 && rope.long.as_ref().unwrap().0 == 256);
        assert!(!rope.rotates_all(16) && rope.frequencies.len() == 4);
        for (edit, text) in [
            (json!({"long_factor": [1, 2]}), "long_factor must be a list of 4 positive numbers"),
            (json!({"short_factor": [1, 1, 1, 0]}), "short_factor must be"),
            (json!({"partial_rotary_factor": 0.2}), "rotates 3 of 16 dimensions"),
            (json!({"partial_rotary_factor": 1.5}), "partial rotary embeddings are not supported"),
        ] {
            let found = read(edit).unwrap_err();
            assert!(found.iter().any(|problem| problem.contains(text)), "{text}: {found:?}");
        }
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
        assert!(found[0].contains("per layer type"), "{found:?}");
        // Regression: both tables were read as no scaling.
        let found = read(json!({"factor": 4.0, ORIGINAL: 64})).unwrap_err();
        assert_eq!(
            found,
            ["rope_scaling.rope_type = missing must name the scaling that has this factor: linear, llama3 or yarn"]
        );
        assert_eq!(
            read(json!({"type": "yarn"})).unwrap_err(),
            ["rope_scaling.factor = missing must be a positive number"]
        );
        let mut config = ModelConfig::qwen2(512, 64, 128, 2, 4, 2);
        (config.rope_scaling, config.rope_parameters) = (Some(json!({})), Some(json!({})));
        assert!(Rope::read(&config).unwrap_err()[0].contains("remove one"));
    }
}
