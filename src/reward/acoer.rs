//! ACOER (arXiv 2606.22716): a length reward for right answers, whose weight a control loop raises while accuracy
//! holds.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, positive, require};
use crate::error::Result;
use crate::metrics::{Metrics, mean};

/// `1 + α · ln(1 + 5 (1 − min(len / B, 1))) / ln 6` for a right answer, 0 for a wrong one.
///
/// α and B follow exponential moving averages (weight 2 / (`span` + 1) for a new step) of a step's accuracy and of the
/// mean length of its right answers. After `warmup_steps`, and once `window` steps are known, each step multiplies α by
/// `up`, up to `alpha_max`, or by `down` if the averaged accuracy is more than `tolerance` below the first of the last
/// `window` averages. B is then `budget_ratio` times the averaged length, at least `min_budget`; before, it is
/// `first_budget`. The formula is that of the code (`js-lee-AI/ACOER`, 489009a, `acoer/reward.py`), which takes a
/// length from the characters of the reasoning, four to a token; here it is the completion's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Acoer {
    /// Initial value of α.
    pub alpha: f64,
    /// Minimum of α.
    pub alpha_min: f64,
    /// Maximum of α.
    pub alpha_max: f64,
    /// Factor on α in each step while accuracy holds.
    pub up: f64,
    /// Factor on α in each step in which accuracy has decreased.
    pub down: f64,
    /// Span of the exponential moving averages, in steps.
    pub span: usize,
    /// Number of steps over which the decrease of accuracy is measured.
    pub window: usize,
    /// Maximum decrease of accuracy within the window, as a fraction of completions.
    pub tolerance: f64,
    /// Ratio of B to the average length of correct answers.
    pub budget_ratio: f64,
    /// Minimum of B, in tokens.
    pub min_budget: f64,
    /// Value of B before the control loop starts, in tokens.
    pub first_budget: f64,
    /// Number of steps before the control loop starts.
    pub warmup_steps: usize,
}

impl Default for Acoer {
    fn default() -> Self {
        Self {
            alpha: 0.02,
            alpha_min: 0.01,
            alpha_max: 0.5,
            up: 1.02,
            down: 0.95,
            span: 50,
            window: 100,
            tolerance: 0.02,
            budget_ratio: 0.85,
            min_budget: 512.0,
            first_budget: 4096.0,
            warmup_steps: 200,
        }
    }
}

/// State of the control loop.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Loop {
    alpha: f64,
    budget: f64,
    length: f64,
    steps: usize,
    /// Averaged accuracies of the last `window` steps.
    accuracy: Vec<f64>,
}

impl Acoer {
    fn state(&self, memory: &Memory) -> Loop {
        let start = || Loop { alpha: self.alpha, budget: self.first_budget, ..Loop::default() };
        memory.acoer.clone().unwrap_or_else(start)
    }
}

impl Reward for Acoer {
    fn name(&self) -> &str {
        "acoer"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let Self { alpha_min, alpha, alpha_max, window, span, .. } = *self;
        found([
            require(alpha_min <= alpha && alpha <= alpha_max, "alpha", alpha, "between alpha_min and alpha_max"),
            require(window > 0, "window", window, "positive"),
            require(span > 0, "span", span, "positive"),
            positive("up", self.up as f32),
            positive("down", self.down as f32),
            positive("budget_ratio", self.budget_ratio as f32),
            positive("min_budget", self.min_budget as f32),
            positive("first_budget", self.first_budget as f32),
        ])
    }

    fn score(&self, group: &AnswerGroup, memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let Loop { alpha, budget, .. } = self.state(memory);
        Ok(group.each(|answer, right| match right {
            true => {
                let saved = 1.0 - (answer.length() as f64 / budget).min(1.0);
                Parts { task: 1.0, length: (alpha * (1.0 + 5.0 * saved).ln() / 6f64.ln()) as f32 }
            }
            false => Parts::task(0.0),
        }))
    }

    fn remember(&self, groups: &[AnswerGroup], memory: &mut Memory) {
        let mut state = self.state(memory);
        let accuracy = mean(&groups.iter().map(AnswerGroup::pass_rate).collect::<Vec<_>>());
        let length = mean(&groups.iter().flat_map(AnswerGroup::right_lengths).collect::<Vec<_>>());
        let part = 2.0 / (self.span as f64 + 1.0);
        let averaged = |old: Option<f64>, new: f64| old.map_or(new, |old| part * new + (1.0 - part) * old);
        state.length = averaged((state.steps > 0).then_some(state.length), length);
        let now = averaged(state.accuracy.last().copied(), accuracy);
        state.accuracy.push(now);
        state.steps += 1;
        if state.accuracy.len() > self.window {
            state.accuracy.remove(0);
        }
        if state.steps > self.warmup_steps && state.accuracy.len() == self.window {
            let falls = state.accuracy[0] - now > self.tolerance;
            let factor = if falls { self.down } else { self.up };
            state.alpha = (state.alpha * factor).clamp(self.alpha_min, self.alpha_max);
            if state.length > 0.0 {
                state.budget = (self.budget_ratio * state.length).max(self.min_budget);
            }
        }
        memory.acoer = Some(state);
    }

    fn describe(&self, memory: &Memory, metrics: &mut Metrics) {
        let Loop { alpha, budget, .. } = self.state(memory);
        metrics.set("rewards/acoer/alpha", alpha);
        metrics.set("rewards/acoer/budget", budget);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{answer, remember, scores};
    use super::*;

    const SMALL: Acoer = Acoer {
        alpha: 0.1,
        alpha_min: 0.01,
        alpha_max: 0.5,
        up: 2.0,
        down: 0.5,
        span: 1,
        window: 2,
        tolerance: 0.02,
        budget_ratio: 0.5,
        min_budget: 4.0,
        first_budget: 40.0,
        warmup_steps: 1,
    };

    /// Half of the budget of 40 is saved: 1 + 0.1 · ln(3.5) / ln(6) = 1.069917; at 40 and beyond nothing is saved.
    #[test]
    fn acoer_by_hand() {
        let got = scores(&SMALL, &[answer(true, 20), answer(true, 40), answer(true, 90), answer(false, 5)]);
        let expected = [1.069_917, 1.0, 1.0, 0.0];
        assert!(got.iter().flatten().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-5), "{got:?}");
    }

    /// With span 1 the averages are those of the last step. The first step is the warm-up; the second compares its
    /// accuracy with the first's and raises α; the third falls from 1 to 0.5 and lowers α.
    #[test]
    fn the_weight_follows_accuracy() {
        let (right, half) = ([answer(true, 20), answer(true, 20)], [answer(true, 30), answer(false, 30)]);
        let mut memory = Memory::default();
        let mut steps = Vec::new();
        for group in [&right, &right, &half] {
            remember(&SMALL, &mut memory, &[(1, group)]);
            let Loop { alpha, budget, .. } = memory.acoer.clone().unwrap();
            steps.push((alpha, budget));
        }
        assert_eq!(steps, [(0.1, 40.0), (0.2, 10.0), (0.1, 15.0)]);
    }
}
