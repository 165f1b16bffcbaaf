//! Statistics of traces of guarded arithmetic and dead ends: how often a product was checked, and the model's entropy
//! where it decides about a check or chooses a door.

use serde::{Deserialize, Serialize};

/// Counts and sums over traces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceCounts {
    /// Number of products written in one go.
    pub products: usize,
    /// Number of these products that were checked.
    pub checked: usize,
    /// Number of positions where the model decides whether to check: after each product.
    pub decisions: usize,
    /// Sum of the entropies at these positions, in nats.
    pub decision_entropy: f64,
    /// Number of doors tried.
    pub doors: usize,
    /// Sum of the entropies at the choices of a door, in nats.
    pub door_entropy: f64,
}

impl TraceCounts {
    /// Add the counts and sums of `other`.
    pub fn add(&mut self, other: &Self) {
        self.products += other.products;
        self.checked += other.checked;
        self.decisions += other.decisions;
        self.decision_entropy += other.decision_entropy;
        self.doors += other.doors;
        self.door_entropy += other.door_entropy;
    }
}

/// Return the text of the next tokens, enough to recognise a check.
fn next(tokens: &[String]) -> String {
    tokens[..tokens.len().min(16)].concat()
}

/// Compute the statistics of a completion from its tokens and the entropy of each.
pub fn read(tokens: &[String], entropy: &[f32]) -> TraceCounts {
    let mut found = TraceCounts::default();
    let mut sentence = String::new();
    for (at, token) in tokens.iter().enumerate() {
        let is_digit = |token: &str| token.len() == 1 && token.as_bytes()[0].is_ascii_digit();
        let letter = |next: &String| next.starts_with(' ') && next.trim_start().len() == 1;
        if sentence.trim().is_empty() && is_digit(token) && tokens.get(at + 1).is_some_and(letter) {
            found.doors += 1;
            found.door_entropy += f64::from(entropy.get(at).copied().unwrap_or(0.0));
        }
        if token == "<think>" {
            continue;
        }
        sentence += token;
        if token != "." {
            continue;
        }
        let written = sentence.trim();
        if written.contains('*') && written.chars().all(|c| c.is_ascii_digit() || "*=.".contains(c)) {
            found.products += 1;
            found.checked += usize::from(next(&tokens[at + 1..]).trim_start().starts_with("Wait, check"));
            if let Some(entropy) = entropy.get(at + 1) {
                found.decisions += 1;
                found.decision_entropy += f64::from(*entropy);
            }
        }
        sentence.clear();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_checks_and_doors_are_counted_where_they_are_done() {
        // A letter includes the space before it, as in the tokenizer's vocabulary.
        let tokens = |text: &str| -> Vec<String> {
            let mut parts: Vec<String> = vec!["<think>".into()];
            for c in text.chars() {
                match parts.last_mut() {
                    Some(last) if last == " " && c.is_ascii_alphabetic() => last.push(c),
                    _ => parts.push(c.into()),
                }
            }
            parts
        };
        let text = "Let me start. 34*6=204. Wait, check: 3*6=9,6. No: 4*6=24,204. 40*7=280. So that makes 280. Let me \
                    go over it again: 34*6=204.";
        let found = read(&tokens(text), &vec![0.5; text.len()]);
        assert_eq!((found.products, found.checked, found.decisions, found.decision_entropy), (2, 1, 2, 1.0));
        let text = "The edges are 1 k;2 p. 1 k m t. Hmm, dead end. 2 p G.";
        let found = read(&tokens(text), &vec![0.5; text.len()]);
        assert_eq!((found.doors, found.door_entropy, found.products), (2, 1.0, 0));
    }
}
