//! Terms of each token's loss, from the scored completions of a mini-batch: which tokens learn, and with which weight.
//!
//! The rules run on the host. They use the sampler's log-probabilities and entropies over the whole mini-batch of an
//! optimiser step. Before the first update these are the policy's own, and the split into micro-batches does not change
//! the result. (TRL and verl use the tokens of one micro-batch, and the current policy in later updates of a step.
//! verl's Clip-Cov also skips tokens that PPO's clip has already removed.)

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::loss::TokenTerm;
use crate::noise::Stream;

/// Input of the token rules for one completion.
#[derive(Debug, Clone, Copy)]
pub struct TokenRuleInput<'a> {
    /// The sampler's log-probability of each token at the sampling temperature, in nats.
    pub log_probs: &'a [f32],
    /// Entropy at the sampling temperature before each token, in nats.
    pub entropies: &'a [f32],
    /// Advantage of the completion.
    pub advantage: f32,
    /// Tokens without an advantage ([`super::steps`]).
    pub silent: &'a [Range<usize>],
    /// Weight of each of its tokens, from [`super::Aggregate::weights`]; 0 if it is left out of the step.
    pub weight: f32,
    /// Whether the problem is hard in the sense of CEEH.
    pub hard: bool,
}

/// Rule for the tokens with the largest covariance of log-probability and advantage: exclude them from the surrogate or
/// penalise their distance from the old policy (arXiv 2505.22617); `c = (A − mean A)(log π − mean log π)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum CovarianceRule {
    /// Clip-Cov: excludes `clip_cov_ratio · N` tokens from the surrogate, drawn at random among those with `clip_cov_lb
    /// < c < clip_cov_ub`.
    ClipCov {
        /// Fraction of all tokens that is excluded.
        #[serde(default = "published::clip_cov_ratio")]
        clip_cov_ratio: f64,
        /// Lower bound of c.
        #[serde(default = "published::clip_cov_lb")]
        clip_cov_lb: f64,
        /// Upper bound of c.
        #[serde(default = "published::clip_cov_ub")]
        clip_cov_ub: f64,
    },
    /// KL-Cov: adds the penalty `ppo_kl_coef · |log ρ|` to the loss of the `kl_cov_ratio · N` tokens with the largest
    /// c, and disables clipping (as in the paper and verl's `compute_policy_loss_kl_cov`). The penalty is 0 in the
    /// first update of a step, where `ρ = 1`.
    KlCov {
        /// Fraction of all tokens that is penalised.
        #[serde(default = "published::kl_cov_ratio")]
        kl_cov_ratio: f64,
        /// Coefficient of the penalty.
        #[serde(default = "published::ppo_kl_coef")]
        ppo_kl_coef: f32,
    },
}

/// Default values, from arXiv 2505.22617 (its 7B runs).
mod published {
    pub(super) fn clip_cov_ratio() -> f64 {
        2e-4
    }

    pub(super) fn clip_cov_lb() -> f64 {
        1.0
    }

    pub(super) fn clip_cov_ub() -> f64 {
        5.0
    }

    pub(super) fn kl_cov_ratio() -> f64 {
        2e-3
    }

    pub(super) fn ppo_kl_coef() -> f32 {
        1.0
    }
}

/// Addition of `min(α·H, |A|/κ)` to the advantage of each token, with H held constant (arXiv 2506.14758).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EntropyAdvantage {
    /// Coefficient α of the entropy, above 0.
    pub alpha: f32,
    /// Bound κ, above 1 so that no advantage changes its sign.
    pub kappa: f32,
    /// Whether to apply the term to hard problems only (CEEH, arXiv 2602.22642); requires the reward `ceeh_length`.
    pub hard_only: bool,
}

impl Default for EntropyAdvantage {
    /// The published values.
    fn default() -> Self {
        Self { alpha: 0.4, kappa: 2.0, hard_only: false }
    }
}

/// Rules for the tokens that have a gradient, and for the terms of the loss besides the surrogate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenRules {
    /// Factor of the divergence from the reference model.
    pub beta: f32,
    /// Share of tokens, highest entropy first, that the surrogate and the entropy bonus act on (arXiv 2506.01939).
    pub top_entropy_quantile: f64,
    /// Rule for the tokens with a large covariance.
    pub covariance: Option<CovarianceRule>,
    /// Entropy-based addition to the advantage.
    pub entropy_advantage: Option<EntropyAdvantage>,
    /// Factor of the mean entropy of the tokens kept by `top_entropy_quantile`.
    pub entropy_coef: f32,
    /// Multiplies `entropy_coef` on hard problems (CEEH).
    pub entropy_hard_factor: f32,
}

impl Default for TokenRules {
    fn default() -> Self {
        Self {
            beta: 0.0,
            top_entropy_quantile: 1.0,
            covariance: None,
            entropy_advantage: None,
            entropy_coef: 0.0,
            entropy_hard_factor: 1.0,
        }
    }
}

/// Statistics of the token rules over a mini-batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TermCounts {
    /// Number of tokens of the completions whose weight is not 0.
    pub tokens: usize,
    /// Number of tokens below the entropy quantile.
    pub low_entropy: usize,
    /// Number of tokens selected by the covariance rule.
    pub covariance: usize,
    /// Mean entropy of the tokens above the quantile, in nats at the sampling temperature; input of adaptive control.
    pub entropy: f64,
}

impl TokenRules {
    /// Return the terms of every token of a mini-batch, completion by completion. `old_log_prob` and
    /// `reference_log_prob` stay 0; the caller sets them.
    pub fn terms(&self, step: &[TokenRuleInput], random: &mut Stream) -> (Vec<Vec<TokenTerm>>, TermCounts) {
        let term = |drawn: &TokenRuleInput, entropy: f32| TokenTerm {
            advantage: drawn.advantage + self.bonus(drawn, entropy),
            weight: drawn.weight,
            kl: self.beta * drawn.weight,
            ..TokenTerm::default()
        };
        let mut terms: Vec<Vec<TokenTerm>> =
            step.iter().map(|drawn| drawn.entropies.iter().map(|&entropy| term(drawn, entropy)).collect()).collect();
        for (terms, drawn) in terms.iter_mut().zip(step) {
            drawn.silent.iter().flat_map(Clone::clone).for_each(|t| terms[t].advantage = 0.0);
        }
        let tokens: Vec<(usize, usize)> = (step.iter().enumerate())
            .filter(|(_, drawn)| drawn.weight != 0.0)
            .flat_map(|(i, drawn)| (0..drawn.log_probs.len()).map(move |t| (i, t)))
            .collect();
        let mut counts = TermCounts { tokens: tokens.len(), ..TermCounts::default() };
        let entropy = |&(i, t): &(usize, usize)| step[i].entropies[t];

        // 1. Covariance, over all tokens.
        if let Some(covariance) = self.covariance {
            let chosen = covariance.choose(step, &tokens, random);
            counts.covariance = chosen.len();
            for (i, t) in chosen {
                let term = &mut terms[i][t];
                match covariance {
                    CovarianceRule::ClipCov { .. } => term.weight = 0.0,
                    CovarianceRule::KlCov { ppo_kl_coef, .. } => term.covariance_kl = ppo_kl_coef * term.weight,
                }
            }
        }
        // 2. Entropy quantile.
        let threshold = quantile(tokens.iter().map(entropy).collect(), 1.0 - self.top_entropy_quantile);
        let all = self.top_entropy_quantile >= 1.0;
        let (kept, dropped): (Vec<_>, Vec<_>) =
            tokens.into_iter().partition(|token| all || f64::from(entropy(token)) >= threshold);
        counts.low_entropy = dropped.len();
        dropped.into_iter().for_each(|(i, t)| {
            terms[i][t].weight = 0.0;
            terms[i][t].covariance_kl = 0.0;
        });
        // 3. Entropy bonus: a mean over the tokens above the quantile.
        counts.entropy = kept.iter().map(|token| f64::from(entropy(token))).sum::<f64>() / kept.len().max(1) as f64;
        for &(i, t) in &kept {
            let factor = if step[i].hard { self.entropy_hard_factor } else { 1.0 };
            terms[i][t].entropy = self.entropy_coef * factor / kept.len() as f32;
        }
        (terms, counts)
    }

    fn bonus(&self, drawn: &TokenRuleInput, entropy: f32) -> f32 {
        let Some(rule) = self.entropy_advantage.filter(|rule| drawn.hard || !rule.hard_only) else { return 0.0 };
        (rule.alpha * entropy).min(drawn.advantage.abs() / rule.kappa)
    }
}

impl CovarianceRule {
    fn choose(self, step: &[TokenRuleInput], tokens: &[(usize, usize)], random: &mut Stream) -> Vec<(usize, usize)> {
        let count = tokens.len().max(1) as f64;
        let advantage = |&(i, _): &(usize, usize)| f64::from(step[i].advantage);
        let log_prob = |&(i, t): &(usize, usize)| f64::from(step[i].log_probs[t]);
        let means =
            [tokens.iter().map(advantage).sum::<f64>() / count, tokens.iter().map(log_prob).sum::<f64>() / count];
        let of = |token: &(usize, usize)| (advantage(token) - means[0]) * (log_prob(token) - means[1]);
        let at_most = |share: f64| ((share * tokens.len() as f64) as usize).max(1);
        match self {
            Self::ClipCov { clip_cov_ratio, clip_cov_lb, clip_cov_ub } => {
                let within = |token: &&(usize, usize)| of(token) > clip_cov_lb && of(token) < clip_cov_ub;
                let mut candidates: Vec<(usize, usize)> = tokens.iter().filter(within).copied().collect();
                random.shuffle(&mut candidates);
                candidates.truncate(at_most(clip_cov_ratio));
                candidates
            }
            Self::KlCov { kl_cov_ratio, .. } => {
                let mut ranked: Vec<(f64, (usize, usize))> = tokens.iter().map(|token| (of(token), *token)).collect();
                ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
                ranked.into_iter().take(at_most(kl_cov_ratio)).map(|(_, token)| token).collect()
            }
        }
    }

    /// Return a setting that cannot work, as `key = value` and the reason.
    pub fn mistake(&self) -> Option<String> {
        let share = |key: &str, value: f64| {
            (!(value > 0.0 && value <= 1.0)).then(|| format!("{key} = {value} must be above 0 and at most 1"))
        };
        match *self {
            Self::ClipCov { clip_cov_ratio, clip_cov_lb, clip_cov_ub } => {
                let empty = clip_cov_lb.is_nan() || clip_cov_ub.is_nan() || clip_cov_lb >= clip_cov_ub;
                let bounds = format!("clip_cov_lb = {clip_cov_lb} must be below clip_cov_ub = {clip_cov_ub}");
                share("clip_cov_ratio", clip_cov_ratio).or(empty.then_some(bounds))
            }
            Self::KlCov { kl_cov_ratio, ppo_kl_coef } => share("kl_cov_ratio", kl_cov_ratio).or_else(|| {
                let bad = !(ppo_kl_coef >= 0.0 && ppo_kl_coef.is_finite());
                bad.then(|| format!("ppo_kl_coef = {ppo_kl_coef} must not be negative"))
            }),
        }
    }
}

/// Return the quantile `q` of the values, interpolated linearly (as NumPy and PyTorch do).
fn quantile(mut values: Vec<f32>, q: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    values.sort_by(f32::total_cmp);
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (values[at.floor() as usize], values[at.ceil() as usize]);
    f64::from(below) + (at - at.floor()) * f64::from(above - below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn<'a>(log_probs: &'a [f32], entropies: &'a [f32], advantage: f32) -> TokenRuleInput<'a> {
        TokenRuleInput { log_probs, entropies, advantage, silent: &[], weight: 0.25, hard: false }
    }

    fn terms(rules: TokenRules, step: &[TokenRuleInput]) -> (Vec<Vec<TokenTerm>>, TermCounts) {
        rules.terms(step, &mut Stream::new(&[1]))
    }

    #[test]
    fn a_completion_that_is_left_out_has_no_terms_and_does_not_count() {
        let out = TokenRuleInput { weight: 0.0, ..drawn(&[-1.0, -2.0], &[9.0, 9.0], 1.0) };
        let rules = TokenRules { beta: 0.1, entropy_coef: 0.3, top_entropy_quantile: 0.5, ..TokenRules::default() };
        let (terms, counts) = terms(rules, &[out, drawn(&[-1.0, -2.0], &[0.1, 0.5], 1.0)]);
        assert!(terms[0].iter().all(|term| !term.learns()), "{:?}", terms[0]);
        assert_eq!((counts.tokens, counts.low_entropy), (2, 1));
        assert!(terms[1][0].weight == 0.0 && terms[1][0].kl > 0.0 && terms[1][0].entropy == 0.0);
        assert_eq!((terms[1][1].weight, terms[1][1].entropy), (0.25, 0.3));
        assert!((counts.entropy - 0.5).abs() < 1e-6);
    }

    /// Silent tokens count among the tokens, and the divergence acts on them.
    #[test]
    fn silent_tokens_have_no_advantage() {
        let rule = EntropyAdvantage { alpha: 0.4, kappa: 2.0, hard_only: false };
        let rules = TokenRules { beta: 0.1, entropy_advantage: Some(rule), ..TokenRules::default() };
        let silent = [Range { start: 1, end: 3 }];
        let (found, counts) = terms(rules, &[TokenRuleInput { silent: &silent, ..drawn(&[-1.0; 4], &[0.5; 4], 1.0) }]);
        assert_eq!(found[0].iter().map(|term| term.advantage).collect::<Vec<_>>(), [1.2, 0.0, 0.0, 1.2]);
        assert!(counts.tokens == 4 && found[0].iter().all(|term| term.weight == 0.25 && term.kl > 0.0));
    }

    /// α·H = 0.2 and 4 against |A|/κ = 0.5: the smaller value is added, so no sign changes.
    #[test]
    fn entropy_advantage_is_bounded_by_the_advantage() {
        let rule = EntropyAdvantage { alpha: 0.4, kappa: 2.0, hard_only: false };
        let rules = TokenRules { entropy_advantage: Some(rule), ..TokenRules::default() };
        let (found, _) = terms(rules, &[drawn(&[-1.0; 2], &[0.5, 10.0], -1.0)]);
        assert!((found[0][0].advantage + 0.8).abs() < 1e-6 && (found[0][1].advantage + 0.5).abs() < 1e-6);
        let hard = EntropyAdvantage { hard_only: true, ..rule };
        let rules = TokenRules { entropy_advantage: Some(hard), ..TokenRules::default() };
        assert_eq!(terms(rules, &[drawn(&[-1.0], &[0.5], -1.0)]).0[0][0].advantage, -1.0);
    }

    /// Covariances of four tokens by hand: mean A = 0, mean log p = −2; c = A (log p + 2) with A = 1, 1, −1, −1.
    #[test]
    fn covariance_picks_the_tokens_the_formula_says() {
        let (a, b) = ([-1.0f32, -3.0], [-0.5f32, -3.5]);
        let step = [drawn(&a, &[0.1; 2], 1.0), drawn(&b, &[0.1; 2], -1.0)];
        // c: 1, −1, −1.5, 1.5.
        let hold = CovarianceRule::KlCov { kl_cov_ratio: 0.5, ppo_kl_coef: 2.0 };
        let (found, counts) = terms(TokenRules { covariance: Some(hold), ..TokenRules::default() }, &step);
        assert_eq!(counts.covariance, 2);
        assert_eq!(found.concat().iter().map(|t| t.covariance_kl).collect::<Vec<_>>(), [0.5, 0.0, 0.0, 0.5]);
        let clip = CovarianceRule::ClipCov { clip_cov_ratio: 1.0, clip_cov_lb: 1.2, clip_cov_ub: 5.0 };
        let (found, counts) = terms(TokenRules { covariance: Some(clip), ..TokenRules::default() }, &step);
        assert_eq!(counts.covariance, 1);
        assert_eq!(found.concat().iter().map(|t| t.weight).collect::<Vec<_>>(), [0.25, 0.25, 0.25, 0.0]);
    }

    #[test]
    fn quantiles_are_those_of_numpy() {
        assert!((quantile(vec![3.0, 1.0, 2.0, 10.0], 0.8) - 5.8).abs() < 1e-6);
        assert_eq!(quantile(vec![3.0, 1.0], 0.0), 1.0);
    }
}
