//! DeepCompress (arXiv 2510.27419): favours short answers if the model is better than usual, long ones if it is worse.

use serde::{Deserialize, Serialize};

use super::{AnswerGroup, Memory, Parts, Reward, found, positive, require};
use crate::error::Result;
use crate::metrics::{Metrics, deviation, mean};

/// 1 plus `alpha / (1 + e^(β z))` for a right answer, −1 for a wrong one: z is the length standardised in the group
/// (all completions, sample deviation), β the group's pass rate minus a running mean of the pass rate of steps, before
/// this step. The formula is taken from notes on the paper, the defaults from its scripts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeepCompress {
    /// Weight of the length term.
    pub alpha: f32,
    /// Decay rate per step of the running mean of the pass rate, within [0, 1); its initial value is 1.
    pub moving_average: f32,
}

impl Default for DeepCompress {
    fn default() -> Self {
        Self { alpha: 0.2, moving_average: 0.99 }
    }
}

impl Reward for DeepCompress {
    fn name(&self) -> &str {
        "deep_compress"
    }

    fn mistakes(&self, _max_completion_length: usize) -> Vec<String> {
        let kept = self.moving_average;
        let within = require((0.0..1.0).contains(&kept), "moving_average", kept, "at least 0 and below 1");
        found([positive("alpha", self.alpha), within])
    }

    fn score(&self, group: &AnswerGroup, memory: &Memory) -> Result<Vec<Option<Parts>>> {
        let lengths = group.lengths();
        let (centre, spread) = (mean(&lengths), deviation(&lengths));
        let beta = group.pass_rate() - memory.pass_rate.unwrap_or(1.0);
        Ok(group.each(|answer, right| {
            let z = (answer.length() as f64 - centre) / (spread + 1e-6);
            let length = if right { f64::from(self.alpha) / (1.0 + (beta * z).exp()) } else { 0.0 };
            Parts { task: if right { 1.0 } else { -1.0 }, length: length as f32 }
        }))
    }

    fn remember(&self, groups: &[AnswerGroup], memory: &mut Memory) {
        let all: Vec<f64> = groups.iter().map(AnswerGroup::pass_rate).collect();
        let kept = f64::from(self.moving_average);
        memory.pass_rate = Some(kept * memory.pass_rate.unwrap_or(1.0) + (1.0 - kept) * mean(&all));
    }

    fn describe(&self, memory: &Memory, metrics: &mut Metrics) {
        metrics.set("rewards/deep_compress/pass_rate", memory.pass_rate.unwrap_or(1.0));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Answer;
    use super::super::tests::{answer, parts, remember};
    use super::*;

    /// Lengths 10 and 30 (z = ∓0.707107), all right (P = 1): against a running mean of 0.5, β = 0.5 and the shorter one
    /// earns 0.2 / (1 + e^(−0.353553)) = 0.117496; against 1, β = 0 and both earn 0.1.
    #[test]
    fn deep_compress_by_hand() {
        let reward = DeepCompress::default();
        let group = [answer(true, 10), answer(true, 30)];
        let with = |pass_rate: Option<f64>, group: &[Answer]| {
            parts(&reward, group, &Memory { pass_rate, ..Memory::default() })
        };
        let lengths = |parts: Vec<Option<Parts>>| [parts[0].unwrap().length, parts[1].unwrap().length];
        let [short, long] = lengths(with(Some(0.5), &group));
        assert!((short - 0.117_496).abs() < 1e-5 && (long - 0.082_504).abs() < 1e-5, "{short} {long}");
        assert_eq!(lengths(with(None, &group)), [0.1, 0.1]);
        // Worse than usual: the longer right answer earns more.
        let weak = [answer(true, 10), answer(true, 30), answer(false, 20), answer(false, 20)];
        let [short, long] = lengths(with(None, &weak));
        assert!(long > short && with(None, &weak)[2] == Some(Parts::task(-1.0)));
    }

    #[test]
    fn the_running_pass_rate_begins_at_one() {
        let mut memory = Memory::default();
        let group = [answer(true, 10), answer(false, 30)];
        let reward = DeepCompress { moving_average: 0.9, ..DeepCompress::default() };
        remember(&reward, &mut memory, &[(1, &group)]);
        assert!((memory.pass_rate.unwrap() - 0.95).abs() < 1e-6);
        remember(&reward, &mut memory, &[(1, &group)]);
        assert!((memory.pass_rate.unwrap() - 0.905).abs() < 1e-6);
    }
}
