//! Settings that are given and have no effect. They are refused; a resumed run may drop them.

use serde::Serialize;
use toml::{Table, Value};

use crate::config::to_toml;

/// A setting without effect whose value is not the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idle {
    /// Dotted key.
    pub key: String,
    /// Error message: key, value, reason and what to do.
    pub mistake: String,
}

/// Return the `keys` of a section whose values differ from the defaults. `reason` follows key and value in the message.
pub(super) fn idle<T: Serialize + Default>(section: &str, settings: &T, keys: &[&str], reason: &str) -> Vec<Idle> {
    let table = |settings: &T| -> Table { to_toml(settings).parse().expect("it was just written as TOML") };
    let (given, defaults) = (table(settings), table(&T::default()));
    let differs = |key: &&&str| given.get(**key) != defaults.get(**key);
    let refuse = |key: &&str| {
        let value = given.get(*key).map_or("none".to_string(), Value::to_string);
        let advice = defaults.get(*key).map_or("remove it".to_string(), |default| format!("leave it at {default}"));
        let key = format!("{section}.{key}");
        Idle { mistake: format!("{key} = {value} {reason}: {advice}"), key }
    };
    keys.iter().filter(differs).map(refuse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::EvalConfig;

    #[test]
    fn only_values_that_are_not_the_default_are_idle() {
        let eval = EvalConfig { top_p: 0.95, seed: 7, ..EvalConfig::default() };
        let found = idle("eval", &eval, &["top_k", "top_p", "seed"], "has no effect here");
        let mistakes: Vec<&str> = found.iter().map(|idle| idle.mistake.as_str()).collect();
        let want = [
            "eval.top_p = 0.95 has no effect here: leave it at 1.0",
            "eval.seed = 7 has no effect here: leave it at 1000003",
        ];
        assert_eq!(mistakes, want);
        assert_eq!(found[0].key, "eval.top_p");
    }
}
