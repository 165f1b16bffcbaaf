//! Sums over a set of tokens, and the figures computed from them.

use super::token::MeasuredToken;
use crate::reward::Part;

/// Sums over a set of tokens. A token on the border of two deciles counts fractionally in both.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenSums {
    tokens: f64,
    weight: f64,
    entropy: f64,
    log_prob: f64,
    opposed: f64,
    /// `Σ A` and `Σ |A|` of each part.
    advantage: [f64; 2],
    magnitude: [f64; 2],
    /// `Σ w A g`, `Σ w |A| g` of each part, and `Σ w |A_task + A_length| g`.
    push: [f64; 2],
    effort: [f64; 2],
    joint_effort: f64,
    /// `Σ (w A g)²` of each part and of both.
    square: [f64; 2],
    joint_square: f64,
    /// `Σ w A δ` of each part.
    drift: [f64; 2],
}

impl TokenSums {
    /// Add `share` of a token.
    pub(super) fn add(&mut self, token: &MeasuredToken, share: f64) {
        let advantage = [f64::from(token.advantage.task), f64::from(token.advantage.length)];
        let weight = share * token.weight;
        let joint = advantage[0] + advantage[1];
        self.tokens += share;
        self.weight += weight;
        self.entropy += share * token.entropy;
        self.log_prob += share * token.log_prob;
        self.opposed += if advantage[0] > 0.0 && advantage[1] < 0.0 { share } else { 0.0 };
        for (part, advantage) in advantage.into_iter().enumerate() {
            self.advantage[part] += share * advantage;
            self.magnitude[part] += share * advantage.abs();
            self.push[part] += weight * advantage * token.gradient;
            self.effort[part] += weight * advantage.abs() * token.gradient;
            self.square[part] += share * (token.weight * advantage * token.gradient).powi(2);
            self.drift[part] += weight * advantage * token.drift;
        }
        self.joint_effort += weight * joint.abs() * token.gradient;
        self.joint_square += share * (token.weight * joint * token.gradient).powi(2);
    }

    /// Return the number of tokens in the set.
    pub fn tokens(&self) -> f64 {
        self.tokens
    }

    /// Return the mean entropy at temperature 1, in nats.
    pub fn entropy(&self) -> Option<f64> {
        quotient(self.entropy, self.tokens)
    }

    /// Return the mean log-probability at the sampling temperature, in nats.
    pub fn log_prob(&self) -> Option<f64> {
        quotient(self.log_prob, self.tokens)
    }

    /// Return the share of the tokens with `A_task > 0` and `A_length < 0`. `None` unless both parts act.
    pub fn opposed_share(&self) -> Option<f64> {
        self.has(Part::Task).and(self.has(Part::Length))?;
        quotient(self.opposed, self.tokens)
    }

    /// Return the mean advantage of a part.
    pub fn advantage(&self, part: Part) -> Option<f64> {
        self.has(part)?;
        quotient(self.advantage[part as usize], self.tokens)
    }

    /// Return the net push `P = Σ w A g / Σ w` of a part: the logit-gradient norm per token, signed by the advantage.
    pub fn push(&self, part: Part) -> Option<f64> {
        self.has(part)?;
        quotient(self.push[part as usize], self.weight)
    }

    /// Return the opposition index `κ = 1 − |P_task + P_length| / (|P_task| + |P_length|)`: 0 if the parts' net pushes
    /// agree, 1 if they cancel. `None` unless both parts act.
    pub fn opposition(&self) -> Option<f64> {
        self.has(Part::Task).and(self.has(Part::Length))?;
        let [task, length] = self.push;
        Some(1.0 - quotient((task + length).abs(), task.abs() + length.abs())?)
    }

    /// Return the opposition per token: `1 − Σ w g |A_task + A_length| / Σ w g (|A_task| + |A_length|)`, the share of
    /// the parts' efforts that cancels. `None` unless both parts act.
    pub fn cancellation(&self) -> Option<f64> {
        self.has(Part::Task).and(self.has(Part::Length))?;
        Some(1.0 - quotient(self.joint_effort, self.effort[0] + self.effort[1])?)
    }

    /// Return the predicted change of the entropy at the sampling temperature, `Σ w A δ / Σ w`, in nats per token for
    /// a unit step along each token's logit gradient.
    pub fn entropy_change(&self, part: Part) -> Option<f64> {
        self.has(part)?;
        quotient(self.drift[part as usize], self.weight)
    }

    /// Return the set's share of the squared logit gradients `Σ (w A g)²` of `all`, for a part.
    pub fn grad_share(&self, all: &TokenSums, part: Part) -> Option<f64> {
        quotient(self.square[part as usize], all.square[part as usize])
    }

    /// Return every figure with its name; `None` for figures of a part that does not act.
    pub fn figures(&self, all: &TokenSums) -> [(&'static str, Option<f64>); 17] {
        let changes = [Part::Task, Part::Length].map(|part| self.entropy_change(part));
        let total = changes.iter().flatten().copied().reduce(|a, b| a + b);
        [
            ("entropy", self.entropy()),
            ("log_prob", self.log_prob()),
            ("advantage_task", self.advantage(Part::Task)),
            ("advantage_length", self.advantage(Part::Length)),
            ("push_task", self.push(Part::Task)),
            ("push_length", self.push(Part::Length)),
            ("opposition", self.opposition()),
            ("cancellation", self.cancellation()),
            ("opposed_share", self.opposed_share()),
            ("entropy_change_task", changes[0]),
            ("entropy_change_length", changes[1]),
            ("entropy_change", total),
            ("grad_share_task", self.grad_share(all, Part::Task)),
            ("grad_share_length", self.grad_share(all, Part::Length)),
            ("grad_share", quotient(self.joint_square, all.joint_square)),
            ("token_share", quotient(self.tokens, all.tokens)),
            ("tokens", Some(self.tokens)),
        ]
    }

    /// Return `Some` if a part has an advantage on a token of the set.
    fn has(&self, part: Part) -> Option<()> {
        (self.magnitude[part as usize] > 0.0).then_some(())
    }
}

/// Return `part / whole`, or `None` unless `whole` is positive.
pub(super) fn quotient(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}
