//! Completions of the same problem before and after training, with tokens shaded by entropy.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::eval::{bootstrap, sign_test};
use crate::metrics::mean;

/// A line of `completions/eval_*.jsonl`.
#[derive(Deserialize, Clone)]
pub(super) struct SavedCompletion {
    problem: Value,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    answer: Value,
    #[serde(default)]
    data_source: String,
    correct: bool,
    #[serde(default)]
    finished: bool,
    length: u64,
    tokens: Vec<String>,
    #[serde(default)]
    entropy: Vec<Option<f64>>,
}

/// A problem with its completions before and after training, formatted for the template.
#[derive(Serialize)]
pub(super) struct ComparedProblem {
    family: String,
    prompt: String,
    answer: String,
    sides: [ComparedSide; 2],
}

#[derive(Serialize)]
struct ComparedSide {
    when: &'static str,
    verdict: &'static str,
    length: u64,
    tokens: Vec<ComparedToken>,
    hidden: usize,
}

#[derive(Serialize)]
struct ComparedToken {
    text: String,
    shade: usize,
    nats: Option<String>,
}

const MAX_EXAMPLES: usize = 6;
const MAX_TOKENS: usize = 1500;
/// Lower bound of each shade after the first, in nats. With a vocabulary of 150,000 tokens, entropy is at most 12 nats.
const SHADES: [f64; 6] = [0.05, 0.2, 0.5, 1.0, 2.0, 4.0];

/// Return the legend labels of the shades, lightest first.
pub(super) fn shades() -> Vec<String> {
    let mut labels = vec![format!("under {}", SHADES[0])];
    labels.extend(SHADES.windows(2).map(|w| format!("{}\u{2013}{}", w[0], w[1])));
    labels.push(format!("{} and over", SHADES[SHADES.len() - 1]));
    labels
}

/// Return the shade of a token that was sampled from a distribution with entropy `nats`.
pub(super) fn shade(nats: f64) -> usize {
    SHADES.iter().filter(|from| nats >= **from).count()
}

/// Return the text of a token with line breaks made visible.
pub(super) fn shown_text(text: &str) -> String {
    text.replace('\n', "\u{21b5}\n")
}

/// Return a string, a number or null (empty) as text.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| if value.is_null() { String::new() } else { value.to_string() }, Into::into)
}

/// Change of accuracy between two evaluations, paired by problem.
pub(super) struct Change {
    pub(super) problems: usize,
    /// 95% bootstrap interval over problems; `None` for one problem, or if all changed alike.
    pub(super) interval: Option<[f64; 2]>,
    /// p-value of the exact sign test; `None` if a problem has several completions.
    pub(super) p: Option<f64>,
}

/// Return what problems are paired by.
fn key(row: &SavedCompletion) -> [String; 2] {
    [row.data_source.clone(), plain(&row.problem)]
}

/// Whether two completions under one key are of the same problem. An empty prompt or answer is unknown.
fn same(before: &SavedCompletion, after: &SavedCompletion) -> bool {
    let agree = |a: &str, b: &str| a.is_empty() || b.is_empty() || a == b;
    agree(&before.prompt, &after.prompt) && agree(&plain(&before.answer), &plain(&after.answer))
}

/// Return the change of accuracy, or `None` if the evaluations have no problem in common.
pub(super) fn change(before: &[SavedCompletion], after: &[SavedCompletion]) -> Option<Change> {
    let mut sides = BTreeMap::<[String; 2], [Vec<&SavedCompletion>; 2]>::new();
    for (side, rows) in [before, after].into_iter().enumerate() {
        for row in rows {
            sides.entry(key(row)).or_default()[side].push(row);
        }
    }
    let both = || sides.values().filter(|[b, a]| b.first().zip(a.first()).is_some_and(|(b, a)| same(b, a)));
    let share =
        |rows: &[&SavedCompletion]| mean(&rows.iter().map(|r| f64::from(u8::from(r.correct))).collect::<Vec<_>>());
    let changes: Vec<f64> = both().map(|[b, a]| share(a) - share(b)).collect();
    let single = both().all(|[b, a]| b.len() == 1 && a.len() == 1);
    let gained = changes.iter().filter(|change| **change > 0.0).count();
    let lost = changes.iter().filter(|change| **change < 0.0).count();
    let of = |drawn: &[usize]| drawn.iter().map(|&i| changes[i]).sum::<f64>() / drawn.len() as f64;
    let interval = bootstrap::interval(changes.len(), of).filter(|[low, high]| low < high);
    let p = single.then(|| sign_test(gained, lost));
    (!changes.is_empty()).then_some(Change { problems: changes.len(), interval, p })
}

/// Select up to six problems: for each data source the one shortened most, preferably with both answers correct.
/// If an answer after training is wrong, at least one such problem is included.
pub(super) fn choose(before: Vec<SavedCompletion>, after: Vec<SavedCompletion>) -> Vec<ComparedProblem> {
    let mut finals = HashMap::new();
    for row in after {
        finals.entry(key(&row)).or_insert(row);
    }
    // `remove`, so that a problem with several completions is shown once.
    let mut pairs: Vec<_> = before.into_iter().filter_map(|b| finals.remove(&key(&b)).map(|a| (b, a))).collect();
    pairs.retain(|(b, a)| same(b, a));
    // The sort is stable: ties keep the order of the file.
    pairs.sort_by_key(|(b, a)| (Reverse(b.correct && a.correct), Reverse(b.length as i128 - a.length as i128)));

    // Round-robin over the data sources, best first.
    let mut turns = BTreeMap::<String, usize>::new();
    let mut order: Vec<(usize, String, usize)> = Vec::new();
    for (i, (b, _)) in pairs.iter().enumerate() {
        let turn = turns.entry(b.data_source.clone()).or_default();
        order.push((*turn, b.data_source.clone(), i));
        *turn += 1;
    }
    order.sort();
    let mut chosen: Vec<usize> = order.into_iter().take(MAX_EXAMPLES).map(|(_, _, i)| i).collect();
    if !chosen.iter().any(|&i| !pairs[i].1.correct) {
        // Prefer a problem that was solved before training.
        let wrong = (0..pairs.len()).filter(|&i| !pairs[i].1.correct).max_by_key(|&i| (pairs[i].0.correct, Reverse(i)));
        if let Some(wrong) = wrong {
            chosen.truncate(MAX_EXAMPLES - 1);
            chosen.push(wrong);
        }
    }
    chosen.into_iter().map(|i| example(&pairs[i].0, &pairs[i].1)).collect()
}

fn example(before: &SavedCompletion, after: &SavedCompletion) -> ComparedProblem {
    ComparedProblem {
        family: before.data_source.clone(),
        prompt: before.prompt.clone(),
        answer: plain(&before.answer),
        sides: [side("Before", before), side("After", after)],
    }
}

fn side(when: &'static str, row: &SavedCompletion) -> ComparedSide {
    let tokens = row.tokens.iter().take(MAX_TOKENS).enumerate().map(|(i, text)| {
        let nats = row.entropy.get(i).copied().flatten();
        ComparedToken { text: shown_text(text), shade: nats.map_or(0, shade), nats: nats.map(|n| format!("{n:.2}")) }
    });
    let verdict = match (row.correct, row.finished) {
        (true, true) => "correct",
        (true, false) => "correct, truncated at the token limit",
        (false, true) => "wrong",
        (false, false) => "wrong, truncated at the token limit",
    };
    let hidden = row.tokens.len().saturating_sub(MAX_TOKENS);
    ComparedSide { when, verdict, length: row.length, tokens: tokens.collect(), hidden }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(problem: u64, family: &str, correct: bool, length: u64) -> SavedCompletion {
        let text = format!(
            r#"{{"problem": {problem}, "prompt": "{problem}", "data_source": "{family}", "correct": {correct},
                "finished": true, "length": {length}, "tokens": ["a", "\n"], "entropy": [0.6, null]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn prompts(examples: &[ComparedProblem]) -> Vec<&str> {
        examples.iter().map(|e| e.prompt.as_str()).collect()
    }

    #[test]
    fn each_source_is_shown_by_its_largest_shortening() {
        let before = vec![row(1, "a", true, 50), row(2, "a", true, 90), row(3, "b", true, 10), row(4, "b", false, 99)];
        let after = vec![row(4, "b", true, 9), row(3, "b", true, 9), row(2, "a", true, 9), row(1, "a", true, 9)];
        assert_eq!(prompts(&choose(before, after)), ["2", "3", "1", "4"]);
    }

    /// Ten of 40 problems are gained: 0.25 with a standard error of 0.068. Without pairing it would be 0.11.
    #[test]
    fn problems_are_paired_in_the_interval() {
        let before: Vec<_> = (0..40).map(|i| row(i, "a", i < 20, 9)).collect();
        let after: Vec<_> = (0..40).rev().map(|i| row(i, "a", i < 30, 9)).collect();
        let found = change(&before, &after).unwrap();
        let [low, high] = found.interval.unwrap();
        assert!(found.problems == 40 && (low - 0.116).abs() < 0.04 && (high - 0.384).abs() < 0.04, "{low} {high}");
        assert!((found.p.unwrap() - 2.0 * 0.5f64.powi(10)).abs() < 1e-9);
        let several: Vec<_> = after.iter().chain(&after).cloned().collect();
        assert_eq!(change(&before, &several).unwrap().p, None);
        assert!(change(&before, &before).unwrap().interval.is_none());
        assert!(change(&before, &[row(99, "a", true, 9)]).is_none());
    }

    /// Regression: problems were paired by their id alone.
    #[test]
    fn other_prompts_answers_or_sources_are_other_problems() {
        let one = row(1, "a", false, 9);
        let (mut prompt, mut answer) = (row(1, "a", true, 9), row(1, "a", true, 9));
        (prompt.prompt, answer.answer) = ("other".into(), "6".into());
        assert!(change(std::slice::from_ref(&one), std::slice::from_ref(&answer)).is_some(), "an answer is unknown");
        let mut five = one.clone();
        five.answer = "5".into();
        for (before, after) in [(&one, prompt), (&five, answer), (&one, row(1, "b", true, 9))] {
            assert!(change(std::slice::from_ref(before), std::slice::from_ref(&after)).is_none());
            assert!(choose(vec![before.clone()], vec![after]).is_empty());
        }
    }

    #[test]
    fn a_loss_is_not_hidden() {
        let before: Vec<_> = (0..20).map(|i| row(i, "a", true, 100 - i)).collect();
        let after: Vec<_> = (0..20).map(|i| row(i, "a", i != 13, 10)).collect();
        let examples = choose(before, after);
        assert_eq!(prompts(&examples), ["0", "1", "2", "3", "4", "13"]);
        assert_eq!(examples[5].sides[1].verdict, "wrong");
    }

    #[test]
    fn problems_match_as_text_or_number_and_tokens_are_shaded() {
        let mut before = row(7, "a", true, 5);
        before.problem = Value::String("7".into());
        let examples = choose(vec![before], vec![row(7, "a", true, 2)]);
        let tokens = &examples[0].sides[0].tokens;
        assert_eq!([0.0, 0.05, 3.9, 4.0].map(shade), [0, 1, 5, 6]);
        assert_eq!((tokens[0].shade, tokens[0].nats.as_deref()), (3, Some("0.60")));
        assert_eq!((tokens[1].shade, tokens[1].text.as_str()), (0, "\u{21b5}\n"));
    }
}
