//! Sliding windows: the layers that have one and its width, from the keys of the family.

use serde_json::Value;

use super::ModelConfig;
use super::family::Windows;

/// Names in `layer_types` of a layer with a window, and of one without.
const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

impl ModelConfig {
    /// Return the number of tokens a layer attends to, the current one included; `None` for the whole context.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        let window = self.width().filter(|_| self.slides(layer))? as usize;
        (window < self.max_position_embeddings).then_some(window)
    }

    /// Return whether a layer has a window.
    pub(super) fn slides(&self, layer: usize) -> bool {
        match self.family().map(|family| &family.windows) {
            None | Some(Windows::None) => false,
            Some(Windows::All(_)) => true,
            Some(Windows::IfEnabled(_)) => {
                self.use_sliding_window
                    && self.is_sliding(layer).unwrap_or_else(|| match self.family() {
                        Some(family) if family.unrotated > 0 => !self.rotates(layer),
                        _ => {
                            let full = self.rest.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28);
                            layer as u64 >= full
                        }
                    })
            }
            Some(Windows::AllBut(every, _)) => self.is_sliding(layer).unwrap_or_else(|| {
                let pattern =
                    self.rest.get("sliding_window_pattern").and_then(Value::as_u64).filter(|&every| every > 0);
                !(layer as u64 + 1).is_multiple_of(pattern.unwrap_or(*every))
            }),
        }
    }

    /// Return whether `layer_types` marks a layer as sliding; `None` if it has no entry for it.
    fn is_sliding(&self, layer: usize) -> Option<bool> {
        let types = self.rest.get("layer_types")?.as_array()?;
        types.get(layer).map(|kind| kind == SLIDING)
    }

    /// Return `sliding_window`, or the default of the family.
    fn width(&self) -> Option<u64> {
        let default = match self.family()?.windows {
            Windows::None => return None,
            Windows::All(default) | Windows::IfEnabled(default) | Windows::AllBut(_, default) => default,
        };
        match self.rest.get("sliding_window") {
            None => default,
            Some(given) => given.as_u64(),
        }
    }

    /// Return one message per invalid key of windows.
    pub(super) fn window_mistakes(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Some(family) = self.family() else { return problems };
        let given = |key: &str| self.rest.get(key).filter(|value| !value.is_null());
        let by_layer = matches!(family.windows, Windows::IfEnabled(_) | Windows::AllBut(..));
        let mut listed = false;
        if let Some(types) = given("layer_types").filter(|_| !family.delta) {
            let list = types.as_array().filter(|list| list.iter().all(|kind| *kind == SLIDING || *kind == FULL));
            listed = list.is_some_and(|list| list.iter().any(|kind| *kind == SLIDING));
            if list.is_none_or(|list| list.len() < self.num_hidden_layers) {
                problems.push(format!("layer_types = {types} must have \"{FULL}\" or \"{SLIDING}\" for each layer"));
            } else if listed && !by_layer {
                problems.push(format!(
                    "layer_types has \"{SLIDING}\", but {} does not support windows per layer",
                    family.name
                ));
            }
        }
        let (asked, window) = (self.use_sliding_window, self.rest.get("sliding_window").unwrap_or(&Value::Null));
        if matches!(family.windows, Windows::AllBut(..)) && self.width().is_none() && window.is_null() {
            problems.push(
                "sliding_window = null must be a window size in tokens: this model family has sliding-window layers"
                    .to_string(),
            );
        } else if listed
            && by_layer
            && matches!(family.windows, Windows::IfEnabled(_))
            && (!asked || self.width().is_none())
        {
            problems.push(format!(
                "layer_types has \"{SLIDING}\", but use_sliding_window = {asked} and sliding_window = {window}: set \
                    use_sliding_window = true and a window size in tokens"
            ));
        }
        for (key, least) in [("max_window_layers", 0), ("sliding_window_pattern", 1)] {
            if let Some(value) = given(key).filter(|value| value.as_u64().is_none_or(|number| number < least)) {
                problems.push(format!("{key} = {value} must be an integer of at least {least}"));
            }
        }
        if !window.is_null() && family.windows != Windows::None && window.as_u64().is_none_or(|window| window == 0) {
            problems.push(format!("sliding_window = {window} must be a positive integer, or null for none"));
        }
        problems
    }
}
