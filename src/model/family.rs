//! What sets the families of models apart: one row of facts each, and what a configuration says beside them.

use serde_json::Value;

use super::ModelConfig;

/// The facts of a family.
#[derive(Debug, PartialEq)]
pub(super) struct Family {
    /// `model_type` of its `config.json`.
    pub(super) name: &'static str,
    /// Its class in transformers.
    pub(super) class: &'static str,
    /// Width of a head where the file names none; otherwise `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    /// Biases of the projections of attention.
    bias: Bias,
    /// Whether `mlp_bias` counts.
    mlp_bias: bool,
    /// Whether queries and keys are normalised per head.
    pub(super) qk_norm: bool,
    /// Base of the rotary frequencies where the file names none; none where it must.
    theta: Option<f64>,
    /// Every so many layers one does not rotate, where `no_rope_layers` does not say which; 0 for none.
    unrotated: usize,
    /// Whether queries grow with their position, by `llama_4_scaling_beta`.
    scales_by_position: bool,
    /// Whether the embedding, the attention, the sums and the logits have multipliers.
    multipliers: bool,
    /// Which layers attend within a window.
    windows: Windows,
}

/// Which layers attend to the last tokens only, `sliding_window` of them; the number is that where the file is silent.
#[derive(Debug, PartialEq, Eq)]
enum Windows {
    None,
    /// All, where there is a number at all.
    All(Option<u64>),
    /// Where `use_sliding_window` says so: those of `layer_types`, else from `max_window_layers` on or, in a family that has some,
    /// the layers that do not rotate.
    Asked(Option<u64>),
}

/// What `layer_types` calls a layer with a window, and one without.
const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// Which projections of attention have a bias.
#[derive(Debug, PartialEq, Eq)]
enum Bias {
    None,
    /// Queries, keys and values.
    Inputs,
    /// All four, where `attention_bias` says so.
    Asked,
}

const LLAMA: Family = Family {
    name: "llama",
    class: "LlamaForCausalLM",
    head_dim: None,
    bias: Bias::Asked,
    mlp_bias: true,
    qk_norm: false,
    theta: Some(10_000.0),
    unrotated: 0,
    scales_by_position: false,
    multipliers: false,
    windows: Windows::None,
};

/// All families. Mistral's window is that of its first version; later ones write null.
pub(super) const FAMILIES: [Family; 7] = [
    Family {
        name: "qwen2",
        class: "Qwen2ForCausalLM",
        bias: Bias::Inputs,
        mlp_bias: false,
        windows: Windows::Asked(Some(4096)),
        ..LLAMA
    },
    Family {
        name: "qwen3",
        class: "Qwen3ForCausalLM",
        head_dim: Some(128),
        qk_norm: true,
        mlp_bias: false,
        windows: Windows::Asked(Some(4096)),
        ..LLAMA
    },
    LLAMA,
    Family {
        name: "mistral",
        class: "MistralForCausalLM",
        bias: Bias::None,
        mlp_bias: false,
        windows: Windows::All(Some(4096)),
        ..LLAMA
    },
    Family {
        name: "ministral3",
        class: "Ministral3ForCausalLM",
        head_dim: Some(128),
        bias: Bias::None,
        mlp_bias: false,
        theta: None,
        scales_by_position: true,
        windows: Windows::All(None),
        ..LLAMA
    },
    Family {
        name: "smollm3",
        class: "SmolLM3ForCausalLM",
        theta: Some(2e6),
        unrotated: 4,
        windows: Windows::Asked(None),
        ..LLAMA
    },
    Family { name: "granite", class: "GraniteForCausalLM", multipliers: true, ..LLAMA },
];

/// Factors of Granite; 1 elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Multipliers {
    /// Of the embedding's rows.
    pub(super) embedding: f64,
    /// Of what attention and the feed-forward part add to the stream.
    pub(super) residual: f64,
    /// Of the products of queries and keys, in the place of `1 / √head_dim`.
    pub(super) attention: Option<f64>,
    /// What the logits are divided by.
    pub(super) logits: f64,
}

impl ModelConfig {
    pub(super) fn family(&self) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.name == self.model_type)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        let own = self.family().and_then(|family| family.head_dim);
        self.head_dim.or(own).unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Whether queries, keys and values have a bias, and whether the output projection of attention has one.
    pub(crate) fn attention_biases(&self) -> (bool, bool) {
        let asked = self.attention_bias.unwrap_or(false);
        match self.family().map(|family| &family.bias) {
            Some(Bias::Inputs) => (true, false),
            Some(Bias::Asked) => (asked, asked),
            Some(Bias::None) | None => (false, false),
        }
    }

    /// Whether the feed-forward projections have a bias.
    pub(crate) fn has_mlp_bias(&self) -> bool {
        self.mlp_bias.unwrap_or(false) && self.family().is_some_and(|family| family.mlp_bias)
    }

    /// Whether queries and keys are normalised per head.
    pub(crate) fn has_qk_norm(&self) -> bool {
        self.family().is_some_and(|family| family.qk_norm)
    }

    /// Base of the rotary frequencies where the table of rotary settings names none.
    pub(super) fn rope_base(&self) -> Option<f64> {
        self.rope_theta.or(self.family().map_or(LLAMA.theta, |family| family.theta))
    }

    /// Whether a layer rotates its queries and keys by their positions.
    pub(super) fn rotates(&self, layer: usize) -> bool {
        let Some(family) = self.family().filter(|family| family.unrotated > 0) else { return true };
        if let Some(layers) = self.rest.get("no_rope_layers").and_then(Value::as_array) {
            return layers.get(layer).is_some_and(|rotates| rotates.as_u64() != Some(0));
        }
        let interval = self.rest.get("no_rope_layer_interval").and_then(Value::as_u64);
        !(layer as u64 + 1).is_multiple_of(interval.unwrap_or(family.unrotated as u64))
    }

    /// Whether queries grow with their position.
    pub(super) fn scales_by_position(&self) -> bool {
        self.family().is_some_and(|family| family.scales_by_position)
    }

    /// The factors of this model.
    pub(super) fn multipliers(&self) -> Multipliers {
        let given = self.family().is_some_and(|family| family.multipliers);
        let number = |key: &str| self.rest.get(key).and_then(Value::as_f64).filter(|_| given);
        Multipliers {
            embedding: number("embedding_multiplier").unwrap_or(1.0),
            residual: number("residual_multiplier").unwrap_or(1.0),
            attention: given.then(|| number("attention_multiplier").unwrap_or(1.0)),
            logits: number("logits_scaling").unwrap_or(1.0),
        }
    }

    /// What is wrong with the keys of a family, one line each.
    pub(super) fn family_mistakes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let given = |key: &str| self.rest.get(key).filter(|value| !value.is_null());
        let positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0 && number.is_finite());
        if self.family().is_some_and(|family| family.multipliers) {
            for key in ["embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"] {
                if let Some(value) = given(key).filter(|value| !positive(value)) {
                    problems.push(format!("{key} = {value} must be a positive number"));
                }
            }
        }
        if self.family().is_some_and(|family| family.unrotated > 0) {
            if let Some(value) = given("no_rope_layers") {
                let marks =
                    value.as_array().filter(|list| list.iter().all(|mark| matches!(mark.as_u64(), Some(0 | 1))));
                if marks.is_none_or(|marks| marks.len() < self.num_hidden_layers) {
                    problems.push(format!("no_rope_layers = {value} must have a 0 or a 1 for each layer"));
                }
            }
            if let Some(value) = given("no_rope_layer_interval").filter(|value| !positive(value)) {
                problems.push(format!("no_rope_layer_interval = {value} must be a positive number"));
            }
        }
        problems.extend(self.window_mistakes());
        problems
    }

    /// How many tokens a layer attends to, the own one the last of them; none where it attends to all that the model may be given.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        let window = self.width().filter(|_| self.slides(layer))? as usize;
        (window < self.max_position_embeddings).then_some(window)
    }

    /// Whether a layer is one of those with a window.
    pub(super) fn slides(&self, layer: usize) -> bool {
        match self.family().map(|family| &family.windows) {
            None | Some(Windows::None) => false,
            Some(Windows::All(_)) => true,
            Some(Windows::Asked(_)) => {
                self.use_sliding_window
                    && self.is_sliding(layer).unwrap_or_else(|| match self.family() {
                        Some(family) if family.unrotated > 0 => !self.rotates(layer),
                        _ => {
                            let full = self.rest.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28);
                            layer as u64 >= full
                        }
                    })
            }
        }
    }

    /// Whether `layer_types`, where there is such a list, calls a layer sliding.
    fn is_sliding(&self, layer: usize) -> Option<bool> {
        let types = self.rest.get("layer_types")?.as_array()?;
        types.get(layer).map(|kind| kind == SLIDING)
    }

    /// `sliding_window`, or what stands for it in the family.
    fn width(&self) -> Option<u64> {
        let default = match self.family()?.windows {
            Windows::None => return None,
            Windows::All(default) | Windows::Asked(default) => default,
        };
        match self.rest.get("sliding_window") {
            None => default,
            Some(given) => given.as_u64(),
        }
    }

    fn window_mistakes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(family) = self.family() else { return problems };
        let given = |key: &str| self.rest.get(key).filter(|value| !value.is_null());
        if let Some(types) = given("layer_types") {
            let list = types.as_array().filter(|list| list.iter().all(|kind| *kind == SLIDING || *kind == FULL));
            let slides = list.is_some_and(|list| list.iter().any(|kind| *kind == SLIDING));
            if list.is_none_or(|list| list.len() < self.num_hidden_layers) {
                problems.push(format!("layer_types = {types} must have \"{FULL}\" or \"{SLIDING}\" for each layer"));
            } else if slides && matches!(family.windows, Windows::None | Windows::All(_)) {
                problems.push(format!("layer_types has \"{SLIDING}\", which {} does not have by layer", family.name));
            } else if slides && (self.width().is_none() || !(0..self.num_hidden_layers).any(|layer| self.slides(layer)))
            {
                let (asked, window) =
                    (self.use_sliding_window, self.rest.get("sliding_window").unwrap_or(&Value::Null));
                problems.push(format!(
                    "layer_types has \"{SLIDING}\", but use_sliding_window = {asked} and sliding_window = {window}: name a window"
                ));
            }
        }
        if let Some(window) = given("sliding_window")
            && family.windows != Windows::None
            && window.as_u64().is_none_or(|window| window == 0)
        {
            problems.push(format!("sliding_window = {window} must be a positive whole number, or null for none"));
        }
        problems
    }
}
