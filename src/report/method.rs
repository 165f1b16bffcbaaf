//! Summary of a run's method, read from its settings: one table row per stage.

use serde::Serialize;
use toml::{Table, Value};

use super::run::{StageEnd, StageSpan};

/// Row of the stage table.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct StageRow {
    name: String,
    /// Step range such as `1–60`; several ranges if the run returned to the stage.
    steps: String,
    exit: String,
    rewards: String,
    advantage: String,
    loss: String,
}

/// Return a row for each stage that has begun, in order. `ends` are the stage entries of the summary.
pub(super) fn stages(config: &Table, stages: &[StageSpan], ends: &[StageEnd]) -> Vec<StageRow> {
    let settings = config.get("stages").and_then(Value::as_array);
    let mut rows: Vec<StageRow> = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let steps = format!("{}\u{2013}{}", stage.first, stage.last);
        let end = ends.get(index).filter(|end| end.name == stage.name);
        let exit = end.and_then(|end| end.exit.clone()).unwrap_or_default();
        if let Some(row) = rows.iter_mut().find(|row| row.name == stage.name) {
            row.steps += &format!(", {steps}");
            row.exit += &format!(", {exit}");
            continue;
        }
        let named = |table: &&Table| table.get("name").and_then(Value::as_str) == Some(&stage.name);
        let settings = settings.into_iter().flatten().filter_map(Value::as_table).find(named);
        let of = |key: &str| settings.and_then(|table| table.get(key)).map(tagged).unwrap_or_default();
        let (advantage, loss) = (of("advantage"), of("loss"));
        rows.push(StageRow {
            name: stage.name.clone(),
            steps,
            exit,
            rewards: settings.map(rewards).unwrap_or_default(),
            advantage,
            loss,
        });
    }
    rows
}

/// Format the rewards of a stage with their weights: `accuracy + 0.2 × length (r 0.3)`.
fn rewards(stage: &Table) -> String {
    let list = |key: &str| stage.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let weights = list("reward_weights");
    let term = |(k, reward): (usize, &Value)| match weights.get(k).map(plain).filter(|weight| weight != "1") {
        Some(weight) => format!("{weight} \u{d7} {}", tagged(reward)),
        None => tagged(reward),
    };
    list("rewards").iter().enumerate().map(term).collect::<Vec<_>>().join(" + ")
}

/// Format a tagged table as `type (key value, …)`.
fn tagged(value: &Value) -> String {
    let Value::Table(table) = value else { return plain(value) };
    let kind = table.get("type").map(plain);
    let others = table.iter().filter(|(key, _)| *key != "type");
    let others: Vec<String> = others.map(|(key, value)| format!("{key} {}", tagged(value))).collect();
    let others = (!others.is_empty()).then(|| format!("({})", others.join(", ")));
    kind.into_iter().chain(others).collect::<Vec<_>>().join(" ")
}

/// Format a value without quotes. f32 settings have the digits of an f64, so numbers get at most six decimals.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Float(number) => ((number * 1e6).round() / 1e6).to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_told_by_its_settings() {
        let config: Table = toml::from_str(
            r#"[[stages]]
            name = "b"
            rewards = [{ type = "accuracy" }, { type = "length", r = 0.30000001192092896 }]
            reward_weights = [1.0, 0.20000000298023224]
            advantage = { type = "absolute", beta = 1.0 }
            loss = { type = "dapo", epsilon = 0.2, kl = { beta = 0.1 } }"#,
        )
        .unwrap();
        let visit = |name: &str, first, last| StageSpan { name: name.into(), first, last };
        let end = |exit: &str| StageEnd { name: "b".into(), exit: Some(exit.into()) };
        let found = stages(&config, &[visit("b", 1, 2), visit("b", 5, 6)], &[end("steps"), end("plateau")]);
        let [row] = &found[..] else { panic!("{found:?}") };
        assert_eq!((row.steps.as_str(), row.exit.as_str()), ("1\u{2013}2, 5\u{2013}6", "steps, plateau"));
        assert_eq!(row.rewards, "accuracy + 0.2 \u{d7} length (r 0.3)");
        assert_eq!(row.advantage, "absolute (beta 1)");
        assert_eq!(row.loss, "dapo (epsilon 0.2, kl (beta 0.1))");
        assert_eq!(stages(&Table::new(), &[visit("x", 1, 2)], &[])[0].loss, "");
    }
}
