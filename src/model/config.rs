//! The model architecture as in Hugging Face `config.json`, and the rejection of unsupported configurations.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::rope::Rope;
use super::{foreign, wrapped};
use crate::error::{Error, Result};
use crate::files;
use crate::model::tensors::Dtype;

/// The model architecture, with the keys of Hugging Face `config.json`; unused keys are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Class names, such as `["Qwen2ForCausalLM"]`.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// Model family, one of the table in README.
    pub model_type: String,
    /// Vocabulary size: rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the feed-forward network.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; must divide `num_attention_heads`, which is also the default.
    #[serde(default, deserialize_with = "or_default")]
    pub num_key_value_heads: usize,
    /// Width of one head; `None` for the default of the family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Activation of the gate: `silu`, or `gelu_pytorch_tanh` in `gemma3_text`.
    #[serde(default = "silu")]
    pub hidden_act: String,
    /// Maximum sequence length, in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies, unless `rope_parameters` gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Rotary scaling in files from before transformers 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Value>,
    /// Rotary base and scaling in files of transformers 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<Value>,
    /// Added to the mean square in RMSNorm.
    #[serde(default = "rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Whether the head is tied to the embedding.
    #[serde(default, deserialize_with = "or_default")]
    pub tie_word_embeddings: bool,
    /// Whether attention projections have a bias (`llama`, `qwen3`, …; in `qwen2` all but the last always have).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_bias: Option<bool>,
    /// Whether the feed-forward projections have a bias (`llama`, `smollm3`, `granite`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_bias: Option<bool>,
    /// Standard deviation of newly initialised weights.
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
    /// End-of-turn ids: one or a list, as in Hugging Face files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<Value>,
    /// Padding id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_token_id: Option<u32>,
    /// Number format of stored weights, in files from before transformers 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch_dtype: Option<String>,
    /// Number format of stored weights, in files of transformers 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Whether layers have a sliding window, in families with this key (`qwen2`, `qwen3`, `smollm3`).
    #[serde(default, deserialize_with = "or_default")]
    pub use_sliding_window: bool,
    /// All other keys of the file.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// Deserialise null as the default, for keys that may be absent.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

fn silu() -> String {
    "silu".to_string()
}
fn rms_norm_eps() -> f64 {
    1e-6
}
fn initializer_range() -> f64 {
    0.02
}

impl ModelConfig {
    /// Return a Qwen2 configuration of the given shape with a tied head and the family's other defaults.
    pub fn qwen2(
        vocab: usize,
        hidden: usize,
        intermediate: usize,
        layers: usize,
        heads: usize,
        kv_heads: usize,
    ) -> Self {
        Self {
            architectures: vec!["Qwen2ForCausalLM".to_string()],
            model_type: "qwen2".to_string(),
            vocab_size: vocab,
            hidden_size: hidden,
            intermediate_size: intermediate,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim: None,
            hidden_act: silu(),
            max_position_embeddings: 1024,
            rope_theta: Some(10_000.0),
            rope_scaling: None,
            rope_parameters: None,
            rms_norm_eps: rms_norm_eps(),
            tie_word_embeddings: true,
            attention_bias: None,
            mlp_bias: None,
            initializer_range: initializer_range(),
            eos_token_id: None,
            pad_token_id: None,
            torch_dtype: Some("float32".to_string()),
            dtype: None,
            use_sliding_window: false,
            rest: Map::new(),
        }
    }

    /// Read `dir/config.json` and reject unsupported configurations.
    ///
    /// # Errors
    /// A missing or malformed file, or unsupported settings: all of them, each with key, value and reason.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = crate::text::directory::find(dir, crate::hub::ModelFiles::Settings)?.join("config.json");
        let value = wrapped::completed(files::read_json(&path)?);
        let unknown = foreign::family_mistake(&value);
        // An unsupported family explains missing keys.
        let mut config: Self =
            crate::json::typed(&value).map_err(|reason| Error::file(&path, unknown.unwrap_or(reason)))?;
        if config.num_key_value_heads == 0 {
            config.num_key_value_heads = config.num_attention_heads;
        }
        let problems = config.mistakes();
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(Error::Config { origin: path.display().to_string(), problems })
        }
    }

    /// Return the format of the stored weights: f32 if the file names none, `None` if it names an unsupported one.
    pub fn stored(&self) -> Option<Dtype> {
        let name = self.dtype.as_deref().or(self.torch_dtype.as_deref()).unwrap_or("float32");
        Dtype::named(name.strip_prefix("torch.").unwrap_or(name))
    }

    /// Set the format of the stored weights, under the key that the file uses.
    pub(crate) fn set_stored(&mut self, dtype: Dtype) {
        let key = if self.dtype.is_some() { &mut self.dtype } else { &mut self.torch_dtype };
        *key = Some(dtype.name().to_string());
    }

    /// Return one message per unsupported or invalid key; empty if there are none.
    pub fn mistakes(&self) -> Vec<String> {
        let mut problems = self.foreign();
        let mut refuse = |bad: bool, problem: String| {
            if bad {
                problems.push(problem);
            }
        };
        let [heads, kv] = [self.num_attention_heads, self.num_key_value_heads];
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv),
            ("max_position_embeddings", self.max_position_embeddings),
            ("head_dim", self.head_dim.unwrap_or(1)),
        ];
        for (key, size) in sizes {
            // The product of two sizes must not overflow.
            refuse(size == 0 || size > 1 << 31, format!("{key} = {size} must be positive and at most 2^31"));
        }
        if self.head_dim.is_none() && heads > 0 {
            let hidden = self.hidden_size;
            let problem = format!("hidden_size = {hidden} is not a multiple of num_attention_heads = {heads}");
            refuse(!hidden.is_multiple_of(heads), problem);
        }
        if heads > 0 {
            let dim = self.head_dim();
            refuse(
                !dim.is_multiple_of(2),
                format!("head_dim = {dim} must be even, because rotary embeddings rotate pairs"),
            );
        }
        refuse(
            kv > 0 && !heads.is_multiple_of(kv),
            format!("num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv}"),
        );
        let (gate, found) = (self.gate().name(), &self.hidden_act);
        refuse(found != gate, format!("hidden_act = \"{found}\" is not supported (supported: {gate})"));
        refuse(
            !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0),
            format!("rms_norm_eps = {} must lie between 0 and 1", self.rms_norm_eps),
        );
        let dtype = self.dtype.as_deref().or(self.torch_dtype.as_deref()).unwrap_or_default();
        refuse(
            self.stored().is_none(),
            format!("dtype = \"{dtype}\" is not supported (supported: float32, bfloat16, float16)"),
        );
        problems.extend(self.family_mistakes());
        if let Err(found) = Rope::kinds(self) {
            problems.extend(found);
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mistakes(edit: Value) -> Vec<String> {
        let mut value = serde_json::to_value(ModelConfig::qwen2(512, 64, 128, 2, 4, 2)).unwrap();
        value.as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
        serde_json::from_value::<ModelConfig>(value).unwrap().mistakes()
    }

    #[test]
    fn every_problem_is_named_with_key_and_value_at_once() {
        let found = mistakes(json!({
            "model_type": "qwen3_moe", "num_experts": 8, "hidden_act": "gelu", "num_key_value_heads": 3,
            "quantization_config": {"bits": 4}, "dtype": "float8", "rope_scaling": {"rope_type": "longrope"},
        }));
        for text in [
            "model_type = \"qwen3_moe\"",
            "num_experts = 8: mixtures",
            "hidden_act = \"gelu\"",
            "num_key_value_heads = 3",
            "quantization_config = {\"bits\":4}",
            "dtype = \"float8\"",
            "rope_type = \"longrope\"",
        ] {
            assert!(found.iter().any(|problem| problem.contains(text)), "{text}: {found:#?}");
        }
        assert_eq!(found.len(), 7, "{found:#?}");
        // Keys of other tools, and of transformers 5, that were ignored.
        for (key, value) in [
            ("quantization", json!({"bits": 4, "group_size": 64})),
            ("compression_config", json!({"quant_method": "compressed-tensors"})),
            ("is_causal", json!(false)),
            ("per_layer_config", json!({"1": {"sliding_window": 8}})),
        ] {
            let found = mistakes(json!({key: value}));
            assert!(found.len() == 1 && found[0].starts_with(key) && found[0].contains("not supported"), "{found:?}");
        }
        assert_eq!(mistakes(json!({"is_causal": true})), Vec::<String>::new());
    }

    #[test]
    fn a_value_of_the_wrong_type_is_named_with_file_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let read = |key: &str, value: Value| {
            let mut config = serde_json::to_value(ModelConfig::qwen2(512, 64, 128, 2, 4, 2)).unwrap();
            config[key] = value;
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            ModelConfig::load(dir.path()).unwrap_err().to_string()
        };
        for (key, value) in
            [("hidden_size", json!("64")), ("pad_token_id", json!(-1)), ("use_sliding_window", json!(5))]
        {
            let error = read(key, value);
            assert!(error.contains(&format!("config.json: {key}: invalid")), "{error}");
        }
    }

    /// The first version of Mistral has a window of 4096, even if its file omits the key.
    #[test]
    fn keys_of_a_family_are_checked() {
        let mistral = |edit: Value| {
            let mut all = json!({"model_type": "mistral", "architectures": ["MistralForCausalLM"]});
            all.as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
            mistakes(all)
        };
        assert_eq!(mistral(json!({"sliding_window": null})), Vec::<String>::new());
        for window in [json!(0), json!("4096"), json!(-1)] {
            let found = mistral(json!({"sliding_window": window}));
            assert_eq!(found, [format!("sliding_window = {window} must be a positive integer, or null for none")]);
        }
        let found = mistral(json!({"layer_types": ["full_attention", "sliding_attention"]}));
        assert!(found.len() == 1 && found[0].starts_with("layer_types has"), "{found:?}");
        let smollm = |layers: Value| {
            mistakes(
                json!({"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": layers}),
            )
        };
        assert!(smollm(json!([1, 0])).is_empty() && smollm(Value::Null).is_empty());
        for layers in [json!([1]), json!([1, 2]), json!("all")] {
            assert!(smollm(layers.clone())[0].starts_with("no_rope_layers = "), "{layers}");
        }
        // The default base is 2e6 for SmolLM3; Ministral 3 has none.
        let rope = |theta: Value| {
            let mut config = ModelConfig::qwen2(512, 64, 128, 2, 4, 2);
            (config.model_type, config.rope_theta) = ("smollm3".to_string(), theta.as_f64());
            Rope::kinds(&config).unwrap()
        };
        assert!(rope(Value::Null) == rope(json!(2e6)) && rope(Value::Null) != rope(json!(1e4)));
        let ministral =
            json!({"model_type": "ministral3", "architectures": ["Ministral3ForCausalLM"], "rope_theta": null});
        assert_eq!(mistakes(ministral), ["rope_parameters.rope_theta = missing must be a positive number"]);
        let granite = json!({"model_type": "granite", "architectures": ["GraniteForCausalLM"], "logits_scaling": 0});
        assert_eq!(mistakes(granite), ["logits_scaling = 0 must be a positive number"]);
    }

    #[test]
    fn null_is_as_good_as_no_key() {
        let mut value = serde_json::to_value(ModelConfig::qwen2(512, 64, 128, 2, 4, 4)).unwrap();
        let whole: ModelConfig = serde_json::from_value(value.clone()).unwrap();
        for key in
            ["num_key_value_heads", "use_sliding_window", "rope_scaling", "head_dim", "eos_token_id", "attention_bias"]
        {
            value[key] = Value::Null;
        }
        let mut read: ModelConfig = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(read.num_key_value_heads, 0);
        read.num_key_value_heads = 4;
        assert_eq!(read, whole);
        value["architectures"] = Value::Null;
        assert!(serde_json::from_value::<ModelConfig>(value).unwrap().architectures.is_empty());
    }

    /// As transformers reads these keys.
    #[test]
    fn the_window_of_a_layer_follows_from_the_keys_of_its_family() {
        let windows = |edit: Value| {
            let mut value = serde_json::to_value(ModelConfig::qwen2(512, 64, 128, 2, 4, 2)).unwrap();
            value["max_position_embeddings"] = json!(32_768);
            value.as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
            let config: ModelConfig = serde_json::from_value(value).unwrap();
            [config.window(0), config.window(1)]
        };
        // The published Qwen2.5 files set a window but disable it.
        let qwen = |asked: bool, first: u64| {
            windows(json!({"use_sliding_window": asked, "sliding_window": 512, "max_window_layers": first}))
        };
        assert_eq!([qwen(false, 1), qwen(true, 2), qwen(true, 1)], [[None; 2], [None; 2], [None, Some(512)]]);
        let typed = json!({"use_sliding_window": true, "sliding_window": 8, "max_window_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"]});
        assert_eq!(windows(typed), [Some(8), None]);
        assert_eq!(windows(json!({"model_type": "mistral"})), [Some(4096); 2]);
        assert_eq!(windows(json!({"model_type": "mistral", "max_position_embeddings": 4096})), [None; 2]);
        assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": null})), [None; 2]);
        assert_eq!(windows(json!({"model_type": "ministral3"})), [None; 2]);
        let smol =
            json!({"model_type": "smollm3", "use_sliding_window": true, "sliding_window": 8, "no_rope_layers": [1, 0]});
        assert_eq!(windows(smol), [None, Some(8)]);
        let found = mistakes(json!({"layer_types": ["full_attention", "sliding_attention"]}));
        assert!(found[0].contains("use_sliding_window = false and sliding_window = null"), "{found:?}");
        let found = mistakes(json!({"layer_types": ["full_attention", "chunked_attention"]}));
        assert!(found[0].starts_with("layer_types = ["), "{found:?}");
    }

    #[test]
    fn a_classifier_of_the_family_is_not_a_language_model() {
        let found = mistakes(json!({"architectures": ["Qwen2ForSequenceClassification"]}));
        assert!(found[0].contains("Qwen2ForSequenceClassification"), "{found:?}");
    }

    #[test]
    fn sizes_that_would_overflow_are_refused_before_anything_is_computed() {
        let found = mistakes(json!({"vocab_size": u64::MAX, "num_attention_heads": 0}));
        assert!(found.len() == 2 && found[0].contains("vocab_size"), "{found:?}");
    }

    #[test]
    fn keys_we_do_not_use_are_written_again() {
        let text = r#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8, "attention_dropout": 0.0,
            "bos_token_id": 1, "transformers_version": "4.44.0"}"#;
        let config: ModelConfig = serde_json::from_str(text).unwrap();
        let written = serde_json::to_value(&config).unwrap();
        for (key, value) in serde_json::from_str::<Map<String, Value>>(text).unwrap() {
            assert_eq!(written[&key], value, "{key}");
        }
    }
}
