//! Measurement of the entropy conflict: the effect of an advantage's accuracy part and length part on the same tokens.
//!
//! arXiv 2511.14258 states that accuracy rewards push high-entropy tokens up, many of them connectors such as "wait"
//! and "therefore", and that length rewards push the same tokens down. This module checks that for a model and a step,
//! on the host, from the sampler's record of each token. [`measure`] is a pure function of a step's samples; the
//! formulae are in [`token`](logit_gradient).
//!
//! # Metrics
//!
//! All names begin with `conflict/`. `w` is a token's weight in the loss, `A = A_task + A_length` its advantage, `g`
//! the norm of its log-probability's gradient with respect to the logits ([`logit_gradient`] over the temperature), `δ`
//! the change of entropy along it ([`entropy_drift`] over the squared temperature). Undefined figures are left out:
//! those of a part without advantages, opposition unless both parts act, those of absent connectors.
//!
//! Figures of a set of tokens. `conflict/…` covers all tokens, `conflict/connectors/…` connectors, `conflict/others/…`
//! the rest. `conflict/deciles/…` is a list of ten, by entropy at the sampling temperature, lowest first.
//!
//! | name | meaning | unit |
//! |---|---|---|
//! | `entropy` | mean entropy at temperature 1 (sets and deciles; for all tokens it is the metric `entropy`) | nats |
//! | `log_prob` | mean log-probability at the sampling temperature | nats |
//! | `advantage_task`, `advantage_length` | mean `A` of a part | |
//! | `push_task`, `push_length` | net push `P = Σ w A g / Σ w` | logit gradient |
//! | `opposition` | `κ = 1 − \|P_task + P_length\| / (\|P_task\| + \|P_length\|)`: 0 none, 1 the net pushes cancel | |
//! | `cancellation` | the same per token: `1 − Σ w g \|A\| / Σ w g (\|A_task\| + \|A_length\|)` | |
//! | `opposed_share` | share of tokens with `A_task > 0` and `A_length < 0` | |
//! | `entropy_change_task`, `…_length`, `entropy_change` | predicted change of entropy `Σ w A δ / Σ w` | nats per token and unit step |
//! | `grad_share_task`, `…_length`, `grad_share` | the set's share of `Σ (w A g)²` | |
//! | `token_share`, `tokens` | the set's share of the tokens, and their number | |
//!
//! Figures of a step:
//!
//! | name | meaning |
//! |---|---|
//! | `entropy_p80` | entropy at the sampling temperature that 80% of the tokens do not exceed, nats |
//! | `covariance/mean`, `…/task`, `…/length` | `Cov(A, ln π)` over tokens, and of each part |
//! | `covariance/top_0.2_percent`, `…/top_1_percent` | mean of the largest `(A − Ā)(ln π − mean ln π)` |
//! | `negative_given_correct` | share of the right completions with `A < 0` |
//! | `connectors/per_1000` | connectors per thousand tokens |
//! | `connectors/decile` | mean decile of connectors, by its middle: 0.5 to 9.5 |
//! | `connectors/opens_step` | share of the connectors that begin a sentence or line |
//! | `connectors/tokens_to_step_end` | mean tokens after a connector to the end of its sentence or line |
//! | `steps/opened_share` | share of the sentences and lines that begin with a connector |
//! | `steps/restated_after_connector`, `…/restated_otherwise` | share of those with a number whose last number is also that of an earlier one |
//! | `types/jaccard`, `…/lexicon_share`, `…/base_share` | overlap of the lexicon and the token types of highest mean entropy so far ([`Ranking`]) |
//!
//! Every `train.conflict_cosine_steps` steps: `cosine`, of the gradients of the two parts with respect to all weights,
//! and `cosine/<prefix>` with respect to those that `train.conflict_cosine_layers` names ([`crate::train::cosine`]).
//!
//! The observed entropy change is not a metric. The report computes it as the difference of `entropy/sampling` between
//! two consecutive steps and compares it with the prediction.

mod connectors;
pub mod covariance;
mod deciles;
mod lexicon;
mod sums;
mod table;
mod token;
mod types;

use rayon::prelude::*;

pub use connectors::{ConnectorCounts, ConnectorMarks, Connectors};
pub use covariance::Covariance;
pub use deciles::DECILES;
pub use sums::TokenSums;
pub use table::{TypeRow, Types};
pub use token::{entropy_drift, logit_gradient};
pub use types::{RankedType, Ranking, TokenTypes};

use crate::metrics::Metrics;
use crate::reward::{Part, Parts};
use sums::quotient;
use token::MeasuredToken;

/// A completion with the sampler's record of each token and its advantage.
#[derive(Debug, Clone, Copy)]
pub struct MeasuredCompletion<'a> {
    /// Token ids of the completion.
    pub tokens: &'a [u32],
    /// Log-probability of each token at the sampling temperature, in nats.
    pub log_probs: &'a [f32],
    /// Entropy of each distribution at temperature 1, in nats.
    pub entropies: &'a [f32],
    /// Entropy of each distribution at the sampling temperature, in nats.
    pub sampling_entropies: &'a [f32],
    /// `Σ π²` at the sampling temperature.
    pub collisions: &'a [f32],
    /// `Σ π² ln π` at the sampling temperature.
    pub collision_logs: &'a [f32],
    /// Advantage of the completion.
    pub advantage: Parts,
    /// Whether the answer is correct; `None` if that cannot be determined.
    pub correct: Option<bool>,
    /// Weight of each token in the loss.
    pub weight: f32,
}

/// Figures of the conflict in one step.
#[derive(Debug, Clone, PartialEq)]
pub struct ConflictFigures {
    /// All tokens.
    pub all: TokenSums,
    /// Connectors.
    pub connectors: TokenSums,
    /// All other tokens.
    pub others: TokenSums,
    /// Tenths of the tokens by entropy at the sampling temperature, lowest first.
    pub deciles: [TokenSums; DECILES],
    /// Mean decile of connectors, each decile represented by its middle (0.5 to 9.5).
    pub connector_decile: Option<f64>,
    /// Entropy at the sampling temperature that 80% of the tokens do not exceed, in nats.
    pub entropy_p80: Option<f64>,
    /// Covariance of advantage and log-probability.
    pub covariance: Option<Covariance>,
    /// Share of the right completions with a negative advantage.
    pub negative_given_correct: Option<f64>,
    /// Connectors and steps.
    pub steps: ConnectorCounts,
}

/// Compute the figures of a step's samples, drawn at `temperature`, and count their tokens in `types`.
///
/// # Panics
/// When the lists of a sample differ in length.
pub fn measure(
    samples: &[MeasuredCompletion],
    temperature: f32,
    connectors: &Connectors,
    types: &mut TokenTypes,
) -> ConflictFigures {
    let readings: Vec<ConnectorMarks> = samples.par_iter().map(|sample| connectors.read(sample.tokens)).collect();
    let read = samples.iter().zip(&readings);
    let tokens: Vec<MeasuredToken> = (read.clone())
        .flat_map(|(sample, reading)| token::tokens(sample, f64::from(temperature), &reading.connector))
        .collect();
    read.for_each(|(sample, reading)| types.add(sample.tokens, sample.entropies, &reading.connector));

    let [mut all, mut connector, mut other] = [TokenSums::default(); 3];
    for token in &tokens {
        all.add(token, 1.0);
        if token.connector { &mut connector } else { &mut other }.add(token, 1.0);
    }
    let entropies: Vec<f64> = tokens.iter().map(|token| token.sampling_entropy).collect();
    let mut by_decile = [TokenSums::default(); DECILES];
    let mut positions = 0.0;
    deciles::spread(&entropies, |index, decile, share| {
        by_decile[decile].add(&tokens[index], share);
        if tokens[index].connector {
            positions += share * (decile as f64 + 0.5);
        }
    });
    let right = || samples.iter().filter(|sample| sample.correct == Some(true));
    let negative = right().filter(|sample| sample.advantage.total() < 0.0).count();
    let mut steps = ConnectorCounts::default();
    readings.iter().for_each(|reading| steps += reading.steps);
    ConflictFigures {
        all,
        connectors: connector,
        others: other,
        deciles: by_decile,
        connector_decile: quotient(positions, connector.tokens()),
        entropy_p80: deciles::quantile(&entropies, 0.8),
        covariance: covariance::covariance(&tokens),
        negative_given_correct: quotient(negative as f64, right().count() as f64),
        steps,
    }
}

impl ConflictFigures {
    /// Return the metrics, without the prefix `conflict/`.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        let mut set = |name: String, value: Option<f64>| {
            if let Some(value) = value {
                metrics.set(name, value);
            }
        };
        for (name, value) in self.all.figures(&self.all) {
            // Skip shares of the whole in itself, and figures that are metrics already.
            if !(name.starts_with("grad_share") || matches!(name, "entropy" | "token_share")) {
                set(name.to_string(), value);
            }
        }
        for (prefix, sums) in [("connectors", &self.connectors), ("others", &self.others)] {
            if sums.tokens() > 0.0 {
                sums.figures(&self.all).into_iter().for_each(|(name, value)| set(format!("{prefix}/{name}"), value));
            }
        }
        set("entropy_p80".to_string(), self.entropy_p80);
        if let Some(Covariance { parts: [task, length, mean], top_two_mille, top_percent }) = self.covariance {
            set("covariance/mean".to_string(), Some(mean));
            set("covariance/task".to_string(), self.all.advantage(Part::Task).map(|_| task));
            set("covariance/length".to_string(), self.all.advantage(Part::Length).map(|_| length));
            set("covariance/top_0.2_percent".to_string(), Some(top_two_mille));
            set("covariance/top_1_percent".to_string(), Some(top_percent));
        }
        set("negative_given_correct".to_string(), self.negative_given_correct);
        let per_1000 = quotient(1000.0 * self.connectors.tokens(), self.all.tokens());
        set("connectors/per_1000".to_string(), per_1000);
        set("connectors/decile".to_string(), self.connector_decile);
        set("connectors/opens_step".to_string(), self.steps.opens_step());
        set("connectors/tokens_to_step_end".to_string(), self.steps.tokens_to_step_end());
        set("steps/opened_share".to_string(), self.steps.opened_share());
        let [after_connector, otherwise] = self.steps.restated();
        set("steps/restated_after_connector".to_string(), after_connector);
        set("steps/restated_otherwise".to_string(), otherwise);
        for (k, (name, _)) in self.all.figures(&self.all).into_iter().enumerate() {
            let list: Vec<Option<f64>> = self.deciles.iter().map(|sums| sums.figures(&self.all)[k].1).collect();
            if !name.starts_with("token") && list.iter().any(Option::is_some) {
                metrics.set_list(&format!("deciles/{name}"), &list);
            }
        }
        metrics
    }
}

#[cfg(test)]
mod tests;
